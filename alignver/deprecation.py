"""Deprecated names and arguments: they still work for one minor version, with a warning.

``docs/versions.md`` has the rule. :data:`PENDING` lists what is deprecated; a test fails when the version in which
something goes has come, and it is still there.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from alignver.errors import DeprecatedName, InvalidInput

P = ParamSpec("P")
T = TypeVar("T")

Deprecated = tuple[str, str, str]
"""The old name, the new one, and the version in which the old one goes."""

PENDING: list[Deprecated] = []


def _warn(old: str, new: str, gone: str) -> None:
    # To the line that called the function, or imported the name.
    warnings.warn(
        f"{old} is deprecated and will be removed in alignver {gone}: use {new}", DeprecatedName, stacklevel=3
    )


def renamed_argument(old: str, new: str, *, gone: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Take a keyword argument under its old name too, with a warning.

    Parameters
    ----------
    old, new : str
    gone : str
        The version that no longer knows the old name: ``"0.4"``.

    Raises
    ------
    InvalidInput
        By the function: both names are given.

    Examples
    --------
    >>> import warnings
    >>> @renamed_argument("colour", "color", gone="9.0")
    ... def paint(*, color):
    ...     return color
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     paint(colour="red")
    'red'
    >>> print(caught[0].message)
    paint(colour=...) is deprecated and will be removed in alignver 9.0: use color=
    >>> _ = PENDING.pop()
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        PENDING.append((f"{function.__qualname__}({old}=...)", f"{new}=", gone))

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if old in kwargs:
                if new in kwargs:
                    raise InvalidInput(new, f"{old} with {new}", f"{new} only", "conflicting-arguments")
                _warn(f"{function.__name__}({old}=...)", f"{new}=", gone)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return run

    return decorate


def moved(module: str, names: Mapping[str, str], *, gone: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module whose names have moved: they are found, with a warning.

    Parameters
    ----------
    module : str
        ``__name__`` of the module.
    names : mapping
        From each old name to the full new one: ``{"conflicts": "alignver.check_data"}``.
    gone : str
        The version that no longer has the old names.

    Examples
    --------
    >>> import warnings
    >>> find = moved("alignver.old", {"check": "alignver.check_rank"}, gone="9.0")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     find("check").__name__
    'check_rank'
    >>> print(caught[0].message)
    alignver.old.check is deprecated and will be removed in alignver 9.0: use alignver.check_rank
    >>> _ = PENDING.pop()
    """
    PENDING.extend((f"{module}.{old}", new, gone) for old, new in names.items())

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", names[name], gone)
        home, _, attribute = names[name].rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return find
