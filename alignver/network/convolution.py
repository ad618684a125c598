"""Convolutions in float64 on a CPU as products of matrices, without a copy of the patches.

PyTorch has no fast kernel for them: it copies the patches of one sample after another, and reaches a fifth of the speed
of a matrix product. Here the padded input is stored channel by channel, with the samples side by side. In this layout a
shift of the kernel by one entry is a shift in memory, so a convolution is a sum over the entries k of the kernel,

    y = sum_k W_k x[:, k : k + L],      dx[:, k : k + L] += W_k^T dy,      dW_k = dy x[:, k : k + L]^T.

The zeros before a row serve as those after the row before it. With a stride s, the input is split into its s phases.
Where a patch serves many channels of the result, or all patches stay in cache, the copy of the patches costs less than
the sum over k and the zeros between the rows: then one product does it, a few samples at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_BLOCK = 1 << 20  # entries of the result that are computed at a time: they stay in cache for all entries of the kernel
_WIDE = 128  # channels of the result from which on the copy of the patches is faster, measured for 4 x 4 to 32 x 32
_CACHED = 1 << 18  # entries of the patches up to which it always is
_CHANNELS = 8  # of inputs and of outputs in a group: products with fewer rows are limited by memory
KEYS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_inputs_only = contextvars.ContextVar("inputs_only", default=False)


def each(value: Any, axes: int) -> tuple[int, ...]:
    """Return a size for each axis: torch accepts one number, or a sequence of one, for all axes."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def paddings(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the padding before and after each spatial axis; 'same' adds the odd entry at the end.

    Examples
    --------
    >>> paddings("same", (3, 2), (1, 1))
    ((1, 1), (0, 1))
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in each(padding, len(kernel)))


