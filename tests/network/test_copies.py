"""Hooks, lambdas and replaced forwards that close over the model: copies run with their own modules."""

from __future__ import annotations

import copy
import functools
import threading
import types

import pytest
import torch
from torch import nn

import alignver as av
from alignver.network.copies import copied, rebind_functions

X, Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 2


def base() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


class Listed(nn.Module):
    """Functions of the model's layers in a list and a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.steps = [lambda x: self.a(x), torch.tanh]
        self.last = {"out": functools.partial(lambda scale, x: scale * self.b(x), 2.0)}

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.last["out"](x)


class Held(nn.Module):
    """Its forward pass is a function made at construction, which has the weights themselves."""

    def __init__(self):
        super().__init__()
        self.a, self.lock = nn.Linear(3, 2), threading.Lock()
        weight, bias = self.a.weight, self.a.bias
        self.run = lambda x: torch.tanh(x @ weight.T + bias) * 3.0

    def forward(self, x):
        return self.run(x)


def hooked():
    net = base()
    net[1].register_forward_hook(lambda _module, _inputs, out: out * net[0].weight.sum().sin())
    net[2].register_forward_pre_hook(lambda _module, inputs: (inputs[0] + net[0].bias.mean(),))
    return net


def replaced():
    net = base()
    net.forward = lambda x: net[2](torch.sin(net[0](x)))
    return net


def bound():
    net = base()
    net.forward = types.MethodType(lambda self, x: self[2](torch.sin(net[0](x))), net)
    return net


def locked():
    net = base()
    net.lock = threading.Lock()
    return net


MODELS = {
    "hooks": hooked,
    "a forward": replaced,
    "a method": bound,
    "functions in containers": Listed,
    "a lock": locked,
}


def jacobian_of(model):
    """The Jacobian by autograd, on the model itself in float64."""
    parameters = list(model.double().parameters())
    rows = [torch.autograd.grad(model(X[i : i + 1].double())[0, j], parameters) for j in range(2) for i in range(5)]
    model.float()
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_every_engine_runs_the_copy(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    J = jacobian_of(model)
    before = {key: (value.clone(), value._version) for key, value in model.state_dict(keep_vars=True).items()}
    torch.testing.assert_close(av.jacobian(model, X), J)
    torch.testing.assert_close(av.gram(model, X), J @ J.T)
    result = av.check_alignment(model, X, Y, loss="cross_entropy")
    assert (result.rigor, result.subject) == ("PROOF", "NETWORK")
    assert str(av.check_common_structure(model, X).verdict) == "HOLDS"
    for key, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[key][0])
        assert value._version == before[key][1]


def test_a_copy_has_nothing_of_the_model():
    torch.manual_seed(0)
    for name, build in MODELS.items():
        model = build()
        twin = copied(model)
        expected = model(X)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert torch.equal(model(X), expected), name
        assert not torch.equal(twin(X), expected), name


def test_functions_of_others_stay_as_they_are():
    other, model = nn.Linear(1, 1), nn.Linear(1, 1)
    model.unrelated, model.plain = [lambda: other, lambda: 1], functools.partial(max, 1)
    twin = copy.deepcopy(model)
    rebind_functions(model, twin)
    assert twin.unrelated[0] is model.unrelated[0]
    assert twin.unrelated[1] is model.unrelated[1]


def test_weights_that_a_function_holds_are_refused():
    """They are read other than through the module, as in a list of tensors."""
    with pytest.raises(av.InvalidInput, match=r"dtype='same'"):
        av.jacobian(Held(), X)
    with pytest.raises(av.InvalidInput, match="reads its parameters from the module"):
        av.jacobian(Held(), X, dtype="same")
