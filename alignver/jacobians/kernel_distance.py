"""The change of the gradient representation of a model: ||M(theta_T) - M(theta_0)||_F^2 (paper, Table 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver import require
from alignver.arrays import available_memory, host
from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram, plan
from alignver.jacobians.operator import JacobianOperator
from alignver.limits import in_memory
from alignver.linalg import norms
from alignver.network.functional import parameter_layout, require_state
from alignver.network.inputs import as_inputs
from alignver.progress import track
from alignver.results import Rigor

METHODS = ("auto", "exact", "probes")
"""The methods of computation of a change."""
_FEWEST = 6  # products: two vectors each for the basis, its span and the rest
_LEAST_CONFIDENCE = 0.8  # below it, another case may be the worst in the tails of the interval
_ROWS = 1 << 24  # entries of two matrices that are compared at a time

Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class RepresentationChange:
    """The change of the gradient representation, and its accuracy.

    Attributes
    ----------
    value : float
        ``||M(theta_T) - M(theta_0)||_F^2``, or its estimate.
    interval : (float, float)
        Contains the true value with at least ``confidence``; both ends are the value if M was formed.
    standard_error : float
        Of the estimate; 0.0 if M was formed.
    confidence : float
        1.0 if M was formed: the value is then exact up to rounding.
    rigor : Rigor
        NUMERICAL (M was formed, in floating-point arithmetic) or STATISTICAL (random vectors).
    method : str
        ``"exact"`` or ``"probes"``.
    products : int
        Number of products with the difference of the matrices in the estimate; 0 if M was formed.
    reason : str
        One sentence: the reason for the method.
    """

    value: float
    interval: tuple[float, float]
    standard_error: float
    confidence: float
    rigor: Rigor
    method: str
    products: int
    reason: str

    def __str__(self) -> str:
        if self.method == "exact":
            return f"||M_T - M_0||_F^2 = {self.value:.6g}"
        low, high = self.interval
        return f"||M_T - M_0||_F^2 = {self.value:.4g}, {self.confidence:.0%} from {low:.4g} to {high:.4g}"


class RepresentationSnapshot:
    r"""The gradient representation of some inputs at one theta, for comparison with later ones.

    ``change()`` returns :math:`\|M(\theta_T) - M(\theta_0)\|_F^2`, :math:`M = J J^\top` of
    :func:`alignver.jacobians.gram.gram`. If two such matrices fit in memory, M_0 is formed at construction and M_T in
    every call. Otherwise theta_0 is stored, and the difference D is multiplied by random vectors, ``M g = J (J^T g)``
    (:mod:`alignver.linalg.norms`); their products with M_0 are computed once, at construction.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`~alignver.jacobians.jacobian.jacobian`; not changed. Every ``change()`` uses its parameters at the
        time of the call.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...); copied.
    state : mapping of str to torch.Tensor, optional
        theta_0 and its buffers, a state dict; by default the present values of the model.
    method : {"auto", "exact", "probes"}
        ``"auto"`` forms M if that fits in the free memory.
    probes : int
        Products with D in an estimate, at least 6: a third of them for a basis, a third for its span, a third for the
        rest. Each takes a forward and a backward pass at either theta.
    confidence : float
        Of the interval, at least 0.8 and below 1.
    seed : int
        Of the random vectors. They are the same in every call, which reduces the noise of a curve over time. The random
        states of torch and NumPy are not changed.
    dtype, include_frozen, chunk_size
        As in :func:`alignver.jacobians.gram.gram`.

    Attributes
    ----------
    method : str
        ``"exact"`` or ``"probes"``.
    reason : str
        The reason for the method.
    n, m_y : int
        Samples and outputs.

    Raises
    ------
    InvalidInput
        As :func:`~alignver.jacobians.jacobian.jacobian`; the state is of another model; an option is out of its range.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> net = torch.nn.Sequential(layer, torch.nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0), net[1].weight.fill_(1.0)
    >>> start = RepresentationSnapshot(net, [[1.0, 0.0]])
    >>> start.change().value
    0.0
    >>> with torch.no_grad():
    ...     _ = net[1].weight.fill_(3.0)
    >>> start.change().value  # M went from 1 + 1 to 9 + 1
    64.0
    """

    @in_memory
    def __init__(
        self,
        model: nn.Module,
        X: Any,
        *,
        state: Mapping[str, torch.Tensor] | None = None,
        method: str = "auto",
        probes: int = 48,
        confidence: float = 0.95,
        seed: int = 0,
        dtype: str | None = "float64",
        include_frozen: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        require.one_of("method", method, METHODS)
        self._probes = require.integer("probes", probes, least=_FEWEST)
        need = "a number from 0.8 to less than 1"
        self._confidence = require.real("confidence", confidence, least=_LEAST_CONFIDENCE, below=1.0, need=need)
        require.integer("seed", seed, least=0)
        self._model = model
        self._options: dict[str, Any] = {"dtype": dtype, "include_frozen": include_frozen, "chunk_size": chunk_size}
        planned = plan(model, X, **self._options)
        self._x = as_inputs(X, next(model.parameters()).device).clone()
        self._columns = parameter_layout(model, include_frozen=include_frozen).names
        self.n, self.m_y = planned.n, planned.m_y
        N = self.n * self.m_y
        memory = planned.peak_bytes + N * N * torch.finfo(getattr(torch, planned.dtype)).bits // 8
        room = _room(self._x)
        if method == "auto":
            self.method = "exact" if memory <= room else "probes"
            self.reason = f"{self.method}: two {N} x {N} matrices and the work on one take {memory / 1e9:.1f} GB, "
            self.reason += f"{room / 1e9:.1f} GB are available"
        else:
            self.method, self.reason = method, f"{method}, as requested"
        self._start: torch.Tensor | JacobianOperator
        if self.method == "exact":
            self._start = gram(model, self._x, state=state, **self._options)
            return
        self._start = JacobianOperator(model, self._x, state=state, **self._options)
        self._vectors = norms.vectors(N, probes, seed)
        self._images = [_times(self._start, block) for block in self._vectors]

    @in_memory
    def change(self, state: Mapping[str, torch.Tensor] | None = None) -> RepresentationChange:
        """Return the change since the snapshot, at the present parameters of the model or at those of ``state``.

        Raises
        ------
        InvalidInput
            As for the snapshot; the model has other trainable parameters than at the snapshot.
        """
        names = parameter_layout(self._model, include_frozen=self._options["include_frozen"]).names
        if names != self._columns:
            odd = sorted(set(names) ^ set(self._columns))[0]
            got = f"a model whose parameter {odd!r} is trainable at only one of the two times"
            raise InvalidInput("model", got, "the same trainable parameters, or include_frozen=True")
        if isinstance(self._start, torch.Tensor):
            M = gram(self._model, self._x, state=state, **self._options)
            value = squared_distance(M, self._start)
            return RepresentationChange(value, (value, value), 0.0, 1.0, Rigor.NUMERICAL, "exact", 0, self.reason)
        now = JacobianOperator(self._model, self._x, state=state, **self._options)
        spanned, rest = (_times(now, block) - image for block, image in zip(self._vectors, self._images))
        Q = norms.basis(spanned)
        DQ = _times(now, Q) - _times(self._start, Q)
        estimate = norms.hutchpp(Q, DQ, self._vectors[1], rest, confidence=self._confidence)
        return RepresentationChange(
            estimate.value,
            estimate.interval,
            estimate.standard_error,
            self._confidence,
            Rigor.STATISTICAL,
            "probes",
            self._probes,
            self.reason,
        )


@in_memory
def representation_change(
    model: nn.Module,
    X: Any,
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor] | None = None,
    *,
    method: str = "auto",
    probes: int = 48,
    confidence: float = 0.95,
    seed: int = 0,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
) -> RepresentationChange:
    r"""Return the change of the gradient representation of X between two thetas of a model.

    :math:`\|M(\theta_T) - M(\theta_0)\|_F^2` with :math:`M = J J^\top` (paper, Table 1 and Figure 3): from the two
    matrices if they fit in memory, otherwise from products with random vectors.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`~alignver.jacobians.jacobian.jacobian`; not changed.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...).
    before, after : mapping of str to torch.Tensor
        Values of all parameters and buffers, state dicts; without ``after``, the present values of the model. A state
        dict holds the tensors of the model itself: make a copy, ``copy.deepcopy(model.state_dict())``.
    method, probes, confidence, seed, dtype, include_frozen, chunk_size
        As in :class:`RepresentationSnapshot`; use that class for more than one later theta.

    Returns
    -------
    RepresentationChange

    Raises
    ------
    InvalidInput
        As :class:`RepresentationSnapshot`; ``before`` is the model's own memory, without ``after``.

    Notes
    -----
    Rigor: NUMERICAL if M is formed: each matrix has errors of a few eps times its norm, so a change below the square of
    that is rounding error. STATISTICAL with products: the interval holds for every pair of matrices at the requested
    confidence, apart from rounding.

    Examples
    --------
    >>> import copy, torch
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> X, start = torch.randn(9, 2), copy.deepcopy(net.state_dict())
    >>> with torch.no_grad():
    ...     for p in net.parameters():
    ...         _ = p.mul_(1.5)
    >>> exact = representation_change(net, X, start)
    >>> probed = representation_change(net, X, start, method="probes", probes=12)
    >>> exact.rigor, probed.rigor
    (<Rigor.NUMERICAL: 'NUMERICAL'>, <Rigor.STATISTICAL: 'STATISTICAL'>)
    >>> probed.interval[0] <= exact.value <= probed.interval[1]
    True
    """
    if isinstance(model, nn.Module):
        addresses = {p.data_ptr() for p in model.parameters() if p.numel()}
        held = [v for v in require_state(model, before, "before").values() if v.numel()]
        if after is None and any(value.data_ptr() in addresses for value in held):
            need = "a copy from before the training: copy.deepcopy(model.state_dict())"
            raise InvalidInput("before", "tensors that are the model's own, as they are now", need)
        if after is not None:
            require_state(model, after, "after")
    start = RepresentationSnapshot(
        model,
        X,
        state=before,
        method=method,
        probes=probes,
        confidence=confidence,
        seed=seed,
        dtype=dtype,
        include_frozen=include_frozen,
        chunk_size=chunk_size,
    )
    return start.change(after)


def _times(J: JacobianOperator, block: Matrix) -> Matrix:
    """Return J J^T times a block of columns."""
    products = np.empty(block.shape)
    for k in track(range(block.shape[1]), "products with M"):
        column = torch.from_numpy(np.ascontiguousarray(block[:, k])).to(J.device, J.dtype)
        products[:, k] = host(J.matvec(J.rmatvec(column)).double())
    if not np.all(np.isfinite(products)):
        need = "a differentiable model at finite theta"
        raise InvalidInput("model", "a derivative that is NaN or Inf", need, code="not-finite")
    return products


def squared_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return ||A - B||_F^2, summed in float64 a few rows at a time."""
    step = max(1, _ROWS // first.shape[1])
    parts = [
        float(torch.linalg.vector_norm(a - b, dtype=torch.float64)) ** 2
        for a, b in zip(torch.split(first, step), torch.split(second, step))
    ]
    return math.fsum(parts)


def _room(x: torch.Tensor) -> int:
    return torch.cuda.mem_get_info(x.device)[0] if x.device.type == "cuda" else available_memory()
