"""The rules of sums and maxima along axes, of pooling, upsampling and patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Exact, Real, Value, rule
from alignver.kernel.network.movement import padded, triple, windows
from alignver.kernel.network.tape import exact_float, require_size

Args = dict[str, Any]
_MOST_FACTORS = 64


def to_rows(c: Compiler, step: int, dims: Any) -> tuple[int, tuple[int, ...]]:
    """Return a matrix with the given axes (all for None) along its rows, and these axes' sizes."""
    shape = c.tape.shape(step)
    along = _axes(dims, len(shape))
    rest = [axis for axis in range(len(shape)) if axis not in along]
    sizes = tuple(shape[axis] for axis in along)
    grid = c.tape.indices(step).transpose([*rest, *along]).reshape(math.prod(shape[k] for k in rest), math.prod(sizes))
    return c.tape.move((step,), grid), sizes


@rule("sum", "mean")
def _sum(c: Compiler, args: Args) -> Value:
    step, dims = c.real(args["self"]), args.get("dim")
    rows, sizes = to_rows(c, step, dims)
    total = c.tape.rows("reduce", rows, keep=False)
    if c.node.base == "mean":
        total = c.tape.scale(total, 1.0, math.prod(sizes))
    return Real(c.tape.reshape(total, without(c.tape.shape(step), dims, args.get("keepdim", False))))


def without(shape: Sequence[int], dims: Any, keep: bool) -> list[int]:
    """Return a shape without some axes (all for None), or with 1 for them."""
    along = _axes(dims, len(shape))
    return [1 if axis in along else size for axis, size in enumerate(shape) if keep or axis not in along]


