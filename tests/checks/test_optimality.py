from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from alignver.checks.optimality import check_optimality
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.kernel.certificate import load_certificate
from alignver.results import CheckResult, Frozen, Rigor, Verdict
from alignver.theory.descent import reference_points
from alignver.theory.exploitation import Exploitation, objective
from alignver.theory.infimum import better_weights
from tests.reseal import resealed
from tests.theory.models import LOSSES, model, problem, targets
from tests.theory.test_sample_losses import Huber


def fitted(loss, **shape):
    objective = problem(loss, **shape)
    points = reference_points(objective, np.zeros(objective.model.shape))
    return objective, min(points, key=lambda point: point.loss).weights


def check(objective, theta, loss, tolerance=1e-9, **options):
    Y = (
        objective.targets.argmax(axis=1)
        if objective.loss.name == "cross_entropy" and objective.model.m_y > 1
        else objective.targets
    )
    return check_optimality(objective.model, theta, Y, loss=loss, tolerance=tolerance, **options)


@pytest.mark.parametrize("m_y", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_optimum_is_proved_and_checked_again(loss, m_y, tmp_path):
    objective, theta = fitted(loss, m_y=m_y, h=10)
    result = check(objective, theta, loss)
    assert result.verdict is Verdict.HOLDS
    assert result.rigor is Rigor.PROOF
    assert result.measured["rank_n"] is True
    assert result.measured["training_errors"] == (None if loss == "squared" else 0)
    assert objective.value(theta) <= result.measured["gap_upper"] <= 1e-9
    assert all(bound.satisfied for bound in result.bounds)
    result.certificate.save(tmp_path / "proof")
    inputs = objective.model.inputs(theta, objective.targets)
    again = recheck(load_certificate(tmp_path / "proof"), **inputs)
    assert again.verdict is Verdict.HOLDS, again.reason
    assert "rank n is proved again for every output" in again.reason
    assert CheckResult.from_dict(result.to_dict()).verdict is Verdict.HOLDS
    for name, array in inputs.items():
        other = array.copy()
        other.flat[0] += 1e-9
        assert recheck(result.certificate, **{**inputs, name: other}).verdict is Verdict.FAILS
    with pytest.raises(InvalidInput, match="inputs: got Z; needs exactly R, W, Y, Z, theta"):
        recheck(result.certificate, Z=inputs["Z"])


@pytest.mark.parametrize("loss", LOSSES)
def test_better_weights_refute(loss):
    objective, theta = fitted(loss, m_y=2, h=8)
    result = check(objective, -theta, loss)
    assert result.verdict is Verdict.FAILS
    assert result.rigor is Rigor.PROOF
    assert result.witness["kind"] == "better weights"
    inputs = objective.model.inputs(-theta, objective.targets)
    assert recheck(result.certificate, **inputs).verdict is Verdict.HOLDS
    good = result.certificate
    gap, better = good.constants["gap"], good.data["better"]
    for forged in (
        resealed(good, gap=1.001 * gap),
        resealed(good, {"better": -better}),
        resealed(good, {"better": better[:, :-1].copy()}),
        resealed(good, errors=0),
        resealed(good, gap=-1.0),
        dataclasses.replace(good, data=Frozen({})),
    ):
        assert recheck(forged, **inputs).verdict is Verdict.FAILS


def test_ranks_refute_where_no_better_weights_are_found(monkeypatch):
    objective, theta = fitted("squared", m_y=2, h=8)
    monkeypatch.setattr("alignver.checks.optimality.better_weights", lambda problem, weights: weights)
    result = check(objective, 2 * theta, "squared")
    assert result.verdict is Verdict.FAILS
    assert result.rigor is Rigor.PROOF
    assert result.witness["kind"] == "rank n"
    inputs = objective.model.inputs(2 * theta, objective.targets)
    assert recheck(result.certificate, **inputs).verdict is Verdict.HOLDS
    ranks = result.certificate.constants["ranks"]
    for forged in (
        resealed(result.certificate, ranks=(None, ranks[1])),
        resealed(result.certificate, ranks=ranks[:1]),
        resealed(result.certificate, gap=1.001 * result.certificate.constants["gap"]),
    ):
        assert recheck(forged, **inputs).verdict is Verdict.FAILS


@pytest.mark.parametrize("loss", LOSSES)
def test_forged_certificates_are_refused(loss):
    objective, theta = fitted(loss, m_y=2, h=8)
    # 0.9 theta has a loss that a smaller claim would deny.
    result = check(objective, 0.9 * theta, loss, tolerance=10.0)
    good, inputs = result.certificate, objective.model.inputs(0.9 * theta, objective.targets)
    constants = good.constants
    assert recheck(good, **inputs).verdict is Verdict.HOLDS
    assert recheck(resealed(good), **inputs).verdict is Verdict.HOLDS
    entry = dict(constants["ranks"][0])
    other = {"squared": "cross_entropy", "binary_cross_entropy": "squared", "cross_entropy": "squared"}[loss]
    forgeries = [
        resealed(good, gap=constants["gap"] * (1 - 1e-6) - 1e-17),
        resealed(good, gap=0.0),
        resealed(good, gap=-1.0),
        resealed(good, gap=1),
        resealed(good, gap="0.5"),
        resealed(good, loss=other),
        resealed(good, loss="hinge"),
        resealed(good, errors=-1),
        resealed(good, errors=True),
        resealed(good, ranks=None),
        resealed(good, ranks=constants["ranks"][:1]),
        resealed(good, ranks=(Frozen({**entry, "s_min": 1e6 * entry["s_min"]}), None)),
        resealed(good, ranks=(Frozen({}), None)),
        resealed(good, ranks=(Frozen({**entry, "s_min": -1.0}), None)),
        dataclasses.replace(good, constants=Frozen({**constants, "gap": 1.0})),
        dataclasses.replace(good, seal="0" * 64),
        dataclasses.replace(good, method="guess"),
    ]
    if loss == "squared":
        forgeries.append(resealed(good, errors=0))
    for forged in forgeries:
        assert recheck(forged, **inputs).verdict is Verdict.FAILS, forged.constants
    for claim in ("suboptimality", "exploration", "rank"):
        forged = dataclasses.replace(good, claim=claim)
        forged = dataclasses.replace(forged, seal=forged.expected_seal())
        names = {"suboptimality": inputs, "exploration": {"Z": inputs["Z"]}, "rank": {"A": inputs["Z"]}}[claim]
        assert recheck(forged, **names).verdict is Verdict.FAILS


def test_another_theta_is_refused_even_with_a_digest_that_fits():
    objective, theta = fitted("squared", m_y=2, h=8)
    good = check(objective, theta, "squared").certificate
    wrong = objective.model.inputs(theta, objective.targets)
    wrong["theta"] = wrong["theta"] + 1e-3
    from alignver.kernel import seal

    forged = seal("optimality", "outputs", wrong, {}, dict(good.constants))
    again = recheck(forged, **wrong)
    assert again.verdict is Verdict.FAILS
    assert "only known to be at most" in again.reason
    for name, change in (
        ("Z", wrong["Z"][:, ::-1]),
        ("R", wrong["R"][:-1]),
        ("W", wrong["W"][:1]),
        ("Y", wrong["Y"][:1]),
    ):
        other = {**objective.model.inputs(theta, objective.targets), name: np.ascontiguousarray(change)}
        forged = seal("optimality", "outputs", other, {}, dict(good.constants))
        assert recheck(forged, **other).verdict is Verdict.FAILS


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_targets_that_are_no_classes_are_refused(loss):
    """With soft labels the infimum is an entropy, not 0: such a claim would prove nothing."""
    from alignver.kernel import seal

    objective, theta = fitted(loss, m_y=2, h=8)
    good = check(objective, theta, loss).certificate
    for value in (0.5, 2.0, -1.0):
        soft = objective.targets.copy()
        soft[4] = value
        inputs = objective.model.inputs(theta, soft)
        again = recheck(
            seal("optimality", "outputs", inputs, {}, {**good.constants, "gap": 1e6, "errors": 99}), **inputs
        )
        assert again.verdict is Verdict.FAILS
        assert "targets" in again.reason
    if loss == "cross_entropy":
        both = np.ones_like(objective.targets)
        inputs = objective.model.inputs(theta, both)
        again = recheck(seal("optimality", "outputs", inputs, {}, {**good.constants, "gap": 1e6}), **inputs)
        assert "one-hot" in again.reason


def test_features_without_their_constant_are_refused():
    from alignver.kernel import seal

    objective, theta = fitted("squared", h=8)
    inputs = objective.model.inputs(theta, objective.targets)
    inputs["Z"] = 2.0 * inputs["Z"]
    constants = {"loss": "squared", "gap": 1e6, "errors": None, "ranks": (None, None)}
    again = recheck(seal("optimality", "outputs", inputs, {}, constants), **inputs)
    assert (again.verdict, "constant" in again.reason) == (Verdict.FAILS, True)
    with pytest.raises(InvalidInput, match="Z: got nan"):
        recheck(seal("optimality", "outputs", inputs, {}, constants), **{**inputs, "Z": inputs["Z"] * np.nan})


def test_a_claim_of_no_errors_is_refused_where_one_is():
    task, theta = fitted("cross_entropy", m_y=3, h=10)
    flipped = task.targets.copy()
    flipped[3] = np.roll(flipped[3], 1)
    wrong = objective(task.model, flipped, "cross_entropy")
    result = check(wrong, theta, "cross_entropy", tolerance=1e6)
    assert result.certificate.constants["errors"] == 1
    assert not result.bounds[1].satisfied
    inputs = task.model.inputs(theta, flipped)
    assert recheck(result.certificate, **inputs).verdict is Verdict.HOLDS
    assert recheck(resealed(result.certificate, errors=0), **inputs).verdict is Verdict.FAILS


def test_rank_deficient_models_are_judged_by_duality(monkeypatch):
    objective = problem("squared", n=40, h=3)
    theta = better_weights(objective, np.zeros(objective.model.shape))
    result = check(objective, theta, "squared", tolerance=1e-6)
    assert result.verdict is Verdict.UNDECIDED  # the best weights of this layer; other features may do better
    assert result.rigor is Rigor.NUMERICAL
    assert result.measured["infimum_from"] == "dual"
    assert result.measured["loss_value"] - result.measured["infimum_lower"] <= 1e-6
    assert "over the weights of the last hidden layer" in result.reason
    assert "other layers may allow a smaller loss" in str(result)
    assert check(objective, 1.1 * theta, "squared", tolerance=1e-6).rigor is Rigor.PROOF
    assert check(objective, 1.1 * theta, "squared", tolerance=1e-6).verdict is Verdict.FAILS
    separable = problem("binary_cross_entropy", n=40, h=3)
    for module in ("alignver.checks.optimality", "alignver.theory.infimum"):
        monkeypatch.setattr(f"{module}.better_weights", lambda problem, weights, **options: weights)
    undecided = check(separable, theta, "binary_cross_entropy", tolerance=1e-12)
    assert undecided.verdict is Verdict.UNDECIDED
    assert "between 0 and" in undecided.reason


def test_staircase_gates_and_a_slope():
    from alignver.checks.exploration import check_safe_exploration
    from alignver.features.staircase import gates_of

    rng = np.random.default_rng(3)
    Z = np.column_stack([rng.standard_normal((30, 5)), np.ones(30)])
    q = gates_of(check_safe_exploration(Z, width=7).certificate)
    model = Exploitation(Z, np.stack([q, q]) / 3.0, rng.standard_normal((2, 7)), 3.0)
    Y = rng.standard_normal((30, 2))
    own_problem = objective(model, Y, "squared")
    theta = reference_points(own_problem, np.zeros(model.shape))[1].weights
    result = check_optimality(model, theta, Y, loss="squared", tolerance=1e-6)
    assert result.verdict is Verdict.HOLDS
    assert recheck(result.certificate, **model.inputs(theta, own_problem.targets)).verdict is Verdict.HOLDS


def test_no_certificate_is_no_proof():
    objective, theta = fitted("squared", h=8)
    assert check(objective, theta, "squared", certify=False).rigor is Rigor.NUMERICAL
    assert check(objective, -theta, "squared", certify=False).rigor is Rigor.NUMERICAL
    assert check(objective, theta, "squared", rank=False).measured["rank_n"] is None


def test_own_losses_are_numerical():
    exploitation = model(h=10)
    Y = targets("squared", exploitation.n, exploitation.m_y)
    theta = reference_points(objective(exploitation, Y, "squared"), np.zeros(exploitation.shape))[1].weights
    result = check_optimality(exploitation, theta, Y, loss=Huber(), tolerance=1e-6)
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.NUMERICAL)
    assert check_optimality(exploitation, 0 * theta, Y, loss=Huber(), tolerance=1e-6).verdict is Verdict.FAILS
    with pytest.raises(InvalidInput, match="convex"):
        check_optimality(exploitation, theta, Y, loss=Huber(convex=False), tolerance=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_tolerances_are_validated(tolerance):
    objective, theta = fitted("squared")
    with pytest.raises(InvalidInput, match="tolerance"):
        check(objective, theta, "squared", tolerance=tolerance)


def test_verify_on_the_command_line(tmp_path):
    objective, theta = fitted("squared", h=8)
    inputs = objective.model.inputs(theta, objective.targets)
    check(objective, theta, "squared").certificate.save(tmp_path / "proof")
    command = [sys.executable, "-m", "alignver", "verify", str(tmp_path / "proof")]
    for shift, code in ((0.0, 0), (1e-6, 1)):
        np.savez(tmp_path / "inputs.npz", **{**inputs, "theta": inputs["theta"] + shift})
        options = [part for name in inputs for part in ("--input", f"{name}={tmp_path / 'inputs.npz'}:{name}")]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
