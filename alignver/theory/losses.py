"""The modified targets Y_l of each loss, and the losses of a sample: values, gradients, curvatures and conjugates.

The column space of the Jacobian has to contain vec(Y_l). The losses are convex, and are computed without overflow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.arrays import as_matrix, as_vector, from_frame, host, is_text, numbered
from alignver.errors import InvalidInput, kind_of
from alignver.features.products import logistic
from alignver.proof.rounding import FloatArray

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")
"""The losses whose modified targets the paper defines (Section 2.1.2)."""

Targets = npt.NDArray[np.float64]

_ALIASES = {
    "squared": ("mse", "mse_loss", "mseloss", "l2", "squared_error", "mean_squared_error"),
    "binary_cross_entropy": ("bce", "bce_with_logits", "bcewithlogitsloss", "binary_cross_entropy_with_logits",
                             "logistic", "log_loss", "binary_crossentropy"),
    "cross_entropy": ("ce", "crossentropyloss", "crossentropy", "softmax", "categorical_crossentropy",
                      "sparse_categorical_crossentropy"),
}  # fmt: skip
_OF_PROBABILITIES = {
    "BCELoss": "torch.nn.BCEWithLogitsLoss, of a model without its sigmoid",
    "NLLLoss": "torch.nn.CrossEntropyLoss, of a model without its log-softmax",
    "binary_cross_entropy": "loss='binary_cross_entropy', of a model without its sigmoid",
    "nll_loss": "loss='cross_entropy', of a model without its log-softmax",
}
_CHANGES = {"weight": None, "pos_weight": None, "label_smoothing": 0.0, "ignore_index": -100}


def loss_name(loss: Any, *, need: str | None = None) -> str:
    """Return the name in :data:`LOSSES` of a loss: a name, an alias, or a loss of ``torch.nn``, its class or function.

    Raises
    ------
    InvalidInput
        An unknown loss, such as a function that has only the name of one; a loss of probabilities instead of logits;
        one with weights or smoothed labels.

    Examples
    --------
    >>> loss_name("mse"), loss_name("CrossEntropyLoss")
    ('squared', 'cross_entropy')
    """
    name = loss
    if not isinstance(loss, str) and str(getattr(loss, "__module__", "")).startswith("torch."):
        kind = type(loss).__name__
        name = loss.__name__ if isinstance(loss, type) or kind == "function" else kind
        if name in _OF_PROBABILITIES:
            raise InvalidInput("loss", f"{name}, a loss of probabilities", _OF_PROBABILITIES[name])
        for option, plain in _CHANGES.items():
            if getattr(loss, option, plain) is not plain and getattr(loss, option) != plain:
                raise InvalidInput("loss", f"{name} with {option}", f"{name} without {option}")
    if isinstance(name, str):
        for canonical, others in _ALIASES.items():
            if name == canonical or name.lower() in others:
                return canonical
    return str(require.one_of("loss", loss, LOSSES, need=need))


def modified_targets(Y: Any, loss: str, n: int, m_y: int) -> Targets:
    """Return the modified target matrix Y_l of the data (X, Y) for a loss.

    ``Y_l = Y`` for the squared loss and ``(Y_l)_ij = 2 Y_ij - 1`` with ``Y_ij`` in {0, 1} for the binary and the
    multi-class cross-entropy losses (paper, Section 2.1.2, before Definition 2).

    Parameters
    ----------
    Y : array or nested list
        ``"squared"``: real numbers of shape (n, m_y), or (n,) when m_y = 1.
        ``"cross_entropy"``: labels 0..m_y-1 of shape (n,) or (n, 1), or one-hot rows of shape (n, m_y).
        ``"binary_cross_entropy"``: {0, 1} of shape (n, m_y); a row may contain several ones.
        With m_y = 1 both cross-entropies accept {0, 1} of shape (n,) or (n, 1).
        bool, integers and floats are accepted as {0, 1}; labels may be whole floats, or bool for two classes, or names
        of all classes, which are numbered in sorted order.
    loss : str
        One of :data:`LOSSES`, or what :func:`loss_name` accepts.
    n, m_y : int
        Number of samples and of outputs of the model.

    Returns
    -------
    numpy.ndarray
        (n, m_y), float64, without rounding.

    Raises
    ------
    InvalidInput
        For an unknown loss, a wrong shape, NaN or Inf, labels out of range or not integers, and soft labels.

    Notes
    -----
    Rigor: exact.

    Examples
    --------
    >>> modified_targets([2, 0], "cross_entropy", 2, 3)
    array([[-1., -1.,  1.],
           [ 1., -1., -1.]])
    >>> modified_targets([0, 1, 1], "binary_cross_entropy", 3, 1).ravel()
    array([-1.,  1.,  1.])
    >>> modified_targets([-1, 1], "binary_cross_entropy", 2, 1)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: Y: got Y=-1 at 0; needs 0 or 1: (Y + 1) / 2 converts targets of -1 and 1
    """
    loss = loss_name(loss)
    Y = from_frame(Y, "Y")
    Y = class_numbers(Y, loss, m_y) if is_text(Y) else Y
    ndim = _ndim(Y)
    if loss == "cross_entropy" and m_y > 1 and ndim == 2 and np.shape(Y)[1] == 1:
        Y, ndim = (Y[:, 0] if hasattr(Y, "ndim") else [row[0] for row in Y]), 1
    if ndim == 1 and loss == "cross_entropy" and m_y > 1:
        return 2.0 * _one_hot(Y, n, m_y) - 1.0
    targets = _rows(Y, loss, n, m_y, ndim)
    if loss == "squared":
        return targets
    _require_bits(targets, ndim)
    if loss == "cross_entropy" and m_y > 1:
        _require_one_hot(targets)
    return 2.0 * targets - 1.0


def class_numbers(labels: Any, loss: str, m_y: int) -> npt.NDArray[np.int64]:
    """Return names of classes as numbers, in sorted order.

    Raises
    ------
    InvalidInput
        Some class does not occur, so that its place is not known; a loss that takes numbers.
    """
    names = sorted(set(np.asarray(labels).reshape(-1).tolist()))
    classes = m_y if loss == "cross_entropy" and m_y > 1 else 2
    if loss == "squared" or (loss == "binary_cross_entropy" and m_y > 1):
        raise InvalidInput("Y", f"names of classes for loss={loss!r}", "numbers", "wrong-dtype")
    if len(names) != classes:
        got = f"{len(names)} names of classes for {m_y} output{'s' * (m_y > 1)}"
        need = f"each of {classes} classes, or their numbers: [classes.index(name) for name in Y]"
        raise InvalidInput("Y", got, need)
    return numbered(labels)


def _ndim(Y: Any) -> int:
    if hasattr(Y, "ndim"):
        return int(Y.ndim)
    try:
        return np.ndim(Y)
    except ValueError:  # ragged lists, which the validation refuses
        return 1


def _rows(Y: Any, loss: str, n: int, m_y: int, ndim: int) -> Targets:
    """Validate targets given row by row: (n, m_y), or (n,) when there is one output."""
    if ndim == 1:
        entries = as_vector(Y, "Y").array
        if m_y > 1:
            need = f"shape ({n}, {m_y}), one column for each output of the model"
            if loss == "binary_cross_entropy":
                need += "; for one class out of several use loss='cross_entropy'"
            raise InvalidInput("Y", f"shape ({entries.shape[0]},) for loss={loss!r}", need, "wrong-shape")
    else:
        entries = as_matrix(Y, "Y").array
    values = np.array(host(entries), dtype=np.float64)  # a copy: the result never aliases Y
    if values.shape[0] != n:
        need = f"one row for each sample, {n} in all"
        raise InvalidInput("Y", f"{values.shape[0]} rows for {n} samples", need, "wrong-shape")
    values = values.reshape(n, -1)
    if values.shape[1] != m_y:
        need = f"shape ({n}, {m_y}), one column for each output of the model"
        if loss == "cross_entropy" and values.shape[1] == 1:
            need += f", or labels of shape ({n},): Y[:, 0]"
        raise InvalidInput("Y", f"shape {values.shape} for loss={loss!r}", need, "wrong-shape")
    return values


def _one_hot(Y: Any, n: int, m_y: int) -> Targets:
    """Return one-hot rows for integer labels of shape (n,)."""
    entries = as_vector(Y, "Y")
    kind = str(getattr(Y, "dtype", np.asarray(Y).dtype)).rpartition(".")[2]
    values = host(entries.array)
    if values.shape[0] != n:
        need = f"one label for each sample, {n} in all"
        raise InvalidInput("Y", f"{values.shape[0]} labels for {n} samples", need, "wrong-shape")
    if not np.all(values == np.floor(values)) or (kind == "bool" and m_y > 2):
        need = f"integer labels 0..{m_y - 1} or one-hot rows of shape ({n}, {m_y}); loss='squared' takes real targets"
        raise InvalidInput("Y", f"shape ({n},) and dtype {kind} for loss='cross_entropy'", need, "wrong-dtype")
    outside = np.flatnonzero((values < 0) | (values >= m_y))
    if outside.size:
        row = int(outside[0])
        remedy = f"the model has {m_y} outputs; labels start at 0"
        if values[row] < 0:
            remedy = "drop the samples that have no label"
        raise InvalidInput("Y", f"Y={int(values[row])} at {row}", f"labels 0..{m_y - 1}: {remedy}")
    one_hot = np.zeros((n, m_y))
    one_hot[np.arange(n), values.astype(np.int64)] = 1.0
    return one_hot


def _require_bits(targets: Targets, ndim: int) -> None:
    bad = np.argwhere((targets != 0.0) & (targets != 1.0))
    if not bad.size:
        return
    row, column = (int(k) for k in bad[0])
    value = float(targets[row, column])
    if set(np.unique(targets)) <= {-1.0, 1.0}:
        remedy = "(Y + 1) / 2 converts targets of -1 and 1"
    elif 0.0 < value < 1.0:
        remedy = "the paper defines no Y_l for soft labels; round them, or use loss='squared'"
    else:
        remedy = "loss='squared' takes any real targets"
    position = f"{row}" if ndim == 1 else f"({row}, {column})"
    raise InvalidInput("Y", f"Y={value:g} at {position}", f"0 or 1: {remedy}")


def _require_one_hot(targets: Targets) -> None:
    wrong = np.flatnonzero(targets.sum(axis=1) != 1.0)
    if wrong.size:
        row = int(wrong[0])
        got = f"a row with {int(targets[row].sum())} ones at {row}"
        need = "one-hot rows, or integer labels; for several classes at once use loss='binary_cross_entropy'"
        raise InvalidInput("Y", got, need)


@runtime_checkable
class SampleLoss(Protocol):
    r"""A loss :math:`\ell(q, y)` that is convex and smooth in q, for many samples at once.

    Attributes
    ----------
    name : str
    convex : bool
        Whether q -> l(q, y) is convex, as the caller states; a loss is refused if this is not True.
    smoothness : float
        L_l with :math:`\|\nabla \ell(q) - \nabla \ell(q')\| \le L_\ell \|q - q'\|` (Assumption 5).
    """

    @property
    def name(self) -> str:
        """The name in reports."""

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
    """Return the loss object with a name, or the caller's loss object after validation.

    Parameters
    ----------
    loss : str or SampleLoss
        ``"squared"``, ``"binary_cross_entropy"``, ``"cross_entropy"``, or an object with ``name``, ``convex`` (True),
        ``smoothness``, ``targets``, ``values``, ``gradient`` and ``infima``.
    m_y : int
        Number of outputs: with one output the cross-entropy is the binary one, as for the modified targets.

    Raises
    ------
    InvalidInput
        For an unknown name, and for an object that lacks an attribute, is not convex or has no positive smoothness.

    Examples
    --------
    >>> sample_loss("cross_entropy", 10).smoothness, sample_loss("cross_entropy", 1).smoothness
    (0.5, 0.25)
    """
    candidate: Any = loss
    if not isinstance(candidate, SampleLoss):
        known: dict[str, SampleLoss] = {
            "squared": SquaredLoss(),
            "binary_cross_entropy": LogisticLoss(),
            "cross_entropy": SoftmaxLoss() if m_y > 1 else LogisticLoss("cross_entropy"),
        }
        if not isinstance(candidate, str) and not str(getattr(candidate, "__module__", "")).startswith("torch."):
            need = "a name, or an object with name, convex, smoothness, targets, values, gradient and infima"
            raise InvalidInput("loss", kind_of(loss), need, "wrong-type")
        return known[loss_name(candidate)]
    loss = candidate
    if loss.convex is not True:
        raise InvalidInput("loss", f"{loss.name} with convex={loss.convex!r}", "a loss that is convex in the outputs")
    if not 0.0 < float(loss.smoothness) < math.inf:
        raise InvalidInput("loss", f"{loss.name} with smoothness {loss.smoothness!r}", "a positive finite smoothness")
    return loss


@dataclasses.dataclass(frozen=True)
class _NamedLoss:
    """The common part of the named losses, which are convex with infimum 0; the targets are 0 and 1 by default."""

    name: str = ""
    convex: bool = True
    smoothness: float = math.nan

    def targets(self, Y: Any, n: int, m_y: int) -> FloatArray:
        """Return Y as 0 and 1, (n, m_y)."""
        return 0.5 * (modified_targets(Y, self.name, n, m_y) + 1.0)

    def infima(self, y: FloatArray) -> FloatArray:
        """Return zeros."""
        return np.zeros(len(y))


@dataclasses.dataclass(frozen=True)
class SquaredLoss(_NamedLoss):
    r"""The squared loss :math:`\ell(q, y) = \|q - y\|^2`: gradient 2 (q - y), L_l = 2, infimum 0, attained at y.

    Its Hessian is 2 I. Its conjugate is :math:`\ell^*(u) = u^\top y + \|u\|^2 / 4`.

    Examples
    --------
    >>> import numpy as np
    >>> SquaredLoss().values(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]]))
    array([4.])
    """

    name: str = "squared"
    smoothness: float = 2.0

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

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return u_i^T y_i + ||u_i||^2 / 4."""
        values: FloatArray = (u * y + 0.25 * u * u).sum(axis=1)
        return values


