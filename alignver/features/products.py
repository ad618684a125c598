r"""The matrix phi of the paper: its gates with an error bound, phi as a dense matrix and operator, and its Gram matrix.

The gate is s(x) = 1 / (1 + e^-x), computed without a library's exp. As an operator phi needs O(n m h) operations and
O(n (m + h)) memory. Its Gram matrix is (S S^T) o (Z Z^T), computed tile by tile, with rows scaled by powers of two.
"""

from __future__ import annotations

import math

import numpy as np

from alignver.arrays import Array, namespace
from alignver.errors import InvalidInput
from alignver.proof.gram_tiles import ScaledGram
from alignver.proof.rounding import OMEGA, FloatArray, add_up, gamma, mul_up, sqrt_up, square_sums_up, sum_up

GATE_ERROR = 2.0**-45
r"""Bound of the relative error of :func:`logistic`: 256 u.

Derivation. With y = -|x| >= -700 and k = rint(y log2 e), |k| <= 1010, r = (y - k L1) - k L2, L1 the first 32 bits of
ln 2, so that k L1 is exact, L1 + L2 = ln 2 up to 2^-86. The two subtractions and k L2 (below 2^-22) round by less
than u together times 0.36, 0.36 and 2^-22, so r is off by less than u, and |r| < 0.35 (k is off by at most one unit
in the last place of y log2 e from the nearest integer). Taylor's polynomial of degree 14 is off by 0.35^15/15! e^0.35
< 2^-62; Horner's rule rounds it by gamma_43 p(|r|) <= 43 u e^0.7 p(r) (1 + small) < 88 u p(r) (Higham 2002, section
5.1, with one more rounding for each coefficient). So e^y has a relative error below 92 u. Then 1 + e: below 93 u, and
e / (1 + e): below 92 + 93 + 1 < 190 u.
"""

GATE_UNDERFLOW = 2.0**-1000
"""For |x| > 700, e^-700 = 2^-1009.9 replaces e^-|x|: both are below this bound."""

_LOG2E = 1.4426950408889634
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = [1.0 / math.factorial(k) for k in range(14, -1, -1)]
_LIBRARY = 2.0**-38  # the relative error of a gate in a re-check that relies on a library's exponential
_EXPONENTS = 390  # of norms of rows and gates: products of four stay in range, here and in a re-check


def logistic(x: FloatArray) -> FloatArray:
    r"""Return 1 / (1 + e^-x) with a relative error of at most :data:`GATE_ERROR`, up to :data:`GATE_UNDERFLOW`.

    Parameters
    ----------
    x : float64 array
        Finite.

    Returns
    -------
    float64 array
        In (0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> logistic(np.array([-800.0, 0.0, 800.0]))
    array([9.85967654e-305, 5.00000000e-001, 1.00000000e+000])
    """
    y = np.maximum(-np.abs(x), -700.0)
    k = np.rint(y * _LOG2E)
    r = (y - k * _LN2_HIGH) - k * _LN2_LOW
    power = np.full_like(r, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        power *= r
        power += coefficient
    power = np.ldexp(power, k.astype(np.int32))
    value: FloatArray = np.where(x >= 0.0, 1.0, power) / (1.0 + power)
    return value


def logistic_plain(x: Array) -> Array:
    """Return 1 / (1 + e^-x) in any array namespace, by its exp function and without an error bound."""
    xp = namespace(x)
    power = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(x), power) / (1.0 + power)


def gate_matrix(Z: FloatArray, q: FloatArray) -> FloatArray:
    """Return S (k, h) with entries s(z_i^T q_k), for Z (k, m) and gates q (m, h)."""
    return logistic(Z @ q)


def gate_matrix_error(m: int, longest_row: float, longest_gate: float, delta: float = 0.0) -> float:
    r"""Return a bound of the relative error of every entry of :func:`gate_matrix`, besides :data:`GATE_UNDERFLOW`.

    The argument is off by at most :math:`\gamma_m \|z_i\| \|q_k\| + m\omega + \delta \|q_k\|` =: e, and
    :math:`(\log s)' = 1 - s \in (0, 1)`, so s is off by a factor between e^-e and e^e; e^e - 1 <= 2 e for e <= 1.
    The bound is infinity if e > 1/4.
    """
    argument = add_up(mul_up(gamma(m), longest_row, longest_gate), mul_up(float(m), OMEGA), mul_up(delta, longest_gate))
    if not argument <= 0.25:
        return math.inf
    return add_up(mul_up(2.0, argument), mul_up(GATE_ERROR, add_up(1.0, mul_up(2.0, argument))))


