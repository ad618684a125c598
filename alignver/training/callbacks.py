"""The alignment tracker as a callback of Lightning, Hugging Face transformers and skorch, and of any torch optimiser.

``LightningCallback``, ``TrainerCallback`` and ``SkorchCallback`` exist at their first use: a class of hooks below with
the callback class of its library, which is imported then.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from alignver.errors import MissingDependency
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


class _LightningHooks(Deferred):
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


class Logits(nn.Module):
    """A model of transformers as a function from one tensor to its logits, with the parameters of the model.

    Parameters
    ----------
    model : torch.nn.Module
    argument : str
        The name of the argument for X: ``"input_ids"``, ``"pixel_values"``. A forward pass that needs further
        arguments, for example a mask, needs another module.
    """

    def __init__(self, model: nn.Module, argument: str = "input_ids") -> None:
        super().__init__()
        self.model, self.argument = model, argument
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (n, m_y)."""
        logits: torch.Tensor = self.model(**{self.argument: x}).logits
        return logits


class _TrainerHooks(Deferred):
    """Tracks the alignment of a model while ``transformers.Trainer`` trains it.

    Parameters
    ----------
    X, Y, loss, every, **options
        As in :class:`~alignver.training.tracker.AlignmentTracker`. Models with dropout need
        ``mode="eval"``.
    select : callable, optional
        From the model to a module that maps one tensor to logits; by default :class:`Logits` of ``input_ids``.

    Attributes
    ----------
    tracker : AlignmentTracker or None
        None until training begins.
    """

    def _module(self, model: Any) -> nn.Module:
        return Logits(model) if self.select is None else super()._module(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check theta^0."""
        self.begin(kwargs["model"], int(state.global_step), int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        self.step(int(state.global_step), kwargs.get("model"))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an epoch."""
        self.end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the last theta."""
        self.end()


class _SkorchHooks:
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

    def initialize(self) -> _SkorchHooks:
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


_CALLBACKS: dict[str, tuple[type, str, str]] = {
    "LightningCallback": (_LightningHooks, "lightning.pytorch", "Callback"),
    "SkorchCallback": (_SkorchHooks, "skorch.callbacks", "Callback"),
    "TrainerCallback": (_TrainerHooks, "transformers", "TrainerCallback"),
}
"""For each callback class, its hooks, and the module and name of the class of its library."""

__all__ = ["Deferred", "Logits", "optimizer_hook", *_CALLBACKS]


def __getattr__(name: str) -> Any:
    if name not in _CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hooks, module, base = _CALLBACKS[name]
    library = module.partition(".")[0]
    try:
        bases = (hooks, getattr(importlib.import_module(module), base))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingDependency(library, f"{__name__}.{name}", "integrations") from error
    globals()[name] = type(name, bases, {"__doc__": hooks.__doc__, "__module__": __name__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
