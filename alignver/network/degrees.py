"""Assumption 1 from the graph of a model: a set S of parameters in which the outputs are linear, with a certificate.

The search goes from the output to the leaves. An output of degree 1 asks for degree 1 of every term of a sum, of one
factor of a product (first of one that is a parameter, which leads to the last affine layer or norm), and for degree 0
of everything else. Each combination of factors gives one maximal set of leaves; the kernel's walk decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from alignver.kernel import Certificate, seal
from alignver.kernel.failure import NotProved
from alignver.kernel.network import degrees as kernel
from alignver.kernel.network.graph import Graph, Node, Ref
from alignver.kernel.network.methods import described, domain_gaps, flat, zero_excluded
from alignver.kernel.network.operators import JOINS, LINEAR, PRODUCTS
from alignver.network.trace import NetworkGraph

_TRIES = 200  # combinations of factors
_NORMS = ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm",
          "batch_norm", "_native_batch_norm_legit_no_training")  # fmt: skip

Demands = dict[int, int]


@dataclasses.dataclass(frozen=True)
class StructureProof:
    """A set S with f = J nu, and its certificate.

    Attributes
    ----------
    names : tuple of str
        The parameters of S.
    gaps : tuple of str
        Operations that may be undefined for some theta: the claim is about every other theta.
    certificate : Certificate
    """

    names: tuple[str, ...]
    gaps: tuple[str, ...]
    certificate: Certificate


def prove_structure(traced: NetworkGraph, S: Sequence[str] | None = None) -> StructureProof | None:
    """Return a set of parameters in which the outputs are linear, or None if none is proved.

    Parameters
    ----------
    traced : NetworkGraph
    S : sequence of str, optional
        First names of parameters; by default every maximal set is tried, from the last layer.

    Examples
    --------
    >>> import torch
    >>> from alignver.network.trace import trace_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).eval()
    >>> prove_structure(trace_model(model, torch.ones(2, 2))).names
    ('2.weight', '2.bias')
    """
    graph = traced.graph
    candidates = [tuple(S)] if S is not None else _candidates(graph)
    for names in candidates:
        try:
            annotation = kernel.degrees(graph, kernel.subset(graph, names))
        except NotProved:
            continue
        if all(set(annotation[k]) <= {1, kernel.ZERO} for k in graph.outputs):
            gaps = tuple(described(graph, gap) for gap in domain_gaps(graph))
            data = {"graph": traced.data, "degrees": flat(annotation)}
            constants = {"S": list(names), "everywhere": not gaps}
            return StructureProof(names, gaps, seal("common-structure", "degrees", {}, data, constants))
    return None


def refute_structure(traced: NetworkGraph) -> Certificate | None:
    """Return a certificate that no S exists, as an output is not 0 at theta = 0; None if this is not proved.

    Examples
    --------
    >>> import torch
    >>> from alignver.network.trace import trace_model
    >>> refute_structure(trace_model(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid()), torch.ones(2, 2)))
    Certificate(claim='no-structure', method='value at zero', ...
    """
    if zero_excluded(traced.graph) is None:
        return None
    return seal("no-structure", "value at zero", {}, {"graph": traced.data}, {})


def mismatch(traced: NetworkGraph, names: Sequence[str] | None = None) -> str:
    """Return where the degrees of the first candidate stop to fit, as a sentence."""
    graph = traced.graph
    tried = tuple(names) if names is not None else next(_candidates(graph), None)
    if tried is None:
        return "no trainable parameter enters the outputs linearly"
    try:
        annotation = kernel.degrees(graph, kernel.subset(graph, tried))
    except NotProved as error:
        return str(error)
    for index, node in enumerate(graph.nodes):
        if kernel.UNKNOWN in annotation[index] and all(kernel.UNKNOWN not in annotation[k] for k in node.refs()):
            place = f" in {node.module!r}" if node.module else ""
            return f"{node.base or node.op}{place} is not linear in {', '.join(tried[:4])}, or adds terms without them"
    return f"the outputs have degree {annotation[graph.outputs[0]][0]} in {', '.join(tried[:4])}"


def _candidates(graph: Graph) -> Iterator[tuple[str, ...]]:
    """Yield sets of parameters, by name, one for each combination of factors."""
    zero = [set(result) == {kernel.ZERO} for result in kernel.degrees(graph, set())]
    stack: list[tuple[int, Demands]] = [(len(graph.nodes) - 1, dict.fromkeys(graph.outputs, 1))]
    seen: set[tuple[str, ...]] = set()
    for _ in range(_TRIES):
        if not stack:
            return
        index, demands = stack.pop()
        while index >= 0 and demands:
            node = graph.nodes[index]
            if index in demands and not zero[index] and node.op not in ("parameter", "constant", "input"):
                first, *others = _alternatives(graph, node, demands[index]) or [{}]
                stack += [(index - 1, merged) for other in reversed(others) if (merged := _merge(demands, other, zero))]
                demands = _merge(demands, first, zero) or {}
            index -= 1
        names = _names(graph, demands)
        if names and names not in seen:
            seen.add(names)
            yield names


def _merge(demands: Demands, more: Demands, zero: Sequence[bool]) -> Demands | None:
    """Return demands together; None if they contradict each other."""
    merged = dict(demands)
    for index, degree in more.items():
        if not zero[index] and merged.setdefault(index, degree) != degree:
            return None
    return merged


def _names(graph: Graph, demands: Demands) -> tuple[str, ...]:
    leaves = {graph.nodes[k].args["leaf"] for k, p in demands.items() if p == 1 and graph.nodes[k].op == "parameter"}
    return tuple(node.args["name"] for node in graph.nodes if node.op == "parameter" and node.args["leaf"] in leaves)


def _alternatives(graph: Graph, node: Node, degree: int) -> list[Demands]:
    """Return what a degree of a node asks of its arguments: one demand of the alternatives has to be met."""
    free = dict.fromkeys(node.refs(), 0)
    if degree == 0:
        return [free]
    base, args = node.base, node.args
    if node.op == "getitem":
        return [{args["self"].node: 1}]
    if base in PRODUCTS or base == "scaled_dot_product_attention":
        factors, added = PRODUCTS.get(base, (("value",), ""))
        items = [item for name in factors for item in _members(args.get(name)) if isinstance(item, Ref)]
        items.sort(key=lambda item: graph.nodes[item.node].op != "parameter")
        sums = dict.fromkeys(node.refs(added), 1) if added else {}
        return [{**free, item.node: 1, **sums} for item in items]
    if base in _NORMS:
        shift = dict.fromkeys(node.refs("bias"), 1)
        scaled = [{**free, k: 1, **shift} for k in node.refs("weight")]
        return [*scaled, {**free, **dict.fromkeys(node.refs("input", "running_mean"), 1), **shift}]
    joined: tuple[str, ...] = JOINS.get(base, ())
    if base in LINEAR or base.endswith("dropout"):
        joined = (next((name for name in args if list(node.refs(name))), ""),)
    elif base in ("div", "divide", "true_divide", "pad") or (base == "pow" and args.get("exponent") == 1):
        joined = ("self",)
    elif base == "addcdiv":
        joined = ("self", "tensor1")
    return [{**free, **{k: 1 for name in joined for k in node.refs(name)}}] if joined else []


def _members(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)
