"""The dense Jacobian of a torch model's outputs with respect to its parameters, and the outputs themselves.

Rows come from ``torch.func`` for many samples and all outputs at once (:func:`vectorised`), or, for models that do not
vectorise, from ``autograd.grad`` for one output of one sample at a time (:func:`loop`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from alignver import require
from alignver.errors import InvalidInput, first_line
from alignver.features.threads import threads_for
from alignver.limits import in_memory
from alignver.network.adapt import adapted
from alignver.network.functional import (
    Functional,
    ParameterLayout,
    Theta,
    comparison_weights,
    functional,
    require_memory,
    require_same_dtype,
)
from alignver.network.inputs import as_inputs, dtype_name, full_precision, resolve_dtype
from alignver.network.validate_model import Probed, probe, validate_model
from alignver.progress import track

Block = tuple[torch.Tensor, ...]
"""For each slot, the derivatives of a chunk of samples: (samples, m_y, size)."""

_TEMPORARIES = 1 << 28  # approximate bytes of the temporaries of one chunk
_OUTPUT_CHUNK = 1024  # samples of one forward pass in outputs()


def vectorised(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate through ``vmap(jacrev)`` over samples, ``vmap(jacfwd)`` where d < m_y.

    Per sample, reverse mode costs m_y backward passes, forward mode d forward passes. torch raises if the model does
    not vectorise: control flow on data, fused RNNs, operations without a batching rule.
    """
    derivative = jacfwd if function.layout.d < m_y else jacrev

    def single(theta: Theta, sample: torch.Tensor) -> torch.Tensor:
        return function(theta, sample.unsqueeze(0)).reshape(m_y)

    rows: Callable[..., dict[str, torch.Tensor]] = vmap(derivative(single), in_dims=(None, 0), randomness="different")
    with warnings.catch_warnings():
        # They concern torch's internals (missing batching rules, deprecated calls), not the caller.
        warnings.simplefilter("ignore")
        derivatives = rows(dict(function.theta), function.batch(x))
    return tuple(derivatives[name].reshape(len(x), m_y, -1) for name in function.layout.names)


