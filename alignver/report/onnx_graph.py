"""The graph of a certificate as an ONNX model in float64, for tools that read networks.

Literals are double constants, not attributes of operators, which ONNX stores in single precision: a slope of 0.01 or an
eps of a norm would be another number. Casts between floating-point dtypes are the identity, as in the graph.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignver.errors import InvalidInput, MissingDependency
from alignver.kernel.network.compiler import Parameters
from alignver.kernel.network.graph import FLOATS, Graph, Node, Ref
from alignver.kernel.network.operators import words

_OPSET, _IR = 18, 10  # axes of means are inputs since opset 18, nodes have metadata since IR 10
_NAMED = {
    "neg": "Neg", "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "exp": "Exp", "log": "Log", "sqrt": "Sqrt",
    "abs": "Abs", "sin": "Sin", "cos": "Cos", "tan": "Tan", "erf": "Erf", "sinh": "Sinh", "cosh": "Cosh",
    "atan": "Atan", "asinh": "Asinh", "reciprocal": "Reciprocal",
}  # fmt: skip
_SAME = words("clone alias contiguous detach lift_fresh_copy lift_fresh _to_copy to dropout")
_RESHAPED = words("view _unsafe_view reshape flatten unflatten unsqueeze squeeze ravel")
_CONVENTIONS = words(
    "dtype memory_format layout device pin_memory non_blocking copy implicit momentum cudnn_enable keepdim"
)
"""Arguments that do not change a value, or are in the shape of the result."""


def value_name(node: int) -> str:
    """Return the name of a node's result.

    Examples
    --------
    >>> value_name(5)
    'n5'
    """
    return f"n{node}"


def onnx_model(graph: Graph, parameters: Parameters | None = None, *, metadata: dict[str, str] | None = None) -> Any:
    """Return the graph as an ONNX model.

    Parameters
    ----------
    graph : Graph
    parameters : mapping of int to array, optional
        The values of the leaves, by :func:`~alignver.kernel.network.program.unpacked`. Without them the leaves are
        inputs of the model.
    metadata : dict of str to str, optional
        Of the model. Each node has the metadata ``alignver.node``, ``alignver.op`` and ``alignver.module``.

    Returns
    -------
    onnx.ModelProto
        The result of node k is called ``nk``.

    Raises
    ------
    InvalidInput
        If the graph has an operator or an argument that is not known here.
    MissingDependency
        Without onnx.
    """
    require_onnx()
    return _Builder(graph, parameters).model(metadata or {})


def require_onnx() -> None:
    """Raise :class:`~alignver.errors.MissingDependency` without onnx."""
    if importlib.util.find_spec("onnx") is None:
        raise MissingDependency("onnx", "an export to ONNX", "onnx")


class _Arguments(dict[str, Any]):
    """The arguments of a node, which remembers those that were not read."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.args)
        self.unread = {name for name, value in node.args.items() if value is not None} - _CONVENTIONS

    def __getitem__(self, name: str) -> Any:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.unread.discard(name)
        return super().get(name, default)


