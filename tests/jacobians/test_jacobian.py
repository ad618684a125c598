"""The Jacobian against a float64 loop of autograd.grad, and what it leaves behind: nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.jacobians import jacobian as jacobian_module
from alignver.jacobians.jacobian import differentiate, jacobian, outputs, require_finite
from alignver.jacobians.jacobian_form import streamed_qr
from alignver.jacobians.operator import JacobianOperator
from alignver.network.functional import parameter_layout
from alignver.progress import listening
from tests import zoo
from tests.jacobians import networks
from tests.reference import fingerprint, reference_jacobian, relative


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", zoo.CASES)
def test_agrees_with_a_float64_loop_and_leaves_no_trace(name, dtype):
    model, x = zoo.build(name, dtype)
    for k, parameter in enumerate(model.parameters()):
        if k % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    if not isinstance(model, zoo.Counting):
        wanted = reference_jacobian(model, x)
    else:
        wanted = reference_jacobian(model.layer, x)
    before, given = fingerprint(model), x.clone()
    computed = jacobian(model, x)
    assert fingerprint(model) == before
    assert torch.equal(x, given)
    assert computed.dtype == torch.float64
    assert not computed.requires_grad
    assert relative(computed, wanted) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["resnet-18, pre-activation", "tied linear", "convolution used twice", "conv3d"])
def test_and_on_networks_of_the_gram_matrix(name, dtype):
    model, x = networks.build(name, dtype)
    wanted = reference_jacobian(model, x)
    before = fingerprint(model)
    assert relative(jacobian(model, x, chunk_size=2), wanted) <= 1e-12
    R = streamed_qr(model, x).r
    assert relative(R.T @ R, wanted @ wanted.T) <= 1e-12
    u = torch.cos(torch.arange(float(len(wanted)), dtype=torch.float64))
    assert relative(JacobianOperator(model, x).rmatvec(u), wanted.T @ u) <= 1e-12
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", zoo.CASES)
def test_in_the_models_own_dtype(name):
    model, x = zoo.build(name)
    wanted = reference_jacobian(model.layer if isinstance(model, zoo.Counting) else model, x)
    computed = jacobian(model, x, dtype="same")
    assert computed.dtype == torch.float32
    assert relative(computed, wanted) <= 1e-4
    assert torch.equal(computed, jacobian(model, x, dtype=None))
    assert torch.equal(computed, jacobian(model, x, dtype="float32"))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("name", ["mlp", "batch norm in eval mode", "control flow on data", "forward mode"])
def test_chunks_change_nothing(name, chunk_size):
    model, x = zoo.build(name)
    assert relative(jacobian(model, x, chunk_size=chunk_size), reference_jacobian(model, x)) <= 1e-12


@pytest.mark.parametrize("name", ["mlp", "reused and aliased", "tied embedding", "forward mode"])
def test_the_slow_engine_agrees_with_the_fast_one(name, monkeypatch):
    model, x = zoo.build(name)
    fast = differentiate(model, x)
    assert "torch.func" in fast.engine

    def refuse(*args: object) -> None:
        raise RuntimeError("vmap: no batching rule\nfor this")

    monkeypatch.setattr(jacobian_module, "vectorised", refuse)
    slow = differentiate(model, x)
    assert slow.engine == "autograd, one output at a time (torch.func.vmap: vmap: no batching rule)"
    assert relative(slow.matrix, fast.matrix) <= 1e-14


def test_a_wrong_fast_engine_is_caught(monkeypatch):
    model, x = zoo.build("mlp")
    wanted, right = reference_jacobian(model, x), jacobian_module.vectorised

    def wrong(function, part, m_y):
        return tuple(1.01 * block for block in right(function, part, m_y))

    monkeypatch.setattr(jacobian_module, "vectorised", wrong)
    computed = differentiate(model, x)
    assert "other derivatives" in computed.engine
    assert relative(computed.matrix, wanted) <= 1e-12


def test_says_how_it_was_computed():
    model, x = zoo.build("gru")
    assert differentiate(model, x).engine.startswith("autograd, one output at a time (torch.func.vmap: ")
    model, x = zoo.build("forward mode")
    assert differentiate(model, x).engine == "torch.func, forward mode, 4 samples at once"


def test_rows_are_output_major():
    model = nn.Linear(2, 3, bias=False)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    computed = jacobian(model, x)
    for i in range(2):
        for j in range(3):
            wanted = torch.zeros(3, 2, dtype=torch.float64)
            wanted[j] = x[i]
            assert torch.equal(computed[j * 2 + i], wanted.reshape(-1))


def test_vec_of_the_outputs_is_the_jacobian_times_theta_for_a_linear_model():
    model, x = nn.Linear(4, 3), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    theta = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    vec = outputs(model, x).T.reshape(-1)
    assert torch.allclose(jacobian(model, x) @ theta, vec, rtol=1e-14, atol=1e-14)


def test_frozen_parameters_are_left_out_or_included():
    model, x = zoo.build("frozen half")
    assert jacobian(model, x).shape == (10, 10)
    assert relative(jacobian(model, x, include_frozen=True), reference_jacobian(model, x, include_frozen=True)) <= 1e-12
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    model.requires_grad_(False)
    assert jacobian(model, x, include_frozen=True).shape == (10, 26)


def test_tied_parameters_are_one_block_of_columns():
    model, x = zoo.build("tied embedding")
    computed = differentiate(model, x)
    assert computed.layout.names == ("table.weight", "mix.weight", "mix.bias")
    assert computed.layout.aliases == {"head.weight": "table.weight"}
    assert computed.matrix.shape == (35, 28 + 16 + 4)


def test_outputs_match_the_model():
    for name in ("mlp", "one output, no axis", "tied embedding", "batch norm in eval mode"):
        model, x = zoo.build(name)
        with torch.no_grad():
            wanted = model(x.clone()).reshape(len(x), -1)
        computed = outputs(model, x, chunk_size=2)
        assert computed.dtype == torch.float64
        # A few layers of at most 32 inputs: some 200 roundings in float32, relative to the largest output.
        allowed = 200 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
        for ours in (computed, outputs(model, x, dtype="same")):
            assert float((ours - wanted).abs().max()) <= allowed


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_number_of_samples(count):
    for name in ("mlp", "one output, no axis"):
        model, x = zoo.build(name)
        x = torch.cat([x, x + 1.0])[:count]
        assert relative(jacobian(model, x), reference_jacobian(model, x)) <= 1e-12


def test_inputs_of_every_memory_layout_and_kind():
    model = nn.Linear(3, 2)
    base = np.arange(12.0).reshape(4, 3) + 0.25
    wanted = jacobian(model, torch.from_numpy(base))
    read_only = base.copy()
    read_only.setflags(write=False)
    for x in (base, np.asfortranarray(base), base[::-1][::-1], read_only, base.astype(">f8"), base.tolist()):
        assert torch.equal(jacobian(model, x), wanted)
    for dtype in (np.float16, np.float32):
        assert torch.equal(jacobian(model, base.astype(dtype)), wanted)  # quarters are exact in float16
    assert torch.equal(jacobian(model, torch.from_numpy(base).bfloat16()), wanted)
    assert torch.equal(jacobian(model.bfloat16(), torch.from_numpy(base).float()), wanted)


def test_no_grad_inference_mode_and_autocast_around_the_call_make_no_difference():
    model, x = zoo.build("mlp")
    wanted = jacobian(model, x)
    with torch.no_grad():
        assert torch.equal(jacobian(model, x), wanted)
    with torch.inference_mode():
        assert torch.equal(jacobian(model, x), wanted)
        assert torch.equal(jacobian(model, x.clone()), wanted)
        inside, _ = zoo.build("mlp")
    assert torch.equal(jacobian(inside, x), wanted)
    same = jacobian(model, x, dtype="same")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(jacobian(model, x), wanted)
        assert torch.equal(jacobian(model, x, dtype="same"), same)


def test_precision_switches_are_put_back():
    model, x = zoo.build("mlp")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    jacobian(model, x, dtype="same")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_progress_is_told():
    told: list[object] = []

    class Ear:
        def start(self, label: str, total: int | None) -> object:
            told.append((label, total))
            return 0

        def advance(self, handle: object) -> None:
            told.append("step")

        def finish(self, handle: object) -> None:
            told.append("end")

    model, x = zoo.build("mlp")
    with listening(Ear()):
        jacobian(model, x, chunk_size=2)
    probed = ("comparing the model's passes on a few samples", None)
    assert told == [probed, "end", ("Jacobian, 10 x 194", 3), "step", "step", "step", "end"]


def test_a_dtype_cast_inside_the_model_is_noticed():
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).float().sin()

    x = torch.ones(4, 3)
    computed = differentiate(Casting(), x)
    assert computed.matrix.dtype == torch.float64
    assert computed.computed_in == "float32"
    assert differentiate(nn.Linear(3, 2), x).computed_in == "float64"
    assert differentiate(nn.Linear(3, 2), x, dtype="same").computed_in == "float32"


@pytest.mark.parametrize("name", zoo.CASES)
def test_no_model_here_rounds_on_the_way(name):
    assert differentiate(*zoo.build(name)).computed_in == "float64"


def test_a_compiled_model_is_the_model_inside():
    model, x = zoo.build("mlp")
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(jacobian(compiled, x), jacobian(model, x))
    assert differentiate(compiled, x).layout.names == differentiate(model, x).layout.names


def test_forward_hooks_are_part_of_the_function_and_stay():
    model, x = zoo.build("mlp")
    handle = model[0].register_forward_hook(lambda module, args, out: 2 * out)
    before = fingerprint(model)
    assert relative(jacobian(model, x), reference_jacobian(model, x)) <= 1e-12
    assert fingerprint(model) == before
    handle.remove()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": 1.5}, "chunk_size=1.5"),
        ({"chunk_size": True}, "chunk_size=True"),
        ({"dtype": "float16"}, "dtype='float16'.*model.to"),
        ({"dtype": "double"}, "dtype='double'.*'float64', or 'same'"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InvalidInput, match=words):
        jacobian(nn.Linear(3, 2), torch.ones(4, 3), **options)


def test_a_jacobian_larger_than_the_memory_is_refused():
    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(1_000_000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a.sum() * x).expand(len(x), 100_000)

    with pytest.raises(InvalidInput, match=r"a Jacobian of .* GB; needs .*fewer samples"):
        jacobian(Tall(), torch.ones(100, 1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN, nn.Linear])
def test_recurrent_layers_run_without_cudnn(kind):
    """Its kernels have no backward pass in eval mode; other layers are left to it."""
    model = zoo.Last(kind).eval() if kind is not nn.Linear else nn.Linear(3, 2)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    before = torch.backends.cudnn.enabled
    jacobian(model, torch.randn(2, 4, 3) if kind is not nn.Linear else torch.randn(2, 3))
    assert set(seen) == {before and kind is nn.Linear}
    assert torch.backends.cudnn.enabled is before


def test_the_entry_that_is_not_finite_is_named():
    block, layout = torch.zeros(3, 4, 9, dtype=torch.float64), parameter_layout(nn.Linear(2, 3))
    block[1:, 3, 8] = 1e308  # the sum overflows
    require_finite(layout, block, 10)
    block[1, 2, 7] = float("-inf")
    with pytest.raises(InvalidInput, match="output 1 by parameter 'bias' that is NaN or Inf, at sample 12"):
        require_finite(layout, block, 10)
