"""Table 3: test errors of the standard method and of the wrapper with data augmentation; Table 4 is made of it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignver.experiments import grid
from alignver.experiments.errors_compared import methods
from alignver.experiments.image_runs import STANDARD, WRAPPER, ImageRun, effort
from alignver.experiments.item import Item, Measured, Part, Setting
from alignver.results import CheckResult

__all__ = ["ITEM", "RUNS", "ErrorTable"]

_TABLE3 = {
    "semeion": {STANDARD: (2.59, 0.57), WRAPPER: (2.56, 0.55)},
    "mnist": {STANDARD: (0.40, 0.05), WRAPPER: (0.30, 0.05)},
    "cifar10": {STANDARD: (7.80, 0.50), WRAPPER: (7.14, 0.12)},
    "cifar100": {STANDARD: (32.26, 0.15), WRAPPER: (28.38, 0.42)},
    "kmnist": {STANDARD: (1.48, 0.07), WRAPPER: (1.36, 0.11)},
    "svhn": {STANDARD: (4.67, 0.05), WRAPPER: (4.43, 0.11)},
}


class ErrorTable:
    """Test errors of both methods, for each data set of a table.

    Parameters
    ----------
    number : int
        Of the table.
    augmented : bool
    paper : mapping
        Mean and deviation over five seeds, in percent, of either method on each data set.
    cost : str
    """

    def __init__(
        self, number: int, augmented: bool, paper: Mapping[str, Mapping[str, tuple[float, float]]], cost: str
    ) -> None:
        self.name, self.source, self.cost = f"table{number}", f"Table {number}", cost
        self.title = f"Test errors with{'' if augmented else 'out'} data augmentation, ResNet-18"
        self.augmented, self.paper = augmented, paper
        self.datasets: tuple[str, ...] = tuple(paper)

    def runs(self, setting: Setting, dataset: str) -> dict[str, list[ImageRun]]:
        """Return the runs of either method: epsilon and tau_0 as the paper's grid search chose them."""
        size = effort(setting, dataset, self.augmented)
        epsilon, tau = grid.chosen(dataset, self.augmented)
        return {
            STANDARD: [ImageRun(dataset, self.augmented, STANDARD, seed, size) for seed in range(size.seeds)],
            WRAPPER: [
                ImageRun(dataset, self.augmented, WRAPPER, seed, size, epsilon, tau) for seed in range(size.seeds)
            ],
        }

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set, method and seed; one data set alone unless others are asked for."""
        return [
            run.part(setting)
            for dataset in setting.chosen(self.datasets, self.datasets[:1])
            for runs in self.runs(setting, dataset).values()
            for run in runs
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the methods with each other, and in full size with the paper's numbers."""
        return [
            result
            for dataset in setting.chosen(self.datasets, self.datasets[:1])
            for result in methods(
                self,
                dataset,
                self.paper[dataset],
                {name: [run.key for run in runs] for name, runs in self.runs(setting, dataset).items()},
                measured,
                effort(setting, dataset, self.augmented),
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


RUNS = ErrorTable(
    3,
    True,
    _TABLE3,
    "reduced, on one core: 15 minutes for Semeion, 3 for MNIST, 4 for CIFAR-10; in full, from one epoch on one core: "
    "36 minutes a run on Semeion, days on the others; on a GPU: not measured (the paper's: 6 minutes and an hour)",
)

ITEM: Item = RUNS