class _Builder:
    def __init__(self, graph: Graph, parameters: Parameters | None) -> None:
        import onnx

        self.onnx, self.graph, self.parameters = onnx, graph, parameters
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.node, self.index, self.names = graph.nodes[0], 0, itertools.count()

    def model(self, metadata: dict[str, str]) -> Any:
        helper = self.onnx.helper
        for index, node in enumerate(self.graph.nodes):
            self.index, self.node = index, node
            if node.op in ("input", "parameter", "constant"):
                self._leaf()
                continue
            first = len(self.nodes)
            self._applied()
            self._annotate(self.nodes[first:])
        outputs = [self._typed(k) for k in dict.fromkeys(self.graph.outputs)]
        whole = helper.make_graph(self.nodes, "alignver", self.inputs, outputs, self.initializers)
        model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        helper.set_model_props(model, metadata)
        self.onnx.checker.check_model(model)
        return model

    def _annotate(self, nodes: Sequence[Any]) -> None:
        facts = {"node": str(self.index), "op": self.node.op, "module": self.node.module}
        for node in nodes:
            for key, value in facts.items():
                node.metadata_props.add(key=f"alignver.{key}", value=value)

    def _typed(self, k: int) -> Any:
        dtype, shape = self.graph.nodes[k].out[0]
        kinds = {"int64": self.onnx.TensorProto.INT64, "bool": self.onnx.TensorProto.BOOL}
        kind = self.onnx.TensorProto.DOUBLE if dtype in FLOATS else kinds.get(dtype)
        if kind is None:
            raise self._refused(f"a tensor of {dtype}")
        return self.onnx.helper.make_tensor_value_info(value_name(k), kind, shape)

    def _leaf(self) -> None:
        info = self._typed(self.index)
        if self.node.op == "input" or self.parameters is None:
            info.doc_string = str(self.node.args.get("name", ""))
            self.inputs.append(info)
            return
        value = np.array(self.parameters[self.index])
        if self.node.op == "constant" and self.node.args["masked"]:
            value = np.where(value == np.finfo(np.float64).min, -np.inf, value)
        tensor = self.onnx.numpy_helper.from_array(value, value_name(self.index))
        tensor.doc_string = str(self.node.args["name"])
        self.initializers.append(tensor)

    def _refused(self, what: str) -> InvalidInput:
        place = f" in {self.node.module!r}" if self.node.module else ""
        return InvalidInput(
            "certificate", f"a graph with {what}{place}", "operators with a rule for ONNX", "unsupported-model"
        )

    # What rules are made of.

    def of(self, value: Any) -> str:
        """Return the name of an argument: a node, or a number."""
        if isinstance(value, Ref):
            return value_name(value.node)
        if not isinstance(value, int | float):
            raise self._refused(f"{self.node.op} of {type(value).__name__}")
        return self.constant(np.float64(value))

    def constant(self, value: Any) -> str:
        """Return the name of a new constant: floats are double, integers int64."""
        name = f"c{next(self.names)}"
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def emit(self, op: str, *inputs: str, last: bool = False, **attributes: Any) -> str:
        """Append a node and return the name of its result; the last one of a rule has that of the graph's node."""
        name = value_name(self.index) if last else f"t{next(self.names)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [name], **attributes))
        return name

    def scaled(self, name: str, factor: float) -> str:
        return name if factor == 1 else self.emit("Mul", name, self.of(factor))

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.graph.nodes[value.node].out[0][1] if isinstance(value, Ref) else ()

    def _applied(self) -> None:
        args, base = _Arguments(self.node), self.node.base
        if self.node.op == "getitem":
            if args["index"] != 0:
                raise self._refused("an operator of several results, of which not the first is used")
            self.emit("Identity", self.of(args["self"]), last=True)
        elif base in _SAME:
            if base == "dropout" and args.get("train") and args.get("p") != 0:
                raise self._refused("dropout that draws random numbers")
            self.emit("Identity", self.of(args[self.node.main]), last=True)
            args.unread.clear()
        elif base in _RESHAPED:
            self.emit("Reshape", self.of(args["self"]), self.integers(*self.node.out[0][1]), last=True)
            args.unread.clear()
        elif base in _NAMED:
            self.emit(_NAMED[base], self.of(args["self"]), last=True)
        elif base in _RULES:
            try:
                _RULES[base](self, args)
            except (LookupError, TypeError, ValueError) as error:
                if isinstance(error, InvalidInput):
                    raise
                raise self._refused(f"{self.node.op} with arguments of an unknown form") from error
        else:
            raise self._refused(self.node.op)
        if args.unread:
            raise self._refused(f"{self.node.op} with {', '.join(sorted(args.unread))}")


