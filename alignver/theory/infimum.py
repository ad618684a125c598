r"""The infimum of the loss of the exploitation phase: Newton's method, and bounds from above and from below.

Newton's method works in the space of the outputs, with n unknowns for each output instead of h m. The quadratic
model of the loss at :math:`\theta`, with the gradients :math:`r_{ij} = \partial_j \ell_i`, a diagonal matrix
:math:`D_j` of curvatures and damping :math:`\mu`, gives

.. math:: (A_j^\top D_j A_j + \mu I)\, p_j = -A_j^\top r_j

The push-through identity turns it into a system of order n with the Gram matrix :math:`G_j = A_j A_j^\top = (S S^\top)
\circ (Z Z^\top)`, which does not need A_j:

.. math:: p_j = -A_j^\top E_j w_j, \qquad (E_j G_j E_j + \mu I)\, w_j = E_j^{-1} r_j, \qquad E_j = D_j^{1/2} .

For every positive D_j, p is the negative gradient times a positive definite matrix: a descent direction (Assumption
7). If A_j has rank n and :math:`\mu` is small, the outputs move by :math:`-D_j^{-1} r_j` for any condition number of
A_j; the number of steps of gradient descent grows with the square of the condition number.

The loss of any weights is an upper bound of the infimum, and better weights give a better bound. The mean of
:math:`\inf_q \ell_i(q)` is a lower bound, which is exact if every :math:`A_j` has full row rank, since then all outputs
are possible. Otherwise Fenchel duality gives one: :math:`\ell_i(q) \ge u_i^\top q - \ell_i^*(u_i)` for every
:math:`u_i`, and the outputs of every theta satisfy
:math:`\sum_i u_i^\top f_i = \sum_j u_{*j}^\top A_j \theta_j = 0` where :math:`A_j^\top u_{*j} = 0`, so

.. math:: \inf_\theta \mathcal L(\theta) \ge -\frac1n \sum_i \ell_i^*(u_i) .

At a minimiser the gradients :math:`\nabla \ell_i(f_i)` are such a u, and the two bounds are equal: for the squared loss
the outputs are then the projection of Y. Near a minimiser the gradients are projected onto the null spaces.
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

_REACH = 8.0
"""The largest move of an output in one step, beyond its size: curvatures of saturated samples are nearly 0, and full
Newton steps would be too long."""

_FLAT = 1e-3
"""The least curvature, relative to the mean curvature: without it the outputs of flat samples would be arbitrary."""

_DAMPING = 2.0**-43
"""mu relative to the largest diagonal entry: slightly above the rounding of a Gram matrix (n u)."""

_DENSE = 20_000_000
"""Largest number of entries of A_j for singular vectors; beyond it LSMR projects."""

_OUTSIDE = 1e-9
"""The largest distance of a rounded dual point from the domain of a conjugate: the point is moved into the domain."""


@dataclasses.dataclass(frozen=True, eq=False)
class NewtonStep:
    """A step of Newton's method with a line search.

    Attributes
    ----------
    weights : (m_y, h, m) float64
        The weights after the step.
    size : float
        t of ``weights = theta + t p``; 0 if no step lowers the loss, up to rounding.
    before, after : float
        The losses.
    """

    weights: FloatArray
    size: float
    before: float
    after: float


def newton_step(problem: Objective, weights: FloatArray, *, halvings: int = 40) -> NewtonStep:
    r"""Take one damped Newton step from ``weights``, shortened until the loss satisfies the Armijo condition.

    Parameters
    ----------
    problem : Objective
        Its loss needs a method ``curvature``, which the three named losses have.
    weights : (m_y, h, m) array
    halvings : int
        The largest number of halvings of the step. Each costs O(n m_y), since the outputs are linear in the step.

    Returns
    -------
    NewtonStep

    Raises
    ------
    InvalidInput
        If the loss has no method ``curvature``.

    Notes
    -----
    Rigor: none is needed, since the loss after the step can be computed. A step costs a Cholesky factorization of order
    min(n, h m) for each output. The squared loss with rank n needs one step, up to rounding; the cross-entropies
    decrease by a factor of about e per step, since margins grow by 1.

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
        got = f"{problem.loss.name!r} without a method curvature"
        raise InvalidInput("loss", got, "a loss with second derivatives")
    model = problem.model
    outputs = model.outputs(weights)
    slopes = problem.loss.gradient(outputs, problem.targets)
    # No curvature exceeds L_l: with L_l every step is safe.
    cautious = np.minimum(np.abs(slopes) / (_REACH + np.abs(outputs)), problem.loss.smoothness)
    D = np.maximum(curvature(outputs, problem.targets), cautious)
    D = np.maximum(D, max(_FLAT * float(D.mean()), 1e-280))
    direction, change = np.zeros(model.shape), np.zeros_like(outputs)
    for j in range(model.m_y):
        operator = model.operator(j)
        step = -_solve(model, j, np.sqrt(D[:, j]), slopes[:, j])
        direction[j], change[:, j] = step.reshape(model.h, model.m), np.asarray(operator.matvec(step))
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


