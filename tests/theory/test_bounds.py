"""Bounds of the loss along a run, reference points, infima, and recorded runs."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.errors import InvalidInput
from alignver.theory.alignment_bounds import beta_hat, nu, target_loss, theorem_3, unreachable, zeta
from alignver.theory.descent import gradient_descent_bound, nearest_fit, reference_points, sgd_bound
from alignver.theory.infimum import better_weights, dual_bound, infimum
from alignver.theory.record import TrainingRecord, constants_of_updates
from alignver.theory.smoothness import smoothness
from tests.theory.models import LOSSES, descend, model, problem


def test_beta_hat_is_the_pseudo_inverse(rng):
    J, y = rng.standard_normal((5, 9)), rng.standard_normal(5)
    computed = beta_hat(J, y, -3.0)
    assert np.allclose(computed.beta, -3.0 * np.linalg.pinv(J.T @ J) @ J.T @ y)
    assert computed.residual < 1e-13
    assert computed.rank == 5
    tall = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 4))
    y = rng.standard_normal(9)
    computed = beta_hat(tall, y, 1.0)
    assert computed.rank == 2
    assert np.allclose(computed.beta, np.linalg.pinv(tall) @ y)
    assert computed.residual == pytest.approx(np.linalg.norm(y - tall @ np.linalg.pinv(tall) @ y) / np.linalg.norm(y))


def test_scalars():
    assert np.array_equal(nu([1.0, 2.0], []), [0.0, 0.0])
    assert zeta([2.0], [1.0]) == 16.0
    assert theorem_3(2.0, 0.25, 1.0, 0.5, 4.0, 16) == 1.25
    assert target_loss("squared", [[1.0], [2.0]], [[1.0], [2.0]], 1.0) == 0.0
    assert unreachable([[1.0], [0.0]], [1.0, 3.0], 0.0) == 0.0
    for call in (
        lambda: nu([1.0], [1]),
        lambda: nu([1.0], [0, 0]),
        lambda: nu([1.0], [-1]),
        lambda: nu([1.0], [0.5]),
        lambda: theorem_3(1.0, 0.0, 1.0, 1.0, 1.0, 1),
        lambda: theorem_3(1.0, 0.0, 0.0, 0.5, 1.0, 1),
        lambda: theorem_3(1.0, 0.0, 1.0, 0.5, 1.0, 0),
        lambda: beta_hat([[1.0]], [1.0, 2.0], 1.0),
    ):
        with pytest.raises(InvalidInput):
            call()


def constants_of_vectors(g, update):
    """Return the constants for the vectors themselves, (T, d) each."""
    inner = np.einsum("td,td->t", g, update)
    return constants_of_updates(np.linalg.norm(g, axis=1), np.linalg.norm(update, axis=1), inner)


def test_constants_of_updates(rng):
    g = rng.standard_normal((20, 6))
    D = np.diag(rng.uniform(0.5, 2.0, 6))
    computed = constants_of_vectors(g, g @ D)
    assert np.diag(D).min() <= computed.lower
    assert computed.upper <= np.diag(D).max() ** 2
    assert computed.holds
    assert computed.largest_step(2.0) == pytest.approx(computed.lower / computed.upper)
    assert not constants_of_vectors(g, -g).holds
    assert constants_of_updates([0.0, 1.0], [0.0, 1.0], [0.0, 1.0]).holds
    assert constants_of_updates([0.0, 1.0], [1.0, 1.0], [0.0, 1.0]).upper == np.inf
    assert constants_of_updates([0.0], [0.0], [0.0]).counted == 0
    with pytest.raises(InvalidInput, match="Cauchy"):
        constants_of_updates([1.0], [1.0], [2.0])
    with pytest.raises(InvalidInput, match="as many"):
        constants_of_updates([1.0, 1.0], [1.0], [1.0])


@pytest.mark.parametrize("loss", LOSSES)
def test_reference_points_bound_every_step(loss):
    objective = problem(loss, n=12)
    start = np.random.default_rng(5).standard_normal(objective.model.shape)
    bounds = smoothness(objective.model, loss)
    points = reference_points(objective, start)
    for lipschitz in (bounds.paper, bounds.spectral):
        losses, _, _ = descend(objective, start, 1.0 / lipschitz, 200)
        limits = gradient_descent_bound(points, lipschitz, np.arange(1, 200))
        assert np.all(np.array(losses[1:]) <= limits)
        assert np.all(np.diff(limits) <= 0)
    assert points[0].distance == 0.0
    assert min(point.loss for point in points) < 1e-6


def test_nearest_fit_is_nearest(rng):
    exploitation = model(n=8)
    start, target = rng.standard_normal(exploitation.shape), rng.standard_normal((8, 2))
    (fit,) = nearest_fit(exploitation, start, [target])
    assert np.allclose(exploitation.outputs(fit), target, atol=1e-8)
    for j in range(2):
        kernel = np.linalg.svd(exploitation.dense(j))[2][8:]
        assert np.allclose(kernel @ (fit - start)[j].ravel(), 0.0, atol=1e-8)


def test_large_models_use_products_only(rng, monkeypatch):
    objective = problem("squared", n=9)
    dense = nearest_fit(objective.model, np.zeros(objective.model.shape), [objective.targets])[0]
    bound = dual_bound(objective, 0.5 * dense)
    monkeypatch.setattr("alignver.theory.descent._DENSE", 0)
    monkeypatch.setattr("alignver.theory.infimum._DENSE", 0)
    assert np.allclose(
        nearest_fit(objective.model, np.zeros(objective.model.shape), [objective.targets])[0], dense, atol=1e-9
    )
    monkeypatch.setattr("alignver.theory.descent._ORDER", 0)
    assert np.allclose(
        nearest_fit(objective.model, np.zeros(objective.model.shape), [objective.targets])[0], dense, atol=1e-6
    )
    assert dual_bound(objective, 0.5 * dense) == pytest.approx(bound, abs=1e-9)


def test_points_out_of_range_are_omitted():
    from alignver.theory.exploitation import Exploitation, objective

    model = objective(Exploitation([[20.0, 1.0]], [[[-20.0], [0.0]]], [[1e-30]]), [1.0], "squared")
    assert len(reference_points(model, np.zeros((1, 1, 2)))) == 1


def test_sgd_bound_is_the_formula():
    objective = problem("squared", n=6)
    points = reference_points(objective, np.zeros(objective.model.shape))
    alphas = 0.1 / np.sqrt(np.arange(1, 30))
    got = sgd_bound(points, 2.0, alphas)
    k = 17
    expected = min(
        p.loss + (p.distance**2 + 4.0 * (alphas[: k + 1] ** 2).sum()) / (2 * alphas[: k + 1].sum()) for p in points
    )
    assert got[k] == pytest.approx(expected)
    with pytest.raises(InvalidInput):
        sgd_bound(points, 1.0, [0.0, 1.0])
    with pytest.raises(InvalidInput):
        gradient_descent_bound(points, 1.0, [0])


def test_infimum_of_a_squared_loss_is_the_projection():
    objective = problem("squared", n=40, h=3)
    known = infimum(objective, np.zeros(objective.model.shape))
    true = (
        sum(np.linalg.lstsq(objective.model.dense(j), objective.targets[:, j], rcond=None)[1][0] for j in range(2)) / 40
    )
    assert known.how == "dual"
    assert known.lower == pytest.approx(true, rel=1e-9)
    assert known.upper == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
@pytest.mark.parametrize("m_y", [1, 2, 3])
def test_dual_bounds_of_cross_entropies_equal_the_infimum(loss, m_y):
    """Two groups of equal rows with both labels: the infimum is an entropy for all gates."""
    from alignver.theory.exploitation import Exploitation, objective

    rng = np.random.default_rng(m_y)
    Z = np.column_stack([np.repeat([[1.0], [-1.0]], 4, axis=0), np.ones(8)])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    Y = labels if loss == "cross_entropy" and m_y > 1 else np.stack([labels] * m_y, axis=1)
    task = objective(Exploitation(Z, rng.standard_normal((m_y, 2, 3)), rng.standard_normal((m_y, 3))), Y, loss)
    known = infimum(task, np.zeros(task.model.shape), iterations=2000)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    true = entropy * (1 if loss == "cross_entropy" and m_y > 1 else m_y)
    assert known.upper == pytest.approx(true, rel=1e-4)
    if m_y < 3 or loss != "cross_entropy":  # a third class that no sample has takes probability 0 at infinity only
        assert known.how == "dual"
        assert known.lower == pytest.approx(true, rel=1e-4)
    assert known.lower <= true + 1e-9


def test_better_weights_are_no_worse(rng):
    for loss in LOSSES:
        objective = problem(loss, n=30, h=2)
        theta = rng.standard_normal(objective.model.shape)
        assert objective.value(better_weights(objective, theta)) <= objective.value(theta)


def test_records_are_validated():
    good = {"steps": [0, 1], "losses": [1.0, 2.0], "step_sizes": [0.1, 0.1], "tau": 0, "method": "sgd"}
    for change in (
        {"steps": [1, 1]},
        {"steps": [0.5, 1]},
        {"losses": [1.0]},
        {"losses": [1.0, np.nan]},
        {"step_sizes": [-0.1, 0.1]},
        {"tau": -1},
        {"tau": True},
        {"gradient_norms": [1.0, -1.0]},
        {"update_norms": [1.0]},
    ):
        with pytest.raises(InvalidInput):
            TrainingRecord(**{**good, **change})
