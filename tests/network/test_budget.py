"""The smallest residual with parameters of a limited norm: enclosed, against singular values in 60 digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from alignver.kernel.network import balls
from alignver.network.budget import _enclosed, reach


def gram(J):
    exact = balls.exactly(J)
    return balls.product(exact, exact.T)


def exactly_reached(J, y, b):
    """Return rho by the singular values: the residual of (G + t I)^-1 y with parameters of norm b, t by bisection."""
    with mpmath.workdps(60):
        eigenvalues, vectors = mpmath.eigsy(mpmath.matrix(J.tolist()) * mpmath.matrix(J.T.tolist()))
        parts = [abs(part) for part in vectors.T * mpmath.matrix(y.tolist())]

        def size(t):
            return sum(max(v, 0) * (p / (v + t)) ** 2 for v, p in zip(eigenvalues, parts))

        low, high = mpmath.mpf(10) ** -50, mpmath.mpf(10) ** 20
        for _ in range(300):
            middle = mpmath.sqrt(low * high)
            low, high = (middle, high) if size(middle) > b * b else (low, middle)
        residual = mpmath.sqrt(sum((p * high / (v + high)) ** 2 for v, p in zip(eigenvalues, parts)))
        return residual / mpmath.norm(mpmath.matrix(y.tolist()))


@pytest.mark.parametrize("powers", [(0,) * 6, (0, -1, -2, -3, -4, -5), (2, 2, 1, -3, -3, -6)])
def test_the_bounds_enclose_and_are_close(powers):
    rng = np.random.default_rng(0)
    J = np.linalg.qr(rng.normal(size=(6, 6)))[0] @ np.diag(10.0 ** np.array(powers)) @ rng.normal(size=(6, 9))
    y = 5.0 * rng.normal(size=6)
    kappa = float(np.linalg.norm(np.linalg.lstsq(J, y, rcond=1e-14)[0]))
    with balls.precision(300):
        rows = reach(gram(J), y, kappa)
    assert [row.budget for row in rows] == [10.0**k for k in range(len(rows))]
    assert len(rows) == math.ceil(math.log10(kappa)) > 0
    for row in rows:
        exact = exactly_reached(J, y, row.budget)
        assert row.lower <= exact <= row.upper
        assert row.upper - row.lower <= 1e-5


def test_a_space_that_ends_early():
    """y is an eigenvector: the Krylov space has one dimension."""
    with balls.precision(100):
        (row,) = reach(gram(np.diag([3.0, 1.0, 2.0])), np.array([0.0, 4.0, 0.0]), 4.0)
        assert reach(gram(np.eye(2)), np.zeros(2), 0.0) == ()
    assert row.budget == 1.0
    assert row.lower <= 0.75 <= row.upper <= row.lower + 1e-6


def test_the_scale_to_the_budget_is_rounded_down():
    """Of one row, rho is 1 - b sqrt(G) / y: small where the budget nearly reaches y, and rounding is seen."""
    rng = np.random.default_rng(0)
    for g, rho in zip(rng.uniform(0.5, 2.0, 300), 10.0 ** rng.uniform(-6.0, -1.0, 300), strict=True):
        y = np.array([math.sqrt(g) / (1.0 - rho)])
        with balls.precision(128), mpmath.workdps(50):
            row = _enclosed(balls.matrix(balls.exactly([[g]])), y, balls.exactly(y / g), 1.0, balls.exactly(y)[0])
            exact = 1 - mpmath.sqrt(mpmath.mpf(float(g))) / mpmath.mpf(float(y[0]))
        assert row.lower <= exact <= row.upper
