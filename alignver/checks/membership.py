"""Is y in the column space of J? A proof if one is found; numerically by three methods that have to agree.

If J is only an operator, LSMR gives bounds of rho(tau) from products alone, which hold for any b.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignver import require
from alignver.arrays import EPS, Entries, as_matrix, as_vector, is_operator, like, same_place
from alignver.checks.combine import KINDS, ToleranceInterval, combine, floor, membership_steps, search_proof
from alignver.checks.combine import residual_tolerance as default_residual_tolerance
from alignver.errors import InvalidInput
from alignver.features.threads import dense_flops, threads_for
from alignver.limits import limited
from alignver.linalg import rank_rules
from alignver.linalg.least_squares import least_squares, preconditioned_iterates, residual_interval
from alignver.linalg.lsmr import Iterate, Operator, lsmr
from alignver.linalg.norms import extreme_scale, largest_singular_value, norm, row_sum_norm, spectral_norm, start_vector
from alignver.linalg.pivoted_qr import qr_profile
from alignver.linalg.qr_reduction import reduce
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import RangeProfile, svd_profile
from alignver.proof.decision import Ball
from alignver.proof.prove import prove_membership
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict

METHODS = ("auto", "svd", "qr", "lstsq", "exact")
STATEMENT = "Membership of y in the column space of J"
_LSTSQ_ENTRIES = 1 << 22  # 'auto' adds the explicit solution up to this size: it holds a second copy of J
_SVD_FLOPS = 2e10  # about a second: 'auto' decomposes larger matrices by SVD only if the pivoted QR does not decide
_MARGIN = 1e3  # clearly: at all tolerances from the interval's lower end / 1000 to its upper end * 1000
_AROUND = 1e4  # how far beyond the tolerances of the verdict the curve of rho(tau) extends


@limited("membership", STATEMENT)
def check_membership(
    J: Any,
    y: Any,
    *,
    method: str = "auto",
    rule: str = "golub",
    certify: bool = True,
    tolerance: float | None = None,
    residual_tolerance: float | None = None,
    computed_in: str | None = None,
    ball: Ball | None = None,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    """Check whether y lies in the column space of J.

    With the singular triplets (s_k, u_k, v_k) of J and P_tau the projector on span{u_k : s_k > tau},

        rho(tau) = ||(I - P_tau) y|| / ||y||,

    y is a member at (tau, eps_y) if rho(tau) <= eps_y. Numerical HOLDS and FAILS are given only if they are the same
    over a factor of ten in both tolerances; the result gives the interval of tolerances over which they are. Before
    that a proof is searched for, about the matrix of exactly the given entries, or every matrix in a ball around it.

    Parameters
    ----------
    J : (N, d) array, or operator with shape, matvec and rmatvec
        Real, finite; NumPy, CuPy, PyTorch or any array API namespace. Decisions are made in float64.
    y : (N,) array
        In the namespace and on the device of J.
    method : {"auto", "svd", "qr", "lstsq", "exact"}
        ``auto``: proof methods, cheapest first; numerically svd decides, and qr and (if memory allows a second copy
        of J) lstsq have to agree. ``svd``: projection onto the singular vectors. ``qr``: column-pivoted QR, tau
        against ||R_22||. ``lstsq``: an explicit b, its residual measured with J itself (LSMR for an operator).
        ``exact``: a proof in rational arithmetic, whatever its cost.
    rule : str
        The rank rule that sets tau: a name of :data:`alignver.linalg.rank_rules.RULES`.
    certify : bool
        Whether ``auto`` searches for a proof; svd, qr and lstsq are numerical methods.
    tolerance : float, optional
        tau itself, in the units of the singular values, instead of the rule's.
    residual_tolerance : float, optional
        eps_y; by default the square root of the coarser epsilon of J and y.
    computed_in : str, optional
        The dtype that J was computed in. If given, the entries count as rounded: eps is that dtype's, and a proof has
        to cover every matrix within the tolerance.
    ball : alignver.Ball, optional
        The statement is about every matrix in it: HOLDS means for all of them, FAILS for none of them.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        PROOF, with a certificate that :func:`alignver.recheck` accepts, or NUMERICAL. ``measured`` has rank, residual,
        the interval, the singular values near tau, the answer of every rank rule, of each library and of each method,
        and the outcome of every step of the proof search.

    Raises
    ------
    InvalidInput
        For input without a verdict: NaN, Inf, empty, ragged, complex, object or sparse input, shapes, namespaces or
        devices that disagree, unknown names.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Definition 2 asks this of J = d vec(f_X)/d theta and y = vec(Y_l).

    Examples
    --------
    >>> import numpy as np
    >>> J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> check_membership(J, np.array([2.0, 3.0, 5.0])).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> check_membership(J, np.array([2.0, 3.0, 6.0])).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    return membership_of(
        J,
        y,
        method=method,
        rule=rule,
        certify=certify,
        tolerance=tolerance,
        residual_tolerance=residual_tolerance,
        computed_in=computed_in,
        ball=ball,
    )


