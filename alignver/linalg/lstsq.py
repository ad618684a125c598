"""Least squares with an explicit solution b, its residual measured with the matrix itself.

The SVD's and the pivoted QR's residuals are projections onto computed directions. Here y - J b is formed with the J
that the caller gave: evidence of membership that does not rest on how b was found.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alignver.arrays import Array, host, like, namespace
from alignver.linalg.norms import norm
from alignver.linalg.svd import decompose
from alignver.progress import stage

__all__ = ["LeastSquares", "Solution", "least_squares"]


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
