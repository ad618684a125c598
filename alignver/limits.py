"""Limits of a call: seconds and bytes.

A check with ``max_seconds`` stops at the next step of a long loop and answers UNDECIDED. ``max_memory`` is the memory
that a call plans with. A check that runs out of memory is UNDECIDED, too, if the system refuses the memory and does not
end the process: at a limit of the address space, for example.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from alignver import require
from alignver.errors import InvalidInput, first_line
from alignver.results import CheckResult, Rigor, Subject, Verdict

P = ParamSpec("P")
T = TypeVar("T")
_end: contextvars.ContextVar[float] = contextvars.ContextVar("alignver_end", default=math.inf)
_memory: contextvars.ContextVar[int | None] = contextvars.ContextVar("alignver_memory", default=None)


class OutOfTime(BaseException):
    """The time of a call is over. Not an ``Exception``: no handler of a model's errors may catch it.

    ``left`` is about how many seconds the loop would have taken to its end; None if that is not known.
    """

    def __init__(
        self, label: str, done: int = 0, total: int | None = None, seconds: float = 0.0, left: float | None = None
    ) -> None:
        super().__init__(label)
        self.label, self.done, self.total, self.left = label, done, total, left
        if left is None and total is not None and done:
            self.left = seconds / done * (total - done)

    @property
    def place(self) -> str:
        """Where the call stopped."""
        return f"{self.label!r}" if self.total is None else f"{self.label!r}, {self.done} of {self.total}"


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop long loops inside the block after ``seconds``; a limit around the block stays in force.

    Examples
    --------
    >>> with time_limit(60.0):
    ...     0.0 < remaining() <= 60.0
    True
    """
    end = math.inf if seconds is None else time.monotonic() + require.real("max_seconds", seconds, above=0.0)
    token = _end.set(min(end, _end.get()))
    try:
        yield
    finally:
        _end.reset(token)


def remaining() -> float:
    """Return the seconds that are left; infinite without a limit."""
    return _end.get() - time.monotonic()


def require_time(label: str, done: int = 0, total: int | None = None, seconds: float = 0.0) -> None:
    """Raise :class:`OutOfTime` if the time is over."""
    if remaining() <= 0.0:
        raise OutOfTime(label, done, total, seconds)


@contextlib.contextmanager
def memory_limit(size: int | None) -> Iterator[None]:
    """Plan with at most ``size`` bytes inside the block.

    Examples
    --------
    >>> from alignver.arrays import available_memory
    >>> with memory_limit(1000):
    ...     available_memory()
    1000
    """
    known = _memory.get()
    if size is not None:
        size = require.integer("max_memory", size, least=1, need="a positive number of bytes")
        known = size if known is None else min(known, size)
    token = _memory.set(known)
    try:
        yield
    finally:
        _memory.reset(token)


def most_memory() -> int | None:
    """Return the bytes of :func:`memory_limit`, or None."""
    return _memory.get()


_surrounding: list[Callable[[str], contextlib.AbstractContextManager[Any]]] = [contextlib.nullcontext]


def surround(manager: Callable[[str], contextlib.AbstractContextManager[Any]]) -> None:
    """Run every call inside of ``manager(name)``: progress, which knows the limits, reports whole calls."""
    _surrounding[:] = [manager]


