"""Certificates on disk: written whole or not at all, read as if an enemy had written them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel.certificate import CLAIMS, DTYPES, VERSIONS, Certificate, canonical, check_array, decoded, record
from alignver.kernel.failure import demand
from alignver.results import Frozen, plain

__all__ = ["MOST_BYTES", "Tampered", "load_certificate", "write"]

MOST_BYTES = (1 << 31) - (1 << 20)
"""The arrays of a certificate on disk have fewer than 2 GiB together: what a zip file holds without extensions."""

_JSON, _DATA = "certificate.json", "data.npz"
_MOST_JSON = 1 << 20
_MOST_ARRAYS = 64
_OVERHEAD = 1024  # bytes of a member besides its entries: headers here and in the directory, and the array's
_CHUNK = 1 << 22
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member of a zip file; its last two are the lengths of name and extra
_FIELDS = {"claim", "constants", "data", "data_file", "format", "inputs", "method", "seal", "version", "versions"}
_KINDS = {"method": str, "seal": str, "inputs": dict, "constants": dict, "versions": dict, "data": dict}
_NEED = "the files that Certificate.save wrote"


class Tampered(InvalidInput):
    """A certificate that is well formed but is not, byte for byte, what was sealed."""


def write(certificate: Certificate, path: Path) -> Path:
    """Write ``certificate`` as the directory ``path``; see :meth:`Certificate.save`."""
    there = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    replaces = path.is_dir() and there <= {_JSON, _DATA} and (_JSON in there or not there)
    free = not path.is_symlink() and (replaces or not path.exists())
    demand(free, "path", f"{path}, which exists", "a new name, or a certificate to replace")
    _demand(certificate.nbytes <= MOST_BYTES, f"{certificate.nbytes} bytes of data", f"at most {MOST_BYTES} for a file")
    document = {**certificate.header(), "seal": certificate.seal, "data_file": None}
    files = {}
    if certificate.data:
        files[_DATA] = _npz(certificate.data)
        document["data_file"] = {"sha256": hashlib.sha256(files[_DATA]).hexdigest(), "bytes": len(files[_DATA])}
    files[_JSON] = canonical(document)
    parent = path.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    # Beside each other: a new folder, renamed when it is whole, and a place for the one that was there.
    new, old = (Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent)) for _ in range(2))
    try:
        for name, content in files.items():
            with (new / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(new, 0o755)
        if replaces:
            os.replace(path, old)  # an empty directory may be replaced by a directory
        try:
            os.replace(new, path)
        except OSError:
            if replaces:
                os.replace(old, path)
            raise
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
    return path


def _npz(data: Mapping[str, Any]) -> bytes:
    """Return an npz with stored (never compressed) members, always the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(data.items()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return buffer.getvalue()


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate from the directory that :meth:`Certificate.save` wrote, trusting nothing in it.

    Sizes are checked before anything is read: the JSON file has at most 1 MiB, the arrays that it declares at most
    :data:`MOST_BYTES` together, the file of arrays as many bytes as these need. It is read once, from its beginning, as
    the members that are declared, stored one behind the other; its directory is not followed. Numbers must be finite,
    nothing is ever unpickled, and both files must be byte for byte what was sealed.

    Raises
    ------
    InvalidInput
        Missing, malformed, oversized or altered; the message says which.

    Examples
    --------
    >>> load_certificate("no/such/certificate")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: certificate: got no/such/certificate without certificate.json; needs ...
    """
    folder = Path(path)
    _demand("\0" not in str(folder), "a path with a null character", "the path of a directory")
    try:
        with _opened(folder, _JSON) as stream:
            size = os.fstat(stream.fileno()).st_size
            _demand(size <= _MOST_JSON, f"{_JSON} of {size} bytes", f"at most {_MOST_JSON}")
            text = stream.read(_MOST_JSON)
        document = _parsed(text)
        data, actual = _arrays(folder, document["data"])
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise _refused(f"{folder}, which cannot be read ({why})", "a readable directory") from None
    try:
        claim, method, seal, version = (document[name] for name in ("claim", "method", "seal", "version"))
        inputs, versions = plain(document["inputs"]), plain(document["versions"])
        constants = plain(decoded(document["constants"]))
        certificate = Certificate(claim, method, inputs, Frozen(data), constants, versions, seal, version, str(folder))
        records = {name: record(array) for name, array in data.items()}
        same = canonical(document) == text and records == document["data"]
        same = same and document["data_file"] == actual and seal == certificate.expected_seal(records)
        _demand(isinstance(constants, Mapping), "constants that are not a mapping", "a mapping")
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise _refused(f"content of the wrong kind ({type(error).__name__})", _NEED) from None
    if not same:
        raise Tampered("certificate", f"{folder}, changed since it was sealed", "the files as they were written")
    return certificate


def _refused(got: str, need: str = _NEED) -> InvalidInput:
    return InvalidInput("certificate", got, need)


def _demand(condition: bool, got: str, need: str = _NEED) -> None:
    demand(condition, "certificate", got, need)


def _opened(folder: Path, name: str) -> BinaryIO:
    """Open a regular file; a pipe, which could be waited for without end, is refused."""
    try:
        stream = os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise _refused(f"{folder} without {name}", "a directory that Certificate.save wrote") from None
    _demand(stat.S_ISREG(os.fstat(stream.fileno()).st_mode), f"{name} that is no file")
    return stream


def _parsed(text: bytes) -> Any:
    try:
        document = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise _refused(f"{_JSON} that is not strict JSON ({type(error).__name__})", "one object in ASCII") from None
    fields = isinstance(document, dict) and set(document) == _FIELDS
    _demand(fields, "fields other than " + ", ".join(sorted(_FIELDS)), "exactly these")
    form, version, claim = document["format"], document["version"], document["claim"]
    _demand(form == "alignver certificate" and type(version) is int, "another format", "an alignver certificate")
    _demand(version in VERSIONS, "another version", "version 1 or 2")
    _demand(isinstance(claim, str) and claim in CLAIMS, f"the claim {str(claim)[:80]!r}", "one of " + ", ".join(CLAIMS))
    for name, kind in _KINDS.items():
        found = type(document[name])
        _demand(found is kind, f"{name} of type {found.__name__}", kind.__name__)
    for name, entry in [*document["inputs"].items(), *document["data"].items()]:
        whole = isinstance(entry, dict) and set(entry) == {"sha256", "shape", "dtype"}
        _demand(whole, f"a record of another form ({name[:80]!r})", "sha256, shape and dtype")
    return document


def _arrays(folder: Path, records: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arrays that the JSON file declares, and what identifies the file that they are in."""
    declared = {name: _declared(name, entry) for name, entry in sorted(records.items())}
    total = sum(size for _, _, size in declared.values())
    fits = len(declared) <= _MOST_ARRAYS and total <= MOST_BYTES
    _demand(fits, f"{len(declared)} arrays of {total} bytes", f"at most {_MOST_ARRAYS} of {MOST_BYTES} bytes together")
    if not declared and not os.path.lexists(folder / _DATA):
        return {}, None
    with _opened(folder, _DATA) as stream:
        size = os.fstat(stream.fileno()).st_size
        most = total + _OVERHEAD * (len(declared) + 1)
        _demand(size <= most, f"{_DATA} of {size} bytes", f"the {total} bytes of the arrays that are declared")
        content = hashlib.sha256()

        def read(count: int) -> bytes:
            chunk = stream.read(count)
            _demand(len(chunk) == count, f"{_DATA} that ends early")
            content.update(chunk)
            return chunk

        data = {name: _member(name, *declared[name], read) for name in declared}
        read(size - stream.tell())
        return data, {"sha256": content.hexdigest(), "bytes": size}


def _declared(name: str, entry: Mapping[str, Any]) -> tuple[tuple[int, ...], Any, int]:
    """Return shape, dtype and bytes of an array as the JSON file declares them."""
    shape, kind = entry["shape"], entry["dtype"]
    known = isinstance(shape, list) and len(shape) <= 2 and kind in DTYPES
    known = known and all(type(length) is int and 0 <= length <= MOST_BYTES for length in shape)
    _demand(known, f"an array of another form ({name[:80]!r})", "at most two dimensions of " + ", ".join(DTYPES))
    return tuple(shape), np.dtype(kind), np.dtype(kind).itemsize * math.prod(shape)


def _member(name: str, shape: tuple[int, ...], dtype: Any, size: int, read: Callable[[int], bytes]) -> Any:
    """Read the next member, which must be the array that is declared."""
    header = _LOCAL.unpack(read(_LOCAL.size))
    stored = (header[0], header[3], header[-2:]) == (b"PK\3\4", 0, (len(name) + 4, 0))
    _demand(stored and read(len(name) + 4) == f"{name}.npy".encode(), f"{_DATA} with other members than are declared")
    start = read(10)  # of a .npy file: what it is, its version, the length of its header
    _demand(start[:8] == b"\x93NUMPY\1\0", f"{_DATA} with an array of another format")
    try:
        form = np.lib.format.read_array_header_1_0(io.BytesIO(start[8:] + read(int.from_bytes(start[8:], "little"))))
    except Exception as error:  # NumPy raises many kinds over hostile bytes: every one means the same
        raise _refused(f"{_DATA} with an array of another format ({type(error).__name__})", _NEED) from None
    _demand(form == (shape, False, dtype), f"{_DATA} with other arrays than are declared")
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    for at in range(0, size, _CHUNK):
        view[at : at + _CHUNK] = read(min(_CHUNK, size - at))
    array.setflags(write=False)
    check_array(name, array)
    return array
