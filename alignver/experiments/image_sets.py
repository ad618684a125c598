"""The image sets of section 3.4.2, split as the paper splits them: training and test, or training and validation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignver.data.cifar import cifar10, cifar100
from alignver.data.dataset import Dataset
from alignver.data.digits import semeion
from alignver.data.mnist import kmnist, mnist
from alignver.data.svhn import svhn
from alignver.experiments.table2 import data_folder

__all__ = ["NAMES", "Split", "split"]

_LOADERS: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "kmnist": kmnist, "svhn": svhn}
)
NAMES = ("semeion", *_LOADERS)
_SEMEION = 1000  # training images of Semeion, which has no split of its own
_VALIDATION = 0.2  # share of the training images that a grid search holds back


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) with pixels in [0, 1], and labels, for training and for testing."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    sha256: str
    """Of the data set that the training images are from."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1


def split(
    dataset: str,
    *,
    seed: int,
    validation: bool = False,
    samples: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Split:
    """Load a data set and split it.

    Parameters
    ----------
    dataset : str
        One of :data:`NAMES`.
    seed : int
        Draws Semeion's 1000 training images (the other 593 are its test images), the validation images, the samples.
    validation : bool
        Hold back a fifth of the training images and test on them: the test set is not looked at.
    samples : int, optional
        At most so many training images, and at most so many test images.
    folder : path, optional
        Where the set is; Semeion needs none.
    device : str

    Returns
    -------
    Split
    """
    source = np.random.default_rng(seed)
    if dataset == "semeion":
        digits = semeion()
        order = source.permutation(len(digits))
        train, test = digits.take(np.sort(order[:_SEMEION])), digits.take(np.sort(order[_SEMEION:]))
        sha256 = digits.sha256
    else:
        place = data_folder(folder)
        train, test = (_LOADERS[dataset](place, train=part) for part in (True, False))
        sha256 = train.sha256
    if validation:
        order = source.permutation(len(train))
        held = round(_VALIDATION * len(train))
        train, test = train.take(np.sort(order[held:])), train.take(np.sort(order[:held]))
    if samples is not None:
        train, test = (_few(data, samples, source) for data in (train, test))
    size = float(train.x.max())
    return Split(
        train.name,
        _pixels(train.x, size, device),
        torch.tensor(train.y.astype(np.int64), device=device),
        _pixels(test.x, size, device),
        torch.tensor(test.y.astype(np.int64), device=device),
        sha256,
    )


def _few(data: Dataset, samples: int, source: np.random.Generator) -> Dataset:
    if samples >= len(data):
        return data
    return data.take(np.sort(source.choice(len(data), size=samples, replace=False)))


def _pixels(x: npt.NDArray[Any], size: float, device: str) -> torch.Tensor:
    images = x if x.ndim == 4 else x[..., None]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32))
    return pixels.div_(size).to(device)
