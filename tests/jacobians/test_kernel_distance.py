"""The change of the gradient representation against dense matrices from a float64 loop of autograd.grad."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.jacobians import kernel_distance
from alignver.jacobians.gram import gram
from alignver.jacobians.kernel_distance import RepresentationSnapshot, representation_change
from alignver.jacobians.operator import JacobianOperator
from alignver.results import Rigor
from tests import zoo
from tests.reference import fingerprint, reference_jacobian

KINDS = ["mlp", "lenet", "batch norm in eval mode", "gru", "tied embedding", "reused and aliased", "weight norm"]


def moved(model: nn.Module, by: float = 0.1) -> nn.Module:
    """A copy somewhere else: parameters and floating buffers scaled and shifted."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for k, tensor in enumerate([*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())]):
            tensor.mul_(1.0 + by * (1 + k % 3)).add_(0.01)
    return other


def truth(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    J, K = (reference_jacobian(m, x) for m in (model, other))
    return float((K @ K.T - J @ J.T).square().sum())


@pytest.mark.parametrize("name", KINDS)
def test_exact_is_that_of_the_dense_matrices(name):
    model, x = zoo.build(name)
    other = moved(model)
    wanted = truth(model, other, x)
    marks = fingerprint(other)
    change = representation_change(other, x, model.state_dict())
    assert fingerprint(other) == marks
    assert change.value == pytest.approx(wanted, rel=1e-10)
    assert (change.method, change.rigor, change.products) == ("exact", Rigor.NUMERICAL, 0)
    assert change.interval == (change.value, change.value)
    assert "fit" in change.reason or "take" in change.reason
    both = representation_change(model, x, model.state_dict(), other.state_dict())
    assert both.value == pytest.approx(change.value, rel=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_probes_agree(name):
    model, x = zoo.build(name)
    other = moved(model)
    marks = fingerprint(other)
    change = representation_change(other, x, model.state_dict(), method="probes", probes=12, confidence=0.999)
    assert fingerprint(other) == marks
    low, high = change.interval
    assert low <= truth(model, other, x) * (1 + 1e-10)
    assert truth(model, other, x) <= high * (1 + 1e-10)
    assert low <= change.value <= high
    assert (change.method, change.rigor, change.products) == ("probes", Rigor.STATISTICAL, 12)
    assert change.reason == "probes, as requested"


def test_a_snapshot_follows_the_training():
    model, x = zoo.build("mlp")
    start = copy.deepcopy(model)
    stored = {method: RepresentationSnapshot(model, x, method=method, probes=18) for method in ("exact", "probes")}
    rounding = 1e-26 * float(gram(model, x).square().sum())  # a few hundred eps of the norm, squared
    assert all(snapshot.change().value <= rounding for snapshot in stored.values())
    given = x.clone()
    x.zero_()  # the snapshot has its own
    for step in (1, 2):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * step)
        wanted = truth(start, model, given)
        assert stored["exact"].change().value == pytest.approx(wanted, rel=1e-10)
        change = stored["probes"].change()
        assert change.interval[0] <= wanted <= change.interval[1]
        assert stored["probes"].change().value == pytest.approx(change.value, rel=1e-9)
        assert stored["exact"].change(start.state_dict()).value <= rounding


def test_as_many_products_as_rows_leave_nothing_to_chance():
    model, x = zoo.build("mlp")  # ten rows
    other = moved(model)
    change = representation_change(other, x, model.state_dict(), method="probes", probes=33)
    wanted = truth(model, other, x)
    assert change.value == pytest.approx(wanted, rel=1e-9)
    assert change.interval == pytest.approx((wanted, wanted), rel=1e-9)


def test_what_does_not_fit_is_probed(monkeypatch):
    model, x = zoo.build("mlp")
    monkeypatch.setattr(kernel_distance, "available_memory", lambda: 1000)
    change = representation_change(moved(model), x, model.state_dict(), probes=9)
    assert change.method == "probes"
    assert "0.0 GB are available" in change.reason


def test_random_states_are_left_alone():
    model, x = zoo.build("mlp")
    before = torch.get_rng_state()
    representation_change(moved(model), x, model.state_dict(), method="probes", probes=6)
    assert torch.equal(torch.get_rng_state(), before)


def test_words():
    model, x = zoo.build("mlp")
    other = moved(model)
    assert str(representation_change(other, x, model.state_dict())).startswith("||M_T - M_0||_F^2 = ")
    probed = representation_change(other, x, model.state_dict(), method="probes", probes=9)
    assert "95% from" in str(probed)


def test_frozen_parameters_count_when_asked():
    model, x = zoo.build("frozen half")
    other = moved(model)
    change = representation_change(other, x, model.state_dict(), include_frozen=True)
    J, K = (reference_jacobian(m, x, include_frozen=True) for m in (model, other))
    assert change.value == pytest.approx(float((K @ K.T - J @ J.T).square().sum()), rel=1e-10)


def test_the_models_own_dtype():
    model, x = zoo.build("mlp")
    other = moved(model)
    wanted = truth(model, other, x)
    assert representation_change(other, x, model.state_dict(), dtype="same").value == pytest.approx(wanted, rel=1e-4)
    probed = representation_change(other, x, model.state_dict(), dtype="same", method="probes", probes=33)
    assert probed.value == pytest.approx(wanted, rel=1e-4)


def test_gram_and_operator_at_a_state():
    model, x = zoo.build("batch norm in eval mode")
    other = moved(model)
    J = reference_jacobian(other, x)
    M = gram(model, x, state=other.state_dict())
    assert float((M - J @ J.T).norm()) <= 1e-12 * float(M.norm())
    u = torch.cos(torch.arange(len(J), dtype=torch.float64))
    product = JacobianOperator(model, x, state=other.state_dict()).rmatvec(u)
    assert float((product - J.T @ u).norm()) <= 1e-12 * float(J.norm() * u.norm())


def test_buffers_that_are_no_part_of_a_state_dict_stay():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("by", torch.ones(3), persistent=False)

        def forward(self, x):
            return torch.tanh(self.layer(x + self.by))

    model, x = Shifted(), torch.randn(4, 3)
    other = moved(model)
    other.by.fill_(1.0)
    assert representation_change(other, x, model.state_dict()).value == pytest.approx(truth(model, other, x), rel=1e-9)


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change_of", "words"),
    [
        (lambda s: [1.0], "list"),
        (lambda s: without(s, "0.bias"), "no '0.bias'"),
        (lambda s: without(s, "1.running_var"), "no '1.running_var'"),
        (lambda s: {**s, "9.weight": torch.zeros(1)}, "'9.weight', which the model does not have"),
        (lambda s: {**s, "0.bias": torch.zeros(3)}, "shape"),
        (lambda s: {**s, "0.bias": s["0.bias"].double()}, "float64"),
        (lambda s: {**s, "0.bias": s["0.bias"] * float("nan")}, "NaN"),
        (lambda s: {**s, "0.bias": s["0.bias"].tolist()}, "dense tensor"),
        (lambda s: {**s, "0.bias": s["0.bias"].to("meta")}, "dense tensor"),
    ],
)
@pytest.mark.parametrize("argument", ["before", "after"])
def test_states_that_are_none_of_this_model(change_of, words, argument):
    model, x = zoo.build("batch norm in eval mode")
    good = copy.deepcopy(model.state_dict())
    states = {"before": good, "after": good} | {argument: change_of(good)}
    with pytest.raises(InvalidInput, match=words) as refused:
        representation_change(model, x, **states)
    assert refused.value.argument == argument


