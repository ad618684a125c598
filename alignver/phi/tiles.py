"""Where the tile columns of a large factor are kept: in memory, or in a folder that survives the process.

A tile column is one .npy file that appears whole or not at all: written under another name, synchronised, renamed. A
manifest says which matrix the folder belongs to and carries the hash of every finished column, so that a run that was
killed goes on where it was, and a damaged file is computed again instead of believed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alignver.errors import InvalidInput
from alignver.proof.rounding import FloatArray

__all__ = ["FolderStore", "MemoryStore", "Store", "open_store"]

_MANIFEST = "tiles.json"


class Store(Protocol):
    """Keeps tile columns in order."""

    @property
    def finished(self) -> int:
        """How many columns are kept."""

    def append(self, column: FloatArray) -> None:
        """Keep the next column."""

    def __getitem__(self, index: int) -> FloatArray:
        """Return a kept column, not to be written to."""


class MemoryStore:
    """Tile columns in memory."""

    def __init__(self) -> None:
        self._columns: list[FloatArray] = []

    @property
    def finished(self) -> int:
        """How many columns are kept."""
        return len(self._columns)

    def append(self, column: FloatArray) -> None:
        """Keep the next column."""
        self._columns.append(column)

    def __getitem__(self, index: int) -> FloatArray:
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

    def append(self, column: FloatArray) -> None:
        """Keep the next column: its file first, then the manifest that counts it."""
        path = self._path(self.finished)
        try:
            content = hashlib.sha256(column.data.cast("B")).hexdigest()
            with _replacing(path) as stream:
                np.lib.format.write_array(stream, column, allow_pickle=False)
            self._hashes.append(content)
            self._write_manifest()
        except OSError as error:
            with contextlib.suppress(OSError):
                path.with_suffix(".part").unlink(missing_ok=True)
            raise _refused(self.folder, error, self.finished) from error

    def __getitem__(self, index: int) -> FloatArray:
        column: FloatArray = np.load(self._path(index), mmap_mode="r", allow_pickle=False)
        return column

    def _path(self, index: int) -> Path:
        return self.folder / f"column_{index:05d}.npy"

    def _write_manifest(self) -> None:
        document = json.dumps({"key": self._key, "columns": self._hashes}, indent=1)
        with _replacing(self.folder / _MANIFEST) as stream:
            stream.write(document.encode("ascii"))

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
                intact = hashlib.sha256(np.ascontiguousarray(column).data.cast("B")).hexdigest() == expected
            except (OSError, ValueError):
                intact = False
            if not intact:
                break  # this column and all after it are made again
            self._hashes.append(expected)


@contextlib.contextmanager
def _replacing(path: Path) -> Any:
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


def _refused(folder: Path, error: OSError, kept: int = 0) -> InvalidInput:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    got = f"{folder} on a disk that is full" if full else f"{folder}, which cannot be written ({error.strerror})"
    after = f"; the {kept} finished tile columns are kept" if kept else ""
    return InvalidInput("folder", got, f"a folder with room for the tiles{after}")


def open_store(folder: str | os.PathLike[str] | None, key: dict[str, Any]) -> Store:
    """Return a store in memory, or in ``folder`` with the finished columns of the same matrix taken up."""
    return MemoryStore() if folder is None else FolderStore(folder, key)
