"""What a sentence says of a proved bound is as true as the bound."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

import alignver as av
from alignver.checks.optimality import check_optimality
from alignver.results import shown_down, shown_up
from alignver.theory.exploitation import Exploitation


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 9))
@example(1.2355, 3)
@example(9.9951, 3)
@example(5e-324, 3)
@example(-0.0, 2)
def test_what_is_shown_of_a_bound_is_one(value, digits):
    """Read back as decimal numbers, the digits bound the float that they stand for, closely."""
    low, high = (Fraction(show(value, digits)) for show in (shown_down, shown_up))
    assert low <= Fraction(value) <= high
    assert high - low <= abs(Fraction(value)) * Fraction(2, 10 ** (digits - 1))
    assert (shown_down(math.inf), shown_up(-math.inf)) == ("inf", "-inf")


def said(reason, before):
    return Fraction(reason.split(before)[1].split()[0].rstrip(");:,"))


@given(st.floats(0.5, 2.0))
@example(math.sqrt(1.0049))
@example(math.sqrt(0.9996))
def test_the_gap_in_the_sentence_is_a_bound(target):
    model, theta = Exploitation([[1.0]], np.zeros((1, 1, 1)), np.ones((1, 1))), np.zeros((1, 1, 1))
    gap = Fraction(target) ** 2 / 2 if _halved() else Fraction(target) ** 2
    holds = check_optimality(model, theta, [target], loss="squared", tolerance=100.0)
    assert said(holds.reason, "by at most ") >= gap
    fails = check_optimality(model, theta, [target], loss="squared", tolerance=1e-3)
    assert said(fails.reason, "by more than ") <= gap


def _halved() -> bool:
    """Whether the squared loss carries a factor 1/2."""
    model = Exploitation([[1.0]], np.zeros((1, 1, 1)), np.ones((1, 1)))
    result = check_optimality(model, np.zeros((1, 1, 1)), [1.0], loss="squared", tolerance=100.0)
    return float(result.measured["loss_upper"]) < 0.75


@given(st.floats(0.01, 100.0))
@example(1.2355)
def test_the_distance_and_the_smallest_singular_value_in_the_sentence_are_bounds(size):
    result = av.check_membership(np.array([[1.0], [0.0]]), np.array([0.0, size]), ball=av.Ball(norm=1e-300))
    if "at least " in result.reason:
        assert said(result.reason, "at least ") <= Fraction(size)
    rank = av.check_rank(np.array([[size, 0.0]]), ball=av.Ball(norm=1e-3 * size))
    assert said(rank.reason, "s_min >= ") <= Fraction(size)
