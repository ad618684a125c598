"""The kernel and the second checker never contradict each other: on vectors, on forgeries, on random certificates."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest

from alignver import kernel
from alignver.errors import InvalidInput
from alignver.kernel.certificate import decoded
from alignver.results import Verdict
from property_tests.kernel.forger import forgeries, rank_of
from property_tests.kernel.sizes import MAKERS
from tests.vectors import make, second_checker
from tests.vectors.case import npy, read, stored

flint = pytest.importorskip("flint")

UNTOLD = {"no-structure: value at zero", "not-analytic: one-sided derivatives"}
"""Statements for every input, which the second checker does not decide."""


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.parametrize("name", make.DOCUMENTS)
def test_it_answers_the_vectors(name):
    answers = collections.Counter()
    for vector in read(make.PLACE / f"{name}.json"):
        answer, reason = second_checker.check(vector["files"], vector["inputs"])
        answers[answer] += 1
        if vector["verdict"] == "HOLDS":
            assert answer == ("not decided" if vector["name"] in UNTOLD else "accepted"), (vector["name"], reason)
        if answer == "accepted":
            assert vector["statement"] is True, (vector["name"], reason)
        if vector["statement"] is False or vector["rejected"] in ("format", "inputs"):
            assert answer == "refuted", (vector["name"], reason)
        if answer == "refuted" and vector["statement"] is True:
            assert vector["rejected"] == "certificate", (vector["name"], reason)
    assert answers["refuted"] > 40


def compared(certificate, inputs):
    """Return both answers; what the kernel accepts is not refuted."""
    try:
        verdict = kernel.verify(certificate, inputs).verdict
    except InvalidInput:
        verdict = Verdict.FAILS
    answer, reason = second_checker.check(stored(certificate), {name: npy(value) for name, value in inputs.items()})
    assert not (verdict is Verdict.HOLDS and answer == "refuted"), (certificate.claim, certificate.method, reason)
    return verdict, answer


def agreement(count, seed, largest):
    """Compare certificates, two thirds of them forgeries of small matrices; return the number per pair of answers."""
    pairs = collections.Counter()
    for forgery in forgeries(seed, -(-2 * count // 63)):
        pair = compared(forgery.certificate, forgery.inputs)
        # In a ball the forger does not know all that is true, and of a conflict he names two rows.
        known = "ball" not in forgery.certificate.constants and forgery.kind != "conflicting"
        assert forgery.true or pair[1] != "accepted" or not known, (forgery.kind, forgery.certificate)
        pairs[pair] += 1
    rng = np.random.default_rng(seed)
    for k in range(count // 3):
        # One in twenty has some dozen rows, one in two hundred some hundred.
        least, most = (2, 12) if k % 20 else (12, 60) if k % 200 else (largest // 2, largest)
        size = int(rng.integers(least, most + 1))
        pairs[compared(*MAKERS[k % len(MAKERS)](rng, size))] += 1
    return pairs


def test_it_agrees_with_the_kernel():
    pairs = agreement(300, seed=2026, largest=24)
    assert sum(pairs.values()) >= 300
    assert pairs[Verdict.HOLDS, "accepted"] > 40
    assert pairs[Verdict.FAILS, "refuted"] > 100
    assert pairs[Verdict.HOLDS, "not decided"] < 10


@pytest.mark.slow
def test_it_agrees_with_the_kernel_on_5000_certificates():
    pairs = agreement(7000, seed=24, largest=300)  # a third of them is large, and forgeries of one kind are fewer
    print(pairs)
    assert sum(pairs.values()) >= 5000
    assert pairs[Verdict.HOLDS, "accepted"] > 1000
    assert pairs[Verdict.FAILS, "refuted"] > 2000
    assert pairs[Verdict.HOLDS, "not decided"] < 50


JUNK = [None, True, -1, 0, 10**30, "x", [], {}, [None], {"kind": "norm"}, -0.5, 1.5, 5e-324, 1.7e308]


def test_it_agrees_on_constants_of_any_kind(tmp_path):
    """Of valid vectors with one constant replaced, and sealed again."""
    draw = random.Random(5)
    valid = [v for name in make.DOCUMENTS for v in read(make.PLACE / f"{name}.json") if v["verdict"] == "HOLDS"]
    pairs = collections.Counter()
    for k in range(400):
        vector = valid[k % len(valid)]
        for name, content in vector["files"].items():
            (tmp_path / name).write_bytes(content)
        certificate = kernel.load_certificate(tmp_path)
        constants = decoded(json.loads(vector["files"]["certificate.json"])["constants"])
        place = constants
        while True:
            key = draw.choice(list(place)) if place else "more"
            if not isinstance(place.get(key), dict) or draw.random() < 0.5:
                break
            place = place[key]
        place[key] = draw.choice(JUNK)
        changed = dataclasses.replace(certificate, constants=constants)
        changed = dataclasses.replace(changed, seal=changed.expected_seal())
        inputs = {name: np.load(io.BytesIO(content)) for name, content in vector["inputs"].items()}
        pairs[compared(changed, inputs)] += 1
        (tmp_path / "data.npz").unlink(missing_ok=True)
    assert pairs[Verdict.FAILS, "refuted"] > 100
    assert pairs[Verdict.HOLDS, "accepted"] > 20


FALSIFIED = {
    "no remainders": ("factored", lambda M, bits, semi: True),
    "ranks modulo small primes": ("rank", lambda rows: second_checker.rank_modulo(second_checker.whole(rows), 3)),
    "balls of radius zero": ("least_radius", lambda ball: Fraction(0)),
    "logarithms that are too small": ("logarithm", lambda x: (Fraction(0), Fraction(0))),
    "gates of one half": ("logistic", lambda x: (Fraction(1, 2), Fraction(1, 2))),
    "wider balls": ("least_radius", lambda ball: 2 * (min(map(min, ball[1])) if ball[0] == "radii" else ball[1])),
    "kinks that are not met": ("Dual.bent", lambda self, slope: self),
}


def everything():
    for document in make.DOCUMENTS:
        test_it_answers_the_vectors(document)
    test_definiteness_is_that_of_determinants()


@pytest.mark.parametrize("name", FALSIFIED)
def test_a_checker_that_is_wrong_disagrees(name, monkeypatch):
    attribute, wrong = FALSIFIED[name]
    owner, _, attribute = attribute.rpartition(".")
    monkeypatch.setattr(getattr(second_checker, owner) if owner else second_checker, attribute, wrong)
    with pytest.raises(AssertionError):
        everything()


def test_ranks_are_those_of_rationals():
    rng = np.random.default_rng(1)
    for _ in range(60):
        n, d, r = (int(k) for k in rng.integers(1, 9, 3))
        A = rng.integers(-4, 5, (n, r)) @ rng.integers(-4, 5, (r, d)) * np.ldexp(1.0, rng.integers(-900, 900, (n, 1)))
        rows = [[Fraction(v) for v in row] for row in A.tolist()]
        assert second_checker.rank(rows) == rank_of(rows)
    vanishing = [[Fraction(2**61 - 1), Fraction(0)], [Fraction(0), Fraction(1)]]
    assert second_checker.rank(vanishing) == 2  # one modulo the first prime


def test_definiteness_is_that_of_determinants():
    rng = np.random.default_rng(2)
    for k in range(40):
        n = int(rng.integers(1, 30))
        B = rng.integers(-3, 4, (n, n + 2)).astype(float)
        M = second_checker.gram([[Fraction(v) for v in row] for row in B.tolist()])
        square = Fraction(float(np.linalg.svd(B, compute_uv=False)[-1]) ** 2)
        for factor in (0, 1 - Fraction(1, 10**9), 1 + Fraction(1, 10**9)):
            shifted = second_checker.shifted(M, square * factor)
            minors = flint.fmpq_mat([[flint.fmpq(v.numerator, v.denominator) for v in row] for row in shifted])
            expected = all(
                flint.fmpq_mat(minors.tolist()[:0] or [row[:j] for row in minors.tolist()[:j]]).det() > 0
                for j in range(1, n + 1)
            )
            assert second_checker.definite(shifted) == expected, (k, factor)
    singular = [[Fraction(1), Fraction(1)], [Fraction(1), Fraction(1)]]
    assert second_checker.definite(singular, semi=True)
    assert not second_checker.definite(singular)
    large = second_checker.gram([[Fraction(i == j) + Fraction(j == 0) for j in range(20)] for i in range(21)])
    assert second_checker.definite(large, semi=True)  # of rank 20: decided by elimination
    assert not second_checker.definite(large)


@pytest.mark.parametrize("x", [0.0, -1e-30, -0.5, -3.25, -100.0, -250.0])
def test_functions_are_enclosed(x):
    with mpmath.workdps(150):
        for function, exact in (
            (second_checker.exponential, mpmath.exp),
            (second_checker.logistic, lambda v: 1 / (1 + mpmath.exp(-v))),
            (second_checker.softplus, lambda v: mpmath.log1p(mpmath.exp(v))),
            (lambda v: second_checker.logarithm(1 - v), lambda v: mpmath.log(1 - v)),
        ):
            low, high = (mpmath.mpf(end.numerator) / end.denominator for end in map(Fraction, function(Fraction(x))))
            assert low - mpmath.mpf(10) ** -140 <= exact(mpmath.mpf(x)) <= high + mpmath.mpf(10) ** -140
            assert high - low < mpmath.mpf(10) ** -60
    assert second_checker.root_up(Fraction(2)) ** 2 >= 2
    assert math.isclose(second_checker.root_up(Fraction(2)), math.sqrt(2))


def test_it_is_a_program_of_the_standard_library(tmp_path):
    vector = next(read(make.PLACE / "matrices.json"))
    for name, content in vector["files"].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "A.npy").write_bytes(vector["inputs"]["A"])
    command = [sys.executable, "-I", "-S", second_checker.__file__, str(tmp_path), "--input", f"A={tmp_path / 'A.npy'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "accepted: the rank is 2\n"), done.stderr
    source = Path(second_checker.__file__).read_text()
    assert "alignver" not in re.sub(r"\"\"\".*?\"\"\"|\"alignver certificate\"", "", source, flags=re.DOTALL)
