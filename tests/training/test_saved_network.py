"""The network of a finished run: it predicts as at the end of training, in another process, from files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import alignver as av
from alignver.data import archives
from alignver.errors import InvalidInput
from alignver.report.graph_export import export_graph
from alignver.training.run_folder import RunFolder, certificate_inputs
from tests.training import nets

LOSSES = [("squared", 2), ("binary_cross_entropy", 1), ("binary_cross_entropy", 2), ("cross_entropy", 3)]


def finished(place, loss="cross_entropy", m_y=3, model=None, X=None, **options):
    inputs, Y = nets.data(loss, m_y=m_y)
    X = inputs if X is None else X
    trained = av.EEWrapper(
        nets.plain(m_y) if model is None else model,
        loss=loss,
        tau=2,
        epsilon=0.1,
        exploit_optimizer="newton",
        **options,
    )
    with RunFolder.create(place, {}) as folder:
        folder.fit(trained, (X, Y), 12, prove=False)
        folder.finish(trained, (X, Y), av.Report((trained.check(X, Y, rank=False),)))
    return trained, X, Y


@pytest.mark.parametrize(("loss", "m_y"), LOSSES)
def test_it_predicts_as_the_trained_network(tmp_path, loss, m_y):
    trained, X, Y = finished(tmp_path / "run", loss, m_y)
    network = av.load(tmp_path / "run", model=lambda: nets.plain(m_y, seed=5))
    assert not network.training
    assert torch.equal(network.outputs(X.numpy()), trained.outputs(X))
    assert torch.equal(network(X), trained.module.eval()(X))
    labels = network.predict(X)
    if loss == "squared":
        assert torch.equal(labels, network.outputs(X))
        with pytest.raises(InvalidInput, match="predict_proba"):
            network.predict_proba(X)
        return
    share = network.predict_proba(X)
    assert bool(((share >= 0.0) & (share <= 1.0)).all())
    if loss == "cross_entropy":
        assert torch.equal(labels, share.argmax(1))
        assert torch.allclose(share.sum(1), torch.ones(len(X), dtype=share.dtype))
    else:
        assert torch.equal(labels.reshape(len(X), -1), (share > 0.5).long())
    wrong = (labels.reshape(len(X), -1) != Y.reshape(len(X), -1)).any(1).double().mean()
    assert network.evaluate(X, Y)["error"] == pytest.approx(float(wrong))


def test_loaders_stand_for_the_arrays_in_them(tmp_path):
    trained, X, Y = finished(tmp_path / "arrays")
    loader = DataLoader(TensorDataset(X, Y), batch_size=7)
    other = av.EEWrapper(nets.plain(3), loss="cross_entropy", tau=2, epsilon=0.1, exploit_optimizer="newton")
    with RunFolder.create(tmp_path / "loader", {}) as folder:
        folder.fit(other, loader, 12, test=loader, prove=False)
        report = folder.finish(other, loader)
    assert report.verdict == trained.check(X, Y).verdict
    network = av.load(tmp_path / "loader", model=nets.plain(3))
    assert torch.equal(network.outputs(loader), trained.outputs(X))
    assert torch.equal(network.predict(loader.dataset), network.predict(X))
    assert network.evaluate(loader) == network.evaluate(X, Y)
    assert other.history[-1]["test_error"] == network.evaluate(X, Y)["error"]
    assert network.check(loader, tolerance=0.5).verdict == network.check(X, Y, tolerance=0.5).verdict == "HOLDS"


def test_its_certificate_is_checked_again_and_a_new_one_is_made(tmp_path):
    _, X, Y = finished(tmp_path / "run")
    network = av.load(tmp_path / "run", model=nets.plain(3))
    assert network.recheck().verdict == "HOLDS"
    assert network.check(X, Y, tolerance=0.5, rank=False).verdict == "HOLDS"
    assert network.report.results[0].name == "optimality"
    os.truncate(tmp_path / "run/report.json", 1 << 40)
    with pytest.raises(InvalidInput, match="at most"):
        _ = network.report
    with np.load(tmp_path / "run/inputs.npz") as arrays:
        changed = {**arrays, "Y": arrays["Y"][::-1]}
    np.savez(tmp_path / "run/inputs.npz", **changed)
    assert network.recheck().verdict == "FAILS"


def test_the_graph_of_its_certificate_is_exported(tmp_path):
    """With the gates and the slope of the exploitation phase, as products of several axes."""
    onnx = pytest.importorskip("onnx")
    finished(tmp_path / "run")
    certificate = av.load_certificate(tmp_path / "run/certificate")
    inputs = certificate_inputs(tmp_path / "run", certificate)[0]
    place = export_graph(certificate, tmp_path / "graph", **{name: inputs[name] for name in ("parameters", "x")})
    assert "Einsum" in {node.op_type for node in onnx.load(place / "graph.onnx").graph.node}


def test_other_weights_than_those_of_the_run_are_not_verified(tmp_path):
    """The phase of the gates and their slope are no inputs of the certificate: they are in its graph."""
    finished(tmp_path / "run")
    file = tmp_path / "run/model.safetensors"
    state = load_file(file)
    with safe_open(file, "pt") as stored:
        document = json.loads(stored.metadata()["alignver"])
    for tensors, changed in (
        ({**state, "head.frozen": torch.tensor(False)}, document),
        (state, {**document, "slope": 2.0}),
    ):
        save_file(tensors, file, {"alignver": json.dumps(changed)})
        with pytest.raises(InvalidInput, match="with the same weights it has other outputs"):
            av.load(tmp_path / "run", model=nets.plain(3))
        with pytest.raises(InvalidInput, match=r"model\.safetensors has changed since the run"):
            certificate_inputs(tmp_path / "run")


@pytest.mark.parametrize("name", ["inputs.npz", "model.safetensors"])
def test_files_of_a_run_that_memory_cannot_hold_are_not_read(tmp_path, monkeypatch, name):
    finished(tmp_path / "run")
    file = tmp_path / "run" / name
    if name == "inputs.npz":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", bytes(1 << 24))
        assert file.stat().st_size < 1 << 17
    else:
        os.truncate(file, 1 << 24)
    monkeypatch.setattr(archives, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr("alignver.data.archives.read_member", None)
    with pytest.raises(InvalidInput, match="GB of memory free"):
        certificate_inputs(tmp_path / "run")
    file.unlink()
    os.mkfifo(file)  # reading it would block
    with pytest.raises(InvalidInput, match=f"without {name}"):
        certificate_inputs(tmp_path / "run")


CONFIGS = {
    "deep": b'{"format": 1, "settings": ' + b"[" * 10**5,
    "a list of sources": b'{"format": 1, "settings": {}, "sources": []}',
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_damaged_config_is_refused(tmp_path, config):
    finished(tmp_path / "run")
    (tmp_path / "run/config.json").write_bytes(CONFIGS[config])
    with pytest.raises(InvalidInput, match="folder: got"):
        certificate_inputs(tmp_path / "run")
    os.truncate(tmp_path / "run/config.json", 1 << 40)
    with pytest.raises(InvalidInput, match="at most"):
        certificate_inputs(tmp_path / "run")


DESCRIPTIONS = {
    "no JSON": "{",
    "a list": "[1, 2]",
    "a loss": {"loss": "hinge"},
    "a shape": {"shape": "ab"},
    "a dtype": {"dtype": "load"},
    "layers": {"layers": 5},
}


@pytest.mark.parametrize("name", [*DESCRIPTIONS, "integers"])
def test_a_damaged_description_is_refused(tmp_path, name):
    finished(tmp_path / "run")
    file = tmp_path / "run/model.safetensors"
    state, part = load_file(file), DESCRIPTIONS.get(name, {})
    with safe_open(file, "pt") as stored:
        document = json.loads(stored.metadata()["alignver"])
    if name == "integers":
        state["head.hidden"] = state["head.hidden"].int()
    save_file(state, file, {"alignver": part if isinstance(part, str) else json.dumps({**document, **part})})
    with pytest.raises(InvalidInput, match=r"folder: got .* which cannot be read|loss: got"):
        av.load(tmp_path / "run", model=nets.plain(3))


@pytest.mark.parametrize("model", ["plain", "noisy", "convolutional"])
def test_it_is_exported_with_a_free_batch_size(tmp_path, model):
    X = torch.randn(30, 1, 8, 8) if model == "convolutional" else None
    options = {"width": 8} if model == "convolutional" else {}
    build = {"plain": lambda: nets.plain(3), "noisy": lambda: nets.noisy(3), "convolutional": nets.convolutional}[model]
    _, X, _ = finished(tmp_path / "run", model=build(), X=X, **options)
    network = av.load(tmp_path / "run", model=build)
    assert network.export(tmp_path / "net.pt2") == tmp_path / "net.pt2"
    program = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 7, 30):
        assert torch.allclose(program(X[:count]), network(X[:count]), rtol=1e-5)
    with pytest.raises(InvalidInput, match=r"path: got .*net\.pkl"):
        network.export(tmp_path / "net.pkl")


def test_an_export_to_onnx_runs_elsewhere(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    _, X, _ = finished(tmp_path / "run", model=nets.plain(3, torch.float32))
    network = av.load(tmp_path / "run", model=nets.plain(3))
    session = runtime.InferenceSession(str(network.export(tmp_path / "net.onnx")))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: X[:7].float().numpy()})
    ours = network(X[:7].float()).detach().numpy()
    assert np.array_equal(outputs.argmax(1), ours.argmax(1))
    # Both are float32; Newton's method found large weights, of whose products the outputs are differences.
    assert np.allclose(outputs, ours, atol=1e-2)


class Scaled(torch.nn.Module):
    """Has a constant that its state dict lacks, and a function."""

    def __init__(self, seed: int, function=torch.tanh) -> None:
        super().__init__()
        self.net, self.function = nets.plain(3), function
        self.scale = 1.0 + torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, x):
        return self.net(self.function(x) * self.scale[: x.shape[1]])


def test_a_model_that_is_another_function_of_the_same_weights_is_refused(tmp_path):
    trained, X, _ = finished(tmp_path / "run", model=Scaled(1))
    expected = trained.outputs(X)
    assert torch.equal(av.load(tmp_path / "run", model=Scaled(1)).outputs(X), expected)
    compiled = av.load(tmp_path / "run", model=lambda: torch.compile(Scaled(1), backend="eager"))
    assert torch.equal(compiled.outputs(X), expected)
    for other in (Scaled(2), Scaled(1, torch.sin)):
        with pytest.raises(InvalidInput, match="with the same weights it has other outputs"):
            av.load(tmp_path / "run", model=other)
    file = tmp_path / "run/model.safetensors"
    with safe_open(file, "pt") as stored:
        document = json.loads(stored.metadata()["alignver"])
    save_file(load_file(file), file, {"alignver": json.dumps({**document, "probe": document["probe"][:3]})})
    with pytest.raises(InvalidInput, match="other outputs"):
        av.load(tmp_path / "run", model=Scaled(1))


def test_a_state_that_is_no_tensor_is_refused_before_the_training(tmp_path):
    class Extra(Scaled):
        def get_extra_state(self):
            return {"seed": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(InvalidInput, match=r"the state 'body\._extra_state', which is not a tensor"):
        finished(tmp_path / "run", model=Extra(1))


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    finished(tmp_path / "run")
    network = av.load(tmp_path / "run", model=nets.plain(3))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(av.MissingDependency, match=r"alignver\[onnx\]"):
        network.export(tmp_path / "net.onnx")


def test_what_cannot_be_loaded_says_why(tmp_path):
    finished(tmp_path / "run")
    cases = {
        "a run that names no code": {},
        "weights of other shapes": {"model": nets.plain(3, width=11)},
        "needs as many outputs as targets": {"model": nets.plain(2)},
        "got 'model'; needs": {"model": "model"},
    }
    for words, options in cases.items():
        with pytest.raises(InvalidInput) as caught:
            av.load(tmp_path / "run", **options)
        assert caught.value.argument == "model", words
    with pytest.raises(InvalidInput, match=r"without config\.json"):
        av.load(tmp_path / "nowhere", model=nets.plain(3))
    (tmp_path / "run/model.safetensors").write_bytes(b"broken")
    with pytest.raises(InvalidInput, match="which cannot be read"):
        av.load(tmp_path / "run", model=nets.plain(3))
    (tmp_path / "run/model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="a run that is not finished; needs a finished run: alignver train --resume"):
        av.load(tmp_path / "run", model=nets.plain(3))


NET = """
from torch import nn
from neighbour import width
def build():
    return nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict")
    (place / "net.py").write_text(NET)
    (place / "neighbour.py").write_text("width = 12\n")
    X, Y = nets.data(dtype=torch.float32)
    np.savez(place / "train.npz", X=X.numpy(), Y=Y.numpy())
    np.save(place / "X.npy", X.numpy())
    arguments = "net.py:build --data train.npz --loss binary_cross_entropy --epochs 12 --tau 2 --out run --no-prove -q"
    done = alignver(place, "train", *arguments.split(), "--exploit-optimizer", "newton")
    assert (place / "run/report.json").exists(), done.stderr
    return place


