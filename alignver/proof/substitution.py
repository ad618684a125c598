r"""Whether the BLAS and LAPACK of SciPy factor and solve as proofs by Cholesky assume: by substitution, in any order.

**Integers.** L has ones on its diagonal, large integers below them and small ones elsewhere, so that the entries of
:math:`|L| |L^T|` are below :math:`2^{53}`. Every intermediate result of a factorization of :math:`L L^T`, or of a solve
with L, is an integer below that, in any order and with any blocks: L itself comes out. The inverses of diagonal blocks
of order 3 or more have entries of :math:`2^{50}`, so a routine that multiplies by them does not give L.

**Grades.** :math:`D A D` has the factor :math:`D L`, D a diagonal of powers of two, and each rounding error is scaled
with it. A scheme that adds entries of different rows, like Strassen's, loses the small rows.

Multiplying by the rounded reciprocal of a pivot is allowed: :func:`alignver.proof.cholesky.rump_shift` has room for it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from alignver.kernel.machine import distributed_fault, distrusted, product_fault, thread_fault

_LARGE, _SMALL = 2**25, 2**12  # products with up to 2^16 terms stay below 2^53
_GRADES = 40


def substitution_fault() -> str:
    """Return how SciPy's BLAS and LAPACK deviate from what a proof by Cholesky assumes; an empty string if not.

    The test runs once in a process, in a thread that rounds to nearest.

    Examples
    --------
    >>> substitution_fault()
    ''
    """
    return thread_fault() or distrusted("factorizations") or _tested()


@functools.cache
def _tested() -> str:
    fault = distributed_fault(multiply=blas_product) or product_fault(96, blas_product)
    return f"SciPy's BLAS: {fault}" if fault else solve_fault(72)


def blas_product(A: Any, B: Any) -> Any:
    """Return the product of two matrices, or of two vectors, by SciPy's BLAS."""
    return blas.dgemm(1.0, A, B) if A.ndim == 2 else blas.ddot(A, B)


def solve_fault(order: int) -> str:
    """Return how a factorization and a triangular solve of this order deviate from substitution.

    Examples
    --------
    >>> solve_fault(20)
    ''
    """
    source = np.random.default_rng(order)
    L = np.tril(source.integers(-_SMALL, _SMALL, (order, order)), -1)
    np.fill_diagonal(L, 1)
    L[np.arange(1, order), np.arange(order - 1)] = _LARGE
    lower, X = L.astype(np.float64), source.integers(-_SMALL, _SMALL, (32, order))
    # As in alignver.proof.cholesky and alignver.features.tiles: a row-major lower triangle is LAPACK's upper one.
    factor, info = lapack.dpotrf((L @ L.T).astype(np.float64).T, lower=0, clean=1)
    if info != 0 or not np.array_equal(factor.T, lower):
        return f"LAPACK's Cholesky factorization of order {order} is not computed by substitution"
    if not np.array_equal(blas.dtrsm(1.0, lower.T, (X @ L.T).T.astype(np.float64), lower=0, trans_a=1), X.T):
        return f"triangular solves of order {order} are not computed by substitution"
    powers = 2.0 ** source.integers(-_GRADES, _GRADES, order)
    A = np.eye(order) + source.uniform(-0.5 / order, 0.5 / order, (order, order))
    A = np.tril(A) + np.tril(A, -1).T  # dominated by its diagonal: the factor's condition number is below 3
    (plain, _), (graded, info) = (
        lapack.dpotrf(M, lower=0, clean=1) for M in (A, powers[:, None] * A * powers[None, :])
    )
    # Both are within n u of the exact factor, up to a small factor: far from what grades of 2^-40 lose.
    same = info == 0 and bool(np.all(np.abs(graded / powers - plain) <= order * 2.0**-46))
    return "" if same else f"LAPACK's Cholesky factorization of order {order} does not compute inner products"
