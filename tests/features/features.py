"""Features for the tests: positive and correlated as those of a network, with the constant last."""

from __future__ import annotations

import numpy as np


def features(n, m, seed=0):
    """Return Z (n, m), the last column 1."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((m - 1, m - 1)) / np.sqrt(m)
    return np.column_stack([np.logaddexp(0.0, rng.standard_normal((n, m - 1)) @ mixing), np.ones(n)])
