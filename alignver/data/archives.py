"""What a loader returns: two read-only arrays with their content hash, source and licence.

Arrays in zip files: what a file declares is held against its size and the free memory before anything is read.
"""

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

__all__ = ["MEMORY_SHARE", "Dataset", "read_header", "read_member", "read_npz", "require_room"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs and targets, one row for each sample, and where they came from.

    Attributes
    ----------
    name : str
        What to call it in a report.
    x, y : numpy.ndarray
        Inputs (n, ...) and targets (n, ...), made read-only.
    source, licence : str
        Where the data come from (a citation, or the formula that makes them), and their licence.
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
            raise InvalidInput(
                "y", f"shape {self.y.shape} beside x of shape {self.x.shape}", "one row for each row of x"
            )
        for field in ("x", "y"):
            own = np.array(getattr(self, field))  # a copy: making it read-only must not lock the caller's array
            own.setflags(write=False)
            object.__setattr__(self, field, own)
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
        chosen = np.asarray(indices)
        return Dataset(self.name, self.x[chosen], self.y[chosen], self.source, self.licence)


MEMORY_SHARE = 1.0
"""Part of the free memory that the arrays read from one file may take together.

A few kilobytes can declare terabytes, which only unpacking would show. What is larger than the memory cannot be held by
anyone; what a computation needs beside its input, it plans itself.
"""

_LOCAL_HEADER = 30  # bytes before the name of a member: APPNOTE.TXT 6.3.10, section 4.3.7


def require_room(archive: zipfile.ZipFile, members: Iterable[str], argument: str) -> None:
    """Refuse a zip file whose members overlap or end beyond it, and members that don't fit into memory together.

    Parameters
    ----------
    archive : zipfile.ZipFile
    members : iterable of str
        Those that are to be read; names that are not there count nothing.
    argument : str
        What the refusal names.

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
            raise InvalidInput(argument, got, "an intact file: save it again")
        if stored and entry.compress_size != entry.file_size:
            got = f"a damaged zip file: {entry.filename} has two sizes, {entry.compress_size} and {entry.file_size}"
            raise InvalidInput(argument, got, "an intact file: save it again")
    wanted = set(members)
    declared = sum(entry.file_size for entry in entries if entry.filename in wanted)
    room = MEMORY_SHARE * available_memory()
    if declared > room:
        got = f"arrays of {declared / 1e9:.3g} GB in all, with {room / 1e9:.3g} GB of memory free"
        raise InvalidInput(argument, got, "arrays that fit into memory together")


def read_member(archive: zipfile.ZipFile, name: str, argument: str) -> npt.NDArray[Any]:
    """Return one array of a .npz file, after its header; :func:`require_room` comes first."""
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
        It has not all of them, it declares what it does not hold, or more than fits into memory.
    """
    what, need = f"an unreadable {path.name}", f"an npz file with {', '.join(names)}"
    with reading("folder", what, need), zipfile.ZipFile(path) as archive:
        try:
            require_room(archive, [f"{name}.npy" for name in names], "folder")
            return [read_member(archive, name, "folder") for name in names]
        except InvalidInput as error:
            raise InvalidInput("folder", f"{what} ({error.got})", error.need) from error


def read_header(stream: IO[bytes], size: int, argument: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the .npy data in ``stream``, of ``size`` bytes in all, if all of it is there."""
    with reading(argument, "a damaged .npy header", "an intact file: save it again"):
        version = npy.read_magic(stream)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            raise InvalidInput(
                argument, f"a .npy file of format {version[0]}.{version[1]}", "format 1.0 or 2.0: save it again"
            )
        shape, _, dtype = reader(stream)
    if dtype.hasobject:
        raise InvalidInput(
            argument,
            f"dtype {dtype}, pickled Python objects, which are never opened since they can run code",
            "an array of numbers: array.astype(float) before saving",
        )
    length = dtype.itemsize * math.prod(shape)
    here = size - stream.tell()
    if here < length:
        raise InvalidInput(
            argument, f"a truncated file: {here} of {length} bytes of entries", "the whole file: save or copy it again"
        )
    if here > length:
        raise InvalidInput(argument, f"{here - length} bytes after the array of shape {shape}", "a file with one array")
    return shape, dtype
