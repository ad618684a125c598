"""A callback for Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from alignver.training.callbacks import Deferred
from alignver.training.tracker import AlignmentTracker

__all__ = ["LightningCallback"]


class LightningCallback(Callback):
    """Tracks the alignment of a LightningModule while ``Trainer.fit`` trains it.

    The first check is at ``on_train_start``. Steps are those that ``trainer.global_step`` counts (gradients accumulated
    over batches give one step). The last theta is always checked.

    Parameters
    ----------
    X, Y, loss, every, **options
        As in :class:`~alignver.training.tracker.AlignmentTracker`.
    select : callable, optional
        From the LightningModule to the network whose outputs are logits: ``lambda module: module.net``. By default the
        LightningModule itself.

    Attributes
    ----------
    tracker : AlignmentTracker or None
        None until training begins.
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        *,
        loss: str,
        every: int | str = "epoch",
        select: Callable[[Any], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._deferred = Deferred(X, Y, loss=loss, every=every, select=select, options=options)

    @property
    def tracker(self) -> AlignmentTracker | None:
        """The tracker, once training has begun."""
        return self._deferred.tracker

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check theta^0."""
        self._deferred.begin(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step, if there was one."""
        self._deferred.step(int(trainer.global_step))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count an epoch."""
        self._deferred.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Check the last theta."""
        self._deferred.end()
