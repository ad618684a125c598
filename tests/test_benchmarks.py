"""benchmarks/collect.py and gpu.py: what they keep of a run, what they refuse to keep, and that nothing is left out."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
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
    scripts = {path.name for path in FOLDER.glob("*.py")} - {
        "before_after.py",
        "collect.py",
        "gpu.py",
        "gpu_agreement.py",
        "gpu_run.py",
        "recheck.py",
        "data_sets.py",
        "network_programs.py",
        "reproduce_fast.py",
    }  # compares versions; runs the others; need a GPU; another version; data sets; programs; results
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


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def perform(gpu, monkeypatch, tmp_path):
    """Run a step of our own in the dry mode; return the exit code and what was kept."""

    def of(work):
        monkeypatch.setitem(gpu.STEPS, "jacobian", work)
        code = gpu.perform(gpu.Run("jacobian", tmp_path, True, 60.0, tmp_path))
        return code, json.loads((tmp_path / "jacobian.json").read_text())

    return of


def test_the_script_for_a_gpu_runs_every_step_within_nine_minutes(gpu):
    script = (FOLDER / "gpu.sh").read_text()
    steps = {name: int(limit) for name, limit in re.findall(r"^  step (\w+) (\d+)$", script.split("\nelse\n")[1], re.M)}
    assert list(steps) == list(gpu.STEPS)
    dry = re.findall(r"^  step \"?([\w ]+?)\"? \d+", script.split("\nelse\n")[0], re.M)
    assert " ".join(dry).split() == list(gpu.STEPS)
    assert int(re.search(r"^deadline=(\d+)$", script, re.MULTILINE)[1]) <= 540
    assert steps["tests"] + steps["agreement"] <= 180  # the first part
    assert sum(limit for name, limit in steps.items() if name != "mnist") < 540 + 60
    assert len(steps) <= 8  # files that come back


def test_a_step_keeps_what_it_found_before_it_failed(perform):
    def work(run):
        run.note("one", 1.0)
        raise ValueError(f"in {Path(__file__).resolve()}")

    code, document = perform(work)
    assert (code, document["results"]) == (1, {"one": 1.0})
    assert document["status"] == f"failed: in {Path(__file__).name}"
    assert {"accelerator", "driver"}.isdisjoint(document["machine"])
    assert {"python", "torch", "numpy"} <= set(document["versions"])
    assert document["dry"] is True
    assert not re.search(r"/(home|root|work|tmp|usr)/", json.dumps(document))


def test_a_step_that_cannot_run_is_skipped_and_one_that_is_stopped_says_so(gpu, perform):
    def cannot(run):
        raise gpu.Skipped("there is none")

    def stopped(run):
        run.note("one", 1.0)
        gpu._stopped()

    assert perform(cannot)[0] == 0
    assert perform(cannot)[1]["status"] == "skipped: there is none"
    code, document = perform(stopped)
    assert (code, document["status"], document["results"]) == (1, "stopped by its time limit", {"one": 1.0})


def test_the_proof_of_a_jacobian_is_checked_again(gpu, perform):
    code, document = perform(gpu.jacobian)
    assert (code, document["status"]) == (0, "done")
    results = document["results"]
    assert [results[f"N = {N}"]["rigor"] for N in (120, 200)] == ["PROOF", "PROOF"]
    assert results["N = 120, re-check on the host"]["verdict"] == "HOLDS"


def test_disagreements_are_counted_and_open_verdicts_are_told(gpu, perform):
    import alignver as av

    holds, fails = av.check_rank([[1.0]], rank=1, certify=False), av.check_rank([[1.0]], rank=0, certify=False)
    open_ = dataclasses.replace(holds, verdict=av.Verdict.UNDECIDED)

    from gpu_agreement import Comparisons, near

    def work(run):
        made = Comparisons(run)
        made.of("equal", lambda: made.verdicts(holds, holds))
        made.of("opposite", lambda: made.verdicts(holds, fails))
        made.of("open", lambda: made.verdicts(holds, open_))
        made.of("near", lambda: near([1.0, 2.0], [1.0, 2.0 + 2.0**-45]))
        made.of("far", lambda: near([1.0, 2.0], [1.0, 2.0 + 2.0**-30]))
        made.of("raises", lambda: near([1.0], None))

    result = perform(work)[1]["results"]
    assert [line.split(":")[0] for line in result["disagreements"]] == ["opposite", "far", "raises"]
    assert [entry["verdicts"] for entry in result["undecided on one side"]] == [["HOLDS", "UNDECIDED"]]


def test_nothing_is_decided_with_other_arithmetic(gpu, perform, monkeypatch):
    from alignver.features import tiles

    code, document = perform(gpu.require_plain_arithmetic)
    assert code == 0
    assert document["arithmetic"]["cancelling products"] == {"as inner products": 1.0, "exact": 0.0}
    monkeypatch.setattr(tiles, "unsupported_arithmetic", lambda place, order: "it multiplies in a strange way")
    code, document = perform(gpu.require_plain_arithmetic)
    assert code == 1
    assert "strange way" in document["status"]
