"""Full rank and distance re-checked in floating point with a-posteriori bounds, or exactly where there is no
ball.

Independent of the producers: an approximate Cholesky factor is multiplied out and compared with what it
should be, so how it was computed does not matter; right inverses are multiplied out in integer arithmetic;
norms come from math.fsum, which is correctly rounded. Products satisfy |fl(x^T y) - x^T y| <= n u |x|^T |y| +
n 2^-1022 for any order of summation (C.-P. Jeannerod, S. M. Rump, SIAM J. Matrix Anal. Appl. 34 (2013)
338-344); one term more is charged for fused operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.proof.certificate import Certificate
from alignver.proof.recheck.failure import NotProved
from alignver.proof.recheck.modular import conclude_lower, require_rank_at_least

__all__ = ["full_rank", "inverse_floor", "outside"]

_U = 2.0**-53
_TINY = 2.0**-1022
_ROOM = 1.0 + 2.0**-30  # more than the rounding of the scalar operations that it covers


def full_rank(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Every matrix of the ball has full rank: by definiteness, by a right inverse, or modulo a prime."""
    A = inputs["A"] if "A" in inputs else inputs["J"]
    side = certificate.constants["side"]
    wide = A if side == "rows" else np.ascontiguousarray(A.T)
    if side not in ("rows", "columns") or wide.shape[0] > wide.shape[1]:
        raise NotProved("a matrix has no more independent rows than columns")
    sentence = conclude_lower(certificate, A, min(A.shape))
    ball = certificate.constants.get("ball")
    if ball is None:
        try:
            some = _some_columns(certificate, wide)
            floor = _definite_floor(_scaled(certificate, some), 0.0) if certificate.method == "gram" else 0.0
        except NotProved:
            floor = 0.0
        if floor > 0.0:
            return f"{sentence} (A A^T is definite: a factorization was multiplied out)"
        p = require_rank_at_least(wide, wide.shape[0], "the matrix")
        return f"{sentence} (full rank modulo {p})"
    radius = _radius(certificate, wide.shape, side == "columns")
    floor, how = _singular_floor(certificate, wide)
    if not floor > radius:
        raise NotProved(
            f"the smallest singular value is only known to exceed {floor:.3e}, the ball reaches {radius:.3e}"
        )
    return f"{sentence}, throughout the ball ({how})"


def _some_columns(certificate: Certificate, wide: Any) -> Any:
    """Return the columns that the certificate names, or all: the rank of some is at most the rank of all."""
    columns = certificate.data.get("columns")
    if columns is None:
        return wide
    if columns.ndim != 1 or columns.dtype != np.int64 or not 0 < columns.size <= wide.shape[1]:
        raise NotProved("the columns are none")
    distinct = np.unique(columns)
    if distinct.size != columns.size or distinct[0] < 0 or distinct[-1] >= wide.shape[1]:
        raise NotProved("the columns are none")
    return wide[:, columns]


def _scaling(certificate: Certificate, rows: int) -> Any:
    exponents = certificate.data["scaling"]
    if (
        exponents.dtype != np.int64
        or exponents.shape != (rows,)
        or bool(np.any((exponents > 2200) | (exponents < -2200)))
    ):
        raise NotProved("the scaling is none")
    return exponents


def _scaled(certificate: Certificate, wide: Any) -> Any:
    exponents = _scaling(certificate, wide.shape[0])
    if not np.any(exponents):
        return wide
    matrix = np.ldexp(wide, exponents[:, None])
    if not bool(np.all(np.ldexp(matrix, -exponents[:, None]) == wide)):
        raise NotProved("the scaling is not exact on this matrix")
    return matrix


def _radius(certificate: Certificate, shape: tuple[int, ...], transposed: bool) -> float:
    """Bound the spectral norm of D E over the ball, D the row scaling."""
    ball, exponents = certificate.constants["ball"], _scaling(certificate, shape[0])
    factors = np.ldexp(1.0, exponents)
    value = ball["value"]
    if value is not None and not (isinstance(value, float) and 0.0 <= value < math.inf):
        raise NotProved("the ball has no radius")
    if ball["kind"] == "norm" and value is not None:
        return value * float(factors.max()) * _ROOM
    if ball["kind"] != "entrywise":
        raise NotProved("an unknown kind of ball")
    if value is None:
        radii = certificate.data["ball_radii"].T if transposed else certificate.data["ball_radii"]
        if radii.shape != shape or radii.dtype != np.float64 or bool(np.any(radii < 0)):
            raise NotProved("the ball's radii do not fit the matrix")
    else:
        radii = np.full(shape, value)
    scaled = radii * factors[:, None]
    rows, columns = float(scaled.sum(axis=1).max()), float(scaled.sum(axis=0).max())
    room = (_ROOM + 4.0 * sum(shape) * _U) ** 2
    return min(_length(scaled) * _ROOM, math.sqrt(rows * columns) * room) + sum(shape) * _TINY


