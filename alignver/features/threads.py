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
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from alignver.limits import address_space

T = TypeVar("T")

SMALL = 2e9
"""Operations up to which more threads bring nothing: on busy cores, waiting for each other, they are slower."""

_MANY_ROWS = 200
"""Rows of a matrix of balls from which its products are divided: smaller ones take less time than the division."""

_limited, _divided = threading.Lock(), threading.Lock()
_MOST_WORKERS = 16  # each of them needs memory for a block and its factor
_SPACE = 1 << 28  # addresses that a thread may reserve: a stack, and an arena of the C library


def workers() -> int:
    """Return the number of cores that this process may use, at most 16; fewer at a limit of the address space."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    space = address_space()
    return max(1, min(cores, _MOST_WORKERS, cores if space is None else space // _SPACE))


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside the block, so that its threads do not compete with the workers.

    The limit is one of the process. A block inside another one, or in another thread at the same time, leaves it alone.
    """
    if not _limited.acquire(blocking=False):
        yield
        return
    try:
        with _libraries(len(sys.modules)).limit(limits=1, user_api="blas"):
            yield
    finally:
        _limited.release()


@contextlib.contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Compute with one thread of BLAS and of torch inside the block if it takes at most :data:`SMALL` operations.

    A BLAS that divides a factorization or a product among threads rounds differently for each number of them. With one
    thread the results, and the certificates made of them, are the same to the last bit on any number of cores.

    Examples
    --------
    >>> import threadpoolctl
    >>> with threads_for(1e6):
    ...     {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}
    {1}
    """
    if not flops <= SMALL:
        yield
        return
    # torch's threads are those of OpenMP, whose number belongs to the calling thread.
    with single_threaded_blas(), _libraries(len(sys.modules)).limit(limits=1, user_api="openmp"):
        yield


@contextlib.contextmanager
def threaded_flint(rows: int) -> Iterator[None]:
    """Let python-flint divide products of matrices of many rows among the cores inside the block.

    The results are the same to the last bit: products of integers are exact, and each entry is rounded once. The
    threads end with the block, so that a process that is forked later has none of them.

    Examples
    --------
    >>> import flint
    >>> with threaded_flint(1000):
    ...     flint.ctx.threads == workers()
    True
    >>> flint.ctx.threads
    1
    """
    if rows < _MANY_ROWS or importlib.util.find_spec("flint") is None or not _divided.acquire(blocking=False):
        yield
        return
    context = importlib.import_module("flint").ctx
    before = context.threads
    try:
        context.threads = workers()
        yield
    finally:
        context.threads = before
        _divided.release()


@functools.lru_cache(maxsize=1)
def _libraries(imported: int) -> Any:
    """Return the BLAS libraries, cached until more is imported: a search takes as long as a proof of a small block."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def dense_flops(rows: int, columns: int) -> float:
    """Return about how many operations a dense decomposition of a matrix takes: rows x columns x the smaller of both.

    Examples
    --------
    >>> dense_flops(1000, 2000)
    2000000000.0
    """
    return float(rows) * columns * min(rows, columns)


def ordered(work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Generator[T]:
    """Yield ``work(*each)`` in order, computed by all workers, with at most two more tasks waiting.

    Examples
    --------
    >>> list(ordered(pow, [(2, 1), (2, 2), (2, 3)]))
    [2, 4, 8]
    """
    count = workers()
    if count == 1 and address_space() is not None:  # Python waits forever for a thread that starts without memory
        with single_threaded_blas():
            for each in arguments:
                yield work(*each)
        return
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
