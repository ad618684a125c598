"""Random graphs of networks, and their values in 60 digits by definitions that share no code with the kernel."""

from __future__ import annotations

import random
from typing import Any

import mpmath

from alignver.kernel.network.graph import Graph, Node, Ref

mp = mpmath.mp.clone()
mp.dps = 60

SHAPE = (2,)
FLOAT = ("float64", SHAPE)
BOOL = ("bool", SHAPE)

UNARY = [
    "neg",
    "tanh",
    "exp",
    "sigmoid",
    "sin",
    "relu",
    "abs",
    "square",
    "softplus",
    "sqrt",
    "log",
    "reciprocal",
    "rsqrt",
    "log1p",
    "atanh",
    "sign",
    "detach",
    "flip",
    "cumsum",
    "softmax",
    "log_softmax",
    "logsumexp",
    "layer_norm",
    "pow",
    "clamp_min",
    "masked_fill",
    "slice_of_cat",
    "gelu",
    "silu",
    "leaky_relu",
    "sum_and_add",
    "floor",
    "mean",
    "norm",
    "dropout",
]
BINARY = ["add", "sub", "mul", "div", "where", "linear", "addcmul", "batch_norm", "where_on"]
RISING = ["tanh", "exp", "sigmoid", "relu", "abs", "softplus", "flip", "clamp_min", "leaky_relu", "sum_and_add", "mean",
          "relu", "batch_norm", "layer_norm", "linear", "mul", "add", "sub", "linear", "add"]  # fmt: skip
"""Of which bent outputs are made."""

Leaves = dict[int, list[Any]]


def graph(seed: int, size: int = 9, names: list[str] | None = None) -> Graph:
    """Return a random graph on entries of shape (2,): four leaves of parameters, one of them under two names."""
    draw = random.Random(seed)
    nodes: list[Node] = []
    for k, (name, leaf) in enumerate([("w", 0), ("v", 1), ("u", 2), ("tied", 2), ("fixed", 3)]):
        trainable = name != "fixed"
        facts = {"name": name, "leaf": leaf, "trainable": trainable, "pure": True}
        nodes.append(Node("parameter", {**facts, "range": None if trainable else (-1.5, 0.5)}, (FLOAT,), str(k)))
    matrix = {"name": "W", "leaf": 4, "trainable": True, "pure": True, "range": None}
    nodes.append(Node("parameter", matrix, (("float64", (2, 2)),), ""))
    nodes.append(Node("input", {}, (FLOAT,), ""))
    nodes.append(Node("constant", {"name": "zero", "range": (0.0, 0.0), "masked": "", "rows": ()}, (FLOAT,), ""))
    nodes.append(Node("constant", {"name": "offset", "range": (0.25, 2.0), "masked": "", "rows": ()}, (FLOAT,), ""))
    mask = {"name": "mask", "range": (0.0, 1.0), "masked": "", "rows": ("true", "false")}
    nodes.append(Node("constant", mask, (BOOL,), ""))
    vectors = [k for k, node in enumerate(nodes) if node.out == (FLOAT,)]
    for _ in range(draw.randint(2, size)):
        recent = [*vectors[-4:], *draw.choices(vectors, k=3)]
        for node in _nodes(draw, draw.choice(names or UNARY + BINARY * 3), recent, len(nodes)):
            nodes.append(node)
        vectors.append(len(nodes) - 1)
    return _pruned(nodes)


