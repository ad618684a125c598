"""Convolutions by shifts in memory or by patches: the same results, gradients and exceptions as torch's own."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch

from alignver.network import convolution as module
from alignver.network.convolution import Convolutions, convolution

WAYS = {  # values of the limits that choose between the ways
    "shifts": {"_WIDE": 1 << 30, "_CACHED": 0},
    "patches": {"_WIDE": 0},
    "patches of one sample after another": {"_WIDE": 0, "_BLOCK": 1},
}
FUNCTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(module, name, value)
    return request.param


def case(seed):
    """Draw the arguments of a convolution, some of them invalid."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    axes = draw.choice([1, 2, 2, 2, 3])
    kernel = [draw.randint(1, 4) for _ in range(axes)]
    stride = [draw.randint(1, 3) for _ in range(axes)]
    padding = [draw.randint(0, 3) for _ in range(axes)]
    groups = draw.choice([1, 1, 2, 3])
    inside, outside = (groups * draw.randint(8, 11) for _ in range(2))
    if draw.random() < 0.2:
        stride, padding = 1, "same"
    elif draw.random() < 0.2:
        stride, padding = stride[:1], padding[0]
    x = torch.randn(draw.randint(1, 4), inside, *(draw.randint(1, 9) for _ in range(axes)), dtype=torch.float64)
    weight = torch.randn(outside, inside // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(outside, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    return FUNCTIONS[axes], tensors, (stride, padding, [draw.randint(1, 2) for _ in range(axes)], groups)


@pytest.mark.usefixtures("way")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_results_gradients_and_exceptions_are_those_of_torch():
    compared = 0
    for seed in range(200):
        function, tensors, options = case(seed)
        try:
            expected = function(*tensors, *options)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error))):
                convolution(function, *tensors, *options)
            continue
        result = convolution(function, *tensors, *options)
        weights = torch.randn_like(expected)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        pairs = (torch.autograd.grad(y, tensors, weights) for y in (result, expected))
        for ours, theirs in zip(*pairs):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)
        compared += 1
    assert compared > 100


@pytest.mark.usefixtures("way")
def test_the_samples_do_not_mix_and_the_layout_of_memory_does_not_matter():
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    weight = torch.randn(9, 8, 3, 3, dtype=torch.float64)
    whole = convolution(torch.conv2d, x, weight, padding=2)
    for i in range(3):
        assert torch.allclose(convolution(torch.conv2d, x[i : i + 1], weight, padding=2)[0], whole[i], rtol=1e-14)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(convolution(torch.conv2d, last, weight, padding=2), whole)


def test_every_convolution_of_a_model_is_computed_here_and_others_by_torch(monkeypatch):
    calls = []
    monkeypatch.setattr("alignver.network.convolution._Convolution.apply", lambda x, w, _: calls.append(w) or x)
    layers = [torch.nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    with Convolutions():
        for layer in layers:
            layer(x)
        layers[0].float()(x.float())  # torch has a kernel for float32
        torch.nn.Conv2d(8, 8, 1, dtype=torch.float64)(x)
        torch.nn.Conv2d(8, 8, 3, groups=8, dtype=torch.float64)(x)
    assert len(calls) == 2


def test_patches_are_copied_where_they_serve_many_channels_or_stay_in_cache(monkeypatch):
    seen = []
    original = module._Layout.columns
    monkeypatch.setattr(module._Layout, "columns", lambda layout, x: seen.append(len(x)) or original(layout, x))
    for channels, size, samples, expected in ((64, 32, 2, []), (64, 4, 2, [2]), (128, 16, 8, [3, 3, 2])):
        seen.clear()
        x = torch.randn(samples, channels, size, size, dtype=torch.float64)
        convolution(torch.conv2d, x, torch.randn(channels, channels, 3, 3, dtype=torch.float64), padding=1)
        assert seen == expected


@pytest.mark.usefixtures("way")
def test_derivatives_agree_with_differences():
    for stride, groups in itertools.product((1, 2), (1, 2)):
        x = torch.randn(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(16, 16 // groups, 2, 3, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(
            lambda x, w, s=stride, g=groups: convolution(torch.conv2d, x, w, stride=s, padding=1, groups=g),
            (x, weight),
            fast_mode=True,
        )
