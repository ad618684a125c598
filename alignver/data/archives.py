"""Data sets in memory, and arrays in zip files: a file's declared sizes are checked before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from alignver.arrays import available_memory, digest
from alignver.errors import InvalidInput, reading


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs and targets, one row for each sample, and their origin.

    Attributes
    ----------
    name : str
        Its name in a report.
    x, y : numpy.ndarray
        Inputs (n, ...) and targets (n, ...), made read-only.
    source, licence : str
        The origin of the data (a citation, or the formula that generates them), and their licence.
    sha256 : str
        Hash of the content: SHA-256 of the :func:`alignver.arrays.digest` of x followed by that of y.

    Examples
    --------
    >>> import numpy as np
    >>> Dataset("two points", np.eye(2), np.array([0, 1]), "by hand", "none")
    Dataset('two points', x (2, 2) float64, y (2,) int64, sha256 bb385f2f...)
    """

    name: str
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    source: str
    licence: str
    sha256: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            got = f"shape {self.y.shape} for x of shape {self.x.shape}"
            raise InvalidInput("y", got, "one row for each row of x", code="wrong-shape")
        for field in ("x", "y"):
            array = np.array(getattr(self, field))  # a copy, so that the caller's array stays writable
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        content = (digest(self.x) + digest(self.y)).encode()
        object.__setattr__(self, "sha256", hashlib.sha256(content).hexdigest())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{key} {a.shape} {a.dtype}" for key, a in (("x", self.x), ("y", self.y)))
        return f"Dataset({self.name!r}, {arrays}, sha256 {self.sha256[:8]}...)"

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """Return the dataset of the given samples, in the given order."""
        rows = np.asarray(indices)
        return Dataset(self.name, self.x[rows], self.y[rows], self.source, self.licence)


MEMORY_SHARE = 1.0
"""Fraction of the free memory that the arrays of one file may take together.

A file of a few kilobytes can declare terabytes. What a computation needs beside its input is planned elsewhere.
"""

_AGAIN = "an intact file: save it again"
_LOCAL_HEADER = 30  # bytes before the name of a member: APPNOTE.TXT 6.3.10, section 4.3.7


def require_room(archive: zipfile.ZipFile, members: Iterable[str], argument: str) -> None:
    """Raise if members of a zip file overlap or end beyond it, or if those to be read do not fit into memory together.

    Parameters
    ----------
    archive : zipfile.ZipFile
    members : iterable of str
        Names of those to be read; missing names are ignored.
    argument : str
        The argument that the exception names.

    Raises
    ------
    InvalidInput
    """
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    for entry, end in zip(entries, ends):
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.header_offset + _LOCAL_HEADER + entry.compress_size > end:
            got = f"a damaged zip file: {entry.filename} overlaps what comes after it"
            raise InvalidInput(argument, got, _AGAIN, "unreadable-file")
        if stored and entry.compress_size != entry.file_size:
            got = f"a damaged zip file: {entry.filename} has two sizes, {entry.compress_size} and {entry.file_size}"
            raise InvalidInput(argument, got, _AGAIN, "unreadable-file")
    names = set(members)
    require_memory(sum(entry.file_size for entry in entries if entry.filename in names), argument)


def require_memory(size: int, argument: str) -> None:
    """Raise :class:`InvalidInput` if arrays of ``size`` bytes in all do not fit into memory."""
    room = MEMORY_SHARE * available_memory()
    if size > room:
        got = f"arrays of {size / 1e9:.3g} GB in all, with {room / 1e9:.3g} GB of memory free"
        raise InvalidInput(argument, got, "arrays that fit into memory together", "too-large")


def read_member(archive: zipfile.ZipFile, name: str, argument: str) -> npt.NDArray[Any]:
    """Check the header of one array of a .npz file and return the array; call :func:`require_room` before."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as stream:
        read_header(stream, entry.file_size, argument)
    with archive.open(entry) as stream:
        array: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array


def read_npz(path: Path, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Return the named arrays of a .npz file in a data set's folder.

    Raises
    ------
    InvalidInput
        An array is missing or truncated, or they do not fit into memory.
    """
    what, need = f"an unreadable {path.name}", f"an npz file with {', '.join(names)}"
    with reading("folder", what, need), zipfile.ZipFile(path) as archive:
        try:
            require_room(archive, [f"{name}.npy" for name in names], "folder")
            return [read_member(archive, name, "folder") for name in names]
        except InvalidInput as error:
            raise unreadable(f"{what} ({error.got})", error.need) from error


def unreadable(got: str, need: str) -> InvalidInput:
    """Return the exception for a file in a data set's folder."""
    return InvalidInput("folder", got, need, "unreadable-file")


def read_header(stream: IO[bytes], size: int, argument: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the .npy data in a stream of ``size`` bytes; raise if they are not complete."""
    with reading(argument, "a damaged .npy header", _AGAIN):
        version = npy.read_magic(stream)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            got = f"a .npy file of format {version[0]}.{version[1]}"
            raise InvalidInput(argument, got, "format 1.0 or 2.0: save it again", "unreadable-file")
        shape, _, dtype = reader(stream)
    if dtype.hasobject:
        got = f"dtype {dtype}, pickled Python objects, which are never opened since they can run code"
        raise InvalidInput(argument, got, "an array of numbers: array.astype(float) before saving", "wrong-dtype")
    length = dtype.itemsize * math.prod(shape)
    here = size - stream.tell()
    if here < length:
        got = f"a truncated file: {here} of {length} bytes of entries"
        raise InvalidInput(argument, got, "the whole file: save or copy it again", "unreadable-file")
    if here > length:
        got = f"{here - length} bytes after the array of shape {shape}"
        raise InvalidInput(argument, got, "a file with one array", "unreadable-file")
    return shape, dtype
