"""Laws that membership and rank obey, on matrices built from integer factors or from prescribed singular values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import alignver as av
from alignver.linalg.pivoted_qr import qr_profile
from alignver.linalg.qr_reduction import reduce
from alignver.linalg.svd import RangeProfile, descending_tails, svd_profile
from alignver.results import Verdict
from tests.matrices import integer_rank, orthogonal, with_singular_values

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 30)


def membership(J, y, **options):
    return av.check_membership(J, y, certify=False, **options)


@st.composite
def integer_problems(draw):
    """(J, rank, rng): J = A B with integer factors of exactly that rank."""
    n, d = draw(sizes), draw(sizes)
    rank = draw(st.integers(1, min(n, d)))
    rng = np.random.default_rng(draw(seeds))
    return integer_rank(rank, (n, d), rng, size=2), rank, rng


@st.composite
def graded_problems(draw):
    """(J, rng): singular values down to 1e-6 of the largest, so that a clear gap to rounding remains."""
    n, d = draw(sizes), draw(sizes)
    k = draw(st.integers(1, min(n, d)))
    exponents = draw(st.lists(st.floats(-6, 0), min_size=k, max_size=k))
    rng = np.random.default_rng(draw(seeds))
    return with_singular_values(10.0 ** np.array(exponents), (n, d), rng), rng


def conditioned(J, rank):
    """Whether J's non-zero singular values are clear of rounding (integer factors may be ill-conditioned)."""
    s = np.linalg.svd(J, compute_uv=False)
    return s[rank - 1] > 1e-7 * s[0]


@given(integer_problems())
def test_y_equal_to_J_b_holds(problem):
    J, rank, rng = problem
    assume(conditioned(J, rank))
    y = J @ rng.integers(-5, 6, J.shape[1])
    for method in ("svd", "qr", "lstsq"):
        assert membership(J, y, method=method).verdict is Verdict.HOLDS


@given(integer_problems())
def test_a_target_far_outside_is_never_held(problem):
    J, rank, rng = problem
    assume(conditioned(J, rank) and rank < J.shape[0])
    u = np.linalg.svd(J)[0]
    y = u[:, rank:] @ rng.standard_normal(J.shape[0] - rank)
    for method in ("svd", "qr", "lstsq"):
        assert membership(J, y, method=method, tolerance=1e-9 * np.linalg.norm(J, 2)).verdict is Verdict.FAILS


@given(integer_problems(), st.data())
def test_scaling_rows_by_powers_of_two_keeps_exact_members(problem, data):
    """Col(D J) = D Col(J): y in Col(J) if and only if D y in Col(D J); D is exact in floating point."""
    J, rank, rng = problem
    exponents = data.draw(st.lists(st.integers(-6, 6), min_size=J.shape[0], max_size=J.shape[0]))
    y = J @ rng.integers(-5, 6, J.shape[1])
    scaled_J, scaled_y = np.ldexp(J, np.array(exponents)[:, None]), np.ldexp(y, np.array(exponents))
    assume(conditioned(J, rank) and conditioned(scaled_J, rank))
    assert membership(J, y).verdict is Verdict.HOLDS
    assert membership(scaled_J, scaled_y).verdict is Verdict.HOLDS


@given(integer_problems())
def test_column_permutations_change_nothing(problem):
    J, rank, rng = problem
    assume(conditioned(J, rank))
    y = rng.integers(-5, 6, J.shape[0]).astype(float)
    tau = 1e-9 * np.linalg.norm(J, 2)
    first = membership(J, y, tolerance=tau)
    second = membership(J[:, rng.permutation(J.shape[1])], y, tolerance=tau)
    assert first.verdict is second.verdict
    assert first.measured["residual"] == pytest.approx(second.measured["residual"], abs=1e-7)


@given(graded_problems())
def test_orthogonal_changes_of_basis_change_nothing(problem):
    """rho of (Q J P, Q y) is rho of (J, y) at every tolerance, Q and P orthogonal."""
    J, rng = problem
    y = rng.standard_normal(J.shape[0])
    turned = orthogonal(J.shape[0], rng)
    tau = 1e-9 * np.linalg.norm(J, 2)
    first = membership(J, y, tolerance=tau)
    second = membership(turned @ J @ orthogonal(J.shape[1], rng), turned @ y, tolerance=tau)
    assert first.verdict is second.verdict
    assert first.measured["residual"] == pytest.approx(second.measured["residual"], abs=1e-7)


