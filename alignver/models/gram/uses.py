"""One recorded use of parameters: what its derivative is made of.

With a the input of the use at one position of one sample and b the gradient of one output of the network by the
result there, the derivative by the parameter is a sum over the sample's positions t of

- ``Product``, ``Conv``: b_t a_t^T (a_t a patch of the input, for a convolution), by the bias b_t;
- ``Lookup``: e_{index(t)} b_t^T;
- ``Scale``: b_t * z_t summed over the axes that the parameter is constant on, by the shift b_t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.autograd.graph import GradientEdge

from alignver.models.windows import windows

__all__ = ["Conv", "Lookup", "Product", "Scale", "Use"]


@dataclasses.dataclass(eq=False)
class Use:
    """A call of a function with one or two slots among its arguments.

    Attributes
    ----------
    weight, bias : str or None
        The slots.
    lead : int
        How many leading axes of the result are rows: samples, positions, or both merged.
    edge, shape
        Where the gradient of the result arrives, and the shape of the result.
    """

    weight: str | None
    bias: str | None
    lead: int
    edge: GradientEdge = dataclasses.field(init=False)
    shape: torch.Size = dataclasses.field(init=False)

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        return tuple(self.shape[: self.lead])

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that are used."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)


@dataclasses.dataclass(eq=False)
class Product(Use):
    """``x W^T + b``, or ``x W`` where transposed."""

    input: torch.Tensor
    transposed: bool = False


@dataclasses.dataclass(eq=False)
class Conv(Use):
    """A convolution in one, two or three dimensions."""

    input: torch.Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def patches(self) -> torch.Tensor:
        """Unfold the input: (rows, groups, channels * kernel, positions), one copy of every entry for each use."""
        x = self.input
        if any(p != (0, 0) for p in self.padding):
            x = F.pad(x, [p for pair in reversed(self.padding) for p in pair])
        rows, channels = x.shape[:2]
        view = windows(x, self.kernel, self.stride, self.dilation)
        spatial = len(self.kernel)
        order = [0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial)]
        view = view.permute(order)
        return view.reshape(rows, self.groups, channels // self.groups * math.prod(self.kernel), -1)


@dataclasses.dataclass(eq=False)
class Lookup(Use):
    """Rows of a table; those of ``padding`` have no derivative."""

    index: torch.Tensor
    padding: int | None


@dataclasses.dataclass(eq=False)
class Scale(Use):
    """``z * w + c``, with w and c of shape ``pattern`` broadcast over the result's trailing axes."""

    value: Callable[[], torch.Tensor] | None
    pattern: tuple[int, ...]
