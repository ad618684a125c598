"""The Jacobian as a linear operator: products with J and its transpose, the matrix never held."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignver.errors import InvalidInput, first_line
from alignver.jacobians.jacobian import bind, checked_chunk
from alignver.network.functional import Functional, at_state, require_state
from alignver.network.inputs import as_asked, dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, recomputes, require_own_values, validate_model

__all__ = ["JacobianOperator", "differentiable", "pull", "push"]

_SAMPLES = 256  # samples of one product, unless the caller says otherwise


class JacobianOperator:
    """Products with ``J = d vec(f_X(theta)) / d theta`` and with its transpose, by one pass of the model each.

    ``J v = d/dt f_X(theta + t v)`` at t = 0 is forward mode (one forward pass with tangents); where an operation has no
    forward rule it is double backward: ``g(u) = J^T u`` is linear in u, so ``J v`` is the derivative of ``<g(u), v>``
    by u. ``J^T u`` is one backward pass. Rows and columns are those of :func:`alignver.jacobians.jacobian.jacobian`:
    row ``j n + i`` belongs to output j of sample i, columns follow the parameter slots.

    The products are what LSMR and power iterations need, so
    :func:`~alignver.checks.membership.check_membership` takes the operator for a matrix.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`alignver.jacobians.jacobian.jacobian`; left as it was by every product. Its parameters and buffers
        are copied here: what happens to them later changes nothing.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    dtype : str, optional
        ``"float64"``, or None or ``"same"`` for the model's own.
    include_frozen : bool
        Differentiate by parameters with ``requires_grad=False`` too.
    chunk_size : int, optional
        Samples of one pass (256 by default): memory is that of a pass over so many, plus a few vectors.
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
        The coarsest dtype that a forward pass rounds to; ``check_membership`` takes it under the same name.
    mode : str
        ``"forward mode"`` or ``"double backward"``: how ``J v`` is computed; known after the first one.

    Raises
    ------
    InvalidInput
        A model or inputs that no check can be about; vectors of another shape, dtype, device or library.

    Notes
    -----
    Rigor: floating point; each product carries the rounding of one pass. The attention of torch runs in its plain
    form during a product, since the fused ones have no second derivatives.

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
        with preserve_state(model):
            function, x = bind(model, X, dtype, include_frozen=include_frozen)
            with differentiable(function):
                probed = probe(function, x)
                self._again = recomputes(function, x[:1])
        self._function, self._x = at_state(function, values), x.clone()
        if self._again:
            require_own_values(self._function, "state")
        self._modes = [module.training for module in model.modules()]
        self.n, self.m_y = len(x), probed.m_y
        self.shape = (self.n * self.m_y, function.slots.d)
        self.dtype, self.device = function.dtype, function.device
        self.computed_in = dtype_name(probed.computed_in)
        self.mode = ""

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """Return J v, (n m_y,), for v of shape (d,)."""
        self._require_vector(v, "v", self.shape[1])
        with self._working():
            tangents = split(self._function, v.detach().clone())
            found = torch.empty((self.m_y, self.n), dtype=self.dtype, device=self.device)
            for start in range(0, self.n, self._size):
                part = self._x[start : start + self._size]
                found[:, start : start + len(part)] = self._push(part, tangents).T
        return found.reshape(-1)

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """Return J^T u, (d,), for u of shape (n m_y,)."""
        self._require_vector(u, "u", self.shape[0])
        with self._working():
            weights = u.detach().clone().reshape(self.m_y, self.n).T  # a clone, lest it be an inference tensor
            found = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
            for start in range(0, self.n, self._size):
                part = self._x[start : start + self._size]
                found += pull(self._function, part, weights[start : start + len(part)])
        return found

    def __repr__(self) -> str:
        name = type(self._function.model).__name__
        return f"JacobianOperator({name}, {self.shape[0]} x {self.shape[1]}, {dtype_name(self.dtype)})"

    def _push(self, x: torch.Tensor, tangents: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Choose the way to J v: forward mode while it works and agrees with a backward pass the first time."""
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
        try:
            return push_twice(self._function, x, tangents, self.m_y)[1]
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            name, said = type(self._function.model).__name__, first_line(error)
            got = f"{name}, whose operations have neither a forward mode nor second derivatives ({said})"
            raise InvalidInput("model", got, "the matrix itself: alignver.jacobian(model, X)") from error

    def _agrees(self, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], rows: torch.Tensor) -> bool:
        """Compare <w, J v> with <J^T w, v>, w fixed and without pattern, up to sqrt(eps)."""
        w = torch.cos(torch.arange(1, rows.numel() + 1, device=rows.device)).to(rows.dtype).reshape(rows.shape)
        v = torch.cat([part.reshape(-1) for part in tangents.values()])
        back = pull(self._function, x, w)
        allowed = torch.finfo(rows.dtype).eps ** 0.5 * float(w.norm() * rows.norm() + back.norm() * v.norm())
        return bool(abs(float((w * rows).sum()) - float(back @ v)) <= allowed)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        model = self._function.model
        if [module.training for module in model.modules()] != self._modes:
            raise InvalidInput(
                "model", "a model whose train or eval mode has changed", "the mode it was in, or a new JacobianOperator"
            )
        if self._again:
            require_own_values(self._function, "model")
        with preserve_state(model), differentiable(self._function):
            yield

    def _require_vector(self, vector: Any, name: str, length: int) -> None:
        if not isinstance(vector, torch.Tensor):
            raise InvalidInput(name, f"a {type(vector).__name__}", f"a torch.Tensor on {self.device}")
        if vector.dtype != self.dtype:
            need = f"{dtype_name(self.dtype)}, the dtype that the model computes in"
            raise InvalidInput(name, f"dtype {dtype_name(vector.dtype)}", need)
        if vector.device != self.device:
            raise InvalidInput(name, f"device {vector.device}", f"the model's device, {self.device}")
        if tuple(vector.shape) != (length,):
            raise InvalidInput(name, f"shape {tuple(vector.shape)}", f"shape ({length},)")


@contextlib.contextmanager
def differentiable(function: Functional) -> Iterator[None]:
    """Compute in the dtype asked for, where torch has a choice through operations with derivatives of every kind."""
    with as_asked(function.device, function.dtype), sdpa_kernel([SDPBackend.MATH]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own insides, nothing that a caller could act on
        yield


def split(function: Functional, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cut a vector of length d into the slots, each in the shape of its parameter."""
    found = function.slots
    parts = torch.split(v, list(found.sizes))
    return {name: part.reshape(p.shape) for name, p, part in zip(found.names, found.parameters, parts)}


def push(
    function: Functional, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], m_y: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return f_X(theta) and J v, both (n, m_y), by forward mode along ``tangents`` (slots left out count as zero)."""
    moving = {name: function.theta[name].detach() for name in tangents}
    still = {name: value.detach() for name, value in function.theta.items() if name not in tangents}
    along = ({name: tangents[name].to(function.dtype) for name in moving},)

    def at(theta: dict[str, torch.Tensor]) -> torch.Tensor:
        return function({**still, **theta}, function.batch(x)).reshape(-1, m_y)

    out, rows = jvp(at, (moving,), along)[:2]
    return out.detach().to(function.dtype), rows.detach().to(function.dtype)


def push_twice(
    function: Functional, x: torch.Tensor, tangents: Mapping[str, torch.Tensor], m_y: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`push` does, by two backward passes."""
    moving = {name: function.theta[name].detach().requires_grad_() for name in tangents}
    still = {name: value.detach() for name, value in function.theta.items() if name not in tangents}
    out = function({**still, **moving}, function.batch(x)).reshape(-1, m_y)
    u = torch.zeros_like(out, requires_grad=True)
    gradients = torch.autograd.grad(out, list(moving.values()), u, create_graph=True, allow_unused=True)
    pairs = [(g, tangents[name].to(g.dtype)) for name, g in zip(moving, gradients) if g is not None and g.requires_grad]
    if not pairs:
        return out.detach(), torch.zeros_like(out)
    (rows,) = torch.autograd.grad([g for g, _ in pairs], [u], [t for _, t in pairs], allow_unused=True)
    return out.detach(), torch.zeros_like(out) if rows is None else rows.detach()


def pull(function: Functional, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over samples i and outputs j of ``weights[i, j]`` times row (i, j) of J: one backward pass."""
    theta = {name: value.detach().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x)).reshape(len(x), -1)
    gradients = torch.autograd.grad(
        out, list(theta.values()), weights.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    flat = torch.empty(function.slots.d, dtype=function.dtype, device=function.device)
    for start, size, gradient in zip(function.slots.offsets, function.slots.sizes, gradients):
        flat[start : start + size] = gradient.reshape(-1)
    return flat
