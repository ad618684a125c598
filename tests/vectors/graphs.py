"""Vectors of claims about graphs: networks of a few nodes with weights that are small integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from alignver.kernel.network.graph import encode
from tests.vectors.case import GONE, Case, valid
from tests.vectors.matrices import ints

Node = dict[str, Any]
ROWS = 2  # samples in a batch


def parameter(name: str, *shape: int, leaf: int = 0, trainable: bool = True, **facts: Any) -> Node:
    facts = {"name": name, "leaf": leaf, "trainable": trainable, "pure": True, "range": None, **facts}
    return {"op": "parameter", "args": facts, "out": [["float64", list(shape)]], "module": ""}


def constant(low: float, high: float, *shape: int) -> Node:
    facts = {"name": "c", "range": [low, high], "masked": "", "rows": []}
    return {"op": "constant", "args": facts, "out": [["float64", list(shape)]], "module": ""}


def entries(*shape: int) -> Node:
    return {"op": "input", "args": {}, "out": [["float64", list(shape)]], "module": ""}


def op(name: str, *shape: int, **args: Any) -> Node:
    """Return an application of an operator; an argument that is an int is a node."""
    args = {key: {"node": value} if type(value) is int else value for key, value in args.items()}
    return {"op": f"aten.{name}", "args": args, "out": [["float64", list(shape)]], "module": "layer"}


def graph(*nodes: Node) -> Any:
    return encode({"nodes": list(nodes), "outputs": [len(nodes) - 1]})


def mlp(*, trainable: bool = True, activation: str = "relu.default") -> tuple[Node, ...]:
    """Two inputs, two hidden units, one output."""
    return (
        parameter("1.weight", 2, 2, leaf=0, trainable=trainable),
        parameter("1.bias", 2, leaf=1, trainable=trainable),
        parameter("2.weight", 1, 2, leaf=2, trainable=trainable),
        parameter("2.bias", 1, leaf=3, trainable=trainable),
        entries(ROWS, 2),
        op("linear.default", ROWS, 2, input=4, weight=0, bias=1),
        op(activation, ROWS, 2, self=5),
        op("linear.default", ROWS, 1, input=6, weight=2, bias=3),
    )


PARAMETERS = np.array([[1.0, 2.0, -1.0, 1.0, 0.5, 0.5, 2.0, -1.0, 0.25]])
x = np.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 1.0]])


def structures() -> Iterator[Case]:
    data = {"graph": graph(*mlp()), "degrees": ints(0, 0, 1, 1, 0, 0, 0, 1)}
    case = valid("degrees", "common-structure", "degrees", {}, data, S=("2.weight", "2.bias"), everywhere=True)
    yield case
    yield case.but(
        "degrees, a linear network in its first layer",
        None,
        True,
        S=("1.weight", "1.bias"),
        data={"graph": graph(*mlp(activation="neg.default")[:7]), "degrees": ints(1, 1, 0, 0, 0, 1, 1)},
    )
    yield case.but(
        "degrees, without the bias",
        "certificate",
        False,
        "the bias is added to a sum of degree 1",
        S=("2.weight",),
        data={"degrees": ints(0, 0, 1, 0, 0, 0, 0, -2)},
    )
    yield case.but(
        "degrees, of the first layer",
        "certificate",
        False,
        "relu is not linear",
        S=("1.weight", "1.bias"),
        data={"degrees": ints(1, 1, 0, 0, 0, 1, -2, -2)},
    )
    yield case.but(
        "degrees, as for a linear network",
        "certificate",
        False,
        "relu is not linear",
        S=("1.weight", "1.bias"),
        data={"degrees": ints(1, 1, 0, 0, 0, 1, 1, 1)},
    )
    yield case.but(
        "degrees, of both layers",
        "certificate",
        False,
        "a product of degree 2",
        S=("1.weight", "1.bias", "2.weight", "2.bias"),
        data={"graph": graph(*mlp(activation="neg.default")), "degrees": ints(1, 1, 1, 1, 0, 1, 1, -2)},
    )
    yield case.but(
        "degrees, one too few",
        "certificate",
        True,
        "a degree for each result",
        data={"degrees": ints(0, 0, 1, 1, 0, 0, 0)},
    )
    yield case.but(
        "degrees, of a parameter that there is not", "certificate", None, "no such name", S=("2.weight", "3.bias")
    )
    yield case.but("degrees, S of numbers", "certificate", None, "names", S=(2, 3))
    yield case.but("degrees, everywhere 1", "certificate", None, "a bool", everywhere=1)
    frozen = [*mlp()[:3], parameter("2.bias", 1, leaf=3, trainable=False, range=[0.25, 0.25]), *mlp()[4:]]
    yield case.but(
        "degrees, of a frozen parameter",
        "certificate",
        None,
        "S has trainable parameters",
        data={"graph": graph(*frozen)},
    )
    w = parameter("w", 2)
    tied = [w, parameter("v", 2), op("mul.Tensor", 2, self=0, other=1)]
    yield case.but(
        "degrees, of tied weights",
        "certificate",
        False,
        "a square",
        S=("w",),
        data={"graph": graph(*tied), "degrees": ints(1, 0, 1)},
    )
    quotient = [w, parameter("a", 2, leaf=1), op("div.Tensor", 2, self=0, other=1)]
    quotients = case.but(
        "degrees, where it is defined",
        None,
        True,
        S=("w",),
        everywhere=False,
        data={"graph": graph(*quotient), "degrees": ints(1, 0, 1)},
    )
    yield quotients
    yield quotients.but(
        "degrees, of a quotient everywhere", "proof", False, "w / a is not defined at a = 0", everywhere=True
    )
    text = graph(*mlp()).tobytes()
    for name, bad, reason in (
        ("spaces", text.replace(b",", b", "), "another serialization"),
        ("a reference to a later node", text.replace(b'{"node":4}', b'{"node":6}'), "a circle"),
        ("a reference to itself", text.replace(b'{"node":6}', b'{"node":7}'), "a circle"),
        ("an output that is no node", text.replace(b'"outputs":[7]', b'"outputs":[8]'), "8 nodes"),
        ("no outputs", text.replace(b'"outputs":[7]', b'"outputs":[]'), "one at least"),
        ("two of one name", text.replace(b"2.bias", b"1.bias"), "names are unique"),
        ("a name that is a list", text.replace(b'"2.bias"', b'["2.bias"]'), "names are strings"),
        ("a leaf that may be trained", text.replace(b'"trainable":true', b'"trainable":1', 1), "a bool"),
        ("another field", text.replace(b'"outputs":', b'"more":1,"outputs":'), "exactly two fields"),
        ("not a number", text.replace(b'"range":null', b'"range":[NaN,NaN]', 1), "no JSON"),
        ("not JSON", text[:-1], "it ends early"),
    ):
        yield case.but(
            f"degrees, a graph with {name}", "certificate", None, reason, data={"graph": np.frombuffer(bad, np.uint8)}
        )
    yield case.but("degrees, no graph", "certificate", None, "graph is missing", data={"graph": GONE})
    yield case.but("degrees, an input", "inputs", None, "the claim has no inputs", inputs={"A": np.eye(1)}, records={})

    offset = [parameter("w", 1), constant(0.5, 2.0, 1), op("add.Tensor", 1, self=0, other=1)]
    zero = valid("value at zero", "no-structure", "value at zero", {}, {"graph": graph(*offset)})
    yield zero
    yield zero.but("value at zero, of an mlp", "proof", False, "the last layer is a set", data={"graph": graph(*mlp())})
    fixed = [offset[0], constant(0.0, 2.0, 1), offset[2]]
    yield zero.but(
        "value at zero, that may be zero", "proof", False, "the constant may be 0", data={"graph": graph(*fixed)}
    )

    yield zero.but("value at zero, no graph", "certificate", None, "graph is missing", data={"graph": GONE})

    smooth = valid("operations", "analytic", "operations", {}, {"graph": graph(*mlp(activation="tanh.default"))})
    yield smooth
    yield smooth.but("operations, a polynomial", None, True, data={"graph": graph(*mlp(activation="square.default"))})
    yield smooth.but("operations, no graph", "certificate", None, "graph is missing", data={"graph": GONE})
    yield smooth.but("operations, relu", "proof", False, "relu has a kink", data={"graph": graph(*mlp())})
    yield smooth.but(
        "operations, a quotient", "proof", False, "w / a is not defined at a = 0", data={"graph": graph(*quotient)}
    )

    bent = valid(
        "one-sided derivatives",
        "not-analytic",
        "one-sided derivatives",
        {},
        {"graph": graph(*mlp())},
        theta={"1.weight": 0.0, "1.bias": 0.0, "2.weight": 1.0},
        moved="1.bias",
    )
    yield bent
    yield bent.but(
        "one-sided derivatives, on one side of the kink",
        "proof",
        True,
        "relu is linear near 1",
        theta={"1.weight": 0.0, "1.bias": 1.0, "2.weight": 1.0},
    )
    yield bent.but(
        "one-sided derivatives, times zero",
        "proof",
        True,
        "the second layer is 0",
        theta={"1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.0},
    )
    yield bent.but(
        "one-sided derivatives, of a polynomial",
        "proof",
        False,
        "it is analytic",
        data={"graph": graph(*mlp(activation="square.default"))},
    )
    yield bent.but(
        "one-sided derivatives, along another parameter", "certificate", True, "2.bias has no value", moved="2.bias"
    )
    yield bent.but(
        "one-sided derivatives, of no parameter", "certificate", None, "no such name", theta={"b": 0.0}, moved="b"
    )


def alignments() -> Iterator[Case]:
    # One unit is active at the first sample, both at the second.
    inputs = {"parameters": PARAMETERS, "x": x[:2], "y": np.array([1.0, -2.0])}
    data = {"graph": graph(*mlp())}
    case = valid("balls", "network-alignment", "balls", inputs, data, bits=128, kappa=(0.0, 1e3))
    yield case
    yield case.but("balls, kappa close", None, True, kappa=(0.8346, 0.8347))  # 0.83469...
    yield case.but("balls, kappa above", "proof", False, "kappa is smaller", kappa=(0.8347, 1e3))
    yield case.but("balls, kappa below", "proof", False, "kappa is larger", kappa=(0.0, 0.8346))
    yield case.but("balls, kappa of two ints", "certificate", None, "floats", kappa=(0, 1000))
    yield case.but("balls, bits too few", "certificate", True, "53 at least", bits=24)
    yield case.but("balls, bits true", "certificate", True, "an int", bits=True)
    yield case.but("balls, s_min", "certificate", True, "balls do not prove s_min", s_min=0.5)
    norms = case.but("norms", None, True, method="norms", bits=GONE, shift=0.0625)
    yield norms
    yield norms.but("norms, a shift too large", "proof", True, "beyond the smallest eigenvalue", shift=1e6)
    yield norms.but("norms, of equal samples", "proof", False, "two rows of J are equal", inputs={"x": x[[0, 0]]})
    yield case.but("balls, of equal samples", "proof", False, "two rows of J are equal", inputs={"x": x[[0, 0]]})
    kinked = np.array([[-0.5, 0.0], [0.0, 1.0]])  # the first unit is at 0 for the first sample
    yield case.but("balls, at a kink", "proof", None, "the derivative of relu at 0", inputs={"x": kinked})
    yield case.but(
        "balls, of three samples", None, True, inputs={"x": x, "y": np.array([1.0, -2.0, 3.0])}, kappa=(0.0, 1e3)
    )
    yield case.but(
        "balls, other parameters",
        "inputs",
        None,
        "one unit",
        inputs={"parameters": np.nextafter(PARAMETERS, 9)},
        records={"parameters": PARAMETERS},
    )
    yield case.but(
        "balls, parameters too few", "certificate", None, "9 entries", inputs={"parameters": PARAMETERS[:, :8].copy()}
    )
    yield case.but("balls, targets too few", "certificate", None, "one for each sample", inputs={"y": np.ones(1)})
    yield case.but("balls, inputs of another width", "certificate", None, "two columns", inputs={"x": np.ones((2, 3))})

    # Two parameters, three samples: y = x w_1 + w_2 is a line.
    line = [
        parameter("w", 1, 1),
        parameter("b", 1, leaf=1),
        entries(3, 1),
        op("linear.default", 3, 1, input=2, weight=0, bias=1),
    ]
    away = {"parameters": np.array([[1.0, 0.0]]), "x": np.array([[0.0], [1.0], [2.0]]), "y": np.array([0.0, 3.0, 0.0])}
    out = valid(
        "balls", "network-misalignment", "balls", away, {"graph": graph(*line)}, bits=128, distance=2.4494
    )  # sqrt(6)
    yield out
    yield out.but("balls, a distance too large", "proof", False, "the distance is the root of 6", distance=2.4495)
    yield out.but(
        "balls, of a line", "proof", False, "y is in the span", inputs={"y": np.array([1.0, 2.0, 3.0])}, distance=0.0
    )
    yield out.but("balls, a distance that is an int", "certificate", None, "a float", distance=2)
    yield out.but("balls, no distance", "certificate", None, "distance is missing", distance=GONE)
    yield out.but("balls, kappa too", "certificate", True, "kappa is infinite", kappa=(0.0, 1.0))
    yield out.but("norms", None, True, method="norms", bits=GONE, shift=0.5)
    yield out.but(
        "norms, a distance too large",
        "proof",
        False,
        "the distance is the root of 6",
        method="norms",
        bits=GONE,
        shift=0.5,
        distance=2.4495,
    )
    # The sum of two biases: the columns of J are equal.
    sums = [
        line[0],
        line[1],
        parameter("c", 1, leaf=2),
        line[2],
        op("linear.default", 3, 1, input=3, weight=0, bias=1),
        op("add.Tensor", 3, 1, self=4, other=2),
    ]
    deficient = {"graph": graph(*sums), "first": ints(0)}
    parameters = {"parameters": np.array([[1.0, 0.0, 0.0]])}
    exact = out.but("exact", None, True, method="exact", bits=256, inputs=parameters, data=deficient)
    yield exact
    yield exact.but("exact, all columns first", None, True, data={"first": ints(3)})
    yield exact.but("exact, more columns than there are", "proof", True, "3 columns", data={"first": ints(4)})
    yield exact.but("exact, two numbers of columns", "proof", True, "one number", data={"first": ints(0, 1)})
    yield exact.but(
        "exact, of a line", "proof", False, "y is in the span", inputs={"y": np.array([1.0, 2.0, 3.0])}, distance=0.0
    )
    yield exact.but("exact, a distance too large", "proof", False, "the distance is the root of 6", distance=2.4495)

    # y = x + 1 is in the span; the solution of least norm is (1, 1/2, 1/2).
    reached = {**away, **parameters, "y": np.array([1.0, 2.0, 3.0])}
    rows = {"graph": deficient["graph"], "basis": ints(0, 1)}
    inside = valid("exact", "network-alignment", "exact", reached, rows, bits=128, kappa=(1.2247, 1.2248))
    yield inside
    yield inside.but("exact, other rows", None, True, data={"basis": ints(2, 0)})
    yield inside.but("exact, weights of columns", None, True, data={"basis": ints()}, kappa=(0.0, 1.2248))
    yield inside.but("exact, dependent rows", "proof", True, "the rank is 2", data={"basis": ints(0, 1, 2)})
    yield inside.but("exact, rows too few", "proof", True, "the rank is 2", data={"basis": ints(0)})
    yield inside.but("exact, kappa above", "proof", False, "kappa is the root of 3/2", kappa=(1.2248, 1e3))
    yield inside.but("exact, kappa below", "proof", False, "kappa is the root of 3/2", kappa=(0.0, 1.2247))
    yield inside.but("exact, of no line", "proof", False, "y is outside", inputs={"y": away["y"]}, kappa=(0.0, 1e9))


def explorations() -> Iterator[Case]:
    # Features relu(x W' + b): (1.5, 0), (2.5, 1.5), (0.5, 3.5), and the constant 1.
    features = graph(
        *mlp(trainable=False)[:2],
        entries(ROWS, 2),
        op("linear.default", ROWS, 2, input=2, weight=0, bias=1),
        op("relu.default", ROWS, 2, self=3),
    )
    inputs = {"parameters": PARAMETERS[:, :6].copy(), "x": x}
    data = {
        "graph": features,
        "direction": np.array([1.0, 0.0, 0.0]),
        "thresholds": np.array([0.25]),
        "floors": np.array([0.25]),
    }
    case = valid(
        "staircase",
        "network-exploration",
        "staircase",
        inputs,
        data,
        rank=3,
        width=1,
        add_constant=True,
        c=128.0,
        delta=2.0**-40,
        s_min=0.125,
    )
    yield case
    yield case.but(
        "staircase, two units",
        None,
        True,
        width=2,
        data={"thresholds": np.array([1.0, 0.25]), "floors": np.array([0.25, 1.0])},
        s_min=0.0625,
    )
    yield case.but(
        "staircase, delta smaller than the rounding",
        "proof",
        True,
        "the errors of the features exceed delta",
        delta=2.0**-80,
    )
    yield case.but("staircase, no constant", "certificate", None, "add_constant is true", add_constant=False)
    yield case.but(
        "staircase, a floor too large", "proof", True, "s_min of the block is smaller", data={"floors": np.array([2.0])}
    )
    yield case.but("staircase, s_min too large", "proof", False, "a row of phi is shorter", s_min=8.0)
    yield case.but("staircase, equal samples", "proof", False, "two rows of phi are equal", inputs={"x": x[[0, 1, 1]]})
    yield case.but("staircase, another rank", "certificate", None, "the number of samples", rank=4)


def losses() -> Iterator[Case]:
    # Outputs of the network of PARAMETERS at x: 2 1.5 - 0 + 1/4, 2 2.5 - 1.5 + 1/4, 2 0.5 - 3.5 + 1/4.
    Y = np.array([[1.0], [1.0], [0.0]])
    inputs = {"parameters": PARAMETERS, "x": x, "Y": Y}
    data = {"graph": graph(*mlp())}
    gap = {"loss": "squared", "gap": 6.2, "errors": None}  # (5.0625 + 7.5625 + 5.0625) / 3 = 5.8958
    case = valid("norms", "network-optimality", "norms", inputs, data, bits=None, **gap)
    yield case
    yield case.but("balls", None, True, method="balls", bits=128, gap=5.8959)
    yield case.but(
        "balls, gap too small", "proof", False, "the loss is 5.8958...", method="balls", bits=128, gap=5.8958
    )
    yield case.but("norms, gap too small", "proof", False, "the loss is 5.8958...", gap=5.0)
    binary = case.but("norms, binary cross-entropy", None, True, loss="binary_cross_entropy", gap=0.07, errors=0)
    yield binary
    yield binary.but("norms, errors too few", "proof", False, "three errors", inputs={"Y": 1.0 - Y}, gap=9.0, errors=2)
    yield binary.but(
        "norms, equal rows with two labels",
        None,
        True,
        inputs={"x": x[[0, 0, 2]], "Y": np.array([[1.0], [0.0], [0.0]])},
        gap=0.7,
        errors=1,
    )
    yield binary.but("norms, bits", "certificate", None, "norms have no precision", bits=128)
    yield binary.but("norms, an unknown loss", "certificate", None, "no such loss", loss="hinge")
    yield case.but("norms, Y too short", "certificate", None, "one for each sample", inputs={"Y": Y[:2].copy()})
    better = {"better0": np.array([0.5, 0.0]), "better1": np.array([0.0])}
    worse = valid(
        "norms",
        "network-suboptimality",
        "norms",
        inputs,
        {**data, **better},
        bits=None,
        loss="squared",
        gap=5.7,
        changed=("2.weight", "2.bias"),
    )
    yield worse  # outputs 3/4, 5/4, 1/4: a loss of 1/16
    yield worse.but("balls", None, True, method="balls", bits=128, gap=5.8332)
    yield worse.but("balls, gap too large", "proof", True, "5.8958... - 0.0625", method="balls", bits=128, gap=5.8334)
    yield worse.but("norms, more than the loss", "proof", False, "the loss is 5.8958...", gap=5.9)
    yield worse.but(
        "norms, of a parameter that there is not", "certificate", True, "no such name", changed=("2.weight", "3.bias")
    )
    yield worse.but(
        "norms, of a frozen network",
        "certificate",
        None,
        "no trainable parameters",
        data={"graph": graph(*mlp(trainable=False))},
    )
    yield worse.but("norms, other values missing", "certificate", True, "better1 is missing", data={"better1": GONE})
    yield worse.but(
        "norms, other values of another shape", "certificate", True, "two values", data={"better0": np.ones(3)}
    )


CASES = [*structures(), *alignments(), *explorations(), *losses()]
