"""Proofs of membership and rank: the method that decides, the refusals, and the reasons."""

from __future__ import annotations

import builtins
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput, MissingDependency
from alignver.kernel.exact import rank_modulo, residues, small_primes
from alignver.proof import Ball, prove_membership, prove_rank
from alignver.proof.exact import bytes_needed, null_vectors, primes, profile, to_integers, vanishing_primes
from alignver.proof.matrix_structure import find_conflict, redundant_rows
from alignver.results import Verdict
from tests.proof.cases import cases, exact_rank

pytest.importorskip("flint")
RNG = np.random.default_rng(0)
WIDE, TALL = RNG.standard_normal((8, 12)), RNG.standard_normal((12, 8))
HILBERT = 1.0 / (np.arange(9)[:, None] + np.arange(9) + 1.0)


@pytest.mark.parametrize(
    ("J", "y", "options", "verdict", "step"),
    [
        (WIDE, np.ones(8), {}, "HOLDS", "gram"),
        (HILBERT, np.ones(9), {}, "HOLDS", "right inverse"),
        (TALL, np.ones(12), {}, "FAILS", "residual"),
        (TALL, TALL @ np.ones(8) * 0.0, {}, "HOLDS", "structure"),
        (TALL, TALL[:, 2], {}, "HOLDS", "exact"),
        (np.zeros((2, 3)), np.ones(2), {}, "FAILS", "structure"),
        (np.ones((2, 3)), np.array([1.0, 2.0]), {}, "FAILS", "structure"),
        (np.array([[1.0, 3.0], [3.0, 9.0]]), np.array([1.0, 2.0]), {}, "FAILS", "structure"),
        (WIDE, np.ones(8), {"exact": "force"}, "HOLDS", "exact"),
        (WIDE, np.ones(8), {"ball": Ball(norm=0.1)}, "HOLDS", "gram"),
        (WIDE, np.ones(8), {"ball": Ball(norm=100.0)}, "UNDECIDED", "none"),
        (TALL, np.ones(12), {"ball": Ball(entrywise=1e-6)}, "FAILS", "residual"),
        (HILBERT, np.ones(9), {"ball": Ball(norm=1e-14)}, "HOLDS", "right inverse"),
        (TALL, TALL[:, 2], {"exact": "never"}, "UNDECIDED", "none"),
        (TALL, np.zeros(12), {"ball": Ball(norm=100.0)}, "HOLDS", "structure"),
    ],
)
def test_which_step_decides(J: np.ndarray, y: np.ndarray, options: Any, verdict: str, step: str) -> None:
    decision = prove_membership(J, y, **options)
    assert (decision.verdict.value, decision.step) == (verdict, step)
    assert decision.reason
    if decision.certificate is not None:
        assert recheck(decision.certificate, J=J, y=y).verdict is Verdict.HOLDS
    else:
        assert "would" in decision.reason
    if verdict == "UNDECIDED":
        assert decision.tried


def test_repeated_rows_with_equal_targets_do_not_hide_membership() -> None:
    J = RNG.standard_normal((300, 700))
    J[250], J[7], J[8] = J[3], J[3], 0.0
    y = RNG.standard_normal(300)
    y[250] = y[7] = y[3]
    y[8] = 0.0
    decision = prove_membership(J, y, exact="never")
    assert decision.verdict is Verdict.HOLDS
    assert decision.measured.get("s_min_lower", 0.0) == 0.0
    assert decision.measured["s_min_lower_without_repeats"] > 0.0
    assert recheck(decision.certificate, J=J, y=y).verdict is Verdict.HOLDS
    y[7] += 1.0
    decision = prove_membership(J, y, exact="never")
    assert decision.verdict is Verdict.FAILS
    assert decision.witness is not None
    assert 7 in decision.witness["rows"]
    for rank, verdict in ((297, "HOLDS"), (298, "FAILS"), (300, "FAILS"), (296, "UNDECIDED")):
        for A in (J, np.ascontiguousarray(J.T)):
            ranked = prove_rank(A, rank, exact="never")
            assert ranked.verdict.value == verdict
            if ranked.certificate is not None:
                assert recheck(ranked.certificate, A=A).verdict is Verdict.HOLDS


