"""The operators of torch that are known to the compiler, by family: each is one composition of primitive steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Exact, Real, Value, rule
from alignver.kernel.network.movement import padded, triple, windows

__all__: list[str] = []

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
    step, exponent = c.real(args["self"]), args["exponent"]
    require(isinstance(exponent, int | float), "a power with an exponent that is an array")
    if exponent == 2:
        return Real(c.tape.product(step, step))
    if exponent == 1:
        return Real(step)
    return Real(c.tape.map(step, "pow", exponent=float(exponent)))


@rule("addcmul")
def _addcmul(c: Compiler, args: Args) -> Value:
    term = c.tape.product(c.real(args["tensor1"]), c.real(args["tensor2"]))
    term = term if args.get("value", 1) == 1 else c.tape.scale(term, args["value"])
    return Real(c.tape.sum(c.real(args["self"]), term))


@rule("to", "_to_copy", "type_as")
def _to(c: Compiler, args: Args) -> Value:
    source = args["self"]
    if isinstance(source, Real):  # between floating-point dtypes; the shape and dtype of the result are compared
        return source
    return Real(c.real(source))


@rule("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(c: Compiler, args: Args) -> Value:
    off = args.get("train") is False or args.get("p") == 0
    require(off, "dropout that draws random numbers")
    return args["input"]


# -- functions of entries ---------------------------------------------------------------------------------------------

_PLAIN = ("sigmoid", "tanh", "silu", "mish", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin",
          "cos", "erf", "atan", "relu", "abs", "relu6", "hardsigmoid", "hardswish", "sinh", "cosh")  # fmt: skip


@rule(*_PLAIN, "log_sigmoid", "absolute", "arctan")
def _map(c: Compiler, args: Args) -> Value:
    fn = {"log_sigmoid": "logsigmoid", "absolute": "abs", "arctan": "atan"}.get(c.node.base, c.node.base)
    return Real(c.tape.map(c.real(args["self"]), fn))


@rule("softplus")
def _softplus(c: Compiler, args: Args) -> Value:
    beta = float(args.get("beta", 1))
    require(beta > 0.0 and math.isfinite(beta), "softplus with a beta that is not positive")
    return Real(c.tape.map(c.real(args["self"]), "softplus", beta=beta))


@rule("gelu")
def _gelu(c: Compiler, args: Args) -> Value:
    form = args.get("approximate", "none")
    require(form in ("none", "tanh"), "gelu of another form")
    return Real(c.tape.map(c.real(args["self"]), "gelu", approximate=form))


@rule("elu")
def _elu(c: Compiler, args: Args) -> Value:
    numbers = {key: float(args.get(key, 1)) for key in ("alpha", "scale", "input_scale")}
    return Real(c.tape.map(c.real(args["self"]), "elu", **numbers))


@rule("leaky_relu")
def _leaky_relu(c: Compiler, args: Args) -> Value:
    return Real(c.tape.map(c.real(args["self"]), "leaky_relu", slope=float(args.get("negative_slope", 0.01))))


@rule("clamp", "hardtanh", "clamp_min", "clamp_max")
def _clamp(c: Compiler, args: Args) -> Value:
    low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
    if c.node.base == "hardtanh":
        low, high = args.get("min_val", -1.0), args.get("max_val", 1.0)
    ends = {"low": -math.inf if low is None else float(low), "high": math.inf if high is None else float(high)}
    return Real(c.tape.map(c.real(args["self"]), "clamp", **ends))


# -- selections -------------------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate", "stack")
def _cat(c: Compiler, args: Args) -> Value:
    steps = [c.real(part) for part in args["tensors"]]
    dim, places, start = args.get("dim", 0), [], 0
    for step in steps:
        places.append(c.tape.indices(step) + start)
        start += c.tape.steps[step].size
    kept = [grid for grid in places if grid.shape != (0,)]  # torch ignores empty vectors
    joined = np.stack(places, axis=dim) if c.node.base == "stack" else np.concatenate(kept, axis=dim)
    return Real(c.tape.move(steps, joined))


@rule("embedding")
def _embedding(c: Compiler, args: Args) -> Value:
    return _rows_of(c, args["weight"], args["indices"], 0)


@rule("index_select")
def _index_select(c: Compiler, args: Args) -> Value:
    return _rows_of(c, args["self"], args["index"], args["dim"])


@rule("index", "_unsafe_index")
def _index(c: Compiler, args: Args) -> Value:
    found = [(axis, part) for axis, part in enumerate(args["indices"]) if part is not None]
    require(len(found) == 1 and found[0][1].value.dtype.kind == "i", "an index by several tensors, or by booleans")
    return _rows_of(c, args["self"], found[0][1], found[0][0])


def _rows_of(c: Compiler, source: Real, index: Exact, dim: int) -> Value:
    """Gather along one axis by known integers; the copies of a shared array belong to the samples of the integers."""
    require(isinstance(index, Exact) and index.value.dtype.kind == "i", "an index that is not of known integers")
    grid, (rows,) = c.tape.indices(source.step), (c.tape.shape(source.step)[dim],)
    inside = bool(((index.value >= -rows) & (index.value < rows)).all())
    require(inside and source.masked is None, "an index outside of its axis")
    taken = np.take(grid, index.value % rows, axis=dim)
    if index.owner is None:
        return c.gathered(source, taken)
    require(c.tape.owner(source.step) is None, "an index of samples by samples")
    dim %= grid.ndim
    shape = (1,) * dim + index.value.shape + (1,) * (grid.ndim - dim - 1)
    owner = np.ascontiguousarray(np.broadcast_to(index.owner.reshape(shape), taken.shape)).reshape(-1)
    return Real(c.tape.move((source.step,), taken, owner))


@rule("masked_fill")
def _masked_fill(c: Compiler, args: Args) -> Value:
    return _where(c, {"condition": args["mask"], "self": args["value"], "other": args["self"]})


@rule("where")
def _where(c: Compiler, args: Args) -> Value:
    """Select by a known condition."""
    condition, shape = args["condition"], c.node.out[0][1]
    require(isinstance(condition, Exact) and condition.value.dtype == bool, "a condition that is not known")
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
        samples = np.full(math.prod(shape), -1, np.int32)
        parts = [np.broadcast_to(condition.owner.reshape(condition.value.shape), shape).reshape(-1)]
        parts += [
            c.tape.owner(s)[g.reshape(-1)] for s, g in zip(sides, grids, strict=True) if c.tape.owner(s) is not None
        ]
        for mine in parts:
            require(bool(((samples < 0) | (samples == mine)).all()), "an operation joins two samples")
            samples = np.array(mine)
        owner = samples
    return Real(c.tape.move(sides, index, owner), masked if masked.any() else None)


# -- matrix products and convolutions ---------------------------------------------------------------------------------


@rule("linear")
def _linear(c: Compiler, args: Args) -> Value:
    x, W = c.real(args["input"]), c.real(args["weight"])
    require(len(c.tape.shape(W)) == 2, "a linear map of another form")
    return _plus(c, _matmul(c, x, c.tape.permute(W, (1, 0))), args.get("bias"))


def _plus(c: Compiler, step: int, bias: Value) -> Value:
    return Real(step if bias is None else c.tape.sum(step, c.real(bias)))


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


@rule("matmul", "mm", "bmm", "mv", "dot")
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


@rule("einsum")
def _einsum(c: Compiler, args: Args) -> Value:
    """Contract two operands, in which no letter occurs twice, as one matrix product."""
    require(isinstance(args["equation"], str) and "." not in args["equation"], "einsum with an ellipsis")
    left, arrow, out = args["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    require(bool(arrow) and len(terms) == len(args["tensors"]) == 2, "einsum of another form")
    steps = [c.real(part) for part in args["tensors"]]
    sizes: dict[str, int] = {}
    for term, step in zip([*terms, out], [*steps, None], strict=True):
        require(len(set(term)) == len(term), "einsum with a letter twice")
        if step is not None:
            shape = c.tape.shape(step)
            require(len(shape) == len(term), "einsum with other axes")
            for letter, size in zip(term, shape, strict=True):
                require(sizes.setdefault(letter, size) == size, "einsum with broadcast axes")
    a, b = terms
    batch = [k for k in out if k in a and k in b]
    inner = [k for k in a if k in b and k not in out]
    free_a, free_b = [k for k in out if k in a and k not in b], [k for k in out if k in b and k not in a]
    require(
        set(a) == {*batch, *inner, *free_a} and set(b) == {*batch, *inner, *free_b}, "einsum with sums of one operand"
    )

    def arranged(step: int, term: str, *groups: Sequence[str]) -> int:
        order = [term.index(k) for group in groups for k in group]
        return c.tape.reshape(
            c.tape.permute(step, order),
            [*(sizes[k] for k in groups[0]), *(math.prod(sizes[k] for k in g) for g in groups[1:])],
        )

    product = c.tape.matmul(arranged(steps[0], a, batch, free_a, inner), arranged(steps[1], b, batch, inner, free_b))
    order = [*batch, *free_a, *free_b]
    whole = c.tape.reshape(product, [sizes[k] for k in order])
    return Real(c.tape.permute(whole, [order.index(k) for k in out]))


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
        require(padding in ("same", "valid") and set(stride) == {1}, "padding of another form")
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in triple(padding, axes, 0)]
    grid = _with_samples(c, x, axes)
    grid = padded(grid, [side for pair in reversed(sides) for side in pair], "constant")
    meta = {"kind": "conv", "stride": stride, "dilation": dilation}
    product = _correlated(c, x, W, windows(grid, kernel, stride, dilation), groups, meta)
    return _scaled(c, product, None, args.get("bias"), (c.tape.shape(W)[0], *(1 for _ in kernel)))


def _with_samples(c: Compiler, x: int, axes: int) -> Any:
    grid = c.tape.indices(x)
    require(grid.ndim == axes + 2, "a convolution of one sample without its axis")
    return grid


def _correlated(c: Compiler, x: int, W: int, view: Any, groups: int, meta: dict[str, Any]) -> int:
    """Return windows (B, C, *positions, *kernel) of x times the weights (out, C/groups, *kernel)."""
    out, inner, *kernel = c.tape.shape(W)
    axes, B, positions = len(kernel), view.shape[0], view.shape[2 : 2 + len(kernel)]
    require(view.shape[1] == inner * groups and out % groups == 0, "a convolution of other channels")
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
    return _scaled(c, product, None, args.get("bias"), (groups * part, *(1 for _ in kernel)))


# -- sums along axes and pooling --------------------------------------------------------------------------------------


def _to_rows(c: Compiler, step: int, dims: Any) -> tuple[int, list[int], tuple[int, ...]]:
    """Return a matrix with the given axes (all for None) along its rows, the other axes, and these axes' sizes."""
    shape = c.tape.shape(step)
    dims = range(len(shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    along = sorted(dim % len(shape) for dim in dims) if shape else []
    rest = [axis for axis in range(len(shape)) if axis not in along]
    sizes = tuple(shape[axis] for axis in along)
    grid = c.tape.indices(step).transpose([*rest, *along]).reshape(-1, math.prod(sizes))
    return c.tape.move((step,), grid), rest, sizes


@rule("sum", "mean")
def _sum(c: Compiler, args: Args) -> Value:
    rows, _, sizes = _to_rows(c, c.real(args["self"]), args.get("dim"))
    total = c.tape.rows("reduce", rows, keep=False)
    if c.node.base == "mean":
        total = c.tape.scale(total, 1.0, math.prod(sizes))
    return Real(c.tape.reshape(total, c.node.out[0][1]))


@rule("cumsum")
def _cumsum(c: Compiler, args: Args) -> Value:
    step, dim = c.real(args["self"]), args["dim"]
    shape = c.tape.shape(step)
    dim %= max(len(shape), 1)
    length = shape[dim]
    grid = np.moveaxis(c.tape.indices(step), dim, -1)
    padding = np.where(np.tri(length, dtype=bool), grid[..., None, :], -1)
    total = c.tape.rows("reduce", c.tape.move((step,), padding.reshape(-1, length)), keep=False)
    whole = np.moveaxis(np.arange(math.prod(shape)).reshape(*grid.shape[:-1], length), -1, dim)
    return Real(c.tape.move((total,), whole))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(c: Compiler, args: Args) -> Value:
    step, axes, out = c.real(args["self"]), int(c.node.base[-2]), c.node.out[0][1]
    kernel = triple(args["kernel_size"], axes)
    stride, padding = triple(args.get("stride"), axes, kernel), triple(args.get("padding"), axes, 0)
    sides = [p for p in reversed(padding) for _ in range(2)]
    counted = int(bool(args.get("count_include_pad", True)))
    ones = np.ones(c.tape.shape(step), dtype=np.int64)
    ones = np.pad(ones, [(0, 0)] * (ones.ndim - axes) + [(p, p) for p in padding], constant_values=counted)
    grid = windows(padded(c.tape.indices(step), sides, "constant"), kernel, stride, (1,) * axes, out[-axes:])
    cells = windows(ones, kernel, stride, (1,) * axes, out[-axes:])
    divisor = (cells > 0).reshape(*out, -1).sum(-1)
    if args.get("divisor_override") is not None:
        divisor = np.full_like(divisor, args["divisor_override"])
    return _averaged(c, step, grid.reshape(math.prod(out), -1), divisor)


def _averaged(c: Compiler, step: int, windows_: Any, divisor: Any) -> Value:
    total = c.tape.rows("reduce", c.tape.move((step,), windows_), keep=False)
    total = c.tape.reshape(total, c.node.out[0][1])
    if divisor.size and (divisor == divisor.flat[0]).all():
        return Real(c.tape.scale(total, 1.0, float(divisor.flat[0])))
    return Real(c.tape.quotient(total, c.tape.leaf(divisor.astype(np.float64))))


@rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"
)
def _adaptive_avg_pool(c: Compiler, args: Args) -> Value:
    step, axes, out = c.real(args["self"]), int(c.node.base[-2]), c.node.out[0][1]
    grid, divisor = c.tape.indices(step), np.ones(out[-axes:], dtype=np.int64)
    lead = grid.ndim - axes
    for k in range(axes):
        size, outputs, axis = grid.shape[lead + k], out[lead + k], lead + k
        starts = [i * size // outputs for i in range(outputs)]
        lengths = [-((-(i + 1) * size) // outputs) - start for i, start in enumerate(starts)]
        place = np.array(starts)[:, None] + np.arange(max(lengths))
        inside = np.arange(max(lengths)) < np.array(lengths)[:, None]
        grid = np.take(grid, np.minimum(place, size - 1), axis=axis)  # the window is the next axis
        shaped = inside.reshape(inside.shape + (1,) * (grid.ndim - axis - 2))
        grid = np.moveaxis(np.where(shaped, grid, -1), axis + 1, -1)
        divisor = divisor * np.array(lengths).reshape([-1 if j == k else 1 for j in range(axes)])
    return _averaged(c, step, grid.reshape(math.prod(out), -1), np.broadcast_to(divisor, out))


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(c: Compiler, args: Args) -> Value:
    step, out = c.real(args["self"]), c.node.out[0][1]
    axes = int(c.node.base[8])
    kernel = triple(args["kernel_size"], axes)
    stride, padding = triple(args.get("stride"), axes, kernel), triple(args.get("padding"), axes, 0)
    sides = [p for p in reversed(padding) for _ in range(2)]
    grid = padded(c.tape.indices(step), sides, "constant")
    grid = windows(grid, kernel, stride, triple(args.get("dilation"), axes, 1), out[-axes:])
    rows = grid.reshape(math.prod(out), -1)
    best = rows.max(1, keepdims=True)
    require(bool((best >= 0).all()), "a window of padding only")
    rows = np.where(rows < 0, best, rows)  # an entry of the window once more
    largest = c.tape.rows("max", c.tape.move((step,), rows), keep=False)
    return (
        [Real(c.tape.reshape(largest, out))] if c.node.base.endswith("indices") else Real(c.tape.reshape(largest, out))
    )


# -- softmax, norms, attention ----------------------------------------------------------------------------------------


def _by_rows(c: Compiler, value: Real, dim: int, kind: str) -> Value:
    """Apply softmax or log-softmax along an axis, without entries that are minus infinity."""
    shape = c.tape.shape(value.step)
    order = [axis for axis in range(len(shape)) if axis != dim % len(shape)] + [dim % len(shape)]
    grid = c.tape.indices(value.step).transpose(order)
    masked = None if value.masked is None else value.masked.transpose(order).reshape(-1, shape[dim])
    if masked is not None:
        require(not bool(masked.all(1).any()), "a softmax of entries that are all minus infinity")
        require(kind == "softmax", "a log-softmax of minus infinity")
    rows = c.tape.move((value.step,), grid.reshape(-1, shape[dim]))
    result = c.tape.rows(kind, rows, keep=True, masked=masked)
    whole = c.tape.indices(result).reshape(grid.shape).transpose(np.argsort(order))
    return Real(c.tape.move((result,), whole))


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")
def _softmax(c: Compiler, args: Args) -> Value:
    kind = "log_softmax" if "log" in c.node.base else "softmax"
    return _by_rows(c, args["self"], args["dim"], kind)


@rule("logsumexp")
def _logsumexp(c: Compiler, args: Args) -> Value:
    rows, _, _ = _to_rows(c, c.real(args["self"]), args["dim"])
    return Real(c.tape.reshape(c.tape.rows("logsumexp", rows, keep=False), c.node.out[0][1]))


def _normalized(c: Compiler, step: int, length: int, eps: float, center: bool) -> int:
    """Normalize rows of the given length; the shape stays."""
    require(eps >= 0.0 and math.isfinite(eps) and length > 0, "a norm with an eps that is not a number")
    rows = c.tape.reshape(step, (c.tape.steps[step].size // length, length))
    return c.tape.reshape(c.tape.rows("normalize", rows, keep=True, eps=float(eps), center=center), c.tape.shape(step))


def _scaled(c: Compiler, step: int, weight: Value, bias: Value, shape: Sequence[int] | None = None) -> Value:
    for value, join in ((weight, c.tape.product), (bias, c.tape.sum)):
        if value is not None:
            own = c.real(value)
            step = join(step, own if shape is None else c.tape.reshape(own, shape))
    return Real(step)


@rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(c: Compiler, args: Args) -> Value:
    length = math.prod(args["normalized_shape"])
    step = _normalized(c, c.real(args["input"]), length, args.get("eps", 1e-5), c.node.base != "rms_norm")
    result = _scaled(c, step, args.get("weight"), args.get("bias"))
    return [result] if c.node.base.startswith("native") else result


def _by_channel(c: Compiler, step: int) -> list[int]:
    shape = c.tape.shape(step)
    return [1, shape[1], *(1 for _ in shape[2:])]


@rule("group_norm", "instance_norm")
def _group_norm(c: Compiler, args: Args) -> Value:
    x = c.real(args["input"])
    _, C, *rest = c.tape.shape(x)
    if c.node.base == "instance_norm":
        require(args["use_input_stats"] is True, "an instance norm with stored statistics")
    groups = args["num_groups"] if c.node.base == "group_norm" else C
    step = _normalized(c, x, C // groups * math.prod(rest), args.get("eps", 1e-5), True)
    return _scaled(c, step, args.get("weight"), args.get("bias"), _by_channel(c, x))


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(c: Compiler, args: Args) -> Value:
    """Eval mode: (x - mean) (w / sqrt(var + eps)) + b, with shared factors."""
    x, shape = c.real(args["input"]), None
    require(args.get("training", False) is False, "a batch norm that sees the batch")
    shape = _by_channel(c, x)
    variance = c.tape.sum(c.real(args["running_var"]), c.real(args["eps"]))
    alpha = c.tape.map(variance, "rsqrt")
    if args.get("weight") is not None:
        alpha = c.tape.product(c.real(args["weight"]), alpha)
    centred = c.tape.sum(x, c.tape.reshape(c.real(args["running_mean"]), shape), signs=(1, -1))
    step = c.tape.product(centred, c.tape.reshape(alpha, shape))
    result = _plus(c, step, None) if args.get("bias") is None else _scaled(c, step, None, args["bias"], shape)
    return result if c.node.base == "batch_norm" else [result]


@rule("scaled_dot_product_attention")
def _attention(c: Compiler, args: Args) -> Value:
    q, k, v = (c.real(args[name]) for name in ("query", "key", "value"))
    require(args.get("dropout_p", 0.0) == 0.0 and not args.get("enable_gqa"), "attention of another form")
    E, L, S = c.tape.shape(q)[-1], c.tape.shape(q)[-2], c.tape.shape(k)[-2]
    scale = args.get("scale")
    q = c.tape.scale(q, 1.0, E, True) if scale is None else c.tape.scale(q, scale)
    axes = list(range(len(c.tape.shape(k))))
    scores = Real(c.tape.matmul(q, c.tape.permute(k, [*axes[:-2], axes[-1], axes[-2]])))
    shape = c.tape.shape(scores.step)
    mask = args.get("attn_mask")
    if args.get("is_causal"):
        require(mask is None, "attention with two masks")
        mask = Exact(np.tri(L, S, dtype=bool))
    if isinstance(mask, Exact):
        require(mask.value.dtype == bool, "an attention mask of integers")
        scores = Real(scores.step, np.broadcast_to(~mask.value, shape))
    elif mask is not None:
        step = c.tape.sum(scores.step, c.real(mask, masked=True))
        scores = Real(step, None if mask.masked is None else np.broadcast_to(mask.masked, shape))
    weights = _by_rows(c, scores, len(shape) - 1, "softmax")
    return Real(c.tape.matmul(weights.step, v))
