"""The common model structure of a torch model: which parameters enter the outputs linearly (Assumption 1)."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver import require
from alignver.checks.structure import STATEMENT, Indicator, check_structure, indicator
from alignver.errors import InvalidInput
from alignver.features.threads import threads_for
from alignver.jacobians.jacobian import bound_copy
from alignver.jacobians.operator import differentiable, push, push_twice
from alignver.limits import limited
from alignver.linalg import rank_rules
from alignver.network.degrees import mismatch, prove_structure, refute_structure
from alignver.network.functional import Functional
from alignver.network.inputs import dtype_name
from alignver.network.summary import module_rows
from alignver.network.trace import NetworkGraph, trace_model
from alignver.network.validate_model import probe, validate_model
from alignver.progress import track
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict

_SPREADS = (0.5, 1.0, 2.0, 1.0)  # distances of the random thetas from theta, in root mean squares of each slot
_SIGNS = 4  # products with random signs that estimate the size of the terms
_FEW = 8  # samples in the search for S
_LAST = 2  # modules that are tried as S: behind the last layer a parameter of the model itself may follow
_ENTRIES = 256  # number of parameters up to which S is also searched for among single entries
_CHUNK = 256  # samples per product

Subset = Mapping[str, torch.Tensor]
"""S as masks of zeros and ones; slots without a mask count as zeros."""


@limited("structure", STATEMENT, Subject.NETWORK)
def check_common_structure(
    model: nn.Module,
    X: Any,
    *,
    S: Sequence[str] | None = None,
    tolerance: float | None = None,
    dtype: str | None = "float64",
    seed: int = 0,
    max_seconds: float | None = None,
    max_memory: int | None = None,
) -> CheckResult:
    """Check whether some parameters S give the outputs as ``f(x_i, theta) = sum_{k in S} theta_k df/dtheta_k``.

    ``f_X(theta) = J(theta) nu(theta)``, where nu is theta on S and zero elsewhere. First by the graph of the model, in
    which the degree of every node in S is computed: outputs of degree 1 are linear in S, for every theta. If the graph
    proves nothing, by Jacobian-vector products at the model's theta and at four random ones around it.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`alignver.jacobians.jacobian.jacobian`; not changed.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...).
    S : sequence of str, optional
        Names of parameters, or of modules for all of their parameters. By default S is searched for: in the graph from
        the last affine layer or norm upwards; then by products, the parameters of the module that runs last, every
        union of parameter tensors (by least squares, the last ones first), and in models of at most 256 parameters
        every set of single entries.
    tolerance : float, optional
        The largest relative residual that counts as rounding; by default from eps and the number of terms
        (:func:`alignver.checks.structure.check_structure`).
    dtype : str, optional
        ``"float64"``, or None or ``"same"`` for the model's own.
    seed : int
        Of the random thetas; the global random state is not changed.

    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        HOLDS is a PROOF about the network for every theta, with the annotated graph as certificate, if the graph gives
        it; a division, logarithm or root that may be undefined for some theta is named, and excepted. FAILS is a PROOF
        if an output is not 0 at theta = 0, which excludes every S. Otherwise HOLDS is STATISTICAL, based on a sample of
        thetas, and FAILS is NUMERICAL: the given S does not give f at one theta (``witness``); or, without a given S,
        no weights on single parameters give the outputs. UNDECIDED if no union of parameter tensors gives them, in a
        model too large for single entries, or if autograd does not compute the derivatives of this function.
        ``measured["S"]`` names the parameters.

    Raises
    ------
    InvalidInput
        For a model or inputs without a verdict; a name in S that is not one of a parameter or module.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Assumption 1.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> result = check_common_structure(model, torch.randn(20, 2))
    >>> print(result.verdict, result.measured["S"])
    HOLDS ('2.weight', '2.bias')
    >>> print(check_common_structure(model, torch.randn(20, 2), S=["0"]).verdict)
    FAILS
    """
    began = time.perf_counter()
    seed = require.integer("seed", seed, least=0, most=2**63 - 1, need="an integer from 0 to 2**63 - 1")
    if tolerance is not None:
        rank_rules.checked_tolerance(tolerance, "tolerance")
    with _evaluation(model, X, dtype, seed) as evaluation:
        masks = None if S is None else _masks(evaluation, S)
        sizes = {"parameters": evaluation.function.layout.d, "n": len(evaluation.x), "m_y": evaluation.m_y}
        try:
            traced: NetworkGraph | str = trace_model(evaluation.function.source, X)
        except InvalidInput as error:
            traced = error.got
        proved, why = by_graph(traced, None if masks is None else tuple(masks), sizes)
        if proved is None:
            result = _search(evaluation, tolerance) if masks is None else _confirm(evaluation, masks, tolerance)
            result = dataclasses.replace(result, evidence=(*result.evidence, *why))
        else:
            result = proved
    fixed = list(evaluation.function.layout.fixed)
    more = (f"frozen, so not a part of theta: {_list(fixed)}",) if fixed and result.verdict is not Verdict.HOLDS else ()
    seconds = {"seconds": time.perf_counter() - began}
    return dataclasses.replace(result, evidence=(*result.evidence, *more), cost=seconds)


def by_graph(
    traced: NetworkGraph | str, names: Sequence[str] | None, shared: Mapping[str, Any]
) -> tuple[CheckResult | None, tuple[str, ...]]:
    """Return what the graph of a model proves, or None and sentences on why it does not.

    Parameters
    ----------
    traced : NetworkGraph or str
        The graph, or why there is none.
    names : sequence of str, optional
        S.
    shared : mapping
        For ``measured``: at least ``parameters``, their number.
    """
    if isinstance(traced, str):
        return None, (f"without a graph: {traced}",)
    if not traced.finite:
        return None, ("without a proof: the outputs at X are not finite",)
    proof = prove_structure(traced, names)
    if proof is not None:
        leaves = {node.args["name"]: node.out[0][1] for node in traced.graph.nodes if node.op == "parameter"}
        terms = sum(math.prod(leaves[name]) for name in proof.names)
        rows = [dataclasses.asdict(row) for row in module_rows(traced, proof.names)]
        where = "theta" if not proof.gaps else "theta at which it is defined"
        return _result(
            Verdict.HOLDS, "proved", f"f is linear in {_list(proof.names)} for every {where}: f = J nu",
            evidence=(
                f"S: {_list(proof.names)} ({terms} of {shared['parameters']} parameters)",
                f"by the degrees of {len(traced.graph.nodes)} nodes, for every batch of shape {traced.shape}",
                *(f"may be undefined for some theta: {gap}" for gap in proof.gaps[:_FEW]),
                *_on_autograd(traced.hidden),
            ),
            measured={
                **shared, "S": proof.names, "nodes": len(traced.graph.nodes), "everywhere": not proof.gaps,
                "modules": rows,
            },
            certificate=proof.certificate,
        ), ()  # fmt: skip
    refutation = refute_structure(traced)
    if refutation is not None:
        return _result(
            Verdict.FAILS, "offset", "no S: at theta = 0 an output is not 0, while every sum over S is",
            evidence=("for every input: the outputs are analytic, and their range at theta = 0 excludes 0",),
            measured={**shared, "S": None, "nodes": len(traced.graph.nodes)},
            certificate=refutation, witness={"theta": 0.0, "output": traced.graph.outputs[0]},
            next_steps=("end the network with a linear layer whose parameters are all trainable",),
        ), ()  # fmt: skip
    reason = mismatch(traced, names)
    if traced.aliases or traced.hidden:
        memory = [f"{', '.join(group)} share memory with each other or with a buffer" for group in traced.aliases]
        return _result(
            Verdict.UNDECIDED, "not-autograd", f"not proved ({reason}), and autograd cannot decide it",
            evidence=(*memory, *_on_autograd(traced.hidden)), measured={**shared, "S": None},
            next_steps=("a forward method without detached values, or parameters that share no memory",),
        ), ()  # fmt: skip
    return None, (f"the graph proves no S: {reason}" if names is None else f"not proved by the graph: {reason}",)


def _on_autograd(hidden: Sequence[str]) -> tuple[str, ...]:
    return (f"autograd's derivatives are not those of this function: {_list(hidden)}",) if hidden else ()


def _result(verdict: Verdict, kind: str, reason: str, **fields: Any) -> CheckResult:
    rigor = Rigor.NUMERICAL if verdict is Verdict.UNDECIDED else Rigor.PROOF
    code = f"structure-{kind}"
    return CheckResult("structure", STATEMENT, verdict, rigor, reason, subject=Subject.NETWORK, code=code, **fields)


def structure_here(model: nn.Module, X: Any, S: Sequence[str]) -> tuple[CheckResult, float]:
    """Return :func:`~alignver.checks.structure.check_structure` at the model's own theta alone, and ``||nu||``.

    Arguments are those of :func:`check_common_structure`, S by name.

    Examples
    --------
    >>> structure_here(nn.Linear(2, 1), torch.ones(3, 2), ["weight", "bias"])[0].verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    with _evaluation(model, X, "float64", 0) as evaluation:
        masks = _masks(evaluation, S)
        nu = {name: evaluation.function.theta[name] * mask for name, mask in masks.items()}
        f, p = (part.double().cpu() for part in evaluation.product(evaluation.function, evaluation.x, nu))
    terms = sum(int(mask.sum()) for mask in masks.values())
    size = math.sqrt(math.fsum(float(part.double().square().sum()) for part in nu.values()))
    return check_structure([f], [p], terms=terms, computed_in=evaluation.computed_in), size


