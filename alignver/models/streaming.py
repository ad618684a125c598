"""The triangular factor of the Jacobian's transpose from blocks of its columns, the Jacobian never held.

``J^T = Q R`` with R of order N = n m_y has J's singular values and column space: ``J = R^T Q^T``. Columns of J are rows
of ``J^T``, so :func:`alignver.linalg.reduction.streamed_r` takes one block of parameters after the other. Nothing is
squared: singular values carry errors of the order of eps s_1, those from the Gram matrix J J^T of sqrt(eps) s_1.

Operations for N x d: ``(10/3) d N^2`` with stacks of N rows on R, and what the columns cost
(:mod:`alignver.models.columns`). Memory: R and the QR's workspace, at most 4 N^2 numbers, and one block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.linalg.reduction import streamed_r
from alignver.models.columns import JacobianColumns

__all__ = ["Streamed", "streamed_qr"]


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """The triangular factor of J^T and how it was computed.

    Attributes
    ----------
    r : torch.Tensor
        (min(N, d), N) upper triangular (trapezoidal) float64 on the model's device, ``J J^T = r^T r``.
    n, m_y, d : int
        Samples, outputs, parameters.
    blocks, passes : int
        Blocks of columns; forward passes of the model, counted in samples divided by n.
    engine, computed_in : str
        How the columns were computed; the coarsest dtype that a forward pass rounds to.
    """

    r: torch.Tensor
    n: int
    m_y: int
    d: int
    blocks: int
    passes: float
    engine: str
    computed_in: str


def streamed_qr(
    model: nn.Module,
    X: Any,
    *,
    block_bytes: int | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
) -> Streamed:
    """Return R of ``J^T = Q R`` for the Jacobian of a model, never holding J.

    Parameters
    ----------
    model, X, dtype, include_frozen
        As in :func:`alignver.models.jacobian.jacobian`; the model is left as it was.
    block_bytes : int, optional
        Size of one block of columns (256 MB). Memory: at most 4 N^2 float64 numbers and one block, beside what the
        model and a pass over ``chunk_size`` samples take.
    chunk_size : int, optional
        Samples of one pass of the model.

    Returns
    -------
    Streamed
        ``r.T`` has the singular values and the column space of J: it stands for J in
        :func:`~alignver.checks.membership.check_membership` and :func:`~alignver.checks.rank.check_rank`, the dtype
        that a tolerance goes by being ``computed_in``.

    Raises
    ------
    InvalidInput
        A model or inputs that no check can be about; a derivative that is NaN or Inf; an invalid size.

    Notes
    -----
    Rigor: floating point; Householder QR is backward stable column by column of J^T, so the singular values of r are
    those of J + E with ||E|| of the order of eps ||J||.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> found = streamed_qr(model, [[3.0, 0.0], [4.0, 5.0]])
    >>> abs(found.r.T) @ abs(found.r)  # J J^T
    tensor([[ 9., 12.],
            [12., 41.]], dtype=torch.float64)
    """
    columns = JacobianColumns(
        model, X, block_bytes=block_bytes, dtype=dtype, include_frozen=include_frozen, chunk_size=chunk_size
    )
    r = streamed_r(columns.row_blocks(), columns.shape[0], f"streamed QR, {columns.shape[0]} x {columns.shape[1]}")
    wide = torch.from_numpy(r) if isinstance(r, np.ndarray) else r
    n, m_y, d = columns.n, columns.m_y, columns.shape[1]
    passes = columns.samples_run / n
    return Streamed(wide, n, m_y, d, columns.blocks_made, passes, columns.engine, columns.computed_in)
