"""The least loss of every function of the inputs, against exact fractions and sixty digits."""

from __future__ import annotations

import sys
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import alignver as av
from alignver.kernel.data import least_loss


@pytest.mark.parametrize(
    ("Y", "loss", "sum_of_losses", "errors"),
    [
        ([[0.0], [1.0], [1.0]], "cross_entropy", 2 * mpmath.log(1.5) + mpmath.log(3), 1),
        ([[0.0], [1.0], [2.0]], "cross_entropy", 3 * mpmath.log(3), 2),
        ([[-0.0], [0.0], [1e300]], "cross_entropy", 2 * mpmath.log(1.5) + mpmath.log(3), 1),
        ([[1, 0], [0, 1], [0, 1]], "cross_entropy", 2 * mpmath.log(1.5) + mpmath.log(3), 1),
        ([[1, 0], [0, 1], [0, 0]], "cross_entropy", 2 * mpmath.log(2), None),  # a row of no class
        ([[2, 0], [0, 1], [0, 1]], "cross_entropy", 4 * mpmath.log(2), None),
        ([[1, 1], [0, 1], [0, 1]], "cross_entropy", 3 * mpmath.log(4 / mpmath.mpf(3)) + mpmath.log(4), None),
        ([[0.0], [1.0], [1.0]], "binary_cross_entropy", 2 * mpmath.log(1.5) + mpmath.log(3), 1),
        ([[1, 0], [0, 1], [0, 1]], "binary_cross_entropy", 4 * mpmath.log(1.5) + 2 * mpmath.log(3), 2),
        ([[0.5], [0.5], [0.5]], "binary_cross_entropy", 3 * mpmath.log(2), None),
        ([[0.0], [1.0], [1.0]], None, 0, 1), ([[0.5], [1.0], [1.0]], None, 0, None), ([[-1], [1], [1]], None, 0, 1),
        ([[-1.0, 0], [1, 0], [1, 0]], None, 0, None), ([[1, 0], [0, 1], [0, 1]], None, 0, 1),
        ([[0.5, 0.5], [0, 1], [0, 1]], None, 0, None), ([[1, 1], [0, 1], [0, 1]], None, 0, None),
        ([[1.7e308, 1.7e308], [1.7e308, -1.7e308], [1, 1]], None, 0, None),
    ],
)  # fmt: skip
def test_bounds_of_three_equal_samples(Y, loss, sum_of_losses, errors):
    lower, computed = least_loss(np.zeros(3, dtype=int), np.array(Y, dtype=float), loss)
    with mpmath.workdps(60):
        exact = mpmath.mpf(sum_of_losses) / 3
        assert exact * (1 - mpmath.mpf(2) ** -30) <= mpmath.mpf(lower) <= exact * (1 + mpmath.mpf(2) ** -50)
    assert computed == errors
    apart = least_loss(np.arange(3), np.array(Y, dtype=float), loss)
    assert apart[1] in (0, None)


def test_squared_losses_are_exact():
    zeros = np.zeros(3, dtype=int)
    for Y in (
        [[1e16], [1e16 + 2], [1e16 + 4]],
        [[5e-324], [0.0], [1.0]],
        [[0.1], [0.2], [0.3]],
        [[1e150], [-1e-200], [1]],
    ):
        values = [Fraction(v[0]) for v in Y]
        exact = (sum(v * v for v in values) - sum(values) ** 2 / 3) / 3
        lower = least_loss(zeros, np.array(Y), "squared")[0]
        assert Fraction(lower) <= exact < Fraction(float(np.nextafter(lower, np.inf)))
    huge = np.array([[1.7e308], [-1.7e308], [0.0]])
    assert least_loss(zeros, huge, "squared") == (sys.float_info.max, None)  # it was -inf once
    assert av.check_data(np.zeros((3, 1)), huge, loss="squared").measured["loss_lower"] == sys.float_info.max
    assert least_loss(zeros, np.full((3, 1), 0.1), "squared")[0] == 0.0
    assert least_loss(zeros, np.array([[5e-324], [0.0], [5e-324]]), "squared")[0] == 0.0


def exact_entropy(Y):
    """Return the sum of C ln(1 + D / C) over the columns of one group, in 60 digits."""
    sums = [sum(map(Fraction, column), Fraction(0)) for column in Y.T.tolist()]
    total = sum(sums)

    def number(x):
        return mpmath.mpf(x.numerator) / x.denominator

    return sum((number(part) * mpmath.log1p(number((total - part) / part)) for part in sums if part), mpmath.mpf(0))


