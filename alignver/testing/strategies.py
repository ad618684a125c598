r"""Hypothesis strategies with answers that are known exactly, by construction in integers.

All matrices are products :math:`J = P \begin{pmatrix} L \\ K \end{pmatrix} \begin{pmatrix} U & V \end{pmatrix} Q` of
small integers with L and U unit triangular (r x r) and permutations P and Q: rank r, and every entry an integer that
float64 holds. :math:`L^{-1}` has integer entries too, so vectors with :math:`w^\top J = 0` follow exactly.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.errors import InvalidInput, MissingDependency

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as missing:
    raise MissingDependency("hypothesis", __name__, "test") from missing

Matrix = npt.NDArray[np.float64]

_MOST = 12  # the largest number of rows and of columns
_RANK = 6  # entries of L^-1 are below 2^_RANK, those of J below 4 * _RANK: far from 2^53
_ACTIVATIONS = ("Tanh", "Sigmoid", "Softplus", "GELU")


@dataclasses.dataclass(frozen=True, eq=False)
class KnownRank:
    """A matrix and its exact rank.

    Attributes
    ----------
    matrix : (N, d) float64
    rank : int
    duplicates : tuple of (int, int)
        Pairs of rows that are equal to the last bit, by construction.
    """

    matrix: Matrix
    rank: int
    duplicates: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class MembershipProblem:
    """Is y in the column space of J?

    Attributes
    ----------
    J : (N, d) float64
    y : (N,) float64
    member : bool
        The exact answer.
    rank : int
        Of J.
    witness : (d,) or (N,) float64
        b with J b = y for a member; w with w^T J = 0 and w^T y != 0 otherwise. Both are exact.
    """

    J: Matrix
    y: Matrix
    member: bool
    rank: int
    witness: Matrix


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentProblem:
    """A torch model with data, and whether it is aligned.

    Attributes
    ----------
    model : torch.nn.Module
    X, Y : arrays
    loss : str
    aligned : bool
        The exact answer, at every theta.
    """

    model: Any
    X: Matrix
    Y: Any
    loss: str
    aligned: bool


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureProblem:
    """Features of a last hidden layer, and whether gates of a width can give phi rank n.

    Attributes
    ----------
    Z : (n, m) float64
        The last column is 1.
    width : int
    explored : bool
        The exact answer: whether some gates do.
    """

    Z: Matrix
    width: int
    explored: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    J: npt.NDArray[np.int64]
    order: list[int]
    lower: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]


@st.composite
def matrices_of_known_rank(
    draw: st.DrawFn,
    *,
    rows: st.SearchStrategy[int] | None = None,
    columns: st.SearchStrategy[int] | None = None,
    rank: int | None = None,
    octaves: int = 0,
    duplicates: bool | None = None,
) -> KnownRank:
    """Draw matrices with integer entries, or integers times powers of two, and their exact rank.

    Parameters
    ----------
    rows, columns : strategies of int, optional
        From 1 to 12 by default.
    rank : int, optional
        At most 6; by default anything from 0 to min(rows, columns, 6).
    octaves : int
        Rows are multiplied by 2^-k with k drawn from 0 to this. The rank stays, and the singular values fall by up
        to as many powers of two: below any tolerance with ``octaves=60``.
    duplicates : bool, optional
        True: two rows are equal. False: no two rows are. None: two rows may be equal by chance.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(matrices_of_known_rank(rank=2))
    ... def test(drawn):
    ...     assert np.linalg.matrix_rank(drawn.matrix) == 2
    >>> test()
    """
    parts, exact = _product(draw, rows, columns, rank)
    J = parts.J.astype(np.float64)
    pairs: tuple[tuple[int, int], ...] = ()
    if octaves:
        J = np.ldexp(J, -np.array(draw(_list(st.integers(0, octaves), len(J))))[:, None])
    if duplicates:
        J = np.vstack([J, J[:1]])
        pairs = ((0, len(J) - 1),)
    elif duplicates is False:
        keep = np.sort(np.unique(J, axis=0, return_index=True)[1])
        J = J[keep]  # the row space, and so the rank, is that of all rows
    return KnownRank(J, exact, pairs)


@st.composite
def membership_problems(
    draw: st.DrawFn,
    *,
    member: bool | None = None,
    rows: st.SearchStrategy[int] | None = None,
    columns: st.SearchStrategy[int] | None = None,
) -> MembershipProblem:
    """Draw J and y with the exact answer to 'is y in the column space of J', and its witness.

    Parameters
    ----------
    member : bool, optional
        By default both are drawn; a J of full row rank has members only.
    rows, columns : strategies of int, optional
        From 1 to 12 by default; rows from 2 where ``member=False``.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(membership_problems(member=False))
    ... def test(problem):
    ...     assert np.all(problem.witness @ problem.J == 0) and problem.witness @ problem.y != 0
    >>> test()
    """
    member_drawn = draw(st.booleans()) if member is None else member
    parts, rank = _product(draw, rows, columns, None, spare=member is False)
    N, d = parts.J.shape
    inside = member_drawn or rank == N
    b = np.array(draw(_list(st.integers(-3, 3), d)), dtype=np.int64)
    y = parts.J @ b
    if inside:
        return MembershipProblem(parts.J.astype(np.float64), y.astype(np.float64), True, rank, b.astype(np.float64))
    row = draw(st.integers(0, N - rank - 1))
    w = np.zeros(N, dtype=np.int64)
    # (-k L^-1, e_row) (L; K) = 0; the last unknown of a triangular system comes first
    w[rank + row] = 1
    for k in reversed(range(rank)):
        w[k] = -(parts.below[row, k] + w[k + 1 : rank] @ parts.lower[k + 1 :, k])
    placed = np.zeros_like(w)
    placed[parts.order] = w
    y = y + draw(st.sampled_from([-2, -1, 1, 2])) * placed
    return MembershipProblem(parts.J.astype(np.float64), y.astype(np.float64), False, rank, placed.astype(np.float64))


@st.composite
def networks(draw: st.DrawFn, *, inputs: int, outputs: int = 1, width: int = 8, depth: int = 3) -> Any:
    """Draw small fully-connected torch networks in float64, analytic, in eval mode; seeded, and shrinking to one layer.

    Parameters
    ----------
    inputs, outputs : int
    width, depth : int
        The most neurons of a hidden layer, and the most weight matrices.
    """
    import torch
    from torch import nn

    sizes = [inputs, *draw(st.lists(st.integers(1, width), max_size=depth - 1)), outputs]
    seed = draw(st.integers(0, 2**16))
    kind = draw(st.sampled_from(_ACTIVATIONS))
    layers: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b, dtype=torch.float64), getattr(nn, kind)()]
    return nn.Sequential(*layers[:-1]).eval()


@st.composite
def alignment_problems(draw: st.DrawFn, *, aligned: bool | None = None) -> AlignmentProblem:
    """Draw models and data with an alignment that is known at every theta.

    Either a linear model without bias, whose Jacobian is X, with targets in its column space or not; or a network with
    two equal inputs that have different labels, so no theta fits them.

    Parameters
    ----------
    aligned : bool, optional
        By default both are drawn.
    """
    import torch
    from torch import nn

    if aligned is not True and draw(st.booleans()):
        n, m_x = draw(st.integers(1, 6)), draw(st.integers(1, 3))
        values = np.array(draw(_list(st.integers(-3, 3), n * m_x)), dtype=np.float64).reshape(n, m_x)
        labels = np.array(draw(_list(st.integers(0, 1), n)), dtype=np.int64)
        X, Y = np.vstack([values, values[:1]]), np.append(labels, 1 - labels[0])
        return AlignmentProblem(draw(networks(inputs=m_x, outputs=2)), X, Y, "cross_entropy", False)
    problem = draw(membership_problems(member=aligned))
    model = nn.Linear(problem.J.shape[1], 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([draw(_list(st.integers(-3, 3), problem.J.shape[1]))]))
    return AlignmentProblem(model, problem.J, problem.y, "squared", problem.member)


@st.composite
def feature_problems(draw: st.DrawFn, *, explored: bool | None = None) -> FeatureProblem:
    """Draw features and a width with the exact answer of safe exploration.

    Explored: rows (t^(m-1), ..., t, 1) with different t, of which any m are independent (Vandermonde), and at least
    ceil(n / m) gates. Not: two equal rows, or too few columns of phi (width m < n).

    Parameters
    ----------
    explored : bool, optional
        By default both are drawn.
    """
    enough = draw(st.booleans()) if explored is None else explored
    m = draw(st.integers(2, 4))
    points = draw(st.lists(st.integers(-8, 8), min_size=3, max_size=12, unique=True))
    t = np.array(points, dtype=np.float64) / 8.0
    Z = t[:, None] ** np.arange(m - 1, -1, -1.0)
    least = -(-len(Z) // m)
    if enough:
        return FeatureProblem(Z, least + draw(st.integers(0, 2)), True)
    narrow = (len(Z) - 1) // m  # the most gates with fewer columns than rows
    if narrow >= 1 and draw(st.booleans()):
        return FeatureProblem(Z, draw(st.integers(1, narrow)), False)
    return FeatureProblem(np.vstack([Z, Z[:1]]), least + 2, False)


def _product(
    draw: st.DrawFn,
    rows: st.SearchStrategy[int] | None,
    columns: st.SearchStrategy[int] | None,
    rank: int | None,
    *,
    spare: bool = False,
) -> tuple[_Parts, int]:
    if rank is not None:
        require.integer("rank", rank, least=0, most=_RANK)
    least = max(rank or 0, 1)
    N = draw(st.integers(least + spare, _MOST) if rows is None else rows)
    d = draw(st.integers(least, _MOST) if columns is None else columns)
    most = min(N - spare, d, _RANK)
    if (rank is not None and rank > most) or most < 0:
        got = f"{rank} for {N} rows and {d} columns"
        raise InvalidInput("rank", got, f"at most {most}", "conflicting-arguments")
    r = draw(st.integers(0, most)) if rank is None else rank
    entry = st.integers(-1, 1)
    left = np.array(draw(_list(entry, N * r)), dtype=np.int64).reshape(N, r)
    right = np.array(draw(_list(st.integers(-2, 2), r * d)), dtype=np.int64).reshape(r, d)
    left[:r] = np.tril(left[:r], -1) + np.eye(r, dtype=int)
    right[:, :r] = np.triu(right[:, :r], 1) + np.eye(r, dtype=int)
    order = draw(st.permutations(range(N)))
    J = np.zeros((N, d), dtype=np.int64)
    J[order] = (left @ right)[:, draw(st.permutations(range(d)))]
    return _Parts(J, list(order), left[:r], left[r:]), r


def _list(values: st.SearchStrategy[int], size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(values, min_size=size, max_size=size)
