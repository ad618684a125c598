"""The plan of a Gram matrix: a formula for each slot, and blocks, chosen from operation counts before the work starts.

With n samples, m outputs (N = nm rows), T positions per sample, inputs of size a, gradients of size b, and the same
with a prime for the other side of the product, the share of a b x a slot has three formulas:

- pairs: sum_ts (A_t A_s'^T) o (B_t B_s'^T) (Hadamard): T T' (2 a n n' + (2 b + c) N N') operations. With T = 1, the
  formula of a layer on vectors.
- contract: for each pair of samples K = A A'^T (T x T'), then B (K B'): n n' T (2 a T' + 2 b T' m' + 2 b m m').
- gradients: the derivatives of every sample and output, then their product: 2 a b (N T + N' T') + 2 a b N N'.

Products of small matrices and passes over memory cost more than their operations: the factors below are measured on
CPUs, and only select between formulas that give the same matrix. A symmetric result needs half of each product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from alignver.errors import InvalidInput, printable
from alignver.jacobians.layer_io import Conv, Convolution, ConvTranspose, Lookup, Product, Scale, Use
from alignver.jacobians.sample_blocks import OutputScan
from alignver.network.functional import Functional
from alignver.network.inputs import dtype_name

SUMS = ("pairs", "contract")  # formulas with factors in place of columns
POOL = 1 << 28  # bytes of per-sample gradients that are formed at once by automatic differentiation
_SLAB = 1 << 24  # bytes of derivatives that are formed at once from factors: malloc reuses blocks up to 2^25 bytes
_SLAB_ROWS = 32  # least number of rows of a weight in a slab: products with fewer are slow
_PASS = 24  # approximate cost, in operations, of one elementwise pass over an entry of the result
_SMALL = 3  # slowdown of batched products of small matrices
_SINGLE = 4  # slowdown of per-sample gradients
_GRAPH = 3  # bytes that autograd keeps for a pass, over those of the results of all uses


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """How one slot's share of the Gram matrix is computed.

    Attributes
    ----------
    name : str
        The slot.
    engine : str
        ``"pairs"``, ``"contract"``, ``"gradients"`` (formulas of structured uses), ``"per sample"`` (automatic
        differentiation of each sample) or ``"unused"``.
    why : str
        The kinds of uses, or why there is no formula.
    positions : int
        T, over all uses.
    flops : float
        Floating-point operations; products and passes have the weights of the module's notes.
    floor : float
        Operations of the passes through the slot and of its cheapest exact formula, without such weights.
    """

    name: str
    engine: str
    why: str
    positions: int
    flops: float
    floor: float = 0.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows start..stop of a slot and its formula; whether the uses of the slot are stored, in place of the rows."""

    name: str
    engine: str
    start: int
    stop: int
    stores_uses: bool


@dataclasses.dataclass(frozen=True)
class GramPlan:
    """How :func:`gram` computes a matrix.

    Attributes
    ----------
    n, n2, m_y : int
        Samples on either side, outputs.
    symmetric : bool
        Both sides are equal: one triangle is computed.
    dtype : str
        The dtype of computation.
    slots : tuple of SlotPlan
        One for each slot.
    samples, outputs : int
        Size of a block.
    groups : tuple of tuples of Piece
        The pieces of the parameters whose factors are in memory at a time, for all samples.
    passes : int
        Total number of differentiated blocks: every block once for each group.
    flops : float
        Operations of the products, without the passes through the model.
    floor : float
        Operations that are necessary with these formulas: of the passes through layers with weights, and of the
        cheapest formula for each slot. Divided by the rate of the processor, it is a lower bound of the time.
    peak_bytes : int
        Approximate memory of the result and the temporaries, without the model and its data.
    """

    n: int
    n2: int
    m_y: int
    symmetric: bool
    dtype: str
    slots: tuple[SlotPlan, ...]
    samples: int
    outputs: int
    groups: tuple[tuple[Piece, ...], ...]
    passes: int
    flops: float
    floor: float
    peak_bytes: int

    def describe(self) -> str:
        """Return the plan as a few lines of text."""
        shape = f"{self.n * self.m_y} x {self.n2 * self.m_y}"
        lines = [
            f"Gram matrix {shape}, {self.dtype}{', one triangle' if self.symmetric else ''}",
            f"  blocks of {self.samples} samples and {self.outputs} outputs, {self.passes} differentiated, "
            f"in {len(self.groups)} group{'s' * (len(self.groups) != 1)} of parameters",
            f"  about {self.flops:.1e} operations in products, about {self.peak_bytes / 1e6:.0f} MB at the peak, "
            f"at least {self.floor:.1e} operations in all",
        ]
        width = max(len(slot.name) for slot in self.slots)
        lines += [f"  {slot.name:<{width}}  {slot.engine:<10}  {slot.flops:8.1e}  {slot.why}" for slot in self.slots]
        return "\n".join(map(printable, lines))


