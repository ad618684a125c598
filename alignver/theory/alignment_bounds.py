r"""Theorems 2 and 3, Lemma 1 and Proposition 1: what the Jacobian says about the loss, on arrays.

All of it rests on Lemma 1: with a convex loss and :math:`f_X(\theta) = J \nu(\theta)` (Assumption 1), for every beta

.. math:: \mathcal L(\theta) \le \mathcal L_\theta(\beta)
          + (\nu(\theta) - \beta)^\top \nabla \mathcal L(\theta)

where :math:`\mathcal L_\theta(\beta)` is the loss of the outputs :math:`J \beta`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.linalg.least_squares import least_squares
from alignver.proof.rounding import FloatArray
from alignver.theory.losses import SampleLoss, sample_loss

__all__ = ["Reference", "beta_hat", "nu", "target_loss", "theorem_3", "unreachable", "zeta"]


def nu(theta: Any, S: Any) -> FloatArray:
    r"""Return :math:`\nu(\theta)`: theta on S, the set of Assumption 1, and 0 elsewhere.

    Parameters
    ----------
    theta : (d,) array
    S : array of distinct indices

    Examples
    --------
    >>> nu([1.0, 2.0, 3.0], [2, 0])
    array([1., 0., 3.])
    """
    values = host(as_vector(theta, "theta").array)
    indices: npt.NDArray[np.int64] = np.asarray(S)
    outside = indices.ndim != 1 or (indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0))
    if outside or (indices.size and indices.max() >= values.size) or np.unique(indices).size != indices.size:
        raise InvalidInput("S", "no set of indices", f"distinct integers from 0 to {values.size - 1}")
    kept = np.zeros(values.size)
    if indices.size:
        kept[indices] = values[indices]
    return kept


@dataclasses.dataclass(frozen=True)
class Reference:
    r"""The point :math:`\hat\beta(\theta, \eta)` of Theorem 3.

    Attributes
    ----------
    beta : (d,) float64
    residual : float
        :math:`\|J \hat\beta - \eta y\| / \|\eta y\|`; 0 where eta y is: the theorem needs it to vanish.
    rank : int
        Of J at the tolerance.
    """

    beta: FloatArray
    residual: float
    rank: int


def beta_hat(J: Any, y: Any, eta: float, *, tolerance: float | None = None) -> Reference:
    r"""Return :math:`\hat\beta(\theta, \eta) = \eta (J^\top J)^\dagger J^\top y = \eta J^\dagger y`.

    Computed from the singular values of J itself, not of :math:`J^\top J`, which would cost half of the digits.

    Parameters
    ----------
    J : (N, d) array
    y : (N,) array
        vec(Y*).
    eta : float
    tolerance : float, optional
        Singular values up to it count as zero; default :math:`s_1 \max(N, d)\, \epsilon`.

    Notes
    -----
    Rigor: NUMERICAL.

    Examples
    --------
    >>> beta_hat([[2.0, 0.0], [0.0, 0.0]], [1.0, 0.0], 4.0).beta
    array([2., 0.])
    """
    matrix, target = host(as_matrix(J, "J").array), host(as_vector(y, "y").array)
    if target.shape[0] != matrix.shape[0]:
        raise InvalidInput("y", f"{target.shape[0]} entries", f"{matrix.shape[0]}, one for each row of J")
    factored = least_squares(matrix, target)
    levels = host(factored.s)
    tau = float(levels[0]) * max(matrix.shape) * 2.0**-52 if tolerance is None else tolerance
    solution = factored.solve(tau)
    return Reference(eta * host(solution.b), solution.residual if eta else 0.0, solution.rank)


def zeta(nus: Any, betas: Any) -> float:
    r"""Return :math:`\zeta_\eta = 4 \max_{t \in T} \max(\|\nu(\theta^t)\|^2, \|\hat\beta(\theta^t, \eta)\|^2)`.

    Parameters
    ----------
    nus, betas : (T,) arrays
        The norms.

    Examples
    --------
    >>> zeta([1.0, 3.0], [2.0, 0.5])
    36.0
    """
    return 4.0 * max(
        float(host(as_vector(part, name).array).max()) ** 2 for part, name in ((nus, "nus"), (betas, "betas"))
    )


def theorem_3(loss_0: float, target: float, L: float, alpha: float, zeta_eta: float, count: int) -> float:
    r"""Return the right-hand side of Theorem 3, for gradient descent with the step :math:`2 \alpha / L`.

    .. math:: \min_{t \in T} \mathcal L(\theta^t) \le \mathcal L^*(\eta Y^*) + \frac{1}{\sqrt{|T|}}
              \sqrt{\frac{L\, \zeta_\eta\, \mathcal L(\theta^{t_0})}{2 \alpha (1 - \alpha)}}

    Parameters
    ----------
    loss_0 : float
        Loss at the first step of T.
    target : float
        :math:`\mathcal L^*(\eta Y^*)`, see :func:`target_loss`.
    L : float
        Lipschitz constant of the gradient of the whole loss. Upper bounds of it are rarely known, and power iteration
        on the Hessian gives lower ones: what is built on those is NUMERICAL.
    alpha : float
        In (0, 1).
    zeta_eta : float
        :func:`zeta`.
    count : int
        The size of T: steps at which vec(Y*) is in the column space.

    Examples
    --------
    >>> theorem_3(2.0, 0.0, 1.0, 0.5, 4.0, 16)
    1.0
    """
    if not 0.0 < alpha < 1.0:
        raise InvalidInput("alpha", repr(alpha), "a number between 0 and 1: the step is 2 alpha / L")
    if not 0.0 < L < math.inf:
        raise InvalidInput("L", repr(L), "a positive finite number")
    if count < 1 or not (0.0 <= loss_0 < math.inf and 0.0 <= zeta_eta < math.inf):
        raise InvalidInput("count, loss_0, zeta_eta", f"{count}, {loss_0}, {zeta_eta}", "a step, and numbers >= 0")
    return target + math.sqrt(L * zeta_eta * loss_0 / (2.0 * alpha * (1.0 - alpha)) / count)


def target_loss(loss: str | SampleLoss, Y: Any, Y_star: Any, eta: float) -> float:
    r"""Return :math:`\mathcal L^*(\eta Y^*) = \frac1n \sum_i \ell(\eta y^*_i, y_i)` (equation (8)).

    Parameters
    ----------
    loss : str or SampleLoss
    Y : targets
    Y_star : (n, m_y) array
        Mostly the modified targets Y_l.
    eta : float

    Examples
    --------
    >>> import numpy as np
    >>> round(target_loss("cross_entropy", [0, 1], [[1.0, -1.0], [-1.0, 1.0]], 1.0), 6)
    0.126928
    """
    star = host(as_matrix(Y_star, "Y_star").array)
    own = sample_loss(loss, int(star.shape[1]))
    values = own.values(eta * star, own.targets(Y, int(star.shape[0]), int(star.shape[1])))
    return math.fsum(values.tolist()) / len(star)


def unreachable(J: Any, y: Any, eta: float, *, tolerance: float | None = None) -> float:
    r"""Return how far from :math:`\eta y` the outputs have to stay: Proposition 1 with a number in it.

    Under Assumption 1 :math:`\mathrm{vec}(f_X(\theta)) = J \nu(\theta)` lies in the column space of J, so

    .. math:: \|\mathrm{vec}(f_X(\theta)) - \eta y\| \ge \mathrm{dist}(\eta y, \mathrm{Col}\, J)
              = |\eta|\, \mathrm{dist}(y, \mathrm{Col}\, J) .

    For y outside the column space that is positive for every eta except 0. The paper states the proposition for all
    eta; at eta = 0 it fails, since outputs of 0 are reached by theta = 0.

    Notes
    -----
    Rigor: NUMERICAL.

    Examples
    --------
    >>> unreachable([[1.0], [0.0]], [1.0, 3.0], -2.0)
    6.0
    """
    target = host(as_vector(y, "y").array)
    reference = beta_hat(J, target, 1.0, tolerance=tolerance)
    return abs(eta) * reference.residual * float(np.linalg.norm(target))
