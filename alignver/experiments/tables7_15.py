"""Tables 7 to 15: validation errors of the wrapper over the grid of epsilon and tau_0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignver.experiments import grid
from alignver.experiments.image_runs import WRAPPER, ImageRun, effort
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_FACTOR = 2.0  # by which a validation error of one run may differ: the paper's own entries differ so among themselves
_SETS = {
    f"{dataset}{'' if augmented else ' without augmentation'}": (dataset, augmented)
    for dataset, augmented in sorted(grid.TABLES, key=lambda pair: (pair[0] != "semeion", grid.TABLES[pair].table))
}


class _Tables7To15:
    name = "tables7-15"
    title = "Validation errors over the grid of epsilon and tau_0, ResNet-18"
    source = "Tables 7 to 15"
    datasets: tuple[str, ...] = tuple(_SETS)
    cost = "reduced, on one core: 3 to 5 minutes each for Semeion, MNIST and CIFAR-10; in full: not measured"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each pair of each grid; Semeion's alone unless others are asked for."""
        return [
            run.part(setting)
            for name in setting.chosen(self.datasets, self.datasets[:1])
            for run in _runs(setting, *_SETS[name]).values()
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Ask whether the pairs differ little, and in full size whether the paper's errors come out."""
        results = []
        for name in setting.chosen(self.datasets, self.datasets[:1]):
            dataset, augmented = _SETS[name]
            printed = grid.TABLES[dataset, augmented]
            size = effort(setting, dataset, augmented)
            claim = f"{size.label}Table {printed.table}, {name}: the choice of epsilon and tau_0 matters little"
            runs = _runs(setting, dataset, augmented)
            paper = {_pair(*pair): printed.at(*pair) for pair in runs}
            done = [run.key for run in runs.values() if run.key in measured]
            if len(done) < len(runs):
                reason = f"{size.word}{len(done)} of {len(runs)} runs done"
                results.append(compared(self, claim, Verdict.UNDECIDED, reason, paper=paper))
                continue
            ours = {_pair(*pair): measured[run.key]["test"] for pair, run in runs.items()}
            low, high = min(ours.values()), max(ours.values())
            widest = max(paper.values()) / min(paper.values())
            factor = high / low if low > 0 else float("inf")
            tests = measured[done[0]]["tests"]
            slack = 100.0 * 2.0 / tests  # two images
            little = high <= widest * low + slack
            results.append(
                compared(
                    self,
                    claim,
                    Verdict.HOLDS if little else Verdict.FAILS,
                    f"{size.word}validation errors from {low:.2f} % to {high:.2f} %, a factor of {factor:.2f}; the "
                    f"paper's factor {widest:.2f}",
                    paper=paper,
                    ours=ours,
                    evidence=[
                        f"one run each, {tests} validation images: an image is {100.0 / tests:.2g} %",
                        "matters little means: the errors span no larger factor than the paper's, up to two images",
                    ],
                )
            )
            if not size.reduced:
                near = all(paper[key] / _FACTOR <= ours[key] <= paper[key] * _FACTOR for key in paper)
                results.append(
                    compared(
                        self,
                        f"Table {printed.table}, the validation errors on {name}",
                        Verdict.HOLDS if near else Verdict.FAILS,
                        f"from {low:.2f} % to {high:.2f} %",
                        paper=paper,
                        ours=ours,
                        evidence=[f"agree means: each within a factor of {_FACTOR:g}"],
                    )
                )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: tables have no figure."""
        return None


def _runs(setting: Setting, dataset: str, augmented: bool) -> dict[tuple[float, float], ImageRun]:
    size = effort(setting, dataset, augmented)
    return {
        (epsilon, tau): ImageRun(dataset, augmented, WRAPPER, 0, size, epsilon, tau, validation=True)
        for epsilon in grid.EPSILONS
        for tau in grid.TAUS
    }


def _pair(epsilon: float, tau: float) -> str:
    return f"epsilon {epsilon:g}, tau_0 {tau:g}"


ITEM: Item = _Tables7To15()
