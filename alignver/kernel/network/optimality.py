r"""The training loss of a network, and its distance from the infimum: claims from enclosures of the outputs.

The network is evaluated once for each distinct row of x, and equal rows have the outputs of the first of them. So the
training loss is that of a function of the rows, at every theta, and

.. math:: \mathcal L(\theta) - \inf_{\theta'} \mathcal L(\theta') \le \mathcal L(\theta) - b

with the lower bound b of :func:`~alignver.kernel.data.least_loss`, which holds for every function of the rows. Other
values of parameters whose loss is smaller show that the left side exceeds a number.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.certificate import LOSSES
from alignver.kernel.data import canonical, digests_of, first_equal, least_loss
from alignver.kernel.exact import floats, number, rounded_up
from alignver.kernel.failure import require
from alignver.kernel.network import balls
from alignver.kernel.network.exploration import Features
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import batches
from alignver.kernel.optimality import loss_interval
from alignver.results import shown_down, shown_up


def distinct(x: Any) -> tuple[Any, Any]:
    """Return for each row of x the first equal row, and the rows that are the first of their kind."""
    first = first_equal(digests_of(canonical(x, "<f8")))
    return first, np.flatnonzero(first == np.arange(len(first)))


def without_gradients(graph: Graph) -> Graph:
    """Return a graph with frozen parameters: they may share memory, since no gradients are formed."""
    nodes = [
        dataclasses.replace(node, args={**node.args, "trainable": False}) if node.op == "parameter" else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def outputs(graph: Graph, parameters: Any, x: Any, bits: int | None, run: Any = map) -> tuple[Any, Any]:
    """Return the outputs (n, m_y) for the rows of x, and bounds of their errors, entry by entry.

    Parameters
    ----------
    graph : Graph
    parameters : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Of equal rows only the first is evaluated.
    bits : int or None
        The precision of balls; None for norm-wise enclosures in float64.

    Raises
    ------
    NotProved
        If an operation has no rule, is not decided, or the outputs are not finite.
    """
    graph, (first, rows) = without_gradients(graph), distinct(x)
    if bits is None:
        features = Features(graph, parameters, x[rows])
        head = features.enclose(0)  # computes the norms of the operators, which are remembered
        parts = list(itertools.chain([head], run(features.enclose, features.starts[1:])))
        f = np.concatenate([values for values, _ in parts])
        radius = np.repeat(np.concatenate([error for _, error in parts])[:, None], f.shape[1], axis=1)
    else:
        with balls.precision(bits):
            pairs = [
                [_as_float(ball) for ball in balls.values(program)[program.output].reshape(-1)[: count * columns]]
                for program, count in batches(graph, parameters, x[rows])
                for columns in [program.columns]
            ]
        grid = np.array(list(itertools.chain.from_iterable(pairs))).reshape(len(rows), -1, 2)
        f, radius = grid[..., 0], grid[..., 1]
    require(bool(np.isfinite(f).all() and np.isfinite(radius).all()), "an output is not finite")
    place = np.searchsorted(rows, first)
    return f[place], radius[place]


def _as_float(ball: Any) -> tuple[float, float]:
    """Return the float next to the centre of a ball, and how far the numbers of the ball may be from it."""
    centre = float(ball.mid())
    require(math.isfinite(centre), "an output overflows")
    return centre, math.nextafter(float((ball - balls.exactly(centre).item()).abs_upper()), math.inf)


def changed(graph: Graph, parameters: Any, values: dict[str, Any]) -> Any:
    """Return the values of the leaves after a change of trainable parameters, by name, none of which shares memory."""
    require(values.keys() <= graph.leaves().keys(), "a parameter that the graph does not have")
    result, place = parameters.copy(), 0
    leaves = [node.args["leaf"] for node in graph.nodes if node.op == "parameter"]
    for node in graph.nodes:
        if node.op not in ("parameter", "constant"):
            continue
        size = math.prod(node.out[0][1])
        if node.op == "parameter" and node.args["name"] in values:
            alone = leaves.count(node.args["leaf"]) == 1 and node.args["pure"] is True
            require(alone and node.args["trainable"] is True, "a parameter that cannot be changed alone")
            result[place : place + size] = floats(values[node.args["name"]], (size,), "other parameters")
        place += size
    return result


def _optimal(certificate: Any, inputs: Any, run: Any) -> str:
    """The loss is at most the gap above the bound for every function of the rows of x."""
    constants, Y = certificate.constants, inputs["Y"]
    gap, errors = number(constants, "gap"), constants["errors"]
    require(errors is None or (type(errors) is int and errors >= 0), "the training errors are not a number")
    _, upper, wrong = _loss(certificate, inputs, inputs["parameters"][0], run)
    floor = Fraction(least_loss(distinct(inputs["x"])[0], Y, constants["loss"])[0])
    require(upper - floor <= gap, f"the loss is only known to be at most {shown_up(rounded_up(upper), 6)}")
    cost = f"above what the data cost, {shown_down(float(floor), 6)} or more" if floor else "and never below 0"
    sentence = f"the outputs were enclosed again: the loss is at most {shown_up(rounded_up(gap), 6)} {cost}"
    if errors is not None:
        require(wrong is not None and wrong <= errors, f"{wrong} samples are not proved to be in their class")
        sentence += f"; {errors} training errors at most"
    return sentence


def _suboptimal(certificate: Any, inputs: Any, run: Any) -> str:
    """The loss exceeds that of other parameters by more than the gap."""
    names, data, theta = certificate.constants["changed"], certificate.data, inputs["parameters"][0]
    values = {name: data[f"better{k}"] for k, name in enumerate(names)}
    better = changed(parse(data["graph"]), theta, values)
    lower, _, _ = _loss(certificate, inputs, theta, run)
    _, upper, _ = _loss(certificate, inputs, better, run)
    gap = number(certificate.constants, "gap")
    require(lower - upper > gap, "the loss is not proved to exceed the smaller one by more than the gap")
    return f"the outputs were enclosed again: parameters better by more than {shown_down(float(gap), 6)} are given"


def _loss(certificate: Any, inputs: Any, theta: Any, run: Any) -> tuple[Fraction, Fraction, int | None]:
    loss, bits, Y = certificate.constants["loss"], certificate.constants["bits"], inputs["Y"]
    require(loss in LOSSES, "an unknown loss")
    require((bits is None) == (certificate.method == "norms"), "a precision that the method does not have")
    require(len(inputs["x"]) == len(Y), "x and Y differ in length")
    f, radius = outputs(parse(certificate.data["graph"]), theta, inputs["x"], bits, run)
    require(f.shape == Y.shape, "the targets do not have as many entries as the outputs")
    return loss_interval(f, radius, Y, loss)


METHODS = {("network-optimality", method): _optimal for method in ("norms", "balls")}
METHODS |= {("network-suboptimality", method): _suboptimal for method in ("norms", "balls")}
