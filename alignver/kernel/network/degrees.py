r"""Assumption 1 from the degrees of a graph's nodes in the parameters S.

A leaf of S has degree 1; every other leaf and every number has degree 0; a zero has any degree. By induction over the
graph a node of degree 0 does not depend on S, and a node of degree p is a homogeneous polynomial of degree p in S, with
coefficients that depend on the rest. Outputs of degree 1 are thus linear in S, and
:math:`f = \sum_{k \in S} \theta_k\, \partial f / \partial \theta_k` wherever f is defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignver.kernel.failure import require
from alignver.kernel.network.graph import FLOATS, Graph, Node, Ref
from alignver.kernel.network.operators import BAGS, EMPTY, JOINS, LINEAR, PRODUCTS, RANDOM, ZEROS

ZERO = -1
"""The degree of what is zero for every theta: it counts as any degree."""

UNKNOWN = -2
"""No degree: a sum of different degrees, a function that is not linear, or memory without a value."""

_NORMS = {"layer_norm": "input", "native_layer_norm": "input", "group_norm": "input", "native_group_norm": "input",
          "rms_norm": "input", "instance_norm": "input"}  # fmt: skip
_BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


def subset(graph: Graph, names: Sequence[str]) -> set[int]:
    """Return the leaves of S; each must consist of trainable parameters entirely, and be named entirely.

    Raises
    ------
    NotProved
        For a name that is not a parameter of the graph, a frozen parameter, or memory that is shared with a constant.
    """
    leaves = graph.leaves()
    S: set[int] = set()
    for name in names:
        require(name in leaves, f"no parameter {name!r} in the graph")
        S.add(leaves[name])
    for node in graph.nodes:
        if node.op == "parameter" and node.args["leaf"] in S:
            name = node.args["name"]
            require(node.args["trainable"] is True, f"{name!r} is frozen, or not a parameter")
            require(node.args["pure"] is True, f"{name!r} shares memory with something that is not a parameter")
            require(name in names, f"{name!r} shares memory with a member of S, and is not in S")
    return S


def degrees(graph: Graph, S: set[int]) -> list[tuple[int, ...]]:
    """Return the degree in S of each result of each node.

    Examples
    --------
    >>> from alignver.kernel.network.graph import Graph, Node, Ref
    >>> out = (("float32", (2,)),)
    >>> facts = {"name": "w", "leaf": 0, "trainable": True, "pure": True, "range": None}
    >>> w = Node("parameter", facts, out, "")
    >>> graph = Graph((w, Node("aten.tanh.default", {"self": Ref(0)}, out, "")), (1,))
    >>> degrees(graph, {0}), degrees(graph, set())
    ([(1,), (-2,)], [(0,), (0,)])
    """
    known: list[tuple[int, ...]] = []
    moving = graph.moving()
    for node in graph.nodes:
        if node.op == "parameter":
            known.append((_leaf(node, node.args["leaf"] in S, node.args["leaf"] in moving),))
            continue
        result = _degree(node, known)
        result = result if len(result) == len(node.out) else result * len(node.out)
        # Integers and booleans do not depend on S, or have no degree.
        checked = zip(result, node.out)
        known.append(tuple(p if dtype in FLOATS or p in (0, ZERO) else UNKNOWN for p, (dtype, _) in checked))
    return known


def is_random(node: Node) -> bool:
    """Whether a node may draw random numbers, or is an operator that is not torch's own."""
    if node.op in ("parameter", "constant", "input", "getitem"):
        return False
    base = node.base
    if not base or base.endswith("_"):
        return True
    if base == "scaled_dot_product_attention" or base.startswith("_scaled_dot_product"):
        return node.args.get("dropout_p") != 0.0
    if base in ("gru", "lstm", "rnn_tanh", "rnn_relu"):
        return bool(node.args.get("train")) and node.args.get("dropout") != 0.0
    drawn = any(word in base for word in RANDOM) and "lgamma" not in base and "digamma" not in base
    return drawn and not _is_inert(node)


def _is_inert(node: Node) -> bool:
    return node.base.endswith("dropout") and (node.args.get("train") is False or node.args.get("p") == 0.0)


def selects(node: Node) -> bool:
    """Whether an operator with several uses by name is the plain one of the lists."""
    base, reduce = node.base, node.args.get("reduce")
    if base == "scatter_reduce":
        return reduce in ("sum", "mean")
    if base == "scatter":
        return reduce is None
    return True


