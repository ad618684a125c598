"""Kinks are counted where they are, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.errors import InvalidInput
from alignver.jacobians.nonsmooth_points import count_kinks
from tests import zoo
from tests.reference import fingerprint


def after(activation: nn.Module, *values: float):
    """Feed the values to an activation, through a layer that passes them on."""
    layer = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    return count_kinks(nn.Sequential(layer, activation.double()).eval(), [[v] for v in values])


@pytest.mark.parametrize(
    ("activation", "points"),
    [
        (nn.ReLU(), [0.0]),
        (nn.ReLU(inplace=True), [0.0]),
        (nn.LeakyReLU(), [0.0]),
        (nn.LeakyReLU(1.0), []),
        (nn.PReLU(), [0.0]),
        (nn.RReLU(), [0.0]),
        (nn.ReLU6(), [0.0, 6.0]),
        (nn.Hardtanh(-2.0, 3.0), [-2.0, 3.0]),
        (nn.Hardswish(), [-3.0, 3.0]),
        (nn.Hardsigmoid(), [-3.0, 3.0]),
        (nn.Hardshrink(0.25), [-0.25, 0.25]),
        (nn.Softshrink(), [-0.5, 0.5]),
        (nn.Threshold(1.5, 0.0), [1.5]),
        (nn.ELU(), []),
        (nn.ELU(0.5), [0.0]),
        (nn.CELU(0.3), []),
        (nn.SELU(), [0.0]),
        (nn.Tanh(), []),
        (nn.Softplus(), []),
        (nn.GELU(), []),
    ],
)
def test_every_kink_of_an_activation(activation, points):
    away = [-7.0, -1.1, 0.6, 2.2, 8.0]
    assert after(activation, *away).count == 0
    assert all(after(activation, point, *away).count == 1 for point in points)
    beside = after(activation, *(point + 1e-18 + point * 2e-16 for point in points), *away)
    assert beside.count == len(points)
    assert after(activation, *(point + 1e-9 for point in points), *away).count == 0
    assert sum(kink.exact for kink in after(activation, *points, *away).operations) == len(points)


class Functions(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.scale, self.function = nn.Parameter(torch.ones(1)), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x * self.scale)


@pytest.mark.parametrize(
    "function",
    [F.relu, torch.relu, torch.abs, torch.sign, lambda z: z.clamp(min=0.0), lambda z: torch.maximum(z, 0 * z)],
)
def test_functions_are_seen_too(function):
    kinks = count_kinks(Functions(function), [[0.0, 1.0], [2.0, -1.0]])
    assert kinks.count == 1
    assert kinks.operations[0].module == "Functions"


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool1d(2), (2, 8)),
        (nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 8)),
        (nn.MaxPool2d(2), (1, 4, 4)),
        (nn.MaxPool2d(3, stride=1, padding=1), (2, 4, 4)),
        (nn.MaxPool2d((2, 3), dilation=(1, 2), ceil_mode=True), (1, 5, 7)),
        (nn.MaxPool3d(2), (1, 2, 4, 4)),
        (nn.AdaptiveMaxPool1d(3), (2, 8)),
        (nn.AdaptiveMaxPool2d((2, 1)), (1, 5, 4)),
    ],
)
def test_ties_of_a_pooling(pool, shape):
    """Beside windows that a loop over shifted copies of the input finds to tie."""
    torch.manual_seed(0)
    x = torch.randint(0, 4, (3, *shape)).double()
    model = nn.Sequential(Functions(lambda z: z), pool, nn.Flatten()).double()
    kinks = count_kinks(model, x)
    # A window ties when adding a little to one entry, whichever, always changes its maximum or a second one has it.
    out = pool(x)
    ties = torch.zeros_like(out, dtype=torch.bool)
    rank = torch.arange(x[0].numel()).reshape(x.shape[1:]).double()
    upward, downward = pool(x + 1e-6 * rank), pool(x - 1e-6 * rank)
    # The largest index among the maxima against the smallest: they differ where the maximum is met twice.
    ties = ((upward - out) * 1e6).round() != ((out - downward) * 1e6).round()
    assert kinks.operations[-1].exact == int(ties.sum())
    assert kinks.operations[-1].total == out.numel()
    assert "(" in kinks.operations[-1].module


def test_names_the_modules_and_prints():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()), nn.Linear(3, 1))
    kinks = count_kinks(model, torch.zeros(2, 2))
    assert kinks.sentences == ("0.1 (ReLU): 6 of 6 values within 7e-16 of a kink of relu, 6 exactly on it",)


def test_an_eps_of_ones_own():
    model = nn.Sequential(Functions(lambda z: z), nn.ReLU())
    x = torch.tensor([[1.0, 1e-3], [-1e-5, 1e-9]])
    assert [count_kinks(model, x, eps=eps).count for eps in (0.0, 1e-8, 1e-4, 1e-2)] == [0, 1, 2, 3]


def test_coarser_computation_has_wider_kinks():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 400), nn.ReLU(), nn.Linear(400, 1)), torch.randn(200, 5)
    assert count_kinks(model, x).count == 0
    assert count_kinks(model, x, dtype="same").count > 0


@pytest.mark.parametrize("name", ["batch norm in eval mode", "reused and aliased", "attention", "caching", "gru"])
def test_leaves_no_trace_and_chunks_change_nothing(name):
    model, x = zoo.build(name)
    before = fingerprint(model)
    whole, chunked = count_kinks(model, x), count_kinks(model, x, chunk_size=1)
    assert fingerprint(model) == before
    assert [kink.total for kink in whole.operations] == [kink.total for kink in chunked.operations]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"eps": -1.0}, "eps"),
        ({"eps": "small"}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_bad_input(options, argument):
    with pytest.raises(InvalidInput) as refused:
        count_kinks(nn.Linear(2, 1), torch.zeros(2, 2), **options)
    assert refused.value.argument == argument
