"""The last step of the ladder: exact arithmetic, if its estimated cost is within the budget."""

from __future__ import annotations

import dataclasses
import itertools

from alignver.progress import stage
from alignver.proof import exact
from alignver.proof.certify import (
    certify_minor,
    certify_null_space,
    certify_null_vector,
    certify_primes,
    certify_solution,
)
from alignver.proof.decision import Decision, ProofAttempts
from alignver.proof.exact import Combination, IntegerMatrix, Profile, bytes_needed, integer_column, to_integers
from alignver.proof.rounding import FloatArray
from alignver.results import Verdict

__all__ = ["Budget", "membership_exactly", "rank_exactly"]

_PRIMES = 4  # attempts: one unlucky prime near 2^62 is an event nobody will see
_SHOWN = 16  # indices of a support that a witness lists


@dataclasses.dataclass(frozen=True)
class Budget:
    """What exact arithmetic may cost: bytes always, seconds unless ``forced``."""

    bytes: int
    seconds: float
    forced: bool

    def refuses(self, trail: ProofAttempts, seconds: float, what: str) -> bool:
        """Whether ``seconds`` are too many; recorded if so."""
        if self.forced or seconds <= self.seconds:
            return False
        trail.missed("exact", f"{what} would take about {seconds:.0f} s of {self.seconds:.0f}")
        return True


def _admitted(A: FloatArray, trail: ProofAttempts, budget: Budget) -> IntegerMatrix | None:
    if not exact.available():
        if budget.forced:
            exact.require()
        trail.missed("exact", "python-flint is not installed")
        return None
    needed = bytes_needed(A)
    if needed > budget.bytes:
        trail.missed("exact", f"integers would take about {needed / 1e9:.1f} GB of {budget.bytes / 1e9:.1f}")
        return None
    n, d = A.shape
    if budget.refuses(trail, exact.seconds_for_rank(n, d, min(n, d)), "a rank modulo a prime"):
        return None
    return to_integers(A)


def membership_exactly(inputs: dict[str, FloatArray], trail: ProofAttempts, budget: Budget) -> Decision | None:
    """Decide membership of the exact target in the column space of the exact matrix; None if the budget
    forbids it.
    """
    J, y = inputs["J"], inputs["y"]
    matrix = _admitted(J, trail, budget)
    if matrix is None:
        return None
    target, scale = integer_column(matrix, y)
    with stage("exact membership"):
        for prime in itertools.islice(exact.primes(), _PRIMES):
            minor = exact.profile(matrix, prime)
            if minor.rank == J.shape[0]:
                reason = (
                    f"J has full row rank {minor.rank} (it has modulo the prime {prime}), "
                    "so every y is in its column space"
                )
                return trail.decided(Verdict.HOLDS, "exact", reason, certify_minor("membership", inputs, minor))
            if budget.refuses(
                trail,
                2.0 * exact.seconds_for_solve(matrix, minor.rank),
                f"an exact solve of order {minor.rank}",
            ):
                return None
            beta, missed = exact.solve(matrix, target, minor)
            if beta is not None:
                exponents = scale - matrix.column_exponents
                reason = f"J beta = y holds exactly for a rational beta with {len(beta.support)} entries"
                return trail.decided(Verdict.HOLDS, "exact", reason, certify_solution(inputs, beta, exponents))
            w = exact.left_null_vector(matrix, missed, minor)
            if w is not None and sum(a * target[i] for i, a in zip(w.support, w.numerators, strict=True)) != 0:
                return _refuted(inputs, w, matrix, missed, trail)
    trail.missed("exact", f"{_PRIMES} unlucky primes in a row")
    return None


def _refuted(
    inputs: dict[str, FloatArray], w: Combination, matrix: IntegerMatrix, missed: int, trail: ProofAttempts
) -> Decision:
    kept = [(i, a) for i, a in zip(w.support, w.numerators, strict=True) if a]
    w = Combination(tuple(i for i, _ in kept), tuple(a for _, a in kept), 1)
    bits = max(abs(a).bit_length() for a in w.numerators)
    reason = (
        f"row {missed} of J is exactly a combination of {len(kept) - 1} others, "
        "and its target is not that combination of theirs"
    )
    witness = {"kind": "null vector", "rows": w.support[:_SHOWN], "size": len(kept), "bits": bits}
    certificate = certify_null_vector(inputs, w, -matrix.row_exponents)
    return trail.decided(Verdict.FAILS, "exact", reason, certificate, witness)


