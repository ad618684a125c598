"""The epochs of a two-phase run: the epoch of tau, the batches of an epoch, and subnormal numbers during the steps."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch

from alignver import require
from alignver.errors import InvalidInput
from alignver.training.solvers import FULL_BATCH
from alignver.training.wrapper_base import TrainedNetwork

__all__ = ["as_count", "as_tau", "batches", "denormals", "planned", "smallest_batch", "tau_epoch"]


def as_count(value: Any, name: str, *, least: int = 1, need: str | None = None) -> int:
    """Return an integer of at least ``least``; integers of NumPy and of torch count."""
    with contextlib.suppress(TypeError):
        value = value if isinstance(value, bool) else operator.index(value)
    return require.integer(name, value, least=least, need=need)


def as_tau(tau: Any) -> float:
    """Return a share of a run, a float below 1, or a number of epochs; the float 1.0 is ambiguous."""
    need = "a number of epochs, or a share of the run between 0 and 1"
    if not isinstance(tau, float):
        return as_count(tau, "tau", need=need)
    if require.real("tau", tau, above=0.0, need=need) == 1.0:
        raise InvalidInput("tau", f"tau={tau!r}", "a share of the run below 1, or an integer, which counts epochs")
    return float(tau)


def tau_epoch(tau: float, epochs: int) -> int:
    """Return the epoch after which exploration ends, for a number of epochs or a share of the run.

    Raises
    ------
    InvalidInput
        The epoch is not inside the run.

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

    The batches are a random partition of the samples, where a single last sample joins the batch before it, since
    BatchNorm needs two. ``independent`` batches are drawn from all samples with replacement instead: the gradient of a
    batch is then unbiased, whatever the batches before it were.
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
    """Return the number of samples in the smallest batch.

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
    """Flush subnormal numbers to zero in the block, on this thread, if ``flush`` is set and the CPU can do it."""
    if not flush or not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def planned(wrapper: TrainedNetwork, n: int, epochs: int, size: int | None) -> tuple[int, int]:
    """Return the last epoch of exploration and the batch size; raise if the solver needs all samples at once."""
    last = tau_epoch(wrapper.tau, epochs)
    size = n if size is None else min(as_count(size, "batch_size"), n)
    if size < n and isinstance(wrapper.exploiting, str) and wrapper.exploiting in FULL_BATCH:
        got = f"{wrapper.exploiting!r} with batches of {size} of {n}"
        need = "all samples at once (batch_size=None), or another solver"
        raise InvalidInput("exploit_optimizer", got, need, code="conflicting-arguments")
    return last, size
