"""Positive definiteness, and full row rank through the Gram matrix, by a verified Cholesky factorization.

A floating-point factorization that runs to completion proves a lower bound of the smallest eigenvalue
(:func:`rump_shift`). Full row rank of A is proved through A A^T: the cheapest proof, for condition numbers up to about
1e5.

The proofs assume that the BLAS and LAPACK of SciPy factor and solve by substitution, in any order;
:func:`substitution_fault` tests it. Multiplying by the rounded reciprocal of a pivot is allowed: :func:`rump_shift` has
room for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas, lapack

from alignver.kernel.exact import FARTHEST
from alignver.kernel.machine import distributed_fault, distrusted, product_fault, thread_fault
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

_SAFE = 200  # exponents: squares of entries from 2^-200 to 2^200 and their products lie well inside the range
_BLOCKS = 16  # of columns, in row_rank_by_some_columns
_UNEVEN = 16.0  # squared row norms that differ by a larger factor are equilibrated


@dataclasses.dataclass(frozen=True)
class FullRank:
    """The result of a proof of full row rank.

    Attributes
    ----------
    proved : bool
        Every matrix in the ball has full row rank.
    s_min : float
        Verified lower bound of the smallest singular value of the given matrix (the centre), >= 0.
    reason : str
        Why there is no proof; empty if there is one.
    shift : float
        A verified lower bound of the smallest eigenvalue of (D A)(D A)^T.
    factor : array or None
        The right inverse X, if the method computes one.
    exponents : array or None
        The row scaling D = diag(2**exponents), if there is a proof.
    scaled_s_min : float
        The bound ``s_min`` for D A.
    columns : array or None
        The columns that were used, if not all.
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
    """Rows multiplied by powers of two, with a bound of the change by underflow (spectral norm)."""

    matrix: FloatArray
    exponents: npt.NDArray[np.int64]
    lost: float


def rump_shift(n: int, trace: float, largest: float) -> float:
    r"""Return a bound of the backward error of any Cholesky factorization of order n that runs to completion.

    .. math:: \|L L^T - \tilde A\|_2 < c = \frac{\gamma_{n+2}}{1 - \gamma_{n+2}} \mathrm{tr}(\tilde A)
              + 8 n (n + 2 + \max_i \tilde a_{ii})\, \omega

    Derivation. Row by row, :math:`L L^T = \tilde A + E` with
    :math:`|E_{ij}| \le \gamma_{n+2} |l_i|^T |l_j|`, :math:`l_i` the i-th row of L (Higham 2002, Theorem 10.3,
    has :math:`\gamma_{n+1}`; one more factor covers the rounded reciprocal of a pivot). Its diagonal gives
    :math:`\|l_i\|^2 \le \tilde a_{ii} + \gamma \|l_i\|^2`, so :math:`\|l_i\|^2 \le \tilde a_{ii} / (1 -
    \gamma)`, and by Cauchy and Schwarz :math:`|E_{ij}| \le \frac{\gamma}{1-\gamma} \sqrt{\tilde a_{ii} \tilde
    a_{jj}}`: a rank-one matrix whose norm is its trace. With :math:`\gamma = \gamma_{n+2}`,
    :math:`\gamma/(1-\gamma) = (n+2)u / (1 - 2(n+2)u)`. Underflow: each of the at most n products in an entry
    loses at most :math:`\omega`, and so does the quotient, which is multiplied back by :math:`l_{jj} \le 1 + 2
    \max \tilde a`; the sum over a row, with a factor that covers the rounding of the sum itself, is the second
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
        The bound; infinity if n is too large.

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
    of its row. Without factorizations by substitution (:func:`substitution_fault`) it is None.
    """
    n = A.shape[0]
    work = np.array(A, dtype=np.float64, order="C", copy=True)
    diagonal = np.nextafter(np.diagonal(work) - shift, -np.inf)
    if substitution_fault() or not bool(np.all((diagonal > 0) & (diagonal < np.inf))):
        return None
    work.flat[:: n + 1] = diagonal
    # The transpose of a C-ordered matrix is Fortran-ordered: its upper triangle is the lower one of A.
    factor, info = lapack.dpotrf(work.T, lower=0, clean=0, overwrite_a=1)
    pivots = np.diagonal(factor)
    if info != 0 or not bool(np.all((pivots > 0) & (pivots < np.inf))):
        return None
    return np.asarray(factor, dtype=np.float64).T


