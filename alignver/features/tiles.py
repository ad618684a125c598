r"""Where the tile columns of a large factor are kept: in memory, or in a folder that survives the process.

A tile column is one .npy file that appears whole or not at all: written under another name, synchronised, renamed. A
manifest says which matrix the folder belongs to and carries the hash of every finished column, so that a run that was
killed goes on where it was, and a damaged file is computed again instead of believed.

One column of tiles of a Cholesky factor, in the making: the functions that threads, a GPU and a cluster all call.

A piece of the column is assembled from rows of Z and T and reduced by the finished columns; the diagonal tile is
factored; every piece below it is solved with the factor. The bound of :mod:`alignver.features.cholesky` counts
roundings in exactly these steps, whoever takes them and wherever.

On NumPy arrays the triangular solve is BLAS's. On other arrays it is written out below: the solves of GPU libraries
invert diagonal blocks, which is no substitution, and no bound for inner products covers it. The diagonal tile is
factored by LAPACK on the host for the same reason: it is one tile of many.

Tile columns on a GPU, or in any array namespace; and what has to be seen of its arithmetic first.

Assumed, and tried before anything is believed: float64 operations round to nearest with gradual underflow, and a
matrix product is made of inner products, in any order, with or without fused multiply-add. Strassen-like products and
float64 emulated in fixed point or in narrower floats are no such thing: what they lose is relative to the largest
entries of a row, and shows where a product has one term only.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.linalg import blas, lapack

from alignver import atomic
from alignver.arrays import Array, host, like, namespace
from alignver.errors import InvalidInput
from alignver.features.products import Hadamard
from alignver.proof.rounding import OMEGA, FloatArray, U

__all__ = [
    "CHUNK",
    "Column",
    "FolderStore",
    "MemoryStore",
    "MirroredStore",
    "Store",
    "column_name",
    "content_hash",
    "factored",
    "make",
    "open_store",
    "solved",
    "unsupported_arithmetic",
]
_MANIFEST = "tiles.json"


def content_hash(array: FloatArray) -> str:
    """Return the SHA-256 of the entries in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


class Store(Protocol):
    """Keeps tile columns in order."""

    @property
    def finished(self) -> int:
        """How many columns are kept."""

    def append(self, column: Array) -> None:
        """Keep the next column."""

    def __getitem__(self, index: int) -> Array:
        """Return a kept column, not to be written to."""


class MemoryStore:
    """Tile columns in memory, or on the device that they were made on."""

    def __init__(self) -> None:
        self._columns: list[Array] = []

    @property
    def finished(self) -> int:
        """How many columns are kept."""
        return len(self._columns)

    def append(self, column: Array) -> None:
        """Keep the next column."""
        self._columns.append(column)

    def __getitem__(self, index: int) -> Array:
        return self._columns[index]


class FolderStore:
    """Tile columns in a folder.

    Parameters
    ----------
    folder : path
        Made if it is not there. Columns of another matrix in it are refused, not overwritten.
    key : dict
        Identifies the matrix: digest, order, tile size, shift.

    Raises
    ------
    InvalidInput
        The folder belongs to another matrix, cannot be written or is full.
    """

    def __init__(self, folder: str | os.PathLike[str], key: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._key = key
        self._hashes: list[str] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(self.folder, error) from error
        for leftover in self.folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        self._take_up()

    @property
    def finished(self) -> int:
        """How many columns are kept."""
        return len(self._hashes)

    @property
    def hashes(self) -> tuple[str, ...]:
        """What the finished columns are known by."""
        return tuple(self._hashes)

    def publish(self, name: str, array: FloatArray) -> None:
        """Put an array beside the columns, for processes that read this folder."""
        try:
            _write_array(self.folder / name, array)
        except OSError as error:
            raise _refused(self.folder, error, self.finished) from error

    def append(self, column: FloatArray) -> None:
        """Keep the next column: its file first, then the manifest that counts it."""
        try:
            _write_array(self._path(self.finished), column)
            self._write_manifest([*self._hashes, content_hash(column)])
        except OSError as error:
            raise _refused(self.folder, error, self.finished) from error

    def __getitem__(self, index: int) -> FloatArray:
        column: FloatArray = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
        return column

    def _path(self, index: int) -> Path:
        return self.folder / column_name(index)

    def _write_manifest(self, hashes: list[str]) -> None:
        document = json.dumps({"key": self._key, "columns": hashes}, indent=1)
        with atomic.writing(self.folder / _MANIFEST) as stream:
            stream.write(document.encode("ascii"))
        self._hashes = hashes

    def _take_up(self) -> None:
        try:
            document = json.loads((self.folder / _MANIFEST).read_bytes())
            key, hashes = document["key"], [str(value) for value in document["columns"]]
        except FileNotFoundError:
            if any(self.folder.glob("column_*.npy")):
                raise InvalidInput("folder", f"{self.folder} with tiles of unknown origin", "an empty folder") from None
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput("folder", f"{self.folder} with a damaged {_MANIFEST}", "an empty folder") from error
        if key != json.loads(json.dumps(self._key)):
            raise InvalidInput("folder", f"{self.folder} with tiles of another matrix", "an empty folder")
        for index, expected in enumerate(hashes):
            try:
                column = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
                intact = content_hash(column) == expected
            except Exception:  # numpy raises many kinds over damaged bytes: every one means the same
                intact = False
            if not intact:
                break  # this column and all after it are made again
            self._hashes.append(expected)


class MirroredStore:
    """Tile columns on a device, and in a folder.

    Parameters
    ----------
    kept : FolderStore
        Its finished columns are taken to the device.
    place : array
        An array of the namespace and on the device.
    """

    def __init__(self, kept: FolderStore, place: Array) -> None:
        self._kept = kept
        self._columns = [like(np.array(kept[k]), place) for k in range(kept.finished)]

    @property
    def finished(self) -> int:
        """How many columns are kept."""
        return len(self._columns)

    def append(self, column: Array) -> None:
        """Keep the next column."""
        self._kept.append(np.ascontiguousarray(host(column)))
        self._columns.append(column)

    def __getitem__(self, index: int) -> Array:
        return self._columns[index]


def column_name(index: int) -> str:
    """Return the file of a tile column."""
    return f"column_{index:05d}.npy"


def _write_array(path: Path, array: FloatArray) -> None:
    """Write a .npy file; NumPy's own writer does not tell why it could not."""
    content = np.ascontiguousarray(array)
    with atomic.writing(path) as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(content))
        stream.write(content.data.cast("B"))


