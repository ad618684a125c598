"""The ways in which the kernel says no."""

from __future__ import annotations

from alignver.errors import InvalidInput

__all__ = ["NotProved", "Unsupported", "demand", "require"]


class NotProved(Exception):
    """The certificate does not prove its claim; the message says why."""


class Unsupported(Exception):
    """Nothing can be said here: the arithmetic is not the one that the bounds assume; the message says which it is."""


def require(condition: bool, otherwise: str) -> None:
    """Raise :class:`NotProved` unless a condition of the proof holds."""
    if not condition:
        raise NotProved(otherwise)


def demand(condition: bool, argument: str, got: str, need: str) -> None:
    """Raise :class:`~alignver.errors.InvalidInput` unless an argument is what it has to be."""
    if not condition:
        raise InvalidInput(argument, got, need)
