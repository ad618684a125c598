"""Enclosures of values and gradients contain the exact numbers, and rules that are wrong are noticed."""

from __future__ import annotations

import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignver.errors import InvalidInput
from alignver.kernel.failure import NotProved
from alignver.kernel.network import balls, program
from alignver.kernel.network.ball_functions import FUNCTIONS
from alignver.network.enclosures import EnclosedNetwork
from property_tests.kernel.dual_networks import ENTRIES, LAYERS, RandomNetwork, Undecided, exact, mp

SAMPLES = 2
DRAWS = 4  # parameters and inputs for each traced network
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _reference(model: RandomNetwork, x: list[float]) -> Any:
    """The exact numbers, and how far two evaluations of them are apart."""
    results = []
    for digits in (60, 180):
        with mp.workdps(digits):
            results.append([[v, *row] for v, row in zip(*exact(model, x), strict=True)])
    return results[1], [[abs(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(*results, strict=True)]


def _inside(ball: Any, value: Any, slack: Any) -> bool:
    if not ball.is_finite():
        return True
    with mp.workdps(400):
        (man, exp), (radius, more) = ball.mid().man_exp(), ball.rad().man_exp()
        middle, rad = mp.ldexp(mp.mpf(int(man)), int(exp)), mp.ldexp(mp.mpf(int(radius)), int(more))
        return bool(abs(value - middle) <= rad + slack + abs(value) * mp.mpf(10) ** -58)


def violations(model: RandomNetwork, network: EnclosedNetwork, x: Any, bits: int, arithmetic: Any = balls) -> int:
    """Count the values and derivatives that are not in their balls; -1 where nothing is enclosed."""
    graph = network.traced.graph
    named = dict(model.named_parameters())
    values = []
    for k, node in enumerate(graph.nodes):
        if node.op in ("parameter", "constant"):
            tensor = named[node.args["name"]] if node.op == "parameter" else network.traced.tensors[k]
            values.append(tensor.detach().double().reshape(-1).numpy())
    try:
        with arithmetic.precision(bits), np.errstate(all="ignore"):
            compiled = program.compiled(graph, program.unpacked(graph, np.concatenate([np.zeros(0), *values])), x)
            state = arithmetic.values(compiled)
            outputs = state[compiled.output].reshape(SAMPLES, -1)
            J = [arithmetic.shares(compiled, state, column) for column in range(compiled.columns)]
            dense = [{k: arithmetic.columns([leaf]) for k, leaf in column.items()} for column in J]
        references = [_reference(model, row.tolist()) for row in x]
    except (NotProved, Undecided, ZeroDivisionError):
        return -1
    trainable = [k for k, n in enumerate(graph.nodes) if n.op == "parameter" and n.args["trainable"]]
    count = 0
    for i, (numbers, slack) in enumerate(references):
        for j, (row, errors) in enumerate(zip(numbers, slack, strict=True)):
            enclosed = [outputs[i, j]]
            for k in trainable:
                size = graph.nodes[k].out[0][1][0]
                enclosed += list(dense[j][k][i]) if k in dense[j] else [arithmetic.arb(0)] * size
            count += sum(not _inside(*entry) for entry in zip(enclosed, row, errors, strict=True))
    return count


@cache
def _traced(seed: int, size: int) -> EnclosedNetwork | None:
    model = RandomNetwork(seed, torch.float64, size)
    if not any(p.requires_grad for p in model.p):
        return None
    with torch.no_grad():
        for p in model.p:
            p.copy_(torch.linspace(0.3, 0.9, p.numel()))
    try:
        return EnclosedNetwork.of(model.eval(), torch.linspace(-0.5, 0.8, 3 * SAMPLES).double().view(SAMPLES, 3))
    except InvalidInput:
        return None


def _filled(model: RandomNetwork, seed: int, dtype: torch.dtype) -> tuple[RandomNetwork, Any]:
    """A network of the same layers with other numbers, and inputs, some of them nearly equal."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.p:
            scale = generator.choice([1.0, 1.0, 1.0, 8.0, 1e-3])
            numbers = scale * generator.standard_normal(p.numel())
            special = generator.random(p.numel()) < 0.03
            numbers[special] = generator.choice([1e-300, 1e150, 5e-324, -3e-310, 0.0, -60000.0], special.sum())
            rounded = torch.from_numpy(numbers).to(dtype).double()
            p.copy_(torch.where(rounded.isfinite(), rounded, 1.0))
    x = generator.standard_normal((SAMPLES, 3)) * generator.choice([1.0, 1.0, 30.0])
    if generator.random() < 0.3:
        x[1] = x[0] * (1 + 2.0**-40)
    return model, torch.from_numpy(x).to(dtype).double().numpy()


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    bits=st.sampled_from([53, 128, 500]),
)
def test_balls_contain_the_exact_values_and_gradients(seed, size, dtype, bits):
    network = _traced(seed, size)
    if network is None:
        return
    for draw in range(DRAWS):
        model, x = _filled(RandomNetwork(seed, torch.float64, size), seed + draw, dtype)
        assert violations(model, network, x, bits) <= 0, (model.words, draw)


@cache
def _single(name: str, tied: bool = False) -> tuple[RandomNetwork, EnclosedNetwork, Any]:
    """Two scales, a layer or function, and a last product, with ordinary numbers."""
    model = RandomNetwork(0, torch.float64, 0)
    need = LAYERS[name][0] if name in LAYERS else 0
    for length in (3, need, 9):
        numbers = torch.linspace(0.4, 1.3, max(length, 1)) * torch.tensor([1.0, -1.0]).repeat(5)[: max(length, 1)]
        model.p.append(torch.nn.Parameter(numbers.double()))
    model.words = [("scale", 0), (name, 1 if need else -1), ("dense", 2), ("dense", 2) if tied else ("skip", -1)]
    x = np.array([[0.3, -0.7, 0.9], [-0.2, 0.5, 0.1]])
    return model, EnclosedNetwork.of(model.eval(), torch.from_numpy(x)), x


@pytest.mark.parametrize("name", [*ENTRIES, *LAYERS])
def test_every_layer_is_enclosed(name):
    assert violations(*_single(name), 128) == 0


WRONG: dict[str, tuple[str, str, str]] = {
    "a sum without its signs": ("difference", "total - term", "total + term"),
    "a difference, backward": ("difference", "g if sign > 0 else -g", "g"),
    "a scale, backward": ("difference", "return [(of[0], _scaled(g,", "return [(of[0], g + _scaled(g,"),
    "half of a product": ("gate", "return [(of[0], g * state[of[1]]), (of[1], g * state[of[0]])]",
                          "return [(of[0], g * state[of[1]])]"),
    "a quotient's sign": ("quotient", "-g * state[place] * inverse", "g * state[place] * inverse"),
    "softmax without its mean": ("softmax", "p * (g - (p * g).sum(-1)[..., None])", "p * g"),
    "log-softmax without its sum": ("log_softmax", "g - p * g.sum(-1)[..., None]", "g"),
    "logsumexp": ("logsumexp", "g[..., None] * p", "g[..., None] + 0 * p"),
    "a norm without its direction": ("layer norm", "g - n * ((n * g).sum(-1) / count)[..., None]", "g + n * 0"),
    "a norm without its mean": ("layer norm", 'if args["center"]:\n                inner = inner - ',
                                'if args["center"]:\n                inner = inner - 0 * '),
    "a norm without eps": ("rms norm", '/ count + args["eps"]', "/ count"),
    "a matrix product, backward": ("attention", "product(x.T, y) for x, y in zip(a, part",
                                   "product(x.T, y) * 2 for x, y in zip(a, part"),
    "a cut of the gather": ("flip", "np.add.at(result.T", "np.subtract.at(result.T"),
    "a maximum, backward": ("maximum", "np.arange(len(rows)), best] = g", "np.arange(len(rows)), 0] = g"),
    "rows without their places": ("dense", "return dense if place is None else", "return dense if True else"),
    "sums that fall on one entry": ("cumsum", "np.add.at(result.T, where, np.asarray(g).T)", "result[..., where] = g"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_noticed(name):
    layer, old, new = WRONG[name]
    source = Path(balls.__file__).read_text()
    assert source.count(old) == 1
    twin = types.ModuleType("alignver.kernel.network.twin")
    sys.modules[twin.__name__] = twin
    try:
        exec(compile(source.replace(old, new), "twin", "exec"), twin.__dict__)
        cases = [_single(layer), _single(layer, True), _single("cumsum")]
        assert any(violations(*case, 128, twin) > 0 for case in cases)
    finally:
        del sys.modules[twin.__name__]


OF_ENTRY = {
    "tanh": "tanh", "sigmoid": "sigmoid", "softplus": "softplus", "silu": "silu", "gelu": "gelu",
    "mish": "mish", "sin": "sin", "cos": "cos", "atan": "atan", "erf": "erf", "exp of tanh": "exp",
    "expm1 of tanh": "expm1", "log of sigmoid": "logsigmoid", "log1p": "log1p", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "reciprocal": "reciprocal", "cube": "pow", "asinh": "asinh", "hardswish": "hardswish",
    "leaky_relu": "leaky_relu", "power of 3": "exponential", "selu": "elu",
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ENTRY)
@pytest.mark.parametrize("part", [0, 1])
def test_a_wrong_function_is_noticed(name, part, monkeypatch):
    fn = OF_ENTRY[name]
    right = FUNCTIONS[fn]

    def wrong(x: Any, **parameters: Any) -> Any:
        pair = list(right(x, **parameters))
        pair[part] = pair[part] * (1 + 2.0**-50) if pair[part] is not None else None
        return tuple(pair)

    monkeypatch.setitem(FUNCTIONS, fn, wrong)
    assert violations(*_single(name), 128) > 0
