"""Arrays from files, and their way to a backend: read by content, never unpickled, checked before they use memory.

Every refusal is an :class:`~alignver.errors.InvalidInput` that names the argument, the file and the remedy.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import re
import shlex
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignver.cli.exits import say
from alignver.cli.options import Backend
from alignver.errors import InvalidInput, MissingDependency, first_line, reading, renamed

if TYPE_CHECKING:
    import numpy as np
NAMES = {
    "X": ("X", "x", "X_train", "x_train", "images", "inputs", "features", "data"),
    "Y": ("Y", "y", "Y_train", "y_train", "labels", "targets", "target", "classes"),
}
"""The names under which a file may hold inputs and targets, the first one that it has counts."""

MAPPED_FROM = 1 << 26
"""Size in bytes from which a .npy file is mapped into memory instead of read."""

_NEED = "a .npy, .npz, .csv or .txt file of numbers"
_DAMAGED = "a damaged .npz file"
_TEXT = {".csv", ".tsv", ".txt", ".dat"}
_MOST_INTEGER = 2.0**53
_EXAMINED = 100  # rows in which decimals that float64 does not hold are looked for
_INTEGER = re.compile(r"[+-]?\d+")
_REMEDIES = {
    "a MATLAB file": "numpy.save(file, scipy.io.loadmat(name)[variable])",
    "a Matrix Market file": "numpy.save(file, scipy.io.mmread(name).toarray())",
    "a Parquet file": "numpy.save(file, pandas.read_parquet(name).to_numpy())",
    "an HDF5 file": "numpy.save(file, h5py.File(name)[variable][:])",
    "a Feather file": "numpy.save(file, pandas.read_feather(name).to_numpy())",
    "a file of torch.save": "numpy.save(file, torch.load(name, weights_only=True).numpy(force=True))",
    "a sparse matrix of SciPy": "numpy.save(file, scipy.sparse.load_npz(name).toarray())",
    "a gzip file": "gunzip",
    "an Excel file": "numpy.save(file, pandas.read_excel(name).to_numpy())",
}
_ZIPPED = (
    ({"data.pkl"}, "a file of torch.save"),
    ({"[Content_Types].xml"}, "an Excel file"),
    ({"format.npy", "shape.npy", "data.npy"}, "a sparse matrix of SciPy"),
)
_SUFFIXES = {".mat": "a MATLAB file", ".pt": "a file of torch.save", ".pth": "a file of torch.save"}
_FOREIGN = (
    (b"\x80", "a Python pickle, which is never opened since it can run code"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%%MatrixMarket", "a Matrix Market file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "a Feather file"),
)


def file_argument(argument: str, path: str | Path) -> str:
    """Return the name in messages of an argument that is read from a file."""
    return f"{argument} ({path})"


@contextlib.contextmanager
def rename_argument(files: Mapping[str, str]) -> Iterator[None]:
    """Add the file to the name of the argument in every InvalidInput of the block."""
    with renamed({argument: file_argument(argument, file) for argument, file in files.items()}):
        yield


def of_model(model: str, data: str) -> contextlib.AbstractContextManager[None]:
    """Add the code of a model and the file of its samples to the names of arguments, as :func:`rename_argument`."""
    return rename_argument({"X": f"{data}:X", "Y": f"{data}:Y", "model": model})


@contextlib.contextmanager
def rename_options(options: Mapping[str, str]) -> Iterator[None]:
    """Replace the argument by its option in every InvalidInput of the block, also in what it got and needs."""
    try:
        yield
    except InvalidInput as error:
        argument = options.get(error.argument, error.argument)
        got, need = (with_options(words, options) for words in (error.got, error.need))
        for mark in (" ", "="):
            got = got.removeprefix(argument + mark)
        raise InvalidInput(argument, got, need, error.code) from error


_ASSIGNED = re.compile(r"(?<![\w./-])(?<!\w\()(\w+)=('[^']*'|\('[^']*',\)|[\w.+-]+|(?=[\s;,:)]|$))")


_SELECTED = re.compile(r"model, X, Y = alignver\.adapted\(model, X, Y, (select=(?:'[^']*'|\d+))\)")


def with_options(words: str, options: Mapping[str, str]) -> str:
    """Return a message of the library with every ``argument=value`` that has an option as that option.

    Examples
    --------
    >>> options = {"method": "--method", "certify": "--certify", "resume": "--resume", "dtype": "--dtype"}
    >>> with_options("method='auto' and certify=False; dtype=None, or dtype=", options)
    '--method auto and --no-certify; no --dtype, or --dtype'
    """

    def option(match: re.Match[str]) -> str:
        name, value = options.get(match[1], ""), match[2].strip("',()")
        if not name.startswith("--"):
            return match[0]
        if match[2] in ("True", "False"):
            return name if value == "True" else f"--no-{name.removeprefix('--')}"
        return f"no {name}" if match[2] == "None" else f"{name} {value}".rstrip()

    words = words.replace("model.eval()", options.get("eval_mode", "model.eval()"))
    if "select" in options:
        words = _SELECTED.sub(r"\1", words)
    return _ASSIGNED.sub(option, words)


def read_matrix(spec: str, argument: str) -> np.ndarray[Any, Any]:
    """Return the array in a file; a text file gives a matrix. The check validates the entries."""
    return _read(spec, argument, 2)


def read_vector(spec: str, argument: str) -> np.ndarray[Any, Any]:
    """Return the array in a file; a text file of one row or one column gives a vector."""
    return _read(spec, argument, 1)


def read_npz(path: str, argument: str, keys: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the named arrays of a .npz file; where X and Y have other names, say which arrays they are."""
    with _archive(path, argument, f"a .npz file with {' and '.join(keys)}: {_savez(keys)}") as archive:
        members = _members(_names(archive), keys)
        _require_room(archive, members.values(), file_argument(argument, path))
    if any(key != member for key, member in members.items()):
        say(f"{path}: " + ", ".join(f"{key} is {member!r}" for key, member in members.items()))
    return {key: _member(Path(path), path, argument, member, _savez(keys)) for key, member in members.items()}


