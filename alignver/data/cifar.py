"""CIFAR-10 and CIFAR-100: colour images of 32 x 32 pixels, in torchvision's files, as differences, or as JPEG."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.data.archives import read_npz
from alignver.data.dataset import Dataset
from alignver.errors import InvalidInput, MissingDependency, reading

__all__ = ["cifar10", "cifar100"]

_SOURCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)"
_LICENCE = "none stated by its author"

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


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
        Where the files are; the first of the three that is there is taken.
    train : bool
        The 50000 training images, or the 10000 test images.

    Returns
    -------
    Dataset
        x (n, 32, 32, 3) uint8, y (n,) uint8.

    Raises
    ------
    InvalidInput
        The folder has no such file, or the file is not what it should be.
    MissingDependency
        JPEG images without Pillow.
    """
    root, part = pathlib.Path(folder), "train" if train else "test"
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
    raise InvalidInput("folder", got, "cifar-10-batches-py, as torchvision keeps it, cifar10.npz or cifar10_jpeg.npz")


def cifar100(folder: str | os.PathLike[str], *, train: bool = True) -> Dataset:
    """Load CIFAR-100 (fine labels) from ``cifar-100-python/`` or ``cifar100.npz``, as :func:`cifar10` does."""
    root, part = pathlib.Path(folder), "train" if train else "test"
    original, packed = root / "cifar-100-python" / part, root / "cifar100.npz"
    if original.is_file():
        return Dataset("CIFAR-100", *_batch(original, "fine_labels"), _SOURCE, _LICENCE)
    if packed.is_file():
        return Dataset("CIFAR-100", *_differences(packed, part, 100), _SOURCE, _LICENCE)
    got = f"folder={os.fspath(folder)!r} with no CIFAR-100 in it"
    raise InvalidInput("folder", got, "cifar-100-python, as torchvision keeps it, or cifar100.npz")


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers, bytes and NumPy arrays, and nothing else: no code of a file's choice is run."""

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
        """Return one of the few things that an array's pickle names."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")
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
        raise InvalidInput("folder", f"an unreadable {path.name} (data of shape {x.shape} {x.dtype})", need)
    return x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y.astype(np.uint8)


def _differences(path: pathlib.Path, part: str, classes: int) -> Arrays:
    """Return the pixels that are kept as differences: from row to row, from column to column, and from green."""
    d, y = read_npz(path, (f"d_{part}", f"y_{part}"))
    good = d.ndim == 4 and d.dtype == np.uint8 and d.size and (d.shape[0], *d.shape[2:]) == (3, 32, 32)
    if not good or y.shape != d.shape[1:2] or y.dtype != np.uint8:
        got = f"{path.name} with d {d.shape} {d.dtype} and y {y.shape} {y.dtype}"
        raise InvalidInput("folder", got, "d (3, n, 32, 32) and y (n,), both uint8")
    if y.max() >= classes:
        raise InvalidInput("folder", f"{path.name} with labels up to {y.max()}", f"labels in 0..{classes - 1}")
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
            if image.size != (32, 32):  # what its header declares, before it is unpacked
                raise InvalidInput("folder", f"{path.name} with an image of {image.size}", "images of 32 x 32")
            images.append(np.asarray(image.convert("RGB")))
        x = np.stack(images)
    if y.shape != x.shape[:1]:
        raise InvalidInput("folder", f"{path.name} with {len(y)} labels beside {len(x)} images", "a label for each")
    return x, y.astype(np.uint8)
