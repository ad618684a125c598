"""The paper's networks: fully connected and LeNet (Section 2.2), and the pre-activation ResNet-18 (section 3.4.2).

Every activation is the softplus with factor 100.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn

from alignver import require

__all__ = ["BIASES", "READINGS", "Reading", "ResNet18", "fix_statistics", "fully_connected", "lenet", "resnet18"]
_BETA = 100.0  # the paper's varsigma

BIASES = ("default", "normal", "zero", "none")
"""Values of the parameter ``biases`` of :func:`fully_connected`."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One reading of "four layers and 300 neurons per hidden layer" (Appendix B.1).

    Attributes
    ----------
    depth : int
        The number of weight matrices: 4, or 3 if the input counts as a layer, as it does in the paper's list for LeNet.
    biases : str
        Of :data:`BIASES`.
    last_bias : bool
        Whether the last layer has one. In the common model structure of section 3.1 it has none.
    """

    depth: int
    biases: str
    last_bias: bool = True

    def build(self, m_x: int, *, seed: int = 0) -> nn.Sequential:
        """Return the network with one output, initialised by a seed."""
        return fully_connected(m_x, depth=self.depth, seed=seed, biases=self.biases, last_bias=self.last_bias)

    def __str__(self) -> str:
        biases = {"default": "PyTorch's biases", "normal": "biases N(0, 1/300)", "zero": "zero biases"}
        last = "" if self.last_bias or self.biases == "none" else ", none in the last layer"
        return f"{self.depth} weight matrices, {biases.get(self.biases, 'no biases')}{last}"


READINGS: Mapping[str, Reading] = MappingProxyType(
    {
        "3-normal": Reading(3, "normal", last_bias=False),
        "3-normal-last": Reading(3, "normal"),
        "3-default": Reading(3, "default"),
        "3-zero": Reading(3, "zero"),
        "3-none": Reading(3, "none"),
        "4-default": Reading(4, "default"),
    }
)
"""The readings that ``alignver reproduce --reading`` takes; the first one is the default of the experiments.

