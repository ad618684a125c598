"""The form of a Jacobian in a check: the dense matrix, the triangle of its streamed QR, or an operator.

:func:`plan` chooses the engine from sizes and memory, :func:`represent` computes the form, and :func:`streamed_qr`
computes the triangular factor of the Jacobian's transpose from blocks of its columns, without the Jacobian in memory.

``J^T = Q R`` with R of order N = n m_y has J's singular values and column space: ``J = R^T Q^T``. Columns of J are rows
of ``J^T``, so :func:`alignver.linalg.qr_reduction.streamed_r` takes one block of parameters after the other. J is not
squared: singular values have errors of the order of eps s_1, those from the Gram matrix J J^T of sqrt(eps) s_1.

Operations for N x d: ``(10/3) d N^2`` with stacks of N rows on R, and the cost of the columns
(:mod:`alignver.jacobians.columns`). Memory: R and the QR's workspace, at most 4 N^2 numbers, and one block.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver import require
from alignver.arrays import EPS, available_memory
from alignver.jacobians.columns import BLOCK_BYTES, JacobianColumns
from alignver.jacobians.compression import CompressedJacobian
from alignver.jacobians.jacobian import bound_copy, differentiate, probed_copy
from alignver.jacobians.operator import JacobianOperator
from alignver.linalg.qr_reduction import streamed_r
from alignver.network.functional import parameter_layout
from alignver.network.inputs import dtype_name
from alignver.network.validate_model import Probed, probes, validate_model

ENGINES = ("dense", "streamed", "gram", "matrix-free")
"""In the order of decreasing information and decreasing cost."""

_TEMPORARIES = 1 << 28  # bytes of the chunks of a dense Jacobian
_MOST_FLOPS = 1e16  # a day at 10^11 operations per second, as a large CPU or a small GPU performs in float64
_ONE_SECOND = 2e10  # operations: about a second of dense linear algebra on a CPU
_FEWER = 0.9  # share of the entries up to which leaving out the others saves more than the layers' factors cost
_FACTORS = 1 << 29  # bytes of layer factors beside the Gram matrix
_LAST = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSigmoid": "log-sigmoid", "Hardsigmoid": "hard sigmoid"}
_REARRANGED = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Slice", "Select", "ToCopy", "Clone",
               "Alias", "Transpose", "T", "Permute", "Cat", "Stack", "Clamp", "ClampMin", "ClampMax")  # fmt: skip
_SUM = 1e-3  # how far from 1 the sum of probabilities may be that are rounded or clamped
_LSMR = 200  # products with J and its transpose: a typical number of iterations, not a bound


@dataclasses.dataclass(frozen=True)
class Plan:
    """An engine and its cost.

    Attributes
    ----------
    engine : str
        One of :data:`ENGINES`; "compressed" for J J^T of the layers' factors in twice the precision.
    reason : str
        One sentence: the reason of the choice.
    peak_bytes : int
        Memory, without the model and a pass of it.
    flops : float
        Operations of the linear algebra, without the passes of the model, whose cost the sizes do not determine.
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
    block_bytes: int = BLOCK_BYTES,
) -> Plan:
    """Choose the engine for the Jacobian of n samples, m_y outputs and d parameters, N = n m_y.

    The choice is the first engine that fits in memory (and, except matrix-free, takes at most 10^16 operations):

    - ``dense``: J, N d numbers; then QR and SVD. It supports every check and every proof.
    - ``streamed`` (for d > N): R of J^T = Q R, 4 N^2 numbers and a block of columns. As accurate as dense.
    - ``gram``: J J^T from the layers' factors, N^2 / 2 numbers and the factors. It may prove that every target is
      reached, but cannot refute that: squaring loses half of the digits. So the next engine still follows it; if it is
      cheaper than that engine, or gives more, it is tried first (:func:`gram_first`).
    - ``matrix-free``: LSMR on products with J, about eight vectors. It gives bounds; the verdict is UNDECIDED if they
      do not decide.

    Parameters
    ----------
    n, m_y, d : int
        Sizes, at least 1.
    dtype : str
        Of the computation of J; decisions are always made in float64.
    memory : int, optional
        Available bytes; by default the free memory (:func:`available_memory`).
    engine : str, optional
        Replaces the choice; the reason then states its cost.
    block_bytes : int
        Size of a block of the streamed engine.

    Returns
    -------
    Plan

    Raises
    ------
    InvalidInput
        A size is below 1; the engine or the dtype is unknown.

    Examples
    --------
    >>> print(plan(100, 10, 11_000_000, memory=16 * 10**9).reason)
    streamed: 0.3 GB; dense would take 176 GB, more than the 16.0 GB available
    >>> plan(100, 10, 11_000_000, memory=16 * 10**9, engine="gram").engine
    'gram'
    >>> plan(60000, 10, 11_000_000, memory=16 * 10**9).engine
    'matrix-free'
    """
    for name, value in (("n", n), ("m_y", m_y), ("d", d), ("block_bytes", block_bytes)):
        require.integer(name, value, least=1)
    require.one_of("dtype", dtype, sorted(EPS))
    if engine is not None:
        require.one_of("engine", engine, ENGINES)
    room = available_memory() if memory is None else require.integer("memory", memory, least=1)
    costs = {name: _cost(name, n * m_y, d, dtype, block_bytes) for name in ENGINES}
    if engine is not None:
        peak, flops = costs[engine]
        more = f", more than the {_gb(room)} available" if peak > room else ""
        return Plan(engine, f"{engine}, as requested: {_gb(peak)}{more}", peak, flops)
    against = []
    for name in ENGINES:
        peak, flops = costs[name]
        if name == "streamed" and d <= n * m_y:
            against.append(f"streamed saves nothing with {d} parameters for {n * m_y} outputs")
        elif name != "matrix-free" and peak > room:
            against.append(f"{name} would take {_gb(peak)}, more than the {_gb(room)} available")
        elif name != "matrix-free" and flops > _MOST_FLOPS:
            against.append(f"{name} would take {flops:.0e} operations")
        else:
            break
    reason = "; ".join([f"{name}: {_gb(peak)}", *against])
    return Plan(name, reason, peak, flops)


