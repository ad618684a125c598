r"""Computable bounds of Theorem 5 for the loss along the exploitation phase, and the reference points that they use.

The paper's bound contains the minimiser nearest to :math:`\theta^\tau`, which is unknown and need not exist: the
cross-entropies have no minimiser if the data can be separated. The proof does not need a minimiser. For every
:math:`\zeta`, (168) gives

.. math:: \hat{\mathcal L}(\theta^t) \le \hat{\mathcal L}(\zeta)
          + \frac{\hat L \|\zeta - \theta^\tau\|^2}{2 (t - \tau)} ,

and (177) the same for stochastic gradients. Good points are the least-squares solutions of :math:`A_j \zeta_j = \eta
Y_\ell[:, j]` nearest to :math:`\theta^\tau`, for several eta; the bound at t uses the best point for this t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignver import require
from alignver.errors import InvalidInput
from alignver.features.products import gram
from alignver.linalg.least_squares import least_squares
from alignver.linalg.lsmr import lsmr
from alignver.progress import track
from alignver.proof.rounding import FloatArray
from alignver.theory.exploitation import Exploitation, Objective

ETAS = tuple(2.0**k for k in range(-2, 8))
"""Multiples of Y_l that are fitted for the cross-entropies; the squared loss has its minimum at 1."""

_DENSE = 1_000_000
"""Largest number of entries of A_j for singular values; beyond it the Gram matrix is decomposed, with refinement."""

_ORDER = 6000
"""Largest number of samples for a decomposition of the Gram matrix; beyond it LSMR uses products only."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferencePoint:
    r"""A point zeta of the bounds.

    Attributes
    ----------
    weights : (m_y, h, m) float64
    loss : float
        The measured loss at zeta.
    distance : float
        :math:`\|\zeta - \theta^\tau\|`.
    eta : float
        The multiple of Y_l that it was fitted to.
    residual : float
        Largest entry of |outputs - eta Y_l|.
    """

    weights: FloatArray
    loss: float
    distance: float
    eta: float
    residual: float


def nearest_fit(model: Exploitation, start: FloatArray, targets: Sequence[FloatArray]) -> list[FloatArray]:
    r"""Return, for each target (n, m_y), the weights nearest to ``start`` that fit it best in least squares.

    .. math:: \zeta_j = \theta_j + A_j^\dagger (T_{*j} - A_j \theta_j)

    A_j is factored once for all targets: by a singular value decomposition, or for a large A_j by an eigenvalue
    decomposition of its Gram matrix with two refinements. For large n LSMR solves each system without a factorization.
    Singular values below about :math:`10^{-13}` (with the Gram matrix :math:`10^{-7}`) of the norm are truncated.

    Notes
    -----
    Rigor: NUMERICAL. Bounds use the measured loss and distance of the result, so they hold for a bad fit too.

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> (fit,) = nearest_fit(model, np.zeros((1, 3, 2)), [np.array([[3.0], [-1.0]])])
    >>> model.outputs(fit).round(10).ravel().tolist()
    [3.0, -1.0]
    """
    outputs = model.outputs(start)
    return [start + change for change in _fit_changes(model, [target - outputs for target in targets])]


def _fit_changes(model: Exploitation, residuals: Sequence[FloatArray]) -> list[FloatArray]:
    """Return, for each residual, the shortest change of the weights that changes the outputs by it in least squares."""
    changes = [np.zeros(model.shape) for _ in residuals]
    for j in track(range(model.m_y), "least squares"):
        solve = _solver(model, j)
        for change, residual in zip(changes, residuals, strict=True):
            change[j] = solve(residual[:, j]).reshape(model.h, model.m)
    return changes


def _solver(model: Exploitation, j: int) -> Callable[[FloatArray], FloatArray]:
    """Return the function that maps r to the shortest least-squares solution x of A_j x = r."""
    operator = model.operator(j)
    if model.n * model.h * model.m <= _DENSE:
        factors = least_squares(model.dense(j), np.zeros(model.n))
        tau = 1e-13 * float(np.asarray(factors.s)[0])
        return lambda r: np.asarray(dataclasses.replace(factors, target=r).solve(tau).b)
    if model.n > _ORDER:
        return lambda r: np.asarray(lsmr(operator, r, iterations=500).b)
    levels, basis = np.linalg.eigh(gram(model.Z, model.factors[j]))
    significant = levels > 1e-14 * levels[-1]
    levels, basis = levels[significant], basis[:, significant]

    def solve(r: FloatArray) -> FloatArray:
        x = np.zeros(operator.shape[1])
        for _ in range(3):
            rest = r - np.asarray(operator.matvec(x))
            x += np.asarray(operator.rmatvec(basis @ ((basis.T @ rest) / levels)))
        return x

    return solve


