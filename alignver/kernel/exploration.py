r"""Claims about the rank of phi(q): the matrix with the rows :math:`s_i \otimes z_i`.

The gates are :math:`s_{ik} = \tilde\sigma(z_i^\top q_k)`, :math:`\tilde\sigma` the logistic function. Only the claim is
taken from the producer: the order of the rows, the blocks and the distances from the thresholds are recomputed.
``docs/exploration.md`` has the theorem of the staircase: with g the distance from the thresholds, a row above the
threshold of a gate has a gate value of at least :math:`1 - e^{-c g}`, a row below it one of at most :math:`e^{-c g}`,
and with values 0 and 1 phi is block triangular with independent blocks.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.certificate import Certificate, seal
from alignver.kernel.exact import equal, exponents, floats, indices, nonzero, number, power, rounded_down, sqrt_up
from alignver.kernel.failure import NotProved, require
from alignver.kernel.floats import (
    EXACT,
    OMEGA,
    Run,
    exact_residual,
    gamma,
    gram_floor,
    inverse_floor,
    norm_up,
)
from alignver.kernel.gates import gate_floor
from alignver.kernel.machine import require_ieee
from alignver.kernel.matrices import METHODS as MATRIX_METHODS
from alignver.kernel.snapshot import Rows
from alignver.results import shown_down


def _count(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    rows.identify(certificate, track)
    columns = certificate.constants["width"] * rows.m
    require(columns < rows.n, f"phi has {columns} columns, not fewer than its {rows.n} rows")
    return f"phi has {columns} columns, fewer than its {rows.n} rows"


def _equal_rows(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    i, j = indices(certificate.data["rows"], rows.n)
    rows.identify(certificate, track)
    pair = rows.take(np.array([i, j]))
    require(equal(pair[0], pair[1]), f"rows {i} and {j} of Z are not equal")
    return f"rows {i} and {j} of Z are equal, so are those of phi"


def _columns(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    """rank phi <= h rank Z, and zero columns and copies do not add to the rank of Z."""
    copies = certificate.data["copies"]
    require(copies.ndim == 2 and copies.shape[1] == 2, "the copies are not pairs of columns")
    zero, copied = indices(certificate.data["zero"], rows.m), indices(copies[:, 0], rows.m)
    require(not set(zero) & set(copied), "a column that is both zero and a copy")
    remaining, sources = set(range(rows.m)) - {*zero, *copied}, set(copies[:, 1].tolist())
    require(sources <= remaining, "a copy of a column that is itself omitted")

    def visit(start: int, block: Any) -> None:
        require(not nonzero(block[:, zero]).any(), "a column is not zero")
        require(equal(block[:, copies[:, 0]], block[:, copies[:, 1]]), "a column is not a copy")

    rows.identify(certificate, track, visit)
    require(len(remaining) * certificate.constants["width"] < rows.n, "the remaining columns are enough")
    return f"Z has rank {len(remaining)} at most: times the width, fewer than {rows.n} rows"


def _rank_of_z(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    Z = np.empty((rows.n, rows.m))
    rows.identify(certificate, track, lambda start, block: np.copyto(Z[start : start + len(block)], block))
    of_z = certificate.constants["of Z"]
    inner = seal("rank", of_z["method"], {"A": Z}, certificate.data, of_z["constants"], version=certificate.version)
    require(inner.constants.get("ball") is None, "a rank of Z holds for one matrix, not for a ball")
    MATRIX_METHODS["rank", inner.method](inner, {"A": Z}, run)
    rank = inner.constants["rank"]
    require(rank * certificate.constants["width"] < rows.n, f"rank {rank} times the width is enough")
    return f"Z has rank {rank}: times the width, fewer than {rows.n} rows"


def _staircase(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    r"""Gates :math:`q_k = c (v - t_k e_m)` give phi(q) full row rank, s_min(phi) at least as large as claimed.

    The error of a projection is at most :math:`\gamma_m \|z_i\| \|v\| + m\,\omega`, and it changes by at most
    :math:`\delta \|v - t e_m\|` with its row, by :math:`\delta \|v\|` if the constant 1 is added: it stays. With h'
    blocks, h gates, all distances from thresholds at least g and the s_min of every block at least f,

    .. math:: s_{\min}(\phi) \ge f / 2 - e^{-c g} \sqrt h\,\|Z\|_F \quad (f \text{ for } f / 2 \text{ if } h' = 1).
    """
    constants, data = certificate.constants, certificate.data
    c, delta, claimed = (number(constants, name) for name in ("c", "delta", "s_min"))
    width = constants["width"]
    v = floats(data["direction"], (rows.m,), "a direction")
    thresholds = floats(data["thresholds"], (width,), "thresholds")
    require(not nonzero(v[-1:]).any(), "the direction has a component along the constant")
    require(bool(np.all(np.diff(thresholds) <= 0)), "the thresholds do not descend")
    # c is a power of two and no product with it over- or underflows, so the gates are exact.
    gates = np.append(v, thresholds)
    require(math.frexp(float(c))[0] == 0.5, "c is not a power of two")
    require(equal(gates * float(c) / float(c), gates), "the gates overflow or underflow with this c")
    values, squares = np.empty(rows.n), np.empty(rows.n)

    def visit(start: int, block: Any) -> None:
        values[start : start + len(block)] = (v[None, :] @ block.T)[0]
        squares[start : start + len(block)] = np.einsum("ij,ij->i", block, block)

    rows.identify(certificate, track, visit)
    require(bool(np.all(squares < math.inf)), "rows of Z whose squares overflow")
    # Sums of m squares, then of n sums: the relative errors are below gamma_m and gamma_n.
    longest = sqrt_up((Fraction(float(squares.max())) + rows.m * OMEGA) / (1 - gamma(rows.m)))
    total = (Fraction(float(squares.sum())) / (1 - gamma(rows.n)) + rows.n * rows.m * OMEGA) / (1 - gamma(rows.m))
    size = sqrt_up(total) + delta * sqrt_up(Fraction(rows.n))
    length = norm_up(v)
    reach = length if rows.added else sqrt_up(length**2 + Fraction(float(np.abs(thresholds).max())) ** 2)
    error = gamma(rows.m) * longest * length + rows.m * OMEGA + delta * reach
    # Row i lies below exactly `level` thresholds: those numbered 0 .. level - 1.
    level = np.searchsorted(-thresholds, -values, side="left")
    require(int(level.max()) < width, "a row lies below all thresholds")
    padded = np.concatenate([[math.inf], thresholds])
    nearest = min(float((padded[level] - values).min()), float((values - thresholds[level]).min()))
    margin = (Fraction(nearest) if nearest < math.inf else Fraction(0)) * (1 - gamma(1)) - error
    require(margin > 0, "a projection is not separated from a threshold")
    order = np.argsort(level, kind="stable")
    stops = np.append(np.flatnonzero(np.diff(level[order])) + 1, rows.n)
    floors = floats(data["floors"], stops.shape, "bounds of the blocks")
    require(bool(np.all(floors > 0)), "a bound of a block that is not positive")
    _blocks_hold(rows, order, stops, [Fraction(floor) for floor in floors.tolist()], delta, run, track)
    least = Fraction(float(floors.min())) * (Fraction(1, 2) if stops.size > 1 else 1)
    # log2 e > 1.4426, so e^-x <= 2^-(1.4426 x).
    halvings = min(math.floor(c * margin * Fraction(14426, 10000)), 1 << 14)
    bound = least - power(-halvings) * sqrt_up(Fraction(width)) * size
    needed = claimed * (Fraction(99, 100) if certificate.version == 1 else 1)
    require(bound > 0 and bound >= needed, "c is too small: the gates are not close enough to 0 and 1")
    return f"{stops.size} independent blocks: phi(q) has rank {rows.n}, s_min(phi) >= {_stated(bound, delta)}"


def _stated(bound: Fraction, delta: Fraction) -> str:
    within = f", for every Z with rows within {shown_down(float(delta))}" if delta else ""
    return shown_down(rounded_down(bound)) + within


def _blocks_hold(
    rows: Rows, order: Any, stops: Any, floors: list[Fraction], delta: Fraction, run: Run, track: Any
) -> None:
    """Require each block's smallest singular value to be at least its floor for every Z in the ball."""
    starts = [0, *stops[:-1].tolist()]

    def one(k: int) -> None:
        require_ieee()
        start, stop = starts[k], int(stops[k])
        require(stop - start <= rows.m, f"block {k} has {stop - start} rows in {rows.m} columns")
        # Changes of all rows by delta change the block by delta times the square root of their number.
        target = floors[k] + delta * sqrt_up(Fraction(stop - start))
        with np.errstate(all="ignore"):
            require(_at_least(rows.take(order[start:stop]), target), f"the bound of block {k} is not proved")

    for _ in zip(track(range(stops.size), "blocks"), run(one, range(stops.size)), strict=True):
        pass


def _at_least(block: Any, target: Fraction) -> bool:
    """Whether the smallest singular value of a block is proved to be at least ``target``."""
    try:
        if gram_floor(block, target**2) >= target**2:
            return True
    except NotProved:
        pass
    # Too ill-conditioned for its Gram matrix. Any approximate right inverse is valid: the first one, or the result of a
    # Newton step with the exact residual.
    try:
        Q, R = np.linalg.qr(block.T)
        X = np.ascontiguousarray(np.linalg.solve(R, Q.T).T)
        if block.size * len(block) <= EXACT:
            rows, one = exact_residual(block, X)
            refined = X + X @ np.array([[value / one for value in row] for row in rows])
            return max(inverse_floor(block, Y, target) for Y in (X, refined)) >= target
        return inverse_floor(block, X, target, exactly=False) >= target
    except (NotProved, np.linalg.LinAlgError):
        return False


def _gates(certificate: Certificate, rows: Rows, run: Run, track: Any) -> str:
    """phi of the given gates has full row rank: its Gram matrix is definite."""
    Z = np.empty((rows.n, rows.m))
    rows.identify(certificate, track, lambda start, block: np.copyto(Z[start : start + len(block)], block))
    constants, weights = certificate.constants, certificate.data.get("weights")
    gates = floats(certificate.data["gates"], (rows.m, constants["width"]), "gates")
    delta, claimed = number(constants, "delta"), number(constants, "s_min")
    scaling = certificate.data.get("scaling")
    scaling = None if scaling is None else exponents(scaling, rows.n)
    bound = gate_floor(Z, gates, weights, delta, claimed, run, scaling)
    matrix = "phi(q)" if weights is None else "phi(q) (diag(w) x I)"
    return f"{matrix} has rank {rows.n}: its Gram matrix was factored again, s_min >= {_stated(bound, delta)}"


METHODS = {("exploration", "staircase"): _staircase, ("exploration-gates", "gram"): _gates}
METHODS |= {("no-exploration", "count"): _count, ("no-exploration", "equal rows"): _equal_rows}
METHODS |= {("no-exploration", "columns"): _columns, ("no-exploration", "rank of Z"): _rank_of_z}
