"""The training loss of the exploitation phase: a convex function of the weights of the last hidden layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from alignver.proof.rounding import FloatArray
from alignver.theory.exploitation import Exploitation
from alignver.theory.sample_losses import SampleLoss, sample_loss

__all__ = ["Objective", "objective"]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    r"""The loss :math:`\hat{\mathcal L}(\theta_{(H-1)}) = \frac1n \sum_i \ell(\hat f_i(\theta_{(H-1)}), y_i)`.

    Attributes
    ----------
    model : Exploitation
    targets : (n, m_y) float64
        As the loss takes them: real numbers, or 0 and 1.
    loss : SampleLoss

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> loss = objective(model, [4.5, 1.5], "squared")
    >>> loss.value(np.ones((1, 3, 2))), loss.infimum
    (0.0, 0.0)
    """

    model: Exploitation
    targets: FloatArray
    loss: SampleLoss

    def value(self, weights: Any) -> float:
        """Return the loss at weights (m_y, h, m)."""
        return self.of_outputs(self.model.outputs(weights))

    def gradient(self, weights: Any) -> FloatArray:
        """Return the gradient in the weights, (m_y, h, m) (Lemma 7)."""
        outputs = self.model.outputs(weights)
        return self.model.adjoint(self.loss.gradient(outputs, self.targets) / self.model.n)

    def of_outputs(self, outputs: FloatArray) -> float:
        """Return the loss of outputs (n, m_y): the mean of the samples' losses, summed without rounding."""
        return math.fsum(self.loss.values(outputs, self.targets).tolist()) / self.model.n

    @property
    def infimum(self) -> float:
        """The mean of inf_q l(q, y_i): no parameters of any model have a smaller loss."""
        return math.fsum(self.loss.infima(self.targets).tolist()) / self.model.n


def objective(model: Exploitation, Y: Any, loss: str | SampleLoss) -> Objective:
    """Return the training loss of a model on targets ``Y``, as :func:`~alignver.theory.modified_targets` takes them.

    Raises
    ------
    InvalidInput
        Targets that do not fit the outputs; a loss that is unknown or not convex.
    """
    own = sample_loss(loss, model.m_y)
    return Objective(model, own.targets(Y, model.n, model.m_y), own)
