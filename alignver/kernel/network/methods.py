"""The claims about a graph: the certificate contains the graph, and its annotation must be what the walk computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.analytic import Barrier, walk
from alignver.kernel.network.degrees import UNKNOWN, ZERO, degrees, subset
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.kinks import bent_output

_SHOWN = 6


def flat(annotation: list[tuple[int, ...]]) -> Any:
    """Return the degrees of all results of all nodes as one array."""
    return np.array([p for result in annotation for p in result], dtype=np.int64)


def described(graph: Graph, barrier: Barrier) -> str:
    """Return an operation with its place, and what is not proved about it."""
    node = graph.nodes[barrier.node]
    place = f" of {node.module!r}" if node.module else ""
    return f"{node.base or node.op}{place}: {barrier.reason}"


def domain_gaps(graph: Graph) -> list[Barrier]:
    """Return the nodes that may be undefined for some theta."""
    return [barrier for barrier in walk(graph)[1] if not barrier.defined]


def zero_excluded(graph: Graph) -> int | None:
    """Return an output that is analytic in theta and not 0 at theta = 0, for every input; None if none is proved so."""
    values = walk(graph, at=dict.fromkeys(graph.moving(), 0.0))[0]
    nonzero = [k for k in graph.outputs if values[k].range.nonzero and not values[k].masked]
    analytic = bool(nonzero) and not walk(graph)[1]  # for every theta: at 0 alone a kink may look constant
    return nonzero[0] if analytic and 0 not in graph.nodes[nonzero[0]].out[0][1] else None


def _common_structure(certificate: Any, inputs: Any, run: Any) -> str:
    r"""Every output has degree 1 in S, or is zero: then it is linear in S."""
    graph = parse(certificate.data["graph"])
    names, everywhere = tuple(certificate.constants["S"]), certificate.constants["everywhere"]
    require(all(isinstance(name, str) for name in names) and type(everywhere) is bool, "S or domain of the wrong kind")
    annotation = degrees(graph, subset(graph, names))
    stored = certificate.data["degrees"]
    require(bool(np.array_equal(stored, flat(annotation))), "the degrees are not those of the graph")
    for k in graph.outputs:
        require(UNKNOWN not in annotation[k] and set(annotation[k]) <= {1, ZERO}, "an output is not of degree 1 in S")
    gaps = domain_gaps(graph) if everywhere else []
    require(not gaps, f"it may be undefined for some theta: {described(graph, gaps[0])}" if gaps else "")
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    where = "for every theta" if everywhere else "for every theta at which the network is defined"
    return f"{len(graph.nodes)} nodes: the outputs are linear in S ({listed}), {where}"


def _no_structure(certificate: Any, inputs: Any, run: Any) -> str:
    """At theta = 0 every sum over S is 0, and an output is not."""
    graph = parse(certificate.data["graph"])
    output = zero_excluded(graph)
    require(output is not None, "no output is proved to be analytic in theta and nonzero at theta = 0")
    return f"{len(graph.nodes)} nodes: at theta = 0 an output is not 0, while every sum over S is"


def _analytic(certificate: Any, inputs: Any, run: Any) -> str:
    """Every operation on what depends on theta is analytic."""
    graph = parse(certificate.data["graph"])
    barriers = walk(graph)[1]
    require(not barriers, f"not proved: {described(graph, barriers[0])}" if barriers else "")
    return f"{len(graph.nodes)} nodes: every operation on what depends on theta is analytic, for every theta"


def _not_analytic(certificate: Any, inputs: Any, run: Any) -> str:
    """Along a line in theta the one-sided derivatives of an output differ."""
    graph = parse(certificate.data["graph"])
    theta, moved = certificate.constants["theta"], certificate.constants["moved"]
    require(moved in theta and all(type(value) is float for value in theta.values()), "theta of the wrong kind")
    subset(graph, tuple(theta))
    leaves = graph.leaves()
    at = {leaves[name]: value for name, value in theta.items()}
    require(all(at[leaves[name]] == value for name, value in theta.items()), "two values of one leaf")
    require(not domain_gaps(graph), "it may be undefined for some theta")
    require(bent_output(graph, at, leaves[moved]) is not None, "no output is proved to be bent along the line")
    return f"{len(graph.nodes)} nodes: along a line in {moved} the one-sided derivatives of an output differ"


def _enclosed(certificate: Any, inputs: Any, run: Any) -> str:
    """What is proved from enclosures of values and gradients."""
    from alignver.kernel.network import alignment, norm_alignment  # python-flint is loaded with them

    methods = alignment.METHODS | norm_alignment.METHODS
    return methods[certificate.claim, certificate.method](certificate, inputs)


def _explored(certificate: Any, inputs: Any, run: Any) -> str:
    """What is proved from enclosures of features."""
    from alignver.kernel.network import exploration

    return exploration.METHODS[certificate.claim, certificate.method](certificate, inputs, run)


def _minimized(certificate: Any, inputs: Any, run: Any) -> str:
    """What is proved from enclosures of outputs."""
    from alignver.kernel.network import optimality

    return optimality.METHODS[certificate.claim, certificate.method](certificate, inputs, run)


_LOSSES = dict.fromkeys(("network-optimality", "network-suboptimality"), ("parameters", "x", "Y"))
_ENCLOSED = dict.fromkeys(("network-alignment", "network-misalignment"), ("parameters", "x", "y"))
METHODS: dict[tuple[str, str], Callable[[Any, Any, Any], str]] = {
    ("common-structure", "degrees"): _common_structure,
    ("no-structure", "value at zero"): _no_structure,
    ("analytic", "operations"): _analytic,
    ("not-analytic", "one-sided derivatives"): _not_analytic,
    **dict.fromkeys([(claim, method) for claim in _ENCLOSED for method in ("balls", "norms")], _enclosed),
    ("network-alignment", "exact"): _enclosed,
    ("network-misalignment", "exact"): _enclosed,
    ("network-exploration", "staircase"): _explored,
    **dict.fromkeys([(claim, method) for claim in _LOSSES for method in ("balls", "norms")], _minimized),
}
STATED = {"network-misalignment": "distance"}
"""The number that a claim states in addition, and that its check proves."""
INPUTS: dict[str, tuple[str, ...]] = {claim: (_ENCLOSED | _LOSSES).get(claim, ()) for claim, _ in METHODS}
INPUTS["network-exploration"] = ("parameters", "x")
"""The inputs of each claim: none of those about all parameters; else the values of the leaves, one after the other, as
one row, the inputs (n, k) as they enter the graph, and the targets (n m_y,), of a loss (n, m_y)."""
