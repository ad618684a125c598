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
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from alignver.errors import InvalidInput
from alignver.phi.hadamard import gram
from alignver.proof.rounding import FloatArray
from alignver.theory.exploitation import Exploitation
from alignver.theory.objective import Objective

__all__ = ["NewtonStep", "newton_step"]

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
    >>> from alignver.theory.objective import objective
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
