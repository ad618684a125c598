"""The Jacobian as a linear operator: products with J and its transpose, without the matrix in memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignver import require
from alignver.errors import InvalidInput, first_line
from alignver.jacobians.jacobian import bound_copy, checked_chunk
from alignver.limits import in_memory
from alignver.network.functional import Functional, at_state, comparison_weights, require_state
from alignver.network.inputs import dtype_name, full_precision
from alignver.network.validate_model import probe, recomputes, require_own_values, validate_model

_SAMPLES = 256  # default number of samples of one pass


class JacobianOperator:
    """Products with ``J = d vec(f_X(theta)) / d theta`` and with its transpose, by one pass of the model each.

    ``J v = d/dt f_X(theta + t v)`` at t = 0 is computed in forward mode (one forward pass with tangents), or, if an
    operation has no forward rule, by double backward: ``g(u) = J^T u`` is linear in u, so ``J v`` is the derivative of
    ``<g(u), v>`` by u. ``J^T u`` is one backward pass. Rows and columns are those of
    :func:`alignver.jacobians.jacobian.jacobian`: row ``j n + i`` belongs to output j of sample i, columns follow the
    parameter slots.

    LSMR and power iterations need only these products, so :func:`~alignver.checks.membership.check_membership` accepts
    the operator in place of a matrix.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`alignver.jacobians.jacobian.jacobian`; no product changes it. Its parameters and buffers are
        copied: later changes of the model have no effect.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...).
    dtype : str, optional
        ``"float64"``, or None or ``"same"`` for the model's own.
    include_frozen : bool
        Differentiate with respect to parameters with ``requires_grad=False`` too.
    chunk_size : int, optional
        Samples of one pass (256 by default), which determines the memory of a pass beside a few vectors.
    state : mapping of str to torch.Tensor, optional
        Parameters and buffers to use in place of the model's own: a state dict.

    Attributes
    ----------
    shape : (int, int)
        (n m_y, d).
    n, m_y : int
        Samples and outputs.
    dtype, device : torch.dtype, torch.device
        Of the vectors.
    computed_in : str
        The coarsest dtype that a forward pass rounds to; ``check_membership`` has an argument of the same name.
    mode : str
        ``"forward mode"`` or ``"double backward"``: how ``J v`` is computed; empty before the first product.

    Raises
    ------
    InvalidInput
        The model or the inputs cannot be checked; a vector has another shape, dtype, device or library.

    Notes
    -----
    Rigor: floating-point; each product has the rounding errors of one pass. Attention runs in torch's plain form during
    a product, since the fused forms have no second derivatives.

    Examples
    --------
    >>> import torch
    >>> J = JacobianOperator(torch.nn.Linear(2, 1, bias=False), [[1.0, 2.0], [3.0, 4.0]])
    >>> J.shape
    (2, 2)
    >>> J.matvec(torch.tensor([1.0, 1.0], dtype=torch.float64))
    tensor([3., 7.], dtype=torch.float64)
    >>> J.rmatvec(torch.tensor([1.0, 0.0], dtype=torch.float64))
    tensor([1., 2.], dtype=torch.float64)
    """

    @in_memory
    def __init__(
        self,
        model: nn.Module,
        X: Any,
        *,
        dtype: str | None = "float64",
        include_frozen: bool = False,
        chunk_size: int | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        model = validate_model(model, include_frozen=include_frozen)
        values = {} if state is None else require_state(model, state)
        self._size = checked_chunk(chunk_size) or _SAMPLES
        with bound_copy(model, X, dtype, include_frozen=include_frozen) as (function, x), differentiable(function):
            probed = probe(function, x)
            function = probed.function
            self._again = recomputes(function, x[:1])
        self._function, self._x = at_state(function, values), x.clone()
        if self._again:
            require_own_values(self._function, "state")
        self._modes = [module.training for module in model.modules()]
        self.n, self.m_y = len(x), probed.m_y
        self.shape = (self.n * self.m_y, function.layout.d)
        self.dtype, self.device = function.dtype, function.device
        self.computed_in = dtype_name(probed.computed_in)
        self.mode = ""

    @in_memory
    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """Return J v, (n m_y,), for v of shape (d,)."""
        self._require_vector(v, "v", self.shape[1])
        with self._working():
            tangents = split(self._function, v.detach().clone())
            product = torch.empty((self.m_y, self.n), dtype=self.dtype, device=self.device)
            for start in range(0, self.n, self._size):
                part = self._x[start : start + self._size]
                product[:, start : start + len(part)] = self._push(part, tangents).T
        return product.reshape(-1)

    @in_memory
    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """Return J^T u, (d,), for u of shape (n m_y,)."""
        self._require_vector(u, "u", self.shape[0])
        with self._working():
            weights = u.detach().clone().reshape(self.m_y, self.n).T  # a clone is never an inference tensor
            product = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
            for start in range(0, self.n, self._size):
                part = self._x[start : start + self._size]
                product += pull(self._function, part, weights[start : start + len(part)])
        return product

    def __repr__(self) -> str:
        name = type(self._function.model).__name__
        return f"JacobianOperator({name}, {self.shape[0]} x {self.shape[1]}, {dtype_name(self.dtype)})"

    def _push(self, x: torch.Tensor, tangents: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute J v, in forward mode if it works and agrees with a backward pass the first time."""
        if self.mode != "double backward":
            try:
                _, rows = push(self._function, x, tangents, self.m_y)
                if self.mode or self._agrees(x, tangents, rows):
                    self.mode = "forward mode"
                    return rows
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError:  # NotImplementedError is one: no forward rule, or no rule under torch.func
                pass
            self.mode = "double backward"
        return push_twice(self._function, x, tangents, self.m_y)[1]

    def _agrees(self, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], rows: torch.Tensor) -> bool:
        """Compare <w, J v> with <J^T w, v> for fixed weights w, up to sqrt(eps)."""
        w = comparison_weights(rows.numel(), rows).reshape(rows.shape)
        v = torch.cat([part.reshape(-1) for part in tangents.values()])
        back = pull(self._function, x, w)
        allowed = torch.finfo(rows.dtype).eps ** 0.5 * float(w.norm() * rows.norm() + back.norm() * v.norm())
        return bool(abs(float((w * rows).sum()) - float(back @ v)) <= allowed)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        model = self._function.source
        if [module.training for module in model.modules()] != self._modes:
            need = "the mode at construction, or a new JacobianOperator"
            raise InvalidInput("model", "a model whose train or eval mode has changed", need)
        if self._again:
            require_own_values(self._function, "model")
        with self._function.undisturbed(), differentiable(self._function):
            yield

    def _require_vector(self, vector: Any, name: str, length: int) -> None:
        require.instance(name, vector, torch.Tensor, f"a torch.Tensor on {self.device}")
        if vector.dtype != self.dtype:
            need = f"{dtype_name(self.dtype)}, the dtype of computation of the operator"
            raise InvalidInput(name, f"dtype {dtype_name(vector.dtype)}", need, code="wrong-dtype")
        if vector.device != self.device:
            need = f"the model's device, {self.device}"
            raise InvalidInput(name, f"device {vector.device}", need, code="wrong-device")
        if tuple(vector.shape) != (length,):
            raise InvalidInput(name, f"shape {tuple(vector.shape)}", f"shape ({length},)", code="wrong-shape")


