"""``alignver check alignment`` on a user's own code, with all that code can do wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from alignver.cli import model_io
from alignver.errors import InvalidInput

torch = pytest.importorskip("torch")
MODEL = {"model": "my_net.py:build", "weights": None, "device": "cpu", "seed": 0}
NET = """
import torch

def build():
    print("building")
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Softplus(), torch.nn.Linear(16, 1)).double()

def wrong():
    return "a string"

def raises():
    raise RuntimeError("no weights here")

def _hidden():
    pass
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("my_net", "syntax", "exits", "needs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "syntax.py").write_text("def build(:\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", X=random.standard_normal((6, 2)), Y=random.standard_normal((6, 1)))
    np.savez(tmp_path / "no_labels.npz", X=np.ones((3, 2)))
    return tmp_path


@pytest.mark.parametrize("model", ["my_net.py:build", "my_net:build", "./my_net.py:build"])
def test_a_model_of_the_users_own(here, project, monkeypatch, model):
    pytest.importorskip("alignver.checks.alignment")
    monkeypatch.chdir(project)
    run = here("check", "alignment", model, "--data", "data.npz", "--loss", "squared", "--json")
    document = run.document()
    assert (run.code, document["verdict"]) == (0, "HOLDS")
    assert "building" in run.err
    assert set(document["provenance"]["inputs"]) == {"X", "Y", "model"}
    assert document["provenance"]["inputs"]["model"]["file"] == "my_net.py"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("my_net.py", ["FILE.py:FUNCTION"]),
        ("my_net.py:bild", ["without a function 'bild'", "build", "wrong"]),
        ("missing.py:build", ["no such file"]),
        ("missing_module:build", ["not a module"]),
        ("syntax.py:build", ["SyntaxError", "line 1"]),
        ("exits.py:build", ["SystemExit", "line 2"]),
        ("needs.py:build", ["not_installed_anywhere", "line 1"]),
        ("my_net.py:wrong", ["returns a str", "torch.nn.Module"]),
        ("my_net.py:raises", ["RuntimeError: no weights here", "line 12 of my_net.py"]),
    ],
)
def test_code_that_does_not_work(here, project, monkeypatch, model, words):
    monkeypatch.chdir(project)
    run = here("check", "alignment", model, "--data", "data.npz", "--loss", "squared")
    assert (run.code, run.out) == (2, "")
    assert "Traceback" not in run.err
    for word in words:
        assert word in run.err
    assert "_hidden" not in run.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "no_labels.npz", "--loss", "squared"], ["the array Y", "numpy.savez"]),
        (["--data", "my_net.py", "--loss", "squared"], ["a file that is not a .npz file"]),
        (["--data", "data.npz", "--loss", "hinge"], ["--loss", "cross_entropy"]),
        (["--data", "data.npz"], ["--loss"]),
        (["--data", "data.npz", "--loss", "squared", "--device", "cuda:99"], ["--device"]),
        (["--data", "data.npz", "--loss", "squared", "--device", "abacus"], ["--device", "abacus"]),
        (["--data", "data.npz", "--loss", "squared", "--weights", "data.npz"], ["a damaged file", "pickles"]),
        (["--data", "data.npz", "--loss", "squared", "--weights", "gone.safetensors"], ["no such file"]),
    ],
)
def test_options_that_cannot_be(here, project, monkeypatch, options, words):
    monkeypatch.chdir(project)
    run = here("check", "alignment", "my_net.py:build", *options)
    assert (run.code, run.out) == (2, "")
    for word in words:
        assert word in run.err


def test_weights_are_loaded_strictly(project):
    safetensors = pytest.importorskip("safetensors.torch")
    model, _ = model_io.load({**MODEL, "seed": 1})
    state = model.state_dict()
    safetensors.save_file(state, "net.safetensors")
    loaded, identity = model_io.load({**MODEL, "weights": "net.safetensors", "seed": 2})
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name])
    assert identity["weights"]["file"] == "net.safetensors"
    safetensors.save_file({"0.weight": state["0.weight"]}, "part.safetensors")
    with pytest.raises(InvalidInput, match=r"without 0\.bias, 2\.bias, 2\.weight"):
        model_io.load({**MODEL, "weights": "part.safetensors"})
    safetensors.save_file({**state, "0.bias": torch.zeros(3)}, "shape.safetensors")
    with pytest.raises(InvalidInput, match=r"0\.bias \(3,\), \(\d+,\) in the model"):
        model_io.load({**MODEL, "weights": "shape.safetensors"})


def test_the_seed_makes_the_model(project):
    first, _ = model_io.load({**MODEL, "seed": 1})
    again, _ = model_io.load({**MODEL, "seed": 1})
    other, _ = model_io.load({**MODEL, "seed": 2})
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


MODULES = """
import argparse
import torch

options = argparse.ArgumentParser()
options.add_argument("--width", type=int, default=16)
width = options.parse_args().width
trained = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Softplus(), torch.nn.Linear(width, 1))

def unset():
    with torch.device("meta"):
        return torch.nn.Linear(2, 1)

def reads():
    return torch.load("gone.pt")
"""


@pytest.mark.parametrize(
    "model", ["script.py:trained", "parts/net.py:build", "package/net.py:build", "parts.net:build"]
)
def test_models_as_people_have_them(here, project, monkeypatch, model):
    monkeypatch.chdir(project)
    (project / "script.py").write_text(MODULES)
    for name in ("parts", "package"):
        (project / name).mkdir()
        (project / name / "blocks.py").write_text(NET)
        (project / name / "net.py").write_text("from .blocks import build\n")
    (project / "package" / "__init__.py").touch()
    for module in (
        "script",
        "parts",
        "package",
        "net",
        *(f"{p}.{m}" for p in ("parts", "package") for m in ("net", "blocks")),
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
    run = here("check", "alignment", model, "--data", "data.npz", "--loss", "squared", "--json")
    assert (run.code, run.document()["verdict"]) == (0, "HOLDS")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("script.py:unset", "'weight' is on the meta device, without values; needs a model that is not built on that"),
        ("script.py:reads", "No such file or directory: 'gone.pt' (line 15 of script.py)"),
        ("script.py:raeds", "did you mean 'reads'?"),
        ("torch:nn", "BenchmarkExecutionStats, Block, ..."),
    ],
)
def test_what_is_said_of_them(here, project, monkeypatch, model, words):
    monkeypatch.chdir(project)
    (project / "script.py").write_text(MODULES)
    monkeypatch.delitem(sys.modules, "script", raising=False)
    run = here("check", "alignment", model, "--data", "data.npz", "--loss", "squared")
    assert (run.code, run.out) == (2, "")
    assert words in run.err
