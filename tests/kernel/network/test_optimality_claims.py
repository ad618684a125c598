"""Claims about the training loss of a network: proved, checked again, forged and refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.kernel import seal, verify
from alignver.kernel.network import balls, optimality
from alignver.kernel.network.graph import encode
from alignver.network.enclosed_loss import inputs_again, prove_optimality
from alignver.results import Frozen, Subject, Verdict
from tests.reseal import resealed

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")


def problem(loss="squared", n=12, m_y=2, seed=0, dtype=torch.float32):
    """A small network with targets that it nearly fits; half of the labels are right."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, m_y)).to(dtype)
    X = torch.randn(n, 3, dtype=dtype)
    f = net(X).detach().double()
    if loss == "squared":
        return net, X, (f + 1e-3 * torch.randn(f.shape)).numpy()
    if loss == "cross_entropy":
        return net, X, np.eye(m_y)[f.argmax(1).numpy()]
    return net, X, (f > 0).double().numpy()


def proved(net, X, Y, loss, tolerance=10.0, **options):
    proof = prove_optimality(net, X, Y, loss, tolerance=tolerance, seconds=10.0, **options)
    assert not isinstance(proof, str), proof
    return proof


@pytest.mark.parametrize("method", ["norms", "balls"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_gap_is_proved_and_forgeries_are_refused(loss, method, tmp_path):
    if method == "balls" and not balls.available():
        pytest.skip("balls need python-flint")
    net, X, Y = problem(loss)
    proof = proved(net, X, Y, loss)
    assert proof.verdict is Verdict.HOLDS
    good = proof.certificate
    if method == "balls":
        constants = {**good.constants, "bits": 128}
        good = seal("network-optimality", "balls", proof.inputs, good.data, constants)
    good.save(tmp_path / "proof")
    again = av.recheck(tmp_path / "proof", **proof.inputs)
    assert (again.verdict, again.subject) == (Verdict.HOLDS, Subject.NETWORK)
    assert "for this network" in again.statement
    gap, errors = good.constants["gap"], good.constants["errors"]
    assert errors == (None if loss == "squared" else 0)
    others = {"squared": ("cross_entropy", "binary_cross_entropy"), "binary_cross_entropy": ("squared",)}
    forgeries = [
        resealed(good, gap=0.99 * proof.lower),
        resealed(good, gap=0.0),
        resealed(good, gap=-1.0),
        resealed(good, gap=1),
        resealed(good, gap="0.5"),
        resealed(good, loss="hinge"),
        *(resealed(good, loss=other) for other in others.get(loss, ("squared",))),
        resealed(good, errors=-1),
        resealed(good, errors=True),
        resealed(good, bits=7),
        resealed(good, bits=None if method == "balls" else 128),
        resealed(good, {"graph": good.data["graph"][:-1].copy()}),
        dataclasses.replace(good, constants=Frozen({**good.constants, "gap": 2.0 * gap})),
        dataclasses.replace(good, data=Frozen({})),
        dataclasses.replace(good, method="guess"),
    ]
    forgeries += [resealed(good, errors=0)] if loss == "squared" else []
    for claim in ("network-suboptimality", "optimality", "analytic", "network-alignment"):
        forged = dataclasses.replace(good, claim=claim)
        forgeries.append(dataclasses.replace(forged, seal=forged.expected_seal()))
    for forged in forgeries:
        names = {"analytic": {}, "optimality": None, "network-alignment": {**proof.inputs, "y": Y[:, 0]}}
        inputs = names.get(forged.claim, proof.inputs)
        if inputs is None:
            with pytest.raises(av.InvalidInput, match="inputs"):
                verify(forged, proof.inputs)
            continue
        if forged.claim == "network-alignment":
            inputs = {name: inputs[name] for name in ("parameters", "x", "y")}
        assert verify(forged, inputs).verdict is Verdict.FAILS, forged.constants


def test_other_inputs_are_refused():
    net, X, Y = problem()
    proof = proved(net, X, Y, "squared")
    for name, array in proof.inputs.items():
        moved = array.copy()
        moved.flat[1] += 2.0**-20
        other = {**proof.inputs, name: moved}
        assert "digests differ" in verify(proof.certificate, other).reason
        far = {**proof.inputs, name: array + 1.0}  # sealed with the digest that fits, the loss does not
        forged = seal("network-optimality", "norms", far, proof.certificate.data, dict(proof.certificate.constants))
        assert "only known to be at most" in verify(forged, far).reason
        cut = {**proof.inputs, name: np.ascontiguousarray(array[:, :-1] if name == "parameters" else array[:-1])}
        forged = seal("network-optimality", "norms", cut, proof.certificate.data, dict(proof.certificate.constants))
        assert verify(forged, cut).verdict is Verdict.FAILS


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_an_error_is_counted(loss):
    net, X, Y = problem(loss)
    Y = Y.copy()
    Y[3] = Y[3, ::-1] if loss == "cross_entropy" else 1.0 - Y[3]
    proof = proved(net, X, Y, loss)
    assert proof.certificate.constants["errors"] == 1
    assert verify(proof.certificate, proof.inputs).verdict is Verdict.HOLDS
    assert "not proved to be in their class" in verify(resealed(proof.certificate, errors=0), proof.inputs).reason


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_soft_labels_are_refused(value):
    net, X, Y = problem("binary_cross_entropy")
    proof = proved(net, X, Y, "binary_cross_entropy")
    soft = {**proof.inputs, "Y": np.where(Y == 1.0, value, Y)}
    forged = seal("network-optimality", "norms", soft, proof.certificate.data, dict(proof.certificate.constants))
    assert verify(forged, soft).verdict is Verdict.FAILS


def test_conflicting_targets_cost_every_network():
    net, X, Y = problem(n=8)
    X[5] = X[2]
    Y = np.zeros_like(Y)
    Y[5] = 2.0
    proof = proved(net, X, Y, "squared", tolerance=1e6)
    assert proof.floor == 2 * 2.0 / 8  # two outputs, each 1 + 1 around the mean, over 8 samples
    assert proof.gap == pytest.approx(proof.upper - proof.floor, rel=1e-6)
    again = verify(proof.certificate, proof.inputs)
    assert again.verdict is Verdict.HOLDS
    assert "above what the data cost, 0.5 or more" in again.reason
    assert (
        verify(resealed(proof.certificate, gap=proof.upper - 1.5 * proof.floor), proof.inputs).verdict is Verdict.FAILS
    )
    apart = {**proof.inputs, "x": proof.inputs["x"] + np.eye(8, 3)}
    forged = seal("network-optimality", "norms", apart, proof.certificate.data, dict(proof.certificate.constants))
    assert verify(forged, apart).verdict is Verdict.FAILS


def test_a_graph_that_knows_the_place_in_the_batch_gives_equal_inputs_one_output():
    """Otherwise the bound from the data would not hold for it, and a gap from that bound could be anything."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1, bias=False)
            self.register_buffer("shift", torch.tensor([[0.0], [0.0]]))

        def forward(self, x):
            return self.line(x) + self.shift

    net = Offset()
    X = torch.ones(2, 1)
    proof = proved(net, X, np.zeros((2, 1)), "squared")
    document = json.loads(proof.certificate.data["graph"].tobytes().decode("ascii"))
    assert any(node["op"] == "constant" for node in document["nodes"])
    parameters = proof.inputs["parameters"].copy()
    weight = float(net.line.weight.detach())
    parameters[0, 1:] = [-weight, 1.0 - weight]  # outputs 0 and 1, for equal inputs
    inputs = {"parameters": parameters, "x": proof.inputs["x"], "Y": np.array([[0.0], [1.0]])}
    f, _ = optimality.outputs(av.kernel.network.graph.parse(encode(document)), parameters[0], inputs["x"], None)
    assert f[0] == f[1]
    forged = seal(
        "network-optimality", "norms", inputs, proof.certificate.data, {**proof.certificate.constants, "gap": 0.1}
    )
    assert verify(forged, inputs).verdict is Verdict.FAILS
    fits = resealed(forged, gap=0.25 + 1e-9)  # 0.5 for the second sample, above 0.25 that such data cost
    assert verify(fits, inputs).verdict is Verdict.HOLDS


def better_of(net, X, Y):
    """Other values of the last layer, by least squares."""
    z = torch.tanh(net[0](X)).detach().double().numpy()
    solution = np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), Y, rcond=None)[0]
    return {"2.weight": solution[:-1].T, "2.bias": solution[-1]}


@pytest.mark.parametrize("method", ["norms", "balls"])
def test_better_parameters_refute(method):
    if method == "balls" and not balls.available():
        pytest.skip("balls need python-flint")
    net, X, Y = problem()
    Y = Y + 3.0
    proof = proved(net, X, Y, "squared", tolerance=0.1, better=lambda: better_of(net, X, Y))
    assert proof.verdict is Verdict.FAILS
    good = proof.certificate
    if method == "balls":
        good = seal(good.claim, "balls", proof.inputs, good.data, {**good.constants, "bits": 128})
    gap = good.constants["gap"]
    assert 0.1 < gap < proof.lower
    assert verify(good, proof.inputs).verdict is Verdict.HOLDS
    other = good.data["better0"].copy()
    other[0] += 5.0
    for forged in (
        resealed(good, gap=1.01 * gap),
        resealed(good, gap=-1.0),
        resealed(good, {"better0": other}),
        resealed(good, {"better0": good.data["better0"][:-1].copy()}),
        resealed(good, changed=("2.weight",)),  # the bias alone
        resealed(good, changed=("2.weight", "nothing")),
        resealed(good, changed=("2.weight", "2.weight")),
        resealed(good, changed=()),
        dataclasses.replace(good, data=Frozen({"graph": good.data["graph"]})),
    ):
        assert verify(forged, proof.inputs).verdict is Verdict.FAILS, forged.constants


def test_parameters_that_share_memory_or_are_frozen_are_not_changed():
    net, X, Y = problem()
    Y = Y + 3.0
    good = proved(net, X, Y, "squared", tolerance=0.1, better=lambda: better_of(net, X, Y))
    document = json.loads(good.certificate.data["graph"].tobytes().decode("ascii"))
    places = {node["args"].get("name"): k for k, node in enumerate(document["nodes"])}
    for name, value in (("trainable", False), ("pure", False), ("leaf", 0)):
        changed = json.loads(json.dumps(document))
        changed["nodes"][places["2.weight"]]["args"][name] = value
        forged = resealed(good.certificate, {"graph": encode(changed)})
        assert "cannot be changed alone" in verify(forged, good.inputs).reason
    changed = json.loads(json.dumps(document))
    changed["nodes"][places["2.weight"]] = {
        **changed["nodes"][places["2.weight"]], "op": "constant",
        "args": {"name": "2.weight", "range": None, "masked": "", "rows": []},
    }  # fmt: skip
    assert verify(resealed(good.certificate, {"graph": encode(changed)}), good.inputs).verdict is Verdict.FAILS


def test_tied_weights_are_evaluated():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
            self.last.weight = nn.Parameter(self.first.weight.data)  # two parameters on one storage

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    torch.manual_seed(1)
    net, X = Tied(), torch.randn(6, 3)
    Y = net(X).detach().double().numpy()
    proof = proved(net, X, Y, "squared", tolerance=1e-6)
    assert proof.verdict is Verdict.HOLDS
    inputs, notes = inputs_again(proof.certificate, net, X, Y)
    assert av.recheck(proof.certificate, **inputs).verdict is Verdict.HOLDS
    assert "this model is traced to" in notes[0]


def test_inputs_again_refuses_another_network():
    net, X, Y = problem()
    proof = proved(net, X, Y, "squared")
    with pytest.raises(av.InvalidInput, match="another network"):
        inputs_again(proof.certificate, nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2)), X, Y)
    with pytest.raises(av.InvalidInput, match="no graph"):
        inputs_again(dataclasses.replace(proof.certificate, data=Frozen({})), net, X, Y)
    moved = {**inputs_again(proof.certificate, net, X, Y)[0]}
    with torch.no_grad():
        net[0].weight += 1.0
    other = inputs_again(proof.certificate, net, X, Y)[0]
    assert not np.array_equal(other["parameters"], moved["parameters"])
    assert verify(proof.certificate, other).verdict is Verdict.FAILS


def test_batches_and_integers_are_enclosed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 2))
    X = torch.randint(0, 7, (150, 2))  # three batches
    Y = net(X).detach().double().numpy()
    proof = proved(net, X, Y, "squared", tolerance=1e-9)
    assert proof.verdict is Verdict.HOLDS
    assert av.recheck(proof.certificate, **proof.inputs).verdict is Verdict.HOLDS


def test_what_takes_too_long_or_has_no_rule_is_named():
    net, X, Y = problem()
    assert "would take about" in prove_optimality(net, X, Y, "squared", tolerance=1.0, seconds=0.0)
    odd = nn.Sequential(nn.Linear(3, 2), nn.RReLU().train())
    odd[1].forward = lambda x: torch.special.bessel_j0(x)
    assert "no rule" in prove_optimality(odd, X, Y, "squared", tolerance=1.0, seconds=10.0)
    asking = nn.Sequential(nn.Linear(3, 2))
    asking[0].forward = lambda x: x[:, :2] if bool((x > 0).any()) else x[:, 1:]
    assert "cannot be traced" in prove_optimality(asking, X, Y, "squared", tolerance=1.0, seconds=10.0)
