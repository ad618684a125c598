"""Constants of the rigorous bounds of outputs, losses and steps: large enough, and not too large."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from alignver.features.products import GATE_ERROR, GATE_UNDERFLOW, gate_matrix_error, logistic
from alignver.theory import smoothness as smoothness_module
from alignver.theory.enclosure import _SOFTPLUS, Enclosure, enclose, loss_bounds, softplus_down, softplus_up
from alignver.theory.exploitation import Exploitation
from alignver.theory.smoothness import _largest_eigenvalue_up, smoothness, squared_norm_up
from tests.exact import OMEGA, gamma, pinned, pinned_below, root, square, total
from tests.theory.test_enclosure import exact_outputs

u = 2.0**-53
_TERMS = ("argument", "gate", "closed", "product", "open", "sum", "tiny", "tiny product", "tiny weight")


# Outputs


def radius(model: Exploitation, theta: np.ndarray, i: int, **parts: float) -> tuple[Fraction, Fraction]:
    """Return the radius of output 0 of row i, with terms scaled by ``parts``, and the output without cancellation."""
    part = {name: Fraction(parts.get(name, 1.0)) for name in _TERMS}
    m, h = model.m, model.h
    gates, products = logistic(model.Z @ model.steep_gates[0])[i], (model.Z @ theta[0].T)[i]
    z = root(square(model.Z[i]) + m * OMEGA)
    bound, size = Fraction(0), Fraction(0)
    for k in range(h):
        s, p, w = (Fraction(float(x)) for x in (gates[k], abs(products[k]), abs(model.output_weights[0, k])))
        e = part["argument"] * gamma(m) * z * root(square(model.steep_gates[0][:, k]) + m * OMEGA)
        rho = 4 * e * (1 - s + Fraction(1, 2**44)) + part["gate"] * 2 * Fraction(GATE_ERROR)
        slack = part["product"] * gamma(m) * z * root(square(theta[0, k]) + m * OMEGA)
        bound += w * (rho * s + part["closed"] * Fraction(GATE_UNDERFLOW)) * p
        bound += w * (s * (1 + rho) + part["open"] * Fraction(GATE_UNDERFLOW)) * slack
        bound += w * part["sum"] * gamma(h + 2) * s * p
        size += z * s * w * root(square(theta[0, k]) + m * OMEGA)
    most = part["tiny product"] * Fraction(float(np.abs(products).max()))
    most += part["tiny weight"] * Fraction(float(np.abs(model.output_weights).max()))
    return bound + part["tiny"] * 3 * h * OMEGA * (1 + most), size


def case(term: str) -> tuple[Exploitation, np.ndarray]:
    Z = [[2.0, 1.0], [3.0, 1.0]]
    h = 600 if term == "sum" else 3
    gates, weights, theta = np.zeros((1, 2, h)), np.ones((1, h)), np.ones((1, h, 2))
    match term:
        case "argument":
            gates[0, 0] = 2.0**20
            gates[0, 1] = -(2.0**21) - 2.0
            Z = [[2.0, 1.0], [2.0, 1.0]]
        case "closed" | "open":
            gates[:] = -500.0
            theta[:, :, 0] = 1.0
            theta[:, :, 1] = 1.0
        case "product":
            theta[:, :, 0], theta[:, :, 1] = 1.0, -2.0
        case "tiny":
            theta[:], weights[:] = 0.0, 2.0**-600
        case "tiny weight":
            gates[:], theta[:], weights[:] = -500.0, 0.0, 2.0**30
        case "tiny product":
            theta[:], weights[:] = 2.0**30, 0.0
    return Exploitation(Z, gates, weights), theta


@pytest.mark.parametrize("term", _TERMS)
def test_radius_of_outputs(term: str) -> None:
    model, theta = case(term)
    if term == "open":  # nothing but the slack of a product that is nought
        model = Exploitation([[1.0, 1.0]], model.gates, model.output_weights)
        theta = np.stack([np.full(model.h, 2.0**200), np.full(model.h, -(2.0**200))], axis=1)[None]
    computed = enclose(model, theta)
    assert isinstance(computed, Enclosure), computed
    exact, size = radius(model, theta, 0)
    half, _ = radius(model, theta, 0, **{term: 0.5})
    assert half * Fraction(51, 50) < exact
    pinned(float(computed.radius[0, 0]), exact * (1 - Fraction(1, 2**50)), 2.0**-17)
    if not term.startswith("tiny"):
        pinned(float(computed.size[0, 0]), size, 2.0**-17)
    wide = computed.widened()
    pinned(
        float(wide.radius[0, 0]),
        4 * Fraction(float(computed.radius[0, 0])) + Fraction(float(computed.size[0, 0])) / 2**37,
        2.0**-19,
    )
    assert wide.outputs is computed.outputs


def wrong(model: Exploitation, theta: np.ndarray) -> float:
    """Return the error of an output, relative to its radius."""
    computed = enclose(model, theta)
    assert isinstance(computed, Enclosure), computed
    with mpmath.workdps(60):
        exact = exact_outputs(model, theta)[0][0]
        return float(abs(exact - mpmath.mpf(float(computed.outputs[0, 0]))) / mpmath.mpf(float(computed.radius[0, 0])))


def test_radius_of_outputs_is_sharp() -> None:
    # A closed gate feels its argument in full; a product that cancels is wholly rounding.
    half = 0.49 * 2.0**-43
    closed = Exploitation([[2.0**-20, 1.0]], [[[-half * 2.0**20], [-512.5]]], np.ones((1, 1)))
    assert 0.1 < wrong(closed, np.array([[[0.0, 1.0]]])) <= 1.0
    model = Exploitation(np.ones((1, 3)), np.zeros((1, 3, 1)), np.ones((1, 1)))
    computed = [wrong(model, np.array([[order]])) for order in itertools.permutations([1.0, u * (1 - 2.0**-20), -1.0])]
    assert 0.1 < max(computed) <= 1.0


def test_largest_error_of_arguments() -> None:
    for size, known in ((0.099, True), (0.101, False)):
        r = size / float(gamma(2)) / math.sqrt(5.0)
        computed = enclose(Exploitation([[2.0, 1.0]], [[[r], [0.0]]], np.ones((1, 1))), np.zeros((1, 1, 2)))
        assert isinstance(computed, Enclosure) == known


# Losses


def test_error_of_softplus_is_within_its_derived_bound() -> None:
    assert 1.46 * 2.0**-45 + 2.0**-66 + 70 * u < 2.0**-44
    assert _SOFTPLUS == 2.0**-43
    with mpmath.workprec(300):
        for t in (0.0, -1.0, -30.0, -600.0):
            true = mpmath.log1p(mpmath.exp(mpmath.mpf(t)))
            up, down = (float(bound(np.array([t]))[0]) for bound in (softplus_up, softplus_down))
            assert abs(float(up / true - 1) / (2.0 * _SOFTPLUS) - 1.0) < 0.02
            assert abs(float(1 - down / true) / (2.0 * _SOFTPLUS) - 1.0) < 0.02
        for t in (-700.5, -1e6):
            up = float(softplus_up(np.array([t]))[0])
            assert 4 * GATE_UNDERFLOW < up < 4.01 * GATE_UNDERFLOW
            assert softplus_down(np.array([t]))[0] == 0.0
        true = mpmath.log1p(mpmath.exp(mpmath.mpf(-690)))
        assert abs(float((true - float(softplus_down(np.array([-690.0]))[0])) / GATE_UNDERFLOW) - 4.0) < 0.01
        for t in (1e6 + 0.3, 40.0, 700.1):  # the last rounding, 4 u
            up, down = (float(bound(np.array([t]))[0]) for bound in (softplus_up, softplus_down))
            true = mpmath.log1p(mpmath.exp(mpmath.mpf(t)))
            assert 2 * u < float(up / true - 1) < 9 * u
            assert 2 * u < float(1 - down / true) < 9 * u


@pytest.mark.parametrize("m_y", [1, 4, 200])
def test_squared_loss_at_the_ends_of_the_output_intervals(m_y: int) -> None:
    rng = np.random.default_rng(m_y)
    f, y = rng.integers(-9, 9, (3, m_y)).astype(float), rng.integers(20, 30, (3, m_y)).astype(float)
    for r in (np.zeros((3, m_y)), 2.0**-20 * rng.integers(1, 9, (3, m_y))):
        bounds = loss_bounds(Enclosure(f, r, np.ones_like(f)), y, "squared")
        fine = 1 + Fraction(m_y + 8, 2**52)
        above, below = square(y - f + r) / 3, square(y - f - r) / 3  # attained
        assert Fraction(bounds.lower) <= below <= above <= Fraction(bounds.upper)
        # Besides: four parts in 2^52 for the rounding of the differences, and of three samples.
        pinned(bounds.upper, above * fine * (1 + Fraction(4, 2**52)), 2.0**-49)
        pinned_below(bounds.lower, below / fine * (1 - Fraction(4, 2**52)), 2.0**-49)


def test_underflow_of_squared_losses() -> None:
    tiny = Enclosure(np.full((1, 4), 2.0**-538), np.zeros((1, 4)), np.ones((1, 4)))
    bounds = loss_bounds(tiny, np.zeros((1, 4)), "squared")
    assert bounds.lower == 0.0
    pinned(bounds.upper, 5 * OMEGA, 2.0**-46)
    small = Enclosure(np.full((1, 4), 2.0**-510), np.zeros((1, 4)), np.ones((1, 4)))
    pinned_below(loss_bounds(small, np.zeros((1, 4)), "squared").lower, 11 * OMEGA, 2.0**-46)


def test_entropies_at_the_ends_of_the_output_intervals() -> None:
    f = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -7.0]])
    for scale in (0.0, 2.0**-12, 0.125):
        r = scale * np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 1.0]])
        enclosed = Enclosure(f, r, np.ones_like(f))
        y = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        small = 2.0**-18 if scale else 2.0**-40
        with mpmath.workprec(200):

            def binary(way: int, y: np.ndarray = y, r: np.ndarray = r) -> Fraction:
                t = (1 - 2 * y) * f + way * r
                return fraction(mpmath.fsum(mpmath.log1p(mpmath.exp(mpmath.mpf(x))) for x in t.ravel()) / 2)

            def several(way: int, y: np.ndarray = y, r: np.ndarray = r) -> Fraction:
                t = f + way * r * (1 - 2 * y)
                rows = [
                    mpmath.log(mpmath.fsum(map(mpmath.exp, row))) - (row * target).sum() for row, target in zip(t, y)
                ]
                return fraction(mpmath.fsum(rows) / 2)

            for loss, exact in (("binary_cross_entropy", binary), ("cross_entropy", several)):
                bounds = loss_bounds(enclosed, y, loss)
                pinned(bounds.upper, exact(1), small)
                pinned_below(bounds.lower, exact(-1), small)


def fraction(x: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = x._mpf_
    return Fraction((-1) ** sign * int(mantissa)) * Fraction(2) ** exponent


def test_number_of_misclassified_samples_is_a_bound() -> None:
    f = np.array([[1.0, 0.5]])
    for r, sure in ((0.25 * (1 - 2.0**-18), True), (0.25, False)):
        enclosed = Enclosure(f, np.full((1, 2), r), np.ones((1, 2)))
        assert loss_bounds(enclosed, np.array([[1.0, 0.0]]), "cross_entropy").errors == (not sure)
    for r, sure in ((0.5 * (1 - 2.0**-50), True), (0.5, False)):
        enclosed = Enclosure(f, np.full((1, 2), r), np.ones((1, 2)))
        assert loss_bounds(enclosed, np.array([[1.0, 1.0]]), "binary_cross_entropy").errors == (not sure)


# Steps


@pytest.mark.parametrize("size", [0.0, 1e6, 1e9])
def test_lipschitz_constants(size: float) -> None:
    Z = np.array([[3.0, 4.0, 1.0], [-1.0, 2.0, 1.0], [2.0, 0.0, 1.0], [5.0, 5.0, 1.0]])
    gates = size * np.array([[[1.0, 2.0], [1.0, 1.0], [50.0, 30.0]], [[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    model = Exploitation(Z, gates, [[3.0, 1.0], [2.0, -1.0]])
    bounds = smoothness(model, "squared")
    longest, steepest = root(Fraction(51)), root(max(square(q) for gate in gates for q in gate.T))
    relative = Fraction(gate_matrix_error(3, float(longest), float(steepest))) + Fraction(1, 2**52)
    room = (1 + Fraction(101, 100) * relative) ** 2
    rows = [max(square(z) * square(t[i]) for t in model.factors) for i, z in enumerate(Z)]
    pinned(bounds.paper, 2 * sum(rows, Fraction(0)) / 4 * room, 2.0**-46)
    pinned(bounds.sample, 2 * max(rows) * room, 2.0**-46)
    assert bounds.how == "eigenvalues"
    norm, moved = max(np.linalg.norm(model.dense(j), 2) for j in range(2)), 1.01 * float(relative) * root(total(rows))
    true = (norm + float(moved)) ** 2 / 2
    assert true <= bounds.spectral <= true * (1 + 2.0**-19)
    part = bounds.of_batches(4, 2)
    assert part.paper == bounds.sample
    pinned(part.spectral, min(2 * Fraction(bounds.spectral), Fraction(bounds.sample)), 2.0**-48)
    assert part.spectral < bounds.sample
    assert bounds.step * bounds.spectral <= 1.0 <= bounds.step * bounds.spectral * (1 + 2.0**-50)
    assert bounds.limit * bounds.spectral <= 2.0 <= bounds.limit * bounds.spectral * (1 + 2.0**-50)


def test_spectral_constant_covers_gate_errors_of_the_worst_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    # A norm of a matrix whose entries grow by a share r or shrink by it may grow by more: here by 1.02 r.
    T, r = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 0.0]]), 2.0**-11
    Z = np.array([[-3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 6.0, 1.0]])
    left, values, right = np.linalg.svd((T[:, :, None] * Z[:, None, :]).reshape(3, 6), full_matrices=False)
    signs = np.sign(left[:, :1] * (Z @ right[0].reshape(2, 3).T))
    moved = T * (1.0 + r * signs)
    worst = np.linalg.norm((moved[:, :, None] * Z[:, None, :]).reshape(3, 6), 2)
    assert worst > values[0] * (1.0 + 1.02 * r)
    model = Exploitation(Z, np.zeros((1, 3, 2)), np.ones((1, 2)))
    monkeypatch.setattr(type(model), "factors", [T])
    monkeypatch.setattr(smoothness_module, "gate_matrix_error", lambda *_: r)
    assert 2.0 / 3.0 * worst**2 <= smoothness(model, "squared").spectral


def test_lipschitz_constants_cover_errors_of_unsaturated_gates() -> None:
    # Computed gates are too small by 500 u: the constants are for the exact ones.
    weight = 2.0**700
    model = Exploitation([[2.0**-20, 1.0]], [[[0.49 * 2.0**-23], [-512.5]]], np.full((1, 1), weight))
    with mpmath.workprec(200):
        gate = weight * mpmath.exp(mpmath.mpf(-512.5) + mpmath.mpf(0.49 * 2.0**-43))
        true = 2 * gate**2 * (1 + mpmath.mpf(2) ** -40)
        bounds = smoothness(model, "squared")
        assert float(model.factors[0][0, 0]) < gate * (1 - 400 * mpmath.mpf(u))
        assert true <= bounds.spectral <= bounds.paper <= true * (1 + 2.0**-38)


def test_gates_of_1() -> None:
    Z = np.array([[3e9, 4e9, 1.0], [0.0, 2.0, 1.0]])
    model = Exploitation(Z, 1e9 * np.ones((2, 3, 2)), [[3.0, 1.0], [2.0, -1.0]])
    bounds = smoothness(model, "squared")
    assert bounds.how == "gates of 1"
    pinned(bounds.paper, 10 * total([square(z) for z in Z]), 2.0**-46)
    pinned(bounds.sample, 20 * square(Z[0]), 2.0**-46)


@pytest.mark.parametrize(("n", "m", "h"), [(5, 2, 4), (40, 2, 2), (600, 2, 3), (3, 200, 2)])
@pytest.mark.parametrize("order", [0, 3000])
def test_errors_of_a_verified_norm(n: int, m: int, h: int, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Z, T = (np.random.default_rng(n).integers(1, 9, (n, k)).astype(float) for k in (m, h))
    seen, definite = [], smoothness_module.is_positive_definite
    monkeypatch.setattr(
        smoothness_module,
        "is_positive_definite",
        lambda A, *, error: seen.append((A.copy(), error)) or definite(A, error=error),
    )
    upper, _, how = squared_norm_up(Z, T, order=order)
    frobenius = sum((square(z) * square(t) for z, t in zip(Z, T, strict=True)), Fraction(0))
    count = n + 4 if not order else m + h + 2 if n <= h * m else n + 2
    assert how == ("eigenvalues" if order else "Schur")
    for A, error in seen:
        rest = Fraction(error) - gamma(count) * frobenius
        largest = rest * 2**51  # what was subtracted from
        assert Fraction(upper) * (1 - Fraction(1, 2**10)) <= largest
        assert rest > 0
        if len(seen) == 1:
            pinned(upper, largest * (1 - Fraction(1, 2**20)), 2.0**-10)
        assert A[0, 0] < largest


def test_an_estimate_that_is_too_small_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (2.0**-30, 2.0**-24):
        for factor, accepted in ((0.99, False), (1.01, True)):
            # The first candidate, a millionth and four errors above the estimate, lies at 1 + factor error.
            estimate = (1.0 + factor * error - 4.0 * error) / (1.0 + 2.0**-20)
            monkeypatch.setattr(smoothness_module, "_largest_eigenvalue", lambda G, estimate=estimate: estimate)
            upper, _ = _largest_eigenvalue_up(np.diag([1.0, 0.25]), error)
            assert upper >= 1.0 + error
            assert (upper < 1.0 + 2.0 * error) == accepted
