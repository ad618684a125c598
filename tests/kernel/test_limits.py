"""A malformed certificate costs one printable line, exit code 2, and neither time nor memory."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from alignver.kernel import seal
from alignver.kernel.certificate import canonical

SECONDS, MEGABYTES = 5.0, 200
# Reads folders and matrices from stdin. Each is looked at in a fork, which begins with the memory of the imports alone.
RUNNER = """
import ast, contextlib, io, os, resource, signal, sys, time
import alignver.kernel.__main__ as command
def look(folder, matrix):
    signal.alarm(60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = command.main([folder, "--input", "A=" + matrix])
    spent = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(ascii([code, said.getvalue(), spent, grown]), flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        look(*ast.literal_eval(line))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        print(ascii(f"ended with status {status}"), flush=True)
"""


@pytest.fixture(scope="module")
def look() -> Iterator[Callable[[Path, Path], tuple[int, str, float, float]]]:
    """Return a function that verifies a folder: the exit code, what was said, the seconds, the megabytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # no threads that a fork would leave behind
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def of(folder: Path, matrix: Path) -> tuple[int, str, float, float]:
        print(ascii([str(folder), str(matrix)]), file=process.stdin, flush=True)
        computed = ast.literal_eval(process.stdout.readline())
        assert isinstance(computed, list), computed
        return tuple(computed)

    yield of
    process.communicate(timeout=60)
    assert process.returncode == 0


def text(folder: Path, content: bytes) -> None:
    (folder / "certificate.json").write_bytes(content)


def edited(**changes):
    def edit(folder: Path) -> None:
        document = json.loads((folder / "certificate.json").read_text())
        text(folder, canonical({**document, **changes}))

    return edit


def archive(folder: Path, compression: int, content: bytes) -> None:
    with zipfile.ZipFile(folder / "data.npz", "w", compression, compresslevel=1) as file:
        for name in ("columns", "rows"):
            file.writestr(f"{name}.npy", content)


def declared(folder: Path, shape: list[int], size: int) -> None:
    """Declare arrays of a shape in a sparse file of some size."""
    document = json.loads((folder / "certificate.json").read_text())
    for entry in document["data"].values():
        entry["shape"] = shape
    document["data_file"] = {**(document["data_file"] or {}), "bytes": size}
    text(folder, canonical(document))
    with (folder / "data.npz").open("r+b") as stream:
        stream.truncate(size)


def replaced(name: str, make):
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return edit


MALFORMED = {
    "empty": lambda folder: text(folder, b""),
    "no JSON": lambda folder: text(folder, b"\x1b[2J\x1b[8m" * 1000),
    "nested lists": lambda folder: text(folder, b"[" * 1_000_000),
    "nested mappings": lambda folder: text(folder, b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "a number of a million digits": lambda folder: text(folder, b'{"version": ' + b"9" * 1_000_000 + b"}"),
    "another text": lambda folder: text(folder, b"{} " + b" " * 1_000_000),
    "a sparse text of 64 GiB": lambda folder: os.truncate(folder / "certificate.json", 1 << 36),
    "a sparse archive of 64 GiB": lambda folder: os.truncate(folder / "data.npz", 1 << 36),
    "a compressed bomb": lambda folder: archive(folder, zipfile.ZIP_DEFLATED, b"\0" * 300_000_000),
    "members that are none": lambda folder: archive(folder, zipfile.ZIP_STORED, b"\x93NUMPY\1\0\xff\xff"),
    "arrays of 2^60 entries": lambda folder: declared(folder, [1 << 60], 1000),
    "arrays whose sizes wrap around": lambda folder: declared(folder, [1 << 32, 1 << 32], 1 << 20),
    "arrays of no columns and 2^62 rows": lambda folder: declared(folder, [1 << 62, 0], 1000),
    "arrays of negative sizes": lambda folder: declared(folder, [-8], 1000),
    "arrays of 600 MB in a sparse file": lambda folder: declared(folder, [600_000_000 // 16], 600_000_700),
    "a pipe for the text": replaced("certificate.json", os.mkfifo),
    "a pipe for the archive": replaced("data.npz", os.mkfifo),
    "a folder for the text": replaced("certificate.json", os.mkdir),
    "a link to itself": replaced("data.npz", lambda path: os.symlink(path, path)),
    "a device": replaced("data.npz", lambda path: os.symlink("/dev/zero", path)),
    "no archive": lambda folder: (folder / "data.npz").unlink(),
    "a claim that is a list": edited(claim=["rank"]),
    "constants that are a list": edited(constants=[1]),
    "hostile words": edited(claim="\x1b[2J\x1b[8mFORGED\u202e"),
    "an unknown version": edited(version=3),
    "a version of another kind": edited(version=True),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_folders_cost_a_line(case, look, tmp_path):
    claim = {"rows": np.arange(2), "columns": np.arange(2)}
    folder = seal("rank", "minor", {"A": np.eye(2)}, claim, {"rank": 2}).save(tmp_path / "proof")
    np.save(tmp_path / "A.npy", np.eye(2))
    MALFORMED[case](folder)
    code, words, spent, grown = look(folder, tmp_path / "A.npy")
    assert code == 2, words
    assert words.endswith("\n")
    assert words[:-1].isprintable()
    assert spent < SECONDS
    assert grown < MEGABYTES + (600 if "600 MB" in case else 0)
