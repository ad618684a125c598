"""Constants of the bounds in proofs about phi, from both sides: exact formulas, and inputs at the edge."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from alignver.features.block_prover import SortedProjections, prove_block
from alignver.features.cholesky import prove_definite, tiled_shift
from alignver.features.products import (
    GATE_ERROR,
    GATE_UNDERFLOW,
    dense_phi,
    gate_matrix_error,
    logistic,
    scaled_gram,
)
from alignver.features.rows import directions, open_rows, scan_rows
from alignver.features.staircase import Staircase, _exponent, _halvings, find_staircase
from alignver.features.tiles import _lowered
from alignver.proof.cholesky import row_rank_by_gram
from alignver.proof.gram_tiles import ScaledGram
from alignver.proof.right_inverse import row_rank_by_inverse
from tests.exact import OMEGA, U, gamma, pinned, pinned_below, root, square
from tests.matrices import with_singular_values

u = 2.0**-53


# The gate


def test_error_of_gates_is_within_its_derived_bound() -> None:
    # In units of u: the argument of the exponential, Horner's rule on degree 14, the cut of the series.
    exponential = 1 + 43 * mpmath.exp(0.7) + mpmath.mpf(0.35) ** 15 / mpmath.factorial(15) * mpmath.exp(0.35) * 2**53
    perturbation = float(2 * exponential + 2)
    assert 2 * 88 < perturbation < 190
    assert 190 * u < GATE_ERROR <= 256 * u
    assert 2.0**9 * mpmath.exp(-700) < GATE_UNDERFLOW <= 2.0**10 * mpmath.exp(-700)
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-700.0, 0.0, 500), rng.uniform(-3.0, 30.0, 500), [-700.0, -21.48660437872688]])
    worst = 0.0
    with mpmath.workprec(200):
        for value, computed in zip(x.tolist(), logistic(x).tolist(), strict=True):
            true = 1 / (1 + mpmath.exp(-mpmath.mpf(value)))
            worst = max(worst, float(abs(computed - true) / true))
        assert 2.0 * u < worst < GATE_ERROR
        for value in (-700.5, -1e5, -1e300):  # what stands for all that is smaller
            computed = float(logistic(np.array([value]))[0])
            assert abs(computed - mpmath.exp(mpmath.mpf(value))) < GATE_UNDERFLOW
        assert float(logistic(np.array([-1e5]))[0]) > 2.0**-10 * GATE_UNDERFLOW


def argument(m: int, row: float, gate: float, delta: float) -> Fraction:
    return gamma(m) * Fraction(row) * Fraction(gate) + m * OMEGA + Fraction(delta) * Fraction(gate)


def relative(m: int, row: float, gate: float, delta: float) -> Fraction:
    a = argument(m, row, gate, delta)
    return 2 * a + Fraction(GATE_ERROR) * (1 + 2 * a)


@pytest.mark.parametrize("m", [1, 3, 4000])
def test_error_of_gates_of_inexact_arguments(m: int) -> None:
    for row, gate, delta in (
        (1.0, 1.0, 0.0),
        (1e6, 30.0, 0.0),
        (1.0, 40.0, 2.0**-30),
        (0.0, 1.0, 0.24),
        (0.0, 1.0, 0.125),
    ):
        pinned(gate_matrix_error(m, row, gate, delta), relative(m, row, gate, delta), 2.0**-47)
        assert gate_matrix_error(m, row, gate, delta) < math.inf
    assert gate_matrix_error(m, 0.0, 1.0, 0.25) == math.inf


def test_error_bound_of_gates_is_sharp() -> None:
    # A gate far below zero feels its argument in full: by rounding of the product, and by a ball's radius.
    z, q = np.array([[1.0, 1.0]]), np.array([[-600.0], [-0.49 * 2.0**-43]])
    computed = float(logistic(z @ q)[0, 0])
    with mpmath.workprec(200):
        exact = mpmath.exp(-600 + mpmath.mpf(float(q[1, 0])))
        wrong = float(abs(computed / exact - 1))
    bound = gate_matrix_error(2, math.sqrt(2.0), 600.0)
    assert 0.1 * bound < wrong <= bound
    for delta in (2.0**-20, 0.2):
        moved = math.exp(delta) - 1.0
        assert 0.49 * gate_matrix_error(1, 0.0, 1.0, delta) < moved <= gate_matrix_error(1, 0.0, 1.0, delta)


# The Gram matrix of phi


def features_and_gates(scaled: ScaledGram) -> tuple[np.ndarray, np.ndarray]:
    ((Z, T),) = scaled.factors
    return Z[:, 0], T[:, 0]


def expected(
    scaled: ScaledGram, q: np.ndarray, w: np.ndarray | None, delta: float
) -> tuple[Fraction, Fraction, Fraction]:
    """Return the trace, the rounding error and the error of the gates."""
    Z, T = features_and_gates(scaled)
    (n, m), h = Z.shape, T.shape[1]
    rows, gates = [square(z) for z in Z], [square(t) for t in T]
    trace = sum((a * b for a, b in zip(rows, gates, strict=True)), Fraction(0))
    error = gamma(m + h + 2) * trace + n * (m + h + 4) * OMEGA * 2**450 * (1 + max(rows))
    gate = root(max(square(column) for column in q.T))
    perturbation = relative(m, float(root(max(rows))), float(gate), delta) + (
        Fraction(1, 2**52) if w is not None else 0
    )
    heaviest = 1 if w is None else max(Fraction(1), Fraction(float(np.abs(w).max())))
    moved = Fraction(1001, 1000) * perturbation * root(trace)
    moved += Fraction(1002, 1000) * Fraction(delta) * root(sum(gates, Fraction(0)))
    moved += Fraction(GATE_UNDERFLOW) * 2**401 * heaviest * n * h * (1 + root(max(rows)))
    return trace, error, moved


def case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, float]:
    rng = np.random.default_rng(0)
    Z, q = rng.integers(1, 9, (5, 4)).astype(float), rng.standard_normal((4, 6))
    match name:
        case "plain":
            return Z, q, None, 0.0
        case "long":
            return rng.standard_normal((3, 300)), rng.standard_normal((300, 200)), None, 0.0
        case "large arguments":
            return 1e5 * Z, 1e3 * np.abs(q), None, 0.0
        case "weights":
            return Z, q, rng.standard_normal(6), 0.0
        case "ball":
            return Z, q, None, 2.0**-30
        case "far rows":
            return Z * 2.0**280, q * 2.0**-280, None, 0.0
        case "far ball":
            return Z * 2.0**-200, q, rng.standard_normal(6), 2.0**-230
    q = np.zeros((4, 6))  # one gate is closed, and has a weight that nothing else is near
    q[:, 0] = -900.0 * 2.0**-280
    return Z * 2.0**280, q, np.array([2.0**280] + 5 * [2.0**-280]), 0.0


@pytest.mark.parametrize(
    "name", ["plain", "long", "large arguments", "weights", "ball", "far rows", "far ball", "heavy and closed"]
)
def test_errors_of_a_gram_matrix_of_phi(name: str) -> None:
    Z, q, w, delta = case(name)
    scaled = scaled_gram(Z, q, w, delta)
    assert isinstance(scaled, ScaledGram), scaled
    trace, error, moved = expected(scaled, q, w, delta)
    pinned(scaled.trace, trace, 2.0**-42)
    pinned(
        scaled.largest, max(square(z) * square(t) for z, t in zip(*features_and_gates(scaled), strict=True)), 2.0**-42
    )
    pinned(scaled.error, error, 2.0**-42)
    pinned(scaled.moved, moved, 2.0**-40)


def test_error_bound_of_a_gram_matrix_is_sharp() -> None:
    closest = 0.0
    for z, t in np.random.default_rng(0).uniform(1.0, 1.1, (3000, 2)):
        scaled = ScaledGram(((np.array([[[z]]]), np.array([[[t]]])),), np.zeros(1, dtype=np.int64), 0.0, 0.0, 0.0, 0.0)
        exact = Fraction(z) ** 2 * Fraction(t) ** 2
        wrong = abs(Fraction(float(scaled.tile(slice(0, 1), slice(0, 1))[0, 0])) - exact)
        assert wrong <= gamma(3) * exact
        closest = max(closest, float(wrong / (gamma(4) * exact)))
    assert closest > 0.5


# The factorization


def tiled(n: int, tile: int, trace: Fraction, largest: Fraction) -> Fraction:
    depth = min(2 * min(tile, n) + math.ceil(n / tile) + 3, n + 2)
    return gamma(depth) / (1 - gamma(depth)) * trace + 8 * n * (n + 2 + largest) * OMEGA


@pytest.mark.parametrize(("n", "tile"), [(1, 1), (5, 2), (100, 1024), (1000, 16), (4096, 64), (60000, 1024)])
def test_shift_of_a_tiled_factorization(n: int, tile: int) -> None:
    for trace, largest in ((1.0, 1.0), (60000.0, 2.0), (2.0**-1060, 2.0**-1060), (2.0**-1060, 2.0**110)):
        pinned(tiled_shift(n, tile, trace, largest), tiled(n, tile, Fraction(trace), Fraction(largest)), 2.0**-47)
    assert tiled_shift(2**53, 2**52, 1.0, 1.0) == math.inf


def two(e: float, error: float = 0.0, moved: float = 0.0, exponent: int = 0) -> ScaledGram:
    """Return (1, 1; 1, 1 + e^2), with the given errors."""
    Z, T = np.array([[1.0, 0.0], [1.0, e]]), np.ones((2, 1))
    slack = 2.0**-38 * np.sqrt((2.0 + e * e) * (1 + 2.0**-10))
    pair = Z[:, None], T[:, None]
    return ScaledGram((pair,), np.array([exponent, exponent - 3]), 2.0 + e * e, 1.0 + e * e, error, moved, slack)


@pytest.mark.parametrize(("error", "moved"), [(0.0, 0.0), (2.0**-46, 0.0), (2.0**-40, 2.0**-18), (0.0, 2.0**-10)])
def test_margin_and_shift_of_a_definite_matrix(error: float, moved: float) -> None:
    room = 1 + Fraction(1, 2**10)
    for tile in (1, 1024):
        definite = prove_definite(two(0.5, error, moved, 7), tile=tile)
        assert definite.proved, definite.reason
        trace, largest = Fraction(2.25) * room, Fraction(1.25) * room
        margin = 2 * (Fraction(error) + tiled(2, tile, trace, largest)) + 32 * U * trace
        pinned(definite.margin, margin, 2.0**-48)
        off = Fraction(moved) + Fraction(1, 2**38) * root(trace)
        pinned(definite.shift, max(margin, 4 * off * off), 2.0**-46)
        smallest = Fraction(4, 5) * (root(Fraction(definite.shift)) - off)
        pinned_below(definite.scaled_s_min, smallest * (1 + 2 * U), 2.0**-46)
        pinned_below(definite.s_min, smallest / 2**7 * (1 + 2 * U), 2.0**-46)


def test_a_matrix_above_margin_and_shift_is_proved_definite() -> None:
    for error, moved in ((0.0, 0.0), (2.0**-40, 0.0), (0.0, 2.0**-19)):
        least = prove_definite(two(0.0, error, moved))
        assert not least.proved
        need = 2.0 * (least.margin + least.shift)
        assert not prove_definite(two(math.sqrt(0.95 * need), error, moved)).proved
        definite = prove_definite(two(math.sqrt(1.08 * need), error, moved))
        assert definite.proved
        assert definite.scaled_s_min <= math.sqrt(1.08 * need / 2.0) - moved


def test_the_diagonal_of_a_tile_is_rounded_down() -> None:
    for total in (2.0**-60, 0.3):
        for value, taken in zip((1.0, 3.0), _lowered(np.diag([1.0, 3.0]), total).diagonal(), strict=True):
            assert Fraction(float(taken)) <= Fraction(value) - Fraction(total)
            assert Fraction(float(taken)) >= Fraction(value) - Fraction(total) - 4 * U


# Projections and thresholds


def test_errors_of_projections() -> None:
    for m, scale in ((3, 1.0), (300, 2.0**40), (3, 2.0**-1000)):
        Z = np.ones((4, m))
        Z[:, :-1] = np.random.default_rng(m).integers(1, 9, (4, m - 1))
        V = np.random.default_rng(m).integers(1, 9, (m, 2)) * scale
        V[-1] = 0.0
        scan = scan_rows(open_rows(Z), V)
        for k in range(2):
            size = root(max(square(z) for z in Z)) * root(square(V[:, k]) + (m + 1) * OMEGA)
            pinned(float(scan.errors[k]), gamma(m) * size + m * OMEGA, 2.0**-42)


def test_error_bound_of_projections_is_sharp() -> None:
    v = np.array([1.0, u * (1 - 2.0**-40), 0.0])
    scan = scan_rows(open_rows(np.ones((1, 3))), v[:, None])
    wrong = float(Fraction(v[0]) + Fraction(v[1]) - Fraction(float(scan.projections[0, 0])))
    assert scan.errors[0] / 6 < wrong <= scan.errors[0]


def test_margins_of_thresholds() -> None:
    values = np.array([3.0, 2.0, 1.0 - 2.0**-50, -4.0])
    for error in (0.0, 0.25, 0.1):
        projections = SortedProjections.along(values, error)
        for position in range(5):
            threshold = projections.threshold(position)
            distance = min(abs(Fraction(float(p)) - Fraction(threshold)) for p in values)
            pinned_below(projections.margin(position), distance - Fraction(error), 2.0**-50)
            assert projections.margin(position) > 0.0
    # Half a gap of four errors is twice an error away from both sides.
    projections = SortedProjections.along(values, 0.25 * (1.0 - 2.0**-20))
    assert projections.usable(np.array([1])).all()
    assert projections.margin(1) > 0.24
    assert not SortedProjections.along(values, 0.25).usable(np.array([1])).any()


# Blocks and the staircase


def test_claimed_bound_of_a_block() -> None:
    rng = np.random.default_rng(0)
    for b, delta in ((1, 0.0), (3, 0.0), (3, 0.1), (5, 0.1)):
        Z = 5.0 * with_singular_values(rng.uniform(1.0, 2.0, b), (b, 6), rng)
        block = prove_block(Z, 0, b, delta)
        claimed = Fraction(0.9) * Fraction(row_rank_by_gram(Z).s_min) - Fraction(delta) * root(Fraction(b))
        assert block.method == "gram"
        pinned_below(block.s_min, claimed * (1 + 2 * U), 2.0**-44)
    Z = with_singular_values(np.logspace(0, -9, 12), (12, 12), rng)
    for delta in (0.0, 2.0**-33):
        block = prove_block(Z, 0, 12, delta)
        claimed = Fraction(0.5) * Fraction(row_rank_by_inverse(Z).s_min) - Fraction(delta) * root(Fraction(12))
        assert block.method == "right inverse"
        pinned_below(block.s_min, claimed * (1 + 2 * U), 2.0**-40)


def test_a_block_whose_rows_move_in_the_worst_direction() -> None:
    for b, delta in ((2, 0.5), (16, 0.15), (16, 0.19)):
        Z = np.eye(b)
        moved = Z - delta / math.sqrt(b)  # each row by delta, along the sum of all
        true = np.linalg.svd(moved, compute_uv=False)[-1]
        assert 0.0 < prove_block(Z, 0, b, delta).s_min <= true < 1.0 - 0.99 * math.sqrt(b) * delta
    assert not prove_block(np.eye(16), 0, 16, 0.25 * 0.9).proved


def test_halvings_are_powers_of_e() -> None:
    for margin in (0.7, 2.0**-30, 3.0):
        for c in (1.0, 2.0**10, 2.0**44):
            k = _halvings(c, margin)
            true = float(c * margin * mpmath.log(mpmath.e, 2))
            assert k == min(math.floor(Fraction(c) * Fraction(margin) * Fraction(14426, 10000)), 1 << 20)
            assert k <= true
            assert k >= min(true * (1 - 7e-5) - 1, 1 << 20)
    # Half a thousandth more would be too much.
    x = 6931.4 * 0.9999
    assert mpmath.exp(-x) <= mpmath.mpf(2) ** -_halvings(1.0, x) < 4 * mpmath.exp(-x)
    for margin, spill, allowed in itertools.product((0.3, 2.0**-40), (1.0, 3e8), (2.0**-11, 2.0**-60)):
        exponent = _exponent(margin, spill, allowed)
        assert exponent is not None
        assert spill * mpmath.exp(-(mpmath.mpf(2) ** exponent) * margin) <= allowed


def staircase(Z: np.ndarray, width: int, delta: float) -> tuple[Staircase, np.ndarray, float]:
    rows = open_rows(Z)
    scan = scan_rows(rows, directions(rows, 4, 0))
    stairs = find_staircase(rows, scan, width, delta=delta).staircase
    assert stairs is not None
    return stairs, scan.projections[:, stairs.attempt - 1], float(scan.errors[stairs.attempt - 1])


@pytest.mark.parametrize(("n", "m", "width"), [(20, 31, 1), (24, 9, 4), (24, 9, 9), (9, 3, 9), (6, 3, 40)])
@pytest.mark.parametrize("delta", [0.0, 2.0**-24])
def test_numbers_of_a_staircase(n: int, m: int, width: int, delta: float) -> None:
    Z = np.column_stack([np.random.default_rng(n).standard_normal((n, m - 1)), np.ones(n)])
    stairs, p, error = staircase(Z, width, delta)
    reach = 4 * Fraction(float(np.abs(p).max())) + Fraction(1, 2**400)
    wrong = Fraction(error) + Fraction(delta) * root(square(stairs.direction) + reach**2)
    gap = min(abs(Fraction(float(x)) - Fraction(float(t))) for x in p for t in stairs.thresholds)
    pinned_below(stairs.margin, gap - wrong, 2.0**-40)
    floor = Fraction(min(block.s_min for block in stairs.blocks))
    base = floor / 2 if len(stairs.blocks) > 1 else floor
    size = root(square(Z)) + Fraction(delta) * root(Fraction(n))
    spill = root(Fraction(width)) * size
    halvings = math.floor(Fraction(stairs.c) * Fraction(stairs.margin) * Fraction(14426, 10000))
    lost = spill / Fraction(2) ** halvings
    assert lost <= base / 2**10
    pinned_below(stairs.s_min, Fraction(0.98) * (base - lost) * (1 + 2 * U), 2.0**-43)
    order, repeats = np.argsort(-p, kind="stable"), Fraction(0)
    for k, block in enumerate(stairs.blocks):
        repeats += (len(stairs.blocks) - k) * square(Z[order[block.start : block.stop]])
    pinned(stairs.norm, root(repeats) + lost + Fraction(delta) * root(Fraction(n * width)), 2.0**-43)
    values = np.linalg.svd(dense_phi(Z, stairs.q()), compute_uv=False)
    assert stairs.s_min <= values[-1] * (1 + 1e-9)
    assert values[0] <= np.linalg.norm(values) <= stairs.norm * (1 + 1e-12)


def test_factor_one_half_is_sharp_for_long_staircases() -> None:
    # Rows that are nearly (0, 1), one to a block: s_min is that of the triangle of ones, close to 1 / 2.
    Z = np.column_stack([np.arange(24.0) * 2.0**-12, np.ones(24)])
    stairs, _, _ = staircase(Z, 24, 0.0)
    true = np.linalg.svd(dense_phi(Z, stairs.q()), compute_uv=False)[-1]
    assert 0.49 < true < 0.51
    assert 0.75 * true < stairs.s_min <= true
