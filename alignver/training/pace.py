"""How a run goes through its epochs: where tau is, which samples come together, how the CPU rounds meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from alignver.errors import InvalidInput

__all__ = ["batches", "denormals", "tau_epoch"]


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
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InvalidInput("epochs", repr(epochs), "an integer >= 1")
    last = round(tau * epochs) if tau < 1 else int(tau)
    if not 0 < last < epochs or (tau > 1 and tau != last):
        got = f"tau={tau!r}: epoch {last if tau < 1 else tau:g} of {epochs}"
        raise InvalidInput("tau", got, "an epoch inside the run, so that both phases have one")
    return last


def batches(
    n: int, size: int, generator: torch.Generator, *, independent: bool = False
) -> Iterator[torch.Tensor | None]:
    """Yield the indices of an epoch's batches; None for all samples at once.

    All samples in a random order; or ``independent`` batches, each drawn from all samples with replacement: then the
    gradient of a batch is unbiased, whatever the batches before it were.
    """
    if size >= n:
        yield None
    elif independent:
        for _ in range(-(-n // size)):
            yield torch.randint(n, (size,), generator=generator)
    else:
        yield from torch.split(torch.randperm(n, generator=generator), size)


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
