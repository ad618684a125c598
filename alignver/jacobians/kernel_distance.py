"""By how much the gradient representation of a model changed: ||M(theta_T) - M(theta_0)||_F^2 (paper, Table 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import host
from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram, plan
from alignver.jacobians.jacobian_form import available_memory
from alignver.jacobians.operator import JacobianOperator
from alignver.linalg import norms
from alignver.network.functional import parameter_layout, require_state
from alignver.network.inputs import as_inputs
from alignver.progress import track
from alignver.results import Rigor

__all__ = ["METHODS", "RepresentationChange", "RepresentationSnapshot", "representation_change", "squared_distance"]

METHODS = ("auto", "exact", "probes")
"""How a change is computed."""
_FEWEST = 6  # products that leave two vectors for the basis and for the rest
_LEAST_CONFIDENCE = 0.8  # below, the tails of the interval may be where the worst case is another one
_ROWS = 1 << 24  # entries of two matrices that are compared at a time

Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class RepresentationChange:
    """The change of the gradient representation, and how far it is known.

    Attributes
    ----------
    value : float
        ``||M(theta_T) - M(theta_0)||_F^2``, or its estimate.
    interval : (float, float)
        Holds the true value with at least ``confidence``; both ends are the value where M was formed.
    standard_error : float
        Of the estimate; 0.0 where M was formed.
    confidence : float
        1.0 where M was formed: up to rounding, nothing is left to chance.
    rigor : Rigor
        NUMERICAL (M was formed, in floating point) or STATISTICAL (random vectors).
    method : str
        ``"exact"`` or ``"probes"``.
    products : int
        How many products with the difference of the matrices the estimate took; 0 where M was formed.
    reason : str
        One sentence: why this method.
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
    r"""The gradient representation of some inputs at one theta, kept for comparison with later ones.

    ``change()`` gives :math:`\|M(\theta_T) - M(\theta_0)\|_F^2`, :math:`M = J J^\top` of
    :func:`alignver.jacobians.gram.gram`. Where two such matrices fit into memory, M_0 is formed here and M_T at every
    call. Otherwise theta_0 is kept, and the difference D is multiplied by random vectors, ``M g = J (J^T g)``
    (:mod:`alignver.linalg.norms`); what M_0 does to them is computed here, once.

    Parameters
    ----------
    model : torch.nn.Module
        As :func:`~alignver.jacobians.jacobian.jacobian` takes it; left as it was. Every ``change()`` looks at the
        parameters that it has then.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...); copied.
    state : mapping of str to torch.Tensor, optional
        theta_0 and the buffers that go with it, a state dict; by default what the model has now.
    method : {"auto", "exact", "probes"}
        ``"auto"`` forms M where that fits into the memory that is free now.
    probes : int
        Products with D that an estimate takes, at least 6: a third of them for a basis, a third for what it spans, a
        third for the rest. Each is a pass forward and one back at either theta.
    confidence : float
        Of the interval, from 0.8 to less than 1.
    seed : int
        Of the random vectors. They are the same at every call, so that a curve over time is no noisier than it has to
        be; torch's and NumPy's random states are not touched.
    dtype, include_frozen, chunk_size
        As in :func:`alignver.jacobians.gram.gram`.

    Attributes
    ----------
    method : str
        ``"exact"`` or ``"probes"``.
    reason : str
        Why.
    n, m_y : int
        Samples and outputs.

    Raises
    ------
    InvalidInput
        What :func:`~alignver.jacobians.jacobian.jacobian` refuses; a state of another model; an option out of its
        range.

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
        _require_options(method, probes, confidence, seed)
        self._model, self._confidence, self._probes = model, float(confidence), probes
        self._options: dict[str, Any] = {"dtype": dtype, "include_frozen": include_frozen, "chunk_size": chunk_size}
        planned = plan(model, X, **self._options)
        self._x = as_inputs(X, next(model.parameters()).device).clone()
        self._columns = parameter_layout(model, include_frozen=include_frozen).names
        self.n, self.m_y = planned.n, planned.m_y
        N = self.n * self.m_y
        need, room = planned.peak_bytes + N * N * torch.finfo(getattr(torch, planned.dtype)).bits // 8, _room(self._x)
        fits = (
            f"two {N} x {N} matrices and the work on one take {need / 1e9:.1f} GB of the {room / 1e9:.1f} GB there are"
        )
        self.method = method if method != "auto" else "exact" if need <= room else "probes"
        self.reason = f"{self.method}, as asked" if method != "auto" else f"{self.method}: {fits}"
        self._start: torch.Tensor | JacobianOperator
        if self.method == "exact":
            self._start = gram(model, self._x, state=state, **self._options)
            return
        self._start = JacobianOperator(model, self._x, state=state, **self._options)
        self._vectors = norms.vectors(N, probes, seed)
        self._images = [_times(self._start, block) for block in self._vectors]

    def change(self, state: Mapping[str, torch.Tensor] | None = None) -> RepresentationChange:
        """Return the change since the snapshot, at the parameters that the model has now, or at those of ``state``.

        Raises
        ------
        InvalidInput
            What the snapshot refuses; a model whose trainable parameters are others than at the snapshot.
        """
        names = parameter_layout(self._model, include_frozen=self._options["include_frozen"]).names
        if names != self._columns:
            odd = sorted(set(names) ^ set(self._columns))[0]
            got = f"a model whose parameter {odd!r} counts at one of the two times only"
            raise InvalidInput("model", got, "the same trainable parameters, or include_frozen=True")
        if isinstance(self._start, torch.Tensor):
            M = gram(self._model, self._x, state=state, **self._options)
            value = squared_distance(M, self._start)
            return RepresentationChange(value, (value, value), 0.0, 1.0, Rigor.NUMERICAL, "exact", 0, self.reason)
        now = JacobianOperator(self._model, self._x, state=state, **self._options)
        spanned, rest = (_times(now, block) - image for block, image in zip(self._vectors, self._images))
        Q = norms.basis(spanned)
        DQ = _times(now, Q) - _times(self._start, Q)
        found = norms.hutchpp(Q, DQ, self._vectors[1], rest, confidence=self._confidence)
        return RepresentationChange(
            found.value,
            found.interval,
            found.standard_error,
            self._confidence,
            Rigor.STATISTICAL,
            "probes",
            self._probes,
            self.reason,
        )


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
    r"""Return by how much the gradient representation of X changed between two thetas of a model.

    :math:`\|M(\theta_T) - M(\theta_0)\|_F^2` with :math:`M = J J^\top` (paper, Table 1 and Figure 3): from the two
    matrices where they fit into memory, from random products otherwise.

    Parameters
    ----------
    model : torch.nn.Module
        As :func:`~alignver.jacobians.jacobian.jacobian` takes it; left as it was.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    before, after : mapping of str to torch.Tensor
        Values of all parameters and buffers, state dicts; without ``after``, what the model has now. A state dict holds
        the tensors of the model itself: keep a copy, ``copy.deepcopy(model.state_dict())``.
    method, probes, confidence, seed, dtype, include_frozen, chunk_size
        As in :class:`RepresentationSnapshot`, which is the thing to take for more than one later theta.

    Returns
    -------
    RepresentationChange

    Raises
    ------
    InvalidInput
        What :class:`RepresentationSnapshot` refuses; a ``before`` that is the model's own memory, without ``after``.

    Notes
    -----
    Rigor: NUMERICAL where M is formed: each matrix carries errors of some eps times its norm, so that a change below
    the square of that is rounding. STATISTICAL by products: the interval holds for every pair of matrices at the
    confidence asked for, rounding aside.

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
        own = {p.data_ptr() for p in model.parameters() if p.numel()}
        held = [v for v in require_state(model, before, "before").values() if v.numel()]
        if after is None and any(value.data_ptr() in own for value in held):
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
    found = np.empty(block.shape)
    for k in track(range(block.shape[1]), "products with M"):
        column = torch.from_numpy(np.ascontiguousarray(block[:, k])).to(J.device, J.dtype)
        found[:, k] = host(J.matvec(J.rmatvec(column)).double())
    if not np.all(np.isfinite(found)):
        raise InvalidInput("model", "a derivative that is NaN or Inf", "a differentiable model at finite theta")
    return found


def squared_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return ||A - B||_F^2, a few rows at a time, summed in float64."""
    step = max(1, _ROWS // first.shape[1])
    parts = [
        float(torch.linalg.vector_norm(a - b, dtype=torch.float64)) ** 2
        for a, b in zip(torch.split(first, step), torch.split(second, step))
    ]
    return math.fsum(parts)


def _room(x: torch.Tensor) -> int:
    return torch.cuda.mem_get_info(x.device)[0] if x.device.type == "cuda" else available_memory()


def _require_options(method: str, probes: int, confidence: float, seed: int) -> None:
    if method not in METHODS:
        raise InvalidInput("method", repr(method), "one of " + ", ".join(METHODS))
    if isinstance(probes, bool) or not isinstance(probes, int | np.integer) or probes < _FEWEST:
        raise InvalidInput("probes", f"probes={probes!r}", f"an integer of at least {_FEWEST}")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise InvalidInput("confidence", f"a {type(confidence).__name__}", "a number from 0.8 to less than 1")
    if not _LEAST_CONFIDENCE <= confidence < 1.0:
        raise InvalidInput("confidence", f"confidence={confidence!r}", "a number from 0.8 to less than 1")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInput("seed", f"seed={seed!r}", "a non-negative integer")
