"""The two phases epoch by epoch: which samples come together, what is written down, when a run has to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from alignver.errors import InvalidInput
from alignver.training.objective import as_tensor
from alignver.training.pace import as_count, batches, denormals, smallest_batch, tau_epoch
from alignver.training.solvers import ScheduledSGD, full_batch
from alignver.training.trained import EXPLOITING, EXPLORING

if TYPE_CHECKING:
    from alignver.training.wrapper import EEWrapper

__all__ = ["planned", "run"]


def run(
    wrapper: EEWrapper,
    data: Any,
    epochs: int,
    *,
    size: int | None,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None,
    prove: bool | None,
    flush: bool,
    on_epoch: Callable[..., None] | None,
) -> None:
    """Train a wrapper until ``epochs`` epochs are behind it: :meth:`EEWrapper.fit` has the arguments' meaning."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"a {type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
        raise InvalidInput("data", got, "(X, Y) with all training samples, whose features exploitation keeps")
    X, Y = data
    last, size = planned(wrapper, len(X), epochs, size)
    wrapper.prepare(X, Y)
    inputs, targets = wrapper._inputs(X), as_tensor(Y)
    n = len(inputs)
    while wrapper.epochs < epochs:
        if wrapper.phase == EXPLORING and wrapper.epochs >= last:
            least = smallest_batch(n, size)
            wrapper.enter_exploitation(inputs, targets, cache=augment is None, prove=prove, batch_size=least)
        with denormals(flush=flush):
            seen = _epoch(wrapper, inputs, targets, size, augment)
        wrapper.epochs += 1
        record: dict[str, Any] = {"epoch": wrapper.epochs, "phase": wrapper.phase, "steps": wrapper.steps}
        whole = wrapper.phase == EXPLOITING and wrapper.cached and augment is None
        record |= wrapper.evaluate() if whole else seen
        _stop_unless_finite(wrapper, record)
        wrapper.history.append(record)
        if on_epoch is not None:
            on_epoch(wrapper, record)


def planned(wrapper: EEWrapper, n: int, epochs: int, size: int | None) -> tuple[int, int]:
    """Return the last epoch of exploration and the size of batches, or refuse what does not go together."""
    last = tau_epoch(wrapper.tau, epochs)
    size = n if size is None else min(as_count(size, "batch_size"), n)
    if size < n and full_batch(wrapper.exploiting):
        got = f"{wrapper.exploiting!r} with batches of {size} of {n}"
        raise InvalidInput("exploit_optimizer", got, "all samples at once (batch_size=None), or another one")
    return last, size


def _epoch(
    wrapper: EEWrapper, inputs: torch.Tensor, targets: torch.Tensor, size: int, augment: Any
) -> dict[str, float]:
    """Take the steps of an epoch; return loss and error, each batch as it was before its step, weighted by its size."""
    independent = isinstance(wrapper.optimizer, ScheduledSGD)
    drawn = "independent" if independent else "batches in turn"
    losses, errors, count = 0.0, 0.0, 0
    for indices in batches(len(inputs), size, wrapper.generator, independent=independent):
        own = len(inputs) if indices is None else len(indices)
        if wrapper.phase == EXPLOITING and wrapper.cached and augment is None:
            loss = wrapper.cached_step(indices, "all" if indices is None else drawn)
        else:
            x, y = (inputs, targets) if indices is None else (inputs[indices], targets[indices])
            x = x if augment is None else augment(x, wrapper.generator)
            loss = wrapper.explore_step(x, y) if wrapper.phase == EXPLORING else wrapper.exploit_step(x, y)
        losses, errors, count = losses + own * loss, errors + own * wrapper.error, count + own
    return {"loss": losses / count, "error": errors / count}


def _stop_unless_finite(wrapper: EEWrapper, record: dict[str, Any]) -> None:
    """Raise if a state has NaN or Inf, before it replaces a good one."""
    parameters = all(bool(torch.isfinite(p).all()) for p in wrapper.module.parameters())
    if not parameters or not math.isfinite(record["loss"]):
        what = "parameters that are NaN or Inf" if not parameters else f"a loss that is {record['loss']}"
        got = f"{what} after step {record['steps'] - 1} (epoch {record['epoch']}, {record['phase']})"
        raise InvalidInput("optimizer", got, "a smaller step; a checkpoint of an epoch before this one is good")
