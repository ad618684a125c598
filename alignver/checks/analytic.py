"""Is a model real analytic in its parameters (Assumption 6)? By the operations of its graph, for every theta.

Analytic: polynomials, exp, sin, tanh, the logistic function, erf, and their sums, products and compositions (softmax,
GELU, SiLU, normalizations with eps > 0), and everything linear: convolution, average pooling, resampling, padding,
selection by positions that do not depend on the parameters. Quotients, logarithms and roots are analytic where the
range of their argument, for every theta, lies inside their domain. Of other operations (ReLU, abs, max, rounding)
nothing is proved: the positive part of an exponential is analytic.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from alignver import require
from alignver.errors import InvalidInput, kind_of
from alignver.kernel import Certificate, seal
from alignver.kernel.failure import NotProved
from alignver.kernel.network.analytic import walk
from alignver.kernel.network.degrees import subset
from alignver.kernel.network.graph import Graph, Node, Ref
from alignver.kernel.network.kinks import bent_output
from alignver.kernel.network.methods import described, domain_gaps
from alignver.kernel.network.operators import COPIES, words
from alignver.limits import limited
from alignver.network.adapt import adapted
from alignver.network.functional import unwrapped
from alignver.network.inputs import example_inputs
from alignver.network.summary import module_rows
from alignver.network.trace import NetworkGraph, trace_model
from alignver.network.validate_model import train_mode_fault
from alignver.results import CheckResult, Rigor, Subject, Verdict

STATEMENT = "Real analytic in the parameters (Assumption 6)"

_SHOWN = 6  # operations that a sentence names


@limited("analytic", STATEMENT, Subject.NETWORK)
def check_analytic(
    model: nn.Module, X: Any = None, *, max_seconds: float | None = None, max_memory: int | None = None
) -> CheckResult:
    """Check whether a model's outputs are real analytic functions of its parameters, for every theta.

    The model is traced into a graph of operators. Every operation on a value that depends on a trainable parameter must
    be analytic: everywhere, or on a domain that contains the range of its argument, which is bounded for all theta (exp
    is positive, a square is not negative, tanh is inside (-1, 1)).

    Parameters
    ----------
    model : torch.nn.Module
        Not changed. Pass the part up to layer H - 2 for the paper's z; its gate is a sigmoid.
    X : (n, ...) array or tensor, optional
        Inputs, of which shape and dtype are used: the answer is about every input of this shape. By default a shape
        that the first layer takes.

    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with.

    Returns
    -------
    CheckResult
        HOLDS is a PROOF about the network, with the graph as certificate. FAILS is a PROOF too: a theta and a
        direction in which the one-sided derivatives of an output differ, for every input. UNDECIDED: an operation is
        not proved to be analytic, and is named with its module; or the model cannot be traced, and the reason is given.

    Raises
    ------
    InvalidInput
        Not a torch.nn.Module, or a scripted one; X is not an array of real numbers.

    Notes
    -----
    The verdict is about the function of real arithmetic that the model writes down. torch's softplus stands for
    ``ln(1 + e^(beta x)) / beta``, from which it differs by at most 2.1e-9 / beta, where it switches to x; with a
    threshold below 20 it counts as another function, which is not analytic. A cast between floating-point dtypes is the
    identity.

    References
    ----------
    Kawaguchi, Zhang, Deng (2022), Assumption 6.

    Examples
    --------
    >>> from torch import nn
    >>> result = check_analytic(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    >>> print(result.verdict, result.rigor)
    HOLDS PROOF
    >>> bent = check_analytic(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> print(bent.verdict, "-", bent.reason)
    FAILS - not analytic: relu of '1' has a kink, at which the outputs have two derivatives
    """
    began = time.perf_counter()
    require.instance("model", model, nn.Module, "a torch.nn.Module")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        need = "the torch.nn.Module that it was scripted or traced from"
        raise InvalidInput("model", kind_of(model), need, "unsupported-model")
    faults = [(name, fault) for name, module in model.named_modules() if (fault := train_mode_fault(module))]
    if faults:
        modes = "; ".join(f"{name or type(model).__name__!r} is {fault}" for name, fault in faults[:_SHOWN])
        return _result(
            Verdict.UNDECIDED, "untraced", f"not established: {modes}", began, next_steps=("call model.eval()",)
        )
    try:
        model, X, _ = (model, example_inputs(model), None) if X is None else adapted(model, X)
        traced = trace_model(model, X)
    except InvalidInput as error:
        if error.argument == "X":
            raise
        steps = (*(("give inputs of the right shape: X=",) if X is None else ()), f"a model that is {error.need}")
        return dataclasses.replace(analytic_by_graph(error.got, began), next_steps=steps)
    return analytic_by_graph(traced, began)


def analytic_by_graph(traced: NetworkGraph | str, began: float) -> CheckResult:
    """Decide for a graph, or give the reason why there is none; ``began`` is the time of the start."""
    if isinstance(traced, str):
        return _result(Verdict.UNDECIDED, "untraced", f"not established: {traced}", began)
    graph = traced.graph
    barriers = walk(graph)[1]
    rows = [dataclasses.asdict(row) for row in module_rows(traced)]
    shown = {"operations": len(graph.nodes), "shape": traced.shape, "modules": rows}
    inexact = _deviations(graph)
    if not barriers and not traced.finite:
        reason, steps = "not established: its outputs at X are not finite", ("inputs X for which they are",)
        return _result(Verdict.UNDECIDED, "unproved", reason, began, next_steps=steps)
    if not barriers:
        certificate = seal("analytic", "operations", {}, {"graph": traced.data}, {})
        reason = f"every operation on the parameters is analytic ({len(graph.nodes)} nodes), for every theta"
        evidence = (*inexact, f"for every batch of inputs of shape {traced.shape}")
        return _result(
            Verdict.HOLDS, "proved", reason, began, evidence=evidence, measured=shown, certificate=certificate
        )
    refutation = refute_analytic(traced) if traced.finite else None
    if refutation is not None:
        certificate, kink = refutation
        moved = str(certificate.constants["moved"])
        node = graph.nodes[kink]
        place = f"{node.base} of {node.module!r}" if node.module else node.base
        reason = f"not analytic: {place} has a kink, at which the outputs have two derivatives"
        return _result(
            Verdict.FAILS, "kink", reason, began,
            evidence=(f"for every input, along a line on which {moved} passes through 0",), measured=shown,
            certificate=certificate, witness={"theta": certificate.constants["theta"], "moved": moved},
            next_steps=("replace what is not analytic: softplus for ReLU, tanh for hardtanh",),
        )  # fmt: skip
    words = [described(graph, barrier) for barrier in barriers]
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    unclear = [
        {"where": graph.nodes[b.node].module, "what": graph.nodes[b.node].base, "why": b.reason} for b in barriers
    ]
    return _result(
        Verdict.UNDECIDED, "unproved", f"not proved: {'; '.join(words[:_SHOWN])}{more}", began,
        evidence=inexact, measured={**shown, "unproved": unclear},
        next_steps=("replace what is not analytic: softplus for ReLU, tanh for hardtanh",),
    )  # fmt: skip


def _deviations(graph: Graph) -> tuple[str, ...]:
    """Return a sentence on softplus, which torch computes with a switch to its argument."""
    betas = [abs(float(node.args.get("beta", 1.0))) for node in graph.nodes if node.base == "softplus"]
    count = len(betas) + sum(node.base == "mish" for node in graph.nodes)
    if not count:
        return ()
    worst = 2.07e-9 / min([1.0, *betas] if len(betas) < count else betas)
    return (
        f"softplus and mish ({count} of them) count as the functions with ln(1 + e^(beta x)) / beta, from which torch "
        f"differs by at most {worst:.1e}, where it switches to x",
    )


def _result(verdict: Verdict, kind: str, reason: str, began: float, **fields: Any) -> CheckResult:
    return CheckResult(
        "analytic", STATEMENT, verdict,
        Rigor.NUMERICAL if verdict is Verdict.UNDECIDED else Rigor.PROOF, reason, subject=Subject.NETWORK,
        code=f"analytic-{kind}", cost={"seconds": time.perf_counter() - began}, **fields,
    )  # fmt: skip


_KINKS = words("relu leaky_relu abs clamp clamp_min hardtanh relu6")
_TRIES = 20  # kinks, from the outputs
_LARGE = 2.0**20


def refute_analytic(traced: NetworkGraph) -> tuple[Certificate, int] | None:
    """Return a certificate that the outputs are not analytic in theta, and the kink; None if this is not proved.

    The bias in front of a kink is moved through 0, with weights 0 beside it: the argument of the kink is then the same
    for every input. All other weights are 1 and all other biases large, so that later kinks are passed on their linear
    side.

    Examples
    --------
    >>> import torch
    >>> from alignver.network.trace import trace_model
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).eval()
    >>> traced = trace_model(net, torch.ones(2, 2))
    >>> certificate, kink = refute_analytic(traced)
    >>> certificate.constants["moved"], traced.graph.nodes[kink].base
    ('0.bias', 'relu')
    """
    graph = traced.graph
    if domain_gaps(graph):
        return None
    names = {name: leaf for name, leaf in graph.leaves().items() if _is_free(graph, leaf)}
    biases = {k for node in graph.nodes for k in node.refs("bias")}
    large = {node.args["leaf"] for k, node in enumerate(graph.nodes) if node.op == "parameter" and k in biases}
    kinks = [index for index, node in enumerate(graph.nodes) if node.base in _KINKS]
    for kink in kinks[::-1][:_TRIES]:
        source = _affine(graph, graph.nodes[kink])
        bias, weight = (_leaf(graph, source, name) for name in ("bias", "weight"))
        if bias is None or bias not in names.values():
            continue
        for size in (1.0, _LARGE):
            at = {leaf: 0.0 if leaf in (bias, weight) else size if leaf in large else 1.0 for leaf in names.values()}
            if bent_output(graph, at, bias) is not None:
                return _sealed(traced, names, at, bias), kink
    return None


def _sealed(traced: NetworkGraph, names: Mapping[str, int], at: Mapping[int, float], bias: int) -> Certificate:
    moved = next(name for name, leaf in names.items() if leaf == bias)
    constants = {"theta": {name: at[leaf] for name, leaf in names.items()}, "moved": moved}
    return seal("not-analytic", "one-sided derivatives", {}, {"graph": traced.data}, constants)


def _is_free(graph: Graph, leaf: int) -> bool:
    """Whether the entries of a leaf can be chosen: all of its tensors are trainable, and nothing else is on it."""
    try:
        return bool(subset(graph, [name for name, other in graph.leaves().items() if other == leaf]))
    except NotProved:
        return False


def _affine(graph: Graph, node: Node) -> Node:
    """Return the node in front of a kink, past reshapes."""
    while node.main and (node.base in COPIES | _KINKS or node.op == "getitem"):
        node = graph.nodes[next(node.refs(node.main))]
        if node.base in _KINKS:
            break
    return node


def _leaf(graph: Graph, node: Node, name: str) -> int | None:
    item = node.args.get(name)
    source = graph.nodes[item.node] if isinstance(item, Ref) else None
    return source.args["leaf"] if source is not None and source.op == "parameter" else None
