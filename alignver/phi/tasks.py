"""What a worker of a cluster runs: the functions that threads run here, on rows and tiles that it finds itself.

A worker believes nothing that it has not hashed: the file of the features, the matrix and the finished tile columns
are compared with what the client knows of them, once for each process. Its thread's arithmetic is tried in every task,
and BLAS has one thread. Nothing is written: what was computed goes to the client.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver._version import __version__
from alignver.errors import InvalidInput
from alignver.kernel.environment import arithmetic_fault
from alignver.phi.blocks import Block, prove_block
from alignver.phi.column import Column, factored, solved
from alignver.phi.hadamard import Hadamard
from alignver.phi.rows import Location, Rows, open_rows
from alignver.phi.survey import digest_rows
from alignver.phi.threads import single_threaded_blas
from alignver.phi.tiles import MemoryStore, column_name, content_hash
from alignver.proof.rounding import FloatArray

__all__ = ["FileRows", "Job", "SentRows", "factor_tile", "prove_rows", "reduce_rows", "solve_rows"]

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
        As in :class:`~alignver.phi.column.Column`.
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
