"""Rows from arrays, mapped files and generators: equal numbers, and errors that name the cause."""

from __future__ import annotations

import errno
import tempfile

import numpy as np
import pytest
import torch

from alignver.arrays import digest
from alignver.errors import InvalidInput
from alignver.features.rows import digest_rows, directions, open_rows, scan_rows
from tests.features.features import features


@pytest.fixture
def Z():
    return features(50, 6).astype(np.float32)


def sources(Z, tmp_path):
    np.save(tmp_path / "Z.npy", Z)
    return {
        "array": Z,
        "fortran": np.asfortranarray(Z),
        "mapped": np.load(tmp_path / "Z.npy", mmap_mode="r"),
        "part of a mapping": np.load(tmp_path / "Z.npy", mmap_mode="r")[:],
        "blocks": (Z[start : start + 7] for start in range(0, 50, 7)),
    }


def test_every_source_gives_the_same_rows(Z, tmp_path):
    wide = Z.astype(np.float64)
    order = np.array([49, 3, 4, 5, 0])
    for name, source in sources(Z, tmp_path).items():
        rows = open_rows(source)
        assert (rows.n, rows.m, rows.dtype) == (50, 6, "float32"), name
        np.testing.assert_array_equal(rows.read(3, 11), wide[3:11], err_msg=name)
        np.testing.assert_array_equal(rows.take(order), wide[order], err_msg=name)
        np.testing.assert_array_equal(rows.take(np.sort(order)), wide[np.sort(order)], err_msg=name)
        assert digest_rows(rows)["sha256"] == digest(wide)
        rows.close()


def test_added_constant(Z, tmp_path):
    rows = open_rows(Z[:, :-1], add_constant=True)
    assert rows.m == 6
    assert np.all(rows.read(0, 50)[:, -1] == 1.0)
    assert scan_rows(rows, directions(rows, 2, 0)).record["sha256"] == digest(Z[:, :-1].astype(np.float64))


def test_projection_errors_are_bounds(Z):
    rows = open_rows(Z)
    V = directions(rows, 3, 1)
    scan = scan_rows(rows, V)
    assert np.all(V[-1] == 0.0)
    exact = Z.astype(np.longdouble) @ V.astype(np.longdouble)
    assert np.all(np.abs(exact - scan.projections).max(axis=0) <= scan.errors)
    assert np.all(scan.squares >= (Z.astype(np.longdouble) ** 2).sum(axis=1))


def test_truncated_file(Z, tmp_path):
    np.save(tmp_path / "Z.npy", Z)
    rows = open_rows(np.load(tmp_path / "Z.npy", mmap_mode="r"))
    with (tmp_path / "Z.npy").open("r+b") as file:
        file.truncate(128 + 24 * 30 + 5)
    np.testing.assert_array_equal(rows.read(0, 30), Z[:30])
    with pytest.raises(InvalidInput, match="ends in row 30 of 50"):
        rows.read(0, 50)
    with pytest.raises(InvalidInput, match="ends in row 40 of 50"):
        rows.take(np.array([2, 40]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_named_by_row(Z, tmp_path, value):
    Z[37, 2] = value
    for source in sources(Z, tmp_path).values():
        rows = open_rows(source)
        with pytest.raises(InvalidInput, match=r"at \(37, 2\)"):
            scan_rows(rows, np.zeros((6, 1)))


def test_missing_constant_is_named(Z):
    Z[5, -1] = 2.0
    with pytest.raises(InvalidInput, match=r"2 in the last column, row 5; .*add_constant=True"):
        scan_rows(open_rows(Z), np.zeros((6, 1)))
    with pytest.raises(InvalidInput, match="column 0 holds it"):
        scan_rows(open_rows(features(9, 4)[:, ::-1]), np.zeros((4, 1)))


def test_bad_blocks():
    with pytest.raises(InvalidInput, match="no blocks"):
        open_rows(iter([]))
    with pytest.raises(InvalidInput, match=r"shape \(2, 4\) at row 3; needs blocks with 3 columns"):
        open_rows(iter([np.ones((3, 3)), np.ones((2, 4))]))
    with pytest.raises(InvalidInput, match="needs real numbers"):
        open_rows(iter([np.array([["a", "b"]])]))
    with pytest.raises(InvalidInput, match="Z: got a masked array"):
        open_rows(iter([np.ma.masked_array(np.ones((2, 2)))]))
    with pytest.raises(InvalidInput, match="Z: got"):
        open_rows(iter([[[1.0], [1.0, 2.0]]]))


def test_blocks_of_several_dtypes():
    """They are stored in the dtype of the first block; a block that this would round is refused."""
    narrow, wide = np.full((2, 3), 0.5, np.float32), np.full((2, 3), 0.1)
    rows = open_rows(iter([wide, narrow, [[1, 2, 3]], torch.full((1, 3), 0.25, dtype=torch.bfloat16)]))
    assert rows.dtype == "float64"
    np.testing.assert_array_equal(rows.read(0, 6), [*wide, *narrow, [1, 2, 3], [0.25] * 3])
    with pytest.raises(
        InvalidInput, match=r"block of float64 .* at row 2; needs blocks with 3 columns, none wider than .* float32"
    ):
        open_rows(iter([narrow, wide]))
    with pytest.raises(InvalidInput, match="which float64 holds exactly"):
        open_rows(iter([np.full((2, 3), 2**60 + 1)]))


def test_folder_that_does_not_exist(Z, tmp_path):
    with pytest.raises(InvalidInput, match=r"folder: got .*nowhere, which cannot be written"):
        open_rows(iter([Z]), folder=tmp_path / "nowhere")


def test_full_disk(Z, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full(temporary(**options)))
    with pytest.raises(InvalidInput, match=r"row 0 of Z, which cannot be written \(No space left"):
        open_rows(iter([Z]))