def is_positive_definite(A: FloatArray, *, error: float = 0.0, shift: float = 0.0) -> bool:
    r"""Prove that :math:`\lambda_{\min}(A + E) > \text{shift}` for every symmetric E with :math:`\|E\|_2 \le`
    ``error``.

    The Cholesky factorization of a matrix with A's off-diagonal entries and a diagonal of at most
    :math:`a_{ii} - (c + \text{error} + \text{shift})`, c from :func:`rump_shift`, runs to completion with
    positive finite pivots. Then :math:`L L^T \succ 0` is within c of that matrix, so :math:`\lambda_{\min}(A) >
    \text{error} + \text{shift}`.

    Parameters
    ----------
    A : (n, n) float64
        Symmetric; only the lower triangle is read.
    error : float
        Bound of the error of A in the spectral norm, such as the largest row sum of entrywise bounds.
    shift : float
        The claimed lower bound of the smallest eigenvalue; >= 0.

    Returns
    -------
    bool
        True is a PROOF; False has no meaning.

    Examples
    --------
    >>> import numpy as np
    >>> is_positive_definite(np.eye(3)), is_positive_definite(np.ones((2, 2)))
    (True, False)
    """
    diagonal = np.diagonal(A)
    if not bool(np.all((diagonal > 0) & (diagonal < np.inf))):
        return False
    trace, largest = sum_up(diagonal), float(diagonal.max())
    total = add_up(rump_shift(A.shape[0], trace, largest), max(error, 0.0), max(shift, 0.0))
    with np.errstate(all="ignore"):
        return total < math.inf and factor_shifted(A, total) is not None


def estimate_smallest(L: FloatArray) -> float:
    """Return an estimate, not a bound, of the smallest eigenvalue of ``L L^T`` by inverse iteration."""
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


def safety_margin(n: int, error: float, trace: float, largest: float) -> float:
    """Return the number to subtract from the diagonal of a computed Gram matrix of order n before its factorization.

    It is a little more than twice the bound of all rounding errors, so that a check with another bound passes too.

    Parameters
    ----------
    n : int
    error : float
        Bound of the error of the computed matrix (spectral norm).
    trace, largest : float
        Upper bounds of the trace and the largest diagonal entry of the exact matrix.
    """
    # The computed diagonal may exceed the bounds of the exact one by its own error.
    backward = rump_shift(n, mul_up(trace, 1.0 + 2.0**-10), mul_up(largest, 1.0 + 2.0**-10))
    return add_up(mul_up(2.0, add_up(error, backward)), mul_up(32.0 * U, trace))


def verified_shift(gram: FloatArray, margin: float, guess: float = 0.0) -> float | None:
    """Return t >= 0 such that ``gram`` minus (margin + t) I has a Cholesky factorization, or None.

    A positive ``guess`` is tried first; it saves a factorization if it succeeds. Otherwise t is a fraction of the
    estimated smallest eigenvalue.
    """
    if guess > 0.01 * margin and factor_shifted(gram, add_up(margin, guess)) is not None:
        return guess
    factor = factor_shifted(gram, margin)
    if factor is None:
        return None
    estimate = estimate_smallest(factor)
    for fraction in (0.8, 0.3):
        shift = fraction * estimate
        if shift > 0.01 * margin and factor_shifted(gram, add_up(margin, shift)) is not None:
            return shift
    return 0.0