def windows(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, first: int = 2
) -> torch.Tensor:
    """Return a view with positions on the axes from ``first`` on, and the entries of each window on further axes.

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


class Convolutions(TorchFunctionMode):
    """Compute every convolution inside the block by :func:`convolution`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        if func in FUNCTIONS:
            return convolution(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def convolution(func: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return ``func(*args, **kwargs)`` of ``torch.conv1d``, ``conv2d`` or ``conv3d``, in float64 on a CPU faster.

    The sums are the same up to the order of their terms. The result can be differentiated once.

    Examples
    --------
    >>> x, weight = torch.ones(1, 8, 3, dtype=torch.float64), torch.ones(8, 8, 2, dtype=torch.float64)
    >>> convolution(torch.conv1d, x, weight, padding=1)[0, 0]
    tensor([ 8., 16., 16.,  8.], dtype=torch.float64)
    """
    given: dict[str, Any] = dict(zip(KEYS, args)) | kwargs
    x: Any = given.get("input")
    weight: Any = given.get("weight")
    bias = given.get("bias")
    tensors = [x, weight, *(() if bias is None else (bias,))]
    if not all(type(t) in (torch.Tensor, torch.nn.Parameter) and _supported(t) for t in tensors):
        return func(*args, **kwargs)
    axes, groups = weight.ndim - 2, given.get("groups", 1)
    if weight[0, 0].numel() == 1 or min(len(weight) // groups, weight.shape[1]) < _CHANNELS:
        return func(*args, **kwargs)  # it is as fast
    if x.ndim != axes + 2 or x.numel() == 0:
        return func(*args, **kwargs)
    kernel, dilation = tuple(weight.shape[2:]), each(given.get("dilation", 1), axes)
    stride = each(given.get("stride", 1), axes)
    zeros = paddings(given.get("padding", 0), kernel, dilation)
    layout = _Layout(len(x), tuple(x.shape[2:]), kernel, stride, zeros, dilation, groups)
    fits = x.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0 and min(layout.outputs) > 0
    if not fits or (given.get("padding") == "same" and max(stride) > 1):
        return func(*args, **kwargs)  # which raises an exception of its own
    y: torch.Tensor = _Convolution.apply(x, weight, layout)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return y if bias is None else y + bias.view(-1, *(1,) * axes)


@contextlib.contextmanager
def gradients_of_inputs() -> Iterator[None]:
    """Compute no gradients by weights inside the block: torch does not tell a function which of them are needed."""
    token = _inputs_only.set(True)
    try:
        yield
    finally:
        _inputs_only.reset(token)


def _supported(tensor: Any) -> bool:
    return bool(tensor.dtype == torch.float64) and tensor.device.type == "cpu" and tensor.layout == torch.strided


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Sizes of a convolution. In every phase, the positions of all samples form one axis of ``length`` entries."""

    samples: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @functools.cached_property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of the result."""
        values = zip(self.sizes, self.kernel, self.stride, self.padding, self.dilation)
        return tuple((size + sum(pad) - d * (k - 1) - 1) // s + 1 for size, k, s, pad, d in values)

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """Sizes of a phase: they hold the input with the zeros of its longer side, and the result."""
        values = zip(self.sizes, self.stride, self.padding, self.outputs)
        return tuple(max(-(-(size + max(pad)) // s), out) for size, s, pad, out in values)

    @functools.cached_property
    def length(self) -> int:
        """Positions of all samples."""
        return self.samples * math.prod(self.grid)

    @functools.cached_property
    def shifts(self) -> list[tuple[int, int]]:
        """The phase and the shift of each entry of the kernel."""
        steps = [math.prod(self.grid[axis + 1 :]) for axis in range(len(self.grid))]
        result = []
        for entry in itertools.product(*map(range, self.kernel)):
            phase = shift = 0
            for k, d, s, step in zip(entry, self.dilation, self.stride, steps):
                phase, shift = phase * s + k * d % s, shift + k * d // s * step
            result.append((phase, shift))
        return result

    def phases(self, x: torch.Tensor) -> torch.Tensor:
        """Store an input (samples, channels, *sizes) as (phases, channels, positions), with zeros for all shifts."""
        whole = self.zeros(x.shape[1], x)
        self._inside(whole).copy_(x.transpose(0, 1))
        axes = range(len(self.grid))
        split = whole.view(*whole.shape[:2], *(size for pair in zip(self.grid, self.stride) for size in pair))
        order = (*(3 + 2 * axis for axis in axes), 0, 1, *(2 + 2 * axis for axis in axes))
        return split.permute(order).reshape(math.prod(self.stride), x.shape[1], -1)

    def from_phases(self, phases: torch.Tensor) -> torch.Tensor:
        """Return the input, (samples, channels, *sizes), of :meth:`phases`."""
        axes, channels = len(self.grid), phases.shape[1]
        split = phases.view(*self.stride, channels, -1, *self.grid)
        order = (axes, axes + 1, *(k for axis in range(axes) for k in (axes + 2 + axis, axis)))
        whole = split.permute(order).reshape(channels, -1, *(q * s for q, s in zip(self.grid, self.stride)))
        return self._inside(whole).transpose(0, 1).contiguous()

    def zeros(self, channels: int, like: torch.Tensor) -> torch.Tensor:
        """Return an empty padded input, (channels, samples, *sizes of the phases together)."""
        beyond = -(-max(shift for _, shift in self.shifts) // math.prod(self.grid))  # samples after the last one
        sizes = (q * s for q, s in zip(self.grid, self.stride))
        return like.new_zeros((channels, self.samples + beyond, *sizes))

    def _inside(self, whole: torch.Tensor) -> torch.Tensor:
        whole = whole[:, : self.samples]
        for axis, (size, pad) in enumerate(zip(self.sizes, self.padding), start=2):
            whole = whole.narrow(axis, pad[0], size)
        return whole

    def on_grid(self, y: torch.Tensor) -> torch.Tensor:
        """Place a result (samples, channels, *outputs) on the grid of a phase, with zeros elsewhere."""
        grid = y.new_zeros((y.shape[1], self.samples, *self.grid))
        self.outputs_of(grid).copy_(y.transpose(0, 1))
        return grid.flatten(1)

    def outputs_of(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the result, (channels, samples, *outputs), as a view of the grid."""
        grid = grid.view(len(grid), self.samples, *self.grid)
        for axis, size in enumerate(self.outputs, start=2):
            grid = grid.narrow(axis, 0, size)
        return grid

    def blocks(self, channels: int) -> Iterator[slice]:
        """Cut the positions into blocks that stay in cache."""
        step = -(-_BLOCK // channels)
        return (slice(start, min(start + step, self.length)) for start in range(0, self.length, step))

    def unfolds(self, weight: torch.Tensor) -> bool:
        """Whether patches are copied."""
        return len(weight) // self.groups >= _WIDE or self.samples * self._patches(weight) <= _CACHED

    def _patches(self, weight: torch.Tensor) -> int:
        """Entries of the patches of a sample."""
        return weight[0].numel() * self.groups * math.prod(self.outputs)

    def parts(self, weight: torch.Tensor) -> Iterator[slice]:
        """Cut the samples such that the patches of a part stay in cache."""
        step = max(1, _BLOCK // self._patches(weight))
        return (slice(start, start + step) for start in range(0, self.samples, step))

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Return the patches of some samples: (groups, channels and entries of the kernel, samples and positions)."""
        padded = F.pad(x, [p for pair in reversed(self.padding) for p in pair])
        view, axes = windows(padded, self.kernel, self.stride, self.dilation), len(self.kernel)
        entries, positions = range(2 + axes, 2 + 2 * axes), range(2, 2 + axes)
        ordered = view.permute(1, *entries, 0, *positions)
        return ordered.reshape(self.groups, x.shape[1] // self.groups * math.prod(self.kernel), -1)

    def from_columns(self, columns: torch.Tensor, samples: int) -> torch.Tensor:
        """Add gradients of patches to one of the input, (channels, samples, *sizes)."""
        entries = columns.view(-1, math.prod(self.kernel), samples, *self.outputs)
        padded = (size + sum(pad) for size, pad in zip(self.sizes, self.padding))
        whole = columns.new_zeros((len(entries), samples, *padded))
        axes = list(zip(self.stride, self.dilation, self.outputs))
        for index, part in zip(itertools.product(*map(range, self.kernel)), entries.unbind(1)):
            place = tuple(slice(k * d, k * d + s * (out - 1) + 1, s) for k, (s, d, out) in zip(index, axes))
            whole[:, :, *place] += part
        return self._inside(whole)


def _add(target: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, groups: int) -> None:
    """Add W x to the target, group by group; W is (groups, a, b)."""
    if groups == 1:
        target.addmm_(weight[0], x)
    else:
        target.view(groups, -1, target.shape[1]).baddbmm_(weight, x.view(groups, -1, x.shape[1]))


class _Convolution(torch.autograd.Function):
    """The sum over the entries of the kernel, and its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, layout: _Layout) -> torch.Tensor:
        ctx.layout, ctx.taps = layout, None
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        if layout.unfolds(weight):
            y = x.new_empty((len(x), len(weight), *layout.outputs))
            for part in layout.parts(weight):
                product = weight.reshape(layout.groups, -1, weight[0].numel()) @ layout.columns(x[part])
                y[part] = product.view(len(weight), -1, *layout.outputs).transpose(0, 1)
            return y
        phases = layout.phases(x)
        taps = (
            weight.flatten(2).permute(2, 0, 1).contiguous().view(len(layout.shifts), layout.groups, -1, weight.shape[1])
        )
        grid = x.new_zeros((len(weight), layout.length))
        for block in layout.blocks(len(weight)):
            for tap, (phase, shift) in zip(taps, layout.shifts):
                _add(grid[:, block], tap, phases[phase, :, block.start + shift : block.stop + shift], layout.groups)
        ctx.taps = taps
        return layout.outputs_of(grid).transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        layout: _Layout = ctx.layout
        x, weight = ctx.saved_tensors
        groups = layout.groups
        dx = dw = None
        if ctx.taps is None:
            by_weight = ctx.needs_input_grad[1] and not _inputs_only.get()
            return *_by_patches(layout, gradient, weight, x if by_weight else None, ctx.needs_input_grad[0]), None
        grid = layout.on_grid(gradient)
        if ctx.needs_input_grad[0]:
            channels = weight.shape[1] * groups
            phases = layout.zeros(channels, gradient).view(math.prod(layout.stride), channels, -1)
            for block in layout.blocks(channels):
                part = grid[:, block]
                for tap, (phase, shift) in zip(ctx.taps, layout.shifts):
                    positions = slice(block.start + shift, block.stop + shift)
                    _add(phases[phase, :, positions], tap.transpose(1, 2), part, groups)
            dx = layout.from_phases(phases)
        if ctx.needs_input_grad[1] and not _inputs_only.get():
            phases = layout.phases(x)
            left = grid.view(groups, -1, layout.length)
            products = []
            for phase, shift in layout.shifts:
                right = phases[phase, :, shift : shift + layout.length].view(groups, -1, layout.length)
                products.append(torch.bmm(left, right.transpose(1, 2)))
            dw = torch.stack(products, -1).view(weight.shape)
        return dx, dw, None


def _by_patches(
    layout: _Layout, gradient: torch.Tensor, weight: torch.Tensor, x: torch.Tensor | None, by_input: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients by the input, and with an input ``x`` by the weight."""
    rows = weight.reshape(layout.groups, -1, weight[0].numel())
    dx = gradient.new_empty((len(gradient), weight.shape[1] * layout.groups, *layout.sizes)) if by_input else None
    dw = None if x is None else torch.zeros_like(rows)
    for part in layout.parts(weight):
        right = gradient[part].transpose(0, 1).reshape(layout.groups, rows.shape[1], -1)
        if dx is not None:
            dx[part] = layout.from_columns(rows.transpose(1, 2) @ right, len(dx[part])).transpose(0, 1)
        if dw is not None and x is not None:
            dw += right @ layout.columns(x[part]).transpose(1, 2)
    return dx, None if dw is None else dw.view(weight.shape)
