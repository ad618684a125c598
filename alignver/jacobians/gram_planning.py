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
    """Rows start..stop of a slot and its formula."""

    name: str
    engine: str
    start: int
    stop: int


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
    factors of a group of pieces are collected from block after block of samples, and multiplied when they are complete.
    So each group takes one pass over the samples, and the number of passes is linear in n for every memory size.
    Raises InvalidInput if the result and one output of one sample at its largest layer do not fit; ``memory`` is one of
    ``share`` equal parts of what there is.
    """
    item = torch.finfo(function.dtype).bits // 8
    sizes = _Sizes(n, n if n2 is None else n2, m_y, n2 is None)
    N, N2 = n * m_y, sizes.n2 * m_y
    result = N * N2 * item
    room = max(0, memory - result) // 2  # one half for the passes of a block, one for what is stored
    longest, both = max(n, sizes.n2), int(sizes.rows)
    engaged = [slot for slot in slots if slot.engine != "unused"]

    def whole(slot: SlotPlan) -> bool:
        """Whether all columns of a slot are formed, even if some of its rows are wanted."""
        uses = [use for use in scan.uses if slot.name in use.slots]
        grouped = any(isinstance(use, Convolution) and use.groups > 1 for use in uses)
        return slot.engine == "per sample" or (slot.engine == "gradients" and grouped)

    def block_bytes(names: set[str]) -> tuple[int, int]:
        """Bytes per sample, and per sample and output: the gradients twice, for a pass and for reordered ones.

        Measured: the passes of transformers take about half of that.
        """
        live = [use for use in scan.uses if not names.isdisjoint(use.slots)]
        gradients = 2 * sum(math.prod(use.shape) // scan.n for use in live) * item
        gradients += sum(_patch_entries(use, scan.n) for use in live) * item
        columns = max((function.theta[s.name].numel() for s in engaged if s.name in names and whole(s)), default=0)
        return sum(_input_entries(use, scan.n) for use in live) * item, gradients + columns * item

    least = result + max((sum(block_bytes({slot.name})) for slot in engaged), default=0)
    if least > memory:
        need = f"at least {share * least}: {result} for the result"
        need += ", as much for its use" * (share > 1) + ", the rest for one output of one sample at its largest layer"
        raise InvalidInput("memory", f"{share * memory} bytes", need, code="too-large")
    inputs, gradients = block_bytes({slot.name for slot in engaged if slot.engine != "per sample"})
    at_once = chunk_size is None or chunk_size >= longest
    at_once = at_once and both // m_y * (inputs + (gradients * m_y)) <= room
    groups: list[list[Piece]] = [[]]
    stored = held = 0
    for slot in engaged:
        theta = function.theta[slot.name]
        length = piece_length(theta.shape)
        width = both * (theta.numel() // length) * item
        if slot.engine in SUMS:
            uses = [use for use in scan.uses if slot.name in use.slots]
            step, width = length, int(_factor_entries(uses, scan.n, sizes) * item) // length
        else:
            limit = min(room, POOL if whole(slot) else max(_SLAB, _SLAB_ROWS * width)) if at_once else room
            step = -(-length // -(-length // max(1, min(length, limit // max(1, width)))))  # slabs of equal size
        for start in range(0, length, step):
            stop = min(start + step, length)
            if not at_once and groups[-1] and held + (stop - start) * width > room:
                groups.append([])
                held = 0
            groups[-1].append(Piece(slot.name, slot.engine, start, stop))
            held += (stop - start) * width
            stored = max(stored, held)
    samples, outputs, passing = longest, m_y, both // m_y * (inputs + gradients * m_y)
    if not at_once:
        inputs, gradients = map(max, zip(*(block_bytes({piece.name for piece in group}) for group in groups)))
        samples = max(1, min(longest, chunk_size or room // max(1, inputs + gradients * m_y)))
        if samples == 1 and chunk_size is None:
            outputs = min(m_y, max(1, (room - inputs) // max(1, gradients)))
        passing = samples * (inputs + gradients * outputs)
    blocks = math.ceil(n / samples) + (0 if n2 is None else math.ceil(n2 / samples))
    passes = len(groups) * blocks * math.ceil(m_y / outputs)
    peak = result + passing + (min(stored, 2 * POOL) if at_once else stored)
    flops, floor = (sum(getattr(slot, key) for slot in slots) for key in ("flops", "floor"))
    dtype = dtype_name(function.dtype)
    parts = tuple(map(tuple, groups))
    return GramPlan(
        n, sizes.n2, m_y, n2 is None, dtype, slots, samples, outputs, parts, passes, flops, floor, int(peak)
    )


def _patch_entries(use: Use, n: int) -> int:
    """Entries of the patches of a gradient, of one sample and one output."""
    if not isinstance(use, ConvTranspose):
        return 0
    _, b, groups = shape(use)
    return positions(use, n) * b * groups


def _input_entries(use: Use, n: int) -> int:
    if isinstance(use, Conv):
        a, _, groups = shape(use)
        return positions(use, n) * a * groups
    if isinstance(use, Product | ConvTranspose):
        return use.input.numel() // n
    return math.prod(use.shape) // n
