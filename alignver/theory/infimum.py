r"""Newton's method for the exploitation phase, in the space of the outputs: n unknowns for each output, not h m.

The quadratic model of the loss at :math:`\theta`, with the gradients :math:`r_{ij} = \partial_j \ell_i` and a diagonal
matrix :math:`D_j` of curvatures, and damping :math:`\mu`:

.. math:: (A_j^\top D_j A_j + \mu I)\, p_j = -A_j^\top r_j

The push-through identity turns it into a system of order n with the Gram matrix :math:`G_j = A_j A_j^\top`, which
:math:`(S S^\top) \circ (Z Z^\top)` is, so that A_j is never formed:

.. math:: p_j = -A_j^\top E_j w_j, \qquad (E_j G_j E_j + \mu I)\, w_j = E_j^{-1} r_j, \qquad E_j = D_j^{1/2} .

Whatever positive D_j is, p is the negative gradient times a positive definite matrix: a descent direction (Assumption
7). Where A_j has rank n and :math:`\mu` is small the outputs move by :math:`-D_j^{-1} r_j`, whatever the condition of
A_j; the steps that gradient descent needs grow with its square.

How far the loss is from its infimum over the weights: bounds on both sides, numerically.

From above by any weights: better ones are looked for. From below always by the mean of :math:`\inf_q \ell_i(q)`, which
is exact where every :math:`A_j` has full row rank, since then the outputs can be anything. Otherwise by Fenchel
duality: :math:`\ell_i(q) \ge u_i^\top q - \ell_i^*(u_i)` for every :math:`u_i`, and the outputs of every theta satisfy
:math:`\sum_i u_i^\top f_i = \sum_j u_{*j}^\top A_j \theta_j = 0` where :math:`A_j^\top u_{*j} = 0`, so

.. math:: \inf_\theta \mathcal L(\theta) \ge -\frac1n \sum_i \ell_i^*(u_i) .

At a minimiser the gradients :math:`\nabla \ell_i(f_i)` are such a u, and the two sides meet: for the squared loss that
is the projection of Y. Close to one, the gradients are projected onto the null spaces.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize

from alignver.errors import InvalidInput
from alignver.features.products import gram
from alignver.linalg.least_squares import least_squares
from alignver.linalg.lsmr import lsmr
from alignver.progress import stage
from alignver.proof.rounding import FloatArray
from alignver.theory.descent import reference_points
from alignver.theory.exploitation import Exploitation, Objective

__all__ = ["Infimum", "NewtonStep", "better_weights", "dual_bound", "infimum", "newton_step"]
_REACH = 8.0
"""By how much an output moves at most in one step, beyond its own size: curvatures of saturated samples are nearly 0,
and full Newton steps there would go too far."""

_FLAT = 1e-3
"""The least curvature, as a share of the mean one: samples without any would be moved about by the others."""

_DAMPING = 2.0**-43
"""mu over the largest diagonal entry: above the rounding of a Gram matrix (n u), and no more."""


@dataclasses.dataclass(frozen=True, eq=False)
class NewtonStep:
    """A step of Newton's method with a line search.

    Attributes
    ----------
    weights : (m_y, h, m) float64
        Where it leads.
    size : float
        t of ``weights = theta + t p``; 0 where no step lowers the loss (rounding is reached).
    before, after : float
        The losses.
    """

    weights: FloatArray
    size: float
    before: float
    after: float


def newton_step(problem: Objective, weights: FloatArray, *, halvings: int = 40) -> NewtonStep:
    r"""Take one damped Newton step from ``weights``, shortened until it lowers the loss as its slope promises.

    Parameters
    ----------
    problem : Objective
        Its loss has to have a ``curvature``, as the three named ones have.
    weights : (m_y, h, m) array
    halvings : int
        How often the step is halved at most. Losses are those of outputs moved along a line, O(n m_y) each.

    Returns
    -------
    NewtonStep

    Raises
    ------
    InvalidInput
        A loss without curvatures.

    Notes
    -----
    Rigor: none is needed, the loss where it leads can be computed. Costs a Cholesky factorization of order min(n, h m)
    for each output. The squared loss with rank n needs one step, up to rounding; the cross-entropies gain a factor of
    about e a step, since margins grow by 1.

    Examples
    --------
    >>> from alignver.theory.exploitation import Exploitation
    >>> from alignver.theory.exploitation import objective
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> step = newton_step(objective(model, [3.0, -1.0], "squared"), np.zeros((1, 3, 2)))
    >>> step.before, bool(step.after < 1e-20), step.size
    (5.0, True, 1.0)
    """
    curvature = getattr(problem.loss, "curvature", None)
    if curvature is None:
        raise InvalidInput(
            "loss", f"{problem.loss.name!r} without a method curvature", "a loss with second derivatives"
        )
    model = problem.model
    outputs = model.outputs(weights)
    slopes = problem.loss.gradient(outputs, problem.targets)
    # No curvature exceeds L_l: with that one a step is safe however far it goes.
    careful = np.minimum(np.abs(slopes) / (_REACH + np.abs(outputs)), problem.loss.smoothness)
    D = np.maximum(curvature(outputs, problem.targets), careful)
    D = np.maximum(D, max(_FLAT * float(D.mean()), 1e-280))
    direction, change = np.zeros(model.shape), np.zeros_like(outputs)
    for j in range(model.m_y):
        operator = model.operator(j)
        way = -_solved(model, j, np.sqrt(D[:, j]), slopes[:, j])
        direction[j], change[:, j] = way.reshape(model.h, model.m), np.asarray(operator.matvec(way))
    before = problem.of_outputs(outputs)
    slope, size = float((slopes * change).sum()) / model.n, 1.0
    if slope < 0.0:
        for _ in range(halvings):
            with np.errstate(over="ignore", invalid="ignore"):
                after = problem.of_outputs(outputs + size * change)
            if after <= before + 1e-4 * size * slope:
                moved = weights + size * direction
                return NewtonStep(moved, size, before, problem.value(moved))
            size *= 0.5
    return NewtonStep(weights, 0.0, before, before)


def _solved(model: Exploitation, j: int, E: FloatArray, r: FloatArray) -> FloatArray:
    """Return -p_j: from the system of order n, or from that of order h m where there are fewer weights than samples."""
    if model.h * model.m < model.n:
        rows = model.dense(j) * E[:, None]
        return _damped(rows.T @ rows, rows.T @ (r / E))
    matrix = gram(model.Z, model.factors[j]) * E[:, None] * E
    return np.asarray(model.operator(j).rmatvec(E * _damped(matrix, r / E)))


def _damped(matrix: FloatArray, right: FloatArray) -> FloatArray:
    """Solve (matrix + mu I) x = right; with more damping where rounding makes the matrix indefinite."""
    largest = max(float(matrix.diagonal().max()), 1e-280)
    for damping in (_DAMPING, 2.0**-36, 2.0**-26):
        damped = matrix.copy()
        damped.flat[:: len(matrix) + 1] += damping * largest
        try:
            solution: FloatArray = cho_solve(cho_factor(damped, lower=True, overwrite_a=True), right)
        except LinAlgError:
            continue
        return solution
    # 2^-26 covers the rounding of any order below 2^26: only an overflow ends here.
    return np.zeros_like(right)


_DENSE = 20_000_000
"""Entries of A_j up to which its singular vectors are computed; beyond, LSMR projects."""

_OUTSIDE = 1e-9
"""How far a dual point may leave the domain of a conjugate before it is put back: projections are rounded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Infimum:
    r"""What is known of :math:`\inf_\theta \mathcal L`, numerically.

    Attributes
    ----------
    lower, upper : float
    how : str
        What gave the lower bound: ``"samples"`` (the mean of the samples' infima) or ``"dual"``.
    weights : (m_y, h, m) float64
        With loss ``upper``.
    """

    lower: float
    upper: float
    how: str
    weights: FloatArray


