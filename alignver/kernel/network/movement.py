"""Operators of torch that move entries, on arrays of NumPy: applied to indices they say where each entry comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from alignver.kernel.failure import NotProved, require
from alignver.kernel.network.tape import require_size

Args = Mapping[str, Any]


def _reshape(x: Any, args: Args) -> Any:
    shape = args.get("size", args.get("shape"))
    return x.reshape(shape)


def _flatten(x: Any, args: Args) -> Any:
    first, last = args.get("start_dim", 0) % max(x.ndim, 1), args.get("end_dim", -1) % max(x.ndim, 1)
    return x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])


def _unflatten(x: Any, args: Args) -> Any:
    dim = args["dim"] % x.ndim
    return x.reshape(*x.shape[:dim], *args["sizes"], *x.shape[dim + 1 :])


def _expand(x: Any, args: Args) -> Any:
    size = tuple(args["size"])
    shape = (1,) * (len(size) - x.ndim) + x.shape
    return np.broadcast_to(x, [mine if want == -1 else want for want, mine in zip(size, shape, strict=True)])


def _slice(x: Any, args: Args) -> Any:
    dim, start, end, step = args.get("dim", 0), args.get("start"), args.get("end"), args.get("step", 1)
    require(step >= 1, "a slice that goes backward")
    place = [slice(None)] * x.ndim
    place[dim] = slice(start, end, step)
    return x[tuple(place)]


def _narrow(x: Any, args: Args) -> Any:
    dim, start, length = args["dim"], args["start"], args["length"]
    first = start + x.shape[dim] if start < 0 else start
    require(0 <= first <= first + length <= x.shape[dim], "a slice outside of its axis")
    return x.take(np.arange(first, first + length), dim)


def _squeeze(x: Any, args: Args) -> Any:
    dims = args.get("dim")
    dims = range(x.ndim) if dims is None else (dims,) if isinstance(dims, int) else dims
    return x.reshape([size for k, size in enumerate(x.shape) if size != 1 or k not in {d % x.ndim for d in dims}])


def _unsqueeze(x: Any, args: Args) -> Any:
    return np.expand_dims(x, args["dim"] if args["dim"] >= 0 else args["dim"] + x.ndim + 1)


def _split(x: Any, args: Args) -> list[Any]:
    dim, sizes = args.get("dim", 0), args.get("split_size", args.get("split_sizes"))
    length = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - at) for at in range(0, length, sizes)] if length else [0]
    return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=dim)


def _chunk(x: Any, args: Args) -> list[Any]:
    dim = args.get("dim", 0)
    return _split(x, {"dim": dim, "split_size": max(1, -(-x.shape[dim] // args["chunks"]))})


def _tensor_split(x: Any, args: Args) -> list[Any]:
    parts = args.get("sections", args.get("indices"))
    require_size((parts if isinstance(parts, int) else 0, 1 << 9))
    return np.array_split(x, parts, axis=args.get("dim", 0))


def _unbind(x: Any, args: Args) -> list[Any]:
    dim = args.get("dim", 0)
    return [x.take(k, dim) for k in range(x.shape[dim])]


def _roll(x: Any, args: Args) -> Any:
    dims = args.get("dims") or ()
    return np.roll(x, args["shifts"], dims) if dims else np.roll(x.reshape(-1), args["shifts"]).reshape(x.shape)


def _repeat(x: Any, args: Args) -> Any:
    counts = args.get("repeats", args.get("dims"))
    require_size((x.size, *counts))
    return np.tile(x.reshape((1,) * (len(counts) - x.ndim) + x.shape), counts)


def _pixel_shuffle(x: Any, args: Args) -> Any:
    r, (*lead, c, h, w) = args["upscale_factor"], x.shape
    grid = x.reshape(*lead, c // r**2, r, r, h, w)
    k = len(lead)
    return grid.transpose(*range(k), k, k + 3, k + 1, k + 4, k + 2).reshape(*lead, c // r**2, h * r, w * r)


def _pixel_unshuffle(x: Any, args: Args) -> Any:
    r, (*lead, c, h, w) = args["downscale_factor"], x.shape
    k = len(lead)
    grid = x.reshape(*lead, c, h // r, r, w // r, r)
    return grid.transpose(*range(k), k, k + 2, k + 4, k + 1, k + 3).reshape(*lead, c * r**2, h // r, w // r)


def _channel_shuffle(x: Any, args: Args) -> Any:
    g, (b, c, *rest) = args["groups"], x.shape
    return x.reshape(b, g, c // g, *rest).swapaxes(1, 2).reshape(x.shape)


def _unfold(x: Any, args: Args) -> Any:
    dim = args["dimension"] % max(x.ndim, 1)
    view = sliding_window_view(x, args["size"], axis=dim)
    place = [slice(None)] * view.ndim
    place[dim] = slice(None, None, args["step"])
    return view[tuple(place)]


def _movedim(x: Any, args: Args) -> Any:
    return np.moveaxis(x, args["source"], args["destination"])


def _transpose(x: Any, args: Args) -> Any:
    first, second = args.get("dim0", args.get("axis0")), args.get("dim1", args.get("axis1"))
    return x if x.ndim == 0 and {first, second} <= {0, -1} else x.swapaxes(first, second)


def _reversed(x: Any, args: Args) -> Any:
    require(x.ndim <= 2, "a transposition of more than two axes")
    return x.T


def _diag_embed(x: Any, args: Args) -> Any:
    offset, size = args.get("offset", 0), x.shape[-1] + abs(args.get("offset", 0))
    require_size((*x.shape[:-1], size, size))
    result = np.full((*x.shape[:-1], size, size), -1, x.dtype)
    place = np.arange(x.shape[-1])
    result[..., place + max(0, -offset), place + max(0, offset)] = x
    return np.moveaxis(result, (-2, -1), (args.get("dim1", -2), args.get("dim2", -1)))


def _pad(x: Any, args: Args) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return padded(x, args["pad"], modes[args.get("mode", "constant")])


def _repeat_interleave(x: Any, args: Args) -> Any:
    count, dim = args["repeats"], args.get("dim")
    require(isinstance(count, int) and count >= 0, "a repetition of an unknown form")
    require_size((x.size, count))
    return np.repeat(x, count, dim)


def _triangle(keep: Callable[..., Any]) -> Callable[[Any, Args], Any]:
    def applied(x: Any, args: Args) -> Any:
        mask = keep(np.ones(x.shape[-2:], dtype=bool), args.get("diagonal", 0))
        return np.where(mask, x, x.dtype.type(-1))

    return applied


def _identity(x: Any, args: Args) -> Any:
    return x


def _padding(mode: str) -> Callable[[Any, Args], Any]:
    return lambda x, args: padded(x, args["padding"], mode)


MOVES: dict[str, Callable[[Any, Args], Any]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "view_copy"), _reshape),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "positive"), _identity),
    **dict.fromkeys(("expand", "broadcast_to", "expand_copy"), _expand),
    **dict.fromkeys(("squeeze", "squeeze_copy"), _squeeze),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    **dict.fromkeys(("t", "numpy_T"), _reversed),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
    **{f"reflection_pad{k}d": _padding("reflect") for k in (1, 2, 3)},
    **{f"replication_pad{k}d": _padding("edge") for k in (1, 2, 3)},
    "flatten": _flatten,
    "unflatten": _unflatten,
    "ravel": lambda x, args: x.reshape(-1),
    "permute": lambda x, args: x.transpose(args["dims"]),
    "mT": lambda x, args: x.swapaxes(-2, -1),
    "movedim": _movedim,
    "unsqueeze": _unsqueeze,
    "expand_as": lambda x, args: np.broadcast_to(x, args["other"]),
    "slice": _slice,
    "narrow": _narrow,
    "select": lambda x, args: x.take(args["index"], args["dim"]),
    "diagonal": lambda x, args: x.diagonal(args.get("offset", 0), args.get("dim1", 0), args.get("dim2", 1)),
    "unfold": _unfold,
    "chunk": _chunk,
    "unbind": _unbind,
    "tensor_split": _tensor_split,
    "flip": lambda x, args: np.flip(x, args["dims"]),
    "roll": _roll,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "tril": _triangle(np.tril),
    "triu": _triangle(np.triu),
    "rot90": lambda x, args: np.rot90(x, args.get("k", 1), args.get("dims", (0, 1))),
    "diag_embed": _diag_embed,
    "repeat_interleave": _repeat_interleave,
    "pad": _pad,
    "constant_pad_nd": lambda x, args: padded(x, args["pad"], "constant"),
}
"""Of indices, -1 stands for an exact zero."""


def moved(base: str, indices: Any, args: Args) -> Any:
    """Return the indices that an operator makes of an array of indices; a list if it has several results."""
    try:
        return MOVES[base](indices, args)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise NotProved(f"{base} has arguments of an unknown form ({type(error).__name__})") from None


def padded(x: Any, pad: Sequence[int], mode: str) -> Any:
    """Pad the last axes, of which the last comes first in ``pad``, with -1 or as ``mode`` of :func:`numpy.pad` says."""
    require(len(pad) % 2 == 0 and len(pad) // 2 <= x.ndim, "padding of unexpected axes")
    sides = [(0, 0)] * (x.ndim - len(pad) // 2)
    sides += [(pad[k], pad[k + 1]) for k in range(len(pad) - 2, -1, -2)]
    cut = tuple(slice(max(0, -low), size - max(0, -high)) for (low, high), size in zip(sides, x.shape, strict=True))
    widths = [(max(0, low), max(0, high)) for low, high in sides]
    require_size([size + low + high for size, (low, high) in zip(x[cut].shape, widths, strict=True)])
    return np.pad(x[cut], widths, **({"constant_values": -1} if mode == "constant" else {"mode": mode}))


def triple(value: Any, axes: int, default: Any = None) -> tuple[int, ...]:
    """Return an argument of a window, one number or one for each axis, as a tuple."""
    value = default if value is None or value in ((), []) else value
    numbers = (value,) * axes if isinstance(value, int) else tuple(value)
    numbers = numbers * axes if len(numbers) == 1 else numbers
    require(len(numbers) == axes and all(isinstance(k, int) for k in numbers), "a window of unexpected axes")
    return numbers


def windows(
    x: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out: Sequence[int] | None = None
) -> Any:
    """Return the windows of the last axes, (..., *positions, *kernel), padded with -1 at their ends up to ``out``."""
    axes = len(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if out is not None:
        short = [(o - 1) * s + r - size for o, s, r, size in zip(out, stride, reach, x.shape[-axes:], strict=True)]
        x = padded(x, [value for extra in reversed(short) for value in (0, max(0, extra))], "constant")
    view = sliding_window_view(x, reach, axis=tuple(range(x.ndim - axes, x.ndim)))
    lead = x.ndim - axes
    steps = [slice(None)] * lead + [slice(None, None, s) for s in stride] + [slice(None, None, d) for d in dilation]
    view = view[tuple(steps)]
    limit = [slice(None)] * lead + [slice(0, o) for o in out] if out is not None else []
    view = view[tuple(limit)] if limit else view
    require_size(view.shape)
    return view