def _pruned(nodes: list[Node]) -> Graph:
    """Return the graph without nodes that the last one does not need, leaves excepted."""
    needed = {*range(10), len(nodes) - 1}
    for index in range(len(nodes) - 1, -1, -1):
        needed |= set(nodes[index].refs()) if index in needed else set()
    places = {old: new for new, old in enumerate(sorted(needed))}

    def moved(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(places[value.node])
        return tuple(moved(item) for item in value) if isinstance(value, tuple) else value

    entries = [nodes[old] for old in sorted(needed)]
    moved_nodes = [Node(n.op, {name: moved(value) for name, value in n.args.items()}, n.out, n.module) for n in entries]
    return Graph(tuple(moved_nodes), (len(moved_nodes) - 1,))


def _nodes(draw: random.Random, name: str, pool: list[int], at: int) -> list[Node]:
    a, b, c = (Ref(draw.choice(pool)) for _ in range(3))

    def one(op: str, **args: Any) -> list[Node]:
        return [Node(f"aten.{op}.default", args, (FLOAT,), "")]

    number = draw.choice([-1.0, 0.5, 1.0, 2.0])
    special = {
        "add": lambda: one("add", self=a, other=draw.choice([b, b, b, number]), alpha=draw.choice([1, -2])),
        "sub": lambda: one("sub", self=a, other=b, alpha=1),
        "mul": lambda: one("mul", self=a, other=draw.choice([b, b, number, 0.0, a])),
        "div": lambda: one("div", self=draw.choice([a, a, number]), other=b),
        "where": lambda: one("where", condition=Ref(9), self=a, other=b),
        "where_on": lambda: [
            Node("aten.gt.Scalar", {"self": c, "other": 0.0}, (BOOL,), ""),
            *one("where", condition=Ref(at), self=a, other=b),
        ],
        "linear": lambda: one("linear", input=a, weight=Ref(5), **({"bias": b} if draw.random() < 0.5 else {})),
        "addcmul": lambda: one("addcmul", self=a, tensor1=b, tensor2=c, value=2),
        "batch_norm": lambda: one("batch_norm", input=a, weight=b, bias=c, running_mean=Ref(draw.choice([7, 4])),
                                  running_var=Ref(draw.choice([8, 7])), training=False, eps=1e-3),
        "flip": lambda: one("flip", self=a, dims=(0,)),
        "cumsum": lambda: one("cumsum", self=a, dim=0),
        "softmax": lambda: one("softmax", self=a, dim=0),
        "log_softmax": lambda: one("log_softmax", self=a, dim=0),
        "logsumexp": lambda: [Node("aten.logsumexp.default", {"self": a, "dim": (0,)}, (("float64", ()),), ""),
                              *one("expand", self=Ref(at), size=(2,))],
        "mean": lambda: [Node("aten.mean.dim", {"self": a, "dim": (0,)}, (("float64", ()),), ""),
                         *one("expand", self=Ref(at), size=(2,))],
        "norm": lambda: [Node("aten.linalg_vector_norm.default", {"self": a, "ord": draw.choice([1, 2])},
                              (("float64", ()),), ""), *one("expand", self=Ref(at), size=(2,))],
        "sum_and_add": lambda: [Node("aten.sum.dim_IntList", {"self": a, "dim": (0,)}, (("float64", ()),), ""),
                                *one("add", self=Ref(at), other=b, alpha=1)],
        "layer_norm": lambda: one("layer_norm", input=a, normalized_shape=(2,), weight=b, bias=c,
                                  eps=draw.choice([1e-3, 0.0])),
        "pow": lambda: one("pow", self=a, exponent=draw.choice([0, 1, 2, 3, 2.0, 0.5, -1])),
        "clamp_min": lambda: one("clamp_min", self=a, min=draw.choice([0.0, -0.5])),
        "masked_fill": lambda: one("masked_fill", self=a, mask=Ref(9), value=draw.choice([0.0, 0.0, 1.0])),
        "slice_of_cat": lambda: [
            Node("aten.cat.default", {"tensors": (a, b), "dim": 0}, (("float64", (4,)),), ""),
            *one("slice", self=Ref(at), dim=0, start=1, end=3, step=1),
        ],
        "softplus": lambda: one("softplus", self=a, beta=draw.choice([1, 2.0]), threshold=20),
        "leaky_relu": lambda: one("leaky_relu", self=a, negative_slope=0.1),
        "dropout": lambda: one("dropout", input=a, p=0.5, train=False),
    }  # fmt: skip
    return special.get(name, lambda: one(name, self=a))()


def values(graph: Graph, leaves: Leaves, x: list[Any]) -> list[Any]:
    """Return the outputs; raises ArithmeticError where the graph is not defined."""
    known: list[list[Any]] = []
    fixed = {"zero": [mp.mpf(0)] * 2, "offset": [mp.mpf("0.25"), mp.mpf(2)], "mask": [False, True]}
    for node in graph.nodes:
        if node.op == "parameter":
            known.append(leaves[node.args["leaf"]])
        elif node.op == "constant":
            known.append(fixed[node.args["name"]])
        elif node.op == "input":
            known.append(x)
        else:
            args = {name: _filled(value, known) for name, value in node.args.items()}
            known.append(_value(node.base, args))
    return known[graph.outputs[0]]


def _filled(value: Any, known: list[list[Any]]) -> Any:
    if isinstance(value, Ref):
        return known[value.node]
    return [_filled(item, known) for item in value] if isinstance(value, tuple) else value


def _pair(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else [mp.mpf(value)]
    return items * 2 if len(items) == 1 else items


def _sign(t: Any) -> Any:
    return mp.mpf((t > 0) - (t < 0))


def _inside(t: Any, inside: bool, function: Any) -> Any:
    if not inside:
        raise ArithmeticError("outside the domain")
    return function(t)


ENTRIES = {
    "neg": lambda t: -t,
    "tanh": mp.tanh,
    "exp": mp.exp,
    "sigmoid": lambda t: 1 / (1 + mp.exp(-t)),
    "sin": mp.sin,
    "relu": lambda t: max(t, mp.mpf(0)),
    "abs": abs,
    "square": lambda t: t * t,
    "sqrt": lambda t: _inside(t, t >= 0, mp.sqrt),
    "log": lambda t: _inside(t, t > 0, mp.log),
    "reciprocal": lambda t: 1 / t,
    "rsqrt": lambda t: _inside(t, t > 0, lambda s: 1 / mp.sqrt(s)),
    "log1p": lambda t: _inside(t, t > -1, lambda s: mp.log(1 + s)),
    "atanh": lambda t: _inside(t, abs(t) < 1, mp.atanh),
    "sign": _sign,
    "floor": mp.floor,
    "detach": lambda t: t,
    "gelu": lambda t: t * (1 + mp.erf(t / mp.sqrt(2))) / 2,
    "silu": lambda t: t / (1 + mp.exp(-t)),
}


def _value(base: str, a: dict[str, Any]) -> list[Any]:
    if base in ENTRIES:
        return [ENTRIES[base](t) for t in a["self"]]
    first = a.get("self", a.get("input"))
    s = (
        _pair(first)
        if first is not None and not isinstance(first[0] if isinstance(first, list) else 0, list)
        else first
    )
    if base == "expand":
        return _pair(first)
    if base in ("add", "sub"):
        factor = a["alpha"] if base == "add" else -a["alpha"]
        return [p + factor * q for p, q in zip(s, _pair(a["other"]))]
    if base in ("mul", "div"):
        return [p * q if base == "mul" else p / q for p, q in zip(s, _pair(a["other"]))]
    if base == "gt":
        return [t > 0 for t in s]
    if base == "where":
        return [p if m else q for m, p, q in zip(a["condition"], s, a["other"])]
    if base == "linear":
        W = a["weight"]
        return [W[2 * k] * s[0] + W[2 * k + 1] * s[1] + (a["bias"][k] if "bias" in a else 0) for k in range(2)]
    if base == "addcmul":
        return [p + 2 * q * r for p, q, r in zip(s, a["tensor1"], a["tensor2"])]
    if base == "batch_norm":
        rows = zip(s, a["running_mean"], a["running_var"], a["weight"], a["bias"])
        return [(t - m) / mp.sqrt(v + mp.mpf(1e-3)) * w + b for t, m, v, w, b in rows]
    if base == "flip":
        return s[::-1]
    if base == "cumsum":
        return [s[0], s[0] + s[1]]
    if base in ("softmax", "log_softmax", "logsumexp"):
        total = mp.log(mp.exp(s[0]) + mp.exp(s[1]))
        if base == "logsumexp":
            return [total]
        return [t - total if base == "log_softmax" else mp.exp(t - total) for t in s]
    if base == "mean" or base == "sum":
        return [(s[0] + s[1]) / (2 if base == "mean" else 1)]
    if base == "linalg_vector_norm":
        return [abs(s[0]) + abs(s[1]) if a["ord"] == 1 else mp.sqrt(s[0] ** 2 + s[1] ** 2)]
    if base == "layer_norm":
        mean = (s[0] + s[1]) / 2
        spread = mp.sqrt(((s[0] - mean) ** 2 + (s[1] - mean) ** 2) / 2 + mp.mpf(a["eps"]))
        return [(t - mean) / spread * w + b for t, w, b in zip(s, a["weight"], a["bias"])]
    if base == "pow":
        p = a["exponent"]
        return [_inside(t, t >= 0 or float(p).is_integer(), lambda q: q ** mp.mpf(p)) for t in s]
    if base == "clamp_min":
        return [max(t, mp.mpf(a["min"])) for t in s]
    if base == "masked_fill":
        return [mp.mpf(a["value"]) if m else t for m, t in zip(a["mask"], s)]
    if base == "cat":
        return [t for part in a["tensors"] for t in part]
    if base == "slice":
        return first[1:3]
    if base == "softplus":
        return [mp.log1p(mp.exp(a["beta"] * t)) / a["beta"] for t in s]
    if base == "leaky_relu":
        return [t if t > 0 else t * mp.mpf(0.1) for t in s]
    assert base == "dropout", base
    return s