def read_samples(path: str, *, targets: bool = True) -> tuple[Any, Any, dict[str, np.ndarray[Any, Any]]]:
    """Return inputs, targets and all arrays of the .npz file of ``--data``.

    The inputs are X; or, in a file without X, all arrays but the targets, as a dict for a model of several inputs.
    """
    keys = ("X", "Y") if targets else ("X",)
    with _archive(path, "--data", f"a .npz file with {' and '.join(keys)}: {_savez(keys)}") as archive:
        names = _names(archive)
    target = next((name for name in NAMES["Y"] if name in names), None)
    several = [name for name in names if name != target]
    if len(several) < 2 or any(name in names for name in NAMES["X"]) or (targets and target is None):
        arrays = read_npz(path, "--data", keys)
        return arrays["X"], arrays.get("Y"), arrays
    members = (*several, target) if targets and target else tuple(several)
    arrays = read_npz(path, "--data", members)
    say(f"{path}: the inputs are {', '.join(several)}")
    return {name: arrays[name] for name in several}, arrays.get(target or ""), arrays


def _members(names: Sequence[str], keys: tuple[str, ...]) -> dict[str, str]:
    """Return the array that stands for each key: by one of its usual names, or the two arrays of a file in order."""
    usual = {key: next((name for name in NAMES.get(key, (key,)) if name in names), None) for key in keys}
    if None in usual.values() and set(keys) <= set(NAMES) and len(names) == len(NAMES):
        usual = {key: name for key, name in zip(NAMES, names) if key in keys}
    return {key: name or key for key, name in usual.items()}  # a key that is missing is refused when it is read


def names_in(path: str, argument: str) -> list[str]:
    """Return the names of the arrays in a .npz file."""
    with _archive(path, argument, f"a .npz file: {_savez(('name',))}") as archive:
        names = _names(archive)
        _require_room(archive, names, file_argument(argument, path))  # the callers read all of them
        return names


@contextlib.contextmanager
def _archive(path: str, argument: str, need: str) -> Iterator[zipfile.ZipFile]:
    file, name = regular(path, argument), file_argument(argument, path)
    if not zipfile.is_zipfile(file):
        raise InvalidInput(name, "a file that is not a .npz file", need, code="unreadable-file")
    with reading(name, _DAMAGED, "an intact file"), zipfile.ZipFile(file) as archive:
        _require_arrays(archive, name)
        yield archive


