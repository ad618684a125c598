"""Bounds of the training loss of random networks contain the loss in 60 digits; so do the gaps and the errors."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import nn

from alignver.kernel import seal, verify
from alignver.kernel.data import least_loss
from alignver.kernel.failure import NotProved
from alignver.kernel.network import balls, optimality
from alignver.kernel.optimality import loss_interval
from alignver.network.enclosures import EnclosedNetwork
from alignver.results import Verdict
from alignver.training.gated_network import GatedHead, GatedNetwork

mp = mpmath.mp.clone()
mp.dps = 60
LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")
ROWS = 3  # samples in a batch of the graphs


@functools.cache
def traced(kind: str, m_y: int) -> EnclosedNetwork:
    """Return a network whose parameters are to be replaced: a plain one, or one with frozen gates."""
    torch.manual_seed(0)
    if kind == "plain":
        model: nn.Module = nn.Sequential(nn.Linear(2, 3), nn.Softplus(beta=100.0), nn.Linear(3, m_y))
    else:
        head = GatedHead(3, 2, m_y, slope=3.0)
        head.freeze()
        model = GatedNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), None, head, ())
    return EnclosedNetwork.of(model.double().eval(), torch.randn(ROWS, 2, dtype=torch.float64), ROWS)


def leaves(network: EnclosedNetwork):
    """Yield the name, the place among the parameters and the shape of each leaf."""
    place = 0
    for node in network.traced.graph.nodes:
        if node.op in ("parameter", "constant"):
            shape = node.out[0][1]
            yield node.args["name"], slice(place, place + math.prod(shape)), shape
            place += math.prod(shape)


def layer(W, b, z):
    return [sum((mp.mpf(w) * t for w, t in zip(row, z, strict=True)), mp.mpf(c)) for row, c in zip(W, b, strict=True)]


def exact_outputs(kind: str, values, x):
    """Return the outputs for one input, from the definitions of the layers."""
    z = [mp.mpf(t) for t in x]
    if kind == "plain":
        t = layer(values["0.weight"], values["0.bias"], z)
        z = [max(a, mp.mpf(0)) + mp.log1p(mp.exp(-abs(100 * a))) / 100 for a in t]
        return layer(values["2.weight"], values["2.bias"], z)
    z = [*map(mp.tanh, layer(values["body.0.weight"], values["body.0.bias"], z)), mp.mpf(1)]
    f = []
    for hidden, output, gates in zip(values["head.hidden"], values["head.output"], values["gates"], strict=True):
        zeros = [0.0] * len(hidden)
        units = zip(layer(hidden, zeros, z), layer(gates, zeros, z), output, strict=True)
        f.append(sum((p * mp.mpf(w) / (1 + mp.exp(-3 * g)) for p, g, w in units), mp.mpf(0)))
    return f


def sample_loss(loss: str, f, y):
    """Return the loss of a sample and whether it is not in its class, or on the border."""
    if loss == "squared":
        return sum((a - mp.mpf(b)) ** 2 for a, b in zip(f, y, strict=True)), False
    if loss == "binary_cross_entropy" or len(f) == 1:
        t = [-a if b == 1 else a for a, b in zip(f, y, strict=True)]
        return sum(max(a, mp.mpf(0)) + mp.log1p(mp.exp(-abs(a))) for a in t), any(a >= 0 for a in t)
    label = list(y).index(1.0)
    leads = [a - f[label] for k, a in enumerate(f) if k != label]
    top = max([*leads, mp.mpf(0)])
    rest = [mp.exp(a - top) for a in leads] + [mp.exp(-top)]
    return (mp.log1p(sum(rest[:-1])) if top == 0 else top + mp.log(sum(rest))), max(leads) >= 0


@st.composite
def problems(draw):
    kind, loss = draw(st.sampled_from(["plain", "gated"])), draw(st.sampled_from(LOSSES))
    m_y, n = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    scale = draw(st.sampled_from([1.0, 1.0, 5.0, 0.01, 300.0]))
    network = traced(kind, m_y)
    parameters = network.parameters.copy()
    for name, place, _ in leaves(network):
        if name != "ones":
            values = (scale * rng.standard_normal(place.stop - place.start)).astype(dtype)
            parameters[0, place] = values.astype(np.float64)
    x = rng.choice([-1.0, 0.0, 1.0], size=(n, 2)) * scale if draw(st.booleans()) else rng.standard_normal((n, 2))
    if loss == "squared":
        Y = rng.standard_normal((n, m_y)) * draw(st.sampled_from([1.0, 1e-6, 1e6]))
    elif loss == "cross_entropy" and m_y > 1:
        Y = np.eye(m_y)[rng.integers(0, m_y, n)]
    else:
        Y = rng.integers(0, 2, (n, m_y)).astype(float)
    x = x.astype(dtype).astype(np.float64)
    if loss == "squared" and draw(st.booleans()):  # a loss of rounding errors
        try:
            f, radius = optimality.outputs(network.traced.graph, parameters[0], x, None)
        except NotProved:
            reject()
        Y = f + rng.choice([0.0, 1.0, -1.0], size=f.shape) * radius * rng.random(f.shape)
    return kind, loss, network, parameters, x, Y


def exact(kind, loss, network, parameters, x, Y):
    values = {name: parameters[0, place].reshape(shape).tolist() for name, place, shape in leaves(network)}
    constants = [name for name in values if name not in ("ones", *dict(network.traced.graph.leaves()))]
    if kind == "gated":
        (gates,) = constants  # the trace names them after the cast
        values["gates"] = values[gates]
    losses, wrong = zip(
        *(
            sample_loss(loss, exact_outputs(kind, values, row), y)
            for row, y in zip(x.tolist(), Y.tolist(), strict=True)
        ),
        strict=True,
    )
    return sum(losses) / len(losses), sum(wrong)


@pytest.mark.parametrize("bits", [None, 128])
@given(problem=problems())
def test_the_loss_is_between_its_bounds(bits, problem):
    _, loss, network, parameters, x, Y = problem
    if bits is not None and not balls.available():
        pytest.skip("balls need python-flint")
    try:
        f, radius = optimality.outputs(network.traced.graph, parameters[0], x, bits)
        lower, upper, wrong = loss_interval(f, radius, Y, loss)
    except NotProved:
        reject()
    value, errors = exact(*problem)
    below, above = (mp.mpf(end.numerator) / end.denominator for end in (lower, upper))
    assert below <= value <= above
    assert (wrong is None) == (loss == "squared")
    assert wrong is None or errors <= wrong
    if bits is not None:  # the outputs are rounded to float64
        size = sum(max(abs(f).max(), abs(Y).max(), 1.0) for _ in Y[0])
        assert above - below <= 1e-9 * value + mp.mpf(1e-11) * size * (mp.sqrt(value) + size * 1e-12)


@given(problem=problems(), factor=st.sampled_from([1.0, 1 + 1e-9, 0.999, 0.5, 0.0]))
def test_a_gap_that_is_verified_is_true(problem, factor):
    """Also for equal inputs with different targets, and claims that are too strong."""
    _, loss, network, parameters, x, Y = problem
    try:
        f, radius = optimality.outputs(network.traced.graph, parameters[0], x, None)
        _, upper, wrong = loss_interval(f, radius, Y, loss)
    except NotProved:
        reject()
    first, rows = optimality.distinct(x)
    floor = least_loss(first, Y, loss)[0]
    gap = factor * max(math.nextafter(float(upper) * (1 + 2.0**-50) - floor, math.inf), 0.0)
    inputs = {"parameters": parameters, "x": x, "Y": Y}
    constants = {"loss": loss, "gap": gap, "bits": None, "errors": wrong}
    certificate = seal("network-optimality", "norms", inputs, {"graph": network.traced.data}, constants)
    result = verify(certificate, inputs)
    assert result.verdict is Verdict.HOLDS or factor < 1 or floor > 0
    if result.verdict is Verdict.HOLDS:
        value, _ = exact(*problem)
        least = mp.mpf(0)
        for row in rows:  # the best value for the samples with this input
            members = Y[first == row]
            k = len(members)
            if loss == "squared":
                means = [sum(map(mp.mpf, column)) / k for column in members.T]
                least += sum((mp.mpf(v) - c) ** 2 for member in members for v, c in zip(member, means, strict=True))
                continue
            both = [(sum(column), k - sum(column)) for column in members.T]
            single = loss == "cross_entropy" and Y.shape[1] > 1
            counts = [a for a, _ in both] if single else [c for pair in both for c in pair]
            least += sum(mp.mpf(c) * mp.log(mp.mpf(k) / mp.mpf(c)) for c in counts if c > 0)
        assert value - least / len(x) <= gap
