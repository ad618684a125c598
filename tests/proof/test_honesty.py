"""Zero wrong proofs, on thousands of matrices with exactly known truth; and nearly all of them decided."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from alignver.checks.recheck import recheck
from alignver.proof import Ball, prove_membership, prove_rank
from alignver.results import Verdict
from tests.proof.cases import Case, cases, exact_rank, is_member

flint = pytest.importorskip("flint")


def check_membership(case: Case, tally: Counter[str], exact: str) -> None:
    decision = prove_membership(case.J, case.y, exact=exact)
    truth = Verdict.HOLDS if is_member(case.J, case.y) else Verdict.FAILS
    assert decision.verdict in (truth, Verdict.UNDECIDED), f"WRONG PROOF: {case.name}: {decision}"
    tally["all"] += 1
    if decision.verdict is Verdict.UNDECIDED:
        assert decision.certificate is None
        return
    tally["decided"] += 1
    tally[decision.step] += 1
    assert (decision.witness is None) == (decision.verdict is Verdict.HOLDS)
    again = recheck(decision.certificate, J=case.J, y=case.y)
    assert again.verdict is Verdict.HOLDS, f"{case.name}: {again}"


def check_rank(case: Case, rng: np.random.Generator, tally: Counter[str], exact: str) -> None:
    truth = exact_rank(case.J)
    for claimed in {truth, max(0, truth + int(rng.integers(-1, 2)))}:
        decision = prove_rank(case.J, claimed, exact=exact)
        right = Verdict.HOLDS if claimed == truth else Verdict.FAILS
        assert decision.verdict in (right, Verdict.UNDECIDED), f"WRONG PROOF: {case.name}: {decision}"
        tally["all"] += 1
        if decision.verdict is not Verdict.UNDECIDED:
            tally["decided"] += 1
            tally[decision.step] += 1
            again = recheck(decision.certificate, A=case.J)
            assert again.verdict is Verdict.HOLDS, f"{case.name}: {again}"


def run(seed: int, rounds: int) -> tuple[Counter[str], Counter[str]]:
    rng = np.random.default_rng(seed)
    decided, floats = Counter[str](), Counter[str]()
    for case in cases(seed, rounds):
        check_membership(case, decided, "auto")
        check_rank(case, rng, decided, "auto")
        check_membership(case, floats, "never")
        check_rank(case, rng, floats, "never")
    return decided, floats


def test_no_wrong_proof_and_nearly_all_decided() -> None:
    decided, _floats = run(seed=1, rounds=12)
    assert decided["all"] > 500
    assert decided["decided"] >= 0.95 * decided["all"], decided


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 105))
def test_no_wrong_proof_in_thousands(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    decided, floats = run(seed, rounds=60)
    with capsys.disabled():
        print(f"\nseed {seed}: with exact arithmetic {dict(decided)}; floating point alone {dict(floats)}")
    assert decided["decided"] >= 0.95 * decided["all"], decided


def neighbours(rng: np.random.Generator, J: np.ndarray, radius: float) -> list[np.ndarray]:
    """Matrices within ``radius`` (Frobenius) of J, among them the nearest rank-deficient direction."""
    U, s, V = np.linalg.svd(J)
    k = len(s) - 1
    worst = -np.outer(U[:, k], V[k]) * min(radius, s[k])
    noise = rng.standard_normal(J.shape)
    return [J + 0.999 * worst, J + noise * (0.999 * radius / np.linalg.norm(noise))]


def test_a_verdict_for_a_ball_is_true_of_its_members() -> None:
    rng = np.random.default_rng(5)
    tally = Counter[str]()
    for case in cases(seed=2, rounds=15):
        J, y = case.J, case.y
        with np.errstate(all="ignore"):
            scale = float(np.linalg.norm(J))
        if not 1e-100 < scale < 1e100:
            continue
        radius = scale * 10.0 ** float(rng.integers(-14, 0))
        ball = Ball(norm=radius) if rng.random() < 0.5 else Ball(entrywise=np.full(J.shape, radius / np.sqrt(J.size)))
        decision = prove_membership(J, y, ball=ball)
        tally[decision.verdict.value] += 1
        if decision.verdict is Verdict.UNDECIDED:
            continue
        assert recheck(decision.certificate, J=J, y=y).verdict is Verdict.HOLDS, case.name
        if ball.norm is not None:
            for other in neighbours(rng, J, radius * (1 - 1e-3)):
                assert is_member(other, y) == (decision.verdict is Verdict.HOLDS), case.name
    assert tally["HOLDS"] > 5, tally
    assert tally["FAILS"] > 5, tally


def test_no_rank_deficient_matrix_is_refuted_throughout_a_ball() -> None:
    J, y = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array([1.0, 2.0])
    assert prove_membership(J, y).verdict is Verdict.FAILS
    assert prove_membership(J, y, ball=Ball(norm=1e-300)).verdict is Verdict.UNDECIDED
    assert prove_membership(J, y, ball=Ball(norm=0.0)).verdict is Verdict.FAILS