def scale_rows(A: FloatArray, *, always: bool = False) -> Scaled | None:
    r"""Scale every row to a largest entry in [1/2, 1); return None if a row is zero.

    Unless ``always`` is set, rows are scaled only if some row is far from that range.

    :math:`D A` with D a diagonal of powers of two has the rank of A, and
    :math:`s_{\min}(A) \ge s_{\min}(D A) / \max_i D_{ii}`. Multiplying by a power of two is exact unless an
    entry underflows, with an error of at most :math:`\omega`: :math:`\sqrt{N d}\, \omega` in norm.
    """
    with np.errstate(all="ignore"):
        largest = np.maximum(A.max(axis=1), -A.min(axis=1))
    if not bool(np.all((largest > 0) & (largest < np.inf))):
        return None
    # Rows of subnormal numbers stay below 2^-73; their squares are still far from underflow.
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
    :func:`safety_margin` adds the error of the factorization. A shift t that is accepted proves :math:`s_{\min}(D A) >
    \sqrt t`, and a perturbation E keeps full rank while :math:`\|D E\| < \sqrt t`.

    Parameters
    ----------
    A : (N, d) float64
        Finite. For N > d there is no proof.
    ball : Ball, optional
        The matrices that the proof must cover.
    quick : bool
        Accept a coarser bound of the smallest singular value if that saves a factorization.

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
    fault = substitution_fault()
    if fault:
        return FullRank(False, 0.0, fault)
    scaled = scale_rows(A)
    if scaled is None:
        return FullRank(False, 0.0, "a row is zero")
    with np.errstate(all="ignore"):
        return _from_gram(scaled, ball, quick)


def _from_gram(scaled: Scaled, ball: Ball | None, quick: bool) -> FullRank:
    n, d = scaled.matrix.shape
    gram = scaled.matrix @ scaled.matrix.T
    # The diagonal entries are computed inner products: fl(|a|^2) >= (1 - gamma_d) |a|^2 - d OMEGA.
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
    # Each entry lost at most (d + 1) OMEGA before its multiplication by up to 4^max(halves), and OMEGA in each of the
    # two multiplications.
    lift = 2 * max(0, int(halves.max()))
    underflow = add_up(scale_up(mul_up(float(n), float(d + 2), OMEGA), lift), mul_up(2.0, float(n), OMEGA))
    trace = sum_up(squares)
    error = add_up(mul_up(gamma(d), trace), underflow)
    margin = safety_margin(n, error, trace, float(squares.max()))
    if not (margin < math.inf and gamma(d) < 2.0**-11):
        return FullRank(False, 0.0, "the matrix is too large for the bound")
    # A quarter of the value for independent random columns (Marchenko and Pastur).
    guess = 0.25 * float(np.diagonal(gram).min()) * (1.0 - math.sqrt(n / d)) ** 2 if quick else 0.0
    shift = verified_shift(gram, margin, guess)
    if shift is None:
        reason = f"A A^T is not safely definite: a shift of {margin:.1e} times its scale breaks Cholesky"
        return FullRank(False, 0.0, reason)
    exponents = scaled.exponents + halves
    lost = scale_up(scaled.lost, int(halves.max()))
    smallest = max(0.0, sub_down(sqrt_down(shift), lost))
    s_min = scale_down(smallest, -int(exponents.max()))
    radius = lost if ball is None else add_up(lost, ball.scaled(exponents).radius((n, d)))
    if radius > 0.0 and not sqrt_down(shift) > radius:
        reason = f"the ball's radius {radius:.1e} exceeds the proved s_min {smallest:.1e} (rows scaled)"
        return FullRank(False, s_min, reason)
    return FullRank(True, s_min, "", shift, None, exponents, smallest)


