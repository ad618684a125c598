"""Norm-wise enclosures against 500 bits: each kind of step, functions, and modules of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flint import ctx
from torch import nn

from alignver.kernel.failure import NotProved
from alignver.kernel.network import normwise
from alignver.kernel.network.program import compiled
from alignver.kernel.network.radii import Rows
from alignver.network.trace import trace_model
from tests.kernel.tapes import BITS, Builder, checked, ratios, values

EVERYWHERE = [
    ("softplus", {"beta": 100.0}), ("softplus", {"beta": 1.0}), ("logsigmoid", {}), ("sigmoid", {}), ("tanh", {}),
    ("gelu", {"approximate": "none"}), ("gelu", {"approximate": "tanh"}), ("silu", {}), ("mish", {}),
    ("elu", {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}),
    ("elu", {"alpha": 0.7, "scale": 1.3, "input_scale": 0.9}),
    ("exp", {}), ("expm1", {}), ("sin", {}), ("cos", {}), ("erf", {}), ("atan", {}), ("relu", {}), ("abs", {}),
    ("leaky_relu", {"slope": 0.01}), ("clamp", {"low": -0.5, "high": 0.7}), ("relu6", {}), ("hardsigmoid", {}),
    ("hardswish", {}), ("pow", {"exponent": 3.0}), ("sinh", {}), ("cosh", {}), ("asinh", {}),
    ("exponential", {"base": 2.0}), ("exponential", {"base": 0.3}),
]  # fmt: skip
POSITIVE = [
    ("log", {}), ("log1p", {}), ("sqrt", {}), ("rsqrt", {}), ("reciprocal", {}), ("pow", {"exponent": -2.0}),
    ("pow", {"exponent": 0.3}), ("pow", {"exponent": 1.5}), ("logarithm", {"base": 2.0}), ("logarithm", {"base": 10.0}),
]  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(("fn", "parameters"), EVERYWHERE + POSITIVE, ids=str)
def test_functions(fn, parameters, scale):
    builder = Builder(np.random.default_rng(int(scale)), 2, 3)
    builder.linear(4, scale)
    if (fn, parameters) in POSITIVE:
        builder.apply("softplus", beta=1.0)
        builder.last = builder.tape.sum(builder.last, builder.tape.leaf(np.array(0.1)))
    builder.apply(fn, **parameters)
    builder.linear(2)
    assert max(checked(builder.program())) <= 1.0


@pytest.mark.parametrize("scale", [2.0**-40, 60.0])
@pytest.mark.parametrize(
    ("fn", "parameters"), [("sinh", {}), ("cosh", {}), ("asinh", {}), ("expm1", {}), ("exponential", {"base": 2.0}),
                           ("exponential", {"base": 1.0})], ids=str)  # fmt: skip
def test_functions_of_small_and_large_numbers(fn, parameters, scale):
    """Relative errors: where a difference cancels, and where a rounding of the exponent is multiplied by it."""
    builder = Builder(np.random.default_rng(3), 5, 4)
    builder.tape.steps[0].args["value"][:] = scale * np.linspace(-1.0, 1.0, 20).reshape(5, 4)
    builder.apply(fn, **parameters)
    program = builder.program()
    with ctx.workprec(BITS):
        assert ratios(program, normwise.forward(program), values(program)) <= 1.0


def test_numbers_that_overflow_are_refused():
    for fn, parameters, x in (("sinh", {}, 701.0), ("cosh", {}, -1e4), ("exponential", {"base": 2.0}, 1100.0),
                              ("exponential", {"base": 0.3}, -1e4), ("asinh", {}, 1e200)):  # fmt: skip
        builder = Builder(np.random.default_rng(0), 1, 1)
        builder.tape.steps[0].args["value"][:] = x
        builder.apply(fn, **parameters)
        with pytest.raises(NotProved, match="beyond"):
            normwise.forward(builder.program())


class Net(nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x):
        return self.function(x, *self.parts)


def drawn(module):
    """The module with other scales, shifts and statistics than the initial ones."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 2.0) if name == "running_var" else tensor.data.normal_()
    return module


def as_program(model, X):
    model = model.double().eval()
    traced = trace_model(model, X, rows=len(X))
    return compiled(traced.graph, {k: v.detach().numpy() for k, v in traced.tensors.items()}, X.numpy())


def image():
    return torch.randn(2, 2, 5, 5, dtype=torch.double)


def vector():
    return torch.randn(2, 6, dtype=torch.double)


def sequence():
    return torch.randn(2, 3, 4, dtype=torch.double)


def sequential(*parts):
    return lambda: nn.Sequential(*(part() for part in parts))


def linear(width, out):
    return lambda: nn.Linear(width, out)


