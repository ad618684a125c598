"""Rank modulo small primes, exact in plain float64 arithmetic.

An odd prime p makes every dyadic rational m 2^e a residue, since 2 has an inverse; a minor that is not zero modulo p is
not zero. Residues are integers below 2^21 held in float64: products of blocks stay below 2^53, so BLAS adds integers
exactly in any order and in any rounding mode, and no rounding occurs anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from alignver.kernel.exact import integers
from alignver.kernel.failure import NotProved, require

__all__ = ["independent_modulo", "rank_modulo", "residues", "small_primes"]

_TOP = 2**21
_TERMS = 2048  # sums of so many products below (p / 2 + 1)^2 < 2^40.1 stay below 2^53
_PANEL = 48
_TRIES = 4


def small_primes() -> Iterator[int]:
    """Yield the primes below 2^21, from the largest down, by trial division."""
    for candidate in range(_TOP - 1, 2**19, -2):
        if all(candidate % q for q in range(3, math.isqrt(candidate) + 1, 2)):
            yield candidate


def _reduce(M: Any, p: int) -> Any:
    """Return M modulo p between -p/2 - 1 and p/2 + 1, for integers M below 2^53: every step is exact."""
    return M - p * np.rint(M / p)


def residues(A: Any, p: int) -> Any:
    """Return the residues of the dyadic rationals in ``A`` modulo the odd prime ``p``, as integers in float64.

    Examples
    --------
    >>> (residues(np.array([[0.5, 3.0]]), 7) % 7).tolist()
    [[4.0, 3.0]]
    """
    m, e = integers(A)
    low = int(e.min())
    powers = np.array([pow(2, k % (p - 1), p) for k in range(low, int(e.max()) + 1)], dtype=np.int64)
    return _reduce((m % p * powers[e - low] % p).astype(np.float64), p)


def _product(A: Any, B: Any, p: int) -> Any:
    """Return A B modulo p for reduced A and B."""
    total = np.zeros((A.shape[0], B.shape[1]))
    for start in range(0, A.shape[1], _TERMS):
        total = _reduce(total + A[:, start : start + _TERMS] @ B[start : start + _TERMS], p)
    return total


def rank_modulo(M: Any, p: int) -> int:
    """Return the rank modulo ``p`` of reduced residues, by blocked elimination with row exchanges.

    Columns of a panel without a pivot are skipped.
    """
    M = np.array(M, dtype=np.float64)
    d, top = M.shape[1], 0
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        order, lower = _eliminated(M[top:, start:stop].copy(), p)
        pivots = lower.shape[1]
        rest = M[top:, stop:][order]
        # Forward substitution with the unit lower triangle of the pivots, then one product for everything below.
        for k in range(1, pivots):
            rest[k] = _reduce(rest[k] - lower[k, :k] @ rest[:k], p)
        rest[pivots:] = _reduce(rest[pivots:] - lower[pivots:] @ rest[:pivots], p)
        M[top:, stop:] = rest
        top += pivots
    return top


def _eliminated(panel: Any, p: int) -> tuple[Any, Any]:
    """Eliminate a panel; return the order of its rows and the multipliers, a column for each pivot."""
    rows = panel.shape[0]
    order = np.arange(rows)
    lower = np.zeros((rows, panel.shape[1]))
    k = 0
    for column in range(panel.shape[1]):
        candidates = np.flatnonzero(panel[k:, column])
        if not candidates.size:
            continue
        pivot = k + int(candidates[0])
        for array in (panel, order, lower):
            array[[k, pivot]] = array[[pivot, k]]
        inverse = pow(int(panel[k, column]), -1, p)
        multipliers = _reduce(panel[k + 1 :, column] * inverse, p)
        lower[k + 1 :, k] = multipliers
        panel[k + 1 :, column:] = _reduce(panel[k + 1 :, column:] - multipliers[:, None] * panel[k, column:], p)
        k += 1
    return order, lower[:, :k]


def independent_modulo(A: Any, rank: int, what: str) -> int:
    """Return a prime modulo which ``A`` has rank at least ``rank``, so that it has over the rationals; else NotProved.

    A is compressed to a square matrix by random residues on the left and right: the rank of L A R is at most that of A,
    for any L and R.
    """
    require(rank <= min(A.shape), f"{what} cannot have rank {rank}: its shape is {A.shape}")
    source = np.random.default_rng(20060418)
    for p in itertools.islice(small_primes(), _TRIES):
        M = residues(A, p)
        if M.shape[1] > rank:
            M = _product(M, _reduce(source.integers(0, p, (M.shape[1], rank)).astype(np.float64), p), p)
        if M.shape[0] > rank:
            M = _product(_reduce(source.integers(0, p, (rank, M.shape[0])).astype(np.float64), p), M, p)
        if rank_modulo(M, p) == rank:
            return p
    raise NotProved(f"{what} has rank below {rank} modulo {_TRIES} primes: that it is {rank} is not established")
