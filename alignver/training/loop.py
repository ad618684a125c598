"""The epochs of a two-phase run: the epoch of tau, batches, subnormal numbers, the bound of the gap, and advice."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from alignver import require
from alignver.errors import InvalidInput
from alignver.training.solvers import FULL_BATCH
from alignver.training.wrapper_base import EXPLOITING, TrainedNetwork

BATCH = 128
"""Samples of a step, unless the caller asks for others."""


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
        raise InvalidInput("tau", got, "an epoch inside the run, so that each phase has at least one")
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


def planned(wrapper: TrainedNetwork, n: int, epochs: int, size: Any, exploit_size: Any = None) -> tuple[int, int, int]:
    """Return the last epoch of exploration, and the batch size of each phase.

    ``size`` is a number of samples, or "all" (None as well). ``exploit_size`` None: all samples for a solver that needs
    them, else ``size``.

    Raises
    ------
    InvalidInput
        Another size; batches for a solver that needs all samples at once.
    """
    last = tau_epoch(wrapper.tau, epochs)
    exploring = _batch_size("batch_size", size, n)
    whole = isinstance(wrapper.exploiting, str) and wrapper.exploiting in FULL_BATCH
    if exploit_size is None:
        return last, exploring, n if whole else exploring
    exploiting = _batch_size("exploit_batch_size", exploit_size, n)
    if whole and exploiting < n:
        got = f"{wrapper.exploiting!r} with batches of {exploiting} of {n}"
        need = "all samples at once (exploit_batch_size='all'), or another solver"
        raise InvalidInput("exploit_optimizer", got, need, code="conflicting-arguments")
    return last, exploring, exploiting


def _batch_size(name: str, size: Any, n: int) -> int:
    need = "a positive integer, or 'all'"
    return n if size is None or size == "all" else min(as_count(size, name, need=need), n)


def gap_bound(loss: float, infimum: float, name: str) -> float:
    """Return an upper bound of loss - infimum, for a loss that was computed in float64: positive, rounded up.

    The mean of n losses has a relative error of far less than 2^-30 for n below 2^20, and a cross-entropy computed as
    ln(1 + e^x) an absolute one of less than 2^-46, so that it may be 0 although no cross-entropy is.

    Examples
    --------
    >>> gap_bound(0.0, 0.0, "cross_entropy") > 0.0, 0.5 < gap_bound(0.5, 0.0, "squared") < 0.5000001
    (True, True)
    """
    room = 2.0**-30 * (abs(loss) + abs(infimum)) + (2.0**-100 if name == "squared" else 2.0**-46)
    return max(loss - infimum, 0.0) + room


def advice(history: Sequence[Mapping[str, Any]], gap: float, tolerance: float, solver: object) -> tuple[str, ...]:
    """Return what would bring the gap below the tolerance, from the losses of exploitation so far.

    Parameters
    ----------
    history : sequence of mapping
        As of :class:`~alignver.training.wrapper.EEWrapper`.
    gap, tolerance : float
    solver : str or callable
        The optimiser of exploitation.

    Examples
    --------
    >>> history = [{"phase": "exploitation", "loss": 0.5**t} for t in range(10)]
    >>> advice(history, 2e-3, 1e-3, "gd")[1]
    'or about 1 more epoch: the loss fell by a factor of 0.5 an epoch lately'
    """
    losses = [record["loss"] for record in history if record["phase"] == EXPLOITING]
    steps = []
    if solver != "newton":
        steps.append(
            f"the gap bound is {gap:.3g}, the tolerance {tolerance:.3g}: exploit_optimizer='newton' takes few epochs"
        )
    before, after = losses[len(losses) // 2 : len(losses) // 2 + 1], losses[-1:]
    count = len(losses) - 1 - len(losses) // 2
    if count > 0 and 0.0 < after[0] < before[0]:
        factor = (after[0] / before[0]) ** (1.0 / count)
        more = math.ceil(math.log(tolerance / gap) / math.log(factor))
        plural = "s" * (more != 1)
        steps.append(f"about {more} more epoch{plural}: the loss fell by a factor of {factor:.4g} an epoch lately")
    else:
        steps.append("a smaller step of the exploitation: the loss does not fall any more")
    steps.append("a wider last hidden layer, if rank n is not proved (width=)")
    return (steps[0], *(f"or {step}" for step in steps[1:]))
