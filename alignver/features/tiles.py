r"""Tile columns of a large Cholesky factor: how one is made, where it is stored, and which arithmetic may make it.

Threads, a GPU and a cluster all call the same functions. A piece of the column is assembled from factors of its rows
and reduced by the finished columns; the diagonal tile is factored; every piece below it is solved with the factor. The
bound of :mod:`alignver.features.cholesky` counts the roundings of exactly these steps.

On NumPy arrays BLAS does the triangular solve. On other arrays it is written out below: the solves of GPU libraries
invert diagonal blocks, which is not a substitution, and no bound for inner products covers it. LAPACK factors the
diagonal tile on the host for the same reason: it is one tile of many.

A column is stored in memory, on the device, or as one .npy file of a folder that survives the process. The file appears
whole or not at all: it is written under another name, synchronised and renamed. A manifest records the matrix that the
folder belongs to and the hash of every finished column, so that an interrupted run continues, and a damaged file is
computed again.

Assumed of a device, and tested first: float64 operations round to nearest with gradual underflow, and a matrix product
consists of inner products, in any order, with or without fused multiply-add. Strassen-like products and float64
emulated in fixed point or in narrower floats do not satisfy this: their error is relative to the largest entries of a
row, and it shows where a product has one term only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.linalg import blas, lapack

from alignver import atomic
from alignver.arrays import Array, host, like, namespace
from alignver.errors import InvalidInput, saving
from alignver.proof.gram_tiles import FactoredGram
from alignver.proof.rounding import OMEGA, FloatArray, U

CHUNK = 1024  # rows of a product that is computed at a time, so that it is still in the cache when it is subtracted
_STEP = 32  # columns that a solve computes one by one: the rest of it is matrix products
_ROWS = 65536  # rows of a piece on a device, 512 MiB: substitution is bound by the number of calls, not by their size
_EMULATION = "CUBLAS_EMULATE_DOUBLE_PRECISION"  # cuBLAS 13: float64 products from 8-bit integers
_MANIFEST = "tiles.json"


def content_hash(array: FloatArray) -> str:
    """Return the SHA-256 of the entries in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def column_name(index: int) -> str:
    """Return the file name of a tile column."""
    return f"column_{index:05d}.npy"


class MemoryStore:
    """Tile columns in memory, or on the device that they were made on."""

    def __init__(self) -> None:
        self._columns: list[Array] = []

    @property
    def finished(self) -> int:
        """The number of stored columns."""
        return len(self._columns)

    def append(self, column: Array) -> None:
        """Store the next column."""
        self._columns.append(column)

    def require_unchanged(self, index: int) -> None:
        """Do nothing: no other program writes to this memory."""

    def __getitem__(self, index: int) -> Array:
        """Return a stored column, which is read-only."""
        return self._columns[index]


