"""The paper's data augmentation (Appendix B.2.2): random crops, flips and small rotations, image by image.

The transforms of ``torchvision.transforms`` that the paper names, on whole batches and from a generator, so that a run
can be repeated. Images are (b, channels, height, width) with 0 as background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch.nn import functional

__all__ = ["AUGMENTATIONS", "crop", "flip", "turn"]

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def crop(x: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pad with zeros on all sides, and cut out an image of the old size at a random place: ``RandomCrop``.

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
    """Mirror every other image, left to right, at random: ``RandomHorizontalFlip``."""
    mirrored = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def turn(x: torch.Tensor, degrees: float, scales: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Rotate about the centre by up to ``degrees`` either way and enlarge by a random factor: ``RandomAffine``.

    As there, a pixel takes the value of the nearest one, and what comes from outside is 0.

    Examples
    --------
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> turn(x, 0.0, (1.0, 1.0), torch.Generator()).equal(x)
    True
    """
    angle, place = torch.rand((2, len(x)), generator=generator)
    angle = math.radians(degrees) * (2.0 * angle - 1.0)
    scale = scales[0] + (scales[1] - scales[0]) * place
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    nothing = torch.zeros_like(cosine)
    # From where each output pixel comes: the rotation back, divided by the factor.
    back = torch.stack([cosine, sine, nothing, -sine, cosine, nothing], 1).reshape(-1, 2, 3).to(x)
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
"""What Appendix B.2.2 says of each data set."""
