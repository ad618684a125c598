"""The proof methods for membership and rank, tried in order of increasing cost."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.kernel.floats import arithmetic_fault
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

__all__ = ["Exact", "prove_membership", "prove_rank"]

Exact = Literal["auto", "force", "never"]

BUDGET_BYTES = 2_000_000_000
"""What exact arithmetic may take before it is refused: a laptop's free memory."""

BUDGET_SECONDS = 60.0
"""Estimated time that ``exact="auto"`` may spend on exact arithmetic: about what a person waits for."""


@np.errstate(all="ignore")
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

    of the real matrix whose entries are exactly the given floats, or of every matrix in ``ball``. The steps,
    in this order: structure (zero target, zero or proportional rows), Gram matrix, right inverse (full row
    rank, J wide); residual (full column rank, J tall); exact rational arithmetic.

    Parameters
    ----------
    J : (N, d) float64
    y : (N,) float64
    ball : Ball, optional
        HOLDS then means for every matrix in it, FAILS for none of them; exact arithmetic does not apply.
    exact : {"auto", "force", "never"}
        Whether to use exact arithmetic: within a time budget, whatever it takes (skipping the floating-point
        steps), not at all.
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
    'row 1 of J is exactly 2.0 times row 0, and its target is not (1.0, 3.0)'
    """
    matrix, target = _matrix(J, "J"), np.array(host(as_vector(y, "y").array), copy=True)
    if matrix.shape[0] != target.shape[0]:
        raise InvalidInput("y", f"{target.shape[0]} entries", f"{matrix.shape[0]}, one for every row of J")
    trail = _start(matrix, "J", ball, exact)
    inputs = {"J": matrix, "y": target}
    fault = arithmetic_fault()
    if fault:
        return trail.undecided(fault)
    found = by_structure(inputs, trail)
    if found is None and exact != "force":
        found = membership_in_floats(inputs, trail)
    if found is None and trail.ball is None and exact != "never":
        found = membership_exactly(inputs, trail, Budget(budget_bytes, budget_seconds, exact == "force"))
    return found if found is not None else trail.undecided(_advice(trail, exact))


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

    Full rank is proved by the Gram matrix or a one-sided inverse; any other rank r exactly, by a minor of
    order r that is not zero modulo a prime, and by null vectors or vanishing modulo enough primes for nothing
    larger.

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
    fault = arithmetic_fault()
    if fault:
        return trail.undecided(fault)
    if rank > min(matrix.shape):
        certificate = seal("not-rank", "shape", inputs, {}, {"rank": rank})
        reason = f"a {matrix.shape[0]} by {matrix.shape[1]} matrix has rank {min(matrix.shape)} at most"
        return trail.decided(Verdict.FAILS, "structure", reason, certificate, {"kind": "shape", "shape": matrix.shape})
    found = None
    if exact != "force":
        found = full_rank(inputs, rank, trail, by_gram)
        if found is None and trail.ball is None:
            found = rank_by_repeats(inputs, rank, trail)
        if found is None:
            found = full_rank(inputs, rank, trail, by_right_inverse)
    if found is None and trail.ball is None and exact != "never":
        found = rank_exactly(inputs, rank, trail, Budget(budget_bytes, budget_seconds, exact == "force"))
    return found if found is not None else trail.undecided(_advice(trail, exact))


def _matrix(value: Any, name: str) -> FloatArray:
    """Return a copy: what is proved is what is hashed, whoever writes to the caller's array meanwhile."""
    matrix: FloatArray = np.array(host(as_matrix(value, name).array), order="C", copy=True)
    if not bool(np.all(np.isfinite(matrix))):  # it was written to between the two
        raise InvalidInput(name, "NaN or Inf", "finite entries that are not modified during the call")
    return matrix


def _start(matrix: FloatArray, name: str, ball: Ball | None, exact: str) -> ProofAttempts:
    if exact not in ("auto", "force", "never"):
        raise InvalidInput("exact", repr(exact), "'auto', 'force' or 'never'")
    if ball is not None and not isinstance(ball, Ball):
        raise InvalidInput("ball", type(ball).__name__, "a Ball")
    if ball is not None:
        ball.check_shape(matrix.shape, name)
    return ProofAttempts(None if ball is None or ball.is_point else ball)


def _advice(trail: ProofAttempts, exact: str) -> str:
    if trail.ball is not None:
        return "not proved for the whole ball: a smaller ball would decide it, or none (exact arithmetic then applies)"
    if exact == "never":
        return "not proved in floating point: exact arithmetic would decide it (exact='auto' or 'force')"
    last = trail.tried[-1] if trail.tried else ""
    if "python-flint" in last:
        return "not proved in floating point: exact arithmetic would decide it (pip install 'alignver[proof]')"
    return (
        "not proved within the budget: "
        + (last or "nothing applied")
        + "; exact='force' or a larger budget would decide it"
    )