@dataclasses.dataclass(frozen=True)
class _Sizes:
    n: int
    n2: int
    m: int
    symmetric: bool

    @property
    def entries(self) -> float:
        """Entries of the result that are computed."""
        return self.n * self.n2 * self.m**2 * (0.5 if self.symmetric else 1.0)

    @property
    def samples(self) -> float:
        """Pairs of samples."""
        return self.n * self.n2 * (0.5 if self.symmetric else 1.0)

    @property
    def rows(self) -> float:
        """Rows of J that are needed."""
        return self.m * (self.n if self.symmetric else self.n + self.n2)


def plan_slots(
    function: Functional,
    scan: OutputScan,
    n: int,
    n2: int | None,
    m_y: int,
    refused: dict[str, str],
    room: float = math.inf,
) -> tuple[SlotPlan, ...]:
    """Choose a formula for each slot; ``refused`` maps slots that must not have a formula to the reason.

    Formulas whose factors take more than ``room`` bytes are not chosen: columns can be formed a few at a time.
    """
    sizes = _Sizes(n, n if n2 is None else n2, m_y, n2 is None)
    result = []
    for name in function.layout.names:
        size = function.theta[name].numel()
        single = sizes.rows * size * 8 * _SINGLE + 2 * sizes.entries * size
        uses = [use for use in scan.uses if name in use.slots]
        if name in refused:
            result.append(SlotPlan(name, "per sample", refused[name], 0, single, 2 * sizes.entries * size))
        elif name in scan.loose:
            why = "used in a way that has no formula" if not uses else "some of its uses have no formula"
            result.append(SlotPlan(name, "per sample", why, 0, single, 2 * sizes.entries * size))
        elif not uses or not size:
            result.append(SlotPlan(name, "unused", "no output depends on it", 0, 0.0))
        else:
            result.append(_formula(name, uses, size, scan.n, sizes, room))
    return tuple(result)


def _formula(name: str, uses: Sequence[Use], size: int, scanned: int, sizes: _Sizes, room: float) -> SlotPlan:
    T = sum(positions(use, scanned) for use in uses)
    m, kinds = sizes.m, _kinds(uses, T)
    costs = {"gradients": 2 * sizes.rows * T * size * _SMALL + 2 * sizes.entries * size}
    if any(use.weight != name or use.bias == name or isinstance(use, Scale) for use in uses):
        # A bias, a scale: the sum over positions is cheap.
        flops = sizes.rows * T * size + 2 * sizes.entries * size
        return SlotPlan(name, "gradients", kinds, T, flops, flops)
    products = 2.0 * T * size * (sizes.rows / m + sizes.rows) * (not isinstance(uses[0], Lookup))
    floor = [costs["gradients"] - 2 * sizes.rows * T * size * (_SMALL - 1)]
    if uniform(name, uses) and _factor_entries(uses, scanned, sizes) * 8 <= room:
        a, b, groups = shape(uses[0])
        lookup = isinstance(uses[0], Lookup)
        pair = 0.0 if lookup else 2.0 * a
        floor.append(groups * T**2 * (pair * sizes.samples + 2 * b * sizes.entries))
        floor.append(groups * sizes.samples * T * (pair * T + 2 * b * T * m + 2 * b * m * m))
        if not lookup:
            costs["pairs"] = groups * T**2 * (pair * sizes.samples + (2 * b + _PASS) * sizes.entries)
        costs["contract"] = (
            groups * sizes.samples * T * (pair * T + 2 * _SMALL * b * T * m + 2 * _SMALL * b * m * m + _PASS * b * m)
        )
        if lookup:
            costs["contract"] += sizes.samples * T * T * _PASS
    engine = min(costs, key=costs.__getitem__)
    return SlotPlan(name, engine, kinds, T, costs[engine], products + min(floor))


