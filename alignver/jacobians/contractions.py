"""Blocks of the Gram matrix as sums of products of factors, by the formulas of :mod:`alignver.jacobians.gram_planning`.

:func:`add_pair` fills the block of a pair: every slot adds its share by the planned formula. A block is a matrix with
output-major rows, j n + i. In a symmetric block only the lower triangle is filled (other entries are undefined);
:func:`mirror` completes it. The block is filled panel by panel: a panel and the products added to it stay in cache
while every slot adds its share.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from alignver.jacobians.gram_planning import POOL, SlotPlan
from alignver.jacobians.jacobian import fill
from alignver.jacobians.layer_io import Lookup, Product
from alignver.jacobians.sample_blocks import Block, Part
from alignver.network.functional import Functional

__all__ = ["add_pair", "joined_factors", "restricted"]
_PANEL = 1 << 18  # approximate number of entries of a panel
_LEAST = 32  # least number of rows of a panel
_ROWS = 128  # rows of a panel of a triangle: larger panels waste work above the diagonal, smaller ones are slower
_TILE = 1 << 19  # approximate number of entries of a temporary of contract()
_CACHE = 1 << 22  # least number of bytes of derivatives that are collected
_NARROW = 256  # pieces with fewer columns are concatenated: a product of their own would cost more than the copy

Share = Callable[["Panel", torch.Tensor, torch.Tensor], None]
Columns = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Rows: outputs j0..j1, samples i0..i1 each. Columns: the first ``full`` outputs, ``part`` samples of the next."""

    j0: int
    j1: int
    i0: int
    i1: int
    full: int
    part: int


