"""From cheap to dear: the steps by which membership and rank are proved or refuted."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.progress import stage
from alignver.proof.ball import Ball
from alignver.proof.certificate import make
from alignver.proof.certify import (
    certify_conflict,
    certify_distance,
    certify_full_rank,
    certify_solution,
    scaling_is_exact,
)
from alignver.proof.decision import Decision, Trail
from alignver.proof.exact import Combination
from alignver.proof.exact_ladder import Budget, membership_exactly, rank_exactly
from alignver.proof.gram import FullRank, row_rank_by_gram, row_rank_by_some_columns
from alignver.proof.inverse import row_rank_by_inverse
from alignver.proof.residual import Distance, distance_from
from alignver.proof.rounding import FloatArray, assumptions_hold
from alignver.proof.structure import find_conflict
from alignver.results import Verdict

__all__ = ["Exact", "prove_membership", "prove_rank"]

Exact = Literal["auto", "force", "never"]

BUDGET_BYTES = 2_000_000_000
"""What exact arithmetic may take before it is refused: a laptop's free memory."""

BUDGET_SECONDS = 60.0
"""Estimated time that ``exact="auto"`` may spend on exact arithmetic: about what a person waits for."""


def prove_membership(
    J: Any,
    y: Any,
    *,
    ball: Ball | None = None,
    exact: Exact = "auto",
    budget_bytes: int = BUDGET_BYTES,
    budget_seconds: float = BUDGET_SECONDS,
) -> Decision:
    r"""Prove or refute that y is in the column space of J.

    .. math:: \exists \beta: J \beta = y

    of the real matrix whose entries are exactly the given floats, or of every matrix in ``ball``. The steps, in this order:
    structure (zero target, zero or proportional rows), Gram matrix, right inverse (full row rank, J wide); residual (full
    column rank, J tall); exact rational arithmetic.

    Parameters
    ----------
    J : (N, d) float64
    y : (N,) float64
    ball : Ball, optional
        HOLDS then means for every matrix in it, FAILS for none of them; exact arithmetic does not apply.
    exact : {"auto", "force", "never"}
        Whether to use exact arithmetic: within a time budget, whatever it takes (skipping the floating-point steps), not at
        all.
    budget_bytes, budget_seconds
        What exact arithmetic may take; estimated before it is spent. ``"force"`` ignores the seconds.

    Returns
    -------
    Decision
        HOLDS or FAILS with PROOF and certificate, or UNDECIDED.

    Raises
    ------
    InvalidInput
        Not finite, empty, or of shapes that disagree.
    MissingDependency
        ``exact="force"`` without python-flint.

    Examples
    --------
    >>> import numpy as np
    >>> prove_membership(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([3.0, 4.0])).step
    'gram'
    >>> prove_membership(np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([1.0, 3.0])).reason
    'row 1 of J is exactly 2 times row 0, and its target is not (1, 3)'
    """
    matrix, target = _matrix(J, "J"), np.ascontiguousarray(host(as_vector(y, "y").array))
    if matrix.shape[0] != target.shape[0]:
        raise InvalidInput("y", f"{target.shape[0]} entries", f"{matrix.shape[0]}, one for every row of J")
    trail = _start(matrix, "J", ball, exact)
    inputs = {"J": matrix, "y": target}
    found = _by_structure(inputs, trail)
    if found is None and exact != "force":
        found = _row_rank(inputs, trail) if matrix.shape[0] <= matrix.shape[1] else _outside(inputs, trail)
    if found is None and trail.ball is None and exact != "never":
        found = membership_exactly(inputs, trail, Budget(budget_bytes, budget_seconds, exact == "force"))
    return found if found is not None else trail.undecided(_advice(trail, exact))


