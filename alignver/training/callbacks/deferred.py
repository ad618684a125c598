"""A tracker that begins with a training, the base of the callbacks, and a hook of torch optimisers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from alignver.training.tracker import AlignmentTracker


class Deferred:
    """A tracker that is created when training begins, since only then the model is on its device.

    A second training, of another model or of the same one from another step, is watched anew: its records follow in
    the history, with the next number of a run. A model that is rebuilt during a training is watched from then on.

    Parameters
    ----------
    X, Y, loss, every, **options
        As in :class:`~alignver.training.tracker.AlignmentTracker`; X is moved to the model's device.
    select : callable, optional
        From the framework's model to the module with outputs (n, m_y), values before the last nonlinearity; by default
        the model itself.

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
        self.X, self.Y, self.loss, self.every, self.select, self.options = X, Y, loss, every, select, options
        self.tracker: AlignmentTracker | None = None

    def begin(self, model: Any, step: int = 0, epoch: int = 0) -> None:
        """Create the tracker, or begin another run of it, and check the first theta.

        Parameters
        ----------
        model : object
            The framework's model.
        step, epoch : int
            Steps and epochs that were done before, if the training is resumed.
        """
        module = self._module(model)
        if self.tracker is None:
            device = next(module.parameters()).device
            X = self.X.to(device) if isinstance(self.X, torch.Tensor) else self.X
            options: dict[str, Any] = {**self.options, "step": step, "epoch": epoch}
            self.tracker = AlignmentTracker(module, X, self.Y, loss=self.loss, every=self.every, **options)
        elif self.tracker.watches(module) and step == self.tracker.step:
            return  # the same training goes on
        else:
            self.tracker.restart(module, step=step, epoch=epoch)
        self.tracker.update(step)

    def step(self, step: int | None = None, model: Any = None) -> None:
        """Count an optimiser step; a ``step`` that was counted before is ignored."""
        if self.tracker is None or (step is not None and step <= self.tracker.step):
            return
        if model is not None and not self.tracker.watches(self._module(model)):
            self.tracker.replace_model(self._module(model))
        self.tracker.update(step)

    def _module(self, model: Any) -> nn.Module:
        module: nn.Module = model if self.select is None else self.select(model)
        return module

    def end_epoch(self) -> None:
        """Count an epoch."""
        if self.tracker is not None:
            self.tracker.end_epoch()

    def end(self) -> None:
        """Check the last theta."""
        if self.tracker is not None:
            self.tracker.check()
            self.tracker.sync()


@contextlib.contextmanager
def optimizer_hook(optimizer: torch.optim.Optimizer, tracker: AlignmentTracker) -> Iterator[AlignmentTracker]:
    """Check theta^0 on entry, count each ``optimizer.step()`` in the block, and check the last theta on exit.

    A second block with the same tracker goes on with the count.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    tracker : AlignmentTracker

    Yields
    ------
    AlignmentTracker

    Examples
    --------
    >>> net = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> X, Y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    >>> with optimizer_hook(optimizer, AlignmentTracker(net, X, Y, loss="squared", every=2)) as tracker:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.mse_loss(net(X), Y).backward()
    ...         optimizer.step()
    >>> [record.step for record in tracker.history]
    [0, 2, 3]
    """
    if tracker.begun:
        tracker.check()
    else:
        tracker.update()

    def count(*_: object) -> None:
        tracker.update()

    handle = optimizer.register_step_post_hook(count)
    try:
        yield tracker
        tracker.check()
        tracker.sync()
    finally:
        handle.remove()
