"""Graphs of certificates for other tools: what their bounds say is true of what ONNX computes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.errors import InvalidInput, MissingDependency
from alignver.kernel.network.graph import parse
from alignver.kernel.network.program import unpacked
from alignver.network.enclosed_features import feature_network
from alignver.network.trace import trace_model
from alignver.report.graph_export import export_graph, graph_bounds
from alignver.report.onnx_graph import onnx_model
from alignver.results import decode

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X[:, :1] * X[:, 1:2]


def net(*activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), *activation, nn.Linear(5, 1)).double().eval()


def aligned(model):
    """Return a certificate about the alignment of a network, and its inputs."""
    certificate = av.check_alignment(model, X, Y, loss="squared").require().certificate
    network = feature_network(model, X, rows=6)
    inputs = {"parameters": network.parameters, "x": network.x}
    assert certificate.claim == "network-alignment"
    assert av.recheck(certificate, **inputs, y=Y[:, 0].numpy()).verdict == "HOLDS"
    return certificate, inputs


def evaluated(model, feeds):
    """Return the results of all nodes, by the reference implementation of ONNX."""
    reference = pytest.importorskip("onnx.reference")
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend([sys.modules["onnx"].ValueInfoProto(name=name) for name in names])
    return dict(zip(names, reference.ReferenceEvaluator(model).run(None, feeds), strict=True))


@pytest.mark.parametrize(
    "activation",
    [(nn.ReLU(),), (nn.Softplus(100),), (nn.LayerNorm(5), nn.SiLU()), (nn.LeakyReLU(), nn.GELU("tanh"))],
)
def test_enclosures_contain_what_onnx_computes(activation, tmp_path):
    onnx = pytest.importorskip("onnx")
    certificate, inputs = aligned(net(*activation))
    place = export_graph(certificate, tmp_path / "graph", **inputs)
    document = decode(json.loads((place / "bounds.json").read_text()))
    model = onnx.load(place / "graph.onnx")
    assert document["certificate"]["seal"] == certificate.seal
    assert {p.key: p.value for p in model.metadata_props}["alignver.seal"] == certificate.seal
    (name,) = (entry["value"] for entry in document["nodes"] if entry["op"] == "input")
    values = evaluated(model, {name: inputs["x"]})
    compared = 0
    for entry in document["nodes"]:
        value = values.get(entry["value"])
        if value is None:
            continue
        assert list(value.shape) == entry["shape"]
        enclosure, ends = entry["enclosure"], entry["range"]
        assert ends["low"] <= value.min()
        assert value.max() <= ends["high"]
        centre = np.reshape(enclosure["centre"], (len(X), -1))
        distance = np.linalg.norm(value.reshape(centre.shape) - centre, axis=1)
        # The reference rounds too, by much less than the bound of such errors.
        assert (distance <= enclosure["radius"]).all(), entry["op"]
        assert enclosure["low"] <= value.min()
        assert value.max() <= enclosure["high"]
        compared += 1
    assert compared == sum(entry["op"].startswith("aten.") for entry in document["nodes"])
    nodes = [{p.key: p.value for p in node.metadata_props} for node in model.graph.node]
    assert {int(facts["alignver.node"]) for facts in nodes} == {
        e["node"] for e in document["nodes"] if e["op"].startswith("aten.")
    }


def test_another_runtime_agrees(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    certificate, inputs = aligned(net(nn.ReLU()))
    place = export_graph(certificate, tmp_path, **inputs)
    session = runtime.InferenceSession(str(place / "graph.onnx"))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs["x"]})
    last = json.loads((place / "bounds.json").read_text())["nodes"][-1]["enclosure"]
    assert (np.abs(outputs[:, 0] - last["centre"]) <= last["radius"]).all()


class Assembled(nn.Module):
    """One of each rule that plain layers do not use."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        a, b = x.flatten(1)[:, :4], x.flatten(1)[:, 4:8]
        c = torch.cat([a @ self.w, torch.addmm(b, a, self.w.t(), beta=0.5, alpha=2.0)], 1)
        d = torch.rsub(a, 3.0, alpha=2).softmax(-1) + nn.functional.silu(b).clamp(-0.5, 0.75) - b.sub(a, alpha=3)
        e = (c[:, :4] / 3.0) ** 2 + nn.functional.hardtanh(d) * d.mean(1, keepdim=True) + torch.exp(-a.square())
        e = e + torch.einsum("...i,ij->...j", a, self.w) * torch.einsum("ni,ni->n", a, b)[:, None]
        return e.log_softmax(1).unsqueeze(2).expand(-1, -1, 2).transpose(1, 2).reshape(len(x), -1) + d.sum(1)[:, None]


