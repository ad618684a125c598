"""How a run goes through its epochs: where tau is, which samples come together, how the CPU rounds meanwhile."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch

from alignver.errors import InvalidInput

__all__ = ["as_count", "as_tau", "batches", "denormals", "smallest_batch", "tau_epoch"]


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
