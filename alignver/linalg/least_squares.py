r"""Least-squares solutions with measured residuals: by factorization of J, and by refinement with a Gram matrix.

**Factorization** (:func:`least_squares`). The residuals of the SVD and of the pivoted QR are projections onto computed
directions. Here y - J b is formed with the J of the caller, so the residual is evidence of membership whatever the
error in b.

**Refinement** (:func:`iterated_tikhonov`, :func:`preconditioned_iterates`). J is an operator and the Gram matrix
M = J J^T only a preconditioner. Solving with M squares the condition number, and so would a decision based on M. Here
M, with its rounding errors, only gives directions; every quantity that enters a verdict is measured with products by J
itself:

.. math:: b_{k+1} = b_k + J^\top (M + \mu I)^{-1} r_k, \qquad r_k = y - J b_k.

This is iterated Tikhonov regularization: a residual in the direction of the eigenvalue lambda shrinks by the factor
mu / (lambda + mu) in each step, as long as M is within about mu of J J^T. The results are iterates like those of LSMR,
and the same bounds of rho(tau) (:meth:`alignver.linalg.lsmr.Iterate.residual_bounds`) hold for every M. The cost is one
Cholesky factorization (:math:`N^3 / 3` operations) for each shift and three products for each step. LSMR needs a
product for every distinct singular value above the tolerance, and a few more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from alignver.arrays import Array, host, like, namespace
from alignver.linalg.lsmr import Iterate
from alignver.linalg.norms import norm
from alignver.linalg.svd import decompose, flops
from alignver.progress import run_stage, track

_STEPS = 5  # for each shift
_SHIFTS = (1.0, 1e4)
"""In units of eps trace(M), the size of the rounding errors in M. The small shift reaches the directions that M
resolves; the large one sooner gives a residual with a small image under J^T, where y is outside the column space."""

_CUTOFFS = (1e2, 1e6)
"""Of eigenvalues, in the same unit: above the rounding errors in M, and above what two steps resolve."""

_TRUNCATED = 2  # steps for each cutoff: the second one corrects the rounding errors of the first
_EIGENVECTORS = 2500  # rows up to which the eigenvectors of M take a few seconds

FloatMatrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Solution:
    """The minimum-norm least-squares solution at a tolerance.

    Attributes
    ----------
    b : (d,) float64
    rank : int
        Number of singular values above the tolerance.
    residual : float
        ||y - J b|| / ||y||, measured.
    size : float
        ||b||.
    """

    b: Array
    rank: int
    residual: float
    size: float


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """A factorization J = U diag(s) V^T Q^T that solves the least-squares problem at any tolerance."""

    matrix: Array
    target: Array
    u: Array
    s: Array
    vt: Array
    q: Array | None

    def solve(self, tau: float) -> Solution:
        """Return b = Q V_tau diag(1/s) U_tau^T y over the singular values above ``tau``, and its measured residual."""
        xp = namespace(self.matrix)
        levels = host(self.s)
        rank = int(np.count_nonzero(levels > tau))
        inverse = np.zeros_like(levels)
        np.divide(1.0, levels, out=inverse, where=levels > tau)
        b = xp.matrix_transpose(self.vt) @ ((xp.matrix_transpose(self.u) @ self.target) * like(inverse, self.matrix))
        if self.q is not None:
            b = self.q @ b
        size = norm(self.target)
        residual = norm(self.target - self.matrix @ b) / size if size > 0.0 else 0.0
        return Solution(b, rank, residual, norm(b))


def least_squares(matrix: Array, target: Array) -> LeastSquares:
    """Factor J for least squares: by QR of J^T and an SVD of its triangle if d > N, otherwise by SVD alone.

    Memory: another copy of J (its orthogonal factor).

    Parameters
    ----------
    matrix : (N, d) float64
    target : (N,) float64

    Examples
    --------
    >>> solution = least_squares(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), np.array([3.0, 4.0, 5.0])).solve(1e-12)
    >>> solution.b.round(12).tolist(), round(solution.residual * 50**0.5, 12)
    ([1.0, 1.0], 5.0)
    """
    xp = namespace(matrix)
    n, d = (int(size) for size in matrix.shape)
    if d <= n:
        u, s, vt = decompose(matrix)
        return LeastSquares(matrix, target, u, s, vt, None)
    transposed = xp.matrix_transpose(matrix)
    q, r = run_stage("QR of the transposed matrix", flops(matrix, 4.0, 0.0), xp.linalg.qr, transposed, mode="reduced")
    u, s, vt = decompose(xp.matrix_transpose(r))
    return LeastSquares(matrix, target, u, s, vt, q)


def iterated_tikhonov(
    operator: Any, M: npt.NDArray[np.float64], y: Array, *, shifts: Sequence[float] = _SHIFTS
) -> list[Iterate]:
    """Return the iterates for every shift, each measured with the operator.

    Parameters
    ----------
    operator : object
        ``matvec`` and ``rmatvec`` as :class:`alignver.jacobians.operator.JacobianOperator` has them.
    M : (N, N) float64 numpy.ndarray
        Approximately J J^T; not modified.
    y : (N,) float64
        In the operator's namespace.
    shifts : sequence of float
        mu in units of eps trace(M).

    Returns
    -------
    list of Iterate
        Empty if M is not positive definite with any of the shifts.

    Examples
    --------
    >>> J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> class Products:
    ...     matvec = staticmethod(lambda v: J @ v)
    ...     rmatvec = staticmethod(lambda u: J.T @ u)
    >>> iterates = iterated_tikhonov(Products, J @ J.T, np.array([2.0, 3.0, 5.0]))
    >>> residual_interval(iterates, 1e-9)[1] < 1e-8
    True
    """
    return list(_tikhonov(operator, M, y, shifts))


def _tikhonov(operator: Any, M: FloatMatrix, y: Array, shifts: Sequence[float]) -> Iterator[Iterate]:
    unit = float(np.finfo(np.float64).eps) * float(np.trace(M))
    for shift in track(list(shifts), "solving with the Gram matrix"):
        factor = _factored(M, shift * unit)
        if factor is not None:
            yield from _refined(operator, y, functools.partial(cho_solve, factor, check_finite=False), _STEPS)


def _refined(
    operator: Any, y: Array, solve: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], steps: int
) -> Iterator[Iterate]:
    """Yield the iterates of b + J^T solve(y - J b), each measured."""
    r, b = y, None
    for step in range(steps):
        correction = operator.rmatvec(like(solve(host(r)), y))
        b = correction if b is None else b + correction
        r = y - operator.matvec(b)
        yield Iterate(b, norm(r), norm(operator.rmatvec(r)), norm(b), step + 1)


def _truncated(V: FloatMatrix, inverse: FloatMatrix, r: FloatMatrix) -> FloatMatrix:
    solution: FloatMatrix = V @ (inverse * (V.T @ r))
    return solution


def preconditioned_iterates(operator: Any, M: FloatMatrix, y: Array) -> Iterator[Iterate]:
    r"""Yield iterates until the caller has enough: first truncated solutions, then :func:`iterated_tikhonov`.

    With the eigenvectors V of M for the eigenvalues above a cutoff, :math:`V \Lambda^{-1} V^\top` takes the place of
    :math:`(M + \mu I)^{-1}`. Where the cutoff lies in a gap of the spectrum, two steps suffice, in or outside of the
    column space: no step divides by an eigenvalue that is rounding error.

    Examples
    --------
    >>> J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> class Products:
    ...     matvec = staticmethod(lambda v: J @ v)
    ...     rmatvec = staticmethod(lambda u: J.T @ u)
    >>> first = next(preconditioned_iterates(Products, J @ J.T, np.array([2.0, 3.0, 6.0])))
    >>> first.gradient < 1e-14 < first.residual
    True
    """
    if len(M) <= _EIGENVECTORS:
        values, vectors = run_stage("eigenvectors of the Gram matrix", flops(M, 9.0, 0.0), np.linalg.eigh, M)
        unit = float(np.finfo(np.float64).eps) * float(np.trace(M))
        before = 0
        for cutoff in _CUTOFFS:
            count = int(np.count_nonzero(values > cutoff * unit))
            if count in (0, before):
                continue
            before, V, inverse = count, vectors[:, -count:], 1.0 / values[-count:]
            yield from _refined(operator, y, functools.partial(_truncated, V, inverse), _TRUNCATED)
    yield from _tikhonov(operator, M, y, _SHIFTS)


def residual_interval(iterates: Sequence[Iterate], tau: float) -> tuple[float, float]:
    """Return the best lower and upper bound of ||(I - P_tau) y|| over all iterates; (0, inf) without iterates."""
    pairs = [iterate.residual_bounds(tau) for iterate in iterates]
    return max([0.0, *(low for low, _ in pairs)]), min([float("inf"), *(high for _, high in pairs)])


def _factored(M: npt.NDArray[np.float64], mu: float) -> Any:
    if not mu > 0.0:
        return None
    shifted = M.copy()
    shifted.flat[:: len(M) + 1] += mu
    try:
        return cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None  # rounding has made M + mu I indefinite: mu is below what M resolves
