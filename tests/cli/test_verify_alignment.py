"""``alignver verify --model``: the inputs of an alignment's certificate made again from the model and the data."""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
NET = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)).double()

def wider():
    return torch.nn.Sequential(torch.nn.Linear(3, 13), torch.nn.Tanh(), torch.nn.Linear(13, 2)).double()
"""


@pytest.fixture
def project(tmp_path, here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "aligned_net", raising=False)
    (tmp_path / "aligned_net.py").write_text(NET)
    random = np.random.default_rng(0)
    X, Y = random.standard_normal((8, 3)), random.standard_normal((8, 2))
    np.savez(tmp_path / "data.npz", X=X, Y=Y)
    np.savez(tmp_path / "other_X.npz", X=X + 1.0, Y=Y)
    np.savez(tmp_path / "other_Y.npz", X=X, Y=Y + 1.0)
    np.savez(tmp_path / "fewer.npz", X=X[:5], Y=Y[:5])
    return tmp_path


MODEL = ("--data", "data.npz", "--loss", "squared")


def proved(here, engine: str, *options: str) -> list[str]:
    run = here(
        "check", "alignment", "aligned_net.py:build", *MODEL, "--engine", engine, "--certificate", "proof", *options
    )
    assert run.code == 0, run.out + run.err
    (line,) = [line for line in run.out.splitlines() if "re-check with: alignver " in line]
    return line.partition("re-check with: alignver ")[2].split()


@pytest.mark.parametrize("engine", ["gram", "dense", "streamed"])
def test_the_command_that_the_report_shows_works(project, here, engine):
    command = proved(here, engine)
    assert command == ["verify", "proof", "--model", "aligned_net.py:build", *MODEL]
    run = here(*command)
    assert run.code == 0, run.out + run.err
    assert run.out.splitlines()[0].split()[-4:] == ["HOLDS", "proof", "(computed", "matrix)"]
    assert ("bit for bit" if engine == "gram" else "J was computed again") in run.out
    document = here(*command, "--json").document()
    assert document["verdict"] == "HOLDS"
    assert set(document["provenance"]["inputs"]) >= {"X", "Y", "model"}


def test_in_a_process_of_its_own(project, here, alignver):
    proved(here, "gram")
    at = [str(project / "proof"), "--model", str(project / "aligned_net.py") + ":build"]
    run = alignver("verify", *at, "--data", str(project / "data.npz"), "--loss", "squared")
    assert run.code == 0, run.out + run.err
    assert "HOLDS" in run.out


def test_factors_by_digest(project, here, monkeypatch):
    monkeypatch.setattr("alignver.jacobians.factored_proof.STORED", 0)
    command = proved(here, "gram")
    run = here(*command)
    assert run.code == 0, run.out + run.err
    assert "digests" in run.out
    other = here(*command, "--seed", "1")
    assert other.code == 1
    assert "digests differ" in other.out


def test_the_models_own_dtype_is_in_the_command(project, here):
    command = proved(here, "gram", "--dtype", "same", "--seed", "4")
    assert command[command.index("--seed") :][:2] == ["--seed", "4"]
    assert command[command.index("--dtype") :][:2] == ["--dtype", "same"]
    assert here(*command).code == 0


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"--data": "other_Y.npz"}, 1, "y is not the input"),
        ({"--data": "other_X.npz"}, 2, "differ from this model's"),
        ({"--data": "fewer.npz"}, 2, "other layers"),
        ({"--data": "gone.npz"}, 2, "gone.npz"),
        ({"--model": "aligned_net.py:wider"}, 2, "other shapes"),
        ({"--model": "aligned_net.py:nothing"}, 2, "nothing"),
        ({"--loss": "cross_entropy"}, 2, "Y"),
        ({"--seed": "7"}, 2, "differ from this model's"),
        ({"--loss": None}, 2, "--loss"),
        ({"--data": None}, 2, "--data"),
        ({"--model": None}, 2, "--model"),
        ({"--input": "y=y.npy"}, 2, "one or the other"),
    ],
)
def test_another_model_data_or_loss(project, here, changes, code, words):
    proved(here, "gram")
    options = {"--model": "aligned_net.py:build", "--data": "data.npz", "--loss": "squared"} | changes
    run = here("verify", "proof", *[word for pair in options.items() if pair[1] is not None for word in pair])
    assert (run.code, words in run.out + run.err) == (code, True), run.out + run.err


def test_a_changed_certificate_fails(project, here):
    command = proved(here, "gram")
    path = project / "proof" / "certificate.json"
    path.write_text(path.read_text().replace('"python": "3', '"python": "4'))
    run = here(*command)
    assert run.code == 1
    assert "seal" in run.out


def test_tiles_in_a_folder(project, here):
    command = proved(here, "gram", "--tiles", "kept", "--max-memory", "100000")
    assert here(*command).code == 0
    assert len(list((project / "kept").glob("column_*.npy"))) == 1
    run = here("check", "alignment", "aligned_net.py:build", *MODEL, "--tiles", "kept")
    assert run.code == 0
    assert "1 tile column of the factorization comes from the folder: no proof until" in " ".join(run.out.split())
    run = here("check", "alignment", "aligned_net.py:wider", *MODEL, "--tiles", "kept")
    assert run.code == 2
    assert "--tiles: got kept with tiles of another matrix" in run.err
    run = here("check", "alignment", "aligned_net.py:build", *MODEL, "--tiles", "kept", "--engine", "dense")
    assert run.code == 2
    assert "--tiles: got a folder with --engine dense; needs --engine gram" in run.err