def rank_exactly(inputs: dict[str, FloatArray], rank: int, trail: ProofAttempts, budget: Budget) -> Decision | None:
    """Decide whether the exact matrix has the claimed rank; None if the budget forbids it."""
    A = inputs["A"]
    matrix = _admitted(A, trail, budget)
    if matrix is None:
        return None
    with stage("exact rank"):
        for prime in itertools.islice(exact.primes(), _PRIMES):
            minor = exact.profile(matrix, prime)
            trail.measured["rank_lower"] = max(minor.rank, trail.measured.get("rank_lower", 0))
            if minor.rank > rank:
                reason = f"the rank is at least {minor.rank}, more than {rank}: a minor is not zero modulo {prime}"
                witness = {
                    "kind": "minor",
                    "order": minor.rank,
                    "rows": minor.rows[:_SHOWN],
                    "columns": minor.columns[:_SHOWN],
                }
                return trail.decided(
                    Verdict.FAILS, "exact", reason, certify_minor("not-rank", inputs, minor, rank), witness
                )
            if minor.rank == min(A.shape):
                reason = f"the rank is {rank}: a minor of that order is not zero modulo {prime}"
                return trail.decided(Verdict.HOLDS, "exact", reason, certify_minor("rank", inputs, minor, rank))
            decision, refused = _from_above(inputs, rank, matrix, minor, trail, budget)
            if decision is not None or refused:
                return decision
    trail.missed("exact", f"{_PRIMES} unlucky primes in a row")
    return None


def _from_above(
    inputs: dict[str, FloatArray],
    rank: int,
    matrix: IntegerMatrix,
    minor: Profile,
    trail: ProofAttempts,
    budget: Budget,
) -> tuple[Decision | None, bool]:
    """Prove that the rank is at most the minor's order, by whatever is cheaper; (None, True) if the budget
    forbids both.
    """
    n, d = matrix.shape
    most = minor.rank
    left = n - most <= d - most
    count = min(n, d) - most
    by_vectors = exact.seconds_for_solve(matrix, most) * (1.0 + 0.5 * (count - 1)) + 1e-6 * n * d
    by_primes = exact.seconds_for_rank(n, d, most) * (matrix.minor_bits(most + 1) / 61.0 + 1.0)
    size = count * (most + 1) * (matrix.minor_bits(most) / 8.0 + 40.0)
    claim = "rank" if most == rank else "not-rank"
    if by_vectors <= 4.0 * by_primes and size <= budget.bytes:  # null vectors re-check faster
        if budget.refuses(trail, by_vectors, f"{count} exact null vectors"):
            return None, True
        vectors = exact.null_vectors(matrix, minor, left=left)
        if vectors is None:
            return None, False
        shared = minor.rows if left else minor.columns
        exponents = -(matrix.row_exponents if left else matrix.column_exponents)
        certificate = certify_null_space(claim, inputs, vectors, shared, exponents, left=left, rank=rank)
        how = f"{count} independent null vectors"
    else:
        if budget.refuses(trail, by_primes, "ranks modulo enough primes"):
            return None, True
        used = exact.vanishing_primes(matrix, most, exact.primes())
        if used is None:
            return None, False
        certificate = certify_primes(claim, inputs, most, used, rank)
        how = f"no larger minor survives {len(used)} primes"
    trail.measured["rank"] = most
    if most == rank:
        return trail.decided(Verdict.HOLDS, "exact", f"the rank is exactly {rank} ({how})", certificate), False
    reason = f"the rank is exactly {most}, less than {rank} ({how})"
    witness = {
        "kind": "rank",
        "rank": most,
        "minor_rows": minor.rows[:_SHOWN],
        "minor_columns": minor.columns[:_SHOWN],
    }
    return trail.decided(Verdict.FAILS, "exact", reason, certificate, witness), False
