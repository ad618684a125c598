"""Membership when J is only an operator: LSMR, and bounds of rho(tau) that hold for any b."""

from __future__ import annotations

import time
from typing import Any

from alignver.arrays import EPS, Entries, like
from alignver.checks import band as bands
from alignver.checks.band import Band
from alignver.errors import InvalidInput
from alignver.linalg import rank_rules
from alignver.linalg.lsmr import lsmr
from alignver.linalg.norms import norm, spectral_norm, start_vector
from alignver.linalg.rank_rules import Scale
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict

__all__ = ["operator_membership"]


def operator_membership(
    operator: Any,
    y: Entries,
    *,
    method: str,
    rule: str,
    tolerance: float | None,
    computed_in: str | None,
    limit: float | None = None,
) -> CheckResult:
    """Answer :func:`~alignver.checks.membership.check_membership` for an operator, from products alone.

    For any b, with r = y - J b, tau ||b|| + ||r|| bounds ||(I - P_tau) y|| from above and
    sqrt(||r||^2 - (||J^T r|| / tau)^2) - tau ||b|| from below (:meth:`alignver.linalg.lsmr.Iterate.residual_bounds`);
    HOLDS and FAILS are read off those, so an iteration that has not converged gives UNDECIDED, never a wrong answer.
    """
    began = time.perf_counter()
    if method not in ("auto", "lstsq"):
        raise InvalidInput("method", f"{method!r} for an operator", "'lstsq' or 'auto'; svd and qr need the matrix")
    rows, columns = _shape(operator)
    if rows != y.array.shape[0]:
        raise InvalidInput("y", f"{y.array.shape[0]} entries beside {rows} rows of J", "an entry per row of J")
    if computed_in is not None and computed_in not in EPS:
        raise InvalidInput("computed_in", repr(computed_in), "one of " + ", ".join(sorted(EPS)))
    eps = EPS[computed_in or "float64"]
    spectral = spectral_norm(operator, like(start_vector(rows), y.array))
    _require_finite(spectral)
    scale = Scale(rows, columns, spectral, None, eps, eps)
    band = Band(
        rank_rules.tolerance(rule, scale, tolerance),
        bands.floor(spectral, rows, columns),
        bands.residual_tolerance(max(eps, y.eps)) if limit is None else limit,
    )
    size = norm(y.array)
    iterate = lsmr(operator, y.array)
    _require_finite(iterate.residual, iterate.gradient)
    low, high = (tuple(v / size if size else 0.0 for v in iterate.residual_bounds(t)) for t in (band.low, band.high))
    verdict = band.membership(low[0], high[1])
    residual = iterate.residual / size if size else 0.0
    tau = band.tolerance
    return CheckResult(
        name="membership",
        statement="Membership of y in the column space of J",
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code=f"membership-operator-{_KINDS[verdict]}",
        next_steps=("give a larger tolerance, or the matrix itself",) if verdict is Verdict.UNDECIDED else (),
        reason=_reason(verdict, residual, iterate.iterations),
        evidence=(
            f"J is an operator, {rows} x {columns}; tolerance {tau.value:.1e} by the rule {tau.rule}",
            f"rho between {low[0]:.1e} (at a tenth of the tolerance) and {high[1]:.1e} (at ten times it)",
        ),
        measured={
            "rows": rows,
            "columns": columns,
            "method": "lstsq",
            "residual": residual,
            "residual_tolerance": band.limit,
            "residual_lower_bound": low[0],
            "residual_upper_bound": high[1],
            "gradient_norm": iterate.gradient,
            "solution_norm": iterate.size,
            "iterations": iterate.iterations,
            "target_norm": size,
            "largest_singular_value": spectral,
        },
        bounds=(Bound("residual", residual, "<=", band.limit),) if verdict is Verdict.HOLDS else (),
        tolerance=tau,
        cost={"seconds": time.perf_counter() - began},
    )


_KINDS = {Verdict.HOLDS: "at-tolerance", Verdict.FAILS: "not-at-tolerance", Verdict.UNDECIDED: "tolerance-decides"}


def _shape(operator: Any) -> tuple[int, int]:
    try:
        rows, columns = (int(size) for size in operator.shape)
    except (TypeError, ValueError) as error:
        raise InvalidInput("J", f"an operator of shape {operator.shape!r}", "a shape of two integers") from error
    if rows < 1 or columns < 1:
        raise InvalidInput("J", f"an operator of shape {(rows, columns)}", "an operator that is not empty")
    return rows, columns


def _require_finite(*values: float) -> None:
    if not all(abs(value) < float("inf") for value in values):
        raise InvalidInput("J", "an operator whose products are not finite", "finite products for finite vectors")


def _reason(verdict: Verdict, residual: float, iterations: int) -> str:
    found = f"an explicit b leaves {residual:.1e} ||y|| after {iterations} iterations of LSMR"
    if verdict is Verdict.HOLDS:
        return f"y is in the column space: {found}"
    if verdict is Verdict.FAILS:
        return f"y is not in the column space: {found}, and its residual is orthogonal to the range"
    return f"{found}, which does not decide at this tolerance; a larger tolerance, or the matrix itself, would"
