r"""Given gates: :math:`\phi \phi^\top = (S S^\top) \circ (Z Z^\top)` proved definite, tile by tile.

The relative error of exp for arguments <= 0 is assumed to be at most 2^-40, which is 8192 times the error that the
authors of the library state; tests compare it with exact arithmetic.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from alignver.kernel.exact import floats, power, sqrt_down
from alignver.kernel.failure import require
from alignver.kernel.floats import OMEGA, Run, U, definite_floor, gamma, lengths_up, norm_up
from alignver.kernel.matrices import factored_tile

LIBRARY = power(-40)
"""Relative error of exp and log1p."""

_RANGE = 400  # exponents of scaled numbers: products of four such numbers neither over- nor underflow


def logistic(x: Any) -> Any:
    r"""Return :math:`1 / (1 + e^{-x})` up to 2 :data:`LIBRARY`, and 2^-1021 if e^-|x| underflows.

    The relative error of e^-|x| is 2^-40: so is that of the numerator e^-|x|, and half of it at most is that of the
    denominator; there are three more roundings.
    """
    small = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


def gate_floor(
    Z: Any, q: Any, weights: Any, delta: Fraction, claimed: Fraction, run: Run, scaling: Any = None
) -> Fraction:
    r"""Return a proved lower bound of s_min(phi) that is at least ``claimed``; else NotProved.

    **Gates.** The error of an argument is at most :math:`a = \gamma_m \|z_i\| \|q_k\| + m\,\omega + \delta \|q_k\| \le
    1/10`; as :math:`(\log s)' \le 1`, the gate changes by a factor between e^-a and e^a, and :math:`e^a - 1 \le 1.06
    a`. With the error of the library, and a rounded product with the weight, :math:`|s - \hat s| \le r \hat s`, r = 2 a
    + 2 2^-40 + 2 u.

    **Rows.** D = diag(2^e), given or such that each row of D phi has a norm of 1/2 to 1. For the exact gates and
    every Z in the ball, row i of D phi is within :math:`r \|t_i\| \|z_i\| + (1 + r) \delta \|t_i\|` of the computed
    one, t = D S.

    **Gram matrix.** An entry of (T T^T) o (Z Z^T) undergoes at most m + h + 1 roundings: its error is at most
    :math:`\gamma_{m+h+1} \|t_i\| \|z_i\| \|t_j\| \|z_j\|`, a matrix of rank one.
    """
    (n, m), h = Z.shape, q.shape[1]
    S = logistic(Z @ q)
    heaviest = Fraction(1)
    if weights is not None:
        S *= floats(weights, (h,), "weights")
        heaviest += Fraction(float(np.abs(weights).max()))
    lengths, rows = lengths_up(S), lengths_up(Z)
    sizes = float(rows.max()), float(lengths_up(np.ascontiguousarray(q.T)).max())
    require(max(sizes) < 2.0**_RANGE and heaviest < power(_RANGE), "features, gates or weights are too large")
    longest, steepest = map(Fraction, sizes)
    argument = gamma(m) * longest * steepest + m * OMEGA + delta * steepest
    require(argument <= Fraction(1, 10), "the bound of the error of the gates is too large")
    relative = 2 * argument + 2 * LIBRARY + 2 * U
    products = lengths * rows
    in_range = bool(np.all((products > 2.0**-_RANGE) & (products < 2.0**_RANGE)))
    require(in_range, "a row of phi is too large or too small")
    exponents = -np.frexp(products)[1].astype(np.int64)
    if scaling is not None:
        require(bool(np.all(np.abs(scaling - exponents) <= 2)), "the scaling does not give norms near 1")
        exponents = scaling
    T = np.ldexp(S, exponents[:, None])
    units = norm_up(np.ldexp(products, exponents)) / (1 - gamma(1))  # one rounding of products of two lengths
    moved = relative * units + (1 + relative) * delta * norm_up(np.ldexp(lengths, exponents))
    # Underflow in exp (2^-1021, times a weight), in products with weights and in scaling, times 2^e and ||z_i||.
    moved += n * h * heaviest * longest * power(_RANGE - 1019)
    size = units**2
    noise = gamma(m + h + 1) * size + n * n * (m + h + 1) * power(2 * _RANGE - 1020)
    tile = partial(factored_tile, [(Z[:, None], T[:, None])])
    top = power(int(exponents.max()))
    smallest = sqrt_down(definite_floor(tile, n, size + noise, noise, (claimed * top + moved) ** 2, run)) - moved
    bound: Fraction = smallest / top
    require(bound > 0 and bound >= claimed, "s_min(phi) is not proved to be as large as claimed")
    return bound
