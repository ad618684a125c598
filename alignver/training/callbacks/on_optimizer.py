"""The tracker called by a torch optimiser after each of its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from alignver.training.tracker import AlignmentTracker

__all__ = ["optimizer_hook"]


@contextlib.contextmanager
def optimizer_hook(optimizer: torch.optim.Optimizer, tracker: AlignmentTracker) -> Iterator[AlignmentTracker]:
    """Look at theta^0 on entry, count each ``optimizer.step()`` inside the block, and look at the last theta on exit.

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
