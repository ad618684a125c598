"""Is a point of the exploitation phase a global minimum up to a tolerance? Proved from its outputs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import time
from typing import Any

import numpy as np

from alignver import require
from alignver.checks.data import bound_sentence, conflict_sentence
from alignver.checks.exploration import Ranks, is_module, prove_ranks
from alignver.checks.exploration_report import peak_bytes
from alignver.errors import InvalidInput
from alignver.features.threads import dense_flops, threads_for
from alignver.kernel import seal
from alignver.kernel.exact import equal
from alignver.kernel.machine import arithmetic_fault
from alignver.limits import limited, remaining
from alignver.proof.duplicate_inputs import DuplicateInputs
from alignver.proof.rounding import FloatArray, add_up, mul_up, sub_down
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, shown_down, shown_up
from alignver.samples import fingerprints, open_samples
from alignver.theory.enclosure import Enclosure, LossBounds, enclose, loss_bounds
from alignver.theory.exploitation import Exploitation, Objective, objective
from alignver.theory.infimum import Infimum, better_weights, infimum
from alignver.theory.losses import LOSSES, SampleLoss

_MOST = 6000
"""Number of samples up to which rank n is proved by default: a Cholesky factorization of that order for each output."""

_KINDS = {Verdict.HOLDS: "estimate-below", Verdict.FAILS: "estimate-above", Verdict.UNDECIDED: "not-decided"}

_TRAIN = (
    "continue the exploitation with the solver 'newton', the fastest if it fits into memory",
    "or with more epochs of the present solver, or a larger tolerance",
)
_RANK = "rank n of every A_j closes the question: distinct inputs, a wider last hidden layer, or rank=True for large n"

_STATEMENT = "Global optimality (Theorems 4 and 5)"
_result = functools.partial(CheckResult, name="optimality", statement=_STATEMENT, subject=Subject.COMPUTED_MATRIX)


@limited("optimality", _STATEMENT)
@np.errstate(all="ignore")
def check_optimality(
    model: Any,
    weights: Any = None,
    Y: Any = None,
    *,
    loss: str | SampleLoss,
    tolerance: float,
    certify: bool = True,
    rank: bool | None = None,
    X: Any = None,
    budget_seconds: float = 30.0,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    r"""Check whether the training loss is within ``tolerance`` of its global infimum.

    .. math:: \mathcal L(\theta) - \inf_{\theta'} \mathcal L(\theta') \le \mathcal L(\theta)
              - \frac1n \sum_i \inf_q \ell(q, y_i) = \mathcal L(\theta)

    for the three losses, whose infima are 0; with equality if every :math:`A_j = \phi(R^{(j)})
    (\mathrm{diag}(W_{j*}) \otimes I)` has rank n. So a bound of the loss, rounded outward, proves HOLDS, over the
    parameters of all layers.

    A torch module is checked as a whole, from its inputs: the outputs are enclosed in real arithmetic, at the floats of
    its parameters (:mod:`alignver.network.enclosed_loss`), and the proof is about the network. FAILS is proved by
    better parameters.

    An :class:`~alignver.theory.exploitation.Exploitation` is checked from its stored features, and the proof is about
    these matrices. The ranks are proved in addition (Lemma 5): they show that the bound is sharp. FAILS is proved by
    better weights, or by the ranks and a lower bound of the loss.

    Parameters
    ----------
    model : torch.nn.Module or Exploitation
        Of a module, in eval mode. Proofs about an Exploitation are about real arithmetic, the logistic gate, the floats
        of ``model.inputs``.
    weights : (m_y, h, m) array
        Of an Exploitation.
    Y : targets
        As :func:`~alignver.theory.losses.modified_targets` takes them.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"} or SampleLoss
        A mean over the samples of sums over the outputs: ``MSELoss`` and ``BCEWithLogitsLoss`` divide these by m_y. A
        SampleLoss gets NUMERICAL verdicts, and is for an Exploitation only.
    tolerance : float
        Positive.
    certify : bool
        False: no certificate, and the verdict is NUMERICAL.
    rank : bool, optional
        Whether to prove rank n of every A_j of an Exploitation. None: if n is at most 6000. It costs a Cholesky
        factorization of order n for each output.
    X : array, Dataset or DataLoader, optional
        The inputs. A module needs them, in a form that :func:`~alignver.check_alignment` takes. With an Exploitation,
        the inputs of its features, as :func:`~alignver.checks.data.check_data` takes them. Equal inputs with different
        targets keep the loss of every model above a bound, and the gap is measured from this bound. That alone does not
        give FAILS: the loss may be as small as such data allow.
    budget_seconds : float
        The estimated time that the enclosures of a module's outputs may take; beyond it, and where the module cannot be
        traced, the verdict is about its loss as it runs, and NUMERICAL.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        HOLDS with PROOF and a certificate; for the cross-entropies also how many training errors there can be. FAILS
        with PROOF, witness and certificate; NUMERICAL by the dual bound of :func:`~alignver.theory.infimum.infimum`.
        UNDECIDED if that bound only shows that no weights are better with these gates and features (the restricted
        problem); the reason says so. ``subject`` is ``network`` for a module and ``computed matrix`` for an
        Exploitation; ``measured["loss_as_run"]`` is the loss of the module as it runs in its dtype.

    Raises
    ------
    InvalidInput
        Shapes that disagree, NaN or Inf, a loss that is not convex, a tolerance that is not positive.

    References
    ----------
    Theorems 4 and 5 of Kawaguchi, Zhang, Deng (2022) guarantee this in the limit.

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> result = check_optimality(model, np.ones((1, 3, 2)), [4.5, 1.5], loss="squared", tolerance=1e-9)
    >>> result.verdict, result.rigor, result.measured["rank_n"]
    (<Verdict.HOLDS: 'HOLDS'>, <Rigor.PROOF: 'PROOF'>, True)
    """
    began = time.perf_counter()
    require.booleans(certify=certify, rank=False if rank is None else rank)
    tolerance = require.real("tolerance", tolerance, above=0)
    seconds = min(require.real("budget_seconds", budget_seconds, least=0), remaining())
    if getattr(loss, "reduction", "mean") == "sum":
        need = "reduction='mean': the loss and the tolerance are means over the samples"
        raise InvalidInput("loss", f"{type(loss).__name__} with reduction='sum'", need)
    if is_module(model):
        if weights is not None:
            raise InvalidInput("weights", "weights with a module", "an Exploitation", "conflicting-arguments")
        of_models: Any = importlib.import_module("alignver.checks.network_optimality")  # which loads torch
        result: CheckResult = of_models.check_network(
            model, X, Y, loss=loss, tolerance=tolerance, certify=certify, seconds=seconds
        )
        return dataclasses.replace(result, cost={"seconds": time.perf_counter() - began, **peak_bytes()})
    require.instance("model", model, Exploitation, "a torch module or an Exploitation")
    theta = model.weights(weights)
    problem = objective(model, Y, loss)
    loss = loss if isinstance(loss, SampleLoss) else problem.loss.name
    # The hashed array is the one of the proof.
    problem = dataclasses.replace(problem, targets=np.array(problem.targets))
    flops = model.m_y * dense_flops(model.n, model.h * model.m)
    data = None
    if isinstance(loss, str) and loss in LOSSES:
        if X is not None:
            known = fingerprints(open_samples(X))
            if len(known.digests) != problem.model.n:
                got = f"{len(known.digests)} samples for {problem.model.n} rows of Z"
                raise InvalidInput("X", got, "the inputs that Z was computed from", "wrong-shape")
            data = DuplicateInputs.of(dataclasses.replace(known, targets=problem.targets))
        with threads_for(flops):
            result = _proved(_Point(problem, theta, tolerance, data), rank)
    else:
        with threads_for(flops):
            result = _measured(_Point(problem, theta, tolerance), infimum(problem, theta), ())
    if not certify and result.rigor is Rigor.PROOF and result.verdict is not Verdict.UNDECIDED:
        remark = "numerical: no certificate was requested"
        evidence = (*result.evidence, remark)
        result = dataclasses.replace(result, rigor=Rigor.NUMERICAL, certificate=None, evidence=evidence)
    return dataclasses.replace(result, cost={"seconds": time.perf_counter() - began, **peak_bytes()})


@dataclasses.dataclass(frozen=True, eq=False)
class _Point:
    """A point of the exploitation phase, and what the data say: they keep the loss of every model above ``floor``."""

    problem: Objective
    theta: FloatArray
    tolerance: float
    data: DuplicateInputs | None = None
    floor: float = 0.0

    @property
    def loss(self) -> str:
        return self.problem.loss.name

    def bounds(self, enclosed: Enclosure) -> LossBounds:
        return loss_bounds(enclosed, self.problem.targets, self.loss)


def _proved(point: _Point, rank: bool | None) -> CheckResult:
    data, Z = point.data, point.problem.model.Z
    if data is None:
        return _decided(point, rank)
    if not equal(Z, Z[data.first]):
        # Features of one input may differ in their last digits, from another batch: Z is not a function of the inputs.
        result = _decided(dataclasses.replace(point, data=None), rank)
        remark = "equal inputs have different features in Z: the bound from the data is not used"
        return dataclasses.replace(result, evidence=(*result.evidence, remark))
    floor = data.least_loss(point.loss)[0]
    result = _decided(dataclasses.replace(point, data=data if floor else None, floor=floor), rank)
    if not data.conflicts.count:
        return result
    conflict = (conflict_sentence(data, point.loss, "no model"), bound_sentence(point.loss, floor))
    measured = {**result.measured, "conflicts": data.conflicts.plain(), "loss_lower": floor}
    return dataclasses.replace(result, evidence=(*conflict, *result.evidence), measured=measured)


def _decided(point: _Point, rank: bool | None) -> CheckResult:
    problem, theta, floor = point.problem, point.theta, point.floor
    enclosed = arithmetic_fault() or enclose(problem.model, theta)
    if isinstance(enclosed, str):
        return _measured(point, _above(infimum(problem, theta), floor), (f"no proof: {enclosed}",))
    tight, wide = point.bounds(enclosed), point.bounds(enclosed.widened())
    gap = max(add_up(mul_up(wide.upper, 1.0 + 2.0**-30), 2.0**-900, -floor), 0.0)
    prove = problem.model.n <= _MOST if rank is None else rank
    if gap <= point.tolerance:
        ranks = prove_ranks(problem.model) if prove else None
        return _holds(point, tight, wide, gap, ranks)
    better = better_weights(problem, theta)
    enclosed = enclose(problem.model, better)
    if not isinstance(enclosed, str):
        smaller = point.bounds(enclosed.widened())
        lead = sub_down(wide.lower * (1.0 - 2.0**-30), mul_up(smaller.upper, 1.0 + 2.0**-30), 2.0**-900)
        if lead > point.tolerance:
            return _fails(point, tight, lead, better)
    ranks = prove_ranks(problem.model) if prove else None
    lead = sub_down(wide.lower * (1.0 - 2.0**-30), 2.0**-900)
    if ranks is not None and ranks.all and lead > point.tolerance:
        return _fails(point, tight, lead, None, ranks)
    remarks = () if ranks is None else ranks.reasons
    return _measured(point, _above(infimum(problem, better), floor), remarks)


def _above(least: Infimum, floor: float) -> Infimum:
    """Return the bounds of the infimum, given that the loss of every model is at least ``floor``."""
    return least if floor <= least.lower else dataclasses.replace(least, lower=floor, how="data")


def _numbers(point: _Point, tight: LossBounds, ranks: Ranks | None) -> dict[str, Any]:
    model = point.problem.model
    numbers: dict[str, Any] = {"loss": point.loss, "samples": model.n, "outputs": model.m_y, "width": model.h}
    numbers |= {"features": model.m, "loss_lower": tight.lower, "loss_upper": tight.upper}
    numbers |= {"training_errors": tight.errors, "rank_n": None if ranks is None else ranks.all}
    if ranks is not None:
        numbers["s_min_lower"] = tuple(None if entry is None else entry["s_min"] for entry in ranks.entries)
    return numbers


def _holds(point: _Point, tight: LossBounds, wide: LossBounds, gap: float, ranks: Ranks | None) -> CheckResult:
    model, tolerance = point.problem.model, point.tolerance
    bounds = [Bound("L(theta) - inf L", gap, "<=", tolerance)]
    evidence = []
    if wide.errors is not None:
        bounds.append(Bound("training errors", wide.errors, "<=", 0))
        errors = f"at most {wide.errors} training errors" if wide.errors else "no training errors"
        margins = "the other margins" if wide.errors else "the margins"
        evidence.append(f"{errors} among {model.n} samples: {margins} exceed the rounding bound")
    if ranks is not None:
        least = [entry["s_min"] for entry in ranks.entries if entry is not None]
        if ranks.all:
            evidence.append(
                f"rank n proved for every output, s_min >= {shown_down(min(least), 2)}: the infimum is 0, "
                "and the bound is sharp"
            )
        else:
            evidence += ["rank n is not proved, so the gap may be smaller than the bound", *ranks.reasons]
    entries = (None,) * model.m_y if ranks is None else ranks.entries
    constants = {"loss": point.loss, "gap": gap, "errors": wide.errors, "ranks": entries}
    inputs: dict[str, Any] = dict(model.inputs(point.theta, point.problem.targets))
    if point.data is not None:
        inputs |= {"X": point.data.known.record}
    return _result(
        verdict=Verdict.HOLDS,
        rigor=Rigor.PROOF,
        reason=f"the training loss exceeds its global infimum by at most {shown_up(gap)} (tolerance: {tolerance:.3g})",
        code="optimality-gap-below",
        evidence=tuple(evidence),
        measured={**_numbers(point, tight, ranks), "gap_upper": gap, "infimum_lower": point.floor},
        bounds=tuple(bounds),
        certificate=seal("optimality", "outputs", inputs, {}, constants),
    )


def _fails(
    point: _Point, tight: LossBounds, lead: float, better: FloatArray | None, ranks: Ranks | None = None
) -> CheckResult:
    problem, model, tolerance = point.problem, point.problem.model, point.tolerance
    data = {} if better is None else {"better": np.ascontiguousarray(better.reshape(model.m_y, -1))}
    entries = (None,) * model.m_y if ranks is None else ranks.entries
    constants = {"loss": point.loss, "gap": lead, "errors": None, "ranks": entries}
    witness: dict[str, Any] = {"kind": "rank n", "gap_lower": lead}
    how = "every output has rank n, so the infimum is 0"
    if better is not None:
        value = problem.value(better)
        change = float(np.linalg.norm(better - point.theta))
        witness = {"kind": "better weights", "gap_lower": lead, "loss": value, "distance": change}
        how = f"weights at a distance of {change:.3g} have the loss {value:.3g}: they are in the certificate"
    return _result(
        verdict=Verdict.FAILS,
        rigor=Rigor.PROOF,
        reason=f"the training loss exceeds its infimum by more than {shown_down(lead)} (tolerance: {tolerance:.3g}); "
        + how,
        code="optimality-rank-n" if better is None else "optimality-better-weights",
        next_steps=_TRAIN,
        measured={**_numbers(point, tight, ranks), "gap_lower": lead},
        bounds=(Bound("L(theta) - inf L", lead, "<=", tolerance),),
        witness=witness,
        certificate=seal("suboptimality", "outputs", model.inputs(point.theta, problem.targets), data, constants),
    )


def _measured(point: _Point, least: Infimum, remarks: tuple[str, ...]) -> CheckResult:
    """Decide numerically: compare the loss with the interval of its infimum, with an allowance for rounding."""
    tolerance, value = point.tolerance, point.problem.value(point.theta)
    rounding = 1e-12 * max(1.0, abs(value), abs(least.lower))
    high, low = value - least.lower, value - least.upper
    if high + rounding <= tolerance:
        # The dual bound is for these gates and features: without rank n another network may have a smaller loss.
        verdict = Verdict.UNDECIDED if least.how == "dual" else Verdict.HOLDS
        compared = f"at most {shown_up(high)}"
    elif low - rounding > tolerance:
        verdict, compared = Verdict.FAILS, f"more than {shown_down(low)}"
    else:
        verdict, compared = Verdict.UNDECIDED, f"between {max(low, 0.0):.3g} and {high:.3g}"
    names = {"samples": "the mean of the samples' infima", "dual": "Fenchel duality", "data": "the data"}
    restricted = "the infimum of the restricted problem, over the weights of the last hidden layer,"
    least_words = restricted if least.how == "dual" else "its infimum"
    if least.how == "dual":
        remarks = (
            "without rank n, other layers may allow a smaller loss: the infimum of the restricted problem is over the "
            "weights of this phase",
            *remarks,
        )
    return _result(
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        reason=f"the training loss exceeds {least_words} by {compared} (tolerance: {tolerance:.3g})",
        code=f"optimality-{_KINDS[verdict]}",
        next_steps=()
        if verdict is Verdict.HOLDS
        else (_RANK,)
        if high + rounding <= tolerance
        else (*_TRAIN, *((_RANK,) if least.how == "dual" else ())),
        evidence=(f"the infimum lies between {least.lower:.6g} ({names[least.how]}) and {least.upper:.6g}", *remarks),
        measured={
            "loss": point.loss,
            "loss_value": value,
            "infimum_lower": least.lower,
            "infimum_upper": least.upper,
            "infimum_from": least.how,
        },
        bounds=(Bound("L(theta) - inf L", high, "<=", tolerance),),
    )
