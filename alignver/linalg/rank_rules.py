"""The rank rules: at which tolerance a singular value counts as zero, by whom, and what each library would say.

Each rule is one entry of :data:`RULES`: a formula on the scale of the matrix, with its source. The published rules use
the epsilon of the dtype in which the matrix was *computed*; what a library says by default uses the epsilon of the
dtype that it was *handed*.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from alignver.errors import InvalidInput
from alignver.linalg.svd import RangeProfile
from alignver.results import Tolerance

__all__ = ["RULES", "RankRule", "Scale", "compare", "tolerance"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the rank rules know of an N x d matrix A.

    Attributes
    ----------
    rows, columns : int
        N and d.
    spectral : float
        The largest singular value s_1 = ||A||_2.
    row_sum : float or None
        ||A||_inf, the largest sum of magnitudes in a row; None for an operator, whose entries are not at hand.
    eps : float
        Epsilon of the dtype that the entries were computed in.
    handed_eps : float
        Epsilon of the dtype that the caller's array has; a library that is handed the array knows no other.
    """

    rows: int
    columns: int
    spectral: float
    row_sum: float | None
    eps: float
    handed_eps: float


@dataclasses.dataclass(frozen=True)
class RankRule:
    """One rule: its formula as text and as a function of the :class:`Scale`, its source, and who ships it."""

    name: str
    formula: str
    source: str
    shipped_by: str
    threshold: Callable[[Scale], float]
    levels: str = "singular values"


def _spacing(value: float) -> float:
    return math.ulp(value)


_LIST = (
    # Numerical Recipes sets w_j to zero at or below tsh = 0.5*sqrt(m+n+1)*w_max*eps, its estimate of the accumulated
    # rounding of the SVD as a random walk; eps is numeric_limits<double>::epsilon() = 2**-52.
    RankRule(
        "press",
        "s_1 (eps/2) sqrt(N + d + 1)",
        "Press et al., Numerical Recipes, 3rd ed. (2007), class SVD",
        "",
        lambda a: a.spectral * (a.eps / 2) * math.sqrt(a.rows + a.columns + 1),
    ),
    # s_1 >= ... >= s_r > delta >= s_{r+1} with the delta that the libraries settled on: the error of each computed
    # singular value is a modest polynomial in the dimensions times eps*s_1, and max(N, d) stands for the polynomial.
    RankRule(
        "golub",
        "s_1 eps max(N, d)",
        "Golub & Van Loan, Matrix Computations, numerical rank by SVD",
        "NumPy, PyTorch, SciPy (pinv, orth, null_space)",
        lambda a: a.spectral * a.eps * max(a.rows, a.columns),
    ),
    # The delta that Golub & Van Loan themselves propose for data that are exact up to rounding: u ||A||_inf.
    RankRule(
        "golub-inf",
        "(eps/2) ||A||_inf",
        "Golub & Van Loan, Matrix Computations, numerical rank by SVD, delta = u ||A||_inf",
        "",
        lambda a: a.eps / 2 * a.row_sum if a.row_sum is not None else math.nan,
    ),
    # Column pivoting stops when ||R_22|| <= eps_1 ||A||; here ||R_22|| in the Frobenius norm (never smaller than the
    # spectral norm), ||A|| = s_1, eps_1 = eps.
    RankRule(
        "golub-qr",
        "||R_22||_F <= s_1 eps",
        "Golub & Van Loan, Matrix Computations, QR with column pivoting",
        "",
        lambda a: a.spectral * a.eps,
        levels="trailing norms",
    ),
    # rank() of Octave and MATLAB takes the spacing of the floats at s_1, at most a factor of two below s_1*eps.
    RankRule(
        "matlab",
        "max(N, d) spacing(s_1)",
        "MATLAB reference, rank: max(size(A)) eps(norm(A))",
        "MATLAB",
        lambda a: max(a.rows, a.columns) * _spacing(a.spectral) * (a.handed_eps / 2.0**-52),
    ),
    RankRule(
        "julia",
        "s_1 eps min(N, d)",
        "Julia, LinearAlgebra.rank: rtol = min(size(A)...) eps",
        "Julia",
        lambda a: a.spectral * a.handed_eps * min(a.rows, a.columns),
    ),
    RankRule(
        "scipy-lstsq",
        "s_1 eps",
        "SciPy, linalg.lstsq: cond = eps",
        "SciPy (lstsq)",
        lambda a: a.spectral * a.handed_eps,
    ),
)

RULES: Mapping[str, RankRule] = MappingProxyType({rule.name: rule for rule in _LIST})
"""Every rank rule by name; ``rule=`` of the checks takes one of these names."""


def tolerance(rule: str, scale: Scale, given: float | None = None) -> Tolerance:
    """Return the tolerance that a rule, or the caller, sets for a matrix.

    Parameters
    ----------
    rule : str
        A name of :data:`RULES`.
    scale : Scale
        The matrix's scale.
    given : float, optional
        The caller's own tolerance delta, checked and in the units of the singular values; it overrides the rule.

    Raises
    ------
    InvalidInput
        If the rule has no such name, or asks for what an operator cannot give.

    Examples
    --------
    >>> scale = Scale(rows=2, columns=3, spectral=4.0, row_sum=5.0, eps=2.0**-52, handed_eps=2.0**-52)
    >>> tolerance("golub", scale).value == 4.0 * 3 * 2.0**-52
    True
    """
    entry = find(rule)
    if given is not None:
        return Tolerance("given", given, "the caller's", "given by the caller", scale.eps)
    value = entry.threshold(scale)
    if math.isnan(value):
        raise InvalidInput("rule", f"{rule!r} for an operator", "a rule that needs no entries: 'golub' or 'press'")
    return Tolerance(entry.name, value, entry.formula, entry.source, scale.eps)


def find(rule: str) -> RankRule:
    """Return the rule of that name, or raise :class:`~alignver.errors.InvalidInput` listing the names there are."""
    if not isinstance(rule, str) or rule not in RULES:
        raise InvalidInput("rule", repr(rule), "one of " + ", ".join(RULES))
    return RULES[rule]


def checked_tolerance(value: float, name: str) -> float:
    """Return a caller's tolerance as a float, refusing what is no finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidInput(name, repr(value), "a finite number >= 0")
    return float(value)


def compare(
    scale: Scale, svd: RangeProfile | None, qr: RangeProfile | None, unit: float = 1.0
) -> tuple[dict[str, object], ...]:
    """Return every rule's tolerance and the rank that it gives, side by side.

    A rule on singular values is answered from the SVD's profile and one on trailing norms from the pivoted QR's; a rule
    whose decomposition was not made is left out. ``unit`` is what the matrix was divided by; tolerances come back in
    the caller's units.
    """
    rows: list[dict[str, object]] = []
    for rule in RULES.values():
        profile = svd if rule.levels == "singular values" else qr
        value = rule.threshold(scale)
        if profile is None or math.isnan(value):
            continue
        row = {"rule": rule.name, "formula": rule.formula, "tolerance": value * unit, "rank": profile.rank(value)}
        rows.append(row | {"shipped_by": rule.shipped_by, "source": rule.source})
    return tuple(rows)
