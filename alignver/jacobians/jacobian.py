"""Two ways to the rows of a Jacobian: all outputs of many samples at once, or one output of one sample at a time.

The Jacobian of a torch model's outputs by its parameters, and the outputs themselves.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from alignver.errors import InvalidInput, first_line
from alignver.network.functional import (
    Functional,
    ParameterLayout,
    Theta,
    functional,
    require_memory,
    require_same_dtype,
)
from alignver.network.inputs import as_asked, as_inputs, dtype_name, resolve_dtype
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, validate_model
from alignver.progress import track

__all__ = [
    "Block",
    "Differentiated",
    "bind",
    "checked_chunk",
    "differentiate",
    "fill",
    "jacobian",
    "loop",
    "outputs",
    "require_finite",
    "vectorised",
    "vectorised_agrees",
]
Block = tuple[torch.Tensor, ...]
"""For each slot, the derivatives of a chunk of samples: (samples, m_y, size)."""


def vectorised(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate through ``vmap(jacrev)`` over samples, ``vmap(jacfwd)`` where d < m_y.

    Per sample, reverse mode costs m_y backward passes, forward mode d forward passes. Raises whatever torch raises
    where a model does not vectorise: control flow on data, fused RNNs, operations without a batching rule.
    """
    derivative = jacfwd if function.slots.d < m_y else jacrev

    def single(theta: Theta, sample: torch.Tensor) -> torch.Tensor:
        return function(theta, sample.unsqueeze(0)).reshape(m_y)

    rows: Callable[..., dict[str, torch.Tensor]] = vmap(derivative(single), in_dims=(None, 0), randomness="different")
    with warnings.catch_warnings():
        # About torch's own insides (missing batching rules, deprecated calls): nothing that a caller could act on.
        warnings.simplefilter("ignore")
        found = rows(dict(function.theta), function.batch(x))
    return tuple(found[name].reshape(len(x), m_y, -1) for name in function.slots.names)


def loop(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate one output of one sample at a time through ``autograd.grad``: slow, and right where autograd is."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in function.theta.items()}
    leaves = list(theta.values())
    block = tuple(leaf.new_zeros((len(x), m_y, leaf.numel())) for leaf in leaves)
    for i in range(len(x)):
        out = function(theta, function.batch(x[i : i + 1])).reshape(m_y)
        for j in range(m_y):
            gradients = torch.autograd.grad(out[j], leaves, retain_graph=j < m_y - 1, allow_unused=True)
            for part, gradient in zip(block, gradients):
                if gradient is not None:
                    part[i, j] = gradient.reshape(-1)
    return block


def vectorised_agrees(function: Functional, x: torch.Tensor, m_y: int, block: Block) -> bool:
    """Compare the first sample's rows with one ordinary backward pass: w^T J_1 two ways, up to sqrt(eps)."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x[:1])).reshape(m_y)
    weights = torch.cos(torch.arange(1, m_y + 1, device=out.device)).to(out.dtype)
    gradients = torch.autograd.grad(
        (out * weights).sum(), list(theta.values()), allow_unused=True, materialize_grads=True
    )
    for part, gradient in zip(block, gradients):
        ours = weights.to(part.dtype) @ part[0]
        allowed = math.sqrt(torch.finfo(out.dtype).eps) * max(float(gradient.norm()), float(part[0].abs().max()))
        if float((gradient.reshape(-1) - ours).norm()) > allowed:
            return False
    return True


_TEMPORARIES = 1 << 28  # bytes that the temporaries of one chunk may take, about
_OUTPUT_CHUNK = 1024  # samples of one forward pass in outputs()


@dataclasses.dataclass(frozen=True, eq=False)
class Differentiated:
    """A Jacobian and how it was computed.

    Attributes
    ----------
    matrix : torch.Tensor
        (n m_y, d), on the model's device, in the dtype of computation; row j n + i belongs to entry (i, j) of f_X.
    slots : Slots
        The columns.
    n, m_y : int
        Samples and outputs.
    engine : str
        How it was computed, in words; the reason included where it was not the first choice.
    computed_in : str
        The coarsest dtype that a forward pass rounds to: what a tolerance has to go by.
    """

    matrix: torch.Tensor
    slots: ParameterLayout
    n: int
    m_y: int
    engine: str
    computed_in: str


def jacobian(
    model: nn.Module,
    X: Any,
    *,
    chunk_size: int | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
) -> torch.Tensor:
    """Return the Jacobian of vec(f_X(theta)) by theta, the matrix whose column space Definition 2 is about.

    ``J = d vec(f_X(theta)) / d theta``; vec stacks the columns of the n x m_y output matrix, so the derivatives of
    f(x_i, theta)_j are row ``j n + i``. Columns follow :func:`alignver.network.functional.parameter_layout`: each
    physical parameter once, flattened in row-major order.

    Parameters
    ----------
    model : torch.nn.Module
        Deterministic, one row of outputs for each sample: (n,) or (n, m_y). It is left as it was: same Parameter
        objects, values, buffers, mode, gradients, hooks, and the random state.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...). Integers stay integers (embeddings).
    chunk_size : int, optional
        Samples differentiated at once; by default as many as keep temporaries near 256 MB.
    dtype : str, optional
        ``"float64"``: parameters, buffers and inputs are widened (exactly) for the computation. None or ``"same"``: the
        model's own dtype.
    include_frozen : bool
        Differentiate by parameters with ``requires_grad=False`` too.

    Returns
    -------
    torch.Tensor
        (n m_y, d), on the model's device.

    Raises
    ------
    InvalidInput
        A model or inputs that no check can be about; the message names the module and the remedy. A derivative that
        is NaN or Inf.

    Notes
    -----
    Rigor: floating point, with errors of the order of the eps of the dtype of computation. Computed through
    ``torch.func`` by samples; a model that does not vectorise is differentiated one output at a time.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> jacobian(model, [[1.0, 2.0], [3.0, 4.0]])
    tensor([[1., 2., 0., 0.],
            [3., 4., 0., 0.],
            [0., 0., 1., 2.],
            [0., 0., 3., 4.]], dtype=torch.float64)
    """
    return differentiate(model, X, chunk_size=chunk_size, dtype=dtype, include_frozen=include_frozen).matrix


def outputs(model: nn.Module, X: Any, *, chunk_size: int | None = None, dtype: str | None = "float64") -> torch.Tensor:
    """Return the output matrix f_X(theta) of a model.

    ``f_X(theta)_ij = f(x_i, theta)_j`` (paper, Section 2.1.2). Arguments, refusals and rigor are those of
    :func:`jacobian`.

    Returns
    -------
    torch.Tensor
        (n, m_y), on the model's device, without a graph.

    Examples
    --------
    >>> import torch
    >>> outputs(torch.nn.Linear(3, 1), torch.zeros(4, 3)).shape
    torch.Size([4, 1])
    """
    model = validate_model(model, include_frozen=True)
    size = checked_chunk(chunk_size) or _OUTPUT_CHUNK
    with preserve_state(model):
        function, x = bind(model, X, dtype, include_frozen=True)
        with as_asked(function.device, function.dtype):
            m_y = probe(function, x).m_y
            with torch.no_grad():
                parts = [function(function.theta, function.batch(part)) for part in torch.split(x, size)]
        return torch.cat([part.reshape(-1, m_y) for part in parts]).to(function.dtype)


def differentiate(
    model: nn.Module,
    X: Any,
    *,
    chunk_size: int | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
) -> Differentiated:
    """Compute :func:`jacobian` and keep what was learnt on the way."""
    model = validate_model(model, include_frozen=include_frozen)
    checked_chunk(chunk_size)
    with preserve_state(model):
        function, x = bind(model, X, dtype, include_frozen=include_frozen)
        with as_asked(function.device, function.dtype):
            probed = probe(function, x)
            n, m_y, d = len(x), probed.m_y, function.slots.d
            got = f"{n} samples, {m_y} outputs and {d} parameters: a Jacobian of"
            require_memory(n * m_y * d, function, got, "a Jacobian")
            matrix = torch.empty((n * m_y, d), dtype=function.dtype, device=function.device)
            engine = fill(function, x, m_y, matrix.view(m_y, n, d), chunk_size)
    return Differentiated(matrix, function.slots, n, m_y, engine, dtype_name(probed.computed_in))


def bind(model: nn.Module, X: Any, dtype: str | None, *, include_frozen: bool) -> tuple[Functional, torch.Tensor]:
    """Bind a model to copies of its parameters in the dtype asked for, and its inputs beside it, on its device."""
    compute = resolve_dtype(model, dtype)
    with torch.inference_mode(False):  # copies that autograd can work with, whatever the caller is doing
        function = functional(model, compute, include_frozen=include_frozen)
        x = as_inputs(X, function.device)
    require_same_dtype(x, compute)
    return function, x


def checked_chunk(chunk_size: int | None) -> int | None:
    """Return a caller's chunk size; raises InvalidInput unless it is a positive integer or None."""
    if chunk_size is None:
        return None
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
        raise InvalidInput("chunk_size", f"chunk_size={chunk_size!r}", "a positive number of samples, or None")
    return int(chunk_size)


