"""Functions of the entries of an array in ball arithmetic: the balls of the value and of the derivative.

A derivative that is not decided, at a kink, is None.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from alignver.kernel.failure import require

arb: Any
try:
    from flint import arb
except ImportError:  # balls are optional: without them their claims are refused
    arb = None

Pair = tuple[Any, Any]


def _sigmoid(x: Any) -> Pair:
    s = 1 / (1 + (-x).exp())
    return s, s * (1 - s)


def _softplus(x: Any, beta: float) -> Pair:
    e = (-abs(beta * x)).exp() if 0 not in x else (-(beta * x)).exp()
    if x > 0 or 0 in x:
        return x + e.log1p() / beta, 1 / (1 + e)
    return e.log1p() / beta, e / (1 + e)


def _tanh(x: Any) -> Pair:
    t = x.tanh()
    return t, 1 - t * t


def _normal(x: Any) -> Pair:
    """Return the distribution function of the normal law and its density."""
    root = arb(2).sqrt()
    return (1 + (x / root).erf()) / 2, (-x * x / 2).exp() / (root * arb.pi().sqrt())


def _gelu(x: Any, approximate: str) -> Pair:
    if approximate == "none":
        p, density = _normal(x)
        return x * p, p + x * density
    c, a = (arb(2) / arb.pi()).sqrt(), arb(0.044715)
    t, dt = _tanh(c * (x + a * x * x * x))
    return x * (1 + t) / 2, (1 + t) / 2 + x * dt * c * (1 + 3 * a * x * x) / 2


def _silu(x: Any) -> Pair:
    s, ds = _sigmoid(x)
    return x * s, s + x * ds


def _mish(x: Any) -> Pair:
    p, dp = _softplus(x, 1.0)
    t, dt = _tanh(p)
    return x * t, t + x * dt * dp


def _logsigmoid(x: Any) -> Pair:
    p, dp = _softplus(-x, 1.0)
    return -p, dp


def _power(x: Any, exponent: float) -> Pair:
    if exponent == 0.0:
        return arb(1), arb(0)
    if exponent == int(exponent) and abs(exponent) <= 64:
        whole = int(exponent)
        require(whole >= 1 or 0 not in x, "a negative power of 0")
        return x**whole, whole * x ** (whole - 1)
    require(bool(x > 0), "a power of a number that is not positive")
    return x ** arb(exponent), arb(exponent) * x ** (arb(exponent) - 1)


def positive(x: Any) -> Any:
    """Return a ball, all of which has to be positive."""
    require(bool(x > 0), "a root or logarithm of a number that is not positive")
    return x


def _pieces(x: Any, *pieces: tuple[float, Callable[[Any], Pair]]) -> Pair:
    """Return value and derivative of a continuous function of pieces, each with the right end of its interval."""
    for end, piece in pieces:
        if x < end:
            return piece(x)
        if not x > end and end != math.inf:
            values = [part(x)[0] for _, part in pieces]
            return functools.reduce(lambda hull, value: hull.union(value), values), None
    return pieces[-1][1](x)


@functools.cache
def _constant(value: float) -> Callable[[Any], Pair]:
    """Return a constant function, whose value is one object: equal for certain, and with the same derivative."""
    pair = (arb(value), arb(0))
    return lambda x: pair


def _line(slope: Any, shift: Any = 0) -> Callable[[Any], Pair]:
    return lambda x: (arb(slope) * x + shift, arb(slope))


def _clamp(x: Any, low: float, high: float) -> Pair:
    require(low <= high, "a clamp whose ends are not in order")
    pieces = [(low, _constant(low))] if low > -math.inf else []
    pieces.append((high, _line(1)))
    return _pieces(x, *pieces, *([(math.inf, _constant(high))] if high < math.inf else []))


def _elu(x: Any, alpha: float, scale: float, input_scale: float) -> Pair:
    steep, outer = arb(input_scale), arb(scale) * arb(alpha)

    def below(x: Any) -> Pair:
        return outer * (steep * x).expm1(), outer * steep * (steep * x).exp()

    if Fraction(alpha) * Fraction(input_scale) == 1 and 0 in x:  # continuously differentiable: both sides
        value, slope = below(x)
        return value.union(scale * x), slope.union(arb(scale))
    return _pieces(x, (0.0, below), (math.inf, _line(scale)))


def _exponential(x: Any, base: float) -> Pair:
    power = (x * arb(base).log()).exp()
    return power, power * arb(base).log()


def reciprocal(x: Any) -> Pair:
    """Return 1 / x and its derivative."""
    require(0 not in x, "a division by 0")
    return 1 / x, -1 / (x * x)


FUNCTIONS: dict[str, Callable[..., Pair]] = {
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "logsigmoid": _logsigmoid,
    "elu": _elu,
    "pow": _power,
    "reciprocal": reciprocal,
    "exp": lambda x: (x.exp(), x.exp()),
    "expm1": lambda x: (x.expm1(), x.exp()),
    "log": lambda x: (positive(x).log(), 1 / x),
    "log1p": lambda x: (positive(1 + x).log(), 1 / (1 + x)),
    "sqrt": lambda x: (positive(x).sqrt(), 1 / (2 * x.sqrt())),
    "rsqrt": lambda x: (1 / positive(x).sqrt(), -1 / (2 * x * x.sqrt())),
    "sin": lambda x: (x.sin(), x.cos()),
    "cos": lambda x: (x.cos(), -x.sin()),
    "sinh": lambda x: (x.sinh(), x.cosh()),
    "cosh": lambda x: (x.cosh(), x.sinh()),
    "exponential": _exponential,
    "logarithm": lambda x, base: (positive(x).log() / arb(base).log(), 1 / (x * arb(base).log())),
    "tan": lambda x: (x.tan(), 1 + x.tan() ** 2),
    "asinh": lambda x: (x.asinh(), 1 / (1 + x * x).sqrt()),
    "erfc": lambda x: (x.erfc(), -2 * (-x * x).exp() / arb.pi().sqrt()),
    "threshold": lambda x, end, value: _pieces(x, (end, _constant(value)), (math.inf, _line(1))),
    "erf": lambda x: (x.erf(), 2 * (-x * x).exp() / arb.pi().sqrt()),
    "atan": lambda x: (x.atan(), 1 / (1 + x * x)),
    "relu": lambda x: _pieces(x, (0.0, _constant(0)), (math.inf, _line(1))),
    "relu6": lambda x: _clamp(x, 0.0, 6.0),
    "clamp": _clamp,
    "leaky_relu": lambda x, slope: _pieces(x, (0.0, _line(slope)), (math.inf, _line(1))),
    "abs": lambda x: _pieces(x, (0.0, _line(-1)), (math.inf, _line(1))),
    "hardsigmoid": lambda x: _pieces(
        x, (-3.0, _constant(0)), (3.0, lambda x: ((x + 3) / 6, arb(1) / 6)), (math.inf, _constant(1))
    ),
    "hardswish": lambda x: _pieces(
        x, (-3.0, _constant(0)), (3.0, lambda x: (x * (x + 3) / 6, (2 * x + 3) / 6)), (math.inf, _line(1))
    ),
}
