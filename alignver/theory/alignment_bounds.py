r"""Theorem 3, Lemma 1 and Proposition 1: bounds of the loss from the Jacobian, on arrays.

They follow from Lemma 1: with a convex loss and :math:`f_X(\theta) = J \nu(\theta)` (Assumption 1), for every beta

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

from alignver import require
from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput
from alignver.linalg.least_squares import least_squares
from alignver.proof.rounding import FloatArray
from alignver.theory.losses import SampleLoss, sample_loss


def nu(theta: Any, S: Any) -> FloatArray:
    r"""Return :math:`\nu(\theta)`: theta on the set S of Assumption 1, and 0 elsewhere.

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
        need = f"distinct integers from 0 to {values.size - 1}"
        raise InvalidInput("S", "indices that repeat, are out of range or are not integers", need)
    restricted = np.zeros(values.size)
    if indices.size:
        restricted[indices] = values[indices]
    return restricted


@dataclasses.dataclass(frozen=True)
class Reference:
    r"""The point :math:`\hat\beta(\theta, \eta)` of Theorem 3.

    Attributes
    ----------
    beta : (d,) float64
    residual : float
        :math:`\|J \hat\beta - \eta y\| / \|\eta y\|`, 0 if eta y = 0; the theorem assumes that it is 0.
    rank : int
        The rank of J at the tolerance.
    """

    beta: FloatArray
    residual: float
    rank: int


def beta_hat(J: Any, y: Any, eta: float, *, tolerance: float | None = None) -> Reference:
    r"""Return :math:`\hat\beta(\theta, \eta) = \eta (J^\top J)^\dagger J^\top y = \eta J^\dagger y`.

    It is computed from the singular values of J, not of :math:`J^\top J`, which would lose half of the digits.

    Parameters
    ----------
    J : (N, d) array
    y : (N,) array
        vec(Y*).
    eta : float
    tolerance : float, optional
        Singular values up to it count as zero. Default :math:`s_1 \max(N, d)\, \epsilon`.

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
        need = f"{matrix.shape[0]}, one for each row of J"
        raise InvalidInput("y", f"{target.shape[0]} entries", need, "wrong-shape")
    factors = least_squares(matrix, target)
    tau = float(host(factors.s)[0]) * max(matrix.shape) * 2.0**-52 if tolerance is None else tolerance
    solution = factors.solve(tau)
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
        on the Hessian gives lower bounds: a result that uses those is NUMERICAL.
    alpha : float
        In (0, 1).
    zeta_eta : float
        :func:`zeta`.
    count : int
        The size of T: the number of steps at which vec(Y*) is in the column space.

    Examples
    --------
    >>> theorem_3(2.0, 0.0, 1.0, 0.5, 4.0, 16)
    1.0
    """
    require.real("alpha", alpha, above=0.0, below=1.0, need="a number between 0 and 1: the step is 2 alpha / L")
    require.real("L", L, above=0.0)
    require.real("loss_0", loss_0, least=0.0)
    require.real("zeta_eta", zeta_eta, least=0.0)
    require.integer("count", count, least=1)
    return target + math.sqrt(L * zeta_eta * loss_0 / (2.0 * alpha * (1.0 - alpha)) / count)


def target_loss(loss: str | SampleLoss, Y: Any, Y_star: Any, eta: float) -> float:
    r"""Return :math:`\mathcal L^*(\eta Y^*) = \frac1n \sum_i \ell(\eta y^*_i, y_i)` (equation (8)).

    Parameters
    ----------
    loss : str or SampleLoss
    Y : targets
    Y_star : (n, m_y) array
        Usually the modified targets Y_l.
    eta : float

    Examples
    --------
    >>> import numpy as np
    >>> round(target_loss("cross_entropy", [0, 1], [[1.0, -1.0], [-1.0, 1.0]], 1.0), 6)
    0.126928
    """
    star = host(as_matrix(Y_star, "Y_star").array)
    n, m_y = star.shape
    named = sample_loss(loss, m_y)
    total = math.fsum(named.values(eta * star, named.targets(Y, n, m_y)).tolist())
    return total / len(star)


def unreachable(J: Any, y: Any, eta: float, *, tolerance: float | None = None) -> float:
    r"""Return a lower bound of the distance of the outputs from :math:`\eta y`: Proposition 1, quantified.

    Under Assumption 1 :math:`\mathrm{vec}(f_X(\theta)) = J \nu(\theta)` lies in the column space of J, so

    .. math:: \|\mathrm{vec}(f_X(\theta)) - \eta y\| \ge \mathrm{dist}(\eta y, \mathrm{Col}\, J)
              = |\eta|\, \mathrm{dist}(y, \mathrm{Col}\, J) .

    For y outside the column space this is positive for every eta except 0. The paper states the proposition for all
    eta; at eta = 0 it fails, since theta = 0 gives outputs of 0.

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
