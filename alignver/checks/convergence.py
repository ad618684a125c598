"""Theorem 3 held against a recorded run: the loss beside a bound made of nu, beta-hat and a Lipschitz constant.

A recorded run held against the theorems: measured and theoretical values side by side, premises first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver.arrays import EPS, as_vector, host
from alignver.checks.exploration import prove_ranks
from alignver.errors import InvalidInput
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict
from alignver.theory.alignment_bounds import theorem_3, zeta
from alignver.theory.descent import gradient_descent_bound, reference_points, sgd_bound
from alignver.theory.exploitation import Exploitation, objective
from alignver.theory.losses import SampleLoss
from alignver.theory.record import TrainingRecord, UpdateConstants, constants_of_updates
from alignver.theory.smoothness import Smoothness, smoothness

__all__ = ["check_convergence", "check_theorem_3"]
STATEMENT = "Theorem 3"


def check_theorem_3(
    record: TrainingRecord,
    *,
    aligned: Any,
    nu_norms: Any,
    beta_norms: Any,
    target: float,
    lipschitz: float,
) -> CheckResult:
    r"""Check the bound of Theorem 3 along a recorded run of gradient descent.

    .. math:: \min_{t \in T} \mathcal L(\theta^t) \le \mathcal L^*(\eta Y^*) + \frac{1}{\sqrt{|T|}}
              \sqrt{\frac{L\, \zeta_\eta\, \mathcal L(\theta^{t_0})}{2 \alpha (1 - \alpha)}}, \qquad
              \alpha^t = \frac{2 \alpha}{L}

    Parameters
    ----------
    record : TrainingRecord
        Of the whole loss over all parameters, before tau; entries from tau on are left out.
    aligned : (T,) bool
        At which recorded steps vec(Y*) was in the column space of the Jacobian.
    nu_norms, beta_norms : (T,) arrays
        :math:`\|\nu(\theta^t)\|` and :math:`\|\hat\beta(\theta^t, \eta)\|`; looked at where aligned.
    target : float
        :math:`\mathcal L^*(\eta Y^*)`.
    lipschitz : float
        L. An upper bound on the region of the run is rarely known.

    Returns
    -------
    CheckResult
        NUMERICAL at most. UNDECIDED where the method is not gradient descent, the step is not constant and below 2 / L,
        or no step was aligned.

    Raises
    ------
    InvalidInput
        Lengths that differ, a Lipschitz constant that is not positive.

    Examples
    --------
    >>> record = TrainingRecord([0, 1], [1.0, 0.5], [0.5, 0.5], 9, "gradient descent")
    >>> norms = {"nu_norms": [1.0, 1.0], "beta_norms": [2.0, 2.0]}
    >>> check_theorem_3(record, aligned=[1, 1], **norms, target=0.0, lipschitz=2.0).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if not 0.0 < lipschitz < math.inf:
        raise InvalidInput("lipschitz", repr(lipschitz), "a positive finite number")
    columns = {}
    for name, values in (("aligned", aligned), ("nu_norms", nu_norms), ("beta_norms", beta_norms)):
        columns[name] = np.asarray(host(as_vector(values, name).array), dtype=np.float64)
        if columns[name].shape != record.steps.shape:
            raise InvalidInput(name, f"{columns[name].size} entries", f"{record.steps.size}, one for each step")
    explored = ~np.asarray(record.exploiting)
    counted = explored & (columns["aligned"] != 0.0)
    sizes = record.step_sizes[explored]
    if not bool(counted.any()):
        return _undecided("at no recorded step of the exploration phase vec(Y*) was in the column space")
    if record.method != "gradient descent":
        return _undecided(f"the method is {record.method!r}, not 'gradient descent'")
    if float(sizes.max()) > float(sizes.min()) * (1.0 + 1e-9):
        return _undecided("the step varies")
    alpha = 0.5 * float(sizes[0]) * lipschitz
    if not 0.0 < alpha < 1.0:
        return _undecided(f"the step {sizes[0]:.4g} is not below 2 / L = {2.0 / lipschitz:.4g}")
    size = zeta(columns["nu_norms"][counted], columns["beta_norms"][counted])
    losses = record.losses[counted]
    count = int(counted.sum())
    limit = theorem_3(float(losses[0]), target, lipschitz, alpha, size, count)
    least = float(losses.min())
    holds = least <= limit * (1.0 + 1e-9)
    said = "below" if holds else "above"
    return CheckResult(
        name="theorem_3",
        statement=STATEMENT,
        verdict=Verdict.HOLDS if holds else Verdict.FAILS,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="theorem-3-kept" if holds else "theorem-3-violated",
        reason=f"the least loss of {count} aligned steps is {least:.4g}, {said} the bound {limit:.4g}",
        evidence=("L is the caller's: with a lower bound of it, as power iteration gives, this shows little",),
        measured={"least_loss": least, "bound": limit, "zeta": size, "alpha": alpha, "aligned_steps": count},
        bounds=(Bound("least loss", least, "<=", limit),),
        witness=None if holds else {"kind": "loss", "loss": least, "bound": limit},
    )


