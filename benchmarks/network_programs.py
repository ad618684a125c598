"""Random programs of layers, run by torch and, one sample at a time, by numbers of python-flint with derivatives.

Nothing here uses alignver: each layer is written from its definition, beside what torch has for it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import torch
from flint import arb
from torch import nn
from torch.nn import functional as F

__all__ = ["FAMILIES", "Case", "Kink", "case"]

TOKENS = 2
TAPE = []  # the numbers of one sample


class Kink(ArithmeticError):
    """A function is not differentiable, or that is not decided."""


# -- numbers with derivatives -----------------------------------------------------------------------------------------


class Number:
    """A ball, and what it was computed of: pairs of a number and the partial derivative."""

    __slots__ = ("of", "value")

    def __init__(self, value, *of):
        self.value, self.of = value, of
        TAPE.append(self)

    def __add__(self, other):
        if not isinstance(other, Number):
            return Number(self.value + other, (self, arb(1)))
        return Number(self.value + other.value, (self, arb(1)), (other, arb(1)))

    def __mul__(self, other):
        if not isinstance(other, Number):
            other = arb(other)
            return Number(self.value * other, (self, other))
        return Number(self.value * other.value, (self, other.value), (other, self.value))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        if not isinstance(other, Number):
            return self * (1 / arb(other))
        return self * other.function(1 / other.value, -1 / other.value**2)

    def function(self, value, slope):
        if not (value.is_finite() and slope.is_finite()):
            raise Kink
        return Number(value, (self, slope))

    def exp(self):
        e = self.value.exp()
        return self.function(e, e)

    def log(self):
        return self.function(self.value.log(), 1 / self.value)

    def sqrt(self):
        root = self.value.sqrt()
        return self.function(root, 1 / (2 * root))

    def tanh(self):
        return self.function(self.value.tanh(), 1 / self.value.cosh() ** 2)

    def above(self, end):
        """Whether this is above a number."""
        if self.value > end:
            return True
        if self.value < end:
            return False
        raise Kink


def derivatives(output, parameters):
    slopes = {id(output): arb(1)}
    for number in reversed(TAPE):
        slope = slopes.get(id(number))
        if slope is not None:
            for source, partial in number.of:
                before = slopes.get(id(source))
                slopes[id(source)] = slope * partial if before is None else before + slope * partial
    return [slopes.get(id(parameter), arb(0)) for parameter in parameters]


def total(terms):
    return functools.reduce(lambda a, b: a + b, terms)


# -- functions of an entry --------------------------------------------------------------------------------------------


def sigmoid(x):
    return 0.5 * ((0.5 * x).tanh() + 1)


def softplus(x, beta=1.0):
    """With e^(beta x) of the smaller of x and -x."""
    y, shift = (x, 0) if x.value < 0 else (-x, x)
    return ((beta * y).exp() + 1).log() * (1 / arb(beta)) + shift


def erf(x):
    return x.function(x.value.erf(), 2 / arb.pi().sqrt() * (-x.value * x.value).exp())


def elu(x, alpha=1.0, scale=1.0):
    return scale * x if x.above(0) else arb(scale) * arb(alpha) * (x.exp() - 1)


def relu(x):
    return x if x.above(0) else 0 * x


def least(x, end):
    return 0 * x + end if x.above(end) else x


SELU = 1.6732632423543772, 1.0507009873554805
MAPS = {
    "tanh": (torch.tanh, Number.tanh),
    "sigmoid": (torch.sigmoid, sigmoid),
    "softplus": (F.softplus, softplus),
    "softplus 100": (lambda x: F.softplus(x, 100.0), lambda x: softplus(x, 100.0)),
    "gelu": (F.gelu, lambda x: 0.5 * x * (erf(x * (1 / arb(2).sqrt())) + 1)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"),
                  lambda x: 0.5 * x * ((x * (x * x * 0.044715 + 1) * (2 / arb.pi()).sqrt()).tanh() + 1)),
    "silu": (F.silu, lambda x: x * sigmoid(x)),
    "mish": (F.mish, lambda x: x * softplus(x).tanh()),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: elu(x, 0.7)),
    "smooth elu": (F.elu, lambda x: x * 1 if 0 in x.value and x.value.is_exact() else elu(x)),
    "selu": (F.selu, lambda x: elu(x, *SELU)),
    "relu": (torch.relu, relu),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.25), lambda x: x if x.above(0) else 0.25 * x),
    "relu6": (F.relu6, lambda x: least(relu(x), 6)),
    "clamp": (lambda x: x.clamp(-0.5, 0.75), lambda x: least(relu(x + 0.5) - 0.5, 0.75)),
    "hardswish": (F.hardswish, lambda x: x * least(relu(x + 3), 6) / 6),
    "hardsigmoid": (F.hardsigmoid, lambda x: least(relu(x + 3), 6) / 6),
    "softsign": (F.softsign, lambda x: x / ((x if x.above(0) else -x) + 1)),
    "logsigmoid": (F.logsigmoid, lambda x: -softplus(-x)),
    "tanhshrink": (F.tanhshrink, lambda x: x - x.tanh()),
    "softshrink": (lambda x: F.softshrink(x, 0.25), lambda x: relu(x - 0.25) - relu(-x - 0.25)),
    "hardshrink": (lambda x: F.hardshrink(x, 0.25),
                   lambda x: x if (x if x.above(0) else -x).above(0.25) else 0 * x),
    "abs": (torch.abs, lambda x: x if x.above(0) else -x),
    "sin": (torch.sin, lambda x: x.function(x.value.sin(), x.value.cos())),
    "cos": (torch.cos, lambda x: x.function(x.value.cos(), -x.value.sin())),
    "atan": (torch.atan, lambda x: x.function(x.value.atan(), 1 / (x.value**2 + 1))),
    "erf": (torch.erf, erf),
    "erfc": (torch.erfc, lambda x: 1 - erf(x)),
    "exp": (lambda x: torch.exp(torch.tanh(x)), lambda x: x.tanh().exp()),
    "expm1": (lambda x: torch.expm1(-x * x), lambda x: (-x * x).exp() - 1),
    "exp2": (lambda x: torch.exp2(torch.sin(x)), lambda x: (MAPS["sin"][1](x) * arb(2).log()).exp()),
    "log1p": (lambda x: torch.log1p(x * x), lambda x: (x * x + 1).log()),
    "asinh": (torch.asinh, lambda x: x.function(x.value.asinh(), 1 / (x.value**2 + 1).sqrt())),
    "square": (torch.square, lambda x: x * x),
    "cube": (lambda x: x**3, lambda x: x * x * x),
    "root": (lambda x: torch.sqrt(x * x + 1), lambda x: (x * x + 1).sqrt()),
    "inverse": (lambda x: 1 / (x * x + 2), lambda x: (x * x + 2).function(
        1 / (x.value**2 + 2), -1 / (x.value**2 + 2) ** 2)),
    "power": (lambda x: (x * x + 1) ** 1.5, lambda x: ((x * x + 1).log() * 1.5).exp()),
    "negative": (torch.neg, lambda x: -x),
    "cancelling": (lambda x: (x + 2.0**40) - 2.0**40, lambda x: x * 1),
    "scaled back": (lambda x: x * 1e18 / 1e18, lambda x: x * 1),
    "saturated": (lambda x: torch.tanh(x * 30.0), lambda x: (x * 30).tanh()),
    "tiny": (lambda x: x * 1e-30, lambda x: x * 1e-30),
}  # fmt: skip

# -- layers: (n, k) tensors of torch, and lists of k numbers of one sample --------------------------------------------


def dense(x, W, b=None):
    rows = [total([w * v for w, v in zip(row, x)]) for row in W]
    return rows if b is None else [r + c for r, c in zip(rows, b)]


def softmax(x):
    top = max(float(v.value.mid()) for v in x)
    powers = [(v - top).exp() for v in x]
    return [p / total(powers) for p in powers]


def normal(x, eps, center=True):
    mean = total(x) / len(x) if center else None
    off = [v - mean for v in x] if center else x
    s = (total([v * v for v in off]) / len(x) + eps).sqrt()
    return [v / s for v in off]


def unit(x, eps=1e-12):
    length = total([v * v for v in x]).sqrt()
    return [v / length if length.above(eps) else v / eps for v in x]


def largest(x):
    best = x[0]
    for v in x[1:]:
        if v is not best:
            best = v if (v - best).above(0) else best
    return best


def tokens(x):
    return [x[k : k + len(x) // TOKENS] for k in range(0, len(x), len(x) // TOKENS)]


def flat(parts):
    return [v for part in parts for v in part]


def attend(x, Q, K, V, causal):
    q, k, v = ([dense(token, W) for token in tokens(x)] for W in (Q, K, V))
    result = []
    for i, query in enumerate(q):
        seen = range(i + 1) if causal else range(len(k))
        scores = [total([a * b for a, b in zip(query, k[j])]) / arb(len(query)).sqrt() for j in seen]
        weights = softmax(scores) if len(scores) > 1 else [0 * scores[0] + 1]
        result.append([total([w * v[j][e] for w, j in zip(weights, seen)]) for e in range(len(query))])
    return flat(result)


def torch_attend(x, Q, K, V, causal):
    parts = x.reshape(len(x), TOKENS, -1)
    q, k, v = (parts @ W.T for W in (Q, K, V))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).flatten(1)


def recur(x, Wx, Wh, bx, bh, kind):
    h = c = None
    size = len(Wh[0])
    for token in tokens(x):
        a = dense(token, Wx, bx)
        b = dense(h, Wh, bh) if h else [0 * a[j] + bh[j] for j in range(len(bh))]
        part = lambda z, j: z[j * size : (j + 1) * size]  # noqa: E731
        if kind == "rnn":
            h = [(u + v).tanh() for u, v in zip(a, b)]
        elif kind == "gru":
            r, z = ([sigmoid(u + v) for u, v in zip(part(a, j), part(b, j))] for j in (0, 1))
            n = [(u + w * v).tanh() for u, v, w in zip(part(a, 2), part(b, 2), r)]
            h = [(1 - g) * m + (g * old if h else 0 * g) for g, m, old in zip(z, n, h or n)]
        else:
            i, f, g, o = ([u + v for u, v in zip(part(a, j), part(b, j))] for j in range(4))
            new = [sigmoid(u) * v.tanh() for u, v in zip(i, g)]
            c = [n + sigmoid(u) * old for n, u, old in zip(new, f, c)] if c else new
            h = [sigmoid(u) * v.tanh() for u, v in zip(o, c)]
    return h


def torch_recur(x, Wx, Wh, bx, bh, kind):
    parts = x.reshape(len(x), TOKENS, -1)
    states = [parts.new_zeros(1, len(x), Wh.shape[1]) for _ in range(2 if kind == "lstm" else 1)]
    run = {"rnn": torch.rnn_tanh, "gru": torch.gru, "lstm": torch.lstm}[kind]
    hx = states if kind == "lstm" else states[0]
    return run(parts, hx, [Wx, Wh, bx, bh], True, 1, 0.0, False, False, True)[0][:, -1]


def convolve(x, W, b, dilation):
    out = []
    for kernel, bias in zip(W, b):
        for i in range(len(x)):
            taps = [(t, i + dilation * (t - 1)) for t in range(3)]
            out.append(total([kernel[0][t] * x[j] for t, j in taps if 0 <= j < len(x)]) + bias)
    return out


def torch_convolve(x, W, b, dilation):
    return F.conv1d(x[:, None], W, b, padding=dilation, dilation=dilation).flatten(1)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Shapes of the parameters and the width of the result, for widths k (and m of a second state)."""

    shapes: object
    width: object
    torch: object
    exact: object
    states: int = 1
    needs: object = lambda *k: True


