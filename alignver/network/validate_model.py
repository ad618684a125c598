"""Models whose modules alone tell that every sample is treated by itself: what need not be tried on batches.

Models that compute parts of themselves again in the backward pass: ``torch.utils.checkpoint``.

By then a functional call is over, and the module's own parameters are back in their places. Where they have other
values than those the pass was made with, the derivatives are those of no function at all, without an error.

Which models a check can be about: everything else is refused by name, with the remedy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.modules import module as of_all
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.errors import InvalidInput, first_line
from alignver.network.functional import Functional
from alignver.network.inputs import RoundingObserver, differentiable, dtype_name

__all__ = ["Probed", "is_sample_independent", "probe", "probes", "recomputes", "require_own_values", "validate_model"]
_ELEMENTWISE = (
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity,
    nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip
_SLOTS: dict[type, set[str]] = {kind: set() for kind in (nn.Sequential, nn.Flatten, *_ELEMENTWISE)}
_SLOTS |= {nn.Linear: {"weight", "bias"}}


def is_sample_independent(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the structure of a model proves that its outputs are rows, each of its own sample and of theta alone.

    A chain of linear layers, elementwise functions and flattenings from torch.nn, without hooks, subclasses, replaced
    methods or parametrizations, in which every parameter is where its class keeps it: deterministic, computing in one
    dtype, writing to nothing but its activations. With two axes or more in ``x`` the first one holds the samples
    throughout: a linear layer acts on the last axis, and a flattening that starts at axis 1 keeps two. Dropout has been
    refused in train mode before. True is a proof; False says nothing.

    Examples
    --------
    >>> treats_samples_apart(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(4, 2))
    True
    >>> treats_samples_apart(nn.Sequential(nn.Linear(4, 1)), torch.zeros(4))  # the samples as features
    False
    """
    if x.ndim < 2 or any(getattr(hooks_of_all, name, None) for name in _HOOKS if name.startswith("_global")):
        return False
    return type(x) is torch.Tensor and all(_is_plain(module) for module in model.modules())


def _is_plain(module: nn.Module) -> bool:
    kind, own = type(module), vars(module)
    if kind not in _SLOTS or set(own["_parameters"]) != _SLOTS[kind] or own["_buffers"]:
        return False
    if kind.forward.__module__ != kind.__module__:  # replaced for all of its class
        return False
    if any(own.get(name) for name in _HOOKS) or any(_is_foreign(key, value, kind) for key, value in own.items()):
        return False
    if kind is nn.Flatten and (module.start_dim < 1 or 0 <= module.end_dim < module.start_dim):  # type: ignore[operator]
        return False
    if kind is nn.Dropout and module.training and module.p > 0:  # type: ignore[operator]
        return False
    parameters = [p for p in own["_parameters"].values() if p is not None]
    return all(type(p) is nn.Parameter and not p._backward_hooks and p.grad_fn is None for p in parameters)


