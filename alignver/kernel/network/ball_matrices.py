r"""What is proved about matrices of balls: definiteness, quadratic forms of inverses and distances.

Let L be any lower triangular matrix, here about the Cholesky factor of :math:`M - s I` for a small s. As
:math:`L L^\top` is positive semidefinite, the smallest eigenvalue of every symmetric M in the balls is at least that of
:math:`E = M - L L^\top`, which Gershgorin's discs bound:

.. math:: \lambda_{\min}(M) \ge \lambda = \min_i \Bigl(E_{ii} - \sum_{j \ne i} |E_{ij}|\Bigr) .

If that is positive, then for every vector x, with :math:`r = y - M x`,

.. math::
    y^\top M^{-1} y = 2 y^\top x - x^\top M x + r^\top M^{-1} r, \qquad 0 \le r^\top M^{-1} r \le \|r\|^2 / \lambda .

L and x are computed without radii: how well does not matter to the proof. Products of large matrices take almost all
of the time; Arb multiplies blocks of more than 60 rows as matrices of integers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.ball_functions import reciprocal
from alignver.kernel.network.balls import arb, bits, dot, exactly, middle, power, product, square, zeros

_BASE = 24  # order of the blocks that are factored entry by entry
_SINGULAR = "the Gram matrix may be singular in this precision"


@dataclasses.dataclass(frozen=True, eq=False)
class Definite:
    """A matrix that is proved positive definite.

    Attributes
    ----------
    M : (N, N) balls
        The matrix, with rows and columns scaled to a diagonal of about 1.
    scale : (N,) numbers
        The factors of the rows and columns.
    L : (N, N) numbers
        About its Cholesky factor.
    floor : number
        A bound of the smallest eigenvalue of the scaled matrix from below, positive.
    """

    M: Any
    scale: Any
    L: Any
    floor: Any

    def form(self, y: Any) -> Any:
        r"""Return the ball of :math:`y^\top M^{-1} y` for the matrix before scaling.

        Parameters
        ----------
        y : (N,) float64
        """
        target = exactly(y) * self.scale
        x = self._solution(middle(target))
        x = middle(x + self._solution(middle(target - self._times(x))))
        image = self._times(x)
        r = target - image
        below = 2 * dot(target, x) - dot(x, image)
        return below.union(below + dot(r, r) / self.floor)

    def estimates(self, Y: Any) -> list[Any]:
        """Return about the numbers of :meth:`form` for the columns of a matrix."""
        return [dot(row, row).mid() for row in _solved(middle(exactly(Y) * self.scale[:, None]).T, self.L)]

    def pivots(self) -> list[float]:
        """Return about the logarithms to base 2 of the diagonal of L."""
        return [math.log2(mantissa) + int(exponent) for mantissa, exponent in map(_parts, self.L.diagonal())]

    def _times(self, x: Any) -> Any:
        return product(self.M, x[:, None])[:, 0]

    def _solution(self, y: Any) -> Any:
        forward = _solved(y[None, :], self.L)
        return _solved(forward[:, ::-1], self.L[::-1, ::-1].T)[0, ::-1]


def definite(M: Any) -> Definite:
    """Prove that every symmetric matrix in balls is positive definite.

    Raises
    ------
    NotProved
        If the balls may contain another one.
    """
    n = len(M)
    require(all(entry.is_finite() for entry in M.reshape(-1)), "the Gram matrix is not finite in this precision")
    require(all(entry > 0 for entry in M.diagonal()), _SINGULAR)
    scale = np.empty(n, dtype=object)
    for i, entry in enumerate(M.diagonal()):
        mantissa, exponent = _parts(entry)
        scale[i] = power(-(exponent + mantissa.bit_length()) // 2)
    M = M * scale[:, None] * scale
    width = functools.reduce(lambda a, b: a.max(b), (sum((x.rad() for x in row), arb(0)) for row in M))
    shift = (4 * width + n * (n + 8) * power(1 - bits())).mid()  # the residual's radii, and its roundings
    shifted = middle(M)
    for i in range(n):
        shifted[i, i] = (shifted[i, i] - shift).mid()
    L = _cholesky(shifted)
    E = M - square(L)
    floors = [(E[i, i] - sum((abs(E[i, j]) for j in range(n) if j != i), arb(0))).lower() for i in range(n)]
    require(all(floor > 0 for floor in floors), _SINGULAR)
    return Definite(M, scale, L, functools.reduce(lambda a, b: a.min(b), floors))


def _parts(number: Any) -> tuple[int, int]:
    """Return the centre of a ball as a mantissa and an exponent."""
    mantissa, exponent = number.mid().man_exp()
    return int(mantissa), int(exponent)


def _cholesky(A: Any) -> Any:
    """Return about the Cholesky factor of a matrix of numbers, of which the lower triangle is read."""
    n, half = len(A), len(A) // 2
    L = zeros((n, n))
    if n > _BASE:
        L[:half, :half] = _cholesky(A[:half, :half])
        L[half:, :half] = _solved(A[half:, :half], L[:half, :half])
        L[half:, half:] = _cholesky(middle(A[half:, half:] - square(L[half:, :half])))
        return L
    for k in range(n):
        column = middle(A[k:, k] - (L[k:, :k] * L[k, :k]).sum(1)) if k else A[k:, k]
        require(bool(column[0] > 0), _SINGULAR)
        L[k:, k] = middle(column / column[0].sqrt())
    return L


def _solved(B: Any, L: Any) -> Any:
    """Return about the X with X L^T = B, for a lower triangular L."""
    n, half = len(L), len(L) // 2
    if n > _BASE:
        first = _solved(B[:, :half], L[:half, :half])
        rest = middle(B[:, half:] - product(first, L[half:, :half].T))
        return np.concatenate([first, _solved(rest, L[half:, half:])], axis=1)
    X = zeros(B.shape)
    for k in range(n):
        X[:, k] = middle((B[:, k] - (X[:, :k] * L[k, :k]).sum(1) if k else B[:, k]) / L[k, k])
    return X


def squared_distance(J: Any, y: Any) -> Any:
    """Return the ball of the squared distance of y from the columns of J, which are proved to be independent.

    It is the inverse of the last diagonal entry of the inverse of [J y]^T [J y].
    """
    whole = np.concatenate([J, exactly(y)[:, None]], axis=1)
    last = np.zeros(whole.shape[1])
    last[-1] = 1.0
    return reciprocal(definite(square(whole.T)).form(last))[0]


def between(square: Any, low: float, high: float) -> bool:
    """Whether a square, which is in a ball, is between those of two floats; the ball may contain negative numbers."""
    above = high == math.inf or bool(square <= arb(high) ** 2)
    return (low == 0.0 or bool(square >= arb(low) ** 2)) and above
