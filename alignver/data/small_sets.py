"""Small data sets of the paper's Section 2.2: the Semeion digits, shipped in the package, two moons and a sine wave."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.data.archives import Dataset, read_npz, unreadable

_SOURCE = (
    "Semeion Handwritten Digit, Semeion Research Center of Sciences of Communication, Rome, Italy (1994); "
    "UCI Machine Learning Repository, dataset 178"
)
_LICENCE = "CC BY 4.0"
_SHAPE = (1593, 16, 16)


def semeion(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load the Semeion handwritten digits: 1593 binary images of 16 x 16 pixels, in their original order.

    1593 digits written by about 80 persons, scanned, stretched to 16 x 16 and thresholded. The copy inside the package
    is the data of the UCI Machine Learning Repository (Semeion Research Center of Sciences of Communication, Rome;
    licence CC BY 4.0) with its numbers unchanged, re-encoded from text to two uint8 arrays. There is no fixed split;
    the paper draws 1000 images for training (Appendix B.1).

    Parameters
    ----------
    folder : path, optional
        Read ``semeion.npz`` (arrays x and y) or UCI's ``semeion.data`` (text: 256 pixels and 10 one-hot columns, the
        file that torchvision downloads) from there instead.

    Returns
    -------
    Dataset
        x (1593, 16, 16) uint8 in {0, 1}, y (1593,) uint8 in 0..9.

    Raises
    ------
    InvalidInput
        The folder has neither file, or the file is damaged.

    Examples
    --------
    >>> digits = semeion()
    >>> digits.x.shape, digits.licence
    ((1593, 16, 16), 'CC BY 4.0')
    """
    if folder is None:
        return Dataset("Semeion", *_read_npz(pathlib.Path(__file__).with_name("semeion.npz")), _SOURCE, _LICENCE)
    for name, read in (("semeion.npz", _read_npz), ("semeion.data", _read_text)):
        path = require.path("folder", folder) / name
        if path.is_file():
            return Dataset("Semeion", *read(path), _SOURCE, _LICENCE)
    raise unreadable(f"folder={os.fspath(folder)!r} with no Semeion file", "semeion.npz or semeion.data in it")


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def _read_npz(path: pathlib.Path) -> Arrays:
    x, y = read_npz(path, ("x", "y"))
    return _checked(x, y, path)


def _read_text(path: pathlib.Path) -> Arrays:
    try:
        table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise unreadable(
            f"{path.name}, which is not a table of numbers", "UCI's text file, 266 numbers a line"
        ) from error
    if table.shape != (_SHAPE[0], 266):
        raise unreadable(f"{path.name} of {table.shape[0]} x {table.shape[1]} numbers", "1593 x 266 numbers")
    if not np.all((table == 0.0) | (table == 1.0)) or not np.all(table[:, 256:].sum(axis=1) == 1.0):
        raise unreadable(f"{path.name} with other entries", "pixels in {0, 1} and one-hot labels")
    x, y = table[:, :256].reshape(_SHAPE), table[:, 256:].argmax(axis=1)
    return _checked(x.astype(np.uint8), y.astype(np.uint8), path)


def _checked(x: npt.NDArray[Any], y: npt.NDArray[Any], path: pathlib.Path) -> Arrays:
    if x.shape != _SHAPE or y.shape != _SHAPE[:1] or x.dtype != np.uint8 or y.dtype != np.uint8:
        got = f"{path.name} with x {x.shape} {x.dtype} and y {y.shape} {y.dtype}"
        raise unreadable(got, "x (1593, 16, 16) uint8 and y (1593,) uint8")
    if x.max() > 1 or y.max() > 9:
        raise unreadable(f"{path.name} with entries up to {x.max()} and {y.max()}", "x in {0, 1}, y in 0..9")
    return x, y


_SYNTHETIC_LICENCE = "generated; no licence needed"


def two_moons(n: int = 100) -> Dataset:
    """Return the two-moons dataset: two interleaving half circles without noise.

    ``x = (cos t, sin t)`` with ``y = 0`` for the floor(n/2) points of the upper moon, ``x = (1 - cos t, 1/2 - sin
    t)`` with ``y = 1`` for the others, ``t`` evenly spaced on [0, pi]: the points of ``sklearn.datasets.make_moons(n,
    shuffle=False)``, which the paper uses (Appendix B.1).

    Parameters
    ----------
    n : int
        Number of samples, at least 2.

    Returns
    -------
    Dataset
        x (n, 2) float64, y (n,) int64.

    Raises
    ------
    InvalidInput
        n is not an integer of at least 2.

    Examples
    --------
    >>> two_moons(4).x.round(3).tolist()
    [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [2.0, 0.5]]
    """
    n = require.integer("n", n, least=2)
    upper, lower = n // 2, n - n // 2
    t_upper, t_lower = np.linspace(0.0, np.pi, upper), np.linspace(0.0, np.pi, lower)
    x = np.vstack(
        [
            np.column_stack([np.cos(t_upper), np.sin(t_upper)]),
            np.column_stack([1.0 - np.cos(t_lower), 1.0 - np.sin(t_lower) - 0.5]),
        ]
    )
    y = np.repeat(np.array([0, 1], dtype=np.int64), [upper, lower])
    source = "half circles, as sklearn.datasets.make_moons(n, shuffle=False); paper, Appendix B.1"
    return Dataset(f"two moons (n={n})", x, y, source, _SYNTHETIC_LICENCE)


def sine_wave(n: int = 100, seed: int = 0) -> Dataset:
    """Return the sine-wave dataset: x uniform on [-1, 1] and y = 1{sin(20 x) < 0}.

    A wave of high frequency on one input dimension, known to be hard to fit (paper, Appendix B.1).

    Parameters
    ----------
    n : int
        Number of samples, at least 1.
    seed : int
        Seed of NumPy's PCG64 generator; the global random state is not touched.

    Returns
    -------
    Dataset
        x (n, 1) float64, y (n,) int64.

    Raises
    ------
    InvalidInput
        n is not a positive integer, or the seed is not a non-negative one.

    Examples
    --------
    >>> wave = sine_wave(5)
    >>> wave.y.tolist() == [int(v) for v in np.sin(20 * wave.x[:, 0]) < 0]
    True
    """
    n = require.integer("n", n, least=1)
    seed = require.integer("seed", seed, least=0)
    x = np.random.default_rng(seed).uniform(-1.0, 1.0, size=(n, 1))
    y = (np.sin(20.0 * x[:, 0]) < 0.0).astype(np.int64)
    source = "x uniform on [-1, 1], y = 1{sin(20 x) < 0}; paper, Appendix B.1"
    return Dataset(f"sine wave (n={n}, seed={seed})", x, y, source, _SYNTHETIC_LICENCE)