def uniform(name: str, uses: Sequence[Use]) -> bool:
    """Whether one sum over positions covers all uses of a slot: weights of one kind and one orientation."""
    kinds = {(type(use), getattr(use, "transposed", False), getattr(use, "groups", 1)) for use in uses}
    weights = all(use.weight == name and use.bias != name and not isinstance(use, Scale) for use in uses)
    return len(kinds) <= 1 and weights


def positions(use: Use, n: int) -> int:
    """Return the number of positions per sample in a use that was recorded with n samples."""
    count = math.prod(use.rows) // n
    if isinstance(use, ConvTranspose):
        return count * math.prod(use.input.shape[2:])
    return count * math.prod(use.shape[2:]) if isinstance(use, Conv) else count


def shape(use: Use) -> tuple[int, int, int]:
    """Return the sizes of an input and of a gradient at one position, and the number of groups."""
    if isinstance(use, Conv):
        channels = use.input.shape[1] // use.groups
        return channels * math.prod(use.kernel), use.shape[1] // use.groups, use.groups
    if isinstance(use, ConvTranspose):
        outputs = use.shape[1] // use.groups
        return use.input.shape[1] // use.groups, outputs * math.prod(use.kernel), use.groups
    if isinstance(use, Product):
        return use.input.shape[-1], use.shape[-1], 1
    return 1, use.shape[-1], 1


def _kinds(uses: Sequence[Use], T: int) -> str:
    names = {
        Product: "linear",
        Conv: "convolution",
        ConvTranspose: "transposed convolution",
        Lookup: "table",
        Scale: "scale or shift",
    }
    kinds = " and ".join(sorted({names[type(use)] for use in uses}))
    count = f", {len(uses)} uses" if len(uses) > 1 else ""
    return f"{kinds}{count}, {T} position{'s' * (T > 1)}"


def _factor_entries(uses: Sequence[Use], scanned: int, sizes: _Sizes) -> float:
    """Return the number of entries of the inputs and gradients of some uses, for all samples of both sides."""
    T = sum(positions(use, scanned) for use in uses)
    a, b, groups = shape(uses[0])
    return T * groups * (a * sizes.rows / sizes.m + b * sizes.rows)


def piece_length(shape: torch.Size) -> int:
    """Return the number of rows that a slot of this shape can be cut into."""
    return max(1, shape[0]) if shape else 1


