"""Progress of long computations: the library reports steps to a listener, and the CLI draws the bar.

This module does not print. :func:`listening` installs a listener; without one every call does nothing, so that reports
in library code cost no time.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from alignver.limits import require_time

__all__ = ["Listener", "listening", "stage", "track"]

T = TypeVar("T")


class Listener(Protocol):
    """The interface of a display of progress."""

    def start(self, label: str, total: int | None) -> object:
        """Open a task of ``total`` steps (None: unknown) and return a handle for it."""

    def advance(self, handle: object) -> None:
        """Count one step of the task."""

    def finish(self, handle: object) -> None:
        """Close the task."""


_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("alignver_progress", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything called inside the block to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(steps: Iterable[T], label: str) -> Iterator[T]:
    """Iterate over ``steps`` and report each one as it is finished; stop at the limit of the call's time.

    Raises
    ------
    OutOfTime
        Before a step, if the time of :func:`alignver.limits.time_limit` is over.

    Examples
    --------
    >>> list(track([1, 2, 3], "counting"))
    [1, 2, 3]
    """
    listener = _listener.get()
    total = len(steps) if isinstance(steps, Sized) else None
    handle = None if listener is None else listener.start(label, total)
    began = time.monotonic()
    try:
        for done, step in enumerate(steps):
            require_time(label, done, total, time.monotonic() - began)
            yield step
            if listener is not None:
                listener.advance(handle)
    finally:
        if listener is not None:
            listener.finish(handle)


@contextlib.contextmanager
def stage(label: str) -> Iterator[None]:
    """Report a computation without steps, such as an SVD, by its beginning and its end."""
    require_time(label)
    listener = _listener.get()
    if listener is None:
        yield
        return
    handle = listener.start(label, None)
    try:
        yield
    finally:
        listener.finish(handle)
