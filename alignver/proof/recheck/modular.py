"""Rank bounds by elimination modulo small primes, exact in plain float64 arithmetic.

An odd prime p makes every dyadic rational m 2^e a residue, since 2 has an inverse. A minor that is not zero
modulo p is not zero. Residues are integers below 2^21 held in float64: products of blocks stay below 2^53, so
BLAS adds integers exactly in any order, and no rounding occurs anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alignver.proof.certificate import Certificate
from alignver.proof.recheck.failure import NotProved

__all__ = ["minor", "primes", "rank_modulo", "reduced", "require_rank_at_least", "shape", "small_primes"]

_TOP = 2**21
_BLOCK = 48
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
    """Return the residues of the dyadic rationals in ``A`` modulo the odd prime ``p``, as integers in
    float64.
    """
    fraction, exponent = np.frexp(A)
    integers = np.ldexp(fraction, 53).astype(np.int64) % p
    low = int(exponent.min()) - 53
    powers = np.array([pow(2, k % (p - 1), p) for k in range(low, int(exponent.max()) - 52)], dtype=np.int64)
    return _reduce((integers * powers[exponent - 53 - low] % p).astype(np.float64), p)


def product(A: Any, B: Any, p: int) -> Any:
    """Return A B modulo p for reduced A and B: sums of at most 2^12 products below (p/2 + 1)^2 < 2^40.1 are
    exact.
    """
    total = np.zeros((A.shape[0], B.shape[1]))
    for start in range(0, A.shape[1], 2048):
        total = _reduce(total + A[:, start : start + 2048] @ B[start : start + 2048], p)
    return total


def rank_modulo(M: Any, p: int, *, full: bool = False) -> int:
    """Return the rank modulo ``p`` of reduced residues, by blocked elimination with row exchanges.

    With ``full`` the matrix is square and the answer stops at the first sign of singularity (returning less
    than its order). Columns of a block without a pivot are skipped.
    """
    M = np.array(M, dtype=np.float64)
    n, d = M.shape
    top = 0
    for start in range(0, d, _BLOCK):
        if top == n:
            break
        stop = min(start + _BLOCK, d)
        panel = M[top:, start:stop].copy()
        found, order, lower, used = _panel(panel, p)
        if full and len(used) < stop - start:
            return top + len(used)
        if not found:
            continue
        rest = M[top:, stop:][order]
        # Forward substitution with the unit lower triangle of the pivots, then one product for everything
        # below.
        for k in range(1, found):
            rest[k] = _reduce(rest[k] - lower[k, :k] @ rest[:k], p)
        rest[found:] = _reduce(rest[found:] - lower[found:] @ rest[:found], p)
        M[top:, stop:] = rest
        top += found
    return top


def _panel(panel: Any, p: int) -> tuple[int, Any, Any, list[int]]:
    """Eliminate a panel; return the number of pivots, the row order, multipliers (rows x pivots) and pivot
    columns.
    """
    rows = panel.shape[0]
    order = np.arange(rows)
    lower = np.zeros((rows, panel.shape[1]))
    used: list[int] = []
    for column in range(panel.shape[1]):
        k = len(used)
        if k == rows:
            break
        candidates = np.flatnonzero(panel[k:, column])
        if not candidates.size:
            continue
        pivot = k + int(candidates[0])
        if pivot != k:
            for array in (panel, order, lower):
                array[[k, pivot]] = array[[pivot, k]]
        inverse = pow(int(panel[k, column]) % p, -1, p)
        inverse = inverse - p if inverse > p // 2 else inverse
        multipliers = _reduce(panel[k + 1 :, column] * inverse, p)
        lower[k + 1 :, k] = multipliers
        panel[k + 1 :, column:] = _reduce(panel[k + 1 :, column:] - multipliers[:, None] * panel[k, column:], p)
        panel[k + 1 :, column] = 0.0
        used.append(column)
    return len(used), order, lower[:, : len(used)], used


def require_rank_at_least(A: Any, rank: int, what: str) -> int:
    """Return a prime modulo which ``A`` has rank at least ``rank``, so that it has over the rationals; else
    NotProved.

    A is compressed to a square matrix by random residues on the left and right: the rank of L A R is at most
    that of A, for any L and R.
    """
    if rank > min(A.shape):
        raise NotProved(f"{what} cannot have rank {rank}: its shape is {A.shape}")
    if rank == 0:
        return 0
    source = np.random.default_rng(20060418)
    for _, p in zip(range(_TRIES), small_primes(), strict=False):
        M = residues(A, p)
        if M.shape[1] > rank:
            M = product(M, _reduce(source.integers(0, p, (M.shape[1], rank)).astype(np.float64), p), p)
        if M.shape[0] > rank:
            M = product(_reduce(source.integers(0, p, (rank, M.shape[0])).astype(np.float64), p), M, p)
        if rank_modulo(M, p, full=True) == rank:
            return p
    raise NotProved(f"{what} has rank below {rank} modulo {_TRIES} primes: that it is {rank} is not established")


def _without_ball(certificate: Certificate) -> None:
    if certificate.constants.get("ball") is not None:
        raise NotProved(f"the method {certificate.method!r} says nothing about a ball")


def minor(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """A minor that does not vanish: the rank is at least its order."""
    _without_ball(certificate)
    A = inputs["A"] if "A" in inputs else inputs["J"]
    rows, columns = certificate.data["rows"], certificate.data["columns"]
    for index, size in ((rows, A.shape[0]), (columns, A.shape[1])):
        distinct = len(set(index.tolist())) == index.size
        if (
            index.ndim != 1
            or index.dtype != np.int64
            or not distinct
            or (index.size and not 0 <= index.min() <= index.max() < size)
        ):
            raise NotProved("the index sets of the minor are not sets of indices")
    if rows.size != columns.size:
        raise NotProved("the minor is not square")
    order = int(rows.size)
    p = require_rank_at_least(A[np.ix_(rows, columns)], order, "the minor") if order else 0
    return conclude_lower(certificate, A, order) + f" (a minor of order {order} is not zero modulo {p})"


def conclude_lower(certificate: Certificate, A: Any, order: int) -> str:
    """Return the claim's sentence if ``rank >= order`` proves it, else raise NotProved."""
    claim = certificate.claim
    if claim == "membership" and order == A.shape[0]:
        return "J has full row rank, so every y is in its column space"
    if claim == "rank" and order == min(A.shape) == _rank(certificate):
        return f"the rank is {order}"
    if claim == "not-rank" and order > _rank(certificate):
        return f"the rank is at least {order}, more than {_rank(certificate)}"
    raise NotProved(f"a rank of at least {order} does not prove the claim")


