"""Three built-in problems: ``alignver check`` without a subcommand runs them.

Each gives two answers: what the paper's tolerance says of the computed matrix, and what is true of the network in real
arithmetic. The sine wave is aligned, with a kappa of about 10^23: no training step can use the direction.

The matrices are decided with the rule ``press``, one of the two that the paper uses (Section 3.4). The Jacobians of
these networks are very wide, and the tolerance of the other rule grows with max(N, d), although the rounding errors of
the decomposition do not: with s_min / tolerance between 1 and 6 for two moons, that rule finds full rank but not over a
factor of ten around its tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver import require
from alignver.checks.alignment import check_alignment
from alignver.data import Dataset, semeion, sine_wave, two_moons
from alignver.experiments.networks import fully_connected, lenet
from alignver.results import CheckResult, Subject, Verdict

__all__ = ["Problem", "problems"]

Run = Callable[[int, str, str], CheckResult]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its data and what the paper says about them.

    Attributes
    ----------
    name : str
        A short name for a report.
    description : str
        Model and data in one sentence.
    expected : Verdict
        The verdict that the paper's result implies: of the computed matrix, at the paper's tolerance.
    network : Verdict
        The verdict about the network, in real arithmetic.
    source : str
        The paper's sentence that implies it.
    run : callable of (seed, device, dtype) to CheckResult
        Build the problem from a seed and check it. ``device`` is a torch device, ``dtype`` the dtype in which the
        Jacobian is computed: ``"float64"`` or ``"float32"``.
    """

    name: str
    description: str
    expected: Verdict
    network: Verdict
    source: str
    run: Run = dataclasses.field(repr=False)

    def of_computed_matrix(self, result: CheckResult) -> Verdict:
        """Return the verdict about the computed matrix."""
        return Verdict(result.measured.get("computed_matrix", {}).get("verdict", result.verdict))

    def agrees(self, result: CheckResult) -> bool:
        """Whether the computed matrix is as the paper says, and the network, if it is decided, as is true."""
        true = result.subject is not Subject.NETWORK or result.verdict is self.network
        return true and self.of_computed_matrix(result) is self.expected


def problems() -> list[Problem]:
    """Return the built-in problems, each at initialisation: two moons, the sine wave, and 40 Semeion digits.

    Examples
    --------
    >>> [(problem.name, problem.expected.value) for problem in problems()]
    [('two moons', 'HOLDS'), ('sine wave', 'FAILS'), ('Semeion digits', 'HOLDS')]
    """
    return [
        Problem(
            "two moons",
            "two moons, 100 points; fully connected, four layers, 300 wide, softplus 100",
            Verdict.HOLDS,
            Verdict.HOLDS,
            "Section 2.2: 'For the two-moons dataset, the network achieved the zero training error with Q_T = 0 "
            "for all T'",
            _two_moons,
        ),
        Problem(
            "sine wave",
            "y = 1{sin(20 x) < 0} at 100 points; fully connected, four layers, 300 wide, softplus 100",
            Verdict.FAILS,
            Verdict.HOLDS,
            "Section 2.2: 'For the sine wave dataset, it obtained high training errors with Q_T = T for all T'",
            _sine_wave,
        ),
        Problem(
            "Semeion digits",
            "40 of the Semeion digits drawn by the seed; LeNet, m_c = 1, softplus 100 (the paper: 1000 digits)",
            Verdict.HOLDS,
            Verdict.HOLDS,
            "Section 2.2: 'with the Semeion dataset, the networks of all sizes achieved the zero error with "
            "Q_T = 0 for all T'",
            _semeion,
        ),
    ]


def _two_moons(seed: int, device: str, dtype: str) -> CheckResult:
    data = two_moons(100)
    return _check(fully_connected(2, seed=seed), data, data.x, "binary_cross_entropy", device, dtype)


def _sine_wave(seed: int, device: str, dtype: str) -> CheckResult:
    data = sine_wave(100, seed=seed)
    return _check(fully_connected(1, seed=seed), data, data.x, "binary_cross_entropy", device, dtype)


def _semeion(seed: int, device: str, dtype: str) -> CheckResult:
    digits = semeion()
    data = digits.take(np.random.default_rng(seed).choice(len(digits), size=40, replace=False))
    return _check(lenet(m_c=1, classes=10, seed=seed), data, data.x, "cross_entropy", device, dtype)


def _check(
    model: nn.Module, data: Dataset, x: npt.NDArray[np.generic], loss: str, device: str, dtype: str
) -> CheckResult:
    require.one_of("dtype", dtype, ("float64", "float32"), need="'float64' or 'float32'")
    inputs = torch.from_numpy(x.astype(dtype)).to(device)
    return check_alignment(model.to(device), inputs, data.y, loss=loss, rule="press", dtype=dtype)