@pytest.mark.parametrize("k", [1, 7, 1000, 6000])
def test_entropies_of_sums_that_round_as_badly_as_they_can(k):
    """Half a unit and a little more, added to 1 again and again: each addition rounds up by half a unit."""
    step = 2.0**-53 * (1 + 2.0**-20)
    random = np.random.default_rng(k)
    cases = [
        np.vstack([np.ones((1, 2)), np.full((k, 2), step)]),
        np.column_stack([np.append(1.0, np.full(k, step)), np.append(0.0, np.full(k, 1e-9))]),
        np.column_stack([np.append(1.0, np.zeros(k)), np.append(0.0, np.full(k, 1e-300))]),
        np.column_stack([random.random(k + 1), random.random(k + 1) * 1e-300, random.random(k + 1) * 1e200]),
        np.column_stack([np.full(k + 1, 5e-324), random.random(k + 1)]),
    ]
    with mpmath.workdps(60):
        for Y in cases:
            exact = exact_entropy(Y) / (k + 1)
            lower = least_loss(np.zeros(k + 1, dtype=int), Y, "cross_entropy")[0]
            assert mpmath.mpf(lower) <= exact
            assert Y.min() < 1e-200 or mpmath.mpf(lower) >= exact * (1 - mpmath.mpf(2) ** -30)
            if Y.max() <= 1.0:
                lower = least_loss(np.zeros(k + 1, dtype=int), Y, "binary_cross_entropy")[0]
                both = sum(exact_entropy(np.column_stack([y, 1 - y])) for y in map(_fractions, Y.T)) / (k + 1)
                assert mpmath.mpf(lower) <= both


def _fractions(column):
    return np.array([Fraction(v) for v in column.tolist()], dtype=object)


def test_entropies_have_room_for_the_worst_of_sums():
    """Sums of 2^20 dyadic numbers are exact here, so that all of the room for their rounding is left."""
    k, u = 2**20, mpmath.mpf(2) ** -53
    Y = np.tile([0.25, 0.75], (k, 1))
    with mpmath.workdps(60):
        exact = mpmath.log(4) / 4 + mpmath.log(4 / mpmath.mpf(3)) * 3 / 4
        zeros = np.zeros(k, dtype=int)
        for loss, outputs in (("cross_entropy", 1), ("binary_cross_entropy", 2)):
            lower = mpmath.mpf(least_loss(zeros, Y, loss)[0]) / outputs
            assert exact * (1 - mpmath.mpf(2) ** -30) <= lower <= exact * (1 - (3 * k + 5) * u)
        wide = np.tile(Y[:1] / 2**19, (1, 2**19))  # many columns instead of many rows
        columns = wide[0].tolist()
        entropy = sum(mpmath.mpf(c) * mpmath.log(1 / mpmath.mpf(c)) for c in columns[:2]) * 2**19
        lower = mpmath.mpf(least_loss(zeros[:1], wide, "cross_entropy")[0])
        assert entropy * (1 - mpmath.mpf(2) ** -30) <= lower <= entropy * (1 - (2**20 + 5) * u)


def test_entropies_hold_for_a_library_as_bad_as_is_assumed(monkeypatch):
    accurate = np.log1p
    monkeypatch.setattr(np, "log1p", lambda x: accurate(x) * (1 + 2.0**-40))
    with mpmath.workdps(60):
        for Y, exact in (
            ([[1.0, 0], [0, 1]], 2 * mpmath.log(2)), ([[0.5, 0.5]], mpmath.log(2)),
            ([[1.0, 2.0**-30], [0, 0]], exact_entropy(np.array([[1.0, 2.0**-30]]))),
        ):  # fmt: skip
            n = len(Y)
            assert mpmath.mpf(least_loss(np.zeros(n, dtype=int), np.array(Y), "cross_entropy")[0]) <= exact / n
        labels = np.array([[0.0], [1.0]])
        for loss in ("cross_entropy", "binary_cross_entropy"):
            assert mpmath.mpf(least_loss(np.zeros(2, dtype=int), labels, loss)[0]) <= mpmath.log(2)


def test_the_logarithm_of_the_library_is_good_enough():
    random = np.random.default_rng(0)
    x = np.concatenate(
        [2.0 ** random.uniform(-1074, 1000, 1500), 10.0 ** random.uniform(-3, 3, 1500), [5e-324, 2.0**1000]]
    )
    worst = mpmath.mpf(0)
    with mpmath.workdps(60):
        for value, computed in zip(x.tolist(), np.log1p(x).tolist(), strict=True):
            exact = mpmath.log1p(mpmath.mpf(value))
            error = abs(mpmath.mpf(computed) - exact)
            worst = max(worst, 0 if error <= mpmath.mpf(2) ** -1074 else error / exact)
        assert worst < mpmath.mpf(2) ** -46


def test_products_and_quotients_at_the_end_of_the_range():
    with mpmath.workdps(60):
        # 1000 products, each 6.9 of the smallest numbers there are, and each rounded to 7.
        Y = np.full((1, 1000), 5e-324)
        assert mpmath.mpf(least_loss(np.zeros(1, dtype=int), Y, "cross_entropy")[0]) <= exact_entropy(Y)
        for exponent in range(-180, -160, 3):
            for share in (0.51, 0.6, 0.75, 0.99, 1.4, 1.51, 2.51):
                Y = np.array([[2.0**899, share * 2.0**exponent, 0.51 * share * 2.0**exponent]])
                for columns in (Y, Y[:, :2]):
                    lower = least_loss(np.zeros(1, dtype=int), columns, "cross_entropy")[0]
                    assert mpmath.mpf(lower) <= exact_entropy(columns)
                    assert lower > 0.0
