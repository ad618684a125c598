"""Every constant of the bounds behind proofs about matrices, from both sides.

The formulas are those of the docstrings, in rational arithmetic and written anew; the matrices at the edge are such
that a bound a little smaller would be wrong, or that what is proved ends just there.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from alignver.proof import cholesky as gram_module
from alignver.proof import rounding
from alignver.proof.cholesky import (
    Scaled,
    factor_shifted,
    is_positive_definite,
    row_rank_by_gram,
    row_rank_by_some_columns,
    rump_shift,
    scale_rows,
)
from alignver.proof.decision import Ball
from alignver.proof.residual import distance_bound, distance_from
from alignver.proof.right_inverse import (
    _conclude,
    _norm_up,
    _unscaled,
    right_inverse,
    right_residual,
    row_rank_by_inverse,
)
from tests.exact import OMEGA, U, gamma, pinned, pinned_below, root, square, times, total
from tests.proof.eigenvalues import smallest_eigenvalue

u = 2.0**-53


# Norms and sums


def test_gamma() -> None:
    for k in (1, 2, 3, 1000, 2**20 + 1, 2**50, 2**51 - 1):
        pinned(rounding.gamma(k), gamma(k), 2.0**-50)
    assert rounding.gamma(2**51) == math.inf


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 5000])
def test_sums_and_norms(n: int) -> None:
    x = np.arange(1.0, n + 1.0) % 8.0 + 1.0  # sums and squares are exact: only the bound's own terms are left
    pinned(rounding.sum_up(x), (total(x) + n * OMEGA) / (1 - gamma(n)), 2.0**-50)
    squares = (square(x) + n * OMEGA) / (1 - gamma(n))
    pinned(float(rounding.square_sums_up(x[None, :], 1)[0]), squares, 2.0**-50)
    pinned(float(rounding.square_sums_up(x[:, None], 0)[0]), squares, 2.0**-50)
    pinned(rounding.norm_up(x), root((squares + OMEGA) / (1 - gamma(1))), 2.0**-50)
    rows = np.tile(x, (60, 1))
    pinned(rounding.frobenius_up(rows), root(60 * (squares + OMEGA) / (1 - gamma(60))), 2.0**-50)
    pinned_below(rounding.norm_down(x), root((square(x) - n * OMEGA) / (1 + gamma(n))), 2.0**-50)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_sums_and_norms_of_what_underflows(n: int) -> None:
    tiny = np.full(n, 5e-324)
    pinned(rounding.sum_up(tiny), (total(tiny) + n * OMEGA) / (1 - gamma(n)), 2.0**-49)
    lost = np.full(n, 2.0**-538)  # the squares vanish
    assert square(lost) <= Fraction(float(rounding.square_sums_up(lost[None, :], 1)[0]))
    pinned(float(rounding.square_sums_up(lost[None, :], 1)[0]), n * OMEGA / (1 - gamma(n)), 2.0**-49)
    small = np.full(n, 2.0**-510)  # squares of 4 OMEGA
    pinned_below(rounding.norm_down(small), root(3 * n * OMEGA / (1 + gamma(n))), 2.0**-49)


def test_sums_that_lose_as_much_as_they_can() -> None:
    below, above = u * (1 - 2.0**-40), u * (1 + 2.0**-40)
    x = np.array([1.0] + 6 * [below])  # one after the other, each is rounded away
    lost = total(x) - Fraction(float(np.sum(x)))
    assert Fraction(rounding.sum_up(x)) >= total(x)
    assert 2 * lost > gamma(7)
    y = np.array([1.0, math.sqrt(below)])
    assert square(y) - Fraction(float(np.dot(y, y))) > gamma(2) / 3
    assert Fraction(float(rounding.square_sums_up(y[None, :], 1)[0])) >= square(y)
    assert Fraction(rounding.norm_up(y)) ** 2 >= square(y)
    z = np.array([1.0, math.sqrt(above)])
    assert Fraction(float(np.dot(z, z))) - square(z) > gamma(2) / 3
    assert Fraction(rounding.norm_down(z)) ** 2 <= square(z)


# Cholesky


def rump(n: int, trace: Fraction, largest: Fraction) -> Fraction:
    g = gamma(n + 2)
    return g / (1 - g) * trace + 8 * n * (n + 2 + largest) * OMEGA


@pytest.mark.parametrize("n", [1, 2, 100, 10**6, 2**50])
def test_shift_of_a_factorization(n: int) -> None:
    # The relative term; n (n + 2) of the underflow; what the largest diagonal entry adds to that.
    for trace, largest in ((1.0, 1.0), (3e90, 1e80), (2.0**-1060, 2.0**-1060), (2.0**-1060, 2.0**110)):
        pinned(rump_shift(n, trace, largest), rump(n, Fraction(trace), Fraction(largest)), 2.0**-48)
    assert rump_shift(2**53 // 5, 1.0, 1.0) == math.inf


def test_a_factorization_that_errs_by_two_thirds_of_the_shift() -> None:
    # The root of 1 + 2u lies halfway between two floats, just below.
    L = np.linalg.cholesky(np.array([[1.0 + 2 * u]]))
    assert L[0, 0] == 1.0
    assert 0.66 * Fraction(rump_shift(1, 1.0 + 2 * u, 1.0)) < 2 * U < Fraction(rump_shift(1, 1.0, 1.0))


def test_indefinite_matrices_that_factor_all_the_same_are_refused() -> None:
    rng = np.random.default_rng(0)
    fooled = 0
    for a, b in rng.uniform(1.9, 2.0, (3000, 2)).tolist():  # just below 2, where one float down is the least
        c = float(Fraction(b) ** 2 / Fraction(a))
        while Fraction(a) * Fraction(c) >= Fraction(b) ** 2:
            c = math.nextafter(c, 0.0)
        A = np.array([[a, b], [b, c]])
        assert not is_positive_definite(A)
        assert smallest_eigenvalue(A) == -math.inf
        fooled += factor_shifted(A, 0.01 * rump_shift(2, a + c, max(a, c))) is not None
    assert fooled > 10, fooled


def test_the_diagonal_is_rounded_down() -> None:
    for shift in (0.0, 2.0**-60, u, 0.3):
        L = factor_shifted(np.eye(1), shift)
        assert L is not None
        assert L[0, 0] <= math.sqrt(1.0 - u)
    assert factor_shifted(np.array([[1.0]]), 1.0) is None


def test_definiteness_ends_where_the_bound_says() -> None:
    c = float(rump(2, Fraction(1), Fraction(1)))  # about 4 u
    for error, shift in ((0.0, 0.0), (7 * u, 0.0), (0.0, 7 * u), (3 * u, 4 * u)):
        need = c + error + shift
        assert is_positive_definite(np.diag([1.0, 1.01 * need]), error=error, shift=shift)
        assert not is_positive_definite(np.diag([1.0, 0.99 * need]), error=error, shift=shift)
    for error in (0.0, 7 * u):
        assert smallest_eigenvalue(np.diag([1.0, 0.99 * (c + error)]), error=error) == -math.inf
        bound = smallest_eigenvalue(np.diag([1.0, 100 * u]), error=error)
        assert 0.97 * (100 * u - c - error) <= bound <= 100 * u - c - error


# Gram matrices


def margin_of(rows: list[Fraction], d: int) -> Fraction:
    """Twice the roundings of A A^T and of its factorization, and 32 u of the trace; squares are rounded up."""
    rows = [row / (1 - gamma(d)) for row in rows]
    n, trace, largest = len(rows), sum(rows), max(rows)
    room = 1 + Fraction(1, 2**10)
    return 2 * (gamma(d) * trace + rump(n, trace * room, largest * room)) + 32 * U * trace


@pytest.fixture
def shifts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """What is taken from the diagonals of Gram matrices, and whether they still factor."""
    seen: list[tuple[float, bool]] = []

    def factor(A: np.ndarray, shift: float) -> np.ndarray | None:
        computed = factor_shifted(A, shift)
        seen.append((shift, computed is not None))
        return computed

    monkeypatch.setattr(gram_module, "factor_shifted", factor)
    return seen


@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (3, 4000), (60, 61)])
@pytest.mark.parametrize("sizes", [1.0, 2.0**-150, 2.0**300, "uneven", "very uneven"])
def test_margin_of_a_gram_matrix(n: int, d: int, sizes: float | str, shifts: list[tuple[float, bool]]) -> None:
    rng = np.random.default_rng(n)
    A = rng.integers(-9, 10, (n, d)).astype(float)
    A[:, :n] += 20.0 * np.eye(n)
    powers = {"uneven": 9, "very uneven": 300}
    scale = np.full(n, sizes) if isinstance(sizes, float) else 2.0 ** rng.integers(-powers[sizes], powers[sizes], n)
    proof = row_rank_by_gram(A * scale[:, None])
    assert proof.proved, proof.reason
    assert proof.exponents is not None
    squares = [square(row) for row in np.ldexp(A * scale[:, None], proof.exponents[:, None])]
    pinned(shifts[0][0], margin_of(squares, d), 2.0**-44)
    margin = Fraction(shifts[0][0])
    # What is claimed of the smallest eigenvalue was taken off besides the margin.
    assert proof.shift > 0.0
    assert any(ok and Fraction(shift) >= margin + Fraction(proof.shift) for shift, ok in shifts)
    pinned_below(proof.scaled_s_min, root(Fraction(proof.shift)), 2.0**-50)
    pinned_below(proof.s_min, root(Fraction(proof.shift)) / Fraction(2) ** int(proof.exponents.max()), 2.0**-50)


def test_margin_of_some_columns(shifts: list[tuple[float, bool]]) -> None:
    proof = row_rank_by_some_columns(np.random.default_rng(0).standard_normal((64, 1000)))
    assert proof is not None
    assert proof.proved
    A = np.random.default_rng(0).standard_normal((64, 1000))[:, proof.columns]
    margin = margin_of([square(row) for row in A], A.shape[1])
    assert any(ok and Fraction(shift) >= margin + Fraction(proof.shift) for shift, ok in shifts)


@pytest.mark.parametrize("d", [2, 1000])
@pytest.mark.parametrize("size", [1.0, 2.0**-150])
def test_a_gram_matrix_is_definite_as_far_as_the_margin_says(d: int, size: float) -> None:
    # A A^T = (1, 1; 1, 1 + e^2) exactly, nearly: less m I it is definite while e^2 > 2 m.
    need = 2 * margin_of([Fraction(1), Fraction(1)], d)
    for factor, proved in ((0.93, False), (1.1, True)):
        A = np.zeros((2, d))
        A[:, 0], A[1, 1] = size, size * math.sqrt(factor * need)
        proof = row_rank_by_gram(A)
        assert proof.proved == proved
        assert proof.s_min <= A[1, 1] * math.sqrt(0.5)


def test_a_ball_ends_where_the_smallest_singular_value_is_proved() -> None:
    for scale in (np.ones(3), np.array([1.0, 2.0**100, 2.0**-3])):
        A = np.random.default_rng(0).standard_normal((3, 7)) * scale[:, None]
        proof = row_rank_by_gram(A)
        assert proof.exponents is not None
        reach = math.sqrt(proof.shift) * 2.0 ** -int(proof.exponents.max())
        assert row_rank_by_gram(A, Ball(norm=reach * (1 - 2.0**-40))).proved
        assert not row_rank_by_gram(A, Ball(norm=reach * (1 + 2.0**-40))).proved
        assert 0.8 * np.linalg.svd(A, compute_uv=False)[-1] < proof.s_min or scale[1] != 1.0


def test_what_scaling_loses() -> None:
    for always, top in ((True, 1.0), (False, 2.0**300)):
        scaled = scale_rows(np.array([[top, 3.0 * 2.0**-1074, 0.0], [0.5, 0.25, 2.0**-1060]]), always=always)
        assert scaled is not None
        pinned(scaled.lost, 6 * OMEGA)


# Right inverses


def residual_bound(A: np.ndarray, X: np.ndarray, residual: np.ndarray) -> tuple[Fraction, Fraction]:
    """The bound of ||I - A X||_F, given what was computed for it, and the exact norm."""
    n, d = A.shape
    bits = max(k for k in range(27) if d * 4**k <= 2**53)
    grid = Fraction(2) ** bits

    def cut(M: list[list[Fraction]]) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
        heads = [[Fraction(round(x * grid)) / grid for x in row] for row in M]
        return heads, [[x - h for x, h in zip(row, head, strict=True)] for row, head in zip(M, heads, strict=True)]

    def norm(M: list[list[Fraction]]) -> Fraction:
        # Of one column, or of a matrix's rows in turn.
        return root((square_of(M) + len(M) * OMEGA) / (1 - gamma(len(M) if len(M[0]) == 1 else len(M[0]))))

    def square_of(M: list[list[Fraction]]) -> Fraction:
        return sum((x * x for row in M for x in row), Fraction(0))

    head, tail = cut([[Fraction(float(x)) for x in row] for row in A])
    bound = Fraction(0)
    for k in range(n):
        e = math.frexp(float(np.abs(X[:, k]).max()))[1]
        power = Fraction(2) ** e
        unit = [[Fraction(float(x)) / power] for x in X[:, k]]
        unit_head, unit_tail = cut(unit)
        first = [
            [(i == k) / power - sum((a * x[0] for a, x in zip(row, unit_head, strict=True)), Fraction(0))]
            for i, row in enumerate(head)
        ]
        computed = [[Fraction(float(x)) / power] for x in residual[:, k]]
        rest = [[a[0] - b[0]] for a, b in zip(first, computed, strict=True)]
        products = norm(tail) * norm(unit) + norm(head) * norm(unit_tail)
        share = U * (norm(first) + 3 * norm(rest) + norm(computed)) + norm(computed) + gamma(d + 2) * products
        bound += ((share + 8 * n * d * OMEGA) * power) ** 2
    exact = times(A, X)
    wrong = sum((((i == j) - exact[i][j]) ** 2 for i in range(n) for j in range(n)), Fraction(0))
    return root(bound), root(wrong)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (2, 600)])
def test_residual_of_a_right_inverse(n: int, d: int) -> None:
    A = np.random.default_rng(d).uniform(-0.7, 0.7, (n, d))
    A[:, 0] = 0.75
    A[:, :n] += 0.2 * np.eye(n)
    A[:, 0] = np.clip(A[:, 0], -0.99, 0.99)
    X = right_inverse(A)
    assert X is not None
    for Y in (X, X * 1.01, np.ldexp(X, 200), np.ldexp(X, -200)):
        computed, residual = right_residual(A, Y)
        bound, true = residual_bound(A, Y, residual)
        assert Fraction(computed) >= true
        pinned(computed, bound, 2.0**-36)


def test_residuals_that_are_wholly_rounding() -> None:
    # Newton's steps in an entry that counts for little end where the residual is computed as nought, nearly.
    rng, closest = np.random.default_rng(0), 0.0
    for _ in range(100):
        a, x = rng.uniform(0.6, 0.9, 3), rng.uniform(0.6, 0.9, 3)
        a[2] *= 2.0**-27
        x[1] = (1.0 - a[0] * x[0]) / a[1]
        x[2] = float((1 - Fraction(a[0]) * Fraction(x[0]) - Fraction(a[1]) * Fraction(x[1])) / Fraction(a[2]))
        for _ in range(4):
            computed, residual = right_residual(a[None, :], x[:, None])
            bound, true = residual_bound(a[None, :], x[:, None], residual)
            assert Fraction(computed) >= true
            pinned(computed, bound, 2.0**-36)
            closest = max(closest, float(true / bound))
            x[2] += residual[0, 0] / a[2]
    assert closest > 0.1, closest


def test_spectral_norms() -> None:
    slack = 1 + Fraction(1, 2**40)
    for n in (1, 3, 50):
        pinned(_norm_up(np.ones((n, n))), Fraction(n), 2.0**-38)
        pinned(_norm_up(np.ones((2, n))), root(Fraction(2 * n)), 2.0**-38)
    for n in (5, 1500):
        pinned(_norm_up(np.eye(n)), root((1 + gamma(n + 2)) ** 3) * slack, 2.0**-49)


def test_smallest_singular_value_by_a_right_inverse() -> None:
    A = 0.5 * np.eye(3, 4)
    pinned_below(row_rank_by_inverse(A).s_min, Fraction(1, 2), 2.0**-38)
    assert row_rank_by_inverse(A, Ball(norm=0.5 * (1 - 2.0**-38))).proved
    assert not row_rank_by_inverse(A, Ball(norm=0.5)).proved
    # Rows of other sizes: the smallest of them is the smallest singular value.
    A[1] *= 2.0**-20
    pinned_below(row_rank_by_inverse(A).s_min, Fraction(1, 2**21), 2.0**-38)
    far = A * np.array([[1.0], [2.0**-100], [1.0]])
    pinned_below(row_rank_by_inverse(far).s_min, Fraction(1, 2**121), 2.0**-38)
    assert not row_rank_by_inverse(far, Ball(norm=2.0**-121)).proved
    assert row_rank_by_inverse(far, Ball(norm=2.0**-122)).proved


def test_residuals_of_scaled_and_unscaled_right_inverses() -> None:
    X = 2.0 * np.eye(3)
    for epsilon in (0.0, 2.0**-30, 0.25, 0.999):
        for lost in (0.0, 2.0**-10):
            scaled = Scaled(np.eye(3), np.array([4, 0, -6]), lost)
            spread = (1 - Fraction(epsilon) * 2**10) / 32 - Fraction(lost) * 2**6
            computed = _unscaled(X, epsilon, scaled)
            pinned_below(computed, spread, 2.0**-38) if spread > 0 else pinned_below(computed, Fraction(0))
            proof = _conclude(X, epsilon, 2.0, lost, scaled, None)
            least = ((1 - Fraction(epsilon)) / 2 - Fraction(lost)) / 16
            assert proof.proved == (epsilon + 2 * lost < 1)
            if proof.proved:
                pinned_below(proof.s_min, max(least, spread), 2.0**-36)
            assert _conclude(X, epsilon, 2.0, (1 - epsilon) / 2 * (1 - 2.0**-40), scaled, None).proved
            assert not _conclude(X, epsilon, 2.0, (1 - epsilon) / 2, scaled, None).proved


# Distances


def distance(J: np.ndarray, y: np.ndarray, beta: np.ndarray, s_min: float, delta: float, **parts: float) -> Fraction:
    """The bound where the residual is computed exactly and is orthogonal to J; ``parts`` change its terms."""
    n, d = J.shape
    part = {name: Fraction(parts.get(name, 1.0)) for name in _PARTS}
    r = [Fraction(float(a)) - b[0] for a, b in zip(y, times(J, beta[:, None]), strict=True)]
    assert not any(sum((Fraction(float(a)) * b for a, b in zip(column, r, strict=True)), Fraction(0)) for column in J.T)
    squares = sum((x * x for x in r), Fraction(0))
    size = root(square(J) + (n * d + n) * OMEGA)
    length, whole = root(square(beta) + (d + 1) * OMEGA), root(square(y) + (n + 1) * OMEGA)
    low, high = root(squares - n * OMEGA), root(squares + (n + 1) * OMEGA)
    e = part["residual"] * gamma(d + 2) * (whole + size * length)
    slope = root((d + 1) * OMEGA) + part["gradient"] * gamma(n) * size * high
    slope += part["slope"] * size * e
    move = Fraction(delta) * length
    up = slope + part["longest"] * Fraction(delta) * (high + e) + part["both"] * (size + Fraction(delta)) * move
    return low - e - part["moved"] * move - up / (Fraction(s_min) - part["less"] * Fraction(delta))


_PARTS = ("residual", "gradient", "slope", "moved", "longest", "both", "less")
_J = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, -1.0], [1.0, 1.0]])
_R = np.array([-1.0, 1.0, 1.0, 0.0])  # orthogonal to it


@pytest.mark.parametrize(
    ("part", "J", "beta", "r", "s_min", "delta"),
    [
        ("residual", 1.0, 2.0**29, 2.0**-15, 2.0**10, 0.0),
        ("gradient", 1.0, 0.0, 1.0, 2.0**-46, 0.0),
        ("slope", 1.0, 2.0**29, 2.0**-12, 0.5, 0.0),
        ("moved", 1.0, 2.0**29, 2.0**20, 2.0**10, 2.0**-11),
        ("longest", 1.0, 0.0, 1.0, 2.0, 0.5),
        ("both", 1.0, 2.0**29, 2.0**22, 1.0, 2.0**-11),
        ("less", 1.0, 0.0, 1.0, 2.0, 0.8),
    ],
)
def test_distance_from_a_column_space(part: str, J: float, beta: float, r: float, s_min: float, delta: float) -> None:
    matrix, coefficients = J * _J, beta * np.array([2.0, 1.0])
    y = matrix @ coefficients + r * _R
    exact = distance(matrix, y, coefficients, s_min, delta)
    half = distance(matrix, y, coefficients, s_min, delta, **{part: 0.5})
    assert exact > 0
    assert half > exact * (1 + Fraction(1, 50)), float(half / exact - 1)
    pinned_below(distance_bound(matrix, y, coefficients, s_min, delta), exact, 2.0**-44)


def test_distances_at_the_edge() -> None:
    J, y = np.array([[1.0], [1.0]]), np.array([1.0, -1.0])
    for scale in (1.0, 2.0**-300, 2.0**300):
        computed = distance_from(J * scale, y / scale)
        assert 0.97 * math.sqrt(2.0) < computed.distance * scale <= math.sqrt(2.0)
        assert 0.9 * computed.distance < computed.stated < 0.98 * computed.distance
    # (1, t) reaches the direction of (0, 1) at no finite t, but (0, 1) is within 1 of (1, 0); half of it is proved.
    J, y = np.array([[1.0], [0.0]]), np.array([0.0, 1.0])
    assert distance_from(J, y, Ball(norm=0.44)).proved
    assert not distance_from(J, y, Ball(norm=0.5)).proved
    for delta in (0.01, 0.1, 0.3):
        assert distance_from(J, y, Ball(norm=delta)).distance <= math.sqrt(1.0 - delta**2)
