"""Certificates about graphs: what they prove, and forgeries that the kernel refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignver.kernel import seal, verify
from alignver.kernel.failure import NotProved
from alignver.kernel.network.analytic import walk
from alignver.kernel.network.degrees import UNKNOWN, ZERO, degrees, subset
from alignver.kernel.network.graph import encode, parse
from alignver.kernel.network.methods import flat
from alignver.results import Subject, Verdict


def parameter(name, leaf=None, shape=(2,), trainable=True, pure=True, ends=None):
    facts = {"name": name, "leaf": name if leaf is None else leaf, "trainable": trainable, "pure": pure, "range": ends}
    return {"op": "parameter", "args": facts, "out": [["float32", list(shape)]], "module": ""}


def constant(ends=(0.0, 1.0), masked="", rows=(), dtype="float32", shape=(2,)):
    facts = {"name": "c", "range": ends and list(ends), "masked": masked, "rows": list(rows)}
    return {"op": "constant", "args": facts, "out": [[dtype, list(shape)]], "module": ""}


def op(name, /, out="float32", shape=(2,), **args):
    args = {
        key: {"node": value["ref"]} if isinstance(value, dict) and "ref" in value else value
        for key, value in args.items()
    }
    return {"op": f"aten.{name}", "args": args, "out": [[out, list(shape)]], "module": "layer"}


def ref(k):
    return {"ref": k}


INPUT = {"op": "input", "args": {}, "out": [["float32", [2]]], "module": ""}


def graph(*nodes):
    return parse(encode({"nodes": list(nodes), "outputs": [len(nodes) - 1]}))


def certificate(nodes, S=("w",), everywhere=True, annotation=None):
    data = encode({"nodes": list(nodes), "outputs": [len(nodes) - 1]})
    if annotation is None:
        annotation = flat(
            degrees(parse(data), {node["args"]["leaf"] for node in nodes if node["args"].get("name") in S})
        )
    return seal(
        "common-structure",
        "degrees",
        {},
        {"graph": data, "degrees": annotation},
        {"S": list(S), "everywhere": everywhere},
    )


W, V = parameter("w", 0), parameter("v", 1)
PRODUCT = [W, INPUT, op("mul.Tensor", self=ref(0), other=ref(1))]


def test_a_linear_graph_is_proved():
    again = verify(certificate(PRODUCT), {})
    assert (again.verdict, again.subject) == (Verdict.HOLDS, Subject.NETWORK)
    assert "linear in S (w)" in again.reason


FORGED = {
    "another degree": certificate(PRODUCT, annotation=np.array([1, 0, 0])),
    "degree 0": certificate(PRODUCT, S=()),
    "a square": certificate([W, op("mul.Tensor", self=ref(0), other=ref(0))]),
    "frozen": certificate([parameter("w", 0, trainable=False), INPUT, PRODUCT[2]]),
    "not pure": certificate([parameter("w", 0, pure=False), INPUT, PRODUCT[2]]),
    "a second name": certificate([W, parameter("tied", 0), op("add.Tensor", self=ref(0), other=ref(1), alpha=1)]),
    "a frozen alias": certificate([W, parameter("tied", 0, trainable=False), op("mul.Tensor", self=ref(0), other=2.0)]),
    "no such name": certificate(PRODUCT, S=("w", "u")),
    "a tanh": certificate([W, op("tanh.default", self=ref(0))]),
    "a sum with the input": certificate([W, INPUT, op("add.Tensor", self=ref(0), other=ref(1), alpha=1)]),
    "random": certificate([W, op("bernoulli.default", self=ref(0))]),
    "random coefficients": certificate(
        [W, INPUT, op("bernoulli.default", self=ref(1)), op("mul.Tensor", self=ref(0), other=ref(2))]
    ),
    "a dropout that draws": certificate([W, op("dropout.default", input=ref(0), p=0.5, train=True)]),
    "attention that draws": certificate(
        [INPUT, W, op("scaled_dot_product_attention.default", query=ref(0), key=ref(0), value=ref(1), dropout_p=0.1)]
    ),
    "another library": certificate([W, {**op("mul.Tensor", self=ref(0), other=2.0), "op": "mine.mul.Tensor"}]),
    "in place": certificate([W, op("neg_.default", self=ref(0))]),
    "memory without a value": certificate([W, op("empty_like.default", self=ref(0))]),
    "a quotient that is rounded": certificate(
        [W, op("div.Tensor_mode", self=ref(0), other=2.0, rounding_mode="floor")]
    ),
    "a largest value": certificate(
        [INPUT, W, op("scatter_reduce.two", self=ref(1), dim=0, index=ref(0), src=ref(1), reduce="amax")]
    ),
    "an integer": certificate([W, op("_to_copy.default", out="int64", self=ref(0), dtype={"dtype": "int64"})]),
    "a product in place of entries": certificate(
        [W, INPUT, op("scatter.reduce", self=ref(0), dim=0, index=ref(1), src=ref(0), reduce="multiply")]
    ),
    "a condition": certificate([W, op("where.self", condition=ref(0), self=ref(0), other=ref(0))]),
    "padding with ones": certificate([W, op("constant_pad_nd.default", self=ref(0), pad=[1, 1], value=1.0)]),
    "a trainable zero": certificate(
        [W, parameter("v", 1, ends=[0.0, 0.0]), op("add.Tensor", self=ref(0), other=ref(1), alpha=1)]
    ),
}


ONES = np.array([1, 0, 1])
FORGED |= {
    "one name of two leaves": certificate(
        [W, parameter("w", 1), op("tanh.default", self=ref(0)), op("mul.Tensor", self=ref(2), other=ref(1))],
        annotation=np.array([0, 1, 0, 1]),
    ),
    "no factor": certificate([W, INPUT, op("mul.Tensor", self=ref(0))], annotation=ONES),
    "no summand": certificate([W, INPUT, op("add.Tensor", self=ref(0), alpha=1)], annotation=ONES),
    "no terms": certificate([W, op("cat.default", tensors=[], dim=0)], annotation=np.array([1, ZERO])),
    "a list in a list": certificate(
        [W, op("cat.default", tensors=[[{"node": 0}]], dim=0), op("mul.Tensor", self=ref(0), other=ref(1))],
        annotation=np.array([1, 0, 1]),
    ),
    "positions for values": certificate([W, op("where.default", condition=ref(0))], annotation=np.array([1, ZERO])),
    "another dtype": certificate(
        [W, op("_to_copy.default", self=ref(0), dtype={"dtype": "int64"})], annotation=np.array([1, 1])
    ),
    "written to memory": certificate(
        [W, INPUT, op("mul.Tensor_out", self=ref(0), other=ref(1), out_=ref(0))], annotation=ONES
    ),
    "training by a number": certificate(
        [W, INPUT, op("batch_norm.default", input=ref(1), weight=ref(0), training=1, eps=1e-5)], annotation=ONES
    ),
    "a leaf of a fraction": certificate([parameter("w", 0.5), INPUT, PRODUCT[2]], annotation=ONES),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("everywhere", [True, False])
def test_forged_structures_are_refused(name, everywhere):
    whole = FORGED[name]
    claim = {**whole.constants, "everywhere": everywhere}
    assert verify(seal(whole.claim, whole.method, {}, whole.data, claim), {}).verdict is Verdict.FAILS


def test_what_may_be_undefined_is_excepted():
    nodes = [W, V, op("div.Tensor", self=ref(0), other=ref(1))]
    assert verify(certificate(nodes), {}).verdict is Verdict.FAILS
    assert "at which the network is defined" in verify(certificate(nodes, everywhere=False), {}).reason


@pytest.mark.parametrize(
    "nodes",
    [
        [W, constant((0.0, 0.0)), op("add.Tensor", self=ref(0), other=ref(1), alpha=1)],
        [W, op("zeros.default", size=[2]), op("cat.default", tensors=[{"node": 0}, {"node": 1}], dim=0)],
        [W, op("dropout.default", input=ref(0), p=0.5, train=False)],
        [W, INPUT, op("scatter_reduce.two", self=ref(0), dim=0, index=ref(1), src=ref(0), reduce="mean")],
        [
            W,
            constant(),
            op("lt.Scalar", out="bool", self=ref(1), other=0),
            op("where.self", condition=ref(2), self=ref(0), other=ref(0)),
        ],
        [W, op("empty_like.default", self=ref(0)), op("copy.default", self=ref(1), src=ref(0))],
        [INPUT, W, op("scaled_dot_product_attention.default", query=ref(0), key=ref(0), value=ref(1), dropout_p=0.0)],
    ],
)
def test_what_keeps_the_degree(nodes):
    assert verify(certificate(nodes), {}).verdict is Verdict.HOLDS


def test_multiplication_by_zero_is_zero():
    g = graph(W, op("mul.Tensor", self=ref(0), other=0.0))
    assert degrees(g, subset(g, ("w",)))[1] == (ZERO,)
    g = graph(W, V, op("add.Tensor", self=ref(0), other=ref(1), alpha=1))
    assert degrees(g, {0})[2] == (UNKNOWN,)


def analytic(*nodes):
    return verify(
        seal("analytic", "operations", {}, {"graph": encode({"nodes": list(nodes), "outputs": [len(nodes) - 1]})}, {}),
        {},
    )


MASK = constant(dtype="bool", rows=["true", "false"])
FILLED = op("masked_fill.Scalar", self=ref(0), mask=ref(1), value={"float": "-inf"})


@pytest.mark.parametrize(
    ("holds", "nodes"),
    [
        (True, [W, MASK, FILLED, op("softmax.int", self=ref(2), dim=-1)]),
        (False, [W, constant(dtype="bool", rows=["true"]), FILLED, op("softmax.int", self=ref(2), dim=-1)]),
        (False, [W, MASK, FILLED]),
        (False, [W, MASK, FILLED, op("log_softmax.int", self=ref(2), dim=-1)]),
        (False, [W, MASK, FILLED, op("flip.default", self=ref(2), dims=[0]), op("softmax.int", self=ref(3), dim=-1)]),
        (
            False,
            [
                W,
                MASK,
                FILLED,
                op("unsqueeze.default", self=ref(2), dim=-1, shape=(2, 1)),
                op("softmax.int", self=ref(3), dim=-1, shape=(2, 1)),
            ],
        ),
        (
            True,
            [
                W,
                constant(None, "rows"),
                op("add.Tensor", self=ref(0), other=ref(1), alpha=1),
                op("softmax.int", self=ref(2), dim=-1),
            ],
        ),
        (
            False,
            [
                W,
                constant(None, "rows"),
                op("add.Tensor", self=ref(0), other=ref(1), alpha=-1),
                op("softmax.int", self=ref(2), dim=-1),
            ],
        ),
        (
            False,
            [
                W,
                constant(None, "any"),
                op("add.Tensor", self=ref(0), other=ref(1), alpha=1),
                op("softmax.int", self=ref(2), dim=-1),
            ],
        ),
        (
            True,
            [
                W,
                op("softmax.int", self=ref(0), dim=0),
                op("neg.default", self=ref(1)),
                op("log1p.default", self=ref(2)),
            ],
        ),
        (
            False,
            [
                parameter("w", 0, (1,)),
                op("softmax.int", self=ref(0), dim=0, shape=(1,)),
                op("neg.default", self=ref(1), shape=(1,)),
                op("log1p.default", self=ref(2), shape=(1,)),
            ],
        ),
        (True, [W, op("softplus.default", self=ref(0), beta=1, threshold=20)]),
        (False, [W, op("softplus.default", self=ref(0), beta=1, threshold=19)]),
        (True, [W, constant((0.5, 1.0)), op("div.Tensor", self=ref(0), other=ref(1))]),
        (False, [W, op("layer_norm.default", input=ref(0), normalized_shape=[2], eps=0.0)]),
        (
            True,
            [
                W,
                constant(),
                op(
                    "batch_norm.default",
                    input=ref(0),
                    running_mean=ref(1),
                    running_var=ref(1),
                    training=False,
                    eps=1e-5,
                ),
            ],
        ),
        (
            False,
            [
                W,
                constant(),
                op(
                    "batch_norm.default", input=ref(0), running_mean=ref(1), running_var=ref(1), training=False, eps=0.0
                ),
            ],
        ),
        (
            False,
            [
                W,
                constant((-1.0, 1.0)),
                op(
                    "batch_norm.default",
                    input=ref(0),
                    running_mean=ref(1),
                    running_var=ref(1),
                    training=False,
                    eps=1e-5,
                ),
            ],
        ),
    ],
)
def test_analytic_claims(holds, nodes):
    if "shape" in nodes[-1]["args"]:
        nodes[-1]["args"].pop("shape")
    assert analytic(*nodes).verdict is (Verdict.HOLDS if holds else Verdict.FAILS)


EXP = op("exp.default", self=ref(0))
TWO = constant((1.0, 2.0))
FORGED_DOMAINS = {
    "another order of arguments": [
        W,
        constant((1.0, 1.0), dtype="int64"),
        op("gather.default", dim=0, index=ref(1), self=ref(0)),
        op("log.default", self=ref(2)),
    ],
    "weights before indices": [
        W,
        constant((1.0, 1.0), dtype="int64"),
        op("embedding.default", indices=ref(1), weight=ref(0)),
        op("log.default", self=ref(2)),
    ],
    "a factor that is not looked at": [
        W,
        constant((-1.0, 1.0)),
        EXP,
        op("dot.default", self=ref(2), tensor=ref(1), shape=()),
        op("add.Tensor", self=ref(3), other=1.0, alpha=1, shape=()),
        op("log.default", self=ref(4), shape=()),
    ],
    "a factor that is lacking": [W, EXP, op("mul.Tensor", self=ref(1)), op("log.default", self=ref(2))],
    "padding without its value": [
        W,
        EXP,
        op("constant_pad_nd.default", self=ref(1), pad=[1, 1], shape=(4,)),
        op("log.default", self=ref(2), shape=(4,)),
    ],
    "accumulation by a number": [
        W,
        op("sigmoid.default", self=ref(0)),
        constant((0.0, 0.0), dtype="int64"),
        op("index_put.default", self=ref(1), indices=[{"node": 2}], values=ref(1), accumulate=1),
        op("neg.default", self=ref(3)),
        op("log1p.default", self=ref(4)),
    ],
    "training by a number": [
        W,
        TWO,
        op("batch_norm.default", input=ref(0), running_mean=ref(1), running_var=ref(1), training=1, eps=1e-5),
    ],
    "an axis that is lacking": [
        W,
        constant((1.0, 1.0)),
        op("softmax.int", self=ref(1)),
        op("add.Tensor", self=ref(2), other=-0.5, alpha=1),
        EXP,
        op("mul.Tensor", self=ref(4), other=ref(3)),
        op("log.default", self=ref(5)),
    ],
    "a cast to integers": [W, op("_to_copy.default", self=ref(0), dtype={"dtype": "int64"})],
    "an infinite constant": [
        W,
        constant(({"float": "inf"}, {"float": "inf"})),
        op("div.Tensor", self=ref(0), other=ref(1)),
    ],
    "clamped by a tensor": [
        W,
        constant((-1.0, -1.0)),
        TWO,
        op("clamp.Tensor", self=ref(1), min=ref(2)),
        EXP,
        op("mul.Tensor", self=ref(4), other=ref(3)),
        op("neg.default", self=ref(5)),
        op("log.default", self=ref(6)),
    ],
    "attention with an infinite scale": [
        W,
        op(
            "scaled_dot_product_attention.default",
            query=ref(0),
            key=ref(0),
            value=ref(0),
            dropout_p=0.0,
            scale={"float": "inf"},
        ),
    ],
    "scores without theta, all masked": [
        W,
        constant(None, "all"),
        op("softmax.int", self=ref(1), dim=-1),
        op("mul.Tensor", self=ref(0), other=ref(2)),
    ],
    "memory beside a tensor": [
        W,
        parameter("v", 1, trainable=False, ends=[0.0, 1.0]),
        op("as_strided.default", self=ref(1), size=[2], stride=[1], storage_offset=2),
        op("relu.default", self=ref(2)),
    ],
}


@pytest.mark.parametrize("name", FORGED_DOMAINS)
def test_forged_domains_are_refused(name):
    assert analytic(*FORGED_DOMAINS[name]).verdict is Verdict.FAILS


def test_random_coefficients_are_not_analytic():
    noise = op("rand.default", size=[2])
    assert analytic(W, noise, op("mul.Tensor", self=ref(0), other=ref(1))).verdict is Verdict.FAILS


def test_no_structure_needs_a_graph_that_is_not_zero_at_zero():
    def claim(*nodes):
        data = {"graph": encode({"nodes": list(nodes), "outputs": [len(nodes) - 1]})}
        return verify(seal("no-structure", "value at zero", {}, data, {}), {}).verdict

    assert claim(W, op("exp.default", self=ref(0))) is Verdict.HOLDS
    assert claim(W, op("tanh.default", self=ref(0))) is Verdict.FAILS
    assert claim(W, INPUT, op("add.Tensor", self=ref(0), other=ref(1), alpha=1)) is Verdict.FAILS
    assert (
        claim(
            W,
            op("exp.default", self=ref(0)),
            op("abs.default", self=ref(0)),
            op("add.Tensor", self=ref(1), other=ref(2), alpha=1),
        )
        is Verdict.FAILS
    )
    assert claim(parameter("w", 0, pure=False), op("cos.default", self=ref(0))) is Verdict.FAILS


GOOD = {"nodes": PRODUCT, "outputs": [2]}


def test_the_good_document_is_read():
    text = json.dumps({"nodes": [W, INPUT, {**PRODUCT[2]}], "outputs": [2]}, separators=(",", ":"))
    assert len(parse(np.frombuffer(text.encode(), dtype=np.uint8)).nodes) == 3


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(3),
        np.frombuffer(b"{", dtype=np.uint8),
        np.frombuffer(b"[" * 100000, dtype=np.uint8),
        np.frombuffer(json.dumps(GOOD).encode(), dtype=np.uint8),  # another serialization
        encode({**GOOD, "more": 1}),
        encode({**GOOD, "outputs": [3]}),
        encode({**GOOD, "outputs": []}),
        encode({**GOOD, "outputs": [True]}),
        encode({"nodes": [op("neg.default", self={"node": 0})], "outputs": [0]}),
        encode({"nodes": [op("neg.default", self={"node": 1}), W], "outputs": [0]}),
        encode({"nodes": [op("neg.default", self={"other": 1})], "outputs": [0]}),
        encode({"nodes": [{**INPUT, "args": {"range": [0, 0]}}], "outputs": [0]}),
        encode({"nodes": [{**INPUT, "out": []}], "outputs": [0]}),
        encode({"nodes": [{**INPUT, "out": [["float32", [-1]]]}], "outputs": [0]}),
    ],
)
def test_other_documents_are_refused(data):
    with pytest.raises(NotProved):
        parse(data)


def test_barriers_name_node_and_reason():
    barrier = walk(graph(W, op("relu.default", self=ref(0))))[1][0]
    assert barrier.node == 1
    assert "kink" in barrier.reason
    assert barrier.defined
