"""Reports as files: a page and JUnit XML from every check, from what was kept, and where they may be written."""

from __future__ import annotations

import json
import os
import stat
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CHECKS = [
    (("membership", "J.npy", "y.npy"), 0, None),
    (("membership", "one.csv", "last.npy"), 1, "failure"),
    (("rank", "unclear.npy", "--no-certify"), 3, "error"),
    (("exploration", "J.npy", "--add-constant"), 0, None),
]


@pytest.mark.parametrize(("arguments", "code", "outcome"), CHECKS, ids=lambda value: str(value)[:30])
def test_every_check_writes_a_page_and_xml(here, files, tmp_path, arguments, code, outcome):
    page, xml = tmp_path / "r.html", tmp_path / "r.xml"
    done = here("check", *arguments, "--html", str(page), "--junit", str(xml))
    assert done.code == code
    verdict = {0: "HOLDS", 1: "FAILS", 3: "UNDECIDED"}[code]
    assert verdict in done.out
    assert verdict in page.read_text()
    (case,) = ET.parse(xml).getroot().iter("testcase")
    assert [child.tag for child in case] == [*([outcome] if outcome else []), "system-out"]
    assert "r.html (" in done.err


def test_json_stays_alone_on_stdout(here, tmp_path):
    done = here("check", "rank", "J.npy", "--json", "--html", str(tmp_path / "r.html"), "-q")
    assert done.document()["verdict"] == "HOLDS"
    assert done.err == ""


def test_a_report_of_a_kept_document_is_the_page_of_the_check(here, tmp_path):
    page, again, saved = tmp_path / "r.html", tmp_path / "again.html", tmp_path / "found.json"
    proof = str(tmp_path / "proof")
    done = here("check", "rank", "J.npy", "--certificate", proof, "--html", str(page), "--json")
    saved.write_text(done.out)
    assert json.loads(done.out)["provenance"]["verify"] == f"alignver verify {proof} --input A=J.npy"
    told = here("report", str(saved), "-o", str(again), "--junit", str(tmp_path / "r.xml"))
    assert (told.code, told.out) == (0, "")
    assert again.read_text() == page.read_text()
    assert "alignver verify" in page.read_text()
    assert ET.parse(tmp_path / "r.xml").getroot().get("tests") == "1"


def test_the_command_on_the_page_works(here, files, tmp_path):
    proof = tmp_path / "proof"
    here("check", "rank", "J.npy", "--certificate", str(proof), "--html", str(tmp_path / "r.html"))
    done = here("verify", str(proof), "--input", "A=J.npy", "--html", str(tmp_path / "verified.html"))
    assert done.code == 0
    assert "HOLDS" in (tmp_path / "verified.html").read_text()


def test_a_run_is_reported_in_its_folder_while_it_goes_on(here, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "history.jsonl").write_text('{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "lo')
    assert here("report", str(run)).code == 0
    text = (run / "report.html").read_text()
    assert "not finished" in text
    assert "not written whole" in text
    refused = here("report", str(run), "--junit", str(tmp_path / "r.xml"))
    assert refused.code == 2
    assert "without a verdict" in refused.err


@pytest.mark.parametrize("option", ["--html", "--junit"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(here, tmp_path, monkeypatch, option):
    for target, message in ((str(tmp_path), "a folder"), (str(tmp_path / "no" / "r"), "which does not exist")):
        done = here("check", "rank", "nothing.npy", option, target)  # the input is not looked at
        assert done.code == 2
        assert done.out == ""
        assert f"{option}: got {target}" in done.err
        assert message in done.err
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", lambda *_: False)
        assert "cannot be written" in here("check", "rank", "J.npy", option, str(tmp_path / "r")).err


def test_a_full_disk_is_said_after_the_report(alignver):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = alignver("check", "rank", "J.npy", "--html", "/dev/full")
    assert done.code == 70
    assert "HOLDS" in done.out
    assert "--html /dev/full cannot be written: No space left on device" in done.err
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)  # it was written to, not replaced


def test_a_file_that_is_there_is_replaced_whole_and_a_link_stays_a_link(here, tmp_path):
    page, link = tmp_path / "r.html", tmp_path / "link.html"
    page.write_text("old")
    link.symlink_to(page)
    here("check", "rank", "J.npy", "--html", str(link))
    assert link.is_symlink()
    assert "HOLDS" in page.read_text()
    assert {entry.name for entry in tmp_path.iterdir()} == {"r.html", "link.html"}


def test_an_old_verdict_does_not_outlive_a_run_without_one(here, tmp_path):
    xml = tmp_path / "r.xml"
    here("check", "rank", "J.npy", "--junit", str(xml))
    assert here("check", "rank", "nothing.npy", "--junit", str(xml)).code == 2
    (case,) = ET.parse(xml).getroot().iter("testcase")
    error = case.find("error")
    assert error is not None
    assert "nothing.npy" in (error.get("message") or "")


def test_options_of_a_check_belong_after_its_name(here, tmp_path):
    done = here("check", "--html", str(tmp_path / "r.html"), "rank", "J.npy")
    assert done.code == 2
    assert "after the command" in done.err


def test_images_with_equal_inputs_are_on_the_page(here, files, tmp_path):
    pytest.importorskip("torch")
    import numpy as np

    X = np.random.default_rng(0).random((6, 1, 4, 4)).astype(np.float32)
    X[5] = X[1]
    np.savez(tmp_path / "data.npz", X=X, Y=np.array([0, 1, 0, 1, 0, 0]))
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
    )
    page = tmp_path / "r.html"
    arguments = (
        "alignment",
        f"{tmp_path}/net.py:build",
        "--data",
        str(tmp_path / "data.npz"),
        "--loss",
        "cross_entropy",
    )
    assert here("check", *arguments, "--html", str(page)).code == 1
    assert "sample 1 label 1 and sample 5 label 0" in page.read_text()


def test_help_loads_no_array_library():
    import subprocess

    code = (
        "import sys, alignver.cli.main as main\n"
        "try: main.run(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('cupy', 'jinja2', 'matplotlib', 'numpy', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