def _undecided(why: str) -> CheckResult:
    about: dict[str, Any] = {"subject": Subject.NETWORK, "code": "theorem-3-premise-missing"}
    return CheckResult("theorem_3", STATEMENT, Verdict.UNDECIDED, Rigor.NUMERICAL, why, **about)


_FEW = 2000
"""Samples up to which rank n is proved here where the caller says nothing about it."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Phase:
    """The exploitation phase of a record and what was computed about it."""

    steps: Any
    losses: Any
    sizes: Any
    method: str
    bounds: Smoothness
    updates: UpdateConstants | None
    norms: Any
    update_norms: Any
    rank_n: bool
    ranks: tuple[str, ...]
    eps: float

    @property
    def slack(self) -> float:
        """Relative room for the rounding of a recorded loss: 4e-10 in float64, 7e-5 in float32."""
        return float(self.eps**0.6)

    def noise(self, losses: Any) -> Any:
        """Room for what outputs that are off by 1000 eps of the first ones' size can change in losses."""
        off = 1000.0 * self.eps * math.sqrt(max(float(self.losses[0]), 0.0))
        return self.slack * np.abs(losses) + off * (2.0 * np.sqrt(np.abs(losses)) + off)


def check_convergence(
    record: TrainingRecord,
    model: Exploitation,
    weights: Any,
    Y: Any,
    *,
    loss: str | SampleLoss,
    rank_n: bool | None = None,
    etas: Sequence[float] | None = None,
    computed_in: str = "float64",
) -> list[CheckResult]:
    r"""Check the exploitation phase of a recorded run against Lemmas 2 and 8, Theorem 5 and Assumption 7.

    Parameters
    ----------
    record : TrainingRecord
        Its entries with t >= tau are looked at.
    model : Exploitation
        Gates frozen at tau.
    weights : (m_y, h, m) array
        theta^tau: those of the first step of the phase.
    Y : targets
    loss : str or SampleLoss
        Convex: others are refused.
    rank_n : bool, optional
        Whether every :math:`A_j` has rank n, where the caller has proved that or knows better. None: it is proved here
        for up to 2000 samples.
    etas : sequence of float, optional
        Which multiples of Y_l to fit reference points to.
    computed_in : str
        Dtype in which the run computed its losses: how much of them is rounding.

    Returns
    -------
    list of CheckResult
        ``updates`` (Assumption 7), ``step`` (steps below the limit of Theorem 4), ``descent`` (every step lowers the
        loss as Lemma 2 says), ``descent_bound`` ((168), no ranks needed), ``theorem_5_i``, ``theorem_5_ii``. A theorem
        whose premises are not established is UNDECIDED. FAILS of a theorem means that the record is not that of
        a run as it says.

    Raises
    ------
    InvalidInput
        No step at or after tau, shapes that disagree, a first recorded loss that is not the loss of ``weights``.

    Notes
    -----
    Rigor: NUMERICAL; Theorem 5 (ii) is about an expectation, so one run is STATISTICAL.

    Examples
    --------
    >>> from alignver.theory.exploitation import Exploitation
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> problem, theta = objective(model, [1.0, -1.0], "squared"), np.zeros((1, 3, 2))
    >>> alpha, losses, start = smoothness(model, "squared").step, [], theta
    >>> for _ in range(20):
    ...     losses.append(problem.value(theta))
    ...     theta = theta - alpha * problem.gradient(theta)
    >>> record = TrainingRecord(range(20), losses, [alpha] * 20, 0, "gradient descent")
    >>> results = check_convergence(record, model, start, [1.0, -1.0], loss="squared")
    >>> {result.name: result.verdict.value for result in results}["theorem_5_i"]
    'HOLDS'
    """
    problem = objective(model, Y, loss)
    theta = model.weights(weights)
    if computed_in not in EPS:
        raise InvalidInput("computed_in", repr(computed_in), "one of " + ", ".join(sorted(EPS)))
    seen = np.asarray(record.exploiting)
    if not bool(seen.any()):
        raise InvalidInput("record", f"no step at or after tau = {record.tau}", "steps of the exploitation phase")
    steps, losses, sizes = record.steps[seen], record.losses[seen], record.step_sizes[seen]
    start = problem.value(theta)
    if int(steps[0]) == record.tau and not math.isclose(float(losses[0]), start, rel_tol=1e-3, abs_tol=1e-9):
        need = "the model, weights and targets that the record is about"
        raise InvalidInput("record", f"the loss {losses[0]:.6g} at tau, beside {start:.6g} of the weights", need)
    notes: tuple[str, ...] = ()
    if rank_n is None:
        ranks = prove_ranks(model) if model.n <= _FEW else None
        rank_n = ranks is not None and ranks.all
        notes = (f"rank n was not looked at for {model.n} samples",) if ranks is None else ranks.reasons
    updates, norms, moves = None, record.gradient_norms, record.update_norms
    if norms is not None and moves is not None and record.inner_products is not None:
        updates = constants_of_updates(norms[seen], moves[seen], record.inner_products[seen])
    phase = _Phase(
        steps,
        losses,
        sizes,
        record.method,
        smoothness(model, loss),
        updates,
        None if norms is None else norms[seen],
        None if moves is None else moves[seen],
        rank_n,
        notes,
        EPS[computed_in],
    )
    points = reference_points(problem, theta, etas)
    counts = steps - record.tau
    return [
        _updates(phase),
        _step(phase),
        _descent(phase),
        *_theorem_5_i(phase, points, counts),
        _theorem_5_ii(phase, points, record.tau),
    ]


