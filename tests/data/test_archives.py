"""What a zip file declares is held against its size and the memory before anything in it is read."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy
from scipy.io import savemat

from alignver.cli.input_files import names_in, read_matrix, read_npz
from alignver.data import archives, semeion
from alignver.data import image_sets as idx
from alignver.data.image_sets import cifar10, mnist, svhn
from alignver.errors import InvalidInput

A = np.arange(12.0).reshape(3, 4)
TERABYTES = 1 << 42


def forged(path, sizes, *, stored=False):
    """Write a .npz file whose arrays are of the declared numbers of entries and hold next to nothing."""
    np.savez(path, **dict.fromkeys(sizes, A)) if stored else np.savez_compressed(path, **dict.fromkeys(sizes, A))
    with zipfile.ZipFile(path, "a") as archive:
        for entry in archive.infolist():
            entry.file_size = sizes[entry.filename.removesuffix(".npy")]
        archive._didModify = True  # the directory is written again


@pytest.fixture
def unread(monkeypatch):
    """Fail where a member is opened: whatever is refused is refused before that."""

    real = zipfile.ZipFile.open

    def opened(self, name, mode="r", *args, **options):
        assert mode == "w", "a member was opened"
        return real(self, name, mode, *args, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", opened)


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(archives, "available_memory", lambda: 1000)


def test_what_declares_more_than_the_memory_is_not_read(tmp_path, unread):
    forged(tmp_path / "a.npz", {"X": TERABYTES, "Y": 300})
    for read in (
        lambda: read_matrix(f"{tmp_path}/a.npz:X", "J"),
        lambda: read_npz(f"{tmp_path}/a.npz", "d", ("X", "Y")),
    ):
        with pytest.raises(InvalidInput, match="of memory free") as caught:
            read()
        assert "4.4e+03 GB" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_it_is_the_sum_over_what_is_wanted_that_counts(tmp_path, little):
    np.savez(tmp_path / "a.npz", X=np.ones(60), Y=np.ones(30))  # 608 and 368 bytes with their headers of 128
    assert set(read_npz(f"{tmp_path}/a.npz", "data", ("X", "Y"))) == {"X", "Y"}
    np.savez(tmp_path / "b.npz", X=np.ones(60), Y=np.ones(60))
    assert read_matrix(f"{tmp_path}/b.npz:X", "J").shape == (60,)
    with pytest.raises(InvalidInput, match=r"1\.22e-06 GB in all"):
        read_npz(f"{tmp_path}/b.npz", "data", ("X", "Y"))
    with pytest.raises(InvalidInput, match="of memory free"):
        names_in(f"{tmp_path}/b.npz", "--input")


def test_stored_members_are_as_long_as_they_say(tmp_path, unread):
    forged(tmp_path / "a.npz", {"X": 1 << 20}, stored=True)
    with pytest.raises(InvalidInput, match="has two sizes"):
        read_matrix(f"{tmp_path}/a.npz", "J")


@pytest.mark.parametrize("stored", [True, False])
def test_members_that_share_bytes_are_refused(tmp_path, stored, unread):
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
        for name in ("X.npy", "Y.npy"):
            archive.writestr(name, bytes(500))
        first, second = archive.infolist()
        second.header_offset = first.header_offset
    with pytest.raises(InvalidInput, match="overlaps"):
        read_npz(f"{tmp_path}/a.npz", "data", ("X", "Y"))


def test_a_member_that_ends_beyond_the_file_is_refused(tmp_path, unread):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", bytes(500))
        (entry,) = archive.infolist()
        entry.compress_size = entry.file_size = 1 << 20
    with pytest.raises(InvalidInput, match="overlaps"):
        read_matrix(f"{tmp_path}/a.npz", "J")


def test_a_header_that_declares_more_than_its_member_reserves_nothing(tmp_path):
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        for name in ("x_train.npy", "y_train.npy"):
            archive.writestr(name, stream.getvalue())
    with pytest.raises(InvalidInput, match=r"unreadable mnist.npz \(a truncated file"):
        mnist(tmp_path)


def test_image_sets_are_held_to_it_too(tmp_path, unread):
    forged(tmp_path / "semeion.npz", {"x": TERABYTES, "y": 100})
    with pytest.raises(InvalidInput, match=r"unreadable semeion.npz \(arrays of 4.4e\+03 GB"):
        semeion(tmp_path)


def test_a_gzip_file_is_unpacked_to_its_known_size_and_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_COUNTS", {"train": 7})
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="train-images"):
        mnist(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_an_image_is_looked_at_before_it_is_unpacked(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.new("RGB", (3000, 3000)).save(stream, "jpeg")
    content = np.frombuffer(stream.getvalue(), dtype=np.uint8)
    offsets, labels = np.array([0, content.size]), np.array([1])
    np.savez(tmp_path / "cifar10_jpeg.npz", jpeg_train=content, offsets_train=offsets, y_train=labels)
    monkeypatch.setattr(image.Image, "convert", None)
    with pytest.raises(InvalidInput, match=r"an image of \(3000, 3000\)"):
        cifar10(tmp_path)


def test_the_headers_of_svhn_come_before_its_arrays(tmp_path, monkeypatch):
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 4, 5)), "y": np.zeros((5, 1))}, do_compression=True)
    monkeypatch.setattr("scipy.io.loadmat", None)
    with pytest.raises(InvalidInput, match=r"X \(32, 32, 4, 5\)"):
        svhn(tmp_path)