@dataclasses.dataclass(frozen=True, eq=False)
class _Evaluation:
    """A bound model and its data, for evaluations at several thetas."""

    function: Functional
    x: torch.Tensor
    m_y: int
    computed_in: str
    seed: int

    @property
    def eps(self) -> float:
        return float(torch.finfo(getattr(torch, self.computed_in)).eps)

    def thetas(self, count: int = len(_SPREADS)) -> Iterator[tuple[str, Functional]]:
        """Yield the theta of the model, then random thetas: each slot plus normal numbers of the size of the slot.

        Where the model raises an exception (a variance is negative), each entry is multiplied by a positive number
        instead; where it raises one again, there is no such theta.
        """
        yield "the model's theta", self.function
        generator = torch.Generator().manual_seed(self.seed)
        for t in range(count):
            spread = _SPREADS[t % len(_SPREADS)]
            moved, scaled = {}, {}
            for name, value in self.function.theta.items():
                size = float(value.square().mean().sqrt()) if value.numel() else 0.0
                size = size or max(1, value[0].numel() if value.ndim > 1 else value.numel()) ** -0.5
                step = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                moved[name] = value + (spread * size * step).to(value.dtype).to(value.device)
                scaled[name] = value * (0.5 * spread * step).exp().to(value.dtype).to(value.device)
            for theta in (moved, scaled):
                function = dataclasses.replace(self.function, theta=theta)
                if self._is_defined(function):
                    yield f"theta {t + 1} of seed {self.seed}", function
                    break

    def _is_defined(self, function: Functional) -> bool:
        """Whether the model runs at its theta."""
        try:
            with torch.no_grad():
                function(function.theta, function.batch(self.x[:1]))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # the user's code can raise anything
            return False
        return True

    def product(self, function: Functional, x: torch.Tensor, tangents: Subset) -> tuple[torch.Tensor, torch.Tensor]:
        """Return f and J times the tangents, (n, m_y) each."""
        parts = []
        for part in track(torch.split(x, _CHUNK), "products with J"):
            try:
                parts.append(push(function, part, tangents, self.m_y) if tangents else self._outputs(function, part))
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError:  # no forward mode
                parts.append(push_twice(function, part, tangents, self.m_y))
        return torch.cat([f for f, _ in parts]), torch.cat([p for _, p in parts])

    def _outputs(self, function: Functional, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = function(function.theta, function.batch(x)).detach().reshape(-1, self.m_y).to(function.dtype)
        return f, torch.zeros_like(f)


@contextlib.contextmanager
def _evaluation(model: nn.Module, X: Any, dtype: str | None, seed: int) -> Iterator[_Evaluation]:
    model = validate_model(model)
    with bound_copy(model, X, dtype) as (function, x), differentiable(function):
        probed = probe(function, x, strict=False)  # the graph may decide; if not, it says what autograd hides
        with threads_for(len(x) * function.layout.d):
            yield _Evaluation(probed.function, x, probed.m_y, dtype_name(probed.computed_in), seed)


def _confirm(evaluation: _Evaluation, S: Subset, tolerance: float | None) -> CheckResult:
    """Compare f with J nu on all samples at all thetas."""
    terms = int(sum(int(mask.sum()) for mask in S.values()))
    generator = torch.Generator().manual_seed(evaluation.seed)
    outputs, products, magnitudes, labels = [], [], [], []
    for label, function in evaluation.thetas():
        nu = {name: function.theta[name] * mask for name, mask in S.items()}
        f, p = evaluation.product(function, evaluation.x, nu)
        if not bool(torch.isfinite(f).all() and torch.isfinite(p).all()):
            continue
        squares = []
        for _ in range(_SIGNS if terms else 0):
            signs = {n: (torch.randint(0, 2, v.shape, generator=generator) * 2 - 1).to(v) for n, v in nu.items()}
            product = evaluation.product(function, evaluation.x, {n: v * signs[n] for n, v in nu.items()})[1]
            squares.append(product.double().square())
        # E (sum s_k t_k)^2 = sum t_k^2 for random signs s_k, and sum |t_k| <= sqrt(terms) (sum t_k^2)^(1/2).
        magnitudes.append((terms * torch.stack(squares).mean(0)).sqrt().cpu().numpy() if squares else 0.0)
        outputs.append(f.double().cpu().numpy())
        products.append(p.double().cpu().numpy())
        labels.append(label)
    if not outputs:
        got = "derivatives that are NaN or Inf at its theta"
        raise InvalidInput("model", got, "a differentiable model", "not-finite")
    result = check_structure(
        outputs,
        products,
        terms=terms,
        magnitudes=magnitudes,
        tolerance=tolerance,
        computed_in=evaluation.computed_in,
        labels=labels,
    )
    if result.verdict is Verdict.HOLDS and len(outputs) < 3:
        others = 1 + len(_SPREADS) - len(outputs)
        reason = f"f = J nu at {len(outputs)} theta; at {others} others the outputs overflow or are not defined: "
        reason += "the sample is too small"
        result = dataclasses.replace(result, verdict=Verdict.UNDECIDED, reason=reason, bounds=())
    names = _entries(S)
    sentence = f"S: {_list(names)} ({terms} of {evaluation.function.layout.d} parameters)" if names else "S is empty"
    evidence = (sentence, *result.evidence, "Assumption 1 is about every theta: the check is made for a sample of them")
    if result.verdict is Verdict.FAILS:
        evidence = evidence[:-1]
    measured = {
        **result.measured,
        "S": names,
        "parameters": evaluation.function.layout.d,
        "n": len(evaluation.x),
        "m_y": evaluation.m_y,
    }
    return dataclasses.replace(
        result,
        evidence=evidence,
        measured={**measured, "seed": evaluation.seed, "skipped": 1 + len(_SPREADS) - len(outputs)},
    )


def _search(evaluation: _Evaluation, tolerance: float | None) -> CheckResult:
    """Search for S: in the last modules, then among unions of slots, then among single entries."""
    few = evaluation.x[:: max(1, len(evaluation.x) // _FEW)][:_FEW]
    order = _last_first(evaluation.function, few)
    ones = {name: torch.ones_like(value) for name, value in evaluation.function.theta.items()}
    modules = dict.fromkeys(tuple(_same_module(evaluation.function, name)) for name in order)
    for slots in list(modules)[:_LAST]:
        last = _confirm(evaluation, {name: ones[name] for name in slots}, tolerance)
        if last.verdict is Verdict.HOLDS:
            return last
    tensors: list[Subset] = [{name: ones[name]} for name in order]
    weights, union = _union(evaluation, few, tensors)
    if union is None and evaluation.function.layout.d <= _ENTRIES:
        weights, union = _union(evaluation, few, [mask for name in order for mask in _single(name, ones[name])])
        if union is None:
            return _refuted(evaluation, weights)
    return _undecided(evaluation, weights) if union is None else _confirm(evaluation, union, tolerance)


def _union(
    evaluation: _Evaluation, few: torch.Tensor, groups: Sequence[Subset]
) -> tuple[Indicator, dict[str, torch.Tensor] | None]:
    """Return weights of the groups, and the union of the groups with weight 1 if these weights give f."""
    rows = max(1, len(few) * evaluation.m_y)
    weights = _weights(evaluation, few, groups, max(len(_SPREADS), -(-2 * len(groups) // rows)))
    subset = weights.subset()
    if subset is None or weights.residual >= math.sqrt(evaluation.eps):
        return weights, None
    union: dict[str, torch.Tensor] = {}
    for k in subset:
        for name, mask in groups[k].items():
            union[name] = union.get(name, torch.zeros_like(mask)) + mask
    return weights, union


def _weights(evaluation: _Evaluation, few: torch.Tensor, groups: Sequence[Subset], count: int) -> Indicator:
    """Return weights on groups of parameters that give f from their products at several thetas; rows are scaled."""
    rows, targets = [], []
    for _, function in evaluation.thetas(count):
        products = [
            evaluation.product(function, few, {n: function.theta[n] * mask for n, mask in group.items()})
            for group in track(groups, "products with J")
        ]
        f = products[0][0].reshape(-1)
        G = torch.stack([p.reshape(-1) for _, p in products], dim=1)
        if not bool(torch.isfinite(G).all() and torch.isfinite(f).all()):
            continue
        scale = max(float(f.abs().max()), float(G.abs().max())) or 1.0
        rows.append((G / scale).double().cpu().numpy())
        targets.append((f / scale).double().cpu().numpy())
    return indicator(np.concatenate(rows), np.concatenate(targets), evaluation.eps)


def _refuted(evaluation: _Evaluation, weights: Indicator) -> CheckResult:
    """Return FAILS: no real weights give f, or the only ones are not all 0 or 1."""
    limit = 10.0 * math.sqrt(evaluation.eps)
    measured = {
        "S": None,
        "weights_residual": weights.residual,
        "weights": weights.weights,
        "parameters": evaluation.function.layout.d,
        "n": len(evaluation.x),
        "m_y": evaluation.m_y,
        "computed_in": evaluation.computed_in,
        "seed": evaluation.seed,
    }
    bounds: tuple[Bound, ...] = ()
    if weights.residual > limit:
        reason = (
            f"there is no S: even real weights on theta_k df/dtheta_k leave a relative residual of "
            f"{weights.residual:.1e} at the sampled thetas"
        )
        bounds = (Bound("residual of any weights", weights.residual, ">", limit),)
    elif weights.unique and weights.residual < math.sqrt(evaluation.eps):
        off = max(weights.weights, key=lambda w: min(abs(w), abs(w - 1.0)))
        reason = f"there is no S: the only weights that give f are not all 0 or 1 (one is {off:.3g})"
    else:
        return _undecided(evaluation, weights)
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=Verdict.FAILS,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="structure-no-weights",
        next_steps=("end the network with a linear layer whose parameters are all trainable",),
        reason=reason,
        evidence=("the weights are from least squares over all parameters, at the model's theta and at random ones",),
        measured=measured,
        bounds=bounds,
        witness={"seed": evaluation.seed, "weights": weights.weights},
    )


def _undecided(evaluation: _Evaluation, weights: Indicator) -> CheckResult:
    failing = "no union of whole parameter tensors gives"
    if not weights.unique and weights.residual < math.sqrt(evaluation.eps):  # as with a temperature: f = -t df/dt
        failing = "several weights on the parameter tensors give f, and the search found no union of tensors that gives"
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="structure-not-found",
        next_steps=(
            "if you know the parameters, name them: S=",
            "end the network with a linear layer whose parameters are all trainable",
        ),
        reason=f"{failing} f = J nu; single entries are not searched in a model of this size",
        evidence=(f"least-squares weights on the tensors leave a relative residual of {weights.residual:.1e}",),
        measured={
            "S": None,
            "weights_residual": weights.residual,
            "parameters": evaluation.function.layout.d,
            "seed": evaluation.seed,
        },
    )


def _last_first(function: Functional, x: torch.Tensor) -> list[str]:
    """Order the slots by the last time that a module with them ran, the latest first."""
    clock: dict[int, int] = {}
    handles = []
    for module in function.model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks

        def note(module: nn.Module, args: Any, output: Any) -> None:
            clock[id(module)] = len(clock) if id(module) not in clock else max(clock.values()) + 1

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            function(function.theta, function.batch(x))
    finally:
        for handle in handles:
            handle.remove()
    when = dict.fromkeys(function.layout.names, -1)
    names = {id(p): name for name, p in zip(function.layout.names, function.layout.parameters)}
    for module in function.model.modules():
        for parameter in module._parameters.values():
            if id(parameter) in names:
                name = names[id(parameter)]
                when[name] = max(when[name], clock.get(id(module), -1))
    return sorted(function.layout.names, key=lambda name: -when[name])


def _same_module(function: Functional, name: str) -> list[str]:
    """Return all slots of the module of a slot."""
    names = {id(p): n for n, p in zip(function.layout.names, function.layout.parameters)}
    for module in function.model.modules():
        slots = [names[id(p)] for p in module._parameters.values() if id(p) in names]
        if name in slots:
            return slots
    return [name]


def _masks(evaluation: _Evaluation, S: Sequence[str]) -> Subset:
    """Return the slots for the names in S: parameters by any of their names, or modules."""
    S = require.names("S", S, "a sequence of names of parameters or modules")
    function = evaluation.function
    known = {name: name for name in function.layout.names} | function.layout.aliases
    modules = {name for name, _ in function.model.named_modules(remove_duplicate=False)}
    masks: dict[str, torch.Tensor] = {}
    S = [name.removeprefix("_orig_mod.").removeprefix("module.") if name not in known else name for name in S]
    for name in S:
        slots = [known[name]] if name in known else []
        if not slots and name in modules:
            slots = [slot for alias, slot in known.items() if alias.startswith(f"{name}.")]
        slots = [slot for slot in slots if slot in function.theta]
        if not slots:
            near = difflib.get_close_matches(name, [*known, *modules], n=3, cutoff=0.0)
            why = "is frozen" if name in function.layout.fixed else "no trainable parameter has"
            need = f"names such as {', '.join(map(repr, near))}"
            raise InvalidInput("S", f"the name {name!r}, which {why}", need, "not-a-choice")
        masks |= {slot: torch.ones_like(function.theta[slot]) for slot in slots}
    return masks


def _single(name: str, mask: torch.Tensor) -> Iterator[Subset]:
    for k in range(mask.numel()):
        one = torch.zeros_like(mask)
        one.view(-1)[k] = 1.0
        yield {name: one}


def _entries(S: Subset) -> list[str]:
    """Return names for a report: of a whole slot its name, of a part its entries."""
    names = []
    for name, mask in S.items():
        if bool(mask.all()):
            names.append(name)
        else:
            names += [f"{name}[{int(k)}]" for k in mask.reshape(-1).nonzero()]
    return names


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
