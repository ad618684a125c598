"""Verified bounds against exact and 200-bit values, and against another library's."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from alignver import Verdict, check_membership, recheck
from alignver.proof import right_inverse as right_inverse_module
from alignver.proof import rounding
from alignver.proof.cholesky import is_positive_definite, row_rank_by_gram, rump_shift
from alignver.proof.decision import Ball
from alignver.proof.residual import distance_bound, distance_from
from alignver.proof.right_inverse import right_inverse, right_residual, row_rank_by_inverse
from tests.proof.cases import cases
from tests.proof.eigenvalues import smallest_eigenvalue


def with_singular_values(rng: np.random.Generator, n: int, d: int, values: np.ndarray) -> np.ndarray:
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((d, n)))
    return (U * values) @ V.T


def smallest_singular_value(A: np.ndarray) -> float:
    """s_min(A) of the exact floats to 200 bits, rounded to nearest."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(400):
        gram = mpmath.matrix(A.tolist()) * mpmath.matrix(A.T.tolist())
        least = min(mpmath.eigsy(gram, eigvals_only=True))
        return float(mpmath.sqrt(abs(least)))


def test_scalar_operations_enclose_the_exact_result() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x, y = (abs(float(v)) for v in rng.standard_normal(2) * 10.0 ** rng.integers(-320, 150, 2))
        X, Y = Fraction(x), Fraction(y)
        assert Fraction(rounding.add_up(x, y)) >= X + Y
        assert Fraction(rounding.sub_down(x, y)) <= X - Y
        if math.isfinite(rounding.mul_up(x, y)):
            assert Fraction(rounding.mul_up(x, y)) >= X * Y
        assert Fraction(rounding.mul_down(x, y)) <= X * Y
        if y and math.isfinite(rounding.div_up(x, y)):
            assert Fraction(rounding.div_down(x, y)) <= X / Y <= Fraction(rounding.div_up(x, y))
        assert Fraction(rounding.sqrt_down(x)) ** 2 <= X <= Fraction(rounding.sqrt_up(x)) ** 2
        for e in (-1100, -30, 7):
            assert Fraction(rounding.scale_down(x, e)) <= X * Fraction(2) ** e <= Fraction(rounding.scale_up(x, e))


def test_gamma_is_an_upper_bound_and_refuses_what_is_too_large() -> None:
    u = Fraction(1, 2**53)
    for k in (0, 1, 7, 10**6, 2**50):
        assert Fraction(rounding.gamma(k)) >= k * u / (1 - k * u)
    assert rounding.gamma(-1) == math.inf
    assert rounding.gamma(2**60) == math.inf


@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e-20, 1.0, 1e150])
def test_norms_enclose_the_exact_norm(scale: float) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 17, 400):
        x = rng.standard_normal(n) * scale
        exact = sum(Fraction(float(v)) ** 2 for v in x)
        assert Fraction(rounding.norm_down(x)) ** 2 <= exact <= Fraction(min(rounding.norm_up(x), 1.7e308)) ** 2
        assert Fraction(min(rounding.sum_up(np.abs(x)), 1.7e308)) >= sum(abs(Fraction(float(v))) for v in x)
    assert rounding.norm_up(np.array([1.0, np.nan])) == math.inf
    assert rounding.norm_down(np.array([1.0, np.nan])) == 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_smallest_eigenvalue_is_below_the_exact_one_and_close(n: int) -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(n)
    B = rng.standard_normal((n, n + 3))
    A = B @ B.T
    A = (A + A.T) / 2
    bound = smallest_eigenvalue(A)
    with mpmath.workprec(200):
        exact = float(min(mpmath.eigsy(mpmath.matrix(A.tolist()), eigvals_only=True)))
    assert 0.9 * exact < bound < exact


def test_definiteness_uses_the_error_it_is_told_about() -> None:
    A = np.diag([1.0, 2.0])
    assert is_positive_definite(A, error=0.9)
    assert not is_positive_definite(A, error=1.0)
    assert is_positive_definite(A, shift=0.999)
    assert not is_positive_definite(A, shift=1.0)
    for bad in (np.nan, np.inf, -1.0, 0.0):
        assert not is_positive_definite(np.diag([1.0, bad]))
    assert not is_positive_definite(np.array([[1.0, np.nan], [np.nan, 1.0]]))
    assert not is_positive_definite(np.array([[1.0, np.inf], [np.inf, 1.0]]))


