"""Blocks and tiles on the workers of a Dask cluster.

Dask hands the tasks out, moves their results and runs them again where a worker died; nothing here schedules. A task
is one of :mod:`alignver.phi.tasks`, pure and small, so what a dying worker takes along is a task or two. The finished
tile columns are written by this process alone, into a folder that the workers read.

``distributed`` is imported where it is needed and not before.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver._version import __version__
from alignver.errors import InvalidInput, MissingDependency, first_line
from alignver.phi import tasks
from alignver.phi.blocks import Block
from alignver.phi.column import Column
from alignver.phi.hadamard import Hadamard
from alignver.phi.rows import Rows
from alignver.phi.tiles import FolderStore, content_hash
from alignver.proof.rounding import FloatArray

__all__ = ["Cluster", "connected"]

_NEED = f"a connected dask.distributed.Client, its scheduler and workers with alignver {__version__} installed"
_ADDRESS = "the address of a running Dask scheduler, tcp://host:8786 say"
_AHEAD = 2  # tasks per thread of the cluster that are handed out before the first one is waited for
_PATIENCE = 60  # seconds that a cluster may be without workers
_SHARES = 4  # of a tile column for each thread: small enough to even out, and to lose


@contextlib.contextmanager
def connected(address: str, timeout: float = 10.0) -> Iterator[Any]:
    """Connect to a running Dask scheduler, within ``timeout`` seconds, for as long as the block lasts.

    Raises
    ------
    InvalidInput
        Nobody answers at that address.
    MissingDependency
        ``distributed`` is not installed.
    """
    import asyncio

    try:
        from distributed import Client, rpc
    except ImportError as error:
        raise MissingDependency("distributed", "working on a Dask cluster", "distributed") from error
    connect: Any = Client
    ask: Any = rpc

    async def identity() -> Any:
        async with ask(address, timeout=timeout) as scheduler:
            return await asyncio.wait_for(scheduler.identity(), timeout)

    try:
        # A client that reaches nobody keeps trying when it is thrown away: ask first.
        kind = asyncio.run(identity()).get("type")
        if kind != "Scheduler":
            raise ValueError(f"a {kind}")
        client = connect(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        why = first_line(error) if str(error) else f"no answer within {timeout:g} s"
        raise InvalidInput("scheduler", f"{address} ({why})", _ADDRESS) from error
    with client:
        yield client


class Cluster:
    """The workers behind a Dask client.

    Parameters
    ----------
    client : dask.distributed.Client
        Connected, and not asynchronous.

    Raises
    ------
    InvalidInput
        No such client, a closed one, a scheduler that does not answer or has no workers.
    """

    def __init__(self, client: Any) -> None:
        if not all(callable(getattr(client, name, None)) for name in ("submit", "nthreads", "cancel")):
            raise InvalidInput("client", f"a {type(client).__name__}", _NEED)
        if getattr(client, "asynchronous", False):
            raise InvalidInput("client", "an asynchronous client", _NEED)
        status = getattr(client, "status", "running")
        if status != "running":
            raise InvalidInput("client", f"a client that is {status}", _NEED)
        self._client = client
        with _blamed():
            workers = client.nthreads()
        if not workers:
            raise InvalidInput("client", "a scheduler without workers", _NEED)

    def prover(
        self, rows: Rows, sha256: str, delta: float
    ) -> Callable[[Iterable[tuple[npt.NDArray[np.int64], int, int]]], Generator[Block]]:
        """Return what proves blocks of ``rows``, given each one's indices and place, on the workers.

        Rows in a file travel as its name; others are sent, a block at a time.
        """
        location = rows.location

        def travelling(indices: npt.NDArray[np.int64]) -> tasks.SentRows | tasks.FileRows:
            if location is None:
                return tasks.SentRows(rows.raw(indices), rows.added)
            return tasks.FileRows(location, sha256, indices)

        def prove(blocks: Iterable[tuple[npt.NDArray[np.int64], int, int]]) -> Generator[Block]:
            return self._ordered(
                tasks.prove_rows,
                ((travelling(indices), start, stop, delta, __version__) for indices, start, stop in blocks),
            )

        return prove

    def maker(self, gram: Hadamard, store: FolderStore) -> Callable[[Column], FloatArray | int]:
        """Return what makes the tile columns of a factor on the workers, which read what is in the store's folder."""
        store.publish(tasks.FEATURES, gram.Z)
        store.publish(tasks.GATES, gram.T)
        folder, digest = os.path.abspath(store.folder), gram.digest()

        def make(column: Column) -> FloatArray | int:
            job = tasks.Job(folder, digest, store.hashes, column.total, column.tile)
            first, *below = column.pieces()
            size = max(1, -(-len(below) // (_SHARES * self._threads())))
            shares = [below[k : k + size] for k in range(0, len(below), size)]
            lower = self._submit(tasks.factor_tile, self._submit(tasks.reduce_rows, job, [first]))
            reduced = [self._submit(tasks.reduce_rows, job, share) for share in shares]
            parts = [self._submit(tasks.solve_rows, part, lower) for part in reduced]
            with self._cancelling([*reduced, *parts]):
                found: FloatArray | int = self._result(lower)
                if isinstance(found, int):
                    return found
                whole = np.empty((column.end - column.start, column.stop - column.start))
                whole[: whole.shape[1]] = found
                own = content_hash(found)
                for share, part, solution in zip(shares, reduced, parts):
                    used, rows = self._result(solution)
                    if used != own:
                        # The worker died that had the factor, and another kind of processor made it again, with
                        # other roundings: one column has one factor, the one that is here.
                        _, rows = self._result(self._submit(tasks.solve_rows, part, found))
                    whole[share[0].start - column.start : share[-1].stop - column.start] = rows
            return whole

        return make

    def _ordered(self, work: Callable[..., Block], arguments: Iterable[tuple[Any, ...]]) -> Generator[Block]:
        """Yield ``work(*each)`` in order, a bounded number of tasks at a time."""
        most = max(4, (_AHEAD + 1) * self._threads())
        waiting: collections.deque[Any] = collections.deque()
        with self._cancelling(waiting):
            for each in arguments:
                waiting.append(self._submit(work, *each))
                if len(waiting) >= most:
                    yield self._result(waiting[0])
                    waiting.popleft()
            while waiting:
                yield self._result(waiting[0])
                waiting.popleft()

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        import dask

        # The rows of a block go with its task, so that they are there when it has to be run again.
        with _blamed(), dask.config.set({"distributed.admin.large-graph-warning-threshold": "2 GiB"}):
            return self._client.submit(work, *arguments, pure=False)

    def _result(self, future: Any) -> Any:
        """Wait for a result, as long as there are workers to give it: without any, a task waits for ever."""
        with _blamed():
            alone = False
            while True:
                try:
                    return future.result(timeout=_PATIENCE)
                except TimeoutError:
                    if future.status == "error":  # a task's own TimeoutError
                        raise
                    # Killed workers are gone for a few seconds until others replace them.
                    if alone and not self._client.nthreads():
                        raise RuntimeError(f"no workers left, none came back in {_PATIENCE} s") from None
                    alone = not self._client.nthreads()

    def _threads(self) -> int:
        with _blamed():
            counts: dict[str, int] = self._client.nthreads()
        return max(1, sum(counts.values()))  # none while killed workers are being replaced

    @contextlib.contextmanager
    def _cancelling(self, futures: Iterable[Any]) -> Iterator[None]:
        """Cancel what is left of ``futures`` on the way out."""
        try:
            yield
        finally:
            left = list(futures)
            if left and getattr(self._client, "status", "running") == "running":
                self._client.cancel(left)


@contextlib.contextmanager
def _blamed() -> Iterator[None]:
    """Say of what went wrong on the way to a worker and back that it is the client's; a worker's own words pass."""
    from distributed import KilledWorker
    from distributed.client import ClosedClientError

    broken = (OSError, RuntimeError, ImportError, concurrent.futures.CancelledError, KilledWorker, ClosedClientError)
    try:
        yield
    except broken as error:
        raise InvalidInput(
            "client", f"a cluster that fails ({type(error).__name__}: {first_line(error)})", _NEED
        ) from error
