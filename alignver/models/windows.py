"""Sliding windows over the spatial axes of a tensor: what a convolution multiplies and a pooling compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["each", "windows"]


def windows(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, first: int = 2
) -> torch.Tensor:
    """Return a view with the positions on the axes from ``first`` on, and the entries of a window on further axes.

    Examples
    --------
    >>> windows(torch.arange(5.0).view(1, 1, 5), [2], [1], [2])
    tensor([[[[0., 2.],
              [1., 3.],
              [2., 4.]]]])
    """
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=first):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x


def each(value: Any, axes: int) -> tuple[int, ...]:
    """Return a size for each axis: torch takes one number, or a sequence of one, for all of them."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * axes if len(value) == 1 else tuple(value)