def _refused(folder: Path, error: OSError, kept: int = 0) -> InvalidInput:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    got = f"{folder} on a disk that is full" if full else f"{folder}, which cannot be written ({error.strerror})"
    after = f"; the {kept} finished tile columns are kept" if kept else ""
    return InvalidInput("folder", got, f"a folder with room for the tiles{after}")


def open_store(folder: str | os.PathLike[str] | None, key: dict[str, Any], place: Array | None = None) -> Store:
    """Return a store in memory, or in ``folder`` with the finished columns of the same matrix taken up.

    ``place`` says where the columns are made, if not in NumPy.
    """
    if folder is None:
        return MemoryStore()
    kept = FolderStore(folder, key)
    return kept if place is None else MirroredStore(kept, place)


CHUNK = 1024  # rows of a product that is made at a time, so that it is still in the cache when it is subtracted
_STEP = 32  # columns of a solve that are written out one by one: the rest of it is matrix products


@dataclasses.dataclass(frozen=True)
class Column:
    """A tile column that is to be made.

    Attributes
    ----------
    gram : Hadamard
    total : float
        Subtracted from the diagonal.
    tile, index : int
        Columns in a tile, and which tile column this is.
    store : Store
        The finished tile columns, each from its own diagonal tile down.
    """

    gram: Hadamard
    total: float
    tile: int
    index: int
    store: Store

    @property
    def start(self) -> int:
        """The first row and column of its diagonal tile."""
        return self.index * self.tile

    @property
    def stop(self) -> int:
        """The end of its diagonal tile."""
        return min(self.start + self.tile, self.end)

    @property
    def end(self) -> int:
        """The end of the column: the order of the matrix."""
        return int(self.gram.Z.shape[0])

    def pieces(self, rows: int = CHUNK) -> list[slice]:
        """Return the diagonal tile's rows, then those below, ``rows`` at a time."""
        below = [slice(top, min(top + rows, self.end)) for top in range(self.stop, self.end, rows)]
        return [slice(self.start, self.stop), *below]

    def reduction(self) -> Callable[[slice], Array]:
        """Return what assembles a piece and subtracts its products with the finished columns.

        The products of each finished column are summed on their own first, as the bound wants it.
        """
        own = slice(self.start, self.stop)
        offsets = [k * self.tile for k in range(self.index)]
        done = [self.store[k] for k in range(self.index)]
        across = [column[own.start - at : own.stop - at, :] for column, at in zip(done, offsets)]
        rights = [(np.ascontiguousarray(rows) if isinstance(rows, np.ndarray) else rows).T for rows in across]

        def reduced(rows: slice) -> Array:
            part = self.gram.tile(rows, own)
            if rows.start == own.start:
                part = _lowered(part, self.total)
            product = None
            for column, at, right in zip(done, offsets, rights):
                product = _product(column[rows.start - at : rows.stop - at, :], right, product)
                part -= product
            return part

        return reduced


def factored(tile: Array) -> Array | int:
    """Return the lower triangular factor of a reduced diagonal tile, or the row where a pivot is not positive and
    finite.
    """
    # Row-major lower triangles are LAPACK's upper ones.
    factor, info = lapack.dpotrf(np.ascontiguousarray(host(tile)).T, lower=0, clean=1, overwrite_a=0)
    pivots = np.diagonal(factor)
    good = (pivots > 0) & (pivots < np.inf)
    if info != 0 or not bool(np.all(good)):
        return int(info) - 1 if info > 0 else int(np.argmin(good))
    lower = np.ascontiguousarray(factor.T)
    return lower if isinstance(tile, np.ndarray) else like(lower, tile)


