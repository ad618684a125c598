"""Certificates about phi, checked again block by block by other means than they were produced with.

Nothing is taken over from the producer but the claim: the order of the rows, the blocks and the distance from the
thresholds are derived anew, a bound of each block's smallest singular value comes from a factorization that is
multiplied out, or from a right inverse that is multiplied out; how either was computed does not matter. Products
satisfy |fl(x^T y) - x^T y| <= k u |x|^T |y| + k 2^-1022 for k terms in any order (C.-P. Jeannerod, S. M. Rump, SIAM
J. Matrix Anal. Appl. 34 (2013) 338-344); one term more is charged for fused operations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignver import proof
from alignver.errors import InvalidInput
from alignver.phi import recheck_gates, recheck_optimality
from alignver.phi.claims import EXPLORATION, GATES, NO_EXPLORATION, OPTIMALITY, SUBOPTIMALITY
from alignver.phi.recheck_rows import identify
from alignver.phi.rows import Rows, open_rows
from alignver.phi.threads import ordered, single_threaded_blas
from alignver.progress import track
from alignver.proof.certificate import Certificate, check_array, describe, make
from alignver.proof.recheck import floats
from alignver.proof.recheck.failure import NotProved
from alignver.proof.rounding import assumptions_hold, shown_down
from alignver.proof.storage import Tampered, load_certificate
from alignver.results import CheckResult, Rigor, Verdict

__all__ = ["recheck"]

_U = 2.0**-53
_TINY = 2.0**-1022
_EXACT = 2**24  # products of integers: seconds, in plain Python
_ROOM = 1.0 + 2.0**-30  # more than the rounding of the scalar operations that it covers


def recheck(certificate: Certificate | str | Path, **inputs: Any) -> CheckResult:
    """Check that a certificate proves its claim about the given inputs; claims that are not about phi are passed on.

    Parameters
    ----------
    certificate : Certificate or path
    **inputs
        ``Z``, as :func:`~alignver.phi.rows.open_rows` takes it: a mapped file is read block by block. For a claim of
        optimality all of ``Z``, ``Y``, ``R``, ``W`` and ``theta``, as
        :meth:`~alignver.theory.exploitation.Exploitation.inputs` returns them.

    Returns
    -------
    CheckResult
        As :func:`alignver.proof.recheck.recheck`.

    Raises
    ------
    InvalidInput
        Inputs missing, unknown or no features; a file that is no certificate.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.checks.exploration import check_safe_exploration
    >>> Z = np.column_stack([np.random.default_rng(0).standard_normal((20, 4)), np.ones(20)])
    >>> proved = check_safe_exploration(Z, width=5)
    >>> recheck(proved.certificate, Z=Z).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> recheck(proved.certificate, Z=Z[::-1]).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    began = time.perf_counter()
    if isinstance(certificate, str | Path):
        try:
            certificate = load_certificate(certificate)
        except Tampered as error:
            return _result(None, Verdict.FAILS, f"the seal is broken: {error.got}", began)
    if not isinstance(certificate, Certificate):
        raise InvalidInput("certificate", type(certificate).__name__, "a Certificate or the path of one")
    optimal = certificate.claim in (OPTIMALITY, SUBOPTIMALITY)
    if not optimal and certificate.claim not in (EXPLORATION, GATES, NO_EXPLORATION):
        return proof.recheck(certificate, **inputs)
    names = ("R", "W", "Y", "Z", "theta") if optimal else ("Z",)
    if tuple(sorted(inputs)) != names:
        raise InvalidInput("inputs", ", ".join(sorted(inputs)) or "none", "exactly " + ", ".join(names))
    try:
        if optimal:
            reason = recheck_optimality.check(certificate, inputs)
        else:
            reason = _check(certificate, inputs)
    except NotProved as failure:
        return _result(certificate, Verdict.FAILS, str(failure), began)
    return _result(certificate, Verdict.HOLDS, reason, began)


def _result(certificate: Certificate | None, verdict: Verdict, reason: str, began: float) -> CheckResult:
    return CheckResult(
        name="recheck",
        statement="Certificate: " + ("the claim" if certificate is None else describe(certificate)),
        verdict=verdict,
        rigor=Rigor.PROOF,
        reason=reason,
        witness=None if verdict is Verdict.HOLDS else {"kind": "not proved", "reason": reason},
        certificate=certificate,
        cost={"seconds": time.perf_counter() - began},
    )


