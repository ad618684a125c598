"""One block of the staircase: is Z_k of full row rank, and how small can its smallest singular value be?"""

from __future__ import annotations

import dataclasses

from alignver.kernel.environment import arithmetic_fault
from alignver.proof.gram import row_rank_by_gram
from alignver.proof.inverse import row_rank_by_inverse
from alignver.proof.rounding import FloatArray, add_up, mul_up, sqrt_up, sub_down

__all__ = ["Block", "prove_block"]

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
