"""Certificates: what a proof leaves behind, sealed, so that anyone can check it without trusting who produced
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import blocks
from alignver.errors import InvalidInput
from alignver.results import Frozen, plain

__all__ = ["CLAIMS", "Certificate", "describe", "digest_input", "make", "pack", "unpack"]

CLAIMS = {
    "membership": "y is in the column space of {J}",
    "non-membership": "y is not in the column space of {J}",
    "factored-membership": "y is in the column space of {J}, the matrix made of the layer factors as computed",
    "rank": "rank({A}) == {rank}",
    "not-rank": "rank({A}) != {rank}",
    "exploration": "phi(q) has rank {rank}, all rows of Z, for the gates q of this certificate (Assumption 4)",
    "exploration-gates": "phi(q) has rank {rank}, all rows of Z, for the gates q that were given (Assumption 4)",
    "no-exploration": "phi(q) has a rank below {rank}, the number of rows of Z, for all gates q of the width",
    "optimality": "L(theta) - inf L <= {gap}: no parameters of any layer have a smaller training loss by more",
    "suboptimality": "L(theta) - inf L > {gap}: the weights of the last hidden layer can be changed for the better",
}
"""What a certificate can claim; with a ball, of every matrix in it."""

DTYPES = ("<f8", "<i8", "|u1")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A claim about given matrices, with the data that proves it and a seal over all of it.

    Attributes
    ----------
    claim : str
        A key of :data:`CLAIMS`.
    method : str
        How it is proved, hence how it is re-checked.
    inputs : mapping
        For every input ``{"sha256", "shape", "dtype"}``: the digest of its float64 entries in row-major
        order.
    data : mapping of str to array
        Factors, vectors and big integers (see :func:`pack`): float64, int64 or uint8.
    constants : mapping
        Numbers of the proof, as plain data.
    versions : mapping
        What produced it.
    seal : str
        SHA-256 over everything above: one changed bit is refused even where the proof would survive it.

    Examples
    --------
    >>> import numpy as np
    >>> certificate = make("rank", "shape", {"A": np.eye(2)}, {}, {"rank": 2})
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
    path: str | None = dataclasses.field(default=None, compare=False, repr=False)

    def header(self) -> dict[str, Any]:
        """Return everything but the arrays' bytes, in the order in which it is sealed and written."""
        return {
            "format": "alignver certificate",
            "version": 1,
            "claim": self.claim,
            "method": self.method,
            "inputs": {name: dict(record) for name, record in self.inputs.items()},
            "constants": _jsonable(self.constants),
            "versions": dict(self.versions),
            "data": {name: _record(array) for name, array in sorted(self.data.items())},
        }

    def expected_seal(self) -> str:
        """Return the seal that the content deserves."""
        return hashlib.sha256(canonical(self.header())).hexdigest()

    @property
    def sealed(self) -> bool:
        """Whether the seal is that of the content."""
        try:
            return self.seal == self.expected_seal()
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            return False

    @property
    def nbytes(self) -> int:
        """Size of the data and the header."""
        return sum(int(array.nbytes) for array in self.data.values()) + len(canonical(self.header()))

    def summary(self) -> Mapping[str, Any]:
        """Return claim, method, size and place as plain data."""
        return Frozen(
            {
                "claim": describe(self),
                "method": self.method,
                "bytes": self.nbytes,
                "path": self.path,
                "seal": self.seal,
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write the certificate as a directory: ``certificate.json`` and, where there are arrays,
        ``data.npz``.

        The directory appears whole or not at all; an earlier certificate at ``path`` is replaced, anything
        else is refused with :class:`InvalidInput`. What is stored: solutions, null vectors, index sets, and
        the right inverse where a ball needs it. What is recomputed: Gram matrices and Cholesky factors.
        """
        from alignver.proof.storage import write

        target = write(self, Path(path))
        object.__setattr__(self, "path", str(path))
        return target


def describe(certificate: Certificate) -> str:
    """Return the claim as a sentence."""
    constants = certificate.constants if isinstance(certificate.constants, Mapping) else {}
    ball = constants.get("ball")
    within = ""
    if isinstance(ball, Mapping):
        value = ball.get("value")
        size = "the given radii" if value is None else f"{value:g}" if isinstance(value, float) else "?"
        kind = "spectral norm" if ball.get("kind") == "norm" else "entrywise"
        within = f", for every matrix within {size} ({kind})"
    template = CLAIMS.get(certificate.claim, "?") if isinstance(certificate.claim, str) else "?"
    return template.format(J="J", A="A", rank=constants.get("rank", "?"), gap=constants.get("gap", "?")) + within


def canonical(document: Any) -> bytes:
    """Return the one serialization of a document that is ever written or accepted."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii")


def _jsonable(value: Any) -> Any:
    """Plain data with floats as hexadecimal strings, so that they read back bit for bit in any language."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a certificate holds finite numbers only")
        return {"float": value.hex()}
    return value


def from_jsonable(value: Any) -> Any:
    """Invert the encoding of floats."""
    if isinstance(value, dict):
        if set(value) == {"float"} and isinstance(value["float"], str):
            number = float.fromhex(value["float"])
            if not math.isfinite(number):
                raise ValueError("a float that is not finite")
            return number
        return {key: from_jsonable(item) for key, item in value.items()}
    return tuple(from_jsonable(item) for item in value) if isinstance(value, list) else value


def _record(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"sha256": _sha256(array), "shape": list(array.shape), "dtype": array.dtype.str}


def _sha256(array: npt.NDArray[Any]) -> str:
    """Digest dtype, shape and row-major entries: the value of :func:`alignver.arrays.digest`, without copies."""
    content = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    if array.flags.c_contiguous and array.size:
        content.update(array.reshape(-1).view(np.uint8).data)
    elif array.size:
        for _, block in blocks(array, axis=0):
            content.update(np.ascontiguousarray(block).tobytes())
    return content.hexdigest()


def digest_input(array: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the record of an input: SHA-256 of dtype, shape and row-major bytes, then shape and dtype in
    clear.
    """
    return _record(array)


def make(
    claim: str,
    method: str,
    inputs: Mapping[str, npt.NDArray[np.float64]],
    data: Mapping[str, npt.NDArray[Any]],
    constants: Mapping[str, Any],
) -> Certificate:
    """Return a sealed certificate about ``inputs``.

    Raises
    ------
    InvalidInput
        A claim, name or array that a certificate cannot hold.
    """
    from alignver._version import __version__

    if claim not in CLAIMS:
        raise InvalidInput("claim", repr(claim), " or ".join(CLAIMS))
    arrays = {}
    for name, array in data.items():
        check_array(name, array)
        frozen = np.array(array, order="C", copy=True)
        frozen.setflags(write=False)
        arrays[name] = frozen
    versions = {"alignver": __version__, "numpy": np.__version__, "python": platform.python_version()}
    unsealed = Certificate(
        claim,
        method,
        Frozen({name: plain(digest_input(array)) for name, array in inputs.items()}),
        Frozen(arrays),
        plain(dict(constants)),
        Frozen(versions),
        "",
    )
    return dataclasses.replace(unsealed, seal=unsealed.expected_seal())


def check_array(name: str, array: npt.NDArray[Any]) -> None:
    """Raise :class:`InvalidInput` unless ``array`` may be part of a certificate."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput("certificate data", f"the name {str(name)[:80]!r}", "letters, digits and underscores")
    if not isinstance(array, np.ndarray) or array.dtype.str not in DTYPES:
        kind = array.dtype.str if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidInput(f"certificate data {name}", kind, "an array of " + ", ".join(DTYPES))
    if array.dtype.str == "<f8" and not bool(np.all(np.isfinite(array))):
        raise InvalidInput(f"certificate data {name}", "NaN or Inf", "finite numbers")


def pack(name: str, integers: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """Return big integers as two arrays: two's complement little-endian bytes, and how many belong to each.

    Examples
    --------
    >>> unpack(pack("w", [1, -(10**40)]), "w")
    [1, -10000000000000000000000000000000000000000]
    """
    chunks = [value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True) for value in integers]
    return {
        f"{name}_bytes": np.frombuffer(b"".join(chunks), dtype=np.uint8),
        f"{name}_lengths": np.array([len(chunk) for chunk in chunks], dtype=np.int64),
    }


def unpack(data: Mapping[str, npt.NDArray[Any]], name: str) -> list[int]:
    """Return the integers that :func:`pack` stored under ``name``; :class:`InvalidInput` where they do not
    add up.
    """
    content, lengths = data.get(f"{name}_bytes"), data.get(f"{name}_lengths")
    if content is None or lengths is None or content.dtype != np.uint8 or lengths.dtype != np.int64:
        raise InvalidInput(f"certificate data {name}", "no packed integers", f"{name}_bytes and {name}_lengths")
    if content.ndim != 1 or lengths.ndim != 1 or bool(np.any((lengths < 1) | (lengths > content.size))):
        raise InvalidInput(f"certificate data {name}", "lengths out of range", "one positive length an integer")
    if sum(lengths.tolist()) != content.size:
        raise InvalidInput(f"certificate data {name}", "lengths that do not add up", "as many bytes as the lengths say")
    raw, values, start = content.tobytes(), [], 0
    for length in lengths.tolist():
        values.append(int.from_bytes(raw[start : start + length], "little", signed=True))
        start += length
    return values
