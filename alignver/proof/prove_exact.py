"""Proofs in exact arithmetic, if the estimated cost is within the budget."""

from __future__ import annotations

import dataclasses
import itertools

from alignver.errors import MissingDependency
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

_PRIMES = 4  # attempts: even one unlucky prime near 2^62 is extremely unlikely
_SHOWN = 16  # most indices of a support in a witness


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of exact arithmetic: memory in bytes, and time in seconds unless ``forced``."""

    bytes: int
    seconds: float
    forced: bool

    def refuses(self, attempts: ProofAttempts, seconds: float, what: str) -> bool:
        """Return whether ``seconds`` exceed the limit; record the method if they do."""
        if self.forced or seconds <= self.seconds:
            return False
        attempts.missed("exact", f"{what} would take about {seconds:.0f} s of {self.seconds:.0f}")
        return True


def _admitted(A: FloatArray, attempts: ProofAttempts, budget: Budget) -> IntegerMatrix | None:
    """Return the exact integer form of A; None if python-flint or the budget is missing."""
    try:
        exact.load_flint()
    except MissingDependency:
        if budget.forced:
            raise
        attempts.missed("exact", "python-flint is not installed")
        return None
    needed = bytes_needed(A)
    if needed > budget.bytes:
        attempts.missed("exact", f"integers would take about {needed / 1e9:.1f} GB of {budget.bytes / 1e9:.1f}")
        return None
    n, d = A.shape
    if budget.refuses(attempts, exact.seconds_for_rank(n, d, min(n, d)), "a rank modulo a prime"):
        return None
    return to_integers(A)


def membership_exactly(inputs: dict[str, FloatArray], attempts: ProofAttempts, budget: Budget) -> Decision | None:
    """Decide membership of the exact target in the column space of the exact matrix; None if it stays undecided."""
    J, y = inputs["J"], inputs["y"]
    matrix = _admitted(J, attempts, budget)
    if matrix is None:
        return None
    target, scale = integer_column(matrix, y)
    with stage("exact membership"):
        for prime in itertools.islice(exact.primes(), _PRIMES):
            minor = exact.profile(matrix, prime)
            if minor.rank == J.shape[0]:
                reason = f"J has full row rank {minor.rank} (modulo {prime}), so every y is in its column space"
                return attempts.decided(Verdict.HOLDS, "exact", reason, certify_minor("membership", inputs, minor))
            seconds = 2.0 * exact.seconds_for_solve(matrix, minor.rank)
            if budget.refuses(attempts, seconds, f"an exact solve of order {minor.rank}"):
                return None
            beta, missed = exact.solve(matrix, target, minor)
            if beta is not None:
                exponents = scale - matrix.column_exponents
                reason = f"J beta = y holds exactly for a rational beta with {len(beta.support)} entries"
                return attempts.decided(Verdict.HOLDS, "exact", reason, certify_solution(inputs, beta, exponents))
            w = exact.left_null_vector(matrix, missed, minor)
            if w is not None and sum(a * target[i] for i, a in zip(w.support, w.numerators, strict=True)) != 0:
                return _refuted(inputs, w, matrix, missed, attempts)
    attempts.missed("exact", f"{_PRIMES} unlucky primes in a row")
    return None


def _refuted(
    inputs: dict[str, FloatArray], w: Combination, matrix: IntegerMatrix, missed: int, attempts: ProofAttempts
) -> Decision:
    """Return the refutation by a null vector, without its zero weights."""
    nonzero = [(i, a) for i, a in zip(w.support, w.numerators, strict=True) if a]
    w = Combination(tuple(i for i, _ in nonzero), tuple(a for _, a in nonzero), 1)
    bits = max(abs(a).bit_length() for a in w.numerators)
    reason = (
        f"row {missed} of J is exactly a combination of {len(nonzero) - 1} others, "
        "and its target is not the same combination of their targets"
    )
    witness = {"kind": "null vector", "rows": w.support[:_SHOWN], "size": len(nonzero), "bits": bits}
    certificate = certify_null_vector(inputs, w, -matrix.row_exponents)
    return attempts.decided(Verdict.FAILS, "exact", reason, certificate, witness)


def rank_exactly(inputs: dict[str, FloatArray], rank: int, attempts: ProofAttempts, budget: Budget) -> Decision | None:
    """Decide whether the exact matrix has the claimed rank; None if it stays undecided."""
    A = inputs["A"]
    matrix = _admitted(A, attempts, budget)
    if matrix is None:
        return None
    with stage("exact rank"):
        for prime in itertools.islice(exact.primes(), _PRIMES):
            minor = exact.profile(matrix, prime)
            attempts.measured["rank_lower"] = max(minor.rank, attempts.measured.get("rank_lower", 0))
            if minor.rank > rank:
                reason = f"the rank is at least {minor.rank}, more than {rank}: a minor is not zero modulo {prime}"
                shown = {"rows": minor.rows[:_SHOWN], "columns": minor.columns[:_SHOWN]}
                witness = {"kind": "minor", "order": minor.rank, **shown}
                certificate = certify_minor("not-rank", inputs, minor, rank)
                return attempts.decided(Verdict.FAILS, "exact", reason, certificate, witness)
            if minor.rank == min(A.shape):
                reason = f"the rank is {rank}: a minor of that order is not zero modulo {prime}"
                return attempts.decided(Verdict.HOLDS, "exact", reason, certify_minor("rank", inputs, minor, rank))
            decision, refused = _from_above(inputs, rank, matrix, minor, attempts, budget)
            if decision is not None or refused:
                return decision
    attempts.missed("exact", f"{_PRIMES} unlucky primes in a row")
    return None


def _from_above(
    inputs: dict[str, FloatArray],
    rank: int,
    matrix: IntegerMatrix,
    minor: Profile,
    attempts: ProofAttempts,
    budget: Budget,
) -> tuple[Decision | None, bool]:
    """Prove by the cheaper method that the rank is at most the order of the minor; (None, True) if over budget."""
    n, d = matrix.shape
    most = minor.rank
    left = n <= d
    count = min(n, d) - most
    by_vectors = exact.seconds_for_solve(matrix, most) * (1.0 + 0.5 * (count - 1)) + 1e-6 * n * d
    by_primes = exact.seconds_for_rank(n, d, most) * (matrix.minor_bits(most + 1) / 61.0 + 1.0)
    size = count * (most + 1) * (matrix.minor_bits(most) / 8.0 + 40.0)
    claim = "rank" if most == rank else "not-rank"
    if by_vectors <= 4.0 * by_primes and size <= budget.bytes:  # null vectors are faster to re-check
        if budget.refuses(attempts, by_vectors, f"{count} exact null vectors"):
            return None, True
        vectors = exact.null_vectors(matrix, minor, left=left)
        if vectors is None:
            return None, False
        shared = minor.rows if left else minor.columns
        exponents = -(matrix.row_exponents if left else matrix.column_exponents)
        certificate = certify_null_space(claim, inputs, vectors, shared, exponents, left=left, rank=rank)
        how = f"{count} independent null vectors"
    else:
        if budget.refuses(attempts, by_primes, "ranks modulo enough primes"):
            return None, True
        used = exact.vanishing_primes(matrix, most, exact.primes())
        if used is None:
            return None, False
        certificate = certify_primes(claim, inputs, most, used, rank)
        how = f"all larger minors vanish modulo {len(used)} primes"
    attempts.measured["rank"] = most
    if most == rank:
        return attempts.decided(Verdict.HOLDS, "exact", f"the rank is exactly {rank} ({how})", certificate), False
    reason = f"the rank is exactly {most}, less than {rank} ({how})"
    shown = {"minor_rows": minor.rows[:_SHOWN], "minor_columns": minor.columns[:_SHOWN]}
    witness = {"kind": "rank", "rank": most, **shown}
    return attempts.decided(Verdict.FAILS, "exact", reason, certificate, witness), False
