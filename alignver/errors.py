"""Errors of arguments and of missing libraries, how what other libraries raise becomes one of them, and warnings.

A mathematical failure is a verdict, never an exception. Messages quote names and texts of files, which must not draw on
a terminal: what is shown goes through :func:`printable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


def printable(text: str) -> str:
    r"""Return a text with an escape in place of every character that is not printable; blanks stay.

    What ``str.isprintable`` refuses can move a terminal's cursor, reorder text or hide it: control characters, newlines
    and tabs, bidirectional overrides, characters without width, halves of surrogate pairs, which no encoding takes.

    Examples
    --------
    >>> print(printable("caf\u00e9\x1b[8m \u202e\ud800\U000e0041\n"))
    café\x1b[8m \u202e\ud800\U000e0041\x0a
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(ord(letter)) for letter in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class InvalidInput(ValueError):
    """An argument that the call cannot use: the message names the argument, what it got and what it needs.

    ``code`` is the kind of refusal, one of :data:`alignver.require.CODES`; it stays when a message is reworded.
    """

    def __init__(self, argument: str, got: str, need: str, code: str = "invalid-value") -> None:
        self.argument = argument
        self.got = got
        self.need = need
        self.code = code
        super().__init__(printable(f"{argument}: got {got}; needs {need}"))

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, str, str, str]]:
        return type(self), (self.argument, self.got, self.need, self.code)


class MissingDependency(ImportError):
    """An optional library that this call needs and that is not installed: the message says how to get it."""

    def __init__(self, library: str, purpose: str, extra: str) -> None:
        self.library = library
        self.purpose = purpose
        self.extra = extra
        message = f"{purpose} needs {library}, which is not installed: pip install 'alignver[{extra}]'"
        super().__init__(printable(message))

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str, str]]:
        return type(self), (self.library, self.purpose, self.extra)


class AlignverWarning(UserWarning):
    """The base class of the warnings of this library, for a filter.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", AlignverWarning)
    """


# A RuntimeWarning too, which both were before they had categories of their own: filters that name it still apply.
class LostGuarantee(AlignverWarning, RuntimeWarning):
    """The trained gates do not have rank n: they were replaced, or a global minimum is not guaranteed."""


class UnstableStep(AlignverWarning, RuntimeWarning):
    """A step of the exploitation phase is so long that the loss may diverge."""


class DeprecatedName(AlignverWarning, DeprecationWarning):
    """A name or an argument that the next minor version does not have; the message says what to use instead."""


def kind_of(value: Any) -> str:
    """Return the type of a value with its article, for a message.

    Examples
    --------
    >>> [kind_of(value) for value in (1, "text", None)]
    ['an int', 'a str', 'None']
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'AEIOaeio' or name == 'ndarray' else 'a'} {name}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, printable, or its type's name where it says nothing."""
    text = str(error.args[0] if error.args and isinstance(error.args[0], str) else error)
    if isinstance(error, OSError) and error.strerror:  # str(error) begins with its number
        text = error.strerror
    return printable((text.strip().splitlines() or [type(error).__name__])[0]).rstrip(".")


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
        raise InvalidInput(argument, f"{what} ({first_line(error)})", need, "unreadable-file") from error


@contextlib.contextmanager
def saving(argument: str, place: object, need: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of the file system, or one of other ``kinds``, into :class:`InvalidInput` about a file or folder.

    Examples
    --------
    >>> with saving("path", "/nowhere/x", "an existing folder"):
    ...     open("/nowhere/x", "w")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: path: got /nowhere/x, which cannot be written (No such file or directory); needs ...
    """
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except caught as error:
        got = f"{place}, which cannot be written ({getattr(error, 'strerror', None) or first_line(error)})"
        raise InvalidInput(argument, got, need, "unwritable-file") from error


@contextlib.contextmanager
def renamed(arguments: Mapping[str, str]) -> Iterator[None]:
    """Replace the argument's name by another one in every :class:`InvalidInput` of the block."""
    try:
        yield
    except InvalidInput as error:
        if error.argument in arguments:
            raise InvalidInput(arguments[error.argument], error.got, error.need, error.code) from error
        raise