@np.errstate(all="ignore")
def membership_of(
    J: Any,
    y: Any,
    *,
    method: str,
    rule: str,
    certify: bool,
    tolerance: float | None,
    residual_tolerance: float | None,
    computed_in: str | None = None,
    ball: Ball | None = None,
    rows: int | None = None,
    columns: int | None = None,
    deficient: bool = False,
    gram: np.ndarray[Any, np.dtype[np.float64]] | None = None,
) -> CheckResult:
    """Return :func:`check_membership`, with the tolerances of a ``rows`` x ``columns`` matrix that J stands for.

    A smaller matrix with the singular values of J, and y in its rows, has other dimensions, and rank rules depend on
    the dimensions. ``deficient``: J in exact arithmetic is known to have neither full row rank nor full column rank.
    ``gram``: J J^T of an operator J, approximately.
    """
    began = time.perf_counter()
    require.one_of("method", method, METHODS)
    rank_rules.find(rule)
    if tolerance is not None:
        tolerance = rank_rules.checked_tolerance(tolerance, "tolerance")
    if residual_tolerance is not None:
        residual_tolerance = rank_rules.checked_tolerance(residual_tolerance, "residual_tolerance")
    if is_operator(J):
        limits = tolerance, residual_tolerance
        return _operator_membership(J, as_vector(y, "y"), method, rule, *limits, computed_in, gram)
    matrix, target = as_matrix(J, "J", computed_in=computed_in), as_vector(y, "y")
    _require_fit(target, matrix.array.shape[0])
    same_place(matrix.array, target.array, ("J", "y"))
    limit = residual_tolerance
    if limit is None:
        limit = default_residual_tolerance(max(matrix.eps, target.eps))
    height, width = (int(size) for size in matrix.array.shape)
    rows, columns = rows or height, columns or width
    with threads_for(dense_flops(*map(int, matrix.array.shape))):
        search = search_proof(
            prove_membership,
            matrix,
            target.array,
            method=method,
            rule=rule,
            certify=certify,
            tolerance=tolerance,
            computed_in=computed_in,
            ball=ball,
            columns=columns,
            deficient=deficient,
        )
        numerical = None
        if search.needs_numerics:
            numerical = _numerically(matrix, target, method, rule, tolerance, limit, rows, columns)
    result = combine(search, numerical, subject="J", name="membership", statement=STATEMENT)
    steps = membership_steps(result, rows, columns)
    return dataclasses.replace(result, next_steps=steps, cost={"seconds": time.perf_counter() - began})


