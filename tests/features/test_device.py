"""Tiles in every array namespace, as on a GPU: bounds against the exact s_min, the solve, refused arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.arrays import accelerator, host
from alignver.checks import exploration
from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.features import tiles
from alignver.features.cholesky import factor_tiles, prove_definite
from alignver.features.products import dense_phi, scaled_gram
from alignver.features.tiles import MemoryStore
from alignver.proof.rounding import U
from alignver.results import Rigor, Verdict
from tests.features.features import features


def problem(n=70, m=9, h=16, seed=0):
    Z, q = features(n, m), np.random.default_rng(seed).standard_normal((m, h))
    return Z, q, scaled_gram(Z, q)


@pytest.mark.parametrize("tile", [1, 7, 40, 1000])
def test_bound_is_below_the_exact_smallest_singular_value(backend, tile):
    Z, q, gram = problem()
    definite = prove_definite(gram, tile=tile, place=backend([0.0]))
    assert definite == prove_definite(gram, tile=tile)
    assert 0.0 < definite.s_min <= np.linalg.svd(dense_phi(Z, q), compute_uv=False)[-1]


def test_singular_matrices_are_never_definite(backend):
    Z, q, _ = problem(h=7)  # 63 columns, 70 rows
    assert not prove_definite(scaled_gram(Z, q), tile=16, place=backend([0.0])).proved
    Z, q, _ = problem()
    Z[3] = Z[11]
    broken = prove_definite(scaled_gram(Z, q), tile=4, place=backend([0.0]))
    assert not broken.proved
    assert "breaks Cholesky at row 11" in broken.reason


def test_factor_multiplies_out_within_the_bound(backend, monkeypatch):
    """Entry by entry: |L L^T - A| <= gamma |l_i||l_j|, the products in extended precision."""
    monkeypatch.setattr(tiles, "_ROWS", 24)
    gram, store = problem(n=90, m=9, h=20)[2], MemoryStore()
    tile, total = 40, 2.0**-30
    assert factor_tiles(gram.at(backend([0.0])), total, tile, store, tiles.make_on_device) is None
    L = np.zeros((90, 90))
    for k in range(store.finished):
        L[k * tile :, k * tile : (k + 1) * tile] = host(store[k])
    assert np.array_equal(L, np.tril(L))
    # The tiles as they are assembled there; the diagonal as it is lowered.
    there = gram.at(backend([0.0]))
    A = np.zeros((90, 90))
    for j in range(0, 90, tile):
        for rows in tiles.Column(there, total, tile, j // tile, store).pieces(24):
            A[rows, j : j + tile] = host(there.tile(rows, slice(j, min(j + tile, 90))))
    A.flat[::91] = np.nextafter(A.diagonal() - total, -np.inf)
    wide = L.astype(np.longdouble)
    rest = np.abs(np.tril(wide @ wide.T - A))
    assert np.all(rest <= (2 * tile + 3 + 3) * U * np.tril(np.abs(wide) @ np.abs(wide).T))


def test_substitution_is_backward_stable(backend, rng):
    """On an ill-conditioned factor, where an inverse would fail, the residual is small row by row."""
    lower = np.tril(rng.standard_normal((100, 100))) + np.diag(np.logspace(0, -9, 100))
    given = rng.standard_normal((30, 100))
    X = host(tiles.solve_piece(backend(given.copy()), backend(lower))).astype(np.longdouble)
    residual = np.abs(X @ lower.T.astype(np.longdouble) - given)
    assert np.all(residual <= (100 + 4) * U * (np.abs(X) @ np.abs(lower.T)))


def test_continues_from_a_folder(backend, tmp_path):
    gram = problem()[2]
    place = backend([0.0])
    first = prove_definite(gram, tile=16, folder=tmp_path, place=place)
    content = bytearray((tmp_path / "column_00002.npy").read_bytes())
    content[-5] ^= 1
    (tmp_path / "column_00002.npy").write_bytes(content)
    stamp = (tmp_path / "column_00001.npy").stat().st_mtime_ns
    assert prove_definite(gram, tile=16, folder=tmp_path, place=place) == first
    assert (tmp_path / "column_00001.npy").stat().st_mtime_ns == stamp
    assert prove_definite(gram, tile=16, folder=tmp_path) == first


def test_check_runs_on_the_device_of_the_features(backend, monkeypatch):
    Z = features(60, 9)
    there = backend(Z)
    used = []
    make = tiles.make_on_device
    monkeypatch.setattr(
        tiles, "make_on_device", lambda column: used.append(type(column.gram.factors[0][0])) or make(column)
    )
    if accelerator(there) is None:  # stands for a GPU
        monkeypatch.setattr(exploration, "accelerator", lambda value: value[:0, :])
    result = check_safe_exploration(there, method="gram")
    assert used == [type(there)]
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.certificate.seal == check_safe_exploration(Z, method="gram").certificate.seal
    assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS


def test_only_gpus_are_accelerators():
    import torch

    assert accelerator(np.eye(2)) is None
    assert accelerator(torch.eye(2)) is None
    assert accelerator([[1.0]]) is None


def single(A, B):
    return (A.astype(np.float32) @ B.astype(np.float32)).astype(np.float64)


def fixed_point(A, B):
    """Scale rows of A and columns of B to integers of 53 bits, as emulations by 8-bit integers do."""
    rows = np.exp2(np.frexp(np.abs(A).max(axis=1))[1] - 53.0)[:, None]
    columns = np.exp2(np.frexp(np.abs(B).max(axis=0))[1] - 53.0)
    return (np.rint(A / rows) * rows) @ (np.rint(B / columns) * columns)


def strassen(A, B):
    n, k, m = A.shape[0] // 2, A.shape[1] // 2, B.shape[1] // 2
    a, b, c, d = A[:n, :k], A[:n, k:], A[n:, :k], A[n:, k:]
    e, f, g, h = B[:k, :m], B[:k, m:], B[k:, :m], B[k:, m:]
    p = [a @ (f - h), (a + b) @ h, (c + d) @ e, d @ (g - e), (a + d) @ (e + h), (b - d) @ (g + h), (a - c) @ (e + f)]
    return np.block([[p[4] + p[3] - p[1] + p[5], p[0] + p[1]], [p[2] + p[3], p[0] + p[4] - p[2] - p[6]]])


@pytest.mark.parametrize("product", [single, fixed_point, strassen])
@pytest.mark.parametrize("order", [4, 64])
def test_other_products_are_detected(monkeypatch, product, order):
    class Other(np.ndarray):
        def __matmul__(self, other):
            return product(self.view(np.ndarray), other.view(np.ndarray))

    place = np.empty(0)
    assert tiles.unsupported_arithmetic(place, order) == ""
    monkeypatch.setattr(tiles, "like", lambda values, place: np.asarray(values, dtype=np.float64).view(Other))
    assert "inner products" in tiles.unsupported_arithmetic(place, order)


def test_other_arithmetic_is_detected(monkeypatch):
    monkeypatch.setattr(tiles, "like", lambda values, place: np.asarray(values, dtype=np.float32))
    assert "round to nearest" in tiles.unsupported_arithmetic(np.empty(0), 8)


def test_emulated_products_are_refused(backend, monkeypatch):
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    refused = prove_definite(problem()[2], place=backend([0.0]))
    assert not refused.proved
    assert "may be emulated" in refused.reason
