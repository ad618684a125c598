"""Floats are dyadic rationals: matrices of them as integer matrices with powers of two for rows and columns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from alignver.proof.rounding import FloatArray

__all__ = ["IntegerMatrix", "bytes_needed", "integer_column", "mantissas", "to_integers"]

_FRACTION = (1 << 52) - 1


def mantissas(A: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    r"""Return odd integers m (or 0) and exponents e with :math:`A = m\, 2^e` exactly, read from the bits.

    No floating-point operation is involved, so no flush mode can lose a subnormal entry.

    Examples
    --------
    >>> import numpy as np
    >>> m, e = mantissas(np.array([0.75, -2.0, 5e-324]))
    >>> m.tolist(), e.tolist()
    ([3, -1, 1], [-2, 1, -1074])
    """
    bits = np.ascontiguousarray(A).view(np.int64)
    biased = (bits >> 52) & 0x7FF
    m = np.where(biased > 0, (bits & _FRACTION) | (_FRACTION + 1), bits & _FRACTION)
    e = np.maximum(biased, 1) - 1075
    low = m & -m
    zeros = np.where(m != 0, np.frexp(low.astype(np.float64))[1].astype(np.int64) - 1, 0)
    m = np.where(bits < 0, -(m >> zeros), m >> zeros)
    return m, np.where(m != 0, e + zeros, 0)


@dataclasses.dataclass(frozen=True)
class IntegerMatrix:
    r"""An exact copy of a float matrix: :math:`A_{ij} = \text{rows}_{ij}\, 2^{r_i + c_j}`.

    Attributes
    ----------
    rows : list of list of int
        The integers.
    row_exponents, column_exponents : (N,) and (d,) int64
    bits : (N,) int64
        The bit length of the largest integer of each row.
    """

    rows: list[list[int]]
    row_exponents: npt.NDArray[np.int64]
    column_exponents: npt.NDArray[np.int64]
    bits: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape."""
        return len(self.rows), len(self.rows[0])

    def minor_bits(self, size: int) -> int:
        r"""Bound the bits of every minor of order ``size``: Hadamard's :math:`\prod \|a_i\|` over the largest
        rows.
        """
        width = 0.5 * math.log2(max(2, self.shape[1]))
        return math.ceil(sum(sorted((float(b) + width for b in self.bits), reverse=True)[:size])) + 1


def _layout(
    A: FloatArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return mantissas, left shifts >= 0, row exponents and column exponents."""
    m, e = mantissas(A)
    nonzero = m != 0
    far = np.int64(1 << 40)
    columns = np.zeros(A.shape[1], dtype=np.int64)
    rows = np.zeros(A.shape[0], dtype=np.int64)
    for _ in range(2):  # alternate: graded rows and graded columns both come out with short integers
        rows = np.min(np.where(nonzero, e - columns, far), axis=1)
        rows[rows == far] = 0
        columns = np.min(np.where(nonzero, e - rows[:, None], far), axis=0)
        columns[columns == far] = 0
    # After a column pass every shift e - r - c of a non-zero entry is >= 0.
    shifts = np.where(nonzero, e - rows[:, None] - columns, 0)
    return m, shifts, rows, columns


def bytes_needed(A: FloatArray) -> int:
    """Estimate the memory of :func:`to_integers` and of working with the result, before any of it is spent.

    A Python integer takes 28 bytes and 4 for every 30 bits, its place in a list 8; FLINT's copies about as
    much again.
    """
    sample = A if A.size <= 1 << 22 else A[:: max(1, A.size >> 22)]
    _m, shifts, _rows, _columns = _layout(sample)
    bits = 53 + float(np.mean(shifts))
    return int(A.size * (2 * (36 + bits / 7.5) + 32))


def to_integers(A: FloatArray) -> IntegerMatrix:
    """Return the exact integer form of a finite matrix.

    Examples
    --------
    >>> import numpy as np
    >>> to_integers(np.array([[0.5, 1.5], [0.0, 1e-300]])).rows[0]
    [1, 3]
    """
    m, shifts, rows, columns = _layout(A)
    lengths = np.where(m != 0, np.frexp(np.abs(m).astype(np.float64))[1].astype(np.int64) + shifts, 0)
    if int(lengths.max()) <= 62:
        integers = (m << shifts).tolist()
    else:
        integers = [
            [a << s for a, s in zip(ms, ss, strict=True)] for ms, ss in zip(m.tolist(), shifts.tolist(), strict=True)
        ]
    return IntegerMatrix(integers, rows, columns, lengths.max(axis=1))


def integer_column(matrix: IntegerMatrix, y: FloatArray) -> tuple[list[int], int]:
    r"""Return integers b and an exponent c with :math:`y_i = b_i 2^{r_i + c}`, r the matrix's row exponents.

    Examples
    --------
    >>> import numpy as np
    >>> integer_column(to_integers(np.array([[0.5], [3.0]])), np.array([0.25, 2.0]))
    ([1, 4], -1)
    """
    m, e = mantissas(y)
    nonzero = m != 0
    shifts = np.where(nonzero, e - matrix.row_exponents, 0)
    common = int(shifts[nonzero].min()) if bool(nonzero.any()) else 0
    shifts = np.where(nonzero, shifts - common, 0)
    return [a << s for a, s in zip(m.tolist(), shifts.tolist(), strict=True)], common
