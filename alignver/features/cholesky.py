r"""Positive definiteness of a large Gram matrix, by a verified Cholesky factorization by tile columns.

The matrix comes in tiles, from the features and gates of a last hidden layer or from the layer factors of a Jacobian
(:mod:`alignver.proof.gram_tiles`). The factorization is left-looking: a tile column is assembled from the factors,
reduced by the finished ones, factored and stored. One triangle is stored; the Gram matrix is not.

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
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from alignver.arrays import Array, host
from alignver.errors import InvalidInput
from alignver.features import tiles
from alignver.features.cluster import Cluster
from alignver.features.threads import ordered, single_threaded_blas
from alignver.features.tiles import Column, FolderStore, Store, factor_diagonal, open_store, solve_piece
from alignver.kernel.failure import Unsupported
from alignver.kernel.machine import arithmetic_fault, require_ieee
from alignver.progress import track
from alignver.proof.cholesky import substitution_fault
from alignver.proof.factored_gram import FactoredRank, Layer, in_ball, scaled_layers
from alignver.proof.gram_tiles import FactoredGram, ScaledGram
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    U,
    add_up,
    div_up,
    gamma,
    mul_up,
    scale_down,
    scale_up,
    sqrt_down,
    sub_down,
)

TILE = 1024
_ROOM = 0.8  # the share of the proved bound that is claimed

Maker: TypeAlias = Callable[[Column], Array | int]
"""Computes a tile column, or returns the row of its diagonal tile where the factorization breaks down."""


@dataclasses.dataclass(frozen=True)
class Definite:
    """The result of the factorization.

    Attributes
    ----------
    proved : bool
        The matrix J has full row rank, for every perturbation within ``moved`` and the radius.
    s_min : float
        Verified lower bound of s_min(J).
    scaled_s_min : float
        The same for D J, rows scaled by powers of two.
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
    radius: float = 0.0,
    tile: int = TILE,
    folder: str | os.PathLike[str] | None = None,
    place: Array | None = None,
    cluster: Cluster | None = None,
) -> Definite:
    r"""Prove that the rows of J are independent, from the Gram matrix of the scaled rows D J.

    The factorization of the computed matrix minus (margin + t) I runs to completion, with a margin of twice the
    rounding of assembly and factorization: so :math:`s_{\min}(D \hat J) > \sqrt t` for the matrix of the computed
    factors, and :math:`s_{\min}(D J) > \sqrt t - \|D (J - \hat J)\|` for the exact one. t is the margin, or four times
    the square of that difference and the radius, whichever is larger.

    Parameters
    ----------
    gram : ScaledGram
    radius : float
        The bound of s_min(D J) that is needed: the radius of a ball around D J in which every matrix has full row rank.
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
    n = gram.order
    trace, largest = mul_up(gram.trace, 1.0 + 2.0**-10), mul_up(gram.largest, 1.0 + 2.0**-10)
    backward = tiled_shift(n, tile, trace, largest)
    # Slightly more than twice the theorem's bound: an independent re-check by another bound needs some of the room.
    margin = add_up(mul_up(2.0, add_up(gram.error, backward)), mul_up(32.0 * U, trace))
    moved = add_up(gram.moved, gram.slack)
    shift = max(margin, mul_up(4.0, add_up(moved, radius), add_up(moved, radius)))
    total = add_up(margin, shift)

    def unproved(reason: str) -> Definite:
        return Definite(False, 0.0, 0.0, margin, shift, reason)

    fault = arithmetic_fault() or substitution_fault()
    if fault:
        return unproved(fault)
    if not total < 0.5 * gram.largest:
        return unproved(f"rounding alone may change the Gram matrix by {margin / gram.largest:.1e} times its scale")
    fault = "" if place is None else tiles.unsupported_arithmetic(place, min(tile, n))
    if fault:
        return unproved(fault)
    digest = "" if folder is None else gram.digest()
    key: dict[str, Any] = {"matrix": digest, "order": n, "tile": tile, "shift": total.hex(), "format": 1}
    matrix: FactoredGram = gram
    make: Maker | None = None
    with single_threaded_blas(), np.errstate(all="ignore"):
        if cluster is None:
            store = open_store(folder, key, place)
            if place is not None:
                matrix, make = gram.at(place), tiles.make_on_device
        elif folder is None:
            need = "a folder that this process and all workers share"
            raise InvalidInput("folder", "a client without a folder", need, "conflicting-arguments")
        else:
            store = FolderStore(folder, key)
            make = cluster.maker(gram, store)
        taken = store.finished
        try:
            row = factor_tiles(matrix, total, tile, store, make)
        except Unsupported as error:
            return unproved(str(error))
    if row is not None:
        return unproved(f"the Gram matrix is not safely definite: a shift of {total:.1e} breaks Cholesky at row {row}")
    # A re-check by other bounds finds a little less.
    smallest = _ROOM * sub_down(sqrt_down(shift), moved)
    s_min = scale_down(smallest, -int(gram.exponents.max()))
    return Definite(smallest > radius, s_min, max(0.0, smallest), margin, shift, taken=taken)


def row_rank_by_tiles(
    layers: Sequence[Layer],
    radius: Callable[[float], float],
    *,
    tile: int = TILE,
    folder: str | os.PathLike[str] | None = None,
    place: Array | None = None,
    cluster: Cluster | None = None,
) -> FactoredRank:
    r"""Prove that every matrix in a ball around the one that the factors of the layers define has full row rank.

    As :func:`~alignver.proof.factored_gram.row_rank_by_factors`, with the same bounds, by one factorization in tile
    columns: N^2 / 2 numbers of memory, or of the folder, in place of a few N^2. The bound of s_min is not the largest
    possible one: at least 1.6 times the radius of the ball.

    Parameters
    ----------
    layers : sequence of Layer
    radius : callable
        Maps an upper bound of the Frobenius norm of the matrix to the radius of the ball (spectral norm).
    tile, folder, place, cluster
        As in :func:`prove_definite`.

    Returns
    -------
    FactoredRank
        ``proved`` is a PROOF, unless tile columns of another process were ``taken``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layer = Layer("w", rng.standard_normal((5, 1, 4)), rng.standard_normal((2, 5, 1, 3)))
    >>> row_rank_by_tiles([layer], lambda size: 1e-12 * size, tile=4).proved
    True
    """
    gram = scaled_layers(layers)
    if isinstance(gram, str):
        return FactoredRank(False, 0.0, gram)
    with single_threaded_blas(), np.errstate(all="ignore"):
        size = gram.size(gram.diagonal())
    delta = radius(size)
    scaled = mul_up(scale_up(delta, int(gram.exponents.max())), 1.0 + 2.0**-10)
    definite = prove_definite(gram, radius=scaled, tile=tile, folder=folder, place=place, cluster=cluster)
    if not definite.proved:
        return FactoredRank(False, definite.s_min, definite.reason)
    proved = in_ball(gram, definite.scaled_s_min, definite.shift, definite.margin, size, delta)
    return dataclasses.replace(proved, taken=definite.taken)


def factor_tiles(gram: FactoredGram, total: float, tile: int, store: Store, make: Maker | None = None) -> int | None:
    """Factor the computed Gram matrix minus ``total`` I into ``store``; return None, or the row of the breakdown."""
    make = make or make_with_threads
    for j in track(range(-(-gram.order // tile)), "Cholesky"):
        if j < store.finished:
            _require_factor(store[j], gram.order - j * tile, tile)
            continue
        column = make(Column(gram, total, tile, j, store))
        if isinstance(column, int):
            return j * tile + column
        store.append(column)
    for j in range(store.finished):  # columns may have changed after they were read, by this process or by workers
        store.require_unchanged(j)
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
    def checked(rows: slice) -> None:
        require_ieee()  # in the thread that does the work
        with np.errstate(all="ignore"):
            work(rows)

    for _ in ordered(checked, ((rows,) for rows in pieces)):
        pass