def solved(part: Array, lower: Array) -> Array:
    """Return X with X L^T = C for a piece C that may be overwritten."""
    if not isinstance(part, np.ndarray):
        return _substituted(part, lower)
    for top in range(0, part.shape[0], CHUNK):
        rows = part[top : top + CHUNK]
        # L X^T = C^T: C^T is the Fortran-ordered view of C.
        below = blas.dtrsm(1.0, lower.T, rows.T, side=0, lower=0, trans_a=1, overwrite_b=1)
        if not np.shares_memory(below, rows):
            rows[:] = below.T
    return part


def _substituted(part: Array, lower: Array) -> Array:
    r"""Solve by substitution, in products, differences and quotients only.

    .. math:: x_c = (c_c - X_{<s} l_{c,<s} - X_{s \ldots c-1} l_{c, s \ldots c-1}) / l_{cc}

    with s the first column of the step that c is in. Two subtractions in turn, at most b roundings in each sum; the
    quotient, or the product with a rounded reciprocal, 2: no more than the bound counts for LAPACK's solve.
    """
    width, rows = int(lower.shape[0]), int(part.shape[0])
    x = like(np.zeros((min(_STEP, width), rows)), part)  # the columns of a step, each of them contiguous
    for low in range(0, width, _STEP):
        high = min(low + _STEP, width)
        own = lower[low:high, low:high]
        x[: high - low, :] = part[:, low:high].T
        if low:
            x[: high - low, :] -= lower[low:high, :low] @ part[:, :low].T
        for c in range(high - low):
            if c:
                x[c, :] -= own[c, :c] @ x[:c, :]
            x[c, :] /= own[c, c]
        part[:, low:high] = x[: high - low, :].T
    return part


def _product(left: Array, right: Array, into: Array | None) -> Array:
    if isinstance(left, np.ndarray):
        # Memory that was just used is still mapped, and in the cache.
        if into is None:
            into = np.empty((left.shape[0], right.shape[1]))
        return np.matmul(left, right, out=into)
    return left @ right


def _lowered(tile: Array, total: float) -> Array:
    """Return the tile with ``total`` taken off its diagonal, rounded down: on the host, whose arithmetic is known."""
    xp = namespace(tile)
    diagonal: FloatArray = host(xp.linalg.diagonal(tile))
    lowered = np.nextafter(diagonal - total, -np.inf)
    if isinstance(tile, np.ndarray):
        tile.flat[:: tile.shape[1] + 1] = lowered
        return tile
    return xp.where(like(np.eye(lowered.size), tile) > 0.0, like(lowered[:, None], tile), tile)


_ROWS = 8192  # of a piece: enough to keep a device busy, and 64 MiB
_EMULATION = "CUBLAS_EMULATE_DOUBLE_PRECISION"  # cuBLAS 13: float64 products from 8-bit integers


def make(column: Column) -> Array | int:
    """Make a tile column on the device that its Gram matrix is on, one piece after the other."""
    pieces = column.pieces(_ROWS)
    reduced = column.reduction()
    lower = factored(reduced(pieces[0]))
    if isinstance(lower, int):
        return lower
    below = [solved(reduced(rows), lower) for rows in pieces[1:]]
    return namespace(lower).concat([lower, *below], axis=0)


def unsupported_arithmetic(place: Array, order: int) -> str:
    """Return why no proof can rest on the arithmetic where ``place`` is; nothing if there is no reason.

    Parameters
    ----------
    place : array
        Of the namespace and on the device in question.
    order : int
        Of the products that will be made: libraries choose their algorithms by size.

    Examples
    --------
    >>> import numpy as np
    >>> unsupported_arithmetic(np.empty(0), 16)
    ''
    """
    if os.environ.get(_EMULATION, "0") not in {"", "0"}:
        return f"{_EMULATION} is set: products of float64 matrices may be emulated, and then no bound covers them"
    above = U * (1 + 2.0**-20)
    sums = like([1.0, 1.0, 1.0, -1.0, -1.0], place) + like([U, above, -U / 2, -above, U / 2], place)
    nearest = np.array_equal(host(sums), [1.0, 1.0 + 2 * U, 1.0, -(1.0 + 2 * U), -1.0])
    if not nearest or not float(host(like([OMEGA], place) * 0.5)[0]) > 0.0:
        return "the device does not round to nearest with gradual underflow"
    return "" if _multiplies_plainly(place, order) else "the device does not make products from float64 inner products"


def _multiplies_plainly(place: Array, order: int) -> bool:
    """Multiply a matrix with small entries beside large ones by a permutation of the small ones: exact, if entry by
    entry.
    """
    half = (order + 1) // 2
    source = np.random.default_rng(0)
    left = source.uniform(1.0, 2.0, (order, 2 * half))
    left[:, half:] *= 2.0**-40
    right = np.zeros((2 * half, half))
    right[half + source.permutation(half), np.arange(half)] = 1.0
    exact = left[:, half:][:, np.argmax(right[half:], axis=0)]
    return bool(np.array_equal(host(like(left, place) @ like(right, place)), exact))
