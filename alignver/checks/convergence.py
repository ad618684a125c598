"""A recorded run compared with the theorems: measured and theoretical values side by side, premises first.

Theorem 3 bounds the loss of the exploration phase by nu, beta-hat and a Lipschitz constant; Lemmas 2 and 8, Theorem 5
and Assumption 7 are about the exploitation phase.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver import require
from alignver.arrays import EPS, as_vector, host
from alignver.checks.exploration import prove_ranks
from alignver.errors import InvalidInput
from alignver.limits import in_memory
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict
from alignver.theory.alignment_bounds import theorem_3, zeta
from alignver.theory.descent import gradient_descent_bound, reference_points, sgd_bound
from alignver.theory.exploitation import Exploitation, objective
from alignver.theory.losses import SampleLoss
from alignver.theory.record import TrainingRecord, UpdateConstants, constants_of_updates
from alignver.theory.smoothness import Smoothness, smoothness

_FEW = 2000
"""Number of samples up to which rank n is proved here if the caller does not provide it."""

_KINDS = {Verdict.HOLDS: "kept", Verdict.FAILS: "violated", Verdict.UNDECIDED: "premise-missing"}


def _result(name: str, statement: str, verdict: Verdict, reason: str, **more: Any) -> CheckResult:
    code = f"{name.replace('_', '-')}-{_KINDS[verdict]}"
    about: dict[str, Any] = {"rigor": Rigor.NUMERICAL, "subject": Subject.NETWORK, "code": code, **more}
    about["next_steps"] = _next_steps(name, verdict, reason)
    return CheckResult(name=name, statement=statement, verdict=verdict, reason=reason, **about)


def _next_steps(name: str, verdict: Verdict, reason: str) -> tuple[str, ...]:
    if verdict is Verdict.HOLDS:
        return ()
    if verdict is Verdict.FAILS:
        return ("compare record, method and constants with those of the run", "a smaller step, at most 1 / L-hat")
    if name == "theorem_3":
        return ("record gradient descent with one step size below 2 / L, and test alignment at its steps",)
    rank = ("prove rank n first: EEWrapper.fit(..., prove=True), or rank_n=True where you have a proof",)
    solver = "sgd" if name == "theorem_5_ii" else "gd"
    record = (f"EEWrapper(record=True, exploit_optimizer={solver!r}) makes a record with every premise but the ranks",)
    return rank if "rank n" in reason else record


def check_theorem_3(
    record: TrainingRecord, *, aligned: Any, nu_norms: Any, beta_norms: Any, target: float, lipschitz: float
) -> CheckResult:
    r"""Check the bound of Theorem 3 along a recorded run of gradient descent.

    .. math:: \min_{t \in T} \mathcal L(\theta^t) \le \mathcal L^*(\eta Y^*) + \frac{1}{\sqrt{|T|}}
              \sqrt{\frac{L\, \zeta_\eta\, \mathcal L(\theta^{t_0})}{2 \alpha (1 - \alpha)}}, \qquad
              \alpha^t = \frac{2 \alpha}{L}

    Parameters
    ----------
    record : TrainingRecord
        Of the whole loss over all parameters, before tau; entries from tau on are not used.
    aligned : (T,) bool
        At which recorded steps vec(Y*) was in the column space of the Jacobian.
    nu_norms, beta_norms : (T,) arrays
        :math:`\|\nu(\theta^t)\|` and :math:`\|\hat\beta(\theta^t, \eta)\|`; used at the aligned steps.
    target : float
        :math:`\mathcal L^*(\eta Y^*)`.
    lipschitz : float
        L. An upper bound on the region of the run is rarely known.

    Returns
    -------
    CheckResult
        NUMERICAL. UNDECIDED if the method is not gradient descent, the step is not constant and below 2 / L, or no
        step was aligned.

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
    lipschitz = require.real("lipschitz", lipschitz, above=0)
    columns = {}
    for name, values in (("aligned", aligned), ("nu_norms", nu_norms), ("beta_norms", beta_norms)):
        columns[name] = np.asarray(host(as_vector(values, name).array), dtype=np.float64)
        if columns[name].shape != record.steps.shape:
            need = f"{record.steps.size}, one for each step"
            raise InvalidInput(name, f"{columns[name].size} entries", need, "wrong-shape")
    explored = ~np.asarray(record.exploiting)
    counted = explored & (columns["aligned"] != 0.0)
    sizes = record.step_sizes[explored]
    alpha, missing = math.nan, ""
    if not bool(counted.any()):
        missing = "vec(Y*) was not in the column space at any recorded step of the exploration phase"
    elif record.method != "gradient descent":
        missing = f"the method is {record.method!r}, not 'gradient descent'"
    elif float(sizes.max()) > float(sizes.min()) * (1.0 + 1e-9):
        missing = "the step size varies"
    else:
        alpha = 0.5 * float(sizes[0]) * lipschitz
        if not 0.0 < alpha < 1.0:
            missing = f"the step {sizes[0]:.4g} is not below 2 / L = {2.0 / lipschitz:.4g}"
    if missing:
        return _result("theorem_3", "Theorem 3", Verdict.UNDECIDED, missing)
    size = zeta(columns["nu_norms"][counted], columns["beta_norms"][counted])
    losses = record.losses[counted]
    count = int(counted.sum())
    limit = theorem_3(float(losses[0]), target, lipschitz, alpha, size, count)
    least = float(losses.min())
    holds = least <= limit * (1.0 + 1e-9)
    side = "below" if holds else "above"
    return _result(
        "theorem_3",
        "Theorem 3",
        Verdict.HOLDS if holds else Verdict.FAILS,
        f"the least loss of {count} aligned steps is {least:.4g}, {side} the bound {limit:.4g}",
        evidence=("L was given by the caller: if it is a lower bound, as from power iteration, this shows little",),
        measured={"least_loss": least, "bound": limit, "zeta": size, "alpha": alpha, "aligned_steps": count},
        bounds=(Bound("least loss", least, "<=", limit),),
        witness=None if holds else {"kind": "loss", "loss": least, "bound": limit},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Phase:
    """The exploitation phase of a record, and quantities that were computed from it."""

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
    size: float  # root mean square of the first outputs

    @property
    def slack(self) -> float:
        """Relative room for the rounding of a recorded loss: 4e-10 in float64, 7e-5 in float32."""
        return float(self.eps**0.6)

    def rounding_bound(self, losses: Any) -> Any:
        """Bound of the change of losses if the outputs change by 1000 eps relative to the size of the first ones."""
        error = 1000.0 * self.eps * max(math.sqrt(max(float(self.losses[0]), 0.0)), self.size)
        return self.slack * np.abs(losses) + error * (2.0 * np.sqrt(np.abs(losses)) + error)


@in_memory
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
        Its entries with t >= tau are used.
    model : Exploitation
        Gates frozen at tau.
    weights : (m_y, h, m) array
        theta^tau: the weights of the first step of the phase.
    Y : targets
    loss : str or SampleLoss
        Convex: others are refused.
    rank_n : bool, optional
        Whether every :math:`A_j` has rank n, if the caller has proved or refuted it. None: it is proved here for up to
        2000 samples.
    etas : sequence of float, optional
        The multiples of Y_l that reference points are fitted to.
    computed_in : str
        Dtype in which the run computed its losses; it determines their rounding errors.

    Returns
    -------
    list of CheckResult
        ``updates`` (Assumption 7), ``step`` (steps below the limit of Theorem 4), ``descent`` (every step lowers the
        loss as in Lemma 2), ``descent_bound`` ((168), no ranks needed), ``theorem_5_i``, ``theorem_5_ii``. A theorem
        whose premises are not established is UNDECIDED. FAILS of a theorem means that the record does not belong to
        the run that it describes.

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
    require.instance("record", record, TrainingRecord, "a TrainingRecord")
    require.instance("model", model, Exploitation, "an Exploitation")
    problem = objective(model, Y, loss)
    theta = model.weights(weights)
    require.one_of("computed_in", computed_in, EPS)
    require.booleans(rank_n=False if rank_n is None else rank_n)
    exploiting = np.asarray(record.exploiting)
    if not bool(exploiting.any()):
        raise InvalidInput("record", f"no step at or after tau = {record.tau}", "steps of the exploitation phase")
    steps, losses, sizes = record.steps[exploiting], record.losses[exploiting], record.step_sizes[exploiting]
    start = problem.value(theta)
    if int(steps[0]) == record.tau and not math.isclose(float(losses[0]), start, rel_tol=1e-3, abs_tol=1e-9):
        need = "the model, weights and targets that the record is about"
        raise InvalidInput("record", f"the loss {losses[0]:.6g} at tau, but {start:.6g} for the weights", need)
    notes: tuple[str, ...] = ()
    if rank_n is None:
        ranks = prove_ranks(model) if model.n <= _FEW else None
        rank_n = ranks is not None and ranks.all
        notes = (f"rank n was not checked for {model.n} samples",) if ranks is None else ranks.reasons
    norms = None if record.gradient_norms is None else record.gradient_norms[exploiting]
    update_norms = None if record.update_norms is None else record.update_norms[exploiting]
    updates = None
    if norms is not None and update_norms is not None and record.inner_products is not None:
        updates = constants_of_updates(norms, update_norms, record.inner_products[exploiting])
    phase = _Phase(
        steps,
        losses,
        sizes,
        record.method,
        smoothness(model, loss),
        updates,
        norms,
        update_norms,
        rank_n,
        notes,
        EPS[computed_in],
        float(np.linalg.norm(model.outputs(theta))) / math.sqrt(model.n),
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


def _updates(phase: _Phase) -> CheckResult:
    statement = "Updates along the gradient (Assumptions 2 and 7)"
    if phase.updates is None:
        missing = "norms of gradients and updates, and their inner products, were not recorded"
        return _result("updates", statement, Verdict.UNDECIDED, missing)
    constants = phase.updates
    if constants.counted == 0:
        return _result("updates", statement, Verdict.UNDECIDED, "every recorded gradient is 0")
    bounds = (Bound("c (lower)", constants.lower, ">", 0.0), Bound("c (upper)", constants.upper, "<", math.inf))
    measured = {"c_lower": constants.lower, "c_upper": constants.upper, "counted": constants.counted}
    if constants.holds:
        reason = (
            f"{constants.counted} recorded updates satisfy it with c = {constants.lower:.4g} and {constants.upper:.4g}"
        )
        return _result("updates", statement, Verdict.HOLDS, reason, bounds=bounds, measured=measured)
    step = int(phase.steps[constants.worst])
    reason = f"the update at step {step} does not descend along the gradient, or is not 0 although the gradient is 0"
    witness = {"kind": "update", "step": step, "c_lower": constants.lower, "c_upper": constants.upper}
    return _result("updates", statement, Verdict.FAILS, reason, bounds=bounds, measured=measured, witness=witness)


def _not_gradients(phase: _Phase) -> str:
    """Return why the updates are not established to be gradients; empty if they are."""
    if phase.method != "gradient descent":
        return f"the method is {phase.method!r}, not 'gradient descent'"
    updates = phase.updates
    if updates is not None and updates.counted and max(abs(updates.lower - 1.0), abs(updates.upper - 1.0)) > 1e-6:
        return (
            f"the recorded updates are not the gradients: c = {updates.lower:.4g} and {updates.upper:.4g} instead of 1"
        )
    return ""


def _step(phase: _Phase) -> CheckResult:
    statement = "Steps below the limit (Theorem 4, case (i))"
    why = _not_gradients(phase)
    if not why:
        scale = 1.0
    elif phase.updates is not None and phase.updates.holds:
        scale = phase.updates.largest_step(2.0)
    else:
        reason = f"{why}, and Assumption 7 is not established"
        return _result("step", statement, Verdict.UNDECIDED, reason)
    limit, largest = phase.bounds.limit * scale, float(phase.sizes.max())
    bounds = (Bound("largest step", largest, "<", limit),)
    measured = {"largest_step": largest, "limit": limit, "L_hat_paper": phase.bounds.paper}
    measured |= {"L_hat_spectral": phase.bounds.spectral, "step": phase.bounds.step}
    if largest < limit:
        papers = scale * 2.0 / phase.bounds.paper
        reason = (
            f"all steps are at most {largest:.4g}, below the limit {limit:.4g} (with the paper's L-hat: {papers:.4g})"
        )
        return _result("step", statement, Verdict.HOLDS, reason, bounds=bounds, measured=measured)
    where = int(phase.steps[int(np.argmax(phase.sizes))])
    reason = f"a step of {largest:.4g} at t = {where}: above {limit:.4g} the loss may increase"
    witness = {"kind": "step", "step": where, "size": largest}
    return _result("step", statement, Verdict.FAILS, reason, bounds=bounds, measured=measured, witness=witness)


def _descent(phase: _Phase) -> CheckResult:
    r"""Lemma 2: :math:`L(\theta^{t+1}) \le L(\theta^t) - \alpha (1 - \alpha \hat L / 2) \|\nabla L\|^2`."""
    statement = "Descent at every step (Lemmas 2 and 8)"
    why = _not_gradients(phase)
    pairs = np.flatnonzero(np.diff(phase.steps) == 1)
    if not why and float(phase.sizes.max()) >= phase.bounds.limit:
        why = f"a step of {phase.sizes.max():.4g} is not below the limit {phase.bounds.limit:.4g}"
    if not why and not pairs.size:
        why = "no two consecutive steps were recorded"
    if why:
        return _result("descent", statement, Verdict.UNDECIDED, why)
    alphas, before, after = phase.sizes[pairs], phase.losses[pairs], phase.losses[pairs + 1]
    guaranteed = before.copy()
    if phase.norms is not None:
        guaranteed -= alphas * (1.0 - 0.5 * alphas * phase.bounds.spectral) * phase.norms[pairs] ** 2
    excess = after - guaranteed - phase.rounding_bound(before)
    worst = int(np.argmax(excess))
    bound = Bound(f"loss after step {int(phase.steps[pairs[worst]])}", after[worst], "<=", guaranteed[worst])
    if excess[worst] <= 0.0:
        reason = f"each of {pairs.size} steps lowered the loss by at least the amount of Lemma 2"
        return _result("descent", statement, Verdict.HOLDS, reason, bounds=(bound,))
    step = int(phase.steps[pairs[worst]])
    reason = f"after step {step} the loss is {after[worst]:.6g}, above the bound {guaranteed[worst]:.6g} of Lemma 2"
    witness = {"kind": "step", "step": step, "loss": float(after[worst]), "bound": float(guaranteed[worst])}
    return _result("descent", statement, Verdict.FAILS, reason, bounds=(bound,), witness=witness)


def _theorem_5_i(phase: _Phase, points: Sequence[Any], counts: Any) -> list[CheckResult]:
    names = (("descent_bound", "Bound from a reference point ((168))"), ("theorem_5_i", "Theorem 5 (i)"))
    later = counts >= 1
    why = _not_gradients(phase)
    alpha = float(phase.sizes.min())
    if not why and float(phase.sizes.max()) > alpha * (1.0 + 1e-9):
        why = f"the step size varies between {alpha:.4g} and {phase.sizes.max():.4g}"
    if not why and not 0.0 < alpha <= phase.bounds.step * (1.0 + 1e-9):
        why = f"the step {alpha:.4g} is not 1 / L-hat for a valid L-hat: it may be at most {phase.bounds.step:.4g}"
    if not why and not bool(later.any()):
        why = "no step after tau was recorded"
    if why:
        return [_result(name, statement, Verdict.UNDECIDED, why) for name, statement in names]
    # 1 / alpha is a Lipschitz constant as well, since it is at least the spectral one.
    limits = gradient_descent_bound(points, 1.0 / alpha, counts[later])
    losses, steps = phase.losses[later], phase.steps[later]
    excess = losses - limits - phase.rounding_bound(np.maximum(losses, limits))
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
    here = f"the last bound uses a point of loss {used.loss:.3g} at a distance of {used.distance:.3g}"
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
        why = "not every step from tau on was recorded, and the sums of step sizes need all of them"
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
        "the bound is about an expectation, and this is one run; a finite record cannot show that the steps have an "
        "infinite sum and their squares a finite one",
    )
    if excess[worst] > phase.rounding_bound(limits[worst]):
        reason = f"this run's least loss {best[worst]:.4g} exceeds the bound {limits[worst]:.4g} of the expectation"
        verdict = Verdict.UNDECIDED
    else:
        reason = f"the least loss is {best[last]:.4g}, and the bound of its expectation is {limits[last]:.4g}"
        verdict = Verdict.HOLDS
    measured = {"G": G, "least_loss": best[last], "last_bound": limits[last]}
    more = {"bounds": bounds, "evidence": evidence, "measured": measured}
    return _result(name, statement, verdict, reason, rigor=Rigor.STATISTICAL, **more)
