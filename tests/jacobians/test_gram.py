"""The Gram matrix against J J^T of a float64 loop of autograd.grad."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram, plan
from alignver.jacobians.jacobian import jacobian
from alignver.progress import listening
from tests import zoo
from tests.jacobians import networks
from tests.reference import fingerprint, reference_jacobian, relative

# What torch says about two of the networks, whoever calls them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
EVERY = [*zoo.CASES, *networks.NETWORKS]


def build(name: str, dtype: torch.dtype = torch.float32):
    return (zoo if name in zoo.CASES else networks).build(name, dtype)


def reference(model: nn.Module, x: torch.Tensor, include_frozen: bool = False) -> torch.Tensor:
    return reference_jacobian(model.layer if isinstance(model, zoo.Counting) else model, x, include_frozen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_is_the_product_of_jacobians(name, dtype):
    model, x = build(name, dtype)
    J = reference(model, x)
    before, given = fingerprint(model), x.clone()
    M = gram(model, x, dtype="same")
    assert fingerprint(model) == before
    assert torch.equal(x, given)
    assert M.dtype == dtype
    assert not M.requires_grad
    assert torch.equal(M, M.T)
    assert relative(M, J @ J.T) <= LIMIT[dtype]


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
@pytest.mark.parametrize("name", EVERY)
def test_blocks_and_cross_matrices(name, chunk_size):
    model, x = build(name)
    J = reference(model, x)
    m_y = len(J) // len(x)
    M = gram(model, x, chunk_size=chunk_size)
    assert relative(M, J @ J.T) <= 1e-12
    assert torch.equal(M, M.T)
    some = J.view(m_y, len(x), -1)[:, 1:].flatten(0, 1)
    if name != "packed sequence":
        assert relative(gram(model, x, x[1:], chunk_size=chunk_size), J @ some.T) <= 1e-12


@pytest.mark.parametrize("name", ["mlp", "tied linear", "attention", "conv2d, groups"])
def test_widened_to_float64_by_default(name):
    model, x = build(name)
    J = reference(model, x)
    M = gram(model, x.numpy())
    assert M.dtype == torch.float64
    assert relative(M, J @ J.T) <= 1e-12


def test_is_the_square_of_our_jacobian():
    model, x = build("lenet")
    J = jacobian(model, x)
    assert relative(gram(model, x), J @ J.T) <= 1e-13


def test_one_sample():
    for name in ("mlp", "tied linear", "attention", "tied embedding", "gru", "resnet-18, pre-activation"):
        model, x = build(name)
        J = reference(model, x[:1])
        assert relative(gram(model, x[:1]), J @ J.T) <= 1e-12
        K = reference(model, x)
        assert relative(gram(model, x[:1], x), J @ K.T) <= 1e-12


def test_frozen_parameters():
    model, x = build("frozen half")
    for include in (False, True):
        J = reference(model, x, include_frozen=include)
        assert relative(gram(model, x, include_frozen=include), J @ J.T) <= 1e-12


def test_frozen_weight_and_free_bias_of_one_layer():
    model, x = build("mlp")
    model[2].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    J = reference(model, x)
    assert relative(gram(model, x), J @ J.T) <= 1e-12


def test_a_function_of_a_dict():
    model, x = build("mlp")
    J = reference(model, x)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    stored = {name: value.clone() for name, value in params.items()}

    def f(p, x):
        return torch.func.functional_call(model, p, (x,))

    assert relative(gram(f, x, params=params), J @ J.T) <= 1e-12
    assert all(torch.equal(params[name], stored[name]) for name in params)
    assert [s.name for s in plan(f, x, params=params).slots] == list(params)


def test_a_function_of_a_dict_with_shared_tensors_and_odd_names():
    generator = torch.Generator().manual_seed(3)
    W, x = torch.randn(4, 4, generator=generator), torch.randn(5, 4, generator=generator)
    names = ["forward", "a.b", "a", "a_b"]
    params = dict(zip(names, [W, W, torch.randn(4, generator=generator), torch.randn(4, generator=generator)]))

    def f(p, x):
        return torch.tanh(torch.tanh(x @ p["forward"] + p["a"]) @ p["a.b"].T) * p["a_b"]

    wide = [t.double().requires_grad_() for t in (W, params["a"], params["a_b"])]
    out = f({"forward": wide[0], "a.b": wide[0], "a": wide[1], "a_b": wide[2]}, x.double())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(out[i, j], wide, retain_graph=True)])
        for j in range(4)
        for i in range(5)
    ]
    J = torch.stack(rows)
    assert relative(gram(f, x, params=params), J @ J.T) <= 1e-12


def least_memory(model, x):
    """Return the number of bytes that a refusal names."""
    with pytest.raises(InvalidInput, match="its largest layer") as refusal:
        plan(model, x, memory=1)
    assert refusal.value.code == "too-large"
    return int(re.search(r"at least (\d+)", refusal.value.need).group(1))


def test_little_memory_cuts_parameters_samples_and_outputs():
    for name in ("mlp", "lenet", "tied embedding", "weight norm", "conv2d, groups", "gru"):
        model, x = build(name)
        J = reference(model, x)
        least = least_memory(model, x)
        planned = plan(model, x, memory=least)
        assert planned.samples == 1
        assert len(planned.groups) > 1
        M = gram(model, x, memory=least)
        assert torch.equal(M, M.T)
        assert relative(M, J @ J.T) <= 1e-12
        assert relative(gram(model, x, x, memory=least), J @ J.T) <= 1e-12
    model, x = build("tied embedding")
    assert plan(model, x, memory=least_memory(model, x)).outputs < 7
    with pytest.raises(InvalidInput, match="memory"):
        gram(model, x, memory=0)


def test_the_number_of_passes_is_linear_in_the_samples(monkeypatch):
    """With memory for a constant number of samples at a time: no block is differentiated again for another one."""
    from alignver.jacobians import sample_blocks

    passes = []
    backward = sample_blocks._backward
    monkeypatch.setattr(sample_blocks, "_backward", lambda *args: passes.append(1) or backward(*args))
    model, _ = build("lenet")
    counts = []
    for n in (8, 16, 32):
        x = torch.randn(n, 1, 10, 10, generator=torch.Generator().manual_seed(0))
        passes.clear()
        M = gram(model, x, chunk_size=2)
        counts.append(len(passes))
        assert plan(model, x, chunk_size=2).passes == len(passes)
        assert relative(M, gram(model, x)) <= 1e-13
    assert counts == [4, 8, 16]


def test_columns_are_cut_where_they_do_not_fit(monkeypatch):
    from alignver.jacobians import contractions, gram_planning

    for name in ("tied embedding", "tied and turned", "conv2d, groups", "weight norm", "linear on sequences"):
        model, x = build(name)
        J = reference(model, x)
        monkeypatch.setattr(contractions, "POOL", 300)
        monkeypatch.setattr(gram_planning, "POOL", 300)
        assert relative(gram(model, x), J @ J.T) <= 1e-12
        assert relative(gram(model, x, x[:2], chunk_size=2), J @ reference(model, x[:2]).T) <= 1e-12


def test_progress_tells_size_and_memory():
    heard = []

    class Listener:
        def start(self, label, total):
            heard.append((label, total))
            return len(heard)

        def advance(self, handle):
            heard.append("step")

        def finish(self, handle):
            heard.append("end")

    model, x = build("mlp")
    with listening(Listener()):
        gram(model, x, chunk_size=2)
    assert heard[:2] == [("comparing the model's passes on a few samples", None), "end"]
    assert heard[2] == ("Gram matrix, 10 x 10, about 0 MB", 3)
    assert heard.count("step") == 3


def test_the_random_state_stays():
    model, x = build("mlp")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    gram(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_inside_no_grad_and_inference_mode():
    model, x = build("tied linear")
    J = reference(model, x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            M = gram(model, x)
        assert relative(M, J @ J.T) <= 1e-12


def test_checkpoints():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(checkpoint(self.a, x, use_reentrant=False))

    model, x = Net().double(), torch.ones(3, 3).double().cumsum(0)
    J = reference(model, x)
    assert relative(gram(model, x), J @ J.T) <= 1e-12


def test_larger_panels():
    """Sizes at which panels, tiles and partial columns all occur."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, 2))
    x = torch.randn(150, 2, 8, generator=generator)
    J = reference(net, x)
    M = gram(net, x)
    assert relative(M, J @ J.T) <= 1e-12
    assert torch.equal(M, M.T)
    assert relative(gram(net, x[:40], x), reference(net, x[:40]) @ J.T) <= 1e-12
    assert relative(gram(net, x, chunk_size=64), J @ J.T) <= 1e-12
    assert np.linalg.eigvalsh(M.numpy()).min() >= -1e-10 * float(M.diagonal().max())
