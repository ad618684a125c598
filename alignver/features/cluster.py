"""What a worker of a cluster runs: the functions that threads run here, on rows and tiles that it finds itself.

A worker believes nothing that it has not hashed: the file of the features, the matrix and the finished tile columns
are compared with what the client knows of them, once for each process. Its thread's arithmetic is tried in every task,
and BLAS has one thread. Nothing is written: what was computed goes to the client.

Blocks and tiles on the workers of a Dask cluster.

Dask hands the tasks out, moves their results and runs them again where a worker died; nothing here schedules. A task
is one of :mod:`alignver.features.cluster`, pure and small, so what a dying worker takes along is a task or two. The
finished tile columns are written by this process alone, into a folder that the workers read.

``distributed`` is imported where it is needed and not before.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver._version import __version__
from alignver.errors import InvalidInput, MissingDependency, first_line
from alignver.features.block_prover import Block, prove_block
from alignver.features.products import Hadamard
from alignver.features.rows import Location, Rows, digest_rows, open_rows
from alignver.features.threads import single_threaded_blas
from alignver.features.tiles import Column, FolderStore, MemoryStore, column_name, content_hash, factored, solved
from alignver.kernel.floats import arithmetic_fault
from alignver.proof.rounding import FloatArray

__all__ = [
    "Cluster",
    "FileRows",
    "Job",
    "SentRows",
    "connected",
    "factor_tile",
    "prove_rows",
    "reduce_rows",
    "solve_rows",
]
FEATURES, GATES = "features.npy", "gates.npy"


@dataclasses.dataclass(frozen=True)
class SentRows:
    """Rows that are sent along, as they are stored."""

    entries: npt.NDArray[Any]
    added: bool

    def load(self) -> FloatArray:
        """Return the rows as float64."""
        # A message leaves entries at any address, and sums are ordered by address: copied, they give the same bits.
        return open_rows(np.array(self.entries), add_constant=self.added).read(0, int(self.entries.shape[0]))


@dataclasses.dataclass(frozen=True)
class FileRows:
    """Rows of a file that every worker reads for itself."""

    location: Location
    sha256: str
    indices: npt.NDArray[np.int64]

    def load(self) -> FloatArray:
        """Return the rows as float64, from the file if it is the one that is meant."""
        return _opened_rows(self.location, self.sha256).take(self.indices)


@dataclasses.dataclass(frozen=True)
class Job:
    """A tile column of a factorization whose parts are in a shared folder.

    Attributes
    ----------
    folder : str
    digest : str
        Of the matrix.
    hashes : tuple of str
        Of the finished tile columns.
    total, tile : float, int
        As in :class:`~alignver.features.tiles.Column`.
    version : str
        Of the client's library.
    """

    folder: str
    digest: str
    hashes: tuple[str, ...]
    total: float
    tile: int
    version: str = __version__


def prove_rows(rows: SentRows | FileRows, start: int, stop: int, delta: float, version: str) -> Block:
    """Prove one block of a staircase."""
    with _at_work(version):
        return prove_block(rows.load(), start, stop, delta)


def reduce_rows(job: Job, pieces: list[slice]) -> FloatArray:
    """Assemble and reduce neighbouring pieces of a tile column."""
    with _at_work(job.version):
        gram, finished = _opened_folder(job)
        reduced = Column(gram, job.total, job.tile, finished.finished, finished).reduction()
        return np.concatenate([reduced(rows) for rows in pieces])


def factor_tile(tile: FloatArray) -> FloatArray | int:
    """Factor a reduced diagonal tile; or the row where that broke down."""
    with _at_work(__version__):
        found: FloatArray | int = factored(np.array(tile))
        return found


def solve_rows(part: FloatArray, lower: FloatArray | int) -> tuple[str, FloatArray] | None:
    """Solve reduced pieces with the diagonal tile's factor, if there is one; say which factor it was, by its hash."""
    if isinstance(lower, int):
        return None
    with _at_work(__version__):
        # A copy: the part is another task's result, which may be asked for again.
        return content_hash(lower), solved(np.array(part), np.array(lower))


