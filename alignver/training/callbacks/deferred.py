"""A tracker that is made when training begins: only then is the model on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from alignver.training.tracker import AlignmentTracker

__all__ = ["Deferred"]


class Deferred:
    """What every callback does: make the tracker, look at theta^0, count steps and epochs, close the file.

    Parameters
    ----------
    X, Y, loss, every
        As in :class:`~alignver.training.tracker.AlignmentTracker`; X goes to the model's device.
    select : callable, optional
        From the framework's model to the module with outputs (n, m_y), values before the last nonlinearity; by default
        the model itself.
    options : dict
        Other arguments of the tracker.

    Attributes
    ----------
    tracker : AlignmentTracker or None
        None until training begins. Training that is taken up again goes on with it.
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        *,
        loss: str,
        every: int | str,
        select: Callable[[Any], nn.Module] | None,
        options: dict[str, Any],
    ) -> None:
        self.X, self.Y, self.loss, self.every, self.select, self.options = X, Y, loss, every, select, options
        self.tracker: AlignmentTracker | None = None

    def begin(self, model: Any) -> AlignmentTracker:
        """Look at theta^0, the first time; return the tracker."""
        module = model if self.select is None else self.select(model)
        if self.tracker is None:
            place = next(module.parameters()).device
            X = self.X.to(place) if isinstance(self.X, torch.Tensor) else self.X
            self.tracker = AlignmentTracker(module, X, self.Y, loss=self.loss, every=self.every, **self.options)
            self.tracker.update()
        return self.tracker

    def step(self, step: int | None = None) -> None:
        """Count an optimiser step, once."""
        if self.tracker is not None and (step is None or step > self.tracker.step):
            self.tracker.update(step)

    def end_epoch(self) -> None:
        """Count an epoch."""
        if self.tracker is not None:
            self.tracker.end_epoch()

    def end(self) -> None:
        """Look at the last theta."""
        if self.tracker is not None:
            self.tracker.check()
            self.tracker.sync()