def test_singular_matrices_are_never_definite() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(2, 40))
        B = rng.integers(-(2**20), 2**20, (n, n - 1)).astype(float)
        A = B @ B.T  # exact: below 2^53
        assert np.abs(A).max() < 2**53
        assert not is_positive_definite(A), "a singular matrix was proved definite"


def test_rump_shift_covers_a_factorization_multiplied_out() -> None:
    rng = np.random.default_rng(4)
    for n in (2, 10, 40):
        A = np.cov(rng.standard_normal((n, 3 * n)))
        L = np.linalg.cholesky(A)
        exact = [[Fraction(float(value)) for value in row] for row in L]
        wrong = [
            [
                sum((exact[i][k] * exact[j][k] for k in range(j + 1)), Fraction(0)) - Fraction(float(A[i, j]))
                for j in range(i + 1)
            ]
            for i in range(n)
        ]
        size = math.sqrt(float(sum((1 if i == j else 2) * wrong[i][j] ** 2 for i in range(n) for j in range(i + 1))))
        assert size < rump_shift(n, float(np.trace(A)), float(A.diagonal().max()))


@pytest.mark.parametrize("exponent", [0, 2, 5, 8, 11, 12])
def test_lower_bounds_of_the_smallest_singular_value(exponent: int) -> None:
    rng = np.random.default_rng(exponent)
    for n, d in ((1, 1), (5, 5), (12, 20)):
        A = with_singular_values(rng, n, d, np.logspace(0, -exponent, n))
        exact = smallest_singular_value(A)
        for method in (row_rank_by_gram, row_rank_by_inverse):
            proof = method(A)
            assert proof.s_min <= exact
            if method is row_rank_by_inverse or exponent <= 5:
                assert proof.proved
                assert proof.s_min > 0.05 * exact


@pytest.mark.parametrize("n", [60, 200])
def test_right_inverse_reaches_condition_1e12(n: int) -> None:
    rng = np.random.default_rng(n)
    A = with_singular_values(rng, n, n + 30, np.logspace(0, -12, n))
    assert not row_rank_by_gram(A).proved
    assert row_rank_by_inverse(A).proved
    assert row_rank_by_inverse(np.ldexp(A, rng.integers(-400, 400, (n, 1)))).proved


def test_right_residual_covers_the_exact_residual() -> None:
    rng = np.random.default_rng(6)
    for exponent in (0, 6, 12, 15):
        for n, d in ((1, 1), (3, 7), (9, 9)):
            A = with_singular_values(rng, n, d, np.logspace(0, -exponent, n))
            A = A / np.exp2(np.frexp(np.abs(A).max(axis=1))[1])[:, None]
            X = right_inverse(A)
            if X is None:
                continue
            for Y in (X, X * (1 + 1e-3), X + rng.standard_normal(X.shape)):
                bound, _ = right_residual(A, Y)
                exact = Fraction(0)
                for i in range(n):
                    for j in range(n):
                        total = sum(
                            (Fraction(float(a)) * Fraction(float(x)) for a, x in zip(A[i], Y[:, j])),
                            Fraction(0),
                        )
                        exact += ((1 if i == j else 0) - total) ** 2
                assert Fraction(bound) ** 2 >= exact


def test_distance_is_below_the_exact_distance_and_close() -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(7)
    for n, d in ((2, 1), (6, 3), (20, 12)):
        for scale in (1e-100, 1.0, 1e100):
            J, y = rng.standard_normal((n, d)) * scale, rng.standard_normal(n)
            computed = distance_from(J, y)
            with mpmath.workprec(400):
                M, b = mpmath.matrix(J.tolist()), mpmath.matrix(y.tolist())
                beta = mpmath.lu_solve(M.T * M, M.T * b)
                exact = float(mpmath.norm(b - M * beta))
            assert computed.proved
            assert 0.99 * exact < computed.distance <= exact


def test_coefficients_that_underflow_are_those_of_the_certificate() -> None:
    J = 2.0**1010 * np.random.default_rng(0).standard_normal((5, 3))
    y = 2.0**-560 * np.ones(5)
    result = check_membership(J, y)
    assert result.verdict is Verdict.FAILS
    assert recheck(result.certificate, J=J, y=y).verdict is Verdict.HOLDS


