r"""Floating-point bounds: the error of products, and the proof of definiteness.

The arithmetic that they assume is tested by :mod:`alignver.kernel.machine`.

**The bound.** The error of an inner product of k terms, summed in any order, with or without fused operations, is at
most :math:`\gamma_k |x|^\top |y| + k\,\omega`, :math:`\gamma_k = k u / (1 - k u)`, u = 2^-53 (N. J. Higham, *Accuracy
and Stability of Numerical Algorithms*, 2nd ed., SIAM 2002, eq. (3.5)); omega = 2^-1022 is far more than the 2^-1075
that a product loses to gradual underflow. More generally, each term of a sum enters with a factor :math:`1 + \theta`,
:math:`|\theta| \le \gamma_k`, k the largest number of roundings of a term (Lemma 3.1).

**Definiteness.** :math:`M` is the exact matrix, :math:`\hat M` the computed one, C any block lower triangular matrix
and s any number. :math:`M = C C^\top + s I + F + E` defines F, the computed remainder, and E, its rounding error.
:math:`C C^\top` is positive semidefinite, so :math:`\lambda_{\min}(M) \ge s - \|F\| - \|E\|` for every C.

Arguments and results are arrays of floats and exact rationals; every bound is a rational number and is not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from alignver.kernel.exact import floats, integers, power, rounded_up, sqrt_down, sqrt_up
from alignver.kernel.failure import NotProved, require
from alignver.kernel.machine import require_ieee

Run: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""``map``, or the ``map`` of a pool of threads."""

U = power(-53)
OMEGA = power(-1022)

TILE = 1024
EXACT = 2**24
"""Limit for optional exact products, in multiplications of integers: seconds in plain Python."""

_SCALED = 300  # squares of numbers between 2^-300 and 2^300 neither over- nor underflow


def gamma(k: int) -> Fraction:
    """Return k u / (1 - k u)."""
    require(0 <= k < 2**50, "sums of too many terms")
    return k * U / (1 - k * U)


def product_error(k: int, left: Fraction, right: Fraction, entries: int) -> Fraction:
    r"""Bound the Frobenius norm of the rounding error of a product with ``entries`` inner products of k terms.

    :math:`\| |X| |Y| \|_F \le \|X\|_F \|Y\|_F`, and every entry may lose :math:`k\,\omega` to underflow.
    """
    return gamma(k) * left * right + entries * k * OMEGA


def _squares(x: Any) -> tuple[float, int]:
    """Return the computed sum of the squares of ``x 2^-e``, and e; e is zero unless the numbers are far from 1."""
    top = max(float(x.max()), -float(x.min())) if x.size else 0.0
    require(top < math.inf, "a number that is not finite")
    e = math.frexp(top)[1]
    if -_SCALED < e < _SCALED:
        return float(np.vdot(x, x)), 0
    unit = np.ldexp(x, -e)
    return float(np.vdot(unit, unit)), e


def norm_up(x: Any) -> Fraction:
    r"""Return an upper bound of the 2-norm of all entries.

    The exact sum of squares is at most :math:`(\hat s + k\,\omega) / (1 - \gamma_k)`. If entries were scaled, the
    error of an underflow is at most 2^-1075. The bound is 0 only if all entries are 0.

    Examples
    --------
    >>> 5 <= norm_up(np.array([3.0, 4.0])) < 5 + power(-40)
    True
    """
    computed, e = _squares(x)
    root = sqrt_up((Fraction(computed) + x.size * OMEGA) / (1 - gamma(x.size)))
    return (root + (x.size * power(-1074) if e else 0)) * power(e) if computed else Fraction(0)


def norm_down(x: Any) -> Fraction:
    r"""Return a lower bound of the 2-norm of all entries: the root of :math:`(\hat s - k\,\omega) / (1 + \gamma_k)`."""
    computed, e = _squares(x)
    root = sqrt_down((Fraction(computed) - x.size * OMEGA) / (1 + gamma(x.size)))
    return max(root - (x.size * power(-1074) if e else 0), Fraction(0)) * power(e)


