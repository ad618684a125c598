"""The exceptions of the kernel, and the functions that raise them."""

from __future__ import annotations

from alignver.errors import InvalidInput


class NotProved(Exception):
    """The certificate does not prove its claim; the message says why."""


class Unsupported(Exception):
    """The arithmetic is not the one that the bounds assume; the message describes the deviation."""


def require(condition: bool, otherwise: str) -> None:
    """Raise :class:`NotProved` unless a condition of the proof holds."""
    if not condition:
        raise NotProved(otherwise)


def demand(condition: bool, argument: str, got: str, need: str) -> None:
    """Raise :class:`~alignver.errors.InvalidInput` unless a condition on an argument holds."""
    if not condition:
        raise InvalidInput(argument, got, need)
