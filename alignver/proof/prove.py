"""Proofs of membership and of rank: the methods, in order of increasing cost.

In floating-point arithmetic: structure, Gram matrix, right inverse, residual. Then exact arithmetic, if its estimated
cost is within the budget.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from alignver import require
from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput, MissingDependency
from alignver.kernel import Certificate, seal
from alignver.kernel.exact import nonzero
from alignver.kernel.machine import arithmetic_fault
from alignver.progress import stage
from alignver.proof import exact
from alignver.proof.certify import (
    certify_conflict,
    certify_distance,
    certify_full_rank,
    certify_minor,
    certify_null_space,
    certify_null_vector,
    certify_primes,
    certify_reduced,
    certify_repeats,
    certify_solution,
    scaling_is_exact,
)
from alignver.proof.cholesky import FullRank, row_rank_by_gram, row_rank_by_some_columns
from alignver.proof.decision import Ball, Decision, ProofAttempts
from alignver.proof.exact import Combination, IntegerMatrix, Profile, bytes_needed, integer_column, to_integers
from alignver.proof.matrix_structure import find_conflict, redundant_rows
from alignver.proof.residual import Distance, distance_from
from alignver.proof.right_inverse import row_rank_by_inverse
from alignver.proof.rounding import FloatArray
from alignver.results import Verdict, shown_down

Exact = Literal["auto", "force", "never"]

BUDGET_BYTES = 2_000_000_000
"""Memory limit of exact arithmetic: about the free memory of a laptop."""

BUDGET_SECONDS = 60.0
"""Limit of the estimated time of exact arithmetic with ``exact="auto"``: about the time that a person waits."""


@np.errstate(all="ignore")
def prove_membership(
    J: Any,
    y: Any,
    *,
    ball: Ball | None = None,
    exact: Exact = "auto",
    budget_bytes: int = BUDGET_BYTES,
    budget_seconds: float = BUDGET_SECONDS,
    deficient: bool = False,
) -> Decision:
    r"""Prove or refute that y is in the column space of J.

    .. math:: \exists \beta: J \beta = y

    for the real matrix whose entries are exactly the given floats, or for every matrix in ``ball``. The methods, in
    this order: structure (zero target, zero or proportional rows); Gram matrix and right inverse (full row rank of a
    wide J); residual (full column rank of a tall J); exact rational arithmetic.

    Parameters
    ----------
    J : (N, d) float64
    y : (N,) float64
    ball : Ball, optional
        HOLDS then means membership for every matrix in the ball, FAILS for no matrix in it; exact arithmetic does not
        apply.
    exact : {"auto", "force", "never"}
        Whether to use exact arithmetic: within a time limit, without one and without the floating-point methods, or
        not at all.
    budget_bytes, budget_seconds
        Limits of exact arithmetic, compared with estimates in advance. ``"force"`` ignores the seconds.
    deficient : bool
        The ball is known to contain a matrix of neither full row rank nor full column rank, so that the floating-point
        methods cannot succeed.

    Returns
    -------
    Decision
        HOLDS or FAILS with PROOF and certificate, or UNDECIDED.

    Raises
    ------
    InvalidInput
        If an array is not finite, empty, or of a shape that does not match.
    MissingDependency
        If ``exact="force"`` and python-flint is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> prove_membership(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([3.0, 4.0])).step
    'gram'
    >>> prove_membership(np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([1.0, 3.0])).reason
    'row 1 of J is exactly 2.0 times row 0, and its target is not (1.0, 3.0)'
    """
    matrix, target = _matrix(J, "J"), np.array(host(as_vector(y, "y").array), copy=True)
    if matrix.shape[0] != target.shape[0]:
        got, need = f"{target.shape[0]} entries", f"{matrix.shape[0]}, one for every row of J"
        raise InvalidInput("y", got, need, code="wrong-shape")
    attempts = _start(matrix, "J", ball, exact)
    inputs = {"J": matrix, "y": target}
    fault = arithmetic_fault()
    if fault:
        return attempts.undecided(fault, "arithmetic")
    decision = by_structure(inputs, attempts)
    if decision is None and exact != "force" and not (deficient and ball is not None):
        decision = membership_in_floats(inputs, attempts)
    if decision is None and attempts.ball is None and exact != "never":
        decision = membership_exactly(inputs, attempts, Budget(budget_bytes, budget_seconds, exact == "force"))
    return decision if decision is not None else attempts.undecided(_advice(attempts, exact))


@np.errstate(all="ignore")
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

    Full rank is proved by the Gram matrix or a one-sided inverse. Any other rank r is proved in exact arithmetic: a
    minor of order r that is not zero modulo a prime is the lower bound, and null vectors, or ranks modulo sufficiently
    many primes, are the upper bound.

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
        If A is not finite or empty, or the rank is not an integer >= 0.
    MissingDependency
        If ``exact="force"`` and python-flint is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> prove_rank(np.array([[1.0, 2.0], [2.0, 4.0]]), 1).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    matrix = _matrix(A, "A")
    rank = require.integer("rank", rank, least=0)
    attempts = _start(matrix, "A", ball, exact)
    inputs = {"A": matrix}
    fault = arithmetic_fault()
    if fault:
        return attempts.undecided(fault, "arithmetic")
    if rank > min(matrix.shape):
        certificate = seal("not-rank", "shape", inputs, {}, {"rank": rank})
        reason = f"a {matrix.shape[0]} by {matrix.shape[1]} matrix has a rank of at most {min(matrix.shape)}"
        return attempts.decided(
            Verdict.FAILS, "structure", reason, certificate, {"kind": "shape", "shape": matrix.shape}
        )
    decision = None
    if exact != "force":
        decision = full_rank(inputs, rank, attempts, by_gram)
        if decision is None and attempts.ball is None:
            decision = rank_by_repeats(inputs, rank, attempts)
        if decision is None:
            decision = full_rank(inputs, rank, attempts, by_right_inverse)
    if decision is None and attempts.ball is None and exact != "never":
        decision = rank_exactly(inputs, rank, attempts, Budget(budget_bytes, budget_seconds, exact == "force"))
    return decision if decision is not None else attempts.undecided(_advice(attempts, exact))


def _matrix(value: Any, name: str) -> FloatArray:
    """Return a copy, so that a concurrent change of the caller's array affects neither the proof nor the hash."""
    matrix: FloatArray = np.array(host(as_matrix(value, name).array), order="C", copy=True)
    if not bool(np.all(np.isfinite(matrix))):  # modified between validation and copy
        need = "finite entries that are not modified during the call"
        raise InvalidInput(name, "NaN or Inf", need, code="not-finite")
    return matrix


def _start(matrix: FloatArray, name: str, ball: Ball | None, exact: str) -> ProofAttempts:
    require.one_of("exact", exact, get_args(Exact))
    if ball is not None:
        require.instance("ball", ball, Ball, "a Ball").check_shape(matrix.shape, name)
    return ProofAttempts(None if ball is None or ball.is_point else ball)


def _advice(attempts: ProofAttempts, exact: str) -> str:
    if attempts.ball is not None:
        return "not proved for the whole ball: a smaller ball, or exact arithmetic without a ball, would decide it"
    if exact == "never":
        return "not proved in floating point: exact arithmetic would decide it (exact='auto' or 'force')"
    last = attempts.tried[-1] if attempts.tried else "no method applied"
    if "python-flint" in last:
        return "not proved in floating point: exact arithmetic would decide it (pip install 'alignver[proof]')"
    return f"not proved within the budget: {last}; exact='force' or a larger budget would decide it"


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
