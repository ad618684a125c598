"""Where the order of the projections may be cut: between two that differ by more than what they may be wrong by.

One block of the staircase: is Z_k of full row rank, and how small can its smallest singular value be?

From a direction to proved blocks: an even plan first, boundaries shifted where a block is too ill-conditioned.
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
from alignver.kernel.floats import arithmetic_fault
from alignver.progress import track
from alignver.proof.cholesky import row_rank_by_gram
from alignver.proof.right_inverse import row_rank_by_inverse
from alignver.proof.rounding import FloatArray, add_up, mul_up, sqrt_up, sub_down

__all__ = ["Block", "BlockProver", "Elsewhere", "Plan", "SortedProjections", "cut_at", "even_plan", "prove_block"]
Plan = list[tuple[int, int]]
"""Blocks as (start, stop) in the order of descending projections."""

_WINDOW = 64  # a cut may sit this fraction of a block away from its even place, for a wider gap


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
        Upper bound of what each is wrong by, within the ball of the rows.
    """

    order: npt.NDArray[np.int64]
    values: FloatArray
    error: float

    @classmethod
    def along(cls, projections: FloatArray, error: float) -> SortedProjections:
        """Sort the rows along a direction."""
        order = np.argsort(-projections, kind="stable")
        return cls(order, projections[order], error)

    def margin(self, position: int) -> float:
        """Return a lower bound of the distance of every exact projection from the threshold at ``position``."""
        threshold = self.threshold(position)
        n = self.values.size
        above = float(self.values[position - 1]) if position else math.inf
        below = float(self.values[position]) if position < n else -math.inf
        sides = [sub_down(a, b) for a, b in ((above, threshold), (threshold, below)) if math.isfinite(a - b)]
        return sub_down(min(sides, default=0.0), self.error)  # none: projections too far apart to be subtracted

    def threshold(self, position: int) -> float:
        """Return t between the projections before and from ``position`` on; beyond the last or first one at an end."""
        n = self.values.size
        if 0 < position < n:
            above, below = float(self.values[position - 1]), float(self.values[position])
            return below + 0.5 * (above - below)
        # Past the ends a threshold can keep any distance: as much as the projections are spread, or as they are large.
        first, last = float(self.values[0]), float(self.values[-1])
        room = max(first - last, 2.0**-20 * max(abs(first), abs(last)), 4.0 * self.error, 2.0**-500)
        return first + room if position == 0 else last - room

    def usable(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Say at which inner positions the gap is wider than four times the error."""
        gaps = self.values[positions - 1] - self.values[positions]
        return np.asarray(gaps > 4.0 * self.error)


def cut_at(cuts: SortedProjections, ideal: int, low: int, high: int) -> int | None:
    """Return the position of a cut near ``ideal`` with a wide gap, within [low, high]; None where all are tied.

    Within a small window around ``ideal`` the widest gap wins, since it is what c is divided by; past it, the nearest
    gap.
    """
    if low > high:
        return None
    window = (high - low) // _WINDOW
    near = np.arange(max(low, ideal - window), min(high, ideal + window) + 1)
    if near.size:
        gaps = cuts.values[near - 1] - cuts.values[near]
        best = int(near[int(np.argmax(gaps))])
        if bool(cuts.usable(np.array([best]))[0]):
            return best
    wide = np.arange(low, high + 1)
    wide = wide[cuts.usable(wide)]
    return int(wide[int(np.argmin(np.abs(wide - ideal)))]) if wide.size else None


def even_plan(cuts: SortedProjections, start: int, count: int, most: int) -> Plan | None:
    """Cut the rows from ``start`` on into ``count`` blocks of nearly equal size, none longer than ``most``; or None.

    Examples
    --------
    >>> import numpy as np
    >>> even_plan(Cuts.along(np.array([3.0, 1.0, 2.0, 0.0]), 1e-9), 0, 2, 3)
    [(0, 2), (2, 4)]
    """
    n = int(cuts.values.size)
    plan: Plan = []
    for left in range(count, 0, -1):
        rest = n - start
        if rest < left or rest > left * most:
            return None
        if left == 1:
            plan.append((start, n))
            break
        ideal = start + -(-rest // left)
        stop = cut_at(cuts, ideal, max(start + 1, n - (left - 1) * most), min(start + most, n - (left - 1)))
        if stop is None:
            return None
        plan.append((start, stop))
        start = stop
    return plan


_ROOM = {"gram": 0.9, "right inverse": 0.5}  # of what was proved is claimed: a check by other bounds finds less
_RESIDUAL = 0.25  # of a right inverse at most: a check computes another one, with a residual a few times as large


@dataclasses.dataclass(frozen=True)
class Block:
    """What is proved of the rows between two thresholds.

    Attributes
    ----------
    start, stop : int
        Positions in the order of descending projections.
    s_min : float
        Verified lower bound of s_min(Z_k') for every Z_k' whose rows are within delta; 0 where nothing is proved.
    method : str
        ``"gram"`` or ``"right inverse"``.
    reason : str
        Why there is no proof.
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
    r"""Bound the smallest singular value of a block from below: Gram matrix first, right inverse for the
    ill-conditioned.

    A change of every row by at most ``delta`` in the 2-norm has spectral norm at most :math:`\sqrt b\,\delta`, b the
    number of rows, and lowers :math:`s_{\min}` by no more than that (Weyl).

    Parameters
    ----------
    Z : (b, m) float64
        The rows of the block.

    Returns
    -------
    Block
        ``proved`` is a PROOF.

    Examples
    --------
    >>> import numpy as np
    >>> prove_block(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), 0, 2).s_min > 0.8
    True
    """
    if Z.shape[0] > Z.shape[1]:
        return Block(start, stop, 0.0, "", f"{Z.shape[0]} rows in {Z.shape[1]} columns are dependent")
    fault = arithmetic_fault(threaded=False)  # asked in the thread that does the work
    if fault:
        return Block(start, stop, 0.0, "", fault)
    moved = mul_up(delta, sqrt_up(float(Z.shape[0]))) if delta else 0.0
    reason = ""
    for method, prove in (("gram", row_rank_by_gram), ("right inverse", row_rank_by_inverse)):
        full = prove(Z)
        floor = sub_down(_ROOM[method] * full.s_min, moved) if full.proved and full.residual <= _RESIDUAL else 0.0
        if floor > add_up(0.0, 2.0**-960):
            return Block(start, stop, floor, method)
        reason = full.reason or f"s_min >= {full.s_min:.1e} does not outweigh rows moved by {delta:.1e}"
    return Block(start, stop, 0.0, "", reason)


Elsewhere: TypeAlias = Callable[[Iterable[tuple[npt.NDArray[np.int64], int, int]]], Generator[Block]]
"""Yields the proved block for each (row indices, start, stop), in order."""


class BlockProver:
    """Proves blocks of the rows along one direction, a few at a time.

    Parameters
    ----------
    rows : Rows
    cuts : Cuts
        The order along the direction.
    delta : float
        Bound of each row's change (2-norm).
    elsewhere : callable, optional
        Proves the blocks of a plan given each one's row indices; without it the cores of this machine do.
    """

    def __init__(
        self, rows: Rows, cuts: SortedProjections, delta: float = 0.0, elsewhere: Elsewhere | None = None
    ) -> None:
        self.rows, self.cuts, self.delta, self._elsewhere = rows, cuts, delta, elsewhere
        self.tried = 0
        self.failure = ""
        self._known: dict[tuple[int, int], Block] = {}

    def even(self, count: int) -> list[Block] | None:
        """Prove ``count`` blocks of nearly equal size, shifting boundaries away from what cannot be proved; or None.

        Where a block fails, it gives up 1, 2, 4, ... of its last rows to the blocks after it, which share the rest
        evenly, as long as these have room. Independent rows stay independent without some of them, so a shorter block
        is never worse.
        """
        plan = even_plan(self.cuts, 0, count, self.rows.m)
        if plan is None:
            self.failure = "no gaps between the projections where blocks would have to end"
            return None
        done: list[Block] = []
        n = self.rows.n
        while True:
            failed = None
            with contextlib.closing(self._prove(plan)) as proving:
                for block in proving:
                    if not block.proved:
                        failed = block
                        break
                    done.append(block)
            if failed is None:
                return done
            left = count - len(done) - 1
            shorter = self._shorter(failed, n - left * self.rows.m, left)
            if shorter is None:
                self.failure = f"rows {failed.start} to {failed.stop} along the direction: {failed.reason}"
                return None
            done.append(shorter)
            rest = even_plan(self.cuts, shorter.stop, left, self.rows.m)
            if rest is None:
                self.failure = "no room is left for the rows that a shifted boundary passes on"
                return None
            plan = rest

    def greedy(self, most: int) -> list[Block] | None:
        """Prove blocks each as long as can be, at most ``most`` of them; or None.

        Every block of rows that another staircase along this direction could have there is contained in or ends
        before the greedy one, so no direction has a shorter staircase than its greedy one (as far as proofs reach).
        """
        done: list[Block] = []
        start, n = 0, self.rows.n
        while start < n:
            if len(done) == most or n - start > (most - len(done)) * self.rows.m:
                self.failure = f"more than {most} blocks are needed along the direction"
                return None
            stop = min(start + self.rows.m, n)
            while stop < n and stop > start + 1 and not self.cuts.usable(np.array([stop]))[0]:
                stop -= 1
            block = self._one(start, stop)
            if not block.proved:
                shorter = self._shorter(block, start + 1, most)
                if shorter is None:
                    self.failure = f"rows {start} to {stop} along the direction: {block.reason}"
                    return None
                block = shorter
            done.append(block)
            start = block.stop
        return done

    def _shorter(self, failed: Block, low: int, left: int) -> Block | None:
        """Return the longest proved block that begins where ``failed`` does, among lengths 1, 2, 4, ... shorter."""
        if left < 1:
            return None
        tried, step = {failed.stop}, 1
        while True:
            stop = self._usable_below(failed.stop - step)
            if stop < max(low, failed.start + 1):
                break
            if stop not in tried:
                tried.add(stop)
                block = self._one(failed.start, stop)
                if block.proved:
                    return block
            step *= 2
        stop = max(low, failed.start + 1)
        if stop in tried or stop >= failed.stop or not self.cuts.usable(np.array([stop]))[0]:
            return None
        block = self._one(failed.start, stop)
        return block if block.proved else None

    def _usable_below(self, stop: int) -> int:
        while stop > 0 and not self.cuts.usable(np.array([stop]))[0]:
            stop -= 1
        return stop

    def _members(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        # The order of rows within a block does not matter; file order is faster to read.
        return np.sort(self.cuts.order[start:stop])

    def _one(self, start: int, stop: int) -> Block:
        known = self._known.get((start, stop))
        if known is None:
            self.tried += 1
            known = prove_block(self.rows.take(self._members(start, stop)), start, stop, self.delta)
            self._known[start, stop] = known
        return known

    def _prove(self, plan: Plan) -> Generator[Block]:
        """Yield the plan's blocks in order, working a few ahead."""
        if self._elsewhere is None:
            work = ordered(self._one, plan)
        else:
            work = self._elsewhere((self._members(start, stop), start, stop) for start, stop in plan)
        with contextlib.closing(work) as proving:
            for _, block in zip(track(range(len(plan)), "blocks"), proving):
                yield block