def reference_points(problem: Objective, start: Any, etas: Sequence[float] | None = None) -> list[ReferencePoint]:
    """Return points fitted to eta Y_l, and ``start`` itself.

    Parameters
    ----------
    problem : Objective
    start : (m_y, h, m) array
        theta^tau.
    etas : sequence of float, optional
        Default: :data:`ETAS` for the cross-entropies, whose modified targets are 2 Y - 1, and 1 for the squared loss
        and a caller's loss, whose targets are fitted themselves.
    """
    theta = problem.model.weights(start)
    signed = problem.loss.name in ("binary_cross_entropy", "cross_entropy")
    modified = 2.0 * problem.targets - 1.0 if signed else problem.targets
    multiples = etas if etas is not None else ETAS if signed else (1.0,)
    points = [ReferencePoint(theta, problem.value(theta), 0.0, 0.0, 0.0)]
    # The change that fits eta Y_l - f is linear in eta: two least-squares problems give it for every eta.
    of_targets, of_outputs = _fit_changes(problem.model, [modified, problem.model.outputs(theta)])
    for eta in multiples:
        with np.errstate(over="ignore", invalid="ignore"):
            fit = theta + (eta * of_targets - of_outputs)
            distance = float(np.linalg.norm(fit - theta))
        if not math.isfinite(distance):  # A_j is nearly zero
            continue
        outputs = problem.model.outputs(fit)
        worst = float(np.abs(outputs - eta * modified).max())
        points.append(ReferencePoint(fit, problem.of_outputs(outputs), distance, eta, worst))
    return points


def gradient_descent_bound(points: Sequence[ReferencePoint], lipschitz: float, steps: Any) -> FloatArray:
    r"""Return the bound of Theorem 5 (i) of the loss after each number of steps :math:`t - \tau \ge 1`.

    .. math:: \min_\zeta\; \hat{\mathcal L}(\zeta) + \frac{\hat L \|\zeta - \theta^\tau\|^2}{2 (t - \tau)}

    Parameters
    ----------
    points : sequence of ReferencePoint
    lipschitz : float
        L-hat, an upper bound, whose inverse is the step: paper or spectral.
    steps : (T,) array
        t - tau, positive.

    Notes
    -----
    The printed theorem has L; its proof has L-hat.

    Examples
    --------
    >>> import numpy as np
    >>> point = ReferencePoint(np.zeros((1, 1, 1)), 0.5, 2.0, 1.0, 0.0)
    >>> gradient_descent_bound([point], 3.0, [1, 12])
    array([6.5, 1. ])
    """
    counts = np.asarray(steps, dtype=np.float64)
    if not bool(np.all(counts >= 1.0)):
        raise InvalidInput("steps", "a number of steps below 1", "t - tau >= 1")
    require.real("lipschitz", lipschitz, above=0.0)
    if not points:
        raise InvalidInput("points", "no points", "at least one reference point")
    return _least([point.loss + lipschitz * point.distance**2 / (2.0 * counts) for point in points])


def _least(bounds: Sequence[FloatArray]) -> FloatArray:
    least: FloatArray = np.min(bounds, axis=0)
    return least


def sgd_bound(points: Sequence[ReferencePoint], G: float, step_sizes: Any) -> FloatArray:
    r"""Return the bound of Theorem 5 (ii) of :math:`E[\min_{k \le t} \mathcal L(\theta^k)]` for each t.

    .. math:: \min_\zeta\; \hat{\mathcal L}(\zeta) + \frac{\|\zeta - \theta^\tau\|^2 + G^2 \sum_{k=\tau}^t \alpha_k^2}
              {2 \sum_{k=\tau}^t \alpha_k}

    Parameters
    ----------
    points : sequence of ReferencePoint
    G : float
        E ||g||^2 <= G^2. A recorded run gives the largest observed norm, not this bound.
    step_sizes : (T,) array
        alpha_tau, alpha_(tau + 1), ..., none negative and the first positive.

    Examples
    --------
    >>> import numpy as np
    >>> point = ReferencePoint(np.zeros((1, 1, 1)), 0.5, 2.0, 1.0, 0.0)
    >>> sgd_bound([point], 1.0, [1.0, 1.0])
    array([3., 2.])
    """
    alphas = np.asarray(step_sizes, dtype=np.float64)
    if bool(np.any(alphas < 0.0)) or not (alphas.size and alphas[0] > 0.0):
        raise InvalidInput("step_sizes", "a negative step, or a first step of 0", "steps >= 0, the first one positive")
    total, squares = np.cumsum(alphas), np.cumsum(alphas**2)
    return _least([point.loss + (point.distance**2 + G * G * squares) / (2.0 * total) for point in points])
