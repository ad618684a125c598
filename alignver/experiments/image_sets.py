"""The image sets of section 3.4.2: splits for training and testing or validation, and data augmentation.

The augmentations (Appendix B.2.2: random crops, flips and small rotations) are the transforms of
``torchvision.transforms`` that the paper names, on whole batches and from a generator, so that a run can be repeated.
Images are (b, channels, height, width) with 0 as background.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from alignver.data.archives import Dataset
from alignver.data.image_sets import cifar10, cifar100, kmnist, mnist, svhn
from alignver.data.small_sets import semeion
from alignver.experiments.table2 import data_folder

__all__ = ["AUGMENTATIONS", "NAMES", "Split", "crop", "flip", "split", "turn"]
Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def crop(x: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pad with zeros on all sides, and cut out an image of the original size at a random position: ``RandomCrop``.

    Examples
    --------
    >>> x = torch.ones(2, 1, 4, 4)
    >>> crop(x, 0, torch.Generator()).equal(x)
    True
    """
    b, _, height, width = x.shape
    padded = functional.pad(x, [padding] * 4)
    corners = torch.randint(0, 2 * padding + 1, (2, b, 1), generator=generator).to(x.device)
    rows = corners[0] + torch.arange(height, device=x.device)
    columns = corners[1] + torch.arange(width, device=x.device)
    image = torch.arange(b, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image, left to right, with probability one half: ``RandomHorizontalFlip``."""
    mirrored = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def turn(x: torch.Tensor, degrees: float, scales: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Rotate about the centre by up to ``degrees`` either way and enlarge by a random factor: ``RandomAffine``.

    A pixel takes the value of the nearest source pixel, and 0 where that lies outside the image.

    Examples
    --------
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> turn(x, 0.0, (1.0, 1.0), torch.Generator()).equal(x)
    True
    """
    angle, position = torch.rand((2, len(x)), generator=generator)
    angle = math.radians(degrees) * (2.0 * angle - 1.0)
    scale = scales[0] + (scales[1] - scales[0]) * position
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    zero = torch.zeros_like(cosine)
    # The source of each output pixel: the inverse rotation, divided by the factor.
    back = torch.stack([cosine, sine, zero, -sine, cosine, zero], 1).reshape(-1, 2, 3).to(x)
    grid = functional.affine_grid(back, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _natural(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return flip(crop(x, 4, generator), generator)


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "mnist": lambda x, g: turn(crop(x, 2, g), 15.0, (0.85, 1.15), g),
        "cifar10": _natural,
        "cifar100": _natural,
        "semeion": lambda x, g: turn(crop(x, 1, g), 4.0, (1.05, 1.05), g),
        "kmnist": lambda x, g: crop(x, 2, g),
        "svhn": _natural,
    }
)
"""The augmentation of each data set in Appendix B.2.2."""

_LOADERS: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "kmnist": kmnist, "svhn": svhn}
)
NAMES = ("semeion", *_LOADERS)
_SEMEION = 1000  # training images of Semeion, which has no split of its own
_VALIDATION = 0.2  # share of the training images that a grid search holds out


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) with pixels in [0, 1], and labels, for training and for testing."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    sha256: str
    """Hash of the data set that contains the training images."""

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
        Hold out a fifth of the training images and test on them; the test set is not used.
    samples : int, optional
        The largest number of training images, and of test images.
    folder : path, optional
        Folder of the set; Semeion needs none.
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
        root = data_folder(folder)
        train, test = (_LOADERS[dataset](root, train=part) for part in (True, False))
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
