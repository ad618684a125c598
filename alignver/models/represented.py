"""A Jacobian in the form that a check can take it in: whole, as the triangle of its streamed QR, or as an operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.models.checkable import probe, probes, require_checkable
from alignver.models.guard import unchanged
from alignver.models.jacobian import bind, differentiate
from alignver.models.operator import JacobianOperator
from alignver.models.planner import ENGINES, Plan, plan
from alignver.models.precision import as_asked, dtype_name
from alignver.models.streaming import streamed_qr

__all__ = ["Represented", "count_outputs", "planned", "represent"]


@dataclasses.dataclass(frozen=True, eq=False)
class Represented:
    """What stands for the N x d Jacobian in a question about its column space.

    Attributes
    ----------
    matrix : torch.Tensor, JacobianOperator or None
        J itself; R^T of J^T = Q R, N x N, which has its column space and singular values; or products with J. None
        where the factors of its layers were enough.
    n, m_y, d : int
        Samples, outputs, parameters.
    computed_in : str
        The coarsest dtype on the way.
    words : str
        How it was computed.
    dtype : str
        The dtype of the entries, or of the products.
    """

    matrix: Any
    n: int
    m_y: int
    d: int
    computed_in: str
    words: str
    dtype: str


def count_outputs(model: nn.Module, x: torch.Tensor, dtype: str | None) -> int:
    """Return m_y from a few evaluations, refusing what no check can be about before any long work."""
    require_checkable(model)
    with unchanged(model):
        function, inputs = bind(model, probes(x), dtype, include_frozen=False)
        with as_asked(function.device, function.dtype):
            return probe(function, inputs).m_y


def planned(n: int, m_y: int, d: int, engine: str | None) -> Plan:
    """Choose the form: the one asked for, else the first that fits; of "gram", the one that comes after it.

    Raises
    ------
    InvalidInput
        An engine of another name.
    """
    if engine is not None and engine not in ENGINES:
        raise InvalidInput("engine", repr(engine), "one of " + ", ".join(ENGINES))
    chosen = plan(n, m_y, d, engine=None if engine == "gram" else engine)
    return plan(n, m_y, d, engine="matrix-free") if chosen.engine == "gram" else chosen


def represent(
    model: nn.Module, x: torch.Tensor, chosen: Plan, *, dtype: str | None, chunk_size: int | None
) -> Represented:
    """Compute what stands for the Jacobian, in the form that was chosen.

    Raises
    ------
    InvalidInput
        Whatever :func:`alignver.models.jacobian.jacobian` refuses.
    """
    if chosen.engine == "dense":
        J = differentiate(model, x, chunk_size=chunk_size, dtype=dtype)
        return Represented(J.matrix, J.n, J.m_y, J.slots.d, J.computed_in, J.engine, dtype_name(J.matrix.dtype))
    if chosen.engine == "streamed":
        S = streamed_qr(model, x, dtype=dtype, chunk_size=chunk_size)
        words = f"{S.engine}; {chosen.reason}; the triangle R^T of its streamed QR stands for J"
        return Represented(S.r.T.contiguous(), S.n, S.m_y, S.d, S.computed_in, words, dtype_name(S.r.dtype))
    P = JacobianOperator(model, x, dtype=dtype, chunk_size=chunk_size)
    words = f"products with J only; {chosen.reason}"
    return Represented(P, P.n, P.m_y, P.shape[1], P.computed_in, words, dtype_name(P.dtype))
