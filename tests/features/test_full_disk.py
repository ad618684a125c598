"""Full disks, by the system's limit of the file size or a small file system: no partial files, finished tiles stay."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess

import numpy as np
import pytest

from alignver.checks.exploration import check_safe_exploration
from alignver.errors import InvalidInput
from alignver.features.cholesky import prove_definite
from alignver.features.products import scaled_gram
from alignver.progress import listening
from tests.features.features import features


@contextlib.contextmanager
def limited():
    """Return a function that limits the size of files until the end of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class AfterSteps:
    """Listens to the progress and acts after some tile columns."""

    def __init__(self, steps, act):
        self.left, self.act = steps, act

    def start(self, label, total):
        return label

    def advance(self, handle):
        if handle == "Cholesky":
            self.left -= 1
            if self.left == 0:
                self.act()

    def finish(self, handle):
        pass


def problem():
    return scaled_gram(features(70, 9), np.random.default_rng(0).standard_normal((9, 16)))


def test_no_tile_fits(tmp_path):
    with limited() as limit:
        limit(6000)
        with pytest.raises(InvalidInput, match=r"folder: got .*cannot be written \(File too large\)"):
            prove_definite(problem(), tile=16, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_tiles_are_kept_on_a_full_disk(tmp_path):
    refused = pytest.raises(InvalidInput, match="the 2 finished tile columns are kept")
    with limited() as limit, listening(AfterSteps(2, lambda: limit(3000))), refused:
        prove_definite(problem(), tile=16, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["column_00000.npy", "column_00001.npy", "tiles.json"]
    stamp = (tmp_path / "column_00001.npy").stat().st_mtime_ns
    assert prove_definite(problem(), tile=16, folder=tmp_path) == prove_definite(problem(), tile=16)
    assert (tmp_path / "column_00001.npy").stat().st_mtime_ns == stamp


def test_manifest_that_does_not_fit(tmp_path):
    """A column is finished when the manifest lists it: one that it does not list is computed again."""
    refused = pytest.raises(InvalidInput, match="tile columns are kept")
    manifest = tmp_path / "tiles.json"
    with limited() as limit, listening(AfterSteps(4, lambda: limit(manifest.stat().st_size))), refused:
        prove_definite(problem(), tile=16, folder=tmp_path)
    assert (tmp_path / "column_00004.npy").exists()
    assert len(json.loads(manifest.read_text())["columns"]) == 4
    assert not list(tmp_path.glob("*.part"))
    assert prove_definite(problem(), tile=16, folder=tmp_path) == prove_definite(problem(), tile=16)


def test_blocks_that_do_not_fit(tmp_path):
    Z = features(60, 9)
    with limited() as limit:
        limit(2000)
        with pytest.raises(InvalidInput, match=r"folder: got row \d+ of Z, which cannot be written"):
            check_safe_exploration((Z[k : k + 20] for k in range(0, 60, 20)), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """Return the folder of a file system of 40 KiB, if this process may mount one."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run([shutil.which("umount"), folder], check=True)


def test_full_file_system(small_disk):
    with pytest.raises(InvalidInput, match=r"No space left on device.* the [1-9] finished tile columns are kept"):
        prove_definite(problem(), tile=10, folder=small_disk)
    names = sorted(path.name for path in small_disk.iterdir())
    assert names[0] == "column_00000.npy"
    assert not [name for name in names if name.endswith(".part")]
    with pytest.raises(InvalidInput, match="row 0 of Z, which cannot be written"):
        check_safe_exploration((features(4000, 9) for _ in range(2)), folder=small_disk)
    assert sorted(path.name for path in small_disk.iterdir()) == names
