from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from alignver.checks.convergence import check_convergence, check_theorem_3
from alignver.errors import InvalidInput
from alignver.results import Rigor, Verdict
from alignver.theory.descent import nearest_fit
from alignver.theory.record import TrainingRecord
from alignver.theory.smoothness import smoothness
from tests.theory.models import LOSSES, descend, problem, targets

HOLDS, FAILS, UNDECIDED = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED


def run(loss="squared", count=60, factor=1.0, tau=7, start=None, **shape):
    """Gradient descent from tau on, with its record: problem, weights at tau, arguments of the record."""
    objective = problem(loss, **{"h": 8, **shape})
    theta = np.random.default_rng(2).standard_normal(objective.model.shape) if start is None else start
    alpha = factor * smoothness(objective.model, loss).step
    losses, norms, _ = descend(objective, theta, alpha, count)
    arguments = {
        "steps": np.arange(tau, tau + count),
        "losses": losses,
        "step_sizes": np.full(count, alpha),
        "tau": tau,
        "method": "gradient descent",
        "gradient_norms": norms,
        "update_norms": norms,
        "inner_products": np.square(norms),
    }
    return objective, theta, arguments


def verdicts(objective, theta, arguments, **options):
    loss = objective.loss.name
    Y = targets(loss, objective.model.n, objective.model.m_y)
    results = check_convergence(TrainingRecord(**arguments), objective.model, theta, Y, loss=loss, **options)
    for result in results:
        if result.verdict is UNDECIDED:
            assert result.reason
        if result.verdict is FAILS:
            assert result.witness
    return {result.name: result.verdict for result in results}, {result.name: result for result in results}


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_descent_keeps_its_promises(loss):
    outcome, results = verdicts(*run(loss))
    assert outcome == {
        "updates": HOLDS,
        "step": HOLDS,
        "descent": HOLDS,
        "descent_bound": HOLDS,
        "theorem_5_i": HOLDS,
        "theorem_5_ii": UNDECIDED,
    }
    theorem = results["theorem_5_i"]
    assert theorem.rigor is Rigor.NUMERICAL
    assert all(bound.satisfied for bound in theorem.bounds)
    assert theorem.measured["last_loss"] <= theorem.measured["last_bound"]


def test_a_record_that_is_not_gradient_descent_fails():
    objective, theta, arguments = run("squared", count=400)
    stuck = {**arguments, "losses": np.full(400, arguments["losses"][0])}
    actual, results = verdicts(objective, theta, stuck)
    assert actual["descent"] is FAILS
    assert actual["theorem_5_i"] is FAILS
    assert results["theorem_5_i"].witness["step"] > 7
    backwards = {**arguments, "inner_products": -np.square(arguments["gradient_norms"])}
    actual, results = verdicts(objective, theta, backwards)
    assert actual["updates"] is FAILS
    assert actual["theorem_5_i"] is UNDECIDED
    assert "not the gradients" in results["theorem_5_i"].reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"method": "adam"}, "the method is 'adam'"),
        ({"update_norms": None}, ""),
        ({"method": "sgd"}, "the method is 'sgd'"),
    ],
)
def test_premises_are_not_assumed(change, why):
    objective, theta, arguments = run("squared")
    computed, results = verdicts(objective, theta, {**arguments, **change})
    if why:
        assert computed["theorem_5_i"] is UNDECIDED
        assert computed["descent"] is UNDECIDED
        assert why in results["theorem_5_i"].reason
    else:
        assert computed["updates"] is UNDECIDED
        assert computed["theorem_5_i"] is HOLDS  # by the word of the record's method


def test_steps_that_are_too_long_or_vary():
    objective, theta, arguments = run("squared", factor=1.5)
    actual, _ = verdicts(objective, theta, arguments)
    assert actual["step"] is HOLDS
    assert actual["theorem_5_i"] is UNDECIDED  # 1.5 / L-hat descends, but is not the theorem's step
    objective, theta, arguments = run("squared", factor=2.5)
    actual, results = verdicts(objective, theta, arguments)
    assert actual["step"] is FAILS
    assert actual["descent"] is UNDECIDED
    assert results["step"].witness["size"] == pytest.approx(arguments["step_sizes"][0])
    objective, theta, arguments = run("squared")
    arguments["step_sizes"][5] *= 0.5
    assert verdicts(objective, theta, arguments)[0]["theorem_5_i"] is UNDECIDED


def test_rank_n_is_a_premise():
    objective, theta, arguments = run("squared", n=40, h=3)
    actual, results = verdicts(objective, theta, arguments)
    assert actual["descent_bound"] is HOLDS
    assert actual["theorem_5_i"] is UNDECIDED
    assert "rank n" in results["theorem_5_i"].reason
    assert any("fewer than 40" in line for line in results["theorem_5_i"].evidence)
    objective, theta, arguments = run("squared")
    assert verdicts(objective, theta, arguments, rank_n=False)[0]["theorem_5_i"] is UNDECIDED
    assert verdicts(objective, theta, arguments, rank_n=True)[0]["theorem_5_i"] is HOLDS