Rule = Callable[[_Builder, _Arguments], Any]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def registered(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return registered


@_rule("add", "sub", "rsub")
def _add(b: _Builder, args: _Arguments) -> None:
    first, second = args["self"], args["other"]
    if b.node.base == "rsub":
        first, second = second, first
    scaled = b.scaled(b.of(second), args.get("alpha", 1))
    b.emit("Add" if b.node.base == "add" else "Sub", b.of(first), scaled, last=True)


@_rule("mul", "div")
def _mul(b: _Builder, args: _Arguments) -> None:
    b.emit("Mul" if b.node.base == "mul" else "Div", b.of(args["self"]), b.of(args["other"]), last=True)


@_rule("square", "pow")
def _pow(b: _Builder, args: _Arguments) -> None:
    b.emit("Pow", b.of(args["self"]), b.of(args["exponent"] if b.node.base == "pow" else 2.0), last=True)


@_rule("mm", "bmm", "matmul")
def _matmul(b: _Builder, args: _Arguments) -> None:
    b.emit("MatMul", b.of(args["self"]), b.of(args["other" if b.node.base == "matmul" else "mat2"]), last=True)


@_rule("einsum")
def _einsum(b: _Builder, args: _Arguments) -> None:
    b.emit("Einsum", *(b.of(part) for part in args["tensors"]), equation=args["equation"], last=True)


@_rule("linear")
def _linear(b: _Builder, args: _Arguments) -> None:
    weight, bias = b.emit("Transpose", b.of(args["weight"]), perm=[1, 0]), args.get("bias")
    product = b.emit("MatMul", b.of(args["input"]), weight, last=bias is None)
    if bias is not None:
        b.emit("Add", product, b.of(bias), last=True)


@_rule("addmm")
def _addmm(b: _Builder, args: _Arguments) -> None:
    product = b.emit("MatMul", b.of(args["mat1"]), b.of(args["mat2"]))
    b.emit("Add", b.scaled(product, args.get("alpha", 1)), b.scaled(b.of(args["self"]), args.get("beta", 1)), last=True)


@_rule("leaky_relu")
def _leaky_relu(b: _Builder, args: _Arguments) -> None:
    x = b.of(args["self"])
    below = b.emit("Mul", b.emit("Relu", b.emit("Neg", x)), b.of(args.get("negative_slope", 0.01)))
    b.emit("Sub", b.emit("Relu", x), below, last=True)


@_rule("softplus")
def _softplus(b: _Builder, args: _Arguments) -> None:
    """Of real arithmetic, whatever the threshold from 20 on."""
    beta = args.get("beta", 1)
    if args.get("threshold", 20) < 20:
        raise b._refused("softplus with a threshold below 20")
    scaled = b.emit("Softplus", b.emit("Mul", b.of(args["self"]), b.of(beta)))
    b.emit("Div", scaled, b.of(beta), last=True)


@_rule("silu")
def _silu(b: _Builder, args: _Arguments) -> None:
    x = b.of(args["self"])
    b.emit("Mul", x, b.emit("Sigmoid", x), last=True)


@_rule("gelu")
def _gelu(b: _Builder, args: _Arguments) -> None:
    """Its roots are irrational: their constants are rounded to double."""
    x, form = b.of(args["self"]), args.get("approximate", "none")
    if form == "none":
        inner = b.emit("Erf", b.emit("Div", x, b.of(math.sqrt(2.0))))
    elif form == "tanh":
        cubic = b.emit("Mul", b.emit("Mul", x, b.emit("Mul", x, x)), b.of(0.044715))
        inner = b.emit("Tanh", b.emit("Mul", b.emit("Add", x, cubic), b.of(math.sqrt(2.0 / math.pi))))
    else:
        raise b._refused("gelu of an unknown form")
    b.emit("Mul", b.emit("Mul", x, b.of(0.5)), b.emit("Add", inner, b.of(1.0)), last=True)


@_rule("clamp", "hardtanh")
def _clamp(b: _Builder, args: _Arguments) -> None:
    names = ("min", "max") if b.node.base == "clamp" else ("min_val", "max_val")
    low, high = (
        args.get(name, None if b.node.base == "clamp" else end) for name, end in zip(names, (-1.0, 1.0), strict=True)
    )
    b.emit("Clip", b.of(args["self"]), *("" if end is None else b.of(end) for end in (low, high)), last=True)


@_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(b: _Builder, args: _Arguments) -> None:
    args.get("half_to_float")
    b.emit("LogSoftmax" if "log" in b.node.base else "Softmax", b.of(args["self"]), axis=args["dim"], last=True)


@_rule("permute", "t", "transpose")
def _transpose(b: _Builder, args: _Arguments) -> None:
    axes = list(range(len(b.shape(args["self"]))))
    if b.node.base == "permute":
        axes = [axis % len(axes) for axis in args["dims"]]
    elif b.node.base == "t":
        axes.reverse()
    else:
        i, j = args["dim0"], args["dim1"]
        axes[i], axes[j] = axes[j], axes[i]
    b.emit("Transpose", b.of(args["self"]), perm=axes, last=True)


@_rule("expand")
def _expand(b: _Builder, args: _Arguments) -> None:
    args["size"]
    b.emit("Expand", b.of(args["self"]), b.integers(*b.node.out[0][1]), last=True)


@_rule("sum", "mean")
def _sum(b: _Builder, args: _Arguments) -> None:
    dim, source = args.get("dim"), args["self"]
    axes = range(len(b.shape(source))) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    op = "ReduceSum" if b.node.base == "sum" else "ReduceMean"
    b.emit(op, b.of(source), b.integers(*axes), keepdims=int(bool(b.node.args.get("keepdim"))), last=True)


@_rule("cat")
def _cat(b: _Builder, args: _Arguments) -> None:
    b.emit("Concat", *(b.of(part) for part in args["tensors"]), axis=args.get("dim", 0), last=True)


@_rule("select")
def _select(b: _Builder, args: _Arguments) -> None:
    b.emit("Gather", b.of(args["self"]), b.constant(np.int64(args["index"])), axis=args["dim"], last=True)


@_rule("slice")
def _slice(b: _Builder, args: _Arguments) -> None:
    dim, end = args.get("dim", 0), args.get("end")
    stop = b.shape(args["self"])[dim] if end is None else end
    places = (args.get("start") or 0, stop, dim, args.get("step", 1))
    start, stop_, axis, step = (b.integers(place) for place in places)
    b.emit("Slice", b.of(args["self"]), start, stop_, axis, step, last=True)


@_rule("embedding")
def _embedding(b: _Builder, args: _Arguments) -> None:
    for name in ("padding_idx", "scale_grad_by_freq", "sparse"):
        args.get(name)
    b.emit("Gather", b.of(args["weight"]), b.of(args["indices"]), axis=0, last=True)


@_rule("conv1d", "conv2d", "conv3d")
def _conv(b: _Builder, args: _Arguments) -> None:
    axes = len(b.shape(args["weight"])) - 2
    stride, padding, dilation = (_each(args.get(name, default), axes) for name, default in
                                 (("stride", 1), ("padding", 0), ("dilation", 1)))  # fmt: skip
    inputs = [b.of(args[name]) for name in ("input", "weight")] + (
        [] if args.get("bias") is None else [b.of(args["bias"])]
    )
    b.emit(
        "Conv", *inputs, strides=stride, pads=padding * 2, dilations=dilation, group=args.get("groups", 1), last=True
    )


@_rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d")
def _pool(b: _Builder, args: _Arguments) -> None:
    axes = len(b.shape(args["self"])) - 2
    kernel = _each(args["kernel_size"], axes)
    stride, padding = _each(args.get("stride") or kernel, axes), _each(args.get("padding", 0), axes)
    if args.get("ceil_mode") or args.get("divisor_override") is not None:
        raise b._refused(f"{b.node.op} with a ceil_mode or a divisor")
    more: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
    if "max" in b.node.base:
        more["dilations"] = _each(args.get("dilation", 1), axes)
    else:
        more["count_include_pad"] = int(args.get("count_include_pad", True))
    b.emit("MaxPool" if "max" in b.node.base else "AveragePool", b.of(args["self"]), last=True, **more)


@_rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(b: _Builder, args: _Arguments) -> None:
    args["output_size"]
    inner, outer = b.shape(args["self"])[2:], b.node.out[0][1][2:]
    if any(size % parts for size, parts in zip(inner, outer, strict=True)):
        raise b._refused("windows of different sizes")
    kernel = [size // parts for size, parts in zip(inner, outer, strict=True)]
    b.emit("AveragePool", b.of(args["self"]), kernel_shape=kernel, strides=kernel, last=True)


@_rule("batch_norm")
def _batch_norm(b: _Builder, args: _Arguments) -> None:
    if args.get("training"):
        raise b._refused("statistics of the batch")
    rank = len(b.node.out[0][1])
    column = b.integers(-1, *(1 for _ in range(rank - 2)))

    def channel(name: str) -> str:
        return b.emit("Reshape", b.of(args[name]), column)

    spread = b.emit("Sqrt", b.emit("Add", channel("running_var"), b.of(args["eps"])))
    x = b.emit("Div", b.emit("Sub", b.of(args["input"]), channel("running_mean")), spread)
    _affine(b, x, *(None if args.get(name) is None else channel(name) for name in ("weight", "bias")))


@_rule("layer_norm")
def _layer_norm(b: _Builder, args: _Arguments) -> None:
    x, axes = b.of(args["input"]), b.integers(*range(-len(args["normalized_shape"]), 0))
    offset = b.emit("Sub", x, b.emit("ReduceMean", x, axes, keepdims=1))
    variance = b.emit("ReduceMean", b.emit("Mul", offset, offset), axes, keepdims=1)
    normal = b.emit("Div", offset, b.emit("Sqrt", b.emit("Add", variance, b.of(args["eps"]))))
    _affine(b, normal, *(None if args.get(name) is None else b.of(args[name]) for name in ("weight", "bias")))


def _affine(b: _Builder, x: str, weight: str | None, bias: str | None) -> None:
    scaled = x if weight is None else b.emit("Mul", x, weight)
    shifted = scaled if bias is None else b.emit("Add", scaled, bias)
    b.emit("Identity", shifted, last=True)


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    if len(values) not in (1, axes) or not all(type(size) is int and math.isfinite(size) for size in values):
        raise ValueError("sizes of an unknown form")
    return values * axes if len(values) == 1 else values
