"""Which way to a verdict about a Jacobian: dense, streamed, through the Gram matrix, or matrix-free.

The triangular factor of the Jacobian's transpose from blocks of its columns, the Jacobian never held.

``J^T = Q R`` with R of order N = n m_y has J's singular values and column space: ``J = R^T Q^T``. Columns of J are rows
of ``J^T``, so :func:`alignver.linalg.qr_reduction.streamed_r` takes one block of parameters after the other. Nothing is
squared: singular values carry errors of the order of eps s_1, those from the Gram matrix J J^T of sqrt(eps) s_1.

Operations for N x d: ``(10/3) d N^2`` with stacks of N rows on R, and what the columns cost
(:mod:`alignver.jacobians.columns`). Memory: R and the QR's workspace, at most 4 N^2 numbers, and one block.

A Jacobian in the form that a check can take it in: whole, as the triangle of its streamed QR, or as an operator.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.arrays import EPS, available_memory
from alignver.errors import InvalidInput
from alignver.jacobians.columns import JacobianColumns
from alignver.jacobians.jacobian import bind, differentiate
from alignver.jacobians.operator import JacobianOperator
from alignver.linalg.qr_reduction import streamed_r
from alignver.network.inputs import as_asked, dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, probes, validate_model

__all__ = [
    "ENGINES",
    "JacobianForm",
    "Plan",
    "Streamed",
    "available_memory",
    "count_outputs",
    "gram_first",
    "plan",
    "planned",
    "represent",
    "streamed_qr",
]
ENGINES = ("dense", "streamed", "gram", "matrix-free")
"""From the one that says most to the one that needs least."""

_BLOCK_BYTES = 1 << 28  # the default block of alignver.jacobians.columns
_TEMPORARIES = 1 << 28  # of the chunks that a dense Jacobian is filled by
_PATIENCE = 1e16  # operations: a day at 10^11 a second, what a large CPU or a small GPU does in float64
_SOON = 2e10  # operations: about a second of dense linear algebra on a CPU
_FACTORS = 1 << 29  # bytes of layer factors beside the Gram matrix
_LSMR = 200  # products with J and its transpose: a typical number of iterations, not a bound


@dataclasses.dataclass(frozen=True)
class Plan:
    """An engine and what it takes.

    Attributes
    ----------
    engine : str
        One of :data:`ENGINES`.
    reason : str
        One sentence: why this one.
    peak_bytes : int
        Memory beside the model and a pass of it.
    flops : float
        Operations of the linear algebra; the passes of the model come on top, and sizes do not tell what they cost.
    """

    engine: str
    reason: str
    peak_bytes: int
    flops: float


def plan(
    n: int,
    m_y: int,
    d: int,
    *,
    dtype: str = "float64",
    memory: int | None = None,
    engine: str | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> Plan:
    """Choose how to decide about the Jacobian of n samples, m_y outputs and d parameters, N = n m_y.

    In this order, the first that fits into memory (and, except matrix-free, takes at most 10^16 operations):

    - ``dense``: J, N d numbers; then QR and SVD. Every check, every proof.
    - ``streamed`` (for d > N): R of J^T = Q R, 4 N^2 numbers and a block of columns. As accurate as dense.
    - ``gram``: J J^T from the layers' factors, 5 N^2 numbers and the factors. It may prove that every target is
      reached, and refutes nothing: squaring costs half of the digits. So it is never the last word, but where it is
      cheaper than what comes after it, it is tried first (:func:`gram_first`).
    - ``matrix-free``: LSMR on products with J, about eight vectors. Bounds, and UNDECIDED where they do not tell.

    Parameters
    ----------
    n, m_y, d : int
        Sizes, at least 1.
    dtype : str
        In which J is computed; decisions are made in float64 always.
    memory : int, optional
        Bytes that may be taken; by default what is free now (:func:`available_memory`).
    engine : str, optional
        Overrules the choice; the reason then says what it takes.
    block_bytes : int
        Size of a block of the streamed engine.

    Returns
    -------
    Plan

    Raises
    ------
    InvalidInput
        A size below 1, an unknown engine or dtype.

    Examples
    --------
    >>> print(plan(100, 10, 11_000_000, memory=16 * 10**9).reason)
    streamed: 0.3 GB; dense would take 176 GB of the 16.0 GB there are
    >>> plan(100, 10, 11_000_000, memory=16 * 10**9, engine="gram").engine
    'gram'
    >>> plan(60000, 10, 11_000_000, memory=16 * 10**9).engine
    'matrix-free'
    """
    for name, value in (("n", n), ("m_y", m_y), ("d", d), ("block_bytes", block_bytes)):
        _require_size(name, value)
    if dtype not in EPS:
        raise InvalidInput("dtype", repr(dtype), "one of " + ", ".join(sorted(EPS)))
    if engine is not None and engine not in ENGINES:
        raise InvalidInput("engine", repr(engine), "one of " + ", ".join(ENGINES))
    if memory is not None:
        _require_size("memory", memory)
    room = available_memory() if memory is None else memory
    plans = {name: _cost(name, n * m_y, d, dtype, block_bytes) for name in ENGINES}
    if engine is not None:
        peak, flops = plans[engine]
        said = f"{engine}, as asked: {_gb(peak)}"
        if peak > room:
            said += f", which is more than the {_gb(room)} there are"
        return Plan(engine, said, peak, flops)
    against = []
    for name in ENGINES:
        peak, flops = plans[name]
        if name == "streamed" and d <= n * m_y:
            against.append(f"streamed saves nothing with {d} parameters for {n * m_y} outputs")
        elif name != "matrix-free" and peak > room:
            against.append(f"{name} would take {_gb(peak)} of the {_gb(room)} there are")
        elif name != "matrix-free" and flops > _PATIENCE:
            against.append(f"{name} would take {flops:.0e} operations")
        else:
            break
    reason = "; ".join([f"{name}: {_gb(peak)}", *against])
    return Plan(name, reason, peak, flops)


def gram_first(n: int, m_y: int, d: int, chosen: Plan, *, memory: int | None = None) -> bool:
    """Whether a proof through the Gram matrix is worth trying before the chosen engine is started.

    It has to be possible (d >= N), to fit into memory, and the chosen engine to take more than about a second, and more
    than the factorizations of the Gram matrix, N^3 each. What the products of the layers' factors take, their structure
    tells later.

    Examples
    --------
    >>> gram_first(100, 10, 11_000_000, plan(100, 10, 11_000_000, memory=16 * 10**9), memory=16 * 10**9)
    True
    >>> gram_first(100, 1, 1000, plan(100, 1, 1000, memory=16 * 10**9), memory=16 * 10**9)
    False
    """
    N = n * m_y
    peak, _ = _cost("gram", N, d, "float64", _BLOCK_BYTES)
    room = available_memory() if memory is None else memory
    return d >= N and peak <= room and chosen.flops > max(_SOON, 8.0 * float(N) ** 3)


def _cost(engine: str, N: int, d: int, dtype: str, block_bytes: int) -> tuple[int, float]:
    """Bytes at the peak, and operations."""
    item = {"float64": 8, "float32": 4}.get(dtype, 2)
    small, large = min(N, d), max(N, d)
    # Householder QR of a tall matrix 2 l s^2 - 2 s^3 / 3; SVD of the triangle with one side 21 s^3 (Golub and Van
    # Loan, 4th ed., section 5.2 and figure 8.6.1).
    svd = 21.0 * small**3
    if engine == "dense":
        # J; widened to float64 when it is not; the largest of the chunks it is filled by, the copy that a proof works
        # on and the SVD's workspace.
        widened = 0 if item == 8 else 8 * N * d
        work = max(min(_TEMPORARIES, 2 * item * N * d), 8 * N * d, 8 * 8 * small**2)
        return item * N * d + widened + work, 2.0 * large * small**2 - 2.0 / 3.0 * small**3 + svd
    if engine == "streamed":
        # stacks of N rows on R: d / N of them, each a QR of 2 N x N, 2 (2 N) N^2 - 2 N^3 / 3
        return 8 * 4 * N**2 + max(block_bytes, item * N**2), math.ceil(d / N) * (10.0 / 3.0) * N**3 + svd
    if engine == "gram":
        # N^2 products of rows at most (structure makes it less), then Cholesky a few times: the matrix, a share of a
        # layer, the factor and what it is made in
        return 8 * 5 * N**2 + _FACTORS, 2.0 * N**2 * d + N**3
    return 8 * 8 * (N + d), 2.0 * _LSMR * 4.0 * float(N) * float(d)


def _gb(size: int) -> str:
    if size < 10**8:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.1f} GB" if size < 5e10 else f"{size / 1e9:.0f} GB"


def _require_size(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(name, f"{name}={value!r}", "an integer of at least 1")


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
        As in :func:`alignver.jacobians.jacobian.jacobian`; the model is left as it was.
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


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianForm:
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
    validate_model(model)
    with preserve_state(model):
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
) -> JacobianForm:
    """Compute what stands for the Jacobian, in the form that was chosen.

    Raises
    ------
    InvalidInput
        Whatever :func:`alignver.jacobians.jacobian.jacobian` refuses.
    """
    if chosen.engine == "dense":
        J = differentiate(model, x, chunk_size=chunk_size, dtype=dtype)
        return JacobianForm(J.matrix, J.n, J.m_y, J.slots.d, J.computed_in, J.engine, dtype_name(J.matrix.dtype))
    if chosen.engine == "streamed":
        S = streamed_qr(model, x, dtype=dtype, chunk_size=chunk_size)
        words = f"{S.engine}; {chosen.reason}; the triangle R^T of its streamed QR stands for J"
        return JacobianForm(S.r.T.contiguous(), S.n, S.m_y, S.d, S.computed_in, words, dtype_name(S.r.dtype))
    P = JacobianOperator(model, x, dtype=dtype, chunk_size=chunk_size)
    words = f"products with J only; {chosen.reason}"
    return JacobianForm(P, P.n, P.m_y, P.shape[1], P.computed_in, words, dtype_name(P.dtype))
