"""The pytest plugin: what passes and fails, the report of each kind, with workers and without anything loaded."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from alignver.results import Report

TESTS = """
import numpy as np
import pytest
import alignver as av

def test_proved(alignver_check):
    assert alignver_check(av.check_rank(np.eye(3)), rigor="PROOF").rigor == "PROOF"

def test_too_weak(alignver_check):
    alignver_check(av.check_rank(np.eye(3), certify=False), rigor="PROOF")

@pytest.mark.parametrize("rows", [2])
def test_refuted(alignver_check, rows):
    alignver_check(av.check_rank(np.ones((rows, 2))))

def test_without():
    pass
"""
# An installation of an earlier version has no entry point yet.
REGISTERED = any(
    entry.value == "alignver.testing.plugin" for entry in importlib.metadata.entry_points(group="pytest11")
)
LOADED = [] if REGISTERED else ["-p", "alignver.testing.plugin"]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "test_own.py").write_text(TESTS)

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *LOADED, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    run.folder = tmp_path
    return run


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
def test_every_result_is_in_the_report(project, workers):
    done = project("--alignver-report", "kept.json", *workers)
    assert "2 failed, 2 passed" in done.stdout
    assert "the rigor is NUMERICAL, weaker than PROOF" in done.stdout
    assert "alignver: 2 HOLDS, 1 FAILS, written to kept.json" in done.stdout.replace(
        "1 FAILS, 2 HOLDS", "2 HOLDS, 1 FAILS"
    )
    report = Report.from_json((project.folder / "kept.json").read_text())
    assert report.verdict == "FAILS"
    tests = {result.evidence[0]: str(result.verdict) for result in report.results}
    assert tests == {
        "in the test test_own.py::test_proved": "HOLDS",
        "in the test test_own.py::test_too_weak": "HOLDS",
        "in the test test_own.py::test_refuted[2]": "FAILS",
    }
    assert {"alignver", "python"} <= set(report.provenance["versions"])


def test_a_page_and_junit(project):
    project("--alignver-report", "kept.html", "-k", "proved or refuted")
    text = (project.folder / "kept.html").read_text()
    assert "in the test test_own.py::test_proved" in text
    assert "<script" not in text
    project("--alignver-report", "kept.xml", "-k", "proved or refuted")
    suite = ET.parse(project.folder / "kept.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


def test_a_report_without_results(project):
    done = project("--alignver-report", "kept.json", "-k", "without")
    assert (done.returncode, "alignver: no results, written to kept.json" in done.stdout) == (0, True)
    assert json.loads((project.folder / "kept.json").read_text())["results"] == []


def test_a_report_that_cannot_be_written_is_said(project):
    done = project("--alignver-report", "kept.pdf")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--alignver-report: got kept.pdf; needs a name that ends in .html, .json or .xml" in done.stderr
    done = project("--alignver-report", "nowhere/kept.json", "-k", "proved")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--alignver-report: nowhere/kept.json cannot be written (No such file or directory)" in done.stderr


def test_a_project_that_does_not_use_it_loads_nothing():
    code = "import alignver.testing.plugin, sys; print(sorted({'numpy', 'torch', 'scipy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