def _require_arrays(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse zip files of other programs."""
    entries = {entry.rpartition("/")[2] for entry in archive.namelist()}
    got = next((kind for marks, kind in _ZIPPED if marks <= entries), None)
    if got is not None:
        raise InvalidInput(name, got, f"{_NEED}: {_REMEDIES[got]} makes one", code="unreadable-file")


def is_archive(path: str) -> bool:
    """Whether a path names a .npz file, and not one array in it."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def regular(path: str, argument: str) -> Path:
    """Return the path of a file that exists, is a regular file, is readable and is not empty."""
    name = file_argument(argument, path)
    file = Path(path)
    try:
        about = file.stat()
        if stat.S_ISDIR(about.st_mode):
            got, need = "a folder", "a file"
        elif not stat.S_ISREG(about.st_mode):
            got, need = "a pipe, socket or device", "a regular file, which can be read twice"
        elif about.st_size == 0:
            got, need = "an empty file", "a file with an array in it"
        else:
            with file.open("rb"):
                return file
    except FileNotFoundError:
        got, need = "no such file", _suggestion(file)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        got, need = f"a file that cannot be read: {reason}", "a readable file"
    raise InvalidInput(name, got, need, code="unreadable-file")


def _suggestion(file: Path) -> str:
    """Return the need for an existing file, with the name of a similar one."""
    try:
        entries = [Path(name) for name in sorted(os.listdir(file.parent))]
        alike = [entry.name for entry in entries if entry.stem == file.stem or entry.suffix == file.suffix]
        near = difflib.get_close_matches(file.name, alike, n=1, cutoff=0.7)
    except OSError:
        return f"an existing file; there is no folder {file.parent}"
    return "an existing file" + (f"; did you mean {shlex.quote(str(file.parent / near[0]))}?" if near else "")


def _read(spec: str, argument: str, ndim: int) -> np.ndarray[Any, Any]:
    path, key = spec, None
    if not os.path.exists(spec) and ".npz:" in spec:
        stem, _, key = spec.partition(".npz:")  # a name may contain colons
        path = f"{stem}.npz"
    file = regular(path, argument)
    name = file_argument(argument, path)
    with file.open("rb") as stream:
        start = stream.read(16)
        if start.startswith(b"\x93NUMPY"):
            return _read_npy(file, stream, name)
    if start.startswith(b"PK"):
        return _member(file, path, argument, key, "numpy.savez(file, name=array)")
    suffix = file.suffix.lower()
    got = next((kind for magic, kind in _FOREIGN if start.startswith(magic)), None)
    if got is None and suffix in {".npy", ".npz"}:
        got = f"a {file.suffix} file that does not begin like one"
        raise InvalidInput(name, got, f"{_NEED}; it may be damaged", code="unreadable-file")
    if got is None and suffix not in _TEXT:
        got = f"a file of type {file.suffix or 'unknown'}"
    if got is not None:
        remedy = _REMEDIES.get(got) or _REMEDIES.get(_SUFFIXES.get(suffix, ""), "numpy.save(file, array)")
        raise InvalidInput(name, got, f"{_NEED}: {remedy} makes one", code="unreadable-file")
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

    name = file_argument(argument, path if key is None else f"{path}:{key}")
    with reading(name, _DAMAGED, f"an intact file: {remedy}"), zipfile.ZipFile(file) as archive:
        _require_arrays(archive, name)
        names = _names(archive)
        if not names:
            raise InvalidInput(name, "a zip file without arrays", f"{_NEED}: {remedy}", code="unreadable-file")
        if key is None and len(names) > 1:
            first = shlex.quote(f"{path}:{names[0]}")  # the user can copy it to the command line
            raise InvalidInput(name, f"the arrays {', '.join(names)}", f"one of them: {first}", "unreadable-file")
        key = names[0] if key is None else key
        if key not in names:
            got = f"the arrays {', '.join(names)}"
            raise InvalidInput(name, got, f"the array {key}: {remedy}", "unreadable-file")
        _require_room(archive, [key], name)
        return read_member(archive, key, name)


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
        got = "bytes that are not text"
        raise InvalidInput(name, got, f"{_NEED}; text in UTF-8", code="unreadable-file") from error
    rows = [row for row in (line.partition("#")[0].strip() for line in text.splitlines()) if row]
    if not rows:
        raise InvalidInput(name, "no numbers", "rows of numbers", code="unreadable-file")
    delimiter = next((mark for mark in (",", ";", "\t") if mark in rows[0]), None)
    try:
        array = np.loadtxt(rows, delimiter=delimiter, dtype=np.float64, ndmin=2)
    except ValueError as error:
        got = f"text that is not a table ({first_line(error)})"
        raise InvalidInput(name, got, _table_remedy(rows, delimiter), code="unreadable-file") from error
    if np.abs(array).max() >= _MOST_INTEGER:
        cells = (cell.strip() for row in rows for cell in row.split(delimiter))
        for cell in cells:
            if _INTEGER.fullmatch(cell) and int(float(cell)) != int(cell):
                need = "integers of at most 2**53 in magnitude, which float64 holds exactly"
                raise InvalidInput(name, f"the integer {cell}", need)
    if _is_header(rows, delimiter):
        need = "numbers only: begin the line of column names with #, or take it out; as numbers, write 0.0 for 0"
        raise InvalidInput(name, f"the first line {rows[0]!r}, which numbers the columns", need)
    cells = (cell.strip() for row in rows[:_EXAMINED] for cell in row.split(delimiter))
    rounded = next((cell for cell in cells if not _is_kept(cell)), None)
    if rounded is not None:
        say(f"{name}: numbers are rounded to float64, {rounded} to {float(rounded)!r}: the answer is about those")
    if ndim == 1 and 1 in array.shape:  # a text file has only matrices: one row or one column is a vector
        return array.reshape(-1)
    return array


def _is_header(rows: list[str], delimiter: str | None) -> bool:
    """Whether the first row is 0, 1, 2, ..., as pandas numbers columns, above numbers that are written as decimals."""
    first = [cell.strip() for cell in rows[0].split(delimiter)]
    others = [cell.strip() for cell in rows[1].split(delimiter)] if len(rows) > 1 else []
    numbered = len(first) > 1 and first == list(map(str, range(len(first))))
    return numbered and not any(map(_INTEGER.fullmatch, others)) and bool(others)


def _is_kept(cell: str) -> bool:
    """Whether a number in decimal digits is that of its nearest float of 64 bits, rounded to as many digits."""
    try:
        number = Decimal(cell)
    except InvalidOperation:
        return True
    digits = Context(prec=max(1, len(number.as_tuple().digits)))
    return not number.is_finite() or digits.create_decimal(Decimal(float(cell))) == number


def _table_remedy(rows: list[str], delimiter: str | None) -> str:
    def numbers(row: str) -> list[bool]:
        return [_is_number(cell) for cell in row.split(delimiter)]

    if len(rows) > 1 and rows[0].split(delimiter)[0].strip() == "" and numbers(rows[1])[0]:  # an index of pandas
        return "numbers only, without names and numbers of rows: DataFrame.to_csv(file, header=False, index=False)"
    if len(rows) > 1 and not any(numbers(rows[0])) and any(numbers(rows[1])):
        return "numbers only: begin the line of column names with #, or remove it"
    return "rows of equally many real numbers, with decimal points, separated by commas, semicolons, tabs or spaces"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _savez(keys: tuple[str, ...]) -> str:
    return f"numpy.savez(file, {', '.join(f'{key}={key}' for key in keys)})"


_EXTRA = {"cupy": "cupy-cuda13x"}  # or cupy-cuda12x, depending on the CUDA version


def library(name: str, purpose: str) -> Any:
    """Import a library by name, or raise MissingDependency, or InvalidInput if it is broken, with the remedy."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError where a shared library is missing
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MissingDependency(name, purpose, _EXTRA.get(name, name)) from error
        got = f"an installation that cannot be imported ({type(error).__name__}: {first_line(error)})"
        need = f"one that works: pip install --force-reinstall {name.partition('.')[0]}"
        raise InvalidInput(name, got, need) from error


def torch_device(name: str) -> Any:
    """Return the torch device of that name; raise InvalidInput if this machine does not have it."""
    torch = library("torch", f"--device {name}")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # depending on the device
        raise _no_device(name) from error
    return device


def to_backend(array: Any, backend: Backend, device: str) -> Any:
    """Return a NumPy array as an array of ``backend`` on ``device``, entries and dtype unchanged.

    Raises
    ------
    InvalidInput
        If there is no such device, or the library cannot hold the dtype.
    MissingDependency
        If the library is not installed.
    """
    if backend == Backend.NUMPY:
        if device != "cpu":
            need = "cpu for --backend numpy; --backend torch or cupy for a GPU"
            raise InvalidInput("--device", repr(device), need, "wrong-device")
        return array
    if backend == Backend.TORCH:
        torch = library("torch", "--backend torch")
        destination = torch_device(device)
        try:
            # A mapped file is read-only, and torch has no read-only tensors: copy such an array.
            native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
            return torch.from_numpy(native).to(destination)
        except TypeError as error:
            got = f"torch for dtype {array.dtype}"
            raise InvalidInput("--backend", got, "a dtype that torch has", code="wrong-dtype") from error
    cupy = library("cupy", "--backend cupy")
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if device not in {"cpu", "cuda"} and not (device.startswith("cuda:") and number.isdecimal()):
        raise InvalidInput("--device", repr(device), "cuda or cuda:N for --backend cupy", "wrong-device")
    try:
        with cupy.cuda.Device(0 if device == "cpu" else int(number)):
            return cupy.asarray(array)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise _no_device(device) from error


def _no_device(name: str) -> InvalidInput:
    return InvalidInput("--device", repr(name), "a device of this machine: cpu, or cuda with a GPU", "wrong-device")
