"""Arrays from files: told apart by content, never unpickled, checked before anything is read into memory.

Every refusal is an :class:`~alignver.errors.InvalidInput` that names the argument, the file and what helps.

Move an array that was read from a file to the library and the device that the user chose.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import shlex
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignver.cli.options import Backend
from alignver.errors import InvalidInput, MissingDependency, first_line, reading

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MAPPED_FROM",
    "is_archive",
    "library",
    "named",
    "names_in",
    "place",
    "read_matrix",
    "read_npz",
    "read_vector",
    "regular",
    "rename_argument",
    "renamed",
    "to_backend",
]
MAPPED_FROM = 1 << 26
"""Size in bytes from which a .npy file is mapped into memory instead of read."""

_OPTIONS = {"rule", "method", "tolerance", "residual_tolerance", "computed_in", "rank", "loss", "dtype", "device"}

_NEED = "a .npy, .npz, .csv or .txt file of numbers"
_DAMAGED = "a damaged .npz file"
_TEXT = {".csv", ".tsv", ".txt", ".dat"}
_FOREIGN = (
    (b"\x80", "a Python pickle, which is never opened since it can run code"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%%MatrixMarket", "a Matrix Market file"),
    (b"PAR1", "a Parquet file"),
)


def named(argument: str, path: str | Path) -> str:
    """Return how messages name an argument that comes from a file."""
    return f"{argument} ({path})"


@contextlib.contextmanager
def rename_argument(files: Mapping[str, str]) -> Iterator[None]:
    """Name the files, and the options, in what the library refuses: it knows its own arguments only."""
    try:
        yield
    except InvalidInput as error:
        argument = error.argument
        if argument in files:
            raise InvalidInput(named(argument, files[argument]), error.got, error.need) from error
        if argument in _OPTIONS:
            raise InvalidInput(f"--{argument.replace('_', '-')}", error.got, error.need) from error
        if argument == "inputs":
            raise InvalidInput("--input", error.got, error.need) from error
        raise


@contextlib.contextmanager
def renamed(options: Mapping[str, str]) -> Iterator[None]:
    """Name the option where the library names its argument."""
    try:
        yield
    except InvalidInput as error:
        if error.argument in options:
            raise InvalidInput(options[error.argument], error.got, error.need) from error
        raise


def read_matrix(spec: str, argument: str) -> np.ndarray[Any, Any]:
    """Return the array in a file; a text file gives a matrix. What is in it, the check itself validates."""
    return _read(spec, argument, 2)


def read_vector(spec: str, argument: str) -> np.ndarray[Any, Any]:
    """Return the array in a file; a text file of one row or one column gives a vector."""
    return _read(spec, argument, 1)


def read_npz(path: str, argument: str, keys: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the named arrays of a .npz file."""
    file = regular(path, argument)
    if not zipfile.is_zipfile(file):
        raise InvalidInput(
            named(argument, path),
            "a file that is not a .npz file",
            f"a .npz file with {' and '.join(keys)}: {_savez(keys)}",
        )
    with reading(named(argument, path), _DAMAGED, "an intact file"), zipfile.ZipFile(file) as archive:
        _require_room(archive, keys, named(argument, path))
    return {key: _member(file, path, argument, key, _savez(keys)) for key in keys}


def names_in(path: str, argument: str) -> list[str]:
    """Return the names of the arrays in a .npz file."""
    file = regular(path, argument)
    if not zipfile.is_zipfile(file):
        raise InvalidInput(named(argument, path), "a file that is not a .npz file", f"a .npz file: {_savez(('name',))}")
    with reading(named(argument, path), _DAMAGED, "an intact file"), zipfile.ZipFile(file) as archive:
        names = _names(archive)
        _require_room(archive, names, named(argument, path))  # whoever asks goes on to read them all
        return names


