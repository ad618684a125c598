r"""Values and gradients of a network in ball arithmetic, and the Gram matrix of its Jacobian.

Every number is a ball of python-flint (``arb``) of as many bits as its context has, which contains the exact number.
Gradients are those of the program's steps, by the chain rule; nothing is differenced. The Jacobian is not formed for
weights that every sample uses on one row, as of dense layers: with inputs a and output gradients g of such a layer,

.. math:: (J J^\top)_{(i,j),(k,l)} = \sum_{\text{leaves}} (a_i \cdot a_k)\, (g_{ij} \cdot g_{kl}).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require
from alignver.kernel.network.ball_functions import FUNCTIONS, Pair, positive, reciprocal
from alignver.kernel.network.tape import Program, Step

arb: Any
arb_mat: Any
ctx: Any
try:
    from flint import arb, arb_mat, ctx
except ImportError:  # balls are optional: without them their claims are refused
    arb = arb_mat = ctx = None

State = dict[int, Any]
_MOST_BITS = 1 << 12
_ROWS = 200  # of a matrix whose square is computed in blocks


def available() -> bool:
    """Whether python-flint is installed."""
    return arb is not None


def bits() -> int:
    """Return the precision of the context."""
    return int(ctx.prec)


def power(exponent: float) -> Any:
    """Return about 2^exponent."""
    return (arb(2) ** arb(exponent)).mid()


def precision(bits: int) -> Any:
    """Return a context in which balls have a number of bits."""
    require(available(), "balls need python-flint")
    require(type(bits) is int and 53 <= bits <= _MOST_BITS, f"a precision of {bits} bits")
    return ctx.workprec(bits)


# -- forward ----------------------------------------------------------------------------------------------------------


def exactly(array: Any) -> Any:
    """Return an array of floats as balls without width."""
    result = np.empty(np.size(array), dtype=object)
    result[:] = [arb(float(value)) for value in np.asarray(array, dtype=np.float64).reshape(-1)]
    return result.reshape(np.shape(array))


def _array(entries: Iterable[Any], shape: Sequence[int]) -> Any:
    result = np.empty(math.prod(shape), dtype=object)
    result[:] = list(entries)
    return result.reshape(tuple(shape))


def matrix(array: Any) -> Any:
    """Return a matrix of balls as :func:`product` needs it, for several products."""
    return arb_mat(*array.shape, array.reshape(-1).tolist())


def product(a: Any, b: Any) -> Any:
    """Return the product of two matrices of balls; the first may be one of :func:`matrix`."""
    if not isinstance(a, arb_mat):
        if 0 in a.shape or 0 in b.shape:
            return exactly(np.zeros((a.shape[0], b.shape[1])))
        try:
            a, columns = matrix(a), matrix(b)
        except TypeError:  # numbers that know more than balls
            return a @ b
        return _array((a * columns).entries(), (a.nrows(), b.shape[1]))
    return _array((a * matrix(b)).entries(), (a.nrows(), b.shape[1]))


def square(A: Any) -> Any:
    """Return A A^T, of which each product of two blocks of rows is computed once."""
    n, half = len(A), len(A) // 2
    if n <= _ROWS:
        return product(A, A.T)
    result = np.empty((n, n), dtype=object)
    result[:half, :half], result[half:, half:] = square(A[:half]), square(A[half:])
    result[half:, :half] = product(A[half:], A[:half].T)
    result[:half, half:] = result[half:, :half].T
    return result


def zeros(shape: Sequence[int]) -> Any:
    """Return an array of zeros."""
    return np.full(shape, arb(0), dtype=object)


def _gathered(sources: Sequence[Any], index: Any, shape: Sequence[int]) -> Any:
    if index is None:
        return sources[0].reshape(shape)
    flat = np.concatenate([source.reshape(-1) for source in sources] + [exactly(np.zeros(1))])
    return flat[index].reshape(shape)


def _ring(array: Any) -> Any:
    """Return the ring of numbers that know more than balls; None if there are none."""
    return next((entry.ring for entry in array.flat if type(entry) is not arb), None)


def _scaled(array: Any, factor: tuple[float, float, bool], like: Any) -> Any:
    """Return an array times a factor, which numbers that know more, as those of ``like`` may be, know exactly."""
    return array * getattr(_ring(like), "ratio", functools.partial(_ratio, bits()))(*factor)


@functools.lru_cache(64)
def _ratio(_bits: int, num: float, den: float, root: bool) -> Any:
    return arb(num) / (arb(den).sqrt() if root else arb(den))  # one object is one number


def values(program: Program, numbers: Callable[[Any], Any] = exactly) -> State:
    """Return the balls of every step, and under ~k the derivatives of those that are functions of entries.

    Parameters
    ----------
    program : Program
    numbers : callable
        Returns what is computed with for an array of floats: balls, or numbers that know more.
    """
    state: State = {}
    for place, step in enumerate(program.steps):
        of = [state[k] for k in step.of]
        result = numbers(step.args["value"]) if step.kind in ("input", "leaf") else _value(step, of)
        if step.kind == "map":
            result, state[~place] = result
        state[place] = np.asarray(result, dtype=object)  # NumPy's sums and products of arrays without axes are balls
    for entry in state[program.output].reshape(-1):
        require(entry.is_finite(), "an output is not finite")
    return state


def _value(step: Step, of: list[Any]) -> Any:
    args = step.args
    match step.kind:
        case "move":
            return _gathered(of, args["index"], step.shape)
        case "sum":
            total = of[0] if args["signs"][0] > 0 else -of[0]
            for sign, term in zip(args["signs"][1:], of[1:], strict=True):
                total = total + term if sign > 0 else total - term
            return total
        case "scale":
            return _scaled(of[0], args["factor"], of[0])
        case "product":
            return of[0] * of[1]
        case "quotient":
            return of[0] * _each(of[1], reciprocal)[0]
        case "matmul":
            return np.stack([product(a, b) for a, b in zip(*of, strict=True)])
        case "affine":
            rows = _gathered(of[:1], args["index"], args["rows"])
            return np.stack([product(a, b) for a, b in zip(rows, of[1], strict=True)])
        case "map":
            parameters = {key: value for key, value in args.items() if key != "fn"}
            require(args["fn"] in FUNCTIONS, f"{args['fn']} has no rule in ball arithmetic")
            rule = functools.partial(FUNCTIONS[args["fn"]], **parameters)
            return _each(of[0], lambda x: rule(x) if type(x) is arb else x.mapped(str((args["fn"], parameters)), rule))
        case "reduce":
            return _array((sum(row, arb(0)) for row in of[0]), step.shape)
        case "max":
            return _array((_largest(row)[0] for row in of[0]), step.shape)
        case "softmax" | "log_softmax" | "logsumexp":
            return _exponentials(step, of[0])
        case "normalize":
            return _normal_rows(of[0], args)[0]
    raise NotProved(f"{step.kind} has no rule in ball arithmetic")


def _each(array: Any, function: Callable[[Any], Pair]) -> tuple[Any, Any]:
    pairs = [function(x) for x in array.reshape(-1)]
    return _array((a for a, _ in pairs), array.shape), _array((b for _, b in pairs), array.shape)


def _largest(row: Any) -> tuple[Any, int]:
    """Return the maximum of a row and the place of the largest entry; -1 if it is not decided."""
    best = max(range(len(row)), key=lambda k: float(row[k].mid()))
    top, decided = row[best], best
    for entry in row:
        if entry is not row[best] and not entry < row[best]:
            top, decided = top.max(entry) if type(entry) is arb else entry.max(top), -1
    return top, decided


def _exponentials(step: Step, rows: Any) -> Any:
    masked = step.args.get("masked")
    result = np.empty(step.shape, dtype=object)
    for r, row in enumerate(rows):
        valid = [k for k in range(len(row)) if masked is None or not masked[r, k]]
        top = max((row[k] for k in valid), key=lambda x: float(x.mid())).mid()
        powers = [(row[k] - top).exp() for k in valid]
        total = sum(powers, arb(0))
        if step.kind == "logsumexp":
            result[r] = top + total.log()
        elif step.kind == "log_softmax":
            result[r, :] = [row[k] - top - total.log() for k in valid]
        else:
            result[r, :] = [arb(0)] * len(row)
            for k, power in zip(valid, powers, strict=True):
                result[r, k] = power / total
            if not isinstance(total, arb):
                result[r, k] = result[r, k].equal_to(1 - sum(result[r, valid[:-1]], arb(0)))
    return result


def _normal_rows(rows: Any, args: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return normalized rows and their scales 1 / s."""
    count = rows.shape[1]
    mean = np.stack([sum(row, arb(0)) / count for row in rows]) if args["center"] else exactly(np.zeros(len(rows)))
    centred = rows - mean[:, None]
    scales = _array(
        (1 / positive(sum((x * x for x in row), arb(0)) / count + args["eps"]).sqrt() for row in centred), (len(rows),)
    )
    return centred * scales[:, None], scales


