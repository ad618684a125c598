"""The paper's networks, and the built-in problems made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alignver.checks.alignment import check_alignment
from alignver.data import sine_wave, two_moons
from alignver.errors import InvalidInput
from alignver.experiments.builtin import problems
from alignver.experiments.networks import BIASES, READINGS, fully_connected, lenet
from alignver.results import Verdict


def test_fully_connected_is_the_papers():
    net = fully_connected(2, seed=0)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(2, 300), (300, 300), (300, 300), (300, 1)]
    softplus = [layer for layer in net if isinstance(layer, nn.Softplus)]
    assert [layer.beta for layer in softplus] == [100.0] * 3
    assert isinstance(net[-1], nn.Linear)
    for layer in linear[1:3]:
        assert float(layer.weight.detach().std()) == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert not net.training


def test_lenet_is_the_papers():
    net = lenet(m_c=2, classes=10)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(16, 1, 5, 5), (16, 16, 5, 5), (256, 16 * 64), (10, 256)]
    for shape in [(3, 16, 16), (3, 1, 16, 16)]:
        assert net(torch.ones(shape)).shape == (3, 10)


@pytest.mark.parametrize("build", [lambda seed: fully_connected(2, seed=seed), lambda seed: lenet(seed=seed)])
def test_seeds(build):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = build(1), build(1), build(2)
    assert torch.equal(torch.get_rng_state(), before)
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters()):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


def test_biases():
    assert fully_connected(2, width=5, biases="none")[0].bias is None
    assert not fully_connected(2, width=5, biases="zero")[0].bias.detach().any()
    assert fully_connected(2, width=5)[0].bias.detach().any()
    drawn = fully_connected(2, width=900, depth=2, biases="normal")[0].bias.detach()
    assert float(drawn.std()) == pytest.approx(1 / 30, rel=0.1)


@pytest.mark.parametrize("name", READINGS)
def test_readings(name):
    linear = [layer for layer in READINGS[name].build(2, seed=1) if isinstance(layer, nn.Linear)]
    assert len(linear) == int(name[0])
    assert str(READINGS[name]).startswith(f"{name[0]} weight matrices, ")
    assert (linear[-1].bias is None) == (name in ("3-normal", "3-none"))
    assert (linear[0].bias is None) == (name == "3-none")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fully_connected(0), "m_x=0"),
        (lambda: fully_connected(2, width=2.5), "width=2.5"),
        (lambda: fully_connected(2, depth=True), "depth=True"),
        (lambda: fully_connected(2, biases="some"), "biases='some'.*'default', 'normal', 'zero', 'none'"),
        (lambda: fully_connected(2, seed=-1), "seed=-1"),
        (lambda: fully_connected(2, seed=None), "seed=None"),
        (lambda: lenet(side=8), "side=8; needs an integer of at least 9"),
        (lambda: lenet(classes=0), "classes=0"),
    ],
)
def test_sizes_that_make_no_sense(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("depth", [3, 4])
def test_verdicts_do_not_hinge_on_what_the_paper_leaves_open(depth, biases):
    """Biases, and whether 'four layers' counts the input."""
    for data, verdict in ((two_moons(100), Verdict.HOLDS), (sine_wave(100), Verdict.FAILS)):
        net = fully_connected(data.x.shape[1], depth=depth, biases=biases)
        result = check_alignment(net, data.x, data.y, loss="binary_cross_entropy", rule="press", method="svd")
        assert result.verdict is verdict, result


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_built_in_problems_find_what_is_expected(problem):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = problem.run(0, "cpu", "float64")
    assert torch.equal(torch.get_rng_state(), before)
    assert problem.agrees(result), result
    assert problem.description
    assert problem.source.startswith("Section 2.2: '")


def test_a_built_in_problem_in_an_unknown_dtype():
    with pytest.raises(InvalidInput, match=r"dtype='float16'.*'float64' or 'float32'"):
        problems()[0].run(0, "cpu", "float16")
