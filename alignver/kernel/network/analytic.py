r"""Assumption 6 from a graph: every operation on what depends on theta is real analytic, for every theta.

Compositions of analytic functions are analytic where each is applied inside its domain. The domains are checked by
ranges that hold for all theta (:mod:`alignver.kernel.network.ranges`): a divisor without 0, the argument of a logarithm
above 0. Functions stand for what they approximate: softplus for :math:`\ln(1 + e^{\beta x}) / \beta`, a cast between
floating-point dtypes for the identity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignver.kernel.failure import require
from alignver.kernel.network import ranges
from alignver.kernel.network.degrees import is_random, selects
from alignver.kernel.network.graph import FLOATS, Graph, Node, Ref
from alignver.kernel.network.operators import BAGS, COPIES, EMPTY, JOINS, LINEAR, PRODUCTS, ZEROS, words
from alignver.kernel.network.ranges import (
    MONOTONE,
    WHOLE,
    Range,
    add,
    hull,
    monotone,
    multiply,
    number,
    quotient,
    scaled,
)

ENTIRE = words(
    """exp exp2 expm1 sin cos sinh cosh tanh atan arctan asinh arcsinh sigmoid mish log_sigmoid log_sigmoid_forward
    softmax _softmax log_softmax _log_softmax logsumexp logaddexp logaddexp2 gelu silu erf erfc sinc special_erfcx
    special_ndtr special_expit square cumprod prod lerp addcmul glu linalg_matrix_exp matrix_exp
    linalg_det det logcumsumexp gru lstm rnn_tanh linalg_cross"""
)
"""Analytic on the whole line in every argument (floating-point ones), given that the node is deterministic."""

_POSITIVE = frozenset(("log", "log2", "log10", "sqrt", "rsqrt", "lgamma", "digamma"))
_INSIDE = frozenset(("atanh", "arctanh", "asin", "arcsin", "acos", "arccos"))
_OF_SOME = frozenset(("mean", "logsumexp", "logcumsumexp", "softmax", "_softmax", "log_softmax", "_log_softmax"))
_VECTOR_NORMS = frozenset(("linalg_vector_norm", "norm", "frobenius_norm", "linalg_norm"))
_KINKS = frozenset(("relu", "abs", "clamp", "clamp_min"))
BATCH_NORMS = frozenset(("batch_norm", "_native_batch_norm_legit_no_training"))
NORMS = frozenset(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm"))
THRESHOLD = 20.0
"""Of torch's softplus: beyond it, its value is the argument; a lower one is another function."""

_DEFINED = words(
    """leaky_relu prelu elu selu celu hardtanh hardswish hardsigmoid hardshrink softshrink threshold relu6 maximum
    minimum max min amax amin max_pool2d_with_indices max_pool2d max_pool1d max_pool3d max_pool3d_with_indices
    adaptive_max_pool2d adaptive_max_pool1d adaptive_max_pool3d sign sgn floor ceil round trunc frac argmax argmin
    argsort sort topk median cummax cummin lt le gt ge eq ne logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_not bitwise_xor isnan isinf isfinite heaviside clamp_max softsign one_hot nonzero std aminmax
    searchsorted bucketize linalg_vector_norm norm frobenius_norm all any fmax fmin nan_to_num kthvalue mode"""
)
"""Defined on the whole line, though not analytic: for Assumption 1 this is enough."""


@dataclasses.dataclass(frozen=True)
class Barrier:
    """A node on a path from a parameter to the output that is not proved analytic.

    Attributes
    ----------
    node : int
        Its index.
    reason : str
        What is not proved about it.
    defined : bool
        Whether it is nevertheless defined for every theta.
    """

    node: int
    reason: str
    defined: bool


@dataclasses.dataclass(frozen=True)
class Value:
    """What holds of a node for every theta: whether it depends on theta, its range, and entries of minus infinity.

    ``masked`` is empty without such entries, "rows" if every row along the last axis has another entry, "all" if none
    has, and "any" otherwise.
    """

    depends: bool
    range: Range = WHOLE
    masked: str = ""


class _NotAnalytic(Exception):
    def __init__(self, reason: str, defined: bool = False) -> None:
        super().__init__(reason)
        self.defined = defined