# -- backward ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Leaf:
    """The gradients of one output of all samples in one parameter.

    Attributes
    ----------
    rows : (A, G) or None
        (groups, n, k) and (groups, n, m): the gradient of sample i is the outer product of the rows i of each group.
    dense : (n, size) or None
        The gradients themselves.
    place : (groups k m,) int64 or None
        The entry of the parameter that each entry of the outer products belongs to; in their order for None.
    size : int
        The number of entries of the parameter.
    """

    rows: tuple[Any, Any] | None = None
    dense: Any = None
    place: Any = None
    size: int = 0


def shares(program: Program, state: State, column: int) -> dict[int, Leaf]:
    """Return the gradients of one output column in all trainable leaves, by the number of the leaf."""
    steps, B = program.steps, program.samples
    output = steps[program.output]
    seed = np.tile(np.arange(program.columns) == column, B)
    numbers = getattr(_ring(state[program.output]), "exactly", exactly)
    incoming: dict[int, list[Any]] = {program.output: [numbers(seed.reshape(output.shape))]}
    leaves: dict[int, Leaf] = {}
    moving = _moving(program)
    for place in range(len(steps) - 1, -1, -1):
        step, terms = steps[place], incoming.pop(place, [])
        if not terms or place not in moving:
            continue
        if step.kind == "leaf":
            leaves[step.args["leaf"]] = _summed(terms, step.size, B)
            continue
        if all(isinstance(term, _Rows) for term in terms) and _is_injective(step):
            incoming.setdefault(step.of[0], []).extend(term.moved(step.args["index"]) for term in terms)
            continue
        g = sum_of([
            term.dense(B, step.size).reshape(B, *step.shape) if isinstance(term, _Rows) else term for term in terms
        ])  # fmt: skip
        for source, part in _pulled(program, state, place, g):
            if source in moving:
                incoming.setdefault(source, []).append(part if isinstance(part, _Rows) else np.asarray(part, object))
    return leaves