@contextlib.contextmanager
def differentiable(function: Functional) -> Iterator[None]:
    """Compute in the requested dtype, with implementations of torch's operations that have all kinds of derivatives."""
    with full_precision(function.device, function.dtype), sdpa_kernel([SDPBackend.MATH]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern torch's internals, not the caller
        yield


def split(function: Functional, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cut a vector of length d into the slots, each in the shape of its parameter."""
    layout = function.layout
    parts = torch.split(v, list(layout.sizes))
    return {name: part.reshape(p.shape) for name, p, part in zip(layout.names, layout.parameters, parts)}


def push(
    function: Functional, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], m_y: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return f_X(theta) and J v, both (n, m_y), by forward mode along ``tangents`` (zero for slots without one)."""
    moving = {name: function.theta[name].detach() for name in tangents}
    still = {name: value.detach() for name, value in function.theta.items() if name not in tangents}
    along = ({name: tangents[name].to(function.dtype) for name in moving},)

    def evaluate(theta: dict[str, torch.Tensor]) -> torch.Tensor:
        return function({**still, **theta}, function.batch(x)).reshape(-1, m_y)

    out, rows = jvp(evaluate, (moving,), along)[:2]
    return out.detach().to(function.dtype), rows.detach().to(function.dtype)


def push_twice(
    function: Functional, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], m_y: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return f_X(theta) and J v as :func:`push` does, by two backward passes.

    Raises
    ------
    InvalidInput
        The model has no second derivatives: this is the second way, for models without a forward mode.
    """
    moving = {name: function.theta[name].detach().requires_grad_() for name in tangents}
    still = {name: value.detach() for name, value in function.theta.items() if name not in tangents}
    try:
        out = function({**still, **moving}, function.batch(x)).reshape(-1, m_y)
        u = torch.zeros_like(out, requires_grad=True)
        gradients = torch.autograd.grad(out, list(moving.values()), u, create_graph=True, allow_unused=True)
        pairs = [
            (g, tangents[name].to(g.dtype)) for name, g in zip(moving, gradients) if g is not None and g.requires_grad
        ]
        if not pairs:
            return out.detach(), torch.zeros_like(out)
        (rows,) = torch.autograd.grad([g for g, _ in pairs], [u], [t for _, t in pairs], allow_unused=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        name = type(function.model).__name__
        got = f"{name}, whose operations have neither a forward mode nor second derivatives ({first_line(error)})"
        need = "operations that have one; alignver.jacobian(model, X) needs neither"
        raise InvalidInput("model", got, need, code="unsupported-model") from error
    return out.detach(), torch.zeros_like(out) if rows is None else rows.detach()


def pull(function: Functional, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over samples i and outputs j of ``weights[i, j]`` times row (i, j) of J: one backward pass."""
    theta = function.leaves()
    out = function(theta, function.batch(x)).reshape(len(x), -1)
    gradients = torch.autograd.grad(
        out, list(theta.values()), weights.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    flat = torch.empty(function.layout.d, dtype=function.dtype, device=function.device)
    for start, size, gradient in zip(function.layout.offsets, function.layout.sizes, gradients):
        flat[start : start + size] = gradient.reshape(-1)
    return flat
