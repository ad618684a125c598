"""Validation of a model: from its modules and parameters, and from a few evaluations on its samples.

:func:`validate_model` runs nothing; :func:`probe` evaluates a few samples, unless :func:`is_sample_independent`
proves from the modules that each output depends on its own sample only.

:func:`recomputes` detects models that run parts of themselves again in the backward pass (``torch.utils.checkpoint``).
At that time a functional call is over and the module has its own parameters again. If their values differ from those of
the forward pass, the computed derivatives are those of no function, and no error is raised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from alignver import require
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.network.adapt import arguments_of, names_of
from alignver.network.arbitration import ForwardPass, arbitrate, graded_rows, is_rounding, refused_backward
from alignver.network.convolution import Convolutions
from alignver.network.functional import Functional, Theta, comparison_weights, unwrapped
from alignver.network.inputs import (
    OperationObserver,
    dtype_name,
    failing_module,
    has_attention,
    module_name,
    refused_inputs,
)
from alignver.network.preserve_state import RefuseWrites, attribute_of, eval_mode, named_tensors, refused_write
from alignver.network.row_rank_bound import is_sample_independent
from alignver.progress import stage

_PROBES, _FEW = 8, 3  # samples that probe() evaluates, spread over X; three is the least for a batch in another order
_LARGE = 10**6  # parameters from which on it evaluates _FEW: the passes of eight would take longer than many a check
_FLOATING = "the model before it was quantized"


def recomputes(function: Functional, x: torch.Tensor) -> bool:
    """Whether a backward pass runs modules of the model or operations on the module's own parameters.

    Examples
    --------
    >>> from alignver.network.functional import functional
    >>> recomputes(functional(nn.Linear(2, 1), torch.float64), torch.ones(1, 2))
    False
    """
    theta = function.leaves()
    out = function(theta, function.batch(x))
    if not out.requires_grad:
        return False
    modules, called = set(function.model.modules()), []

    def note(module: nn.Module, args: Any) -> None:
        if module in modules:
            called.append(module)

    # A hook beside the dispatch mode: the mode does not see the threads of a backward pass on a GPU.
    hook = global_hooks.register_module_forward_pre_hook(note)
    try:
        with OperationObserver(function.dtype, function.model.parameters()) as observer:
            torch.autograd.grad(out.sum(), list(theta.values()), allow_unused=True)
    finally:
        hook.remove()
    return observer.seen or bool(called)


def require_own_values(function: Functional, argument: str) -> None:
    """Refuse a model that recomputes, unless its own parameters and buffers have the values of the function."""
    present = {**dict(function.model.named_parameters()), **dict(function.model.named_buffers())}
    for name, value in {**function.theta, **function.held}.items():
        if not torch.equal(present[name].detach().to(value.dtype), value):
            model = type(function.model).__name__
            got = f"values of {name!r} that differ from those of {model}, which runs parts of itself again in the "
            got += "backward pass (torch.utils.checkpoint), with its own values"
            need = "a model with these values: model.load_state_dict(...), or no checkpoints"
            raise InvalidInput(argument, got, need, code="unsupported-model")


def validate_model(model: nn.Module, *, include_frozen: bool = False) -> nn.Module:
    """Validate a model from its modules and parameters alone, without a forward pass.

    Returns the module to work with: the model itself, or the module inside a ``torch.compile`` wrapper.

    Raises
    ------
    InvalidInput
        The model is not a torch.nn.Module (or is scripted or data-parallel); BatchNorm, Dropout or a similar module is
        in train mode; there is no trainable parameter; parameters are uninitialised, meta, sparse, quantized, complex,
        NaN or Inf, on several devices or of several dtypes. The message names the module or parameter.

    Examples
    --------
    >>> import torch
    >>> _ = validate_model(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)))
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: model: got Dropout '1' in train mode, which is random; needs eval mode: model.eval()
    """
    require.boolean("include_frozen", include_frozen)
    if not isinstance(model, nn.Module):
        raise InvalidInput("model", kind_of(model), "a torch.nn.Module", code="wrong-type")
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise _unsupported(kind_of(model), "the torch.nn.Module that it was scripted or traced from")
    for name, module in model.named_modules():
        reason = train_mode_fault(module)
        if reason:
            raise _unsupported(f"{module_name(name, module)} {reason}", "eval mode: model.eval()")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            got = f"{module_name(name, module)} without running statistics, which couples the samples of a batch"
            raise _unsupported(got, "track_running_stats=True, or GroupNorm or LayerNorm")
    _require_parameters(model, include_frozen)
    return model


def train_mode_fault(module: nn.Module) -> str:
    """Return why a module cannot be checked in train mode; empty if it can, or if it is in eval mode."""
    if not module.training:
        return ""
    if isinstance(module, _BatchNorm):
        return "in train mode, which couples the samples of a batch"
    if getattr(module, "track_running_stats", False):
        return "in train mode, which writes its running statistics"
    random = (
        (isinstance(module, _DropoutNd) and module.p > 0)
        or (isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0)
        or isinstance(module, nn.RReLU)
    )
    return "in train mode, which is random" if random else ""


def _require_parameters(model: nn.Module, include_frozen: bool) -> None:
    parameters = dict(model.named_parameters())
    tensors: list[tuple[str, torch.Tensor]] = [(f"parameter {name!r}", p) for name, p in parameters.items()]
    tensors += [(f"buffer {name!r}", b) for name, b in model.named_buffers()]
    for called, tensor in tensors:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise _unsupported(f"{called} without a shape yet", "one call of the model on a batch first: model(X)")
        if tensor.is_meta:
            raise _unsupported(f"{called} on the meta device, without values", "a model with values: load its weights")
        real = not tensor.is_complex() or called.startswith("buffer")
        if tensor.layout != torch.strided or tensor.is_quantized or not real:
            kind = "complex" if not real else "quantized" if tensor.is_quantized else "sparse"
            raise _unsupported(f"{called} that is {kind}", _dense(called, kind))
    slots = {name: p for name, p in parameters.items() if include_frozen or p.requires_grad}
    if not any(p.numel() for p in slots.values()):
        need = "at least one"
        if parameters:
            need += ": model.requires_grad_(True) makes all trainable; include_frozen=True counts frozen ones"
        elif any("quantized" in type(module).__module__ for module in model.modules()):
            need = _FLOATING
        raise _unsupported(f"{type(model).__name__} with no trainable parameter", need)
    called, first = f"parameter {next(iter(slots))!r}", next(iter(slots.values()))
    for other, tensor in tensors:
        if tensor.device != first.device:
            got = f"{called} on {first.device} and {other} on {tensor.device}"
            raise InvalidInput("model", got, "one device: model.to(...)", code="wrong-device")
    for name, p in parameters.items():
        if not p.is_floating_point():
            got = f"parameter {name!r} of dtype {dtype_name(p.dtype)}"
            raise InvalidInput("model", got, "floating-point parameters", code="wrong-dtype")
        if p.dtype != first.dtype:
            got = f"{called} of {dtype_name(first.dtype)} and parameter {name!r} of {dtype_name(p.dtype)}"
            raise InvalidInput("model", got, "one dtype: model.double(), which is exact", code="wrong-dtype")
    for called, tensor in tensors:
        if tensor.is_floating_point() and not _all_finite(tensor.detach()):
            raise InvalidInput("model", f"{called} with NaN or Inf entries", "finite values", code="not-finite")


def _dense(called: str, kind: str) -> str:
    """Return what to use in place of a parameter or buffer that is not dense and real."""
    if kind == "complex":
        return "its real and imaginary parts, torch.view_as_real of it, and torch.view_as_complex in the forward"
    if kind == "quantized":
        return _FLOATING
    place = attribute_of(called.partition(" ")[2].strip("'"))
    dense = f"{place}.to_dense()"
    return f"a dense one: {place} = {dense if called.startswith('buffer') else f'torch.nn.Parameter({dense})'}"


def _all_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite; a sum is faster than a test of each, and is finite only if all entries are."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _unsupported(got: str, need: str) -> InvalidInput:
    return InvalidInput("model", got, need, code="unsupported-model")


@dataclasses.dataclass(frozen=True)
class Probed:
    """The result of a few evaluations.

    Attributes
    ----------
    m_y : int
        Number of outputs.
    computed_in : torch.dtype
        The coarsest dtype that a forward pass rounds to.
    function : Functional
        The function to differentiate: batches of one or passes without gradients may need another form.
    plain : bool
        Whether the modules prove that the model is a chain of linear layers and elementwise functions.
    notes : tuple of str
        What the reader of a report has to know of these derivatives.
    refusal : InvalidInput or None
        Why torch's derivatives are not those of the model; only with ``strict=False`` of :func:`probe`.
    custom : bool
        Whether a backward pass of the user is among them.
    """

    m_y: int
    computed_in: torch.dtype
    function: Functional
    plain: bool = False
    notes: tuple[str, ...] = ()
    refusal: InvalidInput | None = None
    custom: bool = False


def probes(x: torch.Tensor, count: int = _PROBES) -> torch.Tensor:
    """Return the samples that :func:`probe` evaluates: at most ``count``, evenly spaced from the first to the last."""
    return x[torch.linspace(0, len(x) - 1, min(len(x), count), dtype=torch.float64).round().long().to(x.device)]


def probe(function: Functional, x: torch.Tensor, *, strict: bool = True) -> Probed:
    """Evaluate a model on a few samples, and refuse it unless each output row depends on its sample and theta.

    Up to eight samples, three of a model with more than 10^6 parameters, are evaluated as one batch, without gradients
    and with them; then each alone, and all but the first in reverse order. A coupling that these batches do not reveal
    would have to be independent of the number of samples and of their order. If the modules rule a coupling out
    (:func:`~alignver.network.row_rank_bound.is_sample_independent`), one batch suffices. The gradients are compared
    with the module's own, with each other and with differences (:func:`alignver.network.arbitration.arbitrate`);
    without ``strict``, a model whose derivatives are wrong is returned with the refusal.

    Raises
    ------
    InvalidInput
        The forward pass raises; does not return one tensor of shape (n,) or (n, m_y); writes to parameters or buffers;
        gives different results when repeated; makes an output depend on the other samples of its batch; does not depend
        on the parameters; accesses parameters other than through the module's attributes.
    """
    count = _PROBES if function.layout.d <= _LARGE else _FEW
    with stage("comparing the model's passes on a few samples"):
        return _probed(function, probes(x, count), strict=strict)


def _probed(function: Functional, x: torch.Tensor, *, strict: bool, notes: tuple[str, ...] = ()) -> Probed:
    if is_sample_independent(function.model, x):
        with torch.no_grad():
            return Probed(int(_rows(function, x).shape[1]), function.dtype, function, plain=True)
    always_graded = dataclasses.replace(function, graded=True)
    versions = {name: t._version for name, t in {**function.theta, **function.held}.items()}
    observer = OperationObserver(function.dtype, function.model.parameters())
    try:
        with torch.no_grad(), observer:
            batch = _rows(function, x)
    except InvalidInput as refused:  # a model that differentiates inside its forward pass needs gradients in every pass
        if function.graded or "does not require grad" not in str(refused.__cause__):
            raise
        return _probed(always_graded, x, strict=strict)
    _require_unwritten(function, versions)
    # Each further pass has another batch: all samples in reverse order, each alone, all but the first.
    computed_in, expect, turned = observer.coarsest, batch.shape[1], x.flip(0)
    graded = ForwardPass.of(function, turned, _rows)
    alone = functools.partial(_rows, expect=expect)
    single = {row: ForwardPass.of(function, turned[row : row + 1], alone) for row in graded_rows(x)}
    with torch.no_grad():
        parts = enumerate(torch.split(turned, 1))
        apart = [single[k].outputs.detach() if k in single else alone(function, part) for k, part in parts]
    _require_unwritten(function, versions)
    coupled = _differ(batch.flip(0), torch.cat(apart), computed_in)
    if coupled or _differ(batch.flip(0), graded.outputs.detach(), computed_in):
        if not function.graded:
            with torch.no_grad():
                another = _differ(batch, _rows(always_graded, x), computed_in)
            if another:
                return _probed(always_graded, x, strict=strict, notes=(_another_function(function),))
        raise _refused_rows(function, x, batch, computed_in)
    _require_gradients(function, turned, graded)
    if observer.seen or graded.other_leaves or not _is_own_function(function, turned, batch.flip(0), computed_in):
        with torch.no_grad():
            if len(x) > 2 and _differ(batch[1:].flip(0), _rows(function, turned[:-1]), computed_in):
                raise _refused_rows(function, x, batch, computed_in)
        direct = _native_outputs(function, turned)
        notes = tuple(dict.fromkeys((*notes, *_notes(function, x, batch))))
        if direct is not None:
            _require_same_gradient(function, turned, direct, graded)
    arbitrated = arbitrate(function, turned, computed_in, graded, single)
    if strict and arbitrated.refusal is not None:
        raise arbitrated.refusal
    special = (*notes, *arbitrated.notes), arbitrated.refusal, arbitrated.custom
    return Probed(expect, computed_in, arbitrated.function, False, *special)


def _in_eval_mode(function: Functional, test: Callable[[], bool]) -> bool:
    """Whether a test that fails in train mode succeeds in eval mode, which then is the remedy."""
    if not any(module.training for module in function.model.modules()):
        return False
    try:
        with eval_mode(function.model), torch.no_grad():
            return test()
    except InvalidInput:
        return False


def _refused_rows(function: Functional, x: torch.Tensor, batch: torch.Tensor, dtype: torch.dtype) -> InvalidInput:
    """Return why outputs of samples in other batches are not those of the first one."""

    def repeatable() -> bool:
        return not _differ(_rows(function, x), _rows(function, x), dtype)

    def independent() -> bool:
        apart = torch.cat([_rows(function, part) for part in torch.split(x, 1)])
        return not _differ(_rows(function, x), apart, dtype)

    model = type(function.model).__name__
    with torch.no_grad():
        random = any(_differ(batch, _rows(function, x), dtype) for _ in range(8))  # dropout can repeat itself
    if random:
        got, need = f"{model}, whose outputs differ between two evaluations", "a deterministic forward"
        if _in_eval_mode(function, repeatable):
            return _unsupported(got, f"{need}: model.eval()")
        return _unsupported(got, f"{need}: no random numbers, and nothing that one call leaves to the next")
    got = f"{model}, whose output for a sample depends on the others in its batch"
    need = "outputs that depend on their own sample"
    if _in_eval_mode(function, independent):
        return _unsupported(got, f"{need} (no batch statistics): model.eval()")
    return _unsupported(got, f"{need}: no batch statistics, and loops and solvers with a fixed number of steps")


def _require_unwritten(function: Functional, versions: dict[str, int]) -> None:
    for name, tensor in {**function.theta, **function.held}.items():
        if tensor._version != versions[name]:
            raise refused_write(function.source, name)


def _another_function(function: Functional) -> str:
    model = type(function.source).__name__
    return f"{model} is another function under torch.no_grad(): this is about the one that gradients are computed of"


def _notes(function: Functional, x: torch.Tensor, batch: torch.Tensor) -> tuple[str, ...]:
    """Compare the outputs with those in the model's own dtype, and of the model as it runs under no_grad.

    Raises
    ------
    InvalidInput
        The model is another function in the dtype of computation than in its own.
    """
    model = type(function.source).__name__
    native = next(function.source.parameters()).dtype
    narrow = function.in_dtype(native)
    theta = narrow.theta
    tensors = {place: {**narrow.held, **theta}[name] for place, name in function.places.items()}
    try:
        with torch.no_grad():
            plain = bare = batch if native == function.dtype else narrow(theta, narrow.batch(x)).reshape(len(x), -1)
            if has_attention(function.model):
                bare = functional_call(function.model, tensors, (narrow.batch(x),), tie_weights=False)
                bare = bare.reshape(len(x), -1).to(plain.dtype)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # a model that runs in float64 only, where there is nothing to compare
        return ()
    if not bool(torch.isfinite(plain).all()):
        return ()
    another = native != function.dtype and _differ(batch, plain.to(batch.dtype), native, power=0.25)
    if another and not is_rounding(function, x, batch, plain):
        got = f"{model}, whose outputs in {dtype_name(function.dtype)} are not those in {dtype_name(native)}, rounded"
        raise _unsupported(got, f"dtype='same', which checks the model in its own {dtype_name(native)}")
    return (_another_function(function),) if _differ(plain, bare, native) else ()


def _rows(
    function: Functional, x: torch.Tensor, *, expect: int | None = None, theta: Theta | None = None
) -> torch.Tensor:
    """Evaluate a batch as an (n, m_y) tensor; ``expect`` outputs of a single sample may have any shape."""
    model = type(function.model).__name__
    try:
        with Convolutions():
            out: Any = function(function.theta if theta is None else theta, function.batch(x))
    except (InvalidInput, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        refused = refused_inputs(function.model, x, error)
        if refused.code != "invalid-value" and expect is None:
            raise refused from error
        native = next(function.model.parameters()).dtype
        need = refused.need
        if isinstance(error, TypeError) and "argument" in str(error):
            need = f"the arguments of its forward pass: {', '.join(arguments_of(function.source))}"
        elif expect is not None:
            need = "a forward that accepts a single sample as well as a batch"
        elif native != function.dtype and function.in_dtype(native).runs(x):
            need += f" in {dtype_name(function.dtype)}, or dtype='same' to compute in its own {dtype_name(native)}"
        raise InvalidInput("X", refused.got, need) from error
    if not isinstance(out, torch.Tensor):
        names = names_of(out)
        need = "a forward that returns one tensor"
        if names:
            likely = next((name for name in ("logits", "out", "output") if name in names), names[0])
            need += f": model, X, Y = alignver.adapted(model, X, Y, select={likely!r})"
            need += f" or another of {', '.join(map(repr, names))}" if len(names) > 1 else ""
        raise _unsupported(f"{model}, which returns {kind_of(out)}", need)
    if not out.is_floating_point():
        raise _unsupported(f"{model} with outputs of {dtype_name(out.dtype)}", "floating-point outputs")
    if expect is not None and out.numel() == expect:
        return out.reshape(1, expect)
    if out.ndim not in (1, 2) or len(out) != len(x) or out.numel() == 0:
        remedy = f"({len(x)},) or ({len(x)}, m_y), one row for each sample"
        if out.ndim > 2 and len(out) == len(x):
            remedy += ": flatten them: out.flatten(1)"
        raise _unsupported(f"{model} with outputs of shape {tuple(out.shape)} for {len(x)} samples", remedy)
    if not bool(torch.isfinite(out).all()):
        native, need = next(function.source.parameters()).dtype, "finite outputs"
        if native != function.dtype:
            need += f" in {dtype_name(function.dtype)}, or dtype='same' to compute in its own {dtype_name(native)}"
        raise InvalidInput("model", f"{model} with NaN or Inf outputs", need, code="not-finite")
    return out.reshape(len(x), -1)


def _differ(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype, power: float = 0.5) -> bool:
    """Whether two evaluations differ by more than rounding explains: sqrt(eps) times the largest output."""
    if first.shape != second.shape:
        return True
    size = float(first.abs().max())
    return float((first - second).abs().max()) > math.pow(torch.finfo(dtype).eps, power) * size


def _native_outputs(function: Functional, x: torch.Tensor, *, graded: bool = True) -> torch.Tensor | None:
    """Return the outputs of the module itself, in its own dtype, with their graph; None if it cannot be compared.

    Without ``graded`` it runs as it does under no_grad.
    """
    model = function.model
    if any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()]):
        return None  # autograd works on the copies only, not on the module itself
    native = next(model.parameters()).dtype
    before = {name: id(tensor) for name, tensor in named_tensors(model)}
    inputs = dataclasses.replace(function, dtype=native).batch(x)
    modes: tuple[Any, ...] = (function.evaluated(),) if graded else (function.evaluated(), Convolutions())
    if not graded and has_attention(model):
        modes = ()  # in which torch would not run its fused layers, another function on padded sequences
    try:
        with contextlib.ExitStack() as stack:
            for context in (torch.set_grad_enabled(graded), *modes, RefuseWrites(model)):
                stack.enter_context(context)
            direct: torch.Tensor = model(inputs)
    except InvalidInput:
        raise
    except Exception as error:
        if native == function.dtype and graded:
            raise refused_inputs(model, x, error) from error
        return None  # the model runs in float64 only: there is nothing to compare with
    for name, tensor in named_tensors(model):
        if before.get(name) != id(tensor):
            raise refused_write(model, name)
    return direct


def _is_own_function(function: Functional, x: torch.Tensor, batch: torch.Tensor, computed_in: torch.dtype) -> bool:
    """Whether the module itself, in its own dtype and without gradients, has the same outputs; all but the last."""
    rows = slice(0, max(2, len(x) - 1))
    out = _native_outputs(function, x[rows], graded=False)
    if not isinstance(out, torch.Tensor) or out.numel() != batch[rows].numel() or not bool(torch.isfinite(out).all()):
        return False
    coarsest = max(computed_in, next(function.model.parameters()).dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return not _differ(batch[rows], out.detach().reshape(batch[rows].shape).to(batch.dtype), coarsest)


def _require_gradients(function: Functional, x: torch.Tensor, graded: ForwardPass) -> None:
    """Differentiate through the copies in the dtype of computation.

    A checkpoint (``torch.utils.checkpoint``) runs parts of the model again in it, with the module's own parameters.
    """
    native = next(function.model.parameters()).dtype
    try:
        _ = graded.gradients
        return
    except InvalidInput as refused:
        error = refused.__cause__
        if native == function.dtype or not isinstance(error, RuntimeError):
            raise
    direct = _native_outputs(function, x)
    if direct is not None:
        _require_same_gradient(function, x, direct, None)  # which may fail too
    failing, wide = module_name(*failing_module(function.model, error)), dtype_name(function.dtype)
    need = f"dtype='same', which computes in the model's own {dtype_name(native)}, or model.double(): a part that "
    need += "runs again in the backward pass (torch.utils.checkpoint) uses the model's own parameters"
    raise _unsupported(f"{failing}, whose backward pass fails in {wide} ({first_line(error)})", need) from error


def _require_same_gradient(
    function: Functional, x: torch.Tensor, direct: torch.Tensor, graded: ForwardPass | None
) -> None:
    """Compare a gradient through the copies with one through the module itself, in the module's own dtype.

    Both run the same operations on the same numbers. If they differ, the forward pass accesses parameters other than
    through the module's attributes (a list, a closure, a view made at construction), and the Jacobian would silently
    miss columns. ``graded`` is the pass through the copies if the module's own dtype is that of computation.
    """
    model, layout = function.model, function.layout
    native = next(model.parameters()).dtype
    parameters = {n: p for n, p in zip(layout.names, layout.parameters) if p.requires_grad and not p._backward_hooks}
    if not parameters or not direct.requires_grad:
        return
    weights = comparison_weights(direct.numel(), direct).reshape(direct.shape)
    try:
        expected = torch.autograd.grad(
            direct, list(parameters.values()), weights, allow_unused=True, materialize_grads=True
        )
        if graded is None or native != function.dtype:
            graded = ForwardPass.of(function.in_dtype(native), x, _rows)
        gradients = graded.gradients
    except (InvalidInput, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a backward pass of the user, or a checkpoint, can raise anything
        if function.changed:
            return
        raise refused_backward(model, error) from error
    if function.changed:
        return  # another thread trains the model: the two passes saw other parameters
    for name, reference in zip(parameters, expected):
        if _norm(reference - gradients[name]) > math.sqrt(torch.finfo(native).eps) * _norm(reference):
            got = f"{type(model).__name__}, whose forward accesses {name!r} other than through the module's attributes"
            raise _unsupported(got, "a forward that reads its parameters from the module (self.weight) at every call")


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
