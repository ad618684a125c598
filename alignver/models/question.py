"""What Definition 2 asks of a model and its data, before any long work: the targets, and which samples are equal."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import host
from alignver.errors import InvalidInput
from alignver.models.checkable import require_checkable
from alignver.models.conflicts import Conflicts, conflicts, equal_rows
from alignver.models.inputs import as_inputs, as_targets
from alignver.models.represented import count_outputs
from alignver.theory.losses import LOSSES, modified_targets

__all__ = ["Question", "question"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Is ``y = vec(Y_l)`` in the column space of the Jacobian of this model on these inputs?

    Attributes
    ----------
    model : torch.nn.Module
    x : torch.Tensor
        (n, ...), on the model's device.
    m_y : int
        Outputs.
    given : object
        The targets as the caller gave them, as an array.
    targets : numpy.ndarray
        (n, m_y), the modified targets Y_l.
    groups : list of list of int
        Samples with equal inputs.
    clash : Conflicts
        Those among them with different targets.
    """

    model: nn.Module
    x: torch.Tensor
    m_y: int
    given: Any
    targets: np.ndarray[Any, np.dtype[np.float64]]
    groups: list[list[int]]
    clash: Conflicts

    @property
    def y(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``vec(Y_l)``, (n m_y,): columns stacked, entry (i, j) at j n + i."""
        return self.targets.ravel(order="F")


def question(model: Any, X: Any, Y: Any, loss: str, dtype: str | None) -> Question:
    """Validate a model, inputs and targets, and find what can be said of them without a Jacobian.

    Raises
    ------
    InvalidInput
        A model, inputs or targets that no verdict can be about; an unknown loss.

    Examples
    --------
    >>> asked = question(nn.Linear(1, 1), [[0.0], [1.0], [0.0]], [1.0, 3.0, 4.0], "squared", "float64")
    >>> asked.y.tolist(), asked.groups, asked.clash.count
    ([1.0, 3.0, 4.0], [[0, 2]], 1)
    """
    if loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    model = require_checkable(model)
    x = as_inputs(X, next(model.parameters()).device)
    given = as_targets(Y, len(x))
    m_y = count_outputs(model, x, dtype)
    targets = modified_targets(given, loss, len(x), m_y)  # refused before the long work, where they do not fit
    groups = equal_rows(host(x.float() if x.dtype == torch.bfloat16 else x))
    return Question(model, x, m_y, given, targets, groups, conflicts(groups, targets))
