"""LSMR (Fong and Saunders 2011) in standard array calls: least squares with an operator J.

The lsmr of SciPy works on NumPy vectors. Here the vectors stay on the device of the operator's products.

An operator of the caller is known by its products alone. Each is checked before it enters an iteration (real, of the
right length, without an exception of the caller's code) and scaled into the range of float64.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from alignver.arrays import EPS, Array, namespace, native
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.linalg.norms import norm, power_of_two
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


_LARGE = 400  # exponents beyond which squares are not in range, as of norms.extreme_scale


class Operator:
    """An operator J / unit with validated products in float64.

    Parameters
    ----------
    operator : object with shape, matvec and rmatvec
    name : str
        Its name in messages.

    Attributes
    ----------
    unit : float
        A power of two.
    eps : float
        The coarsest epsilon of the dtypes of the products so far.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> operator = Operator(aslinearoperator(1e-200 * np.eye(2)), "J")
    >>> operator.scale(np.ones(2))
    >>> bool(operator.matvec(np.ones(2))[0] * operator.unit == 1e-200)
    True
    """

    def __init__(self, operator: Any, name: str) -> None:
        self.operator, self.name = operator, name
        self.shape = self._shape()
        self.unit, self.eps = 1.0, EPS["float64"]

    def _shape(self) -> tuple[int, int]:
        shape = self.operator.shape
        try:
            rows, columns = (int(size) for size in shape)
        except (TypeError, ValueError) as error:
            got = f"an operator of shape {shape!r}"
            raise InvalidInput(self.name, got, "a shape of two integers", "wrong-shape") from error
        if rows < 1 or columns < 1:
            got = f"an operator of shape {(rows, columns)}"
            raise InvalidInput(self.name, got, "an operator that is not empty", "wrong-shape")
        return rows, columns

    def scale(self, vector: Array) -> None:
        """Choose the unit: 1, or the size of the products where their squares could overflow or underflow.

        The size is that of J^T times ``vector``, which is made smaller or larger where this overflows or vanishes.
        """
        xp = namespace(vector)
        for exponent in (0, -512, 512):
            image = self.rmatvec(vector * math.ldexp(1.0, exponent))
            if bool(xp.all(xp.isfinite(image))) and bool(xp.any(image != 0.0)):
                size = math.frexp(power_of_two(image))[1] - 1 - exponent
                self.unit = math.ldexp(1.0, min(max(size, -1021), 1021)) if abs(size) > _LARGE else 1.0
                return

    def require_adjoint(self, u: Array, v: Array) -> None:
        """Refuse an operator whose rmatvec is not the adjoint of its matvec: u^T J v is computed by both.

        In floats the two differ by at most about N eps (||u|| ||J v|| + ||J^T u|| ||v||); the root of eps is allowed.
        """
        xp = namespace(u)
        image, adjoint = self.matvec(v), self.rmatvec(u)
        forth, back = float(xp.sum(u * image)), float(xp.sum(adjoint * v))
        size = norm(u) * norm(image) + norm(adjoint) * norm(v)
        if abs(forth - back) > math.sqrt(self.eps) * size:
            got = f"an operator whose rmatvec is not the adjoint of its matvec: u^T (J v) is {forth * self.unit:.3g}, "
            need = "products J v of matvec(v) and J^T u of rmatvec(u), with the same J"
            raise InvalidInput(self.name, f"{got}(J^T u)^T v is {back * self.unit:.3g}", need)

    def matvec(self, vector: Array) -> Array:
        """Return J v / unit."""
        return self._product("matvec", vector, self.shape[0])

    def rmatvec(self, vector: Array) -> Array:
        """Return J^T u / unit."""
        return self._product("rmatvec", vector, self.shape[1])

    def _product(self, kind: str, vector: Array, length: int) -> Array:
        """Divide by half of the unit before, and by the other half after the product: neither leaves the range."""
        half = math.ldexp(1.0, (math.frexp(self.unit)[1] - 1) // 2)
        try:
            value = getattr(self.operator, kind)(vector if self.unit == 1.0 else vector / half)
        except (InvalidInput, MemoryError):
            raise
        except Exception as error:  # the caller's code
            got = f"an operator whose {kind} raises {type(error).__name__}: {first_line(error)}"
            need = "products J v of matvec(v) and J^T u of rmatvec(u)"
            raise InvalidInput(self.name, got, need) from error
        result = native(value, self.name)
        dtype = str(result.dtype).rpartition(".")[2]
        if dtype not in EPS:
            got = (
                f"an operator with products of dtype {dtype}" if dtype != "object" else f"products of {kind_of(value)}"
            )
            need = "real floating-point products"
            if dtype.startswith("complex"):
                need += "; [[Re J, -Im J], [Im J, Re J]] with [Re y, Im y] asks the same in real numbers"
            raise InvalidInput(self.name, got, need, "wrong-dtype")
        if math.prod(result.shape) != length:
            got = f"an operator of shape {self.shape} whose {kind} gives shape {tuple(result.shape)}"
            raise InvalidInput(self.name, got, f"a vector of {length} entries", "wrong-shape")
        self.eps = max(self.eps, EPS[dtype])
        xp, like = namespace(result), namespace(vector)
        if xp is not like:
            got = f"products of {kind_of(value)} for a vector that is {kind_of(vector)}"
            raise InvalidInput(self.name, got, "products in the library of y", "wrong-type")
        result = xp.reshape(result, (length,)) if result.ndim != 1 else result
        result = result if dtype == "float64" else xp.astype(result, xp.float64)
        return result if self.unit == 1.0 else result / (self.unit / half)