def fill(function: Functional, x: torch.Tensor, m_y: int, target: torch.Tensor, chunk_size: int | None) -> str:
    """Write the derivatives of every sample into ``target`` (m_y, n, d); return how."""
    n, d = len(x), function.slots.d
    # A chunk's block is written once by the engine and copied once; activations are taken to be no more than that.
    size = checked_chunk(chunk_size) or max(1, _TEMPORARIES // (3 * m_y * d * target.element_size()))
    starts = range(0, n, size)
    engine, mode, why = vectorised, "forward" if d < m_y else "reverse", ""
    for start in track(starts, f"Jacobian, {n * m_y} x {d}"):
        part = x[start : start + size]
        if engine is vectorised:
            try:
                block = engine(function, part, m_y)
                if start == 0 and not vectorised_agrees(function, part, m_y, block):
                    raise ArithmeticError("vmap gave other derivatives than a backward pass")
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # vmap refuses in many ways; what is wrong with the model itself shows below
                engine, why = loop, f" (torch.func.vmap: {first_line(error)[:120]})"
        if engine is loop:
            block = engine(function, part, m_y)
        for offset, size_of, columns in zip(function.slots.offsets, function.slots.sizes, block):
            target[:, start : start + len(part), offset : offset + size_of] = columns.transpose(0, 1)
        require_finite(function.slots, target[:, start : start + len(part)], start)
    if engine is loop:
        return f"autograd, one output at a time{why}"
    return f"torch.func, {mode} mode, {min(size, n)} samples at once"


def require_finite(slots: ParameterLayout, block: torch.Tensor, start: int) -> None:
    """Refuse derivatives that are NaN or Inf, naming the output, the parameter and the sample."""
    if bool(torch.isfinite(block.sum())):  # a sum of finite numbers may overflow, so only then look closer
        return
    bad = (~torch.isfinite(block)).nonzero()
    if len(bad):
        j, i, column = (int(k) for k in bad[0])
        got = (
            f"a derivative of output {j} by parameter {slots.where(column)!r} that is NaN or Inf, at sample {start + i}"
        )
        raise InvalidInput("model", got, "a differentiable model: look for sqrt, norm, log or a power at 0")