MODULES = {
    "convolution": (
        sequential(lambda: nn.Conv2d(2, 2, 3, padding=1), lambda: nn.Softplus(100),
                   lambda: nn.Conv2d(2, 2, 3, stride=2), nn.Flatten, linear(8, 2)), image),
    "groups and dilation": (
        sequential(lambda: nn.Conv2d(2, 4, 2, padding=1, groups=2), nn.Tanh, lambda: nn.Conv2d(4, 2, 2, dilation=2),
                   nn.Flatten), image),
    "transposed": (
        sequential(lambda: nn.Conv2d(2, 1, 2, stride=3), nn.Tanh,
                   lambda: nn.ConvTranspose2d(1, 2, 3, stride=2, padding=1, output_padding=1), nn.Flatten), image),
    "transposed, apart": (
        sequential(lambda: nn.Conv2d(2, 1, 2, stride=3), nn.Tanh, lambda: nn.ConvTranspose2d(1, 2, 2, stride=2),
                   nn.Flatten), image),
    "batch norm": (
        sequential(lambda: nn.Conv2d(2, 2, 3), lambda: drawn(nn.BatchNorm2d(2)), lambda: nn.Softplus(100), nn.Flatten,
                   linear(18, 2)), image),
    "layer norm": (
        sequential(linear(4, 4), lambda: drawn(nn.LayerNorm(4)), nn.GELU, nn.Flatten, linear(12, 2)), sequence),
    "group norm": (
        sequential(lambda: nn.Conv2d(2, 4, 4), lambda: drawn(nn.GroupNorm(2, 4)), nn.SiLU, nn.Flatten, linear(16, 2)),
        image),
    "rms norm": (
        sequential(linear(6, 4), lambda: drawn(nn.RMSNorm(4, eps=1e-6)), nn.Tanh, linear(4, 2)), vector),
    "max pooling": (
        sequential(lambda: nn.Conv2d(2, 2, 2), lambda: nn.MaxPool2d(3, stride=2, padding=1), nn.Flatten, linear(8, 2)),
        image),
    "average pooling": (
        sequential(lambda: nn.Conv2d(2, 1, 2), lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
                   nn.Tanh, lambda: nn.AdaptiveAvgPool2d(3), nn.Flatten, linear(9, 2)), image),
    "attention": (
        lambda: Net(lambda x, attend, last: last(attend(x, x, x, need_weights=False)[0].flatten(1)),
                    nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 2)), sequence),
    "softmax": (sequential(linear(6, 4), lambda: nn.Softmax(-1), linear(4, 3), lambda: nn.LogSoftmax(-1)), vector),
    "logsumexp and mean": (
        lambda: Net(lambda x, f: torch.stack([torch.logsumexp(f(x), -1), f(x).mean(-1)], -1), nn.Linear(6, 4)), vector),
    "quotient": (lambda: Net(lambda x, f, g: f(x) / (1 + g(x) ** 2), nn.Linear(6, 3), nn.Linear(6, 3)), vector),
    "outer": (
        lambda: Net(lambda x, f, g: torch.einsum("bi,bj->bij", f(x), g(x)).flatten(1),
                    nn.Linear(6, 2), nn.Linear(6, 2)), vector),
    "tied": (lambda: Net(lambda x, f: torch.tanh(f(torch.tanh(f(x)))), nn.Linear(6, 6)), vector),
    "residual": (lambda: Net(lambda x, f, g: g(x + torch.tanh(f(x))), nn.Linear(6, 6), nn.Linear(6, 2)), vector),
    "shared factors": (
        lambda: Net(lambda x, f, g: x @ torch.tanh(f.weight @ g.weight), nn.Linear(3, 6), nn.Linear(2, 3)), vector),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    torch.manual_seed(0)
    make, inputs = MODULES[name]
    assert max(checked(as_program(make(), inputs()), most=6)) <= 1.0


def test_a_softmax_with_masked_entries_and_with_finite_ones():
    for mask in (None, np.array([[False, True, False, False]] * 2)):
        builder = Builder(np.random.default_rng(0), 2, 3)
        builder.linear(4)
        tape, shift = builder.tape, np.array([0.0, 0.0, -1e3, 0.0])
        builder.last = tape.sum(builder.last, tape.leaf(shift))
        builder.last = tape.rows("softmax", builder.last, keep=True, masked=mask)
        builder.linear(2)
        assert max(checked(builder.program())) <= 1.0


def test_samples_along_another_axis():
    builder = Builder(np.random.default_rng(0), 2, 3)
    tape = builder.tape
    builder.last = tape.matmul(builder.leaf(4, 3), tape.permute(builder.last, (1, 0)))  # (4, samples)
    builder.apply("tanh")
    builder.last = tape.product(builder.last, builder.leaf(4, 1))
    builder.last = tape.permute(tape.sum(builder.last, builder.leaf(4, 1)), (1, 0))
    assert max(checked(builder.program())) <= 1.0


def test_kinks_and_undefined_values_are_refused():
    for fn, value in (("relu", 0.0), ("abs", 0.0), ("log", 0.0), ("reciprocal", 0.0), ("exp", 1e4), ("sqrt", -1.0)):
        builder = Builder(np.random.default_rng(0), 2, 1)
        tape = builder.tape
        builder.last = tape.product(builder.last, builder.leaf(1, scale=0.0))
        builder.last = tape.sum(builder.last, tape.leaf(np.array(value)))
        builder.apply(fn)
        with pytest.raises(NotProved):
            normwise.gradients(builder.program(), normwise.forward(builder.program()), [0])


