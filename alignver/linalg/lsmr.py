"""LSMR (Fong and Saunders 2011) in standard array calls: least squares with an operator J.

The lsmr of SciPy works on NumPy vectors. Here the vectors stay on the device of the operator's products.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from alignver.arrays import Array
from alignver.linalg.norms import norm
from alignver.progress import track

_ACCURACY = 1e-14


@dataclasses.dataclass(frozen=True)
class Iterate:
    """A least-squares iterate and the norms that bound its error, measured with the operator itself.

    Attributes
    ----------
    b : (d,) float64
    residual : float
        ||y - J b||.
    gradient : float
        ||J^T (y - J b)||; zero at a least-squares solution.
    size : float
        ||b||.
    iterations : int
    """

    b: Array
    residual: float
    gradient: float
    size: float
    iterations: int

    def residual_bounds(self, tau: float) -> tuple[float, float]:
        """Return lower and upper bounds of ||(I - P_tau) y||, P_tau the projector on span{u_k : s_k > tau}.

        With r = y - J b: (I - P_tau) y = (I - P_tau) J b + (I - P_tau) r, and ||(I - P_tau) J b|| <= tau ||b||, so the
        norm is at most tau ||b|| + ||r||. On span{u_k : s_k > tau}, ||J^T r|| >= tau ||P_tau r||, so
        ||(I - P_tau) r||^2 >= ||r||^2 - (||J^T r|| / tau)^2, and the norm is at least the root of that minus tau ||b||.
        Both bounds hold for every b, converged or not, up to rounding.
        """
        upper = tau * self.size + self.residual
        inside = self.gradient / tau if tau > 0.0 else math.inf
        outside = math.sqrt(max(0.0, (self.residual - inside) * (self.residual + inside))) if inside < math.inf else 0.0
        return max(0.0, outside - tau * self.size), upper


def lsmr(operator: Any, target: Array, *, iterations: int | None = None) -> Iterate:
    """Minimize ||y - J b|| with products by J and J^T only.

    Stops when ||J^T r|| <= 1e-14 ||J|| ||r|| or ||r|| <= 1e-14 (||J|| ||b|| + ||y||), with the norms as LSMR estimates
    them, or after ``iterations``.

    Parameters
    ----------
    operator : object with shape, matvec, rmatvec
    target : (N,) float64
    iterations : int, optional
        The largest number of iterations, each with one product by J and one by J^T; None: 4 min(N, d) + 200.

    Returns
    -------
    Iterate
        Its norms are measured from b at the end, not taken from the recurrences.
    """
    n, d = operator.shape
    limit = iterations if iterations is not None else 4 * min(n, d) + 200
    size = norm(target)
    if size == 0.0:
        return Iterate(0.0 * operator.rmatvec(target), 0.0, 0.0, 0.0, 0)
    u = target / size
    v = operator.rmatvec(u)
    alpha = norm(v)
    if alpha == 0.0:
        return Iterate(v, size, 0.0, 0.0, 0)
    v = v / alpha
    zetabar, alphabar, rho, rhobar, cbar, sbar = alpha * size, alpha, 1.0, 1.0, 1.0, 0.0
    h, hbar, b = v, 0.0 * v, 0.0 * v
    # Recurrences for ||r|| and ||J||, in the notation of section 5 of the paper.
    betadd, betad, rhodold, tautildeold, thetatilde, zeta, remainder = size, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0
    frobenius_squared = alpha**2
    done = 0
    for _ in track(range(limit), "LSMR"):
        done += 1
        u = operator.matvec(v) - alpha * u
        beta = norm(u)
        if beta > 0.0:
            u = u / beta
            v = operator.rmatvec(u) - beta * v
            alpha = norm(v)
            if alpha > 0.0:
                v = v / alpha
        rhoold, (c, s, rho) = rho, _rotation(alphabar, beta)
        thetanew, alphabar = s * alpha, c * alpha
        rhobarold, zetaold = rhobar, zeta
        thetabar, rhotemp = sbar * rho, cbar * rho
        cbar, sbar, rhobar = _rotation(rhotemp, thetanew)
        zeta, zetabar = cbar * zetabar, -sbar * zetabar
        hbar = h - (thetabar * rho / (rhoold * rhobarold)) * hbar
        b = b + (zeta / (rho * rhobar)) * hbar
        h = v - (thetanew / rho) * h
        betaacute, betahat = betadd, c * betadd
        betadd = -s * betaacute
        thetatildeold = thetatilde
        ctilde, stilde, rhotildeold = _rotation(rhodold, thetabar)
        thetatilde, rhodold = stilde * rhobar, ctilde * rhobar
        betad = -stilde * betad + ctilde * betahat
        tautildeold = (zetaold - thetatildeold * tautildeold) / rhotildeold
        taud = (zeta - thetatilde * tautildeold) / rhodold
        residual = math.sqrt(remainder + (betad - taud) ** 2 + betadd**2)
        frobenius_squared += beta**2
        frobenius = math.sqrt(frobenius_squared)
        frobenius_squared += alpha**2
        if alpha == 0.0 or beta == 0.0 or abs(zetabar) <= _ACCURACY * frobenius * residual:
            break
        if residual <= _ACCURACY * (frobenius * norm(b) + size):
            break
    r = target - operator.matvec(b)
    return Iterate(b, norm(r), norm(operator.rmatvec(r)), norm(b), done)


def _rotation(a: float, b: float) -> tuple[float, float, float]:
    """Return (c, s, r) with c a + s b = r >= 0 and -s a + c b = 0; the identity where both are zero."""
    r = math.hypot(a, b)
    return (1.0, 0.0, 0.0) if r == 0.0 else (a / r, b / r, r)