def _check(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    if not certificate.sealed:
        raise NotProved("the seal is broken: the certificate was changed after it was made")
    added, rank, width = (certificate.constants.get(key) for key in ("add_constant", "rank", "width"))
    if not isinstance(added, bool) or any(type(value) is not int or value < 1 for value in (rank, width)):
        raise NotProved("the certificate lacks the number of rows, the width or whether the constant is added")
    if not assumptions_hold():
        raise NotProved("this thread does not round to nearest with gradual underflow")
    methods: dict[tuple[str, str], Callable[..., str]] = {
        (EXPLORATION, "staircase"): _staircase,
        (NO_EXPLORATION, "count"): _count,
        (NO_EXPLORATION, "equal rows"): _equal_rows,
        (NO_EXPLORATION, "columns"): _columns,
        (NO_EXPLORATION, "rank of Z"): _rank_of_z,
        (GATES, "gram"): recheck_gates.gram,
    }
    method = methods.get((certificate.claim, str(certificate.method)))
    if method is None:
        raise NotProved(f"unknown method {str(certificate.method)[:40]!r} for the claim {certificate.claim!r}")
    rows = open_rows(inputs["Z"], add_constant=added)
    try:
        _require_kinds(certificate)
        _has_shape(certificate, rows)
        with single_threaded_blas(), np.errstate(all="ignore"):
            return method(certificate, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise NotProved(f"the certificate lacks what its method needs ({type(error).__name__}: {error})") from error
    finally:
        rows.close()


_KINDS = {
    "direction": "<f8",
    "thresholds": "<f8",
    "floors": "<f8",
    "gates": "<f8",
    "weights": "<f8",
    "rows": "<i8",
    "zero": "<i8",
    "copies": "<i8",
}


def _require_kinds(certificate: Certificate) -> None:
    """Refuse arrays of another kind than their method computes with: squares of integers wrap around."""
    for name, array in certificate.data.items():
        check_array(name, array)
        kind = array.dtype.str if certificate.method == "rank of Z" else _KINDS.get(name, array.dtype.str)
        if array.dtype.str != kind:
            raise NotProved(f"{name} is of dtype {array.dtype.str}, not {kind}")


def _has_shape(certificate: Certificate, rows: Rows) -> None:
    """Refuse another matrix by its shape, before anything in the certificate is held against it."""
    shape = certificate.inputs.get("Z", {}).get("shape")
    if tuple(shape or ()) != (rows.n, rows.stored):
        raise NotProved(f"Z is {rows.n} x {rows.stored} and not the input that this certificate is about")


def _count(certificate: Certificate, rows: Rows) -> str:
    identify(certificate, rows, lambda start, block: None)
    width = certificate.constants["width"]
    if not width * rows.m < rows.n:
        raise NotProved(f"{width} times {rows.m} columns are not fewer than {rows.n} rows")
    return f"phi has {width * rows.m} columns, fewer than its {rows.n} rows"


def _equal_rows(certificate: Certificate, rows: Rows) -> str:
    i, j = (int(k) for k in certificate.data["rows"])
    identify(certificate, rows, lambda start, block: None)
    pair = rows.take(np.array([i, j])) if 0 <= i < j < rows.n else np.eye(2)
    if not bool(np.all(pair[0] == pair[1])):
        raise NotProved(f"rows {i} and {j} of Z are not two equal rows")
    return f"rows {i} and {j} of Z are equal, so are those of phi"


def _columns(certificate: Certificate, rows: Rows) -> str:
    zero, copies = certificate.data["zero"], certificate.data["copies"]
    dropped = [*zero.tolist(), *copies[:, 0].tolist()]
    kept = set(range(rows.m)) - set(dropped)
    if len(set(dropped)) != len(dropped) or not set(dropped) | set(copies[:, 1].tolist()) <= set(range(rows.m)):
        raise NotProved("the columns are no sets of indices")
    if not set(copies[:, 1].tolist()) <= kept:
        raise NotProved("a column is said to repeat one that is left out itself")

    def visit(start: int, block: Any) -> None:
        if np.any(block[:, zero]) or np.any(block[:, copies[:, 0]] != block[:, copies[:, 1]]):
            raise NotProved("a column is neither zero nor a copy")

    identify(certificate, rows, visit)
    if not len(kept) * certificate.constants["width"] < rows.n:
        raise NotProved("the columns that are left are enough")
    return f"Z has rank {len(kept)} at most: times the width, fewer than {rows.n} rows"


def _rank_of_z(certificate: Certificate, rows: Rows) -> str:
    identify(certificate, rows, lambda start, block: None)
    of_z, Z = certificate.constants["of Z"], rows.read(0, rows.n)
    again = proof.recheck(make("rank", of_z["method"], {"A": Z}, certificate.data, of_z["constants"]), A=Z)
    if again.verdict is not Verdict.HOLDS:
        raise NotProved(f"the rank of Z is not proved again: {again.reason}")
    rank = int(of_z["constants"]["rank"])
    if not rank * certificate.constants["width"] < rows.n:
        raise NotProved(f"rank {rank} times the width is enough")
    return f"Z has rank {rank}: times the width, fewer than {rows.n} rows"


def _staircase(certificate: Certificate, rows: Rows) -> str:
    constants, data = certificate.constants, certificate.data
    v, thresholds, floors = data["direction"], data["thresholds"], data["floors"]
    c, delta, width = float(constants["c"]), float(constants["delta"]), int(constants["width"])
    if v.shape != (rows.m,) or v[-1] != 0.0 or thresholds.shape != (width,) or np.any(np.diff(thresholds) > 0):
        raise NotProved("the direction or the thresholds are none")
    q = np.append(c * v, c * thresholds)
    if math.frexp(c)[0] != 0.5 or not 0.0 <= delta < math.inf or not np.all(np.isfinite(q)):
        raise NotProved("c is no power of two, or takes the gates out of the range of floats")
    if not np.array_equal(q / c, np.append(v, thresholds)):
        raise NotProved("the gates are not exact")
    values, squares = np.empty(rows.n), np.empty(rows.n)

    def visit(start: int, block: Any) -> None:
        values[start : start + len(block)] = (v[None, :] @ block.T)[0]
        squares[start : start + len(block)] = (block * block).sum(axis=1)

    identify(certificate, rows, visit)
    inflate = 1.0 + 2.0 * (rows.n + rows.m + 4) * _U
    longest = math.sqrt(float(squares.max()) * inflate + rows.m * _TINY) * _ROOM
    size = (
        math.sqrt(float(squares.sum()) * inflate**2 + rows.n * rows.m * _TINY) * _ROOM
        + delta * math.sqrt(rows.n) * _ROOM
    )
    reach = math.hypot(_length(v), float(np.abs(thresholds).max())) * _ROOM
    error = (rows.m + 1) * _U * longest * _length(v) * _ROOM + (rows.m + 1) * _TINY + delta * reach * _ROOM
    # Row i lies below exactly `level` thresholds: those numbered 0 .. level - 1.
    level = np.searchsorted(-thresholds, -values, side="left")
    if int(level.max()) >= width:
        raise NotProved("a row lies below all thresholds")
    padded = np.concatenate([[math.inf], thresholds])
    margin = (
        min(float((padded[level] - values).min()), float((values - thresholds[level]).min())) * (1.0 - 2.0**-50) - error
    )
    if not margin > 0.0:
        raise NotProved("a projection cannot be told from a threshold")
    order = np.argsort(level, kind="stable")
    stops = np.append(np.flatnonzero(np.diff(level[order])) + 1, rows.n)
    if floors.shape != stops.shape or not bool(np.all((floors > 0) & (floors < math.inf))):
        raise NotProved("there is not one bound for each block")
    _floors_hold(rows, order, stops, floors, delta)
    least = float(floors.min()) * (0.5 if stops.size > 1 else 1.0)
    bound = least - math.exp(-min(c * margin * (1.0 - 2.0**-50), 700.0)) * _ROOM * math.sqrt(width) * _ROOM * size
    if not bound > 0.0 or bound < 0.99 * float(constants["s_min"]):
        raise NotProved("c is too small: the gates are not close enough to 0 and 1")
    within = f", for every Z with rows within {delta:.1e}" if delta else ""
    return f"{stops.size} independent blocks: phi(q) has rank {rows.n}, s_min(phi) >= {shown_down(bound)}{within}"


def _floors_hold(rows: Rows, order: Any, stops: Any, floors: Any, delta: float) -> None:
    starts = np.concatenate([[0], stops[:-1]])

    def one(k: int) -> None:
        start, stop = int(starts[k]), int(stops[k])
        if stop - start > rows.m:
            raise NotProved(f"block {k} has {stop - start} rows in {rows.m} columns")
        if not assumptions_hold():
            raise NotProved("this thread does not round to nearest with gradual underflow")
        block = rows.take(order[start:stop])
        target = (float(floors[k]) + delta * math.sqrt(stop - start) * _ROOM) * _ROOM
        with np.errstate(all="ignore"):
            if not (definite_floor(block, target * target) or inverse_floor(block, target) >= target):
                raise NotProved(f"block {k}: s_min >= {target:.2e} is not proved again")

    for _ in zip(track(range(stops.size), "blocks"), ordered(one, ((k,) for k in range(stops.size)))):
        pass


def _length(x: Any) -> float:
    """Return an upper bound of the 2-norm of all entries."""
    return math.sqrt(float(np.vdot(x, x)) * (1.0 + 2.0 * (x.size + 2) * _U) + x.size * _TINY) * _ROOM


def definite_floor(A: Any, target: float) -> bool:
    """Whether the smallest eigenvalue of A A^T is proved to be at least ``target``.

    With C any lower triangular matrix and s a number, A A^T = C C^T + s I + F + E, F the computed rest and E what
    rounding can have done: |E| <= (d+1) u |a_i||a_j| for the Gram matrix, (n+1) u |c_i||c_j| for C C^T, u for the
    differences. As C C^T is never negative, lambda_min >= s - ||F|| - ||E||.
    """
    n, d = A.shape
    gram = A @ A.T
    size = _length(A) ** 2
    noise = (n + d + 8) * _U * size * _ROOM + n * (n + d) * _TINY
    shift = (target + 1.2 * noise) * _ROOM
    shifted = gram.copy()
    shifted.flat[:: n + 1] -= shift
    try:
        C = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    rest = gram - C @ C.T
    rest.flat[:: n + 1] -= shift
    errors = (d + 1) * _U * size + (n + 1) * _U * _length(C) ** 2 + n * (n + d) * _TINY
    errors += 2.0 * _U * (_length(rest) + math.sqrt(n) * shift)
    return bool(shift - (_length(rest) + errors) * _ROOM >= target and math.isfinite(size))


def inverse_floor(A: Any, target: float) -> float:
    """Return a proved lower bound of s_min(A): (1 - ||I - A X||) / ||X|| for a right inverse X; 0 where there is
    none.

    Where rounding bounds of the product do not reach ``target``, it is multiplied out exactly, in blocks of a few
    hundred rows.
    """
    n, d = A.shape
    Q, R = np.linalg.qr(A.T)
    try:
        X = np.linalg.solve(R, Q.T).T
    except np.linalg.LinAlgError:
        return 0.0
    residual = np.eye(n) - A @ X
    size = np.abs(X)
    sides = float(size.sum(axis=0).max()) * float(size.sum(axis=1).max()) * (1.0 + 4.0 * (n + d) * _U)
    norm = min(_length(X), math.sqrt(sides) * _ROOM)
    epsilon = (_length(residual) * (1.0 + 4.0 * _U) + (d + 2) * _U * _length(A) * _length(X) + n * d * _TINY) * _ROOM
    bound = (1.0 - epsilon) / norm * (1.0 - 2.0**-50) if epsilon < 1.0 and 0.0 < norm < math.inf else 0.0
    if bound >= target or n * n * d > _EXACT or not bool(np.all(np.isfinite(X))):
        return bound
    try:
        return max(bound, floats.inverse_floor(A, np.ascontiguousarray(X)))
    except NotProved:
        return bound
