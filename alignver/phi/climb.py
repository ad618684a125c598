"""From a direction to proved blocks: an even plan first, boundaries shifted where a block is too ill-conditioned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from alignver.phi.blocks import Block, prove_block
from alignver.phi.cuts import Cuts, Plan, even_plan
from alignver.phi.rows import Rows
from alignver.phi.threads import ordered
from alignver.progress import track

__all__ = ["Climber", "Elsewhere"]

Elsewhere: TypeAlias = Callable[[Iterable[tuple[npt.NDArray[np.int64], int, int]]], Generator[Block]]
"""Yields the proved block for each (row indices, start, stop), in order."""


class Climber:
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

    def __init__(self, rows: Rows, cuts: Cuts, delta: float = 0.0, elsewhere: Elsewhere | None = None) -> None:
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
