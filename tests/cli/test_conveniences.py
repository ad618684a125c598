"""What saves a person time: completion, suggestions, other names of arrays, --eval, --html -, what verify needs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignver.cli import model_io
from alignver.errors import InvalidInput
from tests.cli.conftest import COMMAND, environment

NET = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 2))
def plain():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
"""


@pytest.fixture
def project(files):
    random = np.random.default_rng(0)
    (files / "net.py").write_text(NET)
    X = random.standard_normal((5, 2))
    np.savez(files / "images.npz", images=X, labels=np.arange(5) % 2)
    np.savez(files / "ab.npz", a=X, b=np.arange(5) % 2)
    np.savez(files / "abc.npz", a=X, b=np.arange(5), c=X)
    np.savez(files / "xy.npz", X=X, Y=random.standard_normal(5))
    return files


COMPLETIONS = {
    "bash": ({"COMP_WORDS": "alignver check mem", "COMP_CWORD": "2"}, "membership"),
    "zsh": ({"_TYPER_COMPLETE_ARGS": "alignver check rank --tol"}, "--tolerance"),
    "fish": (
        {"_TYPER_COMPLETE_ARGS": "alignver check alignment --loss ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        "binary_cross_entropy",
    ),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_a_shell_completes_commands_options_and_values(files, shell):
    variables, word = COMPLETIONS[shell]
    settings = {**environment(), **variables, "_ALIGNVER_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(COMMAND, cwd=files, env=settings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert word in done.stdout
    script = subprocess.run(
        [*COMMAND, "--show-completion", shell],
        env={**environment(), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0
    assert "_ALIGNVER_COMPLETE" in script.stdout


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("check membershp", "did you mean 'membership'?"),
        ("check rank A.npy --tolerence 3", "did you mean --tolerance?"),
        ("check rank A.npy --rule goulb", "did you mean 'golub'?"),
        ("check rank A.npy --method qrr", "did you mean 'qr'?"),
        ("check alignment net.py:build --data xy.npz --loss sqared", "did you mean 'squared'?"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_right_one(here, project, words, suggestion):
    np.save(project / "A.npy", np.eye(2))
    run = here(*words.split())
    assert (run.code, run.out) == (2, "")
    assert suggestion in run.err


@pytest.mark.parametrize(
    ("file", "taken"),
    [("images.npz", "X is 'images', Y is 'labels'"), ("ab.npz", "X is 'a', Y is 'b'"), ("xy.npz", "")],
)
def test_arrays_of_other_names_are_taken_and_named(here, project, file, taken):
    loss = "squared" if file == "xy.npz" else "binary_cross_entropy"
    run = here("check", "alignment", "net.py:plain", "--data", file, "--loss", loss)
    assert run.code == 0, run.err
    assert run.err == (f"alignver: {file}: {taken}\n" if taken else "")


def test_three_arrays_without_names_are_refused(here, project):
    run = here("check", "alignment", "net.py:plain", "--data", "abc.npz", "--loss", "squared")
    assert run.code == 2
    assert "the arrays a, b, c; needs the array X" in run.err


def test_a_model_in_training_mode(here, project):
    words = ["check", "alignment", "net.py:build", "--data", "images.npz", "--loss", "cross_entropy"]
    run = here(*words)
    assert run.code == 2
    assert "in train mode, which is random; needs eval mode: --eval" in run.err
    run = here(*words, "--eval")
    assert run.code == 0, run.err
    assert here("check", "structure", "net.py:build", "--data", "images.npz", "--eval").code == 0
    assert here("show", "model", "net.py:build", "--eval").code == 0


def test_a_page_on_stdout(here, project):
    np.save(project / "A.npy", np.eye(2))
    run = here("check", "rank", "A.npy", "--html", "-")
    assert run.code == 0
    assert run.out.startswith("<!DOCTYPE html>")
    assert run.out.rstrip().endswith("</html>")
    assert not (project / "-").exists()
    run = here("check", "rank", "A.npy", "--html", "-", "--json")
    assert (run.code, run.out) == (2, "")
    assert "--html: got - with --json" in run.err


def test_verify_says_what_a_certificate_of_a_model_needs(here, project):
    words = ["--data", "xy.npz", "--loss", "squared"]
    run = here("check", "alignment", "net.py:plain", *words, "--certificate", "proof")
    assert "re-check with" in run.out, run.out + run.err
    run = here("verify", "proof")
    assert run.code == 2
    assert "--input: got none; needs --model, --data and --loss: this certificate is about a model" in run.err
    assert here("verify", "proof", "--model", "net.py:plain", *words).code == 0


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("weights.pt", lambda torch, net, file: torch.save(net.state_dict(), file), "a damaged file"),
        ("it's $5.pt", lambda torch, net, file: torch.save(net.state_dict(), file), "a damaged file"),
        (
            "epoch.ckpt",
            lambda torch, net, file: torch.save({"state_dict": net.state_dict(), "epoch": 3}, file),
            "a dam",
        ),
        ("whole.pt", lambda torch, net, file: torch.save(net, file), "a pickle of a whole module"),
        ("script.pt", lambda torch, net, file: torch.jit.trace(net, torch.ones(1, 2)).save(file), "a TorchScript file"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_pickle_is_refused_with_a_command_that_converts_it(here, project, name, write, kind):
    torch = pytest.importorskip("torch")
    layers = torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    write(torch, torch.nn.Sequential(*layers), project / name)
    words = ["check", "alignment", "net.py:plain", "--data", "xy.npz", "--loss", "squared", "--weights"]
    run = here(*words, name)
    assert (run.code, run.out) == (2, "")
    assert kind in run.err
    (command,) = re.findall("this makes one: python -c (.*)$", run.err, re.MULTILINE)
    (code,) = shlex.split(command)
    environ = {**os.environ, "PYTHONWARNINGS": "default" if "jit" in code else "error"}  # torch.jit is deprecated
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environ, check=True)
    run = here(*words, str(Path(name).with_suffix(".safetensors")))
    assert run.code == 0, run.err


def test_weights_in_the_forms_that_they_have(project, monkeypatch):
    monkeypatch.chdir(project)
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    torch.manual_seed(3)
    state = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).state_dict()

    def loaded(place: str):
        return model_io.load({"model": "net.py:plain", "weights": place, "device": "cpu", "seed": 0})[0].state_dict()

    def saved(name: str, tensors) -> str:
        safetensors.save_file({key: value.clone() for key, value in tensors.items()}, name)
        return name

    (project / "hub").mkdir()
    names, parts = list(state), {}
    for k, part in enumerate((names[:1], names[1:])):
        file = saved(f"hub/model-{k}.safetensors", {name: state[name] for name in part})
        parts |= dict.fromkeys(part, Path(file).name)
    index = project / "hub" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    wrapped = saved("ddp.safetensors", {f"module.{name}": value for name, value in state.items()})
    for place in ("hub", "hub/model.safetensors.index.json", wrapped):
        assert all(torch.equal(value, state[name]) for name, value in loaded(place).items()), place
    double = saved("double.safetensors", {name: value.double() + 1e-12 for name, value in state.items()})
    with pytest.raises(InvalidInput, match=r"float64, which the float32 of the model rounds; needs a model in float64"):
        loaded(double)
    index.write_text(json.dumps({"weight_map": {"0.weight": "../ddp.safetensors"}}))
    with pytest.raises(InvalidInput, match="an index that names no files beside it"):
        loaded("hub")
    index.unlink()
    with pytest.raises(InvalidInput, match=r"a folder without model\.safetensors"):
        loaded("hub")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("async def make(): return plain()", None),
        ("def make(): return plain(), 'a tokenizer'", None),
        ("make = plain()", None),
        (
            "def make(width, depth): return plain()",
            "takes the arguments width, depth; needs a function without argumen",
        ),
        ("def make(): return plain(), plain()", "returns a tuple; needs one torch.nn.Module"),
        ("def make(): return plain().state_dict()", "needs a torch.nn.Module, and its state dict as a file: --weights"),
        ("def make(): return torch.nn.Linear", "returns a type; needs a torch.nn.Module: return Linear(...)"),
    ],
)
def test_what_builds_a_model(here, project, code, words):
    with open(project / "net.py", "a") as file:
        file.write(f"\n\n{code}\n")
    run = here("check", "alignment", "net.py:make", "--data", "xy.npz", "--loss", "squared", "-q", "--no-certify")
    assert "never awaited" not in run.err
    if words is None:
        assert run.code == 0, run.err
    else:
        assert (run.code, words in run.err) == (2, True), run.err


def test_a_report_says_when_from_which_command_and_from_which_files(here, project):
    np.save(project / "A b.npy", np.eye(2))
    provenance = here("check", "rank", "A b.npy", "--json").document()["provenance"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["date"])
    assert shlex.split(provenance["command_line"]) == ["alignver", "check", "rank", "A b.npy", "--json"]
    assert provenance["inputs"]["A"]["file"] == "A b.npy"
    words = ["check", "alignment", "net.py:plain", "--data", "xy.npz", "--loss", "squared", "--html", "-"]
    page = here(*words).out
    assert "alignver " + " ".join(words) in page
    assert page.count("<td>xy.npz</td>") == 2
    assert page.index("that moves the outputs onto the targets") < page.index('class="reason"')
    assert "alignver explain alignment-" in page
    assert "<td>None</td>" not in page


def test_a_verified_graph_is_exported_for_other_tools(here, project):
    pytest.importorskip("torch")
    words = ["net.py:plain", "--data", "xy.npz", "--loss", "squared"]
    assert here("check", "alignment", *words, "--certificate", "proof").code == 0
    run = here("verify", "proof", "--model", *words, "--export", "graph")
    if importlib.util.find_spec("onnx") is None:
        assert (run.code, run.out) == (2, "")
        assert "pip install 'alignver[onnx]'" in run.err
        assert not (project / "graph").exists()
        return
    assert run.code == 0, run.err
    assert {file.name for file in (project / "graph").iterdir()} == {"graph.onnx", "bounds.json"}
    np.save(project / "A.npy", np.eye(2))
    assert here("check", "rank", "A.npy", "--certificate", "rank").code == 0
    run = here("verify", "rank", "--input", "A=A.npy", "--export", "other")
    assert run.code == 2
    assert "rank, without a graph" in run.err
