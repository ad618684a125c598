"""Exact arithmetic on float matrices (python-flint): rank modulo a prime, rational solutions and null vectors.

Floats are dyadic rationals, so a float matrix is an integer matrix times powers of two for rows and columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.errors import MissingDependency
from alignver.proof.rounding import FloatArray

_FRACTION = (1 << 52) - 1


def mantissas(A: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    r"""Return odd integers m (or 0) and exponents e with :math:`A = m\, 2^e` exactly, from the bits.

    No floating-point operation is involved, so no flush-to-zero mode loses a subnormal entry.

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
        """Number of rows and of columns."""
        return len(self.rows), len(self.rows[0])

    def minor_bits(self, size: int) -> int:
        r"""Bound the bits of every minor of order ``size``, by the Hadamard bound of the largest rows."""
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
    for _ in range(2):  # alternate, so that both graded rows and graded columns give short integers
        rows = np.min(np.where(nonzero, e - columns, far), axis=1)
        rows[rows == far] = 0
        columns = np.min(np.where(nonzero, e - rows[:, None], far), axis=0)
        columns[columns == far] = 0
    # After a column pass every shift e - r - c of a non-zero entry is >= 0.
    shifts = np.where(nonzero, e - rows[:, None] - columns, 0)
    return m, shifts, rows, columns


def bytes_needed(A: FloatArray) -> int:
    """Estimate the memory of :func:`to_integers` and of computations with the result, in advance.

    A Python integer takes 28 bytes plus 4 for every 30 bits, its reference in a list 8, and the copies in FLINT about
    the same.
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
    r"""Return integers b and an exponent c with :math:`y_i = b_i 2^{r_i + c}`, r the row exponents of the matrix.

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


def load_flint() -> Any:
    """Return the module ``flint``, or raise :class:`~alignver.errors.MissingDependency`."""
    try:
        import flint
    except ImportError as error:
        raise MissingDependency("python-flint", "exact arithmetic on floats", "proof") from error
    return flint


