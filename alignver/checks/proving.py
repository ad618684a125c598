"""How a proof and the numerical evidence make one result: what was proved, about what, and what the tolerance says."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

from alignver.arrays import Entries
from alignver.errors import InvalidInput
from alignver.linalg.norms import norm
from alignver.linalg.rank_rules import Scale, tolerance
from alignver.proof import Ball, Decision
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_down

__all__ = ["answer", "meaning"]

EXACT_SECONDS = 20.0
"""Estimated time that ``auto`` spends on exact arithmetic at most; ``exact`` has no limit."""

_CHEAP_FLOPS = 2e10  # numerical evidence beside a proof: about a second of dense linear algebra


def answer(
    prover: Callable[..., Decision],
    arguments: tuple[Any, ...],
    numerically: Callable[[], CheckResult],
    *,
    method: str,
    certify: bool,
    ball: Ball | None,
    covered: Callable[[], Ball | None],
    shape: tuple[int, int],
    subject: str,
    name: str,
    statement: str,
) -> CheckResult:
    """Answer by proof and numerical evidence as the method asks for them.

    Parameters
    ----------
    prover : callable
        A ladder of :mod:`alignver.proof`; gets ``arguments``.
    numerically : callable
        Computes the numerical result, where it is wanted.
    method, certify, ball
        As the caller of the check gave them.
    covered : callable
        Gives the ball that a proof has to cover (:func:`meaning`).
    shape, subject
        Of the matrix, and its name in the sentences.
    name, statement
        Of the result.
    """
    if method != "exact" and not (method == "auto" and certify):
        if ball is not None:
            got = f"a ball with method={method!r}, certify={certify}"
            raise InvalidInput("ball", got, "method='auto' and certify=True")
        return numerically()
    around = covered()
    if around is not None and method == "exact":
        need = "'auto': exact arithmetic speaks of one matrix, a ball or a rounded computation of many"
        raise InvalidInput("method", "'exact' about a ball, or about entries with computed_in", need)
    exact = "force" if method == "exact" else "auto"
    decision = prover(*arguments, ball=around, exact=exact, budget_seconds=EXACT_SECONDS)
    numerical = numerically() if _numerics_wanted(decision, method, shape) else None
    asked = method == "exact" or ball is not None
    return _combine(decision, numerical, around, asked=asked, subject=subject, name=name, statement=statement)


def meaning(matrix: Entries, rule: str, given: float | None, computed_in: str | None, ball: Ball | None) -> Ball | None:
    """Return the ball that a proof has to cover: the caller's, or the tolerance's where the entries were rounded.

    Without ``computed_in`` the entries are taken at their word: the statement is about the matrix of exactly these
    floats.
    With it they are results of a rounded computation, and a statement about the last bits of each would be about the
    rounding; so a proof has to cover every matrix within the tolerance, with ||A||_F for s_1 (never smaller).
    """
    if ball is not None or computed_in is None:
        return ball
    rows, columns = (int(size) for size in matrix.array.shape)
    size = norm(matrix.array)
    scale = Scale(rows, columns, size, math.sqrt(columns) * size, matrix.eps, matrix.handed_eps)
    return Ball(norm=min(tolerance(rule, scale, given).value, sys.float_info.max))


def _numerics_wanted(decision: Decision, method: str, shape: tuple[int, int]) -> bool:
    """Whether to look at the numerical evidence too: where nothing was proved, and beside a proof where it is cheap."""
    if method == "exact":
        return False
    least, most = sorted(shape)
    cheap = 4.0 * least**2 * most + 20.0 * least**3 <= _CHEAP_FLOPS  # a QR first, then an SVD of its triangle
    return decision.verdict is Verdict.UNDECIDED or cheap


def _combine(
    decision: Decision,
    numerical: CheckResult | None,
    ball: Ball | None,
    *,
    asked: bool,
    subject: str,
    name: str,
    statement: str,
) -> CheckResult:
    """Make one result of a decision and the numerical evidence.

    A proof gives the verdict; the numerical one stays in the evidence, and where they differ the report says what each
    is about. Without a proof the numerical verdict stands, unless the caller asked about a ball or for exact
    arithmetic: then it is UNDECIDED.
    """
    about = _about(ball, subject)
    measured = dict(numerical.measured) if numerical is not None else {}
    proof = {"verdict": decision.verdict.value, "step": decision.step, "about": about, "tried": decision.tried}
    measured["proof"] = {**proof, **decision.measured}
    if numerical is None:
        evidence: tuple[str, ...] = ()
    else:
        measured["numerical"] = {"verdict": numerical.verdict.value, "reason": numerical.reason}
        evidence = (f"numerically {numerical.verdict}: {numerical.reason}", *numerical.evidence)
    if decision.verdict is not Verdict.UNDECIDED:
        lines = [f"proved for {about}; method: {decision.step}", *evidence]
        if numerical is not None and {numerical.verdict, decision.verdict} == {Verdict.HOLDS, Verdict.FAILS}:
            lines.append(
                f"the two differ because the proof takes every digit of {subject} at its word; where the digits carry "
                "rounding, say in which dtype it was computed, and the numerical verdict counts"
            )
        rigor, reason = Rigor.PROOF, decision.reason
    elif numerical is not None and not asked:
        return dataclasses.replace(
            numerical,
            name=name,
            statement=statement,
            evidence=(*numerical.evidence, f"no proof: {decision.reason}"),
            measured=measured,
        )
    else:
        lines = [*evidence, *decision.tried]
        rigor, reason = Rigor.PROOF, f"nothing was proved for {about}: {decision.reason}"
    kind = "not-proved" if decision.verdict is Verdict.UNDECIDED else decision.step.replace(" ", "-")
    return CheckResult(
        verdict=decision.verdict,
        rigor=rigor,
        subject=Subject.COMPUTED_MATRIX,
        code=f"{name}-{kind}",
        reason=reason,
        evidence=tuple(lines),
        measured=measured,
        witness=decision.witness,
        certificate=decision.certificate,
        tolerance=numerical.tolerance if numerical is not None else None,
        name=name,
        statement=statement,
    )


def _about(ball: Ball | None, subject: str) -> str:
    if ball is None or ball.is_point:
        return f"the matrix {subject} with exactly these entries"
    if ball.norm is not None:
        return f"every matrix within {shown_down(ball.norm)} of {subject} (spectral norm)"
    return f"every matrix that differs from {subject} by at most the given bound in each entry"
