"""Table 6: test errors of the wrapper with L-BFGS for exploitation, over the grid of epsilon and tau_0."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from alignver.experiments import grid
from alignver.experiments.conduct import spread
from alignver.experiments.image_runs import WRAPPER, ImageRun, effort
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_PAPER = {
    True: grid.Grid(6, ((0.26, 0.38, 0.37), (0.37, 0.32, 0.37))),
    False: grid.Grid(6, ((0.36, 0.43, 0.42), (0.42, 0.35, 0.35))),
}
"""Table 6(a), with data augmentation, and (b), without; one run each, MNIST."""
_SIDES = {"with augmentation": True, "without augmentation": False}


class _Table6:
    name = "table6"
    title = "Test errors with L-BFGS for exploitation, ResNet-18 on MNIST"
    source = "Table 6"
    datasets: tuple[str, ...] = tuple(_SIDES)
    cost = "reduced: 7 minutes on one core; in full: not measured"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each pair of the grid, and those of SGD that the paper compares them with."""
        return [
            run.part(setting)
            for side in setting.chosen(self.datasets)
            for run in (*_lbfgs(setting, _SIDES[side]).values(), *_sgd(setting, _SIDES[side]))
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the best pair with SGD for exploitation at the paper's choice: 'can potentially lead to
        improvements'.
        """
        results = []
        for side in setting.chosen(self.datasets):
            augmented = _SIDES[side]
            size = effort(setting, "mnist", augmented)
            claim = f"{size.label}MNIST {side}: L-BFGS in exploitation can improve on SGD"
            runs, others = _lbfgs(setting, augmented), _sgd(setting, augmented)
            paper = {_pair(*pair): _PAPER[augmented].at(*pair) for pair in runs}
            wanted = [run.key for run in (*runs.values(), *others)]
            if any(key not in measured for key in wanted):
                done = sum(key in measured for key in wanted)
                reason = f"{size.word}{done} of {len(wanted)} runs done"
                results.append(compared(self, claim, Verdict.UNDECIDED, reason, paper=paper))
                continue
            ours = {_pair(*pair): measured[run.key]["test"] for pair, run in runs.items()}
            plain = [measured[run.key]["test"] for run in others]
            best = min(ours.values())
            results.append(
                compared(
                    self,
                    claim,
                    Verdict.HOLDS if best < fmean(plain) else Verdict.FAILS,
                    f"{size.word}{best:.2f} % at the best of six pairs, SGD {spread(plain)} % at the paper's choice",
                    paper=paper,
                    ours=ours,
                    evidence=[
                        "the best of six on the test set, as in the paper: what is possible, not what to expect",
                        "read here: one step of L-BFGS (20 iterations, strong Wolfe) an epoch, on all images",
                    ],
                )
            )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


def _lbfgs(setting: Setting, augmented: bool) -> dict[tuple[float, float], ImageRun]:
    size = effort(setting, "mnist", augmented)
    return {
        (epsilon, tau): ImageRun("mnist", augmented, WRAPPER, 0, size, epsilon, tau, solver="lbfgs")
        for epsilon in grid.EPSILONS
        for tau in grid.TAUS
    }


def _sgd(setting: Setting, augmented: bool) -> list[ImageRun]:
    size = effort(setting, "mnist", augmented)
    return [
        ImageRun("mnist", augmented, WRAPPER, seed, size, *grid.chosen("mnist", augmented))
        for seed in range(size.seeds)
    ]


def _pair(epsilon: float, tau: float) -> str:
    return f"epsilon {epsilon:g}, tau_0 {tau:g}"


ITEM: Item = _Table6()
