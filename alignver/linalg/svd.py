"""The range of a matrix by singular value decomposition: the reference that the tolerance's meaning is written in."""

from __future__ import annotations

import numpy as np

from alignver.arrays import Array, host, namespace
from alignver.linalg.norms import norm
from alignver.linalg.profile import RangeProfile, descending_tails
from alignver.linalg.reduction import Reduced
from alignver.progress import stage

__all__ = ["decompose", "svd_profile"]


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the thin SVD (U, s, V^T) by the namespace, or by LAPACK's safer gesvd where that does not converge.

    Raises :class:`numpy.linalg.LinAlgError` when neither converges.
    """
    xp = namespace(matrix)
    with stage("singular value decomposition"):
        try:
            u, s, vt = xp.linalg.svd(matrix, full_matrices=False)
        except np.linalg.LinAlgError:
            if not isinstance(matrix, np.ndarray):
                raise
            from scipy import linalg

            u, s, vt = linalg.svd(matrix, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return u, s, vt


def svd_profile(reduced: Reduced) -> RangeProfile:
    """Return the profile whose levels are the singular values and whose directions are the left singular vectors.

    rho(tau) = ||(I - P_tau) y|| / ||y||, P_tau the projector on span{u_k : s_k > tau}. NUMERICAL: the computed values
    are those of a matrix within a modest multiple of eps s_1 of the given one.

    Parameters
    ----------
    reduced : Reduced
        Of :func:`alignver.linalg.reduction.reduce`; without a target the tails are zero.
    """
    xp = namespace(reduced.matrix)
    if reduced.target is None:
        with stage("singular values"):
            levels = host(xp.linalg.svdvals(reduced.matrix))
        return RangeProfile(levels, np.zeros(levels.size + 1))
    u, s, _ = decompose(reduced.matrix)
    levels = host(s)
    y = reduced.target
    size = float(np.hypot(norm(y), reduced.leftover))
    if size == 0.0:
        return RangeProfile(levels, np.zeros(levels.size + 1))
    y = y / size
    coordinates = xp.matrix_transpose(u) @ y
    rest = y - u @ coordinates
    # Twice is enough (Kahan, Parlett): what one projection leaves in the range by rounding, the second takes out.
    rest = rest - u @ (xp.matrix_transpose(u) @ rest)
    # A square U spans everything: what is left of y is rounding and no evidence of a component outside.
    outside = 0.0 if int(u.shape[0]) == int(u.shape[1]) else norm(rest)
    return RangeProfile(levels, descending_tails(host(coordinates), float(np.hypot(outside, reduced.leftover / size))))
