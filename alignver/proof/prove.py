"""Proofs of membership and of rank: the methods, in order of increasing cost."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from alignver import require
from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.kernel.machine import arithmetic_fault
from alignver.proof.decision import Ball, Decision, ProofAttempts
from alignver.proof.prove_exact import Budget, membership_exactly, rank_exactly
from alignver.proof.prove_floating import (
    by_gram,
    by_right_inverse,
    by_structure,
    full_rank,
    membership_in_floats,
    rank_by_repeats,
)
from alignver.proof.rounding import FloatArray
from alignver.results import Verdict

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
