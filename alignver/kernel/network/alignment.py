r"""Alignment of a network with its targets, in balls: the claims, and what proves them.

The Gram matrix :math:`M = J J^\top` of the exact Jacobian is positive semidefinite. If its balls contain no singular
matrix, it is positive definite, J has full row rank, and every target is in the column space of J. The smallest
parameters that give y have the norm :math:`\kappa = (y^\top M^{-1} y)^{1/2}`. If instead :math:`[J\; y]^\top [J\; y]`
contains no singular matrix, y is linearly independent of the columns of J, and is not in their span.

The Jacobian of a network of sums, products and piecewise linear functions has dyadic entries: with enough bits its
balls have no width, and the ranks of J and [J y] are computed in integers: if they differ, y is not in their span.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.kernel.exact import indices
from alignver.kernel.failure import require
from alignver.kernel.network import ball_matrices, balls
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import batches

__all__ = ["METHODS", "MOST_EXACT", "ends", "exact_rank", "full_row_rank", "independent", "jacobian"]

MOST_EXACT = 2**16
"""Largest number of entries of a Jacobian whose rank is computed in integers."""


def jacobian(graph: Graph, theta: Any, x: Any) -> list[balls.Leaf]:
    """Return the gradients of all outputs, output by output, in the precision of the context.

    Parameters
    ----------
    graph : Graph
    theta : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Inputs, in batches of which the graph is evaluated; the last one is filled with copies of the last sample.
    """
    gradients = []
    for program, _ in batches(graph, theta, x):
        state = balls.values(program)
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
    require(len(M) == N, "the targets have another number of entries than the outputs")
    return M, ball_matrices.definite(M)


def independent(leaves: list[balls.Leaf], y: Any) -> Any:
    """Return the ball of the squared distance of y from the columns of J, of which those that differ are independent.

    Columns that are zero are left out, and those that are the same gradients as another one, as of two biases of a sum.
    """
    J = balls.columns(leaves)
    different = {tuple(map(id, column)): k for k, column in enumerate(J.T)}  # one object is one number
    J = J[:, [k for k in different.values() if any(entry != 0 or not entry.is_exact() for entry in J[:, k])]]
    require(len(J) == len(y), "the targets have another number of entries than the outputs")
    require(J.shape[1] < len(y), "J has at least as many columns as rows, which are not zero")
    return ball_matrices.squared_distance(J, y)


def exact_rank(J: Any, y: Any) -> tuple[int, bool]:
    """Return the rank of a Jacobian whose balls have no width, and whether y is in its column space.

    Raises
    ------
    NotProved
        If a ball has a width.
    """
    require(len(J) == len(y), "the targets have another number of entries than the outputs")
    require(J.size <= MOST_EXACT, "the Jacobian is too large for integers")
    rank = ball_matrices.rank(J)
    return rank, rank == ball_matrices.rank(np.concatenate([J, balls.exactly(y)[:, None]], axis=1))


def ends(square: Any) -> tuple[float, float]:
    """Return floats below and above the root of a ball."""
    low, high = (float(end) for end in (balls.root(square).lower(), balls.root(square).upper()))
    return max(0.0, math.nextafter(low, 0.0)), math.nextafter(high, math.inf)


def _evaluated(certificate: Any, inputs: Any) -> list[balls.Leaf]:
    return jacobian(parse(certificate.data["graph"]), inputs["parameters"][0], inputs["x"])


def _aligned(certificate: Any, inputs: Any) -> str:
    """The balls of M are invertible, and kappa is between the given numbers."""
    require(set(certificate.constants) == {"bits", "kappa"}, "other numbers are stated than are proved")
    bits, (low, high) = certificate.constants["bits"], certificate.constants["kappa"]
    with balls.precision(bits):
        square = full_row_rank(_evaluated(certificate, inputs), len(inputs["y"]))[1].form(inputs["y"])
        require(all(type(end) is float for end in (low, high)), "kappa has ends that are no floats")
        inside = low >= 0.0 and ball_matrices.between(square, low, high)
    require(inside, "kappa is not proved to be between the given numbers")
    return f"the Gram matrix of the network's Jacobian is positive definite, in balls of {bits} bits"


def _misaligned(certificate: Any, inputs: Any) -> str:
    """The columns of [J y] are linearly independent, and y is further away than stated."""
    require(set(certificate.constants) == {"bits", "distance"}, "other numbers are stated than are proved")
    bits, least = certificate.constants["bits"], certificate.constants["distance"]
    require(type(least) is float and least >= 0.0, "the distance is not a number")
    with balls.precision(bits):
        square = independent(_evaluated(certificate, inputs), inputs["y"])
        require(ball_matrices.between(square, least, math.inf), "the distance is not proved")
    return f"y and the columns of the network's Jacobian are linearly independent, in balls of {bits} bits"


def _misaligned_exactly(certificate: Any, inputs: Any) -> str:
    """J has dyadic entries, and a smaller rank than [J y]; some columns that are a basis give the distance of y."""
    require(set(certificate.constants) == {"bits", "distance"}, "other numbers are stated than are proved")
    bits, least = certificate.constants["bits"], certificate.constants["distance"]
    require(type(least) is float and least >= 0.0, "the distance is not a number")
    with balls.precision(bits):
        J = balls.columns(_evaluated(certificate, inputs))
        rank, inside = exact_rank(J, inputs["y"])
        require(not inside, "y is in the column space of J")
        basis = indices(certificate.data["basis"], J.shape[1])
        require(len(basis) == rank, "a basis of another number of columns than the rank")
        require(
            ball_matrices.between(ball_matrices.squared_distance(J[:, basis], inputs["y"]), least, math.inf),
            "no such distance",
        )
    return f"the network's Jacobian has rank {rank} in exact arithmetic, and with y as a column a larger one"


METHODS = {
    ("network-alignment", "balls"): _aligned,
    ("network-misalignment", "balls"): _misaligned,
    ("network-misalignment", "exact"): _misaligned_exactly,
}
