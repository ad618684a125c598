"""double_double: Gram matrices to twice the precision, and the column space and singular values of a stable QR."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from alignver.linalg import double_double
from alignver.linalg.double_double import factor, gram

EPS = 2.0**-52


def graded(n: int, p: int, decades: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n, n)))[0]
    right = np.linalg.qr(rng.standard_normal((p, n)))[0]
    return left @ np.diag(10.0 ** -np.linspace(0.0, decades, n)) @ right.T


def exact(*parts: np.ndarray) -> np.ndarray:
    return sum(np.vectorize(Fraction, otypes=[object])(part) for part in parts)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (6, 5), (5, 301)])
@pytest.mark.parametrize("wide", [False, True])
def test_products_have_twice_the_precision(n, k, wide):
    rng = np.random.default_rng(k)
    A, B = (rng.standard_normal((n, k)) * 10.0 ** (wide * rng.uniform(-20, 0, (n, k))) for _ in range(2))
    first, second = gram(A), gram(B)
    a, b = exact(A), exact(B)
    want = {"gram": a @ a.T, "multiply": (a @ a.T) * (b @ b.T), "add": a @ a.T + b @ b.T}
    have = {"gram": first, "multiply": double_double.multiply(first, second), "add": double_double.add(first, second)}
    largest = {side: np.abs(M).max(1).astype(float) for side, M in (("a", A), ("b", B))}
    scale = {"gram": np.outer(largest["a"], largest["a"]) * k}
    scale["multiply"] = scale["gram"] * np.outer(largest["b"], largest["b"]) * k
    scale["add"] = scale["gram"] + np.outer(largest["b"], largest["b"]) * k
    for name, (high, low) in have.items():
        error = np.abs(exact(high, low) - want[name]).astype(float)
        assert np.max(error / scale[name]) <= 2.0**-94, name
        assert np.all(np.abs(low) <= np.spacing(np.abs(high)) / 2), name


@pytest.mark.parametrize("decades", [0.0, 3.0, 8.0, 12.0, 16.0, 30.0])
@pytest.mark.parametrize(("n", "p"), [(1, 1), (7, 7), (40, 900)])
def test_singular_values_keep_the_accuracy_of_the_matrix_itself(n, p, decades):
    W = graded(n, p, decades)
    s = np.linalg.svd(W, compute_uv=False)
    t = np.linalg.svd(factor(gram(W)), compute_uv=False)
    # p(n, d) eps s_1 with the modest polynomial sqrt(n) and room: what LAPACK's own SVD promises.
    assert np.max(np.abs(s - t)) <= 16 * np.sqrt(n) * EPS * s[0]


def test_gram_matrices_agree():
    W = graded(30, 400, 5.0)
    T = factor(gram(W))
    assert np.max(np.abs(T @ T.T - W @ W.T)) <= 100 * EPS


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("n", "k", "rank"), [(10, 5, 4), (50, 600, 12), (200, 100, 50)])
def test_column_space_of_a_deficient_matrix(n, k, rank, positive):
    """What is left of a rank-deficient matrix is as small as what LAPACK's SVD leaves."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((rank, k))
    rows = np.maximum(rows, 0.0) * np.exp(3.0 * rows) if positive else rows
    W = rows[np.arange(n) % rank]  # equal rows: exactly deficient
    basis = np.linalg.qr(np.eye(rank)[np.arange(n) % rank])[0]
    U, s, _ = np.linalg.svd(factor(gram(W)))
    assert s[rank - 1] > 1e6 * EPS * s[0]
    assert s[rank] <= 4.0 * EPS * s[0]
    assert np.linalg.norm(basis - U[:, :rank] @ (U[:, :rank].T @ basis)) <= 1e-9


def test_rows_of_every_size_and_rows_of_zeros():
    rng = np.random.default_rng(2)
    W = rng.standard_normal((20, 300)) * 10.0 ** -rng.uniform(0, 14, 20)[:, None]
    W[3] = W[11] = 0.0
    W[5] = W[6]
    s = np.linalg.svd(W, compute_uv=False)
    t = np.linalg.svd(factor(gram(W)), compute_uv=False)
    assert np.max(np.abs(s - t)) <= 100 * EPS * s[0]
    assert not factor(gram(np.zeros((4, 9)))).any()


def test_the_plain_gram_matrix_would_not_do():
    """The law above can fail: eigenvalues of W W^T lose what the factor preserves."""
    W = graded(40, 900, 12.0)
    s = np.linalg.svd(W, compute_uv=False)
    squared = np.sqrt(np.maximum(np.linalg.eigvalsh(W @ W.T)[::-1], 0.0))
    assert np.max(np.abs(s - squared)) > 1e4 * EPS * s[0]


@pytest.mark.parametrize("decades", [10.0, 16.0, 30.0])
def test_split(monkeypatch, decades):
    """The rows that are left to an eigendecomposition are below the square root of eps, at most by a modest factor."""
    left = []
    inner = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda A: left.append(len(A)) or inner(A))
    W = graded(100, 900, decades)
    T = factor(gram(W))
    whole, rest = left
    s = np.linalg.svd(W, compute_uv=False)
    assert whole == 100
    assert 0 < rest <= np.count_nonzero(s < 16 * np.sqrt(EPS) * s[0])
    assert np.max(np.abs(s - np.linalg.svd(T, compute_uv=False))) <= 160 * EPS * s[0]
