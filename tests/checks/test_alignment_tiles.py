"""Alignment proved through tiles of the Jacobian's Gram matrix: memory, a folder, a killed run, a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alignver import recheck
from alignver.checks import alignment
from alignver.checks.alignment import check_alignment
from alignver.errors import InvalidInput
from alignver.features import cholesky, tiles
from alignver.jacobians import factored_proof
from alignver.jacobians.jacobian_form import gram_first, plan
from alignver.jacobians.prepare import inputs_again
from alignver.progress import Planned, planning
from alignver.results import Rigor, Verdict
from tests.reference import reference_jacobian


def build(n: int = 30, width: int = 24, inputs: int = 5) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(inputs, width), nn.Softplus(), nn.Linear(width, 3)).double()
        return model, torch.randn(n, inputs, dtype=torch.float64), torch.arange(n) % 3


@pytest.fixture
def small_tiles(monkeypatch):
    """Make many tile columns, also of small matrices."""
    monkeypatch.setattr(factored_proof, "_TILED", 0)
    prove = cholesky.row_rank_by_tiles
    monkeypatch.setattr(factored_proof, "row_rank_by_tiles", lambda *args, **more: prove(*args, tile=16, **more))


def verified(result, model, x, y):
    inputs, _, covered = inputs_again(result.certificate, model, x, y, loss="cross_entropy")
    return covered and recheck(result.certificate, **inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize("options", [{"engine": "gram"}, {"engine": "gram", "max_memory": 100_000}])
def test_a_matrix_that_is_large_or_does_not_fit_is_proved_in_tiles(options, monkeypatch):
    model, x, y = build()
    tiled = []
    prove = cholesky.row_rank_by_tiles
    monkeypatch.setattr(
        factored_proof, "row_rank_by_tiles", lambda *args, **more: tiled.append(1) or prove(*args, **more)
    )
    whole = check_alignment(model, x, y, loss="cross_entropy", engine="gram")
    assert not tiled
    if "max_memory" not in options:
        monkeypatch.setattr(factored_proof, "_TILED", 80)
    result = check_alignment(model, x, y, loss="cross_entropy", **options)
    assert tiled
    assert (result.verdict, result.rigor) == (whole.verdict, whole.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    proof = result.measured["proof"]
    smallest = float(torch.linalg.svdvals(reference_jacobian(model, x))[-1])
    assert proof["radius"] < proof["s_min_lower"] <= smallest
    assert proof["radius"] == pytest.approx(whole.measured["proof"]["radius"], rel=1e-9)
    assert verified(result, model, x, y)


def test_what_fits_in_tiles_is_tried_before_products():
    sizes = 5000, 10, 1_797_010
    form = plan(*sizes, memory=14 * 2**30, engine="matrix-free")
    assert plan(*sizes, memory=14 * 2**30).engine == "gram"
    assert gram_first(*sizes, form, memory=14 * 2**30)
    assert not gram_first(*sizes, form, memory=10 * 2**30)
    assert not gram_first(5000, 10, 40_000, form, memory=14 * 2**30)


def test_a_large_matrix_without_a_proof_leads_to_products(monkeypatch):
    model, x, y = build()
    x[1] = x[0] + 1e-12
    monkeypatch.setattr(alignment, "gram_first", lambda *_, **__: True)
    monkeypatch.setattr(alignment, "_LONG", 0.0)
    result = check_alignment(model, x, y, loss="cross_entropy", budget_seconds=0.0, max_memory=150_000)
    assert any("no proof from the Gram matrix" in line for line in result.evidence)
    assert result.plan["engine"] == "matrix-free"


def test_a_folder_keeps_the_tiles(small_tiles, tmp_path):
    model, x, y = build()
    first = check_alignment(model, x, y, loss="cross_entropy", folder=tmp_path)
    assert (first.verdict, first.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert len(list(tmp_path.glob("column_*.npy"))) == 6
    again = check_alignment(model, x, y, loss="cross_entropy", folder=tmp_path)
    assert (again.verdict, again.rigor) == (Verdict.HOLDS, Rigor.NUMERICAL)
    assert any("6 tile columns of the factorization come from the folder" in line for line in again.evidence)
    assert again.certificate.seal == first.certificate.seal
    assert "for a proof: result.certificate.save(PATH), and alignver verify PATH --model, which uses no tiles" in (
        again.next_steps
    )
    assert verified(again, model, x, y)
    with pytest.raises(InvalidInput, match=r"folder: got .* with tiles of another matrix"):
        check_alignment(model, x + 1.0, y, loss="cross_entropy", folder=tmp_path)


def test_options_that_exclude_each_other(tmp_path):
    model, x, y = build()
    for options, argument in (
        ({"folder": tmp_path, "engine": "dense"}, "folder"),
        ({"folder": tmp_path, "method": "svd"}, "engine"),
        ({"folder": tmp_path, "certify": False}, "engine"),
        ({"folder": __file__}, "folder"),
        ({"folder": 3}, "folder"),
        ({"max_memory": 0}, "max_memory"),
        ({"max_memory": 1.5}, "max_memory"),
        ({"client": object()}, "client"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check_alignment(model, x, y, loss="cross_entropy", **options)
        assert caught.value.argument == argument
    assert not list(tmp_path.iterdir())


RUN = """
import sys
from tests.checks.test_alignment_tiles import build
from alignver.features import cholesky, tiles
from alignver.jacobians import factored_proof
from alignver.checks.alignment import check_alignment

