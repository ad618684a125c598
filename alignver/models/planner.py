"""Which way to a verdict about a Jacobian: dense, streamed, through the Gram matrix, or matrix-free."""

from __future__ import annotations

import dataclasses
import math

from alignver.arrays import EPS, available_memory
from alignver.errors import InvalidInput

__all__ = ["ENGINES", "Plan", "available_memory", "gram_first", "plan"]

ENGINES = ("dense", "streamed", "gram", "matrix-free")
"""From the one that says most to the one that needs least."""

_BLOCK_BYTES = 1 << 28  # the default block of alignver.models.columns
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