def test_s_min_lower_is_one() -> None:
    decision = prove_membership(WIDE, np.ones(8))
    s = np.linalg.svd(WIDE, compute_uv=False)[-1]
    assert 0.5 * s < decision.measured["s_min_lower"] <= s


def test_what_exact_arithmetic_may_take_is_estimated_first() -> None:
    y = TALL[:, 2]
    decision = prove_membership(TALL, y, budget_bytes=1000)
    assert decision.verdict is Verdict.UNDECIDED
    assert "GB" in decision.reason
    decision = prove_membership(TALL, y, budget_seconds=1e-9)
    assert decision.verdict is Verdict.UNDECIDED
    assert " s" in decision.reason
    assert prove_membership(TALL, y, budget_seconds=1e-9, exact="force").verdict is Verdict.HOLDS
    assert prove_membership(TALL, y, budget_bytes=1000, exact="force").verdict is Verdict.UNDECIDED
    assert bytes_needed(RNG.standard_normal((50, 50))) < bytes_needed(
        RNG.standard_normal((50, 50)) * 10.0 ** RNG.integers(-100, 100, (50, 50))
    )


def test_the_estimate_of_memory_is_of_the_right_size() -> None:
    import tracemalloc

    A = RNG.standard_normal((200, 200)) * 10.0 ** RNG.integers(-50, 50, (200, 200))
    tracemalloc.start()
    exact = to_integers(A)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert exact.shape == (200, 200)
    assert 0.3 * peak < bytes_needed(A) < 10 * peak


def test_without_flint_floats_still_prove_and_exact_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "flint":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert prove_membership(WIDE, np.ones(8)).verdict is Verdict.HOLDS
    decision = prove_membership(TALL, TALL[:, 2])
    assert decision.verdict is Verdict.UNDECIDED
    assert "alignver[proof]" in decision.reason
    for call in (
        lambda: prove_membership(WIDE, np.ones(8), exact="force"),
        lambda: prove_rank(WIDE, 8, exact="force"),
    ):
        with pytest.raises(MissingDependency, match="python-flint"):
            call()
    ball = prove_membership(HILBERT, np.ones(9), ball=Ball(norm=1e-14))
    assert recheck(ball.certificate, J=HILBERT, y=np.ones(9)).verdict is Verdict.HOLDS


def test_a_thread_that_rounds_otherwise_gets_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignver.proof.prove.arithmetic_fault", lambda: "this thread rounds downwards")
    for decision in (prove_membership(WIDE, np.ones(8)), prove_membership(TALL, np.ones(12)), prove_rank(WIDE, 8)):
        assert (decision.verdict, decision.reason) == (Verdict.UNDECIDED, "this thread rounds downwards")


