"""When a numerical verdict stands: over a factor of ten in every tolerance that it rests on, and above rounding.

The exact rho(tau) of a matrix is a step function; a verdict read off next to a step says more about the tolerance than
about the matrix. So a verdict has to be the same at tau/10 and at 10 tau, with a tenth of the residual tolerance for
HOLDS and ten times it for FAILS; anything else is UNDECIDED.

What every rank rule makes of one decomposition: rank, residual and verdict, side by side.

How a proof and the numerical evidence make one result: what was proved, about what, and what the tolerance says.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alignver.arrays import Entries
from alignver.errors import InvalidInput
from alignver.linalg import rank_rules
from alignver.linalg.norms import norm
from alignver.linalg.rank_rules import Scale, tolerance
from alignver.linalg.svd import RangeProfile
from alignver.proof import Ball, Decision
from alignver.results import CheckResult, Rigor, Subject, Tolerance, Verdict, shown_down

__all__ = [
    "FACTOR",
    "ToleranceInterval",
    "bounds_by_rule",
    "combine",
    "covered_ball",
    "membership_by_rule",
    "residual_tolerance",
]
FACTOR = 10.0
"""How far a tolerance may be off, either way, without the verdict changing (THEORY: [tau/10, 10 tau])."""


@dataclasses.dataclass(frozen=True)
class ToleranceInterval:
    """The tolerances over which a verdict has to stand.

    Attributes
    ----------
    tolerance : Tolerance
        tau, in the units that the levels are in.
    floor : float
        What the decomposition itself cannot resolve. LAPACK's SVD returns the singular values of A + E with
        ||E||_2 <= p(N, d) eps s_1 (LAPACK Users' Guide, section 4.9); p = min(N, d) is its customary, pessimistic
        value. A computed singular value at or below the floor may be zero, so none may speak for HOLDS.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    """

    tolerance: Tolerance
    floor: float
    limit: float = 0.0

    @property
    def low(self) -> float:
        """The smallest tolerance looked at: tau / 10."""
        return self.tolerance.value / FACTOR

    @property
    def high(self) -> float:
        """The largest tolerance looked at: 10 tau, or the floor where 10 tau is below it."""
        return max(self.tolerance.value * FACTOR, self.floor)

    def membership(self, rho_low: float, rho_high: float) -> Verdict:
        """Return the verdict from rho at both ends of the band (rho is non-decreasing in between)."""
        if rho_high <= self.limit / FACTOR:
            return Verdict.HOLDS
        if rho_low > self.limit * FACTOR:
            return Verdict.FAILS
        return Verdict.UNDECIDED

    def rank(self, profile: RangeProfile, claimed: int) -> Verdict:
        """Return the verdict on 'the rank is ``claimed``' from the ranks at both ends of the band."""
        least, most = profile.rank(self.high), profile.rank(self.low)
        if least == most == claimed:
            return Verdict.HOLDS
        if not least <= claimed <= most:
            return Verdict.FAILS
        return Verdict.UNDECIDED


def floor(spectral: float, rows: int, columns: int) -> float:
    """Return min(N, d) eps s_1 with the eps of float64, in which every decomposition is made."""
    return min(rows, columns) * 2.0**-52 * spectral


def residual_tolerance(eps: float) -> float:
    """Return the default eps_y = sqrt(eps).

    For y = J b, ||(I - P_tau) y|| <= tau ||b||. With tau a modest multiple of eps s_1, sqrt(eps) accepts every member
    whose coefficients are not larger than about eps^(-1/2) ||y|| / s_1, and mistakes for members only targets within
    sqrt(eps) ||y|| of the column space: half of the digits for the solution, half for the answer.
    """
    return math.sqrt(eps)


def membership_by_rule(
    profile: RangeProfile, scale: Scale, limit: float, rules: Sequence[str] = ("press", "golub")
) -> dict[str, dict[str, Any]]:
    """Return, for each rule, its tau, the rank and rho at tau, and the verdict of the band around tau.

    Parameters
    ----------
    profile : RangeProfile
        Of J and y, levels being singular values.
    scale : Scale
        Of J itself, whatever matrix of the same singular values was decomposed.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    rules : sequence of str
        Names of :data:`alignver.linalg.rank_rules.RULES`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "rank", "residual", "member", "verdict"}}``, NUMERICAL. ``member`` is what the rule says
        when it is taken at its word, with no band around its tolerance.

    Examples
    --------
    >>> import numpy as np
    >>> profile = RangeProfile(np.array([2.0, 1.0]), np.array([1.0, 0.5, 0.0]))
    >>> scale = Scale(2, 5, 2.0, None, 2.0**-52, 2.0**-52)
    >>> membership_by_rule(profile, scale, 1e-8)["press"]["verdict"]
    'HOLDS'
    """
    least = floor(scale.spectral, scale.rows, scale.columns)
    answers = {}
    for rule in rules:
        tau = rank_rules.tolerance(rule, scale)
        band = ToleranceInterval(tau, least, limit)
        residual = profile.rho(tau.value)
        answers[rule] = {
            "tolerance": tau.value,
            "rank": profile.rank(tau.value),
            "residual": residual,
            "member": residual <= limit,
            "verdict": band.membership(profile.rho(band.low), profile.rho(band.high)).value,
        }
    return answers


def bounds_by_rule(
    interval: Callable[[float], tuple[float, float]],
    scale: Scale,
    limit: float,
    rules: Sequence[str] = ("press", "golub"),
) -> dict[str, dict[str, Any]]:
    """Return, for each rule, its tau, the interval of rho at tau, and the verdict, from bounds of rho alone.

    Parameters
    ----------
    interval : callable
        The best lower and upper bound of rho(tau).
    scale, limit, rules
        As in :func:`membership_by_rule`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "residual", "verdict"}}``, NUMERICAL; bounds that do not tell give UNDECIDED.

    Examples
    --------
    >>> scale = Scale(2, 5, 2.0, None, 2.0**-52, 2.0**-52)
    >>> bounds_by_rule(lambda tau: (0.0, 1e-12), scale, 1e-8)["press"]["verdict"]
    'HOLDS'
    """
    least = floor(scale.spectral, scale.rows, scale.columns)
    answers = {}
    for rule in rules:
        tau = rank_rules.tolerance(rule, scale)
        band = ToleranceInterval(tau, least, limit)
        low, high = interval(band.low)[0], interval(band.high)[1]
        answers[rule] = {
            "tolerance": tau.value,
            "residual": list(interval(tau.value)),
            "verdict": band.membership(low, high).value,
        }
    return answers


EXACT_SECONDS = 20.0
"""Estimated time that ``auto`` spends on exact arithmetic at most; ``exact`` has no limit."""

_CHEAP_FLOPS = 2e10  # numerical evidence beside a proof: about a second of dense linear algebra


def combine(
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


def covered_ball(
    matrix: Entries, rule: str, given: float | None, computed_in: str | None, ball: Ball | None
) -> Ball | None:
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
