"""Enclosures of outputs and losses against the exact model in 60 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from alignver.theory.descent import reference_points
from alignver.theory.enclosure import enclose, loss_bounds, softplus_down, softplus_up
from alignver.theory.exploitation import Exploitation, objective
from tests.theory.models import LOSSES, problem
from tests.theory.test_sample_losses import exact


def exact_outputs(model, theta):
    """Return the outputs of the exact model in 60 digits."""
    with mpmath.workdps(60):
        rows = []
        for z in model.Z.tolist():
            row = []
            for j in range(model.m_y):
                total = mpmath.mpf(0)
                for k in range(model.h):
                    pairs = list(zip(z, model.steep_gates[j][:, k].tolist(), theta[j, k].tolist(), strict=True))
                    x = mpmath.fsum(mpmath.mpf(a) * mpmath.mpf(r) for a, r, _ in pairs)
                    p = mpmath.fsum(mpmath.mpf(a) * mpmath.mpf(t) for a, _, t in pairs)
                    total += mpmath.mpf(float(model.output_weights[j, k])) * p / (1 + mpmath.exp(-x))
                row.append(total)
            rows.append(row)
        return rows


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e3, 1e9])
def test_outputs_lie_in_their_enclosure(scale, rng):
    Z = np.column_stack([3 * rng.standard_normal((6, 3)), np.ones(6)])
    gates = 10.0 ** rng.uniform(-3, 2, (2, 4, 5)) * rng.standard_normal((2, 4, 5))
    model = Exploitation(Z, gates, rng.standard_normal((2, 5)))
    theta = scale * rng.standard_normal(model.shape)
    enclosed = enclose(model, theta)
    worst = 0.0
    for i, row in enumerate(exact_outputs(model, theta)):
        for j, true in enumerate(row):
            error = float(abs(true - mpmath.mpf(float(enclosed.outputs[i, j]))))
            assert error <= enclosed.radius[i, j]
            worst = max(worst, error / enclosed.radius[i, j])
    assert worst > 1e-6  # a bound that is never within a factor of a million of the error would be no use
    assert np.all(enclosed.radius <= 1e-10 * enclosed.size)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("m_y", [1, 3])
def test_loss_lies_between_its_bounds(loss, m_y):
    objective = problem(loss, n=7, m_y=m_y, h=4)
    points = reference_points(objective, np.zeros(objective.model.shape))
    weights = [point.weights for point in points]
    for theta in (*weights, 3.7 * weights[-1], -weights[-1]):
        with mpmath.workdps(60):
            outputs = exact_outputs(objective.model, theta)
            losses = [exact(loss, row, y) for row, y in zip(outputs, objective.targets.tolist(), strict=True)]
            true = mpmath.fsum(losses) / objective.model.n
        bounds = loss_bounds(enclose(objective.model, theta), objective.targets, loss)
        assert bounds.lower <= true <= bounds.upper
        if true > 1e-20:
            assert bounds.upper <= float(true) * (1 + 1e-8)
            assert bounds.lower >= float(true) * (1 - 1e-8)
        if loss == "squared":
            assert bounds.errors is None
        elif theta.any():  # at 0 every class ties
            f = np.array(outputs, dtype=float)
            right = (f > 0) == (objective.targets == 1) if m_y == 1 or loss != "cross_entropy" else None
            wrong = (~right).any(axis=1) if right is not None else f.argmax(axis=1) != objective.targets.argmax(axis=1)
            assert bounds.errors == np.count_nonzero(wrong)


def test_softplus_is_enclosed():
    t = np.concatenate([np.linspace(-760, 760, 501), [0.0, 1e-300, -1e-300, 1e-12, -36.7, -700.0, -699.99]])
    for value, up, down in zip(t.tolist(), softplus_up(t).tolist(), softplus_down(t).tolist(), strict=True):
        with mpmath.workdps(400):
            true = mpmath.log1p(mpmath.exp(mpmath.mpf(value)))
            assert down <= true <= up
        if value > -650:
            assert up - down <= 2.0**-40 * up


def test_ties_count_as_misclassified():
    model = Exploitation([[0.0, 1.0]], np.zeros((2, 2, 1)), np.ones((2, 1)))
    problem = objective(model, [0], "cross_entropy")
    assert loss_bounds(enclose(model, np.ones(model.shape)), problem.targets, "cross_entropy").errors == 1


def test_blocks_of_rows_do_not_change_the_result(rng, monkeypatch):
    model = problem("squared", n=11).model
    theta = rng.standard_normal(model.shape)
    whole = enclose(model, theta)
    monkeypatch.setattr("alignver.theory.enclosure._BLOCK", 3 * model.h)
    parts = enclose(model, theta)
    assert np.allclose(whole.outputs, parts.outputs, rtol=1e-13)
    assert np.allclose(whole.radius, parts.radius, rtol=1e-6)


def test_reasons_without_an_enclosure(rng):
    Z = np.column_stack([1e15 * rng.standard_normal((4, 2)), np.ones(4)])
    model = Exploitation(Z, 1e3 * rng.standard_normal((1, 3, 2)), np.ones((1, 2)))
    assert "exceeds a tenth" in enclose(model, np.ones(model.shape))
    wide = Exploitation(np.ones((2, 1)), np.zeros((1, 1, 2)), np.full((1, 2), 1e200))
    assert enclose(wide, np.full(wide.shape, 1e200)) == "the outputs overflow"
