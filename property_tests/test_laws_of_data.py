"""Bounds of losses are the infimum over all functions of the inputs, and what is said of samples is true of each."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import alignver as av
from alignver.errors import InvalidInput
from alignver.kernel.certificate import LOSSES
from alignver.kernel.data import least_loss
from alignver.results import Rigor, Verdict

CLOSE = Fraction(1, 2**30)
TARGETS = {
    "labels": st.integers(0, 3).map(lambda c: [float(c)]),
    "bits": st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2),
    "one-hot": st.integers(0, 2).map(lambda c: [float(c == k) for k in range(3)]),
    "shares": st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    "numbers": st.lists(st.floats(-1e9, 1e9) | st.integers(-3, 3).map(float), min_size=2, max_size=2),
}
MEANT = {
    "squared": list(TARGETS),
    "binary_cross_entropy": ["bits", "one-hot", "shares"],
    "cross_entropy": ["labels", "bits", "one-hot", "shares"],
    None: list(TARGETS),
}


@st.composite
def samples(draw, losses=(*LOSSES, None)):
    """Inputs with repeats, targets of one kind, and a loss that means something to them."""
    loss = draw(st.sampled_from(losses))
    kind = draw(st.sampled_from(MEANT[loss]))
    x = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=9))
    Y = [draw(TARGETS[kind]) for _ in x]
    return np.array(x, dtype=float), np.array(Y), loss


def groups_of(X):
    """Return the indices of equal rows, by comparing all pairs."""
    groups = []
    for i, row in enumerate(X.tolist()):
        for group in groups:
            if X[group[0]].tolist() == row:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def infimum(X, Y, loss):
    """Return the infimum of the mean loss, in rationals or in 60 digits: group by group, by its definition."""
    total, n = Fraction(0) if loss == "squared" else mpmath.mpf(0), len(Y)
    for group in groups_of(X):
        rows = [[Fraction(v) for v in Y[i].tolist()] for i in group]
        k, columns = len(group), list(zip(*rows, strict=True))
        if loss == "squared":
            means = [sum(column) / k for column in columns]
            total += sum((v - mean) ** 2 for column, mean in zip(columns, means, strict=True) for v in column)
            continue
        if loss == "binary_cross_entropy":
            splits = [(sum(column), k - sum(column)) for column in columns]
        elif Y.shape[1] == 1:
            splits = [[sum(v == c for (v,) in rows) for c in {v for (v,) in rows}]]
        else:
            splits = [[sum(column) for column in columns]]
        for split in splits:
            for part in filter(None, map(Fraction, split)):
                share = part / sum(split)
                # -C_c ln p_c, with p_c the share of the column
                total -= _exact(part) * (mpmath.log(_exact(share)) if share < 0.9 else mpmath.log1p(-_exact(1 - share)))
    return total / n


def _exact(x):
    return mpmath.mpf(x.numerator) / x.denominator


@given(samples(LOSSES))
def test_bounds_are_the_infimum(data):
    X, Y, loss = data
    lower = av.check_data(X, Y, loss=loss).measured["loss_lower"]
    with mpmath.workdps(60):
        exact = infimum(X, Y, loss)
        if loss == "squared":
            assert Fraction(lower) <= exact < Fraction(math.nextafter(lower, math.inf))
        else:
            assert mpmath.mpf(lower) <= exact
            assert mpmath.mpf(lower) >= exact * (1 - _exact(CLOSE)) - mpmath.mpf(2) ** -999


@given(samples(LOSSES), st.integers(0, 10**6))
def test_no_function_of_the_inputs_is_below(data, seed):
    """Outputs that are drawn at random, the same for equal inputs: their loss is at least the bound."""
    X, Y, loss = data
    lower = av.check_data(X, Y, loss=loss).measured["loss_lower"]
    rng = np.random.default_rng(seed)
    total = mpmath.mpf(0)
    with mpmath.workdps(40):
        for group in groups_of(X):
            width = 4 if loss == "cross_entropy" and Y.shape[1] == 1 else Y.shape[1]
            mean = Y[group].mean(axis=0)
            q = (
                mean
                if loss == "squared" and rng.random() < 0.5
                else rng.normal(0.0, rng.choice([0.1, 1.0, 10.0]), width)
            )
            for i in group:
                total += _loss([mpmath.mpf(float(v)) for v in q], Y[i].tolist(), loss)
        assert total / len(Y) >= mpmath.mpf(lower) * (1 - mpmath.mpf(2) ** -100)


def _loss(q, y, loss):
    if loss == "squared":
        return sum((a - mpmath.mpf(b)) ** 2 for a, b in zip(q, y, strict=True))
    if loss == "binary_cross_entropy":
        return sum(mpmath.log(1 + mpmath.exp(a)) - mpmath.mpf(b) * a for a, b in zip(q, y, strict=True))
    top = mpmath.log(sum(mpmath.exp(a) for a in q))
    if len(y) == 1:
        return top - q[int(y[0])]
    return sum(mpmath.mpf(b) * (top - a) for a, b in zip(q, y, strict=True))


@given(samples(("cross_entropy", None)))
def test_errors_are_the_fewest_of_all_answers(data):
    X, Y, loss = data
    result = av.check_data(X, Y, loss=loss).measured["errors_lower"]
    labels = [tuple(y) for y in Y.tolist()]
    one_hot = Y.shape[1] > 1 and all(sorted(y) == [0.0] * (len(y) - 1) + [1.0] for y in labels)
    if not one_hot and not (Y.shape[1] == 1 and np.all(Y % 1.0 == 0.0)):
        assert result is None
        return
    fewest = sum(min(sum(labels[i] != answer for i in group) for answer in set(labels)) for group in groups_of(X))
    assert result == fewest


@given(samples(), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(data, random):
    X, Y, loss = data
    order = list(range(len(Y)))
    random.shuffle(order)
    one, other = av.check_data(X, Y, loss=loss), av.check_data(X[order], Y[order], loss=loss)
    assert one.verdict is other.verdict
    for key in ("samples", "distinct", "errors_lower", "rank_phi_upper"):
        assert one.measured[key] == other.measured[key]
    for key in ("equal", "conflicts"):
        assert one.measured[key]["count"] == other.measured[key]["count"]
    if loss == "squared":
        assert one.measured["loss_lower"] == other.measured["loss_lower"]
    elif loss is not None:  # sums of floats may round otherwise
        assert one.measured["loss_lower"] == pytest.approx(other.measured["loss_lower"], rel=2.0**-29)


@given(samples())
def test_pairs_are_those_of_a_double_loop(data):
    X, Y, loss = data
    measured = av.check_data(X, Y, loss=loss).measured
    pairs = [(i, j) for i, j in itertools.combinations(range(len(X)), 2) if X[i].tolist() == X[j].tolist()]
    conflicts = [(i, j) for i, j in pairs if Y[i].tolist() != Y[j].tolist()]
    assert measured["equal"] == {"count": len(pairs), "pairs": tuple(pairs[:20])}
    assert measured["conflicts"] == {"count": len(conflicts), "pairs": tuple(conflicts[:20])}
    assert measured["distinct"] == len(groups_of(X))


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324])


@given(st.lists(NUMBERS, min_size=1, max_size=4), st.data())
def test_numbers_are_compared_not_bits(row, data):
    """Floats that differ in the last bit are not equal; 0.0 and -0.0 are."""
    k = data.draw(st.integers(0, len(row) - 1))
    near = list(row)
    near[k] = math.nextafter(row[k], data.draw(st.sampled_from([1e308, -1e308])))
    assume(near[k] != row[k])
    signs = [-v if v == 0.0 else v for v in row]
    X = np.array([row, near, signs])
    result = av.check_data(X, [0, 1, 0])
    assert result.measured["equal"]["pairs"] == ((0, 2),)
    assert (result.verdict, result.measured["distinct"]) == (Verdict.HOLDS, 2)
    assert np.array_equal(np.signbit(X), np.signbit([row, near, signs]))  # inputs are not written to


@given(samples(), st.data())
def test_certificates_are_accepted_and_those_of_other_data_refused(data, draw):
    X, Y, loss = data
    result = av.check_data(X, Y, loss=loss)
    assert result.rigor is Rigor.PROOF
    certificate = result.certificate
    assert av.recheck(certificate, X=X, Y=Y).verdict is Verdict.HOLDS
    assert av.recheck(certificate, X=np.where(X == 0.0, -0.0, X), Y=Y).verdict is Verdict.HOLDS
    i = draw.draw(st.integers(0, len(X) - 1))
    other = X.copy()
    other[i, draw.draw(st.integers(0, 1))] += draw.draw(st.sampled_from([1.0, 2.0**-40, -3.0]))
    assert av.recheck(certificate, X=other, Y=Y).verdict is Verdict.FAILS
    changed = Y.copy()
    j = draw.draw(st.integers(0, Y.shape[1] - 1))
    changed[i, j] = math.nextafter(changed[i, j], math.inf)
    assume(changed[i, j] != Y[i, j])
    assert av.recheck(certificate, X=X, Y=changed).verdict is Verdict.FAILS
    order = np.roll(np.arange(len(X)), 1)
    for x, y in ((X[order], Y), (X, Y[order]), (X[order], Y[order])):
        same = np.array_equal(x, X) and np.array_equal(y, Y)
        assert av.recheck(certificate, X=x, Y=y).verdict is (Verdict.HOLDS if same else Verdict.FAILS)
    assert av.recheck(certificate, X=X[:, ::-1], Y=Y).verdict is (
        Verdict.HOLDS if np.array_equal(X[:, ::-1], X) else Verdict.FAILS
    )


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=6))
def test_the_same_numbers_are_the_same_data_in_every_dtype(values):
    """A certificate of float32 inputs is accepted with the same numbers in float64, and the other way round."""
    X, labels = np.array(values, dtype=np.float32)[:, None], list(range(len(values)))
    certificate = av.check_data(X, labels).certificate
    for form in (X, X.astype(float), X.astype(">f4"), X.tolist()):
        assert av.recheck(certificate, X=form, Y=labels).verdict is Verdict.HOLDS
    wide = av.check_data(X.astype(float), labels)
    assert wide.measured["distinct"] == len(set(values))
    assert av.recheck(wide.certificate, X=X, Y=labels).verdict is Verdict.HOLDS


@given(st.lists(st.lists(st.floats(0.0, 2.0**899), min_size=2, max_size=3), min_size=1, max_size=4), st.data())
def test_bounds_of_weights_of_all_sizes(rows, data):
    """Weights of classes from the smallest number to the largest that is allowed: never above, never a crash."""
    width = min(map(len, rows))
    tiny = st.sampled_from([0.0, 5e-324, 2.0**-1022, 2.0**-1000, 1e-300, 2.0**-53, 1.0, 2.0**899])
    Y = np.array([[data.draw(tiny) if data.draw(st.booleans()) else v for v in row[:width]] for row in rows])
    first = np.zeros(len(Y), dtype=np.int64)
    lower = least_loss(first, Y, "cross_entropy")[0]
    with mpmath.workdps(60):
        assert mpmath.mpf(lower) <= infimum(np.zeros((len(Y), 1)), Y, "cross_entropy")
    with pytest.raises(InvalidInput):
        least_loss(first, Y - 2.0**900, "cross_entropy")
