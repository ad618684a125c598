"""Certificates about the distance from a global optimum, checked again from the five matrices that they are about.

Nothing is taken over from the producer but the claim. The outputs are computed in another order, z_i^T (sum_k w_k s_k
theta_k) instead of sum_k w_k s_k (z_i^T theta_k); gates, exponentials and logarithms come from the library, which is
taken to be good to 2^-40, as in :mod:`alignver.phi.recheck_gates`; error bounds are made of absolute values entry by
entry instead of norms; sums over samples are correctly rounded (math.fsum). An inner product of k terms, in any order,
errs by at most k u |x|^T |y| + k 2^-1022 (see :mod:`alignver.phi.recheck`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignver.arrays import as_matrix, host
from alignver.phi.claims import OPTIMALITY
from alignver.phi.recheck_gates import full_rank
from alignver.phi.threads import single_threaded_blas
from alignver.proof.certificate import Certificate, digest_input
from alignver.proof.recheck.failure import NotProved
from alignver.proof.rounding import assumptions_hold, shown_down, shown_up

__all__ = ["check"]

_U = 2.0**-53
_TINY = 2.0**-1000
_ROOM = 1.0 + 2.0**-30  # more than the rounding of the bounds themselves: sums of fewer than 2^20 terms >= 0
_LIBRARY = 2.0**-40  # relative error of exp, log1p and of what is made of them here
_FINE = 1.0 + 2.0**-45  # more than a few roundings


def check(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Return what is proved about the inputs; :class:`NotProved` where the claim is not."""
    arrays = {name: np.ascontiguousarray(host(as_matrix(value, name).array)) for name, value in inputs.items()}
    if not certificate.sealed:
        raise NotProved("the seal is broken: the certificate was changed after it was made")
    for name, array in arrays.items():
        record = digest_input(array)
        sealed = certificate.inputs.get(name)
        if sealed is None or dict(sealed) != {**record, "shape": tuple(record["shape"])}:
            raise NotProved(f"{name} is not the input that this certificate is about: their digests differ")
    if not assumptions_hold():
        raise NotProved("this thread does not round to nearest with gradual underflow")
    if certificate.method != "outputs":
        raise NotProved(f"unknown method {str(certificate.method)[:40]!r} for the claim {certificate.claim!r}")
    try:
        with single_threaded_blas(), np.errstate(all="ignore"):
            return _holds(certificate, arrays) if certificate.claim == OPTIMALITY else _fails(certificate, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise NotProved(f"the certificate lacks what its method needs ({type(error).__name__}: {error})") from error


def _holds(certificate: Certificate, arrays: Mapping[str, Any]) -> str:
    gap, loss, errors = _constants(certificate)
    _, upper, wrong = _loss(arrays, arrays["theta"], loss)
    if not upper <= gap:
        raise NotProved(f"the loss is only known to be at most {upper:.6g}, the claim is {gap:.6g}")
    said = f"the loss is at most {shown_up(gap, 6)}, and never below 0"
    if errors is not None:
        if wrong is None or wrong > errors:
            raise NotProved(f"{wrong} samples are not known to be in their class, the claim is {errors}")
        said += f"; {errors} training errors at most"
    return said + _ranks(certificate, arrays, required=False)


def _fails(certificate: Certificate, arrays: Mapping[str, Any]) -> str:
    gap, loss, errors = _constants(certificate)
    if errors is not None:
        raise NotProved("a claim of this kind says nothing about training errors")
    lower, _, _ = _loss(arrays, arrays["theta"], loss)
    better = certificate.data.get("better")
    if better is None:
        proved = _ranks(certificate, arrays, required=True)
        if not lower > gap:
            raise NotProved(f"the loss is only known to be at least {lower:.6g}, the claim is {gap:.6g}")
        return f"the loss exceeds {shown_down(gap, 6)}, its infimum is 0{proved}"
    if better.shape != arrays["theta"].shape or better.dtype != np.float64:
        raise NotProved("the better weights have another shape")
    _, upper, _ = _loss(arrays, better, loss)
    if not (lower - upper) * (1.0 - 2.0**-50) > gap:
        raise NotProved(f"the better weights are only known to be better by {lower - upper:.6g}")
    return f"weights that are better by more than {shown_down(gap, 6)} are in the certificate"


def _constants(certificate: Certificate) -> tuple[float, str, int | None]:
    gap, loss, errors = (certificate.constants.get(key) for key in ("gap", "loss", "errors"))
    if not isinstance(gap, float) or not 0.0 <= gap < math.inf:
        raise NotProved("the claim has no gap")
    if loss not in ("squared", "binary_cross_entropy", "cross_entropy"):
        raise NotProved(f"unknown loss {str(loss)[:40]!r}")
    if errors is not None and (type(errors) is not int or errors < 0):
        raise NotProved("the claim has no number of training errors")
    return gap, str(loss), errors


def _ranks(certificate: Certificate, arrays: Mapping[str, Any], *, required: bool) -> str:
    """Check the outputs that are said to have rank n; all of them make the infimum over these weights 0 exactly."""
    claimed = certificate.constants.get("ranks")
    m_y, h, m = _sizes(arrays)
    if not isinstance(claimed, tuple) or len(claimed) != m_y:
        raise NotProved("the claim does not say which outputs have rank n")
    for j, entry in enumerate(claimed):
        if entry is not None:
            own, bound = float(entry["scaled_s_min"]), float(entry["s_min"])
            if not (0.0 < own < math.inf and 0.0 < bound < math.inf):
                raise NotProved(f"there is no bound of the smallest singular value for output {j}")
            full_rank(arrays["Z"], arrays["R"].reshape(m_y, m, h)[j], arrays["W"][j], 0.0, own, bound)
    proved = sum(entry is not None for entry in claimed)
    if required and proved < m_y:
        raise NotProved("not every output is known to have rank n")
    if proved < m_y:
        return f"; rank n is proved again for {proved} of {m_y} outputs" if proved else ""
    return "; rank n is proved again for every output: the infimum over the weights of the last hidden layer is 0"


def _sizes(arrays: Mapping[str, Any]) -> tuple[int, int, int]:
    Z, Y, R, W, theta = (arrays[name] for name in ("Z", "Y", "R", "W", "theta"))
    (n, m), (m_y, h) = Z.shape, W.shape
    if Y.shape != (n, m_y) or R.shape != (m_y * m, h) or theta.shape != (m_y, h * m):
        raise NotProved("the shapes of Z, Y, R, W and theta do not belong together")
    if not bool(np.all(Z[:, -1] == 1.0)):
        raise NotProved("the last column of Z is not the constant 1")
    if max(m, h, m_y) >= 2**20:
        raise NotProved("the model is too wide")
    return m_y, h, m


def _loss(arrays: Mapping[str, Any], theta: Any, loss: str) -> tuple[float, float, int | None]:
    """Return bounds of the exact loss at ``theta`` and how many samples may be in a wrong class."""
    f, radius = _outputs(arrays, theta)
    Y = arrays["Y"]
    n, m_y = Y.shape
    wrong: int | None = None
    if loss == "squared":
        size = np.abs(f - Y)
        high, low = (size * (1.0 + 2.0**-51) + radius) * _FINE, size * (1.0 - 2.0**-51) - radius * _FINE
        above = [math.fsum(row) for row in (high * high).tolist()]
        below = [math.fsum(row) for row in (np.maximum(low, 0.0) ** 2).tolist()]
    else:
        if not bool(np.all((Y == 0.0) | (Y == 1.0))):
            raise NotProved("the targets of a cross-entropy are 0 and 1")
        if loss == "cross_entropy" and m_y > 1:
            if not bool(np.all(Y.sum(axis=1) == 1.0)):
                raise NotProved("the targets are not one-hot rows")
            above, below, wrong = _softmax(f, radius, Y.argmax(axis=1))
        else:
            t = np.where(Y == 1.0, -f, f)
            high, low = t + radius * _FINE, t - radius * _FINE
            high, low = high + 2.0**-52 * np.abs(high), low - 2.0**-52 * np.abs(low)
            wrong = int((high >= 0.0).any(axis=1).sum())
            above = [math.fsum(row) for row in (np.logaddexp(0.0, high) * (1.0 + 4.0 * _LIBRARY) + _TINY).tolist()]
            below = [math.fsum(row) for row in (np.logaddexp(0.0, low) * (1.0 - 4.0 * _LIBRARY) - _TINY).tolist()]
    lower = max(math.fsum(below) / n, 0.0) * (1.0 - 2.0**-45)
    upper = math.fsum(above) / n * (1.0 + 2.0**-45) + 2.0**-1020
    if not math.isfinite(lower) or math.isnan(upper):
        raise NotProved("the loss overflows")
    return max(lower - 2.0**-1020, 0.0), upper, wrong


def _softmax(f: Any, radius: Any, label: Any) -> tuple[list[float], list[float], int]:
    rows = np.arange(len(f))
    own, slack = f[rows, label][:, None], radius[rows, label][:, None]
    d = f - own
    spread = (radius + slack) * _FINE + 2.0**-52 * np.abs(d)
    high, low = d + spread + 2.0**-51 * np.abs(d), d - spread - 2.0**-51 * np.abs(d)
    high[rows, label] = low[rows, label] = 0.0
    others = high.copy()
    others[rows, label] = -math.inf
    wrong = int((others >= 0.0).any(axis=1).sum())
    bounds = []
    for exponents, factor in ((high, 1.0 + 16.0 * _LIBRARY), (low, 1.0 - 16.0 * _LIBRARY)):
        top = exponents.argmax(axis=1)
        largest = exponents[rows, top]
        # d - max d rounds by 2^-53 of it, so e^x with |x| < 800 by less than 2^-43: counted with the library's error.
        terms = np.exp(exponents - largest[:, None])
        terms[rows, top] = 0.0
        size = np.array([math.fsum(row) for row in terms.tolist()])
        bounds.append(largest + np.log1p(size) * factor)
    above = (bounds[0] * (1.0 + 2.0**-50) + _TINY).tolist()
    below = np.maximum(bounds[1] * (1.0 - 2.0**-50) - _TINY, 0.0).tolist()
    return above, below, wrong


def _outputs(arrays: Mapping[str, Any], theta: Any) -> tuple[Any, Any]:
    """Return the outputs and a bound of the error of each, (n, m_y).

    A gate's argument is off by at most e = (m + 1) u |z|^T |r| + tiny, and the slope s (1 - s) <= e^-|x| within e of it
    is at most e^e times that at the computed argument: |s - s^| <= 1.2 e e^-|x| + 2^-40 s^, e <= 0.1.
    """
    Z, R, W = arrays["Z"], arrays["R"], arrays["W"]
    m_y, h, m = _sizes(arrays)
    if theta.shape != (m_y, h * m) or not bool(np.all(np.isfinite(theta))):
        raise NotProved("the weights have another shape")
    sizes = np.abs(Z)
    f, radius = np.empty((len(Z), m_y)), np.empty((len(Z), m_y))
    for j in range(m_y):
        gates, weights, own = R.reshape(m_y, m, h)[j], W[j], theta[j].reshape(h, m)
        x = Z @ gates
        e = ((m + 1) * _U * (sizes @ np.abs(gates)) + m * _TINY) * _ROOM
        if not bool(np.all(e <= 0.1)):
            raise NotProved("the arguments of the gates are not known well enough")
        power = np.exp(-np.abs(x))
        s = np.where(x >= 0.0, 1.0, power) / (1.0 + power)
        moved = (1.2 * e * power + 2.0 * _LIBRARY * s) * _ROOM + _TINY
        f[:, j] = (Z * ((s * weights) @ own)).sum(axis=1)
        absolute = np.abs(own)
        terms = (sizes * (((moved + (h + m + 6) * _U * s) * np.abs(weights)) @ absolute)).sum(axis=1)
        scale = (1.0 + np.abs(weights).max()) * (1.0 + sizes.max()) * (1.0 + absolute.max())
        radius[:, j] = terms * _ROOM * _ROOM + (h + 1.0) * (m + 1.0) * _TINY * scale
    if not (bool(np.all(np.isfinite(f))) and bool(np.all(np.isfinite(radius)))):
        raise NotProved("the outputs overflow")
    return f, radius