@dataclasses.dataclass(frozen=True)
class Profile:
    """A non-singular minor modulo a prime: ``len(rows) == len(columns) ==`` the rank modulo ``prime``."""

    prime: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The rank modulo the prime: a lower bound of the rank."""
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Combination:
    """Integers with one common denominator: the rational vector ``numerators / denominator`` on ``support``."""

    support: tuple[int, ...]
    numerators: tuple[int, ...]
    denominator: int


def primes() -> Iterator[int]:
    """Yield the primes below 2^62 in decreasing order: in this range FLINT uses its fast word-sized arithmetic."""
    flint = load_flint()
    candidate = 2**62 - 57
    while True:
        if flint.fmpz(candidate).is_prime():
            yield candidate
        candidate -= 2


def profile(matrix: IntegerMatrix, prime: int) -> Profile:
    """Return row and column sets of a minor that is not zero modulo ``prime``, of the largest possible order.

    A minor that does not vanish modulo a prime does not vanish: the rank of the matrix is at least
    ``len(rows)``. The rank can be larger, since a prime may divide every larger minor.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.proof.exact import to_integers
    >>> profile(to_integers(np.array([[1.0, 2.0], [0.5, 1.0]])), 97).rank
    1
    """
    flint = load_flint()
    n = matrix.shape[0]
    reduced = flint.nmod_mat(flint.fmpz_mat(matrix.rows), prime)
    columns = _pivots(reduced)
    if len(columns) == n:
        return Profile(prime, tuple(range(n)), columns)
    flat = [matrix.rows[i][j] % prime for j in columns for i in range(n)]
    rows = _pivots(flint.nmod_mat(len(columns), n, flat, prime)) if columns else ()
    return Profile(prime, rows, columns)


def _pivots(reduced: Any) -> tuple[int, ...]:
    """Return the pivot columns of a matrix modulo a prime."""
    echelon, rank = reduced.rref()
    pivots = []
    column = 0
    for row in range(int(rank)):
        while int(echelon[row, column]) == 0:
            column += 1
        pivots.append(column)
        column += 1
    return tuple(pivots)


def _solve(square: list[list[int]], right: list[int]) -> tuple[list[int], int]:
    """Solve a non-singular integer system by p-adic lifting (J. D. Dixon, Numer. Math. 40 (1982) 137-141)."""
    flint = load_flint()
    solution = flint.fmpz_mat(square).solve(flint.fmpz_mat([[b] for b in right]))
    numerators, denominator = solution.numer_denom()
    return [int(numerators[k, 0]) for k in range(len(square))], int(denominator)


def _times(rows: Sequence[Sequence[int]], vector: Sequence[int]) -> list[int]:
    """Multiply an integer matrix and an integer vector exactly."""
    flint = load_flint()
    product = flint.fmpz_mat([list(row) for row in rows]) * flint.fmpz_mat([[v] for v in vector])
    return [int(product[k, 0]) for k in range(len(rows))]


def solve(matrix: IntegerMatrix, target: Sequence[int], minor: Profile) -> tuple[Combination | None, int]:
    """Return x on the columns of the minor with ``matrix x = target`` exactly, or None and the first violated row.

    x solves the rows of the minor; the other rows are then checked in exact arithmetic. If one of them is violated and
    the rank is that of the minor, no solution exists.
    """
    columns, rows = minor.columns, minor.rows
    if not columns:
        violated = next((i for i, b in enumerate(target) if b), -1)
        return (Combination((), (), 1), -1) if violated < 0 else (None, violated)
    numerators, denominator = _solve([[matrix.rows[i][j] for j in columns] for i in rows], [target[i] for i in rows])
    product = _times([[row[j] for j in columns] for row in matrix.rows], numerators)
    for i, (value, entry) in enumerate(zip(product, target, strict=True)):
        if value != denominator * entry:
            return None, i
    return Combination(columns, tuple(numerators), denominator), -1


def left_null_vector(matrix: IntegerMatrix, row: int, minor: Profile) -> Combination | None:
    """Return w with ``w^T matrix = 0`` exactly, supported on ``row``, where it is non-zero, and the minor's rows.

    None means that the rank exceeds the order of the minor: the prime is an unlucky one.
    """
    columns = list(zip(*matrix.rows, strict=True))
    square = [[columns[k][i] for i in minor.rows] for k in minor.columns]
    if not square:
        return None if any(matrix.rows[row]) else Combination((row,), (1,), 1)
    numerators, denominator = _solve(square, [-columns[k][row] for k in minor.columns])
    support, values = (row, *minor.rows), (denominator, *numerators)
    if any(_times([[column[i] for i in support] for column in columns], values)):
        return None
    return Combination(support, values, 1)


def null_vectors(matrix: IntegerMatrix, minor: Profile, *, left: bool) -> list[Combination] | None:
    """Return a null vector for every row (``left``) or column outside the minor, or None if one does not exist.

    Each is non-zero at that row or column, which comes first in its support, and zero at the others outside the minor,
    so the vectors are independent: the rank is at most ``len(minor.rows)``. One solve gives all of them.
    """
    flint = load_flint()
    columns: Sequence[Sequence[int]] = list(zip(*matrix.rows, strict=True)) if left else matrix.rows
    inside, across = (minor.rows, minor.columns) if left else (minor.columns, minor.rows)
    outside = sorted(set(range(matrix.shape[0 if left else 1])) - set(inside))
    if not outside:
        return []
    if not inside:
        if any(any(row[line] for line in outside) for row in columns):
            return None
        return [Combination((line,), (1,), 1) for line in outside]
    square = flint.fmpz_mat([[columns[k][m] for m in inside] for k in across])
    right = flint.fmpz_mat([[-columns[k][line] for line in outside] for k in across])
    numerators, denominator = square.solve(right).numer_denom()
    checked = flint.fmpz_mat([[row[m] for m in inside] for row in columns]) * numerators
    rest = flint.fmpz_mat([[row[line] for line in outside] for row in columns]) * denominator
    if checked + rest != 0 * rest:
        return None
    table = numerators.tolist()
    return [
        Combination((line, *inside), (int(denominator), *(int(row[k]) for row in table)), 1)
        for k, line in enumerate(outside)
    ]


def vanishing_primes(matrix: IntegerMatrix, rank: int, start: Iterator[int]) -> list[int] | None:
    """Return primes modulo each of which the rank is <= ``rank``, with a product above every minor of order rank + 1.

    Then every such minor is divisible by a number larger than itself, hence zero, and the rank is at most ``rank``.
    None if the rank modulo some prime is larger.
    """
    flint = load_flint()
    needed = matrix.minor_bits(rank + 1) + 1
    integers = flint.fmpz_mat(matrix.rows)
    used: list[int] = []
    gathered = 0
    while gathered <= needed:
        prime = next(start)
        if int(flint.nmod_mat(integers, prime).rank()) > rank:
            return None
        used.append(prime)
        gathered += prime.bit_length() - 1
    return used


def seconds_for_rank(n: int, d: int, rank: int) -> float:
    """Estimate the seconds of one rank modulo a word-sized prime (twice the fit on one core of a 2020s server)."""
    return 1e-4 + 1e-6 * n * d + 5e-10 * n * d * max(1, min(rank, n, d))


def seconds_for_solve(matrix: IntegerMatrix, rank: int) -> float:
    """Estimate the seconds of one exact solve of order ``rank``: p-adic steps times the work of one step (a fit)."""
    bits = float(matrix.bits.mean()) if len(matrix.bits) else 0.0
    steps = 2.0 * matrix.minor_bits(rank) / 60.0
    return 1e-3 + 6e-10 * rank**3 + 1.6e-8 * steps * rank**2 * (1.0 + bits / 64.0)
