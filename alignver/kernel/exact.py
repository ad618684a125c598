"""Exact arithmetic: floats as dyadic rationals, and ranks modulo small primes.

Zero and equality are tested on bit patterns, which also give mantissas and exponents. No floating-point operation is
involved, so the result does not depend on the floating-point mode of the machine.

Modulo an odd prime p every dyadic rational m 2^e is a residue, since 2 has an inverse; a minor that is not zero modulo
p is not zero. Residues are integers below 2^21 in float64. Products of blocks stay below 2^53, so BLAS adds integers
exactly in any order and any rounding mode, and no rounding occurs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require

FARTHEST = 1000
"""Exponents of powers of two in a certificate lie between -1000 and 1000, within the range of float64."""

_SIGN = np.int64(-(2**63))
_FRACTION = np.int64((1 << 52) - 1)

_TOP = 2**21  # of the primes
_TERMS = 2048  # sums of so many products below (p / 2 + 1)^2 < 2^40.1 stay below 2^53
_PANEL = 48
_TRIES = 4


def bits(x: Any) -> Any:
    """Return the bit patterns of float64 numbers, with -0.0 as 0.0, so that equal numbers have equal patterns."""
    patterns = np.ascontiguousarray(x).view(np.int64)
    return np.where(patterns == _SIGN, 0, patterns)


def equal(x: Any, y: Any) -> bool:
    """Whether two arrays contain the same numbers.

    Examples
    --------
    >>> equal(np.array([0.0, 1.0]), np.array([-0.0, 1.0])), equal(np.array([0.0]), np.array([5e-324]))
    (True, False)
    """
    same = np.array_equal(np.ascontiguousarray(x).view(np.int64), np.ascontiguousarray(y).view(np.int64))
    return bool(same or np.array_equal(bits(x), bits(y)))


def nonzero(x: Any) -> Any:
    """Return a mask of the numbers that are not zero; subnormal numbers are not zero."""
    return bits(x) != 0


def integers(x: Any) -> tuple[Any, Any]:
    r"""Return int64 arrays m and e with :math:`x = m\,2^e` exactly.

    Examples
    --------
    >>> m, e = integers(np.array([0.75, 5e-324]))
    >>> [(int(a) % 2**20, int(b)) for a, b in zip(m, e)]
    [(0, -53), (1, -1074)]
    """
    patterns = np.ascontiguousarray(x).view(np.int64)
    biased = (patterns >> 52) & 0x7FF
    m = (patterns & _FRACTION) | np.where(biased > 0, _FRACTION + 1, 0)
    return np.where(patterns < 0, -m, m), np.maximum(biased, 1) - 1075


def power(exponent: int) -> Fraction:
    """Return 2^exponent."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def sqrt_up(x: Fraction) -> Fraction:
    """Return a rational number >= sqrt(``x``) for ``x >= 0``, with a relative error below 2^-60; zero for zero.

    Examples
    --------
    >>> 2 <= sqrt_up(Fraction(2)) ** 2 <= 2 + Fraction(1, 2**58)
    True
    """
    root, shift = _root(x)
    return Fraction(root + 1, 1 << shift) if x else x


def sqrt_down(x: Fraction) -> Fraction:
    """Return a rational number <= sqrt(``x``), with a relative error below 2^-60; zero for ``x <= 0``."""
    root, shift = _root(max(x, Fraction(0)))
    return Fraction(root, 1 << shift)


