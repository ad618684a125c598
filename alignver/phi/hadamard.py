"""The Gram matrix of phi without phi: phi phi^T = (S S^T) o (Z Z^T), tile by tile, rows scaled by powers of two."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from alignver.arrays import Array, like
from alignver.phi.gate import GATE_UNDERFLOW, gate_matrix, gate_matrix_error
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    add_up,
    gamma,
    mul_up,
    sqrt_up,
    square_sums_up,
    sum_up,
)

__all__ = ["Hadamard", "ScaledGram", "gram", "scaled_gram"]

_FAR = (
    390  # exponents of norms of rows and gates: products of four are far from over- and underflow, here and in a check
)


def gram(Z: Array, S: Array, weights: Array | None = None) -> Array:
    r"""Return :math:`\phi \phi^\top = (S S^\top) \circ (Z Z^\top)`, with output weights :math:`(S\,
    \mathrm{diag}(w^2) S^\top) \circ (Z Z^\top)`.

    Parameters
    ----------
    Z : (n, m) array
    S : (n, h) array
        Gate values of one output; other outputs have gates of their own.
    weights : (h,) array, optional

    Examples
    --------
    >>> import numpy as np
    >>> gram(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.5, 1.0], [1.0, 0.5]]))
    array([[6.25, 1.  ],
           [1.  , 1.25]])
    """
    T = S if weights is None else S * weights[None, :]
    return (T @ T.T) * (Z @ Z.T)


@dataclasses.dataclass(frozen=True)
class Hadamard:
    """The matrix (T T^T) o (Z Z^T), tile by tile.

    Attributes
    ----------
    Z : (n, m) float64
    T : (n, h) float64
        Arrays of any namespace.
    """

    Z: Array
    T: Array

    def tile(self, rows: slice, columns: slice) -> Array:
        """Return a tile as it is computed, the Z part multiplied in last."""
        block = self.T[rows, :] @ self.T[columns, :].T
        block *= self.Z[rows, :] @ self.Z[columns, :].T
        return block

    def digest(self) -> str:
        """Return what identifies the matrix, for tiles that are taken up again."""
        content = hashlib.sha256(f"{self.Z.shape} {self.T.shape}".encode())
        for array in (self.Z, self.T):
            content.update(np.ascontiguousarray(array).data.cast("B"))
        return content.hexdigest()

    def at(self, place: Array) -> Hadamard:
        """Return the matrix in the namespace and on the device of ``place``."""
        return Hadamard(like(self.Z, place), like(self.T, place))


@dataclasses.dataclass(frozen=True)
class ScaledGram(Hadamard):
    r"""The Gram matrix of D phi, D = diag(2^e) such that its diagonal lies near 1, and what is known of its errors.

    Attributes
    ----------
    Z : (n, m) float64
    T : (n, h) float64
        D S diag(w).
    exponents : (n,) int64
        e.
    trace, largest : float
        Upper bounds of the trace and of the largest diagonal entry of (T T^T) o (Z Z^T).
    error : float
        Upper bound of the spectral norm of what rounding changes in tiles: :math:`\gamma_{m+h+1} \mathrm{tr}` and
        underflow. Entrywise :math:`|fl(T T^\top) \circ fl(Z Z^\top) - \ldots|_{ij} \le \gamma_{m+h+1} \|t_i\| \|t_j\|
        \|z_i\| \|z_j\|` (Higham 2002, eq. (3.5) and Lemma 3.3, Cauchy and Schwarz): a rank-one matrix whose norm is
        its trace.
    moved : float
        Upper bound of ||D (phi - phi^)||_F: phi^ has the computed gate values T, phi the exact ones, for all Z within
        delta.
    """

    exponents: npt.NDArray[np.int64]
    trace: float
    largest: float
    error: float
    moved: float


def scaled_gram(
    Z: FloatArray, q: FloatArray, weights: FloatArray | None = None, delta: float = 0.0
) -> ScaledGram | str:
    """Return the Gram matrix of phi(q) with its rows scaled, or why there is none.

    Parameters
    ----------
    Z : (n, m) float64
    q : (m, h) float64
    weights : (h,) float64, optional
    delta : float
        Bound of each row's change (2-norm).
    """
    n, m = Z.shape
    with np.errstate(all="ignore"):
        S = np.empty((n, q.shape[1]))
        step = max(1, (1 << 25) // (8 * q.shape[1]))
        for start in range(0, n, step):
            S[start : start + step] = gate_matrix(Z[start : start + step], q)
        squares = square_sums_up(Z, 1)
        relative = gate_matrix_error(
            m, sqrt_up(float(squares.max())), sqrt_up(float(square_sums_up(q, 0).max())), delta
        )
        if weights is not None:
            S *= weights[None, :]  # one more rounding of each entry
            relative = add_up(relative, 2.0**-52)
        gate_squares = square_sums_up(S, 1)
        products = squares * gate_squares
        heaviest = 1.0 if weights is None else max(1.0, float(np.abs(weights).max()))
        in_range = max(float(squares.max()), float(square_sums_up(q, 0).max()), heaviest * heaviest) < 2.0 ** (2 * _FAR)
        if not (in_range and bool(np.all((products > 2.0 ** (-2 * _FAR)) & (products < 2.0 ** (2 * _FAR))))):
            return "the rows of phi are too large or too small"
        if not relative < 2.0**-10:
            return "the gates are not known well enough"
        exponents = -(np.frexp(products)[1].astype(np.int64) // 2)
        T = np.ldexp(S, exponents[:, None])
    diagonal = np.nextafter(np.ldexp(products, 2 * exponents), np.inf)
    trace, largest = sum_up(diagonal), float(diagonal.max())
    underflow = mul_up(float(n), float(m + T.shape[1] + 4), OMEGA, 2.0**450, add_up(1.0, float(squares.max())))
    error = add_up(mul_up(gamma(m + T.shape[1] + 2), trace), underflow)
    # Row i: D_i (|S'| delta + |S' - S^| |z_i|), with |S' - S^| <= relative / (1 - relative) |S^| <= 1.001 relative
    # |S^|.
    own = mul_up(1.001, relative, sqrt_up(trace))
    if delta:
        lengths = np.nextafter(np.ldexp(gate_squares, 2 * exponents), np.inf)
        own = add_up(own, mul_up(1.002, delta, sqrt_up(sum_up(lengths))))
    tiny = mul_up(
        GATE_UNDERFLOW, 2.0**401, heaviest, float(n), float(T.shape[1]), add_up(1.0, sqrt_up(float(squares.max())))
    )
    return ScaledGram(Z, T, exponents, trace, largest, error, add_up(own, tiny))
