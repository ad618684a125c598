"""Convex losses of one sample: value, gradient, curvature, infimum and conjugate, none of them ever overflowing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

from alignver.errors import InvalidInput
from alignver.phi.gate import logistic
from alignver.proof.rounding import FloatArray
from alignver.theory.losses import LOSSES, modified_targets

__all__ = ["LogisticLoss", "SampleLoss", "SoftmaxLoss", "SquaredLoss", "sample_loss"]


@runtime_checkable
class SampleLoss(Protocol):
    r"""A loss :math:`\ell(q, y)` that is convex and smooth in q, for many samples at once.

    Attributes
    ----------
    name : str
    convex : bool
        The caller's word that q -> l(q, y) is convex; a loss that does not say True is refused.
    smoothness : float
        L_l with :math:`\|\nabla \ell(q) - \nabla \ell(q')\| \le L_\ell \|q - q'\|` (Assumption 5).
    """

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def convex(self) -> bool:
        """Whether it is convex in q."""

    @property
    def smoothness(self) -> float:
        """L_l of Assumption 5."""

    def targets(self, Y: Any, n: int, m_y: int) -> FloatArray:
        """Return the targets as a validated float64 matrix (n, m_y)."""

    def values(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return the loss of each sample, (n,), for outputs q and targets y (n, m_y)."""

    def gradient(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return the gradient in q, (n, m_y)."""

    def infima(self, y: FloatArray) -> FloatArray:
        """Return inf_q l(q, y_i) for each sample, (n,)."""


def sample_loss(loss: str | SampleLoss, m_y: int) -> SampleLoss:
    """Return the loss object of a name, or the caller's own after a look at it.

    Parameters
    ----------
    loss : str or SampleLoss
        ``"squared"``, ``"binary_cross_entropy"``, ``"cross_entropy"``, or an object with ``name``, ``convex`` (True),
        ``smoothness``, ``targets``, ``values``, ``gradient`` and ``infima``.
    m_y : int
        Number of outputs: with one of them the cross-entropy is the binary one, as for the modified targets.

    Raises
    ------
    InvalidInput
        An unknown name, an object that lacks something, one that is not known to be convex, no positive smoothness.

    Examples
    --------
    >>> sample_loss("cross_entropy", 10).smoothness, sample_loss("cross_entropy", 1).smoothness
    (0.5, 0.25)
    """
    if isinstance(loss, str):
        known: dict[str, SampleLoss] = {
            "squared": SquaredLoss(),
            "binary_cross_entropy": LogisticLoss(),
            "cross_entropy": SoftmaxLoss() if m_y > 1 else LogisticLoss("cross_entropy"),
        }
        if loss not in known:
            raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(name) for name in LOSSES))
        return known[loss]
    own: Any = loss
    if not isinstance(own, SampleLoss):
        need = "a name, or an object with name, convex, smoothness, targets, values, gradient and infima"
        raise InvalidInput("loss", type(loss).__name__, need)
    if loss.convex is not True:
        raise InvalidInput("loss", f"{loss.name} with convex={loss.convex!r}", "a loss that is convex in the outputs")
    if not 0.0 < float(loss.smoothness) < math.inf:
        raise InvalidInput("loss", f"{loss.name} with smoothness {loss.smoothness!r}", "a positive finite smoothness")
    return loss


@dataclasses.dataclass(frozen=True)
class SquaredLoss:
    r"""The squared loss :math:`\ell(q, y) = \|q - y\|^2`: gradient 2 (q - y), L_l = 2, infimum 0, attained at y.

    Its Hessian is 2 I. Its conjugate is :math:`\ell^*(u) = u^\top y + \|u\|^2 / 4`.

    Examples
    --------
    >>> import numpy as np
    >>> SquaredLoss().values(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]]))
    array([4.])
    """

    name: str = "squared"
    convex: bool = True
    smoothness: float = 2.0
    attained: bool = True

    def targets(self, Y: Any, n: int, m_y: int) -> FloatArray:
        """Return Y as a float64 matrix (n, m_y)."""
        return modified_targets(Y, "squared", n, m_y)

    def values(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return ||q_i - y_i||^2."""
        values: FloatArray = ((q - y) ** 2).sum(axis=1)
        return values

    def gradient(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return 2 (q - y)."""
        return 2.0 * (q - y)

    def curvature(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return the diagonal of the Hessian 2 I."""
        return np.full_like(q, 2.0)

    def infima(self, y: FloatArray) -> FloatArray:
        """Return zeros."""
        return np.zeros(len(y))

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return u_i^T y_i + ||u_i||^2 / 4."""
        values: FloatArray = (u * y + 0.25 * u * u).sum(axis=1)
        return values


@dataclasses.dataclass(frozen=True)
class LogisticLoss:
    r"""The logistic loss :math:`\ell(q, y) = \sum_j \log(1 + e^{q_j}) - y_j q_j`, y in {0, 1}.

    Its gradient is s(q) - y, its Hessian diag(s (1 - s)) with s (1 - s) <= 1/4, so L_l = 1/4. Its infimum is 0 and not
    attained. Its conjugate is :math:`\sum_j p \log p + (1 - p) \log(1 - p)` at p = u + y in [0, 1], infinite elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> LogisticLoss().values(np.array([[800.0], [-800.0]]), np.array([[1.0], [1.0]]))
    array([  0., 800.])
    """

    name: str = "binary_cross_entropy"
    convex: bool = True
    smoothness: float = 0.25
    attained: bool = False

    def targets(self, Y: Any, n: int, m_y: int) -> FloatArray:
        """Return Y as 0 and 1, (n, m_y)."""
        return 0.5 * (modified_targets(Y, self.name, n, m_y) + 1.0)

    def values(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return the sums of log(1 + e^t) with t = (1 - 2 y) q."""
        t = (1.0 - 2.0 * y) * q
        values: FloatArray = (np.maximum(t, 0.0) + np.log1p(np.exp(-np.abs(t)))).sum(axis=1)
        return values

    def gradient(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return s(q) - y, without cancellation."""
        sign = 1.0 - 2.0 * y
        return sign * logistic(sign * q)

    def curvature(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return the diagonal of the Hessian, s (1 - s), without cancellation."""
        small = logistic(-np.abs(q))
        return small * (1.0 - small)

    def infima(self, y: FloatArray) -> FloatArray:
        """Return zeros."""
        return np.zeros(len(y))

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return the negative entropies of p = u + y; infinity where a p lies outside [0, 1]."""
        p = u + y
        inside = np.all((p >= 0.0) & (p <= 1.0), axis=1)
        values: FloatArray = np.where(inside, (_xlogx(p) + _xlogx(1.0 - p)).sum(axis=1), np.inf)
        return values


@dataclasses.dataclass(frozen=True)
class SoftmaxLoss:
    r"""The cross-entropy :math:`\ell(q, y) = \log \sum_k e^{q_k} - q_y`, y a one-hot row.

    Its gradient is p - y with p the softmax, its Hessian diag(p) - p p^T. For a unit vector v that is the variance of v
    under p, at most ((max v - min v) / 2)^2 <= 1/2 (Popoviciu), so L_l = 1/2. Its infimum is 0 and not attained. Its
    conjugate is :math:`\sum_k p_k \log p_k` at p = u + y in the simplex, infinite elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> SoftmaxLoss().values(np.array([[900.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    array([0.        , 0.69314718])
    """

    name: str = "cross_entropy"
    convex: bool = True
    smoothness: float = 0.5
    attained: bool = False

    def targets(self, Y: Any, n: int, m_y: int) -> FloatArray:
        """Return Y as one-hot rows, (n, m_y)."""
        return 0.5 * (modified_targets(Y, "cross_entropy", n, m_y) + 1.0)

    def values(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return max d + log(1 + sum of the others' e^(d - max d)), d = q - q_y: small losses keep their digits."""
        d = q - (q * y).sum(axis=1, keepdims=True)
        rows, top = np.arange(len(d)), np.argmax(d, axis=1)
        largest = d[rows, top]
        others = np.exp(d - largest[:, None])
        others[rows, top] = 0.0
        values: FloatArray = largest + np.log1p(others.sum(axis=1))
        return values

    def gradient(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return p - y; the entry of the right class is minus the sum of the others, without cancellation."""
        p = np.exp(q - q.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        others = p * (1.0 - y)
        slopes: FloatArray = others - y * others.sum(axis=1, keepdims=True)
        return slopes

    def curvature(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return 2 p (1 - p): a diagonal matrix above the Hessian diag(p) - p p^T, by Gershgorin's circles.

        1 - p of the largest entry is the sum of the others, without cancellation.
        """
        rows, top = np.arange(len(q)), np.argmax(q, axis=1)
        p: FloatArray = np.exp(q - q[rows, top][:, None])
        p /= p.sum(axis=1, keepdims=True)
        rest = 1.0 - p
        rest[rows, top] = p.sum(axis=1, where=np.arange(q.shape[1]) != top[:, None])
        return 2.0 * p * rest

    def infima(self, y: FloatArray) -> FloatArray:
        """Return zeros."""
        return np.zeros(len(y))

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return the negative entropy of p = u + y; infinity where p leaves the simplex by more than rounding."""
        p = u + y
        inside = np.all(p >= 0.0, axis=1) & (np.abs(p.sum(axis=1) - 1.0) <= 2.0**-40)
        values: FloatArray = np.where(inside, _xlogx(p).sum(axis=1), np.inf)
        return values


def _xlogx(p: FloatArray) -> FloatArray:
    positive = p > 0.0
    values: FloatArray = np.where(positive, p * np.log(np.where(positive, p, 1.0)), 0.0)
    return values
