"""Names and texts that somebody else chose cannot draw on the terminal, or on the report, that they are shown on."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from alignver.kernel import seal
from alignver.report.history import FORMAT, Record
from tests.cli.conftest import ROOT
from tests.cli.test_terminal import on_terminal

# Clear the line, go back, set the window's title, ring, conceal in two ways, reverse, begin a line.
HOSTILE = "\x1b[2K\r\x1b]0;owned\x07\x1b[8m\x9b8m\u202e\u200b\nFORGED  HOLDS  proof"
SHOWN = r"\x1b[2K\x0d\x1b]0;owned\x07\x1b[8m\x9b8m\u202e\u200b\x0aFORGED"


def certificate(folder):
    """Write a certificate by a method whose name is hostile."""
    claim = {"rows": np.array([0]), "columns": np.array([0])}
    seal("rank", HOSTILE, {"A": np.eye(2)}, claim, {"rank": 1}).save(folder / "proof")


def document(folder):
    """Write a report all of whose words are hostile."""
    words = {"statement": HOSTILE, "reason": HOSTILE, "evidence": [HOSTILE], "name": HOSTILE, "measured": {HOSTILE: 1}}
    objects = {"certificate": {"claim": HOSTILE, "path": HOSTILE}, "bounds": [], "tolerance": None, "witness": None}
    result = {**words, **objects, "verdict": "HOLDS", "rigor": "PROOF", "cost": {}}
    told = {"schema": 1, "verdict": "HOLDS", "results": [result], "provenance": {"command": HOSTILE, "verify": HOSTILE}}
    (folder / "found.json").write_text(json.dumps(told))


CASES = {
    "no such file": (lambda folder: None, ("check", "rank", f"{HOSTILE}.npy")),
    "no UTF-8": (
        lambda folder: (folder / os.fsdecode(b"\xff\x1b[8m.csv")).write_text("x"),
        ("check", "rank", os.fsdecode(b"\xff\x1b[8m.csv")),
    ),
    "a file beside it": (
        lambda folder: (folder / f"{HOSTILE}a.npy").write_text("x"),
        ("check", "rank", f"{HOSTILE}b.npy"),
    ),
    "text in a table": (
        lambda folder: (folder / "a.csv").write_bytes(b"\x1b[2K\x1b[8m\xc2\x9b8m\xe2\x80\xae,1\n"),
        ("check", "rank", "a.csv"),
    ),
    "names of arrays": (
        lambda folder: np.savez(folder / "a.npz", **{HOSTILE: np.eye(2), f"{HOSTILE}2": np.eye(2)}),
        ("check", "rank", "a.npz"),
    ),
    "no array of a name": (
        lambda folder: np.savez(folder / "a.npz", **{HOSTILE: np.eye(2)}),
        ("check", "alignment", "net.py:build", "--data", "a.npz", "--loss", "squared"),
    ),
    "names of inputs": (
        lambda folder: (certificate(folder), np.savez(folder / "a.npz", **{HOSTILE: np.eye(2)})),
        ("verify", "proof", "--input", "a.npz"),
    ),
    "certificate": (certificate, ("verify", "proof", "--input", "A=A.npy")),
    "verbose": (lambda folder: None, ("check", "rank", f"{HOSTILE}.npy", "-v")),
    "command": (lambda folder: None, ("check", HOSTILE)),
    "option": (lambda folder: None, ("check", "rank", f"--{HOSTILE}")),
    "choice": (lambda folder: None, ("check", "rank", "A.npy", "--rule", HOSTILE)),
    "item": (lambda folder: None, ("reproduce", HOSTILE)),
    "document": (document, ("report", "found.json", "--out", f"{HOSTILE}.html")),
    "history": (
        lambda folder: (folder / "h.jsonl").write_text(json.dumps({"alignver": "history", "format": HOSTILE}) + "\n"),
        ("report", "h.jsonl"),
    ),
    "module": (
        lambda folder: (
            (folder / "net.py").write_text(f"raise ValueError({HOSTILE.strip()!r})"),
            np.savez(folder / "a.npz", X=np.eye(2)),
        ),
        ("check", "structure", "net.py:build", "--data", "a.npz"),
    ),
}


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "A.npy", np.eye(2))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_hostile_text_reaches_a_terminal(folder, case):
    prepare, arguments = CASES[case]
    prepare(folder)
    _, shown = on_terminal(folder, *arguments, TERM="dumb")  # where we write no escape sequences ourselves
    assert shown.replace("\n", " ").isprintable(), repr(shown)
    assert not any(line.startswith("FORGED") for line in shown.splitlines())
    assert r"\x1b[" in shown  # it was shown, after all


def test_colours_are_all_that_a_report_sends_to_a_terminal(folder, inject):
    certificate(folder)
    # On a busy machine it takes the two seconds after which a progress bar is drawn, and lines are erased.
    never = inject("import threading; threading.Timer.start = lambda timer: None")
    path = os.pathsep.join((str(never), str(ROOT)))
    _, shown = on_terminal(folder, "verify", "proof", "--input", "A=A.npy", columns=200, PYTHONPATH=path)
    assert repr(HOSTILE)[1:40] in shown
    assert "\x1b[1;31mFAILS" in shown
    assert not any(sequence in shown for sequence in ("\x1b[2K", "\x1b]", "\x1b[8m", "\x07", "\x9b", "\u202e", "\r"))


def test_a_warning_is_a_line_of_ours(folder, inject):
    warns = inject(
        "import sys, types\n"
        "def check_rank(A, **options):\n"
        f"    import warnings; warnings.warn({HOSTILE!r}); raise SystemExit(0)\n"
        "module = types.ModuleType('alignver.checks.rank')\n"
        "module.check_rank = check_rank\n"
        "sys.modules['alignver.checks.rank'] = module\n"
    )
    path = os.pathsep.join((str(warns), os.environ.get("PYTHONPATH", "")))
    _, shown = on_terminal(folder, "check", "rank", "A.npy", TERM="dumb", PYTHONWARNINGS="default", PYTHONPATH=path)
    assert shown.startswith(f"alignver: warning: {SHOWN}")
    assert shown.replace("\n", " ").isprintable()


def test_tensors_of_a_hostile_name(here, folder):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    (folder / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(2, 2)\n")
    np.savez(folder / "a.npz", X=np.eye(2), Y=np.eye(2))
    net = {**torch.nn.Linear(2, 2).state_dict(), HOSTILE: torch.zeros(1)}
    safetensors.save_file(net, folder / "w.safetensors")
    arguments = ("--data", str(folder / "a.npz"), "--loss", "squared", "--weights", str(folder / "w.safetensors"))
    done = here("check", "alignment", f"{folder / 'net.py'}:build", *arguments)
    assert done.code == 2
    assert SHOWN in done.err
    assert done.err.replace("\n", " ").isprintable()


def test_a_page_of_a_hostile_document(here, folder):
    document(folder)
    page, xml = folder / "r.html", folder / "r.xml"
    assert here("report", str(folder / "found.json"), "--out", str(page), "--junit", str(xml)).code == 0
    for text in (page.read_text(), xml.read_text()):
        assert text.replace("\n", " ").isprintable()
        assert SHOWN in text
    assert '<pre class="command"' not in page.read_text()
    assert "is left out" in page.read_text()


def test_a_history_of_hostile_words_makes_a_page(here, folder):
    rules = {HOSTILE[-30:]: {"verdict": "FAILS"}}  # a legend has no room for more
    record = Record(0, 0, rules, HOSTILE, 0.0, 0.0, 0.0)
    assert str(record).isprintable()
    head = {"alignver": "history", "format": FORMAT, "config": {HOSTILE: HOSTILE}}
    (folder / "h.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (head, record.to_dict(), record.to_dict()))
    )
    assert here("report", str(folder / "h.jsonl"), "--out", str(folder / "r.html")).code == 0
    text = (folder / "r.html").read_text()
    assert SHOWN in text
    assert text.replace("\n", " ").isprintable()
