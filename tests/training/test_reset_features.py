"""Features that no gates tell apart go some of the way back to the initial ones, and the function stays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from alignver.errors import LostGuarantee
from alignver.results import Rigor, Verdict
from alignver.training import checkpoint
from alignver.training.phase_transition import SHARES, initial_values
from alignver.training.wrapper import EEWrapper
from tests.training import nets


def dead(repair="staircase", dtype=torch.float64, model=None, **options):
    """A run whose first layer died in exploration: the features of all samples are the same floats."""
    X, Y = nets.data(dtype=dtype)
    wrapper = EEWrapper(
        nets.plain(dtype=dtype) if model is None else model,
        loss="binary_cross_entropy",
        tau=3,
        epsilon=1e-30,
        seed=3,
        repair=repair,
        exploit_optimizer="newton",
        **options,
    )
    for _ in range(3):
        wrapper.explore_step(X, Y)
    with torch.no_grad():
        wrapper.module.body[0].weight.zero_()
    return wrapper, X, Y


def body(wrapper):
    return {name: p.detach().clone() for name, p in wrapper.module.body.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["staircase", "redraw"])
def test_rank_n_is_proved_the_outputs_stay_and_zero_error_is_reached(mode, dtype):
    wrapper, X, Y = dead(mode, dtype)
    trained, start = body(wrapper), initial_values(nets.plain(dtype=dtype), wrapper.module)
    outputs = wrapper.outputs(X)
    with pytest.warns(LostGuarantee, match=r"the features moved .* of the way back to the initial ones, and now it"):
        outcome = wrapper.enter_exploitation(X, Y)
    assert outcome.proved
    assert not outcome.before.all
    assert outcome.feature_reset in SHARES
    for name, p in body(wrapper).items():
        expected = torch.lerp(trained[name], start[name], outcome.feature_reset)
        assert torch.allclose(p, expected, rtol=0, atol=1e-6)
    assert float((wrapper.outputs(X) - outputs).abs().max()) <= (1e-9 if dtype == torch.float64 else 1e-3)
    assert any(f"moved {outcome.feature_reset:g} of the way back" in line for line in outcome.sentences)
    assert outcome.summary()["feature_reset"] == outcome.feature_reset
    for _ in range(15):
        wrapper.exploit_step()
    assert wrapper.evaluate()["error"] == 0.0
    result = wrapper.check(X, Y, tolerance=1e-3)
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)


def test_from_the_share_that_was_taken_new_gates_are_enough():
    wrapper, X, Y = dead()
    start = initial_values(nets.plain(), wrapper.module)
    other = copy.deepcopy(wrapper)
    with pytest.warns(LostGuarantee):
        share = wrapper.enter_exploitation(X, Y).feature_reset
    with torch.no_grad():
        for name, p in other.module.body.named_parameters():
            p.lerp_(start[name], share)
    with pytest.warns(LostGuarantee):
        assert other.enter_exploitation(X, Y).feature_reset == 0.0


@pytest.mark.parametrize("why", ["repair is none", "two samples are equal"])
def test_nothing_is_moved_where_no_repair_is_wanted_or_none_helps(why):
    wrapper, X, Y = dead("none" if why == "repair is none" else "staircase")
    if why == "two samples are equal":
        X[5] = X[2]
    before = body(wrapper)
    with pytest.warns(LostGuarantee, match="no gates have it"):
        outcome = wrapper.enter_exploitation(X, Y)
    assert not outcome.proved
    assert outcome.feature_reset == 0.0
    assert all(torch.allclose(p, before[name], rtol=0, atol=1e-28) for name, p in body(wrapper).items())


def test_a_frozen_parameter_stays_where_it_is():
    model = nets.plain()
    model[0].bias.requires_grad_(False)
    wrapper, X, Y = dead(model=model)
    stored = wrapper.module.body[0].bias.detach().clone()
    with torch.no_grad():
        wrapper.module.body[0].bias.add_(1.0)  # a value that is neither the initial one nor on the way to it
    with pytest.warns(LostGuarantee):
        outcome = wrapper.enter_exploitation(X, Y)
    assert outcome.feature_reset > 0.0
    assert torch.equal(wrapper.module.body[0].bias, stored + 1.0)


class Shared(nn.Module):
    """The first layer has the weight of the last hidden one, whose name comes first and is then gone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.last, self.first = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(3, 3)
        self.first.weight = self.hidden.weight
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("lazy", [False, True])
def test_shared_and_lazy_parameters(lazy):
    model = Shared()
    if lazy:
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    X, Y = nets.data(n=8)
    wrapper = EEWrapper(model, loss="squared", tau=1, epsilon=1e-30, exploit_optimizer="newton")
    wrapper.explore_step(X, Y.double())
    with torch.no_grad():
        next(p for p in wrapper.module.body.parameters() if p.dim() == 2).zero_()
    with pytest.warns(LostGuarantee):
        outcome = wrapper.enter_exploitation(X, Y.double())
    assert outcome.proved is not lazy  # what had no values before has none to go back to
    assert (outcome.feature_reset > 0.0) is not lazy


def test_gates_alone_are_enough_where_they_can_be():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(), loss="binary_cross_entropy", tau=3, epsilon=0.1, exploit_optimizer="newton")
    wrapper.fit((X, Y), 4)
    assert wrapper.guarantee.proved
    assert wrapper.guarantee.feature_reset == 0.0


def test_a_run_that_was_cut_off_afterwards_goes_on_bit_for_bit(tmp_path):
    wrapper, X, Y = dead()
    with pytest.warns(LostGuarantee):
        wrapper.enter_exploitation(X, Y)
    wrapper.exploit_step()
    checkpoint.save(wrapper, tmp_path / "run.safetensors")
    other = EEWrapper(
        nets.plain(), loss="binary_cross_entropy", tau=3, epsilon=1e-30, seed=3, exploit_optimizer="newton"
    )
    checkpoint.restore(other, checkpoint.load(tmp_path / "run.safetensors"), X, Y)
    assert other.guarantee.feature_reset == wrapper.guarantee.feature_reset > 0.0
    for each in (wrapper, other):
        each.exploit_step()
    assert np.array_equal(wrapper.module.head.hidden.detach().numpy(), other.module.head.hidden.detach().numpy())
