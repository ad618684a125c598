"""Where the tile columns of a large factor are kept: in memory, or in a folder that survives the process.

A tile column is one .npy file that appears whole or not at all: written under another name, synchronised, renamed. A
manifest says which matrix the folder belongs to and carries the hash of every finished column, so that a run that was
killed goes on where it was, and a damaged file is computed again instead of believed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alignver import atomic
from alignver.arrays import Array, host, like
from alignver.errors import InvalidInput
from alignver.proof.rounding import FloatArray

__all__ = ["FolderStore", "MemoryStore", "MirroredStore", "Store", "column_name", "content_hash", "open_store"]

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
