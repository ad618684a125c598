r"""How far the loss is from its infimum over the weights: bounds on both sides, numerically.

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
from scipy.optimize import minimize

from alignver.linalg.lsmr import lsmr
from alignver.linalg.lstsq import least_squares
from alignver.progress import stage
from alignver.proof.rounding import FloatArray
from alignver.theory.descent import reference_points
from alignver.theory.objective import Objective

__all__ = ["Infimum", "better_weights", "dual_bound", "infimum"]

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
    >>> from alignver.theory.objective import objective
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