def walk(graph: Graph, *, at: Mapping[int, float] | None = None) -> tuple[list[Value], list[Barrier]]:
    """Return what holds of every node, and the nodes that are not proved analytic in the trainable parameters.

    Parameters
    ----------
    graph : Graph
    at : mapping of int to float, optional
        Ranges at one theta, for every input: leaves with one number in all of their entries. The barriers are then not
        those for every theta.

    Examples
    --------
    >>> out = (("float32", (2,)),)
    >>> facts = {"name": "w", "leaf": 0, "trainable": True, "pure": True, "range": None}
    >>> w = Node("parameter", facts, out, "")
    >>> values, barriers = walk(Graph((w, Node("aten.exp.default", {"self": Ref(0)}, out, "")), (1,)))
    >>> values[1].range.positive, barriers
    (True, [])
    >>> walk(Graph((w, Node("aten.log.default", {"self": Ref(0)}, out, "act")), (1,)))[1][0].reason
    'its argument is not proved to be above 0'
    """
    values: list[Value] = []
    barriers: list[Barrier] = []
    moving = graph.moving()
    for index, node in enumerate(graph.nodes):
        if node.op in ("parameter", "constant", "input"):
            values.append(_leaf(node, moving, at or {}))
            continue
        depends = any(values[k].depends for k in node.refs())
        walker = _Walker(graph, node, values)
        if depends or is_random(node):
            try:
                walker.require_analytic()
            except _NotAnalytic as fault:
                barriers.append(Barrier(index, str(fault), fault.defined))
                if not fault.defined:
                    values.append(Value(True))
                    continue
        masked = walker.masked()
        values.append(Value(depends, WHOLE if masked else walker.range(), masked))
    for index in graph.outputs:
        if values[index].masked:
            barriers.append(Barrier(index, "it may be minus infinity", False))
    return values, barriers


def _leaf(node: Node, moving: set[int], at: Mapping[int, float]) -> Value:
    if node.op == "input":
        return Value(False)
    if node.op == "parameter" and node.args["leaf"] in moving:
        known = node.args["leaf"] in at and node.args["trainable"] is True and node.args["pure"] is True
        return Value(True, number(at[node.args["leaf"]]) if known else WHOLE)
    ends = node.args["range"]
    unknown = node.op == "parameter" and ends is None  # of a fixed one: its entries are not all finite
    masked = "any" if unknown else node.args.get("masked") or ""
    require(masked in ("", "rows", "all", "any"), "a constant with unknown facts")
    require(ends is None or (len(ends) == 2 and ends[0] <= ends[1]), "a constant with an invalid range")
    return Value(False, WHOLE if ends is None or masked else Range(float(ends[0]), float(ends[1])), masked)


