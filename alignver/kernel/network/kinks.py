r"""A refutation of Assumption 6: a line in theta along which the one-sided derivatives of an output differ.

At :math:`\theta_0` every named leaf has one number in all of its entries; along the line, t is added to one leaf. A
node is constant near t = 0, or rises (it is differentiable at t = 0, with a derivative above 0 in every entry), or is
bent (in every entry its right derivative exceeds its left one). Sums, products with positive numbers and increasing
functions keep this; a ReLU whose argument is 0 at :math:`\theta_0` bends what rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignver.kernel.network.analytic import BATCH_NORMS, NORMS, THRESHOLD, Value, walk
from alignver.kernel.network.graph import Graph, Node, Ref
from alignver.kernel.network.operators import COPIES, PRODUCTS, words
from alignver.kernel.network.ranges import MONOTONE, Range

_CONSTANT, _RISING, _BENT = 0, 1, 2
_PRODUCTS = words("mul mm bmm matmul linear addmm convolution conv1d conv2d conv3d")
_KEEP = COPIES | words("""
    mean sum dropout avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
""")
_MAX_POOLS = words("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices")
_LOWER_BOUNDS = {"clamp": "min", "clamp_min": "min", "hardtanh": "min_val"}


class _NoRule(Exception):
    """Nothing is known of the derivatives of a node."""


def bent_output(graph: Graph, theta: Mapping[int, float], moved: int) -> int | None:
    """Return an output that is not differentiable along the line, whatever the input; None if this is not proved.

    Parameters
    ----------
    graph : Graph
        Defined for every theta.
    theta : mapping of int to float
        Of each leaf the number in all of its entries; other leaves have any value.
    moved : int
        The leaf that moves.

    Examples
    --------
    >>> out = (("float32", (2,)),)
    >>> facts = {"name": "b", "leaf": 0, "trainable": True, "pure": True, "range": None}
    >>> b = Node("parameter", facts, out, "")
    >>> bent_output(Graph((b, Node("aten.relu.default", {"self": Ref(0)}, out, "")), (1,)), {0: 0.0}, 0)
    1
    >>> bent_output(Graph((b, Node("aten.relu.default", {"self": Ref(0)}, out, "")), (1,)), {0: 1.0}, 0)
    """
    values = walk(graph, at=theta)[0]
    states: list[int] = []
    try:
        for node in graph.nodes:
            leaf = node.args.get("leaf")
            moves = any(states[k] for k in node.refs())
            states.append(_RISING if leaf == moved else _state(node, states, values, graph) if moves else _CONSTANT)
    except _NoRule:
        return None
    return next((k for k in graph.outputs if states[k] == _BENT and 0 not in graph.nodes[k].out[0][1]), None)


def _state(node: Node, states: Sequence[int], values: Sequence[Value], graph: Graph) -> int:
    base, args = node.base, node.args

    def of(name: str) -> int:
        return max((states[k] for k in node.refs(name)), default=_CONSTANT)

    def range_of(name: str) -> Range | None:
        item = args.get(name)
        value = values[item.node] if isinstance(item, Ref) else None
        return value.range if value is not None and not value.masked else None

    def constant(*moving: str) -> None:
        """Require that no other argument moves."""
        if any(states[k] for name in args if name not in moving for k in node.refs(name)):
            raise _NoRule

    if any(0 in shape for k in node.refs() for _, shape in graph.nodes[k].out):
        raise _NoRule
    if base in ("add", *_PRODUCTS) and any(args.get(name, 1) != 1 for name in ("alpha", "beta")):
        raise _NoRule
    if base == "add":
        return max(of("self"), of("other"))
    if base in _PRODUCTS:
        factors, added = PRODUCTS[base]
        constant(*factors, added)
        return max(_product([(of(name), range_of(name)) for name in factors], _meets_input(node, graph)), of(added))
    if base in NORMS or base in BATCH_NORMS:
        constant("input", "bias")
        scale = range_of("weight")
        zero = scale is not None and scale.is_zero
        positive = args.get("weight") is None or (scale is not None and scale.positive)
        if of("input") and not zero and (base in NORMS or not positive):
            raise _NoRule
        return max(_CONSTANT if zero else of("input"), of("bias"))
    constant(node.main)
    state, x = of(node.main), range_of(node.main)
    if node.op == "getitem":
        source = graph.nodes[args["self"].node].base
        if source in COPIES or (args["index"] == 0 and source in _MAX_POOLS | NORMS | BATCH_NORMS):
            return state
    if base in _KEEP and (args.get("divisor_override") or 1) > 0 and node.is_float:
        return state
    if x is None:
        raise _NoRule
    whole = all(step == 1 for step in args.get("dilation", ()))
    if base in _MAX_POOLS and x.low == x.high and state == _BENT and whole:
        return state
    if (base in MONOTONE and base not in ("relu", "sqrt", "softplus")) or (base == "sqrt" and x.positive):
        return state
    if base == "softplus" and args.get("beta", 1) > 0 and args.get("threshold", 20) >= THRESHOLD:
        return state
    return _at_kink(node, state, x)


def _at_kink(node: Node, state: int, x: Range) -> int:
    base, args = node.base, node.args
    slope = args.get("negative_slope", 0.01) if base == "leaky_relu" else 0.0
    if base in ("relu", "leaky_relu") and 0.0 <= slope < 1.0:
        if x.positive or (x.negative and slope > 0.0):
            return state
        if x.negative:
            return _CONSTANT
    elif base in _LOWER_BOUNDS:
        most = args.get("max_val", args.get("max"))
        above = most is None or (isinstance(most, int | float) and most > 0.0)
        if isinstance(args.get(_LOWER_BOUNDS[base]), Ref) or args.get(_LOWER_BOUNDS[base]) != 0.0 or not above:
            raise _NoRule
    elif base not in ("abs", "relu6"):
        raise _NoRule
    if not x.is_zero:
        raise _NoRule
    return _BENT


def _product(factors: Sequence[tuple[int, Range | None]], whole: bool) -> int:
    """Return the state of a product: a constant zero makes it constant, positive constants keep it."""
    if any(state == _CONSTANT and x is not None and x.is_zero for state, x in factors):
        return _CONSTANT
    moving = [state for state, _ in factors if state]
    others = [x for state, x in factors if not state]
    if not moving:
        return _CONSTANT
    if len(moving) > 1 or not whole or not all(x is not None and x.positive for x in others):
        raise _NoRule
    return moving[0]


def _meets_input(node: Node, graph: Graph) -> bool:
    """Whether every window of a convolution contains an entry of the input, and not zeros of the padding only."""
    if "conv" not in node.base:
        return True
    (weight,) = node.refs("weight")
    padding, dilation = node.args.get("padding", ()), node.args.get("dilation", ())
    if isinstance(padding, str) or node.args.get("transposed") or any(step != 1 for step in dilation):
        return False
    sizes = graph.nodes[weight].out[0][1][2:]
    return all(pad < size for pad, size in zip(padding or (0,), sizes if len(padding) != 1 else (min(sizes),)))