def _solve(model: Exploitation, j: int, E: FloatArray, r: FloatArray) -> FloatArray:
    """Return -p_j from the system of order n, or from that of order h m if there are fewer weights than samples."""
    if model.h * model.m < model.n:
        rows = model.dense(j) * E[:, None]
        return _solve_damped(rows.T @ rows, rows.T @ (r / E))
    matrix = gram(model.Z, model.factors[j]) * E[:, None] * E
    return np.asarray(model.operator(j).rmatvec(E * _solve_damped(matrix, r / E)))


def _solve_damped(matrix: FloatArray, right: FloatArray) -> FloatArray:
    """Solve (matrix + mu I) x = right, with more damping if rounding makes the matrix indefinite."""
    largest = max(float(matrix.diagonal().max()), 1e-280)
    for damping in (_DAMPING, 2.0**-36, 2.0**-26):
        damped = matrix.copy()
        damped.flat[:: len(matrix) + 1] += damping * largest
        try:
            solution: FloatArray = cho_solve(cho_factor(damped, lower=True, overwrite_a=True), right)
        except LinAlgError:
            continue
        return solution
    return np.zeros_like(right)  # after an overflow: 2^-26 covers the rounding of any order below 2^26


@dataclasses.dataclass(frozen=True, eq=False)
class Infimum:
    r"""Numerical bounds of :math:`\inf_\theta \mathcal L`.

    Attributes
    ----------
    lower, upper : float
    how : str
        The source of the lower bound: ``"samples"`` (the mean of the samples' infima) or ``"dual"``.
    weights : (m_y, h, m) float64
        Their loss is ``upper``.
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
        The start of the search for better weights.
    iterations : int
        The largest number of iterations of L-BFGS.

    Notes
    -----
    Rigor: NUMERICAL. :math:`A_j^\top u = 0` holds only up to rounding, so the dual bound is valid for weights up to a
    certain length and is not a proof. The mean of the samples' infima is a proof.

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
    Rigor: a witness. The loss of the weights can be computed, independently of the search.
    """
    points = reference_points(problem, weights)
    best = min(points, key=lambda point: point.loss)
    if best.loss <= 1e-14 * points[0].loss or not math.isfinite(best.loss):
        return best.weights

    def both(x: FloatArray) -> tuple[float, FloatArray]:
        theta = x.reshape(problem.model.shape)
        return problem.value(theta), problem.gradient(theta).ravel()

    with stage("better weights"), np.errstate(over="ignore", invalid="ignore"):
        solution = minimize(both, best.weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    improved = np.asarray(solution.x, dtype=np.float64).reshape(problem.model.shape)
    usable = bool(np.all(np.isfinite(improved))) and problem.value(improved) < best.loss
    return improved if usable else best.weights


def dual_bound(problem: Objective, weights: Any) -> float:
    r"""Return the dual bound from the gradients of the samples' losses at ``weights``, or minus infinity.

    The norm of :math:`A_j^\top u_{*j}` after the projection, plus its rounding :math:`2^{-50} \|A_j\|_F \|u\|`, times
    four times the length of ``weights`` is subtracted: the bound is valid for all weights up to that length. It is
    minus infinity if the loss has no ``conjugate``, or if the projections of the point leave its domain.
    """
    conjugate = getattr(problem.loss, "conjugate", None)
    if conjugate is None:
        return -math.inf
    model, y = problem.model, problem.targets
    u = problem.loss.gradient(model.outputs(weights), y)
    simplex = problem.loss.name == "cross_entropy" and model.m_y > 1
    projectors = [_projector(model, j) for j in range(model.m_y)]
    # Softmax gradients also sum to 0 over the outputs of a sample: the two projections alternate.
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
    residual = model.adjoint(u)
    leak = 0.0
    for j in range(model.m_y):
        Z, T = model.Z, model.factors[j]
        frobenius = float(np.sqrt(((Z * Z).sum(axis=1) * (T * T).sum(axis=1)).sum()))
        rounding = 2.0**-50 * float(np.linalg.norm(u[:, j])) * frobenius
        leak += 4.0 * float(np.linalg.norm(weights[j])) * (float(np.linalg.norm(residual[j])) + rounding)
    bound = -(math.fsum(np.minimum(conjugate(u, y), np.finfo(float).max).tolist()) + leak) / model.n
    return bound if math.isfinite(bound) else -math.inf


def _projector(model: Exploitation, j: int) -> Any:
    """Return the function that maps v to its component orthogonal to the column space of A_j."""
    if model.n * model.h * model.m > _DENSE:
        operator = model.operator(j)
        return lambda v: v - np.asarray(operator.matvec(lsmr(operator, v, iterations=500).b))
    factors = least_squares(model.dense(j), np.zeros(model.n))
    levels = np.asarray(factors.s)
    basis = np.asarray(factors.u)[:, : levels.size][:, levels > 1e-13 * levels[0]]
    return lambda v: v - basis @ (basis.T @ v)
