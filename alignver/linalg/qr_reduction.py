r"""Reduction of a matrix to a smaller one with the same column space and singular values.

**By unpivoted QR** (:func:`reduce`). For N x d with d > N, J^T = Q R gives J = R^T Q^T and Col(J) = Col(R^T). For
N > d, [J y] = Q R gives the coordinates of y in Col(J) and the norm of its remainder. Both R are streamed: one bounded
block of J is processed at a time, and J is never copied as a whole. QR is by Householder reflections, so no condition
number is squared: the backward error is a modest multiple of eps ||J||, column by column.

**By matrix products** (:func:`preconditioned_factor`). The Gram matrix :math:`W W^\top` of an N x p matrix squares
its condition number: singular values below :math:`\sqrt{\varepsilon} s_1` are lost. A rotation of the rows beforehand
preserves them. With orthogonal V from an eigendecomposition of the Gram matrix, the rows of :math:`W_1 = V^\top W` are
nearly orthogonal, even if their norms differ widely, so

.. math:: W_1 = D C^{1/2} Q^\top, \qquad D = \mathrm{diag}(\|w_k\|), \quad C_{kl} = w_k^\top w_l / (\|w_k\| \|w_l\|)

with a well-conditioned C. Then :math:`T = V D L` with :math:`L L^\top = C` replaces W, since
:math:`T T^\top = W W^\top`.

Errors. The error of :math:`\mathrm{fl}(V^\top W)` is at most :math:`\gamma_N \|W\|_F` in norm, as for every backward
stable decomposition. The error of each product :math:`w_k^\top w_l` is at most :math:`\gamma_p \|w_k\| \|w_l\|`, that
of C thus :math:`N \gamma_p` in norm, which changes every singular value of D L by a *relative* amount of about
:math:`N \gamma_p / \lambda_{\min}(C)` at most (Demmel & Veselic 1992, Theorem 2.14, for one-sided Jacobi; the same
holds for the matrices here). The direction of a row whose norm is of the order of the rounding error of the first step
is arbitrary, and is not used. If C is not well conditioned, the rotation is refined by the left singular vectors of T;
after three refinements Householder QR is used.

A better start. With the left singular vectors V of a sketch W S with a few N random columns, one sweep is enough. A
sketch that embeds the row space preserves :math:`\|x^\top W\|` up to a factor :math:`1 \pm \delta` for every x, however
small it is (Woodruff, Sketching as a Tool for Numerical Linear Algebra, 2014, Section 2.1). The rows of
:math:`V^\top W S` are orthogonal, so the eigenvalues of C lie between :math:`((1 - \delta) / (1 + \delta))^{\pm 2}`.

Operations: :math:`4 N^2 p` per sweep, all in matrix products, compared with :math:`2 N^2 p` for a QR whose panels are
limited by memory bandwidth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from alignver.arrays import Array, namespace, on_host
from alignver.progress import track

__all__ = ["Reduced", "preconditioned_factor", "reduce", "streamed_r"]

FloatArray = npt.NDArray[np.float64]

_ASPECT = 1.2  # from this ratio of the sides on, QR first is cheaper than the decomposition of the matrix as it is
_HEIGHT = 4  # rows of a block per column: stacking R costs 1/_HEIGHT more operations, and a block is small beside J
_SWEEPS = 4
# With lambda_min(C) above this, N gamma_p / lambda_min stays below 1e-5 for N p up to 1e8: more digits than a tolerance
# that varies by a factor of ten requires.
_CONDITIONED = 1e-3


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


def preconditioned_factor(W: FloatArray, start: FloatArray | None = None) -> FloatArray:
    r"""Return T (N x N) with :math:`T T^\top = W W^\top` and the singular values of W to :math:`O(\varepsilon s_1)`.

    Parameters
    ----------
    W : (N, p) float64
        Finite, N <= p; squares of the entries neither overflow nor underflow.
    start : (N, N) float64, optional
        Orthogonal V of the first sweep: the result is the same up to rounding, and a good choice saves sweeps. The
        default is from the Gram matrix.

    Returns
    -------
    (N, N) float64
        Same column space and singular values as W, up to a perturbation of W of the order of eps ||W||.

    Notes
    -----
    Rigor: floating-point; the error analysis is in the module's docstring.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> W = np.diag(10.0 ** -np.arange(0, 14, 2)) @ rng.standard_normal((7, 90))
    >>> T = preconditioned_factor(W)
    >>> s, t = (np.linalg.svd(A, compute_uv=False) for A in (W, T))
    >>> bool(np.all(np.abs(s - t) <= 1e-14 * s[0]))
    True
    """
    V: FloatArray = np.linalg.eigh(W @ W.T)[1] if start is None else start
    for _ in range(_SWEEPS):
        rotated = V.T @ W
        norms = np.sqrt(np.einsum("ij,ij->i", rotated, rotated))
        largest = float(norms.max(initial=0.0))
        if largest == 0.0:
            return np.zeros((len(W), len(W)))
        # Rows at the level of the rounding errors of the rotation: their norms are used, their directions are not.
        noise = norms <= 8.0 * np.finfo(np.float64).eps * np.sqrt(len(W)) * largest
        rotated /= np.where(norms > 0.0, norms, 1.0)[:, None]
        C = rotated @ rotated.T
        clear = np.ix_(~noise, ~noise)
        values, vectors = np.linalg.eigh(C)
        DL: FloatArray = norms[:, None] * (vectors * np.sqrt(np.maximum(values, 0.0)))
        if float(np.linalg.eigvalsh(C[clear])[0]) >= _CONDITIONED:
            return V @ DL
        V = V @ np.linalg.svd(DL)[0]
    starts = range(0, W.shape[1], 4 * len(W))
    r = streamed_r((W[:, start : start + 4 * len(W)].T for start in starts), len(W))
    return np.ascontiguousarray(r.T)
