"""Epochs: passes over batches by default, batches of their own for each phase, test samples, honest bounds, advice."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.training.loop import BATCH, advice, gap_bound
from alignver.training.run_folder import RunFolder


def moons(n=150, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 2, generator=generator, dtype=dtype)
    return X, (X[:, 0] * X[:, 1] > 0).long()


def net(dtype=torch.float64, width=16):
    torch.manual_seed(0)
    layers = nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, width), nn.Tanh(), nn.Linear(width, 2)
    return nn.Sequential(*layers).to(dtype)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def wrapper(dtype=torch.float64, **options):
    defaults = {"tau": 2, "epsilon": 0.1, "optimizer": adam, "exploit_optimizer": "newton", "repair": "none"}
    return av.EEWrapper(net(dtype), loss="cross_entropy", seed=3, **{**defaults, **options})


def fit(trained, data, epochs, **options):
    """Fit without a search for proofs of the ranks, which these tests are not about."""
    return trained.fit(data, epochs, prove=False, **options)


def test_an_epoch_is_a_pass_over_batches_in_exploration_and_one_step_of_newton():
    X, Y = moons()
    trained = fit(wrapper(), (X, Y), 4)
    assert [record["steps"] for record in trained.history] == [2, 4, 5, 6]  # 128 and 22; then all of them
    assert BATCH == 128
    assert [record["steps"] for record in fit(wrapper(), (X, Y), 4, batch_size="all").history] == [1, 2, 3, 4]
    assert [record["steps"] for record in fit(wrapper(), (X, Y), 4, batch_size=None).history] == [1, 2, 3, 4]


def test_each_phase_has_its_batches_and_its_optimiser():
    X, Y = moons()
    trained = fit(wrapper(exploit_optimizer="momentum"), (X, Y), 4, batch_size=100, exploit_batch_size=30)
    assert [record["steps"] for record in trained.history] == [2, 4, 9, 14]
    assert trained.guarantee.batch_size == 30
    with pytest.raises(InvalidInput, match="exploit_optimizer: got 'newton' with batches of 30 of 150"):
        fit(wrapper(), (X, Y), 4, exploit_batch_size=30)
    for name in ("batch_size", "exploit_batch_size"):
        with pytest.raises(InvalidInput, match=f"{name}: got {name}='most'; needs a positive integer, or 'all'"):
            fit(wrapper(), (X, Y), 4, **{name: "most"})


def test_errors_of_test_samples_are_recorded():
    X, Y = moons()
    trained = fit(wrapper(), (X[:100], Y[:100]), 3, test=(X[100:], Y[100:]))
    wrong = (trained.outputs(X[100:]).argmax(1) != Y[100:]).double().mean()
    assert trained.history[-1]["test_error"] == pytest.approx(float(wrong))
    assert [sorted(record) for record in trained.history] == 3 * [
        ["epoch", "error", "loss", "phase", "steps", "test_error", "test_loss"]
    ]
    fitted = fit(wrapper(), (X[:100], Y[:100]), 3)
    assert all(torch.equal(p, q) for p, q in zip(trained.module.parameters(), fitted.module.parameters()))
    with pytest.raises(InvalidInput, match="test: got a Tensor"):
        fit(wrapper(), (X, Y), 3, test=X)
    with pytest.raises(InvalidInput, match="test: got"):
        fit(wrapper(), (X, Y), 3, test=(X, Y + 7))


def test_bounds_of_the_gap_are_positive_and_not_below_the_proved_loss(tmp_path):
    """In float32 a small cross-entropy is 0, or -0."""
    X, Y = moons(60, torch.float32)
    trained = wrapper(torch.float32, tau=20)
    with RunFolder.create(tmp_path / "run", {}) as folder:
        folder.fit(trained, (X, Y), 45, prove=False)
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert all(line["gap"] > line["loss"] >= 0.0 for line in lines)
    assert not any("-0.0" in line for line in (tmp_path / "run/history.jsonl").read_text().splitlines())
    result = trained.check(X, Y, tolerance=1e-3)
    assert lines[-1]["gap"] >= result.measured["loss_lower"]
    assert gap_bound(-0.0, 0.0, "squared") > 0.0
    assert gap_bound(0.25, 0.5, "squared") > 0.0


@pytest.mark.parametrize(("epochs", "solver"), [(12, adam), (40, "newton")])
def test_a_steep_recipe_reaches_a_proved_gap_or_says_what_would(epochs, solver):
    X, Y = moons(100)
    trained = fit(wrapper(tau=8, exploit_optimizer=solver), (X, Y), epochs, batch_size=64)
    result = trained.check(X, Y, tolerance=1e-4)
    if solver == "newton":
        assert (result.verdict, result.rigor) == ("HOLDS", "PROOF")
        return
    assert result.verdict != "HOLDS"
    steps = advice(trained.history, result.measured["gap_lower"], 1e-4, solver)
    assert "exploit_optimizer='newton'" in steps[0]
    assert "more epochs" in steps[1]


def test_advice():
    history = [{"phase": "exploration", "loss": 9.0}] + [{"phase": "exploitation", "loss": 0.5**t} for t in range(9)]
    assert advice(history, 0.5**8, 0.5**11, "newton")[0].startswith("about 3 more epochs")
    assert advice(history, 0.5**8, 0.5**11, "gd")[1].startswith("or about 3 more epochs")
    flat = [{"phase": "exploitation", "loss": 1.0}] * 5
    assert advice(flat, 1.0, 0.1, "newton")[0].startswith("a smaller step")