def _root(x: Fraction) -> tuple[int, int]:
    # The radicand has at least 124 bits, so its root, rounded down, has a relative error below 2^-61.
    shift = max(0, 64 + (x.denominator.bit_length() - x.numerator.bit_length()) // 2)
    return math.isqrt((x.numerator << 2 * shift) // x.denominator), shift


def rounded_up(x: Fraction) -> float:
    """Return a float that is at least ``x``."""
    try:
        value = float(x)
    except OverflowError:
        return math.inf
    return value if Fraction(value) >= x else math.nextafter(value, math.inf)


def rounded_down(x: Fraction) -> float:
    """Return a float that is at most ``x``."""
    return -rounded_up(-x)


def number(constants: Mapping[str, Any], name: str) -> Fraction:
    """Return a constant of a certificate, a finite float >= 0, as a rational number."""
    value = constants[name]
    require(isinstance(value, float) and 0.0 <= value < math.inf, f"{name} is not a number of at least zero")
    return Fraction(value)


def floats(array: Any, shape: tuple[int, ...], what: str) -> Any:
    """Return an array of a certificate, which must be float64 (squares of integers could overflow) and of a shape."""
    require(array.dtype == np.float64 and array.shape == shape, f"{what} of the wrong kind or shape")
    return array


def indices(array: Any, size: int) -> list[int]:
    """Return an array of a certificate as a list of distinct indices below ``size``."""
    fits = array.ndim == 1 and array.dtype == np.int64 and array.size <= size
    require(fits, "an index set of the wrong kind or size")
    values: list[int] = array.tolist()
    require(len(set(values)) == len(values), "indices that are repeated")
    require(all(0 <= value < size for value in values), "indices that are out of range")
    return values


def exponents(array: Any, count: int) -> Any:
    """Return an array of a certificate as ``count`` exponents of two."""
    require(array.dtype == np.int64 and array.shape == (count,), "exponents of the wrong kind")
    require(all(-FARTHEST <= value <= FARTHEST for value in array.tolist()), f"exponents beyond {FARTHEST}")
    return array


def combination(lines: Any, numbers: Sequence[int], powers: Sequence[int]) -> tuple[list[int], int]:
    r"""Return integers v and an exponent e with :math:`\sum_k n_k 2^{p_k} \mathrm{lines}_k = v\,2^e` exactly.

    Examples
    --------
    >>> combination(np.array([[0.5, 1.0], [1.0, 2.0]]), [2, -1], [0, 0])[0]
    [0, 0]
    """
    m, e = integers(lines)
    e = e + np.array(powers, dtype=np.int64)[:, None]
    low = int(e.min(initial=0, where=m != 0))
    total = [0] * lines.shape[1]
    for mantissas, shifts, factor in zip(m.tolist(), (e - low).tolist(), numbers, strict=True):
        for column, (mantissa, shift) in enumerate(zip(mantissas, shifts, strict=True)):
            if mantissa:
                total[column] += (mantissa * factor) << shift
    return total, low


def small_primes() -> Iterator[int]:
    """Yield the primes below 2^21 in decreasing order, by trial division."""
    for candidate in range(_TOP - 1, 2**19, -2):
        if all(candidate % q for q in range(3, math.isqrt(candidate) + 1, 2)):
            yield candidate


def _reduce(M: Any, p: int) -> Any:
    """Return M modulo p between -p/2 - 1 and p/2 + 1 for integers M below 2^53; every operation is exact."""
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

    Columns without a pivot are skipped.
    """
    M = np.array(M, dtype=np.float64)
    d, top = M.shape[1], 0
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        order, lower = _eliminated(M[top:, start:stop].copy(), p)
        pivots = lower.shape[1]
        rest = M[top:, stop:][order]
        # Forward substitution with the unit lower triangle of the pivots, then one product for the rows below.
        for k in range(1, pivots):
            rest[k] = _reduce(rest[k] - lower[k, :k] @ rest[:k], p)
        rest[pivots:] = _reduce(rest[pivots:] - lower[pivots:] @ rest[:pivots], p)
        M[top:, stop:] = rest
        top += pivots
    return top


def _eliminated(panel: Any, p: int) -> tuple[Any, Any]:
    """Eliminate a panel; return the order of its rows and the multipliers, one column for each pivot."""
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
    """Return a prime modulo which ``A`` has rank >= ``rank``, which proves the same over the rationals; else NotProved.

    A is compressed to a square matrix by random residues L and R on the left and right: for all L and R, the rank of
    L A R is at most that of A.
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
