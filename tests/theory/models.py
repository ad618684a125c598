"""Small exploitation problems that the tests share."""

from __future__ import annotations

import numpy as np

from alignver.theory.exploitation import Exploitation, objective

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")


def model(seed=0, n=20, m=5, h=6, m_y=2, slope=1.0):
    rng = np.random.default_rng(seed)
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    return Exploitation(Z, rng.standard_normal((m_y, m, h)), rng.standard_normal((m_y, h)), slope)


def targets(loss, n, m_y, seed=0):
    rng = np.random.default_rng(seed + 1)
    if loss == "squared":
        return rng.standard_normal((n, m_y))
    if loss == "cross_entropy" and m_y > 1:
        return rng.integers(0, m_y, n)
    return rng.integers(0, 2, (n, m_y))


def problem(loss, **shape):
    exploitation = model(**shape)
    return objective(exploitation, targets(loss, exploitation.n, exploitation.m_y, shape.get("seed", 0)), loss)


def descend(model, theta, alpha, count):
    """Gradient descent: losses before each step, gradient norms, and the last weights."""
    losses, norms = [], []
    for _ in range(count):
        gradient = model.gradient(theta)
        losses.append(model.value(theta))
        norms.append(float(np.linalg.norm(gradient)))
        theta = theta - alpha * gradient
    return losses, norms, theta
