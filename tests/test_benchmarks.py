"""benchmarks/collect.py: what it keeps of a run, what it refuses to keep, and that it knows every benchmark."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def collect(monkeypatch):
    spec = importlib.util.spec_from_file_location("collect", FOLDER / "collect.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "collect", module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(collect, monkeypatch, tmp_path):
    """Collect a script of our own; return whether a file was written, and the file's content if there is one."""

    def of(source: str, minutes: float = 1.0, more: Sequence[str] = ()):
        (tmp_path / "own.py").write_text(f'"""A benchmark of the tests.\n\nMore."""\n{source}')
        monkeypatch.setattr(collect, "FOLDER", tmp_path)
        monkeypatch.setattr(collect, "RUNS", {"own": collect.Run("own.py")})
        monkeypatch.setattr(collect, "VERSIONS", 'print(\'{"versions": {"python": "3"}, "blas": []}\')')
        written = collect.collect("own", threads=1, minutes=minutes, out=tmp_path / "results", more=more)
        file = tmp_path / "results" / "own.json"
        return written, json.loads(file.read_text()) if file.exists() else None

    return of


def test_every_script_is_known_and_has_a_docstring(collect):
    scripts = {path.name for path in FOLDER.glob("*.py")} - {"collect.py"}
    assert {run.script for run in collect.RUNS.values()} == scripts
    assert all((FOLDER / script).read_text().startswith('"""') for script in scripts)


def test_targets_are_found_in_the_words_of_each_script(collect):
    lines = [
        "alignver --help                         0.163    2.2  0.5  met",
        "proof of full row rank / (J @ J.T and cholesky)        1.62 x   target <= 1.5  MISSED",
        "check membership   1.9   8.2  1.5  NOT met",
        "  reached  23.5 times faster than torchjd, the fastest correct peer; at least 1",
        "  MISSED   relative error 1e-3, at most 1e-12",
        "the targets were met by all of them",
        "nothing here",
    ]
    assert [target["met"] for target in collect.targets(lines)] == [True, False, False, True, False]
    assert collect.targets(lines)[3]["text"].startswith("23.5 times faster")


def test_a_run_is_kept_with_what_it_printed(run):
    written, document = run("print('time  1.0 s   target <= 2  met')")
    assert written
    assert document["output"] == ["time  1.0 s   target <= 2  met"]
    assert document["targets"] == [{"text": "time  1.0 s  target <= 2", "met": True}]
    assert document["what"] == "A benchmark of the tests."
    assert document["command"] == "python benchmarks/own.py"
    assert document["machine"]["cores"] >= 1


def test_a_missed_target_is_a_result(run):
    written, document = run("print('time  3.0 s   target <= 2  MISSED'); raise SystemExit(1)")
    assert written
    assert [target["met"] for target in document["targets"]] == [False]


def test_a_crash_is_no_result(run, capsys):
    assert run("print('time  1.0 s   target <= 2  met'); 1 / 0") == (False, None)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_timeout_is_no_result_and_ends_what_the_script_began(run, capsys):
    source = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run(source, minutes=0.02) == (False, None)
    assert "not ended after 0.02 minutes" in capsys.readouterr().err


def test_the_threads_reach_the_script(run):
    _, document = run("import os; print(os.environ['OMP_NUM_THREADS'])")
    assert document["output"] == ["1"]
    assert document["threads"] == 1


def test_further_arguments_reach_the_script_and_stand_in_the_command_without_their_folder(run, tmp_path):
    _, document = run("import sys\nprint(sys.argv[1:])", more=["--features", str(tmp_path / "Z.npy")])
    assert str(tmp_path / "Z.npy") in document["output"][0]
    assert document["command"] == "python benchmarks/own.py --features Z.npy"
