r"""How well targets can be reached with parameters of a limited norm.

.. math:: \rho_b = \min\{\|J \beta - y\| : \|\beta\| \le b\} / \|y\|

It is 1 at b = 0, convex and non-increasing, and 0 from kappa on; a change of J by delta changes it by at most
:math:`\delta b / \|y\|`, and no tolerance enters. With :math:`G = J J^\top`, any vector a and :math:`\beta = J^\top a`,
:math:`r = y - G a`, both sides are proved:

.. math::
    \rho_b \|y\| \le \|y - t\, G a\|, \quad t = \min(1, b / \|\beta\|), \qquad
    \rho_b \|y\| \ge (r^\top y - b \|J^\top r\|) / \|r\|, \qquad \|J^\top r\|^2 = r^\top G r .

The best a is that of Tikhonov's regularization, :math:`(G + \lambda I)^{-1} y` with :math:`\|\beta\| = b`. It is found
in a Krylov space of G and y (Lanczos' method with full orthogonalization), in the precision of G; how well does not
matter to the bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver.kernel.network import balls

_STEPS = 160  # dimension of the Krylov space
_HALVINGS = 26  # of the logarithm of lambda
_MOST = 12  # budgets


@dataclasses.dataclass(frozen=True)
class Reach:
    """An enclosure of rho at a budget.

    Attributes
    ----------
    budget : float
        b, the largest norm of parameters.
    lower, upper : float
    """

    budget: float
    lower: float
    upper: float


def reach(M: Any, y: Any, kappa: float) -> tuple[Reach, ...]:
    """Enclose rho at powers of ten from about kappa 10^-12, and at least 1, up to kappa.

    Parameters
    ----------
    M : (N, N) balls
        The Gram matrix of J, in the precision of the context.
    y : (N,) float64
    kappa : float
        The norm that reaches y; infinite if none does.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.kernel.network import balls
    >>> with balls.precision(100):
    ...     half = reach(balls.exactly(np.diag([1.0, 4.0])), np.array([2.0, 0.0]), 2.0)[0]
    >>> half.budget, half.lower <= 0.5 <= half.upper
    (1.0, True)
    """
    if not np.any(y):
        return ()
    last = 8 if not math.isfinite(kappa) else max(0, math.ceil(math.log10(max(kappa, 1e-300))) - 1)
    stride = max(1, -(-(last + 1) // _MOST))
    Q, diagonal, off_diagonal = _krylov(balls.matrix(balls.middle(M)), y)
    size, G = balls.norm(balls.exactly(y)), balls.matrix(M)
    rows = []
    for exponent in range(0, last + 1, stride):
        b = 10.0**exponent
        a = balls.product(Q, _tikhonov(diagonal, off_diagonal, size, b)[:, None])[:, 0]
        rows.append(_enclosed(G, y, balls.middle(a), b, size))
    return tuple(rows)


def _krylov(centre: Any, y: Any) -> tuple[Any, list[Any], list[Any]]:
    """Return an orthonormal basis (N, k) of a Krylov space of a matrix and y, and the tridiagonal matrix in it."""
    most, n = min(_STEPS, len(y)), len(y)
    q = balls.middle(balls.exactly(y))
    q = balls.middle(q / balls.norm(q))
    rows, diagonal, off_diagonal = balls.matrix(balls.exactly(np.zeros((most, n)))), [], []
    for k in range(most):
        for j in range(n):
            rows[k, j] = q[j]
        w = balls.middle(balls.product(centre, q[:, None])[:, 0])
        diagonal.append(balls.dot(q, w).mid())
        for _ in range(2):
            w = balls.middle(w - balls.product(rows.transpose(), balls.product(rows, w[:, None]))[:, 0])
        size = balls.norm(w).mid()
        if k + 1 == most or not size > 0:
            break
        off_diagonal.append(size)
        q = balls.middle(w / size)
    return (
        balls.matrix(np.array(rows.entries(), dtype=object).reshape(most, n)[: len(diagonal)].T),
        diagonal,
        off_diagonal,
    )


def _tikhonov(diagonal: Sequence[Any], off_diagonal: Sequence[Any], size: Any, b: float) -> Any:
    """Return about (T + lambda I)^-1 |y| e_1 for the lambda with z^T T z = b^2, by bisection of its logarithm."""
    top = float(max(abs(d) for d in diagonal)) or 1.0
    low, high = math.log2(top) - 2.0 * balls.bits(), math.log2(top) + 60.0
    z = None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        z = _solve_shifted(diagonal, off_diagonal, size, balls.power(middle))
        if float(_quadratic_form(diagonal, off_diagonal, z)) > b * b:
            low = middle
        else:
            high = middle
    return _solve_shifted(diagonal, off_diagonal, size, balls.power(high))


def _solve_shifted(diagonal: Sequence[Any], off_diagonal: Sequence[Any], size: Any, shift: Any) -> Any:
    """Solve with a tridiagonal matrix plus a multiple of the identity, for a multiple of the first unit vector."""
    n = len(diagonal)
    pivots, rhs = [(diagonal[0] + shift).mid()], [size.mid()]
    for k in range(1, n):
        factor = off_diagonal[k - 1] / pivots[-1]
        pivots.append((diagonal[k] + shift - factor * off_diagonal[k - 1]).mid())
        rhs.append((-factor * rhs[-1]).mid())
    z = [rhs[-1] / pivots[-1]]
    for k in range(n - 2, -1, -1):
        z.append(((rhs[k] - off_diagonal[k] * z[-1]) / pivots[k]).mid())
    result = np.empty(n, dtype=object)
    result[:] = z[::-1]
    return result


def _quadratic_form(diagonal: Sequence[Any], off_diagonal: Sequence[Any], z: Any) -> Any:
    total = sum(d * v * v for d, v in zip(diagonal, z, strict=True))
    return (total + 2 * sum(s * p * q for s, p, q in zip(off_diagonal, z[:-1], z[1:], strict=False))).mid()


def _enclosed(M: Any, y: Any, a: Any, b: float, size: Any) -> Reach:
    """Return the two bounds that a vector a gives."""
    target = balls.exactly(y)
    image = balls.product(M, a[:, None])[:, 0]
    needed = balls.root(balls.dot(a, image))
    longest = math.nextafter(float(needed.upper()), math.inf)  # float rounds to nearest
    t = min(1.0, math.nextafter(b / longest, 0.0))
    above = balls.norm(target - t * image) / size
    r = balls.middle(target - image)
    length = balls.norm(r)
    below: Any = 0.0
    if length > 0:
        spread = balls.root(balls.dot(r, balls.product(M, r[:, None])[:, 0]))
        below = float(((balls.dot(r, target) - b * spread) / (length * size)).lower())
    lower = max(0.0, math.nextafter(float(below), -math.inf))
    return Reach(b, lower, min(1.0, math.nextafter(float(above.upper()), math.inf)))