def gram_first(n: int, m_y: int, d: int, form: Plan, *, memory: int | None = None) -> bool:
    """Whether a proof through the Gram matrix is worthwhile before the engine of ``form`` starts.

    It is if it is possible (d >= N), fits in memory, and that engine takes more than about a second, and more
    than the factorizations of the Gram matrix. The cost of the products of the layers' factors depends on their
    structure, which is known later.

    Examples
    --------
    >>> gram_first(100, 10, 11_000_000, plan(100, 10, 11_000_000, memory=16 * 10**9), memory=16 * 10**9)
    True
    >>> gram_first(100, 1, 1000, plan(100, 1, 1000, memory=16 * 10**9), memory=16 * 10**9)
    False
    """
    N = n * m_y
    peak, _ = _cost("gram", N, d, "float64", BLOCK_BYTES)
    room = available_memory() if memory is None else memory
    # Products with J give bounds only: the factorization alone, N^3 / 3, must not take longer than they do.
    factorizations = 8.0 if form.engine != "matrix-free" else 1.0 / 3.0
    return d >= N and peak <= room and form.flops > max(_ONE_SECOND, factorizations * float(N) ** 3)


def gram_plan(n: int, m_y: int, d: int, *, stored: bool = False, memory: int | None = None) -> Plan:
    """Return the cost of a proof through the Gram matrix, with its tiles in memory or ``stored`` in a folder.

    Examples
    --------
    >>> print(gram_plan(50000, 1, 10**6, memory=14 << 30).reason)
    gram: N = 50000, J J^T from the layers' factors in tiles: 14.1 GB, 10.0 GB of them the tiles
    >>> print(gram_plan(50000, 1, 10**6, stored=True, memory=2 * 10**9).reason)
    gram: N = 50000, J J^T from the layers' factors in tiles: 4.1 GB, more than the 2.0 GB available; on disk 10.0 GB
    """
    N = n * m_y
    room = available_memory() if memory is None else memory
    peak, flops = _cost("gram", N, d, "float64", BLOCK_BYTES)
    tiles = 4 * N**2
    peak -= tiles if stored else 0
    more = f", more than the {_gb(room)} available" if peak > room else ""
    where = f"; on disk {_gb(tiles)}" if stored else f", {_gb(tiles)} of them the tiles"
    return Plan(
        "gram", f"gram: N = {N}, J J^T from the layers' factors in tiles: {_gb(peak)}{more}{where}", peak, flops
    )


