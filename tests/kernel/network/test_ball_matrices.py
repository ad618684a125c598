"""Definite matrices of balls: against exact rational arithmetic, and at the edge of singular ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, fmpq, fmpq_mat

from alignver.kernel.failure import NotProved
from alignver.kernel.network import ball_matrices, balls

SIZES = (1, 2, 24, 25, 61, 90)


def integers(rng, *shape):
    return rng.integers(-1000, 1000, shape)


def rational(ball):
    mantissa, exponent = ball.mid().man_exp()
    radius, more = ball.rad().man_exp()
    middle, width = fmpq(mantissa) * fmpq(2) ** int(exponent), fmpq(radius) * fmpq(2) ** int(more)
    return middle - width, middle + width


def exact_form(A, y):
    n = len(A)
    column = fmpq_mat(n, 1, [fmpq(int(v)) for v in y])
    return (column.transpose() * fmpq_mat(n, n, [fmpq(int(v)) for v in A.reshape(-1)]).solve(column))[0, 0]


@pytest.mark.parametrize("n", SIZES)
def test_quadratic_forms_are_those_of_rational_arithmetic(n):
    rng = np.random.default_rng(n)
    B, y = integers(rng, n, n + 3), integers(rng, n)
    with balls.precision(300):
        proved = ball_matrices.definite(balls.square(balls.exactly(B)))
        form, about = proved.form(y), proved.estimates(y[:, None])[0]
    low, high = rational(form)
    truth = exact_form(B @ B.T, y)
    assert low <= truth <= high
    assert high - low <= truth * fmpq(1, 2**100)
    assert float(about) == pytest.approx(float(Fraction(int(truth.p), int(truth.q))), rel=1e-12)


def test_scales_of_rows_do_not_matter():
    rng = np.random.default_rng(0)
    B, y = integers(rng, 8, 12), integers(rng, 8)
    powers = 2.0 ** rng.integers(-400, 400, 8)
    with balls.precision(128):
        form = ball_matrices.definite(balls.square(balls.exactly(B * powers[:, None]))).form(y * powers)
    low, high = rational(form)
    assert low <= exact_form(B @ B.T, y) <= high
    assert float(high - low) < 1e-20


@pytest.mark.parametrize(("n", "bits"), [(5, 60), (40, 200), (70, 200)])
def test_floor_is_below_the_smallest_eigenvalue(n, bits):
    smallest = 2.0**-20
    A = 3.0 * np.eye(n) - np.ones((n, n)) * (3.0 - smallest) / n
    with balls.precision(bits):
        proved = ball_matrices.definite(balls.exactly(A))
        assert 0.0 < float(proved.floor) <= smallest * float(proved.scale[0]) ** 2 * (1.0 + 1e-6)


@pytest.mark.parametrize("n", [2, 30, 70])
def test_singular_matrices_are_refused(n):
    rng = np.random.default_rng(n)
    B = integers(rng, n, n - 1)
    with balls.precision(200), pytest.raises(NotProved, match="singular"):
        ball_matrices.definite(balls.square(balls.exactly(B)))
    C = integers(rng, n, n)
    C[-1] = 0
    with balls.precision(200), pytest.raises(NotProved, match="singular"):
        ball_matrices.definite(balls.square(balls.exactly(C)))


def test_balls_that_contain_a_singular_matrix_are_refused():
    """[[1, t], [t, 1]] for t = 1 - 2^-30: definite, unless the balls are as wide as that."""
    for width, definite in ((2.0**-40, True), (2.0**-33, True), (2.0**-30, False), (2.0**-20, False)):
        with balls.precision(128):
            A = balls.exactly(np.eye(2))
            A[0, 1] = A[1, 0] = arb(1.0 - 2.0**-30, width)
            if definite:
                form = ball_matrices.definite(A).form(np.array([1.0, -1.0]))
                for t in (1.0 - 2.0**-30 - width, 1.0 - 2.0**-30 + width):
                    assert 2 / (1 - arb(t)) in form
            else:
                with pytest.raises(NotProved, match="singular"):
                    ball_matrices.definite(A)


def test_indefinite_and_infinite_matrices_are_refused():
    for A in (np.diag([1.0, -1.0]), np.array([[1.0, 2.0], [2.0, 1.0]]), np.diag([1.0, 0.0])):
        with balls.precision(100), pytest.raises(NotProved, match="singular"):
            ball_matrices.definite(balls.exactly(A))
    with balls.precision(100):
        A = balls.exactly(np.eye(3))
        A[0, 1] = A[1, 0] = arb(0) / arb(0)
        with pytest.raises(NotProved, match="not finite"):
            ball_matrices.definite(A)


def test_a_factor_of_another_matrix_proves_nothing(monkeypatch):
    """The proof does not rest on the factor: a wrong one is noticed, never believed."""
    A = np.array([[1.0, 2.0], [2.0, 1.0]])
    for L in (np.eye(2), np.array([[1.0, 0.0], [2.0, 1.0]]), np.zeros((2, 2)), np.diag([1e3, 1e-3])):
        with balls.precision(100), monkeypatch.context() as patched:
            patched.setattr(ball_matrices, "_cholesky", lambda _, L=L: balls.exactly(L))
            with pytest.raises(NotProved, match="singular"):
                ball_matrices.definite(balls.exactly(A))


def test_floor_is_that_of_the_worst_disc(monkeypatch):
    A = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    with balls.precision(100):
        monkeypatch.setattr(ball_matrices, "_cholesky", lambda A: balls.zeros(A.shape))
        proved = ball_matrices.definite(balls.exactly(A))
        wide = balls.exactly(A)
        wide[1, 1] = arb(1.0, 2.0**-4)
        narrower = ball_matrices.definite(wide)
    assert float(proved.floor) == 0.25 * float(proved.scale[0]) ** 2
    assert float(narrower.floor) == pytest.approx((0.25 - 2.0**-4) * float(narrower.scale[1]) ** 2, rel=1e-6)


def test_a_wrong_solution_widens_the_form(monkeypatch):
    rng = np.random.default_rng(5)
    B, y = integers(rng, 6, 9), integers(rng, 6)
    with balls.precision(128):
        proved = ball_matrices.definite(balls.square(balls.exactly(B)))
        monkeypatch.setattr(ball_matrices.Definite, "_solution", lambda self, y: balls.exactly(np.zeros(len(y))))
        low, high = rational(proved.form(y))
    assert low <= exact_form(B @ B.T, y) <= high


def test_squares_in_blocks():
    rng = np.random.default_rng(1)
    for n in (3, 200, 201, 405):
        A = rng.integers(-9, 9, (n, 2)).astype(np.float64)
        with balls.precision(64):
            square = balls.square(balls.exactly(A))
        assert np.array_equal(np.array([[float(x) for x in row] for row in square]), A @ A.T)
