"""LSMR against SciPy's and the exact bounds of what lies outside the range."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import linalg as sparse

from alignver.arrays import host
from alignver.linalg.lsmr import Iterate, lsmr
from tests.matrices import integer_rank, with_singular_values


class Operator:
    """A matrix that shows nothing but its products."""

    def __init__(self, matrix, backend):
        self.shape = matrix.shape
        self._matrix, self._transposed = backend(matrix), backend(matrix.T)

    def matvec(self, v):
        return self._matrix @ v

    def rmatvec(self, v):
        return self._transposed @ v


@pytest.mark.parametrize("shape", [(1, 1), (30, 20), (20, 50), (40, 5)])
def test_agrees_with_scipy(backend, rng, shape):
    a = with_singular_values(np.linspace(1.0, 2.0, min(shape)), shape, rng)
    y = rng.standard_normal(shape[0])
    ours = lsmr(Operator(a, backend), backend(y))
    theirs = sparse.lsmr(a, y, atol=1e-14, btol=1e-14)[0]
    np.testing.assert_allclose(host(ours.b), theirs, rtol=1e-9, atol=1e-11)
    assert ours.residual == pytest.approx(np.linalg.norm(y - a @ theirs), abs=1e-11)


def test_zero_target_and_zero_operator(backend):
    a = np.ones((4, 3))
    assert lsmr(Operator(a, backend), backend(np.zeros(4))).residual == 0.0
    zero = lsmr(Operator(np.zeros((4, 3)), backend), backend(np.ones(4)))
    assert zero.residual == 2.0
    assert zero.size == 0.0


@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_bounds_hold_for_every_iterate(backend, rng, iterations):
    a = integer_rank(6, (20, 30), rng)
    u, s, _ = np.linalg.svd(a)
    for y in (rng.standard_normal(20), a @ rng.standard_normal(30)):
        iterate = lsmr(Operator(a, backend), backend(y), iterations=iterations)
        for tau in (1e-9, s[5] / 2, s[2], s[0] * 2):
            stored = u[:, : int(np.sum(s > tau))]
            exact = np.linalg.norm(y - stored @ (stored.T @ y))
            low, high = iterate.residual_bounds(tau)
            slack = 1e-10 * np.linalg.norm(y)
            assert low - slack <= exact <= high + slack


def test_bounds_say_nothing_at_zero_tolerance():
    assert Iterate(None, 1.0, 0.1, 1.0, 3).residual_bounds(0.0) == (0.0, 1.0)
