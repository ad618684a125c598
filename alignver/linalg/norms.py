r"""Norms of large matrices without large temporaries, and the largest singular value of an operator.

The squared Frobenius norm of a symmetric matrix from its products with a few random vectors, with error bars.

Hutchinson's estimator with its variance reduced: for any Q with orthonormal columns,

.. math:: \|D\|_F^2 = \|D Q\|_F^2 + \|D (I - Q Q^\top)\|_F^2

The first part is computed. The second is the mean of :math:`\|D (I - Q Q^\top) g\|^2` over standard normal g; the
variance of one term is :math:`2 \|A^\top A\|_F^2`, :math:`A = D (I - Q Q^\top)` (H. Avron, S. Toledo, J. ACM 58 (2011),
Lemma 9). Q spans the image of D on other random vectors, so that little is left to chance where D has a few large
eigenvalues (R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA
2021).

The interval holds at its confidence for every D and any number of vectors; no sample variance enters it. With weights
w >= 0 of sum 1, the mean of p terms, divided by what it estimates, is :math:`\sum_i w_i X_i` with independent
:math:`X_i \sim \chi^2_p / p`. Differentiating its Laplace transform,

.. math:: (\partial_{w_1} - \partial_{w_2})\, P\Big(\sum_i w_i X_i \le t\Big) = \tfrac{2}{p} (w_1 - w_2) f'(t)

with the density f of :math:`\sum_i w_i X_i + w_1 E_1 + w_2 E_2`, E exponential of mean 2/p. Its mode is between 1 and
1 + 1/p, so that below the one and above the other either tail is largest for a single weight: it is at most that of
:math:`\chi^2_p / p` (F. Roosta-Khorasani, G. J. Szekely, U. M. Ascher, SIAM/ASA J. Uncertainty Quantification 3 (2015)
61-90). D of rank one left over is the worst case, and there the interval is exact.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from alignver.arrays import Array, blocks, like, namespace

__all__ = [
    "Estimate",
    "basis",
    "extreme_scale",
    "hutchpp",
    "largest_singular_value",
    "norm",
    "power_of_two",
    "row_sum_norm",
    "spectral_norm",
    "start_vector",
    "vectors",
]
_PRODUCTS, _CHANGE = 60, 1e-6  # of power iteration


def row_sum_norm(matrix: Array) -> float:
    """Return ||A||_inf = max_i sum_j |a_ij|, a block of rows at a time."""
    xp = namespace(matrix)
    return max(float(xp.max(xp.sum(xp.abs(block), axis=1))) for _, block in blocks(matrix, axis=0))


def power_of_two(array: Array) -> float:
    """Return the power of two 2^e with 2^e <= max|a_ij| < 2^(e+1); 1.0 for a zero array.

    Dividing by it is exact (no entry can overflow, and what underflows is below 2^-1022 of the largest entry), and
    brings sums of squares into range. The exponent is clipped to the normal range so that its reciprocal is finite.
    """
    xp = namespace(array)
    largest = max((float(xp.max(xp.abs(block))) for _, block in blocks(array, axis=0)), default=0.0)
    if largest == 0.0:
        return 1.0
    return math.ldexp(1.0, min(max(math.frexp(largest)[1] - 1, -1021), 1021))


def extreme_scale(array: Array) -> float:
    """Return 1.0 for ordinary entries, and the power of two to divide by where squares could overflow or underflow.

    Ordinary is max|a_ij| in [2^-400, 2^400]: sums of up to 2^200 squares then stay inside the range of float64, and
    entries whose squares underflow are below 2^-100 of the largest.
    """
    unit = power_of_two(array)
    return 1.0 if 2.0**-400 <= unit <= 2.0**400 else unit


def norm(vector: Array) -> float:
    """Return ||v||_2 without overflow or underflow in the squares (scaled by a power of two)."""
    xp = namespace(vector)
    scale = extreme_scale(vector)
    return float(xp.linalg.vector_norm(vector if scale == 1.0 else vector / scale)) * scale


def spectral_norm(operator: Any, vector: Array) -> float:
    """Estimate s_1 = ||A||_2 from below by power iteration on A A^T, from the given start (length N).

    NUMERICAL: every value that the iteration takes is a Rayleigh quotient, so it is at most s_1 (up to rounding); it
    sets the scale of a tolerance, where a few per cent do not matter, and never a bound. It stops after 60 products, or
    when the estimate grows by less than a millionth.

    Parameters
    ----------
    operator : object with matvec and rmatvec
    vector : (N,) float64
        The start; not modified.
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


def start_vector(length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a fixed start for iterations that must not draw on, or disturb, anybody's random numbers."""
    values: np.ndarray[Any, np.dtype[np.float64]] = np.random.default_rng(20220801).standard_normal(length)
    return values


def largest_singular_value(matrix: Array) -> float:
    """Estimate s_1 of a matrix from below, as :func:`spectral_norm` does, from a fixed start."""
    xp = namespace(matrix)
    transposed = xp.matrix_transpose(matrix)

    class Products:
        matvec = staticmethod(lambda v: matrix @ v)
        rmatvec = staticmethod(lambda v: transposed @ v)

    return spectral_norm(Products, like(start_vector(int(matrix.shape[0])), matrix))


Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A squared Frobenius norm as random vectors show it.

    Attributes
    ----------
    value : float
        The estimate; its mean is the truth.
    standard_error : float
        From the spread of the terms; not what the interval is made of.
    interval : (float, float)
        Holds the truth with at least the confidence asked for.
    computed : float
        The part of the value that is left to no chance.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    computed: float


def vectors(N: int, products: int, seed: int) -> tuple[Matrix, Matrix]:
    """Draw standard normal vectors (N, k) and (N, p): for a basis, and for the rest; k + k + p products in all.

    Examples
    --------
    >>> [part.shape for part in vectors(5, 10, seed=0)]
    [(5, 3), (5, 4)]
    """
    k = min(products // 3, N)
    both = np.random.default_rng(seed).standard_normal((N, products - k))
    return np.ascontiguousarray(both[:, :k]), np.ascontiguousarray(both[:, k:])


def basis(images: Matrix) -> Matrix:
    """Return orthonormal columns that span the given ones, D times the first vectors: Q."""
    return np.asarray(np.linalg.qr(images)[0])


def hutchpp(Q: Matrix, DQ: Matrix, G: Matrix, DG: Matrix, *, confidence: float) -> Estimate:
    """Estimate the squared Frobenius norm of D from its products with Q and with the vectors G of :func:`vectors`.

    ``D (I - Q Q^T) G`` is ``DG - DQ (Q^T G)``: G need not wait for Q.

    Examples
    --------
    >>> D = np.diag([100.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    >>> S, G = vectors(6, 9, seed=0)
    >>> Q = basis(D @ S)
    >>> found = estimate(Q, D @ Q, G, D @ G, confidence=0.95)
    >>> found.interval[0] < 100.0**2 + 5.0 < found.interval[1], found.interval[1] / found.interval[0] < 1.1
    (True, True)
    """
    p = G.shape[1]
    terms = np.square(DG - DQ @ (Q.T @ G)).sum(axis=0)
    computed, rest = float(np.square(DQ).sum()), float(terms.mean())
    tail = (1.0 - confidence) / 2.0
    high, low = (2.0 * float(gammaincinv(p / 2.0, q)) / p for q in (1.0 - tail, tail))  # quantiles of chi^2_p / p
    error = float(terms.std(ddof=1)) / math.sqrt(p)
    return Estimate(computed + rest, error, (computed + rest / high, computed + rest / low), computed)
