r"""The staircase witness: gates q that give phi(q) full row rank at the smallest possible width, and its certificate.

Claim. Let the gate s be continuous with limits 0 and 1, v in R^m with v_m = 0, p_i = v^T z_i, and let thresholds
t_1 > ... > t_h hit no p_i. Block B_k holds the rows between t_k and the threshold above it, and Z_k their z_i. If
every Z_k has full row rank and t_h lies below all p_i, then :math:`q_k = c (v - t_k e_m)` gives rank phi(q) = n for
all large c.

Proof. q_k^T z_i = c (p_i - t_k), so S_ik tends to 1 for rows above t_k and to 0 below. The limit of phi has, in the
rows of the j-th non-empty block, Z_j in the columns of every threshold below it. Take the columns of one threshold
for each of the h' non-empty blocks: they form :math:`\mathrm{blockdiag}(Z_1, ..., Z_{h'}) (U \otimes I_m)`, U upper
triangular, all ones.
:math:`U^{-1} = I - N` with N the shift, so :math:`\|U^{-1}\|_2 \le 2` (and 1 for h' = 1), hence
:math:`s_{\min}(\phi_\infty) \ge \tfrac12 \min_k s_{\min}(Z_k) > 0`; further columns never lower s_min of a matrix with
no more rows than columns. Rank is lower semicontinuous.

Explicitly, for the logistic gate and :math:`g = \min |p_i - t_k|`: s(x) = 1 - s(-x) <= e^x, so every entry of S is
within :math:`e^{-cg}` of its limit and :math:`\|\phi(q) - \phi_\infty\|_F \le e^{-cg} \sqrt h \|Z\|_F`. With weights w
of the last layer, phi diag(w (x) I) has :math:`s_{\min} \ge \min_k |w_k|\, s_{\min}(\phi)`, k over the units that are
used.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from alignver.features.block_prover import Block, BlockProver, SortedProjections
from alignver.features.cluster import Cluster
from alignver.features.rows import Rows, RowScan
from alignver.features.threads import single_threaded_blas
from alignver.kernel import Certificate, seal
from alignver.proof.rounding import FloatArray, add_up, mul_down, mul_up, norm_up, scale_up, sqrt_up, sub_down, sum_up

_SHARE = 2.0**-10  # the share of s_min(phi) that a finite c may cost
_ROOM = 0.98  # the share of the proved bound that is claimed: a re-check by other bounds finds a little less


@dataclasses.dataclass(frozen=True)
class Staircase:
    """A proved staircase.

    Attributes
    ----------
    direction : (m,) float64
        v, with v_m = 0.
    thresholds : (h,) float64
        t, descending. If the width exceeds the number of blocks, the first ones lie above all projections.
    c : float
        A power of two, so that q = c (v - t e_m) is exact.
    margin : float
        Verified lower bound of g.
    blocks : tuple of Block
        In order of descending projections.
    s_min : float
        Verified lower bound of s_min(phi(q)), q of all h units, for every Z within the ball.
    norm : float
        Verified upper bound of ||phi(q)||_F.
    attempt : int
        The number of the direction, counted from 1.
    """

    direction: FloatArray
    thresholds: FloatArray
    c: float
    margin: float
    blocks: tuple[Block, ...]
    s_min: float
    norm: float
    attempt: int

    @property
    def width(self) -> int:
        """The number of hidden units."""
        return int(self.thresholds.size)

    def q(self) -> FloatArray:
        """Return the gates (m, h)."""
        return gates(self.direction, self.thresholds, self.c)


@dataclasses.dataclass(frozen=True)
class Search:
    """A staircase, or the reason why the search ended without one."""

    staircase: Staircase | None
    attempts: int
    reason: str


def gates(direction: FloatArray, thresholds: FloatArray, c: float) -> FloatArray:
    """Return q (m, h) with columns ``c (v - t_k e_m)``: exact if c is a power of two and nothing over- or underflows.

    Examples
    --------
    >>> import numpy as np
    >>> gates(np.array([1.0, 0.0]), np.array([0.5, -0.5]), 4.0)
    array([[ 4.,  4.],
           [-2.,  2.]])
    """
    q = np.repeat((c * direction)[:, None], thresholds.size, axis=1)
    q[-1] = -c * thresholds
    return q


def find_staircase(
    rows: Rows,
    scan: RowScan,
    width: int | None,
    *,
    delta: float = 0.0,
    tries: int | None = None,
    thorough: bool = True,
    cluster: Cluster | None = None,
) -> Search:
    """Search for a staircase of ``width`` units, or of as few as can be proved, along the directions of the scan.

    A given width is tried with blocks of equal size along each direction, and then with blocks as long as possible.
    Without a width, the limit ceil(n/m) is tried first; then the greedy staircases give the number of units that each
    direction needs.

    Parameters
    ----------
    rows : Rows
    scan : RowScan
        The result of the pass over the rows.
    width : int, optional
        >= ceil(n/m).
    delta : float
        Bound of each row's change (2-norm).
    tries : int, optional
        The number of directions to use.
    thorough : bool
        False: blocks of equal size only.
    cluster : Cluster, optional
        Its workers prove the blocks.

    Returns
    -------
    Search
    """
    units = -(-rows.n // rows.m) if width is None else width
    available = scan.projections.shape[1]
    provers: list[BlockProver] = []
    reason = "no direction was tried"
    with single_threaded_blas():
        remote = None if cluster is None else cluster.prover(rows, scan.record["sha256"], delta)
        for attempt in range(1, (available if tries is None else min(tries, available)) + 1):
            prover = BlockProver(rows, _projections(scan, attempt - 1, delta, rows.added), delta, remote)
            provers.append(prover)
            for count in _counts(rows, units):
                blocks = prover.even(count)
                if blocks is None:
                    reason = prover.failure
                    continue
                stairs = _complete(rows, scan, prover.projections, blocks, units, attempt, delta)
                if isinstance(stairs, Staircase):
                    return Search(stairs, attempt, "")
                reason = stairs
        if thorough:
            return _search_greedily(rows, scan, provers, width, delta, reason)
        return Search(None, len(provers), reason)


def _search_greedily(
    rows: Rows, scan: RowScan, provers: list[BlockProver], width: int | None, delta: float, reason: str
) -> Search:
    best: tuple[int, list[Block]] | None = None
    for attempt, prover in enumerate(provers, 1):
        most = width if width is not None else rows.n if best is None else len(best[1]) - 1
        blocks = prover.greedy(most)
        if blocks is None:
            reason = prover.failure
            continue
        best = (attempt, blocks)
        if width is not None:
            break
    if best is None:
        return Search(None, len(provers), reason)
    attempt, greedy = best
    prover = provers[attempt - 1]
    # As many blocks of equal size are better conditioned than blocks as long as possible.
    for candidate in (prover.even(len(greedy)), greedy):
        if candidate is None:
            continue
        stairs = _complete(rows, scan, prover.projections, candidate, width or len(greedy), attempt, delta)
        if isinstance(stairs, Staircase):
            return Search(stairs, len(provers), "")
        reason = stairs
    return Search(None, len(provers), reason)


def _counts(rows: Rows, width: int) -> list[int]:
    """Return the numbers of blocks to try: one per unit, preceded by fewer where blocks would be shorter than m/4."""
    most = min(width, rows.n)
    enough = min(most, 4 * -(-rows.n // rows.m))
    return [enough] if enough == most else [enough, most]


def _projections(scan: RowScan, index: int, delta: float, added: bool) -> SortedProjections:
    r"""Sort the rows along a direction; a row that moves by delta moves p - t z_m by at most delta ||v - t e_m||.

    If the constant z_m = 1 is added to every row, it does not move: delta ||v||.
    """
    values = np.ascontiguousarray(scan.projections[:, index])
    error = float(scan.errors[index])
    if delta:
        v = scan.directions[:, index]
        v = v if added else np.append(v, _largest_threshold(values))
        error = add_up(error, mul_up(delta, norm_up(v)))
    return SortedProjections.along(values, error)


def _largest_threshold(values: FloatArray) -> float:
    """Return a bound of |t|: thresholds lie within the values, or beyond them by at most their spread."""
    return add_up(4.0 * float(np.abs(values).max()), 2.0**-400)


def _complete(
    rows: Rows,
    scan: RowScan,
    projections: SortedProjections,
    blocks: list[Block],
    width: int,
    attempt: int,
    delta: float,
) -> Staircase | str:
    """Return the staircase of proved blocks with its explicit c and bounds, or the reason why it has no proof."""
    positions = [0] * (width - len(blocks)) + [block.stop for block in blocks]
    margin = min(projections.margin(position) for position in positions)
    thresholds = np.array([projections.threshold(position) for position in positions])
    if not margin > 0.0:
        return "the gaps between the projections are as small as their rounding errors"
    floor = min(block.s_min for block in blocks)
    base = 0.5 * floor if len(blocks) > 1 else floor
    squares = scan.squares[projections.order]
    size = sqrt_up(sum_up(squares))
    if delta:
        size = add_up(size, mul_up(delta, sqrt_up(float(rows.n))))
    spill = mul_up(sqrt_up(float(width)), size)
    exponent = _exponent(margin, spill, _SHARE * base)
    if exponent is None:
        return f"c would overflow: the smallest gap between the projections is {margin:.1e}"
    c = math.ldexp(1.0, exponent)
    direction = np.ascontiguousarray(scan.directions[:, attempt - 1])
    q = gates(direction, thresholds, c)
    exact = bool(np.all(np.isfinite(q))) and bool(np.array_equal(q[-1] / c, -thresholds))
    if delta and not rows.added and float(np.abs(thresholds).max()) > _largest_threshold(projections.values):
        return "delta is as large as the spread of the projections"
    if not exact or not bool(np.array_equal(q[:, 0][:-1] / c, direction[:-1])):
        return f"with c = {c:.1e} the gates leave the range of float64"
    lost = scale_up(spill, -_halvings(c, margin))
    s_min = _ROOM * max(0.0, sub_down(base, lost))
    # Row i of the limit holds z_i once for every threshold below it: for its block and all later ones.
    repeats = np.repeat(np.arange(len(blocks), 0, -1.0), [block.stop - block.start for block in blocks])
    norm = add_up(sqrt_up(sum_up(np.nextafter(squares * repeats, np.inf))), lost)
    if delta:
        norm = add_up(norm, mul_up(delta, sqrt_up(mul_up(float(rows.n), float(width)))))
    if not s_min > 0.0:
        return "the bound of s_min(phi) underflows"
    return Staircase(direction, thresholds, c, margin, tuple(blocks), s_min, norm, attempt)


def _halvings(c: float, margin: float) -> int:
    r"""Return k with :math:`e^{-cg} \le 2^{-k}`: :math:`\log_2 e = 1.44269... > 1.4426`."""
    return int(min(math.floor(mul_down(mul_down(c, margin), 1.4426)), 1 << 20))


def _exponent(margin: float, spill: float, allowed: float) -> int | None:
    """Return the least exponent of a power of two c with e^(-c g) spill <= allowed; None if c g would overflow."""
    if not (0.0 < allowed < math.inf and spill < math.inf):
        return None
    needed = max(1, math.frexp(spill)[1] - math.frexp(allowed)[1] + 2)
    exponent = math.frexp(needed / 1.4426)[1] - math.frexp(margin)[1] + 1
    while exponent < 1020 and _halvings(math.ldexp(1.0, exponent), margin) < needed:
        exponent += 1
    return exponent if -1000 < exponent < 1000 else None


def certify_staircase(stairs: Staircase, rows: Rows, scan: RowScan, delta: float = 0.0) -> Certificate:
    """Return the certificate of a staircase.

    It stores v, the thresholds, c and a bound of s_min for each block. The order of the rows, the blocks and q follow
    from these.
    """
    data = {
        "direction": stairs.direction,
        "thresholds": stairs.thresholds,
        "floors": np.array([block.s_min for block in stairs.blocks]),
    }
    constants = {
        "rank": rows.n,
        "width": stairs.width,
        "add_constant": rows.added,
        "c": stairs.c,
        "margin": stairs.margin,
        "s_min": stairs.s_min,
        "delta": float(delta),
    }
    return seal("exploration", "staircase", {"Z": scan.record}, data, constants)


def gates_of(certificate: Certificate) -> FloatArray:
    """Return the gates q (m, h) of a staircase certificate, which proves that phi(q) has full row rank."""
    data = certificate.data
    return gates(data["direction"], data["thresholds"], float(certificate.constants["c"]))
