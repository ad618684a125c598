"""From the graph of a network to a program of primitive steps, for given parameters and a batch of inputs.

The conventions are those of the documentation: literals are the doubles of Python, casts between floating-point dtypes
are the identity, softplus is ln(1 + e^(beta x)) / beta, dropout in eval mode is the identity. Integers and booleans are
computed exactly, and never of rounded numbers. An operator that is not known, or known with other arguments, is
refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require
from alignver.kernel.network.graph import FLOATS, Graph, Node, Ref
from alignver.kernel.network.movement import MOVES, moved
from alignver.kernel.network.operators import words
from alignver.kernel.network.tape import Program, Tape, exact_float, joint_owner, require_size, shared_with

_MOST_INTEGER = 2**53
_INTEGERS_OF = {"bool": (0, 1), "uint8": (0, 2**8 - 1), "int32": (-(2**31), 2**31 - 1)}
_CONVENTIONS = words("""
    dtype keepdim padding_idx scale_grad_by_freq sparse momentum half_to_float path copy implicit
    sparse_grad cudnn_enable
""")
"""Arguments that no rule has to read: dtypes and shapes, which are compared, derivatives of torch, conventions."""
_MASKED = -1.7976931348623157e308
"""Stands for minus infinity in the stored values of a constant with such entries."""


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """Integers or booleans that are known, and the sample of each entry (None: shared)."""

    value: Any
    owner: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Real:
    """A step of the tape; entries in ``masked`` are minus infinity."""

    step: int
    masked: Any = None


Value = Any  # Exact, Real, list of them, or a number, string, tuple of Python
Parameters = Mapping[int, Any]
"""The values of the leaves, float64 or exact integers, by the index of their node."""


class _Arguments(dict[str, Value]):
    """Arguments that know which of them were read."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        super().__init__(values)
        self.unread = set(values) - _CONVENTIONS

    def __getitem__(self, name: str) -> Value:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Value = None) -> Value:
        """Return an argument, or a default."""
        self.unread.discard(name)
        return super().get(name, default)


