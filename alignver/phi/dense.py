"""phi itself, for sizes that memory holds: the oracle of everything else here."""

from __future__ import annotations

from alignver.arrays import Array, namespace
from alignver.phi.gate import logistic_plain

__all__ = ["dense_phi"]


def dense_phi(Z: Array, q: Array, weights: Array | None = None) -> Array:
    r"""Return :math:`\phi(q)` (n, h m), or :math:`\phi(q) (\mathrm{diag}(w) \otimes I)` with output weights.

    Parameters
    ----------
    Z : (n, m) array
        With the constant 1 as last column.
    q : (m, h) array
    weights : (h,) array, optional

    Returns
    -------
    (n, h m) array
        Column k m + a holds s(z_i^T q_k) z_ia (w_k).

    Examples
    --------
    >>> import numpy as np
    >>> dense_phi(np.array([[2.0, 1.0]]), np.zeros((2, 2)))
    array([[1. , 0.5, 1. , 0.5]])
    """
    xp = namespace(Z)
    S = logistic_plain(Z @ q)
    if weights is not None:
        S = S * weights[None, :]
    return xp.reshape(S[:, :, None] * Z[:, None, :], (int(Z.shape[0]), -1))
