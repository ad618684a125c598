"""preconditioned_factor: the column space and singular values of a backward stable QR, from products of matrices."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.linalg.qr_reduction import preconditioned_factor

EPS = 2.0**-52


def graded(n: int, p: int, decades: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n, n)))[0]
    right = np.linalg.qr(rng.standard_normal((p, n)))[0]
    return left @ np.diag(10.0 ** -np.linspace(0.0, decades, n)) @ right.T


@pytest.mark.parametrize("decades", [0.0, 3.0, 8.0, 12.0, 16.0, 30.0])
@pytest.mark.parametrize(("n", "p"), [(1, 1), (7, 7), (40, 900)])
def test_singular_values_keep_the_accuracy_of_the_matrix_itself(n, p, decades):
    W = graded(n, p, decades)
    s = np.linalg.svd(W, compute_uv=False)
    t = np.linalg.svd(preconditioned_factor(W), compute_uv=False)
    # p(n, d) eps s_1 with the modest polynomial sqrt(n) and room: what LAPACK's own SVD promises.
    assert np.max(np.abs(s - t)) <= 16 * np.sqrt(n) * EPS * s[0]


def test_gram_matrices_agree():
    W = graded(30, 400, 5.0)
    T = preconditioned_factor(W)
    assert np.max(np.abs(T @ T.T - W @ W.T)) <= 100 * EPS


def test_column_space_of_a_deficient_matrix():
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((50, 12))
    W = basis @ rng.standard_normal((12, 600))
    T = preconditioned_factor(W)
    s = np.linalg.svd(T, compute_uv=False)
    assert s[11] > 1.0
    assert s[12] <= 1e3 * EPS * s[0]
    u = np.linalg.svd(T)[0][:, :12]
    assert np.linalg.norm(basis - u @ (u.T @ basis)) <= 1e-12 * np.linalg.norm(basis)


def test_rows_of_every_size_and_rows_of_zeros():
    rng = np.random.default_rng(2)
    W = rng.standard_normal((20, 300)) * 10.0 ** -rng.uniform(0, 14, 20)[:, None]
    W[3] = W[11] = 0.0
    W[5] = W[6]
    s = np.linalg.svd(W, compute_uv=False)
    t = np.linalg.svd(preconditioned_factor(W), compute_uv=False)
    assert np.max(np.abs(s - t)) <= 100 * EPS * s[0]
    assert not preconditioned_factor(np.zeros((4, 9))).any()


def test_the_plain_gram_matrix_would_not_do():
    """The law above can fail: eigenvalues of W W^T lose what preconditioned_factor preserves."""
    W = graded(40, 900, 12.0)
    s = np.linalg.svd(W, compute_uv=False)
    squared = np.sqrt(np.maximum(np.linalg.eigvalsh(W @ W.T)[::-1], 0.0))
    assert np.max(np.abs(s - squared)) > 1e4 * EPS * s[0]


@pytest.mark.parametrize("decades", [3.0, 12.0, 30.0])
@pytest.mark.parametrize("kind", ["sketch", "random", "identity"])
def test_any_start_gives_the_same_matrix(decades, kind):
    W = graded(40, 900, decades)
    rng = np.random.default_rng(5)
    start = {
        "sketch": lambda: np.linalg.svd(W @ rng.standard_normal((900, 80)), full_matrices=False)[0],
        "random": lambda: np.linalg.qr(rng.standard_normal((40, 40)))[0],
        "identity": lambda: np.eye(40),
    }[kind]()
    s = np.linalg.svd(W, compute_uv=False)
    t = np.linalg.svd(preconditioned_factor(W, start), compute_uv=False)
    assert np.max(np.abs(s - t)) <= 16 * np.sqrt(40) * EPS * s[0]


@pytest.mark.parametrize("decades", [3.0, 12.0, 30.0])
def test_a_sketch_needs_one_sweep(decades, monkeypatch):
    """With one sweep allowed, the fallback would be the QR: it is not asked."""
    from alignver.linalg import qr_reduction as module

    W = graded(40, 900, decades)
    start = np.linalg.svd(W @ np.random.default_rng(6).standard_normal((900, 80)), full_matrices=False)[0]

    def refused(*_):
        raise AssertionError("a second sweep")

    monkeypatch.setattr(module, "_SWEEPS", 1)
    monkeypatch.setattr(module, "streamed_r", refused)
    t = np.linalg.svd(preconditioned_factor(W, start), compute_uv=False)
    assert np.max(np.abs(np.linalg.svd(W, compute_uv=False) - t)) <= 16 * np.sqrt(40) * EPS * np.linalg.norm(W, 2)
    with pytest.raises(AssertionError, match="a second sweep"):
        preconditioned_factor(graded(40, 900, 12.0), np.eye(40))
