"""The Jacobian of a model as blocks of its columns, one block of parameters after the other.

A bad choice of blocks multiplies the passes of the model. Linear and convolutional layers need one forward and m_y
backward passes for a group of layers, for any number of blocks of their columns
(:mod:`alignver.jacobians.layer_gradients`). The passes are repeated for each block only if their results are larger
than half a block. All other parameters (norms, embeddings, recurrent cells, parameters of custom modules) take
per-sample gradients by those parameters alone, one pass for each block. Every block is compared with an ordinary
backward pass.

Operations: ``2 N d P`` for the columns of layers of P positions, and the passes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alignver.arrays import Array
from alignver.errors import InvalidInput
from alignver.jacobians import layer_gradients
from alignver.jacobians.jacobian import Block, bound_copy, checked_chunk, require_finite, sample_rows
from alignver.jacobians.operator import differentiable, pull
from alignver.network.functional import Functional, ParameterLayout, Theta
from alignver.network.inputs import DispatchMode, dtype_name
from alignver.network.validate_model import probe, validate_model

Piece = tuple[int, int, int]
"""Index of a slot, first entry, and one past the last."""

BLOCK_BYTES = 1 << 28
"""Default size of a block of columns, with the results of its passes; a block has at least N columns."""

_PASS_BYTES = 1 << 27  # approximate bytes of the tensors of one pass of the model: determines the samples of a pass


def packed(slots: Iterable[tuple[int, int, int]], most: int) -> Iterator[list[Piece]]:
    """Cut slots (index, size, entries of a row) into blocks of at most ``most`` columns, of whole rows if they fit.

    A row longer than ``most`` is cut; a piece then does not extend past its end. No block has two pieces of one slot.

    Examples
    --------
    >>> list(packed([(0, 6, 2), (1, 3, 1)], 5))
    [[(0, 0, 4)], [(0, 4, 6), (1, 0, 3)]]
    >>> list(packed([(0, 6, 3)], 2))
    [[(0, 0, 2)], [(0, 2, 3)], [(0, 3, 5)], [(0, 5, 6)]]
    """
    block: list[Piece] = []
    room = most
    for k, size, inner in slots:
        start = 0
        while start < size:
            remaining = size - start
            within = inner - start % inner  # to the end of the row
            fits = min(remaining, room // inner * inner) if within == inner and room >= inner else min(within, room)
            split = inner <= most and fits < inner and fits < remaining  # a new block has room for the whole row
            if fits == 0 or split or (block and block[-1][0] == k):
                yield block
                block, room = [], most
                continue
            block.append((k, start, start + fits))
            start, room = start + fits, room - fits
            if room == 0:
                yield block
                block, room = [], most
    if block:
        yield block


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut(Functional):
    """A model as a function of consecutive entries of some of its slots."""

    whole: Theta
    ranges: dict[str, tuple[int, int]]

    def __call__(self, theta: Theta, x: torch.Tensor) -> torch.Tensor:
        """Run the model with ``theta`` in place of those entries."""
        full = dict(self.whole)
        for name, part in theta.items():
            start, stop = self.ranges[name]
            flat = full[name].reshape(-1)
            full[name] = torch.cat([flat[:start], part.reshape(-1), flat[stop:]]).reshape(full[name].shape)
        # The zero term gives autograd a graph if no output depends on them.
        return super().__call__(full, x) + 0.0 * sum(part.sum() for part in theta.values())


def of_pieces(function: Functional, pieces: list[Piece]) -> Functional:
    """Return the model as a function of the given pieces, with all other parameters held at their values."""
    layout = function.layout
    names = tuple(layout.names[k] for k, _, _ in pieces)
    ranges = {name: (start, stop) for name, (_, start, stop) in zip(names, pieces)}
    theta = {name: function.theta[name].detach().reshape(-1)[slice(*ranges[name])] for name in names}
    sizes = tuple(stop - start for start, stop in ranges.values())
    parameters = tuple(layout.parameters[k] for k, _, _ in pieces)
    whole = {name: value.detach() for name, value in function.theta.items()}
    part = ParameterLayout(names, parameters, sizes, layout.fixed, layout.aliases)
    return _Cut(
        function.model, function.source, part, theta, function.held, function.dtype, function.places,
        function.versions, whole, ranges, graded=function.graded, doubled=function.doubled,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnBlock:
    """Some columns of J.

    Attributes
    ----------
    pieces : tuple of (int, int)
        Ranges of J's columns, in their order in ``matrix``.
    matrix : torch.Tensor
        (N, b): row j n + i belongs to output j of sample i.
    """

    pieces: tuple[tuple[int, int], ...]
    matrix: torch.Tensor


class JacobianColumns:
    """The Jacobian of a model as blocks of its columns, each column once; iteration computes them.

    Parameters
    ----------
    model, X, block_bytes, dtype, include_frozen, chunk_size
        As in :func:`alignver.jacobians.jacobian_form.streamed_qr`. Parameters and buffers are copied.

    Attributes
    ----------
    shape : (int, int)
        (n m_y, d).
    n, m_y : int
        Samples and outputs.
    layout : ParameterLayout
        The columns.
    computed_in, engine : str
        The coarsest dtype of a forward pass; how the blocks so far were computed.
    samples_run, blocks_made : int
        Samples in forward passes of the model, and blocks, so far.

    Examples
    --------
    >>> import torch
    >>> columns = JacobianColumns(torch.nn.Linear(2, 2, bias=False), [[1.0, 2.0], [3.0, 4.0]])
    >>> for block in columns:
    ...     print(block.pieces, block.matrix.tolist())
    ((0, 4),) [[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 3.0, 4.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        X: Any,
        *,
        block_bytes: int | None = None,
        dtype: str | None = "float64",
        include_frozen: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        model = validate_model(model, include_frozen=include_frozen)
        chunk = checked_chunk(chunk_size)
        if block_bytes is not None and (isinstance(block_bytes, bool) or not int(block_bytes) == block_bytes > 0):
            need = "a positive number of bytes, or None"
            raise InvalidInput("block_bytes", f"block_bytes={block_bytes!r}", need, code="not-an-integer")
        with bound_copy(model, X, dtype, include_frozen=include_frozen) as (function, x), differentiable(function):
            probed = probe(function, x)
            function = probed.function
            recorded = _recorded(function, x[:2], probed.m_y)
            allocated = _AllocatedBytes()
            with torch.no_grad(), allocated:
                function(function.theta, function.batch(x[:1]))
        self._function, self._x = function, x.clone()
        self.n, self.m_y = len(x), probed.m_y
        self.layout: ParameterLayout = function.layout
        self.shape = (self.n * self.m_y, self.layout.d)
        self.computed_in = dtype_name(probed.computed_in)
        self._eps = float(torch.finfo(probed.computed_in).eps)
        self._item = torch.finfo(function.dtype).bits // 8
        self._bytes = max(block_bytes or BLOCK_BYTES, self._item * self.shape[0] ** 2)
        self._chunk = chunk or max(1, min(self.n, _PASS_BYTES // max(allocated.bytes * 2, 1)))
        self._factored = {
            name: layers
            for name, layers in layer_gradients.owners(function).items()
            if all(recorded.get(owner.module) for owner in layers)
        }
        rows = min(2, self.n)
        self._captured_bytes = {
            module: sum(t.numel() * self._item for use in uses for t in (use.inputs, use.derivatives)) * self.n // rows
            for module, uses in recorded.items()
            if uses
        }
        self._by_rows: set[str] = set()
        self._slow, self._largest = "", 0.0
        self.samples_run = self.blocks_made = 0
        # w_ij of the comparison: fixed, without pattern, of size one
        self._weights = torch.cos(torch.arange(1.0, self.shape[0] + 1.0, dtype=torch.float64)).reshape(self.m_y, -1).T
        self._weights = self._weights.to(function.dtype).to(function.device)

    def __iter__(self) -> Iterator[ColumnBlock]:
        """Compute the blocks, each in memory of its own."""
        return self._blocks(reuse=False)

    def row_blocks(self) -> Iterator[Array]:
        """Cut the blocks into rows of J^T, at most N at a time: views of one buffer, valid until the next block."""
        total = self.shape[0]
        for block in self._blocks(reuse=True):
            width = block.matrix.shape[1]
            count = -(-width // total)
            for k in range(count):
                rows = block.matrix[:, width * k // count : width * (k + 1) // count].T
                yield rows.numpy() if rows.device.type == "cpu" else rows.to(torch.float64)

    @property
    def engine(self) -> str:
        """How the blocks so far were computed, in words."""
        count = len([name for name in self._factored if name not in self._by_rows])
        parts = [f"layer factors for {count} of {len(self.layout.names)} slots"] if count else []
        if count < len(self.layout.names):
            parts.append(f"autograd, one output at a time{self._slow}" if self._slow else "per-sample gradients")
        return "streamed: " + ", ".join(parts)

    def _blocks(self, reuse: bool) -> Iterator[ColumnBlock]:
        groups = list(self._groups())
        # Results of passes and the buffer share the block's memory; all blocks have one size, so one buffer suffices.
        held = max((size for _, size in groups), default=0)
        most = min(max(1, (self._bytes - held) // (self._item * self.shape[0])), self.shape[1])
        buffer: torch.Tensor | None = None
        for group, stored_bytes in groups:
            stored: list[layer_gradients.Captured] | None = None
            for pieces in packed([(k, self.layout.sizes[k], self._inner(k)) for k in group], most):
                with torch.inference_mode(False):
                    width = sum(stop - start for _, start, stop in pieces)
                    if buffer is None or not reuse:
                        entries = self.shape[0] * (most if reuse else width)
                        buffer = torch.empty(entries, dtype=self._function.dtype, device=self._x.device)
                    target = buffer[: self.shape[0] * width].view(self.m_y, self.n, width)
                    stored = self._fill(target, pieces, stored, group if stored_bytes else [])
                self.blocks_made += 1
                offsets = self.layout.offsets
                ranges = tuple((offsets[k] + start, offsets[k] + stop) for k, start, stop in pieces)
                yield ColumnBlock(ranges, target.view(self.shape[0], width))

    def _inner(self, k: int) -> int:
        return int(self.layout.parameters[k][0].numel()) if self.layout.parameters[k].ndim else 1

    def _groups(self) -> Iterator[tuple[list[int], int]]:
        """Yield slots that share passes, with the bytes of the stored results (0: repeat the passes)."""
        group: list[int] = []
        modules: set[nn.Module] = set()
        held = 0
        for k, name in enumerate(self.layout.names):
            if name not in self._factored or not self.layout.sizes[k]:
                continue
            users = {owner.module for owner in self._factored[name]}
            if group and held + self._bytes_of(k, users - modules) > self._bytes // 2:
                yield group, held if held <= self._bytes // 2 else 0
                group, modules, held = [], set(), 0
            held += self._bytes_of(k, users - modules)
            group, modules = [*group, k], modules | users
        if group:
            yield group, held if held <= self._bytes // 2 else 0
        rest = [k for k, name in enumerate(self.layout.names) if name not in self._factored and self.layout.sizes[k]]
        if rest:
            yield rest, 0

    def _bytes_of(self, k: int, modules: set[nn.Module]) -> int:
        """Return the bytes of the gradient of a slot and of the factors of some modules."""
        return sum(self._captured_bytes[module] for module in modules) + self.layout.sizes[k] * self._item

    def _fill(
        self, target: torch.Tensor, pieces: list[Piece], stored: list[layer_gradients.Captured] | None, group: list[int]
    ) -> list[layer_gradients.Captured] | None:
        """Fill a block; return the stored results of the passes of the slots in ``group``, for the next block."""
        names = [self.layout.names[k] for k, _, _ in pieces]
        if all(name in self._factored and name not in self._by_rows for name in names):
            if stored is None and group:
                stored = self._stored([self.layout.names[k] for k in group])
            if self._from_factors(target, pieces, stored):
                return stored
            self._by_rows.update(names)
        self._from_rows(target, pieces)
        return stored

    def _stored(self, names: list[str]) -> list[layer_gradients.Captured]:
        """Return the results of the passes over all samples; the first entry holds the sum of the gradients."""
        results: list[layer_gradients.Captured] = []
        for captured in self._captured(names):
            if results:
                for name, gradient in captured.gradients.items():
                    results[0].gradients[name].add_(gradient)
                captured = dataclasses.replace(captured, gradients={})
            results.append(captured)
        return results

    def _captured(self, names: list[str]) -> Iterator[layer_gradients.Captured]:
        modules = _modules({name: self._factored[name] for name in names})
        for start in range(0, self.n, self._chunk):
            part = self._x[start : start + self._chunk]
            with self._function.undisturbed(), differentiable(self._function):
                weights = self._weights[start : start + self._chunk]
                captured = layer_gradients.capture(self._function, part, modules, self.m_y, weights, names)
            self.samples_run += len(part)
            yield captured

    def _from_factors(
        self, target: torch.Tensor, pieces: list[Piece], stored: list[layer_gradients.Captured] | None
    ) -> bool:
        """Fill a block from the layers' factors; False if a comparison with a backward pass fails."""
        names = [self.layout.names[k] for k, _, _ in pieces]
        gradients = [target.new_zeros(stop - start) for _, start, stop in pieces]
        first = 0
        for captured in stored if stored is not None else self._captured(names):
            last = min(first + self._chunk, self.n)
            column = 0
            for (_, start, stop), name, gradient in zip(pieces, names, gradients):
                part = target[:, first:last, column : column + stop - start]
                if not layer_gradients.contract(captured, self._factored[name], start, stop, part):
                    return False
                if captured.gradients:
                    gradient += captured.gradients[name][start:stop]
                column += stop - start
            first = last
        self._require_finite(target, pieces)
        sums = self._weights.T.reshape(-1) @ target.view(self.shape[0], -1)
        return self._agree(torch.split(sums, [len(gradient) for gradient in gradients]), gradients)

    def _agree(self, sums: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> bool:
        """Whether the weighted sums of a block's rows are the gradients of the weighted outputs, piece by piece.

        The tolerance is sqrt(eps) times the norm of the piece plus N eps times the largest gradient so far: a
        derivative that is zero in exact arithmetic (a shift before a softmax) is rounding error in both.
        """
        self._largest = max(self._largest, *(float(gradient.norm()) for gradient in gradients))
        floor = self.shape[0] * self._eps * self._largest
        return all(
            float((ours - other).norm()) <= math.sqrt(self._eps) * max(float(ours.norm()), float(other.norm())) + floor
            for ours, other in zip(sums, gradients)
        )

    def _from_rows(self, target: torch.Tensor, pieces: list[Piece]) -> None:
        """Fill a block by per-sample gradients of some slots, or parts of them."""
        function = of_pieces(self._function, pieces)
        step = max(1, min(self._chunk, _PASS_BYTES // (3 * self.m_y * function.layout.d * self._item)))
        for start in range(0, self.n, step):
            part, weights = self._x[start : start + step], self._weights[start : start + step]

            def agrees(block: Block, part: torch.Tensor = part, weights: torch.Tensor = weights) -> bool:
                sums = [torch.einsum("ij,ijk->k", weights, piece.to(weights.dtype)) for piece in block]
                return self._agree(sums, torch.split(pull(function, part, weights), list(function.layout.sizes)))

            with function.undisturbed(), differentiable(function):
                block, self._slow = sample_rows(function, part, self.m_y, self._slow, agrees)
            self.samples_run += len(part)
            for offset, width, columns in zip(function.layout.offsets, function.layout.sizes, block):
                target[:, start : start + len(part), offset : offset + width] = columns.transpose(0, 1)
        self._require_finite(target, pieces)

    def _require_finite(self, target: torch.Tensor, pieces: list[Piece]) -> None:
        names = tuple(self.layout.names[k] for k, _, _ in pieces)
        sizes = tuple(stop - start for _, start, stop in pieces)
        require_finite(ParameterLayout(names, (), sizes, {}, {}), target, 0)


def _recorded(function: Functional, x: torch.Tensor, m_y: int) -> Mapping[nn.Module, list[layer_gradients.Use] | None]:
    """Return the layers' uses on a few samples; nothing if the model does not run under observation."""
    try:
        return layer_gradients.capture(function, x, _modules(layer_gradients.owners(function)), m_y).uses
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:  # for example, a checkpoint that detects the hooks of its layers
        return {}


def _modules(owners: dict[str, tuple[layer_gradients.Owner, ...]]) -> list[nn.Module]:
    return list(dict.fromkeys(owner.module for owner in itertools.chain.from_iterable(owners.values())))


class _AllocatedBytes(DispatchMode):
    """Count the bytes of all tensors that operations return, an upper bound for what a pass stores for backward."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its results."""
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self.bytes += item.numel() * item.element_size()
        return result
