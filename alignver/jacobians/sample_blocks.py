"""The factors of a Gram matrix for a block of samples and outputs: inputs of each use and backpropagated gradients.

A block takes one forward pass and a backward pass for every output, and one more with which the factors are compared.

Shapes, with n samples and m outputs in the block, T positions per sample, g groups: inputs A are (n, g, a, T),
gradients B are (m, n, g, b, T), and the derivative of output j at sample i by a weight is B[j, i] A[i]^T, group by
group.

A network may hold its samples on the first axis, on the second (sequence first), or merged with positions in either
order (:class:`BatchAxis`). If the shape allows more than one of these, a backward pass in which sample i has the weight
c_i decides: the gradient at a row of sample i is then c_i times the gradient without weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.autograd.graph import GradientEdge

from alignver.jacobians.layer_io import Conv, Convolution, ConvTranspose, Lookup, Product, Scale, Use, captured
from alignver.network.convolution import Convolutions, gradients_of_inputs
from alignver.network.functional import Functional, comparison_weights

_LONG = 128  # positions
_BATCHED = 1 << 22  # entries of the gradients by one output, up to which all outputs are differentiated at once


@dataclasses.dataclass(frozen=True)
class BatchAxis:
    """The leading axis that holds the samples, alone or as its outer or inner part.

    ``axis`` is -1 if there is only one sample: every row belongs to it.
    """

    axis: int
    inner: bool = False

    def fits(self, rows: Sequence[int], n: int) -> bool:
        """Whether leading axes of these sizes can hold n samples this way."""
        return n == 1 or (0 <= self.axis < len(rows) and rows[self.axis] % n == 0)

    def __call__(self, tensor: torch.Tensor, n: int, start: int, stop: int) -> torch.Tensor:
        """Replace the axes start..stop by two: samples, and all positions of a sample."""
        rows = tuple(tensor.shape[start:stop])
        shape = (*tensor.shape[:start], n, math.prod(rows) // n, *tensor.shape[stop:])
        if n == 1:
            return tensor.reshape(shape)
        axis = start + self.axis
        sizes = (rows[self.axis] // n, n) if self.inner else (n, rows[self.axis] // n)
        split = tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])
        return split.movedim(axis + 1 if self.inner else axis, start).reshape(shape)


def candidates(rows: Sequence[int], n: int) -> list[BatchAxis]:
    """List the batch axes that are possible for leading axes of these sizes, the most likely first.

    Examples
    --------
    >>> candidates((4, 7), 4)
    [BatchAxis(axis=0, inner=False)]
    >>> candidates((6,), 2)
    [BatchAxis(axis=0, inner=False), BatchAxis(axis=0, inner=True)]
    """
    if n == 1:
        return [BatchAxis(-1)]
    whole = [BatchAxis(k) for k, size in enumerate(rows) if size == n]
    merged = [
        BatchAxis(k, inner) for k, size in enumerate(rows) if size > n and size % n == 0 for inner in (False, True)
    ]
    return whole + merged


def codes(n: int, like: torch.Tensor) -> torch.Tensor:
    """Return n distinct weights between 1 and 2, not in the order of any axis."""
    steps = torch.arange(n, device=like.device, dtype=torch.float64)
    return (1.0 + torch.remainder(steps * 0.6180339887498949, 1.0)).to(like.dtype)


def batch_axes(
    uses: Sequence[Use], out: torch.Tensor, known: Sequence[BatchAxis | None] | None
) -> list[BatchAxis | None]:
    """Find the batch axis of every use in a pass over the samples of ``out``; None if it has none.

    ``known`` are the axes of an earlier pass over other samples; they are returned if they fit.
    """
    n = len(out)
    if (
        known is not None
        and len(known) == len(uses)
        and all(axis is None or axis.fits(use.rows, n) for axis, use in zip(known, uses))
    ):
        return list(known)
    possible = [candidates(use.rows, n) for use in uses]
    axes = [options[0] if options else None for options in possible]
    ambiguous = [k for k, options in enumerate(possible) if len(options) > 1]
    if not ambiguous:
        return axes
    edges = [uses[k].edge for k in ambiguous]
    code = codes(n, out)
    outputs = torch.cos(torch.arange(out.shape[1], device=out.device)).to(out.dtype).expand_as(out)
    sides: list[Sequence[torch.Tensor | None]] = [
        torch.autograd.grad((out * weights).sum(), edges, retain_graph=True, allow_unused=True)
        for weights in (outputs, outputs * code[:, None])
    ]
    for k, plain, coded in zip(ambiguous, *sides):
        if plain is None or coded is None:
            continue
        misfit = []
        for axis in possible[k]:
            first, second = (axis(g, n, 0, uses[k].lead).flatten(1) for g in (plain, coded))
            misfit.append(float((second - code[:, None] * first).norm()))
        axes[k] = possible[k][misfit.index(min(misfit))]
    return axes


@dataclasses.dataclass(eq=False)
class Part:
    """One use inside one block.

    Attributes
    ----------
    use : Use
    batch_axis : BatchAxis
        The axis of its samples.
    raw : torch.Tensor
        (m, *shape of the use's result), gradients of every output; of a scale, those by its slots: :func:`folded`.
    n : int
        Samples.
    """

    use: Use
    batch_axis: BatchAxis
    raw: torch.Tensor
    n: int

    @property
    def m(self) -> int:
        """Number of outputs."""
        return len(self.raw)

    @functools.cached_property
    def inputs(self) -> torch.Tensor:
        """A of a product or of a convolution, (n, g, a, T)."""
        if isinstance(self.use, Conv):
            patches = self.batch_axis(self.use.patches(), self.n, 0, 1)  # (n, merged, g, a, T)
            return _last(patches, 1).to(self.raw.dtype)
        if isinstance(self.use, ConvTranspose):
            x = self.batch_axis(self.use.input, self.n, 0, 1)  # (n, merged, channels, *positions)
            x = x.reshape(*x.shape[:2], self.use.groups, x.shape[2] // self.use.groups, -1)
            return _last(x, 1).to(self.raw.dtype)
        assert isinstance(self.use, Product)
        by_sample = self.batch_axis(self.use.input, self.n, 0, self.use.lead).contiguous()
        rows = by_sample.transpose(1, 2).unsqueeze(1)
        return rows.to(self.raw.dtype)  # a part of the model may compute in another dtype

    @functools.cached_property
    def index(self) -> torch.Tensor:
        """Rows of the table, (n, T); -1 for rows without a derivative."""
        assert isinstance(self.use, Lookup)
        index = self.batch_axis(self.use.index, self.n, 0, self.use.lead)
        return index if self.use.padding is None else index.masked_fill(index == self.use.padding, -1)

    @functools.cached_property
    def gradients(self) -> torch.Tensor:
        """B, (m, n, g, b, T)."""
        return self.canonical(self.raw)

    def canonical(self, raw: torch.Tensor) -> torch.Tensor:
        """Bring gradients in the shape of the use's result to (m, n, g, b, T)."""
        if isinstance(self.use, ConvTranspose):
            unfolded = self.use.patches(raw.flatten(0, 1)).unflatten(0, raw.shape[:2])  # type: ignore[no-untyped-call]
            return _last(self.batch_axis(unfolded, self.n, 1, 2), 2)
        by_sample = self.batch_axis(raw, self.n, 1, 1 + self.use.lead)
        if isinstance(self.use, Conv):
            groups = self.use.groups
            return _last(by_sample.reshape(*by_sample.shape[:3], groups, by_sample.shape[3] // groups, -1), 2)
        return by_sample.transpose(2, 3).unsqueeze(2)

    def by_weight(self, start: int, stop: int) -> torch.Tensor:
        """Return the derivatives by rows start..stop of the weight, (m, n, columns)."""
        if isinstance(self.use, Scale):
            return self.raw[:, :, 0]
        if isinstance(self.use, Lookup):
            return _scattered(self.index, self.gradients, start, stop).flatten(2)
        return by_rows(self.inputs, self.gradients, self.transposed, start, stop).flatten(2)

    @property
    def transposed(self) -> bool:
        """Whether the rows of the weight belong to the inputs."""
        return isinstance(self.use, ConvTranspose) or (isinstance(self.use, Product) and self.use.transposed)

    @property
    def divisible(self) -> bool:
        """Whether :meth:`by_weight` forms a part of the rows of the weight at a part of the cost."""
        return isinstance(self.use, Product | Lookup) or (isinstance(self.use, Convolution) and self.use.groups == 1)

    def by_bias(self) -> torch.Tensor:
        """Return the derivatives by the bias, (m, n, columns)."""
        if isinstance(self.use, Scale):
            return self.raw[:, :, -1]
        return self.shifted(self.raw).flatten(2)

    def shifted(self, raw: torch.Tensor) -> torch.Tensor:
        """Sum gradients in the shape of the use's result over positions: (m, n, outputs of the layer)."""
        if isinstance(self.use, ConvTranspose):
            return self.batch_axis(raw, self.n, 1, 2).flatten(4).sum((2, 4))
        return (self.gradients if raw is self.raw else self.canonical(raw)).sum(-1).flatten(2)


def folded(use: Scale, axis: BatchAxis, raw: torch.Tensor, n: int, value: torch.Tensor | None) -> torch.Tensor:
    """Return the derivatives by the slots of a scale, (m, n, slots, columns), from gradients by its result.

    Sums of b, times z for the scale, over positions and over the axes on which the parameter is constant. ``value`` is
    z with samples and positions on its first axes; None without a scale.
    """
    products = axis(raw, n, 1, 1 + use.lead)
    constant = [2, *(3 + k for k, size in enumerate(use.pattern) if size == 1)]
    sums = [] if value is None else [(products * value).sum(constant)]
    sums += [] if use.bias is None else [products.sum(constant)]
    return torch.stack([each.reshape(*each.shape[:2], -1) for each in sums], 2)  # a number has one column


class Mixture:
    """The gradient of sum_ij samples_i outputs_j f_ij by the result of a use."""

    def __init__(self, part: Part, outputs: torch.Tensor, samples: torch.Tensor) -> None:
        self.part, self.samples = part, samples
        if isinstance(part.use, Scale):
            self.raw = torch.tensordot(outputs, part.raw, 1)
            return
        if part.raw.is_contiguous():
            self.raw = torch.tensordot(outputs, part.raw, 1).unsqueeze(0)
            return
        samples_axis = max(0, part.batch_axis.axis)  # of rows that are stored side by side: no copy of all outputs
        rows = part.raw.movedim(1 + samples_axis, 0)
        mixed = torch.matmul(outputs, rows.flatten(2)).view(len(rows), *rows.shape[2:])
        self.raw = mixed.movedim(0, samples_axis).unsqueeze(0)

    def rows(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return :func:`weighted_rows` of the formula's value of the gradient by a slot, without forming it."""
        part, use = self.part, self.part.use
        total: torch.Tensor = self.raw.new_zeros(shape[0] if shape else 1)
        if isinstance(use, Scale):
            for slot, sums in zip(use.slots, self.raw.unbind(1)):
                total += weighted_rows((self.samples @ sums).reshape(shape)) if slot == name else 0.0
            return total
        if use.bias == name:
            total += weighted_rows(torch.tensordot(self.samples, part.shifted(self.raw)[0], 1).reshape(shape))
        if use.weight != name:
            return total
        B = part.canonical(self.raw)[0]  # (n, g, b, T)
        if isinstance(use, Lookup):
            values = (comparison_weights(B.shape[2], B) @ B)[:, 0] * self.samples[:, None]
            known = part.index >= 0
            return total.index_add_(0, part.index[known], values[known])
        left, right = (part.inputs, B) if part.transposed else (B, part.inputs)
        weights = (comparison_weights(right.shape[2], right) @ right) * self.samples[:, None, None]  # (n, g, T)
        return total.add_((left @ weights.unsqueeze(-1)).sum(0).flatten())


def weighted_rows(gradient: torch.Tensor) -> torch.Tensor:
    """Multiply the rows of a gradient by weights without a pattern: the sum of each row."""
    rows = gradient.flatten(1) if gradient.ndim > 1 else gradient.reshape(-1, 1)
    return torch.mv(rows, comparison_weights(rows.shape[1], rows))


def _last(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Merge an axis of further positions into the last one."""
    if tensor.shape[axis] == 1:
        return tensor.squeeze(axis)
    return tensor.movedim(axis, -2).flatten(-2)


def by_rows(A: torch.Tensor, B: torch.Tensor, transposed: bool, start: int, stop: int) -> torch.Tensor:
    """Return the derivatives of every output and sample by rows start..stop of a weight; all rows if it has groups."""
    if A.shape[1] == 1:
        A, B = (A[:, :, start:stop], B) if transposed else (A, B[:, :, :, start:stop])
    return _outer(A, B, transposed)


def _outer(A: torch.Tensor, B: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Return sum_t b_t a_t^T of every output, sample and group: (m, n, g, b, a), or its transpose."""
    n, g, a, _ = A.shape
    m, b = B.shape[0], B.shape[3]
    left = A.flatten(0, 1)
    if not transposed and m > 1 and A.shape[3] >= (32 if b <= 16 else _LONG):
        # Long sums: one product for all outputs of a sample, and a reordering, are up to three times faster.
        right = B.permute(1, 2, 0, 3, 4).reshape(n * g, m * b, -1)
        return torch.bmm(right, left.transpose(1, 2)).view(n, g, m, b, a).permute(2, 0, 1, 3, 4)
    shape = (m, n, g, a, b) if transposed else (m, n, g, b, a)
    products = B.new_empty(shape)
    for j in range(m):
        right = B[j].flatten(0, 1)
        first, second = (left, right) if transposed else (right, left)
        torch.bmm(first, second.transpose(1, 2), out=products[j].view(n * g, *shape[3:]))
    return products


def _scattered(index: torch.Tensor, B: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Add the gradients of every position to the row of the table that it looks up: (m, n, stop - start, b)."""
    n, count = index.shape
    size = stop - start
    inside = (index >= start) & (index < stop)
    row = torch.where(inside, index - start, size)  # the row after the last one collects all others
    flat = (row + (size + 1) * torch.arange(n, device=index.device)[:, None]).flatten()
    sums = B.new_zeros((len(B), n * (size + 1), B.shape[3]))
    sums.index_add_(1, flat, B.squeeze(2).transpose(2, 3).reshape(len(B), n * count, -1))
    return sums.view(len(B), n, size + 1, -1)[:, :, :size]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The factors of some rows of J.

    Attributes
    ----------
    x : torch.Tensor
        The inputs of its samples.
    outputs : range
        Its outputs.
    parts : dict of str to list of Part
        For each slot with a formula, its uses.
    mixture : dict of str to (torch.Tensor or None), optional
        For each of these slots, the gradient of the weighted sum of :func:`mixture_weights`, if it was computed.
    """

    x: torch.Tensor
    outputs: range
    parts: Mapping[str, list[Part]]
    mixture: Mapping[str, torch.Tensor | None] | None = None

    def free_graph(self) -> None:
        """Free the graph of the passes and the inputs of scales, which are not needed after the passes."""
        for part in (part for parts in self.parts.values() for part in parts):
            vars(part.use).pop("edge", None)
            if isinstance(part.use, Scale):
                part.use.value = None

    def free_patches(self, slots: Iterable[str]) -> None:
        """Free what can be computed again from the inputs and gradients of the uses of some slots."""
        for part in (part for name in slots for part in self.parts[name]):
            for key in ("inputs", "gradients", "index"):
                vars(part).pop(key, None)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def m(self) -> int:
        """Number of outputs."""
        return len(self.outputs)

    @property
    def rows(self) -> int:
        """Number of rows of J, output-major."""
        return self.n * self.m


@dataclasses.dataclass(frozen=True, eq=False)
class OutputScan:
    """Result of a pass over a few samples: the uses, their batch axes, and the slots that also have other uses."""

    n: int
    uses: Sequence[Use]
    batch_axes: Sequence[BatchAxis | None]
    loose: frozenset[str]


def scan_outputs(function: Functional, x: torch.Tensor) -> OutputScan:
    """Find the structure of a model on a few samples.

    A slot is loose if the graph still reaches it although every recorded use was detached (a use of another kind), or
    if one of its uses has no batch axis.
    """
    theta = function.leaves()
    out, capture = captured(function, theta, x)
    uses = capture.uses
    loose: set[str] = set()
    if out.requires_grad:
        gradients = torch.autograd.grad(out.sum(), list(theta.values()), retain_graph=True, allow_unused=True)
        loose = {name for name, gradient in zip(theta, gradients) if gradient is not None}
    axes = batch_axes(uses, out, None) if uses else []
    loose.update(name for use, axis in zip(uses, axes) if axis is None for name in use.slots)
    return OutputScan(len(x), uses, axes, frozenset(loose))


def block(
    function: Functional,
    x: torch.Tensor,
    outputs: range,
    slots: Iterable[str],
    known: Sequence[BatchAxis | None],
    *,
    compare: bool = True,
) -> Block:
    """Differentiate a block of samples and outputs by the results of all recorded uses of ``slots``.

    With ``compare`` a further backward pass through the same graph gives the mixture of
    :func:`verify_against_backward`, unless the graph is not that of the model.
    """
    names = set(slots)
    parts: dict[str, list[Part]] = {name: [] for name in names}
    if not names:
        return Block(x, outputs, parts)
    theta = function.leaves()
    out, capture = captured(function, theta, x, attached=compare)
    with gradients_of_inputs():
        pairs = [
            (use, axis)
            for use, axis in zip(capture.uses, batch_axes(capture.uses, out, known))
            if axis is not None and not names.isdisjoint(use.slots)
        ]
        distinct = {use if isinstance(use, Scale) else use.edge: (use, axis) for use, axis in pairs}
        raws = dict(zip(distinct, _backward(out, list(distinct.values()), outputs)))
    for use, axis in pairs:
        raw = raws[use if isinstance(use, Scale) else use.edge]
        if raw is None:
            continue  # no output depends on it
        part = Part(use, axis, raw.to(out.dtype), len(x))
        for name in {*use.slots} & names:
            parts[name].append(part)
    mixture = None
    if compare and not capture.unrolled:
        mixture = _mixture(out[:, outputs.start : outputs.stop], {name: theta[name] for name in theta if name in names})
    return Block(x, outputs, parts, mixture)


def mixture_weights(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights of the samples and of the outputs that are unrelated to the structure of any network."""
    return codes(len(out), out.detach()), comparison_weights(out.shape[1], out)


def _mixture(out: torch.Tensor, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Return the gradients of the weighted sum of outputs; None for slots on which it does not depend."""
    if not out.requires_grad:
        return dict.fromkeys(theta)
    samples, outputs = mixture_weights(out)
    weighted = (out * (samples[:, None] * outputs)).sum()
    return dict(zip(theta, torch.autograd.grad(weighted, list(theta.values()), allow_unused=True)))


def _backward(out: torch.Tensor, uses: Sequence[tuple[Use, BatchAxis]], outputs: range) -> list[torch.Tensor | None]:
    """Return, for each use, the gradients of every output of the range, (m, *shape), or None if there are none.

    Those of a scale are summed at once (:func:`folded`). One backward pass gives the gradient of one output of all
    samples: samples do not depend on each other, so each row holds the gradient of its own sample's output.
    """
    edges = [use.edge for use, _ in uses]
    if not edges:
        return []
    n = len(out)
    scales = ((use, axis) if isinstance(use, Scale) and use.weight is not None else (None, axis) for use, axis in uses)
    values = [None if use is None or use.value is None else axis(use.value(), n, 0, use.lead) for use, axis in scales]

    def fold(k: int, raw: torch.Tensor | None) -> torch.Tensor | None:
        use, axis = uses[k]
        return folded(use, axis, raw, n, values[k]) if isinstance(use, Scale) and raw is not None else raw

    if len(outputs) > 1 and sum(math.prod(use.shape) for use, _ in uses) <= _BATCHED:
        together = _backward_together(out, edges, outputs)
        if together is not None:
            return [fold(k, raw) for k, raw in enumerate(together)]
    stacked: list[torch.Tensor | None] = [None] * len(uses)
    for row, j in enumerate(outputs):
        # A sum in place of weights for the outputs, for which torch would import its compiler.
        gradients = torch.autograd.grad(out[:, j].sum(), edges, retain_graph=True, allow_unused=True)
        for k, gradient in enumerate(gradients):
            g = None if gradient is None else fold(k, gradient.unsqueeze(0))
            if g is not None and stacked[k] is None:
                # Outputs of a sample side by side, for products of all of them.
                samples = 0 if isinstance(uses[k][0], Scale) else max(0, uses[k][1].axis)
                first = g[0].movedim(samples, 0)
                rows = g.new_empty((len(first), len(outputs), *first.shape[1:]))
                stacked[k] = rows.transpose(0, 1).movedim(1, 1 + samples)
                stacked[k][:row] = 0.0  # type: ignore[index]  # made in the line above
            if stacked[k] is not None:
                stacked[k][row] = 0.0 if g is None else g[0]  # type: ignore[index]
    return stacked


def _backward_together(
    out: torch.Tensor, edges: Sequence[GradientEdge], outputs: range
) -> list[torch.Tensor | None] | None:
    """Return :func:`_backward` in one pass, or None if vmap does not support an operation of the model."""
    eye = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)[outputs.start : outputs.stop]
    weights = eye[:, None, :].expand(len(eye), *out.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing batching rules make torch slower, not wrong
            return list(
                torch.autograd.grad(out, edges, weights, retain_graph=True, allow_unused=True, is_grads_batched=True)
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # one output at a time then, where an error of the model itself is raised
        return None


def verify_against_backward(function: Functional, made: Block) -> frozenset[str]:
    """Compare a block with an ordinary backward pass through the model, and return the slots that differ.

    With the weights v_i w_j of :func:`mixture_weights`, sum_ij v_i w_j grad f_j(x_i) is computed from the parts and by
    autograd. Both are compared by the sums of their rows with weights of the same kind, which takes no
    product of matrices. Every sample, output, use and entry enters; the tolerance is sqrt(eps) times the gradient's
    norm.
    """
    names = [name for name in function.layout.names if name in made.parts]
    if not names:
        return frozenset()
    mixture = made.mixture
    if mixture is None:
        values = {n: v.detach().requires_grad_() if n in made.parts else v for n, v in function.theta.items()}
        with Convolutions():
            out = function(values, function.batch(made.x)).reshape(made.n, -1)
        mixture = _mixture(out[:, made.outputs.start : made.outputs.stop], {name: values[name] for name in names})
    gradients = [mixture[name] for name in names]
    samples, outputs = mixture_weights(function.theta[names[0]].new_empty((made.n, made.m)))
    uses = {part for parts in made.parts.values() for part in parts}
    mixed = {part: Mixture(part, outputs, samples) for part in uses}
    eps = torch.finfo(function.dtype).eps
    sizes = [0.0 if g is None else float(torch.linalg.vector_norm(g)) for g in gradients]
    # Two computations of a gradient that is zero in exact arithmetic differ by about eps times the largest gradient.
    noise = 1e3 * eps * max(sizes)
    wrong = set()
    for name, gradient, size in zip(names, gradients, sizes):
        difference = weighted_rows(torch.zeros_like(function.theta[name]) if gradient is None else gradient)
        for part in made.parts[name]:
            difference = difference - mixed[part].rows(name, function.theta[name].shape)
        if not float(torch.linalg.vector_norm(difference)) <= math.sqrt(eps) * size + noise:
            wrong.add(name)
    return frozenset(wrong)
