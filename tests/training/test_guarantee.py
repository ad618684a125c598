"""What is known at tau: ranks, conditioning, steps; and gates of full rank where the trained ones have none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import alignver as av
from alignver.checks.exploration import prove_ranks
from alignver.errors import InvalidInput, LostGuarantee
from alignver.features.products import logistic
from alignver.results import Verdict, shown_down
from alignver.theory.exploitation import Exploitation
from alignver.training.guarantee import balanced, guarantee, repair, stairs
from alignver.training.wrapper import EEWrapper
from tests.training import nets


def model(n=40, m=6, h=20, m_y=2, seed=0, size=1.0, twins=False):
    """``size`` of the gates: tiny ones are all 1/2, so that A_j has rank m only."""
    rng = np.random.default_rng(seed)
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    if twins:
        Z[17] = Z[3]
    W = rng.standard_normal((m_y, h)) * 10.0 ** rng.uniform(-2, 2, (m_y, h))
    return Exploitation(Z, size * rng.standard_normal((m_y, m, h)), W, 2.0), rng.standard_normal((m_y, h, m))


def test_what_is_proved_is_so():
    exploitation, theta = model()
    outcome = guarantee(exploitation, theta, loss="squared", mode="staircase")
    assert outcome.proved
    assert outcome.before is outcome.after
    assert outcome.model is exploitation
    for j, entry in enumerate(outcome.after.entries):
        levels = np.linalg.svd(exploitation.dense(j), compute_uv=False)
        assert 0.0 < entry["s_min"] <= levels[-1]
    largest = max(np.linalg.norm(exploitation.dense(j), 2) for j in range(2)) ** 2
    bounds = outcome.smoothness
    assert 2.0 / 40 * largest <= bounds.spectral <= 1.00001 * 2.0 / 40 * largest
    assert bounds.paper >= bounds.spectral
    words = " / ".join(outcome.sentences)
    assert "rank n = 40 of the trained gates is proved for 2 of 2 outputs" in words
    assert f"step 1/Lhat {bounds.step:.3g}, stable below {shown_down(bounds.limit)}" in words
    assert outcome.summary()["proved"] is True


@pytest.mark.parametrize("mode", ["staircase", "redraw"])
def test_a_repair_replaces_few_units_and_keeps_the_function(mode):
    exploitation, theta = model(size=1e-9)
    before = prove_ranks(exploitation)
    assert not any(before.entries)
    outcome = repair(exploitation, theta, before, mode=mode)
    assert outcome.ranks.all
    assert all(outcome.replaced)
    outputs = exploitation.outputs(theta)
    moved = np.abs(outcome.model.outputs(outcome.weights) - outputs).max()
    assert moved == outcome.moved <= 1e-9 * np.abs(outputs).max()
    for j, units in enumerate(outcome.replaced):
        # 40 samples, 6 features: trained gates that are all 1/2 give 6 columns, so no fewer than 6 units do.
        assert 6 <= len(units) <= 12
        assert len(set(units)) == len(units)
        stored = sorted(set(range(exploitation.h)) - set(units))
        assert np.array_equal(outcome.model.gates[j][:, stored], exploitation.gates[j][:, stored])
        levels = np.linalg.svd(outcome.model.dense(j), compute_uv=False)
        assert levels[-1] > 1e-12 * levels[0]
    assert np.array_equal(outcome.model.Z, exploitation.Z)


def test_only_outputs_without_rank_n_are_touched():
    exploitation, theta = model()
    gates = np.array(exploitation.gates)
    gates[1] *= 1e-9
    exploitation = Exploitation(exploitation.Z, gates, exploitation.output_weights, exploitation.slope)
    outcome = repair(exploitation, theta, prove_ranks(exploitation), mode="staircase")
    assert outcome.ranks.all
    assert outcome.replaced[0] == ()
    assert outcome.replaced[1]
    assert np.array_equal(outcome.model.gates[0], exploitation.gates[0])
    assert np.array_equal(outcome.weights[0], theta[0])


def test_equal_rows_cannot_be_repaired_and_the_samples_are_named():
    exploitation, theta = model(twins=True)
    for mode in ("none", "redraw", "staircase"):
        outcome = guarantee(exploitation, theta, loss="squared", mode=mode)
        assert not outcome.proved
        assert outcome.before.refuted
        assert outcome.model is exploitation
        assert outcome.replaced == ((), ())
        words = " / ".join(outcome.sentences)
        assert "3" in outcome.before.reasons[0]
        assert "17" in outcome.before.reasons[0]
        assert outcome.before.reasons[0] in words
        assert "no gates give these samples rank n" in words
        assert "the global minimum is not guaranteed" in words


def test_gates_that_cannot_be_proved_may_still_have_rank_n_in_floating_point():
    """Two samples 1e-10 apart: the gate between them is so steep that its error, counted by norms, is too large."""
    exploitation, theta = model(n=12, m=3, h=16, m_y=1, size=1e-9)
    Z = np.array(exploitation.Z)
    Z[7] = Z[2]
    Z[7, 0] += 1e-10
    Z[:, 1] += 100.0
    exploitation = Exploitation(Z, exploitation.gates, exploitation.output_weights, exploitation.slope)
    outcome = guarantee(exploitation, theta, loss="squared", mode="staircase")
    assert not outcome.before.refuted
    assert not outcome.proved
    assert len(outcome.replaced[0]) == 12
    assert np.linalg.matrix_rank(exploitation.dense(0)) < 12 == np.linalg.matrix_rank(outcome.model.dense(0))
    assert any("in floating point only" in line for line in outcome.sentences)
    assert outcome.moved < 1e-6


def test_too_few_columns_cannot_be_repaired():
    exploitation, theta = model(h=6)
    outcome = guarantee(exploitation, theta, loss="squared", mode="staircase")
    assert outcome.before.refuted
    assert "fewer than 40 samples" in outcome.before.reasons[0]


def test_none_leaves_everything():
    exploitation, theta = model(size=1e-9)
    outcome = guarantee(exploitation, theta, loss="squared", mode="none")
    assert not outcome.proved
    assert outcome.model is exploitation
    assert not outcome.before.refuted
    assert "is proved for 0 of 2 outputs" in outcome.sentences[0]
    unseen = guarantee(exploitation, theta, loss="squared", mode="staircase", prove=False)
    assert unseen.before is None
    assert "no proof of the ranks was attempted for 40 samples" in unseen.sentences[0]
    with pytest.raises(InvalidInput, match="repair: got repair='none'"):
        repair(exploitation, theta, outcome.before, mode="none")


def test_balancing_changes_no_output_at_all():
    exploitation, theta = model(seed=4)
    output, weights = balanced(exploitation.output_weights[0], theta[0])
    assert np.array_equal(output[:, None] * weights, exploitation.output_weights[0][:, None] * theta[0])
    assert np.ptp(np.frexp(output)[1]) == 0


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_stairs_tell_their_blocks_apart(k):
    exploitation, _ = model(seed=2)
    q = stairs(exploitation.Z, k)
    gates = logistic(exploitation.Z @ q)
    assert q.shape == (6, k)
    counts = (gates > 0.5).sum(axis=0)
    assert np.all(np.diff(counts) > 0)
    assert counts[-1] == 40
    assert np.all(np.diff((gates > 0.5).astype(int), axis=1) >= 0)  # nested
    distance = np.abs(gates - np.round(gates)).max()
    assert distance <= 0.1


def collapsed(repair="staircase", **options):
    """A wrapper whose trained gates are all 1/2."""
    X, Y = nets.data(dtype=options.pop("dtype", torch.float64))
    wrapper = EEWrapper(
        nets.plain(dtype=X.dtype),
        loss="binary_cross_entropy",
        tau=3,
        epsilon=1e-6,
        gate=1e-4,
        seed=3,
        repair=repair,
        exploit_optimizer="newton",
        **options,
    )
    return wrapper, X, Y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["staircase", "redraw"])
def test_a_run_is_repaired_with_a_warning_and_reaches_zero_error(mode, dtype):
    wrapper, X, Y = collapsed(mode, dtype=dtype)
    for _ in range(3):
        wrapper.explore_step(X, Y)
    reference = copy.deepcopy(wrapper)
    with pytest.warns(LostGuarantee, match="is not proved for 1 of 1 outputs; the gates of .* of 12 units were repl"):
        outcome = wrapper.enter_exploitation(X, Y)
    reference.repair = "none"
    with pytest.warns(LostGuarantee, match="repair='none' leaves it so"):
        unrepaired = reference.enter_exploitation(X, Y)
    assert not unrepaired.proved
    assert outcome.proved
    assert any(f"gates of {len(outcome.replaced[0])} of 12 units replaced" in line for line in outcome.sentences)
    # The network itself, in its dtype, has the gates that were proved and the function that was there.
    head = wrapper.module.head
    assert np.array_equal(outcome.model.gates.transpose(0, 2, 1), head.gates.double().numpy())
    moved = float((wrapper.outputs(X) - reference.outputs(X)).abs().max())
    assert moved <= outcome.moved + (1e-12 if dtype == torch.float64 else 1e-3)
    assert outcome.moved <= (1e-10 if dtype == torch.float64 else 1e-3)
    for _ in range(15):
        wrapper.exploit_step()
    assert wrapper.evaluate()["error"] == 0.0
    result = wrapper.check(X, Y, tolerance=1e-3)
    assert result.verdict is Verdict.HOLDS
    assert result.measured["rank_n"]


def test_equal_samples_are_named_in_the_warning():
    wrapper, X, Y = collapsed()
    X[5] = X[2]
    for _ in range(3):
        wrapper.explore_step(X, Y)
    with pytest.warns(LostGuarantee, match="no gates have it: .*2.*5"):
        outcome = wrapper.enter_exploitation(X, Y)
    assert not outcome.proved


def test_the_ranks_are_those_of_the_safe_exploration_check():
    X, Y = nets.data()
    wrapper = EEWrapper(nets.plain(2), loss="cross_entropy", tau=2, epsilon=0.1, exploit_optimizer="gd")
    wrapper.fit((X, Y[:, 0]), 4)
    outcome = wrapper.guarantee
    for j in range(2):
        result = av.check_safe_exploration(
            outcome.model.Z, q=outcome.model.steep_gates[j], weights=outcome.model.output_weights[j], method="gram"
        )
        assert result.verdict is Verdict.HOLDS
        claimed = outcome.after.entries[j]["s_min"]  # what a re-check proves again
        assert result.measured["s_min_lower"] == result.certificate.constants["s_min"]
        assert 4 * claimed == pytest.approx(result.measured["s_min_lower"], rel=1e-12)  # 0.2 and 0.8 of what is proved