class Compiler:
    """Turns the nodes of a graph into steps, one after the other; ``values`` has what each node gives."""

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        self.graph, self.parameters, self.tape = graph, parameters, Tape()
        self.values: list[Value] = []
        self.node: Node = graph.nodes[0]
        self.samples = 0

    def compiled(self, x: Any) -> Program:
        """Return the program for a batch of inputs."""
        values = self.values
        for index, node in enumerate(self.graph.nodes):
            self.node = node
            if node.op == "input":
                result = self._input(x)
            elif node.op in ("parameter", "constant"):
                result = self._leaf(index)
            elif node.op == "getitem":
                several, place = values[node.args["self"].node], node.args["index"]
                require(isinstance(several, list) and 0 <= place < len(several), "a result that has no rule")
                result = several[place]
            else:
                args = _Arguments({key: _filled(part, values) for key, part in node.args.items()})
                result = self._applied(node, args)
                require(not args.unread, f"{node.op} has no rule with {', '.join(sorted(args.unread))}")
            self._require_shapes(node, result)
            values.append(result)
        require(len(self.graph.outputs) == 1, "the network has several outputs")
        output = values[self.graph.outputs[0]]
        require(isinstance(output, Real) and output.masked is None, "the output is not an array of real numbers")
        return self.tape.program(output.step, self.samples)

    def _require_shapes(self, node: Node, result: Value) -> None:
        results = result if isinstance(result, list) else [result]
        for part, (dtype, shape) in zip(results, node.out, strict=False):
            mine = self.tape.shape(part.step) if isinstance(part, Real) else np.shape(part.value)
            floating = isinstance(part, Real)
            require(mine == shape and floating == (dtype in FLOATS), f"{node.op} gives the wrong shape or dtype")
            if isinstance(part, Exact) and dtype in _INTEGERS_OF and part.value.size:
                low, high = _INTEGERS_OF[dtype]
                inside = low <= int(part.value.min()) and int(part.value.max()) <= high
                require(inside, f"{node.op} gives integers outside of {dtype}")

    def _input(self, x: Any) -> Value:
        dtype, shape = self.node.out[0]
        require(np.shape(x) == shape and self.samples == 0, "the inputs do not have the shape of those of the graph")
        self.samples = shape[0]
        owner = np.repeat(np.arange(shape[0], dtype=np.int32), math.prod(shape[1:]))
        if dtype in FLOATS:
            return Real(self.tape.append("input", (), shape, owner, value=np.asarray(x, dtype=np.float64)))
        limits = _INTEGERS_OF.get(dtype, (-_MOST_INTEGER, _MOST_INTEGER))
        whole = bool((x == np.rint(x)).all()) and bool(((limits[0] <= x) & (x <= limits[1])).all())
        require(whole, f"the inputs have numbers that are not of {dtype}")
        self.tape.decided = True
        return Exact(x.astype(bool if dtype == "bool" else np.int64), owner)

    def _leaf(self, index: int) -> Value:
        node, value = self.node, self.parameters[index]
        if node.out[0][0] not in FLOATS:
            return Exact(value)
        masked = None
        if node.op == "constant" and node.args["masked"]:
            masked = value == _MASKED
            value = np.where(masked, 0.0, value)
        trainable = node.op == "parameter" and node.args["trainable"]
        if trainable:
            alone = [other.args["leaf"] for other in self.graph.nodes if other.op == "parameter"]
            whole = node.args["pure"] and alone.count(node.args["leaf"]) == 1
            require(whole, f"{node.args['name']!r} shares memory with another tensor")
        return Real(self.tape.leaf(value, index if trainable else -1, trainable), masked)

    def _applied(self, node: Node, args: _Arguments) -> Value:
        base = node.base
        require(base != "" and not node.op.endswith(".out"), f"{node.op} has no rule")
        known = all(dtype in FLOATS or dtype in ("bool", "int64", "int32", "uint8") for dtype, _ in node.out)
        require(known, f"{node.op} has results of dtype {node.out[0][0]}")
        try:
            if base in MOVES:
                return self._moved(base, args)
            exact = all(not isinstance(part, Real) for value in args.values() for part in _parts(value))
            if exact and base not in _GATHERS and (node.out[0][0] not in FLOATS or base in _CREATED):
                result = self._integers(base, args)
                return Real(self.real(result)) if node.out[0][0] in FLOATS else result
            if base in _COMPARISONS:
                return self._compared(base, args)
            rule = _RULES.get(base)
            require(rule is not None, f"{node.op} has no rule")
            assert rule is not None
            return rule(self, args)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
            place = f" of {node.module!r}" if node.module else ""
            raise NotProved(f"{base}{place} has arguments of an unknown form ({type(error).__name__})") from error

    # -- values -------------------------------------------------------------------------------------------------------

    def real(self, value: Value, *, masked: bool = False) -> int:
        """Return the step of a value: exact numbers become leaves."""
        if isinstance(value, Real):
            require(masked or value.masked is None, f"{self.node.base} of minus infinity")
            return value.step
        if isinstance(value, Exact):
            step = self.tape.leaf(np.asarray(value.value, dtype=np.float64))
            if value.owner is None:
                return step
            return self.tape.move((step,), self.tape.indices(step), value.owner)
        return self.tape.leaf(np.array(exact_float(value)))

    def _moved(self, base: str, args: _Arguments) -> Value:
        source = args["self"]
        if base == "expand_as":
            args = _Arguments({"self": source, "other": self.shape(args["other"])})
        for name, value in args.items():
            require(name in ("self", "other") or not isinstance(value, Real | Exact), f"{base} by a tensor")
        fill = args.get("value") if base in ("constant_pad_nd", "pad") else 0.0
        shape = self.shape(source)
        require_size(self.node.out[0][1])
        indices = np.arange(math.prod(shape)).reshape(shape)
        result = moved(base, indices, args)
        if isinstance(result, list):
            return [self.gathered(source, part) for part in result]
        require_size(result.shape)
        return self.gathered(source, result, 0.0 if fill is None else fill)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of a value; that of a number is empty."""
        if isinstance(value, int | float):
            return ()
        return self.tape.shape(value.step) if isinstance(value, Real) else tuple(np.shape(value.value))

    def gathered(self, source: Value, index: Any, fill: float = 0.0) -> Value:
        """Return entries of a value by flat indices, ``fill`` for -1."""
        flat = index.reshape(-1)
        if isinstance(source, Exact):
            require(fill == int(fill), "a fraction among integers")
            value = np.append(source.value.reshape(-1), np.asarray(fill, dtype=source.value.dtype))[flat]
            owner = source.owner
            if owner is not None:
                owner = shared_with(np.append(owner, np.int32(-1))[flat], index.shape)
            return Exact(value.reshape(index.shape), owner)
        masked = None
        if source.masked is not None:
            masked = np.append(source.masked.reshape(-1), False)[flat].reshape(index.shape)
        if fill == 0.0 or not (flat < 0).any():
            return Real(self.tape.move((source.step,), index), masked)
        if fill == -math.inf:
            masked = (index < 0) if masked is None else masked | (index < 0)
            return Real(self.tape.move((source.step,), index), masked)
        constant = self.tape.leaf(np.array([fill]))
        size = self.tape.steps[source.step].size
        return Real(self.tape.move((source.step, constant), np.where(index < 0, size, index)), masked)

    def _integers(self, base: str, args: _Arguments) -> Value:
        """Return the exact value of an operation on integers and booleans."""
        function = _INTEGERS.get(base)
        require(function is not None, f"{self.node.op} of integers has no rule")
        assert function is not None
        shape = self.node.out[0][1]
        require_size(shape)
        operands = [part for value in args.values() for part in _parts(value) if isinstance(part, Exact)]
        owner = None
        if any(part.owner is not None for part in operands):
            require(base in _ENTRYWISE or base in _ALONG, f"{self.node.op} of integers of several samples has no rule")
            owners = [p.owner if p.owner is None else p.owner.reshape(p.value.shape) for p in operands]
            owner = joint_owner(owners, shape) if base in _ENTRYWISE else _owner_along(operands[0], args, shape)
        plain = _Arguments({key: value.value if isinstance(value, Exact) else value for key, value in args.items()})
        result = np.asarray(function(plain))
        args.unread &= plain.unread
        if base in _GROWING:  # integers of 64 bits wrap around, which floats reveal
            parts = plain.items()
            wide = {key: np.asarray(part, np.float64) if isinstance(part, np.ndarray) else part for key, part in parts}
            require(bool(np.all(np.abs(function(_Arguments(wide))) < 2.0**54)), f"{base} gives integers beyond 2^53")
        if result.dtype.kind == "f":
            whole = bool((result == np.rint(result)).all())
            require(whole and bool((np.abs(result) <= _MOST_INTEGER).all()), f"{base} does not give exact integers")
        dtype = self.node.out[0][0]
        cast = result.astype(bool if dtype == "bool" and base in ("to", "_to_copy") else np.int64)
        cast = cast.astype(bool) if dtype == "bool" else cast
        require(dtype == "bool" or bool((np.abs(cast) <= _MOST_INTEGER).all()), f"{base} gives integers beyond 2^53")
        return Exact(cast, owner)

    def _compared(self, base: str, args: _Arguments) -> Value:
        """Compare numbers that are exact: those of inputs and constants, and integers computed of them."""
        steps = self.tape.together(*(self.real(args[name]) for name in ("self", "other")))
        a, b = (self.tape.exact(step) for step in steps)
        require(a is not None and b is not None, f"{self.node.op} of numbers that are not exact")
        return Exact(_ENTRYWISE[base]({"self": a, "other": b}), self.tape.owner(steps[0]))


def _owner_along(part: Exact, args: Mapping[str, Any], shape: Sequence[int]) -> Any:
    """Return the sample of each entry of an operation along axes, whose lines have to belong to one sample each."""
    grid, axes = part.owner.reshape(part.value.shape), _axes(args)
    first = grid.min(axis=axes, keepdims=True)
    require(bool((grid == first).all()), "an operation joins two samples")
    whole = np.broadcast_to(first, grid.shape) if tuple(shape) == grid.shape else first
    return np.ascontiguousarray(whole).reshape(-1)


def _axes(args: Mapping[str, Any]) -> Any:
    """Return the axes of a reduction as NumPy has them: all of them for None and for an empty list."""
    dim = args.get("dim")
    return dim if isinstance(dim, int) else tuple(dim) if dim else None


def _filled(value: Any, values: Sequence[Value]) -> Value:
    if isinstance(value, Ref):
        return values[value.node]
    return [_filled(item, values) for item in value] if isinstance(value, tuple) else value


def _parts(value: Value) -> list[Value]:
    return value if isinstance(value, list) else [value]


def _arange(args: Mapping[str, Any]) -> Any:
    start, end, step = args.get("start", 0), args["end"], args.get("step", 1)
    require_size((int((end - start) / step),))
    return np.arange(start, end, step)


def _by(function: Callable[[Any, Any], Any], args: Mapping[str, Any]) -> Any:
    require(bool(np.all(np.asarray(args["other"]) != 0)), "a division by 0")
    return function(args["self"], args["other"])


def _reduced(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda args: function(args["self"], axis=_axes(args), keepdims=args.get("keepdim", False))


def _full(args: Mapping[str, Any], value: Any) -> Any:
    require_size(args["size"])
    return np.full(args["size"], value)


_ENTRYWISE: dict[str, Callable[[Any], Any]] = {
    "eq": lambda a: a["self"] == a["other"],
    "ne": lambda a: a["self"] != a["other"],
    "lt": lambda a: a["self"] < a["other"],
    "le": lambda a: a["self"] <= a["other"],
    "gt": lambda a: a["self"] > a["other"],
    "ge": lambda a: a["self"] >= a["other"],
    "logical_and": lambda a: np.logical_and(a["self"], a["other"]),
    "logical_or": lambda a: np.logical_or(a["self"], a["other"]),
    "logical_xor": lambda a: np.logical_xor(a["self"], a["other"]),
    "logical_not": lambda a: np.logical_not(a["self"]),
    "add": lambda a: a["self"] + a.get("alpha", 1) * a["other"],
    "sub": lambda a: a["self"] - a.get("alpha", 1) * a["other"],
    "rsub": lambda a: a["other"] - a.get("alpha", 1) * a["self"],
    "mul": lambda a: np.multiply(a["self"], a["other"]),
    "to": lambda a: a["self"],
    "_to_copy": lambda a: a["self"],
    "where": lambda a: np.where(a["condition"], a["self"], a["other"]),
    "masked_fill": lambda a: np.where(a["mask"], a["value"], a["self"]),
    "neg": lambda a: -a["self"],
    "bitwise_and": lambda a: np.bitwise_and(a["self"], a["other"]),
    "bitwise_or": lambda a: np.bitwise_or(a["self"], a["other"]),
    "bitwise_xor": lambda a: np.bitwise_xor(a["self"], a["other"]),
    "bitwise_not": lambda a: np.invert(a["self"]),
    "abs": lambda a: np.abs(a["self"]),
    "clamp": lambda a: np.clip(a["self"], a.get("min", -_MOST_INTEGER), a.get("max", _MOST_INTEGER)),
    "clamp_min": lambda a: np.maximum(a["self"], a["min"]),
    "clamp_max": lambda a: np.minimum(a["self"], a["max"]),
    "remainder": lambda a: _by(np.remainder, a),
    "floor_divide": lambda a: _by(np.floor_divide, a),
    "minimum": lambda a: np.minimum(a["self"], a["other"]),
    "maximum": lambda a: np.maximum(a["self"], a["other"]),
}
_ALONG: dict[str, Callable[[Any], Any]] = {
    "cumsum": lambda a: np.cumsum(a["self"], a["dim"]),
    "sum": _reduced(np.sum),
    "any": _reduced(np.any),
    "all": _reduced(np.all),
    "amax": _reduced(np.max),
    "amin": _reduced(np.min),
    "argmax": _reduced(np.argmax),
    "argmin": _reduced(np.argmin),
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_GROWING = ("add", "sub", "rsub", "mul", "sum", "cumsum")
_CREATING: dict[str, Callable[[Any], Any]] = {
    "arange": _arange,
    "zeros": lambda a: _full(a, 0),
    "ones": lambda a: _full(a, 1),
    "full": lambda a: _full(a, a["fill_value"]),
    "scalar_tensor": lambda a: np.array(a["s"]),
}
_INTEGERS = _ENTRYWISE | _ALONG | _CREATING
_CREATED = ("arange", "zeros", "ones")
_GATHERS = ("index", "_unsafe_index", "index_select", "gather", "take_along_dim")  # by a rule, whatever is gathered
Rule = Callable[[Compiler, dict[str, Value]], Value]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators."""

    def registered(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return registered