def dense_phi(Z: Array, q: Array, weights: Array | None = None) -> Array:
    r"""Return :math:`\phi(q)` (n, h m), or :math:`\phi(q) (\mathrm{diag}(w) \otimes I)` with output weights.

    Parameters
    ----------
    Z : (n, m) array
        With the constant 1 as last column.
    q : (m, h) array
    weights : (h,) array, optional

    Returns
    -------
    (n, h m) array
        Column k m + a holds s(z_i^T q_k) z_ia (w_k).

    Examples
    --------
    >>> import numpy as np
    >>> dense_phi(np.array([[2.0, 1.0]]), np.zeros((2, 2)))
    array([[1. , 0.5, 1. , 0.5]])
    """
    S = logistic_plain(Z @ q)
    return row_kronecker(S if weights is None else S * weights[None, :], Z)


def row_kronecker(S: Array, Z: Array) -> Array:
    r"""Return the matrix with rows :math:`S_i \otimes z_i`, (n, h m), for S (n, h) and Z (n, m)."""
    return namespace(Z).reshape(S[:, :, None] * Z[:, None, :], (int(Z.shape[0]), -1))


class Phi:
    r"""The matrix with rows :math:`S_i \otimes z_i`, as a linear operator.

    .. math:: \phi\, \mathrm{vec}(T) = \mathrm{rowsum}(S \circ Z T), \qquad
              \phi^\top r = \mathrm{vec}(Z^\top \mathrm{diag}(r)\, S)

    for T (m, h). Entry (a, k) of T sits at k m + a.

    Parameters
    ----------
    Z : (n, m) array
    S : (n, h) array
        Gate values. Output weights w enter as ``S * w``, per-output gates as an S for each output.

    Raises
    ------
    InvalidInput
        If Z and S have different numbers of rows.

    Examples
    --------
    >>> import numpy as np
    >>> phi = Phi(np.array([[2.0, 1.0]]), np.array([[0.5, 1.0, 0.25]]))
    >>> phi.shape, phi.matvec(np.ones(6)), phi.rmatvec(np.ones(1))
    ((1, 6), array([5.25]), array([1.  , 0.5 , 2.  , 1.  , 0.5 , 0.25]))
    """

    def __init__(self, Z: Array, S: Array) -> None:
        if Z.ndim != 2 or S.ndim != 2 or int(Z.shape[0]) != int(S.shape[0]):
            got = f"shape {tuple(S.shape)} for Z of shape {tuple(Z.shape)}"
            raise InvalidInput("S", got, "a row for each row of Z", "wrong-shape")
        self.Z, self.S = Z, S
        self.shape = (int(Z.shape[0]), int(Z.shape[1]) * int(S.shape[1]))
        self.dtype = Z.dtype

    def matvec(self, t: Array) -> Array:
        """Return phi t for t of length h m."""
        xp = namespace(self.Z)
        T = xp.reshape(t, (int(self.S.shape[1]), int(self.Z.shape[1])))
        return xp.sum(self.S * (self.Z @ T.T), axis=1)

    def rmatvec(self, r: Array) -> Array:
        """Return phi^T r for r of length n."""
        xp = namespace(self.Z)
        return xp.reshape((self.S * r[:, None]).T @ self.Z, (-1,))


def gram(Z: Array, S: Array, weights: Array | None = None) -> Array:
    r"""Return :math:`\phi \phi^\top = (S S^\top) \circ (Z Z^\top)`, with output weights :math:`(S\,
    \mathrm{diag}(w^2) S^\top) \circ (Z Z^\top)`.

    Parameters
    ----------
    Z : (n, m) array
    S : (n, h) array
        Gate values of one output; the gates differ between outputs.
    weights : (h,) array, optional

    Examples
    --------
    >>> import numpy as np
    >>> gram(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.5, 1.0], [1.0, 0.5]]))
    array([[6.25, 1.  ],
           [1.  , 1.25]])
    """
    T = S if weights is None else S * weights[None, :]
    return (T @ T.T) * (Z @ Z.T)


