"""Full row rank proved by an approximate right inverse, for matrices too ill-conditioned for their Gram matrix."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import lapack

from alignver.proof.cholesky import FullRank, Scaled, scale_rows
from alignver.proof.decision import Ball
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    U,
    add_up,
    div_down,
    frobenius_up,
    gamma,
    mul_up,
    scale_down,
    scale_up,
    sqrt_up,
    square_sums_up,
    sub_down,
    sum_up,
)

_SLACK = 1.0 + 2.0**-40
"""Covers the rounding of a few dozen operations on non-negative floats: (1 + u)^k <= 1 + 2^-40 for k <= 2^12."""


def right_inverse(A: FloatArray, radius: float = 0.0) -> FloatArray | None:
    """Return an approximate right inverse (d, N) of ``A`` (N, d), N <= d, from the QR factorization of A^T, or None.

    Every pivot of R bounds s_min(A) from above. If one is not larger than the ``radius`` of a ball, the ball contains a
    matrix without full row rank, and the rest of the computation, which takes several times as long, cannot succeed.
    """
    n = A.shape[0]
    columns = np.array(A.T, order="F", copy=True)
    size = int(lapack.dgeqrf_lwork(*columns.shape)[0])  # without it, LAPACK works column by column
    packed, tau, _work, info = lapack.dgeqrf(columns, lwork=size, overwrite_a=1)
    pivots = np.abs(np.diagonal(packed[:n]))
    if info != 0 or not float(pivots.min()) > max(2.0**-54 * float(pivots.max()), radius):
        return None
    R = np.asfortranarray(packed[:n])
    Q, _work, info = lapack.dorgqr(np.array(packed[:, :n], order="F", copy=True), tau, lwork=size, overwrite_a=1)
    if info != 0:
        return None
    # A^T = Q R, so A X = I for X = Q R^-T: R X^T = Q^T.
    transposed, info = lapack.dtrtrs(R, np.asfortranarray(Q.T), lower=0)
    if info != 0 or not bool(np.all(np.isfinite(transposed))):
        return None
    return np.ascontiguousarray(transposed.T)


def right_residual(A: FloatArray, X: FloatArray) -> tuple[float, FloatArray]:
    r"""Bound the right residual: an upper bound of :math:`\|I - A X\|_F` and the computed residual matrix.

    A and the columns of X are cut into heads of k bits and tails, :math:`A = A_1 + A_2`, :math:`X = X_1 +
    X_2`. With :math:`d\, 2^{2k} \le 2^{53}` the product :math:`A_1 X_1` is exact: its terms and all their
    partial sums are integers below :math:`2^{53}` times one power of two. Only :math:`A_2 X + A_1 X_2` is
    rounded, by at most :math:`\gamma_d (\|A_2\| \|x\| + \|A_1\| \|x_2\|)` per column, about :math:`2^{-k}` of
    a plain product's bound. (The splitting is that of K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, *Error-free
    transformations of matrix multiplication*, Numerical Algorithms 59 (2012) 95-118.) The error of each
    of the three additions is at most u times its result.

    Parameters
    ----------
    A : (N, d) float64
        Rows with largest entries in [1/2, 1).
    X : (d, N) float64

    Returns
    -------
    (float, (N, N) float64)
        The bound, infinity after an overflow; the rounded residual.
    """
    n, d = A.shape
    largest = np.maximum(X.max(axis=0), -X.min(axis=0))
    if not bool(np.all((largest > 2.0**-400) & (largest < 2.0**400))):
        return math.inf, np.zeros((n, n))
    exponents = np.frexp(largest)[1].astype(np.int64)
    unit = X * np.ldexp(1.0, -exponents)[None, :]  # largest entry of each column in [1/2, 1)
    # A_1 and X_1 have entries of at most 2^k units: d 2^(2k) <= 2^53.
    bits = (53 - math.ceil(math.log2(d))) // 2
    grid = 2.0**bits
    head, unit_head = np.rint(A * grid) / grid, np.rint(unit * grid) / grid
    tail, unit_tail = A - head, unit - unit_head  # exact: multiples of the last place of the original entries
    first = -(head @ unit_head)
    first.flat[:: n + 1] += np.ldexp(1.0, -exponents)
    rest = tail @ unit + head @ unit_tail
    residual = first - rest

    def norms(M: FloatArray) -> FloatArray:
        return np.sqrt(square_sums_up(M, 0)) * _SLACK

    # Underflow: products of entries below 1, and the scaling of X (OMEGA in each entry, times sqrt(d) |a_i|).
    underflow = mul_up(float(n), float(8 * d), OMEGA)
    scale = np.ldexp(1.0, exponents)
    bound = U * (norms(first) + 3.0 * norms(rest) + norms(residual)) + norms(residual)
    # One u more than gamma_d, for the sum of the two rounded products (which 3 |rest| above includes as well).
    products = frobenius_up(tail) * norms(unit) + frobenius_up(head) * norms(unit_tail)
    bound = (bound + gamma(d + 2) * products + underflow) * scale * _SLACK
    total = sqrt_up(sum_up(bound * bound * _SLACK))
    return (total if total < math.inf else math.inf), residual * scale[None, :]


def _norm_up(X: FloatArray) -> float:
    """Bound the spectral norm by min(Frobenius norm, sqrt(norm_1 norm_inf)) (Higham 2002, table 6.2)."""
    size = np.abs(X)
    slack = add_up(1.0, gamma(max(X.shape) + 2))
    sides = float(size.sum(axis=0).max()) * float(size.sum(axis=1).max())
    bound = mul_up(sqrt_up(mul_up(sides, slack, slack, slack)), _SLACK)
    return min(frobenius_up(X), bound) if bound < math.inf else math.inf


def row_rank_by_inverse(A: FloatArray, ball: Ball | None = None, least: float = 0.0) -> FullRank:
    r"""Prove that every matrix in a ball around ``A`` has full row rank, by a right inverse.

    Lemma. If :math:`\|I - A X\| = \varepsilon < 1` then A X is nonsingular, so A has full row rank, and
    :math:`s_{\min}(A) \ge (1 - \varepsilon) / \|X\|_2`. Proof: for a unit vector z,
    :math:`1 - \varepsilon \le \|(A X)^T z\| = \|X^T A^T z\| \le \|X\| \|A^T z\|`. A perturbation E adds
    :math:`\|E X\| \le \|E\| \|X\|` to :math:`\varepsilon`. After scaling of the rows by powers of
    two the proof works up to condition numbers slightly above 1e12: the rounding of X to float64 alone changes A X by
    about u times the condition number.

    Parameters
    ----------
    A : (N, d) float64
        Finite.
    ball : Ball, optional
        The matrices that the proof must cover.
    least : float
        A smaller bound is of no use: the proof is given up once s_min(A), rows scaled, is known to be smaller.

    Returns
    -------
    FullRank
        ``proved`` is a PROOF; ``factor`` is X for the matrix with rows scaled by ``2**exponents``.

    Examples
    --------
    >>> import numpy as np
    >>> proof = row_rank_by_inverse(np.vander(np.linspace(0.1, 1.0, 10), 12))
    >>> proof.proved, proof.s_min > 1e-9
    (True, True)
    """
    n, d = A.shape
    if n > d:
        return FullRank(False, 0.0, f"{n} rows in {d} columns are dependent")
    scaled = scale_rows(A, always=True)
    if scaled is None:
        return FullRank(False, 0.0, "a row is zero")
    radius = scaled.lost
    if ball is not None:
        radius = add_up(radius, ball.scaled(scaled.exponents).radius((n, d)))
    with np.errstate(all="ignore"):
        X = right_inverse(scaled.matrix, max(radius, least))
        if X is None:
            return FullRank(False, 0.0, "QR has a pivot that is as small as rounding errors or the ball")
        epsilon, residual = right_residual(scaled.matrix, X)
        if 0.5 < epsilon < 1e3:  # one Newton step, if it reduces the bound
            refined = X + X @ residual
            better, _ = right_residual(scaled.matrix, refined)
            if better < epsilon:
                X, epsilon = refined, better
        size = _norm_up(X)
    return _conclude(X, epsilon, size, radius, scaled, ball)


def _conclude(X: FloatArray, epsilon: float, size: float, radius: float, scaled: Scaled, ball: Ball | None) -> FullRank:
    if not (epsilon < 1.0 and size < math.inf):
        return FullRank(False, 0.0, f"||I - A X|| <= {epsilon:.1e} is not below 1")
    smallest = max(0.0, sub_down(div_down(max(0.0, sub_down(1.0, epsilon)), size), scaled.lost))
    s_min = scale_down(smallest, -int(scaled.exponents.max()))
    if not add_up(epsilon, mul_up(radius, size)) < 1.0:
        reason = f"the ball's radius {radius:.1e} exceeds the proved s_min {smallest:.1e} (rows scaled)"
        return FullRank(False, s_min, reason)
    without = _unscaled(X, epsilon, scaled) if ball is None else 0.0
    if without > s_min:  # X D is a right inverse of A itself
        unscaled = np.ldexp(X, scaled.exponents[None, :])
        return FullRank(True, without, "", 0.0, unscaled, np.zeros_like(scaled.exponents), without, residual=epsilon)
    return FullRank(True, s_min, "", 0.0, X, scaled.exponents, smallest, residual=epsilon)


def _unscaled(X: FloatArray, epsilon: float, scaled: Scaled) -> float:
    r"""Bound the smallest singular value of A itself from the right inverse X of D A; 0 if D varies too much.

    X D is a right inverse of A: :math:`I - A X D = D^{-1} (I - D A X) D`, of norm at most
    :math:`\varepsilon\, 2^{\max e - \min e}` for :math:`D = \mathrm{diag}(2^{e_i})`, and the lemma applies.
    """
    exponents = scaled.exponents
    spread = int(exponents.max()) - int(exponents.min())
    if spread == 0 or spread > 40 or bool(np.any(np.abs(exponents) > 400)):
        return 0.0
    with np.errstate(all="ignore"):
        size = _norm_up(np.ldexp(X, exponents[None, :]))
    bound = div_down(max(0.0, sub_down(1.0, scale_up(epsilon, spread))), add_up(size, mul_up(float(X.size), OMEGA)))
    return max(0.0, sub_down(bound, scale_up(scaled.lost, -int(exponents.min()))))
