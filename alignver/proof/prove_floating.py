"""Proofs in floating-point arithmetic: structure, Gram matrix, right inverse, residual."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignver.kernel import Certificate
from alignver.kernel.exact import nonzero
from alignver.progress import stage
from alignver.proof.certify import (
    certify_conflict,
    certify_distance,
    certify_full_rank,
    certify_reduced,
    certify_repeats,
    certify_solution,
    scaling_is_exact,
)
from alignver.proof.cholesky import FullRank, row_rank_by_gram, row_rank_by_some_columns
from alignver.proof.decision import Ball, Decision, ProofAttempts
from alignver.proof.exact import Combination
from alignver.proof.matrix_structure import find_conflict, redundant_rows
from alignver.proof.residual import Distance, distance_from
from alignver.proof.right_inverse import row_rank_by_inverse
from alignver.proof.rounding import FloatArray
from alignver.results import Verdict, shown_down

_MOST_WEIGHTS = 10_000_000  # of null vectors in one certificate of repeated rows or columns

Proof = tuple[FullRank, str]
Prover = Callable[[FloatArray, ProofAttempts, Ball | None], Proof | None]


def by_structure(inputs: dict[str, FloatArray], attempts: ProofAttempts) -> Decision | None:
    """Decide membership by the structure: a zero target, zero rows, proportional rows."""
    J, y = inputs["J"], inputs["y"]
    if not nonzero(y).any():
        certificate = certify_solution(
            inputs, Combination((), (), 1), np.zeros(J.shape[1], dtype=np.int64), attempts.ball
        )
        return attempts.decided(Verdict.HOLDS, "structure", "y is zero, and so is J times zero", certificate)
    if attempts.ball is not None:
        return None  # a null vector of the centre is not one of the other matrices
    conflict = find_conflict(J, y)
    if conflict is None:
        attempts.missed("structure", "no zero or proportional rows with conflicting targets")
        return None
    witness = {"kind": conflict.kind, "rows": conflict.rows, "weights": conflict.weights}
    return attempts.decided(Verdict.FAILS, "structure", conflict.reason, certify_conflict(inputs, conflict), witness)


def _without_repeats(inputs: dict[str, FloatArray], attempts: ProofAttempts) -> Decision | None:
    """Prove membership if some rows of J repeat others, with equal targets, and the others are independent."""
    J, y = inputs["J"], inputs["y"]
    repeated = redundant_rows(J)
    if (
        not repeated
        or J.shape[0] - len(repeated) > J.shape[1]
        or any(j >= 0 and y[i] != y[j] for i, j in repeated.items())
    ):
        return None
    proof = _wide_rank(np.delete(J, list(repeated), axis=0), attempts)
    if proof is None:
        return None
    others = J.shape[0] - len(repeated)
    reason = (
        f"{len(repeated)} rows of J are zero or repeat others, targets included; the other {others} are independent"
    )
    return attempts.decided(Verdict.HOLDS, proof[1], reason, certify_reduced(inputs, repeated))


def rank_by_repeats(inputs: dict[str, FloatArray], rank: int, attempts: ProofAttempts) -> Decision | None:
    """Decide the rank if rows of A (columns, of a tall matrix) are zero or repeat others."""
    A = inputs["A"]
    left = A.shape[0] <= A.shape[1]
    wide = A if left else np.ascontiguousarray(A.T)
    repeated = redundant_rows(wide)
    most = wide.shape[0] - len(repeated)
    lines = "rows" if left else "columns"
    if not repeated or rank < most or len(repeated) * len(set(repeated.values())) > _MOST_WEIGHTS:
        return None
    reason = f"{len(repeated)} {lines} of A are zero or repeat others, so its rank is at most {most}"
    if rank > most:
        certificate = certify_repeats("not-rank", inputs, repeated, left=left, rank=rank)
        witness = {"kind": f"repeated {lines}", "rank_upper": most, "pairs": list(repeated.items())[:16]}
        return attempts.decided(Verdict.FAILS, "structure", f"{reason}, less than {rank}", certificate, witness)
    proof = _wide_rank(np.delete(wide, list(repeated), axis=0), attempts) if most else None
    if proof is None and most:
        return None
    certificate = certify_repeats("rank", inputs, repeated, left=left, rank=rank)
    step = proof[1] if proof is not None else "structure"
    return attempts.decided(Verdict.HOLDS, step, f"{reason}; the others are independent", certificate)


def by_gram(wide: FloatArray, attempts: ProofAttempts, ball: Ball | None) -> Proof | None:
    """Prove full row rank through a Gram matrix: of some columns of a very wide matrix, then of all."""
    if ball is None:
        with stage("full rank: gram of some columns"):
            some = row_rank_by_some_columns(wide)
        if some is not None:
            proof = _accept("gram of some columns", wide, some, attempts, ball)
            if proof is not None:
                return some, "gram"
    with stage("full rank: gram"):
        full = row_rank_by_gram(wide, ball)
    return _accept("gram", wide, full, attempts, ball)


def by_right_inverse(wide: FloatArray, attempts: ProofAttempts, ball: Ball | None) -> Proof | None:
    """Prove full row rank by a right inverse."""
    with stage("full rank: right inverse"):
        full = row_rank_by_inverse(wide, ball)
    return _accept("right inverse", wide, full, attempts, ball)


def _accept(step: str, wide: FloatArray, full: FullRank, attempts: ProofAttempts, ball: Ball | None) -> Proof | None:
    attempts.measured["s_min_lower"] = max(full.s_min, attempts.measured.get("s_min_lower", 0.0))
    if not full.proved or full.exponents is None:
        attempts.missed(step, full.reason)
    elif ball is not None and not scaling_is_exact(wide, full.exponents):
        attempts.missed(step, "rows scaled by powers of two underflow, and a ball allows no exact re-check")
    else:
        return full, step
    return None


def _wide_rank(rest: FloatArray, attempts: ProofAttempts) -> Proof | None:
    """Prove full row rank of the remaining rows of a matrix; the bounds do not apply to the matrix itself."""
    if rest.shape[0] > rest.shape[1]:
        return None
    before = dict(attempts.measured)
    proof = by_gram(rest, attempts, None) or by_right_inverse(rest, attempts, None)
    attempts.measured = before
    if proof is not None:
        attempts.measured["s_min_lower_without_repeats"] = proof[0].s_min
    return proof


def membership_in_floats(inputs: dict[str, FloatArray], attempts: ProofAttempts) -> Decision | None:
    """Decide membership by the floating-point methods, in order of increasing cost."""
    wide = inputs["J"].shape[0] <= inputs["J"].shape[1]
    decision = _row_rank(inputs, attempts, by_gram) if wide else None
    if decision is None and attempts.ball is None:
        decision = _without_repeats(inputs, attempts)
    if decision is None:
        decision = _row_rank(inputs, attempts, by_right_inverse) if wide else _outside(inputs, attempts)
    return decision


def _row_rank(inputs: dict[str, FloatArray], attempts: ProofAttempts, prove: Prover) -> Decision | None:
    proof = prove(inputs["J"], attempts, attempts.ball)
    if proof is None:
        return None
    full, step = proof
    certificate = certify_full_rank("membership", inputs, "rows", full, attempts.ball)
    reason = f"J has full row rank{_within(attempts)}{_stated(certificate)}, so every y is in its column space"
    return attempts.decided(Verdict.HOLDS, step, reason, certificate)


def _outside(inputs: dict[str, FloatArray], attempts: ProofAttempts) -> Decision | None:
    with stage("residual"):
        outcome = distance_from(inputs["J"], inputs["y"], attempts.ball)
    if outcome.proved and attempts.ball is not None and not _allows_recheck(inputs["J"], outcome):
        attempts.missed("residual", "columns scaled by powers of two underflow, and a ball allows no exact re-check")
        return None
    if not outcome.proved:
        attempts.missed("residual", outcome.reason)
        return None
    attempts.measured["distance_lower"] = outcome.distance
    certificate = certify_distance(inputs, outcome, attempts.ball)
    distance = certificate.constants.get("distance")
    away = "not in" if distance is None else f"at least {shown_down(distance)} away from"
    reason = f"J has full column rank{_within(attempts)} and y is {away} its column space"
    witness = {"kind": "distance", "distance_lower": outcome.distance}
    return attempts.decided(Verdict.FAILS, "residual", reason, certificate, witness)


def _allows_recheck(J: FloatArray, outcome: Distance) -> bool:
    """Whether a certificate of the distance can be written and re-checked."""
    full, beta = outcome.full, outcome.beta
    if full is None or full.exponents is None or beta is None or not bool(np.all(np.isfinite(beta))):
        return False
    return scaling_is_exact(np.ascontiguousarray(J.T), full.exponents)


def full_rank(inputs: dict[str, FloatArray], rank: int, attempts: ProofAttempts, prove: Prover) -> Decision | None:
    """Decide the rank of a matrix that ``prove`` shows to have full rank."""
    A = inputs["A"]
    tall = A.shape[0] > A.shape[1]
    ball = attempts.ball.transposed() if tall and attempts.ball is not None else attempts.ball
    proof = prove(np.ascontiguousarray(A.T) if tall else A, attempts, ball)
    if proof is None:
        return None
    full, step = proof
    side = "columns" if tall else "rows"
    order = min(A.shape)
    claim = "rank" if rank == order else "not-rank"
    certificate = certify_full_rank(claim, inputs, side, full, attempts.ball, rank)
    reason = f"A has full rank {order}{_within(attempts)}{_stated(certificate)}"
    if rank == order:
        return attempts.decided(Verdict.HOLDS, step, reason, certificate)
    witness = {"kind": "full rank", "rank": order, "s_min_lower": full.s_min}
    return attempts.decided(Verdict.FAILS, step, reason + f", not {rank}", certificate, witness)


def _stated(certificate: Certificate) -> str:
    """Describe the bound of the smallest singular value that a certificate states."""
    s_min = certificate.constants.get("s_min")
    centre = "" if certificate.constants.get("ball") is None else " at the centre"
    return "" if s_min is None else f" (s_min >= {shown_down(s_min)}{centre})"


def _within(attempts: ProofAttempts) -> str:
    return "" if attempts.ball is None else " throughout the ball"