def alignver(place, *arguments):
    command = [sys.executable, "-m", "alignver", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def test_the_command_line_predicts(run, monkeypatch):
    labels = alignver(run, "predict", "run", "--data", "train.npz")
    assert labels.returncode == 0, labels.stderr
    assert set(labels.stdout.split()) == {"0", "1"}
    assert "30 samples: loss" in labels.stderr
    done = alignver(run, "predict", "run", "--data", "X.npy", "--proba", "--out", "share.npy")
    assert (done.returncode, done.stdout) == (0, "")
    share = np.load(run / "share.npy")
    assert share.shape == (30, 1)
    assert [int(label) for label in labels.stdout.split()] == (share[:, 0] > 0.5).tolist()
    monkeypatch.chdir(run)
    assert np.array_equal(av.load("run").predict_proba(np.load("X.npy")).numpy(), share)


def test_code_that_has_changed_is_refused(run, monkeypatch):
    monkeypatch.chdir(run)
    (run / "net.py").write_text(NET + "# another line\n")
    with pytest.raises(InvalidInput, match=r"net\.py, which has changed since the run"):
        av.load("run")
    (run / "net.py").unlink()
    with pytest.raises(InvalidInput, match=r"net\.py:build, which cannot be built \(No such file"):
        av.load("run")
    refused = alignver(run, "predict", "run", "--data", "X.npy")
    assert (refused.returncode, refused.stdout) == (2, "")
