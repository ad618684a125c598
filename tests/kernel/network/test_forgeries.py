"""Certificates about the alignment of a network that were made to deceive: each is refused with a verdict."""

from __future__ import annotations

import copy
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import alignver as av
from alignver.errors import InvalidInput
from alignver.kernel import seal, verify
from alignver.kernel.failure import NotProved
from alignver.kernel.network.graph import encode, parse
from alignver.kernel.network.program import compiled, unpacked
from alignver.kernel.network.tape import exact_float, require_size
from alignver.network.enclosures import EnclosedNetwork, prove_alignment
from alignver.results import Verdict
from tests.kernel.network.test_operators import Net


def proof(function=None, *shapes, n=3, x=None, y=None):
    """The certificate of a small network, its graph as a document, and its inputs."""
    torch.manual_seed(0)
    model = Net(function, *shapes) if function else nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.randn(n, 2) if x is None else x
    network = EnclosedNetwork.of(model.double().eval(), x.double() if x.is_floating_point() else x)
    y = np.arange(1.0, 1.0 + n) if y is None else y
    proved = prove_alignment(network, y, 1, seconds=100.0, condition=lambda: 1.0)
    assert not isinstance(proved, str), proved
    document = json.loads(proved.certificate.data["graph"].tobytes().decode("ascii"))
    return proved.certificate, document, {"parameters": network.parameters, "x": network.x, "y": y}


def resealed(certificate, document=None, inputs=None, **constants):
    data = dict(certificate.data) if document is None else {"graph": encode(document)}
    constants = {**certificate.constants, **constants}
    records = {name: np.zeros((1, 1)) for name in ("parameters", "x", "y")} if inputs is None else inputs
    forged = seal(certificate.claim, certificate.method, records, data, constants)
    return forged


def refused(certificate, document, inputs, **constants):
    try:
        forged = resealed(certificate, document, inputs, **constants)
    except (InvalidInput, ValueError):  # NaN and infinities cannot be sealed
        return
    try:
        result = verify(forged, inputs)
    except InvalidInput:
        return
    assert result.verdict is Verdict.FAILS, result.reason


def node(document, op):
    return next(entry for entry in document["nodes"] if entry["op"].split(".")[:2] == ["aten", op] or entry["op"] == op)


@pytest.fixture(scope="module")
def dense():
    return proof()


def test_the_certificate_itself_is_accepted(dense):
    certificate, document, inputs = dense
    assert verify(certificate, inputs).verdict is Verdict.HOLDS
    assert verify(resealed(certificate, document, inputs), inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    "constants",
    [
        {"kappa": [float("nan"), 1e9]},
        {"kappa": [0.0, float("nan")]},
        {"kappa": [1e9, 0.0]},
        {"kappa": [-1.0, 1e9]},
        {"kappa": [0, 10**9]},
        {"kappa": [float("inf"), float("inf")]},
        {"kappa": [0.0]},
        {"kappa": None},
        {"kappa": [0.0, 1e-9]},
        {"bits": 10**6},
        {"bits": 128.0},
        {"bits": True},
        {"bits": 52},
        {"bits": "128"},
        {"bits": None},
        {"ball": {"radius": 1.0}},
        {"s_min": 1.0},
        {"distance": 1.0},
    ],
)
def test_forged_constants(dense, constants):
    certificate, document, inputs = dense
    refused(certificate, document, inputs, **constants)