def test_sgd():
    objective, theta, _ = run("squared", count=1)
    rng = np.random.default_rng(0)
    losses, moves, sizes, start = [], [], [], theta
    for t in range(200):
        rows = rng.integers(0, objective.model.n, 4)
        slopes = np.zeros((objective.model.n, 2))
        outputs = objective.model.outputs(theta)
        np.add.at(slopes, rows, objective.loss.gradient(outputs[rows], objective.targets[rows]) / 4)
        update = objective.model.adjoint(slopes)
        losses.append(objective.value(theta))
        moves.append(float(np.linalg.norm(update)))
        sizes.append(0.2 * smoothness(objective.model, "squared").step / (1 + t) ** 0.6)
        theta = theta - sizes[-1] * update
    record = {"steps": np.arange(200), "losses": losses, "step_sizes": sizes, "tau": 0, "method": "sgd"}
    actual, results = verdicts(objective, start, {**record, "update_norms": moves})
    assert actual["theorem_5_ii"] is HOLDS
    assert results["theorem_5_ii"].rigor is Rigor.STATISTICAL
    assert verdicts(objective, start, record)[0]["theorem_5_ii"] is UNDECIDED
    gaps = {key: np.asarray(value)[::2] for key, value in {**record, "update_norms": moves}.items() if key[-1] == "s"}
    assert verdicts(objective, start, {**record, **gaps})[0]["theorem_5_ii"] is UNDECIDED
    stuck = {**record, "update_norms": np.full(200, 1e-9), "losses": np.full(200, losses[0]), "step_sizes": [9.0] * 200}
    assert verdicts(objective, start, stuck)[0]["theorem_5_ii"] is UNDECIDED  # one run does not refute an expectation


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rounding_is_no_refutation(dtype):
    """A run that stands still at rounding level, and losses that were stored in float32."""
    objective, theta, arguments = run("squared", n=3, count=3000)
    arguments["losses"] = np.asarray(arguments["losses"], dtype=dtype).astype(float)
    actual, _ = verdicts(objective, theta, arguments, computed_in=dtype)
    assert actual["descent"] is HOLDS
    assert actual["theorem_5_i"] is HOLDS
    arguments["losses"] = arguments["losses"] * (1 + 1e-6 * (np.arange(3000) == 1))
    assert verdicts(objective, theta, arguments, computed_in="float32")[0]["descent"] is HOLDS
    arguments["losses"][1] *= 100.0
    assert verdicts(objective, theta, arguments)[0]["descent"] is FAILS


def test_rounding_of_large_outputs_is_no_refutation():
    """The first loss is small where the outputs are near targets that are large."""
    objective, _, _ = run("squared", n=6)
    objective = dataclasses.replace(objective, targets=objective.targets + 1e12)
    theta = nearest_fit(objective.model, np.zeros(objective.model.shape), [objective.targets])[0]
    theta = theta + 0.1 * np.random.default_rng(0).standard_normal(theta.shape)
    alpha = smoothness(objective.model, "squared").step
    losses, norms, _ = descend(objective, theta, alpha, 300)
    assert losses[0] < 1e2
    record = TrainingRecord(range(300), losses, [alpha] * 300, 0, "gradient descent", gradient_norms=norms)
    results = check_convergence(record, objective.model, theta, objective.targets, loss="squared")
    assert {result.name: result.verdict for result in results}["descent"] is HOLDS


def test_refusals():
    objective, theta, arguments = run("squared")
    with pytest.raises(InvalidInput, match="no step at or after tau"):
        verdicts(objective, theta, {**arguments, "tau": 1000})
    with pytest.raises(InvalidInput, match=r"the loss .* at tau"):
        verdicts(objective, theta + 1.0, arguments)
    with pytest.raises(InvalidInput, match="computed_in: got computed_in='float8'"):
        verdicts(objective, theta, arguments, computed_in="float8")
    with pytest.raises(InvalidInput, match="weights: got shape"):
        verdicts(objective, theta[:1], arguments)


def test_theorem_3():
    record = TrainingRecord(range(4), [4.0, 3.0, 2.0, 1.0], [0.1] * 4, 3, "gradient descent")
    ones = np.ones(4)
    arguments = {"aligned": [1, 0, 1, 1], "nu_norms": ones, "beta_norms": 2 * ones, "target": 0.0, "lipschitz": 10.0}
    result = check_theorem_3(record, **arguments)
    # alpha = 0.5, two aligned steps before tau, zeta = 16.
    assert result.measured["bound"] == pytest.approx(np.sqrt(10.0 * 16.0 * 4.0 / 0.5 / 2))
    assert result.verdict is HOLDS
    assert result.rigor is Rigor.NUMERICAL
    small = {**arguments, "nu_norms": 0.01 * ones, "beta_norms": 0.01 * ones}
    assert check_theorem_3(record, **small).verdict is FAILS
    for change in ({"aligned": [0, 0, 0, 1]}, {"lipschitz": 20.0}, {"lipschitz": 30.0}):
        assert check_theorem_3(record, **{**arguments, **change}).verdict is UNDECIDED
    other = TrainingRecord(range(4), [4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.1, 0.1], 3, "gradient descent")
    assert check_theorem_3(other, **arguments).verdict is UNDECIDED
    adam = TrainingRecord(range(4), [4.0, 3.0, 2.0, 1.0], [0.1] * 4, 3, "adam")
    assert check_theorem_3(adam, **arguments).verdict is UNDECIDED
    for change in ({"aligned": [1]}, {"lipschitz": 0.0}):
        with pytest.raises(InvalidInput):
            check_theorem_3(record, **{**arguments, **change})
