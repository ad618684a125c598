"""Many small factorizations in parallel: one BLAS thread each, as many workers as there are cores.

BLAS threads wait for each other by spinning. On cores shared with other processes that costs a factor of ten or more,
and blocks of a few hundred rows are too small to divide.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["ordered", "single_threaded_blas", "workers"]

T = TypeVar("T")

_here = threading.local()
_MOST_WORKERS = 16  # each of them needs memory for a block and its factor


def workers() -> int:
    """Return the number of cores that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST_WORKERS))


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside the block, so that its threads do not compete with the workers.

    A nested block of the same thread does not change the limit.
    """
    if getattr(_here, "limited", False):
        yield
        return
    with _libraries(len(sys.modules)).limit(limits=1, user_api="blas"):
        _here.limited = True
        try:
            yield
        finally:
            _here.limited = False


@functools.lru_cache(maxsize=1)
def _libraries(imported: int) -> Any:
    """Return the BLAS libraries, cached until more is imported: a search takes as long as a proof of a small block."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def ordered(work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Generator[T]:
    """Yield ``work(*each)`` in order, computed by all workers, with at most two more tasks waiting.

    Examples
    --------
    >>> list(ordered(pow, [(2, 1), (2, 2), (2, 3)]))
    [2, 4, 8]
    """
    count = workers()
    waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
    with single_threaded_blas(), concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            for each in arguments:
                waiting.append(pool.submit(contextvars.copy_context().run, work, *each))
                if len(waiting) > count + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
