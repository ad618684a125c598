"""Lipschitz constants against their formulas and against divergence beyond the limit."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.theory.exploitation import Exploitation
from alignver.theory.smoothness import row_norms, smoothness, squared_norm_up
from tests.theory.models import LOSSES, model, problem

CONSTANTS = {"squared": 2.0, "binary_cross_entropy": 0.25, "cross_entropy": 0.5}


@pytest.mark.parametrize("loss", LOSSES)
def test_constants_are_those_of_the_formulas(loss):
    exploitation = model(n=15)
    bounds = smoothness(exploitation, loss)
    norms = [np.linalg.norm(exploitation.dense(j), axis=1) for j in range(2)]
    paper = CONSTANTS[loss] / exploitation.n * (np.maximum(*norms) ** 2).sum()
    spectral = CONSTANTS[loss] / exploitation.n * max(np.linalg.norm(exploitation.dense(j), 2) ** 2 for j in range(2))
    assert paper <= bounds.paper <= paper * (1 + 1e-9)
    assert spectral <= bounds.spectral <= spectral * (1 + 2e-6)
    assert bounds.spectral_estimate == pytest.approx(spectral, rel=1e-12)
    assert bounds.spectral <= bounds.paper
    assert bounds.step * bounds.spectral <= 1.0
    assert bounds.limit * bounds.spectral <= 2.0
    assert np.allclose(row_norms(exploitation), np.maximum(*norms))


@pytest.mark.parametrize("shape", [(3, 4, 5), (40, 3, 2), (12, 4, 3)])
@pytest.mark.parametrize("order", [0, 3000])
def test_norm_bounds_are_bounds(shape, order, rng):
    n, m, h = shape
    for scale in (1e-100, 1.0, 1e100):
        Z, T = scale * rng.standard_normal((n, m)), rng.standard_normal((n, h))
        A = (T[:, :, None] * Z[:, None, :]).reshape(n, -1)
        upper, estimate, how = squared_norm_up(Z, T, order=order)
        true = np.linalg.norm(A, 2) ** 2
        assert true <= upper <= np.linalg.norm(A) ** 2 * (1 + 1e-9)
        assert estimate <= upper
        assert how == ("eigenvalues" if order else "Schur")


def test_zero_and_saturated():
    idle = Exploitation(np.ones((3, 1)), np.zeros((1, 1, 2)), np.zeros((1, 2)))
    assert smoothness(idle, "squared").spectral < 1e-300
    assert smoothness(idle, "squared").step > 1e300
    steep = Exploitation([[1e6, 1.0], [-1e6, 1.0]], [[[1e6, 1e5], [0.3, 0.1]]], np.ones((1, 2)), 10.0)
    bounds = smoothness(steep, "squared")
    assert bounds.how == "gates of 1"
    assert bounds.spectral >= np.linalg.norm(steep.dense(0), 2) ** 2


def test_a_step_beyond_the_limit_diverges_along_the_worst_direction():
    objective = problem("squared", n=8, m_y=1)
    A = objective.model.dense(0)
    worst = np.linalg.svd(A)[2][0].reshape(objective.model.shape)
    fit = np.linalg.lstsq(A, objective.targets[:, 0], rcond=None)[0].reshape(objective.model.shape)
    for factor, grows in ((0.99, False), (1.01, True)):
        theta = fit + worst
        for _ in range(50):
            theta = theta - factor * smoothness(objective.model, "squared").limit * objective.gradient(theta)
        assert (np.linalg.norm(theta - fit) > 1.5) == grows
