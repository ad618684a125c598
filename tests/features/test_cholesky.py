"""The tiled factorization: its bound against the exact s_min, damaged tiles, killed runs, full disks."""

from __future__ import annotations

import concurrent.futures
import ctypes
import errno
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from alignver import atomic
from alignver.errors import InvalidInput
from alignver.features import cholesky, threads, tiles
from alignver.features.cholesky import prove_definite, tiled_shift
from alignver.features.products import dense_phi, scaled_gram
from alignver.proof.cholesky import rump_shift
from tests.features.features import features


def problem(n=70, m=9, h=16, seed=0):
    Z, q = features(n, m), np.random.default_rng(seed).standard_normal((m, h))
    gram = scaled_gram(Z, q)
    assert not isinstance(gram, str)
    return Z, q, gram


@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_bound_is_below_the_exact_smallest_singular_value(tile):
    Z, q, gram = problem()
    definite = prove_definite(gram, tile=tile)
    assert definite.proved, definite.reason
    assert 0.0 < definite.s_min <= np.linalg.svd(dense_phi(Z, q), compute_uv=False)[-1]


def test_singular_matrices_are_never_definite():
    Z, q, _ = problem(h=7)  # 63 columns, 70 rows
    assert not prove_definite(scaled_gram(Z, q), tile=16).proved
    Z, q, _ = problem()
    Z[3] = Z[11]
    assert not prove_definite(scaled_gram(Z, q), tile=16).proved
    assert "breaks Cholesky at row" in prove_definite(scaled_gram(Z, q)).reason


def test_weights_and_ball():
    Z, q, _ = problem()
    w = np.linspace(-2.0, 2.0, 16)
    weighted = prove_definite(scaled_gram(Z, q, w))
    assert 0.0 < weighted.s_min <= np.linalg.svd(dense_phi(Z, q, w), compute_uv=False)[-1]
    ball = prove_definite(scaled_gram(Z, q, None, 1e-9))
    assert 0.0 < ball.s_min <= np.linalg.svd(dense_phi(Z, q), compute_uv=False)[-1]
    far = scaled_gram(Z, q, None, 0.01)
    assert isinstance(far, str) or not prove_definite(far).proved


def test_shift_is_never_above_the_plain_one_by_much():
    assert tiled_shift(100, 1024, 100.0, 1.0) <= rump_shift(100, 100.0, 1.0)
    assert tiled_shift(60000, 1024, 60000.0, 1.0) < rump_shift(60000, 60000.0, 1.0) / 25


def test_factor_multiplies_out():
    _, _, gram = problem()
    store = tiles.MemoryStore()
    assert cholesky.factor_tiles(gram, 1e-9, 16, store) is None
    L = np.zeros((70, 70))
    for k in range(store.finished):
        L[k * 16 :, k * 16 : (k + 1) * 16] = store[k]
    A = gram.tile(slice(0, 70), slice(0, 70)) - 1e-9 * np.eye(70)
    assert np.linalg.norm(np.tril(L) @ np.tril(L).T - A) < 1e-13


def test_killed_run_continues(tmp_path, monkeypatch):
    code = (
        "import os, signal\n"
        "from alignver.features import tiles\n"
        "from tests.features.test_cholesky import problem, prove_definite\n"
        "append = tiles.FolderStore.append\n"
        "def dying(self, column):\n"
        "    append(self, column)\n"
        "    if self.finished == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tiles.FolderStore.append = dying\n"
        f"prove_definite(problem()[2], tile=16, folder={str(tmp_path)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(json.loads((tmp_path / "tiles.json").read_text())["columns"]) == 3
    begun = []
    make = cholesky.make_with_threads
    monkeypatch.setattr(cholesky, "make_with_threads", lambda column: begun.append(column.start) or make(column))
    definite = prove_definite(problem()[2], tile=16, folder=tmp_path)
    assert begun == [48, 64]
    monkeypatch.undo()
    assert definite == prove_definite(problem()[2], tile=16)


def test_damaged_tile_is_computed_again(tmp_path):
    first = prove_definite(problem()[2], tile=16, folder=tmp_path)
    content = bytearray((tmp_path / "column_00001.npy").read_bytes())
    content[-5] ^= 1
    (tmp_path / "column_00001.npy").write_bytes(content)
    assert tiles.FolderStore(tmp_path, json.loads((tmp_path / "tiles.json").read_text())["key"]).finished == 1
    assert prove_definite(problem()[2], tile=16, folder=tmp_path) == first


def test_tiles_of_another_matrix_are_refused(tmp_path):
    prove_definite(problem()[2], tile=16, folder=tmp_path)
    with pytest.raises(InvalidInput, match="tiles of another matrix"):
        prove_definite(problem(seed=1)[2], tile=16, folder=tmp_path)
    (tmp_path / "tiles.json").unlink()
    with pytest.raises(InvalidInput, match="unknown origin"):
        prove_definite(problem()[2], tile=16, folder=tmp_path)


def test_full_disk_keeps_finished_tiles(tmp_path, monkeypatch):
    write = tiles._write_array
    calls = []

    def full(path, array):
        calls.append(1)
        if len(calls) == 3:
            with atomic.writing(path) as stream:
                stream.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, array)

    monkeypatch.setattr(tiles, "_write_array", full)
    with pytest.raises(InvalidInput, match=r"No space left on device.*the 2 finished tile columns are kept"):
        prove_definite(problem()[2], tile=16, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["column_00000.npy", "column_00001.npy", "tiles.json"]
    monkeypatch.undo()
    assert prove_definite(problem()[2], tile=16, folder=tmp_path).proved


def test_a_worker_that_rounds_otherwise(monkeypatch):
    """Tiles of workers are part of the proof: each worker tests its own arithmetic."""
    gram = problem()[2]
    assert prove_definite(gram, tile=16).proved
    upward, first = 0x800, itertools.count()

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, count):
            super().__init__(1, initializer=lambda: next(first) == 2 and ctypes.CDLL(None).fesetround(upward))

    monkeypatch.setattr(threads.concurrent.futures, "ThreadPoolExecutor", Pool)
    refused = prove_definite(gram, tile=16)
    assert (refused.proved, refused.reason) == (False, "this thread does not round to nearest")
