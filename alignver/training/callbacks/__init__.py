"""A tracker that is made when training begins: only then is the model on its device.

The tracker called by a torch optimiser after each of its steps.

The tracker in other people's training loops: Lightning, Hugging Face transformers, skorch, or any torch optimiser.

Each name is loaded, and with it the library that it is for, when it is first used.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from alignver.errors import MissingDependency
from alignver.training.tracker import AlignmentTracker

__all__ = ["Deferred", "LightningCallback", "SkorchCallback", "TrainerCallback", "optimizer_hook"]


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


_HOMES = {
    "LightningCallback": "lightning",
    "SkorchCallback": "skorch",
    "TrainerCallback": "hugging_face",
}
_LIBRARIES = {"lightning": "lightning", "skorch": "skorch", "hugging_face": "transformers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    library = _LIBRARIES.get(home)
    try:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if library is None or (error.name or "").partition(".")[0] != library:
            raise
        raise MissingDependency(library, f"{__name__}.{name}", "integrations") from error


def __dir__() -> list[str]:
    return sorted(__all__)
