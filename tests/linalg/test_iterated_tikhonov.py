"""iterated_tikhonov: rho(tau) lies between the bounds, at the accuracy of J and not of its Gram matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignver.linalg.least_squares import iterated_tikhonov, preconditioned_iterates, residual_interval
from alignver.linalg.qr_reduction import Reduced
from alignver.linalg.svd import svd_profile


class Products:
    def __init__(self, J: np.ndarray) -> None:
        self.matvec, self.rmatvec = J.__matmul__, J.T.__matmul__


def matrix(n: int, d: int, decades: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((k, min(n, d))))[0] for k in (n, d))
    return left @ np.diag(10.0 ** -np.linspace(0.0, decades, min(n, d))) @ right.T


@given(
    n=st.integers(1, 25),
    d=st.integers(1, 40),
    decades=st.floats(0.0, 14.0),
    tau=st.floats(-16.0, 1.0).map(lambda e: 10.0**e),
    member=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rho_lies_between_the_bounds(n, d, decades, tau, member, seed):
    J = matrix(n, d, decades, seed)
    rng = np.random.default_rng(seed + 1)
    y = J @ rng.standard_normal(d) if member else rng.standard_normal(n)
    y /= np.linalg.norm(y)
    low, high = residual_interval(iterated_tikhonov(Products(J), J @ J.T, y), tau)
    profile = svd_profile(Reduced(J, y, 0.0))
    # The SVD's own singular values are off by eps s_1: rho between tau's neighbours is what it can vouch for.
    off = 100 * 2.0**-52
    assert low <= profile.rho(tau + off) + 1e-13 / tau + 1e-12
    assert high >= profile.rho(max(tau - off, 0.0)) - 1e-12


def test_a_member_is_found_far_below_what_the_gram_matrix_resolves():
    """s_min / s_1 = 1e-11: its square is lost in M, and the residual is small all the same."""
    J = matrix(60, 90, 11.0, 0)
    y = J @ (J.T @ np.random.default_rng(1).standard_normal(60))
    low, high = residual_interval(iterated_tikhonov(Products(J), J @ J.T, y / np.linalg.norm(y)), 1e-12)
    assert low == 0.0
    assert high < 1e-9


def test_a_stranger_is_told_at_tolerances_below_the_root_of_eps():
    J = matrix(60, 40, 3.0, 0)
    inside = J @ np.random.default_rng(1).standard_normal(40)
    y = inside / np.linalg.norm(inside) + np.linalg.svd(J)[0][:, -1]
    y /= np.sqrt(2.0)
    low, high = residual_interval(iterated_tikhonov(Products(J), J @ J.T, y), 1e-4)
    assert 0.7 < low <= high < 0.71
    # A shift between M's rounding and its smallest eigenvalue takes least of the null space's direction into b.
    low, high = residual_interval(iterated_tikhonov(Products(J), J @ J.T, y, shifts=(1e8,)), 1e-8)
    assert 0.7 < low <= high < 0.71


def test_a_gram_matrix_that_is_not_the_operators_makes_the_bounds_wide_not_wrong():
    J = matrix(30, 50, 2.0, 0)
    y = J @ np.ones(50)
    y /= np.linalg.norm(y)
    other = matrix(30, 50, 2.0, 9)
    low, high = residual_interval(iterated_tikhonov(Products(J), other @ other.T, y), 1e-10)
    assert low < 1e-6
    assert high > 1e-10


def test_nothing_can_be_solved_with_zeros():
    assert iterated_tikhonov(Products(np.zeros((3, 3))), np.zeros((3, 3)), np.ones(3)) == []
    assert residual_interval([], 1.0) == (0.0, float("inf"))


@pytest.mark.parametrize("inside", [True, False])
def test_a_gap_in_the_spectrum_is_decided_by_the_first_truncated_solution(inside):
    rng = np.random.default_rng(3)
    J = rng.standard_normal((30, 21)) @ rng.standard_normal((21, 200))
    y = J @ rng.standard_normal(200) if inside else rng.standard_normal(30)
    first = next(preconditioned_iterates(Products(J), J @ J.T, y))
    u, s, _ = np.linalg.svd(J)
    outside = float(np.linalg.norm(u[:, 21:].T @ y))
    for tau in (1e-10 * s[0], 1e-3 * s[20]):
        low, high = first.residual_bounds(tau)
        assert low <= outside * (1 + 1e-12) + 1e-11 * float(np.linalg.norm(y))
        assert high >= outside
        assert high - low <= 3.0 * tau * first.size + 1e-8 * float(np.linalg.norm(y))


def test_the_truncated_solutions_come_before_the_shifted_ones_and_use_no_eigenvalue_that_is_noise():
    rng = np.random.default_rng(4)
    J = rng.standard_normal((12, 5)) @ rng.standard_normal((5, 60))
    y = rng.standard_normal(12)
    iterates = list(preconditioned_iterates(Products(J), J @ J.T, y))
    shifted = iterated_tikhonov(Products(J), J @ J.T, y)
    assert [i.residual for i in iterates[-len(shifted) :]] == [i.residual for i in shifted]
    truncated = iterates[: -len(shifted)]
    size = float(np.linalg.norm(np.linalg.pinv(J) @ y))
    assert truncated
    assert all(i.size == pytest.approx(size, rel=1e-8) for i in truncated)
