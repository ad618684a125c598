"""A callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from alignver.training.callbacks import Deferred
from alignver.training.tracker import AlignmentTracker

__all__ = ["Logits", "TrainerCallback"]


class Logits(nn.Module):
    """A model of transformers as a function from one tensor to its logits; the parameters are the model's own.

    Parameters
    ----------
    model : torch.nn.Module
    argument : str
        The name under which the model takes X: ``"input_ids"``, ``"pixel_values"``. What else the forward pass needs
        (a mask, say) takes a module of your own.
    """

    def __init__(self, model: nn.Module, argument: str = "input_ids") -> None:
        super().__init__()
        self.model, self.argument = model, argument
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (n, m_y)."""
        logits: torch.Tensor = self.model(**{self.argument: x}).logits
        return logits


class TrainerCallback(transformers.TrainerCallback):
    """Watches the alignment of a model while ``transformers.Trainer`` trains it.

    Parameters
    ----------
    X, Y, loss, every, **options
        As in :class:`~alignver.training.tracker.AlignmentTracker`. Dropout is usual in these models: ``mode="eval"``.
    select : callable, optional
        From the model to a module with one tensor in and logits out; by default :class:`Logits` of ``input_ids``.

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
        self._deferred = Deferred(X, Y, loss=loss, every=every, select=select, options=options)

    @property
    def tracker(self) -> AlignmentTracker | None:
        """The tracker, once training has begun."""
        return self._deferred.tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at theta^0."""
        self._deferred.begin(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        self._deferred.step(int(state.global_step))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an epoch."""
        self._deferred.end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the last theta."""
        self._deferred.end()
