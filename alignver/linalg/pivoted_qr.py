"""QR with column pivoting (Businger and Golub): by LAPACK for NumPy arrays, blocked in standard calls for others.

PyTorch and CuPy have no pivoted QR. The blocked algorithm is that of Quintana-Orti, Sun and Bischof (1998): within a
panel only the pivot row is updated, and the trailing matrix is updated once per panel by a matrix product. The partial
column norms are downdated with the guard of Drmac and Bujanovic (2008). A panel ends when the guard is violated, and
the norms are recomputed after every panel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.arrays import Array, host, like, namespace
from alignver.linalg.norms import norm
from alignver.linalg.qr_reduction import Reduced
from alignver.linalg.svd import RangeProfile, descending_tails, flops
from alignver.progress import run_stage

_PANEL = 32  # columns of a panel: LAPACK's default block size for geqp3
_GUARD = 2.0**-26  # sqrt(eps): above it a downdated norm keeps half of its digits (Drmac & Bujanovic 2008, tol3z)


def pivoted_qr(matrix: Array, rhs: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Factor A P = Q R with |r_11| >= |r_22| >= ... and return R, Q^T B and the permutation.

    Parameters
    ----------
    matrix : (m, n) float64
    rhs : (m, k) float64
        B; the identity gives Q^T itself.

    Returns
    -------
    r : (min(m, n), n) float64
        Upper trapezoidal.
    qtb : (m, k) float64
        Q^T B for the full m x m Q: the rows from min(m, n) on belong to the orthogonal complement of the range of A.
    pivots : tuple of int
        ``matrix[:, pivots] = Q R``.

    Examples
    --------
    >>> a = np.array([[1.0, 10.0], [2.0, 20.0], [0.0, 1.0]])
    >>> r, qtb, pivots = pivoted_qr(a, a)
    >>> pivots
    (1, 0)
    >>> bool(np.allclose(r, qtb[:2, list(pivots)]))
    True
    """
    method = _lapack if isinstance(matrix, np.ndarray) else _blocked
    return run_stage("QR with column pivoting", 2.0 * flops(matrix, 4.0, 0.0), method, matrix, rhs)


def qr_profile(reduced: Reduced) -> RangeProfile:
    """Return the profile whose levels are the trailing norms ||R_22||_F and whose directions are the columns of Q.

    rank(tau) is the first r with ||R_22|| <= tau: the matrix is within tau of one of rank r, hence s_{r+1} <= tau.
    NUMERICAL, like the profile of the SVD. The rank is never below that of the SVD, and above it if the trailing norm
    overestimates s_{r+1}.
    """
    p = int(reduced.matrix.shape[0])
    y = reduced.target
    size = 0.0 if y is None else float(np.hypot(norm(y), reduced.leftover))
    xp = namespace(reduced.matrix)
    unit = like(np.zeros((p, 1)), reduced.matrix) if y is None or size == 0.0 else xp.reshape(y / size, (p, 1))
    r, qty, _ = pivoted_qr(reduced.matrix, unit)
    levels = trailing_norms(host(r))
    if y is None or size == 0.0:
        return RangeProfile(levels, np.zeros(levels.size + 1))
    coordinates = host(qty)[:, 0]
    outside = math.hypot(*coordinates[levels.size :], reduced.leftover / size)
    return RangeProfile(levels, descending_tails(coordinates[: levels.size], outside))