class FolderStore:
    """Tile columns in a folder.

    Parameters
    ----------
    folder : path
        Created if it does not exist. Columns of another matrix in it are refused, not overwritten.
    key : dict
        The digest, order, tile size and shift of the matrix.

    Raises
    ------
    InvalidInput
        If the folder belongs to another matrix, cannot be written or is full.
    """

    def __init__(self, folder: str | os.PathLike[str], key: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._key = key
        self._hashes: list[str] = []
        self._written: dict[int, tuple[int, ...]] = {}  # the state of a file when its column was written or hashed
        with self._saving():
            self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        self._load()

    @property
    def finished(self) -> int:
        """The number of stored columns."""
        return len(self._hashes)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of the finished columns."""
        return tuple(self._hashes)

    def publish(self, name: str, array: FloatArray) -> None:
        """Write an array beside the columns, for processes that read this folder."""
        with self._saving():
            _write_array(self.folder / name, array)

    def append(self, column: FloatArray) -> None:
        """Store the next column: its file first, then the manifest that lists it."""
        with self._saving():
            _write_array(self._path(self.finished), column)
            self._written[self.finished] = self._state(self.finished)
            self._write_manifest([*self._hashes, content_hash(column)])

    def __getitem__(self, index: int) -> FloatArray:
        """Return a stored column, which is read-only; its file must be as it was written."""
        self.require_unchanged(index)
        column: FloatArray = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
        return column

    def require_unchanged(self, index: int) -> None:
        """Refuse a column whose file somebody wrote to during the run, as its size, times and inode show."""
        if self._state(index) != self._written[index]:
            got = f"{self._path(index)}, which changed during the run"
            raise InvalidInput("folder", got, "a folder that no other program writes to", "unreadable-file")

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        after = f"; the {self.finished} finished tile columns are kept" if self.finished else ""
        return saving("folder", self.folder, f"a folder with room for the tiles{after}")

    def _state(self, index: int) -> tuple[int, ...]:
        try:
            state = self._path(index).stat()
        except FileNotFoundError:
            return ()
        return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def _path(self, index: int) -> Path:
        return self.folder / column_name(index)

    def _write_manifest(self, hashes: list[str]) -> None:
        document = json.dumps({"key": self._key, "columns": hashes}, indent=1)
        with atomic.writing(self.folder / _MANIFEST) as stream:
            stream.write(document.encode("ascii"))
        self._hashes = hashes

    def _load(self) -> None:
        try:
            document = json.loads((self.folder / _MANIFEST).read_bytes())
            key, hashes = document["key"], [str(value) for value in document["columns"]]
        except FileNotFoundError:
            if any(self.folder.glob("column_*.npy")):
                raise InvalidInput("folder", f"{self.folder} with tiles of unknown origin", "an empty folder") from None
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"{self.folder} with a damaged {_MANIFEST}"
            raise InvalidInput("folder", got, "an empty folder", "unreadable-file") from error
        if key != json.loads(json.dumps(self._key)):
            raise InvalidInput("folder", f"{self.folder} with tiles of another matrix", "an empty folder")
        for index, expected in enumerate(hashes):
            self._written[index] = self._state(index)
            try:
                column = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
                intact = content_hash(column) == expected
            except Exception:  # NumPy raises exceptions of many types for damaged files
                intact = False
            if not intact:
                break  # this column and all later ones are computed again
            self._hashes.append(expected)


class MirroredStore(MemoryStore):
    """Tile columns on a device, and in a folder.

    Parameters
    ----------
    folder_store : FolderStore
        Its finished columns are copied to the device.
    place : array
        An array of the namespace and on the device.
    """

    def __init__(self, folder_store: FolderStore, place: Array) -> None:
        super().__init__()
        self._folder_store = folder_store
        self._columns = [like(np.array(folder_store[k]), place) for k in range(folder_store.finished)]

    def append(self, column: Array) -> None:
        """Store the next column, in the folder first."""
        self._folder_store.append(np.ascontiguousarray(host(column)))
        super().append(column)


Store: TypeAlias = MemoryStore | FolderStore


def open_store(folder: str | os.PathLike[str] | None, key: dict[str, Any], place: Array | None = None) -> Store:
    """Return a store in memory, or one in ``folder``, with the finished columns that the folder has of the same matrix.

    ``place`` is an array on the device of the columns, None for NumPy.
    """
    if folder is None:
        return MemoryStore()
    store = FolderStore(folder, key)
    return store if place is None else MirroredStore(store, place)


def _write_array(path: Path, array: FloatArray) -> None:
    """Write a .npy file; the errors of NumPy's own writer do not say why it failed."""
    content = np.ascontiguousarray(array)
    with atomic.writing(path) as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(content))
        stream.write(content.data.cast("B"))


@dataclasses.dataclass(frozen=True)
class Column:
    """A tile column that is to be computed.

    Attributes
    ----------
    gram : FactoredGram
    total : float
        Subtracted from the diagonal.
    tile, index : int
        Columns in a tile, and the position of this tile column.
    store : Store
        The finished tile columns, each from its diagonal tile down.
    """

    gram: FactoredGram
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
        return self.gram.order

    def pieces(self, rows: int = CHUNK) -> list[slice]:
        """Return the diagonal tile's rows, then those below, ``rows`` at a time."""
        below = [slice(top, min(top + rows, self.end)) for top in range(self.stop, self.end, rows)]
        return [slice(self.start, self.stop), *below]

    def reduction(self) -> Callable[[slice], Array]:
        """Return a function that assembles a piece and subtracts its products with the finished columns.

        The products with each finished column are summed before they are subtracted, as the bound requires.
        """
        finished = []  # each with its first row, and its transposed rows beside the diagonal tile
        for k in range(self.index):
            column, offset = self.store[k], k * self.tile
            right = column[self.start - offset : self.stop - offset, :]
            finished.append(
                (column, offset, (np.ascontiguousarray(right) if isinstance(right, np.ndarray) else right).T)
            )

        def reduce(rows: slice) -> Array:
            part = self.gram.tile(rows, slice(self.start, self.stop))
            if rows.start == self.start:
                part = _lowered(part, self.total)
            product = None
            for column, offset, right in finished:
                product = _product(column[rows.start - offset : rows.stop - offset, :], right, product)
                part -= product
            return part

        return reduce


def factor_diagonal(tile: Array) -> Array | int:
    """Return the lower triangular factor of a reduced diagonal tile, or the row of a pivot that is not in (0, inf)."""
    # Row-major lower triangles are LAPACK's upper ones.
    factor, info = lapack.dpotrf(np.ascontiguousarray(host(tile)).T, lower=0, clean=1, overwrite_a=0)
    pivots = np.diagonal(factor)
    good = (pivots > 0) & (pivots < np.inf)
    if info != 0 or not bool(np.all(good)):
        return int(info) - 1 if info > 0 else int(np.argmin(good))
    lower = np.ascontiguousarray(factor.T)
    return lower if isinstance(tile, np.ndarray) else like(lower, tile)