def _cost(engine: str, N: int, d: int, dtype: str, block_bytes: int) -> tuple[int, float]:
    """Return the peak memory in bytes, and the operations."""
    item = {"float64": 8, "float32": 4}.get(dtype, 2)
    small, large = min(N, d), max(N, d)
    # Householder QR of a tall matrix 2 l s^2 - 2 s^3 / 3; SVD of the triangle with one side 21 s^3 (Golub and Van
    # Loan, 4th ed., section 5.2 and figure 8.6.1).
    svd = 21.0 * small**3
    if engine == "dense":
        # J; its float64 copy if it has another dtype; the largest of its chunks, the copy for a proof, and the SVD's
        # workspace.
        widened = 0 if item == 8 else 8 * N * d
        work = max(min(_TEMPORARIES, 2 * item * N * d), 8 * N * d, 8 * 8 * small**2)
        return item * N * d + widened + work, 2.0 * large * small**2 - 2.0 / 3.0 * small**3 + svd
    if engine == "streamed":
        # d / N stacks of N rows on R, each a QR of 2 N x N, 2 (2 N) N^2 - 2 N^3 / 3
        return 8 * 4 * N**2 + max(block_bytes, item * N**2), math.ceil(d / N) * (10.0 / 3.0) * N**3 + svd
    if engine == "gram":
        # at most N^2 products of rows (fewer with structure), then Cholesky: in tiles, if the whole matrix, a share of
        # a layer, the factor and its workspace do not fit
        return 4 * N**2 + 8 * 4096 * N + max(_FACTORS, N**2), 2.0 * N**2 * d + N**3
    return 8 * 8 * (N + d), 2.0 * _LSMR * 4.0 * float(N) * float(d)


