"""Blocks and tiles on the workers of a Dask cluster: the tasks of the workers, and the client's side.

Dask distributes the tasks, moves their results and repeats them if a worker dies. Every task is a pure, small function
of this module, so a dying worker loses a task or two. This process alone writes the finished tile columns, into a
folder that the workers read.

A worker compares the hashes of the file of the features, of the matrix and of the finished tile columns with those of
the client, once for each process. Every task tests the arithmetic of its thread and limits BLAS to one thread. Workers
write no files: results go to the client.

``distributed`` is imported on first use.
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
from alignver.errors import InvalidInput, MissingDependency, first_line, kind_of
from alignver.features.block_prover import Block, prove_block
from alignver.features.rows import Location, Rows, digest_rows, open_rows
from alignver.features.threads import single_threaded_blas
from alignver.features.tiles import (
    Column,
    FolderStore,
    MemoryStore,
    column_name,
    content_hash,
    factor_diagonal,
    solve_piece,
)
from alignver.kernel.machine import arithmetic_fault
from alignver.proof.gram_tiles import FactoredGram
from alignver.proof.rounding import FloatArray

_NEED = f"a connected dask.distributed.Client, its scheduler and workers with alignver {__version__} installed"
_ADDRESS = "the address of a running Dask scheduler, tcp://host:8786 for example"
_AHEAD = 2  # tasks per thread of the cluster that are submitted before the first result is awaited
_PATIENCE = 60  # seconds that a cluster may be without workers
_SHARES = 4  # parts of a tile column per thread: small enough to balance the load, and to repeat

_lock = threading.Lock()
_rows: dict[tuple[Any, ...], Rows] = {}
_folders: dict[tuple[str, str], _Folder] = {}


@dataclasses.dataclass(frozen=True)
class SentRows:
    """Rows that are sent with a task, in their stored dtype."""

    entries: npt.NDArray[Any]
    added: bool

    def load(self) -> FloatArray:
        """Return the rows as float64."""
        # The address of the entries in a message varies, and the order of sums depends on it: a copy gives equal bits.
        rows: FloatArray = open_rows(np.array(self.entries), add_constant=self.added).read(0, len(self.entries))
        return rows


@dataclasses.dataclass(frozen=True)
class FileRows:
    """Rows of a file that every worker reads itself."""

    location: Location
    sha256: str
    indices: npt.NDArray[np.int64]

    def load(self) -> FloatArray:
        """Return the rows as float64, from the file if it has the expected hash."""
        rows: FloatArray = _open_rows(self.location, self.sha256).take(self.indices)
        return rows


@dataclasses.dataclass(frozen=True)
class Job:
    """A tile column of a factorization with its matrix and finished columns in a shared folder.

    Attributes
    ----------
    folder : str
    digest : str
        The digest of the matrix.
    names : tuple of str
        The names of the factors of the matrix, which are files of the folder.
    hashes : tuple of str
        The hashes of the finished tile columns.
    total, tile : float, int
        As in :class:`~alignver.features.tiles.Column`.
    version : str
        The version of the client's library.
    """

    folder: str
    digest: str
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    total: float
    tile: int
    version: str = __version__


def prove_rows(rows: SentRows | FileRows, start: int, stop: int, delta: float, version: str) -> Block:
    """Prove one block of a staircase."""
    with _checked_arithmetic(version):
        return prove_block(rows.load(), start, stop, delta)


def reduce_rows(job: Job, pieces: list[slice]) -> FloatArray:
    """Assemble and reduce adjacent pieces of a tile column."""
    with _checked_arithmetic(job.version):
        gram, store = _open_folder(job)
        reduce = Column(gram, job.total, job.tile, store.finished, store).reduction()
        return np.concatenate([reduce(rows) for rows in pieces])


def factor_tile(tile: FloatArray) -> FloatArray | int:
    """Return the factor of a reduced diagonal tile, or the row where the factorization breaks down."""
    with _checked_arithmetic(__version__):
        lower: FloatArray | int = factor_diagonal(np.array(tile))
        return lower


def solve_rows(part: FloatArray, lower: FloatArray | int) -> tuple[str, FloatArray] | None:
    """Solve reduced pieces with the factor of the diagonal tile; return the hash of the factor and the solution.

    Returns None if the diagonal tile has no factor.
    """
    if isinstance(lower, int):
        return None
    with _checked_arithmetic(__version__):
        # A copy: the part is the result of another task, which may be requested again.
        return content_hash(lower), solve_piece(np.array(part), np.array(lower))


@contextlib.contextmanager
def _checked_arithmetic(version: str) -> Iterator[None]:
    if version != __version__:
        got = f"{_worker_name()} with alignver {__version__}"
        raise InvalidInput("client", got, f"workers with alignver {version}")
    fault = arithmetic_fault()
    if fault:
        need = "workers where no library has changed the floating-point environment"
        raise InvalidInput("client", f"{_worker_name()}: {fault}", need)
    with single_threaded_blas(), np.errstate(all="ignore"):
        yield


def _worker_name() -> str:
    return f"a worker on {socket.gethostname()} (process {os.getpid()})"


class _Folder:
    """The matrix and the tile columns in a folder, each hashed once."""

    def __init__(self, job: Job) -> None:
        self._path = Path(job.folder)
        self._columns: list[tuple[str, FloatArray]] = []
        self.gram = FactoredGram.of({name: self._mapped(f"{name}.npy") for name in job.names})
        if self.gram.digest() != job.digest:
            raise self._not_shared("with another matrix")

    def columns(self, hashes: tuple[str, ...]) -> MemoryStore:
        """Return the finished columns with these hashes."""
        store = MemoryStore()
        for index, expected in enumerate(hashes):
            if index == len(self._columns) or self._columns[index][0] != expected:
                column = self._mapped(column_name(index))
                if content_hash(column) != expected:
                    raise self._not_shared(f"with another {column_name(index)}")
                self._columns[index:] = [(expected, column)]
            store.append(self._columns[index][1])
        return store

    def _mapped(self, name: str) -> FloatArray:
        try:
            array: FloatArray = np.load(self._path / name, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises exceptions of many types for damaged files
            raise self._not_shared(f"without {name}") from error
        return array

    def _not_shared(self, difference: str) -> InvalidInput:
        got = f"{self._path}, which {_worker_name()} sees {difference}"
        need = "a folder that all workers and this process share under one path"
        return InvalidInput("folder", got, need, "unreadable-file")


def _open_folder(job: Job) -> tuple[FactoredGram, MemoryStore]:
    with _lock:
        folder = _folders.get((job.folder, job.digest))
        if folder is None:
            _folders.clear()
            folder = _folders[job.folder, job.digest] = _Folder(job)
        return folder.gram, folder.columns(job.hashes)


def _open_rows(location: Location, sha256: str) -> Rows:
    need = "a file that all workers and this process share under one path, or an array"
    try:
        state = os.stat(location.path)
        key = (location, sha256, state.st_ino, state.st_size, state.st_mtime_ns)
        with _lock:
            if key not in _rows:
                rows = location.open()
                if digest_rows(rows)["sha256"] != sha256:
                    got = f"{location.path}, which {_worker_name()} sees with other content"
                    raise InvalidInput("Z", got, need, "unreadable-file")
                _rows.clear()
                _rows[key] = rows
            return _rows[key]
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "it has another size").lower()
        got = f"{location.path}, which {_worker_name()} cannot read ({reason})"
        raise InvalidInput("Z", got, need, "unreadable-file") from error


@contextlib.contextmanager
def connected(address: str, timeout: float = 10.0) -> Iterator[Any]:
    """Connect to a running Dask scheduler, within ``timeout`` seconds, for the duration of the block.

    Raises
    ------
    InvalidInput
        If no scheduler answers at the address.
    MissingDependency
        If ``distributed`` is not installed.
    """
    import asyncio

    try:
        from distributed import Client, rpc
    except ImportError as error:
        raise MissingDependency("distributed", "working on a Dask cluster", "distributed") from error
    open_client: Any = Client
    open_rpc: Any = rpc

    async def identity() -> Any:
        async with open_rpc(address, timeout=timeout) as scheduler:
            return await asyncio.wait_for(scheduler.identity(), timeout)

    try:
        # A client without a scheduler keeps trying to connect after it is discarded: test the address first.
        kind = asyncio.run(identity()).get("type")
        if kind != "Scheduler":
            raise ValueError(f"a {kind}")
        client = open_client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        why = first_line(error) if str(error) else f"no answer within {timeout:g} s"
        raise InvalidInput("scheduler", f"{address} ({why})", _ADDRESS) from error
    with client:
        yield client


class Cluster:
    """The workers of a Dask client.

    Parameters
    ----------
    client : dask.distributed.Client
        A connected client that is not asynchronous.

    Raises
    ------
    InvalidInput
        If it is not such a client or is closed, or if the scheduler does not answer or has no workers.
    """

    def __init__(self, client: Any) -> None:
        if not all(callable(getattr(client, name, None)) for name in ("submit", "nthreads", "cancel")):
            raise InvalidInput("client", kind_of(client), _NEED, "wrong-type")
        if getattr(client, "asynchronous", False):
            raise InvalidInput("client", "an asynchronous client", _NEED)
        status = getattr(client, "status", "running")
        if status != "running":
            raise InvalidInput("client", f"a client that is {status}", _NEED)
        self._client = client
        with _client_errors():
            workers = client.nthreads()
        if not workers:
            raise InvalidInput("client", "a scheduler without workers", _NEED)

    def prover(
        self, rows: Rows, sha256: str, delta: float
    ) -> Callable[[Iterable[tuple[npt.NDArray[np.int64], int, int]]], Generator[Block]]:
        """Return a function that proves blocks of ``rows`` on the workers, given (row indices, start, stop) of each.

        For rows in a file a task contains the path of the file; otherwise it contains the rows of its block.
        """
        location = rows.location

        def message(indices: npt.NDArray[np.int64]) -> SentRows | FileRows:
            if location is None:
                return SentRows(rows.raw(indices), rows.added)
            return FileRows(location, sha256, indices)

        def prove(blocks: Iterable[tuple[npt.NDArray[np.int64], int, int]]) -> Generator[Block]:
            tasks = ((message(indices), start, stop, delta, __version__) for indices, start, stop in blocks)
            return self._ordered(prove_rows, tasks)

        return prove

    def maker(self, gram: FactoredGram, store: FolderStore) -> Callable[[Column], FloatArray | int]:
        """Return a function that computes tile columns on the workers, which read the folder of the store."""
        for name, array in gram.arrays.items():
            store.publish(f"{name}.npy", array)
        folder, digest, names = os.path.abspath(store.folder), gram.digest(), tuple(gram.arrays)

        def make(column: Column) -> FloatArray | int:
            job = Job(folder, digest, names, store.hashes, column.total, column.tile)
            first, *below = column.pieces()
            size = max(1, -(-len(below) // (_SHARES * self._threads())))
            shares = [below[k : k + size] for k in range(0, len(below), size)]
            lower = self._submit(factor_tile, self._submit(reduce_rows, job, [first]))
            reduced = [self._submit(reduce_rows, job, share) for share in shares]
            parts = [self._submit(solve_rows, part, lower) for part in reduced]
            with self._cancelling([*reduced, *parts]):
                factor: FloatArray | int = self._result(lower)
                if isinstance(factor, int):
                    return factor
                whole = np.empty((column.end - column.start, column.stop - column.start))
                whole[: whole.shape[1]] = factor
                expected = content_hash(factor)
                for share, part, solution in zip(shares, reduced, parts):
                    factor_hash, rows = self._result(solution)
                    if factor_hash != expected:
                        # The worker with the factor died, and a processor of another type computed it again with
                        # other roundings. A column has one factor: the one of this process.
                        _, rows = self._result(self._submit(solve_rows, part, factor))
                    whole[share[0].start - column.start : share[-1].stop - column.start] = rows
            return whole

        return make

    def _ordered(self, work: Callable[..., Block], arguments: Iterable[tuple[Any, ...]]) -> Generator[Block]:
        """Yield ``work(*each)`` in order, with a bounded number of tasks at a time."""
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

        # The rows of a block are part of its task, so that the task can be repeated.
        with _client_errors(), dask.config.set({"distributed.admin.large-graph-warning-threshold": "2 GiB"}):
            return self._client.submit(work, *arguments, pure=False)

    def _result(self, future: Any) -> Any:
        """Wait for a result as long as there are workers: without workers a task would wait forever."""
        with _client_errors():
            alone = False
            while True:
                try:
                    return future.result(timeout=_PATIENCE)
                except TimeoutError:
                    if future.status == "error":  # the task itself raised TimeoutError
                        raise
                    # It takes a few seconds until killed workers are replaced.
                    if alone and not self._client.nthreads():
                        raise RuntimeError(f"no workers for {_PATIENCE} s") from None
                    alone = not self._client.nthreads()

    def _threads(self) -> int:
        with _client_errors():
            counts: dict[str, int] = self._client.nthreads()
        return max(1, sum(counts.values()))  # the sum is 0 while killed workers are being replaced

    @contextlib.contextmanager
    def _cancelling(self, futures: Iterable[Any]) -> Iterator[None]:
        """Cancel the remaining ``futures`` at the end of the block."""
        try:
            yield
        finally:
            remaining = list(futures)
            if remaining and getattr(self._client, "status", "running") == "running":
                self._client.cancel(remaining)


@contextlib.contextmanager
def _client_errors() -> Iterator[None]:
    """Raise InvalidInput for errors of the cluster; errors that a task raises pass unchanged."""
    from distributed import KilledWorker
    from distributed.client import ClosedClientError

    broken = (OSError, RuntimeError, ImportError, concurrent.futures.CancelledError, KilledWorker, ClosedClientError)
    try:
        yield
    except broken as error:
        got = f"a cluster that fails ({type(error).__name__}: {first_line(error)})"
        raise InvalidInput("client", got, _NEED) from error
