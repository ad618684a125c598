"""Structural refutations: zero rows, and proportional rows whose targets are not in the same proportion.

Each is a vector w with at most two non-zero entries, both floats, such that w^T J = 0 and w^T y != 0 exactly. The
search is by hashing, with about O(N d) operations; the candidates are verified in integer arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from alignver.kernel.exact import equal, nonzero
from alignver.proof.exact import mantissas
from alignver.proof.rounding import FloatArray

_CLOSE = 2.0**-30  # far above the rounding error of a quotient, far below the gap between unrelated quotients
_MOST_PAIRS = 4096  # most exact comparisons: beyond them exact rank computation is better


@dataclasses.dataclass(frozen=True)
class Conflict:
    """A left null vector with one or two non-zero entries that the target is not orthogonal to.

    Attributes
    ----------
    kind : str
        ``"zero row"``, ``"equal rows"`` or ``"proportional rows"``.
    rows : tuple of int
        The indices of the non-zero entries of w.
    weights : tuple of float
        These entries.
    reason : str
        A sentence about the conflict.
    """

    kind: str
    rows: tuple[int, ...]
    weights: tuple[float, ...]
    reason: str


def find_conflict(J: FloatArray, y: FloatArray) -> Conflict | None:
    """Find a zero row with a non-zero target, or two proportional rows whose targets are not in proportion.

    Parameters
    ----------
    J : (N, d) float64
    y : (N,) float64

    Returns
    -------
    Conflict or None
        A Conflict is a PROOF that y is not in the column space of J; None has no meaning.

    Examples
    --------
    >>> import numpy as np
    >>> find_conflict(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([1.0, 4.0])).rows
    (0, 1)
    """
    largest = np.maximum(J.max(axis=1), -J.min(axis=1))
    zeros = ~nonzero(largest)
    bad = np.flatnonzero(zeros & nonzero(y))
    if bad.size:
        i = int(bad[0])
        return Conflict("zero row", (i,), (1.0,), f"row {i} of J is zero and its target is {float(y[i])!r}")
    for i, j in _close_pairs(J, largest, np.flatnonzero(~zeros)):
        conflict = _conflicting(J, y, i, j)
        if conflict is not None:
            return conflict
    return None


def redundant_rows(A: FloatArray) -> dict[int, int]:
    """Map rows that do not add to the rank to the remaining row that they equal, or to -1 if they are zero.

    Equality is exact. The map may be incomplete, since the hash can miss equal rows, but never wrong.

    Examples
    --------
    >>> import numpy as np
    >>> redundant_rows(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]]))
    {1: -1, 2: 0}
    """
    largest = np.maximum(A.max(axis=1), -A.min(axis=1))
    zeros = ~nonzero(largest)
    redundant = {int(i): -1 for i in np.flatnonzero(zeros)}
    for i, j in _close_pairs(A, largest, np.flatnonzero(~zeros)):
        first, second = min(i, j), max(i, j)
        if second not in redundant and equal(A[first], A[second]):
            redundant[second] = redundant.get(first, first)
    return redundant


def _close_pairs(J: FloatArray, largest: FloatArray, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of non-zero rows that may be proportional.

    The quotient of two random functionals of a row is invariant under multiplication of the row by a number. Rows are
    sorted by their quotients; in each run of close quotients, a row is paired with the first row of the run and with
    its predecessor.
    """
    if rows.size < 2:
        return
    probe = np.random.default_rng(0x5EED).standard_normal((J.shape[1], 2))
    with np.errstate(all="ignore"):
        if float(largest.max()) > 2.0**900 or float(largest[rows].min()) < 2.0**-900:
            values = np.ldexp(J, -np.frexp(largest)[1][:, None]) @ probe
        else:
            values = J @ probe
        keys = (values[:, 0] / values[:, 1])[rows]
        order = np.argsort(keys, kind="stable")
        rows, keys = rows[order], keys[order]
        close = np.abs(np.diff(keys)) <= _CLOSE * np.maximum(1e-3, np.abs(keys[1:]))
    first = 0
    for k in np.flatnonzero(close)[:_MOST_PAIRS].tolist():
        if k == 0 or not close[k - 1]:
            first = k
        for a in {first, k}:
            yield int(rows[a]), int(rows[k + 1])


def _conflicting(J: FloatArray, y: FloatArray, i: int, j: int) -> Conflict | None:
    """Verify in integer arithmetic that rows i and j are proportional and their targets are not."""
    i, j = min(i, j), max(i, j)
    if equal(J[i], J[j]):
        if equal(y[i : i + 1], y[j : j + 1]):
            return None
        reason = f"rows {i} and {j} of J are equal and their targets differ ({float(y[i])!r}, {float(y[j])!r})"
        return Conflict("equal rows", (i, j), (1.0, -1.0), reason)
    if not bool(np.array_equal(nonzero(J[i]), nonzero(J[j]))):
        return None
    k = int(np.argmax(np.abs(J[i])))
    a, b = float(J[i, k]), float(J[j, k])  # w = b e_i - a e_j
    if Fraction(b) * Fraction(float(y[i])) == Fraction(a) * Fraction(float(y[j])):
        return None  # the targets are in the same proportion
    (ma, mb), (ea, eb) = (column.tolist() for column in mantissas(np.array([a, b])))
    mi, ei = mantissas(J[i])
    mj, ej = mantissas(J[j])
    # m_b 2^eb m_i 2^ei == m_a 2^ea m_j 2^ej; products of odd integers are odd, so both parts must agree.
    if not bool(np.all((ei + eb == ej + ea)[mi != 0])):
        return None
    if any(mb * p != ma * q for p, q in zip(mi.tolist(), mj.tolist(), strict=True)):
        return None
    times = repr(b / a) if Fraction(b / a) * Fraction(a) == Fraction(b) else f"{b!r}/{a!r}"
    targets = f"({float(y[i])!r}, {float(y[j])!r})"
    reason = f"row {j} of J is exactly {times} times row {i}, and its target is not {targets}"
    return Conflict("proportional rows", (i, j), (b, -a), reason)
