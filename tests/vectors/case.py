"""A test vector before it is written: a certificate with what is to be answered, and changes of one for the next."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignver.kernel.certificate import Certificate, seal
from alignver.kernel.data import canonical, digests_of, record_of
from alignver.results import Frozen

__all__ = ["GONE", "Case", "Files", "npy", "read", "rows_record", "stored", "valid"]

GONE = object()
"""In place of a value: the entry is left out."""

Files = dict[str, bytes]
"""The files of a certificate by name."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A certificate, the inputs that a checker is given, and what it is to answer.

    ``records`` replace those of the inputs that are given. ``edit`` changes the files that were written.
    """

    name: str
    claim: str
    method: str
    inputs: Mapping[str, Any]
    data: Mapping[str, Any]
    constants: Mapping[str, Any]
    version: int = 2
    statement: bool | None = True
    rejected: str | None = None
    reason: str = ""
    records: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    edit: Callable[[Files], Files] = lambda files: files

    def but(
        self, name: str, rejected: str | None, statement: bool | None, reason: str = "",
        *, data: Mapping[str, Any] | None = None, inputs: Mapping[str, Any] | None = None, **changes: Any,
    ) -> Case:  # fmt: skip
        """Return a case with some changes: of data, of inputs, of fields (a keyword), or of constants (any other)."""
        fields = {field.name for field in dataclasses.fields(self)}
        constants = _named({key: value for key, value in changes.items() if key not in fields})
        return dataclasses.replace(
            self, name=name, rejected=rejected, statement=statement, reason=reason,
            data=_merged(self.data, data or {}), inputs=_merged(self.inputs, inputs or {}),
            constants=_merged(self.constants, constants),
            **{key: value for key, value in changes.items() if key in fields},
        )  # fmt: skip

    def certificate(self) -> Certificate:
        """Return the sealed certificate, which names no software, so that it is the same everywhere."""
        sealed = seal(self.claim, self.method, {**self.inputs, **self.records}, self.data, self.constants,
                      version=self.version)  # fmt: skip
        sealed = dataclasses.replace(sealed, versions=Frozen({"writer": "test vectors"}))
        return dataclasses.replace(sealed, seal=sealed.expected_seal())

    def document(self, contents: dict[str, str]) -> dict[str, Any]:
        """Return the vector as it is written; the contents of its binary files are added to those of the document."""

        def named(content: bytes) -> str:
            key = hashlib.sha256(content).hexdigest()[:16]
            contents[key] = base64.b64encode(content).decode()
            return key

        files = self.edit(stored(self.certificate()))
        data = files.get("data.npz")
        return {
            "name": f"{self.claim}: {self.name}", "verdict": "HOLDS" if self.rejected is None else "FAILS",
            "statement": self.statement, "rejected": self.rejected, "reason": self.reason,
            "certificate": files["certificate.json"].decode("latin-1"), "data": None if data is None else named(data),
            "inputs": {key: named(npy(value)) for key, value in self.inputs.items()},
        }  # fmt: skip


def valid(
    name: str, claim: str, method: str, inputs: Mapping[str, Any], data: Mapping[str, Any], **constants: Any
) -> Case:
    """Return a case that a checker accepts."""
    version = constants.pop("version", 2)
    return Case(name, claim, method, inputs, data, _named(constants), version)


def stored(certificate: Certificate) -> Files:
    """Return the files of a certificate."""
    with tempfile.TemporaryDirectory() as place:
        path = certificate.save(Path(place) / "certificate")
        return {file.name: file.read_bytes() for file in path.iterdir()}


def npy(array: Any) -> bytes:
    """Return an array as the bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def rows_record(X: Any, kind: str | None = None) -> dict[str, Any]:
    """Return the record of rows in a dtype, by default their own."""
    kind = kind or np.asarray(X).dtype.str
    return record_of(digests_of(canonical(X, kind)), np.shape(X), kind)


def _named(constants: Mapping[str, Any]) -> dict[str, Any]:
    return {"of Z" if key == "of_Z" else key: value for key, value in constants.items()}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**old, **new}.items() if value is not GONE}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the vectors of a document, with the bytes of their files."""
    document = json.loads(path.read_text())
    contents = {key: base64.b64decode(content) for key, content in document["files"].items()}
    for vector in document["vectors"]:
        files = {"certificate.json": vector["certificate"].encode("latin-1")}
        if vector["data"] is not None:
            files["data.npz"] = contents[vector["data"]]
        yield {**vector, "files": files, "inputs": {name: contents[key] for name, key in vector["inputs"].items()}}