def _axes(dims: Any, ndim: int) -> list[int]:
    dims = range(ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    require(all(-max(ndim, 1) <= dim < max(ndim, 1) for dim in dims), "an invalid axis")
    return sorted({dim % ndim for dim in dims}) if ndim else []


@rule("cumsum")
def _cumsum(c: Compiler, args: Args) -> Value:
    step, dim = c.real(args["self"]), args["dim"]
    shape = c.tape.shape(step)
    dim %= max(len(shape), 1)
    length = shape[dim]
    grid = np.moveaxis(c.tape.indices(step), dim, -1)
    require_size((grid.size, length))
    padding = np.where(np.tri(length, dtype=bool), grid[..., None, :], -1)
    total = c.tape.rows("reduce", c.tape.move((step,), padding.reshape(-1, length)), keep=False)
    whole = np.moveaxis(np.arange(math.prod(shape)).reshape(*grid.shape[:-1], length), -1, dim)
    return Real(c.tape.move((total,), whole))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(c: Compiler, args: Args) -> Value:
    step, axes = c.real(args["self"]), int(c.node.base[-2])
    kernel = triple(args["kernel_size"], axes)
    stride, padding = triple(args.get("stride"), axes, kernel), triple(args.get("padding"), axes, 0)
    out = _pooled(c.tape.shape(step), kernel, stride, padding, (1,) * axes, args.get("ceil_mode", False))
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


def _pooled(
    shape: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[int, ...]:
    """Return the shape of a pooling; a window of ceil_mode begins inside of the array or its left padding."""
    lead, out = len(shape) - len(kernel), []
    for size, k, s, p, d in zip(shape[lead:], kernel, stride, padding, dilation, strict=True):
        free = size + 2 * p - d * (k - 1) - 1
        require(free >= 0 and k >= 1 and s >= 1 and d >= 1 and 0 <= 2 * p <= k, "a window of an unknown form")
        count = -(-free // s) + 1 if ceil_mode else free // s + 1
        out.append(count - 1 if ceil_mode and (count - 1) * s >= size + p else count)
    return (*shape[:lead], *out)


def _averaged(c: Compiler, step: int, windows_: Any, divisor: Any) -> Value:
    total = c.tape.rows("reduce", c.tape.move((step,), windows_), keep=False)
    total = c.tape.reshape(total, divisor.shape)
    if divisor.size and (divisor == divisor.flat[0]).all():
        return Real(c.tape.scale(total, 1.0, float(divisor.flat[0])))
    return Real(c.tape.quotient(total, c.tape.leaf(divisor.astype(np.float64))))


@rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"
)
def _adaptive_avg_pool(c: Compiler, args: Args) -> Value:
    step, grid, divisor = _adaptive(c, args)
    return _averaged(c, step, grid.reshape(divisor.size, -1), divisor)


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(c: Compiler, args: Args) -> Value:
    step, grid, divisor = _adaptive(c, args)
    return [_largest(c, step, grid.reshape(divisor.size, -1), divisor.shape)]


def _adaptive(c: Compiler, args: Args) -> tuple[int, Any, Any]:
    """Return the windows of an adaptive pooling, filled with -1, and their sizes."""
    step, axes = c.real(args["self"]), int(c.node.base[-2])
    grid = c.tape.indices(step)
    lead = grid.ndim - axes
    sizes = args["output_size"] if isinstance(args["output_size"], list) else [args["output_size"]]
    out = (*grid.shape[:lead], *(grid.shape[lead + k] if size is None else size for k, size in enumerate(sizes)))
    require(len(out) == grid.ndim, "a window of unexpected axes")
    require_size(out)
    divisor = np.ones(out[-axes:], dtype=np.int64)
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
    return step, grid, np.broadcast_to(divisor, out)


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(c: Compiler, args: Args) -> Value:
    step, axes = c.real(args["self"]), int(c.node.base[8])
    kernel = triple(args["kernel_size"], axes)
    stride, padding = triple(args.get("stride"), axes, kernel), triple(args.get("padding"), axes, 0)
    dilation = triple(args.get("dilation"), axes, 1)
    out = _pooled(c.tape.shape(step), kernel, stride, padding, dilation, args.get("ceil_mode", False))
    sides = [p for p in reversed(padding) for _ in range(2)]
    grid = padded(c.tape.indices(step), sides, "constant")
    grid = windows(grid, kernel, stride, dilation, out[-axes:])
    largest = _largest(c, step, grid.reshape(math.prod(out), -1), out)
    return [largest] if c.node.base.endswith("indices") else largest


def _largest(c: Compiler, step: int, rows: Any, shape: Sequence[int], sign: float = 1.0) -> Real:
    """Return the maxima (the minima for -1) of rows of entries, -1 for none."""
    best = rows.max(1, keepdims=True)
    require(bool((best >= 0).all()), "a window of padding only")
    step = step if sign == 1.0 else c.tape.scale(step, sign)
    entries = c.tape.move((step,), np.where(rows < 0, best, rows))  # one of them once more
    largest = c.tape.rows("max", entries, keep=False)
    return Real(c.tape.reshape(largest if sign == 1.0 else c.tape.scale(largest, sign), shape))


@rule("amax", "amin", "max", "min")
def _amax(c: Compiler, args: Args) -> Value:
    step, dims = c.real(args["self"]), args.get("dim")
    sign = 1.0 if c.node.base.endswith("max") else -1.0
    rows, _ = to_rows(c, step, dims)
    shape = without(c.tape.shape(step), dims, args.get("keepdim", False))
    largest = _largest(c, rows, c.tape.indices(rows), shape, sign)
    return [largest] if c.node.op.endswith(".dim") else largest


@rule("maximum", "minimum")
def _maximum(c: Compiler, args: Args) -> Value:
    a, b = c.tape.together(c.real(args["self"]), c.real(args["other"]))
    size, sign = c.tape.steps[a].size, 1.0 if c.node.base == "maximum" else -1.0
    pairs = c.tape.move((a, b), np.arange(2 * size).reshape(2, size).T)
    return _largest(c, pairs, c.tape.indices(pairs), c.tape.shape(a), sign)


@rule("var", "std", "var_mean")
def _var(c: Compiler, args: Args) -> Value:
    step, dims, keep = c.real(args["self"]), args.get("dim"), args.get("keepdim", False)
    unbiased = args.get("unbiased", args.get("correction", 1))
    rows, sizes = to_rows(c, step, dims)
    count, less = math.prod(sizes), 1.0 if unbiased is None else float(unbiased)
    require(count > less and c.node.base != "var_mean", "a variance of too few entries")
    mean = c.tape.scale(c.tape.rows("reduce", rows, keep=False), 1.0, count)
    centred = c.tape.sum(rows, c.tape.reshape(mean, (c.tape.shape(rows)[0], 1)), signs=(1, -1))
    squares = c.tape.rows("reduce", c.tape.product(centred, centred), keep=False)
    variance = c.tape.scale(squares, 1.0, count - less)
    result = c.tape.map(variance, "sqrt") if c.node.base == "std" else variance
    return Real(c.tape.reshape(result, without(c.tape.shape(step), dims, keep)))


@rule("prod")
def _prod(c: Compiler, args: Args) -> Value:
    step, dims = c.real(args["self"]), args.get("dim")
    rows, _ = to_rows(c, step, dims)
    grid = c.tape.indices(rows)
    require(1 <= grid.shape[1] <= _MOST_FACTORS, "a product of many factors")
    total = c.tape.move((rows,), grid[:, 0])
    for k in range(1, grid.shape[1]):
        total = c.tape.product(total, c.tape.move((rows,), grid[:, k]))
    return Real(c.tape.reshape(total, without(c.tape.shape(step), dims, args.get("keepdim", False))))


def _norm(c: Compiler, rows: int) -> int:
    squares = c.tape.rows("reduce", c.tape.product(rows, rows), keep=False)
    return c.tape.map(squares, "sqrt")


@rule("linalg_vector_norm", "norm")
def _vector_norm(c: Compiler, args: Args) -> Value:
    step, dims = c.real(args["self"]), args.get("dim")
    order = args.get("ord", 2) if c.node.base == "linalg_vector_norm" else args.get("p", 2)
    rows, _ = to_rows(c, step, dims)
    require(order in (1, 2, None), "a norm other than the 1-norm and the 2-norm")
    total = c.tape.rows("reduce", c.tape.map(rows, "abs"), keep=False) if order == 1 else _norm(c, rows)
    return Real(c.tape.reshape(total, without(c.tape.shape(step), dims, args.get("keepdim", False))))


@rule("_weight_norm")
def _weight_norm(c: Compiler, args: Args) -> Value:
    """g v / ||v||, with the norms along all axes but one."""
    v, dim = c.real(args["v"]), args.get("dim", 0)
    shape = c.tape.shape(v)
    others = [axis for axis in range(len(shape)) if axis != dim % len(shape)]
    norms = c.tape.reshape(_norm(c, to_rows(c, v, others)[0]), without(shape, others, True))
    return Real(c.tape.product(v, c.tape.quotient(c.real(args["g"]), norms)))


@rule("cosine_similarity")
def _cosine_similarity(c: Compiler, args: Args) -> Value:
    a, b = c.tape.together(c.real(args["x1"]), c.real(args["x2"]))
    dim, eps = args.get("dim", 1), args.get("eps", 1e-8)
    shape = without(c.tape.shape(a), dim, False)
    rows = [to_rows(c, step, dim)[0] for step in (a, b)]
    top = c.tape.rows("reduce", c.tape.product(*rows), keep=False)
    low = [c.tape.map(_norm(c, step), "clamp", low=exact_float(eps), high=math.inf) for step in rows]
    return Real(c.tape.reshape(c.tape.quotient(top, c.tape.product(*low)), shape))


# -- upsampling and patches -------------------------------------------------------------------------------------------


def _sizes(args: Args, shape: Sequence[int], axes: int) -> list[int]:
    """Return the sizes of a result; scales have to be whole."""
    out, scales = args.get("output_size"), args.get("scale_factors")
    if scales is None:
        scales = [args.get(name) for name in ("scales", "scales_d", "scales_h", "scales_w")]
        scales = [scale for scale in scales if scale is not None]
    if out is None or scales:
        require(len(scales) == axes and all(scale == int(scale) for scale in scales), "a scale that is not an integer")
        whole = [size * int(scale) for size, scale in zip(shape[-axes:], scales, strict=True)]
        require(out is None or list(out) == whole, "a scale that contradicts the size")
        out = whole
    require(len(out) == axes and min(out) >= 1, "a size for unexpected axes")
    require_size(out)
    return list(out)


@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(c: Compiler, args: Args) -> Value:
    source = Real(c.real(args["input"] if "input" in args else args["self"]))
    shape, axes = c.tape.shape(source.step), int(c.node.base[-2])
    grid = c.tape.indices(source.step)
    for axis, size in enumerate(_sizes(args, shape, axes), start=len(shape) - axes):
        place = np.arange(size) * shape[axis] // size
        rounded = np.floor(np.arange(size, dtype=np.float32) * np.float32(shape[axis] / size)).astype(np.int64)
        require(
            bool((np.minimum(rounded, shape[axis] - 1) == place).all()), "a nearest neighbour that rounding decides"
        )
        grid = grid.take(place, axis)
    return c.gathered(source, grid)


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear(c: Compiler, args: Args) -> Value:
    """Along each axis, two neighbours with the weights (b - a) / b and a / b, where a is an integer."""
    step, corners = c.real(args["input"] if "input" in args else args["self"]), args["align_corners"]
    shape, axes = c.tape.shape(step), int(c.node.base[-2])
    for axis, out in enumerate(_sizes(args, shape, axes), start=len(shape) - axes):
        size, k = shape[axis], np.arange(out)
        b = max(out - 1, 1) if corners else 2 * out
        position = k * (size - 1 if out > 1 else 0) if corners else np.maximum((2 * k + 1) * size - out, 0)
        first, a = position // b, position % b
        along = [-1 if j == axis else 1 for j in range(len(shape))]
        grid = c.tape.indices(step)
        parts = []
        for place, weight in ((first, b - a), (np.minimum(first + 1, size - 1), a)):
            factor = c.tape.leaf(weight.astype(np.float64).reshape(along))
            parts.append(c.tape.product(c.tape.move((step,), grid.take(place, axis)), factor))
        step = c.tape.scale(c.tape.sum(*parts), 1.0, b)
    return Real(step)


@rule("im2col")
def _im2col(c: Compiler, args: Args) -> Value:
    return c.gathered(Real(c.real(args["self"])), _patches(c.tape.indices(c.real(args["self"])), args))


def _patches(grid: Any, args: Args) -> Any:
    """Return the patches of images as columns, (B, C k l, positions)."""
    kernel, dilation, padding, stride = (
        triple(args.get(name), 2, default)
        for name, default in (("kernel_size", None), ("dilation", 1), ("padding", 0), ("stride", 1))
    )
    require(grid.ndim == 4, "patches of one image without a batch axis")
    B, C = grid.shape[:2]
    view = windows(padded(grid, [padding[1], padding[1], padding[0], padding[0]], "constant"), kernel, stride, dilation)
    return view.transpose(0, 1, 4, 5, 2, 3).reshape(B, C * math.prod(kernel), -1)


@rule("col2im")
def _col2im(c: Compiler, args: Args) -> Value:
    """Sum the entries of columns that come from the same pixel."""
    step, size = c.real(args["self"]), triple(args["output_size"], 2)
    B, rows, _ = c.tape.shape(step)
    shape = (B, rows // math.prod(triple(args["kernel_size"], 2)), *size)
    require_size(shape)
    patches = _patches(np.arange(math.prod(shape)).reshape(shape), args)
    require(patches.shape == c.tape.shape(step), "columns of an unexpected shape")
    pixel = patches.reshape(-1)
    order = np.argsort(pixel, kind="stable")
    order = order[pixel[order] >= 0]
    counts = np.bincount(pixel[order], minlength=math.prod(shape))
    require_size((len(counts), counts.max()))
    table = np.full((len(counts), max(1, counts.max())), -1)
    table[np.arange(table.shape[1]) < counts[:, None]] = order
    total = c.tape.rows("reduce", c.tape.move((step,), table), keep=False)
    return Real(c.tape.reshape(total, shape))


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(c: Compiler, args: Args) -> Value:
    """Sums (mode 0) or means (mode 1) of rows of a table, in bags that begin at known places."""
    weight, index, offsets, mode = c.real(args["weight"]), args["indices"], args["offsets"], args.get("mode", 0)
    require(
        isinstance(index, Exact) and isinstance(offsets, Exact) and offsets.owner is None,
        "bags whose indices are not known",
    )
    require(mode in (0, 1) and args.get("padding_idx", -1) in (None, -1), "bags of an unknown form")
    ends = [*offsets.value.tolist(), len(index.value)]
    ends = ends[:-1] if args.get("include_last_offset", False) else ends
    count, width = c.tape.shape(weight)
    require(bool(((index.value >= 0) & (index.value < count)).all()), "an index outside of its axis")
    lengths = np.diff(ends)
    require(ends[0] == 0 and ends[-1] == len(index.value) and bool((lengths > 0).all()), "bags of an unknown form")
    require_size((len(lengths), width, lengths.max()))
    place = np.array(ends[:-1])[:, None] + np.arange(lengths.max())
    inside = np.arange(lengths.max()) < lengths[:, None]
    place = np.minimum(place, len(index.value) - 1)
    table = np.where(inside[:, None, :], (index.value[place] * width)[:, None, :] + np.arange(width)[None, :, None], -1)
    owner = None
    if index.owner is not None:
        mine = np.where(inside, index.owner[place], index.owner[np.array(ends[:-1])][:, None])
        owner = np.ascontiguousarray(np.broadcast_to(mine[:, None, :], table.shape)).reshape(-1).astype(np.int32)
    rows = c.tape.reshape(c.tape.move((weight,), table, owner), (table.shape[0] * width, table.shape[2]))
    total = c.tape.reshape(c.tape.rows("reduce", rows, keep=False), (len(lengths), width))
    require(args.get("per_sample_weights") is None, "bags with weights")
    if mode == 1:
        total = c.tape.quotient(total, c.tape.leaf(lengths.astype(np.float64)[:, None]))
    return [Real(total)]
