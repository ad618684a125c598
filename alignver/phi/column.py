r"""One column of tiles of a Cholesky factor, in the making: the functions that threads, a GPU and a cluster all call.

A piece of the column is assembled from rows of Z and T and reduced by the finished columns; the diagonal tile is
factored; every piece below it is solved with the factor. The bound of :mod:`alignver.phi.cholesky` counts roundings
in exactly these steps, whoever takes them and wherever.

On NumPy arrays the triangular solve is BLAS's. On other arrays it is written out below: the solves of GPU libraries
invert diagonal blocks, which is no substitution, and no bound for inner products covers it. The diagonal tile is
factored by LAPACK on the host for the same reason: it is one tile of many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, lapack

from alignver.arrays import Array, host, like, namespace
from alignver.phi.hadamard import Hadamard
from alignver.phi.tiles import Store
from alignver.proof.rounding import FloatArray

__all__ = ["CHUNK", "Column", "factored", "solved"]

CHUNK = 1024  # rows of a product that is made at a time, so that it is still in the cache when it is subtracted
_STEP = 32  # columns of a solve that are written out one by one: the rest of it is matrix products


@dataclasses.dataclass(frozen=True)
class Column:
    """A tile column that is to be made.

    Attributes
    ----------
    gram : Hadamard
    total : float
        Subtracted from the diagonal.
    tile, index : int
        Columns in a tile, and which tile column this is.
    store : Store
        The finished tile columns, each from its own diagonal tile down.
    """

    gram: Hadamard
    total: float
    tile: int
    index: int
    store: Store

    @property
    def start(self) -> int:
        """The first row and column of its diagonal tile."""
        return self.index * self.tile

    @property
    def stop(self) -> int:
        """The end of its diagonal tile."""
        return min(self.start + self.tile, self.end)

    @property
    def end(self) -> int:
        """The end of the column: the order of the matrix."""
        return int(self.gram.Z.shape[0])

    def pieces(self, rows: int = CHUNK) -> list[slice]:
        """Return the diagonal tile's rows, then those below, ``rows`` at a time."""
        below = [slice(top, min(top + rows, self.end)) for top in range(self.stop, self.end, rows)]
        return [slice(self.start, self.stop), *below]

    def reduction(self) -> Callable[[slice], Array]:
        """Return what assembles a piece and subtracts its products with the finished columns.

        The products of each finished column are summed on their own first, as the bound wants it.
        """
        own = slice(self.start, self.stop)
        offsets = [k * self.tile for k in range(self.index)]
        done = [self.store[k] for k in range(self.index)]
        across = [column[own.start - at : own.stop - at, :] for column, at in zip(done, offsets)]
        rights = [(np.ascontiguousarray(rows) if isinstance(rows, np.ndarray) else rows).T for rows in across]

        def reduced(rows: slice) -> Array:
            part = self.gram.tile(rows, own)
            if rows.start == own.start:
                part = _lowered(part, self.total)
            product = None
            for column, at, right in zip(done, offsets, rights):
                product = _product(column[rows.start - at : rows.stop - at, :], right, product)
                part -= product
            return part

        return reduced


def factored(tile: Array) -> Array | int:
    """Return the lower triangular factor of a reduced diagonal tile, or the row where a pivot is not positive and
    finite.
    """
    # Row-major lower triangles are LAPACK's upper ones.
    factor, info = lapack.dpotrf(np.ascontiguousarray(host(tile)).T, lower=0, clean=1, overwrite_a=0)
    pivots = np.diagonal(factor)
    good = (pivots > 0) & (pivots < np.inf)
    if info != 0 or not bool(np.all(good)):
        return int(info) - 1 if info > 0 else int(np.argmin(good))
    lower = np.ascontiguousarray(factor.T)
    return lower if isinstance(tile, np.ndarray) else like(lower, tile)


def solved(part: Array, lower: Array) -> Array:
    """Return X with X L^T = C for a piece C that may be overwritten."""
    if not isinstance(part, np.ndarray):
        return _substituted(part, lower)
    for top in range(0, part.shape[0], CHUNK):
        rows = part[top : top + CHUNK]
        # L X^T = C^T: C^T is the Fortran-ordered view of C.
        below = blas.dtrsm(1.0, lower.T, rows.T, side=0, lower=0, trans_a=1, overwrite_b=1)
        if not np.shares_memory(below, rows):
            rows[:] = below.T
    return part


def _substituted(part: Array, lower: Array) -> Array:
    r"""Solve by substitution, in products, differences and quotients only.

    .. math:: x_c = (c_c - X_{<s} l_{c,<s} - X_{s \ldots c-1} l_{c, s \ldots c-1}) / l_{cc}

    with s the first column of the step that c is in. Two subtractions in turn, at most b roundings in each sum; the
    quotient, or the product with a rounded reciprocal, 2: no more than the bound counts for LAPACK's solve.
    """
    width, rows = int(lower.shape[0]), int(part.shape[0])
    x = like(np.zeros((min(_STEP, width), rows)), part)  # the columns of a step, each of them contiguous
    for low in range(0, width, _STEP):
        high = min(low + _STEP, width)
        own = lower[low:high, low:high]
        x[: high - low, :] = part[:, low:high].T
        if low:
            x[: high - low, :] -= lower[low:high, :low] @ part[:, :low].T
        for c in range(high - low):
            if c:
                x[c, :] -= own[c, :c] @ x[:c, :]
            x[c, :] /= own[c, c]
        part[:, low:high] = x[: high - low, :].T
    return part


def _product(left: Array, right: Array, into: Array | None) -> Array:
    if isinstance(left, np.ndarray):
        # Memory that was just used is still mapped, and in the cache.
        if into is None:
            into = np.empty((left.shape[0], right.shape[1]))
        return np.matmul(left, right, out=into)
    return left @ right


def _lowered(tile: Array, total: float) -> Array:
    """Return the tile with ``total`` taken off its diagonal, rounded down: on the host, whose arithmetic is known."""
    xp = namespace(tile)
    diagonal: FloatArray = host(xp.linalg.diagonal(tile))
    lowered = np.nextafter(diagonal - total, -np.inf)
    if isinstance(tile, np.ndarray):
        tile.flat[:: tile.shape[1] + 1] = lowered
        return tile
    return xp.where(like(np.eye(lowered.size), tile) > 0.0, like(lowered[:, None], tile), tile)
