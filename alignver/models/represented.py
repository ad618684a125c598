"""A Jacobian in the form that a check can take it in: whole, as the triangle of its streamed QR, or as an operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.models.checkable import probe, require_checkable
from alignver.models.guard import unchanged
from alignver.models.jacobian import bind, differentiate
from alignver.models.operator import JacobianOperator
from alignver.models.planner import plan
from alignver.models.precision import as_asked
from alignver.models.slots import slots
from alignver.models.streaming import streamed_qr

__all__ = ["FORMS", "Represented", "count_outputs", "represent"]

FORMS = ("dense", "streamed", "matrix-free")


@dataclasses.dataclass(frozen=True, eq=False)
class Represented:
    """What stands for the N x d Jacobian in a question about its column space.

    Attributes
    ----------
    matrix : torch.Tensor or JacobianOperator
        J itself; R^T of J^T = Q R, N x N, which has its column space and singular values; or products with J.
    n, m_y, d : int
        Samples, outputs, parameters.
    computed_in : str
        The coarsest dtype on the way.
    words : str
        How it was computed.
    """

    matrix: Any
    n: int
    m_y: int
    d: int
    computed_in: str
    words: str

    @property
    def dtype(self) -> str:
        """The dtype of the entries, or of the products."""
        return str(self.matrix.dtype).rpartition(".")[2]

    def equalise(self, groups: list[list[int]]) -> None:
        """Give samples with equal inputs the same rows to the last bit: rounding may tell them apart, J does not."""
        if not isinstance(self.matrix, torch.Tensor):
            return
        rows = self.matrix.view(self.m_y, self.n, -1)
        for first, *others in groups:
            for other in others:
                rows[:, other] = rows[:, first]


def count_outputs(model: nn.Module, x: torch.Tensor, dtype: str | None) -> int:
    """Return m_y from a few evaluations, refusing what no check can be about before any long work."""
    require_checkable(model)
    with unchanged(model):
        function, inputs = bind(model, x, dtype, include_frozen=False)
        with as_asked(function.device, function.dtype):
            return probe(function, inputs).m_y


def represent(
    model: nn.Module, x: torch.Tensor, m_y: int, *, engine: str | None, dtype: str | None, chunk_size: int | None
) -> Represented:
    """Compute what stands for the Jacobian, in the form that fits into memory, or in the one that is asked for.

    Raises
    ------
    InvalidInput
        An engine of another name; whatever :func:`alignver.models.jacobian.jacobian` refuses.
    """
    if engine is not None and engine not in FORMS:
        raise InvalidInput("engine", repr(engine), "one of " + ", ".join(FORMS))
    n, d = len(x), slots(model).d
    chosen = plan(n, m_y, d, engine=engine)
    if chosen.engine == "dense":
        J = differentiate(model, x, chunk_size=chunk_size, dtype=dtype)
        return Represented(J.matrix, J.n, J.m_y, J.slots.d, J.computed_in, J.engine)
    if chosen.engine == "streamed":
        S = streamed_qr(model, x, dtype=dtype, chunk_size=chunk_size)
        words = f"{S.engine}; {chosen.reason}; the triangle R^T of its streamed QR stands for J"
        return Represented(S.r.T.contiguous(), S.n, S.m_y, S.d, S.computed_in, words)
    P = JacobianOperator(model, x, dtype=dtype, chunk_size=chunk_size)
    return Represented(P, P.n, P.m_y, P.shape[1], P.computed_in, f"products with J only; {chosen.reason}")
