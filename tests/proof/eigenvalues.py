"""Lower bounds of eigenvalues, from what is proved definite."""

from __future__ import annotations

import math

import numpy as np

from alignver.proof.cholesky import is_positive_definite


def smallest_eigenvalue(A: np.ndarray, *, error: float = 0.0) -> float:
    """Return the largest shift, up to bisection, that A is proved to stay definite under; ``-inf`` for none."""
    if not is_positive_definite(A, error=error):
        return -math.inf
    proved, refused = 0.0, float(np.diagonal(A).min())
    for _ in range(50):
        middle = 0.5 * (proved + refused)
        if is_positive_definite(A, error=error, shift=middle):
            proved = middle
        else:
            refused = middle
    return proved
