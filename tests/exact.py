"""Rational arithmetic for tests of bounds: the constants of the model of floats, roots, and pins from both sides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

U = Fraction(1, 2**53)
OMEGA = Fraction(1, 2**1022)
_BITS = 400


def gamma(k: int) -> Fraction:
    """k u / (1 - k u)."""
    return k * U / (1 - k * U)


def root(x: Fraction) -> Fraction:
    """The square root, rounded down to 400 bits."""
    if x <= 0:
        assert x == 0
        return Fraction(0)
    e = (_BITS - x.numerator.bit_length() + x.denominator.bit_length()) // 2 + 1
    scaled = x * Fraction(4) ** e
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator)) / Fraction(2) ** e


def total(x: Iterable[Any]) -> Fraction:
    """The exact sum of floats."""
    return sum((Fraction(float(value)) for value in np.ravel(x)), Fraction(0))


def square(x: Any) -> Fraction:
    """The exact sum of the squares of floats."""
    return sum((Fraction(float(value)) ** 2 for value in np.ravel(x)), Fraction(0))


def times(A: Any, B: Any) -> list[list[Fraction]]:
    """The exact product of two matrices of floats or rationals."""
    columns = list(zip(*([Fraction(b) for b in row] for row in np.asarray(B).tolist()), strict=True))
    return [
        [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in columns]
        for row in ([Fraction(a) for a in row] for row in np.asarray(A).tolist())
    ]


def pinned(computed: float, exact: Fraction, small: float = 2.0**-46) -> None:
    """Assert that an upper bound is one, and that no constant in it can be smaller: exact <= computed, barely."""
    assert exact <= Fraction(computed), f"{computed!r} is {float(1 - Fraction(computed) / exact):.1e} too small"
    assert Fraction(computed) <= exact * (1 + Fraction(small)), f"{float(Fraction(computed) / exact - 1):.1e} too large"


def pinned_below(computed: float, exact: Fraction, small: float = 2.0**-46) -> None:
    """The same of a lower bound."""
    assert Fraction(computed) <= exact, f"{computed!r} is {float(Fraction(computed) / exact - 1):.1e} too large"
    assert Fraction(computed) >= exact * (1 - Fraction(small)), f"{float(1 - Fraction(computed) / exact):.1e} too small"
