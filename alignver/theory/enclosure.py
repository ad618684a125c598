r"""Rigorous bounds of the outputs and of the training loss, for the exact model with the given floats as its numbers.

The exact model uses real arithmetic, the logistic gate, and exactly the floats Z, R (times the slope), W, theta. The
error of the computed outputs is bounded entry by entry, and then propagated through the loss.

All bounds below are sums and products of non-negative floats with fewer than 2^28 roundings each, which the check of
the sizes ensures: the factor :data:`ROOM` covers all of them (2^28 u < 2^-24).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from alignver.features.products import GATE_ERROR, GATE_UNDERFLOW, logistic
from alignver.proof.rounding import OMEGA, FloatArray, add_up, div_down, div_up, gamma, mul_up, sub_down, sum_up
from alignver.theory.exploitation import Exploitation

ROOM = 1.0 + 2.0**-20
"""More than the relative rounding of any bound that this module computes."""

_GATE = 2.0 * GATE_ERROR

_BLOCK = 1 << 22
"""The number of gate values in memory at a time."""

_SERIES = [1.0 / (2 * k + 1) for k in range(20, -1, -1)]

_SOFTPLUS = 2.0**-43
"""Bound of the relative error of :func:`_log1p_exp`, log(1 + e^-t) for t >= 0.

Derivation. With s = 1 / (1 + e^t) <= 1/2, log(1 + e^-t) = -log(1 - s) = 2 artanh(z), z = s / (2 - s) <= 1/3. s is
known to 2^-45 (GATE_ERROR); d log z / d log s = 2 / (2 - s) <= 4/3, and d log artanh(z) / d log z <= 1.09 on [0, 1/3],
so this gives less than 1.46 2^-45. The series sum z^(2k) / (2k+1) is truncated after k = 20: the rest is below 9^-21 <
2^-66.
Horner's rule with positive terms has at most 2 roundings per step and one per coefficient, 64 in all, and 6 more
thereafter: 70 u < 2^-46. The sum is below 2^-44; the bound is twice that.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Enclosure:
    """The exact outputs lie within ``radius`` of ``outputs``, entry by entry; all arrays are (n, m_y).

    ``size`` is the sum of ``|w_k| s_k ||z_i|| ||theta_k||``: the size of the outputs without cancellation.
    """

    outputs: FloatArray
    radius: FloatArray
    size: FloatArray

    def widened(self) -> Enclosure:
        """Return a wider enclosure, with room for a re-check by library functions that are accurate to 2^-40."""
        return Enclosure(self.outputs, (4.0 * self.radius + 2.0**-37 * self.size) * ROOM, self.size)


@dataclasses.dataclass(frozen=True)
class LossBounds:
    """Bounds of the loss and of the number of misclassified samples.

    Attributes
    ----------
    lower, upper : float
        The exact mean of the samples' losses lies between them; ``upper`` may be infinite.
    errors : int or None
        Upper bound of the number of misclassified samples (with several binary outputs: samples with a wrong output);
        None for the squared loss.
    """

    lower: float
    upper: float
    errors: int | None


