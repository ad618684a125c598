"""The two networks of the paper's Section 2.2: fully connected, and LeNet."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import nn

from alignver.errors import InvalidInput

__all__ = ["BIASES", "fully_connected", "lenet"]

_BETA = 100.0  # the paper's varsigma

BIASES = ("default", "zero", "none")
"""What :func:`fully_connected` can do about biases."""


def fully_connected(
    m_x: int,
    width: int = 300,
    depth: int = 4,
    m_y: int = 1,
    *,
    seed: int = 0,
    biases: str = "default",
) -> nn.Sequential:
    """Build the fully-connected network of the paper: softplus layers with weights N(0, 1/width).

    "We used four layers and 300 neurons per hidden layer"; "each entry of the weight matrices in the fully-connected
    layers was initialized independently by the normal distribution with the standard deviation of 1/sqrt(m) with
    m = 300 for all layers"; softplus ``ln(1 + exp(beta z)) / beta`` with beta = 100 (Appendix B.1). Read here:
    ``depth`` weight matrices, that is depth - 1 hidden layers. Counting the input as a layer, as the paper's list for
    LeNet does, would be depth=3. The outputs are the values before any nonlinearity, as Definition 2 wants them.

    On biases the paper is silent. They are kept, and start as PyTorch starts them (uniform within 1/sqrt(fan in)): the
    paper sets "each entry of the weight matrices", so its biases are most likely the library's default.

    Parameters
    ----------
    m_x, m_y : int
        Number of inputs and of outputs.
    width, depth : int
        Neurons of a hidden layer, number of weight matrices.
    seed : int
        Seed of the initialisation; the global random state is not touched.
    biases : str
        ``"default"`` (PyTorch's initialisation), ``"zero"`` (trainable, starting at 0) or ``"none"`` (no biases).

    Returns
    -------
    torch.nn.Sequential
        In eval mode, float32, on the CPU; inputs (n, m_x), outputs (n, m_y).

    Raises
    ------
    InvalidInput
        A size below 1, a seed that is no non-negative integer, an unknown word for biases.

    Examples
    --------
    >>> net = fully_connected(2, seed=1)
    >>> sum(p.numel() for p in net.parameters())
    181801
    """
    for name, value in (("m_x", m_x), ("width", width), ("depth", depth), ("m_y", m_y)):
        _require_size(name, value)
    if biases not in BIASES:
        raise InvalidInput("biases", f"biases={biases!r}", "one of " + ", ".join(repr(known) for known in BIASES))
    sizes = [m_x, *[width] * (depth - 1), m_y]
    layers: list[nn.Module] = []
    with _seeded(seed):
        for fan_in, fan_out in itertools.pairwise(sizes):
            if layers:
                layers.append(nn.Softplus(beta=_BETA))
            linear = nn.Linear(fan_in, fan_out, bias=biases != "none")
            nn.init.normal_(linear.weight, std=width**-0.5)
            if biases == "zero":
                nn.init.zeros_(linear.bias)
            layers.append(linear)
    return nn.Sequential(*layers).eval()


def lenet(m_c: int = 1, classes: int = 10, side: int = 16, *, seed: int = 0) -> nn.Sequential:
    """Build the LeNet of the paper: two 5 x 5 convolutions of 8 m_c filters, then 128 m_c units, then the outputs.

    Softplus with beta = 100 after each hidden layer, PyTorch's default initialisation (that of 1.4.0 is that of
    today), no pooling and no padding: the list of Appendix B.1 has neither.

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
        A size below its minimum, or a seed that is no non-negative integer.

    Examples
    --------
    >>> import torch
    >>> lenet()(torch.zeros(3, 16, 16)).shape
    torch.Size([3, 10])
    """
    for name, value in (("m_c", m_c), ("classes", classes)):
        _require_size(name, value)
    _require_size("side", side, least=9)
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
    """Grey images with or without their channel axis: (n, side, side) or (n, 1, side, side) to the latter."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the channel axis where it is missing; any other shape is an error of reshape."""
        return x.reshape(len(x), 1, self.side, self.side)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's generator at ``seed``, and put its state back."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInput("seed", f"seed={seed!r}", "an integer from 0 to 2**63 - 1")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _require_size(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(name, f"{name}={value!r}", f"an integer of at least {least}")
