"""Products of factors, added into a block of the Gram matrix: the formulas of :mod:`alignver.jacobians.gram_planning`.

A block is a matrix with output-major rows, j n + i. Of a symmetric one only the lower triangle is filled (other
entries may hold anything); :func:`mirror` completes it. The block is filled panel by panel: a panel and the products
added to it stay in cache while every slot adds its share.

The Gram matrix of a pair of blocks: every slot's share by the formula that the plan gave it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from alignver.jacobians.gram_planning import POOL, SlotPlan
from alignver.jacobians.jacobian import fill
from alignver.jacobians.layer_io import Lookup, Product
from alignver.jacobians.sample_blocks import Block, Part
from alignver.network.functional import Functional

__all__ = ["Hadamard", "Panel", "add_dense", "add_pair", "contract", "mirror", "panels", "restricted"]
_PANEL = 1 << 18  # entries of a panel, about
_LEAST = 32  # rows of a panel, at least
_ROWS = 128  # rows of a panel of a triangle: more leave less of the triangle out, fewer make slower products
_TILE = 1 << 19  # entries of a temporary of contract(), about


@dataclasses.dataclass(frozen=True)
class Panel:
    """Rows of outputs j0..j1 (samples i0..i1 each), columns of the first ``full`` outputs and ``part`` samples more."""

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
    """sum_ts (A_t A_s'^T) o (B_t B_s'^T), ready to be added panel by panel.

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
        """Add this slot's share to a panel (rows x columns of the block), its products made in ``scratch``."""
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


def add_dense(left: torch.Tensor, right: torch.Tensor) -> Callable[[Panel, torch.Tensor, torch.Tensor], None]:
    """Make the share of per-sample gradients, (m, n, columns) on either side: their product."""
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
    """Add sum_ts K_ts b_t^T b_s' to a block, pair of samples by pair: first K B', then its products with B.

    Parameters
    ----------
    target : torch.Tensor
        (m n, m2 n2).
    inputs : callable
        K for slices of samples on either side: (samples2, samples, T, T2).
    B, B2 : torch.Tensor
        (m, n, T, b) and (m2, n2, T2, b).
    symmetric : bool
        Both sides are one: fill the lower triangle.
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
                found = torch.bmm(left[:, first:], half.permute(1, 2, 0))  # (i, j, k)
                if not symmetric:
                    M[:, I, l, C] += found.transpose(0, 1)
                    continue
                M[l:, I, l, C] += found[:, l - first :].transpose(0, 1)
                if i0 != k0 and l:
                    M[l, C, :l, I] += found[:, :l].permute(2, 1, 0)


def mirror(M: torch.Tensor) -> None:
    """Copy the lower triangle onto the upper one: exactly symmetric."""
    step = 256
    below = torch.ones((step, step), dtype=torch.bool, device=M.device).tril()
    for start in range(0, len(M), step):
        stop = min(start + step, len(M))
        M[:start, start:stop] = M[start:stop, :start].T
        corner = M[start:stop, start:stop]
        corner.copy_(torch.where(below[: len(corner), : len(corner)], corner, corner.T))


Share = Callable[[Panel, torch.Tensor, torch.Tensor], None]
Columns = tuple[torch.Tensor, torch.Tensor]


def add_pair(
    target: torch.Tensor, function: Functional, slots: Sequence[SlotPlan], first: Block, second: Block, m_y: int
) -> None:
    """Fill ``target`` (rows of first x rows of second, zeros before) with their block of J J^T.

    The block of a pair of equal blocks is exactly symmetric.
    """
    symmetric = first is second
    engines = {slot.name: slot.engine for slot in slots}
    shares: list[Share] = []
    done: set[str] = set()
    for name, engine in engines.items():
        if engine == "pairs" and first.parts[name] and second.parts[name]:
            bias = _bias_of_the_same(name, first, second, engines)
            if bias is not None:
                done.add(bias)
            shares += _pairs(first.parts[name], second.parts[name], bias is not None)
    loose = [name for name, engine in engines.items() if engine == "per sample"]
    dense = [name for name, engine in engines.items() if engine == "gradients" and name not in done]
    columns = itertools.chain(
        _structured(function, dense, first, second), _per_sample(function, loose, first, second, m_y)
    )
    # Derivatives are used up while they are in cache, but for a result so large that each pass over it costs more.
    for group in _groups(columns, min(POOL, max(_CACHE, target.numel() * target.element_size()))):
        shares += [add_dense(_joined(left, 2), _joined(right, 2)) for left, right in group]
        _apply(target, shares, first, second, symmetric)
        shares = []
    if shares:
        _apply(target, shares, first, second, symmetric)
    for name, engine in engines.items():
        if engine == "contract" and first.parts[name] and second.parts[name]:
            _contract(target, first.parts[name], second.parts[name], symmetric)
    if symmetric:
        mirror(target)


def _apply(target: torch.Tensor, shares: Iterable[Share], first: Block, second: Block, symmetric: bool) -> None:
    views = []
    for panel in panels(first.m, first.n, second.m, second.n, symmetric):
        start = panel.j0 * first.n + panel.i0
        stop = (panel.j1 - 1) * first.n + panel.i1
        views.append((panel, target[start:stop, : panel.full * second.n + panel.part]))
    # One for all shares: memory that was just used is mapped, and in the cache.
    scratch = target.new_empty(max(view.numel() for _, view in views))
    for panel, view in views:
        for share in shares:
            share(panel, view, scratch)


def _bias_of_the_same(name: str, first: Block, second: Block, engines: dict[str, str]) -> str | None:
    """Return the bias that can ride on a weight: both used once, in one call, at one position."""
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
    sides = [_positions_first(parts) for parts in ([first] if first is second else [first, second])]
    for g in range(groups):
        (A, B), (A2, B2) = ((a[:, :, g], b[:, :, :, g]) for a, b in (sides[0], sides[-1]))
        yield Hadamard.of(A, B.contiguous(), A2, B2.contiguous(), float(bias)).add


def _positions_first(parts: Sequence[Part]) -> tuple[torch.Tensor, torch.Tensor]:
    """All uses' positions together: (T, n, g, a) and (T, m, n, g, b)."""
    A = _joined([part.inputs.permute(3, 0, 1, 2) for part in parts], 0)
    B = _joined([part.gradients.permute(4, 0, 1, 2, 3) for part in parts], 0)
    return A.contiguous(), B.contiguous()


