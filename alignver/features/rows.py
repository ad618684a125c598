"""The rows z_i wherever they are: an array, a file mapped into memory, or blocks from a generator put on disk.

Everything above asks for ranges and lists of rows and gets float64. A mapped file is read with ``pread`` instead of
through its mapping: memory stays bounded by what is asked for, and a file that was cut short is an error with a name,
not a bus error.

One pass over the rows: are they finite, is the constant there, what identifies them, how do they project?
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import hashlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import as_matrix, host
from alignver.errors import InvalidInput
from alignver.kernel import snapshot
from alignver.progress import track
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    add_up,
    gamma,
    mul_up,
    norm_up,
    sqrt_up,
    square_sums_up,
)

__all__ = ["Location", "RowScan", "Rows", "directions", "open_rows", "scan_rows"]
_FLOATS = ("float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Location:
    """Where another process finds the rows: the arguments of ``numpy.memmap``, and whether the constant is added."""

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: str
    added: bool

    def open(self) -> Rows:
        """Open the file here."""
        return open_rows(np.memmap(self.path, self.dtype, "r", self.offset, self.shape), add_constant=self.added)


class Rows(snapshot.Rows):
    """n rows of m numbers, the last of them the constant 1 where ``added``; see :class:`alignver.kernel.snapshot.Rows`.

    What is hashed is what is proved: the first pass settles the rows, by a copy or by a digest of each.

    Attributes
    ----------
    n, m : int
        Shape, the added constant included.
    dtype : str
        What the entries are stored in.
    added : bool
        Whether the constant column is not in the data but appended to every row that is read.
    """

    @property
    def location(self) -> Location | None:
        """The file that the rows are in, if it has a name."""
        return self.source.location(self.added) if isinstance(self.source, _File) else None

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Return the rows with these indices, in this order, as float64, not to be written to."""
        rows: FloatArray = super().take(indices)
        return rows

    def read(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` as float64, not to be written to."""
        rows: FloatArray = super().read(start, stop)
        return rows

    def passes(self, label: str) -> Iterator[tuple[int, FloatArray]]:
        """Yield (start, rows) over all rows, a bounded number at a time, reporting progress."""
        return self.blocks(track, label)

    def close(self) -> None:
        """Let go of files."""
        if isinstance(self.source, _File):
            self.source.close()


class _File:
    """The rows of an open file, read with ``pread``."""

    def __init__(self, file: int, offset: int, shape: tuple[int, int], dtype: np.dtype[Any], path: str = "") -> None:
        self.shape, self.dtype = shape, dtype
        self._file, self._offset, self._path = file, offset, path
        self._row_bytes = shape[1] * dtype.itemsize
        self._closing = weakref.finalize(self, os.close, file)  # at the latest when nobody holds the rows

    def location(self, added: bool) -> Location | None:
        """Where another process finds the rows, if the file has a name."""
        return Location(self._path, self._offset, self.shape, self.dtype.name, added) if self._path else None

    def close(self) -> None:
        """Close the file."""
        self._closing()
        self._file = -1  # the number may belong to another file by now

    def __getitem__(self, which: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return rows by a slice (start, stop) or an array of indices."""
        return self._range(which.start, which.stop) if isinstance(which, slice) else self._rows(which)

    def _range(self, start: int, stop: int) -> npt.NDArray[Any]:
        rows = np.empty((stop - start, self.shape[1]), dtype=self.dtype)
        self._fill(rows.data.cast("B"), start)
        return rows

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        rows = np.empty((indices.size, self.shape[1]), dtype=self.dtype)
        view = rows.data.cast("B")
        # Runs of neighbours are one read; in the order of the file they cost a disk the least.
        order = np.argsort(indices, kind="stable")
        breaks = np.flatnonzero(np.diff(indices[order]) != 1) + 1
        if np.array_equal(order, np.arange(order.size)):
            for run in np.split(np.arange(order.size), breaks):
                first, last = int(run[0]), int(run[-1]) + 1
                self._fill(view[first * self._row_bytes : last * self._row_bytes], int(indices[first]))
        else:
            for place in order.tolist():
                self._fill(view[place * self._row_bytes : (place + 1) * self._row_bytes], int(indices[place]))
        return rows

    def _fill(self, view: memoryview, row: int) -> None:
        position, done = self._offset + row * self._row_bytes, 0
        while done < len(view):
            try:
                count = os.preadv(self._file, [view[done:]], position + done)
            except OSError as error:
                raise InvalidInput(
                    "Z", f"a file that cannot be read at row {row} ({error.strerror})", "a readable file"
                ) from error
            if count == 0:
                at = row + done // self._row_bytes
                got = f"a file that ends in row {at} of {self.shape[0]}"
                raise InvalidInput("Z", got, "the whole file: copy it again")
            done += count


def open_rows(Z: Any, *, add_constant: bool = False, folder: str | os.PathLike[str] | None = None) -> Rows:
    """Return the rows of ``Z``: a matrix of any array library, a mapped file, or an iterable of row blocks.

    Parameters
    ----------
    Z : (n, m) array, numpy.memmap, or iterable of (k, m) arrays
        float16, float32 and float64 stay as they are and are widened when they are read; other dtypes are validated and
        widened at once. Blocks of an iterable are written to an unnamed temporary file, in the dtype of the first one;
        a wider one after it is refused, not rounded.
    add_constant : bool
        Append the constant 1 to every row.
    folder : path, optional
        Where that temporary file goes.

    Raises
    ------
    InvalidInput
        Not a real matrix, empty, blocks of different widths or growing precision, a disk that is full.

    Examples
    --------
    >>> import numpy as np
    >>> rows = open_rows((np.full((2, 3), k) for k in range(3)), add_constant=True)
    >>> rows.n, rows.m, rows.take(np.array([5, 0]))[:, 1:]
    (6, 4, array([[2., 2., 1.],
           [0., 0., 1.]]))
    """
    if isinstance(Z, np.memmap) and isinstance(getattr(Z, "base", None), mmap.mmap):
        mapped = _mapped(Z, add_constant)
        if mapped is not None:
            return mapped
    if type(Z) in (np.ndarray, np.memmap) and Z.ndim == 2 and Z.size and Z.dtype.isnative and Z.dtype.name in _FLOATS:
        return Rows(Z.view(np.ndarray), add_constant)
    if isinstance(Z, Iterable) and not hasattr(Z, "shape") and not isinstance(Z, list | tuple | str | bytes | dict):
        return _spooled(Z, add_constant, folder)
    return Rows(host(as_matrix(Z, "Z").array), add_constant)


def _mapped(Z: np.memmap[Any, Any], added: bool) -> Rows | None:
    """Return the rows of the file behind a whole mapping; None where it is better read through the mapping."""
    plain = Z.ndim == 2 and Z.size > 0 and Z.flags.c_contiguous and Z.dtype.isnative and Z.dtype.name in _FLOATS
    if not plain or Z.filename is None or Z.mode == "c":
        return None
    try:
        file = os.open(Z.filename, os.O_RDONLY)
    except OSError:
        return None
    if not _behind(Z, file):
        os.close(file)
        return None
    shape = (int(Z.shape[0]), int(Z.shape[1]))
    return Rows(_File(file, Z.offset, shape, Z.dtype, os.path.abspath(Z.filename)), added)


def _behind(Z: np.memmap[Any, Any], file: int) -> bool:
    """Whether the open file is the one that is mapped, and not another that took its name meanwhile."""
    about, address = os.fstat(file), Z.ctypes.data
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                place, _, _, where, inode, *_ = line.split()
                low, _, high = place.partition("-")
                if int(low, 16) <= address < int(high, 16):
                    return (where, int(inode)) == (device, about.st_ino)
    except OSError:  # no such list here
        pass
    return False


def _spooled(blocks: Iterable[Any], added: bool, folder: str | os.PathLike[str] | None) -> Rows:
    n, m, dtype = 0, 0, np.dtype(np.float64)
    with _temporary(folder) as file:
        for block in track(blocks, "features to disk"):
            rows = _block(block, n)
            if n == 0:
                m, dtype = int(rows.shape[1]), rows.dtype
            if rows.shape[1] != m or not np.can_cast(rows.dtype, dtype):
                got = f"a block of {rows.dtype} and shape {rows.shape} at row {n}"
                raise InvalidInput("Z", got, f"blocks with {m} columns, none wider than the first's {dtype}")
            try:
                left = np.ascontiguousarray(rows, dtype=dtype).data.cast("B")
                while left:
                    left = left[file.write(left) :]
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                got = f"a disk that is full after {n} rows" if full else f"a disk that fails ({error.strerror})"
                raise InvalidInput("folder", got, "a folder with room for all of Z") from error
            n += int(rows.shape[0])
        if n == 0:
            raise InvalidInput("Z", "no blocks", "at least one block of rows")
        return Rows(_File(os.dup(file.fileno()), 0, (n, m), dtype), added)


def _temporary(folder: str | os.PathLike[str] | None) -> Any:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        got = f"{folder or tempfile.gettempdir()}, where no file can be made ({error.strerror})"
        raise InvalidInput("folder", got, "a folder with room for all of Z") from error


def _block(block: Any, at: int) -> npt.NDArray[Any]:
    """Return a block's rows: float16, float32 and float64 as they are, other dtypes validated and widened."""
    try:
        rows = host(block) if hasattr(block, "dtype") else np.asarray(block)
    except (TypeError, ValueError):  # bfloat16 is widened, ragged lists are refused
        rows = host(as_matrix(block, "Z").array)
    if rows.ndim != 2 or 0 in rows.shape:
        got = f"a block of shape {tuple(rows.shape)} at row {at}"
        raise InvalidInput("Z", got, "blocks with 2 dimensions, not empty")
    if type(rows) in (np.ndarray, np.memmap) and rows.dtype.isnative and rows.dtype.name in _FLOATS:
        return rows
    return host(as_matrix(rows, "Z").array)


_SAMPLE = 512  # rows: a spread estimated from them is within a few per cent, and any direction is admissible


@dataclasses.dataclass(frozen=True)
class RowScan:
    """What one pass over the rows found.

    Attributes
    ----------
    record : mapping
        Digest, shape and dtype of the rows as float64 without an added constant: what a certificate identifies them by.
    squares : (n,) float64
        Upper bounds of the squared norms of the rows.
    directions : (m, k) float64
        The directions that were projected on.
    projections : (n, k) float64
        Computed products of every row with every direction.
    errors : (k,) float64
        Upper bounds of what any projection on that direction is wrong by.
    """

    record: dict[str, Any]
    squares: FloatArray
    directions: FloatArray
    projections: FloatArray
    errors: FloatArray


def directions(rows: Rows, count: int, seed: int) -> FloatArray:
    """Return random directions v (m, count), each feature weighted by one over its spread, with v_m = 0.

    Any direction is admissible. The weights make the result independent of the units of the features.
    """
    sample = rows.take(np.linspace(0, rows.n - 1, min(rows.n, _SAMPLE)).astype(np.int64))
    with np.errstate(all="ignore"):
        spread = sample.std(axis=0)
        weights = np.where((spread > 2.0**-500) & (spread < 2.0**500), 1.0 / spread, 0.0)
    weights[-1] = 0.0
    if not np.any(weights):
        weights[:-1] = 1.0
    source = np.random.default_rng(seed)
    V: FloatArray = source.standard_normal((rows.m, count)) * weights[:, None] / np.sqrt(rows.m)
    return V


def scan_rows(rows: Rows, V: FloatArray) -> RowScan:
    r"""Validate all rows and project them on the directions ``V`` (m, k), whose last entries are zero.

    A computed projection errs by at most :math:`\gamma_m \|z_i\| \|v\| + m \omega` (Higham 2002, eq. (3.5), then Cauchy
    and Schwarz), whatever the order of summation.

    Raises
    ------
    InvalidInput
        NaN, Inf or a last entry that is not 1, named by row.
    """
    n, m = rows.n, rows.m
    projections, squares = np.empty((n, V.shape[1])), np.empty(n)
    content = hashlib.sha256(f"<f8 {(n, rows.stored)}".encode())
    # Hashing is as slow as all the rest and lets go of the interpreter: it runs beside it, in order.
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        hashed: concurrent.futures.Future[None] | None = None
        for start, block in rows.passes("reading Z"):
            bare = np.ascontiguousarray(block[:, : rows.stored])
            if hashed is not None:
                hashed.result()
            hashed = beside.submit(content.update, bare.data.cast("B"))
            stop = start + block.shape[0]
            squares[start:stop] = square_sums_up(block, 1)
            if not bool(np.all(np.isfinite(squares[start:stop]))):
                _blame(block, start)
            if rows.m > rows.stored or bool(np.all(block[:, -1] == 1.0)):
                projections[start:stop] = block @ V
            else:
                _no_constant(rows, block, start)
        if hashed is not None:
            hashed.result()
    longest = sqrt_up(float(squares.max()))
    sizes = [norm_up(np.ascontiguousarray(v)) for v in V.T]
    errors = np.array([add_up(mul_up(gamma(m), longest, size), mul_up(float(m), OMEGA)) for size in sizes])
    record = {"sha256": content.hexdigest(), "shape": [n, rows.stored], "dtype": "<f8"}
    return RowScan(record, squares, V, projections, errors)


def _blame(block: FloatArray, start: int) -> None:
    """Name the first entry that is no number; nothing can be proved about a row whose square overflows."""
    bad = ~np.isfinite(block)
    if bad.any():
        i, j = (int(k[0]) for k in np.nonzero(bad))
        raise InvalidInput("Z", f"{float(block[i, j])} at {(start + i, j)}", "finite entries")
    i = int(np.argmax(np.abs(block).max(axis=1)))
    raise InvalidInput("Z", f"entries of {float(np.abs(block[i]).max()):.1e} in row {start + i}", "entries below 1e150")


def _no_constant(rows: Rows, block: FloatArray, start: int) -> None:
    i = int(np.argmax(block[:, -1] != 1.0))
    ones = np.flatnonzero(np.all(block == 1.0, axis=0))
    hint = f" (column {int(ones[0])} holds it: move it to the end)" if ones.size else ""
    raise InvalidInput(
        "Z",
        f"{float(block[i, -1]):.3g} in the last column, row {start + i}",
        f"the constant 1 as its last column, or add_constant=True{hint}",
    )


def digest_rows(rows: Rows) -> dict[str, Any]:
    """Return what identifies the rows, as :func:`survey` does, by a pass of its own."""
    content = hashlib.sha256(f"<f8 {(rows.n, rows.stored)}".encode())
    for _, block in rows.passes("identifying Z"):
        content.update(np.ascontiguousarray(block[:, : rows.stored]).tobytes())
    return {"sha256": content.hexdigest(), "shape": [rows.n, rows.stored], "dtype": "<f8"}


Indices = npt.NDArray[np.int64]
