"""Certificates on disk: written whole or not at all, read as if an enemy had written them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput
from alignver.proof.certificate import CLAIMS, DTYPES, Certificate, canonical, check_array, from_jsonable
from alignver.results import Frozen, plain

__all__ = ["Tampered", "load_certificate", "write"]

_JSON, _DATA = "certificate.json", "data.npz"
_MOST_JSON = 1 << 20
_MOST_ARRAYS = 64
_MOST_DATA = 4 << 30
_FIELDS = {
    "format",
    "version",
    "claim",
    "method",
    "inputs",
    "constants",
    "versions",
    "data",
    "data_file",
    "seal",
}


class Tampered(InvalidInput):
    """A certificate that is well formed but is not, byte for byte, what was sealed."""


def write(certificate: Certificate, path: Path) -> Path:
    """Write ``certificate`` as the directory ``path``; see :meth:`Certificate.save`."""
    if path.is_symlink() or (path.exists() and not _is_certificate(path)):
        raise InvalidInput("path", f"{path}, which exists", "a new name, or a certificate to replace")
    parent = path.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
    try:
        document = {**certificate.header(), "seal": certificate.seal, "data_file": None}
        if certificate.data:
            content = _npz(certificate.data)
            document["data_file"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            _write_file(temporary / _DATA, content)
        _write_file(temporary / _JSON, canonical(document))
        os.chmod(temporary, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=parent))
            os.replace(path, old)  # an empty directory may be replaced by a directory
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _is_certificate(path: Path) -> bool:
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return names <= {_JSON, _DATA} and (_JSON in names or not names)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _npz(data: Mapping[str, npt.NDArray[Any]]) -> bytes:
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

    Sizes are checked before anything is parsed, archive members must be stored uncompressed and as long as
    their headers say, numbers must be finite, nothing is ever unpickled, and both files must be byte for byte
    what was sealed.

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
    try:
        text = _read(folder / _JSON, _MOST_JSON)
        if text is None:
            _refuse(f"{folder} without {_JSON}", "a directory that Certificate.save wrote")
        document = _parse(text)
        content = _read(folder / _DATA, _MOST_DATA)
    except OSError as error:
        _refuse(
            f"{folder}, which cannot be read ({error.strerror or type(error).__name__})",
            "a readable directory",
        )
    data = _arrays(content) if content is not None else {}
    try:
        certificate = Certificate(
            document["claim"],
            document["method"],
            plain(document["inputs"]),
            Frozen(data),
            plain(from_jsonable(document["constants"])),
            plain(document["versions"]),
            document["seal"],
            str(folder),
        )
        same = canonical(document) == text
        sealed = certificate.sealed and certificate.header()["data"] == document["data"]
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        _refuse(f"content of the wrong kind ({type(error).__name__})", "the content that Certificate.save writes")
    recorded = document["data_file"]
    actual = None if content is None else {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    if not (same and sealed and recorded == actual):
        raise Tampered(
            "certificate", f"{folder}, changed since it was sealed", "the files exactly as they were written"
        )
    return certificate


def _refuse(got: str, need: str) -> NoReturn:
    raise InvalidInput("certificate", got, need)


def _read(path: Path, most: int) -> bytes | None:
    """Return the content of a regular file of at most ``most`` bytes; None if there is none."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > most:
        _refuse(f"{path.name} of {size} bytes", f"at most {most}")
    with path.open("rb") as stream:
        return stream.read(most + 1)


def _parse(text: bytes) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        document = json.loads(text.decode("ascii"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"{_JSON} that is not strict JSON ({type(error).__name__})", "one JSON object in ASCII")
    if not isinstance(document, dict) or set(document) != _FIELDS:
        _refuse("fields other than " + ", ".join(sorted(_FIELDS)), "exactly these")
    if document["format"] != "alignver certificate" or document["version"] != 1 or document["version"] is True:
        _refuse("another format or version", "version 1")
    if not isinstance(document["claim"], str) or document["claim"] not in CLAIMS:
        _refuse(f"the claim {str(document['claim'])[:80]!r}", "one of " + ", ".join(CLAIMS))
    for name, kind in (
        ("method", str),
        ("seal", str),
        ("inputs", dict),
        ("constants", dict),
        ("versions", dict),
        ("data", dict),
    ):
        if not isinstance(document[name], kind):
            _refuse(f"{name} of type {type(document[name]).__name__}", kind.__name__)
    for name, record in document["inputs"].items():
        if not isinstance(record, dict) or set(record) != {"sha256", "shape", "dtype"}:
            _refuse(f"an input record of another form ({name[:80]!r})", "sha256, shape and dtype")
    return document


def _arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > _MOST_ARRAYS or len({member.filename for member in members}) != len(members):
                _refuse(
                    f"{_DATA} with {len(members)} members, or one twice",
                    f"at most {_MOST_ARRAYS} distinct arrays",
                )
            arrays = {}
            for member in members:
                plainly = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
                if not plainly or member.flag_bits & 1 or not member.filename.endswith(".npy"):
                    _refuse(f"{_DATA} with a compressed, encrypted or foreign member", "stored .npy members")
                if member.file_size > len(content):
                    _refuse(f"{_DATA} with a member longer than the file", "stored .npy members")
                name = member.filename[: -len(".npy")]
                arrays[name] = _array(archive.read(member))
                check_array(name, arrays[name])
            return arrays
    except InvalidInput:
        raise
    except Exception as error:  # zipfile raises many kinds on hostile bytes: every one means the same
        _refuse(f"{_DATA} that is no npz ({type(error).__name__})", "the file that Certificate.save wrote")


def _array(content: bytes) -> npt.NDArray[Any]:
    """Return the array in the bytes of a .npy file, allocating nothing on the word of its header."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a .npy version that is never written")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1000)
    start = stream.tell()
    count = 1
    for length in shape:
        if not 0 <= length <= len(content):
            raise ValueError("a length that the file cannot hold")
        count *= length
    if fortran or dtype.str not in DTYPES or len(shape) > 2 or count * dtype.itemsize != len(content) - start:
        raise ValueError("a header that does not fit the bytes behind it")
    array = np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)  # read-only, as bytes are
    return array
