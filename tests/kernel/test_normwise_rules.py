"""Each norm-wise rule alone: no error beyond its radius, and errors that reach it, so that no constant is too large.

The arguments of a step, and the gradients of the outputs with respect to it, are within given radii of the exact ones:
at random, in one entry, or where the step changes most.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from flint import arb, ctx
from torch import nn
from torch.nn import functional as F

from alignver.kernel.failure import NotProved
from alignver.kernel.network import normwise, operator_norms
from alignver.kernel.network.tape import Program, Step
from tests.kernel.tapes import Builder, checked, single
from tests.kernel.test_normwise import EVERYWHERE, POSITIVE, as_program

ROWS = np.arange(2, dtype=np.int32)


class Drawn(Builder):
    """Steps of two samples."""

    def __init__(self, seed):
        super().__init__(np.random.default_rng(seed), 2, 1)

    def input(self, *shape, scale=1.0, least=None):
        entries = self.rng.normal(size=shape) * scale
        if least is not None:
            entries = np.abs(entries) + least
        return self.tape.append("input", (), shape, np.repeat(ROWS, entries.size // 2), value=entries)

    def rows(self, kind, *args, scale=1.0, **more):
        keep = kind in ("softmax", "log_softmax", "normalize")
        return self.tape.rows(kind, self.input(*args, scale=scale), keep=keep, **more)

    def square(self):
        x = self.input(2, 3)
        return self.tape.product(x, x)

    def sharp(self):
        """A row in which one entry is far above the others."""
        x = self.input(2, 3)
        self.tape.steps[x].args["value"][:, 0] += 20.0
        return self.tape.rows("log_softmax", x, keep=True, masked=None)


OVERLAPPING = np.array([[[0, 1, 2], [1, 2, 3], [-1, 0, 1], [4, 5, 6], [5, 6, 7], [-1, 4, 5]]])
MASK = np.array([[False, True, False]] * 4)
# A step, and what its ratio of error to radius reaches: forward, and backward.
STEPS = {
    "copies": (lambda d: d.tape.move((d.input(2, 4),), np.array([[0, 0, 1, -1, 0], [4, 5, 5, 7, -1]])), 0.99, 0.99),
    "copies of what is shared": (
        lambda d: d.tape.move((d.leaf(3),), np.array([[0, 0, 1], [0, 2, 2]]), np.repeat(ROWS, 3)), 0.99, 0.99),
    "copies of both": (
        lambda d: d.tape.move((d.input(2, 2), d.leaf(2)), np.array([[0, 4, 5, 1, 1], [2, 4, 4, 3, -1]])), 0.8, 0.99),
    "sum": (lambda d: d.tape.sum(d.input(2, 3), d.input(2, 3), d.input(2, 3), signs=(1, -1, 1)), 0.9, 0.99),
    "shared sum": (lambda d: d.tape.sum(d.leaf(3), d.leaf(3), signs=(-1, 1)), 0.9, 0.99),
    "product": (lambda d: d.tape.product(d.input(2, 3), d.input(2, 3)), 0.9, 0.9),
    "square": (Drawn.square, 0.9, 0.9),
    "quotient": (lambda d: d.tape.quotient(d.input(2, 3), d.input(2, 3, least=0.5)), 0.9, 0.9),
    "scale": (lambda d: d.tape.scale(d.input(2, 3), 1.0, 3.0), 0.99, 0.99),
    "scale by a root": (lambda d: d.tape.scale(d.input(2, 3), 1.0, 7.0, True), 0.99, 0.99),
    "matrices": (lambda d: d.tape.matmul(d.input(2, 2, 3), d.input(2, 3, 2)), 0.8, 0.9),
    "affine": (lambda d: d.tape.affine(d.input(2, 3), d.leaf(1, 3, 2), np.arange(6).reshape(1, 2, 3)), 0.8, 0.9),
    "affine, overlapping": (lambda d: d.tape.affine(d.input(2, 4), d.leaf(1, 3, 2), OVERLAPPING), 0.5, 0.9),
    "affine, groups": (
        lambda d: d.tape.affine(d.input(2, 4), d.leaf(2, 2, 2), np.array([[[0, 1], [4, 5]], [[2, 3], [6, 7]]])),
        0.7, 0.9),
    "affine, a group for each sample": (
        lambda d: d.tape.affine(d.input(2, 4), d.leaf(2, 2, 2), np.arange(8).reshape(2, 2, 2)), 0.7, 0.9),
    "sum of rows": (lambda d: d.rows("reduce", 4, 3), 0.99, 0.99),
    "maximum": (lambda d: d.rows("max", 4, 3), 0.99, 0.99),
    "softmax": (lambda d: d.rows("softmax", 4, 3, masked=None), 0.9, 0.9),
    "softmax, masked": (lambda d: d.rows("softmax", 4, 3, masked=MASK), 0.95, 0.95),
    "log-softmax": (lambda d: d.rows("log_softmax", 4, 3, masked=None), 0.9, 0.8),
    "log-softmax, sharp": (Drawn.sharp, 0.99, 0.8),
    "logsumexp": (lambda d: d.rows("logsumexp", 4, 3), 0.8, 0.8),
    "normalization": (lambda d: d.rows("normalize", 4, 3, eps=1e-5, center=True), 0.95, 0.95),
    "normalization, large eps": (lambda d: d.rows("normalize", 4, 3, eps=0.1, center=True, scale=0.1), 0.95, 0.95),
    "normalization, not centred": (lambda d: d.rows("normalize", 4, 3, eps=1e-5, center=False), 0.95, 0.95),
}  # fmt: skip
for fn, parameters in EVERYWHERE + POSITIVE:
    least = 0.5 if (fn, parameters) in POSITIVE else None
    STEPS[f"{fn} {parameters}"] = (
        lambda d, fn=fn, p=parameters, low=least: d.tape.map(d.input(2, 3, scale=3.0, least=low), fn, **p), 0.9, 0.9,
    )  # fmt: skip


def reached(make, radius, slope, seeds=8):
    worst, refused = (0.0, 0.0), 0
    for seed in range(seeds):
        drawn = Drawn(seed)
        last = make(drawn)
        try:
            ratios = single(Program(tuple(drawn.tape.steps), last, 2), radius, slope, np.random.default_rng(seed))
        except NotProved:
            refused += 1
            continue
        assert max(ratios) <= 1.0, (seed, ratios)
        worst = max(worst[0], ratios[0]), max(worst[1], ratios[1])
    assert refused < seeds
    return worst


@pytest.mark.parametrize("name", STEPS)
def test_errors_reach_the_radii_and_not_more(name):
    make, forward, backward = STEPS[name]
    values, _ = reached(make, 1e-2, 1e-2)
    _, gradients = reached(make, 0.0, 1e-2)
    assert (values, gradients) >= (forward, 0.0)
    assert gradients >= backward
    reached(make, 1e-2, 0.0)
    reached(make, 1e-9, 1e-9, 4)
    reached(make, 0.0, 0.0, 4)


# The curvature: errors of x in gradients that are exact. The second derivatives of the other functions are global.
BENT = {
    "product": 0.9, "quotient": 0.9, "matrices": 0.9, "affine": 0.8, "normalization": 0.75,
    "softplus {'beta': 1.0}": 0.9, "sigmoid {}": 0.9, "tanh {}": 0.9, "gelu {'approximate': 'none'}": 0.8,
    "gelu {'approximate': 'tanh'}": 0.8, "silu {}": 0.8, "mish {}": 0.8, "exp {}": 0.9, "erf {}": 0.9, "atan {}": 0.9,
    "log {}": 0.9, "log1p {}": 0.9, "sqrt {}": 0.9, "rsqrt {}": 0.9, "reciprocal {}": 0.9, "hardswish {}": 0.9,
    "sinh {}": 0.9, "cosh {}": 0.8, "asinh {}": 0.8, "exponential {'base': 2.0}": 0.9, "logarithm {'base': 2.0}": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_errors_of_values_reach_the_radii_of_gradients(name):
    assert reached(STEPS[name][0], 1e-2, 0.0, 16)[1] >= BENT[name]


@pytest.mark.parametrize("length", [1, 2])
def test_roundings_of_short_products_are_reached(length):
    """One term: its rounding is all of gamma_1."""
    index = np.arange(2 * length).reshape(1, 2, length)
    make = lambda d: d.tape.affine(d.input(2, length), d.leaf(1, length, 1), index)  # noqa: E731
    values, gradients = reached(make, 0.0, 0.0, 24)
    assert values > (0.8 if length == 1 else 0.2)
    assert gradients > 0.55  # of x and W: a product


def alone(program, kind="affine", radius=1e-2, slope=1e-2, seeds=3):
    """The ratios of the first step of a kind, with an input and a leaf in place of its arguments."""
    place = next(i for i, step in enumerate(program.steps) if step.kind == kind)
    values = normwise.forward(program)
    step, steps = program.steps[place], []
    for k in step.of:
        owner, shape = program.steps[k].owner, program.steps[k].shape
        of_leaf = {"value": values[k].value} | ({} if owner is not None else {"leaf": 0, "trainable": True})
        steps.append(Step("leaf" if owner is None else "input", (), shape, owner, of_leaf))
    steps.append(dataclasses.replace(step, of=tuple(range(len(step.of)))))
    small, worst = Program(tuple(steps), len(step.of), program.samples), (0.0, 0.0)
    for seed in range(seeds):
        ratios = single(small, radius, slope, np.random.default_rng(seed))
        assert max(ratios) <= 1.0
        worst = max(worst[0], ratios[0]), max(worst[1], ratios[1])
    return worst


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(1, 2, 3, padding=1, bias=False),
    "stride as large as the kernel": lambda: nn.Conv2d(1, 2, 2, stride=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(2, 1, 3, stride=2, bias=False),
    "transposed, apart": lambda: nn.ConvTranspose2d(1, 3, 3, stride=3, bias=False),
    "transposed, dilated": lambda: nn.ConvTranspose2d(1, 2, 2, stride=2, dilation=2, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("positive", [False, True])
def test_convolutions_alone(name, positive):
    """The share of W with the copies of an entry of x, the norm by the symbol, the matrix or that of the adjoint."""
    torch.manual_seed(3)
    module = CONVOLUTIONS[name]()
    if positive:
        module.weight.data.fill_(1.0)
    x = torch.randn(2, module.in_channels, 2 + (name == "plain"), 2, dtype=torch.double)
    program = as_program(nn.Sequential(module, nn.Flatten()), x)
    values, _ = alone(program)
    _, gradients = alone(program, radius=0.0)
    assert values >= (0.35 if positive else 0.2)
    assert gradients >= (0.6 if positive else 0.4)
    alone(program, slope=0.0)


# What is false, by an example in which the wrong constant is too small.


def test_a_sum_of_exact_numbers_is_not_exact():
    builder = Builder(np.random.default_rng(0), 1, 1)
    builder.tape.steps[0].args["value"][:] = 1.0
    builder.last = builder.tape.sum(builder.last, builder.tape.leaf(np.array(2.0**-60)))
    enclosure = normwise.forward(builder.program())[-1]
    assert enclosure.value == 1.0
    assert enclosure.error >= 2.0**-60


def test_small_radii_of_moved_entries_do_not_vanish():
    """A rounding of 2^-653 in each of two copies: squares of it are 0."""
    builder = Builder(np.random.default_rng(0), 1, 1)
    builder.tape.steps[0].args["value"][:] = 2.0**-600
    total = builder.tape.sum(builder.last, builder.tape.leaf(np.array(2.0**-660)))
    builder.last = builder.tape.move((total,), np.repeat(np.arange(builder.tape.steps[total].size), 2))
    enclosures = normwise.forward(builder.program())
    before, moved = enclosures[total], enclosures[builder.last]
    assert before.error >= 2.0**-653
    assert math.sqrt(2.0) * before.error <= moved.error <= 1.5 * before.error


def test_softplus_is_not_what_torch_computes():
    for x in (0.2001, 0.21, 0.25):
        builder = Builder(np.random.default_rng(0), 1, 1)
        builder.tape.steps[0].args["value"][:] = x
        builder.apply("softplus", beta=100.0)
        enclosure = normwise.forward(builder.program())[-1]
        with ctx.workprec(300):
            exact = (1 + (100 * arb(x)).exp()).log() / 100
            assert abs(exact - float(enclosure.value[0, 0])) <= float(enclosure.error[0])
        theirs = float(F.softplus(torch.tensor(x, dtype=torch.double), beta=100))
        with ctx.workprec(300):
            assert abs(exact - theirs) > 4 * 2.0**-53 * x  # their branch is not a rounding
            assert float(enclosure.error[0]) < 10 * 2.0**-53 * x


def test_gelu_has_no_relative_accuracy():
    x = np.linspace(-8.5, -7.0, 100)
    builder = Builder(np.random.default_rng(0), 1, 100)
    builder.tape.steps[0].args["value"][:] = x
    builder.apply("gelu", approximate="none")
    enclosure = normwise.forward(builder.program())[-1]
    with ctx.workprec(300):
        exact = [arb(t) / 2 * (1 + (arb(t) / arb(2).sqrt()).erf()) for t in x]
        errors = np.array([float(abs(a - float(b))) for a, b in zip(exact, enclosure.value[0], strict=True)])
        size = np.array([float(abs(a)) for a in exact])
    assert np.linalg.norm(errors) <= enclosure.error[0]
    assert (errors > 100 * 2.0**-53 * size).any()


def test_layer_norms_of_many_rows_add_their_roundings():
    builder = Builder(np.random.default_rng(0), 1, 40000)
    tape = builder.tape
    builder.last = tape.rows("normalize", tape.reshape(builder.last, (20000, 2)), keep=True, eps=1e-5, center=True)
    x, enclosure = tape.steps[0].args["value"].reshape(-1, 2), normwise.forward(builder.program())[-1]
    wide = x.astype(np.longdouble)
    offset = wide - wide.mean(1, keepdims=True)
    exact = offset / np.sqrt((offset**2).mean(1, keepdims=True) + np.longdouble(1e-5))
    error = float(np.linalg.norm((exact - enclosure.value.reshape(-1, 2)).astype(float)))
    assert error <= enclosure.error[0]
    assert error > 20 * np.sqrt(2) * 2.0**-53  # more than the rounding of one row


def test_replicated_padding_is_not_a_contraction():
    """Norm 2, where the symbol is 1: padding is a movement of its own, with copies."""
    kernel = np.einsum("a,b->ab", [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])[None, None]
    assert operator_norms.symbol_norm(kernel, 1) < 1.2
    grid = np.pad(np.arange(9).reshape(3, 3), 1, mode="edge")
    matrix = np.zeros((9, 9))
    for row, place in enumerate(grid[:3, :3].reshape(-1)):
        matrix[row, place] = 1.0
    assert np.linalg.norm(matrix, 2) == 2.0
    step = Step("move", (0,), (25,), np.zeros(25, np.int32), {"index": grid.reshape(-1)})
    source = Step("input", (), (9,), np.zeros(9, np.int32), {"value": np.ones(9)})
    program = Program((source, step), 1, 1)
    assert normwise._targets(normwise.Run(program, {}), step, 0)[2] == 4  # sqrt(4) times the symbol


@pytest.mark.parametrize("statistics", ["cancelling", "subnormal"])
def test_batch_norm_as_a_composition(statistics):
    """A shift that cancels mean alpha to 1 in 10^6, and a factor that is subnormal."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3).double()
    if statistics == "cancelling":
        norm.running_mean.fill_(1e6)
        norm.bias.data.fill_(1e6)
    else:
        norm.weight.data.fill_(1e-310)
    model = nn.Sequential(nn.Linear(2, 3), norm, nn.Linear(3, 1))
    assert max(checked(as_program(model, torch.randn(2, 2, dtype=torch.double)), outputs=(0,))) <= 1.0
