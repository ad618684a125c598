"""Every constant of the bounds behind proofs through layer factors, exact proofs and balls, from both sides."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import linalg

from alignver.proof import cholesky
from alignver.proof.cholesky import factor_shifted
from alignver.proof.decision import Ball
from alignver.proof.exact import integer_column, mantissas, to_integers
from alignver.proof.factored_gram import FactoredRank, Layer, row_lengths, row_rank_by_factors
from tests.exact import OMEGA, U, gamma, pinned, pinned_below, root, square

u = 2.0**-53
ROOM = 1 + Fraction(1, 2**10)


def roundings(layers: list[Layer]) -> int:
    """The most within a share, and one for each addition of a share, and four to spare."""
    most, additions = 0, 0
    for layer in layers:
        (_, T, a), b = layer.inputs.shape, layer.gradients.shape[3]
        groups = max(math.ceil(b / max(1, 256 // a)), math.ceil(a / max(1, 256 // b)))
        most = max(most, a + b + 1 if T == 1 else a + b + T + 257)
        additions += 1 if T == 1 else max(T, groups)
    return most + additions + 4


def lengths(layer: Layer, exponents: np.ndarray) -> list[Fraction]:
    """The sums over positions of |a| |b|, rows scaled."""
    (n, T, _), m = layer.inputs.shape, layer.gradients.shape[0]
    return [
        sum((root(square(layer.inputs[i, t]) * square(layer.gradients[j, i, t])) for t in range(T)), Fraction(0))
        * Fraction(2) ** int(exponents[j * n + i])
        for j in range(m)
        for i in range(n)
    ]


def constants(layers: list[Layer], exponents: np.ndarray) -> tuple[Fraction, Fraction, Fraction]:
    """The margin, what forming columns changes, and the Frobenius norm's upper bound."""
    norms = [lengths(layer, exponents) for layer in layers]
    N, terms, spread = (
        len(norms[0]),
        roundings(layers),
        [sum(p * p for p in row) for row in zip(*norms, strict=True)],
    )
    trace, largest = sum(spread, Fraction(0)), max(spread)
    tiny = N * Fraction(terms) ** 4 * OMEGA * 2**802
    g = gamma(N + 2)
    backward = g / (1 - g) * trace * ROOM + 8 * N * (N + 2 + largest * ROOM) * OMEGA
    margin = 2 * (gamma(terms) * trace * ROOM + tiny + backward) + 32 * U * trace
    lost = N * sum(layer.columns * layer.inputs.shape[1] for layer in layers) * OMEGA * 2**400
    for layer, p in zip(layers, norms, strict=True):
        T = layer.inputs.shape[1]
        if T > 1:
            lost += gamma(T + 3) * root(sum((x * x for x in p), Fraction(0))) + N * layer.columns * T * OMEGA
    return margin, lost, tiny


def layer(seed: int, m: int, n: int, T: int, a: int, b: int, scale: float = 1.0) -> Layer:
    rng = np.random.default_rng(seed)
    return Layer("w", scale * rng.standard_normal((n, T, a)), scale * rng.standard_normal((m, n, T, b)))


UNEVEN = Layer(
    "u", layer(9, 2, 4, 1, 9, 9).inputs, layer(9, 2, 4, 1, 9, 9).gradients * 2.0 ** np.r_[0, 30].reshape(2, 1, 1, 1)
)
CASES = {
    "vectors": [layer(0, 1, 3, 1, 4, 5), layer(1, 1, 3, 1, 2, 2)],
    "positions": [layer(0, 2, 3, 3, 4, 3), layer(1, 2, 3, 1, 3, 2)],
    "wide": [layer(0, 1, 3, 2, 300, 2)],
    "many groups": [layer(0, 1, 2, 2, 2, 700)],
    "long sums": [layer(0, 1, 2, 1, 6000, 1, 2.0**-30)],
    "large": [layer(0, 1, 3, 2, 4, 5, 2.0**120)],
    "small": [layer(0, 1, 3, 2, 4, 5, 2.0**-120)],
    "uneven": [UNEVEN],
}