def is_archive(path: str) -> bool:
    """Whether a path is that of a .npz file, and not of one array in it."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def regular(path: str, argument: str) -> Path:
    """Return the path of a file that is there, is a file, is readable and is not empty."""
    name = named(argument, path)
    file = Path(path)
    try:
        about = file.stat()
        if stat.S_ISDIR(about.st_mode):
            raise InvalidInput(name, "a folder", "a file")
        if not stat.S_ISREG(about.st_mode):
            raise InvalidInput(name, "a pipe, socket or device", "a regular file, which can be read twice")
        if about.st_size == 0:
            raise InvalidInput(name, "an empty file", "a file with an array in it")
        with file.open("rb"):
            pass
    except FileNotFoundError:
        raise InvalidInput(name, "no such file", _instead(file)) from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidInput(name, f"a file that cannot be read: {reason}", "a readable file") from error
    return file


def _instead(file: Path) -> str:
    """Say which file may have been meant."""
    try:
        there = [Path(name) for name in sorted(os.listdir(file.parent))]
        alike = [entry.name for entry in there if entry.stem == file.stem or entry.suffix == file.suffix]
        near = difflib.get_close_matches(file.name, alike, n=1, cutoff=0.7)
    except OSError:
        return f"an existing file; there is no folder {file.parent}"
    return "an existing file" + (f"; did you mean {shlex.quote(str(file.parent / near[0]))}?" if near else "")


def _read(spec: str, argument: str, ndim: int) -> np.ndarray[Any, Any]:
    path, key = spec, None
    if not os.path.exists(spec) and ".npz:" in spec:
        path, _, key = spec.rpartition(":")
    file = regular(path, argument)
    name = named(argument, path)
    with file.open("rb") as stream:
        start = stream.read(16)
        if start.startswith(b"\x93NUMPY"):
            return _read_npy(file, stream, name)
    if start.startswith(b"PK"):
        return _member(file, path, argument, key, "numpy.savez(file, name=array)")
    for magic, kind in _FOREIGN:
        if start.startswith(magic):
            raise InvalidInput(name, kind, f"{_NEED}: numpy.save(file, array) makes one")
    if file.suffix.lower() in {".npy", ".npz"}:
        raise InvalidInput(name, f"a {file.suffix} file that does not begin like one", f"{_NEED}; it may be damaged")
    if file.suffix.lower() not in _TEXT:
        raise InvalidInput(
            name, f"a file of type {file.suffix or 'unknown'}", f"{_NEED}: numpy.save(file, array) makes one"
        )
    return _read_text(file, name, ndim)


def _read_npy(file: Path, stream: IO[bytes], name: str) -> np.ndarray[Any, Any]:
    import numpy as np

    from alignver.data.archives import read_header

    size = file.stat().st_size
    stream.seek(0)
    shape, _ = read_header(stream, size, name)
    mapped = size >= MAPPED_FROM and 0 not in shape
    array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def _member(file: Path, path: str, argument: str, key: str | None, remedy: str) -> np.ndarray[Any, Any]:
    """Return one array of a .npz file: ``key``, or the only one there is."""
    from alignver.data.archives import read_member

    name = named(argument, path if key is None else f"{path}:{key}")
    with reading(name, _DAMAGED, f"an intact file: {remedy}"), zipfile.ZipFile(file) as archive:
        names = _names(archive)
        if not names:
            raise InvalidInput(name, "a zip file without arrays", f"{_NEED}: {remedy}")
        if key is None and len(names) > 1:
            first = shlex.quote(f"{path}:{names[0]}")  # it is there to be copied
            raise InvalidInput(name, f"the arrays {', '.join(names)}", f"one of them: {first}")
        chosen = names[0] if key is None else key
        if chosen not in names:
            raise InvalidInput(name, f"the arrays {', '.join(names)}", f"the array {chosen}: {remedy}")
        _require_room(archive, [chosen], name)
        return read_member(archive, chosen, name)


def _require_room(archive: zipfile.ZipFile, names: Iterable[str], name: str) -> None:
    from alignver.data.archives import require_room

    require_room(archive, [f"{key}.npy" for key in names], name)


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]


def _read_text(file: Path, name: str, ndim: int) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(name, "bytes that are no text", f"{_NEED}; text in UTF-8") from error
    rows = [row for row in (line.partition("#")[0].strip() for line in text.splitlines()) if row]
    if not rows:
        raise InvalidInput(name, "no numbers", "rows of numbers")
    delimiter = next((mark for mark in (",", ";", "\t") if mark in rows[0]), None)
    try:
        array = np.loadtxt(rows, delimiter=delimiter, dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise InvalidInput(
            name, f"text that is no table ({first_line(error)})", _table_remedy(rows, delimiter)
        ) from error
    if ndim == 1 and 1 in array.shape:  # text has no 1-d arrays: here a lone row or column is one
        return array.reshape(-1)
    return array


def _table_remedy(rows: list[str], delimiter: str | None) -> str:
    def numbers(row: str) -> bool:
        try:
            return bool([float(cell) for cell in row.split(delimiter)])
        except ValueError:
            return False

    if len(rows) > 1 and not numbers(rows[0]) and numbers(rows[1]):
        return "numbers only: begin the line of column names with #, or take it out"
    return "rows of equally many real numbers, separated by commas, semicolons, tabs or blanks"


def _savez(keys: tuple[str, ...]) -> str:
    return f"numpy.savez(file, {', '.join(f'{key}={key}' for key in keys)})"


_PURPOSE = {"torch": "--backend torch", "cupy": "--backend cupy"}
_EXTRA = {"cupy": "cupy-cuda13x"}  # or cupy-cuda12x, for its CUDA


def library(name: str, purpose: str) -> Any:
    """Import torch or CuPy by name, or raise :class:`~alignver.errors.MissingDependency` with the remedy."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name, purpose, _EXTRA.get(name, name)) from error


def place(device: str) -> Any:
    """Return torch's device of that name, if it is one and this machine has it."""
    torch = library("torch", f"--device {device}")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them, by device
        raise InvalidInput("--device", repr(device), f"a device of this machine ({first_line(error)})") from error
    return chosen


def to_backend(array: Any, backend: Backend, device: str) -> Any:
    """Return a NumPy array as an array of ``backend`` on ``device``, entries and dtype unchanged.

    Raises
    ------
    InvalidInput
        If there is no such device, or the library cannot hold the dtype.
    MissingDependency
        If the library is not installed.
    """
    if backend is Backend.NUMPY:
        if device != "cpu":
            raise InvalidInput("--device", repr(device), "cpu for --backend numpy; --backend torch or cupy for a GPU")
        return array
    if backend is Backend.TORCH:
        torch = library("torch", _PURPOSE["torch"])
        chosen = place(device)
        try:
            # A mapped file is read-only, which torch cannot say: copy such an array rather than share it.
            native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
            return torch.from_numpy(native).to(chosen)
        except TypeError as error:
            raise InvalidInput("--backend", f"torch for dtype {array.dtype}", "a dtype that torch has") from error
    cupy = library("cupy", _PURPOSE["cupy"])
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if device not in {"cpu", "cuda"} and not (device.startswith("cuda:") and number.isdecimal()):
        raise InvalidInput("--device", repr(device), "cuda or cuda:N for --backend cupy")
    try:
        with cupy.cuda.Device(0 if device == "cpu" else int(number)):
            return cupy.asarray(array)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InvalidInput("--device", repr(device), f"a device of this machine ({first_line(error)})") from error
