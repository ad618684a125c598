"""Random programs of primitive steps, and their values and gradients in 500 bits: by other code, by differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flint import arb, ctx

from alignver.kernel.network import normwise
from alignver.kernel.network.radii import Run
from alignver.kernel.network.tape import Program, Tape

BITS = 500
STEP = -120  # of the difference quotients, a power of two


def numbers(x: Any) -> Any:
    result = np.empty(np.size(x), dtype=object)
    result[:] = [arb(float(value)) for value in np.asarray(x).reshape(-1)]
    return result.reshape(np.shape(x))


def each(function: Any, x: Any) -> Any:
    result = np.empty(x.size, dtype=object)
    result[:] = [function(value) for value in x.reshape(-1)]
    return result.reshape(x.shape)


def root(value: float) -> Any:
    return arb(value).sqrt()


def middle(x: Any, low: Any, high: Any) -> Any:
    return x.max(arb(low)).min(arb(high))


def tanh_gelu(x: Any) -> Any:
    return x / 2 * (1 + ((2 / arb.pi()).sqrt() * (x + arb(0.044715) * x * x * x)).tanh())


def power(x: Any, p: float) -> Any:
    if p != int(p):
        return x ** arb(p)
    product = math.prod([x] * int(abs(p)))
    return product if p > 0 else 1 / product


FUNCTIONS: dict[str, Any] = {
    "softplus": lambda x, beta: (1 + (arb(beta) * x).exp()).log() / arb(beta),
    "logsigmoid": lambda x: -(1 + (-x).exp()).log(),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: x.tanh(),
    "gelu": lambda x, approximate: tanh_gelu(x) if approximate == "tanh" else x / 2 * (1 + (x / root(2)).erf()),
    "silu": lambda x: x / (1 + (-x).exp()),
    "mish": lambda x: x * (1 + x.exp()).log().tanh(),
    "elu": lambda x, alpha, scale, input_scale: (
        arb(scale) * x if x > 0 else arb(scale) * arb(alpha) * ((arb(input_scale) * x).exp() - 1)
    ),
    "exp": lambda x: x.exp(),
    "expm1": lambda x: x.exp() - 1,
    "log": lambda x: x.log(),
    "log1p": lambda x: (1 + x).log(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x: 1 / x.sqrt(),
    "reciprocal": lambda x: 1 / x,
    "pow": lambda x, exponent: power(x, exponent),
    "sinh": lambda x: (x.exp() - (-x).exp()) / 2,
    "cosh": lambda x: (x.exp() + (-x).exp()) / 2,
    "asinh": lambda x: (x + (1 + x * x).sqrt()).log() if x > 0 else -((1 + x * x).sqrt() - x).log(),
    "exponential": lambda x, base: arb(base) ** x,
    "logarithm": lambda x, base: x.log() / arb(base).log(),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "erf": lambda x: x.erf(),
    "atan": lambda x: x.atan(),
    "relu": lambda x: x.max(arb(0)),
    "leaky_relu": lambda x, slope: x if x > 0 else arb(slope) * x,
    "abs": lambda x: abs(x),
    "clamp": lambda x, low, high: middle(x, low, high),
    "relu6": lambda x: middle(x, 0, 6),
    "hardsigmoid": lambda x: middle(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * middle(x + 3, 0, 6) / 6,
}


def values(program: Program, changed: dict[int, Any] | None = None) -> list[Any]:
    """Every step in 500 bits; ``changed`` replaces the values of leaves."""
    results: list[Any] = []
    for place, step in enumerate(program.steps):
        result = (changed or {}).get(place)
        results.append(value(step, [results[k] for k in step.of]) if result is None else result.reshape(step.shape))
    return results


def value(step: Any, of: list[Any]) -> Any:
    """A step in 500 bits, from its arguments."""
    args = step.args
    match step.kind:
        case "input" | "leaf":
            result = numbers(args["value"])
        case "move":
            entries = [value for part in of for value in part.reshape(-1)]
            index = range(len(entries)) if args["index"] is None else args["index"]
            result = np.empty(step.size, dtype=object)
            result[:] = [arb(0) if k < 0 else entries[k] for k in index]
        case "sum":
            result = sum(sign * part for sign, part in zip(args["signs"], of, strict=True))
        case "scale":
            num, den, square = args["factor"]
            result = of[0] * (arb(num) / (root(den) if square else arb(den)))
        case "product":
            result = of[0] * of[1]
        case "quotient":
            result = of[0] / of[1]
        case "matmul":
            result = np.stack([a.dot(b) for a, b in zip(*of, strict=True)])
        case "affine":
            flat = of[0].reshape(-1)
            if args["index"] is not None:
                flat = np.array([arb(0) if k < 0 else flat[k] for k in args["index"]], dtype=object)
            result = np.stack([a.dot(w) for a, w in zip(flat.reshape(args["rows"]), of[1], strict=True)])
        case "map":
            parameters = {key: value for key, value in args.items() if key != "fn"}
            result = each(lambda x: FUNCTIONS[args["fn"]](x, **parameters), of[0])
        case _:
            result = rows(step, of[0])
    return result.reshape(step.shape)


def rows(step: Any, x: Any) -> Any:
    result = []
    for r, row in enumerate(x):
        if step.kind == "reduce":
            result.append(sum(row, arb(0)))
        elif step.kind == "max":
            top = row[0]
            for value in row[1:]:
                top = top.max(value)
            result.append(top)
        elif step.kind == "normalize":
            mean = sum(row, arb(0)) / len(row) if step.args["center"] else arb(0)
            square = sum(((value - mean) * (value - mean) for value in row), arb(0)) / len(row)
            result.append([(value - mean) / (square + arb(step.args["eps"])).sqrt() for value in row])
        else:
            masked = step.args.get("masked")
            powers = [arb(0) if masked is not None and masked[r, k] else value.exp() for k, value in enumerate(row)]
            total = sum(powers, arb(0))
            if step.kind == "softmax":
                result.append([power / total for power in powers])
            else:
                result.append(total.log() if step.kind == "logsumexp" else [value - total.log() for value in row])
    return np.array(result, dtype=object)


def gradients(program: Program, leaf: int, outputs: Any, places: Any) -> Any:
    """Central differences for some entries of a leaf: shape (outputs, samples, entries)."""
    base = numbers(program.steps[leaf].args["value"]).reshape(-1)
    result = np.empty((len(outputs), program.samples, len(places)), dtype=object)
    for column, k in enumerate(places):
        sides = []
        for sign in (1, -1):
            moved = base.copy()
            moved[k] = moved[k] + sign * arb(2) ** STEP
            final = values(program, {leaf: moved.reshape(program.steps[leaf].shape)})[program.output]
            sides.append(final.reshape(program.samples, -1)[:, list(outputs)].T)
        result[:, :, column] = (sides[0] - sides[1]) * arb(2) ** (-STEP - 1)
    return result


def distance(exact: Any, computed: Any) -> float:
    """The 2-norm of a difference, to a few digits."""
    apart = [a - arb(float(b)) for a, b in zip(exact.reshape(-1), computed.reshape(-1), strict=True)]
    total = sum((value * value for value in apart), arb(0))  # a power of a ball around 0 is not a number
    assert total.is_finite()
    return math.sqrt(max(0.0, float(total.mid())))


def ratios(program: Program, enclosures: Any, truth: Any) -> float:
    """The largest true error of a step and a sample over its radius; an error without a radius is infinite."""
    worst = 0.0
    for step, enclosure, exact in zip(program.steps, enclosures, truth, strict=True):
        owner = np.zeros(step.size, np.int32) if step.owner is None else step.owner
        radius = np.atleast_1d(enclosure.error)
        for sample in range(len(radius)):
            mine = owner == sample
            error = distance(exact.reshape(-1)[mine], enclosure.value.reshape(-1)[mine])
            worst = max(worst, ratio(error, float(radius[sample])))
    return worst


def ratio(error: float, radius: float) -> float:
    if error < 1e-130:  # what 500 bits leave
        return 0.0
    return error / radius if radius > 0 else math.inf


def gradient_ratios(program: Program, computed: Any, outputs: Any, most: int) -> float:
    """The errors of at most so many entries of a leaf are at most those of all."""
    worst = 0.0
    for leaf, (gradient, radius) in computed.items():
        places = np.random.default_rng(leaf).permutation(program.steps[leaf].size)[:most]
        exact = gradients(program, leaf, outputs, places)
        for j in range(len(outputs)):
            for sample in range(program.samples):
                error = distance(exact[j, sample], gradient[j, sample].reshape(-1)[places])
                # The error of the difference quotient is about 2^(2 STEP) times a third derivative.
                worst = max(worst, ratio(max(0.0, error - 1e-60), float(radius[j, sample])))
    return worst


def checked(program: Program, outputs: Any = (0, 1), most: int = 16) -> tuple[float, float]:
    """The largest ratios of true errors to radii, of values and of gradients."""
    with ctx.workprec(BITS):
        enclosures = normwise.forward(program)
        first = ratios(program, enclosures, values(program))
        computed = normwise.gradients(program, enclosures, outputs)
        return first, gradient_ratios(program, computed, outputs, most)


class Builder:
    """A tape with an input, (samples, width), and leaves whose entries are drawn."""

    def __init__(self, rng: Any, samples: int, width: int, scale: float = 1.0) -> None:
        self.rng, self.scale, self.tape = rng, scale, Tape()
        owner = np.repeat(np.arange(samples, dtype=np.int32), width)
        self.samples, self.count = samples, 0
        x = rng.normal(size=(samples, width)) * scale
        self.last = self.tape.append("input", (), (samples, width), owner, value=x)

    @property
    def width(self) -> int:
        return self.tape.steps[self.last].size // self.samples

    def leaf(self, *shape: int, trainable: bool = True, scale: float = 1.0) -> int:
        self.count += trainable
        value = self.rng.normal(size=shape) * scale
        return self.tape.leaf(value, self.count - 1 if trainable else -1, trainable)

    def linear(self, width: int, scale: float = 1.0) -> None:
        W = self.leaf(self.width, width, scale=scale / math.sqrt(self.width))
        self.flat()
        self.last = self.tape.matmul(self.last, W)
        self.last = self.tape.sum(self.last, self.leaf(width))

    def flat(self) -> None:
        self.last = self.tape.reshape(self.last, (self.samples, self.width))

    def apply(self, fn: str, **parameters: Any) -> None:
        self.last = self.tape.map(self.last, fn, **parameters)

    def program(self) -> Program:
        self.flat()
        return self.tape.program(self.last, self.samples)


class Single:
    """One step, whose arguments and whose gradients are within radii of other numbers than the computed ones."""

    def __init__(self, program: Program, radius: float, rng: Any) -> None:
        self.program, self.place, self.rng = program, program.output, rng
        self.step = program.steps[self.place]
        assert all(program.steps[k].kind in ("input", "leaf") for k in self.step.of)
        exact = normwise.forward(program)
        self.values, self.truth = list(exact), {}
        for k in set(self.step.of):
            errors = np.full(np.shape(exact[k].error), radius)
            self.values[k] = normwise.Enclosure(exact[k].value, errors)
            self.truth[k] = numbers(exact[k].value).reshape(-1) + self.moved(k, exact[k].value.size, radius)
        self.run = Run(program, self.values)
        self.run.needed = set(range(len(program.steps)))

    def moved(self, k: int, size: int, radius: float) -> Any:
        """A vector of the given length in each sample."""
        owner = self.program.steps[k].owner
        direction = self.direction(k, size)
        for sample in range(1 if owner is None else self.program.samples):
            mine = slice(None) if owner is None else owner == sample
            direction[mine] *= radius * (1 - 1e-15) / max(np.linalg.norm(direction[mine]), 1e-300)
        return numbers(direction)

    def direction(self, k: int, size: int) -> Any:
        """Where the step changes most, or at random, or one entry."""
        choice = self.rng.integers(3)
        if choice == 0:
            return self.rng.normal(size=size)
        if choice == 1:
            return np.eye(size)[self.rng.integers(size)]
        source = self.rng.choice(self.step.of) if k == self.place else k
        jacobian = self.jacobian({j: numbers(self.values[j].value).reshape(-1) for j in self.step.of}, source)
        floats = np.array([[float(entry.mid()) for entry in row] for row in jacobian])
        owner = self.program.steps[source].owner
        result, mine = np.zeros(size), self.program.steps[k].owner
        for sample in range(self.program.samples):
            rows = slice(None) if self.step.owner is None else self.step.owner == sample
            block = floats[rows] if owner is None else floats[rows][:, owner == sample]
            u, _, v = np.linalg.svd(block)
            result[slice(None) if mine is None else mine == sample] = u[:, 0] if k == self.place else v[0]
        return result

    def jacobian(self, truth: dict[int, Any], k: int) -> Any:
        """Central differences: shape (entries of the step, entries of the argument)."""
        columns = []
        for entry in range(truth[k].size):
            sides = []
            for sign in (1, -1):
                moved = truth[k].copy()
                moved[entry] = moved[entry] + sign * arb(2) ** STEP
                sides.append(self.at({**truth, k: moved}))
            columns.append((sides[0] - sides[1]) * arb(2) ** (-STEP - 1))
        return np.stack(columns, axis=1)

    def at(self, truth: dict[int, Any]) -> Any:
        of = [truth[k].reshape(self.program.steps[k].shape) for k in self.step.of]
        return value(self.step, of).reshape(-1)

    def forward(self) -> float:
        """The largest ratio of an error to its radius."""
        computed, radius = normwise._FORWARD[self.step.kind](self.run, self.place, self.step)
        self.values[self.place] = normwise.Enclosure(np.asarray(computed).reshape(self.step.shape), radius)
        return self.compared(self.place, self.at(self.truth), np.asarray(computed).reshape(-1), np.atleast_1d(radius))

    def compared(self, k: int, exact: Any, computed: Any, radius: Any) -> float:
        owner = self.program.steps[k].owner
        if owner is None:
            return ratio(distance(exact, computed), float(radius.reshape(-1)[0]))
        radius = np.broadcast_to(radius, (self.program.samples,))
        return max(
            ratio(distance(exact[owner == s], computed[owner == s]), float(radius[s]))
            for s in range(self.program.samples)
        )

    def backward(self, radius: float) -> float:
        """The same of the gradients of one output of each sample."""
        shared = self.step.owner is None
        samples = self.program.samples
        g = self.rng.normal(size=(samples if shared else 1, self.step.size))
        e = np.full((len(g), 1 if shared else samples), radius)
        true = np.stack([numbers(row) + self.moved(self.place, self.step.size, radius) for row in g])
        worst = 0.0
        parts: dict[int, Any] = {}
        for k, part, error in normwise._BACKWARD[self.step.kind](self.run, self.place, self.step, g, e):
            before = parts.get(k, (0.0, 0.0))
            parts[k] = before[0] + part, (before[1] + error) * (1 + 1e-15)
        for k, (part, error) in parts.items():
            jacobian = self.jacobian(self.truth, k)
            if self.program.steps[k].owner is None:  # the gradients of each sample
                apart = true
                if not shared:
                    apart = np.stack([np.where(self.step.owner == s, true[0], arb(0)) for s in range(samples)])
                for row, computed, bound in zip(apart, part, error, strict=True):
                    worst = max(worst, ratio(max(0.0, distance(row.dot(jacobian), computed) - 1e-50), float(bound[0])))
            else:
                worst = max(worst, self.compared(k, true[0].dot(jacobian), part[0], error[0]))
        return worst


def single(program: Program, radius: float, slope: float, rng: Any) -> tuple[float, float]:
    """The largest ratios of the last step of a program, forward and backward."""
    with ctx.workprec(BITS):
        one = Single(program, radius, rng)
        return one.forward(), one.backward(slope)