class _Walker:
    """The rules for one node, given what holds of the earlier ones."""

    def __init__(self, graph: Graph, node: Node, values: Sequence[Value]) -> None:
        self.graph, self.node, self.values, self.base, self.args = graph, node, values, node.base, node.args

    def value(self, name: str) -> Value:
        """Return what holds of an argument; a list counts as all of its members."""
        items = [self._one(item) for item in _members(self.args.get(name))]
        masked = items[0].masked if len(items) == 1 else "any" if any(item.masked for item in items) else ""
        return Value(any(item.depends for item in items), hull(item.range for item in items), masked)

    def _one(self, item: Any) -> Value:
        if isinstance(item, Ref):
            return self.values[item.node]
        if isinstance(item, bool | int | float):
            state = "all" if item == -math.inf else "" if math.isfinite(item) else "any"
            return Value(False, number(float(item)), state)
        return Value(False)

    def of(self, name: str) -> Range:
        """Return the range of an argument."""
        return self.value(name).range

    # Whether the node is analytic in what depends on theta.

    def require_analytic(self) -> None:
        """Raise ``_NotAnalytic`` unless the node is analytic in its arguments, where theta enters."""
        node, base = self.node, self.base
        if is_random(node):
            named = base or node.op
            raise _NotAnalytic(f"{named} may draw random numbers or write to memory, or is not an operator of torch")
        if node.op == "getitem":
            return
        if not node.is_float and not self._float_first():
            raise _NotAnalytic("its result does not consist of real floating-point numbers", base in _DEFINED)
        if base in EMPTY or base in ZEROS or base in ("full_like", "new_full", "ones_like", "new_ones"):
            return
        if base in _OF_SOME:
            self._demand(self._not_empty(), "it has no entries")
        rule = self._rule()
        if rule is None:
            raise _NotAnalytic("it is not in the list of analytic operations", base in _DEFINED)
        rule()

    def _float_first(self) -> bool:
        """Whether only further results are not real numbers: statistics, masks that nothing uses."""
        return (self.base.endswith("dropout") or self.base in BAGS) and self.node.out[0][0].startswith(
            ("float", "bfloat")
        )

    def _rule(self) -> Callable[[], None] | None:
        """Return the function that checks the side condition of the operator; None for an operator without a rule."""
        base = self.base
        if base in ("softmax", "_softmax"):
            return self._softmax
        if base == "scaled_dot_product_attention":
            return self._attention
        everywhere = base in LINEAR or base in PRODUCTS or base in ENTIRE or base.endswith("dropout")
        everywhere = everywhere or (base in JOINS and selects(self.node)) or base == "pad"
        if everywhere:
            return self._anywhere
        named: dict[str, Callable[[], None]] = {
            **dict.fromkeys(("div", "divide", "true_divide"), self._quotient),
            "addcdiv": lambda: self._divisor("tensor2"),
            "reciprocal": lambda: self._divisor("self"),
            **dict.fromkeys(BAGS, lambda: self._demand(self.args.get("mode") in (0, 1), "it takes a maximum", True)),
            "prelu": lambda: self._demand(not self.value("self").depends, "it has a kink", True),
            "softplus": self._softplus,
            **dict.fromkeys(("var", "var_mean"), self._variance),
            "pow": self._power,
            "log1p": lambda: self._demand(self.of("self").above(-1.0), "its argument is not proved to be above -1"),
            **dict.fromkeys(_POSITIVE, self._positive),
            **dict.fromkeys(_INSIDE, self._inside),
            **dict.fromkeys(NORMS, self._norm),
            **dict.fromkeys(BATCH_NORMS, self._batch_norm),
            **dict.fromkeys(_VECTOR_NORMS, self._vector_norm),
            **dict.fromkeys(_KINKS, self._kink),
        }
        return named.get(base)

    def _demand(self, condition: bool, otherwise: str, defined: bool = False) -> None:
        if not condition:
            raise _NotAnalytic(otherwise, defined)

    def _anywhere(self) -> None:
        pass

    def _quotient(self) -> None:
        self._demand(self.args.get("rounding_mode") is None, "it rounds a quotient")
        self._divisor("other")

    def _divisor(self, name: str) -> None:
        divisor, item = self.value(name), self.args.get(name)
        known = not isinstance(item, Ref) or self.graph.nodes[item.node].op == "constant"
        checked = divisor.depends or (known and not divisor.masked)
        self._demand(not checked or divisor.range.nonzero, "its divisor is not proved to be nonzero")

    def _variance(self) -> None:
        sizes = [math.prod(shape) for k in self.node.refs() for _, shape in self.graph.nodes[k].out]
        correction = _number(self.args.get("correction"), 1.0)
        enough = sizes[0] > correction * max(math.prod(self.node.out[0][1]), 1)
        self._demand(enough, "it is a variance of too few values")

    def _softplus(self) -> None:
        beta, threshold = self.args.get("beta"), self.args.get("threshold")
        known = isinstance(beta, int | float) and beta != 0
        self._demand(
            known and _number(threshold, 0.0) >= THRESHOLD, f"it jumps, as its threshold is below {THRESHOLD:g}", True
        )

    def _power(self) -> None:
        base, exponent = self.args.get("self"), self.args.get("exponent")
        if isinstance(exponent, int | float) and float(exponent).is_integer():
            positive = exponent >= 0 or self.of("self").nonzero
            self._demand(positive, "its base is not proved to be nonzero")
            return
        whole = isinstance(base, int | float) and base > 0
        self._demand(whole or self.of("self").positive, "its base is not proved to be above 0")

    def _positive(self) -> None:
        defined = self.base == "sqrt" and self.of("self").low >= 0.0
        self._demand(self.of("self").positive, "its argument is not proved to be above 0", defined)

    def _inside(self) -> None:
        inside = self.of("self").above(-1.0) and self.of("self").below(1.0)
        self._demand(inside, "its argument is not proved to be between -1 and 1")

    def _norm(self) -> None:
        eps = self.args.get("eps", 0.0)
        self._demand(isinstance(eps, float) and eps > 0.0, "its eps is not above 0")
        self._demand(self.args.get("use_input_stats", True) is True, "it uses statistics that are not of the sample")

    def _batch_norm(self) -> None:
        self._demand(not self.args.get("training"), "it uses the statistics of the batch")
        shifted = add(self.of("running_var"), number(float(self.args.get("eps", 0.0))))
        given = bool(list(self.node.refs("running_var")))
        self._demand(given and shifted.positive, "running_var + eps is not proved to be above 0")

    def _vector_norm(self) -> None:
        p = self.args.get("ord", self.args.get("p", 2))
        finite = isinstance(p, int | float) and math.isfinite(p) and p != 0
        self._demand(self._of_entries(), "it is a norm of matrices", True)
        self._demand(finite and self.of(self.node.main).nonzero, "it is a norm of what may be zero", True)

    def _of_entries(self) -> bool:
        """Whether a norm is that of vectors: with an order, linalg_norm of a matrix is an operator norm."""
        dim, inner = self.args.get("dim"), next(self.node.refs("self"))
        axes = len(dim) if isinstance(dim, tuple) else len(self.graph.nodes[inner].out[0][1])
        return self.base != "linalg_norm" or "ord" not in self.args or axes == 1

    def _kink(self) -> None:
        inner = self.of("self")
        if self.base in ("abs", "relu"):
            smooth = inner.low >= 0.0 or inner.high <= 0.0
        else:
            least, most = self.args.get("min"), self.args.get("max")
            bounds = all(limit is None or isinstance(limit, int | float) for limit in (least, most))
            smooth = bounds and (least is None or inner.low >= least) and (most is None or inner.high <= most)
        self._demand(smooth, "it has a kink, and its argument is not proved to stay on one side", True)

    def _softmax(self) -> None:
        scores = self.value(self.node.main)
        last = self.args.get("dim") in (-1, len(self.node.out[0][1]) - 1)
        self._demand(not scores.masked or (scores.masked == "rows" and last), "a row may be fully masked")

    def _attention(self) -> None:
        for name in ("query", "key", "value"):
            self._demand(not self.value(name).masked, "an argument may be minus infinity")
        mask = self.args.get("attn_mask")
        if isinstance(mask, Ref):
            dtype = self.graph.nodes[mask.node].out[0][0]
            value = self.values[mask.node]
            if dtype == "bool":
                self._demand(self._some(mask, "true"), "a row may be fully masked")
            self._demand(value.masked in ("", "rows"), "a row may be fully masked")
        self._demand(self.args.get("dropout_p") == 0.0, "it draws random numbers")
        self._demand(not self.value("scale").masked, "its scale is not finite")

    def _some(self, ref: Any, kind: str) -> bool:
        """Whether every row along the last axis of a boolean constant has an entry that is true (or false)."""
        node = self.graph.nodes[ref.node] if isinstance(ref, Ref) else self.node
        return node.op == "constant" and kind in tuple(node.args["rows"] or ())

    # Entries of minus infinity.

    def masked(self) -> str:
        """Return whether the result may have entries of minus infinity: see :class:`Value`."""
        base, args = self.base, self.args
        if base in EMPTY:
            return "any"  # memory without a value
        unused = ("self",) if base in ("copy", "fill") else ()
        state = {name: self.value(name).masked for name in args if name not in unused}
        if not any(state.values()):
            return ""
        if base in ("softmax", "_softmax", "scaled_dot_product_attention"):
            try:
                (self._attention if base == "scaled_dot_product_attention" else self._softmax)()
            except _NotAnalytic:
                return "any"
            return ""
        first = state.get("self", "")
        if base in ("where", "masked_fill"):
            filled = state.get("other" if base == "where" else "value", "")
            kinds = ("true", "false") if base == "where" else ("false", "true")
            mask = args.get("condition" if base == "where" else "mask")
            for a, b, kind in ((first, filled, kinds[0]), (filled, first, kinds[1])):
                if not a and b == "all":
                    return "rows" if self._some(mask, kind) else "any"
            return "any"
        if base in _KEEP and first and self.node.is_float:
            inner = base == "unsqueeze" and args.get("dim") in (-1, len(self.node.out[0][1]) - 1)
            return "any" if inner and first == "rows" else first
        others = [kind for name, kind in state.items() if name != "self"]
        if base in ("add", "sub") and not (first and any(others)):
            positive = base == "add" and float(args.get("alpha", 1)) > 0.0
            return first if first else "".join(others) if positive else "any"
        factor = args.get("other")
        if base in ("mul", "div") and isinstance(factor, int | float) and 0 < factor < math.inf:
            return first
        return "all" if base in ("full", "fill", "scalar_tensor", "full_like", "new_full") else "any"

    # Ranges.

    def range(self) -> Range:
        """Return the range of the entries of the result; of norms, those of the first result."""
        base, args = self.base, self.args
        if self.node.op == "getitem":
            source = self.graph.nodes[args["self"].node]
            return self.of("self") if args["index"] == 0 or source.base in LINEAR else WHOLE
        if all(dtype == "bool" for dtype, _ in self.node.out):
            return Range(0.0, 1.0)
        if self.node.out[0][0] not in FLOATS:  # integers may be truncated, or wrap around
            return WHOLE
        if base in LINEAR or base.endswith("dropout"):
            return self._linear()
        if base in JOINS:
            return self._join()
        if base in PRODUCTS:
            return self._product()
        if base in ZEROS:
            return number(0.0)
        if base in ("ones", "ones_like", "new_ones"):
            return number(1.0)
        if base in NORMS or base in BATCH_NORMS:
            return self._normed()
        if base == "pad":
            fill = [number(float(args.get("value") or 0.0))] if args.get("mode") == "constant" else []
            return hull([self.of("self"), *fill])
        if base == "scaled_dot_product_attention":
            sure = args.get("attn_mask") is None and self._not_empty()  # a row without keys is 0
            return self.of("value") if sure else hull([self.of("value"), number(0.0)])
        if base in ("gru", "lstm", "rnn_tanh"):
            return number(0.0) if self.of("params").is_zero and self.of("hx").is_zero else WHOLE
        return self._function(self.of(self.node.main) if self.node.main else WHOLE)

    def _linear(self) -> Range:
        entries = self.of(self.node.main) if self.node.main else WHOLE
        if self.base in COPIES or self.base == "mean" or self.base.endswith("dropout"):
            return entries
        if self.base in ("neg", "negative"):
            return ranges.negated(entries)
        if self.base in ("tril", "triu", "diag_embed", "im2col"):
            return hull([entries, number(0.0)])
        if self.base == "sum" and entries.positive and self._not_empty():
            return Range(0.0, math.inf, True)
        divisor = self.args.get("divisor_override")
        if "bicubic" in self.base or not (divisor is None or divisor > 0):  # coefficients of both signs
            return entries if entries.is_zero else WHOLE
        return _terms(entries)

    def _not_empty(self) -> bool:
        return all(0 not in shape for k in self.node.refs() for _, shape in self.graph.nodes[k].out)

    def _join(self) -> Range:
        base, alpha = self.base, self.args.get("alpha", 1)
        if base in ("add", "sub", "subtract", "rsub"):
            a, b = self.of("self"), self.of("other")
            if base == "rsub":
                a, b = b, a
            return add(a, scaled(b, float(alpha if base == "add" else -alpha)))
        parts = [self.of(name) for name in JOINS[base] if name in self.args]
        added = base in ("scatter_add", "scatter_reduce", "index_add") or bool(self.args.get("accumulate"))
        if added or (base == "lerp" and not 0.0 <= _number(self.args.get("weight"), -1.0) <= 1.0):
            return number(0.0) if all(item.is_zero for item in parts) else WHOLE
        return hull(parts)

    def _product(self) -> Range:
        factors, added = PRODUCTS[self.base]
        items = [item for name in factors for item in _members(self.args.get(name))]
        parts = [self._one(item).range for item in items]
        if len(items) == 2 and items[0] == items[1] and isinstance(items[0], Ref) and self.base in ("mul", "multiply"):
            return _square(parts[0])
        product = parts[0] if parts else WHOLE
        for item in parts[1:]:
            product = multiply(product, item)
        if self.base not in ("mul", "multiply", "outer", "ger", "kron", "addcmul", "addr"):
            product = _terms(product)
        product = scaled(product, _number(self.args.get("value", self.args.get("alpha")), 1.0))
        if self.args.get(added) is None:
            return product
        return add(product, scaled(self.of(added), _number(self.args.get("beta"), 1.0)))

    def _normed(self) -> Range:
        inner = self.of("input")
        if self.base in BATCH_NORMS:
            spread = monotone("sqrt", add(self.of("running_var"), number(_number(self.args.get("eps"), 0.0))))
            inner = quotient(add(inner, ranges.negated(self.of("running_mean"))), spread)
        else:
            equal = inner.is_zero if self.base == "rms_norm" else inner.low == inner.high
            equal = equal and self.args.get("use_input_stats", True) is True
            inner = number(0.0) if equal else WHOLE
        if self.args.get("training"):
            inner = WHOLE
        weighted = inner if self.args.get("weight") is None else multiply(inner, self.of("weight"))
        return weighted if self.args.get("bias") is None else add(weighted, self.of("bias"))

    def _function(self, x: Range) -> Range:
        """Return the range of a function of one argument (or of a quotient or power)."""
        base, args = self.base, self.args
        if base in ("div", "divide", "true_divide") and args.get("rounding_mode") is None:
            return quotient(self.of("self"), self.of("other"))
        if base == "softplus":
            beta = _number(args.get("beta"), 0.0)
            usual = beta > 0.0 and _number(args.get("threshold"), 0.0) >= THRESHOLD
            return quotient(monotone(base, scaled(x, beta)), number(beta)) if usual else WHOLE
        if base in MONOTONE:
            return monotone(base, x)
        if base == "square" or base == "pow":
            return self._powered(x)
        if base == "reciprocal":
            return quotient(number(1.0), x)
        if base == "rsqrt":
            return quotient(number(1.0), monotone("sqrt", x))
        if base in ("softmax", "_softmax"):
            return self._shares(x)
        if base in ("log_softmax", "_log_softmax"):
            return Range(-math.inf, 0.0)
        if base in ("var", "std") or base in _VECTOR_NORMS:
            zero = x.is_zero or (base in ("var", "std") and x.low == x.high)
            above = base in _VECTOR_NORMS and x.nonzero and self._of_entries() and self._not_empty()
            return number(0.0) if zero else Range(0.0, math.inf, above)
        if base == "abs":
            return Range(0.0, math.inf, True) if x.nonzero else number(0.0) if x.is_zero else Range(0.0, math.inf)
        if base in ("clamp", "clamp_min"):
            least = args.get("min")
            if not isinstance(least, int | float) or not math.isfinite(least) or args.get("max") is not None:
                return WHOLE
            return Range(max(x.low, least), max(x.high, least))
        if base in ("gelu", "silu", "mish", "sin", "leaky_relu", "elu", "selu", "hardswish") and x.is_zero:
            return x
        if base in ("sin", "cos"):
            return number(1.0) if base == "cos" and x.is_zero else Range(-1.0, 1.0)
        return Range(1.0, math.inf) if base == "cosh" else WHOLE

    def _powered(self, x: Range) -> Range:
        exponent = self.args.get("exponent", 2)
        if not isinstance(exponent, int | float) or not isinstance(self.args.get("self"), Ref):
            base = self.args.get("self")
            return Range(0.0, math.inf, True) if isinstance(base, int | float) and base > 0 else WHOLE
        if exponent == 0:
            return number(1.0)
        if exponent == 2:
            return _square(x)
        if x.is_zero and exponent > 0:
            return x
        even = float(exponent).is_integer() and int(exponent) % 2 == 0
        return Range(0.0, math.inf, x.nonzero) if even or x.positive else WHOLE

    def _shares(self, x: Range) -> Range:
        shape, dim = self.node.out[0][1], self.args.get("dim")
        length = shape[dim] if type(dim) is int and -len(shape) <= dim < len(shape) else 1
        if self.value(self.node.main).masked or type(dim) is not int:
            return Range(0.0, 1.0)
        return quotient(number(1.0), number(float(length))) if x.low == x.high else Range(0.0, 1.0, True, length >= 2)


_KEEP = frozenset(("unsqueeze", "expand", "clone", "contiguous", "detach", "alias", "_to_copy", "to", "expand_as"))
"""Copies that keep rows along the last axis whole, unless they add a last axis."""


def _terms(entry: Range) -> Range:
    """Return a range of sums of any number of such entries, also of none."""
    if entry.is_zero:
        return entry
    return Range(0.0, math.inf) if entry.low >= 0.0 else Range(-math.inf, 0.0) if entry.high <= 0.0 else WHOLE


def _square(x: Range) -> Range:
    if x.is_zero:
        return x
    squared = multiply(x, x)
    return Range(max(squared.low, 0.0), squared.high, squared.low_open) if x.nonzero else Range(0.0, squared.high)


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _members(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)
