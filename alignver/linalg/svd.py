"""Singular value decomposition, and the rank and relative residual as step functions of the tolerance tau.

The profile of the SVD defines the meaning of a tolerance; :mod:`alignver.linalg.pivoted_qr` gives another profile.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alignver.arrays import Array, host, namespace
from alignver.linalg.norms import norm
from alignver.linalg.qr_reduction import Reduced
from alignver.progress import run_stage

Vector = np.ndarray[Any, np.dtype[np.float64]]

_STEPS = 60  # of a curve


@dataclasses.dataclass(frozen=True)
class RangeProfile:
    """Rank and relative residual of a target as functions of the tolerance tau.

    With levels l_1 >= l_2 >= ... >= l_k >= 0 and P_r the orthogonal projector onto the first r computed directions,

        rank(tau) = #{j : l_j > tau},   rho(tau) = ||(I - P_rank(tau)) y|| / ||y||.

    The levels of an SVD are the singular values; those of a pivoted QR are the trailing norms ||R_22||_F, so that
    rank(tau) is the first r with ||R_22|| <= tau. rho is a non-decreasing step function of tau.

    Attributes
    ----------
    levels : (k,) float64
        Non-increasing.
    tails : (k + 1,) float64
        ``tails[r]`` = ||(I - P_r) y|| / ||y||, non-increasing in r; zero without a target.

    Examples
    --------
    >>> profile = RangeProfile(np.array([2.0, 1.0, 1e-9]), np.array([1.0, 0.5, 0.1, 0.0]))
    >>> profile.rank(1e-6), profile.rho(1e-6), profile.turns_at(0.2)
    (2, 0.1, 1.0)
    """

    levels: Vector
    tails: Vector

    def rank(self, tau: float) -> int:
        """Return the number of levels above ``tau``."""
        return int(np.count_nonzero(self.levels > tau))

    def rho(self, tau: float) -> float:
        """Return the relative residual of the target at tolerance ``tau``."""
        return float(self.tails[self.rank(tau)])

    def turns_at(self, limit: float) -> float | None:
        """Return the tau from which on rho(tau) > limit; below it rho(tau) <= limit.

        None means that rho never exceeds the limit, 0.0 that it does so at every tolerance.
        """
        within = np.flatnonzero(self.tails <= limit)
        if within.size == 0:
            return 0.0
        first = int(within[0])
        return None if first == 0 else float(self.levels[first - 1])

    def near(self, tau: float, factor: float = 100.0, most: int = 12) -> tuple[float, ...]:
        """Return the levels within ``factor`` of ``tau`` in order, the ``most`` closest ones (by ratio) at most."""
        inside = self.levels[(self.levels >= tau / factor) & (self.levels <= tau * factor) & (self.levels > 0)]
        if inside.size > most:
            distance = np.abs(np.log(inside / tau))
            inside = inside[np.sort(np.argsort(distance, kind="stable")[:most])]
        return tuple(float(level) for level in inside)

    def curve(self, low: float, high: float) -> tuple[tuple[float, float], ...]:
        """Return points (tau, rho(tau)), tau from ``low`` to ``high``, between which rho is constant.

        At most 60 steps of rho are returned, evenly spaced by index.

        Examples
        --------
        >>> RangeProfile(np.array([2.0, 1.0, 1e-9]), np.array([1.0, 0.5, 0.1, 0.0])).curve(1e-12, 1.5)
        ((1e-12, 0.0), (1e-09, 0.1), (1.0, 0.5), (1.5, 0.5))
        """
        inside = np.unique(self.levels[(self.levels > low) & (self.levels < high)])
        if inside.size > _STEPS:
            inside = inside[np.unique(np.linspace(0, inside.size - 1, _STEPS).astype(np.int64))]
        return tuple((tau, self.rho(tau)) for tau in (low, *(float(level) for level in inside), high))


def descending_tails(coordinates: Vector, leftover: float) -> Vector:
    """Return tails[r] = sqrt(leftover^2 + sum_{j >= r} coordinates_j^2), summed from the smallest end.

    ``coordinates`` are u_j^T y / ||y|| for orthonormal directions u_j, ``leftover`` is the relative norm of the
    component of y that is orthogonal to all of them.
    """
    squares = np.concatenate([np.asarray(coordinates, dtype=np.float64) ** 2, [leftover**2]])
    tails: Vector = np.sqrt(np.cumsum(squares[::-1])[::-1])
    return tails


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the thin SVD (U, s, V^T) by the namespace, or by the gesvd of LAPACK if that does not converge.

    Raises :class:`numpy.linalg.LinAlgError` if neither converges.
    """
    return run_stage("singular value decomposition", flops(matrix, 4.0, 22.0), _decompose, matrix)


def flops(matrix: Array, rectangle: float, square: float) -> float:
    """Return ``rectangle m n^2 + square n^3``, m >= n: the operations of a factorization on a CPU; 0 elsewhere."""
    n, m = sorted(map(int, matrix.shape))
    on_host = isinstance(matrix, np.ndarray) or str(getattr(matrix, "device", "cpu")) == "cpu"
    return (rectangle * m * n**2 + square * n**3) if on_host else 0.0


def _decompose(matrix: Array) -> tuple[Array, Array, Array]:
    try:
        u, s, vt = namespace(matrix).linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        if not isinstance(matrix, np.ndarray):
            raise
        from scipy import linalg

        u, s, vt = linalg.svd(matrix, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return u, s, vt


def svd_profile(reduced: Reduced) -> RangeProfile:
    """Return the profile whose levels are the singular values and whose directions are the left singular vectors.

    rho(tau) = ||(I - P_tau) y|| / ||y||, P_tau the projector on span{u_k : s_k > tau}. NUMERICAL: the computed values
    are exact for a matrix within a modest multiple of eps s_1 of the given one.

    Parameters
    ----------
    reduced : Reduced
        Of :func:`alignver.linalg.qr_reduction.reduce`; without a target the tails are zero.
    """
    xp = namespace(reduced.matrix)
    if reduced.target is None:
        levels = host(run_stage("singular values", flops(reduced.matrix, 4.0, 0.0), xp.linalg.svdvals, reduced.matrix))
        return RangeProfile(levels, np.zeros(levels.size + 1))
    u, s, _ = decompose(reduced.matrix)
    levels = host(s)
    y = reduced.target
    size = float(np.hypot(norm(y), reduced.leftover))
    if size == 0.0:
        return RangeProfile(levels, np.zeros(levels.size + 1))
    y = y / size
    coordinates = xp.matrix_transpose(u) @ y
    rest = y - u @ coordinates
    # Twice is enough (Kahan, Parlett): the second projection removes what rounding leaves in the range after the first.
    rest = rest - u @ (xp.matrix_transpose(u) @ rest)
    # The columns of a square U span the whole space: the remainder of y is rounding error, not a component outside.
    outside = 0.0 if int(u.shape[0]) == int(u.shape[1]) else norm(rest)
    return RangeProfile(levels, descending_tails(host(coordinates), float(np.hypot(outside, reduced.leftover / size))))