def row_rank_by_some_columns(A: FloatArray) -> FullRank | None:
    r"""Prove full row rank of a very wide matrix from a part of its columns; return None if it is not very wide.

    The number of columns is 5/4 of the number of rows.
    :math:`s_{\min}(A) \ge s_{\min}(A_S)` for any set S of columns, since
    :math:`\|A^T z\|^2 = \|A_S^T z\|^2 + \|A_{S'}^T z\|^2`. A Gram matrix of fewer columns costs less. If the
    columns are in general position it proves full rank as well, with a weaker bound. S consists of blocks spread over
    the whole width.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.random.default_rng(0).standard_normal((64, 1000))
    >>> row_rank_by_some_columns(A).proved
    True
    """
    n, d = A.shape
    count = n + n // 4 + 1
    if n < 64 or 2 * count > d:
        return None
    width = -(-count // _BLOCKS)
    starts = np.linspace(0, d - width, _BLOCKS).astype(np.int64)
    columns = (starts[:, None] + np.arange(width)).reshape(-1)
    return dataclasses.replace(row_rank_by_gram(np.take(A, columns, axis=1), quick=True), columns=columns)


_LARGE, _SMALL = 2**25, 2**12  # products with up to 2^16 terms stay below 2^53
_GRADES = 40


def substitution_fault() -> str:
    r"""Return how SciPy's BLAS and LAPACK deviate from what a proof by Cholesky assumes; an empty string if not.

    The test runs once in a process, in a thread that rounds to nearest.

    **Integers.** L has ones on its diagonal, large integers below them and small ones elsewhere, so that the entries of
    :math:`|L| |L^T|` are below :math:`2^{53}`. Every intermediate result of a factorization of :math:`L L^T`, or of a
    solve with L, is an integer below that, in any order and with any blocks: L itself comes out. The inverses of
    diagonal blocks of order 3 or more have entries of :math:`2^{50}`, so a routine that multiplies by them does not
    give L.

    **Grades.** :math:`D A D` has the factor :math:`D L`, D a diagonal of powers of two, and each rounding error is
    scaled with it. A scheme that adds entries of different rows, like Strassen's, loses the small rows.

    Examples
    --------
    >>> substitution_fault()
    ''
    """
    return thread_fault() or distrusted("factorizations") or _substitution_tested()


@functools.cache
def _substitution_tested() -> str:
    fault = distributed_fault(multiply=blas_product) or product_fault(96, blas_product)
    return f"SciPy's BLAS: {fault}" if fault else solve_fault(72)


def blas_product(A: Any, B: Any) -> Any:
    """Return the product of two matrices, or of two vectors, by SciPy's BLAS."""
    return blas.dgemm(1.0, A, B) if A.ndim == 2 else blas.ddot(A, B)


def solve_fault(order: int) -> str:
    """Return how a factorization and a triangular solve of this order deviate from substitution.

    Examples
    --------
    >>> solve_fault(20)
    ''
    """
    source = np.random.default_rng(order)
    L = np.tril(source.integers(-_SMALL, _SMALL, (order, order)), -1)
    np.fill_diagonal(L, 1)
    L[np.arange(1, order), np.arange(order - 1)] = _LARGE
    lower, X = L.astype(np.float64), source.integers(-_SMALL, _SMALL, (32, order))
    # As in alignver.proof.cholesky and alignver.features.tiles: a row-major lower triangle is LAPACK's upper one.
    factor, info = lapack.dpotrf((L @ L.T).astype(np.float64).T, lower=0, clean=1)
    if info != 0 or not np.array_equal(factor.T, lower):
        return f"LAPACK's Cholesky factorization of order {order} is not computed by substitution"
    if not np.array_equal(blas.dtrsm(1.0, lower.T, (X @ L.T).T.astype(np.float64), lower=0, trans_a=1), X.T):
        return f"triangular solves of order {order} are not computed by substitution"
    powers = 2.0 ** source.integers(-_GRADES, _GRADES, order)
    A = np.eye(order) + source.uniform(-0.5 / order, 0.5 / order, (order, order))
    A = np.tril(A) + np.tril(A, -1).T  # dominated by its diagonal: the factor's condition number is below 3
    (plain, _), (graded, info) = (
        lapack.dpotrf(M, lower=0, clean=1) for M in (A, powers[:, None] * A * powers[None, :])
    )
    # Both are within n u of the exact factor, up to a small factor: far from what grades of 2^-40 lose.
    same = info == 0 and bool(np.all(np.abs(graded / powers - plain) <= order * 2.0**-46))
    return "" if same else f"LAPACK's Cholesky factorization of order {order} does not compute inner products"
