"""What the guard notices and puts back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from alignver.network.preserve_state import preserve_state
from tests.reference import fingerprint


@pytest.fixture
def model() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net.eval()
    net[1].train()
    net[2].requires_grad_(False)
    _backward(net)
    return net


def _scale(model: nn.Module) -> None:
    model[0].weight.data.mul_(2)


def _widen(model: nn.Module) -> None:
    model.double()


def _replace(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def _statistics(model: nn.Module) -> None:
    model[1](torch.randn(4, 2))


def _backward(model: nn.Module) -> None:
    model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()


CHANGES = {
    "a value": (_scale, "values of parameter 0.weight"),
    "a bit of zero": (lambda m: m[2].bias.data.copy_(torch.tensor([-0.0])), "values of parameter 2.bias"),
    "the dtype": (_widen, "values of parameter 0.weight"),
    "a buffer": (_statistics, "values of buffer 1.running_mean"),
    "a Parameter object": (_replace, "parameters of 0"),
    "a buffer object": (lambda m: setattr(m[1], "running_var", torch.ones(2)), "buffers of 1"),
    "a submodule": (lambda m: m.append(nn.ReLU()), "modules of Sequential"),
    "the mode": (lambda m: m.train(), "training mode of Sequential"),
    "a gradient": (_backward, "gradient of parameter 0.weight"),
    "gradients set to None": (lambda m: m.zero_grad(), "gradient of parameter 0.bias"),
    "requires_grad": (lambda m: m.requires_grad_(True), "requires_grad of parameter 2.weight"),
    "a forward hook": (lambda m: m[0].register_forward_hook(print), "forward_hooks of 0"),
    "a hook on a parameter": (lambda m: m[0].weight.register_hook(print), "hooks of parameter 0.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named_and_put_back(model, change):
    with torch.no_grad():
        model[2].bias.zero_()
    act, words = CHANGES[change]
    before = fingerprint(model)
    with pytest.raises(AssertionError, match=words), preserve_state(model):
        act(model)
    assert fingerprint(model) == before
    if change == "a hook on a parameter":
        assert not model[0].weight._backward_hooks


def test_caches_and_the_random_state_are_put_back_in_silence(model):
    model.cache, model.seen, model.table = torch.ones(2), [1], {"a": 1}
    before = fingerprint(model)
    drawn = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    with preserve_state(model):
        model.cache.add_(1)
        model.seen.append(2)
        model.table["b"] = 2
        model.new = 3
        torch.rand(5)
        np.random.rand(5)  # noqa: NPY002 - the state that models may use
        random.random()
    assert fingerprint(model) == before
    assert (random.getstate(), np.random.get_state()[2]) == drawn  # noqa: NPY002
    assert (model.cache.tolist(), model.seen, model.table, hasattr(model, "new")) == ([1.0, 1.0], [1], {"a": 1}, False)


def test_an_exception_passes_and_the_model_is_put_back(model):
    before = fingerprint(model)

    def interrupted() -> None:
        with preserve_state(model):
            model.train()
            _scale(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fingerprint(model) == before


def test_nan_values_are_equal_to_themselves():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with preserve_state(model):
        pass


ODD = {
    "complex128": torch.tensor([[1 + 2j, 3j]], dtype=torch.complex128),
    "conjugated": torch.tensor([1 + 2j, 3j], dtype=torch.complex64).conj(),
    "negated": torch.tensor([1 + 2j, 3j], dtype=torch.complex64).conj().imag,
    "bool": torch.tensor([True, False]),
    "int8": torch.tensor([3, -4], dtype=torch.int8),
    "no axis": torch.tensor(3.0),
    "no entries": torch.zeros(0, 3),
    "strided": torch.arange(20.0).reshape(4, 5).T[::2],
    "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("kind", ODD)
def test_buffers_of_any_kind(kind, inference):
    net, scratch = nn.Linear(3, 2), {}
    net.register_buffer("odd", ODD[kind].clone() if kind in ("bool", "int8") else ODD[kind])
    before = net.odd.clone()
    for _ in range(2):
        with torch.inference_mode(inference), preserve_state(net, scratch):
            net(torch.zeros(1, 3))
    if net.odd.numel():
        with pytest.raises(AssertionError, match="values of buffer odd"), preserve_state(net, scratch):
            net.odd.data.copy_(torch.zeros_like(net.odd))
    assert torch.equal(net.odd, before)
    assert not any(held.is_inference() for held in scratch.values())
