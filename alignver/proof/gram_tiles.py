r"""Gram matrices that are computed tile by tile from the factors of their rows, with bounds of the rounding errors.

Row r = i m + j, of sample i and output j, holds :math:`\sum_t b_{rt} a_{it}^\top` for each pair (A, B): the inputs
A (n, T, a) of a layer and the gradients B (n m, T, b) of the outputs by its results. Rows go sample by sample, so that
the outputs of a sample share products of inputs. With T = 1 a tile is :math:`(A A^\top) \circ (B B^\top)`. The features
Z of a last hidden layer with gates S are one pair with one output; columns that are given explicitly are the B of a
pair with A = 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from alignver.arrays import Array, like, namespace
from alignver.proof.rounding import FloatArray

WIDTH = 256  # approximate number of columns formed at a time with many positions: longer sums have larger errors
_PASS = 24.0  # approximate cost of one elementwise pass, in operations per entry
_PANEL = 1024  # rows of a panel of the whole matrix
_DIAGONAL = 64  # rows of a tile of which only the diagonal is used


def by_pairs(rows: float, samples: float, positions: int, a: int, b: int) -> tuple[bool, float]:
    """Return whether pairs of positions need fewer operations than the columns themselves, and the smaller number."""
    T = positions
    pairs = T * T * (2.0 * a * samples * samples + (2.0 * b + _PASS) * rows * rows)
    formed = 2.0 * a * b * T * rows + 2.0 * a * b * rows * rows
    return T == 1 or pairs <= formed, pairs if T == 1 else min(pairs, formed)


@dataclasses.dataclass(frozen=True, eq=False)
class FactoredGram:
    """The matrix J J^T of the rows that pairs of factors define.

    Attributes
    ----------
    factors : tuple of (A, B)
        (n, T, a) and (n m, T, b) float64 arrays of any namespace, at least one pair; n and m are those of all pairs.
    """

    factors: tuple[tuple[Array, Array], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> FactoredGram:
        """Return the matrix of the pairs A0 and B0, A1 and B1, ..."""
        return FactoredGram(tuple((arrays[f"A{k}"], arrays[f"B{k}"]) for k in range(len(arrays) // 2)))

    @property
    def order(self) -> int:
        """Number of rows."""
        return int(self.factors[0][1].shape[0])

    @property
    def arrays(self) -> dict[str, Array]:
        """The factors by name: A0, B0, A1, ..."""
        return {f"{letter}{k}": array for k, pair in enumerate(self.factors) for letter, array in zip("AB", pair)}

    def at(self, place: Array) -> FactoredGram:
        """Return the matrix in the namespace and on the device of ``place``."""
        return FactoredGram(tuple((like(A, place), like(B, place)) for A, B in self.factors))

    def digest(self) -> str:
        """Return a digest of the factors, which identifies stored tiles."""
        content = hashlib.sha256()
        for name, array in self.arrays.items():
            content.update(f"{name} {tuple(array.shape)}".encode())
            content.update(np.ascontiguousarray(array).data.cast("B"))
        return content.hexdigest()

    def tile(self, rows: slice, columns: slice) -> Array:
        """Return computed entries, as a new array."""
        total: Array | None = None
        for A, B in self.factors:
            T, a, b = int(A.shape[1]), int(A.shape[2]), int(B.shape[2])
            pairwise, _ = by_pairs(int(B.shape[0]), int(A.shape[0]), T, a, b)
            for share in (_shares_by_pairs if pairwise else _shares_by_columns)(A, B, rows, columns):
                if total is None:
                    total = share
                else:
                    total += share
        assert total is not None
        return total

    def lower(self) -> FloatArray:
        """Return the matrix, without its part far above the diagonal."""
        whole = np.zeros((self.order, self.order))
        for start in range(0, self.order, _PANEL):
            stop = min(start + _PANEL, self.order)
            whole[start:stop, :stop] = self.tile(slice(start, stop), slice(0, stop))
        return whole

    def diagonal(self) -> FloatArray:
        """Return the computed diagonal, without the rest of the matrix."""
        spans = (slice(k, min(k + _DIAGONAL, self.order)) for k in range(0, self.order, _DIAGONAL))
        return np.concatenate([np.diagonal(self.tile(span, span)) for span in spans])


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledGram(FactoredGram):
    r"""The Gram matrix of D J, D = diag(2^e), from computed factors of D J, with bounds of its errors.

    Attributes
    ----------
    exponents : (N,) int64
        e, in the order of the rows.
    trace, largest : float
        Upper bounds of the trace and of the largest diagonal entry of the matrix that the factors define exactly.
    error : float
        Upper bound of the spectral norm of the rounding errors of the tiles.
    moved : float
        Upper bound of the Frobenius norm of the difference between D J and the rows that the factors define.
    slack : float
        Added to ``moved``, since an independent check may have to assume larger errors of the factors.
    """

    exponents: npt.NDArray[np.int64]
    trace: float
    largest: float
    error: float
    moved: float
    slack: float = 0.0


def _samples(rows: slice, outputs: int) -> tuple[slice, npt.NDArray[np.int64]]:
    """Return the samples of some rows, and for each row its position among them."""
    first, last = rows.start // outputs, -(-rows.stop // outputs)
    return slice(first, last), np.arange(rows.start, rows.stop) // outputs - first


def _shares_by_pairs(A: Array, B: Array, rows: slice, columns: slice) -> Iterator[Array]:
    """Yield the contribution of each first position t: sum_s (A_t A_s^T) o (B_t B_s^T)."""
    T, m = int(A.shape[1]), int(B.shape[0]) // int(A.shape[0])
    (first, of_rows), (second, of_columns) = _samples(rows, m), _samples(columns, m)
    for t in range(T):
        whole: Array | None = None
        for s in range(T):
            # An array times its own transpose may cost half as much (syrk), with the same sums.
            share = B[rows, t, :] @ B[columns, s, :].T
            inner = A[first, t, :] @ A[second, s, :].T
            share *= inner if m == 1 else _taken(_taken(inner, of_columns, 1), of_rows, 0)
            if whole is None:
                whole = share
            else:
                whole += share
        assert whole is not None
        yield whole


def _taken(x: Array, index: npt.NDArray[np.int64], axis: int) -> Array:
    xp = namespace(x)
    return xp.take(x, xp.asarray(index, device=x.device), axis=axis)


def _shares_by_columns(A: Array, B: Array, rows: slice, columns: slice) -> Iterator[Array]:
    """Yield the products of groups of columns."""
    b, step = int(B.shape[2]), max(1, WIDTH // int(A.shape[2]))
    for start in range(0, b, step):
        left = _formed(A, B, rows, slice(start, min(start + step, b)))
        right = left if rows == columns else _formed(A, B, columns, slice(start, min(start + step, b)))
        yield left @ right.T


def _formed(A: Array, B: Array, rows: slice, part: slice) -> Array:
    """Return some columns of some rows: sum_t b_t a_t^T for the entries ``part`` of b."""
    xp, m = namespace(B), int(B.shape[0]) // int(A.shape[0])
    samples, _ = _samples(rows, m)
    inputs, gradients = A[samples, :, :], B[samples.start * m : samples.stop * m, :, part]
    n, T, width = int(inputs.shape[0]), int(A.shape[1]), part.stop - part.start
    gradients = xp.permute_dims(xp.reshape(gradients, (n, m, T, width)), (0, 1, 3, 2))
    formed = xp.reshape(xp.reshape(gradients, (n, m * width, T)) @ inputs, (n * m, width * int(A.shape[2])))
    return formed[rows.start - samples.start * m : rows.stop - samples.start * m, :]
