"""Requirements on arguments: each returns the value that it accepts, or raises :class:`~alignver.errors.InvalidInput`.

Every message has the same form, ``argument: got argument=value; needs ...``, and every kind of refusal one stable code
(:data:`CODES`), which :attr:`~alignver.errors.InvalidInput.code` carries. NumPy scalars count as the Python numbers
that they are; a bool is not a number.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignver.errors import InvalidInput, kind_of

CODES = {
    "invalid-value": "a value that the call cannot use; the message gives the reason",
    "not-an-integer": "a value that is not an integer, or an integer outside the range",
    "not-a-number": "a value that is not a real number, or a number outside the range",
    "not-a-choice": "a value that is not one of the listed options",
    "not-a-boolean": "a value other than True and False",
    "wrong-type": "an object of the wrong type",
    "wrong-shape": "an array or tensor of the wrong shape, or two with inconsistent shapes",
    "wrong-dtype": "an array or tensor of the wrong dtype",
    "wrong-device": "a tensor or model on the wrong device",
    "not-finite": "NaN or Inf among the numbers",
    "conflicting-arguments": "arguments that exclude each other, or an argument that requires another",
    "unreadable-file": "a file that cannot be read in the expected format",
    "unwritable-file": "a path that cannot be written to",
    "unsupported-model": "a model that the check does not support; the message gives the reason",
    "too-large": "a computation that needs more memory than is available",
}
"""The kinds of refusal: a code, and what it stands for."""


def integer(
    argument: str, value: Any, *, least: int | None = None, most: int | None = None, need: str | None = None
) -> int:
    """Return an integer from ``least`` to ``most``.

    Examples
    --------
    >>> integer("seed", 3, least=0)
    3
    >>> integer("probes", True, least=2)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: probes: got probes=True; needs an integer of at least 2
    """
    number = None if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        raise InvalidInput(argument, f"{argument}={value!r}", need or _words("integer", least, most), "not-an-integer")
    return number


def real(
    argument: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    need: str | None = None,
) -> float:
    """Return a finite number: at least ``least`` or above ``above``, at most ``most`` or below ``below``.

    Examples
    --------
    >>> real("tol", 1, above=0)
    1.0
    >>> real("confidence", 1.0, least=0.8, below=1.0)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: confidence: got confidence=1.0; needs a number of at least 0.8, below 1.0
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if (
        not math.isfinite(number)
        or (least is not None and number < least)
        or (above is not None and number <= above)
        or (most is not None and number > most)
        or (below is not None and number >= below)
    ):
        words = _words("number", least, most, above, below)
        raise InvalidInput(argument, f"{argument}={value!r}", need or words, "not-a-number")
    return number


def one_of(argument: str, value: Any, choices: Iterable[Any], *, need: str | None = None) -> Any:
    """Return a value that is one of the choices.

    Examples
    --------
    >>> one_of("loss", "squared", ("squared", "logistic"))
    'squared'
    >>> one_of("loss", "hinge", ("squared", "logistic"))
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: loss: got loss='hinge'; needs one of 'squared', 'logistic'
    """
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = "one of " + ", ".join(map(repr, choices)) + similar(value, choices)
        raise InvalidInput(argument, f"{argument}={value!r}", need or listed, code="not-a-choice")
    return value


def similar(value: Any, choices: Iterable[Any]) -> str:
    """Return the end of a sentence that names the most similar choice; empty if none is similar.

    Examples
    --------
    >>> similar("goulb", ["press", "golub"]), similar("svd", ["press", "golub"])
    ("; did you mean 'golub'?", '')
    """
    names = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def boolean(argument: str, value: Any) -> bool:
    """Return True or False for a boolean of Python or NumPy, and nothing that only counts as one of them.

    Examples
    --------
    >>> boolean("repair", "no")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: repair: got repair='no'; needs True or False
    """
    import numpy as np  # not above: the help of the command line loads no NumPy

    if not isinstance(value, bool | np.bool_):
        raise InvalidInput(argument, f"{argument}={value!r}", "True or False", code="not-a-boolean")
    return bool(value)


def booleans(**values: Any) -> None:
    """Require True or False for each argument.

    Examples
    --------
    >>> booleans(certify=True, thorough=1)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: thorough: got thorough=1; needs True or False
    """
    for argument, value in values.items():
        boolean(argument, value)


_T = typing.TypeVar("_T")


def instance(argument: str, value: Any, kind: type[_T], need: str) -> _T:
    """Return an object of a type.

    Examples
    --------
    >>> instance("model", 3, str, "the name of a model")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: model: got an int; needs the name of a model
    """
    if not isinstance(value, kind):
        raise InvalidInput(argument, kind_of(value), need, code="wrong-type")
    return value


def path(argument: str, value: Any) -> Path:
    """Return a path for a str or an object that is one.

    Examples
    --------
    >>> path("folder", None)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: folder: got None; needs a path
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidInput(argument, kind_of(value), "a path", code="wrong-type")
    return Path(value)


def names(argument: str, value: Any, need: str) -> tuple[str, ...]:
    """Return a sequence of names as a tuple; a single str is not one.

    Examples
    --------
    >>> names("S", "weight", "a sequence of names")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: S: got 'weight'; needs a sequence of names
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidInput(argument, repr(value), need, code="wrong-type")
    listed = tuple(value)
    if not all(isinstance(name, str) for name in listed):
        raise InvalidInput(argument, repr(value), need, code="wrong-type")
    return listed


def _words(
    kind: str, least: float | None, most: float | None, above: float | None = None, below: float | None = None
) -> str:
    """Say a range in words: "a positive integer", "a number of at least 0.8, below 1.0"."""
    article = "an" if kind == "integer" else "a"
    if most is None and below is None:
        if (least, above) == (0, None):
            return f"a non-negative {kind}"
        if (least, above) in ((1, None), (None, 0)) and (kind == "integer" or least is None):
            return f"a positive {kind}"
    if least is not None and most is not None:
        return f"{article} {kind} from {least} to {most}"
    limits = [("of at least", least), ("above", above), ("of at most", most), ("below", below)]
    words = ", ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
    return f"{article} {kind} {words}" if words else f"{article} finite {kind}" if kind == "number" else "an integer"
