"""The pre-activation ResNet-18 of the paper's image experiments, with softplus for every activation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from alignver.errors import InvalidInput

__all__ = ["ResNet18", "fix_statistics", "resnet18"]

_STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))  # channels, as multiples of the width, and first stride of each stage


class _Block(nn.Module):
    """x + conv(act(bn(conv(act(bn(x)))))), the shortcut after the first activation where the shape changes."""

    def __init__(self, into: int, out: int, stride: int, beta: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(into), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.act = nn.Softplus(beta)
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if stride != 1 or into != out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        first = self.act(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(first)
        return torch.add(self.conv2(self.act(self.bn2(self.conv1(first)))), kept)


class ResNet18(nn.Module):
    """Convolution, four stages of two blocks, batch norm, activation, global average: 8 width features, then a
    classifier.
    """

    def __init__(self, channels: int, classes: int, beta: float, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        widths = [width, *(multiple * width for multiple, _ in _STAGES)]
        blocks: list[nn.Module] = []
        for (into, out), (_, stride) in zip(itertools.pairwise(widths), _STAGES):
            blocks += [_Block(into, out, stride, beta), _Block(out, out, 1, beta)]
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.act = nn.Softplus(beta)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.features = nn.Flatten()
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the class scores; the layer ``features`` holds the features, 512 at full width."""
        scores: torch.Tensor = self.head(self.features(self.pool(self.act(self.bn(self.blocks(self.stem(x)))))))
        return scores


def resnet18(
    channels: int = 3, classes: int = 10, *, seed: int = 0, softplus_beta: float = 100.0, width: int = 64
) -> ResNet18:
    """Build the pre-activation ResNet-18 (He et al., 2016) with 3 x 3 stem and PyTorch's default initialisation.

    "The standard convolutional ResNet with 18 layers (He et al., 2016) is used", with the softplus
    ``ln(1 + exp(beta z)) / beta``, beta = 100, "for all layers" (section 3.4.2). Its stem is the one for small images.

    Parameters
    ----------
    channels, classes : int
        Of the images and of the targets.
    seed : int
        Seed of the initialisation; the global random state is not touched.
    softplus_beta : float
        The paper's varsigma.
    width : int
        Channels of the first stage; fewer than 64 make a smaller network of the same shape.

    Returns
    -------
    ResNet18
        float32, in eval mode. Its BatchNorm statistics are those of nothing yet: see :func:`fix_statistics`.

    Raises
    ------
    InvalidInput
        A size below 1.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18(1).parameters()) > 11_000_000
    True
    """
    for name, value in (("channels", channels), ("classes", classes), ("width", width)):
        if value < 1:
            raise InvalidInput(name, str(value), "an integer >= 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet18(channels, classes, softplus_beta, width).eval()


def fix_statistics(model: nn.Module, images: torch.Tensor, *, batch_size: int = 64) -> nn.Module:
    """Set the BatchNorm statistics to the averages over batches of ``images``, then go to eval mode.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    images : (k, channels, height, width) tensor
        Drawn from the training data.
    batch_size : int
        The paper trains with 64.

    Returns
    -------
    torch.nn.Module
        ``model``, in eval mode; its layers are then fixed analytic functions, as Assumption 6 wants them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    with torch.no_grad():
        for batch in _batches(images, batch_size):
            model(batch)
    return model.eval()


def _batches(images: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, int(images.shape[0]) - size + 1, size):
        yield images[start : start + size]
