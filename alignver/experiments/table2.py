"""Table 2 of the paper: safe exploration of a ResNet-18 on image sets, at the paper's width and at the smallest one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignver.checks.exploration import check_safe_exploration
from alignver.data.cifar import cifar10, cifar100
from alignver.data.dataset import Dataset
from alignver.data.digits import semeion
from alignver.data.mnist import kmnist, mnist
from alignver.data.svhn import svhn
from alignver.errors import InvalidInput
from alignver.experiments.resnet18 import fix_statistics, resnet18
from alignver.models.features import feature_blocks
from alignver.progress import stage
from alignver.results import CheckResult

__all__ = ["PAPER", "Row", "data_folder", "features", "table2"]

_STATISTICS = 2048  # images that the BatchNorm statistics are averaged over
_RECIPE = 1  # changes whenever the features would


@dataclasses.dataclass(frozen=True)
class Row:
    """The paper's row for a data set, and how to load it.

    Attributes
    ----------
    n, m, width : int
        Samples, m_{H-1} and m_H as printed.
    load : callable
        Loads the set from a folder.
    """

    n: int
    m: int
    width: int
    load: Callable[[Any], Dataset]


def _semeion_train(folder: Any) -> Dataset:
    """Draw the paper's 1000 training images (Appendix B.1 names no seed: 0 here)."""
    digits = semeion()
    return digits.take(np.sort(np.random.default_rng(0).choice(len(digits), size=1000, replace=False)))


PAPER: Mapping[str, Row] = MappingProxyType(
    {
        "mnist": Row(60000, 513, 234, mnist),
        "cifar10": Row(50000, 513, 195, cifar10),
        "cifar100": Row(50000, 513, 195, cifar100),
        "semeion": Row(1000, 513, 4, _semeion_train),
        "kmnist": Row(60000, 513, 234, kmnist),
        "svhn": Row(73257, 513, 286, svhn),
    }
)
"""Table 2 as printed; 'Verified' in every row."""


def data_folder(given: str | os.PathLike[str] | None) -> pathlib.Path:
    """Return the folder of the image sets: the one given, or that of the environment variable ``ALIGNVER_DATA``."""
    place = given if given is not None else os.environ.get("ALIGNVER_DATA")
    if not place or not pathlib.Path(place).is_dir():
        got = "no folder" if not place else f"{os.fspath(place)!r}, no folder"
        raise InvalidInput("data_folder", got, "the folder of the image sets (or ALIGNVER_DATA)")
    return pathlib.Path(place)


def features(
    data: Dataset, *, seed: int = 0, cache: str | os.PathLike[str] | None = None, batch_size: int = 250
) -> npt.NDArray[np.float32]:
    """Return the 512 features of a freshly initialised ResNet-18 for every image, without the constant.

    Pixels are scaled to mean 0 and deviation 1 over the whole set, channel by channel. The network is PyTorch's default
    initialisation; its BatchNorm statistics are averaged over 2048 images drawn from the set, then fixed.

    Parameters
    ----------
    data : Dataset
    seed : int
        Of the initialisation and of the images for the statistics.
    cache : path, optional
        Keep the features there, in a file named by the hash of images, recipe and torch version; and take them from
        there.

    Returns
    -------
    (n, 512) float32
    """
    recipe = f"{data.sha256} resnet18 {_RECIPE} seed {seed} torch {torch.__version__} batch {batch_size}"
    file = None
    if cache is not None:
        name = hashlib.sha256(recipe.encode()).hexdigest()[:24]
        file = pathlib.Path(cache) / f"features-{name}.npy"
        if file.is_file():
            kept: npt.NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
            if kept.shape == (len(data), 512) and kept.dtype == np.float32:
                return kept
    images = _images(data)
    channels, classes = int(images.shape[1]), int(data.y.max()) + 1
    model = resnet18(channels, classes, seed=seed)
    chosen = np.random.default_rng(seed).choice(len(data), size=min(_STATISTICS, len(data)), replace=False)
    with stage("BatchNorm statistics"):
        fix_statistics(model, images[np.sort(chosen)])
    Z: npt.NDArray[np.float32] = np.concatenate(list(feature_blocks(model, images, "features", batch_size=batch_size)))
    if file is not None:
        _keep(file, Z)
    return Z


def _keep(file: pathlib.Path, Z: npt.NDArray[np.float32]) -> None:
    """Write a file that appears whole or not at all."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.lib.format.write_array(stream, Z, allow_pickle=False)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        got = f"{file.parent}, which cannot be written ({error.strerror})"
        raise InvalidInput("cache", got, "a folder with room for the features") from error


def _images(data: Dataset) -> torch.Tensor:
    """Return images (n, channels, height, width) in float32 with mean 0 and deviation 1 in each channel."""
    x = data.x if data.x.ndim == 4 else data.x[..., None]
    pixels = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32))
    size = float(x.max())
    pixels /= size
    wide = x.reshape(-1, x.shape[-1])
    mean, deviation = wide.mean(axis=0, dtype=np.float64) / size, wide.std(axis=0, dtype=np.float64) / size
    shape = (1, -1, 1, 1)
    pixels -= torch.tensor(mean, dtype=torch.float32).reshape(shape)
    pixels /= torch.tensor(np.where(deviation > 0, deviation, 1.0), dtype=torch.float32).reshape(shape)
    return pixels


def table2(
    dataset: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    paper_gates: bool = False,
) -> tuple[Row, Dataset, dict[str, CheckResult]]:
    """Check Assumption 4 for one data set of Table 2.

    Parameters
    ----------
    dataset : str
        A key of :data:`PAPER`.
    folder : path, optional
        As :func:`data_folder` takes it; Semeion needs none.
    seed : int
        Of network, directions and sampled gates.
    cache : path, optional
        As :func:`features` takes it.
    paper_gates : bool
        Also prove the paper's sampled q (standard normal) at its width: hours of work at n = 60000.

    Returns
    -------
    (Row, Dataset, dict)
        The paper's row, the data, and the results at ``"smallest width"``, ``"paper width"`` and, if asked,
        ``"paper gates"``.

    Raises
    ------
    InvalidInput
        No such data set, no folder, no files.
    """
    if dataset not in PAPER:
        raise InvalidInput("dataset", repr(dataset), "one of " + ", ".join(PAPER))
    row = PAPER[dataset]
    data = row.load(None if dataset == "semeion" else data_folder(folder))
    Z = features(data, seed=seed, cache=cache)
    width = -(-2 * len(data) // row.m)
    results = {
        "smallest width": check_safe_exploration(Z, add_constant=True, seed=seed),
        "paper width": check_safe_exploration(Z, width=width, add_constant=True, seed=seed),
    }
    if paper_gates:
        results["paper gates"] = check_safe_exploration(Z, width=width, method="gram", add_constant=True, seed=seed)
    return row, data, results
