"""A-priori error bounds in round-to-nearest binary64, without touching the rounding mode.

The only assumptions about the machine are:

* IEEE 754 binary64, rounding to nearest (ties either way): ``fl(x op y) = (x op y)(1 + d) + e`` with
  ``|d| <= u = 2^-53``, ``|e| <= OMEGA = 2^-1022`` and ``d e = 0``. Gradual underflow has ``|e| <= 2^-1075``,
  and only for products and quotients; the larger value keeps every bound valid if a thread of the BLAS
  flushes subnormal results or operands to zero;
* a matrix product computes every entry as an inner product of all its terms, summed in any order, blocked or
  not, with or without fused multiply-add. Strassen-like products, TF32 and split-float modes violate this;
* triangular solves inside the Cholesky factorization of LAPACK are substitutions; a division by a pivot may be a
  multiplication by its rounded reciprocal. The inversion of whole diagonal blocks violates this.

Scalars are Python floats. Each operation is rounded outward by one ulp with :func:`math.nextafter`: the exact value of
a correctly rounded operation lies between the two neighbours of its result.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]

U = 2.0**-53
"""Unit roundoff of binary64 in rounding to nearest: half the spacing of the floats in [1, 2) (IEEE 754)."""

OMEGA = 2.0**-1022
"""Smallest normal binary64 number: bounds the loss by underflow in one operation, flushed to zero or not."""


def _up(x: float) -> float:
    return math.nextafter(x, math.inf)


def _down(x: float) -> float:
    return math.nextafter(x, -math.inf)


def add_up(*terms: float) -> float:
    """Return a float that is at least the exact sum of ``terms``.

    Examples
    --------
    >>> add_up(1.0, 2.0**-60) > 1.0
    True
    """
    total = 0.0
    for term in terms:
        total = _up(total + term) if total and term else total + term  # adding zero is exact
    return total


def sub_down(x: float, *terms: float) -> float:
    """Return a float that is at most ``x`` minus the exact sum of ``terms``."""
    for term in terms:
        x = _down(x - term) if term else x
    return x


def mul_up(*factors: float) -> float:
    """Return a float that is at least the exact product of the non-negative ``factors``."""
    product = 1.0
    for factor in factors:
        product = _up(product * factor) if product and factor else product * factor
    return product


def mul_down(x: float, y: float) -> float:
    """Return a non-negative float that is at most the exact product of two non-negative floats."""
    return max(0.0, _down(x * y))


def div_up(x: float, y: float) -> float:
    """Return a float that is at least ``x / y`` for ``x >= 0``; infinity unless ``y > 0``."""
    if not y > 0.0:
        return math.inf
    return _up(x / y) if x else 0.0


def div_down(x: float, y: float) -> float:
    """Return a non-negative float that is at most ``x / y`` for ``x >= 0``; zero unless ``y > 0`` is finite."""
    return max(0.0, _down(x / y)) if 0.0 < y < math.inf else 0.0


def sqrt_up(x: float) -> float:
    """Return a float that is at least the square root of ``x``; NaN and negative numbers give infinity."""
    return _up(math.sqrt(x)) if x >= 0.0 else math.inf


def sqrt_down(x: float) -> float:
    """Return a non-negative float that is at most the square root of ``x``; zero for NaN and negative numbers."""
    return max(0.0, _down(math.sqrt(x))) if 0.0 <= x < math.inf else 0.0


def scale_up(x: float, exponent: int) -> float:
    """Return a float that is at least ``x * 2**exponent`` for ``x >= 0``: exact unless it under- or overflows."""
    if not x > 0.0:
        return x
    if x == math.inf or math.frexp(x)[1] + exponent > 1024:
        return math.inf
    scaled = math.ldexp(x, exponent)
    return scaled if scaled >= OMEGA else _up(scaled)


def scale_down(x: float, exponent: int) -> float:
    """Return a non-negative float that is at most ``x * 2**exponent`` for ``x >= 0``; zero for infinity and NaN."""
    if not 0.0 < x < math.inf or math.frexp(x)[1] + exponent > 1024:
        return 0.0
    scaled = math.ldexp(x, exponent)
    return scaled if scaled >= OMEGA else max(0.0, _down(scaled))


def gamma(k: int) -> float:
    """Return an upper bound of ``gamma_k = k u / (1 - k u)``, infinity for large k.

    A product of ``k`` factors ``1 + d_i``, ``|d_i| <= u`` (or their reciprocals), is ``1 + t`` with ``|t| <=
    gamma_k``: N. J. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., SIAM 2002, Lemma 3.1.
    The error of an inner product of k terms, in any order, is therefore at most ``gamma_k |x|^T |y|`` (section 3.1,
    eq. (3.5)) plus underflow.

    Examples
    --------
    >>> gamma(1) >= 2.0**-53
    True
    >>> gamma(2**53)
    inf
    """
    if not 0 <= k < 2**51:
        return math.inf
    ku = k * U  # exact: k has fewer than 53 bits
    return div_up(ku, _down(1.0 - ku))


def sum_up(terms: FloatArray) -> float:
    """Return an upper bound of the exact sum of non-negative ``terms``, for every order of summation.

    ``fl(sum) >= (1 - gamma_{n-1}) sum - n OMEGA`` for non-negative terms (Higham, section 4.2).
    """
    n = int(terms.size)
    with np.errstate(all="ignore"):
        computed = float(np.sum(terms))
    if not computed < math.inf:
        return math.inf  # for NaN too
    return div_up(add_up(computed, mul_up(n, OMEGA)), sub_down(1.0, gamma(n)))


def square_sums_up(A: FloatArray, axis: int) -> FloatArray:
    """Return upper bounds of the squared 2-norms of the rows (``axis=1``) or columns (``axis=0``) of ``A``.

    The inflation is that of :func:`sum_up`, with n the length of the sums; NaN becomes infinity.

    Examples
    --------
    >>> import numpy as np
    >>> bool(square_sums_up(np.array([[3.0, 4.0]]), 1)[0] >= 25.0)
    True
    """
    n = int(A.shape[axis])
    factor = div_up(1.0, sub_down(1.0, gamma(n)))
    with np.errstate(all="ignore"):
        sums: FloatArray = np.einsum("ij,ij->i" if axis else "ij,ij->j", A, A)
        bound = np.nextafter(np.nextafter(sums + mul_up(n, OMEGA), np.inf) * factor, np.inf)
    return np.where(bound < np.inf, bound, np.inf)


def frobenius_up(A: FloatArray) -> float:
    """Return an upper bound of the Frobenius norm of ``A``, hence of its spectral norm."""
    return sqrt_up(sum_up(square_sums_up(A, 1)))


def norm_up(x: FloatArray) -> float:
    """Return an upper bound of the 2-norm of a vector."""
    return frobenius_up(x[None, :])


def norm_down(x: FloatArray) -> float:
    """Return a non-negative lower bound of the 2-norm of a vector.

    ``fl(x^T x) <= (1 + gamma_n) x^T x + n OMEGA``; the result is zero, a valid bound, after an overflow and for NaN.
    """
    n = int(x.size)
    with np.errstate(all="ignore"):
        square = float(np.dot(x, x))
    if not square < math.inf:
        return 0.0
    return sqrt_down(div_down(max(0.0, sub_down(square, mul_up(n, OMEGA))), add_up(1.0, gamma(n))))