def _require_fit(y: Entries, rows: int) -> None:
    if y.array.shape[0] != rows:
        got = f"{y.array.shape[0]} entries for {rows} rows of J"
        raise InvalidInput("y", got, "an entry per row of J", "wrong-shape")


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The answer of one method: its verdict, the rank and residual at tau, and further numbers."""

    verdict: Verdict
    rank: int
    residual: float
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"verdict": self.verdict.value, "rank": self.rank, "residual": self.residual, **self.more}


def _numerically(
    J: Entries, y: Entries, method: str, rule: str, given: float | None, limit: float, rows: int, columns: int
) -> CheckResult:
    # Powers of two scale J and y into the range where squares neither overflow nor underflow, without rounding.
    unit, y_unit = extreme_scale(J.array), extreme_scale(y.array)
    matrix = J.array if unit == 1.0 else J.array / unit
    target = y.array if y_unit == 1.0 else y.array / y_unit
    methods: tuple[str, ...] = (method,)
    if method == "auto":
        methods = ("svd", "qr", "lstsq") if rows * int(matrix.shape[1]) <= _LSTSQ_ENTRIES else ("svd", "qr")

    sums = row_sum_norm(matrix)

    def scale(spectral: float) -> Scale:
        return Scale(rows, columns, spectral, sums, J.eps, J.handed_eps)

    def interval(spectral: float) -> ToleranceInterval:
        tau = rank_rules.tolerance(rule, scale(spectral), None if given is None else given / unit)
        return ToleranceInterval(tau, floor(spectral, rows, columns), limit)

    profiles: dict[str, RangeProfile] = {}
    solver = least_squares(matrix, target) if "lstsq" in methods else None
    if methods == ("lstsq",):
        assert solver is not None
        spectral = float(solver.s[0])
    else:
        reduced = reduce(matrix, target)
        profiles |= {"qr": qr_profile(reduced)} if "qr" in methods else {}
        large = method == "auto" and 21.0 * min(matrix.shape) ** 3 > _SVD_FLOPS  # Golub and Van Loan, figure 8.6.1
        spectral = largest_singular_value(reduced.matrix) if large or "svd" not in methods else math.nan
        if large:
            band, profile = interval(spectral), profiles["qr"]
            decided = band.membership(profile.rho(band.low / _MARGIN), profile.rho(band.high * _MARGIN))
            methods = methods if decided is Verdict.UNDECIDED else ("qr",)
        if "svd" in methods:
            profiles = {"svd": svd_profile(reduced), **profiles}
            spectral = float(profiles["svd"].levels[0])
    band = interval(spectral)
    tau = band.tolerance

    answers: dict[str, _Answer] = {}
    for name, profile in profiles.items():
        verdict = band.membership(profile.rho(band.low), profile.rho(band.high))
        answers[name] = _Answer(verdict, profile.rank(tau.value), profile.rho(tau.value))
    if solver is not None:
        low, middle, high = (solver.solve(t) for t in (band.low, tau.value, band.high))
        verdict = band.membership(low.residual, high.residual)
        size = middle.size * (y_unit / unit)
        answers["lstsq"] = _Answer(verdict, middle.rank, middle.residual, {"solution_norm": size})

    leading = methods[0]
    lead = answers[leading]
    disagreeing = [
        name for name, answer in answers.items() if {answer.verdict, lead.verdict} == {Verdict.HOLDS, Verdict.FAILS}
    ]
    verdict = Verdict.UNDECIDED if disagreeing else lead.verdict
    leading_profile = profiles.get(leading)
    measured: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "dtype": J.dtype,
        "method": leading,
        "rank": lead.rank,
        "residual": lead.residual,
        "residual_tolerance": limit,
        "target_norm": norm(target) * y_unit,
        "largest_singular_value": spectral * unit,
        "methods": {name: answer.plain() for name, answer in answers.items()},
        "rules": rank_rules.compare(scale(spectral), profiles.get("svd"), profiles.get("qr"), unit),
    }
    if leading_profile is not None:
        turn = leading_profile.turns_at(limit)
        measured |= {
            "turns_at": None if turn is None else turn * unit,
            "levels_near_tolerance": [level * unit for level in leading_profile.near(tau.value)],
            "smallest_level": float(leading_profile.levels[-1]) * unit,
            "curve": _curve(leading_profile, band, unit),
        }
    tau = dataclasses.replace(tau, value=tau.value * unit)
    return CheckResult(
        name="membership",
        statement=STATEMENT,
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code="membership-methods-disagree" if disagreeing else f"membership-{KINDS[verdict]}",
        reason=_reason(verdict, disagreeing, leading, lead, measured, tau.value),
        evidence=_evidence(verdict, measured, tau.value, tau.rule, band.floor * unit, answers, method == "auto"),
        measured=measured,
        bounds=(Bound("residual", lead.residual, "<=" if verdict is Verdict.HOLDS else ">", limit),)
        if verdict is not Verdict.UNDECIDED
        else (),
        tolerance=tau,
    )


def _curve(profile: RangeProfile, band: ToleranceInterval, unit: float) -> dict[str, Any] | None:
    """Return rho around the tolerances of the verdict, in the units of J; None if tau is zero or infinite."""
    if not 0.0 < band.low < band.high < math.inf:
        return None
    points = profile.curve(band.low / _AROUND, band.high * _AROUND)
    return {
        "tau": [tau * unit for tau, _ in points],
        "rho": [rho for _, rho in points],
        "band": [band.low * unit, band.high * unit],
    }


def _reason(
    verdict: Verdict, disagreeing: list[str], leading: str, lead: _Answer, measured: Mapping[str, Any], tau: float
) -> str:
    if disagreeing:
        opposite = " and ".join(disagreeing)
        return f"the methods disagree: {leading} gives {lead.verdict}, {opposite} the opposite; no verdict is reliable"
    where = f"rank {lead.rank} of at most {min(measured['rows'], measured['columns'])} at tolerance {tau:.1e}"
    if verdict is Verdict.HOLDS:
        return f"y is in the column space up to a residual of {lead.residual:.1e} ||y||; {where}"
    if verdict is Verdict.FAILS:
        return f"y is not in the column space: its residual is {lead.residual:.1e} ||y||; {where}"
    return f"residual {lead.residual:.1e} ||y||, {where}; the verdict changes within a factor of ten of the tolerances"


def _evidence(
    verdict: Verdict,
    measured: Mapping[str, Any],
    tau: float,
    rule: str,
    floor: float,
    answers: Mapping[str, _Answer],
    automatic: bool,
) -> tuple[str, ...]:
    shape = f"{measured['rows']} x {measured['columns']}"
    lines = [f"J is {shape}, computed in {measured['dtype']}; tolerance by the rule {rule}"]
    if "turns_at" in measured:
        lines.append(_interval(measured["turns_at"], floor, measured["residual_tolerance"], tau))
    if tau < floor:
        lines.append(f"the tolerance is below {floor:.1e}, the resolution of a float64 decomposition of this matrix")
    if len(answers) > 1:
        if {answer.verdict for answer in answers.values()} == {verdict}:
            lines.append(f"{', '.join(answers)} agree")
        else:
            each = (f"{name} {answer.verdict} (residual {answer.residual:.1e})" for name, answer in answers.items())
            lines.append(f"by method: {', '.join(each)}")
    if tuple(answers) == ("qr",) and automatic:
        lines.append(
            f"svd was not run: the verdict is the same at all tolerances within a factor of {_MARGIN:.0f}; "
            "method='svd' runs it"
        )
    if tuple(answers) == ("svd", "qr"):
        lines.append("lstsq was not run, since it needs memory for a second copy of J; method='lstsq' runs it")
    return tuple(lines)


def _interval(turn: float | None, floor: float, limit: float, tau: float) -> str:
    if turn is None:
        return f"HOLDS at every tolerance: the residual never exceeds {limit:.1e}"
    if turn == 0.0 or math.isclose(turn, 0.0):
        return f"FAILS at every tolerance: the residual always exceeds {limit:.1e}"
    if turn > floor:
        return f"HOLDS for every tolerance below {turn:.1e}, FAILS at or above it (residual tolerance {limit:.1e})"
    return f"FAILS at every tolerance of {turn:.1e} or more, within rounding error (residual tolerance {limit:.1e})"


def _operator_membership(
    operator: Any,
    y: Entries,
    method: str,
    rule: str,
    tolerance: float | None,
    limit: float | None,
    computed_in: str | None,
    gram: np.ndarray[Any, np.dtype[np.float64]] | None,
) -> CheckResult:
    """Check membership in the column space of an operator, from products alone.

    For any b, with r = y - J b, tau ||b|| + ||r|| bounds ||(I - P_tau) y|| from above and
    sqrt(||r||^2 - (||J^T r|| / tau)^2) - tau ||b|| from below (:meth:`alignver.linalg.lsmr.Iterate.residual_bounds`);
    HOLDS and FAILS follow from these bounds, so an iteration that has not converged gives UNDECIDED, never a wrong
    answer. The b are those of LSMR or, with a Gram matrix, of least squares with it as the preconditioner.
    """
    began = time.perf_counter()
    if method not in ("auto", "lstsq"):
        need = "'lstsq' or 'auto'; the other methods need the matrix"
        raise InvalidInput("method", f"{method!r} for an operator", need, "conflicting-arguments")
    products = Operator(operator, "J")
    rows, columns = products.shape
    _require_fit(y, rows)
    eps = EPS["float64" if computed_in is None else require.one_of("computed_in", computed_in, EPS)]
    y_unit = extreme_scale(y.array) if gram is None else 1.0
    target = y.array if y_unit == 1.0 else y.array / y_unit
    if gram is None:
        start = like(start_vector(rows), target)
        products.scale(start)
        products.require_adjoint(start, like(start_vector(columns), target))
        spectral = spectral_norm(products, start)
    else:
        spectral = math.sqrt(largest_singular_value(gram))
    unit, eps = products.unit, max(eps, products.eps)
    _require_finite(spectral)
    scale = Scale(rows, columns, spectral, None, eps, eps)
    band = ToleranceInterval(
        rank_rules.tolerance(rule, scale, None if tolerance is None else tolerance / unit),
        floor(spectral, rows, columns),
        default_residual_tolerance(max(eps, y.eps)) if limit is None else limit,
    )
    size = norm(target)
    solutions = iter([lsmr(products, target)]) if gram is None else preconditioned_iterates(products, gram, target)
    iterates, verdict = [], Verdict.UNDECIDED
    low, high = (0.0, math.inf), (0.0, math.inf)
    for iterate in solutions:
        _require_finite(iterate.residual, iterate.gradient)
        iterates.append(iterate)
        low, high = (_relative(residual_interval(iterates, tau), size) for tau in (band.low, band.high))
        verdict = band.membership(low[0], high[1])
        if verdict is not Verdict.UNDECIDED:
            break
    if not iterates:  # the Gram matrix gives none: b = 0
        zero = like(np.zeros(columns), target)
        iterates.append(Iterate(zero, size, norm(products.rmatvec(target)), 0.0, 0))
    iterate = min(iterates, key=lambda iterate: iterate.residual_bounds(band.tolerance.value)[1])
    residual = iterate.residual / size if size else 0.0
    tau = dataclasses.replace(band.tolerance, value=band.tolerance.value * unit)
    result = CheckResult(
        name="membership",
        statement=STATEMENT,
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code=f"membership-operator-{KINDS[verdict]}",
        reason=_operator_reason(verdict, residual, iterate.iterations, "LSMR" if gram is None else "least squares"),
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
            "gradient_norm": iterate.gradient * unit * y_unit,
            "solution_norm": iterate.size * (y_unit / unit),
            "iterations": iterate.iterations,
            "target_norm": size * y_unit,
            "largest_singular_value": spectral * unit,
        },
        bounds=(Bound("residual", residual, "<=", band.limit),) if verdict is Verdict.HOLDS else (),
        tolerance=tau,
        cost={"seconds": time.perf_counter() - began},
    )
    return dataclasses.replace(result, next_steps=membership_steps(result, rows, columns))


def _relative(interval: tuple[float, float], size: float) -> tuple[float, float]:
    return (interval[0] / size, interval[1] / size) if size else (0.0, 0.0)


def _require_finite(*values: float) -> None:
    if not all(abs(value) < math.inf for value in values):
        got = "an operator whose products are not finite"
        raise InvalidInput("J", got, "finite products for finite vectors", "not-finite")


def _operator_reason(verdict: Verdict, residual: float, iterations: int, solver: str) -> str:
    plural = "s" * (iterations != 1)
    solution = f"an explicit b leaves {residual:.1e} ||y|| after {iterations} iteration{plural} of {solver}"
    if verdict is Verdict.HOLDS:
        return f"y is in the column space: {solution}"
    if verdict is Verdict.FAILS:
        return f"y is not in the column space: {solution}, and its residual is orthogonal to the range"
    return f"{solution}, which does not decide at this tolerance"
