"""SVHN: house numbers, colour images of 32 x 32 pixels."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from alignver.data.dataset import Dataset
from alignver.errors import InvalidInput, reading

__all__ = ["svhn"]

_SOURCE = "Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning (2011)"
_LICENCE = "non-commercial use only"
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
        The folder has no such file, or the file is not what it should be.
    """
    from scipy.io import loadmat, whosmat

    path = pathlib.Path(folder) / f"{'train' if train else 'test'}_32x32.mat"
    if not path.is_file():
        raise InvalidInput("folder", f"folder={os.fspath(folder)!r} with no {path.name}", "SVHN's cropped digits")
    with reading("folder", f"an unreadable {path.name}", "a MATLAB 5 file with X and y"):
        declared = {name: shape for name, shape, _ in whosmat(path)}  # of headers alone: the arrays are compressed
        *image, count = declared["X"]
        if image != [32, 32, 3] or declared["y"] != (count, 1) or count > _MOST:
            raise InvalidInput("folder", f"{path.name} with X {declared['X']} and y {declared['y']}", _NEED)
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"].reshape(-1)
    if x.dtype != np.uint8:
        raise InvalidInput("folder", f"{path.name} with X {x.dtype}", _NEED)
    return Dataset("SVHN", x.transpose(3, 0, 1, 2), (y % 10).astype(np.uint8), _SOURCE, _LICENCE)
