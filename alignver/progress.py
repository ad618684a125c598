"""Progress and plans of long computations: the library reports steps to a listener, which draws them.

:func:`listening` installs a listener. Without one, a call in the main thread of a program on a terminal, or in a
notebook, draws a bar after two seconds; elsewhere, for example in a server, nothing is printed. :func:`show_progress`
switches that, and so does a level of the logger ``alignver`` above INFO. Plans are records of that logger, at INFO; so
is, without a bar, how far a long call is.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import ParamSpec, Protocol, TypeVar

from alignver import require
from alignver.limits import OutOfTime, remaining, require_time, surround

P = ParamSpec("P")
T = TypeVar("T")
LONG = 5.0
"""Seconds from which a computation is announced."""

logger = logging.getLogger("alignver")
logger.addHandler(logging.NullHandler())  # without a handler of the program, Python would print warnings
_POLL = 0.2  # seconds between two looks at the limits while a computation runs in a thread


class Listener(Protocol):
    """The interface of a display of progress."""

    def start(self, label: str, total: int | None) -> object:
        """Open a task of ``total`` steps (None: unknown) and return a handle for it."""

    def advance(self, handle: object) -> None:
        """Count one step of the task."""

    def finish(self, handle: object) -> None:
        """Close the task."""


class Silent:
    """A listener that shows nothing."""

    def start(self, label: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, handle: object) -> None:
        """Show nothing."""

    def finish(self, handle: object) -> None:
        """Show nothing."""


class Planned(BaseException):
    """The plan of a call, in words; raised inside :func:`planning`."""


_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("alignver_progress", default=None)
_planning: contextvars.ContextVar[bool] = contextvars.ContextVar("alignver_planning", default=False)
_reported: contextvars.ContextVar[bool] = contextvars.ContextVar("alignver_reported", default=False)
_shown: bool | None = None


def show_progress(on: bool | None) -> None:
    """Show the progress of long calls always (True), never (False), or on terminals and in notebooks (None).

    Examples
    --------
    >>> show_progress(False)
    >>> show_progress(None)
    """
    global _shown
    _shown = None if on is None else require.boolean("on", on)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything called inside the block to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Stop the call inside the block, by :class:`Planned`, where it says what it will do."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def announce(what: str, *, seconds: float | None = None, peak_bytes: float | None = None) -> None:
    """Say what a call will do, about how long it takes and how much memory, if that is more than a few seconds.

    Raises
    ------
    Planned
        Inside :func:`planning`.
    OutOfTime
        The computation is estimated to take more than three times what is left of the time.

    Examples
    --------
    >>> with planning():
    ...     announce("singular values, 3000 x 4000", seconds=21.0, peak_bytes=3e8)
    Traceback (most recent call last):
        ...
    alignver.progress.Planned: singular values, 3000 x 4000: about 21 s, 0.3 GB
    """
    costs = [] if seconds is None else [f"about {_duration(seconds)}"]
    costs += [] if peak_bytes is None else [f"{peak_bytes / 1e9:.1f} GB"]
    words = f"{what}: {', '.join(costs)}" if costs else what
    if _planning.get():
        raise Planned(words)
    if seconds is None or seconds < LONG:
        return
    if seconds > 3.0 * remaining():
        raise OutOfTime(what, left=seconds)
    logger.info(words)
    note = getattr(_current(), "note", None)
    if note is not None:
        note(words)


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s" if seconds >= 1.0 else "a second"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.1f} h"


@functools.cache
def flop_rate() -> float:
    """Return the float64 operations per second of a matrix product here, about."""
    import numpy as np

    a, best = np.ones((384, 384)), 0.0
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        best = max(best, 2.0 * 384.0**3 / (time.perf_counter() - began))
    return best


def _current() -> Listener | None:
    """Return the listener, or the automatic display where one is to be shown."""
    listener = _listener.get()
    if listener is not None or _shown is False or logger.disabled or logger.level > logging.INFO:
        return listener
    if threading.current_thread() is threading.main_thread() and (_shown or _notebook() or _terminal()):
        return _automatic()
    return _logged() if logger.isEnabledFor(logging.INFO) else None


def _notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


@functools.cache
def _automatic() -> Listener:
    from alignver.progress_bars import Bars  # which loads rich

    return Bars()


@functools.cache
def _logged() -> Listener:
    from alignver.progress_bars import Lines

    return Lines(logger.info, plans=False)  # announce() logs them


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
    listener = _current()
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
    listener = _current()
    if listener is None:
        yield
        return
    handle = listener.start(label, None)
    try:
        yield
    finally:
        listener.finish(handle)


@contextlib.contextmanager
def reported(label: str) -> Iterator[None]:
    """Report a whole call as a stage, unless it is inside another one or a program listens.

    What a call does between its stages would be silent otherwise.
    """
    if _reported.get() or _listener.get() is not None:
        yield
        return
    token = _reported.set(True)
    try:
        with stage(label):
            yield
    finally:
        _reported.reset(token)


surround(reported)


def run_stage(label: str, flops: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a computation as a :func:`stage`; a long one in a thread, so that an interrupt or a limit ends the wait.

    LAPACK cannot be stopped: the thread then goes on to the end of its routine, and its result is dropped.

    Examples
    --------
    >>> run_stage("sum", 3.0, sum, [1, 2])
    3
    """
    seconds = flops / flop_rate() if flops > 1e10 else 0.0
    if seconds >= 1.0:
        announce(label, seconds=seconds)
    if seconds < 1.0:
        with stage(label):
            return function(*args, **kwargs)
    return run_in_thread(label, function, *args, **kwargs)


def run_in_thread(label: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a computation as a :func:`stage` in a thread, so that an interrupt or a limit ends the wait for it.

    Examples
    --------
    >>> run_in_thread("sum", sum, [1, 2])
    3
    """
    with stage(label):
        outcome: list[tuple[T | None, BaseException | None]] = []
        context = contextvars.copy_context()

        def work() -> None:
            try:
                outcome.append((context.run(function, *args, **kwargs), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=work, name=f"alignver: {label}", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL)
            require_time(label)
        ((value, error),) = outcome
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # the function's own None
