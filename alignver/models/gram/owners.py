"""Which rows of an activation belong to which sample.

A network may hold its samples on the first axis, on the second (sequence first), or merged with positions in either
order. The shape leaves a few possibilities; where it leaves more than one, a backward pass in which sample i carries
the weight c_i tells them apart, since the gradient at a row of sample i is then c_i times what it is without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from alignver.models.gram.uses import Use

__all__ = ["Layout", "codes", "layouts"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Samples on one axis among the leading ones, alone, or as the outer or inner part of it.

    ``axis`` is -1 where there is one sample only: every row is its.
    """

    axis: int
    inner: bool = False

    def fits(self, rows: Sequence[int], n: int) -> bool:
        """Whether rows of these sizes can hold n samples so."""
        return n == 1 or (0 <= self.axis < len(rows) and rows[self.axis] % n == 0)

    def __call__(self, tensor: torch.Tensor, n: int, start: int, stop: int) -> torch.Tensor:
        """Replace the leading axes start..stop by two: samples, and all positions of a sample."""
        rows = tuple(tensor.shape[start:stop])
        shape = (*tensor.shape[:start], n, math.prod(rows) // n, *tensor.shape[stop:])
        if n == 1:
            return tensor.reshape(shape)
        axis = start + self.axis
        each = rows[self.axis] // n
        split = tensor.reshape(
            *tensor.shape[:axis], *((each, n) if self.inner else (n, each)), *tensor.shape[axis + 1 :]
        )
        return split.movedim(axis + 1 if self.inner else axis, start).reshape(shape)


def candidates(rows: Sequence[int], n: int) -> list[Layout]:
    """List what the sizes of the leading axes leave open, the likeliest first.

    Examples
    --------
    >>> candidates((4, 7), 4)
    [Layout(axis=0, inner=False)]
    >>> candidates((6,), 2)
    [Layout(axis=0, inner=False), Layout(axis=0, inner=True)]
    """
    if n == 1:
        return [Layout(-1)]
    whole = [Layout(k) for k, size in enumerate(rows) if size == n]
    merged = [Layout(k, inner) for k, size in enumerate(rows) if size > n and size % n == 0 for inner in (False, True)]
    return whole + merged


def codes(n: int, like: torch.Tensor) -> torch.Tensor:
    """Return n distinct weights between 1 and 2, in no order that an axis could have."""
    steps = torch.arange(n, device=like.device, dtype=torch.float64)
    return (1.0 + torch.remainder(steps * 0.6180339887498949, 1.0)).to(like.dtype)


def layouts(uses: Sequence[Use], out: torch.Tensor, known: Sequence[Layout | None] | None) -> list[Layout | None]:
    """Find the layout of every use in a pass over the samples of ``out``; None where there is none.

    ``known`` is what an earlier pass over other samples found: taken where it fits.
    """
    n = len(out)
    if (
        known is not None
        and len(known) == len(uses)
        and all(layout is None or layout.fits(use.rows, n) for layout, use in zip(known, uses))
    ):
        return list(known)
    open_ = [candidates(use.rows, n) for use in uses]
    found = [each[0] if each else None for each in open_]
    unsure = [k for k, each in enumerate(open_) if len(each) > 1]
    if not unsure:
        return found
    edges = [uses[k].edge for k in unsure]
    code = codes(n, out)
    outputs = torch.cos(torch.arange(out.shape[1], device=out.device)).to(out.dtype).expand_as(out)
    sides: list[Sequence[torch.Tensor | None]] = [
        torch.autograd.grad(out, edges, weights, retain_graph=True, allow_unused=True)
        for weights in (outputs, outputs * code[:, None])
    ]
    for k, one, other in zip(unsure, *sides):
        if one is None or other is None:
            continue
        misfit = []
        for layout in open_[k]:
            first, second = (layout(g, n, 0, uses[k].lead).flatten(1) for g in (one, other))
            misfit.append(float((second - code[:, None] * first).norm()))
        found[k] = open_[k][misfit.index(min(misfit))]
    return found
