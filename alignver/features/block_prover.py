"""Blocks of a staircase along one direction: where they may end, and proofs that they have full row rank.

A boundary lies between two projections that differ by more than their error. The first plan has blocks of nearly equal
size; boundaries move where a block is too ill-conditioned for a proof.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from alignver.features.rows import Rows
from alignver.features.threads import ordered
from alignver.kernel.machine import arithmetic_fault
from alignver.progress import track
from alignver.proof.cholesky import row_rank_by_gram
from alignver.proof.right_inverse import row_rank_by_inverse
from alignver.proof.rounding import FloatArray, add_up, mul_up, sqrt_up, sub_down

Plan = list[tuple[int, int]]
"""Blocks as (start, stop) in the order of descending projections."""

_WINDOW = 64  # a boundary may move by this fraction of a block from its even position, for a wider gap
_ROOM = {"gram": 0.9, "right inverse": 0.5}  # the share of the proved bound that is claimed: a re-check finds less
_RESIDUAL = 0.25  # largest residual of a right inverse: a re-check computes another, with a few times that residual


@dataclasses.dataclass(frozen=True)
class SortedProjections:
    """The order of the rows along a direction, and the gaps in it.

    Attributes
    ----------
    order : (n,) int64
        Rows by descending projection.
    values : (n,) float64
        Their computed projections, descending.
    error : float
        Upper bound of the error of each projection, for all rows within the ball.
    """

    order: npt.NDArray[np.int64]
    values: FloatArray
    error: float

    @classmethod
    def along(cls, projections: FloatArray, error: float) -> SortedProjections:
        """Sort the rows by their projections."""
        order = np.argsort(-projections, kind="stable")
        return cls(order, projections[order], error)

    def margin(self, position: int) -> float:
        """Return a lower bound of the distance of every exact projection from the threshold at ``position``."""
        threshold = self.threshold(position)
        n = self.values.size
        above = float(self.values[position - 1]) if position else math.inf
        below = float(self.values[position]) if position < n else -math.inf
        sides = [sub_down(a, b) for a, b in ((above, threshold), (threshold, below)) if math.isfinite(a - b)]
        return sub_down(min(sides, default=0.0), self.error)  # no sides: the differences overflow

    def threshold(self, position: int) -> float:
        """Return t between the projections before ``position`` and the others; at an end, t beyond all of them."""
        n = self.values.size
        if 0 < position < n:
            above, below = float(self.values[position - 1]), float(self.values[position])
            return below + 0.5 * (above - below)
        # Beyond the ends any distance is possible: the spread of the projections is taken, or a share of their size.
        first, last = float(self.values[0]), float(self.values[-1])
        room = max(first - last, 2.0**-20 * max(abs(first), abs(last)), 4.0 * self.error, 2.0**-500)
        return first + room if position == 0 else last - room

    def usable(self, positions: npt.NDArray[np.int64] | int) -> npt.NDArray[np.bool_]:
        """Return whether the gap at each inner position is wider than four times the error."""
        gaps = self.values[positions - 1] - self.values[positions]
        return np.asarray(gaps > 4.0 * self.error)


def cut_at(projections: SortedProjections, ideal: int, low: int, high: int) -> int | None:
    """Return a position near ``ideal`` with a wide gap, within [low, high]; None where all projections are tied.

    Within a small window around ``ideal`` the widest gap is taken, since c is inversely proportional to the gap.
    Otherwise the nearest usable gap is taken.
    """
    if low > high:
        return None
    window = (high - low) // _WINDOW
    near = np.arange(max(low, ideal - window), min(high, ideal + window) + 1)
    if near.size:
        gaps = projections.values[near - 1] - projections.values[near]
        best = int(near[int(np.argmax(gaps))])
        if projections.usable(best):
            return best
    wide = np.arange(low, high + 1)
    wide = wide[projections.usable(wide)]
    return int(wide[int(np.argmin(np.abs(wide - ideal)))]) if wide.size else None


def even_plan(projections: SortedProjections, start: int, count: int, most: int) -> Plan | None:
    """Divide the rows from ``start`` on into ``count`` blocks of nearly equal size, none longer than ``most``; or None.

    Examples
    --------
    >>> import numpy as np
    >>> even_plan(SortedProjections.along(np.array([3.0, 1.0, 2.0, 0.0]), 1e-9), 0, 2, 3)
    [(0, 2), (2, 4)]
    """
    n = int(projections.values.size)
    plan: Plan = []
    for remaining in range(count, 0, -1):
        rest = n - start
        if rest < remaining or rest > remaining * most:
            return None
        stop: int | None = n
        if remaining > 1:
            low, high = max(start + 1, n - (remaining - 1) * most), min(start + most, n - (remaining - 1))
            stop = cut_at(projections, start + -(-rest // remaining), low, high)
        if stop is None:
            return None
        plan.append((start, stop))
        start = stop
    return plan


@dataclasses.dataclass(frozen=True)
class Block:
    """The rows between two thresholds, and the bound that is proved for them.

    Attributes
    ----------
    start, stop : int
        Positions in the order of descending projections.
    s_min : float
        Verified lower bound of s_min(Z_k') for every Z_k' whose rows are within delta; 0 without a proof.
    method : str
        ``"gram"`` or ``"right inverse"``.
    reason : str
        The reason why there is no proof.
    """

    start: int
    stop: int
    s_min: float
    method: str
    reason: str = ""

    @property
    def proved(self) -> bool:
        """Whether the block has full row rank."""
        return self.s_min > 0.0


def prove_block(Z: FloatArray, start: int, stop: int, delta: float = 0.0) -> Block:
    r"""Bound the smallest singular value of a block from below: by its Gram matrix, or else by a right inverse.

    A change of every row by at most ``delta`` in the 2-norm has spectral norm at most :math:`\sqrt b\,\delta`, b the
    number of rows, and lowers :math:`s_{\min}` by no more than that (Weyl).

    Parameters
    ----------
    Z : (b, m) float64
        The rows of the block.
    start, stop : int
        The positions of the block in the order of projections; they are stored and not used.
    delta : float
        Upper bound of the change of each row in the 2-norm.

    Returns
    -------
    Block
        ``proved`` has the rigor PROOF.

    Examples
    --------
    >>> import numpy as np
    >>> prove_block(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), 0, 2).s_min > 0.8
    True
    """
    if Z.shape[0] > Z.shape[1]:
        return Block(start, stop, 0.0, "", f"{Z.shape[0]} rows in {Z.shape[1]} columns are dependent")
    fault = arithmetic_fault(threaded=False)  # tested in the thread that does the work
    if fault:
        return Block(start, stop, 0.0, "", fault)
    moved = mul_up(delta, sqrt_up(float(Z.shape[0]))) if delta else 0.0
    reason = ""
    for method, prove in (("gram", row_rank_by_gram), ("right inverse", row_rank_by_inverse)):
        full = prove(Z)
        floor = sub_down(_ROOM[method] * full.s_min, moved) if full.proved and full.residual <= _RESIDUAL else 0.0
        if floor > add_up(0.0, 2.0**-960):
            return Block(start, stop, floor, method)
        reason = full.reason or f"s_min >= {full.s_min:.1e} is too small for rows that move by {delta:.1e}"
    return Block(start, stop, 0.0, "", reason)


RemoteProver: TypeAlias = Callable[[Iterable[tuple[npt.NDArray[np.int64], int, int]]], Generator[Block]]
"""Yields the block of each (row indices, start, stop), in order."""


class BlockProver:
    """Proves blocks of the rows along one direction.

    Parameters
    ----------
    rows : Rows
    projections : SortedProjections
        The order of the rows along the direction.
    delta : float
        Bound of each row's change (2-norm).
    remote : callable, optional
        Proves the blocks of a plan on a cluster; without it the cores of this machine do.

    Attributes
    ----------
    projections : SortedProjections
    failure : str
        Why the last call found no blocks.
    """

    def __init__(
        self, rows: Rows, projections: SortedProjections, delta: float = 0.0, remote: RemoteProver | None = None
    ) -> None:
        self.rows, self.projections, self.delta, self._remote = rows, projections, delta, remote
        self.failure = ""
        self._known: dict[tuple[int, int], Block] = {}

    def even(self, count: int) -> list[Block] | None:
        """Prove ``count`` blocks of nearly equal size, with boundaries shifted where a proof fails; or None.

        A block that fails gives up 1, 2, 4, ... of its last rows to the blocks after it, which share the remaining rows
        evenly, as long as they have room. Subsets of independent rows are independent, so a shorter block is never
        worse.
        """
        plan = even_plan(self.projections, 0, count, self.rows.m)
        if plan is None:
            self.failure = "no gaps between the projections where blocks would have to end"
            return None
        blocks: list[Block] = []
        while True:
            failed = None
            with contextlib.closing(self._prove(plan)) as proving:
                for block in proving:
                    if not block.proved:
                        failed = block
                        break
                    blocks.append(block)
            if failed is None:
                return blocks
            remaining = count - len(blocks) - 1
            shorter = self._shorter(failed, self.rows.n - remaining * self.rows.m, remaining)
            if shorter is None:
                return None
            blocks.append(shorter)
            plan = even_plan(self.projections, shorter.stop, remaining, self.rows.m)
            if plan is None:
                self.failure = "no room for the rows that a shifted boundary passes on to later blocks"
                return None

    def greedy(self, most: int) -> list[Block] | None:
        """Prove blocks, each as long as possible, at most ``most`` of them; or None.

        Every block of another staircase along this direction lies within the greedy block there or ends before it. So
        no staircase along this direction has fewer blocks than the greedy one, as far as the proofs reach.
        """
        blocks: list[Block] = []
        start, n, m = 0, self.rows.n, self.rows.m
        while start < n:
            if len(blocks) == most or n - start > (most - len(blocks)) * m:
                self.failure = f"more than {most} blocks are needed along the direction"
                return None
            stop = n if start + m >= n else self._usable_below(start + m, start + 1)
            block = self._one(start, stop)
            if not block.proved:
                shorter = self._shorter(block, start + 1, most)
                if shorter is None:
                    return None
                block = shorter
            blocks.append(block)
            start = block.stop
        return blocks

    def _shorter(self, failed: Block, low: int, remaining: int) -> Block | None:
        """Return the longest proved block from the start of ``failed`` among those 1, 2, 4, ... rows shorter; or None.

        The block stops at ``low`` or later.
        """
        low = max(low, failed.start + 1)
        stops, step = [], 1
        while (stop := self._usable_below(failed.stop - step, low - 1)) >= low:
            stops.append(stop)
            step *= 2
        if low < failed.stop and self.projections.usable(low):
            stops.append(low)
        for stop in dict.fromkeys(stops) if remaining >= 1 else ():
            block = self._one(failed.start, stop)
            if block.proved:
                return block
        self.failure = f"rows {failed.start} to {failed.stop} along the direction: {failed.reason}"
        return None

    def _usable_below(self, stop: int, least: int) -> int:
        while stop > least and not self.projections.usable(stop):
            stop -= 1
        return stop

    def _members(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        # The order of rows within a block does not matter; file order is faster to read.
        return np.sort(self.projections.order[start:stop])

    def _one(self, start: int, stop: int) -> Block:
        known = self._known.get((start, stop))
        if known is None:
            known = prove_block(self.rows.take(self._members(start, stop)), start, stop, self.delta)
            self._known[start, stop] = known
        return known

    def _prove(self, plan: Plan) -> Generator[Block]:
        """Yield the plan's blocks in order, with a few in progress at a time."""
        if self._remote is None:
            work = ordered(self._one, plan)
        else:
            work = self._remote((self._members(start, stop), start, stop) for start, stop in plan)
        with contextlib.closing(work) as proving:
            for _, block in zip(track(range(len(plan)), "blocks"), proving):
                yield block