def _length(x: Any) -> float:
    """Return an upper bound of the 2-norm of the entries, from a correctly rounded sum."""
    largest = float(np.abs(x).max())
    if not 0.0 < largest < math.inf:
        return largest if largest == 0.0 else math.inf
    unit = (x / largest).ravel()
    return largest * math.sqrt(math.fsum((unit * unit).tolist()) * _ROOM + unit.size * _TINY) * _ROOM


def _length_fast(x: Any) -> float:
    """Return a coarser upper bound without a loop over entries."""
    return math.sqrt(float(np.vdot(x, x)) * (1.0 + 2.0 * (x.size + 2) * _U) + x.size * _TINY) * _ROOM


def _singular_floor(certificate: Certificate, wide: Any) -> tuple[float, str]:
    """Return a lower bound of the smallest singular value of the scaled matrix, and how it was reached."""
    if "right_inverse" in certificate.data:
        return inverse_floor(_scaled(certificate, wide), certificate.data["right_inverse"]), "by an exact product"
    floor = _definite_floor(_scaled(certificate, wide), max(float(certificate.constants["shift"]), 0.0))
    return math.sqrt(floor) * (1.0 - 2.0**-50), "a factorization of A A^T was multiplied out"


def _definite_floor(A: Any, target: float) -> float:
    """Return a positive lower bound, >= target where possible, of the smallest eigenvalue of A A^T, else
    NotProved.

    With C any lower triangular matrix, A A^T = C C^T + s I + F + E, F the computed rest and E what rounding
    can have done: |E| <= (d+1) u |a_i||a_j| for the Gram matrix, (n+1) u |c_i||c_j| for C C^T, u |F| for the
    differences. As C C^T is never negative, lambda_min >= s - ||F|| - ||E||.
    """
    n, d = A.shape
    gram = A @ A.T
    size = _length_fast(A) ** 2
    noise = (n + d + 8) * _U * size * _ROOM + n * (n + d) * _TINY
    shift = target + 1.2 * noise
    shifted = gram.copy()
    shifted.flat[:: n + 1] -= shift
    try:
        C = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        raise NotProved("A A^T minus its shift is not definite in floating point") from None
    again = C @ C.T
    rest = gram - again
    rest.flat[:: n + 1] -= shift
    errors = (
        (d + 1) * _U * size
        + (n + 1) * _U * _length_fast(C) ** 2
        + 2.0 * _U * (_length_fast(rest) + math.sqrt(n) * shift)
        + n * (n + d) * _TINY
    )
    floor = (shift - (_length_fast(rest) + errors) * _ROOM) * (1.0 - 2.0**-50)
    if not (0.0 < floor < math.inf and math.isfinite(size)):
        raise NotProved("the factorization of A A^T, multiplied out, is too far from it")
    return float(floor)


def inverse_floor(A: Any, X: Any) -> float:
    """Return (1 - ||I - A X||_F) / ||X|| with the residual in exact integer arithmetic, rounded down; or
    NotProved.
    """
    n = A.shape[0]
    if X.shape != (A.shape[1], n) or X.dtype != np.float64:
        raise NotProved("the right inverse has another shape")
    left, left_exponent = _integers(A)
    right, right_exponent = _integers(X)
    product = _multiply(left, right)
    exponent = left_exponent + right_exponent
    if exponent > 0:
        raise NotProved("the right inverse is none")
    one = 1 << -exponent
    square = sum((value - (one if i == j else 0)) ** 2 for i, row in enumerate(product) for j, value in enumerate(row))
    epsilon = Fraction(math.isqrt(square) + 1, one)
    if epsilon >= 1:
        raise NotProved("the right inverse is too coarse")
    size = np.abs(X)
    sides = float(size.sum(axis=0).max()) * float(size.sum(axis=1).max())
    norm = min(_length(X), math.sqrt(sides) * (_ROOM + 4.0 * sum(X.shape) * _U) ** 2)
    if not 0.0 < norm < math.inf:
        raise NotProved("the right inverse overflows")
    return float((1 - epsilon) / Fraction(norm)) * (1.0 - 2.0**-50)


