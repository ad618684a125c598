"""phi as an operator: products in O(n m h), memory O(n (m + h)), the matrix itself never formed."""

from __future__ import annotations

from alignver.arrays import Array, namespace
from alignver.errors import InvalidInput

__all__ = ["Phi"]


class Phi:
    r"""The matrix with rows :math:`S_i \otimes z_i`, as a linear operator.

    .. math:: \phi\, \mathrm{vec}(T) = \mathrm{rowsum}(S \circ Z T), \qquad
              \phi^\top r = \mathrm{vec}(Z^\top \mathrm{diag}(r)\, S)

    for T (m, h). Entry (a, k) of T sits at k m + a.

    Parameters
    ----------
    Z : (n, m) array
    S : (n, h) array
        Gate values. Output weights w enter as ``S * w``, per-output gates as an S for each output.

    Raises
    ------
    InvalidInput
        Different numbers of rows.

    Examples
    --------
    >>> import numpy as np
    >>> phi = Phi(np.array([[2.0, 1.0]]), np.array([[0.5, 1.0, 0.25]]))
    >>> phi.shape, phi.matvec(np.ones(6)), phi.rmatvec(np.ones(1))
    ((1, 6), array([5.25]), array([1.  , 0.5 , 2.  , 1.  , 0.5 , 0.25]))
    """

    def __init__(self, Z: Array, S: Array) -> None:
        if Z.ndim != 2 or S.ndim != 2 or int(Z.shape[0]) != int(S.shape[0]):
            raise InvalidInput(
                "S", f"shape {tuple(S.shape)} beside Z of shape {tuple(Z.shape)}", "a row for each row of Z"
            )
        self.Z, self.S = Z, S
        self.shape = (int(Z.shape[0]), int(Z.shape[1]) * int(S.shape[1]))
        self.dtype = Z.dtype

    def matvec(self, t: Array) -> Array:
        """Return phi t for t of length h m."""
        xp = namespace(self.Z)
        T = xp.reshape(t, (int(self.S.shape[1]), int(self.Z.shape[1])))
        return xp.sum(self.S * (self.Z @ T.T), axis=1)

    def rmatvec(self, r: Array) -> Array:
        """Return phi^T r for r of length n."""
        xp = namespace(self.Z)
        return xp.reshape((self.S * r[:, None]).T @ self.Z, (-1,))
