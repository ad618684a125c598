"""Tiles of a Gram matrix from layer factors: their entries, their errors, and proofs by the tiled factorization."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from alignver.checks.recheck import recheck
from alignver.features.cholesky import row_rank_by_tiles
from alignver.kernel import floats
from alignver.proof.factored_gram import Layer, row_rank_by_factors, scaled_layers
from alignver.results import Verdict

from .layers import claim, exceeds, matrix


def drawn(seed: int, m: int, n: int, T: int, a: int, b: int) -> Layer:
    rng = np.random.default_rng(seed)
    return Layer("w", rng.standard_normal((n, T, a)), rng.standard_normal((m, n, T, b)))


CASES = {
    "vectors": [drawn(0, 1, 7, 1, 4, 5), drawn(1, 1, 7, 1, 2, 2)],
    "outputs": [drawn(0, 3, 4, 1, 4, 3), drawn(1, 3, 4, 1, 3, 2)],
    "pairs of positions": [drawn(0, 2, 4, 2, 90, 9)],
    "columns": [drawn(0, 2, 4, 9, 3, 4), drawn(1, 2, 4, 1, 3, 2)],
    "groups of columns": [drawn(0, 2, 4, 40, 130, 3)],
}


@pytest.mark.parametrize("name", CASES)
def test_every_tile_is_that_of_the_exact_matrix(name: str) -> None:
    layers = CASES[name]
    m, n = layers[0].gradients.shape[:2]
    gram = scaled_layers(layers)
    assert not isinstance(gram, str)
    J = matrix(layers)
    order = [j * n + i for i in range(n) for j in range(m)]  # sample by sample
    scales = [Fraction(2) ** int(e) for e in gram.exponents]
    assert gram.by_outputs().tolist() == [int(gram.exponents[order.index(k)]) for k in range(m * n)]
    exact = [
        [p * q * sum((x * y for x, y in zip(J[r], J[s])), Fraction(0)) for s, q in zip(order, scales)]
        for r, p in zip(order, scales)
    ]
    assert gram.trace >= sum(exact[k][k] for k in range(m * n))
    off = Fraction(gram.relative)
    for rows, columns in (((0, m * n), (0, m * n)), ((1, 5), (2, 7)), ((3, 4), (0, 4)), ((5, 7), (5, 7))):
        tile = gram.tile(slice(*rows), slice(*columns))
        assert tile.shape == (rows[1] - rows[0], columns[1] - columns[0])
        for i, r in enumerate(range(*rows)):
            for k, s in enumerate(range(*columns)):
                size = Fraction(float(np.sqrt(gram.squares[r] * gram.squares[s])))
                assert abs(Fraction(float(tile[i, k])) - exact[r][s]) <= off * size * 2
    np.testing.assert_array_equal(np.tril(gram.lower()), np.tril(gram.tile(slice(0, m * n), slice(0, m * n))))
    np.testing.assert_allclose(gram.diagonal(), gram.lower().diagonal(), rtol=1e-13)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("tile", [1, 3, 1024])
@pytest.mark.parametrize("name", CASES)
def test_a_proof_by_tiles_rechecks_by_tiles(
    name: str, tile: int, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = CASES[name]
    radius = 1e-9 * float(np.sqrt(sum(np.square(x).sum() for x in (layers[0].inputs, layers[0].gradients))))

    def prove(layers, radius):
        return row_rank_by_tiles(layers, radius, tile=tile)

    proof, certificate, inputs = claim(layers, radius, stored=stored, prove=prove)
    assert proof.proved, proof.reason
    assert certificate is not None
    assert proof.s_min > radius
    assert exceeds(matrix(layers), Fraction(proof.s_min))
    assert proof.s_min <= row_rank_by_factors(layers, lambda size: 0.0).s_min
    for width in (2, 1024):
        monkeypatch.setattr(floats, "TILE", width)
        assert recheck(certificate, **inputs).verdict is Verdict.HOLDS


def test_dependent_rows_are_never_proved() -> None:
    layer = drawn(0, 2, 6, 1, 5, 4)
    layer.inputs[4] = layer.inputs[1]
    layer.gradients[:, 4] = layer.gradients[:, 1]
    proof = row_rank_by_tiles([layer], lambda size: 0.0, tile=4)
    assert not proof.proved
    assert "breaks Cholesky at row 8" in proof.reason
    narrow = row_rank_by_tiles([drawn(0, 2, 6, 1, 3, 3)], lambda size: 0.0)
    assert narrow.reason == "12 rows in 9 columns are dependent"


def test_a_ball_beyond_the_smallest_singular_value_is_refused() -> None:
    layers = CASES["outputs"]
    J = np.array([[float(x) for x in row] for row in matrix(layers)])
    smallest, norm = float(np.linalg.svd(J, compute_uv=False)[-1]), float(np.linalg.norm(J))
    sizes: list[float] = []
    assert row_rank_by_tiles(layers, lambda size: sizes.append(size) or 0.1 * smallest, tile=4).proved
    assert norm <= sizes[0] <= norm * (1 + 2.0**-30)
    for radius in (1.1 * smallest, 2.0 * smallest, 1e300):
        assert not row_rank_by_tiles(layers, lambda size, radius=radius: radius, tile=4).proved
