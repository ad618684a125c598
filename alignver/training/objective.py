"""The three losses on tensors: mean over the samples, as alignver.theory has them on arrays, and the training error."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from alignver.errors import InvalidInput
from alignver.theory.losses import LOSSES

__all__ = ["as_tensor", "as_training_targets", "count_outputs", "error_rate", "mean_loss"]


def mean_loss(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\frac1n \sum_i \ell(f(x_i), y_i)` for outputs (n, m_y) and targets of :func:`as_training_targets`.

    Examples
    --------
    >>> mean_loss("squared", torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]))
    tensor(2.5000)
    """
    if name == "squared":
        return ((outputs - targets) ** 2).sum(1).mean()
    if name == "binary_cross_entropy" or outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1).mean()
    return F.cross_entropy(outputs, targets)


def error_rate(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> float | None:
    """Return the share of the samples that are misclassified; None for the squared loss."""
    if name == "squared":
        return None
    if name == "binary_cross_entropy" or outputs.shape[1] == 1:
        return float(((outputs > 0) != (targets > 0.5)).any(1).double().mean())
    return float((outputs.argmax(1) != targets.argmax(1)).double().mean())


def as_tensor(Y: Any) -> torch.Tensor:
    """Return targets as a tensor; raises :class:`InvalidInput` if they cannot be converted."""
    try:
        y = torch.as_tensor(Y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput("Y", f"a {type(Y).__name__} that is no array ({error})", "targets, one a sample") from error
    if y.numel() == 0 or y.is_complex():
        raise InvalidInput("Y", f"shape {tuple(y.shape)} and dtype {y.dtype}", "real targets, one a sample")
    return y


def count_outputs(name: str, Y: torch.Tensor, of_model: int) -> int:
    """Return m_y: the columns of the targets, or for integer labels as many as the model has, if those are enough."""
    if Y.ndim == 2:
        return int(Y.shape[1])
    if name != "cross_entropy" or (of_model == 1 and int(Y.max()) <= 1):
        return 1
    return max(of_model, int(Y.max()) + 1)


def as_training_targets(name: str, Y: Any, n: int, m_y: int, like: torch.Tensor) -> torch.Tensor:
    """Return the targets as a floating tensor (n, m_y) beside ``like``: real numbers, or 0 and 1.

    Raises
    ------
    InvalidInput
        An unknown loss, NaN or Inf, invalid labels, a number of targets that does not fit.
    """
    if name not in LOSSES:
        raise InvalidInput("loss", f"loss={name!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    y = as_tensor(Y)
    if y.ndim not in (1, 2) or len(y) != n:
        raise InvalidInput("Y", f"shape {tuple(y.shape)} beside {n} samples", "a row or a label for each sample")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise InvalidInput("Y", "NaN or Inf", "finite targets")
    if name == "squared":
        wide = y.reshape(n, -1)
        if wide.shape[1] != m_y:
            raise InvalidInput("Y", f"{wide.shape[1]} targets a sample beside {m_y} outputs", "as many as outputs")
        return wide.to(device=like.device, dtype=like.dtype)
    if y.ndim == 1 and m_y > 1:
        if y.is_floating_point() or bool((y < 0).any()) or int(y.max()) >= m_y:
            got = f"labels from {y.min().item():g} to {y.max().item():g} of dtype {y.dtype}"
            raise InvalidInput("Y", got, f"integer labels from 0 to {m_y - 1}")
        return F.one_hot(y.long(), m_y).to(device=like.device, dtype=like.dtype)
    wide = y.reshape(n, -1)
    if wide.shape[1] != m_y or not bool(((wide == 0) | (wide == 1)).all()):
        raise InvalidInput("Y", f"targets of shape {tuple(y.shape)}", f"0 and 1, one for each of {m_y} outputs")
    return wide.to(device=like.device, dtype=like.dtype)
