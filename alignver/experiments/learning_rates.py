"""The study of learning rates (section 3.4.2): test errors of both methods, each at its best rate."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from alignver.experiments import grid
from alignver.experiments.conduct import spread
from alignver.experiments.errors_compared import comparable
from alignver.experiments.image_runs import STANDARD, WRAPPER, ImageRun, effort
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_RATES = (0.2, 0.1, 0.01, 0.001)
_PAPER = {STANDARD: "0.33 (0.03)", WRAPPER: "0.27 (0.03)"}


class _LearningRates:
    name = "learning-rates"
    title = "Test errors at the best learning rate, ResNet-18 on MNIST"
    source = "Section 3.4.2, effect of learning rate"
    datasets: tuple[str, ...] = ()
    cost = "reduced: 11 minutes on one core; in full: not measured"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each method, rate and seed."""
        return [run.part(setting) for runs in _runs(setting).values() for run in runs]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the methods, each at the rate with its smallest mean error."""
        size = effort(setting, "mnist", True)
        claim = f"{size.label}the wrapper is no worse than the standard method, each at its best rate of {_listed()}"
        runs = _runs(setting)
        wanted = [run.key for own in runs.values() for run in own]
        if any(key not in measured for key in wanted):
            done = sum(key in measured for key in wanted)
            return [
                compared(self, claim, Verdict.UNDECIDED, f"{size.word}{done} of {len(wanted)} runs done", paper=_PAPER)
            ]
        errors = {pair: [measured[run.key]["test"] for run in own] for pair, own in runs.items()}
        best = {name: min(_RATES, key=lambda rate: fmean(errors[name, rate])) for name in _PAPER}
        standard, wrapped = (errors[name, best[name]] for name in (STANDARD, WRAPPER))
        ours = {STANDARD: spread(standard), WRAPPER: spread(wrapped)}
        return [
            compared(
                self,
                claim,
                Verdict.HOLDS if comparable(standard, wrapped) else Verdict.FAILS,
                f"{size.word}{ours[STANDARD]} % at rate {best[STANDARD]:g} (standard), {ours[WRAPPER]} % at rate "
                f"{best[WRAPPER]:g} (wrapper)",
                paper=_PAPER,
                ours=ours,
                evidence=[
                    "the rate is chosen by the test error, as the paper's words are read",
                    "no worse means: no worse than by two standard errors of the difference",
                    *(
                        f"{name}: " + ", ".join(f"{spread(errors[name, rate])} at {rate:g}" for rate in _RATES)
                        for name in _PAPER
                    ),
                ],
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return None: these are two numbers."""
        return None


def _runs(setting: Setting) -> dict[tuple[str, float], list[ImageRun]]:
    size = effort(setting, "mnist", True)
    chosen = {WRAPPER: grid.chosen("mnist", True), STANDARD: (None, None)}
    return {
        (name, rate): [ImageRun("mnist", True, name, seed, size, epsilon, tau, rate=rate) for seed in range(size.seeds)]
        for name, (epsilon, tau) in chosen.items()
        for rate in _RATES
    }


def _listed() -> str:
    return ", ".join(f"{rate:g}" for rate in _RATES)


ITEM: Item = _LearningRates()
