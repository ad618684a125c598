"""Features that are no features, wherever they are and whenever it shows: an error that names the place, no answer."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.checks.exploration import check_safe_exploration
from alignver.errors import InvalidInput
from alignver.kernel import snapshot
from alignver.progress import listening
from tests.features.features import features


@pytest.fixture
def many_blocks(monkeypatch):
    """Read 100 rows of 9 numbers at a time."""
    monkeypatch.setattr(snapshot, "_BLOCK_BYTES", 100 * 9 * 8)


def mapped(tmp_path, Z):
    np.save(tmp_path / "Z.npy", Z)
    return np.load(tmp_path / "Z.npy", mmap_mode="r")


@pytest.mark.parametrize("method", ["staircase", "gram", "dense"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_number_in_one_block_of_a_file(many_blocks, tmp_path, method, value):
    Z = features(1000, 9).astype(np.float32)
    Z[737, 4] = value
    with pytest.raises(InvalidInput, match=rf"^Z: got {value} at \(737, 4\)"):
        check_safe_exploration(mapped(tmp_path, Z), method=method)
    with pytest.raises(InvalidInput, match=rf"^Z: got {value} at \(737, 4\)"):
        check_safe_exploration((Z[k : k + 30] for k in range(0, 1000, 30)), method=method, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Z.npy"]


def test_constant_that_is_missing_in_one_block(many_blocks, tmp_path):
    Z = features(1000, 9)
    Z[512, -1] = 1.0 + 2.0**-52
    with pytest.raises(InvalidInput, match="in the last column, row 512; needs the constant 1 as its last column"):
        check_safe_exploration(mapped(tmp_path, Z))
    result = check_safe_exploration(mapped(tmp_path, Z), add_constant=True)
    assert "the constant column was added, as requested" in str(result)


@pytest.mark.parametrize("method", ["staircase", "gram"])
def test_file_that_was_cut_short(tmp_path, method):
    Z = mapped(tmp_path, features(1000, 9))
    with (tmp_path / "Z.npy").open("r+b") as file:
        file.truncate(128 + 72 * 600 + 7)
    with pytest.raises(InvalidInput, match="ends in row 600 of 1000; needs the whole file"):
        check_safe_exploration(Z, method=method)


def test_file_that_is_cut_short_on_the_way(tmp_path, monkeypatch):
    """Between the pass over all rows and the blocks: no bus error, whatever thread reads."""
    monkeypatch.setattr(snapshot, "MOST_COPIED", 0)

    class Cutting:
        def start(self, label, total):
            if label == "blocks":
                with (tmp_path / "Z.npy").open("r+b") as file:
                    file.truncate(128 + 72 * 10)

        def advance(self, handle):
            pass

        def finish(self, handle):
            pass

    with listening(Cutting()), pytest.raises(InvalidInput, match=r"ends in row \d+ of 200; needs the whole file"):
        check_safe_exploration(mapped(tmp_path, features(200, 9)))


def test_no_columns():
    for add_constant in (False, True):
        with pytest.raises(InvalidInput, match=r"Z: got shape \(5, 0\); needs a matrix that is not empty"):
            check_safe_exploration(np.ones((5, 0)), add_constant=add_constant)
    with pytest.raises(InvalidInput, match=r"Z: got a block of shape \(5, 0\) at row 0"):
        check_safe_exploration(iter([np.ones((5, 0))]), add_constant=True)
    assert check_safe_exploration(np.ones((1, 1))).measured["width"] == 1
