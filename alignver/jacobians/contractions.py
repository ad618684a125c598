"""Shares of the Gram matrix as sums of products of factors, by the formulas of :mod:`alignver.jacobians.gram_planning`.

:class:`Rows` holds the factors of all rows for some pieces of the parameters, and :func:`add_product` adds the share of
these pieces to the matrix, whose rows are output-major, j n + i. Of a symmetric matrix only the lower triangle is
filled; :func:`mirror` completes it. The matrix is filled panel by panel: a panel and the products added to it stay in
cache while every piece adds its share.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from alignver.features.threads import ordered
from alignver.jacobians.gram_planning import POOL, SUMS, Piece, piece_length, uniform
from alignver.jacobians.jacobian import fill
from alignver.jacobians.layer_io import Lookup, Product
from alignver.jacobians.sample_blocks import Block, Part, by_rows
from alignver.network.functional import Functional

_PANEL = 1 << 18  # approximate number of entries of a panel
_LEAST = 32  # least number of rows of a panel
_ROWS = 128  # rows of a panel of a triangle: larger panels waste work above the diagonal, smaller ones are slower
_HALF = 64  # least number of rows of a panel of a triangle, of which there are two or more
_TILE = 1 << 19  # approximate number of entries of a temporary of contract()
_CACHE = 1 << 22  # least number of bytes of derivatives that are collected
_SQUARE = 768  # rows of a matrix up to which one symmetric product is faster than panels of its triangle
_BLAS = (torch.float32, torch.float64)
_NARROW = 256  # pieces with fewer columns are concatenated: a product of their own would cost more than the copy

Share = Callable[["Panel", torch.Tensor, torch.Tensor], None]
Columns = tuple[torch.Tensor, torch.Tensor]
Factors = tuple[torch.Tensor, torch.Tensor]


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
        rows = min(rows, _ROWS, max(_HALF, m * n // 2))
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


def add_square(target: torch.Tensor, rows: torch.Tensor) -> None:
    """Add the product of per-sample gradients (m, n, columns) on the CPU with themselves to the lower triangle.

    By the symmetric product of NumPy's BLAS, which torch does not have: half of the operations. With more than one
    thread the triangle is cut into two triangles and a square, which takes as long as both.
    """
    A, M = rows.flatten(0, 1).numpy(), target.numpy()
    half = len(A) if torch.get_num_threads() == 1 else -(-len(A) // 2)
    parts = [slice(0, half), slice(half, len(A))] if half < len(A) else [slice(0, half)]

    def add(pairs: Sequence[tuple[slice, slice]]) -> None:
        with np.errstate(all="ignore"):  # overflow is found in the result
            for first, second in pairs:
                M[first, second] += A[first] @ A[second].T

    triangles = [(part, part) for part in parts]
    collections.deque(ordered(add, [(triangles,), ([(parts[-1], parts[0])],)][: len(parts)]), maxlen=0)


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


class Rows:
    """The factors of all rows of one side of the product, for a group of pieces, filled block by block.

    Of pieces whose uses are stored, the blocks stay as they are: derivatives are formed when they are multiplied. Of
    the others only what the planned formulas need is stored.
    """

    def __init__(self, function: Functional, pieces: Sequence[Piece], n: int, m_y: int) -> None:
        self.function, self.pieces, self.n, self.m = function, pieces, n, m_y
        self.blocks: list[Block] = []  # of the pieces whose uses are stored, in the order of the samples
        self.stored: dict[tuple[Piece, str], torch.Tensor] = {}

    def add(self, block: Block, start: int) -> frozenset[str]:
        """Store a block of samples from ``start`` on; return the slots whose positions differ from earlier blocks."""
        block.free_graph()
        if (block.n, block.m) == (self.n, self.m) and all(piece.stores_uses for piece in self.pieces):
            self.blocks = [block]
            return frozenset()
        irregular, others = set(), [piece for piece in self.pieces if not piece.stores_uses]
        for piece in others:
            if piece.engine in SUMS and block.parts[piece.name]:
                A, B = factors(block.parts[piece.name])
                if not self._store((piece, "A"), A, block, start, 0) or not self._store(
                    (piece, "B"), B, block, start, 1
                ):
                    irregular.add(piece.name)
        for piece, columns in formed(self.function, others, block, self.m):
            self._store((piece, "columns"), columns, block, start, 1)
        names = {piece.name for piece in self.pieces if piece.stores_uses}
        if names:
            self.blocks.append(Block(block.x, block.outputs, {name: block.parts[name] for name in names}))
            block.free_patches(block.parts)
        return frozenset(irregular)

    def _store(self, key: tuple[Piece, str], values: torch.Tensor, block: Block, start: int, axis: int) -> bool:
        shape = (*((self.m,) if axis else ()), self.n, *values.shape[axis + 1 :])
        if key not in self.stored:
            self.stored[key] = values.new_full(shape, -1) if not values.is_floating_point() else values.new_zeros(shape)
        target = self.stored[key]
        if target.shape != shape:
            return False
        samples = slice(start, start + block.n)
        place = target[block.outputs.start : block.outputs.stop, samples] if axis else target[samples]
        place.copy_(values)
        return True

    @property
    def whole(self) -> Block | None:
        """The block of all rows, if it is stored with all pieces."""
        complete = bool(self.blocks) and all(piece.stores_uses for piece in self.pieces)
        return self.blocks[0] if complete and self.blocks[0].n == self.n else None

    def uses(self, piece: Piece) -> bool:
        """Whether some output depends on a piece with factors."""
        return bool(self.blocks[0].parts[piece.name]) if piece.stores_uses else (piece, "B") in self.stored

    def factors(self, piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of a piece, as :func:`factors` does."""
        if piece.stores_uses:
            return factors(self.blocks[0].parts[piece.name])
        return self.stored[piece, "A"], self.stored[piece, "B"]

    def columns(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Yield the derivatives by each of ``pieces`` on which an output depends, (m, n, columns)."""
        if self.whole is not None:
            yield from formed(self.function, pieces, self.whole, self.m)
            return
        for piece in pieces:
            if not piece.stores_uses and (piece, "columns") in self.stored:
                yield piece, self.stored[piece, "columns"]
            elif piece.stores_uses and any(block.parts[piece.name] for block in self.blocks):
                yield piece, self._joined(piece)

    def _joined(self, piece: Piece) -> torch.Tensor:
        """Form the derivatives of all blocks by a piece whose uses are stored."""
        shape = self.function.theta[piece.name].shape
        width = (piece.stop - piece.start) * (shape.numel() // piece_length(shape))
        columns = self.function.theta[piece.name].new_zeros((self.m, self.n, width))
        start = 0
        for block in self.blocks:
            if block.parts[piece.name]:
                columns[:, start : start + block.n] = _summed(piece, block, shape)
            if piece.stop == piece_length(shape):  # the last one: patches are formed once for all pieces of a slot
                block.free_patches([piece.name])
            start += block.n
        return columns


def add_product(target: torch.Tensor, first: Rows, second: Rows) -> None:
    """Add the share of a group of pieces to J J^T; of a product of equal sides, only to its lower triangle."""
    symmetric = first is second
    shares: list[Share] = []
    with_weight: set[str] = set()
    sums = [piece for piece in first.pieces if piece.engine in SUMS and first.uses(piece) and second.uses(piece)]
    for piece in sums:
        if piece.engine == "pairs":
            bias = _bias_of_the_same(piece.name, first, second)
            if bias is not None:
                with_weight.add(bias)
            shares += _pairs(first.factors(piece), second.factors(piece), bias is not None)
    dense = [piece for piece in first.pieces if piece.engine not in SUMS and piece.name not in with_weight]
    dense.sort(key=lambda piece: piece.engine == "per sample")  # the order in which a whole block forms them
    # Derivatives are consumed while they are in cache, unless the result is so large that each pass over it costs more.
    room = min(POOL, max(_CACHE, target.numel() * target.element_size()))
    small = symmetric and len(target) <= _SQUARE and target.device.type == "cpu" and target.dtype in _BLAS
    for group in _groups(_matched(first, second, dense), room):
        if small:
            for left, _ in group:
                add_square(target, _joined(left, 2))
            continue
        shares += [add_dense(_joined(left, 2), _joined(right, 2)) for left, right in group]
        _apply(target, shares, first, second, symmetric)
        shares = []
    if shares:
        _apply(target, shares, first, second, symmetric)
    for piece in sums:
        if piece.engine == "contract":
            _contract(target, first.factors(piece), second.factors(piece), symmetric)


def _matched(first: Rows, second: Rows, pieces: Sequence[Piece]) -> Iterator[Columns]:
    """Yield the derivatives by the pieces that both sides use."""
    if first is second:
        yield from ((columns, columns) for _, columns in first.columns(pieces))
        return
    left, right = first.columns(pieces), second.columns(pieces)
    here, there = next(left, None), next(right, None)
    order = {piece: k for k, piece in enumerate(pieces)}
    while here is not None and there is not None:
        if here[0] == there[0]:
            yield here[1], there[1]
            here, there = next(left, None), next(right, None)
        elif order[here[0]] < order[there[0]]:
            here = next(left, None)
        else:
            there = next(right, None)


def _apply(target: torch.Tensor, shares: Sequence[Share], first: Rows, second: Rows, symmetric: bool) -> None:
    if not shares:
        return
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


def _bias_of_the_same(name: str, first: Rows, second: Rows) -> str | None:
    """Return the bias whose share the weight's formula can include: both used once, in one call, at one position."""
    if first.whole is None or second.whole is None:
        return None
    sides = [first.whole.parts, second.whole.parts]
    both = [part for parts in sides for part in parts[name]]
    biases = {part.use.bias for part in both}
    if any(len(parts[name]) != 1 for parts in sides) or len(biases) != 1:
        return None
    (bias,) = biases
    if bias is None or bias == name or bias not in {p.name for p in first.pieces if p.engine == "gradients"}:
        return None
    if not all(isinstance(part.use, Product) and part.inputs.shape[-1] == 1 for part in both):
        return None
    return bias if all(parts[bias] == parts[name] for parts in sides) else None


def _pairs(first: Factors, second: Factors, bias: bool) -> Iterator[Share]:
    sides = [(a.permute(3, 0, 1, 2).contiguous(), b.permute(4, 0, 1, 2, 3).contiguous()) for a, b in (first, second)]
    for g in range(first[0].shape[1]):
        (A, B), (A2, B2) = ((a[:, :, g], b[:, :, :, g]) for a, b in sides)
        yield Hadamard.of(A, B.contiguous(), A2, B2.contiguous(), float(bias)).add


def factors(parts: Sequence[Part]) -> Factors:
    """Return A and B of :func:`joined_factors`; in place of A, the rows of a table, (n, T)."""
    if isinstance(parts[0].use, Lookup):
        return torch.cat([part.index for part in parts], 1), _positions([part.gradients for part in parts])
    return joined_factors(parts)


def joined_factors(parts: Sequence[Part]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenate the positions of all uses: A (n, g, a, T) and B (m, n, g, b, T)."""
    return _positions([part.inputs for part in parts]), _positions([part.gradients for part in parts])


def _positions(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate on the last axis; the result is stored with the last two axes swapped, a copy of whole vectors."""
    return _joined([piece.transpose(-1, -2) for piece in pieces], -2).transpose(-1, -2)


def _joined(pieces: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Concatenate; a single piece is returned without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def _contract(target: torch.Tensor, first: Factors, second: Factors, symmetric: bool) -> None:
    if first[0].ndim == 2:
        index, index2 = first[0], second[0]

        def equal(rows: slice, columns: slice) -> torch.Tensor:
            here, there = index[rows, :, None], index2[columns, None, None, :]
            return ((here == there) & (here >= 0)).to(target.dtype)

        B, B2 = (b.squeeze(2).transpose(2, 3).contiguous() for _, b in (first, second))
        contract(target, equal, B, B2, symmetric)
        return
    for g in range(first[0].shape[1]):
        sides = [
            (a[:, g].transpose(1, 2).contiguous(), b[:, :, g].transpose(2, 3).contiguous())
            for a, b in ([first] if symmetric else [first, second])
        ]
        (A, B), (A2, B2) = sides[0], sides[-1]

        def product(rows: slice, columns: slice, A: torch.Tensor = A, A2: torch.Tensor = A2) -> torch.Tensor:
            X, Y = A[rows], A2[columns]
            K = X.flatten(0, 1) @ Y.flatten(0, 1).T
            return K.view(*X.shape[:2], *Y.shape[:2]).permute(2, 0, 1, 3)

        contract(target, product, B, B2, symmetric)


def formed(
    function: Functional, pieces: Sequence[Piece], block: Block, m_y: int
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Yield the derivatives of a block's rows by each piece with columns, (m, n, columns)."""
    for piece in pieces:
        if piece.engine == "gradients" and block.parts[piece.name]:
            yield piece, _summed(piece, block, function.theta[piece.name].shape)
    loose = [piece for piece in pieces if piece.engine == "per sample"]
    names = list(dict.fromkeys(piece.name for piece in loose))
    item = torch.finfo(function.dtype).bits // 8
    together = sum(function.theta[name].numel() for name in names) * block.n * m_y * item <= POOL
    for group in [names] if together and names else [[name] for name in names]:
        J = _rows(restricted(function, group), block, m_y)
        offset = 0
        for name in group:
            size = function.theta[name].numel()
            width = size // piece_length(function.theta[name].shape)
            for piece in loose:
                if piece.name == name:
                    yield piece, J[:, :, offset + piece.start * width : offset + piece.stop * width]
            offset += size


def _summed(piece: Piece, block: Block, shape: torch.Size) -> torch.Tensor:
    """Sum the derivatives by rows of a slot over its uses."""
    name, parts = piece.name, block.parts[piece.name]
    length = piece_length(shape)
    whole = piece.stop - piece.start == length
    width = shape.numel() // length
    columns = slice(piece.start * width, piece.stop * width)
    if len(parts) > 1 and all(isinstance(part.use, Product) for part in parts):
        uses = [part.use for part in parts]
        if uniform(name, uses):  # positions of one sum: one product in place of one for each use
            A, B = joined_factors(parts)
            return by_rows(A, B, getattr(uses[0], "transposed", False), piece.start, piece.stop).flatten(2)

    def terms() -> Iterator[torch.Tensor]:
        for part in parts:
            if part.use.weight == name:
                if part.divisible:
                    yield part.by_weight(piece.start, piece.stop)
                else:
                    share = part.by_weight(0, length)
                    yield share if whole else share[:, :, columns]
            if part.use.bias == name:
                share = part.by_bias()
                yield share if whole else share[:, :, columns]

    return functools.reduce(lambda total, term: total.add_(term), terms())


def _rows(function: Functional, block: Block, m_y: int) -> torch.Tensor:
    J = torch.empty((m_y, block.n, function.layout.d), dtype=function.dtype, device=function.device)
    fill(function, block.x, m_y, J, None)
    return J[block.outputs.start : block.outputs.stop]


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