def loop(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate one output of one sample at a time through ``autograd.grad``: slow, and as correct as autograd."""
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


def sample_rows(
    function: Functional, x: torch.Tensor, m_y: int, slow: str, agrees: Callable[[Block], bool]
) -> tuple[Block, str]:
    """Differentiate a chunk by :func:`vectorised`, or by :func:`loop` if that raises or does not agree.

    ``slow`` is the reason for the loop if an earlier chunk needed it, else empty; it is returned with the block.
    """
    if not slow:
        try:
            block = vectorised(function, x, m_y)
            if not agrees(block):
                raise ArithmeticError("vmap gave other derivatives than a backward pass")
            return block, ""
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # vmap raises many types; an error of the model itself appears in the loop again
            slow = f" (torch.func.vmap: {first_line(error)[:120]})"
    return loop(function, x, m_y), slow


def _agrees_on_first(function: Functional, x: torch.Tensor, m_y: int, block: Block) -> bool:
    """Compare w^T J_1 from the first sample's rows with one ordinary backward pass, up to sqrt(eps)."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x[:1])).reshape(m_y)
    weights = comparison_weights(m_y, out)
    gradients = torch.autograd.grad(
        (out * weights).sum(), list(theta.values()), allow_unused=True, materialize_grads=True
    )
    eps = torch.finfo(out.dtype).eps
    # Gradients that are zero in exact arithmetic (a shift before a softmax) are rounding errors of the largest.
    floor = 1e3 * eps * max(float(gradient.norm()) for gradient in gradients)
    for part, gradient in zip(block, gradients):
        combined = weights.to(part.dtype) @ part[0]
        allowed = math.sqrt(eps) * max(float(gradient.norm()), float(part[0].abs().max())) + floor
        if float((gradient.reshape(-1) - combined).norm()) > allowed:
            return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class Differentiated:
    """A Jacobian and how it was computed.

    Attributes
    ----------
    matrix : torch.Tensor
        (n m_y, d), on the model's device, in the dtype of computation; row j n + i belongs to entry (i, j) of f_X.
    layout : ParameterLayout
        The columns.
    n, m_y : int
        Samples and outputs.
    engine : str
        How it was computed, in words, with the reason if it was not the first choice.
    computed_in : str
        The coarsest dtype that a forward pass rounds to, on which tolerances depend.
    """

    matrix: torch.Tensor
    layout: ParameterLayout
    n: int
    m_y: int
    engine: str
    computed_in: str


@in_memory
def jacobian(
    model: nn.Module,
    X: Any,
    *,
    chunk_size: int | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    select: Any = None,
    forward_args: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Return the Jacobian of vec(f_X(theta)) with respect to theta, whose column space Definition 2 refers to.

    ``J = d vec(f_X(theta)) / d theta``; vec stacks the columns of the n x m_y output matrix, so the derivatives of
    f(x_i, theta)_j are row ``j n + i``. Columns follow :func:`alignver.network.functional.parameter_layout`: each
    physical parameter once, flattened in row-major order.

    Parameters
    ----------
    model : torch.nn.Module
        Deterministic, with one row of outputs for each sample: (n,) or (n, m_y). It is not changed: Parameter objects,
        values, buffers, mode, gradients, hooks and the random state stay the same.
    X : array, tuple or dict of arrays, Dataset or DataLoader
        Inputs, one sample per row: (n, ...). Integers stay integers (embeddings). Several inputs by position or name
        (:func:`alignver.network.adapt.adapted`).
    chunk_size : int, optional
        Samples differentiated at once; by default temporaries take about 256 MB.
    dtype : str, optional
        ``"float64"``: parameters, buffers and inputs are converted (exactly) to float64 for the computation. None or
        ``"same"``: the model's own dtype.
    include_frozen : bool
        Differentiate with respect to parameters with ``requires_grad=False`` too.
    select, forward_args
        The output of a model that returns several, and further arguments of its forward pass.

    Returns
    -------
    torch.Tensor
        (n m_y, d), on the model's device.

    Raises
    ------
    InvalidInput
        The model or the inputs cannot be checked (the message names the module and the remedy); a derivative is NaN or
        Inf.

    Notes
    -----
    Rigor: floating-point, with errors of the order of the eps of the dtype of computation. Samples are differentiated
    through ``torch.func``; a model that does not vectorise is differentiated one output at a time.

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
    model = validate_model(model, include_frozen=include_frozen)
    model, X, _ = adapted(model, X, select=select, forward_args=forward_args)
    return differentiate(model, X, chunk_size=chunk_size, dtype=dtype, include_frozen=include_frozen).matrix


def outputs(
    model: nn.Module,
    X: Any,
    *,
    chunk_size: int | None = None,
    dtype: str | None = "float64",
    select: Any = None,
    forward_args: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Return the output matrix f_X(theta) of a model.

    ``f_X(theta)_ij = f(x_i, theta)_j`` (paper, Section 2.1.2). Arguments, exceptions and rigor are those of
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
    model, X, _ = adapted(model, X, select=select, forward_args=forward_args)
    size = checked_chunk(chunk_size) or _OUTPUT_CHUNK
    with probed_copy(model, X, dtype, include_frozen=True) as (function, x, probed):
        with torch.no_grad(), threads_for(len(x) * function.layout.d):
            parts = [function(function.theta, function.batch(part)) for part in torch.split(x, size)]
        return torch.cat([part.reshape(-1, probed.m_y) for part in parts]).to(function.dtype)


def differentiate(
    model: nn.Module,
    X: Any,
    *,
    chunk_size: int | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
) -> Differentiated:
    """Compute :func:`jacobian`, and return with it how it was computed."""
    model = validate_model(model, include_frozen=include_frozen)
    checked_chunk(chunk_size)
    with probed_copy(model, X, dtype, include_frozen=include_frozen) as (function, x, probed):
        n, m_y, d = len(x), probed.m_y, function.layout.d
        got = f"{n} samples, {m_y} outputs and {d} parameters: a Jacobian of"
        require_memory(n * m_y * d, function, got, "a Jacobian")
        matrix = torch.empty((n * m_y, d), dtype=function.dtype, device=function.device)
        with threads_for(n * m_y * d):
            engine = fill(function, x, m_y, matrix.view(m_y, n, d), chunk_size)
    return Differentiated(matrix, function.layout, n, m_y, engine, dtype_name(probed.computed_in))


@contextlib.contextmanager
def probed_copy(
    model: nn.Module,
    X: Any,
    dtype: str | None,
    *,
    include_frozen: bool = False,
    separate: bool = True,
    strict: bool = True,
) -> Iterator[tuple[Functional, torch.Tensor, Probed]]:
    """Bind a validated model to its inputs and probe it; compute in the requested dtype until the model is restored."""
    options = {"include_frozen": include_frozen, "separate": separate}
    with bound_copy(model, X, dtype, **options) as (function, x), full_precision(function.device, function.dtype):
        probed = probe(function, x, strict=strict)
        yield probed.function, x, probed


@contextlib.contextmanager
def bound_copy(
    model: nn.Module, X: Any, dtype: str | None, *, include_frozen: bool = False, separate: bool = True
) -> Iterator[tuple[Functional, torch.Tensor]]:
    """Bind a validated model to its inputs until the modules that run are restored."""
    function, x = bind(model, X, dtype, include_frozen=include_frozen, separate=separate)
    with function.undisturbed():
        yield function, x


def bind(
    model: nn.Module, X: Any, dtype: str | None, *, include_frozen: bool, separate: bool = True
) -> tuple[Functional, torch.Tensor]:
    """Bind a model to copies of its parameters in the requested dtype; return it with its inputs on its device."""
    compute = resolve_dtype(model, dtype)
    model, X, _ = adapted(model, X)
    with torch.inference_mode(False):  # autograd can work with these copies even if the caller is in inference mode
        function = functional(model, compute, include_frozen=include_frozen, separate=separate)
        x = as_inputs(X, function.device)
    require_same_dtype(x, compute)
    return function, x


def checked_chunk(chunk_size: int | None) -> int | None:
    """Return a caller's chunk size; raises InvalidInput unless it is a positive integer or None."""
    if chunk_size is None:
        return None
    return require.integer("chunk_size", chunk_size, least=1, need="a positive number of samples, or None")


def fill(function: Functional, x: torch.Tensor, m_y: int, target: torch.Tensor, chunk_size: int | None) -> str:
    """Write the derivatives of every sample into ``target`` (m_y, n, d); return how they were computed."""
    n, d = len(x), function.layout.d
    # The engine writes a chunk's block once and it is copied once; activations are assumed to take no more than that.
    size = checked_chunk(chunk_size) or max(1, _TEMPORARIES // (3 * m_y * d * target.element_size()))
    slow = ""
    for start in track(range(0, n, size), f"Jacobian, {n * m_y} x {d}"):
        part = x[start : start + size]

        def agrees(block: Block, start: int = start, part: torch.Tensor = part) -> bool:
            return start > 0 or _agrees_on_first(function, part, m_y, block)

        block, slow = sample_rows(function, part, m_y, slow, agrees)
        for offset, width, columns in zip(function.layout.offsets, function.layout.sizes, block):
            target[:, start : start + len(part), offset : offset + width] = columns.transpose(0, 1)
        require_finite(function.layout, target[:, start : start + len(part)], start)
    if slow:
        return f"autograd, one output at a time{slow}"
    return f"torch.func, {'forward' if d < m_y else 'reverse'} mode, {min(size, n)} samples at once"


def require_finite(layout: ParameterLayout, block: torch.Tensor, start: int) -> None:
    """Refuse derivatives that are NaN or Inf, naming the output, the parameter and the sample."""
    if bool(torch.isfinite(block.sum())):  # a sum of finite numbers may overflow: the test of each entry decides
        return
    bad = (~torch.isfinite(block)).nonzero()
    if len(bad):
        j, i, column = (int(k) for k in bad[0])
        raise nonfinite_derivative(j, layout.where(column), start + i)


def nonfinite_derivative(output: int, parameter: str, sample: int) -> InvalidInput:
    """Return the exception for a derivative that is NaN or Inf."""
    got = f"a derivative of output {output} by parameter {parameter!r} that is NaN or Inf, at sample {sample}"
    need = "a differentiable model: look for sqrt, norm, log or a power at 0"
    return InvalidInput("model", got, need, code="not-finite")
