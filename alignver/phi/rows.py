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
from alignver.progress import track
from alignver.proof.rounding import FloatArray

__all__ = ["Location", "Rows", "open_rows"]

_BLOCK_BYTES = 1 << 26  # float64 rows that one pass holds at a time
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


class Rows:
    """n rows of m numbers, the last of them the constant 1 where ``added``.

    Attributes
    ----------
    n, m : int
        Shape, the added constant included.
    dtype : str
        What the entries are stored in.
    added : bool
        Whether the constant column is not in the data but appended to every row that is read.
    """

    def __init__(self, shape: tuple[int, int], dtype: str, added: bool) -> None:
        self.n, self.m = shape[0], shape[1] + added
        self.stored = shape[1]
        self.dtype = dtype
        self.added = added

    @property
    def location(self) -> Location | None:
        """The file that the rows are in, if it has a name."""
        return None

    def raw(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the rows with these indices as they are stored, without an added constant."""
        return self._rows(indices)

    def read(self, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop`` as a float64 array of their own or a view, not to be written to."""
        return self._complete(self._range(start, stop))

    def take(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Return the rows with these indices, in this order, as a float64 array of their own."""
        return self._complete(self._rows(indices))

    def blocks(self, label: str, *, least: int = 1) -> Iterator[tuple[int, FloatArray]]:
        """Yield (start, rows) over all rows, a bounded number at a time, reporting progress."""
        step = max(least, _BLOCK_BYTES // (8 * self.m), 1)
        for start in track(range(0, self.n, step), label):
            yield start, self.read(start, min(start + step, self.n))

    def require_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened: what was hashed, and what was proved, may differ."""

    def close(self) -> None:
        """Let go of files."""

    def _range(self, start: int, stop: int) -> npt.NDArray[Any]:
        raise NotImplementedError

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        raise NotImplementedError

    def _complete(self, rows: npt.NDArray[Any]) -> FloatArray:
        if not self.added:
            return np.ascontiguousarray(rows, dtype=np.float64)
        whole = np.ones((rows.shape[0], self.m))
        whole[:, :-1] = rows
        return whole


class _ArrayRows(Rows):
    def __init__(self, array: npt.NDArray[Any], added: bool) -> None:
        super().__init__((int(array.shape[0]), int(array.shape[1])), str(array.dtype), added)
        self._array = array

    def _range(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self._array[start:stop]

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self._array[indices]


class _FileRows(Rows):
    def __init__(
        self, file: int, offset: int, shape: tuple[int, int], dtype: np.dtype[Any], added: bool, path: str = ""
    ) -> None:
        super().__init__(shape, dtype.name, added)
        self._file, self._offset, self._kind, self._path = file, offset, dtype, path
        self._row_bytes, self._state = self.stored * dtype.itemsize, _state(file)
        self._closing = weakref.finalize(self, os.close, file)  # at the latest when nobody holds the rows

    @property
    def location(self) -> Location | None:
        if not self._path:
            return None
        return Location(self._path, self._offset, (self.n, self.stored), self.dtype, self.added)

    def require_unchanged(self) -> None:
        if _state(self._file) != self._state:
            raise InvalidInput("Z", "a file that changed while it was read", "a file that nobody writes to meanwhile")

    def close(self) -> None:
        self._closing()
        self._file = -1  # the number may belong to another file by now

    def _range(self, start: int, stop: int) -> npt.NDArray[Any]:
        rows = np.empty((stop - start, self.stored), dtype=self._kind)
        self._fill(rows.data.cast("B"), start)
        return rows

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        rows = np.empty((indices.size, self.stored), dtype=self._kind)
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
                raise InvalidInput("Z", f"a file that ends in row {at} of {self.n}", "the whole file: copy it again")
            done += count


def _state(file: int) -> tuple[int, int]:
    about = os.fstat(file)
    return about.st_size, about.st_mtime_ns


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
        return _ArrayRows(Z.view(np.ndarray), add_constant)
    if isinstance(Z, Iterable) and not hasattr(Z, "shape") and not isinstance(Z, list | tuple | str | bytes | dict):
        return _spooled(Z, add_constant, folder)
    return _ArrayRows(host(as_matrix(Z, "Z").array), add_constant)


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
    return _FileRows(file, Z.offset, shape, Z.dtype, added, os.path.abspath(Z.filename))


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
        return _FileRows(os.dup(file.fileno()), 0, (n, m), dtype, added)


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
