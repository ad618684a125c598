"""Arrays in zip files: what a file declares is held against its size and the free memory before anything is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from alignver.arrays import available_memory
from alignver.errors import InvalidInput, reading

__all__ = ["MEMORY_SHARE", "read_header", "read_member", "read_npz", "require_room"]

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
