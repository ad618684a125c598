r"""Alignment of a network with its targets, in balls: the claims, and what proves them.

The Gram matrix :math:`M = J J^\top` of the exact Jacobian is positive semidefinite. If its balls contain no singular
matrix, it is positive definite, J has full row rank, and every target is in the column space of J. The smallest
parameters that give y have the norm :math:`\kappa = (y^\top M^{-1} y)^{1/2}`. If instead :math:`[J\; y]^\top [J\; y]`
contains no singular matrix, y is linearly independent of the columns of J, and is not in their span.

A Jacobian of neither full row rank nor full column rank is reduced: rows and columns that are exact combinations of
others (:mod:`alignver.kernel.network.dependences`) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from alignver.kernel.exact import indices
from alignver.kernel.failure import require
from alignver.kernel.network import ball_matrices, balls
from alignver.kernel.network.dependences import Dependences, Ring
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import batches

MOST_EXACT = 2**16
"""Largest number of entries of a Jacobian whose dependences are computed in integers."""


def jacobian(graph: Graph, theta: Any, x: Any, numbers: Callable[[Any], Any] = balls.exactly) -> list[balls.Leaf]:
    """Return the gradients of all outputs, output by output, in the precision of the context.

    Parameters
    ----------
    graph : Graph
    theta : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Inputs, in batches of which the graph is evaluated; the last one is filled with copies of the last sample.
    numbers : callable
        As in :func:`~alignver.kernel.network.balls.values`.
    """
    gradients = []
    for program, _ in batches(graph, theta, x):
        state = balls.values(program, numbers)
        gradients.append([balls.shares(program, state, column) for column in range(program.columns)])
    return balls.joined(gradients, len(x))


def full_row_rank(leaves: list[balls.Leaf], N: int) -> tuple[Any, ball_matrices.Definite]:
    r"""Return M, and what proves that it is positive definite.

    Raises
    ------
    NotProved
        If the balls of M may contain a singular matrix.
    """
    M = balls.gram(leaves)
    require(len(M) == N, "the targets do not have as many entries as the outputs")
    return M, ball_matrices.definite(M)


def independent(leaves: list[balls.Leaf], y: Any) -> Any:
    """Return the ball of the squared distance of y from the columns of J, of which those that differ are independent.

    Columns that are zero are left out, and those that are the same gradients as another one, as of two biases of a sum.
    """
    J = balls.columns(leaves)
    different = {tuple(map(id, column)): k for k, column in enumerate(J.T)}  # one object is one number
    J = J[:, [k for k in different.values() if any(entry != 0 or not entry.is_exact() for entry in J[:, k])]]
    require(len(J) == len(y), "the targets do not have as many entries as the outputs")
    require(J.shape[1] < len(y), "J has at least as many nonzero columns as rows")
    return ball_matrices.squared_distance(J, y)


def dependences(graph: Graph, theta: Any, x: Any, N: int) -> Dependences:
    """Return the Jacobian with the exact dependences of its N rows and its columns; arguments as :func:`jacobian`."""
    ring = Ring()
    J = balls.columns(jacobian(graph, theta, x, ring.exactly))
    require(len(J) == N, "the targets do not have as many entries as the outputs")
    require(J.size <= MOST_EXACT, "the Jacobian is too large for ranks in integers")
    return Dependences(J, ring)


def ends(square: Any) -> tuple[float, float]:
    """Return floats below and above the root of a ball."""
    low, high = (float(end) for end in (balls.root(square).lower(), balls.root(square).upper()))
    if square == 0:
        return 0.0, 0.0
    return max(0.0, math.nextafter(low, 0.0)), math.nextafter(high, math.inf)


def _stated(certificate: Any, name: str) -> tuple[int, Any]:
    """Return the precision and the other number of a certificate."""
    require(set(certificate.constants) == {"bits", name}, "the stated numbers are not those that are proved")
    return certificate.constants["bits"], certificate.constants[name]


def _arguments(certificate: Any, inputs: Any) -> tuple[Graph, Any, Any]:
    return parse(certificate.data["graph"]), inputs["parameters"][0], inputs["x"]


def _aligned(certificate: Any, inputs: Any) -> str:
    """J has full row rank, or rows of which the others with y are exact combinations; kappa is between the numbers."""
    (bits, (low, high)), y = _stated(certificate, "kappa"), inputs["y"]
    require(type(low) is type(high) is float and low >= 0.0, "the ends of kappa are not floats")
    with balls.precision(bits):
        if certificate.method == "exact":
            J = dependences(*_arguments(certificate, inputs), len(y))
            basis = indices(certificate.data["basis"], len(y))
            square = J.reached(y, basis)
            by = (
                f"y is a combination of the columns of the network's Jacobian by exact dependences of {len(basis)} rows"
            )
        else:
            square = full_row_rank(jacobian(*_arguments(certificate, inputs)), len(y))[1].form(y)
            by = "the Gram matrix of the network's Jacobian is positive definite"
        require(ball_matrices.between(square, low, high), "kappa is not proved to be between the given numbers")
    return f"{by}, in balls of {bits} bits"


def _misaligned(certificate: Any, inputs: Any) -> str:
    """y is further away than stated from the columns of J, or from those of which the others are exact combinations."""
    (bits, least), y = _stated(certificate, "distance"), inputs["y"]
    require(type(least) is float and least >= 0.0, "the distance is not a number")
    with balls.precision(bits):
        if certificate.method == "exact":
            J = dependences(*_arguments(certificate, inputs), len(y))
            first = indices(certificate.data["first"], J.J.shape[1] + 1)
            require(len(first) == 1, "the number of columns is missing")
            square = J.missed(y, J.generators(first[0]))
            by = "vectors that generate the columns of the network's Jacobian, by exact dependences,"
        else:
            square = independent(jacobian(*_arguments(certificate, inputs)), y)
            by = "the columns of the network's Jacobian"
        require(ball_matrices.between(square, least, math.inf), "the distance is not proved")
    return f"y and {by} are linearly independent, in balls of {bits} bits"


METHODS = {("network-alignment", method): _aligned for method in ("balls", "exact")}
METHODS |= {("network-misalignment", method): _misaligned for method in ("balls", "exact")}
