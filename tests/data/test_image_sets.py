"""Loaders of MNIST, KMNIST, CIFAR and SVHN, from files made here in torchvision's formats."""

from __future__ import annotations

import gzip
import io
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from alignver.data import archives
from alignver.data import image_sets as idx
from alignver.data.image_sets import cifar10, cifar100, kmnist, mnist, svhn
from alignver.errors import InvalidInput


def write_idx(path, array, *, zipped=False):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.tobytes()) if zipped else head + array.tobytes())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("load", "name"), [(mnist, "MNIST"), (kmnist, "KMNIST")])
def test_idx_files(tmp_path, monkeypatch, load, name, zipped):
    monkeypatch.setattr(idx, "_COUNTS", {"train": 7, "t10k": 3})
    rng, suffix = np.random.default_rng(0), ".gz" * zipped
    for part, count in (("train", 7), ("t10k", 3)):
        x, y = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
        write_idx(tmp_path / name / "raw" / f"{part}-images-idx3-ubyte{suffix}", x, zipped=zipped)
        write_idx(tmp_path / name / "raw" / f"{part}-labels-idx1-ubyte{suffix}", y, zipped=zipped)
        data = load(tmp_path, train=part == "train")
        np.testing.assert_array_equal(data.x, x)
        np.testing.assert_array_equal(data.y, y)
        assert data.name == name
    path = tmp_path / name / "raw" / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InvalidInput, match="train-images"):
        load(tmp_path)


def test_mnist_npz(tmp_path):
    x, y = np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    assert len(mnist(tmp_path)) == 4
    assert len(mnist(tmp_path, train=False)) == 2


def batch(rng, count, label):
    return {b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), label: rng.integers(0, 10, count).tolist()}


def test_cifar_batches(tmp_path, rng):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = [batch(rng, 4, b"labels") for _ in range(5)]
    for k, content in enumerate(batches, 1):
        (folder / f"data_batch_{k}").write_bytes(pickle.dumps(content, protocol=2))
    data = cifar10(tmp_path)
    assert data.x.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(data.x[9, :, :, 1].ravel(), batches[2][b"data"][1, 1024:2048])
    assert data.y[9] == batches[2][b"labels"][1]
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(batch(rng, 3, b"fine_labels")))
    assert len(cifar100(tmp_path, train=False)) == 3


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_batch_runs_no_code(tmp_path, capsys):
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(InvalidInput, match="is not allowed in a file of images"):
        cifar100(tmp_path)
    assert capsys.readouterr().out == ""


def test_cifar_as_jpeg(tmp_path):
    image = pytest.importorskip("PIL.Image")
    files = []
    for shade in (10, 200):
        stream = io.BytesIO()
        image.new("RGB", (32, 32), (shade, shade, shade)).save(stream, "jpeg")
        files.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    content = np.frombuffer(b"".join(files), dtype=np.uint8)
    arrays = {"jpeg_train": content, "offsets_train": offsets, "y_train": np.array([1, 2])}
    np.savez(tmp_path / "cifar10_jpeg.npz", **arrays)
    data = cifar10(tmp_path)
    assert data.name == "CIFAR-10 (JPEG)"
    assert abs(int(data.x[1].mean()) - 200) <= 2


def differences(x):
    """Return what _differences of cifar.py undoes, made from images (n, 32, 32, 3)."""
    planes = np.moveaxis(x, 3, 0).copy()
    planes[[0, 2]] -= planes[1]
    for axis in (3, 2):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    return planes


@pytest.mark.parametrize(
    ("load", "name", "folder", "label"),
    [
        (cifar10, "cifar10", "cifar-10-batches-py", b"labels"),
        (cifar100, "cifar100", "cifar-100-python", b"fine_labels"),
    ],
)
def test_cifar_as_differences(tmp_path, rng, load, name, folder, label):
    x = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    x[3], x[4] = 255, 0
    y = np.array([0, 9, 3, 3, 1], dtype=np.uint8)
    d = differences(x)
    assert d.dtype == np.uint8
    np.savez_compressed(tmp_path / f"{name}.npz", d_train=d[:, 1:], y_train=y[1:], d_test=d, y_test=y)
    data = load(tmp_path, train=False)
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y, y)
    assert len(load(tmp_path)) == 4
    # The files of torchvision are taken where they are, and they are the same data.
    (tmp_path / folder).mkdir()
    content = {b"data": x.transpose(0, 3, 1, 2).reshape(5, 3072), label: y.tolist()}
    file = "test_batch" if load is cifar10 else "test"
    (tmp_path / folder / file).write_bytes(pickle.dumps(content, protocol=2))
    assert (load(tmp_path, train=False).sha256, load(tmp_path, train=False).name) == (data.sha256, data.name)
    (tmp_path / f"{name}.npz").unlink()
    assert load(tmp_path, train=False).sha256 == data.sha256


GOOD = {"d_train": np.zeros((3, 4, 32, 32), np.uint8), "y_train": np.zeros(4, np.uint8)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_train": np.zeros((4, 3, 32, 32), np.uint8)}, r"d \(4, 3, 32, 32\) uint8"),
        ({"d_train": np.zeros((3, 4, 32, 31), np.uint8)}, r"d \(3, 4, 32, 31\)"),
        ({"d_train": np.zeros((3, 4, 1024), np.uint8)}, r"d \(3, 4, 1024\)"),
        ({"d_train": np.zeros((3, 4, 32, 32), np.int16)}, "int16"),
        ({"d_train": np.zeros((3, 0, 32, 32), np.uint8), "y_train": np.zeros(0, np.uint8)}, r"\(3, 0, 32, 32\)"),
        ({"y_train": np.zeros(5, np.uint8)}, r"y \(5,\)"),
        ({"y_train": np.zeros((4, 1), np.uint8)}, r"y \(4, 1\)"),
        ({"y_train": np.zeros(4)}, "float64"),
        ({"y_train": np.full(4, 10, np.uint8)}, r"labels up to 10; needs labels in 0\.\.9"),
        ({"d_train": np.array([{}], dtype=object)}, "unreadable cifar10.npz"),
        ({"d_train": None}, "unreadable cifar10.npz"),
    ],
)
def test_differences_that_are_refused(tmp_path, changes, words):
    arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(InvalidInput, match=words):
        cifar10(tmp_path)


def test_damaged_differences_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "cifar100.npz"
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    assert len(cifar100(tmp_path)) == 4
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:60] + bytes(8) + whole[68:]):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"unreadable cifar100\.npz"):
            cifar100(tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(archives, "available_memory", lambda: 10_000)  # 12 kB are declared
    with pytest.raises(InvalidInput, match="of memory free"):
        cifar100(tmp_path)


def test_svhn(tmp_path, rng):
    x, y = rng.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8), np.array([[1], [10], [2], [9], [10]], dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": x, "y": y})
    data = svhn(tmp_path)
    np.testing.assert_array_equal(data.x[3], x[..., 3])
    assert data.y.tolist() == [1, 0, 2, 9, 0]
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 nothing")
    with pytest.raises(InvalidInput, match="test_32x32"):
        svhn(tmp_path, train=False)


@pytest.mark.parametrize("load", [mnist, kmnist, cifar10, cifar100, svhn])
def test_missing(tmp_path, load):
    with pytest.raises(InvalidInput, match="folder="):
        load(tmp_path)
