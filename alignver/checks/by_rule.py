"""What every rank rule makes of one decomposition: rank, residual and verdict, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from alignver.checks.band import Band, floor
from alignver.linalg import rank_rules
from alignver.linalg.profile import RangeProfile
from alignver.linalg.rank_rules import Scale

__all__ = ["bounds_by_rule", "membership_by_rule"]


def membership_by_rule(
    profile: RangeProfile, scale: Scale, limit: float, rules: Sequence[str] = ("press", "golub")
) -> dict[str, dict[str, Any]]:
    """Return, for each rule, its tau, the rank and rho at tau, and the verdict of the band around tau.

    Parameters
    ----------
    profile : RangeProfile
        Of J and y, levels being singular values.
    scale : Scale
        Of J itself, whatever matrix of the same singular values was decomposed.
    limit : float
        eps_y: y counts as a member at tau if rho(tau) <= eps_y.
    rules : sequence of str
        Names of :data:`alignver.linalg.rank_rules.RULES`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "rank", "residual", "member", "verdict"}}``, NUMERICAL. ``member`` is what the rule says
        when it is taken at its word, with no band around its tolerance.

    Examples
    --------
    >>> import numpy as np
    >>> profile = RangeProfile(np.array([2.0, 1.0]), np.array([1.0, 0.5, 0.0]))
    >>> scale = Scale(2, 5, 2.0, None, 2.0**-52, 2.0**-52)
    >>> membership_by_rule(profile, scale, 1e-8)["press"]["verdict"]
    'HOLDS'
    """
    least = floor(scale.spectral, scale.rows, scale.columns)
    answers = {}
    for rule in rules:
        tau = rank_rules.tolerance(rule, scale)
        band = Band(tau, least, limit)
        residual = profile.rho(tau.value)
        answers[rule] = {
            "tolerance": tau.value,
            "rank": profile.rank(tau.value),
            "residual": residual,
            "member": residual <= limit,
            "verdict": band.membership(profile.rho(band.low), profile.rho(band.high)).value,
        }
    return answers


def bounds_by_rule(
    interval: Callable[[float], tuple[float, float]],
    scale: Scale,
    limit: float,
    rules: Sequence[str] = ("press", "golub"),
) -> dict[str, dict[str, Any]]:
    """Return, for each rule, its tau, the interval of rho at tau, and the verdict, from bounds of rho alone.

    Parameters
    ----------
    interval : callable
        The best lower and upper bound of rho(tau).
    scale, limit, rules
        As in :func:`membership_by_rule`.

    Returns
    -------
    dict
        ``{rule: {"tolerance", "residual", "verdict"}}``, NUMERICAL; bounds that do not tell give UNDECIDED.

    Examples
    --------
    >>> scale = Scale(2, 5, 2.0, None, 2.0**-52, 2.0**-52)
    >>> bounds_by_rule(lambda tau: (0.0, 1e-12), scale, 1e-8)["press"]["verdict"]
    'HOLDS'
    """
    least = floor(scale.spectral, scale.rows, scale.columns)
    answers = {}
    for rule in rules:
        tau = rank_rules.tolerance(rule, scale)
        band = Band(tau, least, limit)
        low, high = interval(band.low)[0], interval(band.high)[1]
        answers[rule] = {
            "tolerance": tau.value,
            "residual": list(interval(tau.value)),
            "verdict": band.membership(low, high).value,
        }
    return answers