@pytest.mark.parametrize("name", CASES)
def test_constants_of_a_proof_through_factors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, seen = CASES[name], []

    def factor(A: np.ndarray, shift: float) -> np.ndarray | None:
        computed = factor_shifted(A, shift)
        seen.append((shift, computed is not None, A.copy()))
        return computed

    monkeypatch.setattr(cholesky, "factor_shifted", factor)
    sizes: list[float] = []
    proof = row_rank_by_factors(layers, lambda size: sizes.append(size) or 0.0)
    assert proof.proved, proof.reason
    assert proof.exponents is not None
    computed = proof.constants
    margin, lost, tiny = constants(layers, proof.exponents)
    pinned(computed["margin"], margin, 2.0**-30)
    assert seen[0][0] == computed["margin"]
    pinned(computed["lost"], lost, 2.0**-30)
    shift = Fraction(computed["shift"])
    assert shift > 0
    assert any(ok and Fraction(taken) >= margin + shift for taken, ok, _ in seen)
    top = Fraction(2) ** int(proof.exponents.max())
    pinned_below(computed["s_min"], (root(shift) - lost) / top, 2.0**-45)
    m, n = layers[0].gradients.shape[:2]  # the matrix has its rows sample by sample
    diagonal = [Fraction(float(x)) for x in seen[0][2].diagonal().reshape(n, m).T.ravel()]
    squares = [
        sum(p * p for p in row) for row in zip(*(lengths(each, proof.exponents) for each in layers), strict=True)
    ]
    squares = [
        ((x + gamma(roundings(layers)) * ROOM * s) * (1 + Fraction(1, 2**40)) + tiny) / Fraction(4) ** int(e)
        for x, s, e in zip(diagonal, squares, proof.exponents, strict=True)
    ]
    size = root(sum(squares, Fraction(0))) + lost / Fraction(2) ** int(proof.exponents.min())
    pinned(sizes[0], size, 2.0**-46)
    # The matrix itself is no larger, and a little less.
    J = np.concatenate([formed(each) for each in layers], axis=1)
    assert np.linalg.norm(J) <= sizes[0] <= np.linalg.norm(J) * (1 + 2.0**-32)
    assert computed["s_min"] <= np.linalg.svd(J, compute_uv=False)[-1]


def formed(layer: Layer) -> np.ndarray:
    return np.einsum("ita,jitb->jiab", layer.inputs, layer.gradients).reshape(
        layer.gradients.shape[0] * layer.inputs.shape[0], -1
    )


def test_lengths_of_rows() -> None:
    for T in (1, 3, 1000):
        one = row_lengths(np.tile([3.0, 4.0], (1, T, 1)), np.tile([5.0, 12.0], (1, T, 1)))
        pinned(float(one[0]), 65 * T * (1 + (T + 8) * 2 * U), 2.0**-49)
        none = row_lengths(np.zeros((1, T, 1)), np.zeros((1, T, 1)))
        pinned(float(none[0]), 2 * T * OMEGA, 2.0**-39)


@pytest.mark.parametrize("name", ["vectors", "positions", "uneven"])
def test_a_ball_ends_where_the_smallest_singular_value_is_proved(name: str) -> None:
    layers = CASES[name]
    s_min = row_rank_by_factors(layers, lambda size: 0.0).s_min
    assert row_rank_by_factors(layers, lambda size: s_min * (1 - 2.0**-19)).proved
    assert not row_rank_by_factors(layers, lambda size: s_min * (1 - 2.0**-21)).proved


@pytest.mark.parametrize("a", [2, 3000])
@pytest.mark.parametrize("size", [1.0, 2.0**-40])
def test_factors_are_definite_as_far_as_the_margin_says(a: int, size: float) -> None:
    # J J^T = size^2 (1, 1; 1, 1 + e^2): definite while e^2 > 2 (margin + the least shift that is tried).
    def proof(e: float) -> FactoredRank:
        inputs = np.zeros((2, 1, a))
        inputs[:, 0, 0], inputs[1, 0, 1] = size, size * e
        return row_rank_by_factors([Layer("w", inputs, np.ones((1, 2, 1, 1)))], lambda _: 0.0)

    inputs = np.zeros((2, 1, a))
    inputs[:, 0, 0] = size
    margin, _, _ = constants([Layer("w", inputs, np.ones((1, 2, 1, 1)))], np.zeros(2, dtype=int))
    need = 2 * margin / Fraction(size) ** 2
    assert not proof(math.sqrt(0.93 * need)).constants
    computed = proof(math.sqrt(1.2 * need))
    assert computed.constants or computed.proved
    assert computed.s_min <= size * math.sqrt(0.6 * need)


# Exact proofs


