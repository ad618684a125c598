"""The rows z_i wherever they are: an array, a file mapped into memory, or blocks from a generator put on disk.

Everything above asks for ranges and lists of rows and gets float64. A mapped file is read with ``pread`` instead of
through its mapping: memory stays bounded by what is asked for, and a file that was cut short is an error with a name,
not a bus error.
"""

from __future__ import annotations

import dataclasses
import errno
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
from alignver.proof.rounding import FloatArray

__all__ = ["Location", "Rows", "open_rows"]

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
