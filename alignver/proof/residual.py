"""Non-membership in floating-point arithmetic: a lower bound of the distance to the column space from a residual."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.linalg import lapack

from alignver.kernel.exact import FARTHEST
from alignver.proof.cholesky import FullRank, row_rank_by_gram, scale_rows
from alignver.proof.decision import Ball
from alignver.proof.right_inverse import row_rank_by_inverse
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    add_up,
    div_up,
    frobenius_up,
    gamma,
    mul_down,
    mul_up,
    norm_down,
    norm_up,
    scale_down,
    scale_up,
    sub_down,
)

_ROOM = 0.98  # the fraction of s_min and of the bound that is stated: a check by other bounds proves slightly less


@dataclasses.dataclass(frozen=True)
class Distance:
    """A verified lower bound of the distance from y to the column space of every matrix in the ball.

    Attributes
    ----------
    proved : bool
        The distance is positive for every matrix in the ball.
    distance : float
        The bound, in the units of y; 0 if there is none.
    reason : str
        Why there is no proof; empty if there is one.
    stated : float
        The part of the bound that a check by other bounds can prove; 0 if there is none.
    beta : array or None
        The coefficients of the residual, for the matrix as given.
    full : FullRank or None
        The proof of full column rank.
    """

    proved: bool
    distance: float
    reason: str
    stated: float = 0.0
    beta: FloatArray | None = None
    full: FullRank | None = None


def distance_bound(J: FloatArray, y: FloatArray, beta: FloatArray, s_min: float, delta: float = 0.0) -> float:
    r"""Return a verified lower bound of :math:`\mathrm{dist}(y, \mathrm{Col}(J + E))` over :math:`\|E\|_2 \le
    \delta`.

    Centre. Let P project onto Col J and :math:`r = y - J\beta`. Then :math:`\mathrm{dist}(y, \mathrm{Col}\,
    J) = \|(I - P) r\| \ge \|r\| - \|P r\|` and :math:`P r = (J^+)^T J^T r`, so with full column rank

    .. math:: \mathrm{dist} \ge \|r\| - \|J^T r\| / s_{\min}(J).

    Ball. For J + E the residual of the same :math:`\beta` is :math:`r' = r - E\beta`, and
    :math:`(J + E)^T r' = J^T r + E^T r - (J + E)^T E \beta`, so

    .. math:: \mathrm{dist} \ge \|r\| - \delta\|\beta\|
              - \frac{\|J^T r\| + \delta\|r\| + (\|J\| + \delta)\,\delta\,\|\beta\|}{s_{\min}(J) - \delta}.

    Rounding. The error e of the computed residual :math:`\hat r` satisfies
    :math:`\|e\| \le \gamma_{d+2} (\|y\| + \|J\|_F \|\beta\|) + N(d+2)\omega` (an inner product of d + 1 terms
    per entry), and :math:`\|J^T r\| \le \|fl(J^T \hat r)\| + \gamma_N \|J\|_F \|\hat r\| + d N \omega +
    \|J\|_F \|e\|`; all norms are rounded outward.

    Parameters
    ----------
    J : (N, d) float64
    y, beta : (N,) and (d,) float64
        Any ``beta`` is valid; only the size of the bound depends on it.
    s_min : float
        A verified lower bound of the smallest singular value of J (full column rank).
    delta : float
        Radius of the ball in the spectral norm.

    Returns
    -------
    float
        A lower bound with PROOF; 0 if the computed bound is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> J = np.array([[1.0], [1.0]])
    >>> 1.41 < distance_bound(J, np.array([1.0, -1.0]), np.zeros(1), 1.414) <= 2**0.5
    True
    """
    n, d = J.shape
    with np.errstate(all="ignore"):
        computed = y - J @ beta
        gradient = J.T @ computed
    size, beta_size = frobenius_up(J), norm_up(beta)
    error = add_up(
        mul_up(gamma(d + 2), add_up(norm_up(y), mul_up(size, beta_size))), mul_up(float(n), float(d + 2), OMEGA)
    )
    length = max(0.0, sub_down(norm_down(computed), error))
    longest = add_up(norm_up(computed), error)
    slope = add_up(
        norm_up(gradient),
        mul_up(gamma(n), size, norm_up(computed)),
        mul_up(float(d), float(n), OMEGA),
        mul_up(size, error),
    )
    moved = mul_up(delta, beta_size)
    absorbed = div_up(add_up(slope, mul_up(delta, longest), mul_up(add_up(size, delta), moved)), sub_down(s_min, delta))
    bound = sub_down(length, moved, absorbed)
    return bound if bound > 0.0 else 0.0  # 0 for NaN too


def distance_from(J: FloatArray, y: FloatArray, ball: Ball | None = None) -> Distance:
    """Prove that ``y`` lies outside the column space of every matrix in a ball around ``J`` (N, d), N > d.

    Columns are scaled by powers of two, which preserves the column space; y is scaled as a whole. Full column rank is
    proved by the Gram matrix or, if that fails, by a right inverse of J^T, and :func:`distance_bound` gives the bound.

    Examples
    --------
    >>> import numpy as np
    >>> distance_from(np.array([[1.0], [1.0]]), np.array([1.0, 2.0])).proved
    True
    """
    n, d = J.shape
    if n <= d:
        return Distance(False, 0.0, f"a residual proves non-membership only with more rows ({n}) than columns ({d})")
    scaled = scale_rows(np.ascontiguousarray(J.T), always=True)
    largest = float(np.abs(y).max())
    if scaled is None or not largest > 0.0:
        return Distance(False, 0.0, "a column is zero" if scaled is None else "y is zero")
    power = int(np.frexp(largest)[1])
    with np.errstate(all="ignore"):
        target = np.ldexp(y, -power)
    lost = _underflow(scaled.matrix, scaled.lost)
    full = row_rank_by_gram(scaled.matrix)
    if not full.proved or not full.scaled_s_min > 0.0:
        radius = 0.0 if ball is None else ball.transposed().scaled(scaled.exponents).radius((d, n))
        full = row_rank_by_inverse(scaled.matrix, least=radius)
    if not full.proved:
        return Distance(False, 0.0, f"full column rank not proved: {full.reason}")
    assert full.exponents is not None
    exponents = scaled.exponents + full.exponents
    if int(np.abs(exponents).max()) > FARTHEST:
        return Distance(False, 0.0, "the columns are too far apart in size")
    matrix = np.ascontiguousarray((scaled.matrix * np.ldexp(1.0, full.exponents)[:, None]).T)
    delta = mul_up(2.0, scale_up(lost, max(0, int(full.exponents.max()))))  # two scalings, each may underflow
    if ball is not None:
        delta = add_up(delta, ball.transposed().scaled(exponents).radius((d, n)))
    with np.errstate(all="ignore"):
        original = np.ldexp(_least_squares(matrix, target), exponents + power)
        beta = np.ldexp(original, -exponents - power)  # those of a certificate, which may underflow
    bound = distance_bound(matrix, target, beta, full.scaled_s_min, delta)
    bound = max(0.0, sub_down(bound, _underflow(target, mul_up(float(n), OMEGA))))
    if not bound > 0.0:
        reason = "the residual is not large enough for full column rank, rounding and the ball"
        return Distance(False, 0.0, reason, full=full)
    stated = mul_down(_ROOM, distance_bound(matrix, target, beta, mul_down(_ROOM, full.scaled_s_min), delta))
    whole = dataclasses.replace(full, exponents=exponents)
    return Distance(True, scale_down(bound, power), "", scale_down(stated, power), original, whole)


def _underflow(scaled: FloatArray, lost: float) -> float:
    """Return ``lost`` if some entry is tiny or zero, so that scaling may have underflowed, otherwise zero."""
    return lost if bool(np.any(np.abs(scaled) < 2.0**-900)) else 0.0


def _least_squares(J: FloatArray, y: FloatArray) -> FloatArray:
    """Return an approximate least-squares solution; zeros if LAPACK fails."""
    _factor, solution, info = lapack.dgels(J, y)
    beta: FloatArray = np.asarray(solution[: J.shape[1]], dtype=np.float64)
    return beta if info == 0 and bool(np.all(np.isfinite(beta))) else np.zeros(J.shape[1])
