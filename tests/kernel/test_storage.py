"""Certificate files: hostile, truncated, altered, half-written; and the ones that must survive."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.kernel.certificate import Tampered
from alignver.proof import load_certificate
from alignver.results import Verdict
from tests.kernel.test_certificates import certificate_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return certificate_of("null vector")[0].save(tmp_path / "c")


def unreadable(path: Path) -> None:
    with pytest.raises(InvalidInput):
        load_certificate(path)


def test_one_changed_byte_anywhere_is_refused(saved: Path) -> None:
    _, inputs = certificate_of("null vector")
    for file in sorted(saved.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), max(1, len(content) // 400)):
            file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            unreadable(saved)
        for changed in (
            content + b" ",
            content + b"\0",
            content[:-1],
            content[: len(content) // 2],
            b"",
            b" " + content,
        ):
            file.write_bytes(changed)
            unreadable(saved)
        file.write_bytes(content)
    assert recheck(saved, **inputs).verdict is Verdict.HOLDS


def test_a_well_formed_but_altered_file_fails_the_recheck(saved: Path) -> None:
    _, inputs = certificate_of("null vector")
    text = (saved / "certificate.json").read_text()
    (saved / "certificate.json").write_text(text.replace('"exact"', '"exakt"'))
    with pytest.raises(Tampered):
        load_certificate(saved)
    result = recheck(saved, **inputs)
    assert result.verdict is Verdict.FAILS
    assert "seal" in result.reason


def test_there_is_one_spelling_of_a_float(tmp_path: Path) -> None:
    A = np.eye(2)
    certificate = seal("rank", "gram", {"A": A}, {"scaling": np.zeros(2, dtype=np.int64)}, {"rank": 2, "s_min": 0.5})
    path = certificate.save(tmp_path / "c")
    text = (path / "certificate.json").read_text()
    (path / "certificate.json").write_text(re.sub(r"\{\s+\"float\": \"0x1.0+p-1\"\s+\}", "0.5", text))
    assert json.loads((path / "certificate.json").read_text())["constants"]["s_min"] == 0.5
    with pytest.raises(Tampered):
        load_certificate(path)


def test_hostile_json(saved: Path) -> None:
    good = json.loads((saved / "certificate.json").read_text())
    texts = [
        "", "{", "[]", "null", "1", '"x"', "[" * 100_000, '{"a":' * 5000, "NaN", '{"format": Infinity}', "1" * 6000,
        "\ufeff{}", " " * (1 << 20) + "{}" * 2, json.dumps({**good, "more": 1}), json.dumps({"format": good["format"]}),
    ]  # fmt: skip
    for key in good:
        for value in (None, 1, -1, 1e308, "x", [], {}, [[[]]], True, {"a": 1}, "9" * 5000, 10**400):
            texts.append(json.dumps({**good, key: value}))
    for key in ("constants", "inputs", "versions", "data"):
        texts.append(json.dumps({**good, key: {"x": float("1e999")}}))
        texts.append(json.dumps({**good, key: {"x": {"float": "1e999"}}}))
        texts.append(json.dumps({**good, key: {"x": {"float": "nan"}}}))
    for text in texts:
        if text == json.dumps(good):
            continue
        (saved / "certificate.json").write_text(text, encoding="utf-8")
        unreadable(saved)
    (saved / "certificate.json").write_bytes(b"\xff\xfe\x00")
    unreadable(saved)
    (saved / "certificate.json").unlink()
    unreadable(saved)
    (saved / "certificate.json").mkdir()
    unreadable(saved)


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def header(shape: str, descr: str = "'<f8'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_hostile_archives(saved: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    contents = [
        b"", b"PK", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04N.", npy(np.eye(2)),
        npz({"w_bytes.npy": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED),
        npz({"w_bytes.npy": npy(np.array([Bomb()], dtype=object), allow_pickle=True)}),
        npz({"w_bytes.npy": npy(np.array([1.0, np.nan]))}),
        npz({"w_bytes.npy": npy(np.array([1.0, np.inf]))}),
        npz({"w_bytes.npy": npy(np.array(["a"]))}),
        npz({"w_bytes.npy": npy(np.eye(2) + 0j)}),
        npz({"../../w.npy": npy(np.eye(2))}),
        npz({"w_bytes.txt": b"x"}),
        npz({f"a{k}.npy": npy(np.eye(1)) for k in range(100)}),
        npz({"w.npy": header("(1000000000000, 1000000000000)")}),
        npz({"w.npy": header("(-1, 8)") + b"\0" * 64}),
        npz({"w.npy": header("(1, 1, 1, 1)") + b"\0" * 8}),
        npz({"w.npy": header("(True,)") + b"\0" * 8}),
        npz({"w.npy": header("(1,)", fortran="True") + b"\0" * 8}),
        npz({"w.npy": header("(1,)", descr="'|O'") + b"\0" * 8}),
        npz({"w.npy": header("(1,)", descr="[('a', '<f8')]") + b"\0" * 8}),
        npz({"w.npy": header("__import__('os')")}),
        npz({"w.npy": b"\x93NUMPY\x03\x00" + b"\xff" * 200}),
        npz({"w.npy": b"\x93NUMPY\x01\x00\xff\xff"}),
    ]  # fmt: skip
    for content in contents:
        (saved / "data.npz").write_bytes(content)
        unreadable(saved)
    (saved / "data.npz").unlink()
    unreadable(saved)


def test_an_oversized_file_is_refused_unread(saved: Path) -> None:
    with (saved / "certificate.json").open("r+b") as stream:
        stream.truncate(1 << 34)  # sparse
    unreadable(saved)
    with (saved / "data.npz").open("r+b") as stream:
        stream.truncate(1 << 36)
    unreadable(saved)


def test_saving_replaces_a_certificate_and_nothing_else(tmp_path: Path) -> None:
    certificate, inputs = certificate_of("gram")
    other, _ = certificate_of("solution")
    path = tmp_path / "c"
    other.save(path)
    certificate.save(path)
    assert recheck(path, **inputs).verdict is Verdict.HOLDS
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput):
        certificate.save(foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InvalidInput):
        certificate.save(foreign / "thesis.txt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "foreign"]


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignver.kernel import certificate as module

    certificate, inputs = certificate_of("solution")
    path = certificate.save(tmp_path / "c")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        certificate.save(tmp_path / "c")
    with pytest.raises(OSError, match="no space"):
        certificate.save(tmp_path / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]
    assert recheck(path, **inputs).verdict is Verdict.HOLDS


def test_relative_paths_and_new_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    certificate, inputs = certificate_of("minor")
    certificate.save("new/folder/c")
    assert recheck("new/folder/c", **inputs).verdict is Verdict.HOLDS
    shutil.rmtree("new")


def test_make_refuses_what_cannot_be_stored() -> None:
    A = {"A": np.eye(2)}
    for claim, data in (
        ("nonsense", {}),
        ("rank", {"x": np.array([np.nan])}),
        ("rank", {"x": np.array(["a"])}),
        ("rank", {"../x": np.eye(2)}),
        ("rank", {"x": [1.0]}),
    ):
        with pytest.raises(InvalidInput):
            seal(claim, "minor", A, data, {})  # type: ignore[arg-type]
    certificate = seal("rank", "minor", A, {"x": np.eye(2)}, {})
    with pytest.raises(ValueError, match="read-only"):
        certificate.data["x"][0, 0] = 3.0