def _moving(program: Program) -> set[int]:
    """Return the steps that depend on a trainable leaf."""
    moving = set[int]()
    for place, step in enumerate(program.steps):
        if step.args.get("trainable") or any(k in moving for k in step.of):
            moving.add(place)
    return moving


@dataclasses.dataclass(eq=False)
class _Rows:
    """The gradient of a shared matrix (G, k, n) as rows of inputs and of output gradients, with their samples.

    Its entries are the entries ``place`` of a shared array, all in their order for None.
    """

    a: Any
    g: Any
    owner: Any
    place: Any = None

    def moved(self, index: Any) -> _Rows:
        """Return the gradient of the array from which this one was gathered, each entry once."""
        if index is None:
            return self
        return dataclasses.replace(self, place=index if self.place is None else index[self.place])

    def dense(self, B: int, size: int) -> Any:
        """Return the gradients of each sample in an array, (B, size)."""
        result = []
        for sample in range(B):
            parts = []
            for a, g, owner in zip(self.a, self.g, self.owner, strict=True):
                mine = np.flatnonzero(owner == sample)
                parts.append(product(a[mine].T, g[mine]).reshape(-1))
            result.append(np.concatenate(parts))
        return _placed(np.stack(result), self.place, size)


def _placed(dense: Any, place: Any, size: int) -> Any:
    """Return rows whose entries are the given places of longer ones."""
    return dense if place is None else _scattered(dense, place, size)