@dataclasses.dataclass(frozen=True)
class LogisticLoss(_NamedLoss):
    r"""The logistic loss :math:`\ell(q, y) = \sum_j \log(1 + e^{q_j}) - y_j q_j`, y in {0, 1}.

    Its gradient is s(q) - y, its Hessian diag(s (1 - s)) with s (1 - s) <= 1/4, so L_l = 1/4. Its infimum is 0 and is
    not attained. Its conjugate is :math:`\sum_j p \log p + (1 - p) \log(1 - p)` at p = u + y in [0, 1], infinite
    elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> LogisticLoss().values(np.array([[800.0], [-800.0]]), np.array([[1.0], [1.0]]))
    array([  0., 800.])
    """

    name: str = "binary_cross_entropy"
    smoothness: float = 0.25

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

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return the negative entropies of p = u + y; infinity if an entry of p lies outside [0, 1]."""
        p = u + y
        inside = np.all((p >= 0.0) & (p <= 1.0), axis=1)
        values: FloatArray = np.where(inside, (_xlogx(p) + _xlogx(1.0 - p)).sum(axis=1), np.inf)
        return values


@dataclasses.dataclass(frozen=True)
class SoftmaxLoss(_NamedLoss):
    r"""The cross-entropy :math:`\ell(q, y) = \log \sum_k e^{q_k} - q_y`, y a one-hot row.

    Its gradient is p - y with p the softmax, its Hessian diag(p) - p p^T. For a unit vector v that is the variance of v
    under p, at most ((max v - min v) / 2)^2 <= 1/2 (Popoviciu), so L_l = 1/2. Its infimum is 0 and is not attained. Its
    conjugate is :math:`\sum_k p_k \log p_k` at p = u + y in the simplex, infinite elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> SoftmaxLoss().values(np.array([[900.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    array([0.        , 0.69314718])
    """

    name: str = "cross_entropy"
    smoothness: float = 0.5

    def values(self, q: FloatArray, y: FloatArray) -> FloatArray:
        """Return max d + log(1 + sum of the others' e^(d - max d)), d = q - q_y: accurate for small losses too."""
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

    def conjugate(self, u: FloatArray, y: FloatArray) -> FloatArray:
        """Return the negative entropy of p = u + y; infinity if p is outside the simplex, up to rounding."""
        p = u + y
        inside = np.all(p >= 0.0, axis=1) & (np.abs(p.sum(axis=1) - 1.0) <= 2.0**-40)
        values: FloatArray = np.where(inside, _xlogx(p).sum(axis=1), np.inf)
        return values


def _xlogx(p: FloatArray) -> FloatArray:
    positive = p > 0.0
    values: FloatArray = np.where(positive, p * np.log(np.where(positive, p, 1.0)), 0.0)
    return values
