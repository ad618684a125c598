"""How ``alignver train`` ends: steps that explode, disks that are full, codes, remarks, and what a person sees."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.cli.test_terminal import on_terminal, plain
from tests.cli.trained import QUICK, RUN, written
from tests.one_thread import single_thread

one_thread = pytest.fixture(autouse=True, scope="module")(single_thread)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a model and data, instead of the other tests' inputs."""
    return written(tmp_path_factory.mktemp("train"))


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(here, files):
    arguments = ["net.py:other", "--data", "train.npz", "--loss", "squared", "--epochs", "90", "--lr", "3e4"]
    run = here("train", *arguments, "--out", "exploded")
    assert (run.code, run.out) == (2, "")
    assert "--lr: got " in run.err
    assert "step" in run.err
    lines = (files / "exploded" / "history.jsonl").read_text().splitlines()
    assert f"checkpoint.safetensors is good, after epoch {len(lines)}" in run.err
    again = here("train", "--resume", "exploded")
    assert (again.code, again.out) == (2, "")


@pytest.mark.slow
def test_a_full_disk_is_said(alignver, files, inject):
    full = inject("import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))")
    run = alignver("train", *RUN, "--out", "full", injected=full, PYTHONDONTWRITEBYTECODE="1")
    assert (run.code, run.out) == (2, "")
    assert "full/checkpoint.safetensors, which cannot be written" in run.err
    assert "then: alignver train --resume full" in run.err
    assert not (files / "full" / "checkpoint.safetensors").exists()
    assert not list((files / "full").glob("*.part"))


def test_a_picture_that_cannot_be_drawn_costs_no_verdict(here, files, monkeypatch):
    from alignver.cli import train
    from alignver.cli.exits import OutputFailed

    def full(option, target, content):
        raise OutputFailed(f"{option} {target} cannot be written: No space left on device")

    monkeypatch.setattr(train, "write_output", full)
    run = here("train", *QUICK, "--out", "undrawn")
    (verdict,) = {"HOLDS", "FAILS", "UNDECIDED"} & set(run.out.splitlines()[0].split())
    assert run.code == {"HOLDS": 0, "FAILS": 1, "UNDECIDED": 3}[verdict]
    assert "training.png cannot be written: No space left" in " ".join(run.err.split())
    names = {path.name for path in (files / "undrawn").iterdir()}
    assert {"model.safetensors", "report.json", "history.jsonl"} <= names
    assert "training.png" not in names


def test_the_folder_gets_a_free_name_and_the_verdict_its_code(here, files):
    for name in ("run-1", "run-2"):
        run = here("train", *QUICK, "--tolerance", "1e-9", "--json", "--no-prove", "--dtype", "float32")
        document = run.document()
        verdict = document["verdict"]
        assert verdict != "HOLDS"
        assert document["results"][0]["measured"]["rank_n"] is None  # not proved at the end either
        assert run.code == {"FAILS": 1, "UNDECIDED": 3}[verdict]
        assert (files / name / "report.json").exists()
    assert (files / "run-1" / "model.safetensors").read_bytes() == (files / "run-2" / "model.safetensors").read_bytes()


def test_without_matplotlib_it_says_so(here, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = here("train", *QUICK, "--out", "plain")
    assert "no training.png" in run.err
    assert not (files / "plain" / "training.png").exists()
    assert (files / "plain" / "report.json").exists()


def test_warnings_of_the_run_are_remarks(here):
    quick = ["net.py:other", "--data", "train.npz", "--loss", "binary_cross_entropy", "--epochs", "4", "--tau", "2"]
    run = here("train", *quick, "--out", "warned", "--lr", "400")
    assert "warning: the step 400" in run.err
    assert run.code == 1
    assert run.out.splitlines()[0].endswith("FAILS  proof (network)")


def test_on_a_terminal(files):
    arguments = ["--epochs", "6", "--tau", "3", "--batch-size", "40", "--out", "shown"]
    code, shown = on_terminal(files, "train", *RUN, *arguments, columns=80, NAP="0.1")
    assert code == 0
    assert "\x1b[?25l" in shown  # something is drawn while it trains
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    lines = [line.rstrip() for line in plain(shown).splitlines()]
    epochs = [line.split()[:2] for line in lines if line.split()[1:2] in (["exploration"], ["exploitation"])]
    assert [[*row] for row in epochs if row[0].isdecimal()] == [
        *([str(k), "exploration"] for k in (1, 2, 3)),
        *([str(k), "exploitation"] for k in (4, 5, 6)),
    ]
    (verdict,) = (line.split() for line in lines if "Theorems 4 and 5" in line)
    assert "HOLDS" in verdict
    assert max(len(line) for line in lines if ": alignver " not in line) <= 80


def test_quiet_is_quiet(here, files):
    run = here("train", *QUICK, "--out", "quiet", "-q")
    assert run.err == ""
    assert len(run.out.splitlines()) == 1


def test_what_a_run_cannot_use_leaves_no_folder(here, files):
    data = np.load(files / "train.npz")
    np.savez(files / "cut.npz", X=data["X"][:, :1], Y=data["Y"])
    for options, words in (
        (["--test", "cut.npz"], "--test (cut.npz): got samples of shape (1,); needs the shape of the training samples"),
        (["--width", "7"], "which puts a new hidden layer before the last one"),
    ):
        run = here("train", *QUICK, "--out", "unused", *options)
        assert (run.code, run.out) == (2, "")
        assert words in run.err
        assert "layers=" not in run.err
    assert not (files / "unused").exists()