def trailing_norms(r: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return ||R[k:, k:]||_F for k = 0, 1, ...: row norms of the triangle, summed from the bottom."""
    exponents = np.frexp(np.max(np.abs(r), axis=1, initial=0.0))[1]  # per row: no square overflows or underflows
    rows = np.ldexp(np.linalg.norm(np.ldexp(r, -exponents[:, None]), axis=1), exponents)
    tails: np.ndarray[Any, np.dtype[np.float64]] = np.hypot.accumulate(rows[::-1])[::-1]
    return tails


def _lapack(matrix: Array, rhs: Array) -> tuple[Array, Array, tuple[int, ...]]:
    from scipy import linalg
    from scipy.linalg import lapack

    (factored, tau), r, pivots = linalg.qr(matrix, mode="raw", pivoting=True, check_finite=False)
    lwork = int(lapack.dormqr("L", "T", factored[:, : tau.size], tau, rhs, -1)[1][0])
    qtb, _, info = lapack.dormqr("L", "T", factored[:, : tau.size], tau, rhs, lwork)
    if info != 0:
        raise RuntimeError(f"dormqr: info={info}")
    return r[: min(matrix.shape)], qtb, tuple(int(p) for p in pivots)


def _blocked(matrix: Array, rhs: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Factor copies by the blocked algorithm that the module describes."""
    xp = namespace(matrix)
    m, n = (int(size) for size in matrix.shape)
    a, b = xp.asarray(matrix, copy=True), xp.asarray(rhs, copy=True)
    pivots = list(range(n))
    k0, steps = 0, min(m, n)
    while k0 < steps:
        k0 += _panel(a, b, pivots, k0, min(_PANEL, steps - k0))
    return xp.triu(a)[:steps, :], b, tuple(pivots)


def _panel(a: Array, b: Array, pivots: list[int], k0: int, width: int) -> int:
    """Factor up to ``width`` columns from k0 on, in place; return their number."""
    xp = namespace(a)
    m, n = (int(size) for size in a.shape)
    # Column norms of the trailing matrix, recomputed, on the host: every choice of a pivot is a decision.
    exact = host(xp.linalg.vector_norm(a[k0:, k0:], axis=0))
    norms = exact.copy()
    reflectors = like(np.zeros((m - k0, width)), a)
    updates = like(np.zeros((n - k0, width)), a)
    trailing = xp.asarray(a[k0:, k0:], copy=True)  # as at the start of the panel, with the same column swaps
    for j in range(width):
        p = j + int(np.argmax(norms[j:]))
        if p != j:
            for target in (a[:, k0:], trailing):
                _swap(target, j, p, axis=1)
            _swap(updates, j, p, axis=0)
            pivots[k0 + j], pivots[k0 + p] = pivots[k0 + p], pivots[k0 + j]
            for host_norms in (norms, exact):
                host_norms[[j, p]] = host_norms[[p, j]]
        column = trailing[j:, j] - reflectors[j:, :j] @ updates[j, :j]
        v, tau, beta = _householder(column)
        reflectors[j:, j] = v
        if tau != 0.0:
            products = xp.matrix_transpose(trailing[j:, j + 1 :]) @ v
            overlap = xp.matrix_transpose(reflectors[j:, :j]) @ v
            updates[j + 1 :, j] = tau * (products - updates[j + 1 :, :j] @ overlap)
            b[k0 + j :, :] -= tau * xp.reshape(v, (-1, 1)) @ (xp.reshape(v, (1, -1)) @ b[k0 + j :, :])
        row = trailing[j, j + 1 :] - updates[j + 1 :, : j + 1] @ reflectors[j, : j + 1]
        a[k0 + j, k0 + j] = beta
        a[k0 + j + 1 :, k0 + j] = 0.0
        a[k0 + j, k0 + j + 1 :] = row
        if _downdate(norms, exact, host(row), j) and j + 1 < width:
            width = j + 1
            break
    tail = xp.matrix_transpose(updates[width:, :width])
    a[k0 + width :, k0 + width :] = trailing[width:, width:] - reflectors[width:, :width] @ tail
    return width


def _swap(array: Array, i: int, j: int, *, axis: int) -> None:
    xp = namespace(array)
    if axis == 0:
        row = xp.asarray(array[i, :], copy=True)
        array[i, :] = array[j, :]
        array[j, :] = row
    else:
        column = xp.asarray(array[:, i], copy=True)
        array[:, i] = array[:, j]
        array[:, j] = column


def _householder(x: Array) -> tuple[Array, float, float]:
    """Return v with v_1 = 1, tau and beta: (I - tau v v^T) x = beta e_1."""
    xp = namespace(x)
    alpha = float(x[0])
    below = norm(x[1:]) if int(x.shape[0]) > 1 else 0.0
    v = xp.asarray(x, copy=True)
    if below == 0.0:
        v[1:] = 0.0
        v[0] = 1.0
        return v, 0.0, alpha
    beta = -math.copysign(math.hypot(alpha, below), alpha)
    v = v / (alpha - beta)
    v[0] = 1.0
    return v, (beta - alpha) / beta, beta


def _downdate(norms: Any, exact: Any, row: Any, j: int) -> bool:
    """Remove the new row of R from the partial norms; return whether one of them has lost too many digits."""
    rest = slice(j + 1, norms.size)
    present = norms[rest] > 0.0
    ratio = np.zeros(norms.size - j - 1)
    np.divide(np.abs(row), norms[rest], out=ratio, where=present)
    shrink = np.maximum((1.0 - ratio) * (1.0 + ratio), 0.0)
    remaining = np.zeros_like(shrink)
    np.divide(norms[rest], exact[rest], out=remaining, where=exact[rest] > 0.0)
    lost = bool(np.any(present & (shrink * remaining**2 <= _GUARD)))
    norms[rest] *= np.sqrt(shrink)
    return lost
