r"""Norm-wise rules of functions of entries and of rows: elementwise functions, sums, maxima, softmax, normalization.

A rule returns the value of a step and its radii from those of its arguments; a backward rule takes the gradients g of
the outputs with respect to the step, shape (L, size), with their radii, shape (L, samples), and yields those with
respect to its arguments. Each row belongs to one sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.elementwise import MAPS, Rule
from alignver.kernel.network.operator_norms import SLACK, gamma_up
from alignver.kernel.network.radii import TINY, Run, U, lengths, rows_largest, rows_norm, up
from alignver.kernel.network.tape import Step

Back = Iterator[tuple[int, Any, Any]]


def _function(step: Step) -> Rule:
    require(step.args["fn"] in MAPS, f"no rule for {step.args['fn']}")
    return MAPS[step.args["fn"]]


def _map(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,), entries = run.arguments(step), run.entries(i)
    value, rounding, lipschitz = _function(step)(
        entries.blocks(x.value.reshape(-1)), x.error[:, None], step.args, False
    )
    steepest = np.max(np.broadcast_to(lipschitz, value.shape), axis=-1, initial=0.0)
    spread = np.where(x.error == 0, 0.0, up(steepest * x.error))
    rounded = np.ndim(rounding) or rounding
    return entries.flat(value), up(spread + lengths(rounding)) if rounded else spread


def _map_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    r"""With d the computed derivative, s'(x) g - dG = s'(x)(g - G) + (s'(x) - s'(X)) G + (s'(X) - d) G."""
    (x,), entries, G = run.arguments(step), run.entries(i), run.entries(i).blocks(g)
    d, rounding, lipschitz, curvature = _function(step)(
        entries.blocks(x.value.reshape(-1)), x.error[:, None], step.args, True
    )
    value, size = d * G, np.abs(G)
    steepest = np.max(np.broadcast_to(lipschitz, d.shape), axis=-1, initial=0.0)
    bend = np.where(x.error == 0, 0.0, np.max(curvature * size, axis=-1, initial=0.0) * x.error)
    error = steepest * e + bend + lengths(size * rounding) + U * lengths(value)
    yield step.of[0], entries.flat(value), up(error)


def _reduce(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,) = run.arguments(step)
    rows, k = run.program.steps[step.of[0]].shape
    size = run.entries(step.of[0]).norm(x.value.reshape(-1))
    return x.value.reshape(rows, k).sum(-1), up(math.sqrt(k) * (x.error + gamma_up(k - 1 if k else 0) * size))


def _reduce_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    k = run.program.steps[step.of[0]].shape[1]
    yield step.of[0], np.repeat(g, k, axis=-1), np.where(e == 0, 0.0, up(math.sqrt(k) * e))


def _max(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,) = run.arguments(step)
    return x.value.max(-1), x.error


def _max_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    """The winner leads every entry that is not a copy of it by more than 2 e."""
    (x,), source = run.arguments(step), run.program.steps[step.of[0]]
    value, rows = x.value, np.arange(len(x.value))
    while source.kind == "move" and source.args["index"] is None:
        source = run.program.steps[source.of[0]]
    index = source.args["index"] if source.kind == "move" else None
    label = (np.arange(value.size) if index is None else index).reshape(value.shape)
    winner = value.argmax(-1)
    others = np.where(label == label[rows, winner][:, None], -np.inf, value).max(-1)
    lead = value[rows, winner] - others
    require(bool((run.entries(i).blocks(lead) > 2.0 * x.error[:, None]).all()), "a maximum without a decided winner")
    result = np.zeros((len(g), *value.shape))
    result[:, rows, winner] = g
    yield step.of[0], result.reshape(len(g), -1), e


# Softmax and its kin, on rows of which each belongs to one sample.


@dataclass(frozen=True)
class _Softmax:
    """Probabilities of rows with their radii, and what their rounding is made of."""

    p: Any
    error: Any
    shifted: Any  # x - max, -inf for entries that are left out
    total: Any  # of exp(x - max)
    live: Any


def _softmax_of(run: Run, step: Step) -> _Softmax:
    r"""Entries that are masked, or 800 below the largest one whatever the errors, are left out.

    The rounding of x - m moves the exponent by u (m - x), the normalization errs by the mean of that, and the entropy
    of a row is at most ln k.
    """
    (x,) = run.arguments(step)
    source, (_, k) = run.entries(step.of[0]), x.value.shape
    masked = step.args.get("masked")
    live = np.ones(x.value.shape, dtype=bool) if masked is None else ~masked.reshape(x.value.shape)
    require(bool(live.any(-1).all()), "a softmax of a fully masked row")
    values = np.where(live, x.value, -np.inf)
    top = values.max(-1, keepdims=True)
    radius = source.flat(np.broadcast_to(x.error[:, None], (source.samples, source.each))).reshape(x.value.shape)
    if step.kind == "softmax":
        live &= values - top + 2.0 * radius > -801.0
    shifted = np.where(live, values - top, -np.inf)
    powers = np.exp(shifted)
    total = powers.sum(-1, keepdims=True)
    p = powers / total
    units = np.where(live, -shifted, 0.0) * U + (math.log(k) + 4.0) * U + gamma_up(k + 2)
    rounding = source.norm((p * units * (1.0 + 2.0**-19) + 2.0**-1020).reshape(-1))
    return _Softmax(p, up(0.5 * x.error + rounding), shifted, total, live)


def _softmax(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    soft = _softmax_of(run, step)
    return soft.p, soft.error


def _softmax_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    soft, k = _softmax_of(run, step), step.shape[1]
    p, entries = soft.p, run.entries(i)
    G = g.reshape(len(g), *p.shape) * soft.live
    mean = (p * G).sum(-1, keepdims=True)
    value = p * (G - mean)
    size = np.abs(G)
    rows = np.abs(G - mean).max(-1) * (1 + gamma_up(k + 4)) + 2 * gamma_up(k + 4) * (
        size.max(-1) + np.abs(mean[..., 0])
    )
    length = lengths(G)
    first = rows_largest(run, step, rows + lengths(p) * length)
    cross = soft.error * (first + soft.error * rows_largest(run, step, length))
    majorant = p * (size + (p * size).sum(-1, keepdims=True))
    rounding = gamma_up(k + 3) * entries.norm(majorant.reshape(len(g), -1))
    # Entries that are left out have p below e^-800.
    yield step.of[0], value.reshape(len(g), -1), up(0.5 * e + cross + rounding + TINY * (entries.norm(g) + e))


def _log_bracket(k: int, total: Any) -> Any:
    return (math.log(k) * U + 2.0 * U + gamma_up(k) + 2.0 * U * np.abs(np.log(total))) * (1.0 + 2.0**-19)


def _log_softmax(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,), soft, k = run.arguments(step), _softmax_of(run, step), step.shape[1]
    require(bool(soft.live.all()), "the log-softmax of a masked entry")
    value = soft.shifted - np.log(soft.total)
    rounding = (np.abs(soft.shifted) + np.abs(value)) * U + _log_bracket(k, soft.total)
    return value, up(math.sqrt(k) * x.error + run.entries(i).norm(rounding.reshape(-1)))


def _log_softmax_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    soft, k, entries = _softmax_of(run, step), step.shape[1], run.entries(i)
    G = g.reshape(len(g), *soft.p.shape)
    total, size = G.sum(-1, keepdims=True), np.abs(G).sum(-1, keepdims=True)
    value = G - soft.p * total
    majorant = (np.abs(G) + soft.p * size).reshape(len(g), -1)
    cross = rows_largest(run, step, np.abs(total[..., 0]) + gamma_up(k) * size[..., 0]) * soft.error
    error = math.sqrt(k) * e + cross + gamma_up(k + 2) * entries.norm(majorant)
    yield step.of[0], value.reshape(len(g), -1), up(error)


def _logsumexp(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,), soft = run.arguments(step), _softmax_of(run, step)
    top = np.where(soft.live, x.value, -np.inf).max(-1)
    value = top + np.log(soft.total[:, 0])
    rounding = U * np.abs(value) + _log_bracket(x.value.shape[1], soft.total[:, 0])
    return value, up(x.error + run.entries(i).norm(rounding))


def _logsumexp_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    """A row of p has length at most 1."""
    soft = _softmax_of(run, step)
    value = (soft.p * g[..., None]).reshape(len(g), -1)
    error = e + run.entries(i).largest(g) * soft.error + U * run.entries(step.of[0]).norm(value)
    yield step.of[0], value, up(error)


# Normalization of rows.


@dataclass(frozen=True)
class _Normal:
    """Normalized rows; of each row: the deviation, lower bounds of it without and with the error of x, and radii."""

    n: Any
    s: Any
    least: Any
    lowest: Any
    r: Any
    delta: Any


def _normal(run: Run, i: int, step: Step) -> _Normal:
    r"""Two passes: the mean errs by at most delta, and n by r in the norm of a row."""
    (x,), (rows, N) = run.arguments(step), step.shape
    eps, center = float(step.args["eps"]), step.args["center"]
    require(2.0**-960 < eps < 2.0**960, "a normalization whose eps is zero, too large or too small")
    source = run.entries(step.of[0])
    e = source.flat(np.broadcast_to(x.error[:, None], (source.samples, source.each))).reshape(rows, N)[:, 0]
    values = x.value.reshape(rows, N)
    offset = values - values.sum(-1, keepdims=True) / N if center else values
    s = np.sqrt(np.square(offset).sum(-1) / N + eps)
    require(bool(np.isfinite(s).all()), "a normalization of numbers that are too large")
    delta = gamma_up(N) * (np.abs(values).sum(-1) / N) * (1 + gamma_up(N + 4)) if center else np.zeros(rows)
    square = s * s * (1 - gamma_up(N + 9)) / SLACK - delta * delta * SLACK
    least = np.sqrt(np.maximum(eps, square / SLACK))
    sigma = np.sqrt(np.maximum(least * least / SLACK - eps, 0.0) / SLACK)
    lowest = np.sqrt(np.square(np.maximum(sigma - e / math.sqrt(N) * SLACK, 0.0)) / SLACK + eps) / SLACK
    least = np.maximum(least / SLACK, math.sqrt(eps) / SLACK)
    ratio = delta / least
    r = math.sqrt(N) * (gamma_up(N + 8) + ratio * ratio + ratio) * (1.0 + 2.0**-10)
    return _Normal(offset / s[:, None], s, least, lowest, r, delta)


def _normalize(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,), normal = run.arguments(step), _normal(run, i, step)
    inverse = rows_largest(run, step, 1.0 / normal.lowest)
    return normal.n, up(inverse * x.error + rows_norm(run, step, normal.r) + 2.0**-500)


def _normalize_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    r"""The second derivative is at most :math:`2 / (\sqrt 3 \sqrt N s^2)`."""
    (x,), normal, N = run.arguments(step), _normal(run, i, step), step.shape[1]
    require(bool((normal.r <= 0.02 * math.sqrt(N)).all()), "a normalization that is too inaccurate")
    h, n, s = g.reshape(len(g), *step.shape), normal.n, normal.s
    mean = h.sum(-1, keepdims=True) / N if step.args["center"] else 0.0
    value = (h - mean - n * ((n * h).sum(-1, keepdims=True) / N)) / s[:, None]
    length, size = lengths(h), np.abs(h)
    bend = 1.1548 / math.sqrt(N) * rows_largest(run, step, length / (normal.lowest * normal.lowest))
    q = gamma_up(N + 6) + np.square(normal.delta / normal.least)
    majorant = size + size.sum(-1, keepdims=True) / N + np.abs(n) * ((np.abs(n) * size).sum(-1, keepdims=True) / N)
    rounding = q * lengths(value) + 2.02 / math.sqrt(N) * normal.r * (length / normal.least)
    rounding = 1.01 * (rounding + gamma_up(N + 5) * (lengths(majorant) / s))
    low = TINY * (1.0 + (1.0 + math.sqrt(N)) * rows_largest(run, step, 1.0 / normal.least))
    error = rows_largest(run, step, 1.0 / normal.lowest) * e + bend * x.error + rows_norm(run, step, rounding)
    yield step.of[0], value.reshape(len(g), -1), up(error + low)


FORWARD: dict[str, Any] = {
    "map": _map, "reduce": _reduce, "max": _max, "softmax": _softmax, "log_softmax": _log_softmax,
    "logsumexp": _logsumexp, "normalize": _normalize,
}  # fmt: skip
BACKWARD: dict[str, Any] = {
    "map": _map_back, "reduce": _reduce_back, "max": _max_back, "softmax": _softmax_back,
    "log_softmax": _log_softmax_back, "logsumexp": _logsumexp_back, "normalize": _normalize_back,
}  # fmt: skip
