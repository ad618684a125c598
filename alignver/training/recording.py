"""What the steps of an exploitation phase did, in the numbers that the theorems are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alignver.theory.record import TrainingRecord
from alignver.training.exploitation import CachedProblem
from alignver.training.objective import mean_loss
from alignver.training.solvers import plain_descent

__all__ = ["Recorder"]

_COLUMNS = ("steps", "losses", "step_sizes", "gradient_norms", "update_norms", "inner_products")


class Recorder:
    r"""Record of the steps :math:`\theta^{t+1} = \theta^t - \alpha^t \bar g^t` on the weights of the last hidden layer.

    Loss and gradient are those of all samples before each step, which is one more evaluation for each of them. alpha is
    the optimiser's step; :math:`\bar g^t` is the gradient that plain SGD took, and
    :math:`(\theta^t - \theta^{t+1}) / \alpha^t` for everything else.

    Parameters
    ----------
    tau : int
        The step at which the phase begins.
    """

    def __init__(self, tau: int) -> None:
        self.tau = tau
        self.methods: list[str] = []
        self._columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
        self._before: tuple[float, torch.Tensor, torch.Tensor] | None = None

    def before(self, loss: str, problem: CachedProblem, targets: torch.Tensor) -> None:
        """Look at loss, gradient and weights before a step."""
        weights = problem.head.hidden
        with torch.enable_grad():
            value = mean_loss(loss, problem.outputs(), targets)
            (gradient,) = torch.autograd.grad(value, weights)
        self._before = float(value.detach()), gradient.double(), weights.detach().double().clone()

    def after(self, step: int, optimizer: torch.optim.Optimizer, weights: torch.Tensor, method: str) -> None:
        """Keep what the step did."""
        assert self._before is not None
        loss, gradient, start = self._before
        size = float(optimizer.param_groups[0]["lr"])
        plain = plain_descent(optimizer) and weights.grad is not None
        update = weights.grad.double() if plain and weights.grad is not None else (start - weights.double()) / size
        numbers = (step, loss, size, gradient.norm(), update.detach().norm(), (gradient * update.detach()).sum())
        for name, number in zip(_COLUMNS, numbers, strict=True):
            self._columns[name].append(float(number))
        if method not in self.methods:
            self.methods.append(method)
        self._before = None

    def record(self) -> TrainingRecord | None:
        """Return the record; None before the first step."""
        if not self.methods:
            return None
        return TrainingRecord(**self._columns, tau=self.tau, method=" and ".join(self.methods))

    def state(self) -> dict[str, Any]:
        """Return everything as plain data, for a checkpoint."""
        return {
            "tau": self.tau,
            "methods": list(self.methods),
            "columns": {k: list(v) for k, v in self._columns.items()},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Recorder:
        """Return the recorder that :meth:`state` is of."""
        recorder = cls(int(state["tau"]))
        recorder.methods = list(state["methods"])
        recorder._columns = {name: list(state["columns"][name]) for name in _COLUMNS}
        return recorder


def method_of(optimizer: torch.optim.Optimizer, batch: str) -> str:
    """Return the name of what was done, as :class:`TrainingRecord` has it.

    ``batch`` is ``"all"``, ``"independent"`` (drawn anew for each step, so that a stochastic gradient is unbiased
    whatever came before) or something else, in words: one epoch's batches without repetition are not independent.
    """
    if plain_descent(optimizer):
        return {"all": "gradient descent", "independent": "sgd"}.get(batch, f"sgd, {batch}")
    return type(optimizer).__name__ + ("" if batch == "all" else f", {batch} batches")
