"""Pieces of the parameter vector: how slots are cut into blocks, and a model as a function of some.

The Jacobian of a model as blocks of its columns, one block of parameters after the other.

Passes of the model are what a careless choice of blocks multiplies. Linear and convolutional layers need one forward
and m_y backward passes for a group of layers, whatever number of blocks their columns are cut into
(:mod:`alignver.jacobians.layer_gradients`); only where what the passes leave is larger than half a block are they
repeated for
each block. Everything else (norms, embeddings, recurrent cells, parameters of a module's own) goes through per-sample
gradients by those parameters alone, one pass for each block. Every block is compared with an ordinary backward pass.

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
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.arrays import Array
from alignver.errors import InvalidInput, first_line
from alignver.jacobians import jacobian, layer_gradients
from alignver.jacobians.jacobian import bind, checked_chunk, require_finite
from alignver.jacobians.operator import differentiable, pull
from alignver.network.functional import Functional, ParameterLayout, Theta
from alignver.network.inputs import dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, validate_model

__all__ = ["BLOCK_BYTES", "ColumnBlock", "JacobianColumns", "Piece", "of_pieces", "packed"]
Piece = tuple[int, int, int]
"""Index of a slot, first entry, and one past the last."""


def packed(slots: Iterable[tuple[int, int, int]], most: int) -> Iterator[list[Piece]]:
    """Cut slots (index, size, entries of a row) into blocks of at most ``most`` columns: whole rows where they fit.

    A row longer than that is cut; no piece then reaches over its end, and no block has two pieces of one slot.

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
            left = size - start
            within = inner - start % inner  # to the end of the row
            fits = min(left, room // inner * inner) if within == inner and room >= inner else min(within, room)
            split = inner <= most and fits < inner and fits < left  # a row that a fresh block has room for
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
        """Run the model with the entries put in their places."""
        full = dict(self.whole)
        for name, part in theta.items():
            start, stop = self.ranges[name]
            flat = full[name].reshape(-1)
            full[name] = torch.cat([flat[:start], part.reshape(-1), flat[stop:]]).reshape(full[name].shape)
        # Where an output does not reach them, autograd finds no graph; a zero of theirs gives it one.
        return super().__call__(full, x) + 0.0 * sum(part.sum() for part in theta.values())


def of_pieces(function: Functional, slots: ParameterLayout, pieces: list[Piece]) -> Functional:
    """Return the model as a function of the given pieces, everything else held at its value."""
    names = tuple(slots.names[k] for k, _, _ in pieces)
    ranges = {name: (start, stop) for name, (_, start, stop) in zip(names, pieces)}
    theta = {name: function.theta[name].detach().reshape(-1)[slice(*ranges[name])] for name in names}
    sizes = tuple(stop - start for start, stop in ranges.values())
    parameters = tuple(slots.parameters[k] for k, _, _ in pieces)
    whole = {name: value.detach() for name, value in function.theta.items()}
    part = ParameterLayout(names, parameters, sizes, slots.fixed, slots.aliases)
    return _Cut(function.model, part, theta, function.held, function.dtype, function.places, whole, ranges)


BLOCK_BYTES = 1 << 28
"""Default size of a block of columns, with what the passes of its layers leave; at least N columns are in one."""

_PASS_BYTES = 1 << 27  # tensors that one pass of the model may make, about: sets the samples of a pass


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnBlock:
    """Some columns of J.

    Attributes
    ----------
    pieces : tuple of (int, int)
        Ranges of J's columns, in the order in which they stand in ``matrix``.
    matrix : torch.Tensor
        (N, b): row j n + i belongs to output j of sample i.
    """

    pieces: tuple[tuple[int, int], ...]
    matrix: torch.Tensor


class JacobianColumns:
    """The Jacobian of a model as blocks of its columns, each parameter's once; iterating makes them.

    Parameters
    ----------
    model, X, block_bytes, dtype, include_frozen, chunk_size
        As in :func:`alignver.jacobians.jacobian_form.streamed_qr`. Parameters and buffers are copied here.

    Attributes
    ----------
    shape : (int, int)
        (n m_y, d).
    n, m_y : int
        Samples and outputs.
    slots : Slots
        What the columns are.
    computed_in, engine : str
        The coarsest dtype of a forward pass; how the blocks made so far were computed.
    samples_run, blocks_made : int
        Samples that went forward through the model, and blocks, so far.

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
            raise InvalidInput("block_bytes", f"block_bytes={block_bytes!r}", "a positive number of bytes, or None")
        with preserve_state(model):
            function, x = bind(model, X, dtype, include_frozen=include_frozen)
            with differentiable(function):
                probed = probe(function, x)
                seen = _seen(function, x[:2], probed.m_y)
                made = _Made()
                with torch.no_grad(), made:
                    function(function.theta, function.batch(x[:1]))
        self._function, self._x = function, x.clone()
        self.n, self.m_y = len(x), probed.m_y
        self.slots: ParameterLayout = function.slots
        self.shape = (self.n * self.m_y, self.slots.d)
        self.computed_in = dtype_name(probed.computed_in)
        self._eps = float(torch.finfo(probed.computed_in).eps)
        self._item = torch.finfo(function.dtype).bits // 8
        self._bytes = max(block_bytes or BLOCK_BYTES, self._item * self.shape[0] ** 2)
        self._chunk = chunk or max(1, min(self.n, _PASS_BYTES // max(made.bytes * 2, 1)))
        self._factored = {
            name: where
            for name, where in layer_gradients.owners(function).items()
            if all(seen.get(owner.module) for owner in where)
        }
        rows = min(2, self.n)
        self._left = {
            module: sum(t.numel() * self._item for use in uses for t in (use.inputs, use.derivatives)) * self.n // rows
            for module, uses in seen.items()
            if uses
        }
        self._by_rows: set[str] = set()
        self._slow, self._largest = "", 0.0
        self.samples_run = self.blocks_made = 0
        # w_ij of the comparison: fixed, without pattern, of size one
        self._weights = torch.cos(torch.arange(1.0, self.shape[0] + 1.0, dtype=torch.float64)).reshape(self.m_y, -1).T
        self._weights = self._weights.to(function.dtype).to(function.device)

    def __iter__(self) -> Iterator[ColumnBlock]:
        """Make the blocks, each in memory of its own."""
        return self._blocks(reuse=False)

    def row_blocks(self) -> Iterator[Array]:
        """Cut the blocks into rows of J^T, at most N at a time: views of one buffer, good until the next is made."""
        total = self.shape[0]
        for block in self._blocks(reuse=True):
            width = block.matrix.shape[1]
            count = -(-width // total)
            for k in range(count):
                rows = block.matrix[:, width * k // count : width * (k + 1) // count].T
                yield rows.numpy() if rows.device.type == "cpu" else rows.to(torch.float64)

    @property
    def engine(self) -> str:
        """How the blocks made so far were computed, in words."""
        count = len([name for name in self._factored if name not in self._by_rows])
        parts = [f"layer factors for {count} of {len(self.slots.names)} slots"] if count else []
        if count < len(self.slots.names):
            parts.append(f"autograd, one output at a time{self._slow}" if self._slow else "per-sample gradients")
        return "streamed: " + ", ".join(parts)

    def _blocks(self, reuse: bool) -> Iterator[ColumnBlock]:
        groups = list(self._groups())
        # What is held and the buffer share the block's memory; one size for all, so that one buffer does.
        held = max((bytes_ for _, bytes_ in groups), default=0)
        most = min(max(1, (self._bytes - held) // (self._item * self.shape[0])), self.shape[1])
        buffer: torch.Tensor | None = None
        for group, kept in groups:
            stored: list[layer_gradients.Captured] | None = None
            for pieces in packed([(k, self.slots.sizes[k], self._inner(k)) for k in group], most):
                with torch.inference_mode(False):
                    width = sum(stop - start for _, start, stop in pieces)
                    if buffer is None or not reuse:
                        entries = self.shape[0] * (most if reuse else width)
                        buffer = torch.empty(entries, dtype=self._function.dtype, device=self._x.device)
                    target = buffer[: self.shape[0] * width].view(self.m_y, self.n, width)
                    stored = self._fill(target, pieces, stored, group if kept else [])
                self.blocks_made += 1
                offsets = self.slots.offsets
                ranges = tuple((offsets[k] + start, offsets[k] + stop) for k, start, stop in pieces)
                yield ColumnBlock(ranges, target.view(self.shape[0], width))

    def _inner(self, k: int) -> int:
        return int(self.slots.parameters[k][0].numel()) if self.slots.parameters[k].ndim else 1

    def _groups(self) -> Iterator[tuple[list[int], int]]:
        """Slots that go together, with the bytes that their passes leave to be kept (0: repeat the passes)."""
        group: list[int] = []
        seen: set[nn.Module] = set()
        held = 0
        for k, name in enumerate(self.slots.names):
            if name not in self._factored or not self.slots.sizes[k]:
                continue
            new = {owner.module for owner in self._factored[name]} - seen
            more = sum(self._left[module] for module in new) + self.slots.sizes[k] * self._item
            if group and held + more > self._bytes // 2:
                yield group, held if held <= self._bytes // 2 else 0
                group, seen, held = [], set(), 0
                new = {owner.module for owner in self._factored[name]}
                more = sum(self._left[module] for module in new) + self.slots.sizes[k] * self._item
            group, seen, held = [*group, k], seen | new, held + more
        if group:
            yield group, held if held <= self._bytes // 2 else 0
        rest = [k for k, name in enumerate(self.slots.names) if name not in self._factored and self.slots.sizes[k]]
        if rest:
            yield rest, 0

    def _fill(
        self, target: torch.Tensor, pieces: list[Piece], stored: list[layer_gradients.Captured] | None, keep: list[int]
    ) -> list[layer_gradients.Captured] | None:
        """Fill a block; return what the passes of the slots in ``keep`` left, for the next one."""
        names = [self.slots.names[k] for k, _, _ in pieces]
        if all(name in self._factored and name not in self._by_rows for name in names):
            if stored is None and keep:
                stored = self._kept([self.slots.names[k] for k in keep])
            if self._from_factors(target, pieces, stored):
                return stored
            self._by_rows.update(names)
        self._from_rows(target, pieces)
        return stored

    def _kept(self, names: list[str]) -> list[layer_gradients.Captured]:
        """What the passes leave, for all samples; the gradients of all of them are with the first."""
        found: list[layer_gradients.Captured] = []
        for captured in self._captured(names):
            if found:
                for name, gradient in captured.gradients.items():
                    found[0].gradients[name].add_(gradient)
                captured = dataclasses.replace(captured, gradients={})
            found.append(captured)
        return found

    def _captured(self, names: list[str]) -> Iterator[layer_gradients.Captured]:
        modules = _modules({name: self._factored[name] for name in names})
        for start in range(0, self.n, self._chunk):
            part = self._x[start : start + self._chunk]
            with preserve_state(self._function.model), differentiable(self._function):
                weights = self._weights[start : start + self._chunk]
                found = layer_gradients.capture(self._function, part, modules, self.m_y, weights, names)
            self.samples_run += len(part)
            yield found

    def _from_factors(
        self, target: torch.Tensor, pieces: list[Piece], stored: list[layer_gradients.Captured] | None
    ) -> bool:
        """Fill a block from the layers' factors; False where a comparison with a backward pass fails."""
        names = [self.slots.names[k] for k, _, _ in pieces]
        wanted = [target.new_zeros(stop - start) for _, start, stop in pieces]
        first = 0
        for captured in stored if stored is not None else self._captured(names):
            last = min(first + self._chunk, self.n)
            at = 0
            for (_, start, stop), name, gradient in zip(pieces, names, wanted):
                part = target[:, first:last, at : at + stop - start]
                if layer_gradients.contract(captured, self._factored[name], start, stop, part) is None:
                    return False
                if captured.gradients:
                    gradient += captured.gradients[name][start:stop]
                at += stop - start
            first = last
        self._require_finite(target, pieces)
        found = self._weights.T.reshape(-1) @ target.view(self.shape[0], -1)
        return self._same(torch.split(found, [len(gradient) for gradient in wanted]), wanted)

    def _same(self, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
        """Whether the weighted sums of a block's rows are the gradients of the weighted outputs, piece by piece.

        Up to sqrt(eps) of the piece, and up to N eps of the largest gradient seen: a derivative that is zero in theory
        (a shift before a softmax) is rounding in both.
        """
        self._largest = max(self._largest, *(float(gradient.norm()) for gradient in wanted))
        floor = self.shape[0] * self._eps * self._largest
        return all(
            float((ours - right).norm()) <= math.sqrt(self._eps) * max(float(ours.norm()), float(right.norm())) + floor
            for ours, right in zip(found, wanted)
        )

    def _from_rows(self, target: torch.Tensor, pieces: list[Piece]) -> None:
        """Fill a block by per-sample gradients of some slots, or parts of them."""
        function = of_pieces(self._function, self.slots, pieces)
        columns = function.slots.d
        step = max(1, min(self._chunk, _PASS_BYTES // (3 * self.m_y * columns * self._item)))
        engine = jacobian.loop if self._slow else jacobian.vectorised
        for start in range(0, self.n, step):
            part = self._x[start : start + step]
            with preserve_state(function.model), differentiable(function):
                block = None
                if engine is jacobian.vectorised:
                    try:
                        block = engine(function, part, self.m_y)
                        if not self._rows_agree(function, part, start, block):
                            raise ArithmeticError("vmap gave other derivatives than a backward pass")
                    except torch.cuda.OutOfMemoryError:
                        raise
                    except Exception as error:  # vmap refuses in many ways
                        engine, self._slow, block = (
                            jacobian.loop,
                            f" (torch.func.vmap: {first_line(error)[:120]})",
                            None,
                        )
                if block is None:
                    block = engine(function, part, self.m_y)
            self.samples_run += len(part)
            at = 0
            for piece in block:
                target[:, start : start + len(part), at : at + piece.shape[2]] = piece.transpose(0, 1)
                at += piece.shape[2]
        self._require_finite(target, pieces)

    def _rows_agree(self, function: Functional, x: torch.Tensor, start: int, block: jacobian.Block) -> bool:
        weights = self._weights[start : start + len(x)]
        wanted = torch.split(pull(function, x, weights), list(function.slots.sizes))
        return self._same([torch.einsum("ij,ijk->k", weights, piece.to(weights.dtype)) for piece in block], wanted)

    def _require_finite(self, target: torch.Tensor, pieces: list[Piece]) -> None:
        names = tuple(self.slots.names[k] for k, _, _ in pieces)
        sizes = tuple(stop - start for _, start, stop in pieces)
        require_finite(ParameterLayout(names, (), sizes, {}, {}), target, 0)


def _seen(function: Functional, x: torch.Tensor, m_y: int) -> Mapping[nn.Module, list[layer_gradients.Use] | None]:
    """Return what the layers see of a few samples; nothing where the model does not run under observation."""
    try:
        return layer_gradients.capture(function, x, _modules(layer_gradients.owners(function)), m_y).uses
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:  # a checkpoint that notices that its layers were watched, say
        return {}


def _modules(where: dict[str, tuple[layer_gradients.Owner, ...]]) -> list[nn.Module]:
    return list(dict.fromkeys(owner.module for owner in itertools.chain.from_iterable(where.values())))


class _Made(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base unannotated
    """Add up the bytes of all tensors that operations return: what a pass keeps for its way back is not more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returned."""
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self.bytes += item.numel() * item.element_size()
        return result
