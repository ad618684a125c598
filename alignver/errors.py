"""The three ways in which alignver says no by raising, and how what other libraries raise becomes one of them.

A mathematical failure is a verdict, never an exception.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator

if typing.TYPE_CHECKING:
    from alignver.results import CheckResult

__all__ = ["InvalidInput", "MissingDependency", "VerificationFailed", "first_line", "reading"]


class InvalidInput(ValueError):
    """An argument that no verdict can be about: the message names it, what it got and what it needs."""

    def __init__(self, argument: str, got: str, need: str) -> None:
        self.argument = argument
        self.got = got
        self.need = need
        super().__init__(f"{argument}: got {got}; needs {need}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, str, str]]:
        return type(self), (self.argument, self.got, self.need)


class MissingDependency(ImportError):
    """An optional library that this call needs and that is not installed: the message says how to get it."""

    def __init__(self, library: str, purpose: str, extra: str) -> None:
        self.library = library
        self.purpose = purpose
        self.extra = extra
        super().__init__(f"{purpose} needs {library}, which is not installed: pip install 'alignver[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str, str]]:
        return type(self), (self.library, self.purpose, self.extra)


class VerificationFailed(Exception):
    """A result that was required to hold and does not; ``.result`` carries it whole."""

    def __init__(self, result: CheckResult) -> None:
        self.result = result
        super().__init__(str(result))


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name where it says nothing."""
    text = str(error.args[0] if error.args and isinstance(error.args[0], str) else error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def reading(argument: str, what: str, need: str) -> Iterator[None]:
    """Turn whatever is raised over bytes that are not what they should be into :class:`InvalidInput`.

    Readers of array, zip, pickle and image files raise IndexError, AssertionError, tokenize.TokenError and many more
    over damaged bytes: no list of types is complete.
    """
    try:
        yield
    except (InvalidInput, MissingDependency, MemoryError):
        raise
    except Exception as error:
        raise InvalidInput(argument, f"{what} ({first_line(error)})", need) from error
