r"""Safe exploration of a network: gates q for its exact features, which are enclosed row by row.

The exact features are :math:`\hat Z + E`, with a computed matrix and :math:`\|e_i\| \le \delta` proved for each row, so
they are among the matrices for which the staircase of the computed ones is proved.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from alignver.kernel import exploration
from alignver.kernel.certificate import seal
from alignver.kernel.exact import number
from alignver.kernel.failure import require
from alignver.kernel.machine import require_ieee
from alignver.kernel.network import normwise
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import compiled, unpacked
from alignver.kernel.network.tape import Program
from alignver.kernel.snapshot import Rows


class Features:
    """The features of a network, batch by batch.

    Parameters
    ----------
    graph : Graph
        Its outputs are the features, (rows, m).
    parameters : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Inputs, in batches of which the graph is evaluated; the last one is filled with copies of the last sample.

    Attributes
    ----------
    starts : range
        The first sample of each batch.
    m : int
        The number of features of a sample.

    Raises
    ------
    NotProved
        If an operation has no rule, or the inputs have the wrong shape.
    """

    def __init__(self, graph: Graph, parameters: Any, x: Any) -> None:
        inputs = [node.out[0] for node in graph.nodes if node.op == "input"]
        require(len(inputs) == 1 and len(inputs[0][1]) >= 1, "a graph without inputs, or with several")
        _, shape = inputs[0]
        self._shape, self._x, self._graph = shape, x, graph
        require(len(x) >= 1 and shape[0] >= 1 and x.shape[1] == math.prod(shape[1:]), "inputs of the wrong shape")
        self._values = unpacked(graph, parameters)
        self.starts = range(0, len(x), shape[0])
        self._first = compiled(graph, self._values, self._batch(0))
        self._fixed = None if self._first.decided else normwise.constants(self._first)
        self.m = self._first.columns

    def _batch(self, start: int) -> Any:
        rows = self._shape[0]
        return self._x[np.minimum(np.arange(start, start + rows), len(self._x) - 1)].reshape(self._shape)

    def _program(self, start: int) -> Program:
        if self._first.decided:
            return compiled(self._graph, self._values, self._batch(start))
        steps = tuple(
            dataclasses.replace(step, args={**step.args, "value": self._batch(start)}) if step.kind == "input" else step
            for step in self._first.steps
        )
        return dataclasses.replace(self._first, steps=steps)

    def enclose(self, start: int) -> tuple[Any, Any]:
        """Return the features of a batch, and bounds of the 2-norms of the errors of its rows."""
        require_ieee()  # in this thread
        count = min(self._shape[0], len(self._x) - start)
        (output,) = normwise.forward(self._program(start), keep=False, fixed=self._fixed)
        return output.value.reshape(len(output.value), -1)[:count], output.error[:count]


def _staircase(certificate: Any, inputs: Any, run: Any) -> str:
    """The features are enclosed again, and the staircase is proved for every matrix within their errors."""
    constants, data = certificate.constants, certificate.data
    require(constants["add_constant"] is True, "the features of a network have no constant of their own")
    require(all(type(constants[name]) is int for name in ("rank", "width")), "rank or width are not numbers")
    features = Features(parse(data["graph"]), inputs["parameters"][0], inputs["x"])
    Z, errors = np.empty((len(inputs["x"]), features.m)), []
    first = features.enclose(0)  # computes the norms of the operators, which are remembered
    others = run(features.enclose, features.starts[1:])
    for start, (rows, error) in zip(features.starts, itertools.chain([first], others), strict=True):
        Z[start : start + len(rows)] = rows
        errors.append(error)
    delta = number(constants, "delta")
    require(float(np.concatenate(errors).max()) <= delta, "the errors of the features exceed delta")
    parts = {name: data[name] for name in ("direction", "thresholds", "floors")}
    inner = seal("exploration", "staircase", {"Z": Z}, parts, constants, version=certificate.version)
    prove = exploration.METHODS["exploration", "staircase"]
    return f"the features were enclosed again; {prove(inner, Rows(Z, True), run, lambda steps, label: steps)}"


METHODS = {("network-exploration", "staircase"): _staircase}
