"""The gate of the paper, s(x) = 1 / (1 + e^-x), computed with a bound of its error that trusts no library's exp."""

from __future__ import annotations

import math

import numpy as np

from alignver.arrays import Array, namespace
from alignver.proof.rounding import OMEGA, FloatArray, add_up, gamma, mul_up

__all__ = ["GATE_ERROR", "GATE_UNDERFLOW", "gate_matrix", "gate_matrix_error", "logistic", "logistic_plain"]

GATE_ERROR = 2.0**-45
r"""Bound of the relative error of :func:`logistic`: 256 u.

Derivation. With y = -|x| >= -700 and k = rint(y log2 e), |k| <= 1010, r = (y - k L1) - k L2, L1 the first 32 bits of
ln 2, so that k L1 is exact, L1 + L2 = ln 2 up to 2^-86. The two subtractions and k L2 (below 2^-22) round by less
than u together times 0.36, 0.36 and 2^-22, so r is off by less than u, and |r| < 0.35 (k is off by at most one unit
in the last place of y log2 e from the nearest integer). Taylor's polynomial of degree 14 is off by 0.35^15/15! e^0.35
< 2^-62; Horner's rule rounds it by gamma_43 p(|r|) <= 43 u e^0.7 p(r) (1 + small) < 88 u p(r) (Higham 2002, section
5.1, with one rounding more for each coefficient). So e^y has a relative error below 92 u. Then 1 + e: below 93 u, and
e / (1 + e): below 92 + 93 + 1 < 190 u.
"""

GATE_UNDERFLOW = 2.0**-1000
"""Where |x| > 700, e^-700 = 2^-1009.9 stands for e^-|x|: both are below this."""

_LOG2E = 1.4426950408889634
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = [1.0 / math.factorial(k) for k in range(14, -1, -1)]


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
    """Return 1 / (1 + e^-x) in any array namespace, by its own exp and without an error bound."""
    xp = namespace(x)
    power = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(x), power) / (1.0 + power)


def gate_matrix(Z: FloatArray, q: FloatArray) -> FloatArray:
    """Return S (k, h) with entries s(z_i^T q_k) for rows of Z (k, m) and gates q (m, h)."""
    return logistic(Z @ q)


def gate_matrix_error(m: int, longest_row: float, longest_gate: float, delta: float = 0.0) -> float:
    r"""Return a bound of the relative error of every entry of :func:`gate_matrix`, besides :data:`GATE_UNDERFLOW`.

    The argument is off by at most :math:`\gamma_m \|z_i\| \|q_k\| + m\omega + \delta \|q_k\|` =: e, and
    :math:`(\log s)' = 1 - s \in (0, 1)`, so s is off by a factor between e^-e and e^e; e^e - 1 <= 2 e for e <= 1.
    Infinity where e > 1/4.
    """
    argument = add_up(mul_up(gamma(m), longest_row, longest_gate), mul_up(float(m), OMEGA), mul_up(delta, longest_gate))
    if not argument <= 0.25:
        return math.inf
    return add_up(mul_up(2.0, argument), mul_up(GATE_ERROR, add_up(1.0, mul_up(2.0, argument))))