@contextlib.contextmanager
def _at_work(version: str) -> Iterator[None]:
    if version != __version__:
        raise InvalidInput("client", f"{_name()} with alignver {__version__}", f"workers with alignver {version}")
    fault = arithmetic_fault(threaded=False)
    if fault:
        need = "workers where no library has changed the floating-point environment"
        raise InvalidInput("client", f"{_name()}: {fault}", need)
    with single_threaded_blas(), np.errstate(all="ignore"):
        yield


def _name() -> str:
    return f"a worker on {socket.gethostname()} (process {os.getpid()})"


_lock = threading.Lock()
_rows: dict[tuple[Any, ...], Rows] = {}
_folders: dict[tuple[str, str], _Folder] = {}


class _Folder:
    """The matrix and the tile columns in a folder, each hashed once."""

    def __init__(self, job: Job) -> None:
        self._path = Path(job.folder)
        self._columns: list[tuple[str, FloatArray]] = []
        self.gram = Hadamard(self._mapped(FEATURES), self._mapped(GATES))
        if self.gram.digest() != job.digest:
            raise self._refused("with another matrix")

    def columns(self, hashes: tuple[str, ...]) -> MemoryStore:
        """Return the finished columns with these hashes."""
        store = MemoryStore()
        for index, expected in enumerate(hashes):
            if index == len(self._columns) or self._columns[index][0] != expected:
                column = self._mapped(column_name(index))
                if content_hash(column) != expected:
                    raise self._refused(f"with another {column_name(index)}")
                self._columns[index:] = [(expected, column)]
            store.append(self._columns[index][1])
        return store

    def _mapped(self, name: str) -> FloatArray:
        try:
            array: FloatArray = np.load(self._path / name, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy raises many kinds over damaged bytes: every one means the same
            raise self._refused(f"without {name}") from error
        return array

    def _refused(self, what: str) -> InvalidInput:
        got = f"{self._path}, which {_name()} sees {what}"
        return InvalidInput("folder", got, "a folder that all workers and this process share under one path")


def _opened_folder(job: Job) -> tuple[Hadamard, MemoryStore]:
    with _lock:
        folder = _folders.get((job.folder, job.digest))
        if folder is None:
            _folders.clear()
            folder = _folders[job.folder, job.digest] = _Folder(job)
        return folder.gram, folder.columns(job.hashes)


def _opened_rows(location: Location, sha256: str) -> Rows:
    need = "a file that all workers and this process share under one path, or an array"
    try:
        state = os.stat(location.path)
        key = (location, sha256, state.st_ino, state.st_size, state.st_mtime_ns)
        with _lock:
            if key not in _rows:
                rows = location.open()
                if digest_rows(rows)["sha256"] != sha256:
                    raise InvalidInput("Z", f"{location.path}, which {_name()} sees with other content", need)
                _rows.clear()
                _rows[key] = rows
            return _rows[key]
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput("Z", f"{location.path}, which {_name()} does not see ({error})", need) from error


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

        def travelling(indices: npt.NDArray[np.int64]) -> SentRows | FileRows:
            if location is None:
                return SentRows(rows.raw(indices), rows.added)
            return FileRows(location, sha256, indices)

        def prove(blocks: Iterable[tuple[npt.NDArray[np.int64], int, int]]) -> Generator[Block]:
            return self._ordered(
                prove_rows,
                ((travelling(indices), start, stop, delta, __version__) for indices, start, stop in blocks),
            )

        return prove

    def maker(self, gram: Hadamard, store: FolderStore) -> Callable[[Column], FloatArray | int]:
        """Return what makes the tile columns of a factor on the workers, which read what is in the store's folder."""
        store.publish(FEATURES, gram.Z)
        store.publish(GATES, gram.T)
        folder, digest = os.path.abspath(store.folder), gram.digest()

        def make(column: Column) -> FloatArray | int:
            job = Job(folder, digest, store.hashes, column.total, column.tile)
            first, *below = column.pieces()
            size = max(1, -(-len(below) // (_SHARES * self._threads())))
            shares = [below[k : k + size] for k in range(0, len(below), size)]
            lower = self._submit(factor_tile, self._submit(reduce_rows, job, [first]))
            reduced = [self._submit(reduce_rows, job, share) for share in shares]
            parts = [self._submit(solve_rows, part, lower) for part in reduced]
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
                        _, rows = self._result(self._submit(solve_rows, part, found))
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
