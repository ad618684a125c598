"""A network as a tape of primitive steps on real arrays: what enclosures are computed of, whatever their arithmetic.

Every step but ``input`` and ``leaf`` is computed of earlier ones. Data movement, from reshapes to the patches of a
convolution, is one kind of step, a gather by indices. The tape knows which sample each entry belongs to, so that
samples that enter each other's outputs are found, and refused.

===============  ==================================================================================================
kind             value, of the steps in ``of``
===============  ==================================================================================================
``input``        ``args["value"]``, exact
``leaf``         ``args["value"]``, exact; ``args["leaf"]`` is the parameter's number, or -1
``move``         the entries ``args["index"]`` of the flat sources, one after the other; 0 for -1; all for None
``sum``          :math:`\\sum_f \\pm a_f` with ``args["signs"]``
``scale``        a num / den, or a num / sqrt(den), of ``args["factor"]`` = (num, den, root)
``product``      a b, entry by entry
``quotient``     a / b, entry by entry
``matmul``       (G, m, k) times (G, k, n)
``affine``       rows (G, R, k) gathered from x by ``args["index"]`` (all for None), times W (G, k, n), which is shared;
                 ``args["positions"]`` (cells, taps) says the same of every sample and channel, unless it is None
``map``          ``args["fn"]`` of every entry
``reduce``       (R, k) to (R,): sums
``max``          (R, k) to (R,): maxima
``softmax``      (R, k) without the entries ``args["masked"]``; also ``log_softmax``
``logsumexp``    (R, k) to (R,)
``normalize``    (R, N): (x - mean) / sqrt(var + eps) if ``args["center"]``, else x / sqrt(mean x^2 + eps)
===============  ==================================================================================================
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require

_FEW = 6  # axes along which a shared operand may vary
_MOST = 1 << 25
"""Largest number of entries of an array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One primitive operation.

    Attributes
    ----------
    kind : str
    of : tuple of int
        Earlier steps.
    shape : tuple of int
    owner : (size,) int32 or None
        The sample of each entry; None if all samples share the array, which depends on parameters and constants only.
    args : mapping
    """

    kind: str
    of: tuple[int, ...]
    shape: tuple[int, ...]
    owner: Any
    args: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Steps in the order of evaluation, the one that is the output, and the number of samples.

    The output has the outputs of the first sample first. With ``decided``, values of the inputs have been compared or
    cast to integers: the steps are those of this batch alone.
    """

    steps: tuple[Step, ...]
    output: int
    samples: int
    decided: bool = False

    @property
    def columns(self) -> int:
        """The number of outputs of a sample."""
        return self.steps[self.output].size // self.samples


def require_size(shape: Sequence[int]) -> None:
    """Refuse arrays that are too large, before anything is allocated for them."""
    require(math.prod(shape) <= _MOST, f"an array of {math.prod(shape):.2e} entries")


def exact_float(number: Any) -> float:
    """Return a literal as the float that it is equal to."""
    require(isinstance(number, int | float) and abs(number) <= 1.7976931348623157e308, "a literal is not finite")
    require(float(number) == number, "a literal is not a float")
    return float(number)


