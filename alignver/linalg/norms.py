r"""Norms of large matrices: exact sums by blocks, power iteration, and randomized estimates with error bars.

:func:`hutchpp` estimates the squared Frobenius norm of a symmetric matrix D from products with a few random vectors. It
is the estimator of Hutchinson with reduced variance: for any Q with orthonormal columns,

.. math:: \|D\|_F^2 = \|D Q\|_F^2 + \|D (I - Q Q^\top)\|_F^2

The first term is computed. The second is the mean of :math:`\|D (I - Q Q^\top) g\|^2` over standard normal g; the
variance of one term is :math:`2 \|A^\top A\|_F^2`, :math:`A = D (I - Q Q^\top)` (H. Avron, S. Toledo, J. ACM 58 (2011),
Lemma 9). Q spans the image of other random vectors under D, so the second term is small if D has only a few large
eigenvalues (R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA
2021).

The interval has at least its confidence for every D and any number of vectors; it uses no sample variance. With weights
w >= 0 of sum 1, the mean of p terms, divided by what it estimates, is :math:`\sum_i w_i X_i` with independent
:math:`X_i \sim \chi^2_p / p`. Differentiating its Laplace transform,

.. math:: (\partial_{w_1} - \partial_{w_2})\, P\Big(\sum_i w_i X_i \le t\Big) = \tfrac{2}{p} (w_1 - w_2) f'(t)

with the density f of :math:`\sum_i w_i X_i + w_1 E_1 + w_2 E_2`, E exponential of mean 2/p. Its mode is between 1 and
1 + 1/p, so the lower tail below 1 and the upper tail above 1 + 1/p are largest for a single weight: at most those of
:math:`\chi^2_p / p` (F. Roosta-Khorasani, G. J. Szekely, U. M. Ascher, SIAM/ASA J. Uncertainty Quantification 3 (2015)
61-90). The worst case is a remainder of rank one, for which the interval is exact.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from alignver.arrays import Array, blocks, like, namespace

Matrix = npt.NDArray[np.float64]

_PRODUCTS, _CHANGE = 60, 1e-6  # of power iteration


def row_sum_norm(matrix: Array) -> float:
    """Return ||A||_inf = max_i sum_j |a_ij|, a block of rows at a time."""
    xp = namespace(matrix)
    return max(float(xp.max(xp.sum(xp.abs(block), axis=1))) for _, block in blocks(matrix, axis=0))


def power_of_two(array: Array) -> float:
    """Return the power of two 2^e with 2^e <= max|a_ij| < 2^(e+1); 1.0 for a zero array.

    Division by it is exact: no entry overflows, and only entries below 2^-1022 of the largest underflow. It brings
    sums of squares into range. The exponent is clipped to the normal range so that its reciprocal is finite.
    """
    xp = namespace(array)
    largest = max((float(xp.max(xp.abs(block))) for _, block in blocks(array, axis=0)), default=0.0)
    if largest == 0.0:
        return 1.0
    return math.ldexp(1.0, min(max(math.frexp(largest)[1] - 1, -1021), 1021))


def extreme_scale(array: Array) -> float:
    """Return the power of two to divide by if squares could overflow or underflow, otherwise 1.0.

    No division is needed for max|a_ij| in [2^-400, 2^400]: sums of up to 2^200 squares then stay inside the range of
    float64, and entries whose squares underflow are below 2^-100 of the largest.
    """
    unit = power_of_two(array)
    return 1.0 if 2.0**-400 <= unit <= 2.0**400 else unit


def norm(vector: Array) -> float:
    """Return ||v||_2, scaled by a power of two so that no square overflows or underflows."""
    xp = namespace(vector)
    scale = extreme_scale(vector)
    return float(xp.linalg.vector_norm(vector if scale == 1.0 else vector / scale)) * scale


def spectral_norm(operator: Any, vector: Array) -> float:
    """Estimate s_1 = ||A||_2 from below by power iteration on A A^T.

    NUMERICAL: every estimate of the iteration is a Rayleigh quotient, hence at most s_1 up to rounding. It sets the
    scale of a tolerance, where a few per cent do not matter, and is never used as a bound. The iteration stops after 60
    products, or when the estimate grows by less than 1e-6 of itself.

    Parameters
    ----------
    operator : object with matvec and rmatvec
    vector : (N,) float64
        The start vector; not modified.
    """
    size = norm(vector)
    estimate = 0.0
    for _ in range(_PRODUCTS):
        if size == 0.0:
            return estimate
        vector = vector / size
        image = operator.rmatvec(vector)
        previous, estimate = estimate, norm(image)
        if estimate <= previous * (1 + _CHANGE):
            break
        vector = operator.matvec(image)
        size = norm(vector)
    return estimate


def start_vector(length: int) -> Matrix:
    """Return a fixed start vector for iterations; no random generator of the caller is used or changed."""
    return np.random.default_rng(20220801).standard_normal(length)


def largest_singular_value(matrix: Array) -> float:
    """Estimate s_1 of a matrix from below, as :func:`spectral_norm` does, from a fixed start vector."""
    xp = namespace(matrix)
    transposed = xp.matrix_transpose(matrix)

    class Products:
        matvec = staticmethod(lambda v: matrix @ v)
        rmatvec = staticmethod(lambda v: transposed @ v)

    return spectral_norm(Products, like(start_vector(int(matrix.shape[0])), matrix))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate of a squared Frobenius norm from random vectors.

    Attributes
    ----------
    value : float
        The estimate; unbiased.
    standard_error : float
        From the spread of the terms; the interval does not depend on it.
    interval : (float, float)
        Contains the exact value with at least the requested confidence.
    computed : float
        The part of the value that is computed, not estimated.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    computed: float


def vectors(N: int, products: int, seed: int) -> tuple[Matrix, Matrix]:
    """Draw standard normal vectors, (N, k) for the basis and (N, p) for the remainder; 2 k + p products in all.

    Examples
    --------
    >>> [part.shape for part in vectors(5, 10, seed=0)]
    [(5, 3), (5, 4)]
    """
    k = min(products // 3, N)
    both = np.random.default_rng(seed).standard_normal((N, products - k))
    return np.ascontiguousarray(both[:, :k]), np.ascontiguousarray(both[:, k:])


def basis(images: Matrix) -> Matrix:
    """Return Q, whose orthonormal columns span the given ones (D times the first vectors)."""
    return np.asarray(np.linalg.qr(images)[0])


def hutchpp(Q: Matrix, DQ: Matrix, G: Matrix, DG: Matrix, *, confidence: float) -> Estimate:
    """Estimate the squared Frobenius norm of D from its products with Q and with the vectors G of :func:`vectors`.

    ``D (I - Q Q^T) G`` is ``DG - DQ (Q^T G)``, so D G can be computed before Q is known.

    Examples
    --------
    >>> D = np.diag([100.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    >>> S, G = vectors(6, 9, seed=0)
    >>> Q = basis(D @ S)
    >>> low, high = hutchpp(Q, D @ Q, G, D @ G, confidence=0.95).interval
    >>> low < 100.0**2 + 5.0 < high, high / low < 1.1
    (True, True)
    """
    p = G.shape[1]
    terms = np.square(DG - DQ @ (Q.T @ G)).sum(axis=0)
    computed, rest = float(np.square(DQ).sum()), float(terms.mean())
    tail = (1.0 - confidence) / 2.0
    high, low = (2.0 * float(gammaincinv(p / 2.0, q)) / p for q in (1.0 - tail, tail))  # quantiles of chi^2_p / p
    error = float(terms.std(ddof=1)) / math.sqrt(p)
    return Estimate(computed + rest, error, (computed + rest / high, computed + rest / low), computed)