ARCHITECTURES = {
    "images": nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=(1, 2)), nn.BatchNorm2d(3), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 1, bias=False), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(), nn.Linear(2, 2),
    ),
    "assembled": Assembled(),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_the_function_of_the_module(name):
    pytest.importorskip("onnx")
    torch.manual_seed(3)
    model = ARCHITECTURES[name].double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1.0, 1.0)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    network = feature_network(model, x, rows=3)
    graph = parse(network.traced.data)
    values = evaluated(onnx_model(graph, unpacked(graph, network.parameters[0])), {
        f"n{k}": x.numpy() for k, node in enumerate(graph.nodes) if node.op == "input"})  # fmt: skip
    expected = model(x).detach().numpy()
    assert np.allclose(values[f"n{graph.outputs[0]}"].reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)


def test_structures_have_degrees_and_free_parameters(tmp_path):
    onnx = pytest.importorskip("onnx")
    certificate = av.check_common_structure(net(nn.Tanh()), X).require().certificate
    place = export_graph(certificate, tmp_path)
    document = json.loads((place / "bounds.json").read_text())
    degrees = {entry["value"]: entry["degree"] for entry in document["nodes"]}
    assert [degrees[name] for name in document["outputs"]] == [1]
    names = [info.name for info in onnx.load(place / "graph.onnx").graph.input]
    assert names == [entry["value"] for entry in document["nodes"] if entry["op"] in ("parameter", "input")]
    assert all("enclosure" not in entry for entry in document["nodes"])


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch):
    certificate, inputs = aligned(net(nn.ReLU()))
    of_a_matrix = av.check_rank(np.eye(2)).certificate
    with pytest.raises(InvalidInput, match="certificate: got rank, without a graph"):
        graph_bounds(of_a_matrix)
    with pytest.raises(InvalidInput, match="x: got None"):
        graph_bounds(certificate, inputs["parameters"])
    with pytest.raises(InvalidInput, match="x: got another array"):
        graph_bounds(certificate, inputs["parameters"], inputs["x"] + 1.0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (
        lambda: export_graph(certificate, tmp_path / "graph"),
        lambda: onnx_model(parse(certificate.data["graph"])),
    ):
        with pytest.raises(MissingDependency, match=r"alignver\[onnx\]"):
            call()
    assert not (tmp_path / "graph").exists()


def test_operators_without_a_rule_are_named():
    pytest.importorskip("onnx")
    graph = trace_model(nn.Sequential(nn.Linear(3, 4), nn.GLU()), torch.randn(2, 3), rows=2).graph
    with pytest.raises(InvalidInput, match=r"a graph with aten\.glu\.default in '1'"):
        onnx_model(graph)
    nodes = [
        dataclasses.replace(n, args={**n.args, "surprise": 1}) if n.base == "linear" else n for n in graph.nodes[:-1]
    ]
    with pytest.raises(InvalidInput, match="with surprise"):
        onnx_model(dataclasses.replace(graph, nodes=tuple(nodes), outputs=(len(nodes) - 1,)))


def test_a_folder_that_cannot_be_written(tmp_path):
    pytest.importorskip("onnx")
    certificate, inputs = aligned(net(nn.ReLU()))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="folder: got"):
        export_graph(certificate, tmp_path / "file", **inputs)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
    (block,) = re.findall(r"```\{code-block\} python\n(.*?)```", page, flags=re.DOTALL)
    certificate, inputs = aligned(net(nn.Softplus(100)))
    export_graph(certificate, tmp_path / "graph", **inputs)
    np.savez(tmp_path / "train.npz", X=X.numpy())
    monkeypatch.chdir(tmp_path)
    exec(block, {})
