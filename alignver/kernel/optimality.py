r"""Claims about the distance of a training loss from its infimum, for a model given by five matrices.

The model is :math:`f_{ij} = z_i^\top \sum_k w_{jk}\,\tilde\sigma(z_i^\top r_{jk})\,\theta_{jk}` in real arithmetic, for
exactly the floats Z, R, W, theta. The outputs are computed in this order, which differs from that of the producer, and
their errors are bounded from absolute values entry by entry. The relative error of exp and log1p is assumed to be at
most 2^-40 (:mod:`alignver.kernel.gates`). Sums over samples are exact.

Bounds in arrays are sums and products of non-negative floats with fewer than 2^21 roundings each, which the factor
:data:`ROOM` covers; :data:`FINE` covers fewer than 2^7.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.certificate import LOSSES, Certificate, Inputs
from alignver.kernel.data import floor_of
from alignver.kernel.exact import equal, floats, number, rounded_up
from alignver.kernel.failure import NotProved, require
from alignver.kernel.floats import Run, U, gamma
from alignver.kernel.gates import LIBRARY, gate_floor, logistic
from alignver.results import shown_down, shown_up

ROOM, FINE = 1.0 + 2.0**-30, 1.0 + 2.0**-45
_U, _LIBRARY = float(U), float(LIBRARY)
_TINY = 2.0**-1000


def _optimal(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """The loss exceeds 0, or the bound for every function of the rows of X, by at most the gap."""
    gap, loss, errors = _constants(certificate)
    _, upper, wrong = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], loss)
    floor = floor_of(inputs, loss) if "X" in inputs else Fraction(0)
    require(upper - floor <= gap, f"the loss is only known to be at most {shown_up(rounded_up(upper), 6)}")
    cost = f" above what the data cost, {shown_down(float(floor), 6)} or more" if floor else ", and never below 0"
    sentence = f"the loss is at most {shown_up(rounded_up(gap), 6)}{cost}"
    if errors is not None:
        require(wrong is not None and wrong <= errors, f"{wrong} samples are not proved to be in their class")
        sentence += f"; {errors} training errors at most"
    return sentence + _ranks(certificate, inputs, run, required=False)


def _suboptimal(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """The loss exceeds that of better weights, or an infimum of 0, by more than the gap."""
    gap, loss, errors = _constants(certificate)
    require(errors is None, "a claim of this kind is not about training errors")
    lower, _, _ = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], loss)
    better, upper = certificate.data.get("better"), Fraction(0)
    ranks = _ranks(certificate, inputs, run, required=better is None)
    if better is not None:
        theta = floats(better, inputs["theta"].shape, "better weights")
        upper = loss_interval(*outputs(inputs, theta), inputs["Y"], loss)[1]
    require(lower - upper > gap, "the loss is not proved to exceed the smaller one by more than the gap")
    shown = shown_down(float(gap), 6)
    if better is None:
        return f"the loss exceeds {shown}, its infimum is 0{ranks}"
    return f"weights that are better by more than {shown} are in the certificate"


def _constants(certificate: Certificate) -> tuple[Fraction, str, int | None]:
    loss, errors = certificate.constants["loss"], certificate.constants["errors"]
    require(loss in LOSSES, "an unknown loss")
    require(errors is None or (type(errors) is int and errors >= 0), "the training errors are not a number")
    return number(certificate.constants, "gap"), loss, errors


def _ranks(certificate: Certificate, inputs: Inputs, run: Run, *, required: bool) -> str:
    """Check the outputs with claimed rank n; if these are all, the infimum over these weights is exactly 0."""
    claimed = certificate.constants["ranks"]
    m_y, h, m = _sizes(inputs)
    require(isinstance(claimed, tuple) and len(claimed) == m_y, "the claim does not list the outputs with rank n")
    proved = 0
    for gates, weights, entry in zip(inputs["R"].reshape(m_y, m, h), inputs["W"], claimed, strict=True):
        if entry is not None:
            gate_floor(inputs["Z"], gates, weights, Fraction(0), number(entry, "s_min"), run)
            proved += 1
    if proved == m_y:
        return "; rank n is proved again for every output: the infimum over the weights of the last hidden layer is 0"
    require(not required, "not every output is proved to have rank n")
    return f"; rank n is proved again for {proved} of {m_y} outputs" if proved else ""


def _sizes(inputs: Inputs) -> tuple[int, int, int]:
    Z, Y, R, W, theta = (inputs[name] for name in ("Z", "Y", "R", "W", "theta"))
    (n, m), (m_y, h) = Z.shape, W.shape
    shapes = (Y.shape, R.shape, theta.shape) == ((n, m_y), (m_y * m, h), (m_y, h * m))
    require(shapes, "the shapes of Z, Y, R, W and theta do not match")
    require(equal(Z[:, -1], np.ones(n)), "the last column of Z is not the constant 1")
    require(max(m, h, m_y) < 2**20, "the model is too wide")
    return m_y, h, m


def loss_interval(f: Any, radius: Any, Y: Any, loss: str) -> tuple[Fraction, Fraction, int | None]:
    """Return bounds of the mean loss, and the number of samples that may be in a wrong class.

    Parameters
    ----------
    f, radius : (n, m_y) float64
        Outputs, and how far the exact ones may be from them, entry by entry.
    Y : (n, m_y) float64
        Targets: 0 and 1 for the cross-entropies.
    loss : str
        One of :data:`~alignver.kernel.certificate.LOSSES`.

    Raises
    ------
    NotProved
        If the loss is not defined for the targets, or numbers are out of range.
    """
    n, m_y = Y.shape
    wrong: int | None = None
    if loss == "squared":
        size = np.abs(f - Y)  # one rounding; the square has another one
        high, low = (size + radius) * FINE, size / FINE - radius * FINE
        above, below = high * high * FINE + _TINY, np.maximum(low, 0.0) ** 2 / FINE - _TINY
    elif not bool(np.all((Y == 0.0) | (Y == 1.0))):
        raise NotProved("the targets of a cross-entropy are 0 and 1")
    elif loss == "cross_entropy" and m_y > 1:
        require(bool(np.all(Y.sum(axis=1) == 1.0)), "the targets are not one-hot rows")
        above, below, wrong = _softmax(f, radius, Y.argmax(axis=1))
    else:
        t = np.where(Y == 1.0, -f, f)
        high, low = t + radius * ROOM, t - radius * ROOM
        high, low = high + 2.0 * _U * np.abs(high), low - 2.0 * _U * np.abs(low)
        wrong = int((high >= 0.0).any(axis=1).sum())
        above = np.logaddexp(0.0, high) * (1.0 + 4.0 * _LIBRARY) + _TINY
        below = np.logaddexp(0.0, low) * (1.0 - 4.0 * _LIBRARY) - _TINY
    require(bool(np.isfinite(above).all() and np.isfinite(below).all()), "the loss overflows")
    lower = Fraction(math.fsum(np.maximum(below, 0.0).ravel().tolist())) * (1 - 2 * U) / n
    upper = Fraction(math.fsum(above.ravel().tolist())) * (1 + 2 * U) / n  # fsum has one rounding
    return lower, upper, wrong


def _softmax(f: Any, radius: Any, label: Any) -> tuple[Any, Any, int]:
    r"""Bound :math:`\log \sum_k e^{d_k}`, d_k the lead of class k over the label, and count leads that may be >= 0.

    With M the largest lead, the value is M + log1p of the sum of the other e^(d - M). The relative error of a
    difference is 2^-53, so that of e^x with |x| < 800 is below 2^-43; it is counted with the error of the library, like
    those of the sum and the logarithm.
    """
    rows = np.arange(len(f))
    label_output, label_radius = f[rows, label][:, None], radius[rows, label][:, None]
    d = f - label_output
    spread = (radius + label_radius) * ROOM + 4.0 * _U * np.abs(d)
    high, low = d + spread, d - spread
    high, low = high + 2.0 * _U * np.abs(high), low - 2.0 * _U * np.abs(low)
    high[rows, label] = low[rows, label] = 0.0
    others = high.copy()
    others[rows, label] = -math.inf
    wrong = int((others >= 0.0).any(axis=1).sum())
    bounds = []
    slack = 16.0 * _LIBRARY + 2.0 * f.shape[1] * _U
    for leads, factor in ((high, 1.0 + slack), (low, 1.0 - slack)):
        top = leads.argmax(axis=1)
        largest = leads[rows, top]
        terms = np.exp(leads - largest[:, None])
        terms[rows, top] = 0.0
        bounds.append(largest + np.log1p(terms.sum(axis=1)) * factor)
    return bounds[0] * (1.0 + 4.0 * _U) + _TINY, bounds[1] * (1.0 - 4.0 * _U) - _TINY, wrong


def outputs(inputs: Inputs, theta: Any) -> tuple[Any, Any]:
    r"""Return the outputs at ``theta`` and a bound of the error of each, (n, m_y).

    The error of the argument of a gate is at most :math:`e = \gamma_m |z|^\top |r| + m\,\omega \le 1/10`, and the slope
    :math:`s (1 - s) \le e^{-|x|}` within e of it is at most e^e times that at the computed argument:
    :math:`|s - \hat s| \le 1.2\,e\,e^{-|x|} + 2 \cdot 2^{-40} \hat s`. A product :math:`z_a w_k s_k \theta_{ka}`
    undergoes two roundings and a sum of h terms, then one rounding and a sum of m terms: :math:`\gamma_{h+m+3}`.
    """
    Z, R, W = inputs["Z"], inputs["R"], inputs["W"]
    m_y, h, m = _sizes(inputs)
    sizes = np.abs(Z)
    f, radius = np.empty((len(Z), m_y)), np.empty((len(Z), m_y))
    sums = rounded_up(gamma(h + m + 3))
    for j, (gates, weights) in enumerate(zip(R.reshape(m_y, m, h), W, strict=True)):
        coefficients = theta[j].reshape(h, m)
        x = Z @ gates
        e = (rounded_up(gamma(m)) * (sizes @ np.abs(gates)) + m * _TINY) * ROOM
        require(bool(np.all(e <= 0.1)), "the bound of the error of the arguments of the gates is too large")
        s = logistic(x)
        moved = (1.2 * e * np.exp(-np.abs(x)) + 2.0 * _LIBRARY * s) * ROOM + _TINY
        f[:, j] = (Z * ((s * weights) @ coefficients)).sum(axis=1)
        absolute = np.abs(coefficients)
        # The exact gates may exceed the computed ones by their error: 2^-10 more covers this in the rounding.
        terms = (sizes * (((moved + sums * (1.0 + 2.0**-10) * (s + moved)) * np.abs(weights)) @ absolute)).sum(axis=1)
        scale = (1.0 + np.abs(weights).max()) * (1.0 + sizes.max()) * (1.0 + absolute.max())
        radius[:, j] = terms * ROOM * ROOM + (h + 1.0) * (m + 1.0) * _TINY * scale
    require(bool(np.isfinite(f).all() and np.isfinite(radius).all()), "the outputs overflow")
    return f, radius


METHODS = {("optimality", "outputs"): _optimal, ("suboptimality", "outputs"): _suboptimal}