def _gb(size: int) -> str:
    if size < 10**8:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.1f} GB" if size < 5e10 else f"{size / 1e9:.0f} GB"


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
        Blocks of columns; forward passes of the model (samples in forward passes, divided by n).
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
    """Return R of ``J^T = Q R`` for the Jacobian of a model, without J in memory.

    Parameters
    ----------
    model, X, dtype, include_frozen
        As in :func:`alignver.jacobians.jacobian.jacobian`; the model is not changed.
    block_bytes : int, optional
        Size of one block of columns (256 MB). Memory: at most 4 N^2 float64 numbers and one block, beside the model and
        a pass over ``chunk_size`` samples.
    chunk_size : int, optional
        Samples of one pass of the model.

    Returns
    -------
    Streamed
        ``r.T`` has the singular values and the column space of J: it replaces J in
        :func:`~alignver.checks.membership.check_membership` and :func:`~alignver.checks.rank.check_rank`, with
        ``computed_in`` as the dtype of their tolerances.

    Raises
    ------
    InvalidInput
        The model or the inputs cannot be checked; a derivative is NaN or Inf; a size is invalid.

    Notes
    -----
    Rigor: floating-point; Householder QR is backward stable for each column of J^T, so the singular values of r are
    those of J + E with ||E|| of the order of eps ||J||.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> R = streamed_qr(model, [[3.0, 0.0], [4.0, 5.0]]).r
    >>> abs(R.T) @ abs(R)  # J J^T
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
    """The representation of the N x d Jacobian in a question about its column space.

    Attributes
    ----------
    matrix : torch.Tensor, JacobianOperator or None
        J itself; R^T of J^T = Q R, N x N, which has its column space and singular values; or products with J. None
        if the factors of its layers sufficed.
    n, m_y, d : int
        Samples, outputs, parameters.
    computed_in : str
        The coarsest dtype of the computation.
    words : str
        How it was computed, in words.
    dtype : str
        The dtype of the entries, or of the products.
    certifiable : bool
        Whether the matrix can be computed again from the model, bit for bit, for a re-check.
    target : torch.Tensor or None
        The target in the rows of ``matrix``, if those are not the N rows of J.
    """

    matrix: Any
    n: int
    m_y: int
    d: int
    computed_in: str
    words: str
    dtype: str
    certifiable: bool = True
    target: torch.Tensor | None = None


def probed_outputs(model: nn.Module, x: torch.Tensor, dtype: str | None) -> Probed:
    """Validate a model and its inputs, and return the result of a few evaluations, with a refusal of derivatives."""
    validate_model(model)
    with probed_copy(model, probes(x), dtype, strict=False) as (_, _, probed):
        return probed


def last_nonlinearity(model: nn.Module, x: torch.Tensor, dtype: str | None) -> str:
    """Return the softmax or sigmoid whose values the outputs of a model are; empty if there is none.

    A log-softmax is none of them: the cross-entropy of its values is that of the logits. If the outputs
    of several samples are probabilities, with the sum 1, they are those of a softmax however it is computed.

    Examples
    --------
    >>> last_nonlinearity(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)), torch.ones(1, 2), "float64")
    'softmax'
    """
    with bound_copy(model, x, dtype) as (function, inputs), torch.enable_grad():
        out = function(function.leaves(), function.batch(inputs))
    rows = out.detach().double().reshape(len(out), -1)
    sums = rows.sum(1) if len(rows) > 1 and rows.shape[1] > 1 and bool((rows >= 0.0).all()) else rows.new_zeros(1)
    if float((sums - 1.0).abs().max()) <= _SUM:
        return "softmax"
    step = out.grad_fn
    while step is not None:
        name = step.name().partition("Backward")[0].lstrip("_")
        if name in _LAST:
            return _LAST[name]
        if name not in _REARRANGED:
            return ""
        step = step.next_functions[0][0]
    return ""


def planned(n: int, m_y: int, d: int, engine: str | None, memory: int | None = None) -> Plan:
    """Choose the form: the requested one, else the first that fits; in place of "gram", the engine that follows it.

    Raises
    ------
    InvalidInput
        The engine is unknown.
    """
    form = plan(n, m_y, d, engine=None if engine == "gram" else engine, memory=memory)
    if form.engine != "gram":
        return form
    after = plan(n, m_y, d, engine="matrix-free", memory=memory)
    return dataclasses.replace(after, reason=after.reason.replace(", as requested", ""))


def represent_square(
    model: nn.Module, x: torch.Tensor, m_y: int, form: Plan, *, dtype: str | None, chunk_size: int | None
) -> tuple[JacobianForm, Plan]:
    """Return an N x N matrix with the column space and the singular values of J, for d > N, and its plan.

    From the layers' factors if the model consists of linear layers and that takes fewer operations than ``form``
    (:mod:`alignver.jacobians.compression`), else from the streamed QR of J^T; J is never in memory. If ``form`` is
    matrix-free, since neither fits, products with J.

    Raises
    ------
    InvalidInput
        As :func:`alignver.jacobians.jacobian.jacobian`.
    """
    layers = CompressedJacobian.suits(model, x, dtype=dtype)
    if layers is not None and layers.flops < form.flops and layers.peak_bytes < available_memory():
        T = torch.from_numpy(layers.factor())
        words = f"J J^T of the layers' factors in twice the precision represents the {layers.d} columns of J"
        form = Plan("compressed", f"compressed: {_gb(layers.peak_bytes)}", layers.peak_bytes, layers.flops)
        J = JacobianForm(T, layers.n, layers.m_y, layers.d, layers.computed_in, words, "float64", certifiable=False)
        return J, form
    if form.engine == "dense":
        n, d = len(x), parameter_layout(model).d
        peak, flops = _cost("streamed", n * m_y, d, "float64", BLOCK_BYTES)
        form = Plan("streamed", f"streamed: {_gb(peak)}; one QR for all methods, without J in memory", peak, flops)
    return represent(model, x, form, dtype=dtype, chunk_size=chunk_size), form


def represent_tall(
    model: nn.Module,
    x: torch.Tensor,
    y: np.ndarray[Any, np.dtype[np.float64]],
    form: Plan,
    *,
    dtype: str | None,
    chunk_size: int | None,
) -> JacobianForm:
    """Return a form of a J of deficient rank with more rows than columns.

    If the model consists of linear layers, with more inputs than samples or with one that is narrower than the output,
    with fewer columns or rows and the same singular values: no proof needs J itself, since neither its rows nor its
    columns are independent.

    Raises
    ------
    InvalidInput
        As :func:`alignver.jacobians.jacobian.jacobian`.
    """
    layers = None
    if form.engine == "dense" and form.flops > _ONE_SECOND:
        layers = CompressedJacobian.suits(model, x, dtype=dtype, tall=True)
    if layers is None or layers.height * layers.width > _FEWER * layers.N * layers.d:
        return represent(model, x, form, dtype=dtype, chunk_size=chunk_size)
    matrix, target = map(torch.from_numpy, layers.factors().compressed(y))
    words = f"{len(matrix)} rows and {layers.width} columns from the layers' factors represent J"
    sizes = layers.n, layers.m_y, layers.d
    return JacobianForm(matrix, *sizes, layers.computed_in, words, "float64", certifiable=False, target=target)


def represent(
    model: nn.Module, x: torch.Tensor, form: Plan, *, dtype: str | None, chunk_size: int | None
) -> JacobianForm:
    """Compute the representation of the Jacobian in the planned form.

    Raises
    ------
    InvalidInput
        As :func:`alignver.jacobians.jacobian.jacobian`.
    """
    if form.engine == "dense":
        J = differentiate(model, x, chunk_size=chunk_size, dtype=dtype)
        return JacobianForm(J.matrix, J.n, J.m_y, J.layout.d, J.computed_in, J.engine, dtype_name(J.matrix.dtype))
    if form.engine == "streamed":
        S = streamed_qr(model, x, dtype=dtype, chunk_size=chunk_size)
        words = f"{S.engine}; {form.reason}; the triangle R^T of its streamed QR represents J"
        return JacobianForm(S.r.T.contiguous(), S.n, S.m_y, S.d, S.computed_in, words, dtype_name(S.r.dtype))
    P = JacobianOperator(model, x, dtype=dtype, chunk_size=chunk_size)
    words = f"products with J only; {form.reason}"
    return JacobianForm(P, P.n, P.m_y, P.shape[1], P.computed_in, words, dtype_name(P.dtype))
