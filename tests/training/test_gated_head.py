"""The gated head: phases, precision, state dicts."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignver.errors import InvalidInput
from alignver.training.gated_network import GatedHead, gate_slope, modify
from tests.training import nets


def head(dtype=torch.float64, slope=2.0):
    torch.manual_seed(0)
    return GatedHead(4, 5, 3, slope).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frozen_gates_make_the_outputs_linear_in_the_weights(dtype):
    gated, z = head(dtype), torch.randn(6, 4, dtype=dtype)
    before = gated(z)
    gated.freeze()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(gated(z), before, atol=tolerance)
    with torch.no_grad():
        gated.hidden.mul_(3.0)
    assert torch.allclose(gated(z), 3.0 * before, atol=10 * tolerance)
    assert gated(z).dtype == dtype
    free = head(dtype)
    with torch.no_grad():
        free.hidden.mul_(3.0)
    assert not torch.allclose(free(z), 3.0 * before, atol=1e-3)  # its gates move with the weights


def test_steep_frozen_gates_are_those_of_float64():
    gated = head(torch.float32, slope=1e5)
    gated.freeze()
    z = torch.randn(200, 4)
    exact = copy.deepcopy(gated).double()
    gates = gated.gate_values(gated.features(z)).double()
    assert float((gates - exact.gate_values(exact.features(z.double()))).abs().max()) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_state_dict_goes_through_safetensors_with_its_phase(tmp_path, dtype):
    X, _ = nets.data(dtype=torch.float32)
    network = modify(nets.noisy(2, torch.float32), X[:2], outputs=2).to(dtype)
    X = X.to(dtype)
    network(X)  # BatchNorm's statistics move
    network.eval()
    network.head.freeze()
    with torch.no_grad():
        network.head.hidden.add_(0.5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    fresh = modify(nets.noisy(2, torch.float32, seed=9), X[:2].float(), outputs=2).to(dtype).eval()
    assert not torch.equal(fresh(X), network(X))
    fresh.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(fresh(X), network(X))
    assert bool(fresh.head.frozen)
    assert "frozen gates" in repr(fresh.head)
    twin = copy.deepcopy(fresh)
    assert torch.equal(twin(X), network(X))


@pytest.mark.parametrize("gate", [0.0, -1.0, float("inf"), float("nan"), True, "relu", torch.tanh, torch.relu, None])
def test_gates_that_are_not_logistic(gate):
    with pytest.raises(InvalidInput, match=r"gate: got .*logistic"):
        gate_slope(gate)


def test_gates():
    assert [gate_slope(gate) for gate in (3, 0.5, torch.sigmoid, torch.nn.Sigmoid())] == [3.0, 0.5, 1.0, 1.0]
    with pytest.raises(InvalidInput, match="width: got width=0"):
        GatedHead(3, 0, 1)
