"""Table 4: test errors of the standard method and of the wrapper without data augmentation."""

from __future__ import annotations

from alignver.experiments.image_runs import STANDARD, WRAPPER
from alignver.experiments.item import Item
from alignver.experiments.table3 import ErrorTable

__all__ = ["ITEM"]

ITEM: Item = ErrorTable(
    4,
    False,
    {
        "mnist": {STANDARD: (0.52, 0.16), WRAPPER: (0.49, 0.02)},
        "cifar10": {STANDARD: (15.15, 0.87), WRAPPER: (14.56, 0.38)},
        "cifar100": {STANDARD: (54.99, 2.29), WRAPPER: (46.13, 1.80)},
    },
    "reduced: 5 minutes for MNIST on one core; in full: days without a GPU, not measured with one",
)