def _joined(pieces: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Concatenate; a single piece is taken as it is."""
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
    sides = [_samples_first(parts) for parts in ([first] if symmetric else [first, second])]
    for g in range(first[0].inputs.shape[1]):
        (A, B), (A2, B2) = ((a[:, g], b[:, :, g]) for a, b in (sides[0], sides[-1]))

        def product(rows: slice, columns: slice, A: torch.Tensor = A, A2: torch.Tensor = A2) -> torch.Tensor:
            X, Y = A[rows], A2[columns]
            K = X.flatten(0, 1) @ Y.flatten(0, 1).T
            return K.view(*X.shape[:2], *Y.shape[:2]).permute(2, 0, 1, 3)

        contract(target, product, B.contiguous(), B2.contiguous(), symmetric)


def _samples_first(parts: Sequence[Part]) -> tuple[torch.Tensor, torch.Tensor]:
    """All uses' positions together: (n, g, T, a) and (m, n, g, T, b)."""
    A = torch.cat([part.inputs for part in parts], 3).transpose(2, 3)
    B = torch.cat([part.gradients for part in parts], 4).transpose(3, 4)
    return A.contiguous(), B.contiguous()


def _structured(function: Functional, names: Sequence[str], first: Block, second: Block) -> Iterator[Columns]:
    """Yield per-sample gradients by slots with a formula, a few columns at a time."""
    for name in names:
        shape = function.theta[name].shape
        if not first.parts[name] or not second.parts[name]:
            continue
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
    total: torch.Tensor | None = None
    for part in block.parts[name]:
        if part.use.weight == name:
            share = part.by_weight(start, stop)
            total = share if total is None else total.add_(share)
        if part.use.bias == name:
            share = part.by_bias()
            share = share[:, :, start:stop] if stop - start < length else share
            total = share if total is None else total.add_(share)
    assert total is not None
    return total


def _per_sample(function: Functional, names: Sequence[str], first: Block, second: Block, m_y: int) -> Iterator[Columns]:
    """Yield per-sample gradients by slots without a formula: all together where that fits, else one by one."""
    if not names:
        return
    d = sum(function.theta[name].numel() for name in names)
    room = _room(function, first, second)
    for group in [names] if d <= room else [[name] for name in names]:
        some = restricted(function, group)
        left = _rows(some, first, m_y)
        yield left, left if first is second else _rows(some, second, m_y)


def _rows(function: Functional, block: Block, m_y: int) -> torch.Tensor:
    J = torch.empty((m_y, block.n, function.slots.d), dtype=function.dtype, device=function.device)
    fill(function, block.x, m_y, J, None)
    return J[block.outputs.start : block.outputs.stop]


def _room(function: Functional, first: Block, second: Block) -> int:
    """Return how many columns of per-sample gradients are held at once."""
    item = torch.finfo(function.dtype).bits // 8
    return max(1, POOL // (max(first.rows, second.rows) * item))


def _groups(columns: Iterable[Columns], room: int) -> Iterator[list[tuple[list[torch.Tensor], list[torch.Tensor]]]]:
    """Collect narrow pieces into one product, wide ones each into their own, until they fill the room there is."""
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


_CACHE = 1 << 22  # bytes of derivatives that are collected at least
_NARROW = 256  # columns below which a product of its own costs more than copying them together


def restricted(function: Functional, names: Sequence[str]) -> Functional:
    """Return the same function of fewer slots, the others held at their values."""
    kept = set(names)
    slots = function.slots
    pairs = [(n, p, s) for n, p, s in zip(slots.names, slots.parameters, slots.sizes) if n in kept]
    theta = {name: value for name, value in function.theta.items() if name in kept}
    held = {**function.held, **{name: value for name, value in function.theta.items() if name not in kept}}
    fewer = dataclasses.replace(
        slots,
        names=tuple(name for name, _, _ in pairs),
        parameters=tuple(parameter for _, parameter, _ in pairs),
        sizes=tuple(size for _, _, size in pairs),
    )
    return dataclasses.replace(function, slots=fewer, theta=theta, held=held)
