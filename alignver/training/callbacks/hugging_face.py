"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from alignver.training.callbacks.deferred import Deferred


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


class TrainerCallback(Deferred, transformers.TrainerCallback):
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

    def __init__(
        self,
        X: Any,
        Y: Any,
        *,
        loss: str,
        every: int | str = "epoch",
        select: Callable[[Any], nn.Module] = Logits,
        **options: Any,
    ) -> None:
        super().__init__(X, Y, loss=loss, every=every, select=select, **options)

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
