"""The rows z_i from an array, a mapped file or blocks of a generator, and the pass that validates and projects them.

Callers request ranges and lists of rows and get float64. A mapped file is read with ``pread`` instead of through its
mapping: memory stays bounded by the size of the request, and a truncated file raises InvalidInput instead of causing a
bus error.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.arrays import as_matrix, host
from alignver.errors import InvalidInput, saving
from alignver.kernel import snapshot
from alignver.progress import track
from alignver.proof.rounding import OMEGA, FloatArray, add_up, gamma, mul_up, norm_up, sqrt_up, square_sums_up

_FLOATS = ("float16", "float32", "float64")
_SAMPLE = 512  # rows: their standard deviation is accurate within a few per cent, and any direction is admissible
_ROOM = "a folder with room for all of Z"
_LEADING = 5  # principal directions from which others are mixed


@dataclasses.dataclass(frozen=True)
class Location:
    """Where another process can read the rows: the arguments of ``numpy.memmap``, and whether the constant is added."""

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: str
    added: bool

    def open(self) -> Rows:
        """Open the file in this process."""
        return open_rows(np.memmap(self.path, self.dtype, "r", self.offset, self.shape), add_constant=self.added)


class Rows(snapshot.Rows):
    """n rows of m numbers, the last of them the constant 1 where ``added``; see :class:`alignver.kernel.snapshot.Rows`.

    The proof is about the hashed rows: the first pass fixes them, by a copy or by a digest of each.

    Attributes
    ----------
    n, m : int
        Shape, the added constant included.
    dtype : str
        The dtype of the stored entries.
    added : bool
        Whether the constant is appended to every row when it is read, and is not in the data.
    """

    @property
    def location(self) -> Location | None:
        """The file of the rows, if it has a name."""
        return self.source.location(self.added) if isinstance(self.source, _File) else None

    def passes(self, label: str) -> Iterator[tuple[int, FloatArray]]:
        """Yield (start, float64 rows) without an added constant, a bounded number at a time, reporting progress."""
        return self.blocks(track, label)

    def close(self) -> None:
        """Close the file, if the rows are in one."""
        if isinstance(self.source, _File):
            self.source.close()


class _File:
    """The rows of an open file, read with ``pread``."""

    def __init__(self, file: int, offset: int, shape: tuple[int, int], dtype: np.dtype[Any], path: str = "") -> None:
        self.shape, self.dtype = shape, dtype
        self._file, self._offset, self._path = file, offset, path
        self._row_bytes = shape[1] * dtype.itemsize
        self._closing = weakref.finalize(self, os.close, file)  # at the latest with the last reference

    def location(self, added: bool) -> Location | None:
        """Return where another process can read the rows, if the file has a name."""
        return Location(self._path, self._offset, self.shape, self.dtype.name, added) if self._path else None

    def close(self) -> None:
        """Close the file."""
        self._closing()
        self._file = -1  # the descriptor may be reused for another file

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
        # Consecutive rows are one read; other orders are read row by row, in the order of the file.
        order = np.argsort(indices, kind="stable")
        runs = [order[k : k + 1] for k in range(order.size)]
        if np.array_equal(order, np.arange(order.size)):
            runs = np.split(order, np.flatnonzero(np.diff(indices) != 1) + 1)
        for run in runs:
            first, last = int(run[0]), int(run[-1]) + 1
            self._fill(view[first * self._row_bytes : last * self._row_bytes], int(indices[first]))
        return rows

    def _fill(self, view: memoryview, row: int) -> None:
        position, done = self._offset + row * self._row_bytes, 0
        while done < len(view):
            try:
                count = os.preadv(self._file, [view[done:]], position + done)
            except OSError as error:
                got = f"a file that cannot be read at row {row} ({error.strerror})"
                raise InvalidInput("Z", got, "a readable file", "unreadable-file") from error
            if count == 0:
                got = f"a file that ends in row {row + done // self._row_bytes} of {self.shape[0]}"
                raise InvalidInput("Z", got, "the whole file: copy it again", "unreadable-file")
            done += count


def open_rows(Z: Any, *, add_constant: bool = False, folder: str | os.PathLike[str] | None = None) -> Rows:
    """Return the rows of ``Z``: a matrix of any array library, a mapped file, or an iterable of row blocks.

    Parameters
    ----------
    Z : (n, m) array, numpy.memmap, or iterable of (k, m) arrays
        float16, float32 and float64 are stored unchanged and converted to float64 when they are read; other dtypes are
        validated and converted at once. Blocks of an iterable are written to an unnamed temporary file, in the dtype of
        the first block; a later block of a wider dtype is refused, not rounded.
    add_constant : bool
        Append the constant 1 to every row.
    folder : path, optional
        The folder of that temporary file.

    Raises
    ------
    InvalidInput
        If ``Z`` is not a real matrix or is empty, blocks differ in width or grow in precision, or the disk is full.

    Examples
    --------
    >>> import numpy as np
    >>> rows = open_rows((np.full((2, 3), k) for k in range(3)), add_constant=True)
    >>> rows.n, rows.m, rows.take(np.array([5, 0]))[:, 1:]
    (6, 4, array([[2., 2., 1.],
           [0., 0., 1.]]))
    """
    require.booleans(add_constant=add_constant)
    if isinstance(Z, np.memmap) and isinstance(getattr(Z, "base", None), mmap.mmap):
        mapped = _mapped(Z, add_constant)
        if mapped is not None:
            return mapped
    if type(Z) in (np.ndarray, np.memmap) and _stored_unchanged(Z):
        return Rows(Z.view(np.ndarray), add_constant)
    if isinstance(Z, Iterable) and not hasattr(Z, "shape") and not isinstance(Z, list | tuple | str | bytes | dict):
        return _spooled(Z, add_constant, folder)
    return Rows(host(as_matrix(Z, "Z").array), add_constant)


def _stored_unchanged(Z: npt.NDArray[Any]) -> bool:
    return Z.ndim == 2 and Z.size > 0 and Z.dtype.isnative and Z.dtype.name in _FLOATS


def _mapped(Z: np.memmap[Any, Any], added: bool) -> Rows | None:
    """Return the rows of the file behind a whole mapping; None if they are better read through the mapping."""
    if not _stored_unchanged(Z) or not Z.flags.c_contiguous or Z.filename is None or Z.mode == "c":
        return None
    try:
        file = os.open(Z.filename, os.O_RDONLY)
    except OSError:
        return None
    if not _is_mapped_file(Z, file):
        os.close(file)
        return None
    shape = (int(Z.shape[0]), int(Z.shape[1]))
    return Rows(_File(file, Z.offset, shape, Z.dtype, os.path.abspath(Z.filename)), added)


def _is_mapped_file(Z: np.memmap[Any, Any], file: int) -> bool:
    """Return whether the open file is the mapped one, and not another that has taken its name since."""
    about, address = os.fstat(file), Z.ctypes.data
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}"
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                place, _, _, where, inode, *_ = line.split()
                low, _, high = place.partition("-")
                if int(low, 16) <= address < int(high, 16):
                    return (where, int(inode)) == (device, about.st_ino)
    except OSError:  # not Linux
        pass
    return False


def _spooled(blocks: Iterable[Any], added: bool, folder: str | os.PathLike[str] | None) -> Rows:
    n, m, dtype = 0, 0, np.dtype(np.float64)
    with saving("folder", folder or tempfile.gettempdir(), _ROOM):
        temporary = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by the next block
    with temporary as file:
        for block in track(blocks, "features to disk"):
            rows = _block(block, n)
            if n == 0:
                m, dtype = int(rows.shape[1]), rows.dtype
            if rows.shape[1] != m or not np.can_cast(rows.dtype, dtype):
                got = f"a block of {rows.dtype} and shape {rows.shape} at row {n}"
                need = f"blocks with {m} columns, none wider than the first's {dtype}"
                raise InvalidInput("Z", got, need, "wrong-shape" if rows.shape[1] != m else "wrong-dtype")
            content = np.ascontiguousarray(rows, dtype=dtype).data.cast("B")
            with saving("folder", f"row {n} of Z", _ROOM):
                while content:
                    content = content[file.write(content) :]
            n += int(rows.shape[0])
        if n == 0:
            raise InvalidInput("Z", "no blocks", "at least one block of rows", "wrong-shape")
        return Rows(_File(os.dup(file.fileno()), 0, (n, m), dtype), added)


def _block(block: Any, row: int) -> npt.NDArray[Any]:
    """Return the rows of a block: float16, float32 and float64 unchanged, other dtypes validated and converted."""
    try:
        rows = host(block) if hasattr(block, "dtype") else np.asarray(block)
    except (TypeError, ValueError):  # bfloat16 is converted, ragged lists are refused
        rows = host(as_matrix(block, "Z").array)
    if rows.ndim != 2 or 0 in rows.shape:
        got = f"a block of shape {tuple(rows.shape)} at row {row}"
        raise InvalidInput("Z", got, "blocks with 2 dimensions, not empty", "wrong-shape")
    if type(rows) in (np.ndarray, np.memmap) and _stored_unchanged(rows):
        return rows
    return host(as_matrix(rows, "Z").array)


@dataclasses.dataclass(frozen=True)
class RowScan:
    """The results of one pass over the rows.

    Attributes
    ----------
    record : mapping
        Digest, shape and dtype of the rows as float64 without an added constant: they identify Z in a certificate.
    squares : (n,) float64
        Upper bounds of the squared norms of the rows.
    directions : (m, k) float64
    projections : (n, k) float64
        Computed products of every row with every direction.
    errors : (k,) float64
        Upper bounds of the error of any projection on that direction.
    """

    record: dict[str, Any]
    squares: FloatArray
    directions: FloatArray
    projections: FloatArray
    errors: FloatArray


def directions(rows: Rows, count: int, seed: int, *, moved: bool = False) -> FloatArray:
    """Return random directions v (m, count) with v_m = 0, each feature weighted by 1 over its standard deviation.

    Any direction is admissible. The weights make the result independent of the units of the features. Where rows are
    ``moved`` by delta, their projections move by up to delta ||v||, which has to be less than the gaps between them.
    The first direction is then the leading principal one, of the largest spread for its norm, and the others are drawn
    from the span of a few.
    """
    sample = rows.take(np.linspace(0, rows.n - 1, min(rows.n, _SAMPLE)).astype(np.int64))
    source = np.random.default_rng(seed)
    if moved:
        features = sample[:, :-1] - sample[:, :-1].mean(axis=0)
        leading = np.linalg.svd(features, full_matrices=False)[2][:_LEADING].T
        mixed = leading @ source.standard_normal((leading.shape[1], count))
        mixed[:, 0] = leading[:, 0]
        return np.append(mixed, np.zeros((1, count)), axis=0)
    with np.errstate(all="ignore"):
        spread = sample.std(axis=0)
        weights = np.where((spread > 2.0**-500) & (spread < 2.0**500), 1.0 / spread, 0.0)
    weights[-1] = 0.0
    if not np.any(weights):
        weights[:-1] = 1.0
    V: FloatArray = source.standard_normal((rows.m, count)) * weights[:, None] / np.sqrt(rows.m)
    return V


def scan_rows(rows: Rows, V: FloatArray) -> RowScan:
    r"""Validate all rows and project them on the directions ``V`` (m, k), whose last entries are zero.

    A computed projection errs by at most :math:`\gamma_m \|z_i\| \|v\| + m \omega` (Higham 2002, eq. (3.5), then Cauchy
    and Schwarz), for any order of summation.

    Raises
    ------
    InvalidInput
        NaN, Inf or a last entry that is not 1; the message names the row.
    """
    n, m = rows.n, rows.m
    projections, squares = np.empty((n, V.shape[1])), np.empty(n)
    content = hashlib.sha256(f"<f8 {(n, rows.stored)}".encode())
    # Hashing takes as long as the rest and releases the interpreter lock: it runs in a thread, one block at a time.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hashing: concurrent.futures.Future[None] | None = None
        for start, stored in rows.passes("reading Z"):
            if hashing is not None:
                hashing.result()
            hashing = pool.submit(content.update, stored.data.cast("B"))
            stop = start + stored.shape[0]
            sums = square_sums_up(stored, 1)
            squares[start:stop] = np.nextafter(sums + 1.0, np.inf) if rows.added else sums
            if not bool(np.all(np.isfinite(squares[start:stop]))):
                raise _not_finite(stored, start)
            if not rows.added and not bool(np.all(stored[:, -1] == 1.0)):
                raise _no_constant(stored, start)
            projections[start:stop] = stored @ V[: rows.stored]
    longest = sqrt_up(float(squares.max()))
    sizes = [norm_up(np.ascontiguousarray(v)) for v in V.T]
    errors = np.array([add_up(mul_up(gamma(m), longest, size), mul_up(float(m), OMEGA)) for size in sizes])
    return RowScan(_record(rows, content), squares, V, projections, errors)


def _record(rows: Rows, content: hashlib._Hash) -> dict[str, Any]:
    return {"sha256": content.hexdigest(), "shape": [rows.n, rows.stored], "dtype": "<f8"}


def _not_finite(block: FloatArray, start: int) -> InvalidInput:
    """Return the error that names the first NaN or Inf, or a row whose squared norm overflows."""
    bad = ~np.isfinite(block)
    if bad.any():
        i, j = (int(k[0]) for k in np.nonzero(bad))
        return InvalidInput("Z", f"{float(block[i, j])} at {(start + i, j)}", "finite entries", "not-finite")
    i = int(np.argmax(np.abs(block).max(axis=1)))
    return InvalidInput(
        "Z", f"entries of {float(np.abs(block[i]).max()):.1e} in row {start + i}", "entries below 1e150"
    )


def _no_constant(block: FloatArray, start: int) -> InvalidInput:
    i = int(np.argmax(block[:, -1] != 1.0))
    ones = np.flatnonzero(np.all(block == 1.0, axis=0))
    hint = f" (column {int(ones[0])} holds it: move it to the end)" if ones.size else ""
    got = f"{float(block[i, -1]):.3g} in the last column, row {start + i}"
    return InvalidInput("Z", got, f"the constant 1 as its last column, or add_constant=True{hint}")


def digest_rows(rows: Rows) -> dict[str, Any]:
    """Return the record of the rows, as :func:`scan_rows` does, by a separate pass."""
    content = hashlib.sha256(f"<f8 {(rows.n, rows.stored)}".encode())
    for _, stored in rows.passes("identifying Z"):
        content.update(stored.data.cast("B"))
    return _record(rows, content)
