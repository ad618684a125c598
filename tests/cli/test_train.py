"""``alignver train``: whole runs, runs that are killed and taken up, and folders that are not theirs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
import signal
import subprocess

import jsonschema
import numpy as np
import pytest

from alignver.report import source
from tests.cli.conftest import COMMAND, TIMEOUT, Outcome, environment
from tests.cli.trained import EPOCHS, NET, QUICK, RUN, TAU, written
from tests.one_thread import single_thread

one_thread = pytest.fixture(autouse=True, scope="module")(single_thread)

# Ends the process as kill -9 does, at the worst moment: the checkpoint is written and not yet in its place.
KILLED = """
import os, signal
real, left = os.replace, [{count}]
def replace(source, target, **more):
    if str(target).endswith("checkpoint.safetensors"):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **more)
os.replace = replace
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a model and data, instead of the other tests' inputs."""
    return written(tmp_path_factory.mktemp("train"))


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run from beginning to end in one process."""

    place: str
    outcome: Outcome


@pytest.fixture(scope="module")
def whole(files, one_thread):
    done = subprocess.run(
        [*COMMAND, "train", *RUN, "--out", "whole", "--json"],
        cwd=files,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Whole("whole", Outcome(done.returncode, done.stdout, done.stderr))


def digests(place) -> dict[str, str]:
    return {
        str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in place.rglob("*")
        if file.is_file()
    }


def same_run(first, second) -> None:
    for name in ("history.jsonl", "model.safetensors", "inputs.npz", "guarantee.json", "certificate/certificate.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_document_is_the_report(files, whole):
    assert whole.outcome.code == 0, whole.outcome.err
    document = whole.outcome.document()
    report = json.loads((files / whole.place / "report.json").read_text())
    jsonschema.validate(report, source.load(), cls=jsonschema.Draft202012Validator)
    assert report == document
    (result,) = document["results"]
    assert (result["name"], result["verdict"], result["rigor"]) == ("optimality", "HOLDS", "PROOF")
    assert document["provenance"]["training"]["at_tau"]["sentences"]
    assert set(document["provenance"]["inputs"]) == {"model", "X", "Y"}


def test_the_folder_holds_everything(files, whole):
    place = files / whole.place
    names = {"config.json", "history.jsonl", "checkpoint.safetensors", "checkpoint-tau.safetensors", "guarantee.json"}
    names |= {"model.safetensors", "inputs.npz", "report.json", "training.png"}
    names |= {"certificate/certificate.json", "certificate/data.npz"} & set(digests(place))
    assert set(digests(place)) == names | {"certificate/certificate.json"}
    records = [json.loads(line) for line in (place / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    assert [record["phase"] for record in records].count("exploration") == TAU
    assert records[-1]["loss"] < records[TAU - 1]["loss"]
    config = json.loads((place / "config.json").read_text())
    assert config["settings"]["tau"] == TAU
    assert config["settings"]["lr"] == 0.1
    assert config["settings"]["X"]["shape"] == [40, 2]
    assert config["environment"]["torch"]


def test_rows_without_a_terminal(whole):
    lines = whole.outcome.err.splitlines()
    assert any(line.split()[:3] == ["epoch", "phase", "loss"] for line in lines)
    rows = [line.split() for line in lines if line.strip()[:1].isdigit() and "exploitation" in line]
    assert rows[-1][0] == str(EPOCHS)
    assert rows[-1][-1] == "proved"
    assert "\x1b" not in whole.outcome.err


def test_the_command_of_the_report_verifies_the_certificate(here, whole):
    run = here("train", "--resume", whole.place)
    assert run.code == 0
    assert "whole is finished" in run.err
    (line,) = [line for line in run.out.splitlines() if "re-check with: alignver " in line]
    words = shlex.split(line.split("re-check with: alignver ")[1])
    again = here(*words)
    assert again.code == 0
    assert "HOLDS  proof" in again.out.splitlines()[0]


def test_verify_sees_another_input(here, files, whole, tmp_path):
    with np.load(files / whole.place / "inputs.npz") as archive:
        inputs = dict(archive)
    np.savez(tmp_path / "inputs.npz", **{**inputs, "parameters": inputs["parameters"] * 2})
    run = here("verify", f"{whole.place}/certificate", "--input", str(tmp_path / "inputs.npz"))
    assert run.code == 1
    assert "digests differ" in run.out
    twice = ["--input", f"{whole.place}/inputs.npz", "--input", f"x={whole.place}/inputs.npz:x"]
    run = here("verify", f"{whole.place}/certificate", *twice)
    assert (run.code, run.out) == (2, "")
    assert "x twice" in run.err


def test_a_run_folder_names_what_its_certificate_is_about(here, files, whole):
    run = here("verify", whole.place)
    assert run.code == 0, run.err
    assert "HOLDS  proof (network)" in run.out.splitlines()[0]
    assert "the parameters are read from whole/model.safetensors" in run.out
    assert "x and Y are read from train.npz" in run.out
    run = here("verify", whole.place, "--data", "other.npz")
    assert run.code == 1
    assert "Y is not the input that this certificate is about" in run.out
    assert "--data other.npz is read in place of the data of the run" in run.out
    run = here("verify", whole.place, "--input", f"{whole.place}/inputs.npz")
    assert (run.code, run.out) == (2, "")
    assert "other options with a run folder" in run.err
    copied(files, "damaged")
    (files / "damaged" / "model.safetensors").write_bytes(b"no tensors")
    run = here("verify", "damaged")
    assert (run.code, run.out) == (2, "")
    assert "damaged" in run.err
    assert "cannot be read" in run.err


def test_a_finished_run_is_told_as_json_too(here, files, whole):
    before = digests(files / whole.place)
    run = here("train", "--resume", whole.place, "--json")
    assert run.document() == whole.outcome.document()
    run = here("train", RUN[0], "--resume", whole.place, "--data", "train.npz", "-q")
    assert run.code == 0
    assert len(run.out.splitlines()) == 1
    assert digests(files / whole.place) == before


@pytest.mark.parametrize(("phase", "count"), [("exploration", 4), ("exploitation", 9)])
def test_a_killed_run_goes_on_bit_for_bit(alignver, here, files, inject, whole, phase, count):
    killed = alignver("train", *RUN, "--out", phase, "-q", injected=inject(KILLED.format(count=count)))
    assert killed.code == -signal.SIGKILL
    lines = (files / phase / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == count
    assert json.loads(lines[-1])["phase"] == phase
    with (files / phase / "history.jsonl").open("a") as stream:
        stream.write('{"epoch": ')
    resumed = here("train", "--resume", phase) if phase == "exploration" else alignver("train", "--resume", phase)
    assert resumed.code == 0, resumed.err
    assert f"{phase}: resuming after epoch {count - 1} of {EPOCHS}" in resumed.err  # no more than the epoch is lost
    same_run(files / whole.place, files / phase)
    assert not list((files / phase).glob("*.part"))


def test_ctrl_c_says_how_to_go_on(here, files, whole):
    process = subprocess.Popen(
        [*COMMAND, "train", *RUN, "--out", "stopped"],
        cwd=files,
        env=environment(NAP="0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "exploration" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (130, "")
    message = err.splitlines()[-1]
    assert "interrupted; resume after epoch" in message
    words = shlex.split(message.partition("with: alignver ")[2])
    assert words == ["train", "--resume", "stopped"]
    assert here(*words, "-q").code == 0
    same_run(files / whole.place, files / "stopped")


def copied(files, name: str) -> None:
    """Copy the whole run without its end."""
    shutil.copytree(files / "whole", files / name)
    (files / name / "report.json").unlink()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr", "0.2"], ["lr 0.1 there, 0.2 here"]),
        (["--epochs", "20", "--seed", "1"], ["epochs 12 there, 20 here", "seed 0 there, 1 here"]),
        (["--data", "other.npz"], ["Y sha256", "there", "here"]),
        (["net.py:other"], ['function "build" there, "other" here']),
        (["edited.py:build"], ["code sha256"]),
        (["--out", "new"], ["--out", "with --resume"]),
    ],
)
def test_another_run_is_refused_and_nothing_overwritten(here, files, whole, more, words):
    (files / "edited.py").write_text(NET + "\n")
    if not (files / "unfinished").exists():
        copied(files, "unfinished")
    before = digests(files / "unfinished")
    run = here("train", "--resume", "unfinished", *more)
    assert (run.code, run.out) == (2, "")
    for word in words:
        assert word in run.err
    assert digests(files / "unfinished") == before


def test_another_version_is_said_and_a_folder_of_a_script_refused(here, files, whole):
    copied(files, "older")
    config = json.loads((files / "older" / "config.json").read_text())
    config["environment"]["torch"] = "1.0"
    (files / "older" / "config.json").write_text(json.dumps(config))
    run = here("train", "--resume", "older")
    assert run.code == 0
    assert "torch 1.0 when the run began" in run.err
    (files / "older" / "report.json").unlink()
    (files / "older" / "config.json").write_text(json.dumps({"format": 1, "settings": {"lr": 0.1}}))
    run = here("train", "--resume", "older")
    assert (run.code, run.out) == (2, "")
    assert "a run of 'alignver train'" in run.err


def test_a_run_of_an_earlier_version_goes_on(here, files, whole):
    """It had no batch size of its own for exploitation."""
    copied(files, "earlier")
    config = json.loads((files / "earlier" / "config.json").read_text())
    del config["settings"]["exploit_batch_size"]
    (files / "earlier" / "config.json").write_text(json.dumps(config))
    assert here("train", "--resume", "earlier").code == 0
    same_run(files / whole.place, files / "earlier")


def test_test_samples_have_a_column_and_the_gap_gets_advice(here, files):
    run = here("train", *QUICK, "--epochs", "4", "--test", "other.npz", "--batch-size", "10", "--out", "tested")
    header = next(line for line in run.err.splitlines() if line.split()[:1] == ["epoch"])
    assert header.split() == ["epoch", "phase", "loss", "error", "test", "gap", "bound", "rank"]
    lines = [json.loads(line) for line in (files / "tested/history.jsonl").read_text().splitlines()]
    assert all(0.0 <= line["test_error"] <= 1.0 < line["test_loss"] + 1.0 for line in lines)
    assert [line["steps"] for line in lines] == [4, 8, 12, 16]
    assert run.code == 1
    assert "next: the gap bound is" in run.out
    assert "--exploit-optimizer newton" in run.out
    assert "more epochs" in run.out


def test_an_end_that_was_lost_is_made_again(here, files, whole):
    copied(files, "lost")
    (files / "lost" / "model.safetensors").unlink()
    run = here("train", *RUN, "--resume", "lost", "--json")
    assert run.document()["results"][0]["verdict"] == "HOLDS"
    same_run(files / whole.place, files / "lost")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL"]),
        (["net.py:build"], ["--data"]),
        (["net.py:build", "--data", "train.npz"], ["--loss"]),
        (["net.py:build", "--data", "train.npz", "--loss", "squared"], ["--epochs"]),
        ([*RUN, "--out", "whole"], ["--out", "holds a run"]),
        ([*RUN, "--out", "."], ["--out", "other files"]),
        ([*RUN, "--out", "net.py"], ["--out", "not a folder"]),
        ([*RUN, "--tau", "12"], ["--tau", "epoch 12 of 12"]),
        ([*RUN, "--epsilon", "0"], ["--epsilon", "positive"]),
        ([*RUN, "--gate", "-1"], ["--gate"]),
        ([*RUN, "--lr", "nan"], ["--lr"]),
        ([*RUN, "--optimizer", "adam", "--momentum", "0.5"], ["--momentum", "adam"]),
        ([*RUN, "--exploit-optimizer", "sgdd"], ["--exploit-optimizer", "sgdd"]),
        (
            [*RUN, "--exploit-optimizer", "lbfgs", "--exploit-batch-size", "9"],
            ["--exploit-optimizer", "batches of 9 of 40"],
        ),
        ([*RUN, "--batch-size", "few"], ["--batch-size", "'few' is neither a positive integer nor 'all'"]),
        ([*RUN, "--test", "gone.npz"], ["--test", "gone.npz", "no such file"]),
        ([*RUN, "--layer", "nowhere"], ["--layer", "nowhere"]),
        ([*RUN, "--loss", "squaredd"], ["--loss"]),
        ([*RUN, "--tolerance", "0"], ["--tolerance"]),
        ([*RUN, "--data", "gone.npz"], ["gone.npz", "no such file"]),
        (["--resume", "gone"], ["--resume", "gone", "config.json"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_bad_input_leaves_no_folder(here, files, whole, arguments, words):
    before = {entry.name for entry in files.iterdir()}
    run = here("train", *arguments)
    assert (run.code, run.out) == (2, "")
    for word in words:
        assert word in run.err
    assert {entry.name for entry in files.iterdir()} - before <= {"__pycache__"}