def enclose(model: Exploitation, weights: FloatArray) -> Enclosure | str:
    r"""Return the outputs with a bound of their error, or the reason why there is no bound.

    .. math:: f_{ij} = \sum_k w_k s_k p_k, \qquad s_k = \tilde\sigma(z_i^\top r_k),\; p_k = z_i^\top \theta_k

    Derivation. *Gate.* The computed argument is off by at most :math:`e = \gamma_m \|z_i\| \|r_k\| + m \omega`; with
    :math:`(\log \tilde\sigma)' = \tilde\sigma(-\cdot)`, at most :math:`e^e \tilde\sigma(-\hat x)` within e of it, and
    :math:`e^e \le 2`, the gate is off by a factor between :math:`e^{-d}` and :math:`e^d`, :math:`d = 2 e (1 - \hat s +
    2^{-44}) \le 2.1 e`: a saturated gate is insensitive to its argument. The computed gate is off by another 2^-45
    (:data:`~alignver.features.products.GATE_ERROR`), so :math:`|s - \hat s| \le \rho \hat s + 2^{-1000}` with
    :math:`\rho = 2 d + 2 \cdot 2^{-45}` (d <= 1/2). *Products.*
    :math:`|p - \hat p| \le \gamma_m \|z_i\| \|\theta_k\| + m \omega =: \pi`.
    *Sum.* Two products and a sum of h terms: :math:`\gamma_{h+2}`. Together, with
    :math:`a_k = |w_k| (\hat s_k (1 + \rho) + 2^{-1000})`,

    .. math:: |f - \hat f| \le \sum_k a_k \pi_k + |w_k| (\rho \hat s_k + 2^{-1000}) |\hat p_k|
              + \gamma_{h+2} \sum_k |w_k \hat s_k \hat p_k| + 3 h \omega (1 + \max |\hat p|) .

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> enclosed = enclose(model, np.ones((1, 3, 2)))
    >>> enclosed.outputs.ravel().tolist(), bool(enclosed.radius.max() < 1e-12)
    ([4.5, 1.5], True)
    """
    if model.m + model.h >= 2**28:
        return "the model is too wide"
    theta = model.weights(weights)
    outputs, radius, size = (np.empty((model.n, model.m_y)) for _ in range(3))
    step = max(1, _BLOCK // model.h)
    with np.errstate(all="ignore"):
        for j in range(model.m_y):
            gates, W = model.steep_gates[j], model.output_weights[j]
            for start in range(0, model.n, step):
                rows = slice(start, start + step)
                enclosed = _one_output(model.Z[rows], gates, W, theta[j])
                if enclosed is None:
                    return f"the error bound of the gates' arguments exceeds a tenth, output {j}"
                outputs[rows, j], radius[rows, j], size[rows, j] = enclosed
    if not all(bool(np.all(np.isfinite(array))) for array in (outputs, radius, size)):
        return "the outputs overflow"
    return Enclosure(outputs, radius, size)


def _one_output(
    Z: FloatArray, R: FloatArray, W: FloatArray, theta: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Return outputs, radius and size of one output for some rows of Z, with R (m, h), W (h,), theta (h, m)."""
    (m, h), sizes, weights = R.shape, _lengths(Z, 1)[:, None], np.abs(W)
    gates = logistic(Z @ R)
    argument = gamma(m) * sizes * _lengths(R, 0) + m * OMEGA
    if not bool(np.all(argument <= 0.1)):
        return None
    rho = (4.0 * argument * (1.0 - gates + 2.0**-44) + _GATE) * ROOM
    product = Z @ theta.T
    slack = gamma(m) * sizes * _lengths(theta, 1) + m * OMEGA
    move = (rho * gates + GATE_UNDERFLOW) * np.abs(product) + (gates * (1.0 + rho) + GATE_UNDERFLOW) * slack
    rounding = gamma(h + 2) * gates * np.abs(product)
    # Underflow: of w s (times |p|), of the product, of the sums.
    underflow = 3.0 * h * OMEGA * (1.0 + np.abs(product).max(axis=1) + weights.max())
    radius = ((move + rounding) @ weights) * ROOM * ROOM + underflow
    outputs = ((gates * W) * product).sum(axis=1)
    return outputs, radius, sizes[:, 0] * ((gates * weights) @ _lengths(theta, 1)) * ROOM


def _lengths(A: FloatArray, axis: int) -> FloatArray:
    lengths: FloatArray = np.sqrt((A * A).sum(axis=axis) + A.shape[axis] * OMEGA) * ROOM
    return lengths


def loss_bounds(enclosed: Enclosure, targets: FloatArray, loss: str) -> LossBounds:
    r"""Return bounds of the mean loss over all outputs within the enclosure.

    Squared: :math:`|f - y|` lies within radius + 2 u :math:`|\hat f - y|` of the computed difference. Binary
    cross-entropy: :math:`\log(1 + e^t)` increases with t = (1 - 2 y) f. Cross-entropy: with :math:`d_k = f_k - f_y`,
    the loss is :math:`\log \sum_k e^{d_k}`, computed one k at a time by :math:`\log(e^a + e^b) = \max(a, b) + \log(1 +
    e^{-|a - b|})`, which increases with a and b.

    Parameters
    ----------
    enclosed : Enclosure
    targets : (n, m_y) float64
        Real numbers, 0 and 1, or one-hot rows.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"}

    Examples
    --------
    >>> import numpy as np
    >>> outputs = Enclosure(np.array([[2.0], [-1.0]]), np.full((2, 1), 1e-12), np.ones((2, 1)))
    >>> bounds = loss_bounds(outputs, np.array([[1.0], [-1.0]]), "squared")
    >>> bounds.lower < 0.5 < bounds.upper < 0.5 + 1e-11, bounds.errors
    (True, None)
    """
    f, r = enclosed.outputs, enclosed.radius
    errors: int | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        # Bounds of sums of m_y terms >= 0, each with a few roundings, from above and from below.
        fine = 1.0 + (f.shape[1] + 8) * 2.0**-52
        if loss == "squared":
            gap = np.abs(f - targets)
            # The difference has a relative rounding error of u.
            above, below = gap + (r + 2.0**-52 * gap), np.maximum(gap - (r + 2.0**-51 * gap), 0.0)
            up, down = (above * above).sum(axis=1) * fine, (below * below).sum(axis=1) / fine
            up, down = up + OMEGA * f.shape[1], np.maximum(down - OMEGA * f.shape[1], 0.0)
        elif loss == "binary_cross_entropy" or f.shape[1] == 1:
            t = (1.0 - 2.0 * targets) * f  # exact
            high, low = np.nextafter(t + r, np.inf), np.nextafter(t - r, -np.inf)
            up, down = softplus_up(high).sum(axis=1) * fine, softplus_down(low).sum(axis=1) / fine
            errors = int(np.count_nonzero((high >= 0.0).any(axis=1)))
        else:
            up, down, errors = _cross_entropy(f, r, targets)
    n = len(f)
    upper = div_up(sum_up(up), float(n))
    total = float(np.sum(down))
    lower = div_down(max(0.0, sub_down(total, mul_up(float(n), OMEGA))), mul_up(float(n), add_up(1.0, gamma(n))))
    return LossBounds(lower, upper if not math.isnan(upper) else math.inf, errors)


def _cross_entropy(f: FloatArray, r: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray, int]:
    right, rest = (f * targets).sum(axis=1), (r * targets).sum(axis=1)  # the output of the right class, its radius
    up, down = np.zeros(len(f)), np.zeros(len(f))
    wrong = np.zeros(len(f), dtype=bool)
    for k in range(f.shape[1]):
        other = targets[:, k] == 0.0
        d, spread = f[:, k] - right, (r[:, k] + rest) * ROOM + 2.0**-52 * np.abs(f[:, k] - right)
        high, low = np.nextafter(d + spread, np.inf), np.nextafter(d - spread, -np.inf)
        up = np.where(other, _add_exponentials(up, high, softplus_up, np.inf), up)
        down = np.where(other, _add_exponentials(down, low, softplus_down, -np.inf), down)
        wrong |= other & (high >= 0.0)
    return up, np.maximum(down, 0.0), int(np.count_nonzero(wrong))


def _add_exponentials(
    a: FloatArray, b: FloatArray, softplus: Callable[[FloatArray], FloatArray], direction: float
) -> FloatArray:
    """Bound log(e^a + e^b) from above (direction = inf) or below (-inf), for bounds a and b of the same kind."""
    # -|a - b|, rounded up for the upper bound and down for the lower one.
    apart = np.minimum(np.nextafter(-np.abs(a - b), direction), 0.0)
    total: FloatArray = np.nextafter(np.maximum(a, b) + softplus(apart), direction)
    return total


def _log1p_exp(t: FloatArray) -> FloatArray:
    """Return log(1 + e^-t) for t >= 0 with a relative error below :data:`_SOFTPLUS` (and 2^-998 beyond t = 700)."""
    s = logistic(-t)
    z = s / (2.0 - s)
    square = z * z
    series = np.full_like(z, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series *= square
        series += coefficient
    value: FloatArray = 2.0 * z * series
    return value


def softplus_up(t: FloatArray) -> FloatArray:
    """Return upper bounds of log(1 + e^t).

    Examples
    --------
    >>> import numpy as np
    >>> bool(softplus_up(np.array([-800.0]))[0] > 0.0), bool(softplus_up(np.zeros(1))[0] >= np.log(2.0))
    (True, True)
    """
    bound = np.maximum(t, 0.0) + _log1p_exp(np.abs(t)) * (1.0 + 2.0 * _SOFTPLUS) + 4.0 * GATE_UNDERFLOW
    above: FloatArray = np.nextafter(bound * (1.0 + 2.0**-51), np.inf)
    return above


def softplus_down(t: FloatArray) -> FloatArray:
    """Return lower bounds of log(1 + e^t), none below zero."""
    bound = np.maximum(t, 0.0) + np.maximum(_log1p_exp(np.abs(t)) * (1.0 - 2.0 * _SOFTPLUS) - 4.0 * GATE_UNDERFLOW, 0.0)
    below: FloatArray = np.maximum(np.nextafter(bound * (1.0 - 2.0**-51), -np.inf), 0.0)
    return below