@pytest.mark.parametrize(
    "call",
    [
        lambda: prove_membership(np.array([[1.0, np.nan]]), np.ones(1)),
        lambda: prove_membership(np.eye(2), np.array([1.0, np.inf])),
        lambda: prove_membership(np.eye(2), np.ones(3)),
        lambda: prove_membership(np.zeros((0, 2)), np.zeros(0)),
        lambda: prove_membership(np.eye(2), np.ones(2), exact="maybe"),  # type: ignore[arg-type]
        lambda: prove_membership(np.eye(2), np.ones(2), ball=1e-3),  # type: ignore[arg-type]
        lambda: prove_membership(np.eye(2), np.ones(2), ball=Ball(entrywise=np.ones((3, 2)))),
        lambda: prove_rank(np.eye(2), -1),
        lambda: prove_rank(np.eye(2), 1.5),  # type: ignore[arg-type]
        lambda: prove_rank(np.eye(2), True),
        lambda: prove_rank(np.eye(2) + 0j, 2),
        lambda: Ball(),
        lambda: Ball(norm=1.0, entrywise=1.0),
        lambda: Ball(norm=-1.0),
        lambda: Ball(norm=float("nan")),
        lambda: Ball(entrywise=np.array([[np.inf]])),
        lambda: Ball(entrywise="x"),  # type: ignore[arg-type]
        lambda: Ball(norm=np.ones(2)),  # type: ignore[arg-type]
        lambda: recheck(3, J=np.eye(2)),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_invalid_input(call: Any) -> None:
    with pytest.raises(InvalidInput):
        call()


def test_inputs_are_left_alone_and_layout_does_not_matter() -> None:
    J, y = np.asfortranarray(WIDE), np.ones(16)[::2]
    before = J.copy()
    J.setflags(write=False)
    certificate = prove_membership(J, y).certificate
    np.testing.assert_array_equal(J, before)
    assert recheck(certificate, J=WIDE, y=np.ones(8)).verdict is Verdict.HOLDS
    assert prove_membership(WIDE.astype(np.float32), np.ones(8)).verdict is Verdict.HOLDS
    assert prove_membership([[1, 2], [3, 4]], [1, 2]).verdict is Verdict.HOLDS


def test_results_do_not_depend_on_what_ran_before() -> None:
    first = prove_membership(TALL, np.ones(12)).certificate
    np.random.default_rng(1).standard_normal(10)
    second = prove_membership(TALL, np.ones(12)).certificate
    assert first is not None
    assert second is not None
    assert first.seal == second.seal


def test_structure_is_exact() -> None:
    third = np.array([[1.0, 1 / 3], [3.0, 3 * (1 / 3)]])  # proportional in the reals, not as floats
    assert exact_rank(third) == 2
    assert find_conflict(third, np.array([1.0, 2.0])) is None
    for scale in (2.0, -0.5, 3.0, 7.0 * 2.0**-400):
        J = np.vstack([np.arange(1.0, 6.0), scale * np.arange(1.0, 6.0), np.ones(5)])
        assert find_conflict(J, np.array([1.0, scale, 9.0])) is None
        conflict = find_conflict(J, np.array([1.0, np.nextafter(scale, 9.0), 9.0]))
        assert conflict is not None
        assert conflict.rows == (0, 1)
    tiny = np.array([[5e-324, 1e-323], [1e-323, 2e-323]])
    assert find_conflict(tiny, np.array([1.0, 2.0])) is None
    assert find_conflict(tiny, np.array([1.0, 3.0])) is not None
    assert redundant_rows(np.array([[0.0, -0.0], [1.0, 0.0], [1.0, -0.0]])) == {0: -1, 2: 1}


def test_structure_finds_one_conflict_among_many_rows() -> None:
    J = RNG.standard_normal((5000, 20))
    y = RNG.standard_normal(5000)
    J[4321] = 3.0 * np.round(J[17], 3)
    J[17] = np.round(J[17], 3)
    J[4321] = 4.0 * J[17]
    conflict = find_conflict(J, y)
    assert conflict is not None
    assert conflict.rows == (17, 4321)
    same = np.ones((5000, 20))
    assert find_conflict(same, np.ones(5000)) is None


def test_modular_ranks_agree_with_exact_ones() -> None:
    p = next(small_primes())
    for case in cases(seed=3, rounds=3):
        truth = exact_rank(case.J)
        assert rank_modulo(residues(case.J, p), p) == truth == profile(to_integers(case.J), next(primes())).rank


@pytest.mark.parametrize("shape", [(1, 1), (70, 70), (130, 97), (97, 130)])
def test_blocked_elimination_agrees_with_flint(shape: tuple[int, int]) -> None:
    import flint

    A = RNG.integers(-9, 10, shape).astype(float)
    A[shape[0] // 2 :] = A[: shape[0] - shape[0] // 2]
    A[:, shape[1] // 3] = 0.0
    for p in (2**21 - 9, 101, 3):
        entries = [[int(a) % p for a in row] for row in A]
        assert rank_modulo(residues(A, p), p) == flint.nmod_mat(*shape, [a for row in entries for a in row], p).rank()


def test_upper_bounds_of_the_rank_by_both_ways() -> None:
    for case in cases(seed=4, rounds=2):
        matrix = to_integers(case.J)
        minor = profile(matrix, next(primes()))
        assert vanishing_primes(matrix, minor.rank, primes()) is not None
        if minor.rank:
            assert vanishing_primes(matrix, minor.rank - 1, primes()) is None
        for left in (True, False):
            assert null_vectors(matrix, minor, left=left) is not None


def test_a_rank_modulo_a_prime_that_is_too_small_proves_nothing() -> None:
    A = to_integers(np.array([[101.0, 0.0], [0.0, 1.0]]))
    unlucky = profile(A, 101)
    assert unlucky.rank == 1
    assert null_vectors(A, unlucky, left=True) is None


def test_importing_proof_loads_no_torch() -> None:
    code = "import sys, alignver.proof; print([m for m in ('torch', 'flint', 'cupy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