_KINDS = {Verdict.HOLDS: "kept", Verdict.FAILS: "violated", Verdict.UNDECIDED: "premise-missing"}


def _result(name: str, statement: str, verdict: Verdict, reason: str, **more: Any) -> CheckResult:
    rigor = more.pop("rigor", Rigor.NUMERICAL)
    code = f"{name.replace('_', '-')}-{_KINDS[verdict]}"
    about: dict[str, Any] = {"subject": Subject.NETWORK, "code": code, **more}
    return CheckResult(name=name, statement=statement, verdict=verdict, rigor=rigor, reason=reason, **about)


def _updates(phase: _Phase) -> CheckResult:
    statement = "Updates along the gradient (Assumptions 2 and 7)"
    if phase.updates is None:
        missing = "norms of gradients and updates, and their inner products, were not recorded"
        return _result("updates", statement, Verdict.UNDECIDED, missing)
    found = phase.updates
    if found.counted == 0:
        return _result("updates", statement, Verdict.UNDECIDED, "no recorded gradient is other than 0")
    bounds = (Bound("c (lower)", found.lower, ">", 0.0), Bound("c (upper)", found.upper, "<", math.inf))
    measured = {"c_lower": found.lower, "c_upper": found.upper, "counted": found.counted}
    if found.holds:
        reason = f"{found.counted} recorded updates satisfy it with c = {found.lower:.4g} and {found.upper:.4g}"
        return _result("updates", statement, Verdict.HOLDS, reason, bounds=bounds, measured=measured)
    step = int(phase.steps[found.worst])
    reason = f"the update at step {step} does not go down the gradient, or goes on where the gradient is 0"
    witness = {"kind": "update", "step": step, "c_lower": found.lower, "c_upper": found.upper}
    return _result("updates", statement, Verdict.FAILS, reason, bounds=bounds, measured=measured, witness=witness)


def _is_descent(phase: _Phase) -> str:
    """Return why the updates are not established to be gradients, or nothing."""
    if phase.method != "gradient descent":
        return f"the method is {phase.method!r}, not 'gradient descent'"
    found = phase.updates
    if found is not None and found.counted and max(abs(found.lower - 1.0), abs(found.upper - 1.0)) > 1e-6:
        return f"the recorded updates are not the gradients: c = {found.lower:.4g} and {found.upper:.4g} instead of 1"
    return ""


