"""The parameters of a graph as one vector, and the program of a graph for a batch of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import alignver.kernel.network.normalization
import alignver.kernel.network.operations
import alignver.kernel.network.pooling
import alignver.kernel.network.recurrent  # noqa: F401  # the rules of the operators
from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Parameters
from alignver.kernel.network.graph import FLOATS, Graph
from alignver.kernel.network.tape import Program

_MOST_INTEGER = 2**53


def unpacked(graph: Graph, theta: Any) -> Parameters:
    """Return the values of the leaves of a graph from one vector that has them in the order of the nodes."""
    values, place = {}, 0
    for index, node in enumerate(graph.nodes):
        if node.op in ("parameter", "constant"):
            dtype, shape = node.out[0]
            size = math.prod(shape)
            part = theta[place : place + size].reshape(shape)
            require(part.size == size, "theta does not have the entries of the graph")
            if dtype not in FLOATS:
                whole = bool((part == np.rint(part)).all()) and bool((np.abs(part) <= _MOST_INTEGER).all())
                require(whole, "theta has fractions where the graph has integers")
                part = part.astype(bool if dtype == "bool" else np.int64)
            values[index] = part
            place += size
    require(place == theta.size, "theta does not have the entries of the graph")
    return values


def compiled(graph: Graph, parameters: Parameters, x: Any) -> Program:
    """Return the program of a graph for a batch of inputs of its shape.

    Raises
    ------
    NotProved
        For operators and arguments that are not known; samples that are joined; undecided integers.
    """
    return Compiler(graph, parameters).compiled(x)


def batches(graph: Graph, theta: Any, x: Any) -> Iterator[tuple[Program, int]]:
    """Yield the program of each batch of inputs (n, k), and its samples: the last one is filled with copies."""
    shapes = [node.out[0][1] for node in graph.nodes if node.op == "input"]
    require(len(shapes) == 1 and len(shapes[0]) >= 1, "the network does not have exactly one input")
    rows, *rest = shapes[0]
    require(len(x) >= 1 and rows >= 1 and x.shape[1] == math.prod(rest), "the inputs have the wrong shape")
    parameters = unpacked(graph, theta)
    for start in range(0, len(x), rows):
        places = np.minimum(np.arange(start, start + rows), len(x) - 1)
        yield compiled(graph, parameters, x[places].reshape(rows, *rest)), min(rows, len(x) - start)