def limited(
    name: str, statement: str, subject: Subject = Subject.COMPUTED_MATRIX
) -> Callable[[Callable[P, CheckResult]], Callable[P, CheckResult]]:
    """Give a check the limits ``max_seconds`` and ``max_memory``, which are keywords of its signature.

    Parameters
    ----------
    name, statement, subject
        Of the result that is UNDECIDED since the time was over.
    """

    def decorate(function: Callable[P, CheckResult]) -> Callable[P, CheckResult]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> CheckResult:
            seconds, memory = (kwargs.get(key) for key in ("max_seconds", "max_memory"))
            began = time.perf_counter()
            try:
                with _surrounding[-1](f"check of {name}"), time_limit(seconds), memory_limit(memory):  # type: ignore[arg-type]  # they validate
                    return function(*args, **kwargs)
            except OutOfTime as error:
                if seconds is None:  # the limit of a call around this one
                    raise
                spent = time.perf_counter() - began
                return out_of_time(error, name, statement, subject, spent)
            except InvalidInput as error:
                if error.argument != "memory" or memory is None:
                    raise
                words, step = f"{error.got} of max_memory are too few", f"a larger max_memory=: {error.need}"
            except _REFUSALS as error:
                if not _is_shortage(error):
                    raise
                words, step = _shortage(error), "a smaller input, or more memory for this process"
            spent = time.perf_counter() - began
            reason, code = f"out of memory: {words}", f"{name}-out-of-memory"
            return _undecided(name, statement, subject, spent, reason=reason, code=code, next_steps=(step,))

        return run

    return decorate


def in_memory(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function that is not a check raise :class:`InvalidInput` where it runs out of memory; report its call."""
    label = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _surrounding[-1](label):
                return function(*args, **kwargs)
        except _REFUSALS as error:
            if not _is_shortage(error):
                raise
            need = "a smaller input, or more memory for this process"
            raise InvalidInput("memory", _shortage(error), need, "too-large") from error

    return run


def in_time(function: Callable[P, T]) -> Callable[P, T]:
    """Give a function that is not a check the limit ``max_seconds``, a keyword of its signature."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        seconds, began = kwargs.get("max_seconds"), time.perf_counter()
        try:
            with time_limit(seconds):  # type: ignore[arg-type]  # it validates
                return function(*args, **kwargs)
        except OutOfTime as error:
            if seconds is None:  # the limit of a call around this one
                raise
            got = f"{seconds:g} s, which ended in {error.place}"
            need = _more_time(error, time.perf_counter() - began)
            raise InvalidInput("max_seconds", got, need, "too-large") from None

    return run


def _more_time(error: OutOfTime, spent: float) -> str:
    if error.left is None:
        return "a larger max_seconds"
    return f"max_seconds={math.ceil(1.2 * (spent + error.left))} or more"


_REFUSALS = (MemoryError, RuntimeError, ImportError, OSError)
_WORDS = ("allocate memory", "out of memory", "can't start new thread", "failed to map segment")


def _is_shortage(error: BaseException) -> bool:
    """Whether the system refused memory: to NumPy, torch, a new thread (for its stack) or a shared library."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS)


def _shortage(error: BaseException) -> str:
    space = address_space()
    left = "" if space is None else f", with {space / 1e6:.1f} MB left of the limit of the address space"
    return f"{first_line(error)}{left}"


def address_space() -> int | None:
    """Return the bytes that are left of the limit of this process's address space, or None without a limit."""
    try:
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return max(0, limit - pages * resource.getpagesize())
    except (ImportError, OSError):
        return None


def out_of_time(error: OutOfTime, name: str, statement: str, subject: Subject, spent: float) -> CheckResult:
    """Return the UNDECIDED result of a check that stopped at its limit."""
    left = error.left
    more = f"; the rest of it would take about {left:.0f} s" if left is not None else ""
    measured: dict[str, Any] = {"stopped": {"label": error.label, "done": error.done, "total": error.total}}
    reason = f"stopped after {spent:.1f} s, the limit, in {error.place}{more}"
    steps, code = (_more_time(error, spent),), f"{name}-out-of-time"
    return _undecided(name, statement, subject, spent, reason=reason, code=code, next_steps=steps, measured=measured)


def _undecided(name: str, statement: str, subject: Subject, spent: float, **fields: Any) -> CheckResult:
    """Return the result of a check that stopped after some seconds."""
    about: dict[str, Any] = {"rigor": Rigor.NUMERICAL, "subject": subject, "cost": {"seconds": spent}}
    return CheckResult(name=name, statement=statement, verdict=Verdict.UNDECIDED, **about, **fields)
