"""What Definition 2 asks of a model and its data, before any long work: the targets, and which samples are equal."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import EPS
from alignver.checks.duplicate_inputs import DuplicateInputs
from alignver.errors import InvalidInput
from alignver.models.checkable import require_checkable
from alignver.models.inputs import as_inputs, as_targets
from alignver.models.precision import dtype_name, resolve_dtype
from alignver.models.represented import count_outputs
from alignver.samples import fingerprints, open_samples
from alignver.theory.losses import LOSSES, modified_targets

__all__ = ["Question", "duplicates_of", "question"]

Targets = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Is ``y = vec(Y_l)`` in the column space of the Jacobian of this model on these inputs?

    Samples with equal inputs have equal rows at every theta. Where their targets are equal too, one of them stands for
    all: the question is asked of the distinct samples. Where they are not, the answer is known.

    Attributes
    ----------
    model : torch.nn.Module
    x : torch.Tensor
        (n, ...), on the model's device: the distinct inputs, or all where there is a conflict.
    m_y : int
        Outputs.
    given : object
        The targets of all samples as the caller gave them, as an array.
    targets : numpy.ndarray
        (n, m_y), the modified targets Y_l of the samples in ``x``.
    duplicates : DuplicateInputs
        Which samples are equal.
    """

    model: nn.Module
    x: torch.Tensor
    m_y: int
    given: Any
    targets: Targets
    duplicates: DuplicateInputs

    @property
    def y(self) -> Targets:
        """``vec(Y_l)``, (n m_y,): columns stacked, entry (i, j) at j n + i."""
        return self.targets.ravel(order="F")

    @property
    def merged(self) -> bool:
        """Whether a sample in ``x`` stands for others."""
        return len(self.x) < self.duplicates.n

    def of_all(self, rows: Targets) -> Targets:
        """Return rows that belong to the samples in ``x`` for all samples."""
        return rows[self.duplicates.position] if self.merged else rows


def question(model: Any, X: Any, Y: Any, loss: str, dtype: str | None) -> Question:
    """Validate a model, inputs and targets, and find what can be said of them without a Jacobian.

    Raises
    ------
    InvalidInput
        A model, inputs or targets that no verdict can be about; an unknown loss.

    Examples
    --------
    >>> asked = question(nn.Linear(1, 1), [[0.0], [1.0], [0.0]], [1.0, 3.0, 1.0], "squared", "float64")
    >>> asked.y.tolist(), asked.duplicates.distinct
    ([1.0, 3.0], 2)
    """
    if loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    model = require_checkable(model)
    x = as_inputs(X, next(model.parameters()).device)
    given = as_targets(Y, len(x))
    m_y = count_outputs(model, x, dtype)
    targets = modified_targets(given, loss, len(x), m_y)  # refused before the long work, where they do not fit
    duplicates = duplicates_of(model, x, given, dtype)
    if duplicates.distinct < len(x) and not duplicates.conflicts.count:
        kept = duplicates.representatives
        x, targets = x[torch.from_numpy(kept).to(x.device)], targets[kept]
    return Question(model, x, m_y, given, targets, duplicates)


def duplicates_of(model: nn.Module, x: torch.Tensor, given: Any, dtype: str | None) -> DuplicateInputs:
    """Return which inputs are equal as they enter the model, which is run in ``dtype``; ``given`` are targets or None.

    Examples
    --------
    >>> duplicates_of(nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [1.0]]), None, "float64").first.tolist()
    [0, 1, 0]
    """
    enters = resolve_dtype(model, dtype)
    rounds = x.is_floating_point() and EPS[dtype_name(x.dtype)] < EPS[dtype_name(enters)]
    entered = x.to(enters) if rounds else x
    return DuplicateInputs.of(fingerprints(open_samples(entered, given)))