def _integers(M: Any) -> tuple[list[list[int]], int]:
    """Return integers and the one exponent with M = integers 2^exponent."""
    fraction, exponents = np.frexp(M)
    nonzero = M != 0
    low = int(np.min(np.where(nonzero, exponents, 1 << 20), initial=1 << 20))
    if low == 1 << 20 or int(exponents.max()) - low > 4096:
        raise NotProved("a matrix with no common scale")
    shifts = np.where(nonzero, exponents - low, 0).tolist()
    mantissas = np.ldexp(fraction, 53).astype(np.int64).tolist()
    return [[m << s for m, s in zip(ms, ss, strict=True)] for ms, ss in zip(mantissas, shifts, strict=True)], low - 53


def _multiply(left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
    """Return the exact product of integer matrices: by FLINT where it is installed, else in plain Python."""
    try:
        from flint import fmpz_mat
    except ImportError:
        columns = list(zip(*right, strict=True))
        return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left]
    return [[int(value) for value in row] for row in (fmpz_mat(left) * fmpz_mat(right)).tolist()]


def outside(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """The distance from y to the column space is positive throughout the ball; without one, exactly.

    Without a ball: rank [J y] = d + 1 exceeds what d columns can have. With a ball of radius delta and any
    beta, r = y - J beta: dist >= ||r|| - delta ||beta|| - (||J^T r|| + delta ||r|| + (||J|| + delta) delta
    ||beta||) / (s - delta).
    """
    if certificate.claim != "non-membership":
        raise NotProved("a distance proves non-membership only")
    J, y = inputs["J"], inputs["y"]
    n, d = J.shape
    if n <= d:
        raise NotProved("as many columns as rows leave no distance")
    if certificate.constants.get("ball") is None:
        p = require_rank_at_least(np.column_stack([J, y]), d + 1, "J with y as one more column")
        return f"J has {d} columns, and with y beside them the rank is {d + 1} (modulo {p})"
    wide = np.ascontiguousarray(J.T)
    delta = _radius(certificate, wide.shape, True)
    floor, _ = _singular_floor(certificate, wide)
    exponents = _scaling(certificate, d)
    matrix = np.ascontiguousarray(_scaled(certificate, wide).T)
    beta = certificate.data["beta"]
    if beta.shape != (d,) or beta.dtype != np.float64:
        raise NotProved("beta has another shape")
    power = -int(np.frexp(np.abs(y).max())[1])
    target = np.ldexp(y, power)
    if not bool(np.all(np.ldexp(target, -power) == y)):
        raise NotProved("y cannot be scaled exactly")
    coefficients = np.ldexp(
        beta, power - exponents
    )  # any beta will do: what is lost here changes the bound, not its truth
    residual = target - matrix @ coefficients
    # Entrywise: |computed - exact| <= (d + 2) u (|y| + |J| |beta|) + (d + 2) 2^-1022.
    error = (d + 2) * _U * _ROOM * (np.abs(target) + np.abs(matrix) @ np.abs(coefficients)) * (1 + 2 * d * _U) + (
        d + 2
    ) * _TINY
    gradient = matrix.T @ residual
    slope = np.abs(gradient) + _ROOM * (np.abs(matrix).T @ (error + (n + 2) * _U * np.abs(residual))) * (1 + 2 * n * _U)
    length, longest = np.maximum(np.abs(residual) - error, 0.0), np.abs(residual) + error
    shortest = _length(length) * (1.0 - 2.0**-28)  # _length exceeds the norm by less than 2^-28 of it
    moved = delta * _length(coefficients)
    absorbed = _length(slope + n * _TINY) + delta * _length(longest) + (_length_fast(matrix) + delta) * moved
    if not (floor > delta and shortest - moved * _ROOM - absorbed / (floor - delta) * _ROOM > 0.0):
        raise NotProved("the residual does not exceed what the ball can absorb")
    return "the distance from y to the column space is positive throughout the ball"
