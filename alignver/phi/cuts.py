"""Where the order of the projections may be cut: between two that differ by more than what they may be wrong by."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from alignver.proof.rounding import FloatArray, sub_down

__all__ = ["Cuts", "Plan", "cut_at", "even_plan"]

Plan = list[tuple[int, int]]
"""Blocks as (start, stop) in the order of descending projections."""

_WINDOW = 64  # a cut may sit this fraction of a block away from its even place, for a wider gap


@dataclasses.dataclass(frozen=True)
class Cuts:
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
    def along(cls, projections: FloatArray, error: float) -> Cuts:
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


def cut_at(cuts: Cuts, ideal: int, low: int, high: int) -> int | None:
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


def even_plan(cuts: Cuts, start: int, count: int, most: int) -> Plan | None:
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
