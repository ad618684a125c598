r"""Reduction of a matrix to a smaller one with the same column space and singular values.

By unpivoted QR. For N x d with d > N, J^T = Q R gives J = R^T Q^T and Col(J) = Col(R^T). For
N > d, [J y] = Q R gives the coordinates of y in Col(J) and the norm of its remainder. Both R are streamed: one bounded
block of J is processed at a time, and J is never copied as a whole. QR is by Householder reflections, so no condition
number is squared: the backward error is a modest multiple of eps ||J||, column by column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from alignver.arrays import Array, namespace, on_host
from alignver.progress import track

_ASPECT = 1.2  # from this ratio of the sides on, QR first is cheaper than the decomposition of the matrix as it is
_HEIGHT = 4  # rows of a block per column: stacking R costs 1/_HEIGHT more operations, and a block is small beside J


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A small problem equivalent to 'is y in Col(J)'.

    Attributes
    ----------
    matrix : (p, q) Array
        Has the non-zero singular values of J.
    target : (p,) Array or None
        The coordinates of y; None without a target.
    leftover : float
        Norm of the component of y that is orthogonal to the one that ``target`` describes.
    """

    matrix: Array
    target: Array | None
    leftover: float


def reduce(matrix: Array, target: Array | None) -> Reduced:
    """Reduce 'is y in Col(J)' to a matrix with about min(N, d) rows and columns.

    Parameters
    ----------
    matrix : (N, d) float64
        In the memory of a CPU, it is factored by LAPACK through SciPy, several times faster than torch's calls of it.
    target : (N,) float64 or None
    """
    matrix, target = on_host(matrix), None if target is None else on_host(target)
    xp = namespace(matrix)
    n, d = (int(size) for size in matrix.shape)
    if d > _ASPECT * n:
        r = streamed_r(_slices(matrix, n, axis=1), n, "QR of the transposed matrix")
        return Reduced(xp.matrix_transpose(r), target, 0.0)
    if n > _ASPECT * d:
        if target is None:
            return Reduced(streamed_r(_slices(matrix, d, axis=0), d, "QR of the matrix"), None, 0.0)
        strips = zip(_slices(matrix, d, axis=0), _slices(xp.reshape(target, (n, 1)), d, axis=0))
        r = streamed_r((xp.concat(pair, axis=1) for pair in strips), d + 1, "QR of the matrix and its target")
        leftover = abs(float(r[d, d])) if int(r.shape[0]) > d else 0.0
        return Reduced(r[:d, :d], r[:d, d], leftover)
    return Reduced(matrix, target, 0.0)


def _slices(matrix: Array, narrow: int, axis: int) -> list[Array]:
    """Return views of tall blocks with ``narrow`` columns, transposed if ``axis`` is 1."""
    xp = namespace(matrix)
    length, step = int(matrix.shape[axis]), max(_HEIGHT * narrow, 1024)
    cuts = [slice(start, min(start + step, length)) for start in range(0, length, step)]
    return [xp.matrix_transpose(matrix[:, cut]) if axis == 1 else matrix[cut, :] for cut in cuts]


def streamed_r(blocks: Iterable[Array], columns: int, label: str = "streamed QR") -> Array:
    """Return the triangular factor R of the QR factorization of stacked row blocks, one block in memory at a time.

    R is ``min(rows, columns) x columns``, unique up to the signs of its rows. Memory: R and one block twice.

    Parameters
    ----------
    blocks : iterable of (b_i, columns) float64 arrays
    columns : int

    Examples
    --------
    >>> rows = np.arange(12.0).reshape(6, 2) ** 2
    >>> r = streamed_r([rows[:3], rows[3:]], 2)
    >>> bool(np.allclose(r.T @ r, rows.T @ rows))
    True
    """
    r: Array | None = None
    for block in track(blocks, label):
        xp = namespace(block)
        if isinstance(block, np.ndarray):
            r = _lapack_r(block, r)
        else:
            stacked = block if r is None else xp.concat((r, block), axis=0)
            r = xp.linalg.qr(stacked, mode="reduced")[1]
    if r is None:
        raise ValueError("no blocks")
    return r


def _lapack_r(block: np.ndarray, r: np.ndarray | None) -> np.ndarray:
    """Return R of [r; block] by dgeqrf in one Fortran-ordered array; numpy.linalg.qr would make two more copies."""
    from scipy.linalg import lapack

    above = 0 if r is None else r.shape[0]
    work = np.empty((above + block.shape[0], block.shape[1]), order="F")
    if r is not None:
        work[:above] = r
    work[above:] = block
    lwork = int(lapack.dgeqrf_lwork(*work.shape)[0])
    factored, _, _, info = lapack.dgeqrf(work, lwork=lwork, overwrite_a=True)
    if info != 0:
        raise RuntimeError(f"dgeqrf: info={info}")
    return np.triu(factored[: min(work.shape)])
