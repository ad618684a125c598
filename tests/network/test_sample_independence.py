"""Which models their modules alone prove to treat every sample by itself; whatever is doubtful is not among them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import jacobian
from alignver.network import validate_model
from alignver.network.row_rank_bound import _ELEMENTWISE, is_sample_independent

X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), *(middle or (nn.Tanh(),)), nn.Linear(3, 2))


@pytest.mark.parametrize("kind", _ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_elementwise_functions(kind):
    options = {"Threshold": (0.1, 20.0), "Dropout": (0.0,)}.get(kind.__name__, ())
    model = chain(kind(*options))
    assert is_sample_independent(model, X)
    for batch in (X[:1], X.flip(0), X[1:3]):  # and so they do
        rows = model(X).detach()
        wanted = {1: rows[:1], 4: rows.flip(0), 2: rows[1:3]}[len(batch)]
        torch.testing.assert_close(model(batch).detach(), wanted)


class Own(nn.Linear):
    pass


class Coupling(nn.Tanh):
    def forward(self, x):
        return x - x.mean(0)


def with_attribute(name: str, value: object) -> nn.Module:
    model = chain()
    setattr(model[1], name, value)
    return model


def hooked(register: str) -> nn.Module:
    model = chain()
    getattr(model[1], register)(lambda *args: None)
    return model


def parameter_hook() -> nn.Module:
    model = chain()
    model[0].weight.register_hook(lambda g: g)
    return model


def replaced_weight() -> nn.Module:
    model = chain()
    weight = model[0].weight.detach() * 2.0
    del model[0].weight
    model[0].weight = weight  # a tensor past the registry
    return model


def extra_parameter() -> nn.Module:
    model = chain()
    model[1].register_parameter("more", nn.Parameter(torch.ones(1)))
    return model


DOUBTFUL = {
    "a subclass": lambda: chain(Own(3, 3)),
    "a subclass that couples": lambda: chain(Coupling()),
    "a replaced method": lambda: with_attribute("forward", lambda x: x - x.mean(0)),
    "a tensor on the side": lambda: with_attribute("last", torch.ones(1)),
    "a forward hook": lambda: hooked("register_forward_hook"),
    "a forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "a backward hook": lambda: hooked("register_full_backward_hook"),
    "a hook of a parameter": parameter_hook,
    "a weight that is no parameter": replaced_weight,
    "one parameter more": extra_parameter,
    "a parametrization": lambda: chain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
    "batch norm": lambda: chain(nn.BatchNorm1d(3).eval()),
    "softmax": lambda: chain(nn.Softmax(0)),
    "dropout in train mode": lambda: chain(nn.Dropout(0.5)),
    "a flattening of the samples": lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)),
    "a flattening that ends before it starts": lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten(1, 0)),
    "an unflattening": lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Flatten()),
    "random leaks": lambda: chain(nn.RReLU()),
    "a list that is no chain": lambda: nn.ModuleList([nn.Linear(3, 3)]),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_whatever_is_doubtful(name):
    assert not is_sample_independent(DOUBTFUL[name](), X)


def test_samples_as_features_and_other_tensors():
    assert not is_sample_independent(nn.Linear(4, 1), torch.zeros(4))
    assert not is_sample_independent(chain(), nn.Parameter(X))


def test_hooks_of_all_modules_and_replaced_classes(monkeypatch):
    assert is_sample_independent(chain(), X)
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not is_sample_independent(chain(), X)
    handle.remove()
    assert is_sample_independent(chain(), X)
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: x - x.mean(0))
    assert not is_sample_independent(chain(), X)
    with pytest.raises(InvalidInput, match="depends on the others"):
        gram(chain(), X)


@given(st.lists(st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.Identity, nn.Flatten]), max_size=4), st.integers(1, 5))
def test_what_is_left_out_would_have_found_nothing(kinds, n):
    """The same answers as after every probe and comparison."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(n)
        model, x = chain(*[kind() for kind in kinds]), torch.randn(n, 3)
    assert is_sample_independent(model, x)
    computed, columns = gram(model, x), jacobian(model, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate_model, "is_sample_independent", lambda *args: False)
        assert torch.equal(gram(copy.deepcopy(model), x), computed)
        assert torch.equal(jacobian(copy.deepcopy(model), x), columns)


def test_what_can_still_be_wrong_is_seen():
    with pytest.raises(InvalidInput, match="needs 3 numbers for each sample"):
        jacobian(chain(), torch.zeros(4, 5))
    model = chain(nn.Identity())
    with torch.no_grad():
        model[0].weight.fill_(1e20)
    with pytest.raises(InvalidInput, match="NaN or Inf"):
        jacobian(model, torch.full((4, 3), 1e300, dtype=torch.float64))
