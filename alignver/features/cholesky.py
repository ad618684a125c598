r"""Positive definiteness of a large Gram matrix, by a verified Cholesky factorization by tile columns.

The factorization is left-looking: a tile column is assembled from Z and T, reduced by the finished ones, factored and
stored. One triangle is stored; the Gram matrix is not.

The bound. Let b be the tile size, K the number of tile columns. Entry (i, j) of the factor results from the products
l_ik l_jk. Those of one finished tile column are multiplied and summed, in any order, with at most b roundings each; the
sum is then subtracted from the entry, in at most K subtractions in turn; the products of the diagonal tile take at most
b more roundings, and the division (or the product with a rounded reciprocal) 2. Divide by the factors that multiply
a_ij: every product then has at most 2b + K + 3 factors 1 + d or their reciprocals, and a_ij is exact, so

.. math:: |L L^\top - \tilde A|_{ij} \le \gamma_{2b+K+3} |l_i|^\top |l_j|

(the argument of Higham 2002, Lemma 8.4, for a tree of sums), instead of :math:`\gamma_{n+2}` for an unknown order. The
rest is Rump's proof as in :func:`alignver.proof.cholesky.rump_shift`: for n = 60000 and b = 1024 the shift is 28 times
smaller, so matrices that are 28 times closer to singular are proved definite.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from alignver.arrays import Array, host
from alignver.errors import InvalidInput
from alignver.features import tiles
from alignver.features.cluster import Cluster
from alignver.features.products import Hadamard, ScaledGram
from alignver.features.threads import ordered, single_threaded_blas
from alignver.features.tiles import Column, FolderStore, Store, factor_diagonal, open_store, solve_piece
from alignver.kernel.floats import arithmetic_fault
from alignver.progress import track
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    U,
    add_up,
    div_up,
    gamma,
    mul_up,
    scale_down,
    sqrt_down,
    sqrt_up,
    sub_down,
)

__all__ = ["Definite", "factor_tiles", "make_with_threads", "prove_definite", "tiled_shift"]

TILE = 1024
_ROOM = 0.8  # the share of the proved bound that is claimed
_LIBRARY = 2.0**-38  # the relative error of a gate in a re-check that relies on a library's exponential

Maker: TypeAlias = Callable[[Column], Array | int]
"""Computes a tile column, or returns the row of its diagonal tile where the factorization breaks down."""


@dataclasses.dataclass(frozen=True)
class Definite:
    """The result of the factorization.

    Attributes
    ----------
    proved : bool
        phi has full row rank, for the exact gates and every Z within the ball.
    s_min : float
        Verified lower bound of s_min(phi).
    scaled_s_min : float
        The same for D phi, rows scaled by powers of two to norms near 1.
    margin, shift : float
        Subtracted from the diagonal: the margin for rounding, and the shift.
    reason : str
        The reason why there is no proof.
    taken : int
        Tile columns that the folder had already, and that the factorization used without computing them again.
    """

    proved: bool
    s_min: float
    scaled_s_min: float
    margin: float
    shift: float
    reason: str = ""
    taken: int = dataclasses.field(default=0, compare=False)


def tiled_shift(n: int, tile: int, trace: float, largest: float) -> float:
    """Return the bound of the backward error ||L L^T - A|| of :func:`factor_tiles`, see the module's derivation.

    Examples
    --------
    >>> tiled_shift(60000, 1024, 60000.0, 1.0) < 1.5e-8
    True
    """
    depth = min(2 * min(tile, n) + -(-n // tile) + 3, n + 2)
    g = gamma(depth)
    if not g < 0.25:
        return math.inf
    underflow = mul_up(8.0, float(n), add_up(float(n + 2), largest), OMEGA)
    return add_up(mul_up(div_up(g, sub_down(1.0, g)), trace), underflow)


def prove_definite(
    gram: ScaledGram,
    *,
    tile: int = TILE,
    folder: str | os.PathLike[str] | None = None,
    place: Array | None = None,
    cluster: Cluster | None = None,
) -> Definite:
    r"""Prove that phi has full row rank, from its scaled Gram matrix.

    The factorization of the computed matrix minus (margin + t) I runs to completion, with a margin of twice the
    rounding of assembly and factorization: so :math:`s_{\min}(D \hat\phi) > \sqrt t` for the computed gate values, and
    :math:`s_{\min}(D \phi) > \sqrt t - \|D (\phi - \hat\phi)\|` for the exact ones. t is the margin or four times
    the square of that difference, whichever is larger.

    Parameters
    ----------
    gram : ScaledGram
    tile : int
        The number of columns that are factored at a time.
    folder : path, optional
        Store the factor's tile columns there instead of in memory, and continue from those that are there.
    place : array, optional
        Compute in its namespace and on its device, where the factor, n^2 / 2 numbers, stays.
    cluster : Cluster, optional
        Compute on its workers, which share ``folder`` with this process.

    Returns
    -------
    Definite
        ``proved`` has the rigor PROOF.

    Examples
    --------
    >>> import numpy as np
    >>> from alignver.features.products import scaled_gram
    >>> source = np.random.default_rng(0)
    >>> Z = np.column_stack([source.standard_normal((30, 4)), np.ones(30)])
    >>> prove_definite(scaled_gram(Z, source.standard_normal((5, 12)))).proved
    True
    """
    n = gram.Z.shape[0]
    trace, largest = mul_up(gram.trace, 1.0 + 2.0**-10), mul_up(gram.largest, 1.0 + 2.0**-10)
    backward = tiled_shift(n, tile, trace, largest)
    # Slightly more than twice the theorem's bound: an independent re-check by another bound needs some of the room.
    margin = add_up(mul_up(2.0, add_up(gram.error, backward)), mul_up(32.0 * U, trace))
    moved = add_up(gram.moved, mul_up(_LIBRARY, sqrt_up(trace)))
    shift = max(margin, mul_up(4.0, moved, moved))
    total = add_up(margin, shift)

    def unproved(reason: str) -> Definite:
        return Definite(False, 0.0, 0.0, margin, shift, reason)

    fault = arithmetic_fault()
    if fault:
        return unproved(fault)
    if not total < 0.5:
        return unproved(f"rounding alone may change the Gram matrix by {margin:.1e} times its scale")
    fault = "" if place is None else tiles.unsupported_arithmetic(place, min(tile, n))
    if fault:
        return unproved(fault)
    key: dict[str, Any] = {"matrix": gram.digest(), "order": n, "tile": tile, "shift": total.hex(), "format": 1}
    matrix: Hadamard = gram
    make: Maker | None = None
    with single_threaded_blas(), np.errstate(all="ignore"):
        if cluster is None:
            store = open_store(folder, key, place)
            if place is not None:
                matrix, make = gram.at(place), tiles.make_on_device
        elif folder is None:
            need = "a folder that this process and all workers share"
            raise InvalidInput("folder", "no folder beside a client", need, "conflicting-arguments")
        else:
            store = FolderStore(folder, key)
            make = cluster.maker(gram, store)
        taken = store.finished
        row = factor_tiles(matrix, total, tile, store, make)
    if row is not None:
        return unproved(
            f"phi phi^T is not safely definite: a shift of {total:.1e} times its scale breaks Cholesky at row {row}"
        )
    # A re-check by other bounds allows for an error of the library's exponential, and finds a little less.
    smallest = _ROOM * sub_down(sqrt_down(shift), moved)
    s_min = scale_down(smallest, -int(gram.exponents.max()))
    return Definite(smallest > 0.0, s_min, max(0.0, smallest), margin, shift, taken=taken)


def factor_tiles(gram: Hadamard, total: float, tile: int, store: Store, make: Maker | None = None) -> int | None:
    """Factor the computed Gram matrix minus ``total`` I into ``store``; return None, or the row of the breakdown."""
    make = make or make_with_threads
    for j in track(range(-(-int(gram.Z.shape[0]) // tile)), "Cholesky"):
        if j < store.finished:
            _require_factor(store[j], int(gram.Z.shape[0]) - j * tile, tile)
            continue
        column = make(Column(gram, total, tile, j, store))
        if isinstance(column, int):
            return j * tile + column
        store.append(column)
    return None


def _require_factor(column: Array, rows: int, tile: int) -> None:
    """Raise InvalidInput for a stored column of another shape, or with pivots that are not positive and finite."""
    columns = min(rows, tile)
    pivots = host(column[:columns, :columns]).diagonal() if column.shape == (rows, columns) else np.zeros(1)
    if not bool(np.all((pivots > 0.0) & (pivots < math.inf))):
        raise InvalidInput("folder", "a tile column that no factorization wrote", "an empty folder", "unreadable-file")


def make_with_threads(column: Column) -> FloatArray | int:
    """Compute a tile column with all cores of this machine."""
    pieces, reduction = column.pieces(), column.reduction()
    whole = np.empty((column.end - column.start, column.stop - column.start))

    def reduce(rows: slice) -> None:
        whole[rows.start - column.start : rows.stop - column.start] = reduction(rows)

    _run_all(reduce, pieces)
    lower = factor_diagonal(whole[: whole.shape[1]])
    if isinstance(lower, int):
        return lower
    whole[: whole.shape[1]] = lower

    def solve(rows: slice) -> None:
        solve_piece(whole[rows.start - column.start : rows.stop - column.start], lower)

    _run_all(solve, pieces[1:])
    return whole


def _run_all(work: Callable[[slice], None], pieces: list[slice]) -> None:
    for _ in ordered(work, ((rows,) for rows in pieces)):
        pass
