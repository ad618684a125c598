r"""Gram matrices in twice the precision, and a matrix with the singular values of the one that they belong to.

The Gram matrix :math:`M = J J^\top` squares the condition number: in float64, singular values of J below
:math:`\sqrt{\varepsilon} s_1` are lost. With M as an unevaluated sum of two float64 matrices they are preserved, and M
is cheap where J has structure: the share of a linear layer is :math:`(A A^\top) \circ (B B^\top)`.

**Products** (:func:`gram`). Each row of A is cut into :math:`A_0 + A_1 + A_2`, where :math:`A_0` and :math:`A_1` have
w bits and :math:`k 2^{2w} \le 2^{53}`: then :math:`A_0 A_0^\top` and :math:`A_0 A_1^\top + A_1 A_0^\top` are exact,
since all partial sums are integers below :math:`2^{53}` times one power of two for each pair of rows (Ozaki, Ogita,
Oishi, Rump, Error-free transformations of matrix multiplication, Numerical Algorithms 59, 2012). The other products are
smaller than the largest entries of their rows by :math:`2^{-2w}`, and so are their rounding errors: about
:math:`2^{-95}` relative to the product of the largest entries, for rows of a few hundred entries.

**Factor** (:func:`factor`). With orthogonal V from an eigendecomposition of M in float64, the diagonal D^2 of
:math:`V^\top M V`, formed in twice the precision, spans the whole range, and

.. math:: V^\top M V = D C D, \qquad T = V D L, \qquad L L^\top = C, \qquad T T^\top = M

with a correlation matrix C, rounded to float64. V is accurate to :math:`p \varepsilon s_1^2` for a modest p, so the
entries of C - I are at most :math:`p \varepsilon s_1^2 / (D_i D_j)`: rows of D in descending order, C has a leading
block with eigenvalues above :data:`_CLEAR` that includes all rows with :math:`D_i \ge \sqrt{2 p \varepsilon} s_1`, and
the Cholesky factor of this block is accurate. What elimination leaves of the other rows, S, has errors of about
:math:`\varepsilon D_i D_j` over :data:`_CLEAR`, that is of :math:`(\varepsilon s_1)^2`, so its square root from an
eigendecomposition is accurate to the order of eps s_1, to which J itself is known.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack, solve_triangular

FloatArray = npt.NDArray[np.float64]
DoubleDouble = tuple[FloatArray, FloatArray]
"""The unevaluated sum of a matrix and a correction, each entry of which is at most half a unit in the last place."""

_CLEAR = 2.0**-5  # least eigenvalue of the block of C that is factored by Cholesky


def gram(A: FloatArray) -> DoubleDouble:
    """Return A A^T for A (n, k), finite, with squares that neither overflow nor underflow.

    Examples
    --------
    >>> high, low = gram(np.array([[1.0, 2.0**-40]]))
    >>> high.item() == 1.0 and low.item() == 2.0**-80
    True
    """
    first, tail, parts = _split(A)
    exact, rounded = (parts.reshape(-1, A.shape[1]) @ first.T).reshape(2, len(A), len(A))
    high, low = _two_sum(first @ first.T, exact + exact.T)
    return _normalized(high, low + (rounded + rounded.T + tail @ tail.T))


def add(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    """Return a + b."""
    high, low = _two_sum(a[0], b[0])
    return _normalized(high, low + (a[1] + b[1]))


def multiply(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    """Return the entrywise product (Hadamard product) of a and b."""
    high = a[0] * b[0]
    (a0, a1), (b0, b1) = _halves(a[0]), _halves(b[0])
    low = ((a0 * b0 - high) + a0 * b1 + a1 * b0) + a1 * b1  # a[0] b[0] = high + low (Dekker)
    return _normalized(high, low + (a[0] * b[1] + a[1] * b[0]))


def factor(M: DoubleDouble) -> FloatArray:
    r"""Return T (N x N) with :math:`T T^\top = M` and the singular values of J to :math:`O(\varepsilon s_1)`.

    Parameters
    ----------
    M : DoubleDouble
        J J^T, (N, N).

    Returns
    -------
    (N, N) float64
        Same column space and singular values as J, up to a perturbation of J of the order of eps ||J||.

    Notes
    -----
    Rigor: floating-point; the error analysis is in the module's docstring.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> J = np.diag(10.0 ** -np.arange(0, 14, 2)) @ rng.standard_normal((7, 90))
    >>> T = factor(gram(J))
    >>> s, t = (np.linalg.svd(A, compute_uv=False) for A in (J, T))
    >>> bool(np.all(np.abs(s - t) <= 1e-14 * s[0]))
    True
    """
    high, low = M
    N = len(high)
    V: FloatArray = np.linalg.eigh(high)[1]
    rotated = _rotated(high, low, V)
    norms = np.sqrt(np.maximum(rotated.diagonal(), 0.0))
    order = np.argsort(-norms, kind="stable")
    V, norms, rotated = V[:, order], norms[order], rotated[np.ix_(order, order)]
    if norms[0] == 0.0:
        return np.zeros((N, N))
    scale = np.where(norms > 0.0, norms, 1.0)
    C = rotated / scale[:, None] / scale
    failed = int(lapack.dpotrf(C - _CLEAR * np.eye(N), lower=1)[1])  # the first row that is not clear of the others
    count = failed - 1 if failed else N
    L = np.zeros((N, N))  # D L
    clear = lapack.dpotrf(C[:count, :count], lower=1)[0]
    L[:count, :count] = norms[:count, None] * clear
    if count < N and norms[count] > 0.0:
        rest = solve_triangular(clear, C[:count, count:], lower=True, check_finite=False).T
        small = norms[count:, None] / norms[count]
        values, vectors = np.linalg.eigh(small * (C[count:, count:] - rest @ rest.T) * small.T)
        L[count:, :count] = norms[count:, None] * rest
        L[count:, count:] = norms[count] * vectors * np.sqrt(np.maximum(values, 0.0))
    T: FloatArray = V @ L
    return T


def _rotated(high: FloatArray, low: FloatArray, V: FloatArray) -> FloatArray:
    """Return V^T (high + low) V, rounded after it is formed in twice the precision."""
    VT = np.ascontiguousarray(V.T)
    image, correction = _product(high, VT)
    whole, rest = _product(VT, np.ascontiguousarray(image.T))
    whole = whole + (rest + VT @ (correction + low @ V))
    rounded: FloatArray = (whole + whole.T) / 2.0
    return rounded


def _product(A: FloatArray, B: FloatArray) -> DoubleDouble:
    """Return A B^T."""
    (a0, a, (a1, a2)), (b0, b, (b1, b2)) = _split(A), _split(B)
    high, low = _two_sum(a0 @ b0.T, np.hstack((a0, a1)) @ np.hstack((b1, b0)).T)
    return _normalized(high, low + np.hstack((a0, a2, a)) @ np.hstack((b2, b0, b)).T)


def _split(A: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return A_0, A_1 + A_2, and both of these."""
    width = (53 - math.ceil(math.log2(A.shape[1]))) // 2
    top = np.frexp(np.maximum(A.max(1), -A.min(1)))[1]
    shift = np.ldexp(1.5, top + (52 - width))[:, None]  # A + shift rounds A to multiples of 2^(top - width)
    first = A + shift
    first -= shift
    tail = A - first
    parts = np.empty((2, *A.shape))
    shift *= 2.0**-width
    np.add(tail, shift, out=parts[0])
    parts[0] -= shift
    np.subtract(tail, parts[0], out=parts[1])
    return first, tail, parts


def _two_sum(a: FloatArray, b: FloatArray) -> DoubleDouble:
    """Return a + b exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _normalized(high: FloatArray, low: FloatArray) -> DoubleDouble:
    """Return high + low with a correction that is small beside the sum (Dekker)."""
    total = high + low
    return total, low - (total - high)


def _halves(a: FloatArray) -> DoubleDouble:
    """Cut a into two parts of 26 bits (Veltkamp)."""
    t = 134217729.0 * a
    head = t - (t - a)
    return head, a - head