def _is_foreign(key: str, value: Any, kind: type) -> bool:
    """Whether an attribute of an instance stands for a method of its class, or is a tensor past the registries."""
    return isinstance(value, torch.Tensor) or (callable(value) and hasattr(kind, key))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notice operations on the module's own parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = {id(p) for p in model.parameters()}
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments, and run the operation."""
        self.seen = self.seen or any(id(leaf) in self.own for leaf in pytree.tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def recomputes(function: Functional, x: torch.Tensor) -> bool:
    """Whether a backward pass runs modules of the model, or operations on its own parameters.

    Examples
    --------
    >>> from alignver.network.functional import functional
    >>> recomputes(functional(nn.Linear(2, 1), torch.float64), torch.ones(1, 2))
    False
    """
    theta = {name: value.detach().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x))
    if not out.requires_grad:
        return False
    inside, called = set(function.model.modules()), []

    def note(module: nn.Module, args: Any) -> None:
        if module in inside:
            called.append(module)

    hook = of_all.register_module_forward_pre_hook(note)  # a backward pass on a GPU has threads that no mode watches
    try:
        with _Watch(function.model) as watch:
            torch.autograd.grad(out.sum(), list(theta.values()), allow_unused=True)
    finally:
        hook.remove()
    return watch.seen or bool(called)


def require_own_values(function: Functional, argument: str) -> None:
    """Refuse a model that recomputes, unless its own parameters and buffers have the values that are worked with."""
    own = {**dict(function.model.named_parameters()), **dict(function.model.named_buffers())}
    for name, value in {**function.theta, **function.held}.items():
        if not torch.equal(own[name].detach().to(value.dtype), value):
            model = type(function.model).__name__
            got = f"values of {name!r} that {model} does not have now, while it computes parts of itself again on the "
            got += "way back (torch.utils.checkpoint), with its own"
            raise InvalidInput(argument, got, "a model that has them: model.load_state_dict(...), or no checkpoints")


_PROBES = 8  # samples that the probes below look at, spread over X


def validate_model(model: nn.Module, *, include_frozen: bool = False) -> nn.Module:
    """Refuse a model that no check can be about, from its modules and parameters alone; nothing is run.

    Returns the module to work with: the model itself, or the one that ``torch.compile`` wrapped.

    Raises
    ------
    InvalidInput
        Not a torch.nn.Module (or a scripted or data-parallel one); BatchNorm, Dropout and the like in train mode; no
        trainable parameter; parameters that are uninitialised, meta, sparse, quantized, complex, NaN or Inf, on
        several devices or of several dtypes. The message names the module or parameter.

    Examples
    --------
    >>> import torch
    >>> _ = validate_model(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)))
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: model: got Dropout '1' in train mode, which is random; needs eval mode: model.eval()
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput("model", f"a {type(model).__name__}", "a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidInput(
            "model", f"a {type(model).__name__}", "the torch.nn.Module that it was scripted or traced from"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InvalidInput("model", f"a {type(model).__name__}", "the module inside: model.module")
    for name, module in model.named_modules():
        reason = _train_mode_fault(module)
        if reason:
            raise InvalidInput("model", f"{_called(name, module)} {reason}", "eval mode: model.eval()")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            got = f"{_called(name, module)} without running statistics, which couples the samples of a batch"
            raise InvalidInput("model", got, "track_running_stats=True, or GroupNorm or LayerNorm")
    _require_parameters(model, include_frozen)
    return model


def _called(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def _train_mode_fault(module: nn.Module) -> str:
    """Say why a module cannot be checked in train mode; empty when it can, or when it is in eval mode."""
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
            raise InvalidInput(
                "model", f"{called} without a shape yet", "one call of the model on a batch first: model(X)"
            )
        if tensor.is_meta:
            raise InvalidInput(
                "model", f"{called} on the meta device, without values", "a model with values: load its weights"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise InvalidInput("model", f"{called} that is sparse, quantized or complex", "dense real parameters")
    chosen = {name: p for name, p in parameters.items() if include_frozen or p.requires_grad}
    if not any(p.numel() for p in chosen.values()):
        need = (
            "at least one: model.requires_grad_(True) frees all; jacobian(include_frozen=True) counts frozen ones"
            if parameters
            else "at least one"
        )
        raise InvalidInput("model", f"{type(model).__name__} with no trainable parameter", need)
    called, first = f"parameter {next(iter(chosen))!r}", next(iter(chosen.values()))
    for other, tensor in tensors:
        if tensor.device != first.device:
            got = f"{called} on {first.device} and {other} on {tensor.device}"
            raise InvalidInput("model", got, "one device: model.to(...)")
    for name, p in parameters.items():
        if not p.is_floating_point():
            raise InvalidInput("model", f"parameter {name!r} of dtype {dtype_name(p.dtype)}", "floating parameters")
        if p.dtype != first.dtype:
            got = f"{called} of {dtype_name(first.dtype)} and parameter {name!r} of {dtype_name(p.dtype)}"
            raise InvalidInput("model", got, "one dtype: model.double(), which rounds nothing")
    for called, tensor in tensors:
        if tensor.is_floating_point() and not _all_finite(tensor.detach()):
            raise InvalidInput("model", f"{called} with NaN or Inf entries", "finite values")


def _all_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite; a sum is quicker than a look at each, and finite only where they all are."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


@dataclasses.dataclass(frozen=True)
class Probed:
    """What a few evaluations told.

    Attributes
    ----------
    m_y : int
        Outputs.
    computed_in : torch.dtype
        The coarsest dtype that a forward pass rounds to.
    plain : bool
        Whether the modules alone prove that the model is a chain of linear layers and elementwise functions.
    """

    m_y: int
    computed_in: torch.dtype
    plain: bool = False


def probes(x: torch.Tensor) -> torch.Tensor:
    """Return the samples that :func:`probe` runs: eight at most, from the first to the last."""
    count = len(x)
    return x[torch.linspace(0, count - 1, min(count, _PROBES), dtype=torch.float64).round().long().to(x.device)]


def probe(function: Functional, x: torch.Tensor) -> Probed:
    """Run a model on up to eight of its samples, and refuse it unless its outputs are rows that depend on theta alone.

    Run are the samples as one batch, twice; one of them alone; and the others in the opposite order. A coupling that is
    in all three batches of which an output is in two would have to be blind to the number of the samples, their order
    and the first of them. Where the modules themselves rule it out
    (:func:`~alignver.network.validate_model.is_sample_independent`), one batch shows what is left to be seen.

    Raises
    ------
    InvalidInput
        forward raises; returns no tensor, or one of a shape other than (n,) or (n, m_y); writes to parameters or
        buffers; gives another answer the second time; makes an output depend on the other samples of its batch; does
        not depend on the parameters; reaches parameters past the module's attributes.
    """
    model = type(function.model).__name__
    x = probes(x)
    if is_sample_independent(function.model, x):
        with torch.no_grad():
            return Probed(int(_rows(function, x).shape[1]), function.dtype, plain=True)
    with torch.no_grad(), RoundingObserver(function.dtype) as observer:
        batch = _rows(function, x)
    versions = {name: t._version for name, t in {**function.theta, **function.held}.items()}
    with torch.no_grad():
        again = _rows(function, x)
        apart = _rows(function, x[:1], expect=batch.shape[1])
        if len(x) > 1:
            others = _rows(function, x[1:].flip(0), expect=batch.shape[1] if len(x) == 2 else None)
            apart = torch.cat([apart, others.flip(0)])
    for name, tensor in {**function.theta, **function.held}.items():
        if tensor._version != versions[name]:
            raise InvalidInput(
                "model", f"{model}, whose forward writes to {name!r} in place", "a forward that leaves it alone"
            )
    if _differ(batch, again, observer.coarsest):
        raise InvalidInput(
            "model", f"{model}, which answers differently the second time", "a deterministic forward: model.eval()"
        )
    if _differ(batch, apart, observer.coarsest):
        got = f"{model}, whose output for a sample depends on the others in its batch"
        raise InvalidInput("model", got, "outputs of one sample at a time (no statistics over the batch): model.eval()")
    _require_same_gradient(function, x)
    _require_widened_gradient(function, x[:1])
    return Probed(int(batch.shape[1]), observer.coarsest)


def _rows(function: Functional, x: torch.Tensor, expect: int | None = None) -> torch.Tensor:
    """Evaluate a batch as an (n, m_y) tensor; ``expect`` outputs of a single sample may come in any shape."""
    model = type(function.model).__name__
    try:
        out = function(function.theta, function.batch(x))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        remedy = _forward_remedy(function, x, single=expect is not None)
        raise InvalidInput("X", _what_forward_said(function, x, error), remedy) from error
    if not isinstance(out, torch.Tensor):
        raise InvalidInput(
            "model", f"{model}, which returns a {type(out).__name__}", "a forward that returns one tensor"
        )
    if not out.is_floating_point():
        raise InvalidInput("model", f"{model} with outputs of {dtype_name(out.dtype)}", "floating outputs")
    if expect is not None and out.numel() == expect:
        return out.reshape(1, expect)
    if out.ndim not in (1, 2) or len(out) != len(x) or out.numel() == 0:
        remedy = f"({len(x)},) or ({len(x)}, m_y), one row for each sample"
        if out.ndim > 2 and len(out) == len(x):
            remedy += ": flatten them, out.flatten(1)"
        raise InvalidInput("model", f"{model} with outputs of shape {tuple(out.shape)} for {len(x)} samples", remedy)
    if not bool(torch.isfinite(out).all()):
        raise InvalidInput("model", f"{model} with NaN or Inf outputs", "finite outputs")
    return out.reshape(len(x), -1)


def _what_forward_said(function: Functional, x: torch.Tensor, error: Exception) -> str:
    said = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    return f"inputs of shape {tuple(x.shape)} on which {type(function.model).__name__} raised {what}"


def _forward_remedy(function: Functional, x: torch.Tensor, single: bool) -> str:
    if single:
        return f"a forward that takes a single sample, shape {tuple(x.shape)}, as it takes a batch"
    if not x.is_floating_point():
        return (
            "inputs that the model takes; X is of integers, X.astype('float64') makes floats (X.double() of a tensor)"
        )
    own = next(function.model.parameters()).dtype
    if own != function.dtype:
        return (
            f"inputs that the model takes in {dtype_name(function.dtype)}; dtype='same' computes in {dtype_name(own)}"
        )
    return "inputs that the model takes"


def _differ(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two evaluations differ by more than rounding may: sqrt(eps) of the largest output."""
    if first.shape != second.shape:
        return True
    size = float(first.abs().max())
    return float((first - second).abs().max()) > math.sqrt(torch.finfo(dtype).eps) * size


def _require_same_gradient(function: Functional, x: torch.Tensor) -> None:
    """Compare a gradient through the copies with one through the module itself, in the module's own dtype.

    They run the same operations on the same numbers. Where they differ, forward reaches its parameters past the
    module's attributes (a list, a closure, a view made at construction), and the Jacobian would silently miss
    columns.
    """
    model = function.model
    if any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()]):
        return  # autograd does not work on the module itself, only on the copies
    own = next(model.parameters()).dtype
    theta = {name: value.detach().to(own).requires_grad_() for name, value in function.theta.items()}
    held = {n: v.to(own) if v.is_floating_point() else v for n, v in function.held.items()}
    there = dataclasses.replace(function, theta=theta, held=held, dtype=own)
    before = _state(model)
    try:
        with differentiable(model):
            inside = model(there.batch(x))
    except Exception:
        if own == function.dtype:
            raise
        return  # the model runs in float64 only: nothing to compare with
    for name, state in _state(model).items():
        if before.get(name) != state:
            raise InvalidInput(
                "model", f"{type(model).__name__}, whose forward writes to {name!r}", "eval mode: model.eval()"
            )
    outside = there(theta, there.batch(x))
    if not outside.requires_grad:
        got = f"{type(model).__name__}, whose outputs have no gradient"
        raise InvalidInput("model", got, "a forward without no_grad, detach or .data, that uses its parameters")
    hooked = {
        n for n, p in zip(function.slots.names, function.slots.parameters) if p._backward_hooks or not p.requires_grad
    }
    names = [name for name in theta if name not in hooked]
    if not names or not inside.requires_grad:
        return
    parameters = [p for n, p in zip(function.slots.names, function.slots.parameters) if n not in hooked]
    weights = (
        torch.cos(torch.arange(1, inside.numel() + 1, device=inside.device)).to(inside.dtype).reshape(inside.shape)
    )
    wanted = torch.autograd.grad((inside * weights).sum(), parameters, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(
        (outside * weights).sum(), [theta[n] for n in names], allow_unused=True, materialize_grads=True
    )
    for name, right, ours in zip(names, wanted, found):
        allowed = math.sqrt(torch.finfo(own).eps) * _length(right)
        if _length(right - ours) > allowed:
            got = f"{type(model).__name__}, whose forward reaches {name!r} past the module's attributes"
            raise InvalidInput(
                "model", got, "a forward that reads its parameters from the module (self.weight) at every call"
            )


def _require_widened_gradient(function: Functional, x: torch.Tensor) -> None:
    """Refuse a model that goes forward in a wider dtype, but not back: one that computes parts again on the way.

    A checkpoint (``torch.utils.checkpoint``) runs a part of the model a second time in the backward pass, when the
    copies of the parameters are no longer in their places.
    """
    own = next(function.model.parameters()).dtype
    if own == function.dtype:
        return
    theta = {name: value.detach().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x))
    if not out.requires_grad:
        return
    try:
        torch.autograd.grad(out.sum(), list(theta.values()), allow_unused=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        wide, said = dtype_name(function.dtype), first_line(error)
        got = f"{_failing_module(function.model, error)}, whose backward pass fails in {wide} ({said})"
        need = f"dtype='same' (its own {dtype_name(own)}) or model.double(): "
        need += (
            "a part that is computed again on the way back (torch.utils.checkpoint) takes the model's own parameters"
        )
        raise InvalidInput("model", got, need) from error


def _failing_module(model: nn.Module, error: BaseException) -> str:
    """Name the innermost module of the model that was running when an error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = _called("", model), error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            found = _called(names[id(module)], module)
        trace = trace.tb_next
    return found


def _length(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _state(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of every parameter and buffer: what an in-place write changes."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor._version) for name, tensor in named}
