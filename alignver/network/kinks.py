"""A proof that a model is not analytic in its parameters: a kink that is crossed, and that the outputs feel.

The bias in front of a kink is moved through 0, with weights 0 beside it: the argument of the kink is then the same for
every input. All other weights are 1 and all other biases large, so that later kinks are passed on their linear side.
"""

from __future__ import annotations

from collections.abc import Mapping

from alignver.kernel import Certificate, seal
from alignver.kernel.failure import NotProved
from alignver.kernel.network.degrees import subset
from alignver.kernel.network.graph import Graph, Node, Ref
from alignver.kernel.network.kinks import bent_output
from alignver.kernel.network.methods import domain_gaps
from alignver.kernel.network.operators import COPIES, words
from alignver.network.trace import NetworkGraph

__all__ = ["refute_analytic"]

_KINKS = words("relu leaky_relu abs clamp clamp_min hardtanh relu6")
_TRIES = 20  # kinks, from the outputs
_LARGE = 2.0**20


def refute_analytic(traced: NetworkGraph) -> tuple[Certificate, int] | None:
    """Return a certificate that the outputs are not analytic in theta, and the kink; None if this is not proved.

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
