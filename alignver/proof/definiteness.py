"""Positive definiteness proved by a floating-point Cholesky factorization."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import lapack

from alignver.proof.rounding import OMEGA, FloatArray, add_up, div_up, gamma, mul_up, sub_down, sum_up

__all__ = ["estimate_smallest", "factor_shifted", "is_positive_definite", "rump_shift"]


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
