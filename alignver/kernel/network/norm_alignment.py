r"""Alignment of a network with its targets, from norm-wise enclosures in float64.

The exact Jacobian is :math:`J = \hat J + E`, with a computed matrix and a proved bound :math:`\|E\|_F \le \delta`. Rows
are scaled by powers of two, which changes neither ranks nor kappa. Let :math:`\lambda` be below the smallest eigenvalue
of :math:`\hat J \hat J^\top`. If :math:`\delta^2 < \lambda`, J has full row rank, and for every vector x

.. math:: |\kappa^2 - y^\top x| \le \|x\| \rho + \rho^2 / (\sqrt\lambda - \delta)^2, \qquad \rho \ge \|y - J J^\top x\|.

Proof: :math:`y^\top G^{-1} y = y^\top x + x^\top r + r^\top G^{-1} r` with :math:`r = y - G x`. If the columns have a
smallest singular value :math:`s > \delta`, then for every :math:`\beta` and :math:`r = y - \hat J \beta`

.. math:: \mathrm{dist}(y, \mathrm{Col}\,J) \ge \|r\| - \|\hat J^\top r\| / s - \delta \|y\| / (s - \delta) .
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel import exact
from alignver.kernel.failure import require
from alignver.kernel.floats import definite_floor, gamma, norm_down, norm_up, product_error, spectral_up
from alignver.kernel.network import normwise
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import compiled, unpacked

__all__ = ["METHODS", "MOST_ENTRIES", "EnclosedJacobian", "aligned", "jacobian", "misaligned"]

MOST_ENTRIES = 1 << 28
"""Entries of the largest Jacobian that is formed: 2 GiB."""

_UNDERFLOW = Fraction(2) ** -1000  # more than an entry loses to underflow, when it is scaled or in a product


@dataclasses.dataclass(frozen=True, eq=False)
class EnclosedJacobian:
    """A computed Jacobian and bounds of the errors of its rows.

    Attributes
    ----------
    blocks : list of (N, size) arrays
        The columns of each parameter, output by output.
    errors : (N,) array
        Bounds of the 2-norms of the rows of the exact Jacobian minus the computed one.
    """

    blocks: list[Any]
    errors: Any


def jacobian(graph: Graph, parameters: Any, x: Any) -> EnclosedJacobian:
    """Enclose the Jacobian of all outputs, output by output.

    Parameters
    ----------
    graph : Graph
    parameters : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Inputs, in batches of which the graph is evaluated; the last one is filled with copies of the last sample.

    Raises
    ------
    NotProved
        If an operation has no rule, a derivative is not decided, or the Jacobian is too large.
    """
    rows, *rest = next(node.out[0][1] for node in graph.nodes if node.op == "input")
    require(len(x) >= 1 and rows >= 1 and x.shape[1] == math.prod(rest), "the inputs have another shape")
    values = unpacked(graph, parameters)
    parts: dict[int, list[Any]] = {}
    errors = []
    for start in range(0, len(x), rows):
        count = min(rows, len(x) - start)
        batch = x[np.minimum(np.arange(start, start + rows), len(x) - 1)].reshape(rows, *rest)
        program = compiled(graph, values, batch)
        trainable = sum(step.size for step in program.steps if step.args.get("trainable"))
        entries = len(x) * program.columns * trainable
        require(0 < entries <= MOST_ENTRIES, f"a Jacobian of {entries} entries is not formed")
        found = normwise.gradients(program, normwise.forward(program), range(program.columns))
        squares: Any = 0.0
        for k, (gradient, error) in found.items():
            flat = gradient.reshape(program.columns, rows, -1)[:, :count]
            parts.setdefault(program.steps[k].args["leaf"], []).append(flat)
            squares = squares + error[:, :count] ** 2
        errors.append(np.sqrt(squares) * (1.0 + (len(found) + 8) * 2.0**-52) + 2.0**-500)
    blocks = [
        np.ascontiguousarray(np.concatenate(part, axis=1).reshape(-1, part[0].shape[2])) for part in parts.values()
    ]
    return EnclosedJacobian(blocks, np.concatenate(errors, axis=1).reshape(-1))


def _powers(sizes: Any) -> Any:
    """Return powers of two that bring numbers close to 1; 1 for zeros."""
    return np.where(sizes > 0.0, np.exp2(-np.clip(np.frexp(sizes)[1], -900, 900)), 1.0)


def aligned(J: EnclosedJacobian, y: Any, shift: float, run: Any = map) -> tuple[Fraction, Fraction, Fraction]:
    """Prove full row rank; return bounds of kappa^2 from below and above, and of the smallest singular value.

    Parameters
    ----------
    J : EnclosedJacobian
    y : (N,) float64
    shift : float
        The bound of the smallest eigenvalue of the scaled Gram matrix that is to be proved.
    """
    N = len(y)
    require(len(J.errors) == N, "the targets have another number of entries than the outputs")
    M, scale, square = scaled_gram(J)
    columns = sum(block.shape[1] for block in J.blocks) + len(J.blocks)
    noise = product_error(columns, square, Fraction(1), N * N)
    require(math.isfinite(shift) and shift > 0.0, "the shift is not a positive number")
    floor = definite_floor(lambda r, c: M[r, c].copy(), N, square + noise, noise, Fraction(shift), run)
    smallest, delta = exact.sqrt_down(floor), norm_up(J.errors * scale) + N * columns * _UNDERFLOW
    require(smallest > delta, "the smallest singular value is below the error of the Jacobian")
    target = y * scale
    x = np.linalg.solve(M, target)
    require(bool(np.isfinite(x).all()), "the solution is not finite")
    size = norm_up(x)
    residual = target - M @ x
    eta = 2 * exact.sqrt_up(square) * delta + delta**2 + noise
    rho = (
        norm_up(residual) + gamma(N + 2) * (norm_up(target) + norm_up(M) * size) + N * Fraction(2) ** -900 + eta * size
    )
    product = Fraction(float(target @ x))
    slack = gamma(N) * norm_up(target) * size + N * Fraction(2) ** -900 + size * rho
    return max(product - slack, Fraction(0)), product + slack + (rho / (smallest - delta)) ** 2, smallest


def scaled_gram(J: EnclosedJacobian) -> tuple[Any, Any, Fraction]:
    """Return the computed Gram matrix of the scaled rows, their scales, and a bound of the sum of its diagonal."""
    squares = sum(np.einsum("nk,nk->n", block, block) for block in J.blocks)
    scale = _powers(np.sqrt(squares))
    M, total = np.zeros((len(scale), len(scale))), Fraction(0)
    for block in J.blocks:
        rows = block * scale[:, None]
        require(bool(np.isfinite(rows).all()), "a Jacobian with entries that are not finite")
        M += rows @ rows.T
        total += (norm_up(rows) + rows.size * _UNDERFLOW) ** 2
    return M, scale, total


def misaligned(J: EnclosedJacobian, y: Any, shift: float, run: Any = map) -> Fraction:
    """Prove that y is outside of the column space, and return a bound of its distance from below."""
    N = len(y)
    A = np.concatenate(J.blocks, axis=1)
    d = A.shape[1]
    require(len(J.errors) == N and d < N, "J has at least as many columns as rows")
    delta, square = norm_up(J.errors), norm_up(A) ** 2
    noise = product_error(N, square, Fraction(1), d * d)
    require(math.isfinite(shift) and shift > 0.0, "the shift is not a positive number")
    floor = definite_floor(lambda r, c: A[:, r].T @ A[:, c], d, square + noise, noise, Fraction(shift), run)
    smallest = exact.sqrt_down(floor)
    require(smallest > delta, "the smallest singular value is below the error of the Jacobian")
    beta = np.linalg.lstsq(A, y, rcond=None)[0]
    residual = y - A @ beta
    size = norm_up(y)
    error = gamma(d + 2) * (size + spectral_up(np.abs(A)) * norm_up(beta)) + N * d * _UNDERFLOW
    across = norm_up(A.T @ residual) + product_error(N, exact.sqrt_up(square), norm_up(residual), d)
    across += exact.sqrt_up(square) * error
    distance: Fraction = norm_down(residual) - error - across / smallest - delta * size / (smallest - delta)
    require(distance > 0, "y is not proved to be away from the column space")
    return distance


def _proved(certificate: Any, inputs: Any) -> str:
    """The enclosures are computed again, and prove what is claimed."""
    constants = certificate.constants
    J = jacobian(parse(certificate.data["graph"]), inputs["parameters"][0], inputs["x"])
    if certificate.claim == "network-misalignment":
        distance = misaligned(J, inputs["y"], constants["shift"])
        least = constants["distance"]
        require(type(least) is float and 0.0 <= least <= distance, "the distance is not proved")
        return "the columns of the network's Jacobian are independent and y is away from them, in float64"
    lower, upper, _ = aligned(J, inputs["y"], constants["shift"])
    low, high = constants["kappa"]
    numbers = type(low) is float and type(high) is float and 0.0 <= low <= high
    require(numbers and Fraction(low) ** 2 <= lower, "kappa is not proved to be between the given numbers")
    require(high == math.inf or upper <= Fraction(high) ** 2, "kappa is not proved to be between the given numbers")
    return "the Gram matrix of the network's Jacobian is positive definite, in float64 with proved radii"


METHODS = {("network-alignment", "norms"): _proved, ("network-misalignment", "norms"): _proved}
