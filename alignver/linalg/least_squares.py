r"""Least squares with an explicit solution b, its residual measured with the matrix itself.

The SVD's and the pivoted QR's residuals are projections onto computed directions. Here y - J b is formed with the J
that the caller gave: evidence of membership that does not rest on how b was found.

Least squares with an operator J by refinement, the Gram matrix M = J J^T being only the preconditioner.

Solving with M squares the condition number; deciding from it would too. Here M (rounded as it is) gives directions,
and every quantity that a verdict is read off is measured with products by J itself:

.. math:: b_{k+1} = b_k + J^\top (M + \mu I)^{-1} r_k, \qquad r_k = y - J b_k,

iterated Tikhonov regularisation: a residual in the direction of the eigenvalue lambda shrinks by mu / (lambda + mu) a
step, as long as M is within mu or so of J J^T. What comes out are the same iterates as LSMR's, with the same bounds of
rho(tau) (:meth:`alignver.linalg.lsmr.Iterate.residual_bounds`), good or bad whatever M was. A Cholesky factorization
(:math:`N^3 / 3` operations) for each shift and three products for each step, where LSMR needs a product for every
distinct singular value above the tolerance, and a few more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from alignver.arrays import Array, host, like, namespace
from alignver.linalg.lsmr import Iterate
from alignver.linalg.norms import norm
from alignver.linalg.svd import decompose
from alignver.progress import stage, track

__all__ = ["LeastSquares", "Solution", "iterated_tikhonov", "least_squares", "residual_interval"]


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
    """A factored J with which least-squares problems are solved at any tolerance: J = U diag(s) V^T Q^T."""

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
    """Factor J for least squares: by QR of J^T and an SVD of its triangle where d > N, by SVD alone elsewhere.

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
    with stage("QR of the transposed matrix"):
        q, r = xp.linalg.qr(xp.matrix_transpose(matrix), mode="reduced")
    u, s, vt = decompose(xp.matrix_transpose(r))
    return LeastSquares(matrix, target, u, s, vt, q)


_STEPS = 5
_SHIFTS = (1.0, 1e4)
"""In units of eps trace(M), the size of M's own rounding. The small one reaches the directions that M resolves at all;
the large one gives a residual whose image under J^T is small sooner, where y is outside the column space."""


def iterated_tikhonov(
    operator: Any, M: npt.NDArray[np.float64], y: Array, *, shifts: Sequence[float] = _SHIFTS
) -> list[Iterate]:
    """Return the iterates of every shift, each measured with the operator.

    Parameters
    ----------
    operator : object
        ``matvec`` and ``rmatvec`` as :class:`alignver.jacobians.operator.JacobianOperator` has them.
    M : (N, N) float64 numpy.ndarray
        About J J^T; left alone.
    y : (N,) float64
        In the operator's namespace.
    shifts : sequence of float
        mu in units of eps trace(M).

    Returns
    -------
    list of Iterate
        Empty where no shift makes M positive definite.

    Examples
    --------
    >>> J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> class Products:
    ...     matvec = staticmethod(lambda v: J @ v)
    ...     rmatvec = staticmethod(lambda u: J.T @ u)
    >>> iterates = refine(Products, J @ J.T, np.array([2.0, 3.0, 5.0]))
    >>> residual_interval(iterates, 1e-9)[1] < 1e-8
    True
    """
    unit = float(np.finfo(np.float64).eps) * float(np.trace(M))
    found: list[Iterate] = []
    for shift in track(list(shifts), "solving with the Gram matrix"):
        factor = _factored(M, shift * unit)
        if factor is None:
            continue
        r = y
        b: Array | None = None
        for step in range(_STEPS):
            a = cho_solve(factor, host(r), check_finite=False)
            push = operator.rmatvec(like(a, y))
            b = push if b is None else b + push
            r = y - operator.matvec(b)
            found.append(Iterate(b, norm(r), norm(operator.rmatvec(r)), norm(b), step + 1))
    return found


def residual_interval(iterates: Sequence[Iterate], tau: float) -> tuple[float, float]:
    """Return the best lower and upper bound of ||(I - P_tau) y|| that the iterates give: (0, inf) for none."""
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
