"""Which rows of an activation belong to which sample.

A network may hold its samples on the first axis, on the second (sequence first), or merged with positions in either
order. The shape leaves a few possibilities; where it leaves more than one, a backward pass in which sample i carries
the weight c_i tells them apart, since the gradient at a row of sample i is then c_i times what it is without.

A use with its backpropagated gradients for a block of samples and outputs: the factors of a Gram matrix.

Shapes, with n samples and m outputs in the block, T positions to a sample, g groups: inputs A are (n, g, a, T),
gradients B are (m, n, g, b, T), and the derivative of output j at sample i by a weight is B[j, i] A[i]^T, group by
group.

One block of samples and outputs: forward once, backward for every output, and what was found checked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch

from alignver.jacobians.layer_io import Conv, Lookup, Product, Scale, Use, captured
from alignver.network.functional import Functional

__all__ = [
    "BatchAxis",
    "Block",
    "Mixture",
    "Part",
    "batch_axes",
    "block",
    "codes",
    "scan_outputs",
    "verify_against_backward",
]


@dataclasses.dataclass(frozen=True)
class BatchAxis:
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


def candidates(rows: Sequence[int], n: int) -> list[BatchAxis]:
    """List what the sizes of the leading axes leave open, the likeliest first.

    Examples
    --------
    >>> candidates((4, 7), 4)
    [Layout(axis=0, inner=False)]
    >>> candidates((6,), 2)
    [Layout(axis=0, inner=False), Layout(axis=0, inner=True)]
    """
    if n == 1:
        return [BatchAxis(-1)]
    whole = [BatchAxis(k) for k, size in enumerate(rows) if size == n]
    merged = [
        BatchAxis(k, inner) for k, size in enumerate(rows) if size > n and size % n == 0 for inner in (False, True)
    ]
    return whole + merged


def codes(n: int, like: torch.Tensor) -> torch.Tensor:
    """Return n distinct weights between 1 and 2, in no order that an axis could have."""
    steps = torch.arange(n, device=like.device, dtype=torch.float64)
    return (1.0 + torch.remainder(steps * 0.6180339887498949, 1.0)).to(like.dtype)


def batch_axes(
    uses: Sequence[Use], out: torch.Tensor, known: Sequence[BatchAxis | None] | None
) -> list[BatchAxis | None]:
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


@dataclasses.dataclass(eq=False)
class Part:
    """One use inside one block.

    Attributes
    ----------
    use : Use
    layout : Layout
        Where its samples are.
    raw : torch.Tensor
        (m, *shape of the use's result), gradients of every output.
    n : int
        Samples.
    """

    use: Use
    layout: BatchAxis
    raw: torch.Tensor
    n: int

    @property
    def m(self) -> int:
        """Number of outputs."""
        return len(self.raw)

    @functools.cached_property
    def inputs(self) -> torch.Tensor:
        """A of a product or a convolution, (n, g, a, T)."""
        if isinstance(self.use, Conv):
            patches = self.layout(self.use.patches(), self.n, 0, 1)  # (n, merged, g, a, T)
            return _last(patches, 1)
        assert isinstance(self.use, Product)
        return self.layout(self.use.input, self.n, 0, self.use.lead).transpose(1, 2).unsqueeze(1)

    @functools.cached_property
    def index(self) -> torch.Tensor:
        """Rows of the table, (n, T); -1 where there is no derivative."""
        assert isinstance(self.use, Lookup)
        index = self.layout(self.use.index, self.n, 0, self.use.lead)
        return index if self.use.padding is None else index.masked_fill(index == self.use.padding, -1)

    @functools.cached_property
    def gradients(self) -> torch.Tensor:
        """B, (m, n, g, b, T)."""
        return self.canonical(self.raw)

    def canonical(self, raw: torch.Tensor) -> torch.Tensor:
        """Bring gradients in the shape of the use's result to (m, n, g, b, T)."""
        found = self.layout(raw, self.n, 1, 1 + self.use.lead)
        if isinstance(self.use, Conv):
            groups = self.use.groups
            return _last(found.reshape(*found.shape[:3], groups, found.shape[3] // groups, -1), 2)
        return found.transpose(2, 3).unsqueeze(2)

    def by_weight(self, start: int, stop: int) -> torch.Tensor:
        """Return the derivatives by rows start..stop of the weight, (m, n, columns)."""
        if isinstance(self.use, Scale):
            return self._folded(self.raw, weighted=True).flatten(2)
        if isinstance(self.use, Lookup):
            return _scattered(self.index, self.gradients, start, stop).flatten(2)
        A, B = self.inputs, self.gradients
        turned = isinstance(self.use, Product) and self.use.transposed
        whole = A.shape[2] if turned else B.shape[2] * B.shape[3]
        if (start, stop) != (0, whole):  # convolutions in groups are never cut
            A, B = (A[:, :, start:stop], B) if turned else (A, B[:, :, :, start:stop])
        return _outer(A, B, turned).flatten(2)

    def by_bias(self) -> torch.Tensor:
        """Return the derivatives by the bias, (m, n, columns)."""
        if isinstance(self.use, Scale):
            return self._folded(self.raw, weighted=False).flatten(2)
        return self.gradients.sum(-1).flatten(2)

    def mix(self, outputs: torch.Tensor, samples: torch.Tensor) -> Mixture:
        """Return the gradients of sum_ij samples_i outputs_j f_ij by the result of the use: one backward pass."""
        return Mixture(self, torch.tensordot(outputs, self.raw, 1).unsqueeze(0), samples)

    def _folded(self, raw: torch.Tensor, weighted: bool) -> torch.Tensor:
        """Sum b (times z) over positions and over what the parameter is constant on: (m, n, *pattern)."""
        use = self.use
        assert isinstance(use, Scale)
        found = self.layout(raw, self.n, 1, 1 + use.lead)
        if weighted:
            assert use.value is not None
            found = found * self.layout(use.value(), self.n, 0, use.lead)
        constant = [3 + k for k, size in enumerate(use.pattern) if size == 1]
        return found.sum([2, *constant])


class Mixture:
    """The gradients of one weighted sum of all samples' outputs by the result of a use."""

    def __init__(self, part: Part, raw: torch.Tensor, samples: torch.Tensor) -> None:
        self.part, self.samples = part, samples
        if isinstance(part.use, Scale):
            self.raw = raw
        else:
            self.B = part.canonical(raw) * samples[:, None, None, None]  # (1, n, g, b, T)

    def subtract(self, name: str, wanted: torch.Tensor) -> torch.Tensor:
        """Return ``wanted``, a gradient by the slot, less what the formula gives."""
        part, use = self.part, self.part.use
        if isinstance(use, Scale):
            for slot, weighted in ((use.weight, True), (use.bias, False)):
                if slot == name:
                    found = torch.tensordot(self.samples, part._folded(self.raw, weighted)[0], 1)
                    wanted = wanted - found.reshape(wanted.shape)
            return wanted
        if use.bias == name:
            wanted = wanted - self.B.sum((0, 1, 4)).reshape(wanted.shape)
        if use.weight != name:
            return wanted
        if isinstance(use, Lookup):
            # All samples as positions of a single one: their derivatives are summed.
            index = part.index.reshape(1, -1)
            return wanted - _scattered(index, _merged(self.B), 0, len(wanted))[0, 0]
        if isinstance(use, Product):
            A, B = (_merged(each)[0, 0, 0] for each in (part.inputs.unsqueeze(0), self.B))
            first, second = (A, B) if use.transposed else (B, A)
            return torch.addmm(wanted, first, second.T, alpha=-1.0)
        return wanted - _outer(part.inputs, self.B, False).sum((0, 1)).reshape(wanted.shape)


def _last(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Merge an axis of further positions into the last one."""
    if tensor.shape[axis] == 1:
        return tensor.squeeze(axis)
    return tensor.movedim(axis, -2).flatten(-2)


def _merged(B: torch.Tensor) -> torch.Tensor:
    """Merge samples into positions: (m, n, g, b, T) to (m, 1, g, b, nT)."""
    return B.movedim(1, 3).flatten(3).unsqueeze(1)


def _outer(A: torch.Tensor, B: torch.Tensor, turned: bool) -> torch.Tensor:
    """Return sum_t b_t a_t^T of every output, sample and group: (m, n, g, b, a), or its transpose."""
    n, g, a, _ = A.shape
    m, b = B.shape[0], B.shape[3]
    left = A.flatten(0, 1)
    if not turned and m > 1 and b <= 16 and A.shape[3] >= 32:
        # Few rows and long sums: one product for all outputs of a sample is worth a reordering (three times faster).
        right = B.permute(1, 2, 0, 3, 4).reshape(n * g, m * b, -1)
        return torch.bmm(right, left.transpose(1, 2)).view(n, g, m, b, a).permute(2, 0, 1, 3, 4)
    shape = (m, n, g, a, b) if turned else (m, n, g, b, a)
    found = B.new_empty(shape)
    for j in range(m):
        right = B[j].flatten(0, 1)
        first, second = (left, right) if turned else (right, left)
        torch.bmm(first, second.transpose(1, 2), out=found[j].view(n * g, *shape[3:]))
    return found


def _scattered(index: torch.Tensor, B: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Add the gradients of every position to the row that was looked up: (m, n, stop - start, b)."""
    n, count = index.shape
    size = stop - start
    inside = (index >= start) & (index < stop)
    place = torch.where(inside, index - start, size)  # the row after the last takes what is outside
    flat = (place + (size + 1) * torch.arange(n, device=index.device)[:, None]).flatten()
    found = B.new_zeros((len(B), n * (size + 1), B.shape[3]))
    found.index_add_(1, flat, B.squeeze(2).transpose(2, 3).reshape(len(B), n * count, -1))
    return found.view(len(B), n, size + 1, -1)[:, :, :size]


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
        For each slot that has a formula, its uses.
    """

    x: torch.Tensor
    outputs: range
    parts: Mapping[str, list[Part]]

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
    """What a pass over a few samples found: the uses, where their samples are, and the slots with other uses."""

    n: int
    uses: Sequence[Use]
    layouts: Sequence[BatchAxis | None]
    loose: frozenset[str]


def leaves(function: Functional) -> dict[str, torch.Tensor]:
    """Return the slots as leaves of a new graph."""
    return {name: value.detach().requires_grad_() for name, value in function.theta.items()}


def scan_outputs(function: Functional, x: torch.Tensor) -> OutputScan:
    """Look for the structure of a model on a few samples.

    A slot is loose where the graph still reaches it although every recorded use was cut out (a use of another kind),
    or where a use has its samples on no axis.
    """
    theta = leaves(function)
    out, uses = captured(function, theta, x)
    loose: set[str] = set()
    if out.requires_grad:
        found = torch.autograd.grad(
            out, list(theta.values()), torch.ones_like(out), retain_graph=True, allow_unused=True
        )
        loose = {name for name, gradient in zip(theta, found) if gradient is not None}
    where = batch_axes(uses, out, None) if uses else []
    loose.update(name for use, layout in zip(uses, where) if layout is None for name in use.slots)
    return OutputScan(len(x), uses, where, frozenset(loose))


def block(
    function: Functional, x: torch.Tensor, outputs: range, wanted: Iterable[str], known: Sequence[BatchAxis | None]
) -> Block:
    """Differentiate a block of samples and outputs by the results of all recorded uses of ``wanted`` slots."""
    names = set(wanted)
    parts: dict[str, list[Part]] = {name: [] for name in names}
    if not names:
        return Block(x, outputs, parts)
    theta = leaves(function)
    out, uses = captured(function, theta, x)
    where = batch_axes(uses, out, known)
    chosen = [
        (use, layout) for use, layout in zip(uses, where) if layout is not None and not names.isdisjoint(use.slots)
    ]
    raws = _backward(out, [use for use, _ in chosen], outputs) if chosen else []
    for (use, layout), raw in zip(chosen, raws):
        if raw is None:
            continue  # no output depends on it
        part = Part(use, layout, raw, len(x))
        for name in {*use.slots} & names:
            parts[name].append(part)
    return Block(x, outputs, parts)


def _backward(out: torch.Tensor, uses: Sequence[Use], outputs: range) -> list[torch.Tensor | None]:
    """Return, for each use, the gradients of every output of the range, (m, *shape); None where there are none.

    The gradient of one output of all samples at once: samples do not depend on each other, so each row gets the
    gradient of its own sample's output.
    """
    edges = [use.edge for use in uses]
    eye = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)[outputs.start : outputs.stop]
    weights = eye[:, None, :].expand(len(eye), *out.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about batching rules that torch lacks: slower, not wrong
            return list(
                torch.autograd.grad(out, edges, weights, retain_graph=True, allow_unused=True, is_grads_batched=True)
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # an operation that vmap refuses: one output at a time
        found: list[torch.Tensor | None] = [None] * len(uses)
        for j, weight in enumerate(weights):
            for k, g in enumerate(torch.autograd.grad(out, edges, weight, retain_graph=True, allow_unused=True)):
                if g is not None:
                    if found[k] is None:
                        found[k] = g.new_zeros((len(weights), *g.shape))
                    found[k][j] = g  # type: ignore[index]  # made in the line above
        return found


def verify_against_backward(function: Functional, found: Block) -> frozenset[str]:
    """Compare a block with an ordinary backward pass through the model, and name the slots that differ.

    With weights v_i w_j that no structure of a network has, sum_ij v_i w_j grad f_j(x_i) is computed from the parts and
    by autograd. Every sample, output and use enters; agreement is asked up to sqrt(eps) of the gradient's norm.
    """
    names = [name for name in function.slots.names if name in found.parts]
    if not names:
        return frozenset()
    theta = {
        name: value.detach().requires_grad_() if name in found.parts else value
        for name, value in function.theta.items()
    }
    out = function(theta, function.batch(found.x)).reshape(found.n, -1)[:, found.outputs.start : found.outputs.stop]
    samples = codes(found.n, out.detach())
    outputs = torch.cos(torch.arange(1, found.m + 1, device=out.device)).to(out.dtype)
    right: Sequence[torch.Tensor | None] = [None] * len(names)
    if out.requires_grad:
        right = torch.autograd.grad(out, [theta[n] for n in names], samples[:, None] * outputs, allow_unused=True)
    uses = {part for parts in found.parts.values() for part in parts}
    mixed = {part: part.mix(outputs, samples) for part in uses}
    eps = torch.finfo(function.dtype).eps
    sizes = [0.0 if g is None else float(torch.linalg.vector_norm(g)) for g in right]
    # A gradient that is zero but for rounding differs from its like by about eps of the largest there is.
    noise = 1e3 * eps * max(sizes)
    wrong = set()
    for name, wanted, size in zip(names, right, sizes):
        rest = torch.zeros_like(function.theta[name]) if wanted is None else wanted
        for part in found.parts[name]:
            rest = mixed[part].subtract(name, rest)
        if not float(torch.linalg.vector_norm(rest)) <= math.sqrt(eps) * size + noise:
            wrong.add(name)
    return frozenset(wrong)
