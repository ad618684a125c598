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

from alignver.errors import printable
from alignver.jacobians.layer_io import Conv, Lookup, Product, Scale, Use
from alignver.jacobians.sample_blocks import OutputScan
from alignver.network.functional import Functional
from alignver.network.inputs import dtype_name

__all__ = ["GramPlan", "SlotPlan", "plan_slots", "uniform", "with_blocks"]

BUDGET = 1 << 30  # bytes of the factors of the blocks in memory, unless the caller sets the size of a block
POOL = 1 << 28  # bytes of per-sample gradients that are multiplied at once, on either side
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
    """

    name: str
    engine: str
    why: str
    positions: int
    flops: float


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
    passes : int
        Total number of differentiated blocks (a block is differentiated again for each block of the other side).
    flops : float
        Operations of the products, without the passes through the model.
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
    passes: int
    flops: float
    peak_bytes: int

    def describe(self) -> str:
        """Return the plan as a few lines of text."""
        shape = f"{self.n * self.m_y} x {self.n2 * self.m_y}"
        lines = [
            f"Gram matrix {shape}, {self.dtype}{', one triangle' if self.symmetric else ''}",
            f"  blocks of {self.samples} samples and {self.outputs} outputs, {self.passes} differentiated",
            f"  about {self.flops:.1e} operations in products, about {self.peak_bytes / 1e6:.0f} MB at the peak",
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
    function: Functional, scan: OutputScan, n: int, n2: int | None, m_y: int, refused: dict[str, str]
) -> tuple[SlotPlan, ...]:
    """Choose a formula for each slot; ``refused`` maps slots that must not have a formula to the reason."""
    sizes = _Sizes(n, n if n2 is None else n2, m_y, n2 is None)
    result = []
    for name in function.layout.names:
        size = function.theta[name].numel()
        single = sizes.rows * size * 8 * _SINGLE + 2 * sizes.entries * size
        uses = [use for use in scan.uses if name in use.slots]
        if name in refused:
            result.append(SlotPlan(name, "per sample", refused[name], 0, single))
        elif name in scan.loose:
            why = "used in a way that has no formula" if not uses else "some of its uses have no formula"
            result.append(SlotPlan(name, "per sample", why, 0, single))
        elif not uses or not size:
            result.append(SlotPlan(name, "unused", "no output depends on it", 0, 0.0))
        else:
            result.append(_formula(name, uses, size, scan.n, sizes))
    return tuple(result)


def _formula(name: str, uses: Sequence[Use], size: int, scanned: int, sizes: _Sizes) -> SlotPlan:
    T = sum(positions(use, scanned) for use in uses)
    m, kinds = sizes.m, _kinds(uses, T)
    costs = {"gradients": 2 * sizes.rows * T * size * _SMALL + 2 * sizes.entries * size}
    if any(use.weight != name or use.bias == name or isinstance(use, Scale) for use in uses):
        # A bias, a scale: the sum over positions is cheap.
        flops = sizes.rows * T * size + 2 * sizes.entries * size
        return SlotPlan(name, "gradients", kinds, T, flops)
    if uniform(name, uses):
        a, b, groups = shape(uses[0])
        lookup = isinstance(uses[0], Lookup)
        pair = 0.0 if lookup else 2.0 * a
        if not lookup:
            costs["pairs"] = groups * T**2 * (pair * sizes.samples + (2 * b + _PASS) * sizes.entries)
        costs["contract"] = (
            groups * sizes.samples * T * (pair * T + 2 * _SMALL * b * T * m + 2 * _SMALL * b * m * m + _PASS * b * m)
        )
        if lookup:
            costs["contract"] += sizes.samples * T * T * _PASS
    engine = min(costs, key=costs.__getitem__)
    return SlotPlan(name, engine, kinds, T, costs[engine])


def uniform(name: str, uses: Sequence[Use]) -> bool:
    """Whether one sum over positions covers all uses of a slot: weights of one kind and one orientation."""
    kinds = {(type(use), getattr(use, "transposed", False), getattr(use, "groups", 1)) for use in uses}
    weights = all(use.weight == name and use.bias != name and not isinstance(use, Scale) for use in uses)
    return len(kinds) <= 1 and weights


def positions(use: Use, n: int) -> int:
    """Return the number of positions per sample in a use that was recorded with n samples."""
    count = math.prod(use.rows) // n
    return count * math.prod(use.shape[2:]) if isinstance(use, Conv) else count


def shape(use: Use) -> tuple[int, int, int]:
    """Return the sizes of an input and of a gradient at one position, and the number of groups."""
    if isinstance(use, Conv):
        channels = use.input.shape[1] // use.groups
        return channels * math.prod(use.kernel), use.shape[1] // use.groups, use.groups
    if isinstance(use, Product):
        return use.input.shape[-1], use.shape[-1], 1
    return 1, use.shape[-1], 1


def _kinds(uses: Sequence[Use], T: int) -> str:
    names = {Product: "linear", Conv: "convolution", Lookup: "table", Scale: "scale or shift"}
    kinds = " and ".join(sorted({names[type(use)] for use in uses}))
    count = f", {len(uses)} uses" if len(uses) > 1 else ""
    return f"{kinds}{count}, {T} position{'s' * (T > 1)}"


def with_blocks(
    function: Functional,
    scan: OutputScan,
    slots: tuple[SlotPlan, ...],
    n: int,
    n2: int | None,
    m_y: int,
    chunk_size: int | None,
) -> GramPlan:
    """Cut samples and outputs into blocks whose factors fit in memory, and return the plan with its total cost."""
    item = torch.finfo(function.dtype).bits // 8
    live = [use for use in scan.uses if not scan.loose.issuperset(use.slots)]
    # Bytes per sample. A block holds the inputs of every use once, and the gradients of every output three times: the
    # gradients, about as much in the backward pass, and as much for their reordering.
    inputs = sum(_input_entries(use, scan.n) for use in live) * item
    gradients = 3 * sum(math.prod(use.shape) // scan.n for use in live) * item
    longest = max(n, n2 or 0)
    samples, outputs = longest, m_y
    if chunk_size is not None:
        samples = min(chunk_size, longest)
    elif longest * (inputs + gradients * m_y) > BUDGET:
        room = BUDGET // 2  # more than one block: two at a time
        samples = max(1, min(longest, int(room // (inputs + gradients * m_y))))
        outputs = min(m_y, max(1, int((room - inputs) // max(1, gradients)))) if samples == 1 else m_y
    left = math.ceil(n / samples) * math.ceil(m_y / outputs)
    right = left if n2 is None else math.ceil(n2 / samples) * math.ceil(m_y / outputs)
    passes = left * (left + 1) // 2 if n2 is None else left * (right + 1)
    N, N2 = n * m_y, (n if n2 is None else n2) * m_y
    rows = samples * outputs
    loose, formed = (
        [function.theta[slot.name].numel() for slot in slots if slot.engine == engine]
        for engine in ("per sample", "gradients")
    )
    # Derivatives held at once, on both sides: at most POOL, but all columns and outputs of a slot without a formula.
    pool = 2 * min(POOL, rows * sum(formed) * item)
    pool += 2 * samples * m_y * item * (min(sum(loose), max(POOL // (rows * item), max(loose))) if loose else 0)
    several = left > 1 or right > 1
    factors = (2 if several else 1) * samples * (inputs + gradients * outputs)
    peak = N * N2 * item + factors + pool + several * rows**2 * item
    flops = sum(slot.flops for slot in slots)
    other, dtype = n if n2 is None else n2, dtype_name(function.dtype)
    return GramPlan(n, other, m_y, n2 is None, dtype, slots, samples, outputs, passes, flops, int(peak))


def _input_entries(use: Use, n: int) -> int:
    if isinstance(use, Conv):
        a, _, groups = shape(use)
        return positions(use, n) * a * groups
    if isinstance(use, Product):
        return use.input.numel() // n
    return math.prod(use.shape) // n
