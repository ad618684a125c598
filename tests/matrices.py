"""Matrices whose truth is known: prescribed singular values, integer factors of known rank, and the classics."""

from __future__ import annotations

import numpy as np
from scipy import linalg


def orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    """A Haar-distributed orthogonal matrix."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def with_singular_values(values, shape, rng) -> np.ndarray:
    """U diag(values) V^T with random orthogonal U and V; the values are met to rounding."""
    n, d = shape
    sigma = np.zeros(shape)
    k = len(values)
    sigma[range(k), range(k)] = values
    return orthogonal(n, rng) @ sigma @ orthogonal(d, rng)


def integer_rank(rank, shape, rng, size=3) -> np.ndarray:
    """An integer matrix of exactly that rank: the product of integer factors, one unit triangular in each."""
    n, d = shape
    left, right = rng.integers(-size, size + 1, (n, rank)), rng.integers(-size, size + 1, (rank, d))
    rows, columns = rng.permutation(n)[:rank], rng.permutation(d)[:rank]
    left[rows] = np.tril(left[rows], -1) + np.eye(rank, dtype=int)
    right[:, columns] = np.triu(right[:, columns], 1) + np.eye(rank, dtype=int)
    return (left @ right).astype(np.float64)


def kahan(size: int, angle: float = 1.2) -> np.ndarray:
    """Kahan's triangular matrix, on which column pivoting makes no exchange and the last pivot misleads."""
    s, c = np.sin(angle), np.cos(angle)
    return np.diag(s ** np.arange(size)) @ (np.eye(size) - c * np.triu(np.ones((size, size)), 1))


CLASSICS = {
    "hilbert": linalg.hilbert(8),
    "vandermonde": np.vander(np.linspace(0.1, 1.0, 8)),
    "pascal": linalg.pascal(9).astype(float),
    "wilkinson": np.eye(12)
    + np.tril(-np.ones((12, 12)), -1)
    + np.outer(np.r_[np.zeros(0), np.ones(12)], np.eye(12)[11]),
    "kahan": kahan(20),
    "laeuchli": np.vstack([np.ones((1, 5)), 1e-5 * np.eye(5)]),
    "graded": np.diag(10.0 ** -np.arange(9)) @ linalg.hadamard(16)[:9, :].astype(float),
}
