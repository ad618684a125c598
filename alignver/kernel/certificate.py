"""Certificates: the sealed data of a proof, in memory and on disk.

A certificate can be checked without trust in its producer. It is written to disk completely or not at all, and read
with the assumption that its files may be hostile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput
from alignver.kernel import machine
from alignver.kernel.failure import demand
from alignver.kernel.network import claims as network
from alignver.results import Frozen, plain, shown_down, shown_up

CLAIMS = {
    "membership": "y is in the column space of J",
    "non-membership": "y is not in the column space of J",
    "factored-membership": "y is in the column space of J, the matrix made of the layer factors as computed",
    "rank": "rank(A) == {rank}",
    "not-rank": "rank(A) != {rank}",
    "exploration": "phi(q) has rank {rank}, all rows of Z, for the gates q of this certificate (Assumption 4)",
    "exploration-gates": "phi(q) has rank {rank}, all rows of Z, for the gates q that were given (Assumption 4)",
    "no-exploration": "phi(q) has a rank below {rank}, the number of rows of Z, for all gates q of the width",
    "optimality": "L(theta) - inf L <= {gap}: no parameters of any layer have a smaller training loss by more",
    "distinct": "{rank} rows of X are distinct",
    "consistent": "equal rows of X have equal rows of Y, and {rank} rows of X are distinct",
    "conflicting": "two equal rows of X have different rows of Y, and {rank} rows of X are distinct",
    "suboptimality": "L(theta) - inf L > {gap}: the weights of the last hidden layer can be changed for the better",
} | network.CLAIMS
"""The claims of certificates; with a ball, a claim is about every matrix in it."""

VERSIONS = (1, 2)
"""Formats that are read; 2 is written. ``s_min`` and ``distance`` are part of the claim in 2, but not in 1."""

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")
"""The losses of claims: ||q - y||^2, and the logistic and softmax cross-entropies with natural logarithms."""

STATED = dict.fromkeys(("gram", "right inverse", "factored gram", "staircase"), "s_min") | {"residual": "distance"}
"""The number that a claim may state in addition, for each method; if stated, it is checked. Other methods have none."""

DTYPES = ("<f8", "<i8", "|u1")

Inputs: TypeAlias = Mapping[str, Any]
"""The matrices of a claim, by name."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A claim about given matrices, with the data that proves it and a seal over all of it.

    Attributes
    ----------
    claim : str
        A key of :data:`CLAIMS`.
    method : str
        The method of the proof, which determines the check.
    inputs : mapping
        For every input ``{"sha256", "shape", "dtype"}``: the digest of its float64 entries in row-major
        order; of X, that of the digests of its rows (:func:`~alignver.kernel.data.record_of`).
    data : mapping of str to array
        Factors, vectors and big integers (see :func:`pack`): float64, int64 or uint8.
    constants : mapping
        Numbers of the proof, as plain data.
    versions : mapping
        The versions of the software that produced it, and a digest of the tests of its machine
        (:func:`alignver.kernel.machine.digest`): the writer's own statement.
    seal : str
        SHA-256 over everything above: a checksum that detects a changed bit, not a signature.
    version : int
        Of the format: 1 or 2.

    Examples
    --------
    >>> import numpy as np
    >>> certificate = seal("rank", "shape", {"A": np.eye(2)}, {}, {"rank": 2})
    >>> certificate.sealed
    True
    >>> dataclasses.replace(certificate, method="minor").sealed
    False
    """

    claim: str
    method: str
    inputs: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, npt.NDArray[Any]]
    constants: Mapping[str, Any]
    versions: Mapping[str, Any]
    seal: str
    version: int = VERSIONS[-1]
    path: str | None = dataclasses.field(default=None, compare=False, repr=False)

    def header(self, records: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return everything except the bytes of arrays, as sealed and written; ``records`` are those of the data."""
        if records is None:
            records = {name: record(array) for name, array in sorted(self.data.items())}
        form = {"format": "alignver certificate", "version": self.version, "claim": self.claim, "method": self.method}
        content = {"constants": _jsonable(self.constants), "versions": dict(self.versions), "data": records}
        return {**form, **content, "inputs": {name: dict(entry) for name, entry in self.inputs.items()}}

    def expected_seal(self, records: Mapping[str, Any] | None = None) -> str:
        """Return the seal that matches the content."""
        return hashlib.sha256(canonical(self.header(records))).hexdigest()

    @property
    def sealed(self) -> bool:
        """Whether the seal matches the content."""
        try:
            return self.seal == self.expected_seal()
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return False

    @property
    def nbytes(self) -> int:
        """Size of the data and the header."""
        return sum(int(array.nbytes) for array in self.data.values()) + len(canonical(self.header()))

    def summary(self) -> Mapping[str, Any]:
        """Return claim, method, size and path as plain data."""
        content = {"claim": describe(self), "method": self.method, "bytes": self.nbytes}
        return Frozen({**content, "path": self.path, "seal": self.seal})

    def save(self, path: str | Path) -> Path:
        """Write the certificate as a directory: ``certificate.json`` and, if there are arrays, ``data.npz``.

        The directory is written completely or not at all. An earlier certificate at ``path`` is replaced; for anything
        else at ``path``, :class:`~alignver.errors.InvalidInput` is raised. Stored are solutions, null vectors, index
        sets, and the right inverse if the claim needs it; Gram matrices and Cholesky factors are recomputed.
        """
        target = write(self, Path(path))
        object.__setattr__(self, "path", str(path))
        return target


