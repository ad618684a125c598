"""Image sets in the files that torchvision downloads, or in .npz files: MNIST, KMNIST, SVHN, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import gzip
import io
import math
import os
import pathlib
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.data.archives import Dataset, read_npz, unreadable
from alignver.errors import MissingDependency, reading

_SOURCES = {
    "MNIST": ("LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998)", "CC BY-SA 3.0"),
    "KMNIST": ("Clanuwat et al., Deep Learning for Classical Japanese Literature (2018)", "CC BY-SA 4.0"),
}
_COUNTS = {"train": 60000, "t10k": 10000}

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def mnist(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load MNIST from ``mnist.npz`` (x_train, y_train, x_test, y_test) or the files that torchvision downloads.

    Parameters
    ----------
    folder : path
        Holds ``mnist.npz``, or ``MNIST/raw/`` with the four IDX files (gzipped or not), or these files themselves.
    train : bool
        The 60000 training images, or the 10000 test images.

    Returns
    -------
    Dataset
        x (n, 28, 28) uint8, y (n,) uint8 in 0..9.

    Raises
    ------
    InvalidInput
        The folder has no such file, or the file is damaged.
    """
    return _load("MNIST", folder, train)


def kmnist(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load KMNIST from ``KMNIST/raw/`` (or ``kmnist.npz``), as :func:`mnist` does."""
    return _load("KMNIST", folder, train)


def _part(train: bool) -> str:
    return "train" if require.boolean("train", train) else "test"


def _load(name: str, folder: str | os.PathLike[str], train: bool) -> Dataset:
    root, part = require.path("folder", folder), _part(train)
    packed = root / f"{name.lower()}.npz"
    if packed.is_file():
        return Dataset(name, *_read_npz(packed, part), *_SOURCES[name])
    prefix = "train" if train else "t10k"
    for place in (root / name / "raw", root):
        images = _file(place, f"{prefix}-images-idx3-ubyte")
        labels = _file(place, f"{prefix}-labels-idx1-ubyte")
        if images is not None and labels is not None:
            x, y = _idx(images, (_COUNTS[prefix], 28, 28)), _idx(labels, (_COUNTS[prefix],))
            if y.max() > 9:
                raise unreadable(f"{labels.name} with labels up to {y.max()}", "labels in 0..9")
            return Dataset(name, x, y, *_SOURCES[name])
    raise unreadable(
        f"folder={os.fspath(folder)!r} with no {name} in it",
        f"{name.lower()}.npz, or {name}/raw/{prefix}-images-idx3-ubyte and its labels, as torchvision keeps them",
    )


def _file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx(path: pathlib.Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: magic 0 0 8 ndim, big-endian lengths, entries."""
    head = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
    whole = len(head) + math.prod(shape)
    with (
        reading("folder", f"an unreadable {path.name}", "an IDX file"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        # One byte more than expected: a gzip file may unpack to a thousand times its size.
        content = file.read(whole + 1)
    if not content.startswith(head) or len(content) != whole:
        raise unreadable(f"{path.name} that is not an IDX file of shape {shape}", "the complete file")
    return np.frombuffer(content, dtype=np.uint8, offset=len(head)).reshape(shape)


def _read_npz(path: pathlib.Path, part: str) -> Arrays:
    x, y = read_npz(path, (f"x_{part}", f"y_{part}"))
    if x.ndim != 3 or x.shape[1:] != (28, 28) or x.dtype != np.uint8 or y.shape != x.shape[:1]:
        raise unreadable(f"{path.name} with x {x.shape} {x.dtype}", "x (n, 28, 28) uint8 and y (n,)")
    return x, y.astype(np.uint8)


_SVHN_SOURCE = "Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning (2011)"
_SVHN_LICENCE = "non-commercial use only"
_NEED = "X (32, 32, 3, n) uint8 and y (n, 1)"
_MOST = 73257  # images in the larger file


def svhn(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load SVHN (cropped digits) from ``train_32x32.mat`` or ``test_32x32.mat``, the files that torchvision downloads.

    Parameters
    ----------
    folder : path
    train : bool
        The 73257 training images, or the 26032 test images.

    Returns
    -------
    Dataset
        x (n, 32, 32, 3) uint8, y (n,) uint8 in 0..9 (the files have 10 for 0).

    Raises
    ------
    InvalidInput
        The folder has no such file, or the file is damaged.
    """
    from scipy.io import loadmat, whosmat

    path = require.path("folder", folder) / f"{_part(train)}_32x32.mat"
    if not path.is_file():
        raise unreadable(f"folder={os.fspath(folder)!r} with no {path.name}", "SVHN's cropped digits")
    with reading("folder", f"an unreadable {path.name}", "a MATLAB 5 file with X and y"):
        # Reads the headers alone: the arrays are compressed.
        declared = {name: shape for name, shape, _ in whosmat(path)}
        *image, count = declared["X"]
        if image != [32, 32, 3] or declared["y"] != (count, 1) or count > _MOST:
            raise unreadable(f"{path.name} with X {declared['X']} and y {declared['y']}", _NEED)
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"].reshape(-1)
    if x.dtype != np.uint8:
        raise unreadable(f"{path.name} with X {x.dtype}", _NEED)
    return Dataset("SVHN", x.transpose(3, 0, 1, 2), (y % 10).astype(np.uint8), _SVHN_SOURCE, _SVHN_LICENCE)


_SOURCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)"
_LICENCE = "none stated by its author"


def cifar10(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load CIFAR-10 from ``cifar-10-batches-py/``, ``cifar10.npz`` or, re-encoded, ``cifar10_jpeg.npz``.

    ``cifar10.npz`` holds the original pixels as differences modulo 256: ``d_train`` (3, n, 32, 32), ``y_train``, and
    the same for test. Summed along rows and columns they are red less green, green, and blue less green.

    ``cifar10_jpeg.npz`` holds JPEG files end to end (``jpeg_train``, ``offsets_train``, ``y_train``, and the same for
    test): image i is the bytes offsets[i] to offsets[i + 1]. Its pixels are not the original ones, so it is named
    'CIFAR-10 (JPEG)'.

    Parameters
    ----------
    folder : path
        Folder of the files; the first of the three that exists is read.
    train : bool
        The 50000 training images, or the 10000 test images.

    Returns
    -------
    Dataset
        x (n, 32, 32, 3) uint8, y (n,) uint8.

    Raises
    ------
    InvalidInput
        The folder has no such file, or the file is damaged.
    MissingDependency
        JPEG images without Pillow.
    """
    root, part = require.path("folder", folder), _part(train)
    original, packed, jpeg = root / "cifar-10-batches-py", root / "cifar10.npz", root / "cifar10_jpeg.npz"
    if original.is_dir():
        names = [f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"]
        parts = [_batch(original / name, "labels") for name in names]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Dataset("CIFAR-10", x, y, _SOURCE, _LICENCE)
    if packed.is_file():
        return Dataset("CIFAR-10", *_differences(packed, part, 10), _SOURCE, _LICENCE)
    if jpeg.is_file():
        x, y = _jpeg(jpeg, part)
        return Dataset("CIFAR-10 (JPEG)", x, y, f"{_SOURCE}; re-encoded as JPEG", _LICENCE)
    got = f"folder={os.fspath(folder)!r} with no CIFAR-10 in it"
    raise unreadable(got, "cifar-10-batches-py, as torchvision keeps it, cifar10.npz or cifar10_jpeg.npz")


def cifar100(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load CIFAR-100 (fine labels) from ``cifar-100-python/`` or ``cifar100.npz``, as :func:`cifar10` does."""
    root, part = require.path("folder", folder), _part(train)
    original, packed = root / "cifar-100-python" / part, root / "cifar100.npz"
    if original.is_file():
        return Dataset("CIFAR-100", *_batch(original, "fine_labels"), _SOURCE, _LICENCE)
    if packed.is_file():
        return Dataset("CIFAR-100", *_differences(packed, part, 100), _SOURCE, _LICENCE)
    got = f"folder={os.fspath(folder)!r} with no CIFAR-100 in it"
    raise unreadable(got, "cifar-100-python, as torchvision keeps it, or cifar100.npz")


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers, bytes and NumPy arrays alone, so that a file cannot run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions and types that an array's pickle names."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of images")
        if name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]  # under whichever name this NumPy has it
        return super().find_class(module, name)


def _batch(path: pathlib.Path, label: str) -> Arrays:
    need = "a batch as torchvision downloads it"
    with reading("folder", f"an unreadable {path.name}", need):
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="bytes").load()
        x, y = np.asarray(content[b"data"]), np.asarray(content[label.encode()])
    if x.ndim != 2 or x.shape[1] != 3072 or x.dtype != np.uint8 or y.shape != x.shape[:1]:
        raise unreadable(f"an unreadable {path.name} (data of shape {x.shape} {x.dtype})", need)
    return x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y.astype(np.uint8)


def _differences(path: pathlib.Path, part: str, classes: int) -> Arrays:
    """Return the pixels of a file of differences: from row to row, from column to column, and from green."""
    d, y = read_npz(path, (f"d_{part}", f"y_{part}"))
    good = d.ndim == 4 and d.dtype == np.uint8 and d.size and (d.shape[0], *d.shape[2:]) == (3, 32, 32)
    if not good or y.shape != d.shape[1:2] or y.dtype != np.uint8:
        got = f"{path.name} with d {d.shape} {d.dtype} and y {y.shape} {y.dtype}"
        raise unreadable(got, "d (3, n, 32, 32) and y (n,), both uint8")
    if y.max() >= classes:
        raise unreadable(f"{path.name} with labels up to {y.max()}", f"labels in 0..{classes - 1}")
    x = d.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)  # modulo 256, as the differences are
    x[0] += x[1]
    x[2] += x[1]
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)), y


def _jpeg(path: pathlib.Path, part: str) -> Arrays:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("Pillow", "reading JPEG images", "test") from error
    content, offsets, y = read_npz(path, [f"{key}_{part}" for key in ("jpeg", "offsets", "y")])
    with reading("folder", f"an unreadable {path.name}", "JPEG files and offsets"):
        raw = content.tobytes()
        images = []
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            image = Image.open(io.BytesIO(raw[start:stop]))
            if image.size != (32, 32):  # as its header declares, before it is unpacked
                raise unreadable(f"{path.name} with an image of {image.size}", "images of 32 x 32")
            images.append(np.asarray(image.convert("RGB")))
        x = np.stack(images)
    if y.shape != x.shape[:1]:
        raise unreadable(f"{path.name} with {len(y)} labels for {len(x)} images", "a label for each")
    return x, y.astype(np.uint8)
