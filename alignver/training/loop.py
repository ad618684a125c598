"""How a run goes through its epochs: where tau is, which samples come together, how the CPU rounds meanwhile.

The two phases epoch by epoch: which samples come together, what is written down, when a run has to stop.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from alignver.errors import InvalidInput
from alignver.training.exploitation import as_tensor
from alignver.training.solvers import ScheduledSGD, full_batch
from alignver.training.wrapper_base import EXPLOITING, EXPLORING

if TYPE_CHECKING:
    from alignver.training.wrapper import EEWrapper

__all__ = ["as_count", "as_tau", "batches", "denormals", "planned", "run", "smallest_batch", "tau_epoch"]


def as_count(value: Any, name: str, *, least: int = 1) -> int:
    """Return an integer, NumPy's included, that is at least ``least``."""
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise InvalidInput(name, repr(value), f"an integer >= {least}")
    return count


def as_tau(tau: Any) -> float:
    """Return a share of a run, a float below 1, or a number of epochs; the float 1.0 could be either."""
    if not isinstance(tau, float):
        try:
            return as_count(tau, "tau")
        except InvalidInput:
            tau = math.nan if isinstance(tau, bool) or not isinstance(tau, int) else tau
    if not 0 < tau < math.inf:
        raise InvalidInput("tau", f"tau={tau!r}", "a number of epochs, or a share of the run between 0 and 1")
    if tau == 1.0:
        raise InvalidInput("tau", f"tau={tau!r}", "a share of the run below 1, or an integer, which counts epochs")
    return float(tau)


def tau_epoch(tau: float, epochs: int) -> int:
    """Return the epoch after which exploration ends, for a number of epochs or a share of the run.

    Raises
    ------
    InvalidInput
        It is not inside the run.

    Examples
    --------
    >>> tau_epoch(0.6, 100), tau_epoch(20, 100)
    (60, 20)
    """
    epochs, tau = as_count(epochs, "epochs"), as_tau(tau)
    last = round(tau * epochs) if tau < 1 else int(tau)
    if not 0 < last < epochs or (tau > 1 and tau != last):
        got = f"tau={tau!r}: epoch {last if tau < 1 else tau:g} of {epochs}"
        raise InvalidInput("tau", got, "an epoch inside the run, so that both phases have one")
    return last


def batches(
    n: int, size: int, generator: torch.Generator, *, independent: bool = False
) -> Iterator[torch.Tensor | None]:
    """Yield the indices of an epoch's batches; None for all samples at once.

    All samples in a random order, where a last one alone joins the batch before it, since BatchNorm needs two; or
    ``independent`` batches, each drawn from all samples with replacement: then the gradient of a batch is unbiased,
    whatever the batches before it were.
    """
    if size >= n:
        yield None
    elif independent:
        for _ in range(-(-n // size)):
            yield torch.randint(n, (size,), generator=generator)
    else:
        *others, last = torch.split(torch.randperm(n, generator=generator), size)
        if len(last) == 1 < size:
            last = torch.cat([others.pop(), last])
        yield from (*others, last)


def smallest_batch(n: int, size: int) -> int:
    """Return how many samples the smallest batch has.

    Examples
    --------
    >>> smallest_batch(100, 64), smallest_batch(129, 64), smallest_batch(128, 64)
    (36, 64, 64)
    """
    if n == size + 1:
        return n
    return size if n % size <= 1 else n % size


@contextlib.contextmanager
def denormals(*, flush: bool) -> Iterator[None]:
    """Flush subnormal numbers to zero inside, on this thread, if asked and possible; gradual underflow afterwards."""
    if not flush or not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