def conclude_upper(certificate: Certificate, A: Any, most: int) -> str:
    """Return the claim's sentence if ``rank <= most`` proves it, with a lower bound of its own where the
    claim needs one.
    """
    if certificate.claim == "not-rank" and most < _rank(certificate):
        return f"the rank is at most {most}, less than {_rank(certificate)}"
    if certificate.claim == "rank" and most == _rank(certificate):
        require_rank_at_least(A, most, "A")
        return f"the rank is {most}"
    raise NotProved(f"a rank of at most {most} does not prove the claim")


def _rank(certificate: Certificate) -> int:
    rank = certificate.constants["rank"]
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise NotProved("the claimed rank is no number")
    return rank


def reduced(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Rows that are zero, or equal to a kept row, with targets to match, ask for nothing; the kept rows are
    independent.
    """
    _without_ball(certificate)
    J, y = inputs["J"], inputs["y"]
    dropped, repeats = certificate.data["dropped"], certificate.data["repeats"]
    if dropped.dtype != np.int64 or repeats.dtype != np.int64 or dropped.ndim != 1 or dropped.shape != repeats.shape:
        raise NotProved("the repeated rows are no sets of indices")
    kept = np.ones(len(y), dtype=bool)
    for i in dropped.tolist():
        if not (0 <= i < len(y) and kept[i]):
            raise NotProved("the repeated rows are no sets of indices")
        kept[i] = False
    for i, j in zip(dropped.tolist(), repeats.tolist(), strict=True):
        zero = j == -1 and not np.any(J[i]) and y[i] == 0
        if not (zero or (0 <= j < len(y) and kept[j] and np.array_equal(J[i], J[j]) and y[i] == y[j])):
            raise NotProved(f"row {i} does not repeat row {j} with its target")
    rest = J[kept]
    if certificate.claim != "membership":
        raise NotProved("repeated rows prove membership only")
    p = require_rank_at_least(rest, rest.shape[0], "the matrix without repeated rows")
    return f"the {rest.shape[0]} rows that are left without repetitions are independent (modulo {p})"


def shape(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """A rank never exceeds the smaller side; true of every matrix of the shape, so of any ball."""
    side = min(inputs["A"].shape)
    if certificate.claim == "not-rank" and _rank(certificate) > side:
        return f"no {inputs['A'].shape[0]} by {inputs['A'].shape[1]} matrix has rank {_rank(certificate)}"
    raise NotProved("the shape does not prove the claim")


def primes(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Ranks of at most r modulo primes whose product exceeds every minor of order r + 1 as an integer.

    Rows are scaled by powers of two to integers here; by Hadamard's inequality a minor of order r + 1 is
    below the product of the r + 1 largest row norms.
    """
    _without_ball(certificate)
    A = inputs["A"]
    most = certificate.constants["most"]
    if not isinstance(most, int) or not 0 <= most < min(A.shape):
        raise NotProved("the bound of the rank is no number")
    fraction, exponent = np.frexp(A)
    nonzero = A != 0
    # Row i is an integer row times 2^k, k the smallest exponent of a last bit: its norm is below 2^(top - k)
    # sqrt(d).
    tops, bottoms = _exponents(fraction, exponent, nonzero)
    columns = np.where(np.any(nonzero, axis=0), np.min(np.where(nonzero, bottoms, 1 << 40), axis=0), 0)
    span = []
    for i in range(A.shape[0]):
        here = nonzero[i]
        if np.any(here):
            low = int((bottoms[i] - columns)[here].min())
            span.append(int((tops[i] - columns)[here].max()) - low)
        else:
            span.append(0)
    widest = sorted(span, reverse=True)[: most + 1]
    needed = sum(widest) + (most + 1) * (math.ceil(0.5 * math.log2(A.shape[1])) + 1)
    gathered = 0.0
    for p in small_primes():
        if rank_modulo(residues(A, p), p) > most:
            raise NotProved(f"the rank exceeds {most}")
        gathered += p.bit_length() - 1
        if gathered > needed:
            return conclude_upper(certificate, A, most)
    raise NotProved("more primes are needed than this check has")


def _exponents(fraction: Any, exponent: Any, nonzero: Any) -> tuple[Any, Any]:
    integers = np.ldexp(np.abs(fraction), 53).astype(np.int64)
    trailing = np.where(nonzero, np.log2(np.where(nonzero, integers & -integers, 1).astype(np.float64)), 0)
    bottoms = exponent.astype(np.int64) - 53 + np.rint(trailing).astype(np.int64)
    return exponent.astype(np.int64), bottoms