A bias is a weight of the constant neuron, so the sentence "each entry of the weight matrices ... was initialized
independently by the normal distribution" covers it in the first two. The item ``readings`` compares them all.
"""


def fully_connected(
    m_x: int,
    width: int = 300,
    depth: int = 4,
    m_y: int = 1,
    *,
    seed: int = 0,
    biases: str = "default",
    last_bias: bool = True,
) -> nn.Sequential:
    """Build the fully-connected network of the paper: softplus layers with weights N(0, 1/width).

    "We used four layers and 300 neurons per hidden layer"; "each entry of the weight matrices in the fully-connected
    layers was initialized independently by the normal distribution with the standard deviation of 1/sqrt(m) with
    m = 300 for all layers"; softplus ``ln(1 + exp(beta z)) / beta`` with beta = 100 (Appendix B.1). The default is
    ``depth`` = 4 weight matrices, that is depth - 1 hidden layers, and PyTorch's biases, uniform within
    1/sqrt(fan in); the paper states neither, and :data:`READINGS` has the alternatives. The outputs are the values
    before any nonlinearity, as in Definition 2.

    Parameters
    ----------
    m_x, m_y : int
        Number of inputs and of outputs.
    width, depth : int
        Neurons of a hidden layer, and number of weight matrices.
    seed : int
        Seed of the initialisation; the global random state is not touched.
    biases : str
        ``"default"`` (PyTorch's initialisation), ``"normal"`` (as the weights), ``"zero"`` (trainable, starting at 0)
        or ``"none"`` (no biases).
    last_bias : bool
        False: the last layer has no bias.

    Returns
    -------
    torch.nn.Sequential
        In eval mode, float32, on the CPU; inputs (n, m_x), outputs (n, m_y).

    Raises
    ------
    InvalidInput
        A size is below 1, the seed is not a non-negative integer, or ``biases`` has another value.

    Examples
    --------
    >>> net = fully_connected(2, seed=1)
    >>> sum(p.numel() for p in net.parameters())
    181801
    """
    for name, value in (("m_x", m_x), ("width", width), ("depth", depth), ("m_y", m_y)):
        require.integer(name, value, least=1)
    require.one_of("biases", biases, BIASES)
    require.booleans(last_bias=last_bias)
    sizes = [m_x, *[width] * (depth - 1), m_y]
    layers: list[nn.Module] = []
    with _seeded(seed):
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            if layers:
                layers.append(nn.Softplus(beta=_BETA))
            has_bias = biases != "none" and (last_bias or layer < depth - 1)
            linear = nn.Linear(fan_in, fan_out, bias=has_bias)
            nn.init.normal_(linear.weight, std=width**-0.5)
            if has_bias and biases == "normal":
                nn.init.normal_(linear.bias, std=width**-0.5)
            elif has_bias and biases == "zero":
                nn.init.zeros_(linear.bias)
            layers.append(linear)
    return nn.Sequential(*layers).eval()


def lenet(m_c: int = 1, classes: int = 10, side: int = 16, *, seed: int = 0) -> nn.Sequential:
    """Build the LeNet of the paper: two 5 x 5 convolutions of 8 m_c filters, then 128 m_c units, then the outputs.

    Softplus with beta = 100 after each hidden layer, PyTorch's default initialisation (the same in 1.4.0 as today), no
    pooling and no padding: the list of Appendix B.1 has neither.

    Parameters
    ----------
    m_c : int
        The paper's size of the network: 1, 2 or 4.
    classes : int
        Number of outputs.
    side : int
        Height and width of the grey images, at least 9.
    seed : int
        Seed of the initialisation; the global random state is not touched.

    Returns
    -------
    torch.nn.Sequential
        In eval mode, float32, on the CPU; inputs (n, 1, side, side) or (n, side, side), outputs (n, classes).

    Raises
    ------
    InvalidInput
        A size is below its minimum, or the seed is not a non-negative integer.

    Examples
    --------
    >>> import torch
    >>> lenet()(torch.zeros(3, 16, 16)).shape
    torch.Size([3, 10])
    """
    for name, value in (("m_c", m_c), ("classes", classes)):
        require.integer(name, value, least=1)
    require.integer("side", side, least=9)
    filters, units = 8 * m_c, 128 * m_c
    with _seeded(seed):
        layers = [
            _OneChannel(side),
            nn.Conv2d(1, filters, 5),
            nn.Softplus(beta=_BETA),
            nn.Conv2d(filters, filters, 5),
            nn.Softplus(beta=_BETA),
            nn.Flatten(),
            nn.Linear(filters * (side - 8) ** 2, units),
            nn.Softplus(beta=_BETA),
            nn.Linear(units, classes),
        ]
    return nn.Sequential(*layers).eval()


class _OneChannel(nn.Module):
    """Reshapes grey images (n, side, side) or (n, 1, side, side) to the latter."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the channel axis if it is missing; reshape raises for any other shape."""
        return x.reshape(len(x), 1, self.side, self.side)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's generator at ``seed``, and restore its state."""
    seed = require.integer("seed", seed, least=0, most=2**63 - 1, need="an integer from 0 to 2**63 - 1")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


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
        shortcut = x if self.shortcut is None else self.shortcut(first)
        return torch.add(self.conv2(self.act(self.bn2(self.conv1(first)))), shortcut)


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
        float32, in eval mode. Its BatchNorm statistics are PyTorch's initial ones: see :func:`fix_statistics`.

    Raises
    ------
    InvalidInput
        A size is below 1.

    Examples
    --------
    >>> sum(p.numel() for p in resnet18(1).parameters()) > 11_000_000
    True
    """
    for name, value in (("channels", channels), ("classes", classes), ("width", width)):
        require.integer(name, value, least=1)
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
        ``model``, in eval mode; its layers are then fixed analytic functions, as Assumption 6 requires.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    with torch.no_grad():
        for start in range(0, len(images) - batch_size + 1, batch_size):  # whole batches alone: they have equal weights
            model(images[start : start + batch_size])
    return model.eval()
