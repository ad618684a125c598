"""The graph of a network as a certificate holds it: operators of torch by name, with arguments, shapes and dtypes.

A graph is one JSON document, ``{"nodes": [...], "outputs": [...]}``. A node has ``op``, ``args`` by the names of the
operator's schema, ``out`` (dtype and shape of each result) and ``module``. A value among the arguments is ``{"node":
k}``, k smaller than the index of its user; dtypes are ``{"dtype": name}``; numbers that are not finite are ``{"float":
name}``. Leaves are the operators ``parameter``, ``constant`` and ``input``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require
from alignver.kernel.network.operators import JOINS, PRODUCTS

MOST_BYTES = 1 << 26
"""Largest document that is read."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
LEAVES = ("parameter", "constant", "input")
_BITS = ("aten.view.dtype", "aten.view_copy.dtype")
_DEEPEST = 6  # nesting of lists in arguments


@dataclasses.dataclass(frozen=True)
class Ref:
    """A reference to a result of an earlier node."""

    node: int


@dataclasses.dataclass(frozen=True)
class Node:
    """A leaf or an application of an operator.

    Attributes
    ----------
    op : str
        A leaf, ``getitem``, or an operator of torch such as ``"aten.add.Tensor"``.
    args : mapping
        Arguments by name; of a leaf its facts.
    out : tuple of (str, tuple of int)
        Dtype and shape of each result.
    module : str
        Path of the module that computes it.
    """

    op: str
    args: Mapping[str, Any]
    out: tuple[tuple[str, tuple[int, ...]], ...]
    module: str

    @property
    def base(self) -> str:
        """The operator without namespace and overload, ``add``; empty for another namespace, or bits read anew."""
        parts = self.op.split(".")
        known = parts[0] == "aten" and len(parts) == 3 and self.op not in _BITS
        known = known and not (parts[2] == "out" or parts[2].endswith("_out"))
        return parts[1] if known else ""

    @property
    def main(self) -> str:
        """The argument that a function of one tensor is applied to, whatever the order of the arguments; or empty."""
        return next((name for name in ("self", "input", "weight") if list(self.refs(name))), "")

    def refs(self, *names: str) -> Iterator[int]:
        """Yield the nodes that the named arguments refer to, of all arguments without names."""
        for name, value in self.args.items():
            if not names or name in names:
                yield from _refs(value)

    @property
    def is_float(self) -> bool:
        """Whether all results are real floating-point tensors."""
        return all(dtype in FLOATS for dtype, _ in self.out)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in the order of evaluation, and the indices of those that are outputs."""

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]

    def leaves(self) -> dict[str, int]:
        """Return the leaf of each parameter by name: tensors that share memory have one leaf."""
        return {node.args["name"]: node.args["leaf"] for node in self.nodes if node.op == "parameter"}

    def moving(self) -> set[int]:
        """Return the leaves that are a trainable parameter, or share memory with one."""
        return {node.args["leaf"] for node in self.nodes if node.op == "parameter" and node.args["trainable"]}


def _refs(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, tuple):
        for item in value:
            yield from _refs(item)


def encode(document: Any) -> Any:
    """Return the bytes of a document as an array: the only serialization of it."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8)


def parse(data: Any) -> Graph:
    """Read the graph of a certificate without trust in its content.

    Raises
    ------
    NotProved
        If it is too large, is not of the form above, or a node refers to itself or a later one.

    Examples
    --------
    >>> leaf = {"op": "input", "args": {}, "out": [["float32", [2, 3]]], "module": ""}
    >>> parse(encode({"nodes": [leaf], "outputs": [0]})).nodes[0].op
    'input'
    """
    array = np.asarray(data)
    require(array.dtype == np.uint8 and array.ndim == 1, "the graph is not an array of bytes")
    require(array.size <= MOST_BYTES, f"the graph has {array.size} bytes, more than {MOST_BYTES}")
    try:
        document = json.loads(array.tobytes().decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise NotProved(f"the graph is not JSON ({type(error).__name__})") from None
    require(
        isinstance(document, dict) and set(document) == {"nodes", "outputs"}, "the graph has unknown or missing fields"
    )
    require(bool(np.array_equal(encode(document), array)), "the graph is not serialized as it should be")
    nodes = tuple(_node(entry, index) for index, entry in enumerate(document["nodes"]))
    names = [node.args["name"] for node in nodes if node.op == "parameter"]
    require(len(set(names)) == len(names), "two leaves have one name")
    outputs = tuple(document["outputs"])
    sound = len(outputs) > 0 and all(type(k) is int and 0 <= k < len(nodes) for k in outputs)
    require(sound, "the outputs are not nodes of the graph")
    return Graph(nodes, outputs)


def _node(entry: Any, index: int) -> Node:
    whole = isinstance(entry, dict) and set(entry) == {"op", "args", "out", "module"}
    require(whole and isinstance(entry["args"], dict), f"node {index} has an unknown form")
    words = (entry["op"], entry["module"], *entry["args"])
    require(all(isinstance(word, str) for word in words), f"node {index} has names that are not strings")
    args = {name: _decoded(value, index, 0) for name, value in entry["args"].items()}
    out = tuple((dtype, tuple(shape)) for dtype, shape in entry["out"])
    sizes = [size for _, shape in out for size in shape]
    sound = all(isinstance(dtype, str) for dtype, _ in out) and all(type(size) is int and size >= 0 for size in sizes)
    require(sound, f"node {index} has an invalid dtype or shape")
    require(len(out) >= 1, f"node {index} has no result")
    node = Node(entry["op"], args, out, entry["module"])
    given = {name for name, value in args.items() if value is not None and value != ()}
    lacking = set(JOINS.get(node.base, PRODUCTS.get(node.base, ((), ""))[0])) - given
    whole = not lacking or (node.base == "scatter" and lacking in ({"src"}, {"value"}))
    require(whole, f"node {index} lacks {', '.join(sorted(lacking))}")
    require(node.op in LEAVES or args.get("dtype") in (None, out[0][0]), f"node {index} has an unknown dtype")
    if node.op in LEAVES:
        facts = {"parameter": {"name", "leaf", "trainable", "pure", "range"}, "input": set[str]()}
        facts["constant"] = {"name", "range", "masked", "rows"}
        require(set(args) == facts[node.op] and not list(node.refs()), f"leaf {index} has unknown or missing facts")
        kinds = {"name": str, "leaf": int, "trainable": bool, "pure": bool}
        sound = all(type(args[name]) is kind for name, kind in kinds.items() if name in args)
        require(sound, f"leaf {index} has facts of the wrong type")
        ends = args.get("range") or ()
        require(all(math.isfinite(end) for end in ends), f"leaf {index} has a range that is not finite")
    return node


def _decoded(value: Any, index: int, depth: int) -> Any:
    require(depth <= _DEEPEST, f"node {index} has arguments nested too deeply")
    if isinstance(value, list):
        return tuple(_decoded(item, index, depth + 1) for item in value)
    if isinstance(value, dict):
        require(len(value) == 1, f"node {index} has an argument of an unknown form")
        (kind, content), *_ = value.items()
        if kind == "node":
            require(type(content) is int and 0 <= content < index, f"node {index} refers to a later one")
            return Ref(content)
        if kind == "float":
            return float(content)
        require(kind == "dtype" and isinstance(content, str), f"node {index} has an argument of an unknown form")
        return content
    require(value is None or isinstance(value, bool | int | float | str), f"node {index} has an unknown argument")
    return value
