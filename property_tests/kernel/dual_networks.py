"""Random small networks of torch, and their outputs and derivatives in 60 digits, by definitions of their own.

Numbers are dual: a value of mpmath with its derivatives in all parameters, a sparse mapping. Nothing here uses the
kernel: every layer is written from its definition, for one sample, as nested lists.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import mpmath
import torch
from torch import nn
from torch.nn import functional as F

mp = mpmath.mp.clone()
mp.dps = 60


class Undecided(ArithmeticError):
    """A kink is met."""


class Dual:
    """A number with its derivatives."""

    __slots__ = ("d", "v")

    def __init__(self, v: Any, d: dict[int, Any] | None = None) -> None:
        self.v, self.d = mp.mpf(v), d or {}

    def __add__(self, other: Any) -> Dual:
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.v + other.v, {k: self.d.get(k, 0) + other.d.get(k, 0) for k in self.d.keys() | other.d.keys()})

    def __mul__(self, other: Any) -> Dual:
        other = other if isinstance(other, Dual) else Dual(other)
        keys = self.d.keys() | other.d.keys()
        return Dual(self.v * other.v, {k: self.d.get(k, 0) * other.v + self.v * other.d.get(k, 0) for k in keys})

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Dual:
        return self * -1

    def __sub__(self, other: Any) -> Dual:
        return self + -other

    def __truediv__(self, other: Dual) -> Dual:
        return self * other.of(lambda t: 1 / t, lambda t: -1 / t**2)

    def of(self, f: Any, slope: Any) -> Dual:
        """Apply a function of one number."""
        s = slope(self.v)
        return Dual(f(self.v), {k: s * e for k, e in self.d.items()})

    def by_taylor(self, f: Any) -> Dual:
        """Apply an analytic function whose derivative mpmath finds from its values alone."""
        with mp.workdps(150):
            s = mp.diff(f, self.v)
        return self.of(f, lambda t: s)


def _kink(t: Any, end: Any) -> Any:
    if t == end:
        raise Undecided
    return t > end


def _softplus(beta: float) -> Any:
    b = mp.mpf(beta)
    return lambda x: x.of(lambda t: max(t, 0) + mp.log1p(mp.exp(-abs(b * t))) / b, lambda t: 1 / (1 + mp.exp(-b * t)))


def _tanh(x: Dual) -> Dual:
    return x.of(mp.tanh, lambda t: mp.sech(t) ** 2)


def _sigmoid(x: Dual) -> Dual:
    return x.of(lambda t: 1 / (1 + mp.exp(-t)), lambda t: 1 / (2 + mp.exp(t) + mp.exp(-t)))


def _relu(x: Dual) -> Dual:
    return x.of(lambda t: max(t, mp.mpf(0)), lambda t: mp.mpf(_kink(t, 0)))


ENTRIES: dict[str, tuple[Any, Any]] = {
    "tanh": (torch.tanh, _tanh),
    "sigmoid": (torch.sigmoid, _sigmoid),
    "softplus": (lambda x: F.softplus(x), _softplus(1.0)),
    "softplus 100": (lambda x: F.softplus(x, 100.0), _softplus(100.0)),
    "silu": (F.silu, lambda x: x * _sigmoid(x)),
    "gelu": (F.gelu, lambda x: x.of(lambda t: t * mp.erfc(-t / mp.sqrt(2)) / 2,
                                    lambda t: mp.erfc(-t / mp.sqrt(2)) / 2 + t * mp.npdf(t))),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: x * (1 + _tanh(
        (x + x * x * x * mp.mpf(0.044715)) * mp.sqrt(2 / mp.pi))) * mp.mpf(0.5)),
    "mish": (F.mish, lambda x: x * _tanh(_softplus(1.0)(x))),
    "relu": (torch.relu, _relu),
    "abs": (torch.abs, lambda x: _relu(x) + _relu(-x)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), lambda x: _relu(x) - _relu(-x) * mp.mpf(0.1)),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: x.of(lambda t: t if t > 0 else mp.mpf(0.7) * mp.expm1(t),
                                                    lambda t: mp.mpf(1) if _kink(t, 0) else mp.mpf(0.7) * mp.exp(t))),
    "selu": (F.selu, lambda x: x.of(
        lambda t: mp.mpf(1.0507009873554805) * (t if t > 0 else mp.mpf(1.6732632423543772) * mp.expm1(t)),
        lambda t: mp.mpf(1.0507009873554805) * (1 if _kink(t, 0) else mp.mpf(1.6732632423543772) * mp.exp(t)))),
    "hardsigmoid": (F.hardsigmoid, lambda x: (_relu(x + 3) - _relu(x - 3)) * (mp.mpf(1) / 6)),
    "hardswish": (F.hardswish, lambda x: x * (_relu(x + 3) - _relu(x - 3)) * (mp.mpf(1) / 6)),
    "relu6": (F.relu6, lambda x: _relu(x) - _relu(x - 6)),
    "clamp": (lambda x: x.clamp(-0.25, 0.5),
              lambda x: _relu(x + mp.mpf(0.25)) - _relu(x - mp.mpf(0.5)) + mp.mpf(-0.25)),
    "sin": (torch.sin, lambda x: x.of(mp.sin, mp.cos)),
    "cos": (torch.cos, lambda x: x.of(mp.cos, lambda t: -mp.sin(t))),
    "atan": (torch.atan, lambda x: x.of(mp.atan, lambda t: 1 / (1 + t * t))),
    "erf": (torch.erf, lambda x: x.of(mp.erf, lambda t: 2 * mp.exp(-t * t) / mp.sqrt(mp.pi))),
    "exp of tanh": (lambda x: torch.exp(torch.tanh(x)), lambda x: _tanh(x).of(mp.exp, mp.exp)),
    "expm1 of tanh": (lambda x: torch.expm1(torch.tanh(x)), lambda x: _tanh(x).by_taylor(mp.expm1)),
    "log of sigmoid": (F.logsigmoid, lambda x: -_softplus(1.0)(-x)),
    "log1p": (lambda x: torch.log1p(x * x), lambda x: (x * x).of(mp.log1p, lambda t: 1 / (1 + t))),
    "sqrt": (lambda x: torch.sqrt(x * x + 1), lambda x: (x * x + 1).of(mp.sqrt, lambda t: 1 / (2 * mp.sqrt(t)))),
    "rsqrt": (lambda x: torch.rsqrt(x * x + 1), lambda x: (x * x + 1).by_taylor(lambda t: 1 / mp.sqrt(t))),
    "reciprocal": (lambda x: torch.reciprocal(x * x + 1),
                   lambda x: (x * x + 1).of(lambda t: 1 / t, lambda t: -1 / t**2)),
    "cube": (lambda x: x**3, lambda x: x * x * x),
    "square": (torch.square, lambda x: x * x),
    "shift": (lambda x: (x + 2.0**60) - 2.0**60, lambda x: x),
    "asinh": (torch.asinh, lambda x: x.by_taylor(mp.asinh)),
    "power of 3": (lambda x: 3.0 ** torch.tanh(x), lambda x: _tanh(x).by_taylor(lambda t: mp.mpf(3) ** t)),
}  # fmt: skip


def _sum(parts: Any) -> Dual:
    total = Dual(0)
    for part in parts:
        total = total + part
    return total


def _softmax(row: list[Dual]) -> list[Dual]:
    top = max(x.v for x in row)
    powers = [x.of(lambda t: mp.exp(t - top), lambda t: mp.exp(t - top)) for x in row]
    total = _sum(powers)
    return [p / total for p in powers]


def _logsumexp(row: list[Dual]) -> Dual:
    top = max(x.v for x in row)
    total = _sum(x.of(lambda t: mp.exp(t - top), lambda t: mp.exp(t - top)) for x in row)
    return total.of(mp.log, lambda t: 1 / t) + top


def _normalized(row: list[Dual], eps: float, center: bool) -> list[Dual]:
    n = mp.mpf(len(row))
    mean = _sum(row) * (1 / n) if center else Dual(0)
    parts = [x - mean for x in row]
    s = (_sum(x * x for x in parts) * (1 / n) + mp.mpf(eps)).of(
        lambda t: 1 / mp.sqrt(t), lambda t: -1 / (2 * t * mp.sqrt(t))
    )
    return [x * s for x in parts]


def _largest(row: list[Dual]) -> Dual:
    top = max(row, key=lambda x: x.v)
    if sum(x.v == top.v for x in row) > 1:
        raise Undecided
    return top


def _convolved(row: list[Dual], k: list[Dual], stride: int, padding: int, dilation: int) -> list[Dual]:
    wide = [Dual(0)] * padding + row + [Dual(0)] * padding
    last = len(wide) - dilation * (len(k) - 1)
    return [_sum(wide[i + dilation * j] * w for j, w in enumerate(k)) for i in range(0, last, stride)]


def _spread(row: list[Dual], k: list[Dual], stride: int) -> list[Dual]:
    out = [Dual(0)] * ((len(row) - 1) * stride + len(k))
    for i, x in enumerate(row):
        for j, w in enumerate(k):
            out[i * stride + j] = out[i * stride + j] + x * w
    return out


def _attended(row: list[Dual], w: list[Dual]) -> list[Dual]:
    """Three positions of one number, with causal attention."""
    q, k, v = ([x * w[j] for x in row] for j in range(3))
    out = []
    for i in range(len(row)):
        p = _softmax([q[i] * k[j] for j in range(i + 1)])
        out.append(_sum(a * b for a, b in zip(p, v, strict=False)))
    return out


def _lstm(row: list[Dual], w: list[Dual]) -> list[Dual]:
    h, c, out = Dual(0), Dual(0), []
    for x in row:
        i, f, g, o = (x * w[j] + h * w[4 + j] for j in range(4))
        c = _sigmoid(f) * c + _sigmoid(i) * _tanh(g)
        h = _sigmoid(o) * _tanh(c)
        out.append(h)
    return out


def _bag(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    state = torch.zeros(1, len(x), 1, dtype=x.dtype)
    return torch.lstm(x[:, :, None], (state, state), [w[:4, None], w[4:, None]], False, 1, 0.0, False, False, True)[0][
        :, :, 0
    ]


LAYERS: dict[str, tuple[int, Any, Any]] = {
    "dense": (9, lambda x, w: F.linear(x, w.view(3, 3)),
              lambda r, w: [_sum(x * w[3 * i + j] for j, x in enumerate(r)) for i in range(3)]),
    "dense, transposed": (9, lambda x, w: x @ w.view(3, 3),
                          lambda r, w: [_sum(x * w[3 * j + i] for j, x in enumerate(r)) for i in range(3)]),
    "bias": (3, lambda x, w: x + w, lambda r, w: [a + b for a, b in zip(r, w, strict=True)]),
    "scale": (3, lambda x, w: x * w, lambda r, w: [a * b for a, b in zip(r, w, strict=True)]),
    "quotient": (3, lambda x, w: x / (w * w + 1), lambda r, w: [a / (b * b + 1) for a, b in zip(r, w, strict=True)]),
    "difference": (3, lambda x, w: 2 * w - x / 3, lambda r, w: [b * 2 - a * (mp.mpf(1) / 3)
                                                               for a, b in zip(r, w, strict=True)]),
    "gate": (3, lambda x, w: x * torch.sigmoid(x * w), lambda r, w: [a * _sigmoid(a * b)
                                                                    for a, b in zip(r, w, strict=True)]),
    "layer norm": (3, lambda x, w: F.layer_norm(x, (3,), w), lambda r, w: [
        a * b for a, b in zip(_normalized(r, 1e-5, True), w, strict=True)]),
    "rms norm": (3, lambda x, w: F.rms_norm(x, (3,), w, 1e-3), lambda r, w: [
        a * b for a, b in zip(_normalized(r, 1e-3, False), w, strict=True)]),
    "softmax": (0, lambda x, w: torch.softmax(x, 1), lambda r, w: _softmax(r)),
    "log_softmax": (0, lambda x, w: torch.log_softmax(x, 1), lambda r, w: [x - _logsumexp(r) for x in r]),
    "logsumexp": (0, lambda x, w: x - torch.logsumexp(x, 1, True), lambda r, w: [x - _logsumexp(r) for x in r]),
    "centred": (0, lambda x, w: x - x.mean(1, True), lambda r, w: [x - _sum(r) * (mp.mpf(1) / 3) for x in r]),
    "cumsum": (0, lambda x, w: torch.cumsum(x, 1), lambda r, w: [_sum(r[: k + 1]) for k in range(3)]),
    "flip": (0, lambda x, w: x.flip(1), lambda r, w: r[::-1]),
    "skip": (0, lambda x, w: x + torch.tanh(x), lambda r, w: [x + _tanh(x) for x in r]),
    "rolled": (0, lambda x, w: torch.cat([x[:, 1:], x[:, :1]], 1), lambda r, w: [*r[1:], r[0]]),
    "convolution": (3, lambda x, w: F.conv1d(x[:, None], w[None, None], padding=1)[:, 0],
                    lambda r, w: _convolved(r, w, 1, 1, 1)),
    "dilated": (3, lambda x, w: F.conv1d(x[:, None], w[None, None], padding=2, dilation=2)[:, 0],
                lambda r, w: _convolved(r, w, 1, 2, 2)),
    "transposed": (2, lambda x, w: F.conv_transpose1d(x[:, None], w[None, None], stride=2)[:, 0, 1:4],
                   lambda r, w: _spread(r, w, 2)[1:4]),
    "average": (0, lambda x, w: F.avg_pool1d(x, 2, 1, 1)[:, :3],
                lambda r, w: [(a + b) * mp.mpf(0.5) for a, b in itertools.pairwise([Dual(0), *r])]),
    "maximum": (3, lambda x, w: F.max_pool1d(x * w, 3, 1, 1), lambda r, w: [
        _largest([a * b for a, b in zip(r, w, strict=True)][max(0, i - 1) : i + 2]) for i in range(3)]),
    "attention": (3, lambda x, w: F.scaled_dot_product_attention(
        *(x[:, :, None] * w[j] for j in range(3)), is_causal=True)[:, :, 0], _attended),
    "lstm": (8, _bag, _lstm),
    "products": (1, lambda x, w: torch.bmm(x[:, :, None], (x * w)[:, None]).sum(1), lambda r, w: [
        _sum(a * b * w[0] for a in r) for b in r]),
}  # fmt: skip


class RandomNetwork(nn.Module):
    """A chain of layers on rows of three numbers; some share their parameter with an earlier one."""

    def __init__(self, seed: int, dtype: torch.dtype, size: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.words: list[tuple[str, int]] = []
        self.p = nn.ParameterList()
        lengths: list[int] = []
        for _ in range(size):
            name = draw.choice([*ENTRIES, *LAYERS, *LAYERS])
            if name in ENTRIES or not LAYERS[name][0]:
                self.words.append((name, -1))
                continue
            need = LAYERS[name][0]
            again = [k for k, length in enumerate(lengths) if length == need]
            if again and draw.random() < 0.4:
                self.words.append((name, draw.choice(again)))
                continue
            numbers = torch.tensor([_number(draw) for _ in range(need)], dtype=torch.float64)
            self.p.append(nn.Parameter(numbers.to(dtype), requires_grad=draw.random() < 0.9))
            lengths.append(need)
            self.words.append((name, len(lengths) - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, k in self.words:
            x = ENTRIES[name][0](x) if name in ENTRIES else LAYERS[name][1](x, self.p[k] if k >= 0 else None)
        return x


def _number(draw: random.Random) -> float:
    kind = draw.random()
    if kind < 0.03:
        return draw.choice([1e-300, -1e150, 5e-324, 3e-310, 1e4, -60000.0, 2.0**-24])
    return draw.gauss(0.0, 1.0) if kind < 0.8 else draw.choice([0.0, 1.0, -1.0, 8.0, -30.0, 0.5])


def exact(model: RandomNetwork, x: list[float]) -> tuple[list[Any], list[list[Any]]]:
    """Return the outputs for one sample, and their derivatives in all trainable parameters, in their order."""
    numbers, count = [], 0
    for p in model.p:
        row = []
        for value in p.detach().double().tolist():
            row.append(Dual(value, {count: mp.mpf(1)} if p.requires_grad else {}))
            count += p.requires_grad
        numbers.append(row)
    r = [Dual(value) for value in x]
    for name, k in model.words:
        r = (
            [ENTRIES[name][1](value) for value in r]
            if name in ENTRIES
            else LAYERS[name][2](r, numbers[k] if k >= 0 else [])
        )
    return [value.v for value in r], [[value.d.get(k, mp.mpf(0)) for k in range(count)] for value in r]
