"""A use with its backpropagated gradients for a block of samples and outputs: the factors of a Gram matrix.

Shapes, with n samples and m outputs in the block, T positions to a sample, g groups: inputs A are (n, g, a, T),
gradients B are (m, n, g, b, T), and the derivative of output j at sample i by a weight is B[j, i] A[i]^T, group by
group.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from alignver.models.gram.owners import Layout
from alignver.models.gram.uses import Conv, Lookup, Product, Scale, Use

__all__ = ["Mixture", "Part"]


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
    layout: Layout
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
