r"""Elementwise functions with the errors of their own evaluation in float64, and with bounds of their derivatives.

A rule takes x, a radius e >= 0 of each entry and the parameters of the function. It returns the value at x, a bound of
the error of that value, and an upper bound of :math:`|s'|` on :math:`[x - e, x + e]`; with ``slope`` it returns
:math:`s'(x)`, a bound of its error, the same bound of :math:`|s'|`, and one of :math:`|s''|`, all entry by entry.

The functions of :data:`~alignver.kernel.machine.PRIMITIVES` are ASSUMED to err by at most 2u of their value. The errors
of everything else are derived from those: a relative error t u of an argument x moves exp(-x) by x t u of its value,
the relative condition of tanh, log1p and expm1 (for negative arguments) is at most 1, and a chain of n roundings stays
below (n + 1/2) u. :data:`SMALL` covers results that underflow. Bounds of derivatives are computed in floats as they
stand; who uses them multiplies by a factor for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.kernel.failure import NotProved, require
from alignver.kernel.machine import erf

U = 2.0**-53
SMALL = 2.0**-1020

Rule = Callable[[Any, Any, Mapping[str, Any], bool], tuple[Any, ...]]


def _ends(x: Any, e: Any) -> tuple[Any, Any]:
    """Return the ends of [x - e, x + e], rounded outward."""
    return np.nextafter(x - e, -np.inf), np.nextafter(x + e, np.inf)


def _distance(x: Any, e: Any) -> Any:
    """Return about the distance of [x - e, x + e] from 0."""
    return np.maximum(np.abs(x) - e, 0.0)


def _relative(value: Any, units: Any) -> Any:
    return np.abs(value) * (units * U) + SMALL


def _sigmoid(t: Any) -> tuple[Any, Any]:
    """Return sigmoid(t) and its derivative, within 5u and 8u of their values for an exact t."""
    p = np.exp(-np.abs(t))
    return np.where(t >= 0, 1.0, p) / (1.0 + p), p / ((1.0 + p) * (1.0 + p))


def _softplus_value(x: Any, beta: float) -> tuple[Any, Any]:
    """Return the value and its error: t log1p(e^-t) <= 1/e for the rounding of t, and log1p(e^-t) <= ln 2."""
    y = np.abs(x)
    np.log1p(np.exp(np.multiply(y, -beta, out=y), out=y), out=y)
    np.divide(y, beta, out=y)
    y += np.maximum(x, 0.0)
    error = y * U
    error += 4.6 * U / beta + SMALL
    return y, error


def _softplus(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    beta = float(args.get("beta", 1.0))
    require(2.0**-400 < beta < 2.0**400, "softplus with a beta that is too large or too small")
    if not slope:
        return (*_softplus_value(x, beta), 1.0)
    t = beta * x
    d, _ = _sigmoid(t)
    curvature = beta * np.minimum(0.25, np.exp(-beta * _distance(x, e))) + SMALL
    return d, _relative(d, np.abs(t) + 6.0), 1.0, curvature


def _logsigmoid(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    """Minus softplus at -x."""
    first, *rest = _softplus(-x, e, {}, slope)
    return first if slope else -first, *rest


def _sigmoid_rule(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    y, d = _sigmoid(x)
    lipschitz = np.minimum(0.25, np.exp(-_distance(x, e))) + SMALL
    # |s''| <= s', and its supremum is 0.09622...
    return (
        (d, _relative(d, 9.0), lipschitz, np.minimum(0.0963, lipschitz)) if slope else (y, _relative(y, 6.0), lipschitz)
    )


def _tanh(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    lipschitz = np.minimum(1.0, 4.0 * np.exp(-2.0 * _distance(x, e))) + SMALL
    if not slope:
        y = np.tanh(x)
        return y, _relative(y, 2.0), lipschitz
    d = 4.0 * _sigmoid(2.0 * x)[1]
    return d, _relative(d, 9.0), lipschitz, np.minimum(0.77, 2.0 * lipschitz)


def _gelu(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    """Absolute errors: 1 + erf cancels for negative x."""
    if args.get("approximate", "none") != "none":
        return _gelu_tanh(x, slope)
    cumulative = 0.5 * (1.0 + erf(x / math.sqrt(2.0)))
    if not slope:
        return x * cumulative, 5.0 * U * np.abs(x) + SMALL, 1.13
    return cumulative + x * (np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)), 8.0 * U + SMALL, 1.13, 0.798


def _gelu_tanh(x: Any, slope: bool) -> tuple[Any, ...]:
    r"""With z within 7u, :math:`z\,sech^2 z \le 0.448`, :math:`z^2\,sech^2 z \le 0.44`, :math:`x z' \le 3 z`.

    Beyond |x| = 50, sech^2 z is less than 2^-1000.
    """
    scale = math.sqrt(2.0 / math.pi)
    if not slope:
        return x * (0.5 * (1.0 + np.tanh(scale * (x + 0.044715 * (x * x * x))))), 6.0 * U * np.abs(x) + SMALL, 1.13
    near = np.clip(x, -50.0, 50.0)
    z = scale * (near + 0.044715 * (near * near * near))
    rise = scale * (1.0 + 3 * 0.044715 * (near * near))
    d = 0.5 * (1.0 + np.tanh(z)) + 0.5 * near * rise * (4.0 * _sigmoid(2.0 * z)[1])
    return d, 30.0 * U + SMALL, 1.13, 0.798


def _silu(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    s, bell = _sigmoid(x)
    if not slope:
        return x * s, _relative(x * s, 7.0), 1.1
    return s + x * bell, _relative(s, 7.0) + _relative(x * bell, 11.0), 1.1, 0.5


def _mish(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    """The softplus is within 8u of its value: log1p(e^x) for x < 0, and at least ln 2 otherwise."""
    plus = _softplus_value(x, 1.0)[0]
    t = np.tanh(plus)
    if not slope:
        return x * t, _relative(x * t, 12.0), 1.09
    second = x * (4.0 * _sigmoid(2.0 * plus)[1]) * _sigmoid(x)[0]
    return t + second, _relative(t, 12.0) + _relative(second, 20.0 + 16.0 * plus), 1.09, 0.645


def _elu(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    alpha, scale, inner = (float(args.get(name, 1.0)) for name in ("alpha", "scale", "input_scale"))
    require(inner > 0, "elu with an input_scale that is not positive")
    lipschitz = max(abs(scale), abs(scale * alpha) * inner)
    if not slope:
        y = np.where(x > 0, scale * x, scale * (alpha * np.expm1(inner * np.minimum(x, 0.0))))
        return y, _relative(y, 6.0), lipschitz
    if Fraction(alpha) * Fraction(inner) != 1:
        _decided(x, e, (0.0,))
    t = inner * np.minimum(x, 0.0)
    d = np.where(x > 0, scale, scale * (alpha * (inner * np.exp(t))))
    curvature = abs(scale * alpha) * inner * inner * np.exp(inner * np.minimum(x + e, 0.0)) * (x - e <= 0) + SMALL
    return d, _relative(d, np.where(x > 0, 0.0, np.abs(t) + 7.0)), lipschitz, curvature


def _exp(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    y, top = np.exp(x), np.exp(_ends(x, e)[1]) + SMALL
    return (y, _relative(y, 2.0), top, top) if slope else (y, _relative(y, 2.0), top)


def _expm1(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    y = np.expm1(x)
    return _exp(x, e, args, True) if slope else (y, _relative(y, 2.0), np.exp(_ends(x, e)[1]) + SMALL)


def _hyperbolic(x: Any, e: Any, args: Mapping[str, Any], odd: bool) -> tuple[Any, ...]:
    """Return sinh within 6u of its value, by t = e^|x| - 1 as (t + t/(1 + t))/2, or cosh; cosh at the outer end."""
    far = np.nextafter(np.abs(x) + e, np.inf)
    require(bool((far < 700.0).all()), "sinh or cosh of a number beyond 700")
    t, p, top = np.expm1(np.abs(x)), np.exp(np.abs(x)), np.exp(far)
    y = np.copysign(0.5 * (t + t / (1.0 + t)), x) if odd else 0.5 * (p + 1.0 / p)
    return y, _relative(y, 6.0), 0.5 * (top + 1.0 / top)


def _sinh(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    rule = _hyperbolic(x, e, args, not slope)
    return (*rule, rule[-1]) if slope else rule


def _cosh(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    rule = _hyperbolic(x, e, args, slope)
    return (*rule, rule[-1]) if slope else rule


def _asinh(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    """The argument of log1p is within 6u; the supremum of the second derivative is 2 / (3 sqrt 3)."""
    y = np.abs(x)
    require(bool((y < 2.0**500).all()), "asinh of a number beyond 2^500")
    root = np.sqrt(1.0 + y * y)
    if slope:
        return 1.0 / root, _relative(1.0 / root, 4.0), 1.0, 0.385
    y = np.copysign(np.log1p(y + y * y / (1.0 + root)), x)
    return y, _relative(y, 9.0), 1.0


def _exponential(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    """A power of the base, e^t for t within 3u: t moves it by 3 |t| u, at the outer end by less than 2^-38."""
    rate = math.log(float(args["base"]))
    low, high = _ends(x, e)
    far = np.maximum(low * rate, high * rate)
    require(bool((np.abs(far) < 700.0).all()), "a power beyond e^700")
    t, lipschitz = x * rate, np.exp(far) * (abs(rate) * (1.0 + 2.0**-38))
    y = np.exp(t) * (rate if slope else 1.0)
    rule = y, _relative(y, 4.0 * np.abs(t) + 6.0), lipschitz + SMALL
    return (*rule, lipschitz * (abs(rate) * (1.0 + 2.0**-50)) + SMALL) if slope else rule


def _log_of_base(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    rate = math.log(float(args["base"]))
    y, _, *bounds = _log(x, e, args, slope)
    return y / rate, _relative(y / rate, 7.0), *(bound / abs(rate) * (1.0 + 4 * U) for bound in bounds)


def _log(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    return _logarithm(np.log, x, _ends(x, e)[0] if np.any(e) else x, slope)


def _log1p(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    below = np.nextafter(1.0 + (_ends(x, e)[0] if np.any(e) else x), -np.inf)
    require(bool((x > -1).all()), "log1p of a number that may be -1 or less")
    return _logarithm(np.log1p, x, below, slope, 1.0 + x)


def _logarithm(function: Any, x: Any, below: Any, slope: bool, shifted: Any = None) -> tuple[Any, ...]:
    require(bool((below > 0).all()), "the logarithm of a number that may be 0 or negative")
    if not slope:
        y = function(x)
        return y, _relative(y, 2.0), 1.0 / below
    d = 1.0 / (x if shifted is None else shifted)
    return d, _relative(d, 3.0), 1.0 / below, 1.0 / (below * below)


def _power(x: Any, p: float) -> tuple[Any, Any]:
    """Return x^p and its relative error in units of u: by products of x or its root, or as exp(p log x)."""
    n = abs(2.0 * p)
    if n > 128 or n != int(n):
        t = p * np.log(x)
        return np.exp(t), 4.0 * np.abs(t) + 3.0
    root = p != int(p)
    factor, count = (np.sqrt(x), int(n)) if root else (x, int(n) // 2)
    y = np.ones_like(x)
    for _ in range(count):
        y = y * factor
    require(p >= 0 or bool((np.abs(y) > 2.0**-1000).all()), "a negative power that is too large")
    return (y if p >= 0 else 1.0 / y), (2.0 if root else 1.0) * count + 1.5


def _pow(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    p = float(args["exponent"])
    exact = not np.any(e)
    far = np.abs(x) if exact else np.nextafter(np.abs(x) + e, np.inf)
    near = np.abs(x) if exact else np.maximum(np.nextafter(np.abs(x) - e, -np.inf), 0.0)
    if p != int(p):
        require(bool((x >= 0).all()), "a power of a negative number")
    if p < 0 or (p != int(p) and not exact):  # at an exact 0 the root has a value
        require(bool((near > 2.0**-400).all()), "a power, or a quotient, of a number that may be 0 or negative")

    def derivative(order: int) -> Any:
        """Return an upper bound of the derivative of this order on the interval."""
        factor, q = abs(math.prod(p - i for i in range(order))), p - order
        return factor * _power(far if q >= 0 else near, q)[0] + SMALL if factor else np.zeros_like(x)

    if not slope:
        y, units = _power(x, p)
        return y, _relative(y, units), derivative(1)
    d, units = _power(x, p - 1.0)
    return p * d, _relative(p * d, units + 1.0), derivative(1), derivative(2)


def _circular(function: Any, derivative: Any, x: Any, slope: bool) -> tuple[Any, ...]:
    y = derivative(x) if slope else function(x)
    return (y, _relative(y, 2.0), 1.0, 1.0) if slope else (y, _relative(y, 2.0), 1.0)


def _erf_rule(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    if not slope:
        y = erf(x)
        return y, _relative(y, 2.0), 1.1284
    d = 2.0 / math.sqrt(math.pi) * np.exp(-x * x)
    return d, _relative(d, x * x + 7.0), 1.1284, 0.968


def _arctan(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    y = 1.0 / (1.0 + x * x) if slope else np.arctan(x)
    return (y, _relative(y, 4.0), 1.0, 0.65) if slope else (y, _relative(y, 2.0), 1.0)


def _decided(x: Any, e: Any, kinks: tuple[float, ...]) -> None:
    for kink in kinks:
        if not (np.abs(x - kink) > e).all():
            raise NotProved(f"the derivative is not decided: an entry may lie at the kink {kink:g}")


def _linear(
    x: Any, e: Any, kinks: tuple[float, ...], slopes: tuple[float, ...], value: Any, units: float
) -> tuple[Any, ...]:
    """A piecewise linear function; None for the value asks for the derivative."""
    top = max(map(abs, slopes))
    if value is not None:
        return value, _relative(value, units) if units else 0.0, top
    _decided(x, e, kinks)
    return np.asarray(slopes)[np.searchsorted(kinks, x)], 0.0, top, 0.0


def _relu(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    return _linear(x, e, (0.0,), (0.0, 1.0), None if slope else np.maximum(x, 0.0), 0.0)


def _leaky_relu(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    low = float(args["slope"])
    return _linear(x, e, (0.0,), (low, 1.0), None if slope else np.where(x > 0, x, low * x), 1.0)


def _abs(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    return _linear(x, e, (0.0,), (-1.0, 1.0), None if slope else np.abs(x), 0.0)


def _clamp(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    low, high = float(args["low"]), float(args["high"])
    require(low < high, "clamp to an empty interval")
    kinks = tuple(end for end in (low, high) if math.isfinite(end))
    slopes = (0.0,) * (low > -math.inf) + (1.0,) + (0.0,) * (high < math.inf)
    return _linear(x, e, kinks, slopes, None if slope else np.clip(x, low, high), 0.0)


def _hardsigmoid(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    value = None if slope else np.clip(x + 3.0, 0.0, 6.0) / 6.0
    first, error, *rest = _linear(x, e, (-3.0, 3.0), (0.0, 1.0 / 6.0, 0.0), value, 3.0)
    return first, _relative(first, 1.0) if slope else error, rest[0] * (1.0 + 2 * U), *rest[1:]


def _hardswish(x: Any, e: Any, args: Mapping[str, Any], slope: bool) -> tuple[Any, ...]:
    if not slope:
        y = x * (np.clip(x + 3.0, 0.0, 6.0) / 6.0)
        return y, _relative(y, 4.0), 1.5
    _decided(x, e, (-3.0, 3.0))
    d = np.where(x > 3.0, 1.0, np.where(x < -3.0, 0.0, (2.0 * x + 3.0) / 6.0))
    return d, _relative(d, 3.0), 1.5, 0.3334


def _fixed(rule: Rule, **fixed: Any) -> Rule:
    return lambda x, e, args, slope: rule(x, e, fixed, slope)


MAPS: dict[str, Rule] = {
    "softplus": _softplus, "logsigmoid": _logsigmoid, "sigmoid": _sigmoid_rule, "tanh": _tanh, "gelu": _gelu,
    "silu": _silu, "mish": _mish, "elu": _elu, "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p,
    "pow": _pow, "sqrt": _fixed(_pow, exponent=0.5),
    "rsqrt": _fixed(_pow, exponent=-0.5), "reciprocal": _fixed(_pow, exponent=-1.0),
    "sin": lambda x, e, args, slope: _circular(np.sin, np.cos, x, slope),
    "cos": lambda x, e, args, slope: _circular(np.cos, lambda t: -np.sin(t), x, slope),
    "erf": _erf_rule, "atan": _arctan, "relu": _relu, "leaky_relu": _leaky_relu, "abs": _abs,
    "sinh": _sinh, "cosh": _cosh, "asinh": _asinh, "exponential": _exponential, "logarithm": _log_of_base,
    "clamp": _clamp, "relu6": _fixed(_clamp, low=0.0, high=6.0), "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
}  # fmt: skip
