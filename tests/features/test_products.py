"""The gate against multiple precision; products and Gram matrix against dense phi, on every backend."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from alignver.arrays import host
from alignver.errors import InvalidInput
from alignver.features.products import (
    GATE_ERROR,
    Phi,
    dense_phi,
    gate_matrix_error,
    gram,
    logistic,
    logistic_plain,
    scaled_gram,
)
from tests.features.features import features


def test_gate_error_bound(rng):
    x = np.concatenate([rng.standard_normal(300), rng.uniform(-690, 690, 300), [0.0, 5e-324, -700.0, 700.0]])
    with mpmath.workprec(200):
        for value, argument in zip(logistic(x).tolist(), x.tolist(), strict=True):
            exact = 1 / (1 + mpmath.exp(-mpmath.mpf(argument)))
            assert abs(mpmath.mpf(value) / exact - 1) < GATE_ERROR / 16


def test_gate_far_out():
    assert np.all(logistic(np.array([-1e308, -701.0])) < 2.0**-1000)
    assert np.all(logistic(np.array([1e308, 701.0])) == 1.0)


def test_gate_matrix_error_covers_rounded_products(rng):
    Z, q = features(20, 30), rng.standard_normal((30, 4))
    bound = gate_matrix_error(30, float(np.linalg.norm(Z, axis=1).max()), float(np.linalg.norm(q, axis=0).max()))
    S = logistic(Z @ q)
    with mpmath.workprec(200):
        for i in range(20):
            for k in range(4):
                exact = mpmath.fsum(mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(Z[i].tolist(), q[:, k].tolist()))
                assert abs(mpmath.mpf(float(S[i, k])) * (1 + mpmath.exp(-exact)) - 1) < bound
    assert gate_matrix_error(30, 1e20, 1.0) == np.inf


def test_operator_is_dense_phi(backend, rng):
    Z, q = features(12, 5), rng.standard_normal((5, 3))
    phi = Phi(backend(Z), logistic_plain(backend(Z @ q)))
    dense = host(dense_phi(backend(Z), backend(q)))
    t, r = rng.standard_normal(15), rng.standard_normal(12)
    assert phi.shape == dense.shape == (12, 15)
    np.testing.assert_allclose(host(phi.matvec(backend(t))), dense @ t, rtol=1e-12)
    np.testing.assert_allclose(host(phi.rmatvec(backend(r))), dense.T @ r, rtol=1e-12, atol=1e-14)


def test_gram_is_phi_phi_t(backend, rng):
    Z, q, w = features(12, 5), rng.standard_normal((5, 3)), rng.standard_normal(3)
    S = logistic_plain(backend(Z @ q))
    for weights in (None, w):
        given = None if weights is None else backend(weights)
        dense = host(dense_phi(backend(Z), backend(q), given))
        np.testing.assert_allclose(host(gram(backend(Z), S, given)), dense @ dense.T, rtol=1e-12)


def test_scaled_gram_has_a_diagonal_near_one(rng):
    Z = features(12, 5) * np.ldexp(1.0, rng.integers(-30, 30, 12))[:, None]
    Z[:, -1] = 1.0
    scaled = scaled_gram(Z, rng.standard_normal((5, 3)) * 1e-12)
    assert not isinstance(scaled, str)
    diagonal = np.diag(scaled.tile(slice(0, 12), slice(0, 12)))
    assert diagonal.min() >= 0.25
    assert diagonal.max() <= min(scaled.largest, 4.0)


def test_shapes_that_disagree():
    with pytest.raises(InvalidInput, match="S: got shape"):
        Phi(np.ones((3, 2)), np.ones((4, 2)))