def test_forward_keeps_the_output_alone():
    builder = Builder(np.random.default_rng(0), 3, 4)
    builder.linear(5)
    builder.apply("tanh")
    builder.linear(2)
    program = builder.program()
    (only,), every = normwise.forward(program, keep=False), normwise.forward(program)
    np.testing.assert_array_equal(only.value, every[program.output].value)
    np.testing.assert_array_equal(only.error, every[program.output].error)
    assert only.error.shape == (3,)
    assert every[program.steps[program.output].of[0]].error.shape in ((), (3,))


@pytest.mark.parametrize(("name", "by_channels"), [("convolution", 2), ("groups and dilation", 1), ("transposed", 2)])
@pytest.mark.parametrize("limits", [{}, {"_TERMS": 4, "_ROWS": 8}], ids=["whole", "in parts"])
def test_convolutions_by_channels_are_those_of_the_rows(name, by_channels, limits, monkeypatch):
    for limit, value in limits.items():
        monkeypatch.setattr(normwise, limit, value)
    torch.manual_seed(0)
    make, inputs = MODULES[name]
    program = as_program(make(), inputs())
    values = normwise.forward(program)
    steps = [step for step in program.steps if step.kind == "affine" and step.args["positions"] is not None]
    assert len(steps) == by_channels
    for step in steps:
        x, W = (values[k].value for k in step.of)
        gathered = np.append(x, 0.0)[step.args["index"]].reshape(step.args["rows"])
        np.testing.assert_allclose(normwise._by_channels(step, x, W), gathered @ W, rtol=0, atol=1e-14)


def test_an_index_that_differs_between_channels_or_samples_has_no_positions():
    shape, index = (2, 2, 3), np.array([0, 1, 3, 4, -1, 2, -1, 5]).reshape(1, 2, 4)
    whole = np.concatenate([index, np.where(index < 0, -1, index + 6)], axis=1)
    for place, changed in ((None, 0), ((0, 0, 0), 2), ((0, 3, 3), 9), ((0, 1, 0), 1), ((0, 2, 1), -1)):
        builder = Builder(np.random.default_rng(0), 2, 1)
        x = builder.tape.append("input", (), shape, np.repeat(np.arange(2, dtype=np.int32), 6), value=np.ones(shape))
        rows = whole.copy()
        if place is not None:
            rows[place] = changed
        meta = {"kind": "conv", "kernel": (2,), "stride": (1,), "dilation": (1,), "rows": np.repeat([0, 1], 2)}
        step = builder.tape.affine(x, builder.leaf(1, 4, 3), rows, meta)
        positions = builder.tape.steps[step].args["positions"]
        assert (positions is None) == (place is not None)
        if place is None:
            np.testing.assert_array_equal(positions, [[0, 1], [-1, 2]])


@pytest.mark.parametrize("name", ["convolution", "batch norm", "shared factors", "attention"])
def test_what_the_inputs_do_not_change_is_evaluated_once(name, monkeypatch):
    torch.manual_seed(0)
    make, inputs = MODULES[name]
    program = as_program(make(), inputs())
    fixed = normwise.constants(program)
    (plain,) = normwise.forward(program, keep=False)
    for _ in range(2):
        (again,) = normwise.forward(program, keep=False, fixed=fixed)
        np.testing.assert_array_equal(plain.value, again.value)
        np.testing.assert_array_equal(plain.error, again.error)
        monkeypatch.setattr(normwise, "affine_norm", None)  # was computed before
    kinds = {program.steps[i].kind for i in fixed.values}
    assert "leaf" in kinds
    assert "input" not in kinds
    assert program.output not in fixed.values


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_in_factors_are_the_same(tied):
    builder = Builder(np.random.default_rng(0), 3, 4)
    W = builder.leaf(4, 4)
    for _ in range(1 + tied):
        builder.last = builder.tape.matmul(builder.last, builder.tape.permute(W, (1, 0)))
        builder.apply("tanh")
    builder.linear(2)
    program = builder.program()
    values = normwise.forward(program)
    plain = normwise.gradients(program, values, [1, 0])
    factors = normwise.gradients(program, values, [1, 0], factored=True)
    assert plain.keys() == factors.keys()
    kinds = {program.steps[k].shape: isinstance(g, Rows) for k, (g, _) in factors.items()}
    assert kinds == {(4, 4): not tied, (4, 2): True, (2,): False}
    for k, (g, radius) in factors.items():
        np.testing.assert_array_equal(radius, plain[k][1])
        dense = g.dense() if isinstance(g, Rows) else g
        rows = plain[k][0].reshape(6, -1)
        np.testing.assert_allclose(dense.reshape(6, -1) @ dense.reshape(6, -1).T, rows @ rows.T, rtol=1e-13)
