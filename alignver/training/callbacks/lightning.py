"""A callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from alignver.training.callbacks.deferred import Deferred


class LightningCallback(Deferred, Callback):
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check theta^0."""
        self.begin(pl_module, int(trainer.global_step), int(trainer.current_epoch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step, if there was one."""
        self.step(int(trainer.global_step), pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count an epoch."""
        self.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Check the last theta."""
        self.end()
