"""When a numerical verdict stands: over a factor of ten in every tolerance that it rests on, and above rounding.

The exact rho(tau) of a matrix is a step function; a verdict read off next to a step says more about the tolerance than
about the matrix. So a verdict has to be the same at tau/10 and at 10 tau, with a tenth of the residual tolerance for
HOLDS and ten times it for FAILS; anything else is UNDECIDED.
"""

from __future__ import annotations

import dataclasses
import math

from alignver.linalg.profile import RangeProfile
from alignver.results import Tolerance, Verdict

__all__ = ["FACTOR", "Band", "residual_tolerance"]

FACTOR = 10.0
"""How far a tolerance may be off, either way, without the verdict changing (THEORY: [tau/10, 10 tau])."""


@dataclasses.dataclass(frozen=True)
class Band:
    """The tolerances over which a verdict has to stand.

    Attributes
    ----------
    tolerance : Tolerance
        tau, in the units that the levels are in.
    floor : float
        What the decomposition itself cannot resolve. LAPACK's SVD returns the singular values of A + E with
        ||E||_2 <= p(N, d) eps s_1 (LAPACK Users' Guide, section 4.9); p = min(N, d) is its customary, pessimistic
        value. A computed singular value at or below the floor may be zero, so none may speak for HOLDS.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    """

    tolerance: Tolerance
    floor: float
    limit: float = 0.0

    @property
    def low(self) -> float:
        """The smallest tolerance looked at: tau / 10."""
        return self.tolerance.value / FACTOR

    @property
    def high(self) -> float:
        """The largest tolerance looked at: 10 tau, or the floor where 10 tau is below it."""
        return max(self.tolerance.value * FACTOR, self.floor)

    def membership(self, rho_low: float, rho_high: float) -> Verdict:
        """Return the verdict from rho at both ends of the band (rho is non-decreasing in between)."""
        if rho_high <= self.limit / FACTOR:
            return Verdict.HOLDS
        if rho_low > self.limit * FACTOR:
            return Verdict.FAILS
        return Verdict.UNDECIDED

    def rank(self, profile: RangeProfile, claimed: int) -> Verdict:
        """Return the verdict on 'the rank is ``claimed``' from the ranks at both ends of the band."""
        least, most = profile.rank(self.high), profile.rank(self.low)
        if least == most == claimed:
            return Verdict.HOLDS
        if not least <= claimed <= most:
            return Verdict.FAILS
        return Verdict.UNDECIDED


def floor(spectral: float, rows: int, columns: int) -> float:
    """Return min(N, d) eps s_1 with the eps of float64, in which every decomposition is made."""
    return min(rows, columns) * 2.0**-52 * spectral


def residual_tolerance(eps: float) -> float:
    """Return the default eps_y = sqrt(eps).

    For y = J b, ||(I - P_tau) y|| <= tau ||b||. With tau a modest multiple of eps s_1, sqrt(eps) accepts every member
    whose coefficients are not larger than about eps^(-1/2) ||y|| / s_1, and mistakes for members only targets within
    sqrt(eps) ||y|| of the column space: half of the digits for the solution, half for the answer.
    """
    return math.sqrt(eps)
