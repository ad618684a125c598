"""What is known at tau: ranks, conditioning, steps; and gates of full rank where the trained ones have none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import alignver as av
from alignver.checks.exploration import prove_ranks
from alignver.errors import InvalidInput
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
    own, theta = model()
    found = guarantee(own, theta, loss="squared", mode="staircase")
    assert found.proved
    assert found.before is found.after
    assert found.model is own
    for j, entry in enumerate(found.after.entries):
        levels = np.linalg.svd(own.dense(j), compute_uv=False)
        assert 0.0 < entry["s_min"] <= levels[-1]
    largest = max(np.linalg.norm(own.dense(j), 2) for j in range(2)) ** 2
    bounds = found.smoothness
    assert 2.0 / 40 * largest <= bounds.spectral <= 1.00001 * 2.0 / 40 * largest
    assert bounds.paper >= bounds.spectral
    said = " / ".join(found.sentences)
    assert "rank n = 40 of the trained gates is proved for 2 of 2 outputs" in said
    assert f"step 1/Lhat {bounds.step:.3g}, stable below {shown_down(bounds.limit)}" in said
    assert found.summary()["proved"] is True


@pytest.mark.parametrize("mode", ["staircase", "redraw"])
def test_a_repair_replaces_few_units_and_keeps_the_function(mode):
    own, theta = model(size=1e-9)
    before = prove_ranks(own)
    assert not any(before.entries)
    found = repair(own, theta, before, mode=mode)
    assert found.ranks.all
    assert all(found.replaced)
    outputs = own.outputs(theta)
    moved = np.abs(found.model.outputs(found.weights) - outputs).max()
    assert moved == found.moved <= 1e-9 * np.abs(outputs).max()
    for j, units in enumerate(found.replaced):
        # 40 samples, 6 features: trained gates that are all 1/2 give 6 columns, so no fewer than 6 units do.
        assert 6 <= len(units) <= 12
        assert len(set(units)) == len(units)
        kept = sorted(set(range(own.h)) - set(units))
        assert np.array_equal(found.model.gates[j][:, kept], own.gates[j][:, kept])
        levels = np.linalg.svd(found.model.dense(j), compute_uv=False)
        assert levels[-1] > 1e-12 * levels[0]
    assert np.array_equal(found.model.Z, own.Z)


def test_only_outputs_without_rank_n_are_touched():
    own, theta = model()
    gates = np.array(own.gates)
    gates[1] *= 1e-9
    own = Exploitation(own.Z, gates, own.output_weights, own.slope)
    found = repair(own, theta, prove_ranks(own), mode="staircase")
    assert found.ranks.all
    assert found.replaced[0] == ()
    assert found.replaced[1]
    assert np.array_equal(found.model.gates[0], own.gates[0])
    assert np.array_equal(found.weights[0], theta[0])


def test_equal_rows_cannot_be_repaired_and_the_samples_are_named():
    own, theta = model(twins=True)
    for mode in ("none", "redraw", "staircase"):
        found = guarantee(own, theta, loss="squared", mode=mode)
        assert not found.proved
        assert found.before.refuted
        assert found.model is own
        assert found.replaced == ((), ())
        said = " / ".join(found.sentences)
        assert "3" in found.before.reasons[0]
        assert "17" in found.before.reasons[0]
        assert found.before.reasons[0] in said
        assert "no gates give these samples rank n" in said
        assert "the global minimum is not promised" in said


def test_gates_that_cannot_be_proved_may_still_have_rank_n_in_floating_point():
    """Two samples 1e-10 apart: the gate between them is so steep that its error, counted by norms, is too large."""
    own, theta = model(n=12, m=3, h=16, m_y=1, size=1e-9)
    Z = np.array(own.Z)
    Z[7] = Z[2]
    Z[7, 0] += 1e-10
    Z[:, 1] += 100.0
    own = Exploitation(Z, own.gates, own.output_weights, own.slope)
    found = guarantee(own, theta, loss="squared", mode="staircase")
    assert not found.before.refuted
    assert not found.proved
    assert len(found.replaced[0]) == 12
    assert np.linalg.matrix_rank(own.dense(0)) < 12 == np.linalg.matrix_rank(found.model.dense(0))
    assert any("in floating point only" in line for line in found.sentences)
    assert found.moved < 1e-6


def test_too_few_columns_cannot_be_repaired():
    own, theta = model(h=6)
    found = guarantee(own, theta, loss="squared", mode="staircase")
    assert found.before.refuted
    assert "fewer than 40 samples" in found.before.reasons[0]


def test_none_leaves_everything():
    own, theta = model(size=1e-9)
    found = guarantee(own, theta, loss="squared", mode="none")
    assert not found.proved
    assert found.model is own
    assert not found.before.refuted
    assert "is proved for 0 of 2 outputs" in found.sentences[0]
    unseen = guarantee(own, theta, loss="squared", mode="staircase", prove=False)
    assert unseen.before is None
    assert "no proof of the ranks was attempted for 40 samples" in unseen.sentences[0]
    with pytest.raises(InvalidInput, match="repair: got repair='none'"):
        repair(own, theta, found.before, mode="none")


def test_balancing_changes_no_output_at_all():
    own, theta = model(seed=4)
    output, weights = balanced(own.output_weights[0], theta[0])
    assert np.array_equal(output[:, None] * weights, own.output_weights[0][:, None] * theta[0])
    assert np.ptp(np.frexp(output)[1]) == 0


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_stairs_tell_their_blocks_apart(k):
    own, _ = model(seed=2)
    q = stairs(own.Z, k)
    gates = logistic(own.Z @ q)
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
    own = EEWrapper(
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
    return own, X, Y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["staircase", "redraw"])
def test_a_run_is_repaired_with_a_warning_and_reaches_zero_error(mode, dtype):
    own, X, Y = collapsed(mode, dtype=dtype)
    for _ in range(3):
        own.explore_step(X, Y)
    reference = copy.deepcopy(own)
    with pytest.warns(RuntimeWarning, match="is not proved for 1 of 1 outputs; the gates of .* of 12 units were repl"):
        found = own.enter_exploitation(X, Y)
    reference.repair = "none"
    with pytest.warns(RuntimeWarning, match="repair='none' leaves it so"):
        unrepaired = reference.enter_exploitation(X, Y)
    assert not unrepaired.proved
    assert found.proved
    assert any(f"gates of {len(found.replaced[0])} of 12 units replaced" in line for line in found.sentences)
    # The network itself, in its dtype, has the gates that were proved and the function that was there.
    head = own.module.head
    assert np.array_equal(found.model.gates.transpose(0, 2, 1), head.gates.double().numpy())
    moved = float((own.outputs(X) - reference.outputs(X)).abs().max())
    assert moved <= found.moved + (1e-12 if dtype == torch.float64 else 1e-3)
    assert found.moved <= (1e-10 if dtype == torch.float64 else 1e-3)
    for _ in range(15):
        own.exploit_step()
    assert own.evaluate()["error"] == 0.0
    result = own.check(X, Y, tolerance=1e-3)
    assert result.verdict is Verdict.HOLDS
    assert result.measured["rank_n"]


def test_equal_samples_are_named_in_the_warning():
    own, X, Y = collapsed()
    X[5] = X[2]
    for _ in range(3):
        own.explore_step(X, Y)
    with pytest.warns(RuntimeWarning, match="no gates have it: .*2.*5"):
        found = own.enter_exploitation(X, Y)
    assert not found.proved


def test_the_ranks_are_those_of_the_safe_exploration_check():
    X, Y = nets.data()
    own = EEWrapper(nets.plain(2), loss="cross_entropy", tau=2, epsilon=0.1, exploit_optimizer="gd")
    own.fit((X, Y[:, 0]), 4)
    found = own.guarantee
    for j in range(2):
        result = av.check_safe_exploration(
            found.model.Z, q=found.model.steep_gates[j], weights=found.model.output_weights[j], method="gram"
        )
        assert result.verdict is Verdict.HOLDS
        claimed = found.after.entries[j]["s_min"]  # what a re-check proves again
        assert result.measured["s_min_lower"] == result.certificate.constants["s_min"]
        assert 4 * claimed == pytest.approx(result.measured["s_min_lower"], rel=1e-12)  # 0.2 and 0.8 of what is proved
