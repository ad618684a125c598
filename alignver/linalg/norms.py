"""Norms of large matrices without large temporaries, and the largest singular value of an operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.arrays import Array, blocks, like, namespace

__all__ = [
    "extreme_scale",
    "largest_singular_value",
    "norm",
    "power_of_two",
    "row_sum_norm",
    "spectral_norm",
    "start_vector",
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
