"""Ranges of the entries of a node that hold for every theta and every input, rounded outward.

A range is an interval of the real line. An open end is not attained: the range of exp is above 0. Elementary functions
of the C library are assumed to be accurate to 2^-40.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

_LIBRARY = 2.0**-40
INFINITE = math.inf


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval; an open end is a value that is not attained.

    Examples
    --------
    >>> Range(0.0, math.inf, True).positive, Range(0.0, 1.0).positive
    (True, False)
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    @property
    def positive(self) -> bool:
        """Whether every value is above 0."""
        return self.low > 0.0 or (self.low == 0.0 and self.low_open)

    @property
    def negative(self) -> bool:
        """Whether every value is below 0."""
        return self.high < 0.0 or (self.high == 0.0 and self.high_open)

    @property
    def nonzero(self) -> bool:
        """Whether no value is 0."""
        return self.positive or self.negative

    @property
    def is_zero(self) -> bool:
        """Whether the only value is 0."""
        return self.low == self.high == 0.0

    def above(self, bound: float) -> bool:
        """Whether every value is above a bound."""
        return self.low > bound or (self.low == bound and self.low_open)

    def below(self, bound: float) -> bool:
        """Whether every value is below a bound."""
        return self.high < bound or (self.high == bound and self.high_open)


WHOLE = Range(-INFINITE, INFINITE)


def number(value: float) -> Range:
    """Return the range of one number; NaN and infinities have no range."""
    return Range(float(value), float(value)) if math.isfinite(value) else WHOLE


def _down(value: float) -> float:
    return math.nextafter(value, -INFINITE)


def _up(value: float) -> float:
    return math.nextafter(value, INFINITE)


def _sum(a: float, b: float, rounded: Callable[[float], float]) -> float:
    return a + b if a == 0.0 or b == 0.0 or math.isinf(a) or math.isinf(b) else rounded(a + b)


def add(a: Range, b: Range) -> Range:
    """Return a range of sums."""
    low, high = _sum(a.low, b.low, _down), _sum(a.high, b.high, _up)
    return Range(low, high, a.low_open or b.low_open, a.high_open or b.high_open)


def _times(a: float, b: float, rounded: Callable[[float], float]) -> float:
    if a == 0.0 or b == 0.0:
        return 0.0  # an infinite end is not attained
    exact = math.isinf(a) or math.isinf(b) or abs(a) == 1.0 or abs(b) == 1.0
    return a * b if exact else rounded(a * b)


def multiply(a: Range, b: Range) -> Range:
    """Return a range of products; of two factors without 0, one without 0."""
    ends = [(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = min(_times(x, y, _down) for x, y in ends), max(_times(x, y, _up) for x, y in ends)
    if (a.positive and b.positive) or (a.negative and b.negative):
        return Range(max(low, 0.0), high, low <= 0.0)
    if (a.positive and b.negative) or (a.negative and b.positive):
        return Range(low, min(high, 0.0), False, high >= 0.0)
    if (a.low >= 0.0 and b.low >= 0.0) or (a.high <= 0.0 and b.high <= 0.0):
        low = max(low, 0.0)
    return Range(low, high)


def scaled(a: Range, factor: float) -> Range:
    """Return a range of products with a number."""
    return multiply(a, number(factor))


def quotient(a: Range, b: Range) -> Range:
    """Return a range of quotients by values that are not 0."""
    if not b.nonzero:
        return WHOLE
    if a.is_zero:
        return a
    least, most = (b.low, b.high) if b.positive else (-b.high, -b.low)
    if most == 0.0:  # an empty range, of a function outside its domain
        return WHOLE
    low = max(_down(1.0 / most), 0.0) if most < INFINITE else 0.0
    inverse = Range(low, INFINITE if least == 0.0 else _up(1.0 / least), low == 0.0)
    product = multiply(a, inverse)
    return product if b.positive else negated(product)


def negated(a: Range) -> Range:
    """Return the range of the negatives."""
    return Range(-a.high, -a.low, a.high_open, a.low_open)


def hull(ranges: Iterable[Range]) -> Range:
    """Return the smallest interval that contains all of them."""
    items = list(ranges)
    if not items:
        return WHOLE
    low, high = min(item.low for item in items), max(item.high for item in items)
    low_open = all(item.low_open for item in items if item.low == low)
    high_open = all(item.high_open for item in items if item.high == high)
    return Range(low, high, low_open, high_open)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


_Bounds = tuple[Callable[[float], float], float, float]
MONOTONE: dict[str, _Bounds] = {
    "exp": (math.exp, 0.0, INFINITE),
    "exp2": (lambda x: 2.0**x, 0.0, INFINITE),
    "expm1": (math.expm1, -1.0, INFINITE),
    "sinh": (math.sinh, -INFINITE, INFINITE),
    "tanh": (math.tanh, -1.0, 1.0),
    "sigmoid": (_sigmoid, 0.0, 1.0),
    "softplus": (_softplus, 0.0, INFINITE),
    "log_sigmoid": (lambda x: -_softplus(-x), -INFINITE, 0.0),
    "erf": (math.erf, -1.0, 1.0),
    "atan": (math.atan, -1.5707963267948968, 1.5707963267948968),
    "asinh": (math.asinh, -INFINITE, INFINITE),
    "log": (math.log, -INFINITE, INFINITE),
    "log1p": (math.log1p, -INFINITE, INFINITE),
    "sqrt": (math.sqrt, 0.0, INFINITE),
    "relu": (lambda x: max(x, 0.0), 0.0, INFINITE),
}
"""Increasing functions with their limits at the ends of the line, which they do not attain (relu excepted)."""


def monotone(name: str, a: Range) -> Range:
    """Return a range of an increasing function of :data:`MONOTONE`."""
    function, least, most = MONOTONE[name]
    low, high = _value(function, a.low, least, -1.0), _value(function, a.high, most, 1.0)
    attained = name in ("relu", "sqrt") and not a.positive
    return Range(max(low, least), min(high, most), low <= least and not attained, high >= most and name != "relu")


def _value(function: Callable[[float], float], x: float, limit: float, sign: float) -> float:
    if math.isinf(x):
        return limit
    try:
        value = function(x)
    except (OverflowError, ValueError):
        return limit
    if value == 0.0 and x == 0.0:
        return 0.0
    margin = abs(value) * _LIBRARY + 2.0**-1000
    return value + math.copysign(margin, sign)