def _step(phase: _Phase) -> CheckResult:
    statement = "Steps below the limit (Theorem 4, case (i))"
    found = phase.updates
    if not _is_descent(phase):
        scale = 1.0
    elif found is not None and found.holds:
        scale = found.largest_step(2.0)
    else:
        reason = f"{_is_descent(phase)}, and Assumption 7 is not established"
        return _result("step", statement, Verdict.UNDECIDED, reason)
    limit, largest = phase.bounds.limit * scale, float(phase.sizes.max())
    bounds = (Bound("largest step", largest, "<", limit),)
    measured = {"largest_step": largest, "limit": limit, "L_hat_paper": phase.bounds.paper}
    measured |= {"L_hat_spectral": phase.bounds.spectral, "step": phase.bounds.step}
    if largest < limit:
        papers = scale * 2.0 / phase.bounds.paper
        reason = f"steps of up to {largest:.4g}, the limit is {limit:.4g} (with the paper's L-hat: {papers:.4g})"
        return _result("step", statement, Verdict.HOLDS, reason, bounds=bounds, measured=measured)
    where = int(phase.steps[int(np.argmax(phase.sizes))])
    reason = f"a step of {largest:.4g} at t = {where}: beyond {limit:.4g} the loss may rise"
    witness = {"kind": "step", "step": where, "size": largest}
    return _result("step", statement, Verdict.FAILS, reason, bounds=bounds, measured=measured, witness=witness)


def _descent(phase: _Phase) -> CheckResult:
    r"""Lemma 2: :math:`L(\theta^{t+1}) \le L(\theta^t) - \alpha (1 - \alpha \hat L / 2) \|\nabla L\|^2`."""
    statement = "Descent at every step (Lemmas 2 and 8)"
    why = _is_descent(phase)
    pairs = np.flatnonzero(np.diff(phase.steps) == 1)
    if not why and float(phase.sizes.max()) >= phase.bounds.limit:
        why = f"a step of {phase.sizes.max():.4g} is not below the limit {phase.bounds.limit:.4g}"
    if not why and not pairs.size:
        why = "no two steps in a row were recorded"
    if why:
        return _result("descent", statement, Verdict.UNDECIDED, why)
    alphas, before, after = phase.sizes[pairs], phase.losses[pairs], phase.losses[pairs + 1]
    promised = before.copy()
    if phase.norms is not None:
        promised -= alphas * (1.0 - 0.5 * alphas * phase.bounds.spectral) * phase.norms[pairs] ** 2
    excess = after - promised - phase.noise(before)
    worst = int(np.argmax(excess))
    bound = Bound(f"loss after step {int(phase.steps[pairs[worst]])}", after[worst], "<=", promised[worst])
    if excess[worst] <= 0.0:
        reason = f"each of {pairs.size} steps lowered the loss by as much as promised"
        return _result("descent", statement, Verdict.HOLDS, reason, bounds=(bound,))
    step = int(phase.steps[pairs[worst]])
    reason = f"step {step} left the loss at {after[worst]:.6g}, {promised[worst]:.6g} was promised"
    witness = {"kind": "step", "step": step, "loss": float(after[worst]), "bound": float(promised[worst])}
    return _result("descent", statement, Verdict.FAILS, reason, bounds=(bound,), witness=witness)


