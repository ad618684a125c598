"""A callback for skorch's NeuralNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import skorch.callbacks
from torch import nn

from alignver.training.callbacks.deferred import Deferred
from alignver.training.tracker import AlignmentTracker


class SkorchCallback(skorch.callbacks.Callback):
    """Tracks the alignment of ``net.module_`` while a skorch net is fitted.

    Parameters
    ----------
    X, Y, loss, every
        As in :class:`~alignver.training.tracker.AlignmentTracker`.
    select : callable, optional
        From ``net.module_`` to the network whose outputs are logits.
    options : mapping, optional
        Other arguments of the tracker, as one mapping because scikit-learn clones estimators by their named arguments.

    Attributes
    ----------
    tracker : AlignmentTracker or None
        None until training begins. ``fit`` creates a new tracker, ``partial_fit`` continues with the existing one.
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        *,
        loss: str,
        every: int | str = "epoch",
        select: Callable[[Any], nn.Module] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.X, self.Y, self.loss, self.every, self.select, self.options = X, Y, loss, every, select, options

    def initialize(self) -> SkorchCallback:
        """Discard the tracker of an earlier run: skorch calls this method when it creates the module."""
        self.deferred_ = Deferred(
            self.X, self.Y, loss=self.loss, every=self.every, select=self.select, **(self.options or {})
        )
        return self

    @property
    def tracker(self) -> AlignmentTracker | None:
        """The tracker, once training has begun."""
        return self.deferred_.tracker if hasattr(self, "deferred_") else None

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Check theta^0."""
        batches = (row.get("train_batch_count", 0) for row in net.history)
        self.deferred_.begin(net.module_, sum(batches), len(net.history))

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count a training step; validation batches are not counted."""
        if training:
            self.deferred_.step(model=net.module_)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Count an epoch."""
        self.deferred_.end_epoch()

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Check the last theta."""
        self.deferred_.end()