def test_bits_of_a_minor_are_hadamards() -> None:
    for n, b in itertools.product((2, 4, 8, 16), (20, 53)):
        A = linalg.hadamard(n) * float(2**b - 1)  # the largest determinant that entries of b bits can have
        integers = to_integers(A)
        determinant = (2**b - 1) ** n * n ** (n // 2)
        bits = integers.minor_bits(n)
        assert determinant.bit_length() <= bits <= determinant.bit_length() + 2
    rng = np.random.default_rng(0)
    for d in (1, 3, 5, 7, 100):
        integers = to_integers(rng.integers(1, 2**30, (6, d)) * 2.0 ** rng.integers(0, 20, (6, 1)))
        for size in range(1, 7):
            rows = sorted((max(abs(x) for x in row).bit_length() for row in integers.rows), reverse=True)[:size]
            product = math.prod(4**bits * max(2, d) for bits in rows)
            least = next(k for k in itertools.count() if 4**k >= product)
            assert integers.minor_bits(size) == least + 1


def test_a_minor_that_vanishes_modulo_primes_is_found_by_the_next() -> None:
    exact = pytest.importorskip("alignver.proof.exact")
    pytest.importorskip("flint")
    first = list(itertools.islice(exact.primes(), 4))
    blocks = [np.array([[1.0, 1.0], [-float(p % 4096), float(p - p % 4096)]]) for p in first]  # determinants p
    for count in (1, 2, 3):
        A = linalg.block_diag(*blocks[:count])
        integers = to_integers(A)
        for prime in first[:count]:
            assert exact.profile(integers, prime).rank == 2 * count - 1
        assert exact.vanishing_primes(integers, 2 * count - 1, iter(first)) is None
        # A minor that is nought needs as many primes as Hadamard's bound has bits for, and no more.
        A[0] = A[1]
        used = exact.vanishing_primes(to_integers(A), 2 * count - 1, iter(first))
        assert used is not None
        bits = to_integers(A).minor_bits(2 * count) + 1
        assert 61 * (len(used) - 1) <= bits < 61 * len(used)
        assert math.prod(used) > 2**bits


def test_primes_are_those_below_2_to_the_62() -> None:
    exact = pytest.importorskip("alignver.proof.exact")
    flint = pytest.importorskip("flint")
    computed = list(itertools.islice(exact.primes(), 5))
    assert computed == [p for p in range(2**62 - 1, computed[-1] - 1, -1) if flint.fmpz(p).is_prime()]


def test_integers_are_the_floats() -> None:
    rng = np.random.default_rng(0)
    A = np.ldexp(rng.integers(-(2**53), 2**53, (5, 4)).astype(float), rng.integers(-1090, 900, (5, 4)))
    A[0, 0], A[1, 1], A[2, 2] = 0.0, 5e-324, -(2.0**-1022)
    m, e = mantissas(A)
    integers = to_integers(A)
    column, power = integer_column(integers, A[:, 3])
    for i in range(5):
        for j in range(4):
            value = Fraction(float(A[i, j]))
            assert int(m[i, j]) * Fraction(2) ** int(e[i, j]) == value
            scale = Fraction(2) ** int(integers.row_exponents[i] + integers.column_exponents[j])
            assert integers.rows[i][j] * scale == value
        assert column[i] * Fraction(2) ** (int(integers.row_exponents[i]) + power) == Fraction(float(A[i, 3]))
        assert integers.bits[i] == max(abs(x).bit_length() for x in integers.rows[i])


# Balls


def test_radii_of_balls_are_attained() -> None:
    pinned(Ball(entrywise=0.3).radius((4, 9)), Fraction(0.3) * 6, 2.0**-48)  # all entries 0.3
    pinned(Ball(entrywise=np.full((4, 9), 0.3)).radius((4, 9)), Fraction(0.3) * 6, 2.0**-46)
    pinned(Ball(entrywise=np.diag([0.3, 0.2, 0.3])).radius((3, 3)), Fraction(0.3), 2.0**-46)
    pinned(Ball(entrywise=np.array([[3.0, 4.0]])).radius((1, 2)), Fraction(5), 2.0**-46)
    assert Ball(norm=0.3).radius((4, 9)) == 0.3


def test_scaled_balls_are_attained() -> None:
    exponents = np.array([3, -2])
    assert Ball(norm=0.3).scaled(exponents).norm == 2.4
    assert Ball(entrywise=0.3).scaled(exponents).entrywise == 2.4
    scaled = Ball(entrywise=np.array([[0.3, 0.0], [5e-324, 0.7]])).scaled(exponents).entrywise
    assert isinstance(scaled, np.ndarray)
    pinned(float(scaled[0, 0]), 8 * Fraction(0.3), 2.0**-51)
    pinned(float(scaled[1, 1]), Fraction(0.7) / 4, 2.0**-51)
    assert scaled[0, 1] == 0.0
    assert scaled[1, 0] == 5e-324
    assert Ball(norm=5e-324).scaled(np.array([-5, -9])).norm == 5e-324