def solve_piece(part: Array, lower: Array) -> Array:
    """Return X with X L^T = C for a piece C, which may be overwritten."""
    if not isinstance(part, np.ndarray):
        return _substitute(part, lower)
    for top in range(0, part.shape[0], CHUNK):
        rows = part[top : top + CHUNK]
        # L X^T = C^T: C^T is the Fortran-ordered view of C.
        below = blas.dtrsm(1.0, lower.T, rows.T, side=0, lower=0, trans_a=1, overwrite_b=1)
        if not np.shares_memory(below, rows):
            rows[:] = below.T
    return part


def _substitute(part: Array, lower: Array) -> Array:
    r"""Solve by substitution, in products, differences and quotients only.

    .. math:: x_c = (c_c - X_{<s} l_{c,<s} - X_{s \ldots c-1} l_{c, s \ldots c-1}) / l_{cc}

    with s the first column of the step that c is in. Two subtractions in turn, at most b roundings in each sum; the
    quotient, or the product with a rounded reciprocal, 2: no more than the bound counts for LAPACK's solve.
    """
    width, rows = int(lower.shape[0]), int(part.shape[0])
    x = like(np.zeros((min(_STEP, width), rows)), part)  # the columns of a step, each contiguous
    pivots = host(namespace(lower).linalg.diagonal(lower)).tolist()
    for low in range(0, width, _STEP):
        high = min(low + _STEP, width)
        triangle = lower[low:high, low:high]
        x[: high - low, :] = part[:, low:high].T
        if low:
            x[: high - low, :] -= lower[low:high, :low] @ part[:, :low].T
        for c in range(high - low):
            column = x[c, :]
            if c:
                column -= triangle[c, :c] @ x[:c, :]
            column /= pivots[low + c]
        part[:, low:high] = x[: high - low, :].T
    return part


def _product(left: Array, right: Array, into: Array | None) -> Array:
    if isinstance(left, np.ndarray):
        # Memory that was just used is still in the cache.
        return np.matmul(left, right, out=np.empty((left.shape[0], right.shape[1])) if into is None else into)
    return left @ right


def _lowered(tile: Array, total: float) -> Array:
    """Return the tile with ``total`` subtracted from its diagonal, rounded down, on the host (of known arithmetic)."""
    xp = namespace(tile)
    diagonal: FloatArray = host(xp.linalg.diagonal(tile))
    lowered = np.nextafter(diagonal - total, -np.inf)
    if isinstance(tile, np.ndarray):
        tile.flat[:: tile.shape[1] + 1] = lowered
        return tile
    return xp.where(like(np.eye(lowered.size), tile) > 0.0, like(lowered[:, None], tile), tile)


def make_on_device(column: Column) -> Array | int:
    """Compute a tile column on the device of its Gram matrix, piece by piece."""
    pieces = column.pieces(_ROWS)
    reduce = column.reduction()
    lower = factor_diagonal(reduce(pieces[0]))
    if isinstance(lower, int):
        return lower
    return namespace(lower).concat([lower, *(solve_piece(reduce(rows), lower) for rows in pieces[1:])], axis=0)


def unsupported_arithmetic(place: Array, order: int) -> str:
    """Return why no proof can use the arithmetic of the device of ``place``; an empty string if one can.

    Parameters
    ----------
    place : array
        An array of the namespace and on the device.
    order : int
        The order of the products: libraries choose their algorithms by size.

    Examples
    --------
    >>> import numpy as np
    >>> unsupported_arithmetic(np.empty(0), 16)
    ''
    """
    if os.environ.get(_EMULATION, "0") not in {"", "0"}:
        return f"{_EMULATION} is set: products of float64 matrices may be emulated, and no bound covers that"
    above = U * (1 + 2.0**-20)
    sums = like([1.0, 1.0, 1.0, -1.0, -1.0], place) + like([U, above, -U / 2, -above, U / 2], place)
    nearest = np.array_equal(host(sums), [1.0, 1.0 + 2 * U, 1.0, -(1.0 + 2 * U), -1.0])
    if not nearest or not float(host(like([OMEGA], place) * 0.5)[0]) > 0.0:
        return "the device does not round to nearest with gradual underflow"
    return (
        ""
        if _computes_inner_products(place, order)
        else "the device does not compute products as float64 inner products"
    )


def _computes_inner_products(place: Array, order: int) -> bool:
    """Multiply a matrix of small and large entries by a permutation of the small ones: inner products are exact."""
    half = (order + 1) // 2
    source = np.random.default_rng(0)
    left = source.uniform(1.0, 2.0, (order, 2 * half))
    left[:, half:] *= 2.0**-40
    right = np.zeros((2 * half, half))
    right[half + source.permutation(half), np.arange(half)] = 1.0
    exact = left[:, half:][:, np.argmax(right[half:], axis=0)]
    return bool(np.array_equal(host(like(left, place) @ like(right, place)), exact))
