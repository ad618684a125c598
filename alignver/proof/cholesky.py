"""Positive definiteness proved by a floating-point Cholesky factorization.

Full row rank proved through the Gram matrix A A^T: the cheapest proof, good to condition numbers of about
1e5.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from alignver.kernel.exact import FARTHEST
from alignver.proof.decision import Ball
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    U,
    add_up,
    div_up,
    gamma,
    mul_up,
    scale_down,
    scale_up,
    sqrt_down,
    sub_down,
    sum_up,
)

__all__ = [
    "FullRank",
    "Scaled",
    "estimate_smallest",
    "factor_shifted",
    "is_positive_definite",
    "row_rank_by_gram",
    "row_rank_by_some_columns",
    "rump_shift",
    "scale_rows",
]


def rump_shift(n: int, trace: float, largest: float) -> float:
    r"""Return a bound of the backward error of any Cholesky factorization of order n that runs to completion.

    .. math:: \|L L^T - \tilde A\|_2 < c = \frac{\gamma_{n+2}}{1 - \gamma_{n+2}} \mathrm{tr}(\tilde A)
              + 8 n (n + 2 + \max_i \tilde a_{ii})\, \omega

    Derivation. Row by row, :math:`L L^T = \tilde A + E` with
    :math:`|E_{ij}| \le \gamma_{n+2} |l_i|^T |l_j|`, :math:`l_i` the i-th row of L (Higham 2002, Theorem 10.3,
    has :math:`\gamma_{n+1}`; one more factor pays for a pivot's rounded reciprocal). Its diagonal says
    :math:`\|l_i\|^2 \le \tilde a_{ii} + \gamma \|l_i\|^2`, so :math:`\|l_i\|^2 \le \tilde a_{ii} / (1 -
    \gamma)`, and by Cauchy and Schwarz :math:`|E_{ij}| \le \frac{\gamma}{1-\gamma} \sqrt{\tilde a_{ii} \tilde
    a_{jj}}`: a rank-one matrix whose norm is its trace. With :math:`\gamma = \gamma_{n+2}`,
    :math:`\gamma/(1-\gamma) = (n+2)u / (1 - 2(n+2)u)`. Underflow: the at most n products behind an entry lose
    at most :math:`\omega` each, and so does the quotient, which is multiplied back by :math:`l_{jj} \le 1 + 2
    \max \tilde a`; summed over a row, with a factor left over for their own rounding, that is the second
    term. Source of the theorem: S. M. Rump, *Verification of positive definiteness*, BIT Numerical
    Mathematics 46 (2006) 433-452.

    Parameters
    ----------
    n : int
        Order of the matrix.
    trace, largest : float
        Upper bounds of the trace and of the largest diagonal entry (float64).

    Returns
    -------
    float
        The bound; infinity where n is too large for one.

    Examples
    --------
    >>> 0 < rump_shift(100, 100.0, 1.0) < 2e-12
    True
    """
    g = gamma(n + 2)
    if not g < 0.25:
        return math.inf
    relative = mul_up(div_up(g, sub_down(1.0, g)), trace)
    return add_up(relative, mul_up(8.0, float(n), add_up(float(n + 2), largest), OMEGA))


def factor_shifted(A: FloatArray, shift: float) -> FloatArray | None:
    r"""Return the Cholesky factor of a matrix whose diagonal is at most that of :math:`A - \text{shift} \cdot
    I`, or None.

    Only the lower triangle of ``A`` is read; the factor (Fortran order, upper triangle undefined) has a
    positive finite diagonal, hence finite entries: an infinite or NaN entry would have reached the diagonal
    of its row.
    """
    n = A.shape[0]
    work = np.array(A, dtype=np.float64, order="C", copy=True)
    diagonal = np.nextafter(np.diagonal(work) - shift, -np.inf)
    if not bool(np.all((diagonal > 0) & (diagonal < np.inf))):
        return None
    work.flat[:: n + 1] = diagonal
    # The transpose of a C-ordered matrix is Fortran-ordered: factor its upper triangle, which is A's lower
    # one.
    factor, info = lapack.dpotrf(work.T, lower=0, clean=0, overwrite_a=1)
    pivots = np.diagonal(factor)
    if info != 0 or not bool(np.all((pivots > 0) & (pivots < np.inf))):
        return None
    return np.asarray(factor, dtype=np.float64).T


def _bounds(A: FloatArray) -> tuple[float, float]:
    diagonal = np.diagonal(A)
    if not bool(np.all((diagonal > 0) & (diagonal < np.inf))):
        return math.inf, math.inf
    return sum_up(diagonal), float(diagonal.max())


def is_positive_definite(A: FloatArray, *, error: float = 0.0, shift: float = 0.0) -> bool:
    r"""Prove that :math:`\lambda_{\min}(A + E) > \text{shift}` for every symmetric E with :math:`\|E\|_2 \le`
    ``error``.

    The Cholesky factorization of a matrix with A's off-diagonal entries and a diagonal of at most
    :math:`a_{ii} - (c + \text{error} + \text{shift})`, c from :func:`rump_shift`, runs to completion with
    positive finite pivots. Then :math:`L L^T \succ 0` is within c of it, so :math:`\lambda_{\min}(A) >
    \text{error} + \text{shift}`.

    Parameters
    ----------
    A : (n, n) float64
        Symmetric; only the lower triangle is read.
    error : float
        Bound of the spectral norm of what A may be wrong by (the largest row sum of entrywise bounds, say).
    shift : float
        What the smallest eigenvalue is claimed to exceed; >= 0.

    Returns
    -------
    bool
        True is a PROOF; False says nothing.

    Examples
    --------
    >>> import numpy as np
    >>> is_positive_definite(np.eye(3)), is_positive_definite(np.ones((2, 2)))
    (True, False)
    """
    trace, largest = _bounds(A)
    total = add_up(rump_shift(A.shape[0], trace, largest), max(error, 0.0), max(shift, 0.0))
    with np.errstate(all="ignore"):
        return total < math.inf and factor_shifted(A, total) is not None


def estimate_smallest(L: FloatArray) -> float:
    """Return an estimate (no bound) of the smallest eigenvalue of ``L L^T`` by inverse iteration."""
    n = L.shape[0]
    x = np.random.default_rng(0).standard_normal(n)
    value = 0.0
    for _ in range(5):
        x /= float(np.linalg.norm(x)) or 1.0
        x, _info = lapack.dpotrs(L.T, x, lower=0)
        size = float(np.linalg.norm(x))
        if not 0.0 < size < math.inf:
            return 0.0
        value = 1.0 / size
    return value


_SAFE = 200  # rows between 2^-200 and 2^200: squares and their products neither over- nor underflow to any effect
_BLOCKS = 16  # of columns, in row_rank_by_some_columns
_UNEVEN = 16.0  # squared row norms that differ by more than this are equilibrated


@dataclasses.dataclass(frozen=True)
class FullRank:
    """What a proof of full row rank gives, or why it gave none.

    Attributes
    ----------
    proved : bool
        Every matrix of the ball has full row rank.
    s_min : float
        Verified lower bound of the smallest singular value of the given matrix (the centre), >= 0.
    columns : array or None
        Which columns were used, where not all of them.
    exponents : array or None
        The rows' scaling D = diag(2**exponents), where there is a proof.
    scaled_s_min : float
        The same bound for D A.
    reason : str
        Why there is no proof; empty when there is.
    shift : float
        What the smallest eigenvalue of (D A)(D A)^T was proved to exceed.
    factor : array or None
        The right inverse X, where the method has one.
    residual : float
        Bound of ||I - D A X||.
    """

    proved: bool
    s_min: float
    reason: str
    shift: float = 0.0
    factor: FloatArray | None = None
    exponents: npt.NDArray[np.int64] | None = None
    scaled_s_min: float = 0.0
    columns: npt.NDArray[np.int64] | None = None
    residual: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Rows multiplied by powers of two, with a bound of what underflow changed (spectral norm)."""

    matrix: FloatArray
    exponents: npt.NDArray[np.int64]
    lost: float


def scale_rows(A: FloatArray, *, always: bool = False) -> Scaled | None:
    r"""Scale every row to a largest entry in [1/2, 1) if some row is far from it, or ``always``; None for a
    zero row.

    :math:`D A` with D a diagonal of powers of two has the rank of A, and
    :math:`s_{\min}(A) \ge s_{\min}(D A) / \max_i D_{ii}`. Multiplying by a power of two is exact unless an
    entry underflows, where it is off by at most :math:`\omega`: :math:`\sqrt{N d}\, \omega` in norm.
    """
    with np.errstate(all="ignore"):
        largest = np.maximum(A.max(axis=1), -A.min(axis=1))
    if not bool(np.all((largest > 0) & (largest < np.inf))):
        return None
    # Rows of subnormal numbers stay below 2^-73: their squares are far from underflow all the same.
    exponents = np.clip(np.frexp(largest)[1].astype(np.int64), -FARTHEST, FARTHEST)
    if not always and int(exponents.min()) > -_SAFE and int(exponents.max()) < _SAFE:
        return Scaled(A, np.zeros(A.shape[0], dtype=np.int64), 0.0)
    with np.errstate(all="ignore"):
        scaled = np.ldexp(A, -exponents[:, None])
    return Scaled(scaled, -exponents, mul_up(float(A.shape[0]), float(A.shape[1]), OMEGA))


def row_rank_by_gram(A: FloatArray, ball: Ball | None = None, *, quick: bool = False) -> FullRank:
    r"""Prove that every matrix of a ball around ``A`` has full row rank, by a verified Cholesky factorization
    of A A^T.

    With rows scaled by powers of two, :math:`|fl(A A^T) - A A^T|_{ij} \le \gamma_d \|a_i\| \|a_j\| + d
    \omega`: a rank-one matrix of norm :math:`\gamma_d \sum_i \|a_i\|^2` and an underflow term of norm
    :math:`N d \omega` (Higham 2002, eq. (3.5), then Cauchy and Schwarz).
    :func:`~alignver.proof.cholesky.rump_shift` adds the factorization's own error. The shift t that
    passes proves :math:`s_{\min}(D A) > \sqrt t`, and a perturbation E keeps full rank while :math:`\|D E\| <
    \sqrt t`.

    Parameters
    ----------
    A : (N, d) float64
        Finite. N > d is answered at once.
    ball : Ball, optional
        The matrices that the proof has to cover.
    quick : bool
        Be content with a coarser bound of the smallest singular value where that saves a factorization.

    Returns
    -------
    FullRank
        ``proved`` is a PROOF.

    Examples
    --------
    >>> import numpy as np
    >>> row_rank_by_gram(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])).proved
    True
    """
    n, d = A.shape
    if n > d:
        return FullRank(False, 0.0, f"{n} rows in {d} columns are dependent")
    scaled = scale_rows(A)
    if scaled is None:
        return FullRank(False, 0.0, "a row is zero")
    with np.errstate(all="ignore"):
        return _from_gram(scaled, ball, quick)


def _from_gram(scaled: Scaled, ball: Ball | None, quick: bool) -> FullRank:
    n, d = scaled.matrix.shape
    gram = scaled.matrix @ scaled.matrix.T
    # The diagonal is a computed inner product like any other: fl(|a|^2) >= (1 - gamma_d) |a|^2 - d OMEGA.
    inflate = div_up(1.0, sub_down(1.0, gamma(d)))
    squares = np.nextafter(np.nextafter(np.diagonal(gram) + mul_up(float(d), OMEGA), np.inf) * inflate, np.inf)
    if not bool(np.all(squares < np.inf)):
        return FullRank(False, 0.0, "A A^T overflows")
    halves = -(np.frexp(squares)[1].astype(np.int64) // 2)
    if float(squares.max()) <= _UNEVEN * float(squares.min()):
        halves[:] = 0
    halves = np.clip(scaled.exponents + halves, -FARTHEST, FARTHEST) - scaled.exponents
    if bool(np.any(halves)):  # |halves| <= about _SAFE: the powers and both products are far from overflow
        power = np.ldexp(1.0, halves)
        gram *= power[:, None]
        gram *= power[None, :]
        squares = np.nextafter(np.ldexp(squares, 2 * halves), np.inf)
    # Each entry lost at most (d + 1) OMEGA before it was multiplied by up to 4^max(halves), and OMEGA in
    # each of the two multiplications.
    lift = 2 * max(0, int(halves.max()))
    underflow = add_up(scale_up(mul_up(float(n), float(d + 2), OMEGA), lift), mul_up(2.0, float(n), OMEGA))
    trace = sum_up(squares)
    error = add_up(mul_up(gamma(d), trace), underflow)
    # The diagonal is computed too: it may exceed the bounds of the exact squares by its own error.
    backward = rump_shift(n, mul_up(trace, 1.0 + 2.0**-10), mul_up(float(squares.max()), 1.0 + 2.0**-10))
    # Twice what Rump's theorem asks and a little: an independent check by another bound needs some of the
    # room.
    margin = add_up(mul_up(2.0, add_up(error, backward)), mul_up(32.0 * U, trace))
    if not (margin < math.inf and gamma(d) < 2.0**-11):
        return FullRank(False, 0.0, "the matrix is too large for the bound")
    proved_shift = 0.0
    if quick:
        # A quarter of what independent random columns would give (Marchenko and Pastur): a guess, then proved
        # or dropped.
        guess = 0.25 * float(np.diagonal(gram).min()) * (1.0 - math.sqrt(n / d)) ** 2
        if guess > 0.01 * margin and factor_shifted(gram, add_up(margin, guess)) is not None:
            proved_shift = guess
    factor = None if proved_shift else factor_shifted(gram, margin)
    exponents = scaled.exponents + halves
    radius = add_up(scaled.lost and scale_up(scaled.lost, int(halves.max())))
    if ball is not None:
        radius = add_up(radius, ball.scaled(exponents).radius((n, d)))
    if factor is None and not proved_shift:
        return FullRank(
            False,
            0.0,
            f"A A^T is not safely definite: a shift of {margin:.1e} times its scale breaks Cholesky",
        )
    estimate = 0.0 if factor is None else estimate_smallest(factor)
    for fraction in (0.8, 0.3):
        shift = fraction * estimate
        if shift > 0.01 * margin and factor_shifted(gram, add_up(margin, shift)) is not None:
            proved_shift = shift
            break
    smallest = max(0.0, sub_down(sqrt_down(proved_shift), scaled.lost and scale_up(scaled.lost, int(halves.max()))))
    s_min = scale_down(smallest, -int(exponents.max()))
    if radius > 0.0 and not sqrt_down(proved_shift) > radius:
        reason = f"the ball's radius {radius:.1e} reaches past the proved s_min {smallest:.1e} (rows scaled)"
        return FullRank(False, s_min, reason)
    return FullRank(True, s_min, "", proved_shift, None, exponents, smallest)


def row_rank_by_some_columns(A: FloatArray) -> FullRank | None:
    r"""Prove full row rank of a very wide matrix from a quarter more columns than it has rows; None if it is
    not very wide.

    :math:`s_{\min}(A) \ge s_{\min}(A_S)` for any set S of columns, since
    :math:`\|A^T z\|^2 = \|A_S^T z\|^2 + \|A_{S'}^T z\|^2`. A Gram matrix of fewer columns costs less, and
    where the columns are in general position it proves as much, at a weaker bound. S is made of blocks spread
    over the whole width.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((64, 1000))
    >>> row_rank_by_some_columns(A).proved
    True
    """
    n, d = A.shape
    wanted = n + n // 4 + 1
    if n < 64 or 2 * wanted > d:
        return None
    width = -(-wanted // _BLOCKS)
    starts = np.linspace(0, d - width, _BLOCKS).astype(np.int64)
    columns = (starts[:, None] + np.arange(width)).reshape(-1)
    proof = row_rank_by_gram(
        np.concatenate([A[:, start : start + width] for start in starts.tolist()], axis=1), quick=True
    )
    return dataclasses.replace(proof, columns=columns)
