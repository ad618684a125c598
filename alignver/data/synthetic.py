"""The two small synthetic datasets of the paper's Section 2.2: two moons and a sine wave."""

from __future__ import annotations

import numpy as np

from alignver.data.dataset import Dataset
from alignver.errors import InvalidInput

__all__ = ["sine_wave", "two_moons"]

_LICENCE = "generated; no licence needed"


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
    _require_count(n, 2)
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
    return Dataset(f"two moons (n={n})", x, y, source, _LICENCE)


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
        n is not a positive integer, or the seed not a non-negative one.

    Examples
    --------
    >>> wave = sine_wave(5)
    >>> wave.y.tolist() == [int(v) for v in np.sin(20 * wave.x[:, 0]) < 0]
    True
    """
    _require_count(n, 1)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInput("seed", f"seed={seed!r}", "an integer of at least 0")
    x = np.random.default_rng(seed).uniform(-1.0, 1.0, size=(n, 1))
    y = (np.sin(20.0 * x[:, 0]) < 0.0).astype(np.int64)
    source = "x uniform on [-1, 1], y = 1{sin(20 x) < 0}; paper, Appendix B.1"
    return Dataset(f"sine wave (n={n}, seed={seed})", x, y, source, _LICENCE)


def _require_count(n: int, least: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < least:
        raise InvalidInput("n", f"n={n!r}", f"an integer of at least {least}")