def scaled_gram(
    Z: FloatArray, q: FloatArray, weights: FloatArray | None = None, delta: float = 0.0
) -> ScaledGram | str:
    r"""Return the Gram matrix of phi(q) with scaled rows, or the reason why it has no bounds.

    It is :math:`(T T^\top) \circ (Z Z^\top)`, T = D S diag(w), its diagonal near 1. The error of its tiles is at most
    :math:`\gamma_{m+h+1} \mathrm{tr}` and underflow: entrywise :math:`|fl(T T^\top) \circ fl(Z Z^\top) - \ldots|_{ij}
    \le \gamma_{m+h+1} \|t_i\| \|t_j\| \|z_i\| \|z_j\|` (Higham 2002, eq. (3.5) and Lemma 3.3, Cauchy and Schwarz), a
    rank-one matrix whose norm is its trace. ``moved`` bounds :math:`\|D (\phi - \hat\phi)\|_F`: phi^ has the computed
    gate values T, phi the exact ones, for all Z within delta.

    Parameters
    ----------
    Z : (n, m) float64
    q : (m, h) float64
    weights : (h,) float64, optional
    delta : float
        Bound of each row's change (2-norm).
    """
    n, m = Z.shape
    with np.errstate(all="ignore"):
        S = np.empty((n, q.shape[1]))
        step = max(1, (1 << 25) // (8 * q.shape[1]))
        for start in range(0, n, step):
            S[start : start + step] = gate_matrix(Z[start : start + step], q)
        squares = square_sums_up(Z, 1)
        longest_gate = float(square_sums_up(q, 0).max())  # squared
        relative = gate_matrix_error(m, sqrt_up(float(squares.max())), sqrt_up(longest_gate), delta)
        if weights is not None:
            S *= weights[None, :]  # one more rounding per entry
            relative = add_up(relative, 2.0**-52)
        gate_squares = square_sums_up(S, 1)
        products = squares * gate_squares
        heaviest = 1.0 if weights is None else max(1.0, float(np.abs(weights).max()))
        limit = 2.0 ** (2 * _EXPONENTS)
        in_range = max(float(squares.max()), longest_gate, heaviest * heaviest) < limit
        if not (in_range and bool(np.all((products > 1.0 / limit) & (products < limit)))):
            return "the rows of phi are too large or too small"
        if not relative < 2.0**-10:
            return "the error bound of the gates is too large"
        exponents = -(np.frexp(products)[1].astype(np.int64) // 2)
        T = np.ldexp(S, exponents[:, None])
    diagonal = np.nextafter(np.ldexp(products, 2 * exponents), np.inf)
    trace, largest = sum_up(diagonal), float(diagonal.max())
    underflow = mul_up(float(n), float(m + T.shape[1] + 4), OMEGA, 2.0**450, add_up(1.0, float(squares.max())))
    error = add_up(mul_up(gamma(m + T.shape[1] + 2), trace), underflow)
    # Row i: D_i (|S'| delta + |S' - S^| |z_i|), |S' - S^| <= relative / (1 - relative) |S^| <= 1.001 relative |S^|.
    moved = mul_up(1.001, relative, sqrt_up(trace))
    if delta:
        lengths = np.nextafter(np.ldexp(gate_squares, 2 * exponents), np.inf)
        moved = add_up(moved, mul_up(1.002, delta, sqrt_up(sum_up(lengths))))
    tiny = mul_up(
        GATE_UNDERFLOW, 2.0**401, heaviest, float(n), float(T.shape[1]), add_up(1.0, sqrt_up(float(squares.max())))
    )
    # A re-check by other bounds allows for an error of the library's exponential, and finds a little less.
    slack = mul_up(_LIBRARY, sqrt_up(mul_up(trace, 1.0 + 2.0**-10)))
    pair = Z[:, None, :], T[:, None, :]
    return ScaledGram((pair,), exponents, trace, largest, error, add_up(moved, tiny), slack)