def test_distance_over_a_ball_is_below_that_of_every_member_tried() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        n, d = int(rng.integers(2, 12)), 1
        d = int(rng.integers(1, n))
        J, y = rng.standard_normal((n, d)), rng.standard_normal(n)
        delta = 10.0 ** float(rng.uniform(-4, 0)) * np.linalg.svd(J, compute_uv=False)[-1]
        beta = np.linalg.lstsq(J, y, rcond=None)[0]
        s_min = float(np.linalg.svd(J, compute_uv=False)[-1]) * (1 - 1e-12)
        bound = distance_bound(J, y, beta, s_min, float(delta))
        residual = y - J @ beta
        for step in range(6):
            # The worst first-order move tilts the columns towards the residual along beta; the others are random.
            E = np.outer(residual, beta) if step == 0 else rng.standard_normal((n, d))
            E *= 0.999 * delta / max(np.linalg.norm(E, 2), 1e-300)
            moved = J + E
            best = np.linalg.lstsq(moved, y, rcond=None)[0]
            assert bound <= np.linalg.norm(y - moved @ best) * (1 + 1e-9) + 1e-12


def test_nothing_is_proved_from_overflow_or_nan() -> None:
    y = np.ones(3)
    for bad in (np.nan, np.inf, -np.inf):
        A = np.eye(3, 4)
        A[1, 2] = bad
        assert not row_rank_by_gram(A).proved
        assert not row_rank_by_inverse(A).proved
    J = np.eye(3, 1)
    assert distance_bound(J, y, np.array([np.nan]), 1.0) == 0.0
    assert distance_bound(J, y, np.array([np.inf]), 1.0) == 0.0
    assert distance_bound(J, y, np.zeros(1), math.nan) == 0.0
    assert distance_bound(J, y, np.zeros(1), 0.0) == 0.0
    assert distance_bound(J, y, np.zeros(1), 1.0, 1.0) == 0.0


def test_a_ball_bounds_its_members() -> None:
    rng = np.random.default_rng(9)
    R = rng.random((4, 6))
    for ball in (Ball(entrywise=R), Ball(entrywise=0.3), Ball(norm=0.3)):
        for exponents in (np.zeros(4, dtype=np.int64), np.array([3, -2, 0, 1])):
            radius = ball.scaled(exponents).radius((4, 6))
            for _ in range(20):
                E = rng.choice([-1.0, 1.0], (4, 6)) * (R if ball.norm is None and np.ndim(ball.entrywise) else 0.3)
                if ball.norm is not None:
                    E *= 0.3 / max(0.3, np.linalg.norm(E, 2))
                assert np.linalg.norm(np.ldexp(E, exponents[:, None]), 2) <= radius * (1 + 1e-12)


def test_crlin_agrees_on_definiteness_and_full_rank() -> None:
    crlin = pytest.importorskip("crlin")
    rng = np.random.default_rng(10)
    for n in (3, 20, 60):
        A = rng.standard_normal((n, 2 * n))
        G = A @ A.T
        G = (G + G.T) / 2
        low, high = crlin.eig_sym(G)
        ours = smallest_eigenvalue(G)
        assert ours <= high[0]
        assert crlin.spd(G) <= high[0]
        assert ours > 0.9 * low[0]
    for case in cases(seed=11, rounds=2, most=9):
        J = case.J
        if J.shape[0] != J.shape[1] or not 1e-100 < np.abs(J).max() < 1e100:
            continue
        try:
            crlin.solve(J, np.ones(J.shape[0]))
        except (crlin.NotVerified, ValueError, np.linalg.LinAlgError):
            continue
        # crlin proved J non-singular: ours may say so or nothing, and exact arithmetic must agree.
        pytest.importorskip("flint")
        from alignver.proof import prove_rank
        from alignver.results import Verdict

        assert prove_rank(J, J.shape[0]).verdict is Verdict.HOLDS


def test_a_right_inverse_is_given_up_where_a_pivot_is_within_the_ball(monkeypatch):
    A = np.random.default_rng(0).standard_normal((20, 60))
    A[3] = A[7] + 1e-9 * A[3]
    assert row_rank_by_inverse(A).proved
    monkeypatch.setattr(right_inverse_module.lapack, "dorgqr", None)  # the expensive part
    full = row_rank_by_inverse(A, Ball(norm=1e-6))
    assert not full.proved
    assert "pivot" in full.reason
    assert not row_rank_by_inverse(A, least=1e-6).proved


def test_a_residual_is_given_up_where_a_pivot_is_within_the_ball(monkeypatch):
    J = np.random.default_rng(0).standard_normal((60, 20))
    J[:, 3] = J[:, 7] + 1e-6 * J[:, 3]
    y = np.ones(60)
    assert distance_from(J, y).proved
    monkeypatch.setattr(right_inverse_module.lapack, "dorgqr", None)
    assert "pivot" in distance_from(J, y, Ball(norm=1e-4)).reason