def prove_rank(
    A: Any,
    rank: int,
    *,
    ball: Ball | None = None,
    exact: Exact = "auto",
    budget_bytes: int = BUDGET_BYTES,
    budget_seconds: float = BUDGET_SECONDS,
) -> Decision:
    r"""Prove or refute that the rank of A is ``rank``.

    Full rank is proved by the Gram matrix or a one-sided inverse; any other rank r exactly, by a minor of order r that is not
    zero modulo a prime, and by null vectors or vanishing modulo enough primes for nothing larger.

    Parameters
    ----------
    A : (N, d) float64
    rank : int
        >= 0.
    ball, exact, budget_bytes, budget_seconds
        As in :func:`prove_membership`.

    Returns
    -------
    Decision
        HOLDS or FAILS with PROOF and certificate, or UNDECIDED.

    Raises
    ------
    InvalidInput
        Not finite, empty, or a rank that is no number >= 0.
    MissingDependency
        ``exact="force"`` without python-flint.

    Examples
    --------
    >>> import numpy as np
    >>> prove_rank(np.array([[1.0, 2.0], [2.0, 4.0]]), 1).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    matrix = _matrix(A, "A")
    if not isinstance(rank, int | np.integer) or isinstance(rank, bool) or rank < 0:
        raise InvalidInput("rank", repr(rank), "an integer >= 0")
    rank = int(rank)
    trail = _start(matrix, "A", ball, exact)
    inputs = {"A": matrix}
    if rank > min(matrix.shape):
        certificate = make("not-rank", "shape", inputs, {}, {"rank": rank})
        reason = f"a {matrix.shape[0]} by {matrix.shape[1]} matrix has rank {min(matrix.shape)} at most"
        return trail.decided(
            Verdict.FAILS, "structure", reason, certificate, {"kind": "shape", "shape": matrix.shape}
        )
    found = None
    if exact != "force":
        found = _full_rank(inputs, rank, trail)
    if found is None and trail.ball is None and exact != "never":
        found = rank_exactly(inputs, rank, trail, Budget(budget_bytes, budget_seconds, exact == "force"))
    return found if found is not None else trail.undecided(_advice(trail, exact))


def _matrix(value: Any, name: str) -> FloatArray:
    return np.ascontiguousarray(host(as_matrix(value, name).array))


def _start(matrix: FloatArray, name: str, ball: Ball | None, exact: str) -> Trail:
    if exact not in ("auto", "force", "never"):
        raise InvalidInput("exact", repr(exact), "'auto', 'force' or 'never'")
    if ball is not None and not isinstance(ball, Ball):
        raise InvalidInput("ball", type(ball).__name__, "a Ball")
    if ball is not None:
        ball.check_shape(matrix.shape, name)
    return Trail(None if ball is None or ball.is_point else ball)


def _by_structure(inputs: dict[str, FloatArray], trail: Trail) -> Decision | None:
    J, y = inputs["J"], inputs["y"]
    if not np.any(y):
        certificate = certify_solution(
            inputs, Combination((), (), 1), np.zeros(J.shape[1], dtype=np.int64), trail.ball
        )
        return trail.decided(Verdict.HOLDS, "structure", "y is zero, and so is J times zero", certificate)
    if trail.ball is not None:
        return None  # a null vector of the centre says nothing about its neighbours
    conflict = find_conflict(J, y)
    if conflict is None:
        trail.missed("structure", "no zero or proportional rows with targets that conflict")
        return None
    witness = {"kind": conflict.kind, "rows": conflict.rows, "weights": conflict.weights}
    return trail.decided(
        Verdict.FAILS, "structure", conflict.reason, certify_conflict(inputs, conflict), witness
    )


def _wide_rank(wide: FloatArray, trail: Trail, ball: Ball | None) -> tuple[FullRank, str] | None:
    """Prove full row rank of a wide matrix by one of the two floating-point steps."""
    if not assumptions_hold():
        trail.missed("gram", "this thread does not round to nearest with gradual underflow")
        return None
    if ball is None:
        with stage("full rank: gram of some columns"):
            some = row_rank_by_some_columns(wide)
        if some is not None and some.proved:
            trail.measured["s_min_lower"] = some.s_min
            return some, "gram"
        if some is not None:
            trail.missed("gram of some columns", some.reason)
    for step, method in (("gram", row_rank_by_gram), ("right inverse", row_rank_by_inverse)):
        with stage(f"full rank: {step}"):
            full = method(wide, ball)
        trail.measured["s_min_lower"] = max(full.s_min, trail.measured.get("s_min_lower", 0.0))
        if full.proved:
            assert full.exponents is not None
            if ball is None or scaling_is_exact(wide, full.exponents):
                return full, step
            trail.missed(step, "rows scaled by powers of two underflow, and a ball leaves no exact re-check")
        else:
            trail.missed(step, full.reason)
    return None


def _row_rank(inputs: dict[str, FloatArray], trail: Trail) -> Decision | None:
    proof = _wide_rank(inputs["J"], trail, trail.ball)
    if proof is None:
        return None
    full, step = proof
    certificate = certify_full_rank("membership", inputs, "rows", full, trail.ball)
    reason = (
        f"J has full row rank{_within(trail)} (s_min >= {full.s_min:.3g}), so every y is in its column space"
    )
    return trail.decided(Verdict.HOLDS, step, reason, certificate)


def _outside(inputs: dict[str, FloatArray], trail: Trail) -> Decision | None:
    if not assumptions_hold():
        trail.missed("residual", "this thread does not round to nearest with gradual underflow")
        return None
    with stage("residual"):
        found = distance_from(inputs["J"], inputs["y"], trail.ball)
    if found.proved and trail.ball is not None and not _leaves_recheck(inputs["J"], found):
        trail.missed("residual", "columns scaled by powers of two underflow, and a ball leaves no exact re-check")
        return None
    if not found.proved:
        trail.missed("residual", found.reason)
        return None
    trail.measured |= {"distance_lower": found.distance}
    reason = f"J has full column rank{_within(trail)} and y is at least {found.distance:.3g} away from its column space"
    witness = {"kind": "distance", "distance_lower": found.distance}
    return trail.decided(
        Verdict.FAILS, "residual", reason, certify_distance(inputs, found, trail.ball), witness
    )


def _leaves_recheck(J: FloatArray, found: Distance) -> bool:
    """Whether a certificate of ``found`` can be written and re-checked."""
    full = found.full
    if full is None or full.exponents is None or found.beta is None or not bool(np.all(np.isfinite(found.beta))):
        return False
    return scaling_is_exact(np.ascontiguousarray(J.T), full.exponents)


def _full_rank(inputs: dict[str, FloatArray], rank: int, trail: Trail) -> Decision | None:
    A = inputs["A"]
    tall = A.shape[0] > A.shape[1]
    ball = trail.ball.transposed() if tall and trail.ball is not None else trail.ball
    proof = _wide_rank(np.ascontiguousarray(A.T) if tall else A, trail, ball)
    if proof is None:
        return None
    full, step = proof
    side = "columns" if tall else "rows"
    true = min(A.shape)
    reason = f"A has full rank {true}{_within(trail)} (s_min >= {full.s_min:.3g})"
    claim = "rank" if rank == true else "not-rank"
    certificate = certify_full_rank(claim, inputs, side, full, trail.ball, rank)
    if rank == true:
        return trail.decided(Verdict.HOLDS, step, reason, certificate)
    witness = {"kind": "full rank", "rank": true, "s_min_lower": full.s_min}
    return trail.decided(Verdict.FAILS, step, reason + f", not {rank}", certificate, witness)


def _within(trail: Trail) -> str:
    return "" if trail.ball is None else " throughout the ball"


def _advice(trail: Trail, exact: str) -> str:
    if trail.ball is not None:
        return "not proved for the whole ball: a smaller ball would decide it, or none (then exact arithmetic applies)"
    if exact == "never":
        return "not proved in floating point: exact arithmetic would decide it (exact='auto' or 'force')"
    last = trail.tried[-1] if trail.tried else ""
    if "python-flint" in last:
        return (
            "not proved in floating point: exact arithmetic would decide it (pip install 'alignver[proof]')"
        )
    return (
        "not proved within the budget: "
        + (last or "nothing applied")
        + "; exact='force' or a larger budget would decide it"
    )