def _theorem_5_i(phase: _Phase, points: Sequence[Any], counts: Any) -> list[CheckResult]:
    names = (("descent_bound", "Bound from a reference point ((168))"), ("theorem_5_i", "Theorem 5 (i)"))
    later = counts >= 1
    why = _is_descent(phase)
    alpha = float(phase.sizes.min())
    if not why and float(phase.sizes.max()) > alpha * (1.0 + 1e-9):
        why = f"the step varies, between {alpha:.4g} and {phase.sizes.max():.4g}"
    if not why and not 0.0 < alpha <= phase.bounds.step * (1.0 + 1e-9):
        why = f"the step {alpha:.4g} is not 1 / L-hat of a valid L-hat: {phase.bounds.step:.4g} at most"
    if not why and not bool(later.any()):
        why = "no step after tau was recorded"
    if why:
        return [_result(name, statement, Verdict.UNDECIDED, why) for name, statement in names]
    # 1 / alpha is a Lipschitz constant as well, being no smaller than the spectral one.
    limits = gradient_descent_bound(points, 1.0 / alpha, counts[later])
    losses, steps = phase.losses[later], phase.steps[later]
    excess = losses - limits - phase.noise(np.maximum(losses, limits))
    worst, last = int(np.argmax(excess)), int(steps.size - 1)
    used = min(points, key=lambda point: point.loss + point.distance**2 / (2.0 * alpha * float(counts[later][last])))
    bounds = tuple(Bound(f"L(theta^t), t = {int(steps[k])}", losses[k], "<=", limits[k]) for k in sorted({worst, last}))
    measured = {
        "L_hat": 1.0 / alpha,
        "steps": steps.size,
        "last_loss": losses[last],
        "last_bound": limits[last],
        "reference_eta": used.eta,
        "reference_loss": used.loss,
        "reference_distance": used.distance,
    }
    witness = None
    if excess[worst] > 0.0:
        verdict = Verdict.FAILS
        reason = f"the loss {losses[worst]:.6g} at t = {int(steps[worst])} exceeds the bound {limits[worst]:.6g}"
        witness = {"kind": "loss", "step": int(steps[worst]), "loss": losses[worst], "bound": limits[worst]}
    else:
        verdict = Verdict.HOLDS
        ends = f"at the end {losses[last]:.4g}, the bound is {limits[last]:.4g}"
        reason = f"all {steps.size} losses lie below the bound; {ends}"
    here = f"the last bound is made with a point of loss {used.loss:.3g} at a distance of {used.distance:.3g}"
    shared: dict[str, Any] = {"measured": measured, "bounds": bounds, "witness": witness}
    results = [_result(*names[0], verdict, reason, evidence=(here,), **shared)]
    if phase.rank_n or verdict is Verdict.FAILS:
        results.append(_result(*names[1], verdict, reason, evidence=(here,), **shared))
    else:
        unknown = "rank n of every A_j is not established, so the reference may be far from the global infimum"
        results.append(_result(*names[1], Verdict.UNDECIDED, unknown, evidence=phase.ranks, measured=measured))
    return results


def _theorem_5_ii(phase: _Phase, points: Sequence[Any], tau: int) -> CheckResult:
    name, statement = "theorem_5_ii", "Theorem 5 (ii)"
    whole = int(phase.steps[0]) == tau and bool(np.all(np.diff(phase.steps) == 1))
    if phase.method != "sgd":
        why = f"the method is {phase.method!r}, not 'sgd'"
    elif phase.update_norms is None:
        why = "norms of the stochastic gradients were not recorded, so G is not known"
    elif not whole:
        why = "not every step from tau on was recorded: sums of step sizes need all"
    elif not float(phase.sizes[0]) > 0.0:
        why = "the first step is 0"
    elif not phase.rank_n:
        why = "rank n of every A_j is not established, so the reference may be far from the global infimum"
    else:
        why = ""
    if why:
        return _result(name, statement, Verdict.UNDECIDED, why, evidence=phase.ranks, rigor=Rigor.STATISTICAL)
    G = float(phase.update_norms.max())
    limits, best = sgd_bound(points, G, phase.sizes), np.minimum.accumulate(phase.losses)
    excess = best - limits
    worst, last = int(np.argmax(excess)), int(best.size - 1)
    bounds = tuple(
        Bound(f"least loss up to t = {int(phase.steps[k])}", best[k], "<=", limits[k]) for k in sorted({worst, last})
    )
    evidence = (
        f"G = {G:.4g} is the largest recorded stochastic gradient, not a bound of their expectation",
        "the bound is about an expectation, this is one run; that the squares of the steps have a finite sum, and the "
        "steps none, no finite record can show",
    )
    if excess[worst] > phase.noise(limits[worst]):
        reason = f"this run's least loss {best[worst]:.4g} exceeds the bound {limits[worst]:.4g} of the expectation"
        verdict = Verdict.UNDECIDED
    else:
        reason = f"the least loss is {best[last]:.4g}, the bound of its expectation {limits[last]:.4g}"
        verdict = Verdict.HOLDS
    measured = {"G": G, "least_loss": best[last], "last_bound": limits[last]}
    more = {"bounds": bounds, "evidence": evidence, "measured": measured}
    return _result(name, statement, verdict, reason, rigor=Rigor.STATISTICAL, **more)
