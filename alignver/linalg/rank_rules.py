"""The rank rules: the tolerances below which a singular value counts as zero, with their sources and libraries.

Each rule is one entry of :data:`RULES`: a formula on the scale of the matrix, with its source. The published rules use
the epsilon of the dtype in which the matrix was *computed*; the default of a library uses the epsilon of the dtype that
is *passed* to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from alignver import require
from alignver.errors import InvalidInput
from alignver.linalg.svd import RangeProfile
from alignver.results import Tolerance


@dataclasses.dataclass(frozen=True)
class Scale:
    """The quantities of an N x d matrix A that the rank rules depend on.

    Attributes
    ----------
    rows, columns : int
        N and d.
    spectral : float
        The largest singular value s_1 = ||A||_2.
    row_sum : float or None
        ||A||_inf, the largest sum of magnitudes in a row; None for an operator, whose entries are unavailable.
    eps : float
        Epsilon of the dtype in which the entries were computed.
    handed_eps : float
        Epsilon of the dtype of the caller's array, the one that a library uses.
    """

    rows: int
    columns: int
    spectral: float
    row_sum: float | None
    eps: float
    handed_eps: float


@dataclasses.dataclass(frozen=True)
class RankRule:
    """One rule: its formula as text and as a function of the :class:`Scale`, its source, and who uses it."""

    name: str
    formula: str
    source: str
    shipped_by: str
    threshold: Callable[[Scale], float]
    levels: str = "singular values"


FACTOR = 10.0
"""How far a tolerance may be off, either way, without a verdict changing (THEORY: [tau/10, 10 tau])."""

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
        lambda a: max(a.rows, a.columns) * math.ulp(a.spectral) * (a.handed_eps / 2.0**-52),
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
"""Every rank rule by name; the argument ``rule`` of the checks takes one of these names."""


def tolerance(rule: str, scale: Scale, given: float | None = None) -> Tolerance:
    """Return the tolerance for a matrix, from a rule or from the caller.

    Parameters
    ----------
    rule : str
        A name of :data:`RULES`.
    scale : Scale
        The scale of the matrix.
    given : float, optional
        The caller's tolerance, validated and in the units of the singular values; it overrides the rule.

    Raises
    ------
    InvalidInput
        If the name is unknown, or the rule needs the entries of an operator.

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
        need = "a rule that needs no entries: 'golub' or 'press'"
        raise InvalidInput("rule", f"{rule!r} for an operator", need, code="conflicting-arguments")
    return Tolerance(entry.name, value, entry.formula, entry.source, scale.eps)


def find(rule: str) -> RankRule:
    """Return the rule of that name, or raise :class:`~alignver.errors.InvalidInput` with the list of names."""
    return RULES[require.one_of("rule", rule, RULES)]


def checked_tolerance(value: float, name: str) -> float:
    """Return the caller's tolerance as a float; it must be finite and non-negative."""
    return require.real(name, value, least=0)


def compare(
    scale: Scale, svd: RangeProfile | None, qr: RangeProfile | None, unit: float = 1.0
) -> tuple[dict[str, object], ...]:
    """Return every rule's tolerance and the rank that it gives, side by side.

    A rule on singular values is evaluated with the profile of the SVD, a rule on trailing norms with that of the
    pivoted QR; rules without a profile are omitted. ``unit`` is the number that the matrix was divided by; tolerances
    are returned in the caller's units.
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
