"""Tile columns on a GPU, or in any array namespace; and what has to be seen of its arithmetic first.

Assumed, and tried before anything is believed: float64 operations round to nearest with gradual underflow, and a
matrix product is made of inner products, in any order, with or without fused multiply-add. Strassen-like products and
float64 emulated in fixed point or in narrower floats are no such thing: what they lose is relative to the largest
entries of a row, and shows where a product has one term only.
"""

from __future__ import annotations

import os

import numpy as np

from alignver.arrays import Array, host, like, namespace
from alignver.phi.column import Column, factored, solved
from alignver.proof.rounding import OMEGA, U

__all__ = ["distrust", "make"]

_ROWS = 8192  # of a piece: enough to keep a device busy, and 64 MiB
_EMULATION = "CUBLAS_EMULATE_DOUBLE_PRECISION"  # cuBLAS 13: float64 products from 8-bit integers


def make(column: Column) -> Array | int:
    """Make a tile column on the device that its Gram matrix is on, one piece after the other."""
    pieces = column.pieces(_ROWS)
    reduced = column.reduction()
    lower = factored(reduced(pieces[0]))
    if isinstance(lower, int):
        return lower
    below = [solved(reduced(rows), lower) for rows in pieces[1:]]
    return namespace(lower).concat([lower, *below], axis=0)


def distrust(place: Array, order: int) -> str:
    """Return why no proof can rest on the arithmetic where ``place`` is; nothing if there is no reason.

    Parameters
    ----------
    place : array
        Of the namespace and on the device in question.
    order : int
        Of the products that will be made: libraries choose their algorithms by size.

    Examples
    --------
    >>> import numpy as np
    >>> distrust(np.empty(0), 16)
    ''
    """
    if os.environ.get(_EMULATION, "0") not in {"", "0"}:
        return f"{_EMULATION} is set: products of float64 matrices may be emulated, and then no bound covers them"
    above = U * (1 + 2.0**-20)
    sums = like([1.0, 1.0, 1.0, -1.0, -1.0], place) + like([U, above, -U / 2, -above, U / 2], place)
    nearest = np.array_equal(host(sums), [1.0, 1.0 + 2 * U, 1.0, -(1.0 + 2 * U), -1.0])
    if not nearest or not float(host(like([OMEGA], place) * 0.5)[0]) > 0.0:
        return "the device does not round to nearest with gradual underflow"
    return "" if _multiplies_plainly(place, order) else "the device does not make products from float64 inner products"


def _multiplies_plainly(place: Array, order: int) -> bool:
    """Multiply a matrix with small entries beside large ones by a permutation of the small ones: exact, if entry by
    entry.
    """
    half = (order + 1) // 2
    source = np.random.default_rng(0)
    left = source.uniform(1.0, 2.0, (order, 2 * half))
    left[:, half:] *= 2.0**-40
    right = np.zeros((2 * half, half))
    right[half + source.permutation(half), np.arange(half)] = 1.0
    exact = left[:, half:][:, np.argmax(right[half:], axis=0)]
    return bool(np.array_equal(host(like(left, place) @ like(right, place)), exact))