def spectral_up(X: Any) -> Fraction:
    r"""Return an upper bound of the spectral norm: the smaller of :math:`\|X\|_F` and
    :math:`\sqrt{\|X\|_1 \|X\|_\infty}`.

    A computed sum of k non-negative numbers is at least :math:`1 - \gamma_k` times the exact one.
    """
    size = np.abs(X)
    sides = [Fraction(float(size.sum(axis=axis).max())) / (1 - gamma(size.shape[axis])) for axis in (0, 1)]
    return min(norm_up(X), sqrt_up(sides[0] * sides[1]))


def lengths_up(A: Any) -> Any:
    r"""Return floats that are at least the 2-norms of the rows.

    :math:`\sqrt{\hat s + k\,\omega}\,(1 + 2 (k + 8) u)`: the relative error of the sum, its root and the last product
    together is below :math:`(k + 4) u`.
    """
    k = A.shape[-1]
    squares = np.einsum("...k,...k->...", A, A)
    return np.sqrt(squares + k * float(OMEGA)) * (1.0 + 2.0 * (k + 8) * float(U))


def definite_floor(
    tile: Callable[[slice, slice], Any], order: int, size: Fraction, noise: Fraction, target: Fraction, run: Run = map
) -> Fraction:
    r"""Return a proved positive lower bound of the smallest eigenvalue of M, about ``target`` or more; else NotProved.

    The factorization proceeds by columns of tiles, with b columns in a tile and K tile columns:
    :math:`S = \hat M_{ij} - s I_{ij} - \sum_{k<j} C_{ik} C_{jk}^\top`, C_jj its Cholesky factor for i = j, C_ij about
    :math:`S C_{jj}^{-\top}` below, and :math:`F_{ij} = S - C_{ij} C_{jj}^\top`. Entries of M and s undergo at most K +
    1 subtractions, a product c_ik c_jk undergoes b roundings in its inner product and K subtractions; D = b + K + 1 is
    one more. So

    .. math:: \|E\| \le \|M - \hat M\| + \gamma_{K+1} (\| |\hat M| \| + s) + \gamma_D \|C\|_F^2 + n^2 D\,\omega .

    Parameters
    ----------
    tile : callable
        Returns the entries of :math:`\hat M` in some rows and columns as a new array. It is called only for tiles on
        and below the diagonal; those above are their transposes.
    order : int
        n.
    size : Fraction
        Upper bound of the spectral norm of :math:`|\hat M|`.
    noise : Fraction
        Upper bound of :math:`\|M - \hat M\|_2`.
    target : Fraction
        The bound to reach; it determines the shift s.
    run : callable
        Processes the tiles of a column, one after the other or in parallel.
    """
    width = min(TILE, order)
    count = -(-order // width)
    depth = width + count + 1
    # C C^T is about as large as M; one fifth more, and a little for small matrices, covers the remainder.
    shift = rounded_up(target + Fraction(6, 5) * (noise + gamma(depth) * size) + 16 * U * size)
    starts = [k * width for k in range(count)]
    columns: list[list[Any]] = []
    rest = length = Fraction(0)
    for j, start in enumerate(starts):
        span = slice(start, min(start + width, order))

        def reduced(i: int, span: slice = span, j: int = j) -> Any:
            part = tile(slice(starts[i], min(starts[i] + width, order)), span)
            if i == j:
                part.flat[:: part.shape[1] + 1] -= shift
            for column in columns:
                part -= column[i] @ column[j].T
            return part

        square = reduced(j)
        try:
            factor = np.linalg.cholesky(square)
        except np.linalg.LinAlgError:
            raise NotProved("the matrix minus its shift is not definite in floating point") from None

        def solved(i: int, factor: Any = factor, reduced: Any = reduced) -> Any:
            require_ieee()
            with np.errstate(all="ignore"):
                part = reduced(i)
                X = np.ascontiguousarray(np.linalg.solve(factor, part.T).T)
                return X, norm_up(part - X @ factor.T), norm_up(X)

        rest += norm_up(square - factor @ factor.T) ** 2
        length += norm_up(factor) ** 2
        below = []
        for X, remainder, tile_norm in run(solved, range(j + 1, count)):
            rest += 2 * remainder**2  # the tile, and its transpose above the diagonal
            length += tile_norm**2
            below.append(X)
        columns.append([*[None] * j, factor, *below])
    errors = noise + gamma(count + 1) * (size + Fraction(shift)) + gamma(depth) * length
    errors += order * order * depth * OMEGA
    floor = Fraction(shift) - sqrt_up(rest) - errors
    require(floor > 0, "the product of the factors is too far from the matrix")
    return floor


def gram_floor(A: Any, target: Fraction, run: Run = map) -> Fraction:
    r"""Return a proved positive lower bound of the smallest eigenvalue of :math:`A A^\top`; else NotProved.

    The errors of the entries are at most :math:`\gamma_d \|a_i\| \|a_j\| + d\,\omega`: a matrix of rank one with the
    norm :math:`\gamma_d \|A\|_F^2`, and less than n^2 d omega.
    """
    n, d = A.shape
    square = norm_up(A) ** 2
    noise = product_error(d, square, Fraction(1), n * n)
    return definite_floor(lambda rows, columns: A[rows] @ A[columns].T, n, square + noise, noise, target, run)


def inverse_floor(A: Any, X: Any, target: Fraction | None = None, *, exactly: bool = True) -> Fraction:
    r"""Return a proved lower bound of the smallest singular value of A from an approximate right inverse, or 0.

    With :math:`\|I - A X\| = \epsilon < 1` and any unit vector z, :math:`1 - \epsilon \le \|X^\top A^\top z\| \le \|X\|
    \|A^\top z\|`, so :math:`s_{\min}(A) \ge (1 - \epsilon) / \|X\|`.
    The residual is first bounded by the rounding errors of products and of the difference. If that does not reach
    ``target``, or ``target`` is None, it is computed exactly in integers.
    """
    n, d = A.shape
    floats(X, (d, n), "a right inverse")
    residual = np.eye(n) - A @ X
    largest = spectral_up(X)
    require(largest > 0, "the right inverse is zero")
    epsilon = norm_up(residual) * (1 + gamma(1)) + product_error(d, norm_up(A), norm_up(X), n * n)
    floor = (1 - epsilon) / largest
    if target is None or floor < target or floor <= 0:
        if not exactly and n * n * d > EXACT:
            return Fraction(0)
        rows, one = exact_residual(A, X)
        floor = (1 - sqrt_up(Fraction(sum(value * value for row in rows for value in row), one * one))) / largest
    return max(floor, Fraction(0))


def exact_residual(A: Any, X: Any) -> tuple[list[list[int]], int]:
    """Return I - A X exactly, as integers with one power of two as their denominator."""
    (left, left_power), (right, right_power) = common(A), common(X)
    one = 1 << -(left_power + right_power)
    rows = [[-value for value in row] for row in _multiplied(left, right)]
    for i, row in enumerate(rows):
        row[i] += one
    return rows, one


def common(M: Any) -> tuple[list[list[int]], int]:
    """Return integers and one exponent e <= 0 with M = integers 2^e."""
    m, e = integers(M)
    low = int(e.min(initial=0, where=m != 0))
    shifts = np.where(m != 0, e - low, 0).tolist()
    return [[a << s for a, s in zip(*row, strict=True)] for row in zip(m.tolist(), shifts, strict=True)], low


def _multiplied(left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
    """Return the exact product of integer matrices: by FLINT if it is installed, otherwise in plain Python."""
    try:
        from flint import fmpz_mat
    except ImportError:
        plainly: list[list[int]] = (np.array(left, dtype=object) @ np.array(right, dtype=object)).tolist()
        return plainly
    return [[int(value) for value in row] for row in (fmpz_mat(left) * fmpz_mat(right)).tolist()]
