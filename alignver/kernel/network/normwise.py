r"""Norm-wise enclosures in float64: the values of a program of primitive steps, and the gradients of its outputs.

Every step has a computed value and, for each sample, a radius e: the entries of the sample are within e of the exact
ones in the 2-norm. A step that all samples share has one value and one radius; its gradients are those of each sample.

Rules are of two parts: what the step makes of the errors of its arguments (a Lipschitz constant), and the rounding of
its own evaluation (:math:`\gamma_k = k u / (1 - k u)`, u = 2^-53, k the number of roundings of a term). The rounding of
a product of matrices is bounded through :math:`\| |A| |B| \|_F \le \|A\|_F \|B\|_F`, so the evaluation costs one
product where the network has one. The largest number of copies of one entry, c, enters as :math:`\sqrt c`.

Radii beyond 2^70, infinities and NaN are refused; so are kinks, and divisors and logarithms that may meet 0.

**Assumed**, and tested by :mod:`alignver.kernel.machine`: IEEE arithmetic, conventional products, and the accuracy of
the functions in :data:`~alignver.kernel.machine.PRIMITIVES`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.machine import require_functions
from alignver.kernel.network import row_functions
from alignver.kernel.network.operator_norms import affine_norm, gamma_up, spectral, windows
from alignver.kernel.network.radii import Constants, Enclosure, Entries, Rows, Run, U, lengths, rows_largest, up
from alignver.kernel.network.row_functions import Back
from alignver.kernel.network.tape import Program, Step

_LARGEST = 2.0**70
_ROWS = 2**20  # entries of a gathered matrix that are held at a time
_TERMS = 640  # of a sum in a product of a convolution: with fewer, reading and writing the result takes longer


# Movements: where the entries of the result come from.


def _indices(step: Step) -> Any:
    return np.arange(step.size) if step.args["index"] is None else step.args["index"]


def _shared(run: Run, step: Step, k: int) -> bool:
    """Whether the step has samples and its argument has not."""
    return step.owner is not None and run.program.steps[k].owner is None


def _targets(run: Run, step: Step, position: int) -> tuple[Any, int, int]:
    """Return the place of each entry in the gradient of an argument, the places, and the largest number in one place.

    The gradient of a shared argument has a copy for each sample. Entries from elsewhere have the place behind the last.
    """
    sizes = [run.program.steps[k].size for k in step.of]
    start, size = (sum(sizes[:position]), sizes[position]) if step.kind == "move" else (0, sizes[0])
    shifted = _indices(step) - start
    inside = (shifted >= 0) & (shifted < size)
    places = size
    if _shared(run, step, step.of[position]):
        places = size * run.program.samples
        shifted = shifted + step.owner.astype(np.int64) * size
    target = np.where(inside, shifted, places)
    return target, places, int(np.bincount(target, minlength=places + 1)[:places].max(initial=0))


def _most_copies(run: Run, step: Step, position: int) -> int:
    return _targets(run, step, position)[2]


def _collected(g: Any, target: Any, places: int, copies: int) -> Any:
    """Return the sums of the entries of each row of g that have the same place."""
    if copies > 1:
        return np.stack([np.bincount(target, weights=row, minlength=places + 1)[:places] for row in g])
    if not target.size:
        return np.zeros((len(g), places))
    source = np.full(places + 1, -1)
    source[target] = np.arange(target.size)
    source = source[:places]
    result = g.take(source, axis=1, mode="wrap")
    if (source < 0).any():
        result[:, source < 0] = 0.0
    return result


def _extended(parts: Sequence[Any]) -> Any:
    """Return the entries of all arrays, and a 0 that the index -1 stands for."""
    return np.concatenate([*(part.reshape(-1) for part in parts), np.zeros(1)])


def _move(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    parts = run.arguments(step)
    if step.args["index"] is None and not _shared(run, step, step.of[0]):
        return parts[0].value, parts[0].error
    value = _extended([part.value for part in parts]).take(_indices(step), mode="wrap")
    shares: list[Any] = []
    for position, part in enumerate(parts):
        if part.error.any():
            count = functools.partial(_most_copies, run, step, position)
            shares.append(part.error * math.sqrt(run.constants.bound(i, f"copies {position}", count)))
    top: Any = functools.reduce(np.maximum, shares, 0.0)
    unit = np.where(top > 0, top, 1.0)  # squares of small radii would be 0
    return value, np.where(top > 0, up(unit * np.sqrt(sum(np.square(share / unit) for share in shares))), 0.0)


def _move_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    size = run.entries(i).norm(g)
    for position, k in enumerate(step.of):
        if step.args["index"] is None and not _shared(run, step, k):
            yield k, g, e
            continue
        target, places, copies = _targets(run, step, position)
        result = _collected(g, target, places, copies)
        error = e if copies <= 1 else up(math.sqrt(copies) * (e + gamma_up(copies) * size))
        if _shared(run, step, k):
            result, error = result.reshape(len(g) * run.program.samples, -1), error.reshape(-1, 1)
        yield k, result, error


# Sums, products, quotients.


def _sum(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    parts, signs = run.arguments(step), step.args["signs"]
    flats = [part.value.reshape(-1) for part in parts]
    value = flats[0] if signs[0] > 0 else -flats[0]
    error, entries = parts[0].error, run.entries(i)
    for flat, part, sign in zip(flats[1:], parts[1:], signs[1:], strict=True):
        value = value + flat if sign > 0 else value - flat
        error = up(error + part.error + U * entries.norm(value))
    return value, error


def _sum_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    for k, sign in zip(step.of, step.args["signs"], strict=True):
        yield k, (g if sign > 0 else -g), e


def _times(entries: Entries, a: Any, e_a: Any, b: Any, e_b: Any) -> tuple[Any, Any]:
    """Return the entrywise product: ab - AB = A(b - B) + (a - A)B + (a - A)(b - B)."""
    value = a * b
    spread = entries.largest(a) * e_b + entries.largest(b) * e_a + e_a * e_b
    return value, up(spread + U * entries.norm(value))


def _over(entries: Entries, a: Any, e_a: Any, b: Any, e_b: Any) -> tuple[Any, Any]:
    """Return the entrywise quotient: a/b - A/B = (a - A)/b + (A/B)(B - b)/b."""
    least = np.abs(entries.blocks(b)).min(-1, initial=np.inf) - e_b
    require(bool((least > 0).all()), "a divisor that may be 0")
    value = a / b
    return value, up(up(e_a + up(entries.largest(value) * e_b)) / least + U * entries.norm(value))


def _product(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    a, b = run.arguments(step)
    return _times(run.entries(i), a.value.reshape(-1), a.error, b.value.reshape(-1), b.error)


def _product_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    a, b = run.arguments(step)
    for k, other in zip(step.of, (b, a), strict=True):
        yield k, *_times(run.entries(i), g, e, other.value.reshape(-1), other.error)


def _quotient(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    a, b = run.arguments(step)
    return _over(run.entries(i), a.value.reshape(-1), a.error, b.value.reshape(-1), b.error)


def _quotient_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    b, y, entries = run.arguments(step)[1], run.values[i], run.entries(i)
    first, error = _over(entries, g, e, b.value.reshape(-1), b.error)
    yield step.of[0], first, error
    second, error = _times(entries, first, error, y.value.reshape(-1), np.atleast_1d(y.error))
    yield step.of[1], -second, error


def _scaled(run: Run, i: int, step: Step, x: Any, e: Any) -> tuple[Any, Any]:
    """Multiply by num/den or num/sqrt(den): at most three roundings, none for a power of two."""
    num, den, root = (float(part) for part in step.args["factor"])
    require(den != 0 and (den > 0 or not root), "a scale that is not a number")
    factor = num / math.sqrt(den) if root else num / den
    require(factor == 0 or 2.0**-400 < abs(factor) < 2.0**400, "a scale that is too large or too small")
    exact = Fraction(num) ** (1 + int(root)) == Fraction(factor) ** (1 + int(root)) * Fraction(den)
    roundings = 3 - 2 * exact - (exact and abs(math.frexp(factor)[0]) in (0.0, 0.5))
    value = factor * x
    size = gamma_up(roundings + (roundings == 3)) * run.entries(i).norm(value)
    return value, up(abs(factor) * (1 + gamma_up(4)) * e + size)


def _scale(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    (x,) = run.arguments(step)
    return _scaled(run, i, step, x.value.reshape(-1), x.error)


def _scale_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    yield step.of[0], *_scaled(run, i, step, g, e)


# Products of matrices.


def _multiplied(run: Run, step: Step, A: Any, e_a: Any, B: Any, e_b: Any, size_b: Any) -> tuple[Any, Any]:
    """Return a product of stacks with leading axes, and its radii, from the norm of each sample in B."""
    value = np.matmul(A, B)
    a, b = (rows_largest(run, step, spectral(X, 1)) for X in (A, B))
    a_size = rows_largest(run, step, lengths(A.reshape(*A.shape[:-2], -1)))
    return value.reshape(len(value), -1), up(a * e_b + b * e_a + e_a * e_b + gamma_up(A.shape[-1]) * a_size * size_b)


def _matmul(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    a, b = run.arguments(step)
    value, error = _multiplied(run, step, a.value[None], a.error, b.value[None], b.error, run.norms(step)[1])
    return value[0], error[0]


def _matmul_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    a, b = run.arguments(step)
    G, size = g.reshape(len(g), *step.shape), run.entries(i).norm(g)
    A, B = (np.swapaxes(x.value, -1, -2)[None] for x in (a, b))
    yield step.of[0], *_multiplied(run, step, G, e, B, b.error, run.norms(step)[1])
    yield step.of[1], *_multiplied(run, step, A, a.error, G, e, size)


def _copies(step: Step) -> int:
    """Return a bound of the number of entries of the rows that are one entry of x."""
    index, conv = step.args["index"], step.args["conv"]
    if index is None:
        return 1
    if conv is not None:  # for a transposed one, the windows of the input that is spread out
        return windows(conv) if conv["kind"] == "conv" else math.prod(conv["kernel"])
    return int(np.bincount(index + 1)[1:].max(initial=0))


def _by_channels(step: Step, x: Any, W: Any) -> Any:
    """Return the product of a convolution: for some places in the kernel at a time, that of all channels at once."""
    positions, (samples, channels) = step.args["positions"], x.shape[:2]
    cells, taps = positions.shape
    padded = np.zeros((samples, math.prod(x.shape[2:]) + 1, channels))  # the index -1 stands for the last row
    padded[:, :-1] = x.reshape(samples, channels, -1).swapaxes(1, 2)
    kernel = W.reshape(channels, taps, -1)
    value = np.zeros((samples, cells, kernel.shape[-1]))
    together = max(1, _TERMS // channels)
    few = max(1, _ROWS // (2 * cells * min(together, taps) * channels + 1))
    for first in range(0, taps, together):
        some = slice(first, first + together)
        matrix = kernel[:, some].swapaxes(0, 1).reshape(-1, kernel.shape[-1])
        for start in range(0, samples, few):
            part = slice(start, start + few)
            rows = padded[part].take(positions[:, some], axis=1, mode="wrap")
            value[part] += np.matmul(rows.reshape(-1, len(matrix)), matrix).reshape(-1, cells, matrix.shape[1])
    return value.reshape(step.shape)


def _gathered_product(step: Step, x: Any, W: Any) -> Any:
    groups, length, _ = W.shape
    rows, index = step.shape[1], step.args["index"]
    value = np.empty(step.shape)
    together, height = max(1, _ROWS // (rows * length + 1)), max(1, _ROWS // (length + 1))
    flat = None if index is None else _extended([x])
    table = x.reshape(groups, rows, length) if index is None else index.reshape(groups, rows, length)
    for first in range(0, groups, together):
        for top in range(0, rows, height):
            part = slice(first, first + together), slice(top, top + height)
            gathered = table[part] if flat is None else flat.take(table[part], mode="wrap")
            np.matmul(gathered, W[part[0]], out=value[part])
    return value


def _affine(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    x, W = run.arguments(step)
    groups, length, _ = W.value.shape
    product = _gathered_product if step.args["positions"] is None else _by_channels
    value, copies = product(step, x.value, W.value), _copies(step)
    size = math.sqrt(copies) * run.entries(step.of[0]).norm(x.value.reshape(-1))
    largest = run.constants.bound(i, "length", lambda: lengths(W.value.reshape(groups, -1)).max(initial=0.0))
    error = gamma_up(length) * size * largest
    if x.error.any():
        norm = run.constants.bound(i, "norm", lambda: affine_norm(W.value, copies, step.args["conv"]))
        error = error + norm * x.error
    error = error + (size + math.sqrt(copies) * x.error) * W.error
    return value, up(error)


def _affine_back(run: Run, i: int, step: Step, g: Any, e: Any) -> Back:
    W = run.arguments(step)[1]
    groups, _, width = W.value.shape
    G, size, copies = g.reshape(len(g), *step.shape), run.entries(i).norm(g), _copies(step)
    if step.of[0] in run.needed:
        transposed = np.swapaxes(W.value, -1, -2)
        if step.args["index"] is None:
            result = np.matmul(G, transposed).reshape(len(g), -1)
        else:
            target, places, _ = _targets(run, step, 0)
            parts = [_collected(np.matmul(block, transposed).reshape(1, -1), target, places, copies) for block in G]
            result = np.concatenate(parts)
        rounding = gamma_up(width + copies - 1) * size * lengths(W.value.reshape(groups, -1)).max(initial=0.0)
        error = (
            math.sqrt(copies) * (rounding + (size + e) * W.error) + affine_norm(W.value, copies, step.args["conv"]) * e
        )
        yield step.of[0], result, up(error)
    if step.of[1] in run.needed:
        yield step.of[1], *_share(run, i, step, G, size, e, copies)


def _share(run: Run, i: int, step: Step, G: Any, size: Any, e: Any, copies: int) -> tuple[Any, Any]:
    """Return the gradient of W, A^T G over the rows of each sample, and its radii."""
    x, (groups, rows, width) = run.arguments(step)[0], step.shape
    index, samples = step.args["index"], run.entries(i).samples
    A = x.value if index is None else _extended([x.value]).take(index, mode="wrap")
    A = A.reshape(groups, rows, -1)
    a_size = a_norm = math.sqrt(copies) * run.norms(step)[0]
    g_norm, e_a, each = size, math.sqrt(copies) * x.error, rows // samples
    owner = np.zeros((groups, rows)) if step.owner is None else step.owner.reshape(step.shape)[:, :, 0]
    if rows % samples == 0 and bool((owner.reshape(groups, samples, each) == np.arange(samples)[:, None]).all()):
        A, G = A.reshape(groups, samples, each, -1), G.reshape(len(G), groups, samples, each, width)
        if each == 1:
            product = Rows(A[:, :, 0], G[..., 0, :])
            value = product if step.of[1] in run.factored else product.dense()
        else:
            value = np.moveaxis(np.matmul(np.swapaxes(A, -1, -2), G), 1, 2).reshape(len(G) * samples, -1)
            if min(A.shape[-2:]) <= max(64, len(G) * width):  # else it takes longer than the product
                a_norm = np.minimum(a_norm, spectral(A, 1).max(0))
            g_norm = np.minimum(g_norm, spectral(G, 1).max(1))
    else:
        by_sample = [np.matmul(np.swapaxes(A * (owner == s)[..., None], -1, -2), G) for s in range(samples)]
        value, each = np.stack(by_sample, axis=1).reshape(len(G) * samples, -1), rows
    error = g_norm * e_a + a_norm * e + e_a * e + gamma_up(each) * a_size * size
    return value, up(error).reshape(-1, 1)


def _given(run: Run, i: int, step: Step) -> tuple[Any, Any]:
    return step.args["value"], np.zeros(1)


_FORWARD: dict[str, Any] = row_functions.FORWARD | {
    "input": _given, "leaf": _given, "move": _move, "sum": _sum, "product": _product, "quotient": _quotient,
    "scale": _scale, "matmul": _matmul, "affine": _affine,
}  # fmt: skip
_BACKWARD: dict[str, Any] = row_functions.BACKWARD | {
    "move": _move_back, "sum": _sum_back, "product": _product_back, "quotient": _quotient_back, "scale": _scale_back,
    "matmul": _matmul_back, "affine": _affine_back,
}  # fmt: skip


def _checked(step: Step, value: Any, error: Any) -> None:
    if isinstance(value, Rows):
        _checked(step, value.a, error)
        value = value.g
    finite = bool(np.isfinite(value).all()) and bool(np.all(error <= _LARGEST))
    require(finite, f"{step.kind}: a value or a radius that is not finite")


def constants(program: Program) -> Constants:
    """Evaluate the steps of a program that depend on its leaves alone, for all batches of inputs.

    Raises
    ------
    NotProved
        As :func:`forward`.
    """
    steps, fixed = program.steps, set[int]()
    for i, step in enumerate(steps):
        if step.kind != "input" and fixed.issuperset(step.of):
            fixed.add(i)
    needed = {k for i, step in enumerate(steps) if i not in fixed for k in step.of} | {program.output}
    values: dict[int, Enclosure] = {}
    run = Run(program, values)
    with np.errstate(all="ignore"):
        for i in sorted(fixed):
            values[i] = _evaluated(run, i)
    return Constants({i: values[i] if i in needed else None for i in fixed}, {})


def _evaluated(run: Run, i: int) -> Enclosure:
    step = run.program.steps[i]
    require(step.kind in _FORWARD, f"no rule for {step.kind}")
    value, error = _FORWARD[step.kind](run, i, step)
    value = np.ascontiguousarray(value, dtype=np.float64).reshape(step.shape)
    shape = () if step.owner is None else (run.program.samples,)
    error = np.broadcast_to(error, shape) if shape else np.reshape(error, ())
    _checked(step, value, error)
    return Enclosure(value, error)


def forward(program: Program, *, keep: bool = True, fixed: Constants | None = None) -> list[Enclosure]:
    r"""Evaluate a program, and bound :math:`\|v_i - \hat v_i\|_2` for each step v and each sample i.

    Parameters
    ----------
    program : Program
        Steps in the order of their evaluation.
    keep : bool
        Return the enclosures of all steps, which :func:`gradients` needs; otherwise that of the output alone.
    fixed : Constants, optional
        Those of this program, or of one that differs in its inputs alone; not together with ``keep``.

    Returns
    -------
    list of Enclosure
        Values have the shapes of the steps. Errors have shape (samples,), or () for steps that all samples share.

    Raises
    ------
    NotProved
        If a step has no rule, is undefined somewhere in the enclosure of its arguments, or is not finite.
    Unsupported
        Functions are less accurate here than assumed.
    """
    require_functions()
    values: dict[int, Enclosure] = {}
    run = Run(program, values, fixed)
    last = {k: i for i, step in enumerate(program.steps) for k in step.of}
    with np.errstate(all="ignore"):
        for i, step in enumerate(program.steps):
            if i in run.constants.values:
                known = run.constants.values[i]
                values.update({} if known is None else {i: known})
                continue
            values[i] = _evaluated(run, i)
            for k in set(step.of) if not keep else ():
                if last[k] == i and k != program.output:
                    del values[k]
    return [values[i] for i in range(len(program.steps))] if keep else [values[program.output]]


def _factorable(program: Program, needed: set[int]) -> set[int]:
    """Return the steps with one user whose gradient is that of a trainable leaf, permuted: the leaf, and its moves."""
    users = Counter(k for step in program.steps for k in step.of)
    result = set[int]()
    for i, step in enumerate(program.steps):
        moved = step.kind == "move" and step.of[0] in result and step.owner is None and _permutes(program, step)
        if users[i] == 1 and i in needed and (step.kind == "leaf" or moved):
            result.add(i)
    return result


def _permutes(program: Program, step: Step) -> bool:
    index = step.args["index"]
    whole = len(step.of) == 1 and step.size == program.steps[step.of[0]].size
    return whole and (index is None or bool((np.bincount(index + 1, minlength=step.size + 1)[1:] == 1).all()))


def gradients(
    program: Program, values: Sequence[Enclosure], outputs: Sequence[int], *, factored: bool = False
) -> dict[int, tuple[Any, Any]]:
    r"""Enclose the gradients of some outputs of each sample with respect to the trainable leaves.

    Parameters
    ----------
    program : Program
        The program.
    values : sequence of Enclosure
        The result of :func:`forward`.
    outputs : sequence of int
        J columns of the output, which has shape (samples, columns).
    factored : bool
        Return the gradients of a matrix that is used once, on one row of each sample, as
        :class:`~alignver.kernel.network.radii.Rows`: up to a permutation of its entries.

    Returns
    -------
    dict
        For the step of each trainable leaf, the gradients, shape (J, samples, \*shape of the leaf), and bounds of the
        Frobenius norms of their errors, shape (J, samples).

    Raises
    ------
    NotProved
        If a derivative is not decided: a kink, or an operation without a rule.
    """
    steps, samples = program.steps, program.samples
    run = Run(program, values)
    for i, step in enumerate(steps):
        if step.args.get("trainable") or any(k in run.needed for k in step.of):
            run.needed.add(i)
    run.factored = _factorable(program, run.needed) if factored else run.factored
    output = steps[program.output]
    require(output.owner is not None, "an output that does not depend on the sample")
    seed = np.zeros((len(outputs), samples, output.size // samples))
    seed[np.arange(len(outputs)), :, list(outputs)] = 1.0
    pending: dict[int, tuple[Any, Any]] = {
        program.output: (seed.reshape(len(outputs), -1), np.zeros((len(outputs), samples)))
    }
    result = {}
    with np.errstate(all="ignore"):
        for i in reversed(range(len(steps))):
            step = steps[i]
            if i not in run.needed:
                continue
            shape = (len(outputs) * (samples if step.owner is None else 1), step.size)
            if i not in pending:  # no output depends on the leaf
                pending[i] = np.zeros(shape), np.zeros((shape[0], run.entries(i).samples))
            g, e = pending.pop(i)
            if step.kind == "leaf":
                value = g if isinstance(g, Rows) else g.reshape(len(outputs), samples, *step.shape)
                result[i] = value, e.reshape(len(outputs), samples)
                continue
            if isinstance(g, Rows):  # the step is a permutation of a leaf
                pending[step.of[0]] = g, e
                continue
            for k, part, radius in _BACKWARD[step.kind](run, i, step, g, e):
                if k not in run.needed:
                    continue
                radius = np.broadcast_to(radius, (len(part), run.entries(k).samples))
                if k in pending:
                    before, error = pending[k]
                    part = before + part
                    radius = up(error + radius + U * run.entries(k).norm(part))
                _checked(step, part, radius)
                pending[k] = part, radius
    return result