def test_the_models_own_memory_is_no_before():
    model, x = zoo.build("mlp")
    with pytest.raises(InvalidInput, match="deepcopy"):
        representation_change(model, x, model.state_dict())


def test_other_trainable_parameters_than_at_the_snapshot():
    model, x = zoo.build("mlp")
    start = RepresentationSnapshot(model, x)
    next(model.parameters()).requires_grad_(False)
    with pytest.raises(InvalidInput, match="include_frozen"):
        start.change()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"method": "guess"}, "method"),
        ({"probes": 5}, "probes"),
        ({"probes": 6.0}, "probes"),
        ({"probes": True}, "probes"),
        ({"confidence": 0.5}, "confidence"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": "high"}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"seed": -1}, "seed"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_options(options, argument):
    model, x = zoo.build("mlp")
    with pytest.raises(InvalidInput) as refused:
        RepresentationSnapshot(model, x, **options)
    assert refused.value.argument == argument


def test_params_and_state_are_two_ways():
    with pytest.raises(InvalidInput, match="one of the two"):
        gram(lambda p, x: x @ p["w"], [[1.0]], params={"w": torch.ones(1, 1)}, state={})


def test_public_names():
    assert av.representation_change is representation_change
    assert av.RepresentationSnapshot is RepresentationSnapshot