def panels(m: int, n: int, m2: int, n2: int, symmetric: bool) -> Iterator[Panel]:
    """Cut a block into panels that cover it, or its lower triangle."""
    rows = min(256, max(_LEAST, _PANEL // max(1, m2 * n2)))
    if symmetric:
        rows = min(rows, _ROWS)
    several = max(1, rows // n)
    step = -(-n // max(1, round(n / rows)))
    for j0 in range(0, m, several):
        j1 = min(m, j0 + several)
        for i0 in range(0, n, step):
            i1 = min(n, i0 + step)
            if not symmetric:
                yield Panel(j0, j1, i0, i1, m2, 0)
            elif i1 == n:
                yield Panel(j0, j1, i0, i1, j1, 0)
            else:
                yield Panel(j0, j1, i0, i1, j0, i1)


@dataclasses.dataclass(frozen=True, eq=False)
class Hadamard:
    """The share sum_ts (A_t A_s'^T) o (B_t B_s'^T), added panel by panel.

    A: (T, n, a), B: (T, m, n, b), contiguous; ``plus`` is added to A_t A_s'^T (1 adds the bias of the same layer).
    """

    K: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, A: torch.Tensor, B: torch.Tensor, A2: torch.Tensor, B2: torch.Tensor, plus: float) -> Hadamard:
        """Multiply the inputs: K[t, s] is (n, n2)."""
        K = torch.matmul(A.unsqueeze(1), A2.transpose(1, 2).unsqueeze(0))
        if plus:
            K += plus
        return cls(K, B, B2)

    def add(self, panel: Panel, target: torch.Tensor, scratch: torch.Tensor) -> None:
        """Add this slot's share to a panel (rows x columns of the block), with ``scratch`` for its products."""
        n2, rows = self.right.shape[2], target.shape[0]
        columns = panel.full * n2 + panel.part
        buffer = scratch[: rows * columns].view(rows, columns)
        split = (panel.j1 - panel.j0, panel.i1 - panel.i0)
        for t in range(len(self.left)):
            X = self.left[t, panel.j0 : panel.j1, panel.i0 : panel.i1].flatten(0, 1)
            for s in range(len(self.right)):
                torch.mm(X, self.right[s].flatten(0, 1)[:columns].T, out=buffer)
                K = self.K[t, s, panel.i0 : panel.i1]
                width = panel.full * n2
                if width:
                    blocks = (*split, panel.full, n2)
                    target[:, :width].view(blocks).addcmul_(buffer[:, :width].view(blocks), K[None, :, None])
                if panel.part:
                    rest = (*split, panel.part)
                    target[:, width:].view(rest).addcmul_(buffer[:, width:].view(rest), K[None, :, : panel.part])


def add_dense(left: torch.Tensor, right: torch.Tensor) -> Share:
    """Return the share of per-sample gradients, (m, n, columns) on either side: their product."""
    first, second = left.flatten(0, 1), right.flatten(0, 1)
    n, n2 = left.shape[1], right.shape[1]

    def add(panel: Panel, target: torch.Tensor, scratch: torch.Tensor) -> None:
        start = panel.j0 * n + panel.i0
        target.addmm_(first[start : start + len(target)], second[: panel.full * n2 + panel.part].T)

    return add


def contract(
    target: torch.Tensor,
    inputs: Callable[[slice, slice], torch.Tensor],
    B: torch.Tensor,
    B2: torch.Tensor,
    symmetric: bool,
) -> None:
    """Add sum_ts K_ts b_t^T b_s' to a block, one pair of samples after another: first K B', then its products with B.

    Parameters
    ----------
    target : torch.Tensor
        (m n, m2 n2).
    inputs : callable
        K for slices of samples on either side: (samples2, samples, T, T2).
    B, B2 : torch.Tensor
        (m, n, T, b) and (m2, n2, T2, b).
    symmetric : bool
        Both sides are equal: fill the lower triangle only.
    """
    (m, n, T, b), (m2, n2, T2, _) = B.shape, B2.shape
    M = target.view(m, n, m2, n2)
    side = max(1, int((_TILE / (T * max(T2, b))) ** 0.5))
    for i0 in range(0, n, side):
        I = slice(i0, min(i0 + side, n))  # noqa: E741 - a block of rows
        left = B[:, I].transpose(0, 1).flatten(2)  # (i, j, T b)
        for k0 in range(0, i0 + 1 if symmetric else n2, side):
            C = slice(k0, min(k0 + side, n2))
            K = inputs(I, C).flatten(1, 2)  # (k, i T, T2)
            for l in range(m2):  # noqa: E741 - the second output
                half = torch.bmm(K, B2[l, C]).view(K.shape[0], -1, T * b)  # (k, i, T b)
                first = l if symmetric and i0 == k0 else 0
                products = torch.bmm(left[:, first:], half.permute(1, 2, 0))  # (i, j, k)
                if not symmetric:
                    M[:, I, l, C] += products.transpose(0, 1)
                    continue
                M[l:, I, l, C] += products[:, l - first :].transpose(0, 1)
                if i0 != k0 and l:
                    M[l, C, :l, I] += products[:, :l].permute(2, 1, 0)


def mirror(M: torch.Tensor) -> None:
    """Copy the lower triangle onto the upper one, which makes the matrix exactly symmetric."""
    step = 256
    below = torch.ones((step, step), dtype=torch.bool, device=M.device).tril()
    for start in range(0, len(M), step):
        stop = min(start + step, len(M))
        M[:start, start:stop] = M[start:stop, :start].T
        corner = M[start:stop, start:stop]
        corner.copy_(torch.where(below[: len(corner), : len(corner)], corner, corner.T))


def add_pair(
    target: torch.Tensor, function: Functional, slots: Sequence[SlotPlan], first: Block, second: Block, m_y: int
) -> None:
    """Add the block of J J^T of two blocks to ``target``, a zero matrix (rows of first x rows of second).

    The block of a pair of equal blocks is exactly symmetric.
    """
    symmetric = first is second
    engines = {slot.name: slot.engine for slot in slots}
    shares: list[Share] = []
    with_weight: set[str] = set()
    for name in _used("pairs", engines, first, second):
        bias = _bias_of_the_same(name, first, second, engines)
        if bias is not None:
            with_weight.add(bias)
        shares += _pairs(first.parts[name], second.parts[name], bias is not None)
    loose = [name for name, engine in engines.items() if engine == "per sample"]
    dense = [name for name in _used("gradients", engines, first, second) if name not in with_weight]
    columns = itertools.chain(
        _structured(function, dense, first, second), _per_sample(function, loose, first, second, m_y)
    )
    # Derivatives are consumed while they are in cache, unless the result is so large that each pass over it costs more.
    for group in _groups(columns, min(POOL, max(_CACHE, target.numel() * target.element_size()))):
        shares += [add_dense(_joined(left, 2), _joined(right, 2)) for left, right in group]
        _apply(target, shares, first, second, symmetric)
        shares = []
    if shares:
        _apply(target, shares, first, second, symmetric)
    for name in _used("contract", engines, first, second):
        _contract(target, first.parts[name], second.parts[name], symmetric)
    if symmetric:
        mirror(target)


def _used(engine: str, engines: Mapping[str, str], first: Block, second: Block) -> list[str]:
    """Return the slots of a formula that both blocks use."""
    return [name for name, kind in engines.items() if kind == engine and first.parts[name] and second.parts[name]]


def _apply(target: torch.Tensor, shares: Iterable[Share], first: Block, second: Block, symmetric: bool) -> None:
    views = []
    for panel in panels(first.m, first.n, second.m, second.n, symmetric):
        start = panel.j0 * first.n + panel.i0
        stop = (panel.j1 - 1) * first.n + panel.i1
        views.append((panel, target[start:stop, : panel.full * second.n + panel.part]))
    # One buffer for all shares: memory in recent use is mapped and in cache.
    scratch = target.new_empty(max(view.numel() for _, view in views))
    for panel, view in views:
        for share in shares:
            share(panel, view, scratch)


def _bias_of_the_same(name: str, first: Block, second: Block, engines: dict[str, str]) -> str | None:
    """Return the bias whose share the weight's formula can include: both used once, in one call, at one position."""
    both = first.parts[name] + second.parts[name]
    biases = {part.use.bias for part in both}
    if len(first.parts[name]) != 1 or len(second.parts[name]) != 1 or len(biases) != 1:
        return None
    (bias,) = biases
    if bias is None or engines.get(bias) != "gradients" or bias == name:
        return None
    if not all(isinstance(part.use, Product) and part.inputs.shape[-1] == 1 for part in both):
        return None
    if first.parts[bias] != first.parts[name] or second.parts[bias] != second.parts[name]:
        return None
    return bias


def _pairs(first: Sequence[Part], second: Sequence[Part], bias: bool) -> Iterator[Share]:
    groups = first[0].inputs.shape[1]
    sides = [joined_factors(parts) for parts in ([first] if first is second else [first, second])]
    sides = [(a.permute(3, 0, 1, 2).contiguous(), b.permute(4, 0, 1, 2, 3).contiguous()) for a, b in sides]
    for g in range(groups):
        (A, B), (A2, B2) = ((a[:, :, g], b[:, :, :, g]) for a, b in (sides[0], sides[-1]))
        yield Hadamard.of(A, B.contiguous(), A2, B2.contiguous(), float(bias)).add


def joined_factors(parts: Sequence[Part]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenate the positions of all uses: A (n, g, a, T) and B (m, n, g, b, T)."""
    return _joined([part.inputs for part in parts], 3), _joined([part.gradients for part in parts], 4)


def _joined(pieces: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Concatenate; a single piece is returned without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def _contract(target: torch.Tensor, first: Sequence[Part], second: Sequence[Part], symmetric: bool) -> None:
    if isinstance(first[0].use, Lookup):
        index, index2 = (torch.cat([part.index for part in parts], 1) for parts in (first, second))

        def equal(rows: slice, columns: slice) -> torch.Tensor:
            here, there = index[rows, :, None], index2[columns, None, None, :]
            return ((here == there) & (here >= 0)).to(target.dtype)

        B, B2 = (torch.cat([part.gradients.squeeze(2) for part in parts], 3) for parts in (first, second))
        contract(target, equal, B.transpose(2, 3).contiguous(), B2.transpose(2, 3).contiguous(), symmetric)
        return
    sides = [joined_factors(parts) for parts in ([first] if symmetric else [first, second])]
    sides = [(a.transpose(2, 3).contiguous(), b.transpose(3, 4).contiguous()) for a, b in sides]
    for g in range(first[0].inputs.shape[1]):
        (A, B), (A2, B2) = ((a[:, g], b[:, :, g]) for a, b in (sides[0], sides[-1]))

        def product(rows: slice, columns: slice, A: torch.Tensor = A, A2: torch.Tensor = A2) -> torch.Tensor:
            X, Y = A[rows], A2[columns]
            K = X.flatten(0, 1) @ Y.flatten(0, 1).T
            return K.view(*X.shape[:2], *Y.shape[:2]).permute(2, 0, 1, 3)

        contract(target, product, B.contiguous(), B2.contiguous(), symmetric)


def _structured(function: Functional, names: Sequence[str], first: Block, second: Block) -> Iterator[Columns]:
    """Yield per-sample gradients by slots with a formula, a few columns at a time."""
    for name in names:
        shape = function.theta[name].shape
        length = shape[0] if shape else 1
        width = function.theta[name].numel() // length
        step = length
        if all(isinstance(p.use, Product | Lookup) for p in (*first.parts[name], *second.parts[name])):
            step = max(1, min(length, _room(function, first, second) // width))
        for start in range(0, length, step):
            stop = min(start + step, length)
            left = _summed(name, first, start, stop, length)
            yield left, left if first is second else _summed(name, second, start, stop, length)


def _summed(name: str, block: Block, start: int, stop: int, length: int) -> torch.Tensor:
    """Sum the derivatives by a slot over its uses."""

    def terms() -> Iterator[torch.Tensor]:
        for part in block.parts[name]:
            if part.use.weight == name:
                yield part.by_weight(start, stop)
            if part.use.bias == name:
                share = part.by_bias()
                yield share[:, :, start:stop] if stop - start < length else share

    return functools.reduce(lambda total, term: total.add_(term), terms())


def _per_sample(function: Functional, names: Sequence[str], first: Block, second: Block, m_y: int) -> Iterator[Columns]:
    """Yield per-sample gradients by slots without a formula: all together if that fits, else one slot at a time."""
    if not names:
        return
    d = sum(function.theta[name].numel() for name in names)
    room = _room(function, first, second)
    for group in [names] if d <= room else [[name] for name in names]:
        some = restricted(function, group)
        left = _rows(some, first, m_y)
        yield left, left if first is second else _rows(some, second, m_y)


def _rows(function: Functional, block: Block, m_y: int) -> torch.Tensor:
    J = torch.empty((m_y, block.n, function.layout.d), dtype=function.dtype, device=function.device)
    fill(function, block.x, m_y, J, None)
    return J[block.outputs.start : block.outputs.stop]


def _room(function: Functional, first: Block, second: Block) -> int:
    """Return the number of columns of per-sample gradients that are held at once."""
    item = torch.finfo(function.dtype).bits // 8
    return max(1, POOL // (max(first.rows, second.rows) * item))


def _groups(columns: Iterable[Columns], room: int) -> Iterator[list[tuple[list[torch.Tensor], list[torch.Tensor]]]]:
    """Group pieces of at most ``room`` bytes: narrow ones into one product, each wide one into a product of its own."""
    narrow: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    wide: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    held = 0
    for left, right in columns:
        held += left.numel() * left.element_size()
        if left.shape[2] < _NARROW:
            narrow[0].append(left)
            narrow[1].append(right)
        else:
            wide.append(([left], [right]))
        if held >= room:
            yield wide + ([narrow] if narrow[0] else [])
            narrow, wide, held = ([], []), [], 0
    if held:
        yield wide + ([narrow] if narrow[0] else [])


def restricted(function: Functional, names: Sequence[str]) -> Functional:
    """Return the same function of some of its slots, the others held at their values."""
    layout = function.layout
    slots = [slot for slot in zip(layout.names, layout.parameters, layout.sizes) if slot[0] in names]
    names, parameters, sizes = zip(*slots)
    theta = {name: function.theta[name] for name in names}
    held = {**function.held, **{name: value for name, value in function.theta.items() if name not in theta}}
    layout = dataclasses.replace(layout, names=names, parameters=parameters, sizes=sizes)
    return dataclasses.replace(function, layout=layout, theta=theta, held=held)
