r"""Theorem 5 with numbers in it: bounds of the loss along the exploitation phase, from points that can be computed.

The paper's bound has the minimiser nearest to :math:`\theta^\tau` in it, which nobody has, and which need not exist:
the cross-entropies have no minimiser where the data can be separated. Its proof needs no minimiser. Whatever
:math:`\zeta` is, (168) gives

.. math:: \hat{\mathcal L}(\theta^t) \le \hat{\mathcal L}(\zeta)
          + \frac{\hat L \|\zeta - \theta^\tau\|^2}{2 (t - \tau)} ,

and (177) the same for stochastic gradients. Good points come from least squares: :math:`A_j \zeta_j = \eta Y_\ell[:,
j]` with :math:`\zeta` as near to :math:`\theta^\tau` as can be, for several eta; at each t the best one counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.features.products import gram
from alignver.linalg.least_squares import least_squares
from alignver.linalg.lsmr import lsmr
from alignver.progress import track
from alignver.proof.rounding import FloatArray
from alignver.theory.exploitation import Exploitation, Objective

__all__ = ["ETAS", "ReferencePoint", "gradient_descent_bound", "nearest_fit", "reference_points", "sgd_bound"]

ETAS = tuple(2.0**k for k in range(-2, 8))
"""Multiples of Y_l that are tried for the cross-entropies; the squared loss has its minimum at 1."""

_DENSE = 1_000_000
"""Entries of A_j up to which its singular values are computed; beyond, those of its Gram matrix, and refinement."""

_ORDER = 6000
"""Samples up to which the Gram matrix is decomposed; beyond, LSMR uses products only."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferencePoint:
    r"""A point zeta that a bound can be computed with.

    Attributes
    ----------
    weights : (m_y, h, m) float64
    loss : float
        The loss there, measured.
    distance : float
        :math:`\|\zeta - \theta^\tau\|`.
    eta : float
        Which multiple of Y_l it was fitted to.
    residual : float
        Largest entry of |outputs - eta Y_l|: how well.
    """

    weights: FloatArray
    loss: float
    distance: float
    eta: float
    residual: float


def nearest_fit(model: Exploitation, start: FloatArray, targets: Sequence[FloatArray]) -> list[FloatArray]:
    r"""Return, for each target (n, m_y), the weights nearest to ``start`` that fit it best in least squares.

    .. math:: \zeta_j = \theta_j + A_j^\dagger (T_{*j} - A_j \theta_j)

    A_j is factored once for all targets: by its singular values, where it is large by the eigenvalues of its Gram
    matrix with two refinements, where n is large not at all (LSMR). Directions in which it is below about
    :math:`10^{-13}` (the Gram matrix: :math:`10^{-7}`) of its norm are left out.

    Notes
    -----
    Rigor: NUMERICAL. What bounds are made of the result measure its loss and its distance, so they hold for a bad fit
    too.

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> (fit,) = nearest_fit(model, np.zeros((1, 3, 2)), [np.array([[3.0], [-1.0]])])
    >>> model.outputs(fit).round(10).ravel().tolist()
    [3.0, -1.0]
    """
    outputs = model.outputs(start)
    return [start + change for change in _pulled_back(model, [target - outputs for target in targets])]


def _pulled_back(model: Exploitation, residuals: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the shortest changes of the weights that change the outputs by these, in least squares."""
    changes = [np.zeros(model.shape) for _ in residuals]
    for j in track(range(model.m_y), "least squares"):
        solve = _solver(model, j)
        for change, residual in zip(changes, residuals, strict=True):
            change[j] = solve(residual[:, j]).reshape(model.h, model.m)
    return changes


def _solver(model: Exploitation, j: int) -> Callable[[FloatArray], FloatArray]:
    """Return r -> the shortest x with A_j x near to r."""
    operator = model.operator(j)
    if model.n * model.h * model.m <= _DENSE:
        factored = least_squares(model.dense(j), np.zeros(model.n))
        tau = 1e-13 * float(np.asarray(factored.s)[0])
        return lambda r: np.asarray(dataclasses.replace(factored, target=r).solve(tau).b)
    if model.n > _ORDER:
        return lambda r: np.asarray(lsmr(operator, r, iterations=500).b)
    levels, basis = np.linalg.eigh(gram(model.Z, model.factors[j]))
    kept = levels > 1e-14 * levels[-1]
    levels, basis = levels[kept], basis[:, kept]

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
        Default 1 for the squared loss (and a caller's own, whose targets are fitted), :data:`ETAS` for the
        cross-entropies, whose modified targets are 2 Y - 1.
    """
    theta = problem.model.weights(start)
    signed = problem.loss.name in ("binary_cross_entropy", "cross_entropy")
    modified = 2.0 * problem.targets - 1.0 if signed else problem.targets
    wanted = tuple(etas) if etas is not None else ETAS if signed else (1.0,)
    points = [ReferencePoint(theta, problem.value(theta), 0.0, 0.0, 0.0)]
    # What pulls back eta Y_l - f is linear in eta: two least-squares problems do for all of them.
    towards, away = _pulled_back(problem.model, [modified, problem.model.outputs(theta)])
    for eta in wanted:
        with np.errstate(over="ignore", invalid="ignore"):
            fit = theta + (eta * towards - away)
            distance = float(np.linalg.norm(fit - theta))
        if not math.isfinite(distance):  # an A_j of nearly nothing
            continue
        outputs = problem.model.outputs(fit)
        worst = float(np.abs(outputs - eta * modified).max())
        points.append(ReferencePoint(fit, problem.of_outputs(outputs), distance, eta, worst))
    return points


def gradient_descent_bound(points: Sequence[ReferencePoint], lipschitz: float, steps: Any) -> FloatArray:
    r"""Return Theorem 5 (i)'s bound of the loss after each number of steps :math:`t - \tau \ge 1`.

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
    The theorem as printed has L where its proof has L-hat.

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
    if not 0.0 < lipschitz < math.inf or not points:
        raise InvalidInput("lipschitz", repr(lipschitz), "a positive finite number, and a reference point")
    bounds: FloatArray = np.min(
        [point.loss + lipschitz * point.distance**2 / (2.0 * counts) for point in points], axis=0
    )
    return bounds


def sgd_bound(points: Sequence[ReferencePoint], G: float, step_sizes: Any) -> FloatArray:
    r"""Return Theorem 5 (ii)'s bound of :math:`E[\min_{k \le t} \mathcal L(\theta^k)]` for each t.

    .. math:: \min_\zeta\; \hat{\mathcal L}(\zeta) + \frac{\|\zeta - \theta^\tau\|^2 + G^2 \sum_{k=\tau}^t \alpha_k^2}
              {2 \sum_{k=\tau}^t \alpha_k}

    Parameters
    ----------
    points : sequence of ReferencePoint
    G : float
        With E ||g||^2 <= G^2. A recorded run gives the largest norm it has seen, not this bound.
    step_sizes : (T,) array
        alpha_tau, alpha_(tau + 1), ...; at least the first positive.

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
    bounds: FloatArray = np.min(
        [point.loss + (point.distance**2 + G * G * squares) / (2.0 * total) for point in points], axis=0
    )
    return bounds
