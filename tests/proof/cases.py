"""Matrices whose exact rank and membership are known: the battery for honesty, and the oracle for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

N_MOST = 14


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    J: np.ndarray
    y: np.ndarray


def exact_rank(A: np.ndarray) -> int:
    """The rank over the rationals of the floats as they are: FLINT's rational elimination, nothing of alignver."""
    import flint

    rows = []
    for row in np.atleast_2d(A):
        ratios = [float(a).as_integer_ratio() for a in row]
        rows.append([flint.fmpq(p, q) for p, q in ratios])
    return int(flint.fmpq_mat(rows).rank())


def is_member(J: np.ndarray, y: np.ndarray) -> bool:
    return exact_rank(J) == exact_rank(np.column_stack([J, y]))


def _integers(rng: np.random.Generator, n: int, d: int, size: int = 9) -> np.ndarray:
    return rng.integers(-size, size + 1, (n, d)).astype(float)


def low_rank(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    r = int(rng.integers(0, min(n, d) + 1))
    return _integers(rng, n, r, 4) @ _integers(rng, r, d, 4) if r else np.zeros((n, d))


def big_integers(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Exactly rank-deficient with entries of 50 bits, so that every product in the Gram matrix is rounded."""
    r = int(rng.integers(1, min(n, d) + 1))
    return _integers(rng, n, r, 2**22) @ _integers(rng, r, d, 2**22)


def gaussian(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.standard_normal((n, d))


def duplicated(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = rng.standard_normal((n, d))
    A[int(rng.integers(n))] = A[int(rng.integers(n))] * rng.choice([1.0, -2.0, 0.125, 1.0])
    return A


def one_ulp(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Integer low rank, then one entry moved by one unit in the last place."""
    A = low_rank(rng, n, d)
    i, j = int(rng.integers(n)), int(rng.integers(d))
    A[i, j] = np.nextafter(A[i, j], np.inf)
    return A


def hilbert(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return 1.0 / (np.arange(n)[:, None] + np.arange(d) + 1.0)


def vandermonde(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    points = rng.choice(np.linspace(-1.0, 1.0, 2 * n), n)  # with repetitions: sometimes singular
    return np.vander(points, d)


def kahan(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    s, c = np.sin(1.2), np.cos(1.2)
    return (s ** np.arange(n))[:, None] * (np.eye(n, d) - c * np.triu(np.ones((n, d)), 1))


def laeuchli(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """A row of ones above mu times the identity: A^T A is singular in floating point, A is not."""
    k = min(n - 1, d) if n > 1 else 1
    A = np.zeros((n, d))
    A[0] = 1.0
    A[1 : k + 1, :k] = np.eye(n - 1, d)[:k, :k] * 2.0 ** -float(rng.integers(20, 60))
    return A


def pascal(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = np.ones((n, d))
    for i in range(1, n):
        for j in range(1, d):
            A[i, j] = A[i - 1, j] + A[i, j - 1]
    return A


def wilkinson(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = np.zeros((n, d))
    k = np.arange(min(n, d))
    A[k, k] = np.abs(k - (len(k) - 1) / 2)
    A[k[:-1], k[:-1] + 1] = 1.0
    A[k[:-1] + 1, k[:-1]] = 1.0
    return A


def graded(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    spectrum = np.logspace(0, -float(rng.integers(2, 18)), min(n, d))
    Q, _ = np.linalg.qr(rng.standard_normal((n, min(n, d))))
    P, _ = np.linalg.qr(rng.standard_normal((d, min(n, d))))
    return (Q * spectrum) @ P.T


def wild_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = low_rank(rng, n, d) if rng.random() < 0.5 else gaussian(rng, n, d)
    return np.ldexp(A, rng.integers(-500, 501, (n, 1)))  # 1e-150 to 1e150


def wild_columns(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = low_rank(rng, n, d) if rng.random() < 0.5 else gaussian(rng, n, d)
    return np.ldexp(A, rng.integers(-500, 501, (1, d)))


def wild_entries(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.standard_normal((n, d)) * 10.0 ** rng.integers(-150, 151, (n, d))


def denormal(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    A = low_rank(rng, n, d) if rng.random() < 0.7 else _integers(rng, n, d)
    return A * 5e-324


def huge(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return gaussian(rng, n, d) * 1e307


def sparse(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return gaussian(rng, n, d) * (rng.random((n, d)) < 0.3)


def rounded_thirds(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Low rank in the reals, full rank after rounding: what no tolerance can tell."""
    return low_rank(rng, n, d) / 3.0


def zero(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return np.zeros((n, d))


FAMILIES: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    low_rank, big_integers, gaussian, duplicated, one_ulp, hilbert, vandermonde, kahan, laeuchli, pascal,
    wilkinson, graded, wild_rows, wild_columns, wild_entries, denormal, huge, sparse, rounded_thirds, zero,
)  # fmt: skip


def _target(rng: np.random.Generator, J: np.ndarray) -> np.ndarray:
    """Targets of every kind: integer combinations (members where the product is exact), near misses, noise, zero."""
    n, d = J.shape
    kind = int(rng.integers(6))
    with np.errstate(all="ignore"):
        if kind <= 1:
            y = J @ rng.integers(-2, 3, d).astype(float)
        elif kind == 2:
            y = J[:, int(rng.integers(d))] * 2.0
        elif kind == 3:  # one unit in the last place away from a column
            y = J[:, int(rng.integers(d))].copy()
            y[int(rng.integers(n))] = np.nextafter(y[int(rng.integers(n))], np.inf)
        elif kind == 4:
            y = np.zeros(n) if rng.random() < 0.3 else np.eye(n)[int(rng.integers(n))]
        else:
            y = rng.standard_normal(n)
    return y if np.all(np.isfinite(y)) else rng.standard_normal(n)


def cases(seed: int, rounds: int, most: int = N_MOST) -> Iterator[Case]:
    """``rounds`` cases of every family: tall, wide, square and 1 x 1."""
    rng = np.random.default_rng(seed)
    for k in range(rounds):
        for family in FAMILIES:
            n, d = (1, 1) if k % 10 == 9 else (int(rng.integers(1, most)), int(rng.integers(1, most)))
            if k % 3 == 2:
                d = n
            J = np.asarray(family(rng, n, d), dtype=float)
            assert np.all(np.isfinite(J)), family.__name__
            yield Case(f"{family.__name__} {n}x{d} #{k}", J, _target(rng, J))