@given(graded_problems(), st.integers(1, 5))
def test_adding_columns_only_helps(problem, extra):
    """Col([J K]) contains Col(J), so the distance cannot grow; at tau below every non-zero singular value rho is it."""
    J, rng = problem
    y = rng.standard_normal(J.shape[0])
    K = rng.standard_normal((J.shape[0], extra)) * np.linalg.norm(J, 2)
    tau = 1e-10 * np.linalg.norm(J, 2)
    wider = membership(np.hstack([J, K]), y, tolerance=tau).measured["residual"]
    assert wider <= membership(J, y, tolerance=tau).measured["residual"] + 1e-7


@given(graded_problems())
def test_methods_agree(problem):
    J, rng = problem
    y = J @ rng.standard_normal(J.shape[1]) if rng.random() < 0.5 else rng.standard_normal(J.shape[0])
    tau = 1e-9 * np.linalg.norm(J, 2)
    results = {method: membership(J, y, method=method, tolerance=tau) for method in ("svd", "qr", "lstsq", "auto")}
    assert len({result.verdict for result in results.values()}) == 1
    residuals = [result.measured["residual"] for result in results.values()]
    assert max(residuals) - min(residuals) < 1e-7


@given(graded_problems(), st.lists(st.floats(1e-18, 1e3), min_size=2, max_size=8))
def test_rank_and_residual_are_monotone_in_the_tolerance(problem, tolerances):
    J, rng = problem
    reduced = reduce(J, rng.standard_normal(J.shape[0]))
    for profile in (svd_profile(reduced), qr_profile(reduced)):
        assert isinstance(profile, RangeProfile)
        tolerances.sort()
        ranks = [profile.rank(tau) for tau in tolerances]
        residuals = [profile.rho(tau) for tau in tolerances]
        assert ranks == sorted(ranks, reverse=True)
        assert residuals == sorted(residuals)


@given(graded_problems(), st.floats(1e-12, 1e2), st.floats(1e-9, 0.5))
def test_turning_point_is_where_it_turns(problem, tau, limit):
    J, rng = problem
    profile = svd_profile(reduce(J, rng.standard_normal(J.shape[0])))
    turn = profile.turns_at(limit)
    exceeds = profile.rho(tau) > limit
    assert exceeds == (turn is not None and tau >= turn)


@given(integer_problems())
def test_rank_of_integer_factors(problem):
    A, rank, _ = problem
    assume(conditioned(A, rank))
    tau = 1e-9 * np.linalg.norm(A, 2)
    assert av.check_rank(A, rank=rank, tolerance=tau, certify=False).verdict is Verdict.HOLDS
    assert av.check_rank(A, rank=rank - 1, tolerance=tau, certify=False).verdict is Verdict.FAILS


@given(graded_problems(), st.floats(1e-14, 1e-3))
def test_a_verdict_stands_over_its_band(problem, relative):
    """HOLDS and FAILS at tau are never contradicted at any tolerance within a factor of ten."""
    J, rng = problem
    y = rng.standard_normal(J.shape[0])
    tau = relative * np.linalg.norm(J, 2)
    verdict = membership(J, y, method="svd", tolerance=tau).verdict
    profile = svd_profile(reduce(J, y))
    limit = 2.0**-26
    for nearby in tau * 10.0 ** np.linspace(-1, 1, 9):
        if verdict is Verdict.HOLDS:
            assert profile.rho(nearby) <= limit
        if verdict is Verdict.FAILS:
            assert profile.rho(nearby) > limit


@given(st.lists(st.floats(1e-12, 1e3), min_size=1, max_size=90), st.integers(0, 2**32 - 1))
def test_the_curve_is_rho_at_its_points_and_rises(levels, seed):
    ordered = np.sort(np.array(levels))[::-1]
    profile = RangeProfile(ordered, descending_tails(np.random.default_rng(seed).standard_normal(ordered.size), 0.1))
    points = profile.curve(1e-10, 10.0)
    taus, rho = (np.array(column) for column in zip(*points))
    assert (taus[0], taus[-1]) == (1e-10, 10.0)
    assert len(points) <= 62
    assert np.all(np.diff(taus) > 0)
    assert np.all(np.diff(rho) >= 0)
    assert all(value == profile.rho(tau) for tau, value in points)
    if len(points) < 62:  # nothing was left out: between two points rho is what it is at the first
        assert [profile.rho(tau) for tau in np.sqrt(taus[:-1] * taus[1:])] == list(rho[:-1])
