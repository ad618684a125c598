"""Vectors of the format itself: files of one certificate, changed byte by byte."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np

from alignver.kernel.certificate import canonical
from tests.vectors.case import Case, Files, npy, valid
from tests.vectors.matrices import WIDE, ints

BASE = valid("as it is", "rank", "gram", {"A": WIDE}, {"scaling": ints(0, 0), "shift": np.array([0.5])},
             rank=2, side="rows", s_min=1.5)  # fmt: skip
BARE = valid("without arrays", "not-rank", "shape", {"A": WIDE}, {}, rank=3)


def bad(name: str, reason: str, edit: Callable[[Files], Files], case: Case = BASE) -> Case:
    return dataclasses.replace(case, name=name, rejected="format", statement=None, reason=reason, edit=edit)


def text(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: {**files, "certificate.json": change(files["certificate.json"])}


def swapped(old: bytes, new: bytes) -> Callable[[Files], Files]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return text(change)


def resealed(change: Callable[[dict[str, Any]], None]) -> Callable[[Files], Files]:
    """Change the document and seal it again."""

    def changed(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        sealed = {key: value for key, value in document.items() if key not in ("seal", "data_file")}
        document["seal"] = hashlib.sha256(canonical(sealed)).hexdigest()
        return canonical(document)

    return text(changed)


def fields(**values: Any) -> Callable[[Files], Files]:
    return resealed(lambda document: document.update(values))


def constants(**values: Any) -> Callable[[Files], Files]:
    return resealed(lambda document: document["constants"].update(values))


def archive(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    """Change data.npz, and name the changed file in the document."""

    def changed(files: Files) -> Files:
        data = change(files["data.npz"])
        document = json.loads(files["certificate.json"])
        document["data_file"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return {"certificate.json": canonical(document), "data.npz": data}

    return changed


def zipped(**members: bytes) -> Callable[[Files], Files]:
    def change(data: bytes) -> bytes:
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in members.items():
                info = zipfile.ZipInfo(f"{name}.npy")
                info.create_system = 3
                file.writestr(info, content)
        return buffer.getvalue()

    return archive(change)


def of_text() -> Iterator[Case]:
    yield BASE
    yield BARE
    yield bad("an empty file", "no JSON", text(lambda content: b""))
    yield bad("an array", "one object", text(lambda content: b"[]"))
    yield bad("an object of no fields", "exactly the fields", text(lambda content: b"{}"))
    yield bad("truncated", "no JSON", text(lambda content: content[:-9]))
    yield bad("a line feed at the end", "one serialization", text(lambda content: content + b"\n"))
    yield bad("a byte order mark", "ASCII", text(lambda content: b"\xef\xbb\xbf" + content))
    yield bad("two spaces", "one serialization", text(lambda content: content.replace(b"\n  ", b"\n    ")))
    yield bad(
        "one line", "one serialization", text(lambda content: json.dumps(json.loads(content), sort_keys=True).encode())
    )
    yield bad(
        "keys in another order",
        "sorted",
        text(lambda content: json.dumps(dict(reversed(json.loads(content).items())), indent=1).encode()),
    )
    yield bad("a key twice", "unique keys", swapped(b' "claim"', b' "claim": "rank",\n "claim"'))
    yield bad("a string that is not ASCII", "escaped", swapped(b"test vectors", "test v\u00e9ctors".encode()))
    yield bad("an escape in capitals", "lower-case digits", swapped(b"test vectors", b"test v\\u00E9ctors"))
    yield bad("an escape that is not needed", "one serialization", swapped(b"test vectors", b"t\\u0065st vectors"))
    yield bad("an integer with a fraction", "a float is hexadecimal", swapped(b'"rank": 2', b'"rank": 2.0'))
    yield bad("an integer with a sign", "no JSON", swapped(b'"rank": 2', b'"rank": +2'))
    yield bad("an integer with an exponent", "one serialization", swapped(b'"rank": 2', b'"rank": 2e0'))
    yield bad("an integer of 5000 digits", "4300 digits at most", swapped(b'"rank": 2', b'"rank": ' + b"2" * 5000))
    yield bad("a field missing", "exactly the fields", resealed(lambda document: document.pop("versions")))
    yield bad("a field more", "exactly the fields", fields(comment="believe me"))
    for version in (0, 3, True, "2", None, 2.0):
        yield bad(f"version {version!r}", "1 or 2, an integer", fields(version=version))
    yield bad("another format", "alignver certificate", fields(format="certificate"))
    yield bad("another claim", "unknown", fields(claim="truth"))
    yield bad("no claim", "a string", fields(claim=None))
    yield bad("a method of a list", "a string", fields(method=["gram"]))
    yield bad("constants of a list", "an object", fields(constants=[]))
    yield bad("inputs of a list", "an object", fields(inputs=[]))
    yield bad("versions of text", "an object", fields(versions="2"))
    yield bad("a seal of another content", "the seal", swapped(b'"rank": 2', b'"rank": 1'))
    yield bad("a seal in capitals", "lower-case digits", text(lambda content: _upper(content)))
    yield bad("no seal", "a string", swapped(b'"seal": "', b'"seal": null,\n "x": "'))
    yield bad("a float in decimal digits", "hexadecimal", _unsealed_float(0.5))
    yield bad("a float in another form", "0x1.8000000000000p+0", constants(s_min={"float": "0x3p-1"}))
    yield bad("a float in decimal text", "hexadecimal", constants(s_min={"float": "1.5"}))
    yield bad("a float in capitals", "lower case", constants(s_min={"float": "0X1.8000000000000P+0"}))
    yield bad("a float that is infinite", "finite", constants(s_min={"float": "inf"}))
    yield bad("a float that is not a number", "finite", constants(s_min={"float": "nan"}))
    yield bad("a float that overflows", "finite", constants(s_min={"float": "0x1.0000000000000p+1024"}))
    yield bad("the token NaN", "no JSON", swapped(b'"rank": 2', b'"rank": NaN'))
    yield bad("the token Infinity", "no JSON", swapped(b'"rank": 2', b'"rank": Infinity'))


def _upper(content: bytes) -> bytes:
    seal = json.loads(content)["seal"].encode()
    return content.replace(seal, seal.upper())


def _unsealed_float(value: float) -> Callable[[Files], Files]:
    """Write a float in decimal digits where the seal is of the hexadecimal ones."""

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        document["constants"]["s_min"] = {"float": value.hex()}
        sealed = {key: entry for key, entry in document.items() if key not in ("seal", "data_file")}
        document["seal"] = hashlib.sha256(canonical(sealed)).hexdigest()
        document["constants"]["s_min"] = value
        return canonical(document)

    return text(change)


def of_arrays() -> Iterator[Case]:
    scaling, shift = npy(ints(0, 0)), npy(np.array([0.5]))
    yield bad("no data.npz", "missing", lambda files: {"certificate.json": files["certificate.json"]})
    yield bad("data.npz that is not named", "data_file is null", lambda files: {**files, "data.npz": b"PK"}, BARE)
    yield bad(
        "data_file null",
        "a size and a digest",
        text(lambda content: canonical({**json.loads(content), "data_file": None})),
    )
    yield bad(
        "data.npz of another digest",
        "one byte of the directory",
        lambda files: {**files, "data.npz": files["data.npz"][:-1] + b"\1"},
    )
    yield bad("data.npz truncated", "it ends early", archive(lambda data: data[:200]))
    yield bad("data.npz longer", "at most 1024 bytes more for each array", archive(lambda data: data + b"\0" * 4096))
    yield bad("a compressed member", "method 0", archive(lambda data: data[:8] + b"\10\0" + data[10:]))
    yield bad("members in another order", "sorted", zipped(shift=shift, scaling=scaling))
    yield bad("a member of another name", "the declared arrays", zipped(scaling=scaling, shift2=shift))
    yield bad("a member missing", "the declared arrays", zipped(scaling=scaling))
    yield bad("an array of another content", "its record", zipped(scaling=npy(ints(0, 1)), shift=shift))
    yield bad("an array of another dtype", "its record", zipped(scaling=npy(np.zeros(2)), shift=shift))
    yield bad("an array of another shape", "its record", zipped(scaling=npy(ints(0, 0)[None]), shift=shift))
    yield bad(
        "an array in column-major order", "row-major", zipped(scaling=scaling.replace(b"False", b"True "), shift=shift)
    )
    yield bad("an array with a pickle", "no objects", zipped(scaling=scaling.replace(b"<i8", b"|O"), shift=shift))
    yield bad(
        "a file of version 2.0", "version 1.0", zipped(scaling=scaling.replace(b"NUMPY\1", b"NUMPY\2"), shift=shift)
    )
    yield bad("an array with NaN", "finite", _arrays(shift=np.array([np.nan])))
    yield bad("an array of float32", "<f8, <i8, |u1", _arrays(shift=np.array([0.5], dtype=np.float32)))
    yield bad("an array of big-endian floats", "<f8", _arrays(shift=np.array([0.5], dtype=">f8")))
    yield bad("an array of three dimensions", "two at most", _arrays(shift=np.zeros((1, 1, 1))))
    yield bad("an array with a path as its name", "letters, digits, underscores", _arrays(**{"../shift": np.zeros(1)}))
    yield bad("65 arrays", "64 at most", _arrays(**{f"a{k}": np.zeros(0) for k in range(65)}))
    huge = {"sha256": "0" * 64, "dtype": "<f8", "shape": [1 << 28]}
    yield bad("an array of 2 GiB", "too large", resealed(lambda document: document["data"].update(shift=huge)))
    yield bad(
        "a negative size",
        "sizes are at least 0",
        resealed(lambda document: document["data"]["shift"].update(shape=[-1])),
    )
    yield bad(
        "a size of true",
        "sizes are integers",
        resealed(lambda document: document["data"]["shift"].update(shape=[True])),
    )
    yield bad(
        "a record with another field",
        "dtype, shape, sha256",
        resealed(lambda document: document["data"]["shift"].update(name="shift")),
    )
    yield bad(
        "a record of an input without digest",
        "dtype, shape, sha256",
        resealed(lambda document: document["inputs"]["A"].pop("sha256")),
    )


def _arrays(**arrays: np.ndarray) -> Callable[[Files], Files]:
    """Replace all arrays, with their records, the seal and the digest of the file."""

    def changed(files: Files) -> Files:
        document = json.loads(files["certificate.json"])
        document["data"] = {}
        for name, array in arrays.items():
            content = f"{array.dtype.str} {array.shape}".encode() + array.tobytes()
            record = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "shape": list(array.shape),
                "dtype": array.dtype.str,
            }
            document["data"][name] = record
        sealed = {key: value for key, value in document.items() if key not in ("seal", "data_file")}
        document["seal"] = hashlib.sha256(canonical(sealed)).hexdigest()
        with_seal = {"certificate.json": canonical(document), "data.npz": b""}
        return zipped(**{name: npy(array) for name, array in sorted(arrays.items())})(with_seal)

    return changed


CASES = [*of_text(), *of_arrays()]
