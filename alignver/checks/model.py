"""Every check that applies to a model and its data, in one report: cheap ones first, within a time limit.

The model is validated once. Structure, analyticity and alignment share one graph; the features and the loss, which are
enclosed without gradients and in other batches, have one each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from alignver import require
from alignver.checks import alignment, analytic, data, exploration_report, structure
from alignver.checks.common_structure import by_graph, check_common_structure
from alignver.checks.exploration import check_safe_exploration
from alignver.checks.network_optimality import check_network
from alignver.errors import InvalidInput
from alignver.jacobians.prepare import PreparedAlignment, prepare_alignment
from alignver.limits import OutOfTime, in_memory, memory_limit, out_of_time, remaining, time_limit
from alignver.network.enclosures import EnclosedNetwork
from alignver.network.feature_extraction import submodule
from alignver.network.functional import parameter_layout
from alignver.network.inputs import in_dtype_of
from alignver.network.output_layers import find_output_layers
from alignver.network.preserve_state import preserve_random_states
from alignver.network.row_rank_bound import row_rank_bound
from alignver.network.summary import module_rows
from alignver.network.trace import NetworkGraph
from alignver.progress import announce, reported, stage
from alignver.results import CheckResult, Report, Rigor, Subject, Verdict, shown_up

_STATEMENT = "Model and data"
_OPTIMALITY = "Global optimality (Theorems 4 and 5)"
_SHARE = 0.8  # of the time that is left: for alignment, before safe exploration and the loss
_PATIENCE = 10.0  # estimated seconds of enclosures of the loss that are tried
_WORDS = {
    Verdict.HOLDS: "the model can represent these targets at its parameters",
    Verdict.FAILS: "the model cannot represent these targets at its parameters",
    Verdict.UNDECIDED: "it is not decided whether the model can represent these targets at its parameters",
}
_CODES = {Verdict.HOLDS: "aligned", Verdict.FAILS: "not-aligned", Verdict.UNDECIDED: "not-decided"}
_LAYERS = 8  # layers that a sentence lists


@reported("check of model")
@in_memory
def check_model(
    model: nn.Module,
    X: Any,
    Y: Any = None,
    *,
    loss: Any,
    layer: str | None = None,
    gap: float = 1e-3,
    dtype: str | None = "float64",
    max_seconds: float | None = 60.0,
    max_memory: int | None = None,
    select: str | int | Callable[[Any], Any] | None = None,
    forward_args: Mapping[str, Any] | None = None,
) -> Report:
    """Run every check that applies to a model and its data: one report with an overview and an answer per question.

    The questions, in this order: are the data consistent (:func:`~alignver.checks.data.check_data`)? do some parameters
    enter linearly (:func:`~alignver.checks.common_structure.check_common_structure`)? is the model analytic in its
    parameters (:func:`~alignver.checks.analytic.check_analytic`)? can the model represent the targets at its parameters
    (:func:`~alignver.checks.alignment.check_alignment`)? is the last hidden layer wide enough
    (:func:`~alignver.checks.exploration.check_safe_exploration`)? how far is the loss from the least one
    (:func:`~alignver.checks.optimality.check_optimality`)?

    Parameters
    ----------
    model : torch.nn.Module
        Its outputs are the values before the last nonlinearity (logits). It is not changed.
    X, Y, loss, select, forward_args
        As in :func:`~alignver.checks.alignment.check_alignment`.
    layer : str, optional
        The submodule whose output is z (Assumption 4); by default that which the last two linear layers follow.
    gap : float
        The training loss counts as optimal if it exceeds the least one by at most this.
    dtype : str, optional
        As in :func:`alignver.jacobians.jacobian.jacobian`.
    max_seconds : float, optional
        Limit of the whole call. Questions without an answer by then are UNDECIDED.
    max_memory : int, optional
        The memory, in bytes, to plan with.

    Returns
    -------
    Report
        ``report["model"]`` is the overview: the verdict of alignment, a sentence for each question, and what to try, in
        order. The other results follow under their names: ``report["data"]``, ``"structure"``, ``"analytic"``,
        ``"alignment"``, ``"exploration"``, ``"optimality"``.

    Raises
    ------
    InvalidInput
        For a model, inputs or targets without a verdict, as :func:`~alignver.checks.alignment.check_alignment`. A
        question that does not apply to the model is UNDECIDED, with the reason.

    Notes
    -----
    Rigor and subject are those of each question; of the overview, those of alignment.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Definition 2, Assumptions 1, 4 and 6.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> X, Y = torch.randn(12, 3), torch.arange(12) % 2
    >>> net = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 2))
    >>> report = check_model(net, X, Y, loss="cross_entropy")
    >>> [(result.name, str(result.verdict)) for result in report.results[:4]]
    [('model', 'HOLDS'), ('data', 'HOLDS'), ('structure', 'HOLDS'), ('analytic', 'HOLDS')]
    >>> report["model"].reason
    'the model can represent these targets at its parameters: proved about the network, with kappa at most 908.3'
    """
    began = time.perf_counter()
    gap = require.real("gap", gap, above=0.0)
    with time_limit(max_seconds), memory_limit(max_memory):
        pass  # they are validated
    prepared = prepare_alignment(model, X, Y, loss, dtype, select=select, forward_args=forward_args)
    if layer is not None:
        submodule(prepared.model, layer)
    left = None if max_seconds is None else max(max_seconds - (time.perf_counter() - began), 1e-9)
    with time_limit(left), memory_limit(max_memory):
        questions = _Questions(prepared, prepared.loss, layer, gap, dtype)
        at_most = "" if max_seconds is None else f"; at most {max_seconds:g} s"
        sizes = f"{len(prepared.x)} samples, {prepared.m_y} output{'s' * (prepared.m_y > 1)}, {questions.d} parameters"
        announce(f"{sizes}: data, structure, alignment, exploration, loss{at_most}")
        results = questions.answers()
    overview = _overview(questions, results, time.perf_counter() - began)
    return Report((overview, *results))


@dataclasses.dataclass(eq=False)
class _Questions:
    """A prepared model with its graph, and the questions about it in order."""

    prepared: PreparedAlignment
    loss: str
    layer: str | None
    gap: float
    dtype: str | None

    def __post_init__(self) -> None:
        self.d = parameter_layout(self.prepared.model).d
        self.bound = row_rank_bound(self.prepared.model, self.prepared.x, self.prepared.m_y)
        self.refuted = self.prepared.duplicates.conflicts.count > 0

    @functools.cached_property
    def network(self) -> EnclosedNetwork | str:
        """The model as a graph with its numbers, or why there is none."""
        with stage("tracing the network"):
            return alignment.traced_network(self.prepared)

    @property
    def traced(self) -> NetworkGraph | str:
        """The graph, or why there is none."""
        return self.network if isinstance(self.network, str) else self.network.traced

    @property
    def rows(self) -> int:
        """N, the rows of the Jacobian."""
        return len(self.prepared.y)

    def answers(self) -> list[CheckResult]:
        """Return the answers, cheap questions first."""
        ask = self._answer
        results = [
            ask("data", data.STATEMENT, Subject.DATA, self._data),
            ask("structure", structure.STATEMENT, Subject.NETWORK, self._structure),
            ask("analytic", analytic.STATEMENT, Subject.NETWORK, self._analytic),
        ]
        share = _SHARE * remaining()
        with time_limit(share) if 0.0 < share < math.inf else contextlib.nullcontext():
            results.append(ask("alignment", alignment.STATEMENT, Subject.NETWORK, self._alignment))
        results.append(ask("exploration", exploration_report.STATEMENT, Subject.NETWORK, self._exploration))
        return [*results, ask("optimality", _OPTIMALITY, Subject.NETWORK, self._optimality)]

    def _answer(self, name: str, statement: str, subject: Subject, question: Callable[[], CheckResult]) -> CheckResult:
        """Return the answer to a question; UNDECIDED if it does not apply, or if the time is over."""
        began = time.perf_counter()
        try:
            result = question()
        except OutOfTime as error:
            return out_of_time(error, name, statement, subject, time.perf_counter() - began)
        except InvalidInput as error:
            result = CheckResult(
                name=name,
                statement=statement,
                verdict=Verdict.UNDECIDED,
                rigor=Rigor.NUMERICAL,
                subject=subject,
                code=f"{name}-refused",
                reason=f"this check does not apply: {error.argument}: got {error.got}",
                next_steps=(f"{error.argument}: {error.need}",),
            )
        return dataclasses.replace(result, cost={**result.cost, "seconds": time.perf_counter() - began})

    def _data(self) -> CheckResult:
        return data.check_data(self.prepared.inputs, self.prepared.given, loss=self.loss)

    def _structure(self) -> CheckResult:
        prepared = self.prepared
        shared = {"parameters": self.d, "n": len(prepared.x), "m_y": prepared.m_y}
        decided = by_graph(self.traced, None, shared)[0]
        if decided is not None:
            return decided
        return check_common_structure(prepared.model, prepared.x, dtype=self.dtype)

    def _analytic(self) -> CheckResult:
        return analytic.analytic_by_graph(self.traced, time.perf_counter())

    def _optimality(self) -> CheckResult:
        prepared, seconds = self.prepared, min(remaining(), _PATIENCE)
        return check_network(
            prepared.model, prepared.inputs, prepared.given,
            loss=self.loss, tolerance=self.gap, certify=True, seconds=seconds,
        )  # fmt: skip

    def _alignment(self) -> CheckResult:
        return alignment.decide_alignment(self.prepared, alignment.Options(dtype=self.dtype), self.network)

    def _exploration(self) -> CheckResult:
        """Check the features that the last hidden layer reads."""
        model, x = self.prepared.model, self.prepared.x
        layer, width, words = self.layer, None, f"z: the output of {self.layer!r} and the constant 1"
        if layer is None:
            with preserve_random_states():
                ending = find_output_layers(model, in_dtype_of(model, x[:2]))
            if not ending.layers or ending.features is None:
                got = f"{type(model).__name__}, whose last hidden layer does not read the output of a module"
                need = "layer=, the name of the module whose output is z"
                raise InvalidInput("model", got, need, "unsupported-model")
            first = ending.layers[0]
            width = int(first.module.out_features) if len(ending.layers) == 2 else None
            layer = ending.features
            hidden = f"{first.name!r}, which has {width} units" if width else f"a hidden layer before {first.name!r}"
            words = f"z: {f'the output of {layer!r}' if layer else 'the input of the model'} and the constant 1, for "
            words += hidden
        if layer:
            result = check_safe_exploration(model, X=x, layer=layer, width=width)
        else:
            rows = x.detach().cpu().reshape(len(x), -1).numpy()
            result = check_safe_exploration(rows, add_constant=True, X=x, width=width)
        return dataclasses.replace(result, evidence=(words, *result.evidence))


def _overview(questions: _Questions, results: list[CheckResult], seconds: float) -> CheckResult:
    """Return the result that summarizes the others; verdict, rigor, subject and proof are those of alignment."""
    answers = {result.name: result for result in results}
    decisive = answers["alignment"]
    proved = f"proved about the {decisive.subject.words}" if decisive.rigor is Rigor.PROOF else "numerically"
    reason = f"{_WORDS[decisive.verdict]}: {proved}"
    if decisive.verdict is Verdict.HOLDS and "kappa" in decisive.measured:
        reason += f", with kappa at most {shown_up(decisive.measured['kappa']['upper'], 4)}"
    if questions.refuted and decisive.verdict is Verdict.FAILS:
        reason = f"no model can represent these targets: {decisive.reason}"
    elif decisive.verdict is Verdict.FAILS:
        reason = f"{reason}; {decisive.reason}"
    elif decisive.verdict is Verdict.UNDECIDED:
        reason = f"{_WORDS[decisive.verdict]}: {decisive.reason}"
    lines = [f"{result.statement}: {result.answer}: {result.reason}" for result in results]
    checks = {r.name: {"verdict": r.verdict, "rigor": r.rigor, "subject": r.subject, "code": r.code} for r in results}
    kappa = {"kappa": decisive.measured["kappa"]} if "kappa" in decisive.measured else {}
    return CheckResult(
        name="model",
        statement=_STATEMENT,
        verdict=decisive.verdict,
        rigor=decisive.rigor,
        subject=decisive.subject,
        code=f"model-{_CODES[decisive.verdict]}",
        reason=reason,
        evidence=(_sizes(questions), *lines),
        next_steps=tuple(_next_steps(questions, answers)),
        measured={
            "n": questions.prepared.duplicates.n,
            "m_y": questions.prepared.m_y,
            "d": questions.d,
            "rank_upper": questions.bound.value,
            **kappa,
            "checks": checks,
        },
        witness=decisive.witness,
        certificate=decisive.certificate,
        cost={"seconds": seconds},
    )


def _sizes(questions: _Questions) -> str:
    """State N, d and the layers."""
    prepared = questions.prepared
    sentence = f"sizes: {len(prepared.x)} distinct samples, {prepared.m_y} output{'s' * (prepared.m_y > 1)}: J has "
    sentence += f"{questions.rows} rows and {questions.d} columns, one for each parameter"
    if "network" not in vars(questions) or isinstance(questions.traced, str):  # out of time, or without a graph
        return sentence
    rows = [row for row in module_rows(questions.traced) if row.parameters and row.shape]
    listed = ", ".join(
        f"{row.module or 'the model'} ({' x '.join(map(str, row.shape[1:] or row.shape))})" for row in rows[:_LAYERS]
    )
    return f"{sentence}; layers and their outputs: {listed}" + ", ..." * (len(rows) > _LAYERS)


def _next_steps(questions: _Questions, answers: dict[str, CheckResult]) -> Iterator[str]:
    """Yield what to try, in order, with numbers."""
    lacking = questions.rows - questions.bound.value
    if questions.refuted:
        yield from answers["data"].next_steps
    elif lacking > 0:
        yield f"{questions.bound.sentence}; every target needs rank {questions.rows}, which is {lacking} more"
    for name in ("alignment", "structure", "analytic", "exploration", "optimality"):
        if not (name == "alignment" and questions.refuted):
            yield from (f"{name}: {step}" for step in answers[name].next_steps)
