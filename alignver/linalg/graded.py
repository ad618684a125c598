r"""A small matrix with the column space and singular values of a wide one, by matrix products alone.

The Gram matrix :math:`W W^\top` of an N x p matrix squares its condition number: singular values below
:math:`\sqrt{\varepsilon} s_1` drown. Rotating the rows first keeps them. With orthogonal V from an eigendecomposition
of the Gram matrix, the rows of :math:`W_1 = V^\top W` are nearly orthogonal, however much they differ in norm, so

.. math:: W_1 = D C^{1/2} Q^\top, \qquad D = \mathrm{diag}(\|w_k\|), \quad C_{kl} = w_k^\top w_l / (\|w_k\| \|w_l\|)

with a well-conditioned C, and :math:`T = V D L`, :math:`L L^\top = C`, stands for W: :math:`T T^\top = W W^\top`.

Errors. :math:`\mathrm{fl}(V^\top W)` is off by at most :math:`\gamma_N \|W\|_F` in norm, as every backward stable
decomposition is. The products :math:`w_k^\top w_l` are off by :math:`\gamma_p \|w_k\| \|w_l\|` each, so C by
:math:`N \gamma_p` in norm, which changes every singular value of D L by at most the *relative* amount
:math:`N \gamma_p / \lambda_{\min}(C)` or so (Demmel & Veselic 1992, Theorem 2.14, for one-sided Jacobi; the same holds
for the matrices here). A row whose norm is of the order of the rounding of the first step says nothing of its own
direction, and none is asked of it. Where C is not well conditioned the rotation is refined by the left singular
vectors of T; after three refinements Householder QR takes over.

A better start. With the left singular vectors V of a sketch W S of a few N random columns one sweep is enough. A
sketch that embeds the row space keeps :math:`\|x^\top W\|` up to a factor :math:`1 \pm \delta` for every x, however
small it is (Woodruff, Sketching as a Tool for Numerical Linear Algebra, 2014, Section 2.1). The rows of
:math:`V^\top W S` are orthogonal, so the eigenvalues of C lie between :math:`((1 - \delta) / (1 + \delta))^{\pm 2}`.

Operations: :math:`4 N^2 p` a sweep, all in products, against :math:`2 N^2 p` of a QR whose panels are bound by memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.linalg.reduction import streamed_r

__all__ = ["graded_factor"]

_SWEEPS = 4
# With lambda_min(C) above this, N gamma_p / lambda_min stays below 1e-5 for N p up to 1e8: more than the digits that a
# tolerance over a factor of ten asks for.
_CONDITIONED = 1e-3

FloatArray = npt.NDArray[np.floating[Any]]


def graded_factor(W: npt.NDArray[np.float64], start: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    r"""Return T (N x N) with :math:`T T^\top = W W^\top` and the singular values of W to :math:`O(\varepsilon s_1)`.

    Parameters
    ----------
    W : (N, p) float64
        Finite, N <= p, entries of a size whose squares neither overflow nor underflow.

    start : (N, N) float64, optional
        Orthogonal V to begin with: any gives the same matrix up to rounding, a good one saves sweeps. By default from
        the Gram matrix.

    Returns
    -------
    (N, N) float64
        Same column space and singular values as W, up to a perturbation of W of the order of eps ||W||.

    Notes
    -----
    Rigor: floating point; the module tells the error analysis.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> W = np.diag(10.0 ** -np.arange(0, 14, 2)) @ rng.standard_normal((7, 90))
    >>> T = graded_factor(W)
    >>> s, t = (np.linalg.svd(A, compute_uv=False) for A in (W, T))
    >>> bool(np.all(np.abs(s - t) <= 1e-14 * s[0]))
    True
    """
    V: npt.NDArray[np.float64] = np.linalg.eigh(W @ W.T)[1] if start is None else start
    for _ in range(_SWEEPS):
        rotated = V.T @ W
        norms = np.sqrt(np.einsum("ij,ij->i", rotated, rotated))
        largest = float(norms.max(initial=0.0))
        if largest == 0.0:
            return np.zeros((len(W), len(W)))
        # Rows at the level of the rounding of the rotation itself: their norms count, their directions do not.
        noise = norms <= 8.0 * np.finfo(np.float64).eps * np.sqrt(len(W)) * largest
        rotated /= np.where(norms > 0.0, norms, 1.0)[:, None]
        C = rotated @ rotated.T
        clear = np.ix_(~noise, ~noise)
        values, vectors = np.linalg.eigh(C)
        if float(np.linalg.eigvalsh(C[clear])[0]) >= _CONDITIONED:
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            T: npt.NDArray[np.float64] = V @ (norms[:, None] * root)
            return T
        V = V @ np.linalg.svd(norms[:, None] * (vectors * np.sqrt(np.maximum(values, 0.0))))[0]
    steps = range(0, W.shape[1], 4 * len(W))
    r: npt.NDArray[np.float64] = streamed_r((W[:, at : at + 4 * len(W)].T for at in steps), len(W))
    return np.ascontiguousarray(r.T)
