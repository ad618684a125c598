"""The loaders: what they return, and the files that they refuse."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from sklearn.datasets import make_moons

import alignver.data
from alignver.data import Dataset, semeion, sine_wave, two_moons
from alignver.errors import InvalidInput


@pytest.mark.parametrize("n", [2, 3, 10, 99, 100])
def test_two_moons_are_those_of_scikit_learn(n):
    x, y = make_moons(n, shuffle=False)
    computed = two_moons(n)
    assert np.array_equal(computed.x, x)
    assert np.array_equal(computed.y, y)


def test_sine_wave():
    wave = sine_wave(1000, seed=3)
    assert wave.x.shape == (1000, 1)
    assert np.abs(wave.x).max() <= 1.0
    assert np.array_equal(wave.y, np.sin(20 * wave.x[:, 0]) < 0)
    assert 0.4 < wave.y.mean() < 0.6
    assert sine_wave(5, seed=1).sha256 == sine_wave(5, seed=1).sha256 != sine_wave(5, seed=2).sha256


def test_the_global_random_state_is_not_touched():
    np.random.seed(1)  # noqa: NPY002
    wanted = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    sine_wave(10)
    assert np.random.rand() == wanted  # noqa: NPY002


def test_semeion():
    digits = semeion()
    assert (digits.x.shape, digits.x.dtype, digits.y.shape, digits.y.dtype) == (
        (1593, 16, 16),
        "uint8",
        (1593,),
        "uint8",
    )
    assert set(np.unique(digits.x)) == {0, 1}
    assert np.bincount(digits.y).tolist() == [161, 162, 159, 159, 161, 159, 161, 158, 155, 158]
    assert digits.licence == "CC BY 4.0"
    assert "UCI" in digits.source
    assert digits.sha256 == "d6dba5ef357ac88f677239fdb12f8b1395d8dc4664f41a81205b395ab17c8906"
    assert len(digits) == 1593


def test_semeion_in_both_file_formats(tmp_path):
    digits = semeion()
    np.savez(tmp_path / "semeion.npz", x=digits.x, y=digits.y)
    assert semeion(tmp_path).sha256 == digits.sha256
    (tmp_path / "text").mkdir()
    table = np.hstack([digits.x.reshape(1593, 256), np.eye(10)[digits.y]])
    np.savetxt(tmp_path / "text" / "semeion.data", table, fmt="%.4f")
    assert semeion(str(tmp_path / "text")).sha256 == digits.sha256


def _npz(path: pathlib.Path, **arrays: np.ndarray) -> None:
    np.savez(path / "semeion.npz", **arrays)


def _objects(path: pathlib.Path) -> None:
    _npz(path, x=np.array([{}], dtype=object), y=np.zeros(1593, np.uint8))


def _truncated(path: pathlib.Path) -> None:
    whole = pathlib.Path(alignver.data.__file__).with_name("semeion.npz").read_bytes()
    (path / "semeion.npz").write_bytes(whole[: len(whole) // 2])


BAD = {
    "nothing": (lambda path: None, "no Semeion file; needs semeion.npz or semeion.data"),
    "no archive": (lambda path: (path / "semeion.npz").write_text("hello"), "unreadable semeion.npz"),
    "an empty file": (lambda path: (path / "semeion.npz").write_bytes(b""), "unreadable semeion.npz"),
    "truncated": (_truncated, "unreadable semeion.npz"),
    "pickled": (_objects, "unreadable semeion.npz"),
    "one array in it": (lambda path: _npz(path, x=np.zeros((1593, 16, 16), np.uint8)), "unreadable semeion.npz"),
    "other shapes": (lambda path: _npz(path, x=np.zeros((3, 16, 16), np.uint8), y=np.zeros(3, np.uint8)), r"x \(3, 16"),
    "other entries": (
        lambda path: _npz(path, x=np.full((1593, 16, 16), 255, np.uint8), y=np.zeros(1593, np.uint8)),
        "up to 255",
    ),
    "text of other width": (lambda path: (path / "semeion.data").write_text("1 0 1\n"), "1 x 3 numbers"),
    "ragged text": (
        lambda path: (path / "semeion.data").write_text("1 0 1\n1 0\n"),
        "semeion.data, which is not a table of numbers",
    ),
    "words": (
        lambda path: (path / "semeion.data").write_text("a b\n"),
        "semeion.data, which is not a table of numbers",
    ),
    "other numbers": (
        lambda path: np.savetxt(path / "semeion.data", np.full((1593, 266), 0.5), fmt="%.1f"),
        "other entries",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_refused(name, tmp_path):
    prepare, words = BAD[name]
    prepare(tmp_path)
    with pytest.raises(InvalidInput, match=words):
        semeion(tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: two_moons(1), "n=1"),
        (lambda: two_moons(2.0), "n=2.0"),
        (lambda: sine_wave(0), "n=0"),
        (lambda: sine_wave(True), "n=True"),
        (lambda: sine_wave(3, seed=-1), "seed=-1"),
        (lambda: sine_wave(3, seed=None), "seed=None"),
        (lambda: semeion("no such folder"), "folder='no such folder'"),
    ],
)
def test_arguments_that_are_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()


def test_a_dataset_is_frozen_and_knows_its_content():
    x, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    data = Dataset("three", x, y, "by hand", "none")
    with pytest.raises(ValueError, match="read-only"):
        data.x[0, 0] = 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "four"
    x[0, 0] = 7.0  # the caller's array is still the caller's
    assert data.x[0, 0] == 0.0
    part = data.take([2, 0])
    assert (part.y.tolist(), part.x[:, 0].tolist()) == ([0, 0], [4.0, 0.0])
    assert part.sha256 != data.sha256 == data.take([0, 1, 2]).sha256
    with pytest.raises(InvalidInput, match="one row for each row of x"):
        Dataset("bad", x, y[:2], "", "")