def sum_of(terms: Sequence[Any]) -> Any:
    """Return the sum of arrays."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _is_injective(step: Step) -> bool:
    """Whether a step gathers entries of one source, none of them twice."""
    if step.kind != "move" or len(step.of) != 1:
        return False
    index = step.args["index"]
    return index is None or bool((index >= 0).all() and (np.bincount(index) <= 1).all())


def _one_row_each(owner: Any, B: int) -> bool:
    return owner.shape[1] == B and bool((owner == np.arange(B)).all())


def _summed(terms: list[Any], size: int, B: int) -> Leaf:
    only = terms[0]
    if len(terms) == 1 and isinstance(only, _Rows) and _one_row_each(only.owner, B):
        return Leaf(rows=(only.a, only.g), place=only.place, size=size)
    return Leaf(dense=sum_of([t.dense(B, size) if isinstance(t, _Rows) else t.reshape(B, -1) for t in terms]))


def _scattered(g: Any, index: Any, size: int) -> Any:
    """Return the sums of the last axis of g that fall on each of ``size`` entries; -1 falls on none."""
    lead = g.shape[:-1]
    result = np.empty((*lead, size + 1), dtype=object)
    result[...] = arb(0)
    where = np.where(index < 0, size, index)
    if np.bincount(where, minlength=size)[:size].max(initial=0) <= 1:
        result[..., where] = g
    else:
        np.add.at(result.T, where, np.asarray(g).T)  # the last axis first
    return result[..., :size]


def _pulled(program: Program, state: State, place: int, g: Any) -> list[tuple[int, Any]]:
    """Return the gradients that a step passes on to its sources.

    Those of shared arrays have the sample as an additional first axis.
    """
    step = program.steps[place]
    of, args = step.of, step.args
    lead = g.shape[: g.ndim - len(step.shape)]
    match step.kind:
        case "move":
            return _pulled_move(program, step, g, lead)
        case "sum":
            return [(k, g if sign > 0 else -g) for k, sign in zip(of, args["signs"], strict=True)]
        case "scale":
            return [(of[0], _scaled(g, args["factor"], state[of[0]]))]
        case "product":
            return [(of[0], g * state[of[1]]), (of[1], g * state[of[0]])]
        case "quotient":
            inverse = _each(state[of[1]], reciprocal)[0]
            return [(of[0], g * inverse), (of[1], -g * state[place] * inverse)]
        case "map":
            slopes = state[~place]
            require(all(slope is not None for slope in slopes.reshape(-1)), f"a kink of {args['fn']} is not decided")
            return [(of[0], g * slopes)]
        case "reduce":
            return [(of[0], np.broadcast_to(g[..., None], (*lead, *program.steps[of[0]].shape)))]
        case "matmul":
            a, b = state[of[0]], state[of[1]]
            sides: list[list[Any]] = [[], []]
            for part in g.reshape(-1, *step.shape):
                sides[0].append(np.stack([product(x, y.T) for x, y in zip(part, b, strict=True)]))
                sides[1].append(np.stack([product(x.T, y) for x, y in zip(a, part, strict=True)]))
            return [(k, np.stack(s).reshape(*lead, *s[0].shape)) for k, s in zip(of, sides, strict=True)]
        case "affine":
            return _pulled_affine(program, state, step, g, lead)
        case "max":
            rows = state[of[0]]
            best = [_largest(row)[1] for row in rows]
            require(min(best, default=0) >= 0, "a maximum is not decided")
            spread = exactly(np.zeros((*lead, *rows.shape)))
            spread[..., np.arange(len(rows)), best] = g
            return [(of[0], spread)]
        case "softmax":
            p = state[place]
            return [(of[0], p * (g - (p * g).sum(-1)[..., None]))]
        case "log_softmax":
            p = _each(state[place], lambda x: (x.exp(), None))[0]
            return [(of[0], g - p * g.sum(-1)[..., None])]
        case "logsumexp":
            p = _each(state[of[0]] - state[place][:, None], lambda x: (x.exp(), None))[0]
            return [(of[0], g[..., None] * p)]
        case "normalize":
            n, scales = _normal_rows(state[of[0]], args)
            count = n.shape[1]
            inner = g - n * ((n * g).sum(-1) / count)[..., None]
            if args["center"]:
                inner = inner - (g.sum(-1) / count)[..., None]
            return [(of[0], inner * scales[:, None])]
    raise NotProved(f"{step.kind} has no gradient in ball arithmetic")


def _pulled_move(program: Program, step: Step, g: Any, lead: Any) -> list[tuple[int, Any]]:
    sizes = [program.steps[k].size for k in step.of]
    index, B = step.args["index"], program.samples
    flat = g.reshape(*lead, -1)
    if index is None:
        index = np.arange(step.size)
    if step.owner is not None and any(program.steps[k].owner is None for k in step.of):
        total = sum(sizes)  # each copy of a shared entry goes to its sample
        apart = _scattered(flat, np.where(index < 0, -1, step.owner.astype(np.int64) * total + index), B * total)
        apart = apart.reshape(B, total)
    else:
        apart = _scattered(flat, index, sum(sizes))
    result, start = [], 0
    for k, size in zip(step.of, sizes, strict=True):
        source = program.steps[k]
        part = apart[..., start : start + size]
        if source.owner is None and apart.ndim == 2 and step.owner is not None:
            result.append((k, part.reshape(B, *source.shape)))
        elif source.owner is not None and apart.ndim == 2 and step.owner is not None:
            result.append((k, part[source.owner, np.arange(size)].reshape(source.shape)))
        else:
            result.append((k, part.reshape(*lead, *source.shape)))
        start += size
    return result


def _pulled_affine(program: Program, state: State, step: Step, g: Any, lead: Any) -> list[tuple[int, Any]]:
    x, W = step.of
    source, matrices, (G, R, _) = program.steps[x], state[W], step.args["rows"]
    index = step.args["index"]
    rows = _gathered([state[x]], index, step.args["rows"])
    back = []
    for part in g.reshape(-1, *step.shape):
        back.append(np.stack([product(y, w.T) for y, w in zip(part, matrices, strict=True)]).reshape(-1))
    flat = np.stack(back).reshape(*lead, -1)
    if index is not None:
        flat = _scattered(flat, index, source.size)
    inner = flat.reshape(*lead, *source.shape)
    if step.owner is None:  # all is shared
        weights = [
            np.stack([product(a.T, y) for a, y in zip(rows, part, strict=True)]) for part in g.reshape(-1, *step.shape)
        ]
        return [(x, inner), (W, np.stack(weights).reshape(*lead, *matrices.shape))]
    if source.owner is None:
        raise NotProved("rows of a shared array that belong to samples")
    owner = step.owner.reshape(G, R, -1)[:, :, 0]
    return [(x, inner), (W, _Rows(rows, g, owner))]


# -- the Gram matrix --------------------------------------------------------------------------------------------------


def joined(batches: Sequence[list[dict[int, Leaf]]], n: int) -> list[Leaf]:
    """Return the gradients of all outputs of n samples in each leaf, output by output, from batches and columns."""
    columns = range(len(batches[0]))
    numbers = sorted({number for batch in batches for column in batch for number in column})
    result = []
    for number in numbers:
        parts = [[batch[j].get(number) for batch in batches] for j in columns]
        known = [part for row in parts for part in row if part is not None]
        if len(known) == len(batches) * len(columns) and all(part.rows is not None for part in known):
            a = np.concatenate([part.rows[0] for part in parts[0]], axis=1)[:, :n]  # type: ignore[union-attr,index]
            g = [np.concatenate([part.rows[1] for part in row], axis=1)[:, :n] for row in parts]  # type: ignore
            require(
                all(np.array_equal(part.place, known[0].place) for part in known), "the gradients are at other places"
            )
            result.append(dataclasses.replace(known[0], rows=(a, np.concatenate(g, axis=1))))
            continue
        zero = exactly(np.zeros_like(_dense(known[0]), dtype=np.float64))  # an output that does not depend on the leaf
        dense = [np.concatenate([zero if part is None else _dense(part) for part in row])[:n] for row in parts]
        result.append(Leaf(dense=np.concatenate(dense)))
    return result


def _dense(leaf: Leaf) -> Any:
    if leaf.rows is None:
        return leaf.dense.reshape(len(leaf.dense), -1)
    a, g = leaf.rows
    grids = [(a[k][:, :, None] * g[k][:, None, :]).reshape(a.shape[1], -1) for k in range(len(a))]
    return _placed(np.concatenate(grids, axis=1), leaf.place, leaf.size)


def gram(leaves: Sequence[Leaf]) -> Any:
    """Return J J^T as a matrix of balls, with the outputs of all samples one after the other."""
    total: Any = None
    squares: dict[Any, Any] = {}  # a bias has the output gradients of its layer

    def once(A: Any) -> Any:
        key = (A.shape, tuple(map(id, A.reshape(-1))))
        if key not in squares:
            squares[key] = square(A)
        return squares[key]

    for leaf in leaves:
        if leaf.rows is not None:
            a, g = leaf.rows
            parts = []
            for inputs, outputs in zip(a, g, strict=True):
                copies = outputs.shape[0] // inputs.shape[0]
                parts.append(np.tile(once(inputs), (copies, copies)) * once(outputs))
            part = sum_of(parts)
        else:
            part = once(leaf.dense.reshape(len(leaf.dense), -1))
        total = part if total is None else total + part
    require(total is not None, "the outputs do not depend on a trainable parameter")
    return total


def columns(leaves: Sequence[Leaf]) -> Any:
    """Return J itself, with the outputs of all samples one after the other."""
    parts = []
    for leaf in leaves:
        if leaf.rows is not None:
            a, g = leaf.rows
            leaf = dataclasses.replace(leaf, rows=(np.tile(a, (1, g.shape[1] // a.shape[1], 1)), g))
        parts.append(_dense(leaf))
    require(len(parts) > 0, "the outputs do not depend on a trainable parameter")
    return np.concatenate(parts, axis=1)


# -- vectors -----------------------------------------------------------------------------------------------------------


def dot(x: Any, y: Any) -> Any:
    """Return the ball of an inner product."""
    return sum((a * b for a, b in zip(x, y, strict=True)), arb(0))


def root(x: Any) -> Any:
    """Return the ball of the root of a number that is not negative."""
    return x.sqrt() if x > 0 else x.max(arb(0)).upper().sqrt().union(arb(0))


def norm(x: Any) -> Any:
    """Return the ball of a 2-norm."""
    return root(dot(x, x))


def middle(array: Any) -> Any:
    """Return the centres of balls, as numbers without width."""
    return _array((x.mid() for x in array.reshape(-1)), array.shape)
