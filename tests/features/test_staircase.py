"""The staircase: its bound against the exact s_min of phi, shifted boundaries, ties, balls."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.features.block_prover import SortedProjections, cut_at, even_plan, prove_block
from alignver.features.products import dense_phi
from alignver.features.rows import directions, open_rows, scan_rows
from alignver.features.staircase import certify_staircase, find_staircase, gates_of
from alignver.kernel import seal
from tests.features.features import features


def search(Z, width=None, **options):
    rows = open_rows(Z)
    scan = scan_rows(rows, directions(rows, 4, 0))
    return rows, scan, find_staircase(rows, scan, width, **options)


@pytest.mark.parametrize(("n", "m", "width"), [(30, 31, 1), (60, 9, 8), (60, 9, None), (61, 9, 12), (5, 3, 40)])
def test_bound_is_below_the_exact_smallest_singular_value(n, m, width):
    Z = features(n, m)
    _, _, result = search(Z, width)
    stairs = result.staircase
    assert stairs is not None, result.reason
    assert stairs.width == (width if width is not None else stairs.width)
    values = np.linalg.svd(dense_phi(Z, stairs.q()), compute_uv=False)
    assert len(values) == n
    assert 0.0 < stairs.s_min <= values[-1] * (1 + 1e-6)
    assert values[0] <= stairs.norm
    assert values[-1] <= 40 * stairs.s_min or stairs.width > 20


def test_smallest_width_is_the_limit():
    _, _, result = search(features(200, 21))
    assert result.staircase is not None
    assert result.staircase.width == 10


def test_gates_of_the_certificate_are_those_of_the_staircase():
    rows, scan, result = search(features(40, 8), 6)
    assert result.staircase is not None
    np.testing.assert_array_equal(gates_of(certify_staircase(result.staircase, rows, scan)), result.staircase.q())


def test_collinear_rows_shift_boundaries():
    # Runs of five points on lines: no four of one line are independent, so no block may hold three of them in a row.
    rng = np.random.default_rng(3)
    starts, steps = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    Z = np.concatenate([start + np.outer(np.arange(5.0), step) for start, step in zip(starts, steps)])
    Z = np.column_stack([Z, np.ones(30)])
    _, _, result = search(Z, 15)
    assert result.staircase is not None, result.reason
    assert np.linalg.matrix_rank(dense_phi(Z, result.staircase.q())) == 30


def test_tied_projections_are_not_separated():
    projections = SortedProjections.along(np.array([3.0, 2.0, 2.0, 2.0, 1.0]), 1e-12)
    assert cut_at(projections, 2, 1, 4) == 1
    assert cut_at(projections, 2, 2, 3) is None
    assert even_plan(projections, 0, 4, 5) is None
    assert even_plan(projections, 0, 3, 5) == [(0, 1), (1, 4), (4, 5)]


def test_thresholds_keep_their_margin():
    projections = SortedProjections.along(np.array([3.0, 2.0, 1.0, -4.0]), 0.25)
    for position in range(5):
        threshold = projections.threshold(position)
        assert 0.0 < projections.margin(position) <= np.abs(projections.values - threshold).min() - 0.25


def test_an_added_constant_does_not_move():
    """Far from the origin thresholds are large, and would move by delta times them with the constant."""
    delta = 1e-5
    Z = features(60, 9)[:, :-1] + 500.0
    result = check_safe_exploration(Z, width=10, delta=delta, add_constant=True)
    assert (result.verdict, result.rigor) == ("HOLDS", "PROOF")
    stairs, claimed = result.certificate.data, result.certificate.constants["s_min"]
    v, thresholds = stairs["direction"], stairs["thresholds"]
    assert delta * np.abs(thresholds).max() > 2 * np.abs(np.subtract.outer(Z @ v[:-1], thresholds)).min()
    assert recheck(result.certificate, Z=Z).verdict == "HOLDS"
    # Rows move towards their nearest threshold, or away from it, by all of delta.
    distance = np.subtract.outer(Z @ v[:-1], thresholds)
    sign = np.sign(distance[np.arange(60), np.abs(distance).argmin(axis=1)])
    q = gates_of(result.certificate)
    for step in (-delta, delta):
        moved = np.column_stack([Z + step * sign[:, None] * v[:-1] / np.linalg.norm(v), np.ones(60)])
        assert claimed <= np.linalg.svd(dense_phi(moved, q), compute_uv=False)[-1]
    # With the constant among the numbers that move, the same staircase is no proof.
    whole = np.column_stack([Z, np.ones(60)])
    forged = seal(
        "exploration", "staircase", {"Z": whole}, stairs, {**result.certificate.constants, "add_constant": False}
    )
    answer = recheck(forged, Z=whole)
    assert answer.verdict == "FAILS"
    assert "not separated from a threshold" in str(answer)


def test_ball_lowers_the_bound_and_may_end_it():
    Z = features(60, 9)
    bounds = [search(Z, 10, delta=delta)[2].staircase for delta in (0.0, 1e-6, 1e-4)]
    values = [stairs.s_min for stairs in bounds if stairs is not None]
    assert len(values) == 3
    assert values[0] > values[1] > values[2] > 0.0
    assert search(Z, 10, delta=10.0)[2].staircase is None
    # It is a bound throughout the ball.
    rng = np.random.default_rng(1)
    for _ in range(5):
        E = rng.standard_normal((60, 9))
        E *= 1e-4 / np.linalg.norm(E, axis=1, keepdims=True)
        moved = np.linalg.svd(dense_phi(Z + E, bounds[2].q()), compute_uv=False)
        assert values[2] <= moved[-1]


def test_ill_conditioned_block_uses_the_right_inverse():
    U, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))
    Z = U @ np.diag(np.logspace(0, -9, 12)) @ U.T
    block = prove_block(Z, 0, 12)
    assert block.method == "right inverse"
    assert 0.0 < block.s_min <= 1e-9
    assert not prove_block(np.ones((2, 3)), 0, 2).proved
    assert not prove_block(np.ones((4, 3)), 0, 4).proved


def test_scaled_rows_keep_their_staircase():
    Z = features(40, 8)
    Z[:, :-1] *= 1e60
    _, _, result = search(Z, 8)
    assert result.staircase is not None, result.reason
