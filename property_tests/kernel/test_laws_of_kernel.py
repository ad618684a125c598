"""No forgery is believed and no certificate of ours is refused, over matrices of which everything is known."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alignver as av
from alignver import kernel
from alignver.kernel import data, floats, matrices
from alignver.kernel.certificate import describe
from alignver.proof import Ball, prove_membership, prove_rank
from alignver.results import Verdict, shown_down
from property_tests.kernel.forger import distance_squared, exceeds, exceeds_not, forgeries, rank_of
from tests.proof.cases import cases

pytest.importorskip("flint")

ROUNDS = 25  # about 520 claims, 320 of them false


def accepted(forgery):
    return kernel.verify(forgery.certificate, forgery.inputs).verdict is Verdict.HOLDS


def believed(made):
    """Return the false claims that the kernel accepts, how many true ones it accepts, and how many were false."""
    wrong, right, false = [], 0, 0
    for forgery in made:
        false += not forgery.true
        if accepted(forgery):
            wrong += [] if forgery.true else [forgery]
            right += forgery.true
    return wrong, right, false


@pytest.fixture(scope="module")
def forged():
    return [list(forgeries(seed, ROUNDS)) for seed in range(4)]


@pytest.mark.parametrize("seed", range(4))
def test_no_forgery_is_believed(seed, forged):
    wrong, right, false = believed(forged[seed])
    assert not wrong
    assert false > 5 * ROUNDS
    assert right > ROUNDS / 2  # the forger knows how to write proofs, too


@pytest.mark.slow
def test_no_forgery_of_a_hundred_thousand_is_believed():
    wrong, right, false = believed(forgeries(2026, 10500))
    assert not wrong
    assert false >= 100_000  # true claims, which are drawn beside them, do not count
    assert right > 10_000


FALSIFIED = {
    "balls of radius zero": (matrices, "ball_radius", lambda *arguments: Fraction(0)),
    "scalings that may lose digits": (matrices, "equal", lambda x, y: True),
    "ranks from fewer primes": (matrices, "_row_squares", lambda A: [1] * A.shape[0]),
    "any number is large enough": (matrices, "number", lambda constants, name: Fraction(0)),
    "inverses without residuals": (floats, "exact_residual", lambda A, X: ([[0]], 1)),
    "sums that are always zero": (
        matrices.exact,
        "combination",
        lambda lines, numbers, powers: ([0] * (lines.shape[1] - 1) + [1], 0),
    ),
    "rows that are all equal": (data, "first_equal", lambda digests: np.zeros(len(digests), dtype=np.int64)),
    "targets that are all equal": (data, "equal", lambda x, y: True),
    "targets that all differ": (data, "equal", lambda x, y: False),
    "losses of any size": (data, "least_loss", lambda first, Y, loss: (1e300, len(Y))),
    "minors that never vanish": (matrices, "independent_modulo", lambda A, rank, what: 2),
}


@pytest.mark.parametrize("name", FALSIFIED)
def test_the_forger_finds_a_kernel_that_is_wrong(name, forged, monkeypatch):
    module, attribute, wrong = FALSIFIED[name]
    monkeypatch.setattr(module, attribute, wrong)
    assert any(not forgery.true and accepted(forgery) for made in forged for forgery in made)


def proved(case, ball):
    """Return what is proved about a case, each with the inputs of its certificate."""
    J, y = case.J, case.y
    made = [(prove_membership(J, y, ball=ball), {"J": J, "y": y})]
    made += [(prove_rank(J, r, ball=ball), {"A": J}) for r in {min(J.shape), min(J.shape) - 1}]
    return [(decision, inputs) for decision, inputs in made if decision.certificate is not None]


@pytest.mark.parametrize("seed", [11, 12])
def test_own_certificates_are_never_refused(seed):
    rng, count = np.random.default_rng(seed), 0
    for case in cases(seed, 2):
        size = float(np.abs(case.J).max()) or 1.0
        for ball in (None, Ball(norm=min(size * 10.0 ** rng.integers(-16, 0), 1e308)), Ball(entrywise=size * 1e-12)):
            for decision, inputs in proved(case, ball):
                result = kernel.verify(decision.certificate, inputs)
                assert result.verdict is Verdict.HOLDS, (case.name, ball, decision.reason, result.reason)
                count += 1
    assert count > 100


@given(st.integers(0, 10**6), st.floats(1e-12, 10.0))
def test_what_a_sentence_says_is_true(seed, radius):
    """Bounds of s_min and distances are below the true ones, balls no larger than proved, in every sentence."""
    rng = np.random.default_rng(seed)
    A = rng.integers(-4, 5, (2, 3)) / 4.0
    if rank_of([[Fraction(v) for v in row] for row in A.tolist()]) < 2:
        return
    for ball in (None, av.Ball(norm=radius), av.Ball(entrywise=radius)):
        result = av.check_rank(A, rank=2, ball=ball)
        if result.certificate is None:
            continue
        for sentence in (str(result), describe(result.certificate), str(av.recheck(result.certificate, A=A))):
            for bound in re.findall(r"s_min >= ([0-9.e+-]+)", sentence):
                assert not exceeds_not(A, Fraction(bound.rstrip(".")))
            for words in re.findall(r"within ([0-9.e+-]+)", sentence):
                assert Fraction(words.rstrip(".")) <= Fraction(radius)
                assert ball is None or ball.norm is None or exceeds(A, Fraction(radius))
    tall, y = A.T.copy(), rng.integers(-4, 5, 3) / 4.0
    result = av.check_membership(tall, y)
    for words in re.findall(
        r"at least ([0-9.e+-]+) away|distance of at least ([0-9.e+-]+)", str(result) + describe_of(result)
    ):
        square = distance_squared(tall, y)
        assert Fraction(next(filter(None, words)).rstrip(".")) ** 2 <= square


def describe_of(result):
    return "" if result.certificate is None else describe(result.certificate)


@given(st.floats(0.0, 1e300, allow_subnormal=True))
def test_a_claim_names_a_smaller_ball(radius):
    certificate = kernel.seal(
        "rank", "gram", {"A": np.eye(2)}, {}, {"rank": 2, "ball": {"kind": "norm", "value": radius}}
    )
    words = re.search(r"within ([0-9.e+-]+) \(spectral norm\)", describe(certificate))
    assert words is not None
    assert words.group(1) == shown_down(radius)
    assert Fraction(words.group(1)) <= Fraction(radius)