def same(k, *more):
    return k


def of_row(function, exact, width=same, needs=lambda k: True):
    return Layer(lambda rng, k: [], width, lambda x: function(x), exact, needs=needs)


def even(k):
    return k % TOKENS == 0


def square_of(k):
    return [(k // TOKENS, k // TOKENS)] * 3


def gates(kind):
    count = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    return lambda rng, k: [(2 * count, k // TOKENS), (2 * count, 2), (2 * count,), (2 * count,)]


MANY = lambda k: k >= 2  # noqa: E731
FLAT = {
    "dense": Layer(lambda rng, k: [(int(rng.integers(1, 5)), k)], None, F.linear, dense),
    "affine": Layer(lambda rng, k: [(w := int(rng.integers(1, 5)), k), (w,)], None, F.linear, dense),
    "gain": Layer(lambda rng, k: [(k,)], same, lambda x, a: x * a, lambda x, a: [u * v for u, v in zip(x, a)]),
    "bias": Layer(lambda rng, k: [(k,)], same, lambda x, a: x + a, lambda x, a: [u + v for u, v in zip(x, a)]),
    "factor": Layer(lambda rng, k: [(1,)], same, lambda x, a: x * a, lambda x, a: [v * a[0] for v in x]),
    "prelu": Layer(lambda rng, k: [(1,)], same, F.prelu, lambda x, a: [v if v.above(0) else v * a[0] for v in x]),
    "softmax": of_row(lambda x: F.softmax(x, -1), softmax, needs=MANY),
    "log softmax": of_row(lambda x: F.log_softmax(x, -1), lambda x: [p.log() for p in softmax(x)], needs=MANY),
    "layer norm": of_row(lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: normal(x, 1e-5), needs=MANY),
    "layer norm, no eps": of_row(lambda x: F.layer_norm(x, x.shape[-1:], eps=0.0), lambda x: normal(x, 0), needs=MANY),
    "rms norm": of_row(lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6), lambda x: normal(x, 1e-6, False)),
    "normalize": of_row(lambda x: F.normalize(x, dim=-1, eps=1e-12), unit),
    "logsumexp": of_row(lambda x: torch.logsumexp(x, -1, True), lambda x: [total([v.exp() for v in x]).log()],
                        lambda k: 1),
    "mean": of_row(lambda x: x.mean(-1, True), lambda x: [total(x) / len(x)], lambda k: 1),
    "variance": of_row(lambda x: x.var(-1, keepdim=True), lambda x: [
        total([(v - total(x) / len(x)) * (v - total(x) / len(x)) for v in x]) / (len(x) - 1)], lambda k: 1, MANY),
    "maximum": of_row(lambda x: x.amax(-1, True), lambda x: [largest(x)], lambda k: 1),
    "product of all": of_row(lambda x: x.prod(-1, True), lambda x: [functools.reduce(lambda a, b: a * b, x)],
                             lambda k: 1),
    "cumsum": of_row(lambda x: x.cumsum(-1), lambda x: [total(x[: k + 1]) for k in range(len(x))]),
    "flip": of_row(lambda x: x.flip(-1), lambda x: x[::-1]),
    "roll": of_row(lambda x: x.roll(1, -1), lambda x: x[-1:] + x[:-1]),
    "twice": of_row(lambda x: torch.cat([x, x], -1), lambda x: x + x, lambda k: 2 * k, lambda k: k <= 3),
    "head": of_row(lambda x: x[:, :-1], lambda x: x[:-1], lambda k: k - 1, MANY),
    "mask": of_row(lambda x: x.masked_fill(torch.arange(x.shape[-1]) % 2 == 1, 0.5),
                   lambda x: [v if k % 2 == 0 else 0 * v + 0.5 for k, v in enumerate(x)]),
    "average pooling": of_row(lambda x: F.avg_pool1d(x[:, None], 2, 1).flatten(1), lambda x: [
        (a + b) / 2 for a, b in itertools.pairwise(x)], lambda k: k - 1, MANY),
    "max pooling": of_row(lambda x: F.max_pool1d(x[:, None], 2, 1).flatten(1), lambda x: [
        largest([a, b]) for a, b in itertools.pairwise(x)], lambda k: k - 1, MANY),
    "glu": of_row(lambda x: F.glu(x, -1), lambda x: [a * sigmoid(b) for a, b in zip(*tokens(x))],
                  lambda k: k // 2, even),
    "outer": of_row(lambda x: torch.einsum("ni,nj->nij", x, x).flatten(1), lambda x: [u * v for u in x for v in x],
                    lambda k: k * k, lambda k: k <= 2),
    **{f"convolution, dilation {d}": Layer(
        lambda rng, k: [(w := int(rng.integers(1, 3)), 1, 3), (w,)], lambda k, W, b: k * W[0],
        functools.partial(torch_convolve, dilation=d), functools.partial(convolve, dilation=d), needs=lambda k: k <= 3)
       for d in (1, 2)},
}  # fmt: skip
SEQUENCES = {
    **{f"{'causal ' if causal else ''}attention": Layer(
        lambda rng, k: square_of(k), lambda k, *shapes: k, functools.partial(torch_attend, causal=causal),
        functools.partial(attend, causal=causal), needs=even) for causal in (False, True)},
    **{kind: Layer(gates(kind), lambda k, *shapes: 2, functools.partial(torch_recur, kind=kind),
                   functools.partial(recur, kind=kind), needs=even) for kind in ("rnn", "gru", "lstm")},
    "token mean": of_row(lambda x: x.reshape(len(x), TOKENS, -1).mean(1), lambda x: [
        total(p) / TOKENS for p in zip(*tokens(x))], lambda k: k // TOKENS, even),
    "token logsumexp": of_row(lambda x: x.reshape(len(x), TOKENS, -1).logsumexp(1), lambda x: [
        total([v.exp() for v in p]).log() for p in zip(*tokens(x))], lambda k: k // TOKENS, even),
    "token dense": Layer(
        lambda rng, k: [(k // TOKENS, k // TOKENS), (k // TOKENS,)], lambda k, *shapes: k,
        lambda x, W, b: F.linear(x.reshape(len(x), TOKENS, -1), W, b).flatten(1),
        lambda x, W, b: flat([dense(t, W, b) for t in tokens(x)]), needs=even),
    "token norm": of_row(lambda x: F.layer_norm(x.reshape(len(x), TOKENS, -1), (x.shape[1] // TOKENS,)).flatten(1),
                         lambda x: flat([normal(t, 1e-5) for t in tokens(x)]), needs=lambda k: k % 4 == 0),
    "instance norm": of_row(lambda x: F.instance_norm(x.reshape(len(x), TOKENS, -1)).flatten(1),
                            lambda x: flat([normal(t, 1e-5) for t in tokens(x)]), needs=lambda k: k % 4 == 0),
    "gram": of_row(lambda x: ((y := x.reshape(len(x), TOKENS, -1)) @ y.mT).flatten(1), lambda x: [
        total([u * v for u, v in zip(a, b)]) for a in tokens(x) for b in tokens(x)], lambda k: TOKENS**2, even),
}  # fmt: skip
TWO = {
    "sum": lambda x, y: x + y, "difference": lambda x, y: x - y, "product": lambda x, y: x * y,
    "quotient": lambda x, y: x / (y * y + 1),
}  # fmt: skip
PAIRS = {
    **{name: Layer(lambda rng, k, m: [], same, function, lambda x, y, f=function: [f(u, v) for u, v in zip(x, y)], 2,
                   lambda k, m: k == m) for name, function in TWO.items()},
    "join": Layer(lambda rng, k, m: [], lambda k, m: k + m, lambda x, y: torch.cat([x, y], -1), lambda x, y: x + y, 2,
                  lambda k, m: k + m <= 6),
    "larger": Layer(lambda rng, k, m: [], same, torch.maximum, lambda x, y: [largest([u, v]) for u, v in zip(x, y)], 2,
                    lambda k, m: k == m),
    "bilinear": Layer(lambda rng, k, m: [(2, k, m), (2,)], lambda k, m, W, b: W[0], F.bilinear,
                      lambda x, y, W, b: [total([x[i] * M[i][j] * y[j] for i in range(len(x)) for j in range(len(y))])
                                          + c for M, c in zip(W, b)], 2, lambda k, m: k * m <= 6),
}  # fmt: skip
ENTRIES = {
    name: Layer(lambda rng, k: [], same, function, lambda x, f=exact: [f(v) for v in x])
    for name, (function, exact) in MAPS.items()
}
LAYERS = FLAT | SEQUENCES | PAIRS | ENTRIES
FAMILIES = {"dense": ["dense", "affine", "gain", "bias", "factor"], "rows": list(FLAT), "sequences": list(SEQUENCES),
            "pairs": list(PAIRS)}  # fmt: skip

# -- programs ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """A layer, the states that it reads (0: the inputs), and its parameters."""

    layer: str
    of: list[int]
    parameters: list[int]


class Program(nn.Module):
    """A random program of layers as a module of torch."""

    def __init__(self, rng, family, width):
        super().__init__()
        self.steps, widths, shapes = [], [width], []
        depth = int(rng.integers(1, 5))
        while len(self.steps) < depth or sum(math.prod(shape) for shape in shapes) == 0:
            kinds = FAMILIES[family] if rng.random() < 0.6 else FAMILIES["dense"] if rng.random() < 0.5 else None
            name = str(rng.choice(kinds if kinds else list(ENTRIES)))
            layer = LAYERS[name]
            of = [len(widths) - 1 if j == 0 else int(rng.integers(len(widths))) for j in range(layer.states)]
            if rng.random() < 0.1:
                of[0] = int(rng.integers(len(widths)))
            k = [widths[j] for j in of]
            if not layer.needs(*k):
                continue
            needed = layer.shapes(rng, *k)
            old = [[j for j, shape in enumerate(shapes) if shape == need] for need in needed]
            tied = needed and all(old) and rng.random() < 0.25
            places = [int(rng.choice(o)) for o in old] if tied else list(range(len(shapes), len(shapes) + len(needed)))
            shapes += [] if tied else needed
            out = needed[0][0] if layer.width is None else layer.width(*k, *needed)
            if out > 6:
                continue
            self.steps.append(Step(name, of, places))
            widths.append(out)
        if rng.random() < 0.7 or widths[-1] > 3:
            m = int(rng.integers(1, 4)) if rng.random() < 0.4 else 1
            biased = rng.random() < 0.6
            self.steps.append(Step("affine" if biased else "dense", [len(widths) - 1],
                                   list(range(len(shapes), len(shapes) + 1 + biased))))  # fmt: skip
            shapes += [(m, widths[-1]), (m,)][: 1 + biased]
            widths.append(m)
        self.shapes, self.out = shapes, widths[-1]
        self.kind = str(rng.choice(["normal", "normal", "normal", "integers", "sparse", "copies", "large", "small",
                                    "subnormal", "mixed", "halves"]))  # fmt: skip
        self.p = nn.ParameterList([nn.Parameter(torch.tensor(drawn(rng, shape, self.kind))) for shape in shapes])
        if rng.random() < 0.25:
            for parameter in self.p:
                parameter.requires_grad_(bool(rng.random() < 0.6))
            if not any(parameter.requires_grad for parameter in self.p):
                self.p[-1].requires_grad_(True)

    def forward(self, x):
        states = [x]
        for step in self.steps:
            layer = LAYERS[step.layer]
            states.append(layer.torch(*(states[k] for k in step.of), *(self.p[k] for k in step.parameters)))
        return states[-1]

    def jacobian(self, X):
        """Return J, the outputs of the first sample first, as balls."""
        rows, outputs = [], []
        for x in X:
            TAPE.clear()
            leaves = [[Number(arb(float(v))) for v in p.detach().double().reshape(-1)] for p in self.p]
            states = [[Number(arb(float(v))) for v in x]]
            for step in self.steps:
                parts = [nested(leaves[k], self.shapes[k]) for k in step.parameters]
                states.append(LAYERS[step.layer].exact(*(states[k] for k in step.of), *parts))
            moving = [v for leaf, p in zip(leaves, self.p) if p.requires_grad for v in leaf]
            rows += [derivatives(output, moving) for output in states[-1]]
            outputs.append([float(v.value.mid()) for v in states[-1]])
        return rows, np.array(outputs)

    def __str__(self):
        return f"{', '.join(step.layer for step in self.steps)} ({self.kind}, {self.p[0].dtype})".replace("torch.", "")


def nested(entries, shape):
    if len(shape) == 1:
        return entries
    size = len(entries) // shape[0]
    return [nested(entries[k * size : (k + 1) * size], shape[1:]) for k in range(shape[0])]


def drawn(rng, shape, kind):
    value = rng.normal(size=shape)
    if kind == "mixed":
        kind = str(rng.choice(["normal", "integers", "large", "small", "sparse"]))
    if kind == "integers":
        value = rng.integers(-2, 3, size=shape).astype(float)
    elif kind == "sparse":
        value = value * (rng.random(shape) < 0.5)
    elif kind == "copies" and shape[0] > 1:
        value[1] = value[0]
    elif kind in ("large", "small", "subnormal"):
        value = value * {"large": 40.0, "small": 1e-6, "subnormal": 1e-42}[kind]
    elif kind == "halves":
        value = np.round(value * 4) / 4
    return value


def inputs(rng, n, width, kind):
    X = rng.normal(size=(n, width))
    if kind == "integers":
        X = rng.integers(-2, 3, size=(n, width)).astype(float)
    elif kind == "close":
        X[1] = X[0] + 1e-6 * rng.normal(size=width)
    elif kind == "mirrored":
        X[n // 2 :] = -X[: n - n // 2]
    elif kind == "repeated":
        X[1] = X[0]
    elif kind == "large":
        X *= 100.0
    elif kind == "zero":
        X[0] = 0.0
    return X


DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclasses.dataclass
class Case:
    model: Program
    X: torch.Tensor
    Y: np.ndarray
    words: str


def case(seed, family):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 5))
    model = Program(rng, family, width).to(DTYPES[rng.integers(len(DTYPES))]).eval()
    n = int(rng.integers(2, 7))
    kind = str(rng.choice(["normal", "normal", "normal", "integers", "close", "mirrored", "repeated", "large", "zero"]))
    X = torch.tensor(inputs(rng, n, width, kind)).to(model.p[0].dtype)
    Y = rng.normal(size=(n, model.out))
    aim = str(rng.choice(["normal", "normal", "integers", "constant", "zero", "sparse", "equal"]))
    if aim == "integers":
        Y = rng.integers(-1, 2, size=Y.shape).astype(float)
    elif aim == "constant":
        Y[:] = 1.0
    elif aim == "zero":
        Y[:, int(rng.integers(model.out))] = 0.0
    elif aim == "sparse":
        Y *= rng.random(Y.shape) < 0.4
    if kind == "repeated" and rng.random() < 0.7:
        Y[1] = Y[0]
    frozen = sum(not p.requires_grad for p in model.p)
    words = f"{family} {seed}: {model}, {n} samples ({kind}), {model.out} outputs, targets {aim}"
    return Case(model, X, Y, words + (f", {frozen} frozen" if frozen else ""))