def describe(certificate: Certificate) -> str:
    """Return the claim as a sentence; radii and bounds with many digits are rounded to a weaker claim."""
    constants = certificate.constants if isinstance(certificate.constants, Mapping) else {}
    claim = certificate.claim if isinstance(certificate.claim, str) else ""
    template = CLAIMS.get(claim, "?")
    rank, gap, bound = constants.get("rank"), constants.get("gap"), shown_down if "sub" in claim else shown_up
    if claim == "optimality" and "X" in certificate.inputs:
        template = template.replace("parameters of any layer have", "function of a row of X has")
    if claim == "exploration-gates" and "weights" in certificate.data:
        template = template.replace("phi(q)", "phi(q) (diag(w) x I), w the weights in this certificate,")
    counted = str(rank) if type(rank) is int and abs(rank) < 2**63 else "?"
    sentence = template.format(rank=counted, gap=bound(gap, 6) if isinstance(gap, float) else "?")
    s_min, distance = (constants.get(name) if certificate.version != 1 else None for name in ("s_min", "distance"))
    loss, floor = constants.get("loss"), constants.get("floor")
    if claim in ("consistent", "conflicting") and isinstance(floor, float) and floor > 0.0 and loss in LOSSES:
        sentence += f"; every function of a row of X has a {loss} loss of at least {shown_down(floor)}"
    sentence = sentence.replace(" of X", f" of {rows_of(certificate)}")
    if isinstance(distance, float):
        sentence += f", at a distance of at least {shown_down(distance)}"
    ball, centre = constants.get("ball"), ""
    if isinstance(ball, Mapping):
        value, kind = ball.get("value"), "spectral norm" if ball.get("kind") == "norm" else "entrywise"
        size = "the given radii" if value is None else shown_down(value) if isinstance(value, float) else "?"
        sentence, centre = f"{sentence}, for every matrix within {size} ({kind})", " at the centre"
    if isinstance(s_min, float):
        sentence += f"; s_min >= {shown_down(s_min)}{centre}"
    return sentence


def rows_of(certificate: Certificate) -> str:
    """Name X, with the dtype in which its rows are compared if they may have been rounded to it."""
    return {"<f2": "X in float16", "<f4": "X in float32"}.get(str(certificate.inputs.get("X", {}).get("dtype")), "X")


