"""MNIST and KMNIST: handwritten digits and Kuzushiji, 28 x 28 pixels."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.data.archives import read_npz
from alignver.data.dataset import Dataset
from alignver.errors import InvalidInput, reading

__all__ = ["kmnist", "mnist"]

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
        The folder has no such file, or the file is not what it should be.
    """
    return _load("MNIST", folder, train)


def kmnist(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load KMNIST from ``KMNIST/raw/`` (or ``kmnist.npz``), as :func:`mnist` does."""
    return _load("KMNIST", folder, train)


def _load(name: str, folder: str | os.PathLike[str], train: bool) -> Dataset:
    root = pathlib.Path(folder)
    packed = root / f"{name.lower()}.npz"
    if packed.is_file():
        return Dataset(name, *_read_npz(packed, "train" if train else "test"), *_SOURCES[name])
    part = "train" if train else "t10k"
    for place in (root / name / "raw", root):
        images = _found(place, f"{part}-images-idx3-ubyte")
        labels = _found(place, f"{part}-labels-idx1-ubyte")
        if images is not None and labels is not None:
            x, y = _idx(images, (_COUNTS[part], 28, 28)), _idx(labels, (_COUNTS[part],))
            if y.max() > 9:
                raise InvalidInput("folder", f"{labels.name} with labels up to {y.max()}", "labels in 0..9")
            return Dataset(name, x, y, *_SOURCES[name])
    raise InvalidInput(
        "folder",
        f"folder={os.fspath(folder)!r} with no {name} in it",
        f"{name.lower()}.npz, or {name}/raw/{part}-images-idx3-ubyte and its labels, as torchvision keeps them",
    )


def _found(place: pathlib.Path, name: str) -> pathlib.Path | None:
    return next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)


def _idx(path: pathlib.Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: magic 0 0 8 ndim, big-endian lengths, entries."""
    head = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
    whole = len(head) + math.prod(shape)
    with (
        reading("folder", f"an unreadable {path.name}", "an IDX file"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        content = file.read(whole + 1)  # a byte too many is seen: a gzip file may unpack to a thousand times its size
    if not content.startswith(head) or len(content) != whole:
        raise InvalidInput("folder", f"{path.name} that is no IDX file of shape {shape}", "the file whole")
    return np.frombuffer(content, dtype=np.uint8, offset=len(head)).reshape(shape)


def _read_npz(path: pathlib.Path, part: str) -> Arrays:
    x, y = read_npz(path, (f"x_{part}", f"y_{part}"))
    if x.ndim != 3 or x.shape[1:] != (28, 28) or x.dtype != np.uint8 or y.shape != x.shape[:1]:
        raise InvalidInput("folder", f"{path.name} with x {x.shape} {x.dtype}", "x (n, 28, 28) uint8 and y (n,)")
    return x, y.astype(np.uint8)
