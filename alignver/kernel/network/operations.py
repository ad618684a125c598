"""The rules of functions of entries, selections, matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Exact, Real, Value, rule
from alignver.kernel.network.graph import FLOATS
from alignver.kernel.network.movement import moved, padded, triple, windows
from alignver.kernel.network.tape import exact_float, joint_owner, require_size

Args = dict[str, Any]


# -- sums, products, powers -------------------------------------------------------------------------------------------


@rule("add", "sub", "subtract", "rsub")
def _add(c: Compiler, args: Args) -> Value:
    first, second, alpha = args["self"], args["other"], args.get("alpha", 1)
    if c.node.base == "rsub":
        first, second = second, first
    sign = 1 if c.node.base == "add" else -1
    if isinstance(second, Real) and second.masked is not None:
        require(sign == 1 and alpha == 1, "a difference with minus infinity")
        first, second = second, first
    masked = first.masked if isinstance(first, Real) else None
    a, b = c.real(first, masked=True), c.real(second)
    if alpha != 1:
        b = c.tape.scale(b, alpha)
    step = c.tape.sum(a, b, signs=(1, sign))
    return Real(step, None if masked is None else np.broadcast_to(masked, c.tape.shape(step)))


@rule("mul", "multiply")
def _mul(c: Compiler, args: Args) -> Value:
    for first, second in ((args["self"], args["other"]), (args["other"], args["self"])):
        if isinstance(second, int | float):
            return Real(c.tape.scale(c.real(first), second))
    return Real(c.tape.product(c.real(args["self"]), c.real(args["other"])))


@rule("div", "divide", "true_divide")
def _div(c: Compiler, args: Args) -> Value:
    require(args.get("rounding_mode") is None, "a division that rounds")
    if isinstance(args["other"], int | float):
        return Real(c.tape.scale(c.real(args["self"]), 1.0, args["other"]))
    return Real(c.tape.quotient(c.real(args["self"]), c.real(args["other"])))


@rule("neg", "negative")
def _neg(c: Compiler, args: Args) -> Value:
    return Real(c.tape.scale(c.real(args["self"]), -1.0))


@rule("square")
def _square(c: Compiler, args: Args) -> Value:
    step = c.real(args["self"])
    return Real(c.tape.product(step, step))


@rule("pow")
def _pow(c: Compiler, args: Args) -> Value:
    base, exponent = args["self"], args["exponent"]
    if isinstance(base, int | float) and isinstance(exponent, Real):
        require(base > 0, "a power of a number that is not positive")
        return Real(c.tape.map(c.real(exponent), "exponential", base=exact_float(base)))
    step = c.real(base)
    if not isinstance(exponent, int | float):  # of positive numbers, whose logarithm is defined
        return Real(c.tape.map(c.tape.product(c.tape.map(step, "log"), c.real(exponent)), "exp"))
    if exponent == 2:
        return Real(c.tape.product(step, step))
    if exponent == 1:
        return Real(step)
    return Real(c.tape.map(step, "pow", exponent=exact_float(exponent)))


@rule("addcmul", "addcdiv")
def _addcmul(c: Compiler, args: Args) -> Value:
    join = c.tape.product if c.node.base == "addcmul" else c.tape.quotient
    term = join(c.real(args["tensor1"]), c.real(args["tensor2"]))
    term = term if args.get("value", 1) == 1 else c.tape.scale(term, args["value"])
    return Real(c.tape.sum(c.real(args["self"]), term))


@rule("to", "_to_copy", "type_as")
def _to(c: Compiler, args: Args) -> Value:
    source = args["self"]
    if not isinstance(source, Real):
        return Real(c.real(source))
    if c.node.out[0][0] in FLOATS:  # the shape and dtype of the result are compared
        return source
    values = c.tape.exact(source.step)
    require(
        values is not None and source.masked is None,
        "a conversion to integers of numbers that are not inputs or constants",
    )
    require(bool((np.abs(values) <= 2.0**53).all()), "integers beyond 2^53")
    whole = values != 0.0 if c.node.out[0][0] == "bool" else np.trunc(values).astype(np.int64)
    return Exact(whole, c.tape.owner(source.step))


@rule("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(c: Compiler, args: Args) -> Value:
    trains, share = args.get("train"), args.get("p")
    require(trains is False or share == 0, "dropout that draws random numbers")
    return args["input"]


# -- functions of entries ---------------------------------------------------------------------------------------------

_PLAIN = ("sigmoid", "tanh", "silu", "mish", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin",
          "cos", "erf", "atan", "relu", "abs", "relu6", "hardsigmoid", "hardswish", "sinh", "cosh", "tan", "asinh",
          "erfc")  # fmt: skip


@rule(*_PLAIN, "log_sigmoid", "absolute", "arctan")
def _map(c: Compiler, args: Args) -> Value:
    fn = {"log_sigmoid": "logsigmoid", "absolute": "abs", "arctan": "atan"}.get(c.node.base, c.node.base)
    return Real(c.tape.map(c.real(args["self"]), fn))


@rule("exp2", "log2", "log10")
def _to_a_base(c: Compiler, args: Args) -> Value:
    fn, base = "exponential" if c.node.base == "exp2" else "logarithm", 10.0 if c.node.base == "log10" else 2.0
    return Real(c.tape.map(c.real(args["self"]), fn, base=base))


@rule("threshold")
def _threshold(c: Compiler, args: Args) -> Value:
    end, value = exact_float(args["threshold"]), exact_float(args["value"])
    return Real(c.tape.map(c.real(args["self"]), "threshold", end=end, value=value))


@rule("softshrink", "hardshrink")
def _shrink(c: Compiler, args: Args) -> Value:
    """x less what is between -lambd and lambd; x beyond lambd, less -x beyond lambd."""
    x, end = c.real(args["self"]), exact_float(args.get("lambd", 0.5))
    require(end >= 0.0, "a shrinkage by a negative number")
    if c.node.base == "softshrink":
        return Real(c.tape.sum(x, c.tape.map(x, "clamp", low=-end, high=end), signs=(1, -1)))
    beyond = [c.tape.map(side, "threshold", end=end, value=0.0) for side in (x, c.tape.scale(x, -1.0))]
    return Real(c.tape.sum(*beyond, signs=(1, -1)))


@rule("selu", "celu")
def _selu(c: Compiler, args: Args) -> Value:
    numbers = {"alpha": 1.6732632423543772, "scale": 1.0507009873554805, "input_scale": 1.0}
    if c.node.base == "celu":
        alpha = exact_float(args.get("alpha", 1.0))
        require(alpha > 0.0, "celu with an alpha that is not positive")
        step = c.tape.map(c.tape.scale(c.real(args["self"]), 1.0, alpha), "elu", alpha=1.0, scale=1.0, input_scale=1.0)
        return Real(c.tape.scale(step, alpha))
    return Real(c.tape.map(c.real(args["self"]), "elu", **numbers))


@rule("prelu", "_prelu_kernel")
def _prelu(c: Compiler, args: Args) -> Value:
    """relu(x) - a relu(-x), one a for all entries or for each of a channel."""
    x, a = c.real(args["self"]), c.real(args["weight"])
    ndim, count = len(c.tape.shape(x)), c.tape.steps[a].size
    if c.node.base == "prelu":
        require(count == 1 or (ndim >= 2 and count == c.tape.shape(x)[1]), "prelu whose channels do not match")
        a = c.tape.reshape(a, [1, count, *(1 for _ in range(ndim - 2))] if ndim >= 2 else [1] * ndim)
    below = c.tape.product(c.tape.map(c.tape.scale(x, -1.0), "relu"), a)
    return Real(c.tape.sum(c.tape.map(x, "relu"), below, signs=(1, -1)))


@rule("glu")
def _glu(c: Compiler, args: Args) -> Value:
    step = c.real(args["self"])
    first, second = (c.tape.move((step,), half) for half in np.split(c.tape.indices(step), 2, args.get("dim", -1)))
    return Real(c.tape.product(first, c.tape.map(second, "sigmoid")))


@rule("lerp")
def _lerp(c: Compiler, args: Args) -> Value:
    start, weight = c.real(args["self"]), args["weight"]
    change = c.tape.sum(c.real(args["end"]), start, signs=(1, -1))
    part = c.tape.scale(change, weight) if isinstance(weight, int | float) else c.tape.product(c.real(weight), change)
    return Real(c.tape.sum(start, part))


@rule("softplus")
def _softplus(c: Compiler, args: Args) -> Value:
    beta, threshold = exact_float(args.get("beta", 1)), exact_float(args.get("threshold", 20))
    require(beta > 0.0, "softplus with a beta that is not positive")
    require(threshold >= 20.0, "softplus with a threshold below 20, which makes it another function")
    return Real(c.tape.map(c.real(args["self"]), "softplus", beta=beta))


@rule("gelu")
def _gelu(c: Compiler, args: Args) -> Value:
    form = args.get("approximate", "none")
    require(form in ("none", "tanh"), "gelu of an unknown form")
    return Real(c.tape.map(c.real(args["self"]), "gelu", approximate=form))


@rule("elu")
def _elu(c: Compiler, args: Args) -> Value:
    numbers = {key: exact_float(args.get(key, 1)) for key in ("alpha", "scale", "input_scale")}
    return Real(c.tape.map(c.real(args["self"]), "elu", **numbers))


@rule("leaky_relu")
def _leaky_relu(c: Compiler, args: Args) -> Value:
    return Real(c.tape.map(c.real(args["self"]), "leaky_relu", slope=exact_float(args.get("negative_slope", 0.01))))


@rule("clamp", "hardtanh", "clamp_min", "clamp_max")
def _clamp(c: Compiler, args: Args) -> Value:
    low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
    if c.node.base == "hardtanh":
        low, high = args.get("min_val", -1.0), args.get("max_val", 1.0)
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    require(low <= high, "a clamp whose ends are not in order")
    ends = {"low": low, "high": high}
    return Real(c.tape.map(c.real(args["self"]), "clamp", **ends))


# -- selections -------------------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate", "stack")
def _cat(c: Compiler, args: Args) -> Value:
    steps = [c.real(part) for part in args["tensors"]]
    require_size((sum(c.tape.steps[step].size for step in steps),))
    dim, places, start = args.get("dim", 0), [], 0
    for step in steps:
        places.append(c.tape.indices(step) + start)
        start += c.tape.steps[step].size
    filled = [grid for grid in places if grid.shape != (0,)]  # torch ignores empty vectors
    joined = np.stack(places, axis=dim) if c.node.base == "stack" else np.concatenate(filled, axis=dim)
    return Real(c.tape.move(steps, joined))


@rule("embedding")
def _embedding(c: Compiler, args: Args) -> Value:
    return _at(c, args["weight"], [args["indices"]], negative=False)


@rule("index_select")
def _index_select(c: Compiler, args: Args) -> Value:
    dim = args["dim"] % len(c.shape(args["self"]))
    return _at(c, args["self"], [*(None for _ in range(dim)), args["index"]], negative=False)


@rule("index", "_unsafe_index")
def _index(c: Compiler, args: Args) -> Value:
    return _at(c, args["self"], args["indices"], negative=True)


def _at(c: Compiler, source: Value, parts: Sequence[Any], *, negative: bool) -> Value:
    """Gather by known integers along some axes, the axes of the integers in place of these: first if they are apart.

    The copies of a shared array belong to the samples of the integers.
    """
    indexed = [(axis, part) for axis, part in enumerate(parts) if part is not None]
    whole = all(isinstance(part, Exact) and part.value.dtype.kind == "i" for _, part in indexed)
    require(bool(indexed) and whole, "an index whose integers are not known")
    grid = np.arange(math.prod(c.shape(source))).reshape(c.shape(source))
    for axis, part in indexed:
        size = grid.shape[axis]
        inside = (part.value >= (-size if negative else 0)) & (part.value < size)
        require(bool(inside.all()), "an index outside of its axis")
    axes = [axis for axis, _ in indexed]
    common = np.broadcast_shapes(*(part.value.shape for _, part in indexed))
    require_size((*common, *(size for axis, size in enumerate(grid.shape) if axis not in axes)))
    taken = grid[tuple(slice(None) if part is None else part.value for part in parts)]
    owners = [p.owner if p.owner is None else p.owner.reshape(p.value.shape) for _, p in indexed]
    owner = joint_owner(owners, common)
    before = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    shape = (1,) * before + common + (1,) * (taken.ndim - before - len(common))
    return _taken(c, source, taken, owner if owner is None else owner.reshape(shape))


def _taken(c: Compiler, source: Value, taken: Any, owner: Any) -> Value:
    """Gather entries by integers that belong to the given samples (None: to all)."""
    if owner is None:
        return c.gathered(source, taken)
    owner = np.ascontiguousarray(np.broadcast_to(owner, taken.shape)).reshape(-1)
    mine = source.owner if isinstance(source, Exact) else c.tape.owner(source.step)
    require(mine is None or bool((mine[taken.reshape(-1)] == owner).all()), "an operation joins two samples")
    if isinstance(source, Exact):
        return Exact(source.value.reshape(-1)[taken], owner)
    require(source.masked is None, f"{c.node.base} of minus infinity")
    return Real(c.tape.move((source.step,), taken, owner))


@rule("gather", "take_along_dim")
def _gather(c: Compiler, args: Args) -> Value:
    source, index, dim = args["self"], args["index"] if "index" in args else args["indices"], args["dim"]
    require(isinstance(index, Exact) and index.value.dtype.kind == "i", "an index whose integers are not known")
    grid = np.arange(math.prod(c.shape(source))).reshape(c.shape(source))
    require(c.node.base == "gather" or grid.shape == index.value.shape, "an index of an unexpected shape")
    dim %= grid.ndim
    grid = grid[tuple(slice(None) if axis == dim else slice(size) for axis, size in enumerate(index.value.shape))]
    require(bool(((index.value >= 0) & (index.value < grid.shape[dim])).all()), "an index outside of its axis")
    owner = None if index.owner is None else index.owner.reshape(index.value.shape)
    return _taken(c, source, np.take_along_axis(grid, index.value, dim), owner)


@rule("slice_scatter")
def _slice_scatter(c: Compiler, args: Args) -> Value:
    target, source = c.real(args["self"]), c.real(args["src"])
    grid = c.tape.indices(target)
    part = moved("slice", grid, args)  # a view
    part[...] = c.tape.indices(source) + grid.size
    return Real(c.tape.move((target, source), grid))


@rule("full", "scalar_tensor")
def _full(c: Compiler, args: Args) -> Value:
    value, shape = args["fill_value" if c.node.base == "full" else "s"], args.get("size", [])
    require_size(shape)
    masked = np.ones(shape, dtype=bool) if value == -math.inf else None
    return Real(c.tape.leaf(np.full(shape, 0.0 if masked is not None else exact_float(value))), masked)


@rule("masked_fill")
def _masked_fill(c: Compiler, args: Args) -> Value:
    return _where(c, {"condition": args["mask"], "self": args["value"], "other": args["self"]})


@rule("where")
def _where(c: Compiler, args: Args) -> Value:
    """Select by a known condition."""
    condition = args["condition"]
    require(isinstance(condition, Exact) and condition.value.dtype == bool, "a condition that is not known")
    shape = np.broadcast_shapes(condition.value.shape, *(c.shape(args[name]) for name in ("self", "other")))
    require_size(shape)
    mask = np.broadcast_to(condition.value, shape)
    sides: list[Any] = []
    masked = np.zeros(shape, dtype=bool)
    for side, here in ((args["self"], mask), (args["other"], ~mask)):
        if isinstance(side, float) and side == -math.inf:
            masked |= here
            side = 0.0
        elif isinstance(side, Real) and side.masked is not None:
            masked |= here & np.broadcast_to(side.masked, shape)
        sides.append(c.real(side, masked=True))
    grids = [np.broadcast_to(c.tape.indices(step), shape) for step in sides]
    index = np.where(mask, grids[0], grids[1] + c.tape.steps[sides[0]].size)
    owner = None
    if condition.owner is not None:
        owners = [(c.tape.owner(step), grid) for step, grid in zip(sides, grids, strict=True)]
        mine = [owner if owner is None else owner[grid] for owner, grid in owners]
        owner = joint_owner([condition.owner.reshape(condition.value.shape), *mine], shape)
    return Real(c.tape.move(sides, index, owner), masked if masked.any() else None)


# -- matrix products and convolutions ---------------------------------------------------------------------------------


@rule("linear")
def _linear(c: Compiler, args: Args) -> Value:
    x, W = c.real(args["input"]), c.real(args["weight"])
    require(len(c.tape.shape(W)) == 2, "a linear map of an unknown form")
    return plus(c, _matmul(c, x, c.tape.permute(W, (1, 0))), args.get("bias"))


def plus(c: Compiler, step: int, bias: Value) -> Value:
    """Add a bias, which may be None."""
    return Real(step if bias is None else c.tape.sum(step, c.real(bias)))


def scaled(c: Compiler, step: int, weight: Value, bias: Value, shape: Sequence[int] | None = None) -> Value:
    """Multiply by a weight and add a bias, each of which may be None; ``shape`` is theirs."""
    for value, join in ((weight, c.tape.product), (bias, c.tape.sum)):
        if value is not None:
            operand = c.real(value)
            step = join(step, operand if shape is None else c.tape.reshape(operand, shape))
    return Real(step)


def _matmul(c: Compiler, a: int, b: int) -> int:
    """Return the product of torch.matmul."""
    shape_a, shape_b = c.tape.shape(a), c.tape.shape(b)
    left = a if len(shape_a) > 1 else c.tape.reshape(a, (1, *shape_a))
    right = b if len(shape_b) > 1 else c.tape.reshape(b, (*shape_b, 1))
    product = c.tape.matmul(left, right)
    shape = list(c.tape.shape(product))
    if len(shape_b) == 1:
        del shape[-1]
    if len(shape_a) == 1:
        del shape[-1 if len(shape_b) == 1 else -2]
    return c.tape.reshape(product, shape)


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def _product(c: Compiler, args: Args) -> Value:
    second = next(args[name] for name in ("other", "mat2", "vec", "tensor") if name in args)
    return Real(_matmul(c, c.real(args["self"]), c.real(second)))


@rule("addmm", "baddbmm", "addmv")
def _addmm(c: Compiler, args: Args) -> Value:
    first = next(args[name] for name in ("mat1", "batch1", "mat") if name in args)
    second = next(args[name] for name in ("mat2", "batch2", "vec") if name in args)
    product, added = _matmul(c, c.real(first), c.real(second)), c.real(args["self"])
    if args.get("alpha", 1) != 1:
        product = c.tape.scale(product, args["alpha"])
    if args.get("beta", 1) != 1:
        added = c.tape.scale(added, args["beta"])
    return Real(c.tape.sum(product, added))


@rule("outer", "ger")
def _outer(c: Compiler, args: Args) -> Value:
    a, b = c.real(args["self"]), c.real(args["vec2"])
    return Real(c.tape.product(c.tape.reshape(a, (c.tape.steps[a].size, 1)), b))


@rule("bilinear")
def _bilinear(c: Compiler, args: Args) -> Value:
    a, b, W = (c.real(args[name]) for name in ("input1", "input2", "weight"))
    out, first, second = c.tape.shape(W)
    grid = c.tape.indices(W).transpose(1, 0, 2).reshape(first, out * second)
    rows = _matmul(c, a, c.tape.move((W,), grid))
    lead = c.tape.shape(b)[:-1]
    terms = c.tape.product(c.tape.reshape(rows, (*lead, out, second)), c.tape.reshape(b, (*lead, 1, second)))
    total = c.tape.rows("reduce", c.tape.reshape(terms, (math.prod(lead) * out, second)), keep=False)
    return plus(c, c.tape.reshape(total, (*lead, out)), args.get("bias"))


@rule("einsum")
def _einsum(c: Compiler, args: Args) -> Value:
    """Contract the operands one after the other, each as one matrix product; no letter occurs twice in one of them."""
    left, arrow, out = args["equation"].replace(" ", "").partition("->")
    steps = [c.real(part) for part in args["tensors"]]
    terms = left.split(",")
    require(bool(arrow) and len(terms) == len(steps) >= 1, "einsum of an unknown form")
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in left]
    ranks = [len(c.tape.shape(step)) - len(term.replace("...", "")) for term, step in zip(terms, steps, strict=True)]
    dots = max([0, *(rank for term, rank in zip(terms, ranks, strict=True) if "..." in term)])
    terms = [term.replace("...", "".join(spare[dots - rank : dots])) for term, rank in zip(terms, ranks, strict=True)]
    out = out.replace("...", "".join(spare[:dots]))
    sizes: dict[str, int] = {}
    for term, step in zip(terms, steps, strict=True):
        require(
            len(set(term)) == len(term) == len(c.tape.shape(step)),
            "einsum with a repeated letter, or axes that do not match",
        )
        for letter, size in zip(term, c.tape.shape(step), strict=True):
            require(sizes.setdefault(letter, size) == size, "einsum with broadcast axes")
    require(len(set(out)) == len(out) and set(out) <= set(sizes), "einsum with an unexpected result")
    term, step = terms[0], steps[0]
    for k in range(1, len(terms)):
        later = set(out).union(*terms[k + 1 :])
        a, left_step = _kept(c, step, term, later | set(terms[k]))
        b, right_step = _kept(c, steps[k], terms[k], later | set(term))
        batch, inner = [x for x in a if x in b and x in later], [x for x in a if x in b and x not in later]
        free_a, free_b = [x for x in a if x not in b], [x for x in b if x not in a]
        one = _arranged(c, left_step, a, sizes, batch, free_a, inner)
        product = c.tape.matmul(one, _arranged(c, right_step, b, sizes, batch, inner, free_b))
        term = "".join([*batch, *free_a, *free_b])
        step = c.tape.reshape(product, [sizes[x] for x in term])
    term, step = _kept(c, step, term, set(out))
    return Real(c.tape.permute(step, [term.index(x) for x in out]))


def _kept(c: Compiler, step: int, term: str, letters: set[str]) -> tuple[str, int]:
    """Sum over the axes of all other letters."""
    remaining = "".join(x for x in term if x in letters)
    if remaining == term:
        return term, step
    order = [*(term.index(x) for x in remaining), *(k for k, x in enumerate(term) if x not in letters)]
    grid = c.tape.indices(step).transpose(order)
    shape = grid.shape[: len(remaining)]
    rows = c.tape.move((step,), grid.reshape(math.prod(shape), -1))
    return remaining, c.tape.reshape(c.tape.rows("reduce", rows, keep=False), shape)


def _arranged(c: Compiler, step: int, term: str, sizes: dict[str, int], *groups: Sequence[str]) -> int:
    order = [term.index(x) for group in groups for x in group]
    shape = [*(sizes[x] for x in groups[0]), *(math.prod(sizes[x] for x in g) for g in groups[1:])]
    return c.tape.reshape(c.tape.permute(step, order), shape)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(c: Compiler, args: Args) -> Value:
    x, W = c.real(args["input"]), c.real(args["weight"])
    axes = len(c.tape.shape(W)) - 2
    stride, dilation = triple(args.get("stride"), axes, 1), triple(args.get("dilation"), axes, 1)
    kernel, groups = c.tape.shape(W)[2:], args.get("groups", 1)
    if args.get("transposed"):
        return _transposed(c, args, x, W, triple(args.get("output_padding"), axes, 0))
    padding = args.get("padding", 0)
    if isinstance(padding, str):
        require(padding == "valid" or (padding == "same" and set(stride) == {1}), "padding of an unknown form")
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in triple(padding, axes, 0)]
    grid = _with_samples(c, x, axes)
    grid = padded(grid, [side for pair in reversed(sides) for side in pair], "constant")
    meta = {"kind": "conv", "stride": stride, "dilation": dilation}
    product = _correlated(c, x, W, windows(grid, kernel, stride, dilation), groups, meta)
    return scaled(c, product, None, args.get("bias"), (c.tape.shape(W)[0], *(1 for _ in kernel)))


def _with_samples(c: Compiler, x: int, axes: int) -> Any:
    grid = c.tape.indices(x)
    require(grid.ndim == axes + 2, "a convolution of one sample without a batch axis")
    return grid


def _correlated(c: Compiler, x: int, W: int, view: Any, groups: int, meta: dict[str, Any]) -> int:
    """Return windows (B, C, *positions, *kernel) of x times the weights (out, C/groups, *kernel)."""
    out, inner, *kernel = c.tape.shape(W)
    axes, B, positions = len(kernel), view.shape[0], view.shape[2 : 2 + len(kernel)]
    require(view.shape[1] == inner * groups and out % groups == 0, "a convolution whose channels do not match")
    grid = view.reshape(B, groups, inner, *positions, *kernel)
    grid = grid.transpose(1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    k, cells = inner * math.prod(kernel), math.prod(positions)
    index = np.ascontiguousarray(grid).reshape(groups, B * cells, k)
    matrices = c.tape.indices(W).reshape(groups, out // groups, k).transpose(0, 2, 1)
    owner = c.tape.owner(x)
    rows = np.repeat(owner.reshape(B, -1)[:, 0], cells) if owner is not None else None
    conv = {**meta, "kernel": tuple(kernel), "groups": groups, "weight": W, "rows": rows}
    product = c.tape.affine(x, c.tape.move((W,), matrices), index, conv)
    whole = c.tape.indices(product).reshape(groups, B, *positions, out // groups)
    order = (1, 0, 2 + axes, *range(2, 2 + axes))
    return c.tape.move((product,), whole.transpose(order).reshape(B, out, *positions))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(c: Compiler, args: Args) -> Value:
    x, W = c.real(args["input"]), c.real(args["weight"])
    return _transposed(c, args, x, W, triple(args.get("output_padding"), len(c.tape.shape(W)) - 2, 0))


def _transposed(c: Compiler, args: Args, x: int, W: int, more: tuple[int, ...]) -> Value:
    """Correlate the input, with zeros between its entries, with the flipped kernels."""
    inside, part, *kernel = c.tape.shape(W)
    axes, groups = len(kernel), args.get("groups", 1)
    stride, dilation = triple(args.get("stride"), axes, 1), triple(args.get("dilation"), axes, 1)
    padding = triple(args.get("padding"), axes, 0)
    grid = _with_samples(c, x, axes)
    B, C, *sizes = grid.shape
    require_size((*grid.shape, *stride))
    spread = np.full((B, C, *((size - 1) * s + 1 for size, s in zip(sizes, stride, strict=True))), -1, grid.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = grid
    pad = [(d * (k - 1) - p, d * (k - 1) - p + o) for k, d, p, o in zip(kernel, dilation, padding, more, strict=True)]
    spread = padded(spread, [side for pair in reversed(pad) for side in pair], "constant")
    flipped = np.flip(c.tape.indices(W), tuple(range(2, 2 + axes)))
    flipped = flipped.reshape(groups, inside // groups, part, *kernel).swapaxes(1, 2)
    swapped = c.tape.move((W,), flipped.reshape(groups * part, inside // groups, *kernel))
    meta = {"kind": "transposed", "stride": stride, "dilation": dilation}
    view = windows(spread, kernel, (1,) * axes, dilation)
    product = _correlated(c, x, swapped, view, groups, meta)
    return scaled(c, product, None, args.get("bias"), (groups * part, *(1 for _ in kernel)))