def test_infinite_upper_end_is_the_weaker_claim(dense):
    certificate, document, inputs = dense
    assert verify(resealed(certificate, document, inputs, kappa=[0.0, 1e300]), inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize("distance", [float("nan"), float("inf"), -1.0, 1, 1e3, None])
def test_forged_distance(distance):
    certificate, document, inputs = proof(lambda x, w: x @ w, (2,), n=4)
    assert certificate.claim == "network-misalignment"
    assert verify(certificate, inputs).verdict is Verdict.HOLDS
    refused(certificate, document, inputs, distance=distance)


def test_inputs_of_other_sizes(dense):
    certificate, document, inputs = dense
    for name, value in (
        ("y", np.ones(2)), ("y", np.ones(6)), ("x", np.ones((3, 3))), ("x", np.ones((3, 1))), ("x", np.ones((0, 2))),
        ("parameters", np.ones((1, 5))), ("parameters", np.ones((1, 99))), ("parameters", np.ones((0, 13))),
        ("parameters", np.full((1, 13), np.nan)), ("x", np.full((3, 2), np.inf)),
    ):  # fmt: skip
        refused(certificate, document, {**inputs, name: value})


def edited(document, change):
    forged = copy.deepcopy(document)
    change(forged)
    return forged


GRAPHS = {
    "no input": lambda d: node(d, "input").update(
        op="constant", args={"name": "x", "range": None, "masked": "", "rows": []}),
    "two inputs": lambda d: d["nodes"].append(copy.deepcopy(node(d, "input"))) or d["nodes"].reverse(),
    "an input without axes": lambda d: node(d, "input").update(out=[["float64", []]]),
    "another shape": lambda d: node(d, "tanh").update(out=[["float64", [3, 4]]]),
    "another dtype": lambda d: node(d, "tanh").update(out=[["int64", [3, 3]]]),
    "results elsewhere": lambda d: node(d, "tanh").update(op="aten.tanh.out"),
    "complex numbers": lambda d: node(d, "tanh").update(out=[["complex128", [3, 3]]]),
    "an unknown operator": lambda d: node(d, "tanh").update(op="aten.tanhh.default"),
    "another namespace": lambda d: node(d, "tanh").update(op="prims.tanh.default"),
    "an unknown argument": lambda d: node(d, "tanh")["args"].update(right=True),
    "a bias in place of the input": lambda d: node(d, "linear")["args"].update(input={"node": 1}),
    "an output of one sample": lambda d: d.update(outputs=[0]),
    "no outputs": lambda d: d.update(outputs=[]),
    "two outputs": lambda d: d.update(outputs=d["outputs"] * 2),
    "an output that is no number": lambda d: d.update(outputs=[True]),
    "nodes that are no list": lambda d: d.update(nodes=3),
    "a leaf of 10^12 numbers": lambda d: node(d, "parameter").update(out=[["float64", [10**6, 10**6]]]),
    "leaves that share memory": lambda d: [e["args"].update(leaf=0) for e in d["nodes"] if e["op"] == "parameter"],
    "a leaf that shares memory": lambda d: node(d, "parameter")["args"].update(pure=False),
    "a negative size": lambda d: node(d, "tanh").update(out=[["float64", [-3, -3]]]),
    "a string for a tensor": lambda d: node(d, "tanh")["args"].update(self="x"),
    "a number for a tensor": lambda d: node(d, "tanh")["args"].update(self=1.0),
    "minus infinity in a parameter": lambda d: node(d, "parameter")["args"].update(masked="rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_forged_graphs(dense, name):
    certificate, document, inputs = dense
    refused(certificate, edited(document, GRAPHS[name]), inputs)


def _set(op, **args):
    return lambda d: node(d, op)["args"].update(args)


def image(x, W):
    return F.max_pool2d(torch.tanh(F.conv2d(x[:, None, None, :] * W, W[None, None])), (1, 1)).flatten(1).sum(1)


OPERATIONS = {
    "ceil_mode with another shape": (lambda x, W: F.avg_pool1d(x @ W, 2), (2, 3), _set("avg_pool1d", ceil_mode=True)),
    "a longer stride": (lambda x, W: F.avg_pool1d(x @ W, 2, 1), (2, 2), _set("avg_pool1d", stride=[0])),
    "a slice backward": (lambda x, W: (x @ W)[:, 0:1], (2, 2), _set("slice", step=-1)),
    "a place beyond the end": (lambda x, W: (x @ W).select(1, 0), (2, 2), _set("select", index=2)),
    "a repetition of 10^12": (lambda x, W: (x @ W).repeat(1, 2).sum(1), (2, 2), _set("repeat", repeats=[1, 10**12])),
    "an expansion to 10^12": (lambda x, W: (x @ W).expand(-1, 2).sum(1), (2, 1), _set("expand", size=[2, 10**12])),
    "a padding of 10^12": (lambda x, W: F.pad(x @ W, (1, 1)).sum(1), (2, 2), _set("pad", pad=[1, 10**12])),
    "a power of 10^300": (lambda x, W: (x @ W).sum(1) ** 2, (2, 2), _set("pow", exponent=1e300)),
    "a power of infinity": (lambda x, W: (x @ W).sum(1) ** 2, (2, 2), _set("pow", exponent={"float": "inf"})),
    "a power of NaN": (lambda x, W: (x @ W).sum(1) ** 2, (2, 2), _set("pow", exponent={"float": "nan"})),
    "an integer beyond floats": (lambda x, W: (x @ W).sum(1) * 2, (2, 2), _set("mul", other=2**53 + 1)),
    "a huge integer": (lambda x, W: (x @ W).sum(1) * 2, (2, 2), _set("mul", other=10**400)),
    "a factor of text": (lambda x, W: (x @ W).sum(1) * 2, (2, 2), _set("mul", other="2")),
    "an invalid axis": (lambda x, W: (x @ W).sum(1), (2, 2), _set("sum", dim=[7])),
    "a softmax of no axis": (lambda x, W: torch.softmax(x @ W, 1)[:, 0], (2, 2), _set("softmax", dim=2)),
    "an eps of NaN": (
        lambda x, W: F.layer_norm(x @ W, (3,))[:, 0], (2, 3), _set("layer_norm", eps={"float": "nan"})),
    "a norm of an unexpected shape": (lambda x, W: F.layer_norm(x @ W, (3,))[:, 0], (2, 3),
                                _set("layer_norm", normalized_shape=[9])),
    "no eps": (lambda x, W: F.rms_norm(x @ W, (3,))[:, 0], (2, 3), lambda d: node(d, "rms_norm")["args"].pop("eps")),
    "attention that draws": (
        lambda x, W: F.scaled_dot_product_attention((x @ W)[:, :, None], x[:, :, None], x[:, :, None])[:, 0, 0], (2, 2),
        _set("scaled_dot_product_attention", dropout_p=0.5)),
    "a clamp turned round": (lambda x, W: (x @ W).clamp(-9, 9)[:, 0], (2, 3), _set("clamp", min=10, max=-10)),
    "groups that do not divide": (
        lambda x, W: F.conv1d((x @ W)[:, :, None], W[:, :1, None], groups=2).sum((1, 2)), (2, 2),
        _set("conv1d", groups=3)),
    "an equation of nonsense": (
        lambda x, W: torch.einsum("bi,ij->bj", x, W).sum(1), (2, 2), _set("einsum", equation="bi,ij->bz")),
    "division that rounds": (lambda x, W: (x @ W).sum(1) / x[:, 0], (2, 2), _set("div", rounding_mode="floor")),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_forged_arguments(name):
    function, shape, change = OPERATIONS[name]
    certificate, document, inputs = proof(function, shape, n=2)
    assert verify(certificate, inputs).verdict is Verdict.HOLDS
    refused(certificate, edited(document, change), inputs)


def test_forged_norm_without_its_eps():
    """The default of torch is that of the dtype, which the network does not have: it has to be written down."""
    _, document, inputs = proof(*OPERATIONS["no eps"][:2], n=2)
    for change, refuses in ((OPERATIONS["no eps"][2], True), (lambda d: None, False)):
        graph = parse(encode(edited(document, change)))
        theta = unpacked(graph, inputs["parameters"][0])
        if refuses:
            with pytest.raises(NotProved, match="unknown form"):
                compiled(graph, theta, inputs["x"])
        else:
            compiled(graph, theta, inputs["x"])


@pytest.mark.parametrize("number", [2**53 + 1, -(2**70) - 1, 10**400, math.inf, -math.inf, math.nan, "2", None, 1j])
def test_forged_literals(number):
    with pytest.raises(NotProved, match="a literal is not"):
        exact_float(number)
    assert exact_float(2**70) == 2.0**70


def test_forged_sizes():
    require_size((2**12, 2**13))
    for shape in ((2**12, 2**13, 2), (2**25 + 1,), (10**6, 10**6)):
        with pytest.raises(NotProved, match="an array of"):
            require_size(shape)


HUGE = {
    "cumsum": ([1 << 20], "cumsum.default", {"dim": 0}),
    "cat": ([1 << 22], "cat.default", {"tensors": [{"node": 2}] * 16}),
    "conv_transpose1d": ([1, 1, 2], "conv_transpose1d.default", {"weight": {"node": 2}, "stride": [1 << 32]}),
    "adaptive_avg_pool1d": ([1, 1, 4], "adaptive_avg_pool1d.default", {"output_size": [1 << 31]}),
    "upsample_nearest1d": ([1, 1, 4], "upsample_nearest1d.vec", {"output_size": [1 << 32]}),
    "upsample_linear1d": ([1, 1, 4], "upsample_linear1d.vec", {"output_size": [1 << 32], "align_corners": True}),
    "tensor_split": ([4], "tensor_split.sections", {"sections": 1 << 30}),
    "col2im": ([1, 1 << 13, 1 << 13], "col2im.default", {"output_size": [1, 1 << 13], "kernel_size": [1, 1 << 13],
                                                        "padding": [0, (1 << 13) - 1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_one_operator_allocates_nothing_that_is_too_large(name):
    """Of a few numbers in a certificate of a few hundred bytes."""
    shape, op, args = HUGE[name]
    main = {"self": {"node": 2}, "input": {"node": 2}}
    own = {"cat": {}, "conv_transpose1d": {"input": main["input"]}}.get(name, {"self": main["self"]})
    own = {"input": main["input"]} if name.startswith("upsample") else own
    facts = {"name": "w", "leaf": 0, "trainable": False, "pure": True, "range": None}
    nodes = [
        {"op": "parameter", "args": facts, "out": [["float64", [1]]], "module": ""},
        {"op": "input", "args": {}, "out": [["float64", [1, 1]]], "module": ""},
        {"op": "aten.expand.default", "args": {"self": {"node": 0}, "size": shape}, "out": [["float64", shape]],
         "module": ""},
        {"op": f"aten.{op}", "args": {**own, **args}, "out": [["float64", [1]]], "module": ""},
    ]  # fmt: skip
    graph = parse(encode({"nodes": nodes, "outputs": [3]}))
    tracemalloc.start()
    try:
        with pytest.raises(NotProved, match=r"an array of .* entries"):
            compiled(graph, unpacked(graph, np.ones(1)), np.zeros((1, 1)))
        assert tracemalloc.get_traced_memory()[1] < 2.0**30
    finally:
        tracemalloc.stop()


def test_forged_tokens():
    table = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 1))
    tokens = torch.tensor([[0, 1], [2, 3], [4, 0]])
    certificate, document, inputs = (
        proof(lambda x, *W: table.double()(x), x=tokens) if False else _tokens(table, tokens)
    )
    assert verify(certificate, inputs).verdict is Verdict.HOLDS
    for value in (5.0, -1.0, 0.5, 2.0**60):
        x = inputs["x"].copy()
        x[0, 0] = value
        refused(certificate, document, {**inputs, "x": x})


@pytest.mark.parametrize("value", [-1.0, -5.0, 5.0])
def test_forged_tokens_outside_of_the_table(value):
    """Torch has no row for them; NumPy would count negative ones from the end."""
    table = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 1)).double()
    network = EnclosedNetwork.of(table, torch.tensor([[0, 1], [2, 3], [4, 0]]))
    x = network.x.copy()
    x[0, 0] = value
    with pytest.raises(NotProved, match="outside of its axis"):
        compiled(network.traced.graph, unpacked(network.traced.graph, network.parameters[0]), x)


def _tokens(model, tokens):
    network = EnclosedNetwork.of(model.double().eval(), tokens)
    y = np.arange(1.0, 1.0 + len(tokens))
    proved = prove_alignment(network, y, 1, seconds=100.0, condition=lambda: 1.0)
    document = json.loads(proved.certificate.data["graph"].tobytes().decode("ascii"))
    return proved.certificate, document, {"parameters": network.parameters, "x": network.x, "y": y}


def test_a_linear_network_is_not_proved_by_its_sizes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 50, bias=False), nn.Linear(50, 50, bias=False), nn.Linear(50, 1, bias=False))
    result = av.check_alignment(model, torch.randn(20, 2), torch.randn(20), loss="squared")
    assert result.verdict is not Verdict.HOLDS


@pytest.mark.parametrize("method", ["balls", "norms"])
def test_a_graph_without_an_input(dense, method):
    certificate, document, inputs = dense
    forged = copy.deepcopy(document)
    forged["nodes"] = [entry for entry in forged["nodes"] if entry["op"] == "parameter"][:1]
    forged["outputs"] = [0]
    constants = {"shift": 1.0, "kappa": [0.0, 1.0]} if method == "norms" else dict(certificate.constants)
    sealed = seal(certificate.claim, method, inputs, {"graph": encode(forged)}, constants)
    assert verify(sealed, inputs).verdict is Verdict.FAILS
