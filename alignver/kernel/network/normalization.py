"""The rules of softmax, norms and attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.compiler import Compiler, Exact, Real, Value, rule
from alignver.kernel.network.operations import plus, scaled
from alignver.kernel.network.pooling import to_rows, without
from alignver.kernel.network.tape import exact_float

Args = dict[str, Any]


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
    step = c.real(args["self"])
    rows, _ = to_rows(c, step, args["dim"])
    shape = without(c.tape.shape(step), args["dim"], args.get("keepdim", False))
    return Real(c.tape.reshape(c.tape.rows("logsumexp", rows, keep=False), shape))


def _normalized(c: Compiler, step: int, length: int, eps: float, center: bool) -> int:
    """Normalize rows of the given length; the shape stays."""
    require(exact_float(eps) >= 0.0 and length > 0, "a norm with an eps that is not a number")
    rows = c.tape.reshape(step, (c.tape.steps[step].size // length, length))
    return c.tape.reshape(c.tape.rows("normalize", rows, keep=True, eps=float(eps), center=center), c.tape.shape(step))


@rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(c: Compiler, args: Args) -> Value:
    x, shape, center = c.real(args["input"]), args["normalized_shape"], c.node.base != "rms_norm"
    require(list(c.tape.shape(x)[-len(shape) :]) == shape, "a norm of an unexpected shape")
    step = _normalized(c, x, math.prod(shape), args.get("eps", 1e-5) if center else args["eps"], center)
    result = scaled(c, step, args.get("weight"), args.get("bias"))
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
    return scaled(c, step, args.get("weight"), args.get("bias"), _by_channel(c, x))


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
    result = plus(c, step, None) if args.get("bias") is None else scaled(c, step, None, args["bias"], shape)
    return result if c.node.base == "batch_norm" else [result]


def _repeated(c: Compiler, step: int, heads: int) -> int:
    """Repeat each of the heads, the third axis from the end, as often as it takes."""
    here = c.tape.shape(step)[-3]
    require(heads % here == 0, "attention whose numbers of heads do not divide each other")
    return c.tape.move((step,), c.tape.indices(step).repeat(heads // here, axis=-3))


@rule("scaled_dot_product_attention")
def _attention(c: Compiler, args: Args) -> Value:
    q, k, v = (c.real(args[name]) for name in ("query", "key", "value"))
    require(args.get("dropout_p", 0.0) == 0.0, "attention that draws random numbers")
    if args.get("enable_gqa"):
        k, v = (_repeated(c, step, c.tape.shape(q)[-3]) for step in (k, v))
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
        if mask.owner is not None:
            mine = np.broadcast_to(mask.owner.reshape(mask.value.shape), shape).reshape(-1)
            require(bool(np.array_equal(mine, c.tape.owner(scores.step))), "an operation joins two samples")
        scores = Real(scores.step, np.broadcast_to(~mask.value, shape))
    elif mask is not None:
        step = c.tape.sum(scores.step, c.real(mask, masked=True))
        scores = Real(step, None if mask.masked is None else np.broadcast_to(mask.masked, shape))
    weights = _by_rows(c, scores, len(shape) - 1, "softmax")
    return Real(c.tape.matmul(weights.step, v))