def _leaf(node: Node, in_subset: bool, moves: bool) -> int:
    """Return the degree of a parameter or constant; one that is zero for every theta has any."""
    zero = not moves and tuple(node.args["range"] or ()) == (0.0, 0.0) and not node.args.get("masked")
    return 1 if in_subset else ZERO if zero else 0


def _degree(node: Node, known: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the degree of each result of a node, or one for all."""
    args, base = node.args, node.base

    def of(name: str) -> int:
        """Return the degree of an argument; a list has that of all its members together."""
        return _joined([_of(item, known) for item in _members(args.get(name))])

    def rest(*used: str) -> bool:
        """Whether all other arguments have degree 0."""
        free = (known[k] for name in args if name not in used for k in node.refs(name))
        return all(p in (0, ZERO) for result in free for p in result)

    if node.op in ("input", "constant"):
        return (0 if node.op == "input" else _leaf(node, False, False),)
    if node.op == "getitem":
        source, position = args["self"], args["index"]
        require(isinstance(source, Ref) and type(position) is int, "getitem without a node or a position")
        return (known[source.node][position],)
    if is_random(node) or base in EMPTY:
        return (UNKNOWN,)
    if base in ZEROS:
        return (ZERO,)
    if base in LINEAR or _is_inert(node):
        main = node.main
        return (of(main) if main and rest(main) else 0 if rest() else UNKNOWN,)
    if base in JOINS and selects(node):
        used = tuple(name for name in JOINS[base] if name in args)
        ignored = ("self",) if base in ("copy", "fill") else ()
        return (_joined([of(name) for name in used]) if rest(*used, *ignored) else UNKNOWN,)
    if base in PRODUCTS:
        factors, added = PRODUCTS[base]
        items = [_of(item, known) for name in factors for item in _members(args.get(name))]
        product = _product(items)
        product = product if args.get(added) is None else _joined([product, of(added)])
        return (product if rest(*factors, added) else UNKNOWN,)
    if base in ("div", "divide", "true_divide") and args.get("rounding_mode") is None:
        return (of("self") if rest("self") else UNKNOWN,)
    if base in BAGS and args.get("mode") in (0, 1):
        return (of("weight") if rest("weight") else UNKNOWN, *[0] * (len(node.out) - 1))
    if base == "addcdiv":
        return (_joined([of("self"), of("tensor1")]) if rest("self", "tensor1") else UNKNOWN,)
    if base == "pad" and args.get("mode") in ("reflect", "replicate", "circular"):
        return (of("self"),)
    if base == "pad" and args.get("mode") == "constant":
        return (_joined([of("self"), _of(args.get("value") or 0.0, known)]),)
    if base == "square" or (base == "pow" and _is_whole(args.get("exponent"))):
        p = of("self")
        return (p if p in (UNKNOWN, ZERO) else int(args.get("exponent", 2)) * p,)
    if base in _NORMS:
        return _affine(0 if rest("weight", "bias") else UNKNOWN, of, args, len(node.out))
    if base in _BATCH_NORMS and not args.get("training"):
        centred = _joined([of("input"), of("running_mean")])
        fixed = rest("input", "running_mean", "weight", "bias")
        return _affine(centred if fixed else UNKNOWN, of, args, len(node.out))
    if base == "scaled_dot_product_attention":
        return (of("value") if rest("value") else UNKNOWN,)
    return (0 if rest() else UNKNOWN,)


def _affine(p: int, of: Any, args: Any, results: int) -> tuple[int, ...]:
    """Return the degrees of a norm: the scaled and shifted values, then statistics."""
    scaled = p if args.get("weight") is None else _product([p, of("weight")])
    shifted = scaled if args.get("bias") is None else _joined([scaled, of("bias")])
    return (shifted, *[0 if p in (0, ZERO) else UNKNOWN] * (results - 1))


def _members(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _of(value: Any, known: list[tuple[int, ...]]) -> int:
    """Return the degree of an argument that is a node or a number."""
    if isinstance(value, Ref):
        return _joined(list(known[value.node]))
    if isinstance(value, bool | int | float):
        return ZERO if value == 0 else 0
    return 0 if value is None else UNKNOWN


def _joined(terms: Sequence[int]) -> int:
    kinds = set(terms) - {ZERO}
    if UNKNOWN in kinds or len(kinds) > 1:
        return UNKNOWN
    return kinds.pop() if kinds else ZERO


def _product(factors: Sequence[int]) -> int:
    if UNKNOWN in factors:
        return UNKNOWN
    return ZERO if ZERO in factors else sum(factors)


def _is_whole(exponent: Any) -> bool:
    return isinstance(exponent, int | float) and float(exponent).is_integer() and 1 <= exponent <= 2**20
