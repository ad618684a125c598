"""Does A have the claimed rank? A proof if one is found, and the answer of every rank rule."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from alignver import require
from alignver.arrays import Entries, as_matrix, is_operator
from alignver.checks.combine import KINDS, ToleranceInterval, combine, floor, rank_steps, search_proof
from alignver.errors import InvalidInput
from alignver.features.threads import dense_flops, threads_for
from alignver.limits import limited
from alignver.linalg import rank_rules
from alignver.linalg.norms import extreme_scale, largest_singular_value, row_sum_norm
from alignver.linalg.pivoted_qr import qr_profile
from alignver.linalg.qr_reduction import reduce
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import RangeProfile, svd_profile
from alignver.proof.decision import Ball
from alignver.proof.prove import prove_rank
from alignver.results import CheckResult, Rigor, Subject, Verdict

METHODS = ("auto", "svd", "qr", "exact")


@limited("rank", "Rank of a matrix")
@np.errstate(all="ignore")
def check_rank(
    A: Any,
    *,
    rank: int | None = None,
    method: str = "auto",
    rule: str = "golub",
    certify: bool = True,
    tolerance: float | None = None,
    computed_in: str | None = None,
    ball: Ball | None = None,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    """Check whether A has the claimed rank: full rank min(N, d) unless ``rank`` is given.

    The numerical rank at tau is the number of singular values above tau (``svd``), or the least r with
    ||R_22||_F <= tau in a QR with column pivoting (``qr``); a numerical verdict is given only if it is the same from
    tau/10 to 10 tau. Before that a proof is searched for, about the matrix of exactly the given entries, or about a
    ball around it.

    Parameters
    ----------
    A : (N, d) array
        Real, finite; NumPy, CuPy, PyTorch or any array API namespace. Decisions are made in float64.
    rank : int, optional
        The claim; between 0 and min(N, d).
    method : {"auto", "svd", "qr", "exact"}
        ``auto``: proof methods, cheapest first; numerically svd decides and qr must not contradict it. ``exact``: a
        proof in rational arithmetic, whatever its cost.
    rule, certify, tolerance, computed_in, ball
        As in :func:`~alignver.checks.membership.check_membership`.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        PROOF, with a certificate, or NUMERICAL. ``measured["rules"]`` has every rule's tolerance and rank side by side.

    Raises
    ------
    InvalidInput
        For NaN, Inf, empty, ragged, complex, object or sparse input, a rank out of range, unknown names.

    References
    ----------
    Press et al. (2007) and Golub & Van Loan (1996), as used for Table 2 of Kawaguchi, Zhang, Deng (2022).

    Examples
    --------
    >>> import numpy as np
    >>> check_rank(np.array([[1.0, 2.0], [3.0, 4.0]])).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> result = check_rank(np.outer(np.arange(1.0, 40.0), np.arange(1.0, 50.0)))
    >>> result.verdict, result.measured["rank"]
    (<Verdict.FAILS: 'FAILS'>, 1)
    """
    began = time.perf_counter()
    require.one_of("method", method, METHODS)
    rank_rules.find(rule)
    if tolerance is not None:
        tolerance = rank_rules.checked_tolerance(tolerance, "tolerance")
    if is_operator(A):
        raise InvalidInput("A", "an operator", "a matrix: products with vectors do not determine a rank", "wrong-type")
    matrix = as_matrix(A, "A", computed_in=computed_in)
    full = min(int(size) for size in matrix.array.shape)
    if getattr(rank, "ndim", None) == 0:  # what matrix_rank of torch returns
        rank = rank.item()  # type: ignore[union-attr]  # only a 0-d array or tensor gets here
    need = f"an integer from 0 to min(N, d) = {full}"
    claimed = full if rank is None else require.integer("rank", rank, least=0, most=full, need=need)
    with threads_for(dense_flops(*map(int, matrix.array.shape))):
        search = search_proof(
            prove_rank,
            matrix,
            claimed,
            method=method,
            rule=rule,
            certify=certify,
            tolerance=tolerance,
            computed_in=computed_in,
            ball=ball,
        )
        numerical = _numerically(matrix, claimed, method, rule, tolerance) if search.needs_numerics else None
    result = combine(search, numerical, subject="A", name="rank", statement=_statement(claimed, full))
    return dataclasses.replace(result, next_steps=rank_steps(result), cost={"seconds": time.perf_counter() - began})


def _statement(claimed: int, full: int) -> str:
    return f"A has rank {claimed}" + (" (full)" if claimed == full else "")


def _numerically(A: Entries, claimed: int, method: str, rule: str, given: float | None) -> CheckResult:
    unit = extreme_scale(A.array)
    matrix = A.array if unit == 1.0 else A.array / unit
    rows, columns = (int(size) for size in matrix.shape)
    reduced = reduce(matrix, None)
    decompositions = (("svd", svd_profile), ("qr", qr_profile))
    profiles = {name: profile(reduced) for name, profile in decompositions if method in ("auto", name)}
    spectral = float(profiles["svd"].levels[0]) if "svd" in profiles else largest_singular_value(reduced.matrix)
    scale = Scale(rows, columns, spectral, row_sum_norm(matrix), A.eps, A.handed_eps)
    tau = rank_rules.tolerance(rule, scale, None if given is None else given / unit)
    band = ToleranceInterval(tau, floor(spectral, rows, columns))

    leading, profile = next(iter(profiles.items()))
    verdicts = {name: band.rank(each, claimed) for name, each in profiles.items()}
    different = set(verdicts.values())
    opposed = different >= {Verdict.HOLDS, Verdict.FAILS}
    verdict = Verdict.UNDECIDED if opposed else verdicts[leading]
    counted = profile.rank(tau.value)
    least, most = profile.rank(band.high), profile.rank(band.low)
    if len(verdicts) == 1:
        compared = []
    elif len(different) == 1:
        compared = [f"{' and '.join(profiles)} agree"]
    else:
        compared = [f"{name} gives {each}" for name, each in verdicts.items()]
    return CheckResult(
        name="rank",
        statement=_statement(claimed, min(rows, columns)),
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code="rank-methods-disagree" if opposed else f"rank-{KINDS[verdict]}",
        reason=_reason(verdict, opposed, counted, claimed, (least, most), tau.value * unit),
        evidence=(
            f"A is {rows} x {columns}, computed in {A.dtype}; tolerance by the rule {tau.rule}",
            _gap(profile, counted, unit, leading),
            *compared,
        ),
        measured={
            "rows": rows,
            "columns": columns,
            "dtype": A.dtype,
            "method": leading,
            "rank": counted,
            "claimed": claimed,
            "rank_at_ten_times_tolerance": least,
            "rank_at_tenth_of_tolerance": most,
            "largest_singular_value": spectral * unit,
            "smallest_level": float(profile.levels[-1]) * unit,
            "levels_near_tolerance": [level * unit for level in profile.near(tau.value)],
            "methods": {
                name: {"verdict": verdicts[name].value, "rank": each.rank(tau.value)} for name, each in profiles.items()
            },
            "rules": rank_rules.compare(scale, profiles.get("svd"), profiles.get("qr"), unit),
        },
        tolerance=dataclasses.replace(tau, value=tau.value * unit),
    )


def _gap(profile: RangeProfile, counted: int, unit: float, method: str) -> str:
    """Return a sentence with the values on both sides of the cut: a wide gap makes a numerical rank credible."""
    name = "singular value" if method == "svd" else "trailing norm"
    if not counted:
        return f"no {name} is above the tolerance"
    inside = float(profile.levels[counted - 1]) * unit
    if counted == profile.levels.size:
        return f"the smallest {name} is {inside:.1e}"
    outside = float(profile.levels[counted]) * unit
    return f"{name} {counted} is {inside:.1e}, {name} {counted + 1} is {outside:.1e}"


def _reason(verdict: Verdict, opposed: bool, counted: int, claimed: int, ends: tuple[int, int], tau: float) -> str:
    if opposed:
        return f"svd and qr contradict each other at tolerance {tau:.1e}; neither verdict is reliable"
    rank = f"rank {counted} at tolerance {tau:.1e}"
    if verdict is Verdict.UNDECIDED:
        return f"{rank}, but {ends[0]} at ten times it and {ends[1]} at a tenth"
    if ends[0] == ends[1]:
        return f"{rank}, the same at ten times the tolerance and at a tenth"
    return f"{rank}, between {ends[0]} and {ends[1]} nearby"