def infimum(problem: Objective, weights: Any, *, iterations: int = 300) -> Infimum:
    r"""Return an interval for :math:`\inf_\theta \mathcal L(\theta)` over the weights of the last hidden layer.

    Parameters
    ----------
    problem : Objective
    weights : (m_y, h, m) array
        Where to start looking for better ones.
    iterations : int
        Of L-BFGS.

    Notes
    -----
    Rigor: NUMERICAL. :math:`A_j^\top u = 0` is true up to rounding only, so the dual bound covers weights up to a
    length and no others, and is no proof; the mean of the samples' infima is.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.theory.exploitation import Exploitation
    >>> from alignver.theory.exploitation import objective
    >>> model = Exploitation([[2.0, 1.0], [2.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> known = infimum(objective(model, [1.0, 3.0], "squared"), np.zeros((1, 3, 2)))
    >>> round(known.lower, 9), round(known.upper, 9), known.how
    (1.0, 1.0, 'dual')
    """
    best = better_weights(problem, weights, iterations=iterations)
    upper = problem.value(best)
    samples, dual = problem.infimum, dual_bound(problem, best)
    if dual > samples:
        return Infimum(min(dual, upper), upper, "dual", best)
    return Infimum(samples, upper, "samples", best)


def better_weights(problem: Objective, weights: Any, *, iterations: int = 300) -> FloatArray:
    """Return weights whose loss is at most that of ``weights``: fitted by least squares, then improved by L-BFGS.

    Notes
    -----
    Rigor: a witness. Whatever found the weights, their loss can be computed.
    """
    points = reference_points(problem, weights)
    best = min(points, key=lambda point: point.loss)
    if best.loss <= 1e-14 * points[0].loss or not math.isfinite(best.loss):
        return best.weights

    def both(x: FloatArray) -> tuple[float, FloatArray]:
        theta = x.reshape(problem.model.shape)
        return problem.value(theta), problem.gradient(theta).ravel()

    with stage("better weights"), np.errstate(over="ignore", invalid="ignore"):
        found = minimize(both, best.weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    improved = np.asarray(found.x, dtype=np.float64).reshape(problem.model.shape)
    usable = bool(np.all(np.isfinite(improved))) and problem.value(improved) < best.loss
    return improved if usable else best.weights


def dual_bound(problem: Objective, weights: Any) -> float:
    r"""Return the dual bound from the gradients of the samples' losses at ``weights``, or minus infinity.

    What is left of :math:`A_j^\top u_{*j}` after the projection, at least its rounding :math:`2^{-50} \|A_j\|_F \|u\|`,
    is taken times four times the length of ``weights`` and subtracted: the bound is one for all weights up to that
    length. A loss without a ``conjugate`` has none, nor has a point from which projections lead out of its domain.
    """
    conjugate = getattr(problem.loss, "conjugate", None)
    if conjugate is None:
        return -math.inf
    model, y = problem.model, problem.targets
    u = problem.loss.gradient(model.outputs(weights), y)
    simplex = problem.loss.name == "cross_entropy" and model.m_y > 1
    projectors = [_projector(problem, j) for j in range(model.m_y)]
    # With a sum of 0 over the outputs of a sample wanted too, the two projections are made in turn.
    for _ in range(100 if simplex else 1):
        if simplex:
            u = u - u.mean(axis=1, keepdims=True)
        u = np.stack([project(u[:, j]) for j, project in enumerate(projectors)], axis=1)
        if simplex and float(np.abs(u.sum(axis=1)).max()) <= 1e-13:
            break
    if problem.loss.name != "squared":
        p = np.clip(u + y, 0.0, 1.0)
        if simplex:
            p /= p.sum(axis=1, keepdims=True)
        if float(np.abs(p - u - y).max()) > _OUTSIDE:
            return -math.inf
        u = p - y
    left = model.adjoint(u)
    leak = 0.0
    for j in range(model.m_y):
        rounding = 2.0**-50 * float(np.linalg.norm(u[:, j])) * _frobenius(model.Z, model.factors[j])
        reach = 4.0 * float(np.linalg.norm(weights[j]))
        leak += reach * (float(np.linalg.norm(left[j])) + rounding)
    bound = -(math.fsum(np.minimum(conjugate(u, y), np.finfo(float).max).tolist()) + leak) / model.n
    return bound if math.isfinite(bound) else -math.inf


def _frobenius(Z: FloatArray, T: FloatArray) -> float:
    return float(np.sqrt(((Z * Z).sum(axis=1) * (T * T).sum(axis=1)).sum()))


def _projector(problem: Objective, j: int) -> Any:
    """Return v -> v minus its part in the column space of A_j."""
    model = problem.model
    if model.n * model.h * model.m > _DENSE:
        operator = model.operator(j)
        return lambda v: v - np.asarray(operator.matvec(lsmr(operator, v, iterations=500).b))
    factored = least_squares(model.dense(j), np.zeros(model.n))
    levels = np.asarray(factored.s)
    basis = np.asarray(factored.u)[:, : levels.size][:, levels > 1e-13 * levels[0]]
    return lambda v: v - basis @ (basis.T @ v)