def canonical(document: Any) -> bytes:
    """Return the only serialization of a document that is written or accepted."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii")


def _jsonable(value: Any) -> Any:
    """Return plain data with floats as hexadecimal strings, which any language reads back bit for bit."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a certificate contains finite numbers only")
        return {"float": value.hex()}
    return value


def decoded(value: Any) -> Any:
    """Invert the encoding of floats."""
    if isinstance(value, dict):
        if set(value) == {"float"} and isinstance(value["float"], str):
            number = float.fromhex(value["float"])
            if not math.isfinite(number) or number.hex() != value["float"]:
                raise ValueError("a float that is not finite or not in hexadecimal form")
            return number
        return {key: decoded(item) for key, item in value.items()}
    return tuple(decoded(item) for item in value) if isinstance(value, list) else value


def record(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the record that identifies an array: shape, dtype, and SHA-256 of both and the row-major bytes."""
    content = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"sha256": content.hexdigest(), "shape": list(array.shape), "dtype": array.dtype.str}


def seal(
    claim: str, method: str, inputs: Mapping[str, Any], data: Mapping[str, Any], constants: Mapping[str, Any],
    *, version: int = VERSIONS[-1],
) -> Certificate:  # fmt: skip
    """Return a certificate of any claim by any method; :func:`verify` checks whether it proves the claim.

    Parameters
    ----------
    claim : str
        A key of :data:`CLAIMS`.
    method : str
        ``docs/certificate_format.md`` lists the methods with the data and constants that each needs.
    inputs : mapping of str to array or record
        float64 arrays, or their :func:`record` if they are already hashed.
    data : mapping of str to array
        float64, int64 or uint8; copied.
    constants : mapping
        Plain data: str, int, float, bool, None, lists and mappings of them.
    version : {1, 2}, optional
        Of the format.

    Returns
    -------
    Certificate
        The seal is a checksum over all of it, which can be computed without a secret.

    Raises
    ------
    InvalidInput
        If a claim, name or array is not valid in a certificate.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.kernel import verify
    >>> forged = seal("rank", "shape", {"A": np.eye(2)}, {}, {"rank": 1})
    >>> verify(forged, {"A": np.eye(2)}).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    from alignver._version import __version__

    demand(claim in CLAIMS, "claim", repr(claim), " or ".join(CLAIMS))
    demand(version in VERSIONS, "version", repr(version), "1 or 2")
    arrays = {}
    for name, array in data.items():
        check_array(name, array)
        arrays[name] = np.array(array, order="C", copy=True)
        arrays[name].setflags(write=False)
    records = {name: value if isinstance(value, Mapping) else record(value) for name, value in inputs.items()}
    versions = {"alignver": __version__, "numpy": np.__version__, "python": platform.python_version()}
    versions["machine"] = machine.digest()
    content = (plain(records), Frozen(arrays), plain(dict(constants)), Frozen(versions))
    unsealed = Certificate(claim, method, *content, "", version)
    return dataclasses.replace(unsealed, seal=unsealed.expected_seal())


def check_array(name: str, array: npt.NDArray[Any]) -> None:
    """Raise :class:`~alignver.errors.InvalidInput` unless ``array`` may be part of a certificate."""
    plainly = isinstance(name, str) and _NAME.fullmatch(name) is not None
    demand(plainly, "certificate data", f"the name {str(name)[:80]!r}", "letters, digits and underscores")
    kind = array.dtype.str if isinstance(array, np.ndarray) else type(array).__name__
    demand(kind in DTYPES, f"certificate data {name}", kind, "an array of " + ", ".join(DTYPES))
    finite = kind != "<f8" or bool(np.isfinite(array).all())
    demand(finite, f"certificate data {name}", "NaN or Inf", "finite numbers")


def pack(name: str, integers: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """Return big integers as two arrays: two's complement little-endian bytes, and how many belong to each.

    Examples
    --------
    >>> unpack(pack("w", [1, -(10**40)]), "w", 2)
    [1, -10000000000000000000000000000000000000000]
    """
    chunks = [value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True) for value in integers]
    lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
    return {f"{name}_bytes": np.frombuffer(b"".join(chunks), dtype=np.uint8), f"{name}_lengths": lengths}


def unpack(data: Mapping[str, npt.NDArray[Any]], name: str, count: int) -> list[int]:
    """Return the ``count`` integers that :func:`pack` stored under ``name``; :class:`~alignver.errors.InvalidInput`
    where they do not add up, KeyError where there are none.
    """
    content, lengths = data[f"{name}_bytes"], data[f"{name}_lengths"]
    integers = (content.dtype.str, lengths.dtype.str, content.ndim, lengths.ndim) == ("|u1", "<i8", 1, 1)
    sizes = lengths.tolist() if integers and lengths.size == count else [0]
    whole = all(size >= 1 for size in sizes) and sum(sizes) == content.size
    demand(whole, f"certificate data {name}", "lengths that do not add up", "as many bytes as they say")
    raw, values, start = content.tobytes(), [], 0
    for length in sizes:
        values.append(int.from_bytes(raw[start : start + length], "little", signed=True))
        start += length
    return values


MOST_BYTES = (1 << 31) - (1 << 20)
"""Limit of the total size of the arrays on disk: just below 2 GiB, the limit of a zip file without extensions."""

_JSON, _DATA = "certificate.json", "data.npz"
_MOST_JSON, _MOST_ARRAYS, _CHUNK = 1 << 20, 64, 1 << 22
_OVERHEAD = 1024  # bytes of a member besides its entries: its headers in the file and directory, and the array header
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member of a zip file; the last two are the lengths of name and extra
_FIELDS = {"claim", "constants", "data", "data_file", "format", "inputs", "method", "seal", "version", "versions"}
_KINDS = {"method": str, "seal": str, "inputs": dict, "constants": dict, "versions": dict, "data": dict}
_NEED = "the files that Certificate.save wrote"


class Tampered(InvalidInput):
    """A certificate that is well-formed but differs from what was sealed."""


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
    # In the same parent: a new folder, renamed when it is complete, and a place for the previous one.
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
    """Return an npz with uncompressed members, always the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(data.items()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.create_system = 3  # whatever the system
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate from a directory that :meth:`Certificate.save` wrote, without trust in its content.

    Sizes are checked before anything is read: the JSON file has at most 1 MiB, the arrays that it declares at most
    :data:`MOST_BYTES` together, and the file of arrays the number of bytes that these need. That file is read once from
    its beginning, as the declared members one after the other; its zip directory is not used. Numbers must be finite,
    nothing is unpickled, and both files must be byte for byte what was sealed.

    Raises
    ------
    InvalidInput
        If the certificate is missing, malformed, oversized or altered; the message says which.

    Examples
    --------
    >>> load_certificate("no/such/certificate")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: certificate: got no/such/certificate without certificate.json; needs ...
    """
    _demand(isinstance(path, str | Path) and "\0" not in str(path), "no path, or a null character", "a directory")
    folder = Path(path)
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
    except MemoryError:
        size = sum(entry.stat().st_size for entry in folder.iterdir())
        raise _refused(f"{folder}, whose {size} bytes are more than the memory that is left", "more memory") from None
    try:
        claim, method, seal, version = (document[name] for name in ("claim", "method", "seal", "version"))
        inputs, versions = plain(document["inputs"]), plain(document["versions"])
        constants = plain(decoded(document["constants"]))
        certificate = Certificate(claim, method, inputs, Frozen(data), constants, versions, seal, version, str(folder))
        records = {name: record(array) for name, array in data.items()}
        # From the content alone: another serialization, such as a float in decimal digits, is another file.
        same = canonical({**certificate.header(records), "seal": seal, "data_file": actual}) == text
        same = same and seal == certificate.expected_seal(records)
        _demand(isinstance(constants, Mapping), "constants that are not a mapping", "a mapping")
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise _refused(f"content of the wrong kind ({type(error).__name__})", _NEED) from None
    if not same:
        raise Tampered("certificate", f"{folder}, changed since it was sealed", "the files as they were written")
    return certificate


def _refused(got: str, need: str = _NEED) -> InvalidInput:
    return InvalidInput("certificate", got, need, "unreadable-file")


def _demand(condition: bool, got: str, need: str = _NEED) -> None:
    demand(condition, "certificate", got, need)


def _opened(folder: Path, name: str) -> BinaryIO:
    """Open a regular file; a pipe, which could block forever, is refused."""
    try:
        stream = os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise _refused(f"{folder} without {name}", "a directory that Certificate.save wrote") from None
    _demand(stat.S_ISREG(os.fstat(stream.fileno()).st_mode), f"{name} that is not a file")
    return stream


def _parsed(text: bytes) -> Any:
    try:
        document = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise _refused(f"{_JSON} that is not strict JSON ({type(error).__name__})", "one object in ASCII") from None
    fields = isinstance(document, dict) and set(document) == _FIELDS
    _demand(fields, "fields other than " + ", ".join(sorted(_FIELDS)), "exactly these")
    form, version, claim = document["format"], document["version"], document["claim"]
    _demand(form == "alignver certificate" and type(version) is int, "an unknown format", "an alignver certificate")
    _demand(version in VERSIONS, "an unknown version", "version 1 or 2")
    _demand(isinstance(claim, str) and claim in CLAIMS, f"the claim {str(claim)[:80]!r}", "one of " + ", ".join(CLAIMS))
    for name, kind in _KINDS.items():
        actual = type(document[name])
        _demand(actual is kind, f"{name} of type {actual.__name__}", kind.__name__)
    for name, entry in [*document["inputs"].items(), *document["data"].items()]:
        whole = isinstance(entry, dict) and set(entry) == {"sha256", "shape", "dtype"}
        _demand(whole, f"a record of an unknown form ({name[:80]!r})", "sha256, shape and dtype")
    return document


def _arrays(folder: Path, records: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arrays that the JSON file declares, and the digest and size of their file."""
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
    """Return shape, dtype and number of bytes of an array as the JSON file declares them."""
    shape, kind = entry["shape"], entry["dtype"]
    known = isinstance(shape, list) and len(shape) <= 2 and kind in DTYPES
    known = known and all(type(length) is int and 0 <= length <= MOST_BYTES for length in shape)
    _demand(known, f"an array of an unknown form ({name[:80]!r})", "at most two dimensions of " + ", ".join(DTYPES))
    return tuple(shape), np.dtype(kind), np.dtype(kind).itemsize * math.prod(shape)


def _member(name: str, shape: tuple[int, ...], dtype: Any, size: int, read: Callable[[int], bytes]) -> Any:
    """Read the next member, which must be the declared array."""
    header = _LOCAL.unpack(read(_LOCAL.size))
    stored = (header[0], header[3], header[-2:]) == (b"PK\3\4", 0, (len(name) + 4, 0))
    _demand(stored and read(len(name) + 4) == f"{name}.npy".encode(), f"{_DATA} whose members are not those declared")
    prefix = read(10)  # of a .npy file: magic bytes, version, length of the header
    _demand(prefix[:8] == b"\x93NUMPY\1\0", f"{_DATA} with an array of an unknown format")
    try:
        form = np.lib.format.read_array_header_1_0(io.BytesIO(prefix[8:] + read(int.from_bytes(prefix[8:], "little"))))
    except Exception as error:  # NumPy raises many types for hostile bytes, all with the same meaning
        raise _refused(f"{_DATA} with an array of an unknown format ({type(error).__name__})", _NEED) from None
    _demand(form == (shape, False, dtype), f"{_DATA} whose arrays are not those declared")
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    for start in range(0, size, _CHUNK):
        view[start : start + _CHUNK] = read(min(_CHUNK, size - start))
    array.setflags(write=False)
    check_array(name, array)
    return array
