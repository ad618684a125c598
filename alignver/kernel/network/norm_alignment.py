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
from alignver.kernel.floats import definite_floor, gamma, lengths_up, norm_down, norm_up, product_error, spectral_up
from alignver.kernel.network import normwise
from alignver.kernel.network.graph import Graph, parse
from alignver.kernel.network.program import batches
from alignver.kernel.network.radii import Rows

MOST_ENTRIES = 1 << 28
"""Entries of the largest Jacobian that is formed: 2 GiB."""

_UNDERFLOW = Fraction(2) ** -900  # more than entries lose to underflow, when they are scaled or in a product


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The gradients of all outputs in one parameter: a matrix, or outer products of the rows of two.

    Attributes
    ----------
    g : (groups, N, w)
        The gradients themselves, in one group, or the second factors.
    a : (groups, n, k) or None
        The first factors, which all outputs of a sample share.
    """

    g: Any
    a: Any = None

    @property
    def size(self) -> int:
        """The number of columns."""
        return int(self.g.shape[0] * self.g.shape[2] * (1 if self.a is None else self.a.shape[2]))

    @property
    def terms(self) -> int:
        """The roundings of an entry of the Gram matrix: of two inner products, a product, and the sum over groups."""
        return int(self.g.shape[2] + len(self.g) + (0 if self.a is None else self.a.shape[2] + 1))

    def squares(self) -> Any:
        """Return about the squares of the norms of the rows."""
        of_g = np.einsum("gnk,gnk->gn", self.g, self.g)
        if self.a is None:
            return of_g.sum(0)
        of_a = np.einsum("gnk,gnk->gn", self.a, self.a)
        return (of_g * np.tile(of_a, of_g.shape[1] // of_a.shape[1])).sum(0)

    def gram(self, scale: Any) -> tuple[Any, Fraction]:
        """Return the Gram matrix of scaled rows, and a bound of the sum of the squares of their norms."""
        total, square = 0.0, Fraction(0)
        for k, rows in enumerate(self.g):
            scaled = rows * scale[:, None]
            part = scaled @ scaled.T
            lengths = norm_up(scaled) + scaled.size * _UNDERFLOW
            if self.a is not None:
                a = self.a[k]
                require(norm_up(a) < 2**50, "factors of gradients that are too large")  # else more is lost to underflow
                copies = len(rows) // len(a)
                part *= np.tile(a @ a.T, (copies, copies))
                each = lengths_up(scaled) * np.tile(lengths_up(a), copies)
                lengths = norm_up(each) * (1 + gamma(2)) + scaled.size * _UNDERFLOW * (1 + norm_up(a))
            total = part if isinstance(total, float) else np.add(total, part, out=total)
            square += lengths**2
        return total, square

    def dense(self) -> Any:
        """Return the gradients themselves, (N, size)."""
        if self.a is None:
            return self.g[0]
        copies = self.g.shape[1] // self.a.shape[1]
        parts = [np.tile(a, (copies, 1))[:, :, None] * g[:, None, :] for a, g in zip(self.a, self.g, strict=True)]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class EnclosedJacobian:
    """A computed Jacobian and bounds of the errors of its rows.

    Attributes
    ----------
    blocks : list of Block
        The columns of each parameter, output by output.
    errors : (N,) array
        Bounds of the 2-norms of the rows of the exact Jacobian minus the computed one.
    """

    blocks: list[Block]
    errors: Any


def jacobian(graph: Graph, parameters: Any, x: Any, *, factored: bool = True) -> EnclosedJacobian:
    """Enclose the Jacobian of all outputs, output by output.

    Parameters
    ----------
    graph : Graph
    parameters : (p,) float64
        The values of the leaves.
    x : (n, k) float64
        Inputs, in batches of which the graph is evaluated; the last one is filled with copies of the last sample.
    factored : bool
        Keep the gradients of matrices that each sample multiplies by one row in factors: their columns are then up to
        a permutation, and their rounding, which the Gram matrix does not have, is not counted.

    Raises
    ------
    NotProved
        If an operation has no rule, a derivative is not decided, or the Jacobian is too large.
    """
    parts: dict[int, list[Block]] = {}
    errors, entries = [], 0
    for program, count in batches(graph, parameters, x):
        rows = program.samples
        columns = program.columns
        enclosed = normwise.gradients(program, normwise.forward(program), range(columns), factored=factored)
        squares: Any = 0.0
        for k, (gradient, error) in enclosed.items():
            if isinstance(gradient, Rows):  # of shapes (groups, rows, k) and (columns, groups, rows, w)
                g = np.ascontiguousarray(np.moveaxis(gradient.g, 0, 1)[:, :, :count])
                block = Block(g, np.ascontiguousarray(gradient.a[:, :count]))
            else:
                block = Block(np.ascontiguousarray(gradient.reshape(1, columns, rows, -1)[:, :, :count]))
            parts.setdefault(program.steps[k].args["leaf"], []).append(block)
            entries += block.g.size + (0 if block.a is None else block.a.size)
            squares = squares + error[:, :count] ** 2
        require(entries <= MOST_ENTRIES, f"a Jacobian of more than {MOST_ENTRIES} entries is not formed")
        errors.append(np.sqrt(squares) * (1.0 + (len(enclosed) + 8) * 2.0**-52) + 2.0**-500)
    require(len(parts) > 0, "the outputs do not depend on a trainable parameter")
    return EnclosedJacobian([_joined(part) for part in parts.values()], np.concatenate(errors, axis=1).reshape(-1))


def _joined(parts: list[Block]) -> Block:
    """Join the blocks of batches, whose gradients have the shape (groups, columns, rows, w)."""
    g = np.concatenate([part.g for part in parts], axis=2)
    a = None if parts[0].a is None else np.concatenate([part.a for part in parts], axis=1)
    return Block(g.reshape(len(g), -1, g.shape[-1]), a)


def _powers(sizes: Any) -> Any:
    """Return powers of two that bring numbers close to 1; 1 for zeros."""
    return np.where(sizes > 0.0, np.exp2(-np.clip(np.frexp(sizes)[1], -400, 400)), 1.0)


def scaled_gram(J: EnclosedJacobian) -> tuple[Any, Any, Fraction, Fraction]:
    """Return the computed Gram matrix of scaled rows, their scales, its trace and its rounding error, bounded.

    An entry undergoes as many roundings as the largest block has terms, and one for each block.
    """
    squares = sum(block.squares() for block in J.blocks)
    scale = _powers(np.sqrt(squares))
    M, square = None, Fraction(0)
    for block in J.blocks:
        part, more = block.gram(scale)
        M = part if M is None else np.add(M, part, out=M)
        square += more
    assert M is not None
    require(bool(np.isfinite(M).all()), "a Gram matrix that is not finite")
    terms = max(block.terms for block in J.blocks) + len(J.blocks)
    return M, scale, square, product_error(terms, square, Fraction(1), M.size) + M.size * terms * _UNDERFLOW


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
    require(len(J.errors) == N, "the targets do not have as many entries as the outputs")
    M, scale, square, noise = scaled_gram(J)
    require(math.isfinite(shift) and shift > 0.0, "the shift is not a positive number")
    floor = definite_floor(lambda r, c: M[r, c].copy(), N, square + noise, noise, Fraction(shift), run)
    smallest = exact.sqrt_down(floor)
    delta = norm_up(J.errors * scale) + N * sum(block.size for block in J.blocks) * _UNDERFLOW
    require(smallest > delta, "the smallest singular value is below the error of the Jacobian")
    target = y * scale
    x = np.linalg.solve(M, target)
    require(bool(np.isfinite(x).all()), "the solution is not finite")
    size, length, residual = norm_up(x), norm_up(target), target - M @ x
    eta = 2 * exact.sqrt_up(square) * delta + delta**2 + noise
    error = gamma(N + 2) * (length + norm_up(M) * size) + N * N * _UNDERFLOW
    rho = norm_up(residual) + error + eta * size
    product = Fraction(float(target @ x))
    slack = gamma(N) * length * size + N * _UNDERFLOW * (1 + size) + size * rho
    return max(product - slack, Fraction(0)), product + slack + (rho / (smallest - delta)) ** 2, smallest


def misaligned(J: EnclosedJacobian, y: Any, shift: float, run: Any = map) -> Fraction:
    """Prove that y is outside of the column space, and return a bound of its distance from below."""
    N = len(y)
    A = np.concatenate([block.dense() for block in J.blocks], axis=1)
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
    inside = certificate.claim == "network-alignment"
    J = jacobian(parse(certificate.data["graph"]), inputs["parameters"][0], inputs["x"], factored=inside)
    if not inside:
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
