"""What the Gram matrix refuses: all that the Jacobian does, and a little more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram, plan
from tests.network.test_validate_model import DERIVATIVES, INPUTS, MODELS, Root
from tests.reference import fingerprint


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name):
    build, words = MODELS[name]
    model = build()
    x = torch.arange(12.0).reshape(4, 3) ** 2 + 1.0
    safe = isinstance(model, nn.Module) and not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters())
    before = fingerprint(model) if safe else None
    for entry in (gram, plan):
        with pytest.raises(InvalidInput, match=words):
            entry(model, x)
    assert before is None or fingerprint(model) == before


@pytest.mark.parametrize("name", DERIVATIVES)
def test_models_whose_derivatives_are_refused(name):
    build, words = DERIVATIVES[name]
    model = build()
    before = fingerprint(model)
    with pytest.raises(InvalidInput, match=words):
        gram(model, torch.arange(12.0).reshape(4, 3) + 1.0)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_refused(name):
    build, words = INPUTS[name]
    with pytest.raises(InvalidInput, match=words):
        gram(nn.Linear(3, 2), build())
    if name != "None":
        with pytest.raises(InvalidInput, match=words.replace("X:", "X2:")):
            gram(nn.Linear(3, 2), np.ones((4, 3)), build())


def test_an_infinite_derivative_behind_a_formula_is_named():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return torch.sqrt(self.layer(x) * 0.0)

    with pytest.raises(InvalidInput, match=r"by parameter 'layer.weight' that is NaN or Inf, at sample 0"):
        gram(Net(), torch.ones(3, 2))


def test_overflow():
    model = nn.Linear(2, 1)
    with pytest.raises(InvalidInput, match=r"products overflow"):
        gram(model, torch.full((3, 2), 1e25), dtype="same")
    assert bool(torch.isfinite(gram(model, torch.full((3, 2), 1e25))).all())


def test_x2_is_named():
    model = nn.Linear(3, 2)
    with pytest.raises(InvalidInput, match=r"X2: got samples of shape \(5,\)"):
        gram(model, torch.ones(4, 3), torch.ones(4, 5))
    with pytest.raises(InvalidInput, match=r"X2: got dtype float64"):
        gram(model, torch.ones(4, 3), torch.ones(4, 3).double(), dtype="same")


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, True, "all"])
def test_bad_chunk_sizes(chunk_size):
    with pytest.raises(InvalidInput, match=r"chunk_size: got chunk_size="):
        gram(nn.Linear(3, 2), torch.ones(4, 3), chunk_size=chunk_size)


def test_a_result_beyond_memory(monkeypatch):
    from alignver.network import functional

    monkeypatch.setattr(functional.os, "sysconf", lambda key: 8)
    with pytest.raises(InvalidInput, match=r"X: got a Gram matrix of 8 x 8"):
        gram(nn.Linear(3, 2), torch.ones(4, 3))


BAD_PARAMS = {
    "no dict": ([1.0], r"params: got a list"),
    "empty": ({}, r"params: got an empty dict"),
    "array": ({"w": np.ones(2)}, r"params: got 'w': an ndarray"),
    "integers": ({"w": torch.ones(2, dtype=torch.int64)}, r"params: got 'w': a tensor of int64"),
    "name": ({1: torch.ones(2)}, r"params: got 1"),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_bad_params(name):
    params, words = BAD_PARAMS[name]
    with pytest.raises(InvalidInput, match=words):
        gram(lambda p, x: x, torch.ones(4, 3), params=params)


def test_no_function():
    with pytest.raises(InvalidInput, match=r"model: got an int; needs a function"):
        gram(3, torch.ones(4, 3), params={"w": torch.ones(3)})


def test_the_root_is_fine_away_from_zero():
    model = Root()
    with torch.no_grad():
        model.scale += 1.0
    assert gram(model, torch.ones(4, 3)).shape == (12, 12)
