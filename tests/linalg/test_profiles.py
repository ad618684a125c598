"""The decompositions, against identities and NumPy's own SVD, on every namespace."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.arrays import host
from alignver.linalg import rank_rules
from alignver.linalg.least_squares import least_squares
from alignver.linalg.norms import largest_singular_value, norm, power_of_two, row_sum_norm
from alignver.linalg.pivoted_qr import pivoted_qr, qr_profile
from alignver.linalg.qr_reduction import reduce, streamed_r
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import RangeProfile, svd_profile
from tests.matrices import CLASSICS, integer_rank, kahan, with_singular_values

SHAPES = [(1, 1), (1, 6), (6, 1), (5, 5), (12, 9), (9, 12), (40, 7), (7, 40), (70, 70), (30, 2000)]


@pytest.fixture(params=SHAPES, ids=str)
def matrix(request, rng):
    return rng.standard_normal(request.param)


def exact_rho(a, y, tau):
    """rho(tau) straight from its definition."""
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    stored = u[:, s > tau]
    return np.linalg.norm(y - stored @ (stored.T @ y)) / np.linalg.norm(y)


def test_reduction_keeps_singular_values_and_distance(backend, matrix, rng):
    y = rng.standard_normal(matrix.shape[0])
    reduced = reduce(backend(matrix), backend(y))
    s = np.linalg.svd(matrix, compute_uv=False)
    stored = np.linalg.svd(host(reduced.matrix), compute_uv=False)[: s.size]
    np.testing.assert_allclose(stored, s, rtol=1e-12, atol=1e-13 * s[0])
    assert np.hypot(norm(reduced.target), reduced.leftover) == pytest.approx(np.linalg.norm(y), rel=1e-13)


def test_streamed_r_does_not_depend_on_the_blocks(backend, rng):
    rows = rng.standard_normal((500, 13))
    whole = host(streamed_r([backend(rows)], 13))
    for cuts in ([100, 350], [1, 2, 3], [499]):
        pieces = [backend(piece) for piece in np.split(rows, cuts)]
        np.testing.assert_allclose(np.abs(host(streamed_r(iter(pieces), 13))), np.abs(whole), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("profile_of", [svd_profile, qr_profile], ids=["svd", "qr"])
def test_profiles_agree_with_the_definition(backend, matrix, rng, profile_of):
    y = rng.standard_normal(matrix.shape[0])
    profile = profile_of(reduce(backend(matrix), backend(y)))
    s = np.linalg.svd(matrix, compute_uv=False)
    assert profile.rank(1e-10 * s[0]) == s.size
    assert profile.rho(1e-10 * s[0]) == pytest.approx(exact_rho(matrix, y, 0.0), abs=1e-12)
    assert profile.tails[0] == pytest.approx(1.0, rel=1e-12)
    assert np.all(np.diff(profile.tails) <= 0.0)
    assert np.all(np.diff(profile.levels) <= 0.0)


def test_svd_profile_is_rho_at_every_tolerance(backend, rng):
    a = with_singular_values(10.0 ** -np.arange(8.0), (8, 20), rng)
    y = rng.standard_normal(8)
    profile = svd_profile(reduce(backend(a), backend(y)))
    for tau in 3.0 * 10.0 ** -np.arange(9.0):
        assert profile.rho(tau) == pytest.approx(exact_rho(a, y, tau), abs=1e-9)


def test_qr_levels_bound_singular_values_from_above(backend, rng):
    for a in (kahan(30), with_singular_values(2.0 ** -np.arange(25.0), (25, 25), rng)):
        levels = qr_profile(reduce(backend(a), None)).levels
        s = np.linalg.svd(a, compute_uv=False)
        assert np.all(levels >= s * (1 - 1e-12) - 1e-15 * s[0])


@pytest.mark.parametrize("name", CLASSICS)
def test_pivoted_qr_defining_identities(backend, name):
    a = CLASSICS[name]
    m, n = a.shape
    r, qta, pivots = pivoted_qr(backend(a), backend(a))
    _, qt, _ = pivoted_qr(backend(a), backend(np.eye(m)))
    r, qta, qt = host(r), host(qta), host(qt)
    size = np.linalg.norm(a)
    np.testing.assert_allclose(qt @ qt.T, np.eye(m), atol=1e-13)
    np.testing.assert_allclose(qt[: r.shape[0]].T @ r, a[:, pivots], atol=1e-14 * size * n)
    np.testing.assert_allclose(qta[: r.shape[0], list(pivots)], r, atol=1e-14 * size * n)
    assert sorted(pivots) == list(range(n))
    assert np.all(np.tril(r, -1) == 0.0)
    # |r_kk| >= ||R[k:, j]|| for every later column, up to the rounding of the partial norms.
    for k in range(r.shape[0]):
        later = np.linalg.norm(r[k:, k:], axis=0)
        assert abs(r[k, k]) >= later.max() * (1 - 1e-7) - 1e-13 * size


def test_blocked_qr_matches_lapack_past_one_panel(backend, rng):
    a = integer_rank(50, (90, 110), rng)
    r, _, _ = pivoted_qr(backend(a), backend(np.eye(90)))
    levels = qr_profile(reduce(backend(a), None)).levels
    assert levels[49] > 1e-3
    assert levels[50] < 1e-9 * levels[0]
    assert host(r).shape == (90, 110)


def test_least_squares_is_minimum_norm(backend, matrix, rng):
    y = rng.standard_normal(matrix.shape[0])
    solution = least_squares(backend(matrix), backend(y)).solve(1e-12)
    expected = np.linalg.lstsq(matrix, y)[0]
    np.testing.assert_allclose(host(solution.b), expected, rtol=1e-8, atol=1e-10)
    assert solution.residual == pytest.approx(np.linalg.norm(y - matrix @ expected) / np.linalg.norm(y), abs=1e-13)
    assert solution.size == pytest.approx(np.linalg.norm(expected), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200, 1e308])
def test_norms_survive_their_squares(backend, scale):
    values = np.array([3.0, -4.0]) * (scale / 4.0)
    assert norm(backend(values)) == pytest.approx(1.25 * abs(values[1]), rel=1e-12)
    assert row_sum_norm(backend(values.reshape(2, 1))) == abs(values[1])
    unit = power_of_two(backend(values))
    assert np.frexp(unit)[0] == 0.5
    assert unit <= scale or scale < 2.0**-1021


def test_largest_singular_value_is_never_above(backend, rng):
    for _ in range(10):
        a = rng.standard_normal((20, 35))
        estimate = largest_singular_value(backend(a))
        s = np.linalg.svd(a, compute_uv=False)[0]
        assert 0.95 * s <= estimate <= s * (1 + 1e-12)
    assert largest_singular_value(backend(np.zeros((3, 4)))) == 0.0


def test_turning_point():
    profile = RangeProfile(np.array([4.0, 2.0, 1.0]), np.array([1.0, 0.5, 0.5, 0.1]))
    assert profile.turns_at(0.2) == 1.0
    assert profile.rho(np.nextafter(1.0, 0)) == 0.1
    assert profile.rho(1.0) == 0.5
    assert profile.turns_at(1.0) is None
    assert profile.turns_at(0.05) == 0.0
    assert profile.turns_at(0.5) == 4.0
    assert profile.near(2.0) == (4.0, 2.0, 1.0)
    assert profile.near(1.9, most=2) == (2.0, 1.0)
    assert profile.near(2.1, most=2) == (4.0, 2.0)


def test_library_rules_say_what_the_libraries_say(rng):
    torch = pytest.importorskip("torch")
    from scipy import linalg

    # Between two thresholds each, so far from both that rounding moves none across.
    values = np.repeat([1.0, 1e-12, 1.1e-14, 5e-15, 6e-16], [1, 10, 10, 10, 10])
    a = with_singular_values(values, (41, 60), rng)
    reduced = reduce(a, None)
    svd, qr = svd_profile(reduced), qr_profile(reduced)
    eps = 2.0**-52
    scale = Scale(41, 60, svd.levels[0], row_sum_norm(a), eps, eps)
    ranks = {row["rule"]: row["rank"] for row in rank_rules.compare(scale, svd, qr)}
    named = {rule: ranks[rule] for rule in ("golub", "julia", "press", "scipy-lstsq")}
    assert named == {"golub": 11, "julia": 21, "press": 31, "scipy-lstsq": 41}
    assert np.linalg.matrix_rank(a) == 11
    assert int(torch.linalg.matrix_rank(torch.from_numpy(a))) == 11
    assert linalg.orth(a).shape[1] == 11
    assert linalg.lstsq(a, np.ones(41))[2] == 41


def test_rule_formulas_by_hand():
    scale = Scale(rows=3, columns=8, spectral=5.0, row_sum=7.0, eps=2.0**-23, handed_eps=2.0**-52)
    value = {name: rule.threshold(scale) for name, rule in rank_rules.RULES.items()}
    assert value["press"] == 5.0 * 2.0**-24 * np.sqrt(12.0)
    assert value["golub"] == 5.0 * 2.0**-23 * 8
    assert value["golub-inf"] == 7.0 * 2.0**-24
    assert value["golub-qr"] == 5.0 * 2.0**-23
    assert value["matlab"] == 8 * np.spacing(5.0)
    assert value["julia"] == 5.0 * 2.0**-52 * 3
    assert value["scipy-lstsq"] == 5.0 * 2.0**-52