@dataclasses.dataclass(frozen=True)
class _Memory:
    """Bytes of the work on some slots."""

    function: Functional
    scan: OutputScan
    engaged: Sequence[SlotPlan]
    sizes: _Sizes

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return torch.finfo(self.function.dtype).bits // 8

    @property
    def samples(self) -> int:
        """Samples of both sides."""
        return int(self.sizes.rows) // self.sizes.m

    def uses(self, names: set[str]) -> list[Use]:
        """Return the uses of some slots."""
        return [use for use in self.scan.uses if not names.isdisjoint(use.slots)]

    def whole(self, slot: SlotPlan) -> bool:
        """Whether all columns of a slot are formed, even if some of its rows are wanted."""
        grouped = any(isinstance(use, Convolution) and use.groups > 1 for use in self.uses({slot.name}))
        return slot.engine == "per sample" or (slot.engine == "gradients" and grouped)

    def block(self, names: set[str]) -> tuple[int, int]:
        """Return those per sample, and per sample and output: gradients twice, for a pass and for reordered ones.

        Measured: the passes of transformers take about half of that. Gradients by scales are summed at once.
        """
        uses, n = self.uses(names), self.scan.n
        gradients = 2 * sum(_gradient_entries(use) // n for use in uses) + sum(_patch_entries(use, n) for use in uses)
        whole = (slot for slot in self.engaged if slot.name in names and self.whole(slot))
        columns = max((self.function.theta[slot.name].numel() for slot in whole), default=0)
        return sum(_input_entries(use, n) for use in uses) * self.item, (gradients + columns) * self.item

    def single(self, names: set[str], with_graph: bool) -> int:
        """Return those of a pass over one sample, with all outputs; with its graph where its uses are stored."""
        inputs, gradients = self.block(names)
        graph = _GRAPH * sum(math.prod(use.shape) // self.scan.n for use in self.scan.uses) * self.item
        return inputs + gradients * self.sizes.m + graph * with_graph

    def of_uses(self, names: set[str]) -> int:
        """Return those of the inputs and gradients of the uses of some slots, and of the largest patches."""
        uses, n, m = self.uses(names), self.scan.n, self.sizes.m
        entries = sum(_stored_entries(use) + _gradient_entries(use) * m for use in uses) // n
        patches = max((_input_entries(use, n) + _patch_entries(use, n) * m for use in uses), default=0)
        return self.samples * (entries + patches) * self.item

    def row(self, slot: SlotPlan) -> int:
        """Return those of what a row of a slot adds to the stored factors."""
        theta = self.function.theta[slot.name]
        if slot.engine in SUMS:
            factors = _factor_entries(self.uses({slot.name}), self.scan.n, self.sizes)
            return int(factors * self.item) // piece_length(theta.shape)
        return int(self.sizes.rows) * (theta.numel() // piece_length(theta.shape)) * self.item


class _Groups:
    """Pieces of slots, grouped such that what is stored of a group fits into ``room``.

    ``stored`` and ``slab`` are the largest bytes of what a group stores and of the derivatives that are formed from it.
    """

    def __init__(self, memory: _Memory, room: int) -> None:
        self.memory, self.room = memory, room
        self.groups: list[list[Piece]] = [[]]
        self.stored = self.slab = self._columns = 0
        self._storing: set[str] = set()  # slots of the last group whose uses are stored

    def at_once(self, slot: SlotPlan) -> None:
        """Add a slot of which all uses are in memory: derivatives are formed in slabs."""
        row = self.memory.row(slot)
        limit = POOL if self.memory.whole(slot) else max(_SLAB, _SLAB_ROWS * row)
        self.groups[-1] += self._cut(slot, math.inf if slot.engine in SUMS else min(self.room, limit), True)
        self.stored += row * piece_length(self.memory.function.theta[slot.name].shape)

    def add(self, slot: SlotPlan, *, keep: bool) -> None:
        """Add a slot of which the derivatives are stored; or its uses, if they fit and take less memory."""
        row, names = self.memory.row(slot), {slot.name}
        uses = self.memory.of_uses(names)
        fits = keep and slot.engine == "gradients" and max(uses, self.memory.single(names, True)) <= self.room
        if fits and uses < row * piece_length(self.memory.function.theta[slot.name].shape):
            if self._is_full(self._storing | names, slot, 0):
                self._next()
            limit = POOL if self.memory.whole(slot) else max(_SLAB, _SLAB_ROWS * row)
            pieces = self._cut(slot, min(self.room // 4, limit), True)
            self.groups[-1] += pieces
            self._storing |= names
            self.slab = max(self.slab, 2 * row * (pieces[0].stop - pieces[0].start))
            self.stored = max(self.stored, self._columns + self.memory.of_uses(self._storing))
            return
        for piece in self._cut(slot, math.inf if slot.engine in SUMS else self.room, False):
            columns = row * (piece.stop - piece.start)
            if self._is_full(self._storing, slot, columns):
                self._next()
            self.groups[-1].append(piece)
            self._columns += columns
            self.stored = max(self.stored, self._columns + self.memory.of_uses(self._storing))

    def _is_full(self, storing: set[str], slot: SlotPlan, columns: int) -> bool:
        """Whether a slot of so many bytes of columns needs another group; ``storing`` are slots with stored uses."""
        group = {piece.name for piece in self.groups[-1]}
        stored = self._columns + columns + self.memory.of_uses(storing)
        passes = self.memory.single(group | {slot.name}, True) if storing else 0
        return bool(group) and max(stored, passes) > self.room

    def _next(self) -> None:
        self.groups.append([])
        self._columns, self._storing = 0, set()

    def _cut(self, slot: SlotPlan, limit: float, stores_uses: bool) -> list[Piece]:
        """Cut a slot into slabs of equal size, of at most ``limit`` bytes if a row has no more."""
        length = piece_length(self.memory.function.theta[slot.name].shape)
        most = max(1, min(length, limit // max(1, self.memory.row(slot))))
        step = -(-length // math.ceil(length / most))
        cuts = (range(start, min(start + step, length)) for start in range(0, length, step))
        return [Piece(slot.name, slot.engine, cut.start, cut.stop, stores_uses) for cut in cuts]


def with_blocks(
    function: Functional,
    scan: OutputScan,
    slots: tuple[SlotPlan, ...],
    n: int,
    n2: int | None,
    m_y: int,
    chunk_size: int | None,
    memory: int,
    share: int = 1,
) -> GramPlan:
    """Cut parameters, samples and outputs such that the work fits into memory, and return the plan with its cost.

    If the passes for all samples fit at once, derivatives are formed from them as they are multiplied. Otherwise the
    factors of a group of pieces are collected from block after block of samples, and multiplied when they are complete;
    or the inputs and gradients of a layer, where they take less memory than its derivatives, which are then formed from
    them, if that gives fewer groups. Each group takes one pass over the samples, so the number of passes is linear in n
    for every memory size. Raises InvalidInput if the result and one output of one sample at its largest layer do not
    fit; ``memory`` is one of ``share`` equal parts of what there is.
    """
    sizes = _Sizes(n, n if n2 is None else n2, m_y, n2 is None)
    engaged = [slot for slot in slots if slot.engine != "unused"]
    needed = _Memory(function, scan, engaged, sizes)
    result = n * m_y * sizes.n2 * m_y * needed.item
    room = max(0, memory - result) // 2  # one half for the passes of a block, one for what is stored
    least = result + max((sum(needed.block({slot.name})) for slot in engaged), default=0)
    if least > memory:
        need = f"at least {share * least}: {result} for the result"
        need += ", as much for its use" * (share > 1) + ", the rest for one output of one sample at its largest layer"
        raise InvalidInput("memory", f"{share * memory} bytes", need, code="too-large")
    flops, floor = (sum(getattr(slot, key) for slot in slots) for key in ("flops", "floor"))

    def planned(groups: _Groups, samples: int, outputs: int, peak: int) -> GramPlan:
        blocks = math.ceil(n / samples) + (0 if n2 is None else math.ceil(n2 / samples))
        passes = len(groups.groups) * blocks * math.ceil(m_y / outputs)
        parts, dtype = tuple(map(tuple, groups.groups)), dtype_name(function.dtype)
        return GramPlan(
            n, sizes.n2, m_y, n2 is None, dtype, slots, samples, outputs, parts, passes, flops, floor, result + peak
        )

    longest, plans = max(n, sizes.n2), []
    passing = needed.samples * needed.single({slot.name for slot in engaged if slot.engine != "per sample"}, False)
    if (chunk_size is None or chunk_size >= longest) and passing <= room:
        groups = _Groups(needed, room)
        for slot in engaged:
            groups.at_once(slot)
        whole = planned(groups, longest, m_y, passing + min(groups.stored, 2 * POOL))
        if whole.peak_bytes <= memory:
            return whole
    for keep in (False, True):
        groups = _Groups(needed, room)
        for slot in engaged:
            groups.add(slot, keep=keep)
        names = [
            ({piece.name for piece in group}, any(piece.stores_uses for piece in group)) for group in groups.groups
        ]
        single = max(needed.single(*group) for group in names)
        samples = max(1, min(longest, chunk_size or room // max(1, single)))
        if samples > 1 or chunk_size is not None or single <= room:
            plans.append(planned(groups, samples, m_y, max(samples * single, groups.slab) + groups.stored))
        elif not keep:
            inputs, gradients = map(max, zip(*(needed.block(group) for group, _ in names)))
            outputs = min(m_y, max(1, (room - inputs) // max(1, gradients)))
            plans.append(planned(groups, 1, outputs, inputs + gradients * outputs + groups.stored))
    return min(plans, key=lambda plan: (len(plan.groups), plan.passes, plan.peak_bytes))


def _patch_entries(use: Use, n: int) -> int:
    """Entries of the patches of a gradient, of one sample and one output."""
    if not isinstance(use, ConvTranspose):
        return 0
    _, b, groups = shape(use)
    return positions(use, n) * b * groups


def _gradient_entries(use: Use) -> int:
    """Entries of the gradients of one output that are stored; of a scale, only few sums."""
    return 0 if isinstance(use, Scale) else math.prod(use.shape)


def _stored_entries(use: Use) -> int:
    """Entries of what a use holds of its inputs."""
    if isinstance(use, Lookup):
        return use.index.numel()
    return use.input.numel() if isinstance(use, Product | Convolution) else 0


def _input_entries(use: Use, n: int) -> int:
    if isinstance(use, Conv):
        a, _, groups = shape(use)
        return positions(use, n) * a * groups
    if isinstance(use, Product | ConvTranspose):
        return use.input.numel() // n
    return (1 + isinstance(use, Scale)) * math.prod(use.shape) // n  # of a scale, with the gradients of one output
