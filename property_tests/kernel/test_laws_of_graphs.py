"""Degrees against Euler's identity, and analytic graphs against one-sided differences, in 60 digits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignver.kernel.network import analytic, degrees, kinks, methods
from alignver.kernel.network.graph import Graph
from property_tests.kernel.graphs import RISING, graph, mp, values

TOTAL = 20000 if settings.default.max_examples >= 1000 else 2000
BATCH = max(1, TOTAL // settings.default.max_examples)
SUBSETS = ({0}, {1}, {2}, {4}, {0, 1}, {1, 2}, {0, 4}, {0, 1, 2, 4})
TINY = mp.mpf(10) ** -25


def point(draw: random.Random, kinks: bool = False):
    """Return random parameters by leaf; zeros and equal entries are where kinks are."""
    numbers = [0, 0, 1, -1] if kinks else []

    def number():
        return mp.mpf(draw.choice(numbers) if numbers and draw.random() < 0.5 else draw.uniform(-2, 2))

    fixed = [mp.mpf("-1.5"), mp.mpf("0.5")]
    return {leaf: fixed if leaf == 3 else [number() for _ in range(4 if leaf == 4 else 2)] for leaf in range(5)}


def moved(leaves, direction, step, inside=None):
    return {
        leaf: [p + step * d for p, d in zip(entries, direction[leaf])] if inside is None or leaf in inside else entries
        for leaf, entries in leaves.items()
    }


def violates_euler(g: Graph, S: set[int], draw: random.Random) -> bool:
    """Whether f differs from the sum of theta_k df / dtheta_k over S, or from -f(-theta_S), where f is defined."""
    theta, x = point(draw), [mp.mpf(draw.uniform(-2, 2)) for _ in range(2)]
    try:
        f = values(g, theta, x)
        above, below, negated = (values(g, moved(theta, theta, step, S), x) for step in (TINY, -TINY, -2))
    except ArithmeticError:
        return False
    terms = [((p - q) / (2 * TINY), -n, t) for p, q, n, t in zip(above, below, negated, f)]
    return any(max(abs(e - t), abs(n - t)) > mp.mpf(10) ** -12 * (1 + abs(t)) for e, n, t in terms)


def bends(g: Graph, draw: random.Random) -> bool:
    """Whether two one-sided derivatives differ at some theta, or f is not defined there."""
    theta, x = point(draw, kinks=True), [mp.mpf(draw.uniform(-2, 2)) for _ in range(2)]
    direction = point(draw)
    direction[3] = [mp.mpf(0)] * 2
    try:
        f = values(g, theta, x)
        above, below = (values(g, moved(theta, direction, step), x) for step in (TINY, -TINY))
    except ArithmeticError:
        return True
    slopes = [((p - t) / TINY, (t - q) / TINY) for p, q, t in zip(above, below, f)]
    return any(abs(right - left) > mp.mpf(10) ** -8 * (1 + abs(right)) for right, left in slopes)


def proves_degrees(g: Graph, S: set[int]) -> bool:
    return all(set(degrees.degrees(g, S)[k]) <= {1, degrees.ZERO} for k in g.outputs)


def theta_free_is_defined(g: Graph) -> bool:
    """Leave out graphs with a theta-free node that is undefined for some x: nothing is claimed of these inputs."""
    known = analytic.walk(g)[0]
    partial = {"div", "sqrt", "log", "reciprocal", "rsqrt", "log1p", "atanh", "pow", "layer_norm"}
    divisors = [known[k] for node in g.nodes if node.base == "div" for k in node.refs("other")]
    free = any(node.base in partial and not value.depends for node, value in zip(g.nodes, known))
    return not free and all(divisor.depends or divisor.range.nonzero for divisor in divisors)


@given(st.integers(0, 2**32))
def test_degree_one_is_eulers_identity(seed):
    draw = random.Random(seed)
    for _ in range(BATCH):
        g = graph(draw.getrandbits(32))
        for S in SUBSETS:
            if proves_degrees(g, S):
                assert not violates_euler(g, S, draw), (g, S)


@given(st.integers(0, 2**32))
def test_analytic_graphs_have_no_kinks_and_are_defined(seed):
    draw = random.Random(seed)
    for _ in range(BATCH):
        g = graph(draw.getrandbits(32))
        values_known, barriers = analytic.walk(g)
        if not barriers and values_known[g.outputs[0]].depends and theta_free_is_defined(g):
            assert not any(bends(g, draw) for _ in range(3)), g


@given(st.integers(0, 2**32))
def test_ranges_contain_the_values(seed):
    draw = random.Random(seed)
    for _ in range(BATCH // 2):
        g = graph(draw.getrandbits(32))
        known = analytic.walk(g)[0]
        theta, x = point(draw, kinks=draw.random() < 0.5), [mp.mpf(draw.uniform(-2, 2)) for _ in range(2)]
        try:
            entries = values(g, theta, x)
        except ArithmeticError:
            continue
        if not theta_free_is_defined(g):
            continue
        bound = known[g.outputs[0]].range
        for t in entries:
            assert bound.low <= t <= bound.high, g
            assert not (bound.positive and t <= 0), g  # other open ends are reached by rounding to 60 digits
            assert not (bound.negative and t >= 0), g


@given(st.integers(0, 2**32))
def test_what_is_refuted_at_zero_is_not_zero_there(seed):
    draw = random.Random(seed)
    for _ in range(BATCH):
        g = graph(draw.getrandbits(32))
        if methods.zero_excluded(g) is not None and theta_free_is_defined(g):
            theta = {leaf: e if leaf == 3 else [mp.mpf(0)] * len(e) for leaf, e in point(draw).items()}
            f = values(g, theta, [mp.mpf(draw.uniform(-2, 2)) for _ in range(2)])
            assert all(t != 0 for t in f)


def line(draw: random.Random):
    """Return a theta of one number for each of some leaves, and the leaf that moves."""
    theta = {leaf: draw.choice([0.0, 0.0, 1.0, 1.0, -1.0]) for leaf in (0, 1, 2, 4) if draw.random() < 0.9}
    return theta, draw.choice([0, 1, 2, 4])


def claims_bend(g: Graph, theta: dict[int, float], moved: int) -> bool:
    return moved in theta and not methods.domain_gaps(g) and kinks.bent_output(g, theta, moved) is not None


def is_straight(g: Graph, theta: dict[int, float], moved: int, draw: random.Random) -> bool:
    """Whether an output has equal one-sided derivatives along the line, at random values of the other leaves."""
    leaves, x = point(draw), [mp.mpf(draw.uniform(-2, 2)) for _ in range(2)]
    leaves |= {leaf: [mp.mpf(value)] * len(leaves[leaf]) for leaf, value in theta.items()}
    direction = {leaf: [mp.mpf(leaf == moved)] * len(entries) for leaf, entries in leaves.items()}
    try:
        f = values(g, leaves, x)
        above, below = (values(g, moved_by(leaves, direction, step), x) for step in (TINY, -TINY))
    except ArithmeticError:
        return False
    return any((p - t) - (t - q) < TINY * mp.mpf(10) ** -12 for p, q, t in zip(above, below, f))


moved_by = moved


@given(st.integers(0, 2**32))
def test_bent_outputs_have_two_derivatives(seed):
    draw = random.Random(seed)
    for _ in range(BATCH):
        g = graph(draw.getrandbits(32), 6, RISING)
        for _ in range(4):
            theta, leaf = line(draw)
            if claims_bend(g, theta, leaf) and theta_free_is_defined(g):
                assert not is_straight(g, theta, leaf, draw), (g, theta, leaf)


def bend_fails(other: Graph, draw: random.Random) -> bool:
    g = graph(draw.getrandbits(32), 6, RISING)
    theta, leaf = line(draw)
    return claims_bend(g, theta, leaf) and theta_free_is_defined(g) and is_straight(g, theta, leaf, draw)


@pytest.mark.parametrize("wrong", ["a kink elsewhere", "products of any sign"])
def test_a_wrong_rule_of_kinks_is_caught(wrong, monkeypatch):
    assert not caught(bend_fails, 1000)
    if wrong == "a kink elsewhere":
        monkeypatch.setattr(kinks.Range, "is_zero", property(lambda self: self.low <= 0.0 <= self.high))
    else:
        monkeypatch.setattr(kinks.Range, "positive", property(lambda self: True))
    assert caught(bend_fails, 10000)


def caught(law, count: int = 4000) -> bool:
    """Whether the law fails for one of the first graphs."""
    draw = random.Random(5)
    return any(law(graph(draw.getrandbits(32)), draw) for _ in range(count))


def euler_fails(g: Graph, draw: random.Random) -> bool:
    return any(proves_degrees(g, S) and violates_euler(g, S, draw) for S in SUBSETS)


def smoothness_fails(g: Graph, draw: random.Random) -> bool:
    known, barriers = analytic.walk(g)
    claimed = not barriers and known[g.outputs[0]].depends and theta_free_is_defined(g)
    return claimed and any(bends(g, draw) for _ in range(3))


TWINS = {
    "sums of any degrees": (degrees, "_joined", lambda terms: max(terms, default=degrees.ZERO)),
    "products of degree 1": (degrees, "_product", lambda factors: max(factors)),
    "relu is linear": (degrees, "LINEAR", degrees.LINEAR | {"relu"}),
    "tanh is linear": (degrees, "LINEAR", degrees.LINEAR | {"tanh"}),
    "softmax is linear": (degrees, "LINEAR", degrees.LINEAR | {"softmax"}),
}


@pytest.mark.parametrize("twin", list(TWINS))
def test_a_wrong_rule_of_degrees_is_caught(twin, monkeypatch):
    assert not caught(euler_fails, 300)
    monkeypatch.setattr(*TWINS[twin])
    assert caught(euler_fails)


@pytest.mark.parametrize("base", ["relu", "abs", "sqrt", "log", "reciprocal", "clamp_min", "div", "layer_norm"])
def test_a_wrong_rule_of_analyticity_is_caught(base, monkeypatch):
    assert not caught(smoothness_fails, 300)
    monkeypatch.setattr(analytic, "ENTIRE", analytic.ENTIRE | {base})
    assert caught(smoothness_fails)


def test_a_square_root_of_what_may_be_zero_is_caught(monkeypatch):
    """theta + sqrt(theta^2) is 0 on a half-line."""
    monkeypatch.setattr(analytic.Range, "positive", property(lambda self: self.low >= 0.0))
    assert caught(smoothness_fails)


def test_many_graphs_are_proved():
    draw = random.Random(1)
    graphs = [graph(draw.getrandbits(32)) for _ in range(400)]
    assert sum(any(proves_degrees(g, S) for S in SUBSETS) for g in graphs) >= 40
    assert sum(not analytic.walk(g)[1] for g in graphs) >= 80
    assert sum(methods.zero_excluded(g) is not None for g in graphs) >= 4
    rising = [graph(draw.getrandbits(32), 6, RISING) for _ in range(400)]
    assert sum(claims_bend(g, *line(draw)) for g in rising for _ in range(4)) >= 10