prove = cholesky.row_rank_by_tiles
factored_proof.row_rank_by_tiles = lambda *args, **more: prove(*args, tile=70, **more)
model, x, y = build(700, 140, 40)
result = check_alignment(model, x, y, loss="cross_entropy", folder=sys.argv[1])
print(result.verdict, result.rigor, result.certificate.seal)
"""


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path):
    """Kill -9 in the middle of the factorization; the next run uses what is stored and comes to the same claim."""

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], stdout=subprocess.PIPE, text=True)

    running = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/column_00004.npy").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("column_0000[0-3].npy")}
    assert len(stored) == 4
    assert not (tmp_path / "killed/column_00029.npy").exists()
    again, whole = (start(tmp_path / name).communicate()[0].split() for name in ("killed", "whole"))
    assert again[:2] == ["HOLDS", "NUMERICAL"]
    assert whole[:2] == ["HOLDS", "PROOF"]
    assert again[2] == whole[2]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stored.items())


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from alignver.progress import listening
    from tests.features.test_cluster import Killer

    prove = cholesky.row_rank_by_tiles
    monkeypatch.setattr(factored_proof, "row_rank_by_tiles", lambda *args, **more: prove(*args, tile=100, **more))
    model, x, y = build(400, 80, 40)
    here = check_alignment(model, x, y, loss="cross_entropy", folder=tmp_path / "here")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", local_directory=tmp_path
        ) as workers,
        distributed.Client(workers, set_as_default=False) as client,
    ):
        killer = Killer(client, "Cholesky", (3,))
        with listening(killer):
            there = check_alignment(model, x, y, loss="cross_entropy", folder=tmp_path / "there", client=client)
        assert len(killer.killed) == 1
    assert (there.verdict, there.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert there.certificate.seal == here.certificate.seal
    for path in (tmp_path / "here").glob("column_*.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "there" / path.name), np.load(path))


@pytest.mark.parametrize("last", [False, True], ids=["while it is needed", "after its last use"])
def test_a_column_that_another_program_writes_to_is_refused(small_tiles, tmp_path, monkeypatch, last):
    model, x, y = build()
    append = tiles.FolderStore.append

    def written(store, column):
        append(store, column)
        if store.finished == (6 if last else 1):
            path = store.folder / tiles.column_name(0)
            np.save(path, np.load(path) * 0.5)

    monkeypatch.setattr(tiles.FolderStore, "append", written)
    with pytest.raises(InvalidInput, match="changed during the run; needs a folder that no other program writes to"):
        check_alignment(model, x, y, loss="cross_entropy", folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"max_memory": 14 << 30},
            r"gram: N = 50000, .* in tiles: 14\.1 GB, 10\.0 GB of them the tiles\): about .*, 14\.1 GB",
        ),
        ({"max_memory": 5 << 30, "folder": "tiles"}, r"in tiles: 4\.1 GB; on disk 10\.0 GB\): about .*, 4\.1 GB"),
        ({"max_memory": 2 << 30, "folder": "tiles"}, r"4\.1 GB, more than the 2\.1 GB available; on disk 10\.0 GB"),
    ],
)
def test_the_plan_of_many_rows_says_what_the_tiles_need(options, words):
    torch.manual_seed(0)
    model, X = (
        nn.Sequential(nn.Linear(8, 1300), nn.Tanh(), nn.Linear(1300, 1000), nn.Tanh(), nn.Linear(1000, 1)),
        torch.randn(50000, 8),
    )
    with planning(), pytest.raises(Planned, match=words):
        check_alignment(model, X, torch.randn(50000), loss="squared", **options)
