"""How a proof and the numerical evidence make one result, when a numerical verdict stands, and what to try next.

The exact rho(tau) of a matrix is a step function. A verdict at a tolerance next to a step depends on the tolerance more
than on the matrix. Therefore a verdict has to be the same at tau/10 and at 10 tau, with a tenth of the residual
tolerance for HOLDS and ten times it for FAILS; anything else is UNDECIDED. The levels also have to exceed the rounding
errors of the decomposition.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alignver import require
from alignver.arrays import Entries
from alignver.errors import InvalidInput
from alignver.linalg import rank_rules
from alignver.linalg.norms import norm
from alignver.linalg.rank_rules import FACTOR, Scale
from alignver.linalg.svd import RangeProfile
from alignver.progress import announce, flop_rate
from alignver.proof.decision import Ball, Decision
from alignver.results import CheckResult, Rigor, Subject, Tolerance, Verdict, shown_down

KINDS = {Verdict.HOLDS: "at-tolerance", Verdict.FAILS: "not-at-tolerance", Verdict.UNDECIDED: "tolerance-decides"}
"""The last part of the code of a numerical answer."""

EXACT_SECONDS = 20.0
"""Limit of the estimated time that ``auto`` spends on exact arithmetic; ``exact`` has no limit."""

_CHEAP_FLOPS = 2e10  # numerical evidence in addition to a proof: about a second of dense linear algebra


@dataclasses.dataclass(frozen=True)
class ToleranceInterval:
    """The tolerances over which a verdict has to stand.

    Attributes
    ----------
    tolerance : Tolerance
        tau, in the units of the levels.
    floor : float
        What the decomposition itself cannot resolve. LAPACK's SVD returns the singular values of A + E with
        ||E||_2 <= p(N, d) eps s_1 (LAPACK Users' Guide, section 4.9); p = min(N, d) is its customary, pessimistic
        value. A computed singular value at or below the floor may be zero, so none of them supports HOLDS.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    """

    tolerance: Tolerance
    floor: float
    limit: float = 0.0

    @property
    def low(self) -> float:
        """The smallest tolerance of the interval: tau / 10."""
        return self.tolerance.value / FACTOR

    @property
    def high(self) -> float:
        """The largest tolerance of the interval: 10 tau, or the floor if 10 tau is below it."""
        return max(self.tolerance.value * FACTOR, self.floor)

    def membership(self, rho_low: float, rho_high: float) -> Verdict:
        """Return the verdict from rho at both ends of the interval (rho is non-decreasing in between)."""
        if rho_high <= self.limit / FACTOR:
            return Verdict.HOLDS
        if rho_low > self.limit * FACTOR:
            return Verdict.FAILS
        return Verdict.UNDECIDED

    def rank(self, profile: RangeProfile, claimed: int) -> Verdict:
        """Return the verdict on 'the rank is ``claimed``' from the ranks at both ends of the interval."""
        least, most = profile.rank(self.high), profile.rank(self.low)
        if least == most == claimed:
            return Verdict.HOLDS
        if not least <= claimed <= most:
            return Verdict.FAILS
        return Verdict.UNDECIDED


def floor(spectral: float, rows: int, columns: int) -> float:
    """Return min(N, d) eps s_1 with the eps of float64, the dtype of every decomposition."""
    return min(rows, columns) * 2.0**-52 * spectral


def residual_tolerance(eps: float) -> float:
    """Return the default eps_y = sqrt(eps).

    For y = J b, ||(I - P_tau) y|| <= tau ||b||. With tau a modest multiple of eps s_1, sqrt(eps) accepts every member
    whose coefficients are not larger than about eps^(-1/2) ||y|| / s_1, and mistakes for members only targets within
    sqrt(eps) ||y|| of the column space: half of the digits for the solution, half for the answer.
    """
    return math.sqrt(eps)


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
    scale : Scale
        Of J itself, whatever matrix with the same singular values was decomposed.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    rules : sequence of str
        Names of :data:`alignver.linalg.rank_rules.RULES`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "residual", "verdict"}}``, NUMERICAL; bounds that are too wide give UNDECIDED.

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
        answers[rule] = {
            "tolerance": tau.value,
            "residual": list(interval(tau.value)),
            "verdict": band.membership(interval(band.low)[0], interval(band.high)[1]).value,
        }
    return answers


def membership_by_rule(
    profile: RangeProfile, scale: Scale, limit: float, rules: Sequence[str] = ("press", "golub")
) -> dict[str, dict[str, Any]]:
    """Return, for each rule, its tau, the rank and rho at tau, and the verdict over the interval around tau.

    Parameters
    ----------
    profile : RangeProfile
        Of J and y, levels being singular values.
    scale, limit, rules
        As in :func:`bounds_by_rule`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "rank", "residual", "member", "verdict"}}``, NUMERICAL. ``member`` is the answer of the
        rule at its own tolerance alone.

    Examples
    --------
    >>> import numpy as np
    >>> profile = RangeProfile(np.array([2.0, 1.0]), np.array([1.0, 0.5, 0.0]))
    >>> scale = Scale(2, 5, 2.0, None, 2.0**-52, 2.0**-52)
    >>> membership_by_rule(profile, scale, 1e-8)["press"]["verdict"]
    'HOLDS'
    """
    answers = {}
    for rule, answer in bounds_by_rule(lambda tau: (profile.rho(tau),) * 2, scale, limit, rules).items():
        tau, residual = answer["tolerance"], answer["residual"][0]
        answers[rule] = {
            "tolerance": tau,
            "rank": profile.rank(tau),
            "residual": residual,
            "member": residual <= limit,
            "verdict": answer["verdict"],
        }
    return answers


@dataclasses.dataclass(frozen=True)
class ProofSearch:
    """The outcome of the search for a proof.

    Attributes
    ----------
    decision : Decision or None
        None if the method, or ``certify=False``, excludes a proof.
    ball : Ball or None
        The matrices that the decision is about; None for the matrix with exactly the given entries.
    required : bool
        Whether only a proof answers the caller: with exact arithmetic, or about a ball.
    needs_numerics : bool
        Whether numerical evidence is needed: if nothing was proved, and in addition to a proof if it is cheap.
    """

    decision: Decision | None = None
    ball: Ball | None = None
    required: bool = False
    needs_numerics: bool = True


def search_proof(
    prover: Callable[..., Decision],
    matrix: Entries,
    claim: Any,
    *,
    method: str,
    rule: str,
    certify: bool,
    tolerance: float | None,
    computed_in: str | None,
    ball: Ball | None,
    columns: int | None = None,
    **known: Any,
) -> ProofSearch:
    """Search for a proof if the method allows one.

    Parameters
    ----------
    prover : callable
        A function of :mod:`alignver.proof`, of the matrix and the claim.
    matrix : Entries
    claim : array or int
        The target, or the claimed rank.
    method, rule, certify, tolerance, computed_in, ball
        The arguments of the check.
    columns : int, optional
        The number of columns for the rank rules, if the matrix stands for a wider one.
    **known
        Further arguments of the prover.
    """
    if not require.boolean("certify", certify) and method == "exact":
        got = "method='exact' with certify=False"
        raise InvalidInput("certify", got, "certify=True: exact arithmetic is a proof", "conflicting-arguments")
    rows, width = (int(size) for size in matrix.array.shape)
    least, most = sorted((rows, width))
    flops = 4.0 * least**2 * most + 20.0 * least**3  # a QR first, then an SVD of its triangle
    if most > 1:
        seconds = flops / flop_rate() if flops > _CHEAP_FLOPS else 0.0
        announce(f"{rows} x {width} matrix: proofs, singular values", seconds=seconds, peak_bytes=24.0 * rows * width)
    if method != "exact" and not (method == "auto" and certify):
        if ball is not None:
            got = f"a ball with method={method!r}, certify={certify}"
            raise InvalidInput("ball", got, "method='auto' and certify=True", "conflicting-arguments")
        return ProofSearch()
    cover = _covered_ball(matrix, rule, tolerance, computed_in, ball, columns)
    if cover is not None and method == "exact":
        got = "'exact' about a ball, or about entries with computed_in"
        need = "'auto': exact arithmetic is about a single matrix, a ball or a rounded computation about many"
        raise InvalidInput("method", got, need, "conflicting-arguments")
    exact = "force" if method == "exact" else "auto"
    decision = prover(matrix.array, claim, ball=cover, exact=exact, budget_seconds=EXACT_SECONDS, **known)
    cheap = flops <= _CHEAP_FLOPS
    return ProofSearch(
        decision,
        cover,
        required=method == "exact" or ball is not None,
        needs_numerics=method != "exact" and (decision.verdict is Verdict.UNDECIDED or cheap),
    )


def _covered_ball(
    matrix: Entries, rule: str, given: float | None, computed_in: str | None, ball: Ball | None, columns: int | None
) -> Ball | None:
    """Return the ball that a proof has to cover: the caller's, or that of the tolerance if the entries were rounded.

    Without ``computed_in`` the entries count as exact: the statement is about the matrix of exactly these floats.
    With it they are results of a rounded computation, and a statement about their last bits would be about rounding
    errors. Then a proof has to cover every matrix within the tolerance, with ||A||_F for s_1 (never smaller).
    """
    if ball is not None or computed_in is None:
        return ball
    rows = int(matrix.array.shape[0])
    columns = int(matrix.array.shape[1]) if columns is None else columns
    size = norm(matrix.array)
    scale = Scale(rows, columns, size, math.sqrt(columns) * size, matrix.eps, matrix.handed_eps)
    return Ball(norm=min(rank_rules.tolerance(rule, scale, given).value, sys.float_info.max))


def combine(
    search: ProofSearch, numerical: CheckResult | None, *, subject: str, name: str, statement: str
) -> CheckResult:
    """Make one result of the search for a proof and the numerical evidence.

    A proof gives the verdict. The numerical verdict stays in the evidence, and if the two differ the report says what
    each is about. Without a proof the numerical verdict stands; if a proof is required, the result is UNDECIDED.

    Parameters
    ----------
    search : ProofSearch
    numerical : CheckResult or None
        Not None if ``search`` needs it.
    subject : str
        The name of the matrix in the sentences.
    name, statement : str
        Of the result.
    """
    decision = search.decision
    if decision is None:
        assert numerical is not None
        return numerical
    about = _about(search.ball, subject)
    measured = dict(numerical.measured) if numerical is not None else {}
    proof = {"verdict": decision.verdict.value, "step": decision.step, "about": about, "tried": decision.tried}
    measured["proof"] = {**proof, **decision.measured}
    evidence: tuple[str, ...] = ()
    if numerical is not None:
        measured["numerical"] = {"verdict": numerical.verdict.value, "reason": numerical.reason}
        evidence = (f"numerically {numerical.verdict}: {numerical.reason}", *numerical.evidence)
    proved = decision.verdict is not Verdict.UNDECIDED
    if not proved and numerical is not None and not search.required:
        why = (f"no proof: {decision.reason}",)
        evidence = (*why, *numerical.evidence) if decision.step == "arithmetic" else (*numerical.evidence, *why)
        return dataclasses.replace(numerical, evidence=evidence, measured=measured)
    if proved:
        reason = decision.reason
        evidence = (f"proved for {about}; method: {decision.step}", *evidence)
        if numerical is not None and {numerical.verdict, decision.verdict} == {Verdict.HOLDS, Verdict.FAILS}:
            evidence += (f"the two differ because the proof takes every digit of {subject} as exact",)
    else:
        reason = f"nothing was proved for {about}: {decision.reason}"
        evidence += decision.tried
    return CheckResult(
        verdict=decision.verdict,
        rigor=Rigor.PROOF if proved else Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code=f"{name}-{decision.step.replace(' ', '-') if proved else 'not-proved'}",
        reason=reason,
        evidence=evidence,
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


_JUSTIFIED = "state a tolerance that you can justify: tolerance="
_LONGER = "a proof about the network would take about"
_TRACK = "true at these parameters only: av.AlignmentTracker follows it while they change"


def membership_steps(result: CheckResult, rows: int, columns: int) -> tuple[str, ...]:
    """Return the next steps of an answer on membership in the column space of a rows x columns matrix.

    Examples
    --------
    >>> from alignver.checks.membership import check_membership
    >>> membership_steps(check_membership([[1.0], [2.0]], [1.0, 3.0]), 2, 1)[0]
    'd = 1 < N = 2: full row rank is impossible; at least 1 more column, or fewer rows'
    """
    if result.verdict is Verdict.UNDECIDED:
        return _undecided(result)
    steps: list[str] = []
    if result.verdict is Verdict.FAILS:
        rank, residual = result.measured.get("rank"), result.measured.get("residual")
        if columns < rows:
            more = f"{rows - columns} more column{'s' * (rows - columns > 1)}"
            steps.append(f"d = {columns} < N = {rows}: full row rank is impossible; at least {more}, or fewer rows")
        elif rank is not None and rank < rows:
            steps.append(f"rank J = {rank} < N = {rows}: {rows - rank} more independent columns reach every y")
        if residual:
            steps.append(f"or take the nearest vector in the column space: least squares leaves {residual:.1e} ||y||")
        if not steps:
            steps.append("other columns, or another y: no b gives this one")
    return (*steps, *_towards_proof(result))


def rank_steps(result: CheckResult) -> tuple[str, ...]:
    """Return the next steps of an answer on the rank of a matrix.

    Examples
    --------
    >>> from alignver.checks.rank import check_rank
    >>> rank_steps(check_rank([[1.0, 2.0], [2.0, 4.0]]))[0]
    'drop the rows or columns that depend on the others; rank=1 asks for the rank that was counted'
    """
    if result.verdict is Verdict.UNDECIDED:
        return _undecided(result)
    steps: tuple[str, ...] = ()
    if result.verdict is Verdict.FAILS:
        counted = result.measured.get("rank")
        claim = "" if counted is None else f"; rank={counted} asks for the rank that was counted"
        steps = ("drop the rows or columns that depend on the others" + claim,)
    return (*steps, *_towards_proof(result))


def alignment_steps(result: CheckResult, N: int, d: int, narrow: str, unproved: str) -> tuple[str, ...]:
    """Return the next steps of an answer on alignment.

    Parameters
    ----------
    result : CheckResult
    N, d : int
        Numbers of entries of the outputs and of parameters.
    narrow : str
        Why the sizes of the layers exclude full row rank, if they do and d < N does not.
    unproved : str
        Why nothing is proved about the network; empty if something is.
    """
    estimate = re.search(r"would take (?:about|more than) (\d+) s", unproved)
    more = () if estimate is None else (f"max_seconds={3 * int(estimate[1]) + 3}: {_LONGER} {estimate[1]} s",)
    if result.verdict is Verdict.UNDECIDED:
        return (*result.next_steps, "run the model in float64: dtype='float64'", *more)
    steps: list[str] = []
    if result.verdict is Verdict.FAILS:
        rank = result.measured.get("rank")
        if d < N:
            wider = f"{N - d} more parameter{'s' * (N - d > 1)}, or fewer outputs or samples"
            steps.append(f"d = {d} < N = {N}: full row rank is impossible; {wider}")
        elif narrow:
            steps.append(f"widen the narrow layer: {narrow}")
        elif rank is not None and rank < N:
            steps.append(f"rank J = {rank} < N = {N}: wider layers, or other parameters (another seed, some training)")
        else:
            steps.append("other parameters: another seed, or some steps of training")
        steps.append("av.AlignmentTracker shows whether training reaches alignment")
    else:
        steps.append(_TRACK)
    return (*steps, *more, *(_towards_proof(result) if "proof" in result.measured else ()))


def _undecided(result: CheckResult) -> tuple[str, ...]:
    kind, tolerance = result.code.partition("-")[2], result.tolerance
    if "operator" in kind:
        return ("give a larger tolerance, or the matrix itself",)
    if kind == "methods-disagree":
        return ("decide in rational arithmetic: method='exact'", f"or name one method, and {_JUSTIFIED}")
    if kind == "not-proved":
        return ("a smaller ball, or none", "or the numerical answer: method='auto' without a ball")
    turn = result.measured.get("turns_at")
    where = f"the answer changes at {turn:.1e}, the tolerance is {tolerance.value:.1e}: " if turn and tolerance else ""
    more = ", residual_tolerance=" if result.name == "membership" else ""
    return (f"{where}{_JUSTIFIED}{more}", *_towards_proof(result))


def _towards_proof(result: CheckResult) -> tuple[str, ...]:
    """Return what would give a proof instead of a numerical answer."""
    if result.rigor is not Rigor.NUMERICAL:
        differ = result.measured.get("numerical", {}).get("verdict") not in (None, result.verdict)
        return ("if the entries carry rounding errors, give the dtype of their computation: computed_in=",) * differ
    proof = result.measured.get("proof")
    if "operator" in result.code:
        return ("a proof needs the matrix itself",)
    if proof is None:
        return ("search for a proof: method='auto' and certify=True",)
    if proof.get("tiles_taken"):
        return ("for a proof: result.certificate.save(PATH), and alignver verify PATH --model, which uses no tiles",)
    if proof["about"].startswith("every"):
        return (
            "a proof has to cover the rounding errors: float64 entries, or a smaller tolerance= that you can justify",
        )
    return ("for a proof, whatever its time: method='exact'",)
