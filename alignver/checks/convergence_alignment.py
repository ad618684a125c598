"""Theorem 3 held against a recorded run: the loss beside a bound made of nu, beta-hat and a Lipschitz constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.arrays import as_vector, host
from alignver.errors import InvalidInput
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict
from alignver.theory.alignment_bounds import theorem_3, zeta
from alignver.theory.record import TrainingRecord

__all__ = ["check_theorem_3"]

STATEMENT = "Theorem 3"


def check_theorem_3(
    record: TrainingRecord,
    *,
    aligned: Any,
    nu_norms: Any,
    beta_norms: Any,
    target: float,
    lipschitz: float,
) -> CheckResult:
    r"""Check the bound of Theorem 3 along a recorded run of gradient descent.

    .. math:: \min_{t \in T} \mathcal L(\theta^t) \le \mathcal L^*(\eta Y^*) + \frac{1}{\sqrt{|T|}}
              \sqrt{\frac{L\, \zeta_\eta\, \mathcal L(\theta^{t_0})}{2 \alpha (1 - \alpha)}}, \qquad
              \alpha^t = \frac{2 \alpha}{L}

    Parameters
    ----------
    record : TrainingRecord
        Of the whole loss over all parameters, before tau; entries from tau on are left out.
    aligned : (T,) bool
        At which recorded steps vec(Y*) was in the column space of the Jacobian.
    nu_norms, beta_norms : (T,) arrays
        :math:`\|\nu(\theta^t)\|` and :math:`\|\hat\beta(\theta^t, \eta)\|`; looked at where aligned.
    target : float
        :math:`\mathcal L^*(\eta Y^*)`.
    lipschitz : float
        L. An upper bound on the region of the run is rarely known.

    Returns
    -------
    CheckResult
        NUMERICAL at most. UNDECIDED where the method is not gradient descent, the step is not constant and below 2 / L,
        or no step was aligned.

    Raises
    ------
    InvalidInput
        Lengths that differ, a Lipschitz constant that is not positive.

    Examples
    --------
    >>> record = TrainingRecord([0, 1], [1.0, 0.5], [0.5, 0.5], 9, "gradient descent")
    >>> norms = {"nu_norms": [1.0, 1.0], "beta_norms": [2.0, 2.0]}
    >>> check_theorem_3(record, aligned=[1, 1], **norms, target=0.0, lipschitz=2.0).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if not 0.0 < lipschitz < math.inf:
        raise InvalidInput("lipschitz", repr(lipschitz), "a positive finite number")
    columns = {}
    for name, values in (("aligned", aligned), ("nu_norms", nu_norms), ("beta_norms", beta_norms)):
        columns[name] = np.asarray(host(as_vector(values, name).array), dtype=np.float64)
        if columns[name].shape != record.steps.shape:
            raise InvalidInput(name, f"{columns[name].size} entries", f"{record.steps.size}, one for each step")
    explored = ~np.asarray(record.exploiting)
    counted = explored & (columns["aligned"] != 0.0)
    sizes = record.step_sizes[explored]
    if not bool(counted.any()):
        return _undecided("at no recorded step of the exploration phase vec(Y*) was in the column space")
    if record.method != "gradient descent":
        return _undecided(f"the method is {record.method!r}, not 'gradient descent'")
    if float(sizes.max()) > float(sizes.min()) * (1.0 + 1e-9):
        return _undecided("the step varies")
    alpha = 0.5 * float(sizes[0]) * lipschitz
    if not 0.0 < alpha < 1.0:
        return _undecided(f"the step {sizes[0]:.4g} is not below 2 / L = {2.0 / lipschitz:.4g}")
    size = zeta(columns["nu_norms"][counted], columns["beta_norms"][counted])
    losses = record.losses[counted]
    count = int(counted.sum())
    limit = theorem_3(float(losses[0]), target, lipschitz, alpha, size, count)
    least = float(losses.min())
    holds = least <= limit * (1.0 + 1e-9)
    said = "below" if holds else "above"
    return CheckResult(
        name="theorem_3",
        statement=STATEMENT,
        verdict=Verdict.HOLDS if holds else Verdict.FAILS,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code="theorem-3-kept" if holds else "theorem-3-violated",
        reason=f"the least loss of {count} aligned steps is {least:.4g}, {said} the bound {limit:.4g}",
        evidence=("L is the caller's: with a lower bound of it, as power iteration gives, this shows little",),
        measured={"least_loss": least, "bound": limit, "zeta": size, "alpha": alpha, "aligned_steps": count},
        bounds=(Bound("least loss", least, "<=", limit),),
        witness=None if holds else {"kind": "loss", "loss": least, "bound": limit},
    )


def _undecided(why: str) -> CheckResult:
    about: dict[str, Any] = {"subject": Subject.NETWORK, "code": "theorem-3-premise-missing"}
    return CheckResult("theorem_3", STATEMENT, Verdict.UNDECIDED, Rigor.NUMERICAL, why, **about)