def joint_owner(owners: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return the sample of each entry, from arrays of samples that are broadcast (None: shared); None if all are.

    Raises
    ------
    NotProved
        If an entry belongs to two samples.
    """
    known = [np.broadcast_to(owner, tuple(shape)) for owner in owners if owner is not None]
    require(all(bool((part == known[0]).all()) for part in known), "an operation joins two samples")
    return np.ascontiguousarray(known[0]).reshape(-1) if known else None


def shared_with(owner: Any, shape: Sequence[int]) -> Any:
    """Return the sample of each entry where -1 stands for none yet: samples differ along one axis.

    Raises
    ------
    NotProved
        If no axis separates the samples.
    """
    grid = owner.reshape(tuple(shape))
    if (grid >= 0).all():
        return owner
    for axis in range(grid.ndim):
        line = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1).max(1, initial=-1)
        along = line.reshape([-1 if k == axis else 1 for k in range(grid.ndim)])
        if (line >= 0).all() and ((grid < 0) | (grid == along)).all():
            return np.ascontiguousarray(np.broadcast_to(along, grid.shape)).reshape(-1).astype(np.int32)
    raise NotProved("an operation joins samples, or constants with samples that no axis separates")


def _positions(index: Any, shape: Sequence[int]) -> Any:
    """Return where the windows of a convolution are in one channel, (cells, taps), if all channels have the same.

    None unless index, of shape (samples cells, channels taps), is made of these for x of shape (samples, channels,
    *sides).
    """
    samples, channels, side = shape[0], shape[1], math.prod(shape[2:])
    if 0 in (samples, channels, side) or index.shape[0] % samples or index.shape[1] % channels:
        return None
    grid = index.reshape(samples, index.shape[0] // samples, channels, index.shape[1] // channels)
    first = np.ascontiguousarray(grid[0, :, 0])
    start = (np.arange(samples)[:, None] * channels + np.arange(channels)) * side
    same = np.array_equal(grid, np.where(first[:, None] < 0, -1, first[:, None] + start[:, None, :, None]))
    return first if same and first.max(initial=-1) < side else None


class Tape:
    """Appends steps, and follows to which sample their entries belong. Steps are referred to by their index."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.decided = False  # whether a step depends on the values of inputs
        self._exact: dict[int, Any] = {}

    def shape(self, step: int) -> tuple[int, ...]:
        """Return the shape of a step."""
        return self.steps[step].shape

    def owner(self, step: int) -> Any:
        """Return the samples of a step's entries, or None."""
        return self.steps[step].owner

    def append(self, kind: str, of: Sequence[int], shape: Sequence[int], owner: Any, **args: Any) -> int:
        """Append a step."""
        require_size(shape)
        self.steps.append(Step(kind, tuple(of), tuple(int(size) for size in shape), owner, args))
        return len(self.steps) - 1

    def leaf(self, value: Any, number: int = -1, trainable: bool = False) -> int:
        """Append an array of exact numbers."""
        require(bool(np.isfinite(value).all()), "a constant is not finite")
        return self.append("leaf", (), np.shape(value), None, value=value, leaf=number, trainable=trainable)

    def exact(self, step: int) -> Any:
        """Return the values of a step that has entries of inputs and constants, or integers computed of them, or None.

        Sums and products of integers are exact in floats up to 2^53.
        """
        if step not in self._exact:
            self._exact[step] = self._computed_exactly(self.steps[step])
        return self._exact[step]

    def _computed_exactly(self, made: Step) -> Any:
        self.decided |= made.kind == "input"
        if made.kind == "input" or (made.kind == "leaf" and not made.args["trainable"]):
            return made.args["value"]
        num, *rest = made.args.get("factor", (1.0, 1.0, False))
        sources = [self.exact(part) for part in made.of if made.kind in ("move", "sum", "product", "scale")]
        if not sources or any(values is None for values in sources) or rest != [1.0, False]:
            return None
        if made.kind == "move":
            flat = np.concatenate([np.asarray(values, np.float64).reshape(-1) for values in sources] + [np.zeros(1)])
            return (flat[:-1] if made.args["index"] is None else flat[made.args["index"]]).reshape(made.shape)
        signs = np.reshape(made.args.get("signs", num), (-1, *(1 for _ in made.shape)))
        terms, join = np.stack(sources) * signs, np.sum if made.kind == "sum" else np.prod
        whole = all(bool((values == np.rint(values)).all()) for values in (signs, *sources))
        return join(terms, 0) if whole and bool((join(np.abs(terms), 0) < 2.0**53).all()) else None

    def move(self, sources: Sequence[int], index: Any, owner: Any = None) -> int:
        """Append a gather from the flat sources, one after the other, by an array of indices of the result's shape."""
        owners = [self.owner(step) for step in sources]
        flat = np.asarray(index).reshape(-1)
        if owner is None and any(part is not None for part in owners):
            owner = shared_with(np.append(self._joined(sources), np.int32(-1))[flat], np.shape(index))
        alone = len(sources) == 1 and (owner is None) == (owners[0] is None)
        if alone and flat.size == self.steps[sources[0]].size and np.array_equal(flat, np.arange(flat.size)):
            return self.reshape(sources[0], np.shape(index))
        return self.append("move", sources, np.shape(index), owner, index=flat.astype(np.int64))

    def _joined(self, sources: Sequence[int]) -> Any:
        """Return the samples of the flat sources; -1 for shared ones."""
        parts = []
        for step in sources:
            owner = self.owner(step)
            parts.append(np.full(self.steps[step].size, -1, np.int32) if owner is None else owner)
        return np.concatenate(parts)

    def reshape(self, step: int, shape: Sequence[int]) -> int:
        """Append a change of shape alone."""
        shape = tuple(int(size) for size in shape)
        require(math.prod(shape) == self.steps[step].size, "a reshape changes the number of entries")
        return step if shape == self.shape(step) else self.append("move", (step,), shape, self.owner(step), index=None)

    def indices(self, step: int) -> Any:
        """Return the flat indices of a step's entries, in its shape."""
        return np.arange(self.steps[step].size).reshape(self.shape(step))

    def permute(self, step: int, axes: Sequence[int]) -> int:
        """Append a permutation of axes."""
        return self.move((step,), self.indices(step).transpose(axes))

    def together(self, *steps: int) -> list[int]:
        """Broadcast steps to one shape and one assignment to samples."""
        shape = np.broadcast_shapes(*(self.shape(step) for step in steps))
        require_size(shape)
        grids = [np.broadcast_to(self.indices(step), shape) for step in steps]
        owners = [self.owner(step) for step in steps]
        joined = joint_owner([o if o is None else o[g] for o, g in zip(owners, grids, strict=True)], shape)
        return [
            step
            if self.shape(step) == shape and (owner is None) == (joined is None)
            else self.move((step,), grid, joined)
            for step, grid, owner in zip(steps, grids, owners, strict=True)
        ]

    def sum(self, *steps: int, signs: Sequence[int] = ()) -> int:
        """Append a sum of broadcast steps."""
        terms = self.together(*steps)
        return self.append(
            "sum", terms, self.shape(terms[0]), self.owner(terms[0]), signs=tuple(signs) or (1,) * len(terms)
        )

    def product(self, a: int, b: int) -> int:
        """Append a product of broadcast steps."""
        a, b = self.together(a, b)
        return self.append("product", (a, b), self.shape(a), self.owner(a))

    def quotient(self, a: int, b: int) -> int:
        """Append a quotient of broadcast steps."""
        a, b = self.together(a, b)
        return self.append("quotient", (a, b), self.shape(a), self.owner(a))

    def scale(self, step: int, num: float, den: float = 1.0, root: bool = False) -> int:
        """Append a multiplication by num / den, or num / sqrt(den)."""
        num, den = exact_float(num), exact_float(den)
        require(den != 0.0, "a division by 0")
        require(den > 0.0 or not root, "a factor has a root of a negative number")
        return self.append("scale", (step,), self.shape(step), self.owner(step), factor=(num, den, root))

    def map(self, step: int, fn: str, **parameters: Any) -> int:
        """Append a function of every entry."""
        return self.append("map", (step,), self.shape(step), self.owner(step), fn=fn, **parameters)

    def rows(self, kind: str, step: int, *, keep: bool, **args: Any) -> int:
        """Append an operation on the rows of a matrix, (R, k), each of which belongs to one sample."""
        rows, _ = self.shape(step)
        owner = self._of_rows(self.owner(step), rows)
        mine = self.owner(step) if keep else owner
        return self.append(kind, (step,), self.shape(step) if keep else (rows,), mine, **args)

    def _of_rows(self, owner: Any, rows: int) -> Any:
        if owner is None:
            return None
        grid = owner.reshape(rows, -1)
        require(grid.shape[1] > 0 and bool((grid == grid[:, :1]).all()), "an operation joins two samples")
        return np.ascontiguousarray(grid[:, 0])

    def matmul(self, a: int, b: int) -> int:
        """Append (..., m, k) times (..., k, n), with broadcast leading axes."""
        (*lead_a, m, k), (*lead_b, other, n) = self.shape(a), self.shape(b)
        require(k == other, "a matrix product whose shapes do not match")
        lead = np.broadcast_shapes(tuple(lead_a), tuple(lead_b))
        require_size((*lead, m, k))
        require_size((*lead, k, n))
        if self.owner(a) is not None and self.owner(b) is None:
            return self._times_shared(a, b, lead)
        if self.owner(a) is None and self.owner(b) is not None:
            swapped = self._times_shared(self._transposed(b), self._transposed(a), lead)
            return self._transposed(swapped)
        a = self._flat_groups(a, lead, (m, k))
        b = self._flat_groups(b, lead, (k, n))
        G = self.shape(a)[0]
        owners = [self._of_rows(self.owner(step), G) for step in (a, b)]
        if owners[0] is None:
            product = self.append("matmul", (a, b), (G, m, n), None)
        else:
            require(bool((owners[0] == owners[1]).all()), "an operation joins two samples")
            product = self.append("matmul", (a, b), (G, m, n), np.repeat(owners[0], m * n))
        return self.reshape(product, (*lead, m, n))

    def _transposed(self, step: int) -> int:
        axes = list(range(len(self.shape(step))))
        return self.permute(step, [*axes[:-2], axes[-1], axes[-2]])

    def _flat_groups(self, step: int, lead: Sequence[int], tail: tuple[int, int]) -> int:
        grid = np.broadcast_to(self.indices(step), (*lead, *tail))
        return self.move((step,), grid.reshape(-1, *tail))

    def _times_shared(self, x: int, W: int, lead: Sequence[int]) -> int:
        """Append rows times shared matrices: axes along which these differ are groups, the others are rows."""
        m, (*batch, k, n) = self.shape(x)[-2], self.shape(W)
        batch = [1] * (len(lead) - len(batch)) + batch
        apart = [axis for axis, size in enumerate(batch) if size > 1]
        rest = [axis for axis in range(len(lead)) if axis not in apart]
        require(len(apart) <= _FEW, "a matrix product with too many axes")
        grid = np.broadcast_to(self.indices(x), (*lead, m, k)).transpose(*apart, *rest, len(lead), len(lead) + 1)
        G = math.prod(batch)
        product = self.affine(x, self.reshape(W, (G, k, n)), grid.reshape(G, -1, k))
        order = [*apart, *rest]
        sizes = [lead[axis] for axis in order]
        whole = np.arange(self.steps[product].size).reshape(*sizes, m, n)
        return self.move((product,), whole.transpose(*np.argsort(order), len(lead), len(lead) + 1))

    def affine(self, x: int, W: int, index: Any, conv: Mapping[str, Any] | None = None) -> int:
        """Append rows of x, gathered by an index of shape (G, R, k), times shared matrices (G, k, n)."""
        G, R, k = index.shape
        require(self.owner(W) is None and self.shape(W)[:2] == (G, k), "the matrices of a product are not shared")
        n = self.shape(W)[2]
        owner = None
        if self.owner(x) is not None:
            mine = np.append(self.owner(x), np.int32(-1))[index.reshape(-1)].reshape(G * R, k)
            owner = mine.max(1)
            empty = owner < 0
            if empty.any():  # rows of padding only
                owner = shared_with(owner, (G, R)) if conv is None else np.tile(conv["rows"], G)
            require(bool(((mine < 0) | (mine == owner[:, None])).all()), "an operation joins two samples")
            owner = np.repeat(owner, n).astype(np.int32)
        size = self.steps[x].size
        identity = index.size == size and np.array_equal(index.reshape(-1), np.arange(size))
        flat = None if identity else index.reshape(-1).astype(np.int64)
        positions = None if conv is None or identity or G > 1 else _positions(index[0], self.shape(x))
        rows = {"index": flat, "positions": positions, "rows": (G, R, k)}
        return self.append("affine", (x, W), (G, R, n), owner, **rows, conv=conv)

    def program(self, output: int, samples: int) -> Program:
        """Return the steps that an output needs, as a program for a number of samples.

        Raises
        ------
        NotProved
            If the output does not have one row of outputs for each sample, in their order.
        """
        shape = self.shape(output)
        require(len(shape) >= 1 and self.steps[output].size > 0, "the output has no samples")
        require(shape[0] == samples, "the output does not have one row for each sample")
        owner = self.owner(output)
        rows = np.repeat(np.arange(shape[0], dtype=np.int32), math.prod(shape[1:]))
        require(owner is not None and bool((owner == rows).all()), "the output does not have one row for each sample")
        needed, stack = set[int](), [output]
        while stack:
            step = stack.pop()
            if step not in needed:
                needed.add(step)
                stack += self.steps[step].of
        order = sorted(needed)
        places = {old: new for new, old in enumerate(order)}
        steps = tuple(
            dataclasses.replace(self.steps[old], of=tuple(places[k] for k in self.steps[old].of)) for old in order
        )
        return Program(steps, places[output], shape[0], self.decided)
