"""A model as a function of its parameters: (theta, x) -> f(x, theta), without a change to the module.

:class:`ParameterLayout` lists the physical parameters (slots) of a model and so the columns of the Jacobian;
:class:`Functional` binds a copy of the modules to copies of their parameters and buffers, so that another thread may
train the model meanwhile; :func:`as_module` turns a function of a dict of tensors into a module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from alignver import require
from alignver.errors import InvalidInput, kind_of
from alignver.network.copies import separate_copy
from alignver.network.inputs import FunctionDerivatives, dtype_name, without_fused_layers
from alignver.network.preserve_state import RefuseWrites, named_tensors, preserve_state, refused_write


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterLayout:
    """The physical parameters of a model, each listed once, however many names it has.

    The vector theta of the paper is the concatenation of the slots, each flattened in row-major order.

    Attributes
    ----------
    names : tuple of str
        First name of each slot, in the order of ``model.named_parameters()``.
    parameters : tuple of torch.nn.Parameter
        The Parameter objects themselves.
    sizes : tuple of int
        Number of entries of each slot.
    fixed : dict of str to torch.Tensor
        Parameters held constant: those with ``requires_grad=False`` (unless included), under their first name.
    aliases : dict of str to str
        Further names of tied parameters, each with the first name of its slot.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    sizes: tuple[int, ...]
    fixed: dict[str, nn.Parameter]
    aliases: dict[str, str]

    @property
    def d(self) -> int:
        """Number of columns of the Jacobian: the total number of entries of all slots."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First column of each slot."""
        return tuple(itertools.accumulate(self.sizes, initial=0))[:-1]

    def where(self, column: int) -> str:
        """Name the slot that a column of the Jacobian belongs to."""
        for name, start, size in zip(self.names, self.offsets, self.sizes):
            if start <= column < start + size:
                return name
        raise IndexError(column)


def parameter_layout(model: nn.Module, *, include_frozen: bool = False) -> ParameterLayout:
    """List the physical parameter slots of a model.

    Tied parameters (one Parameter object under several names, including those of an aliased submodule) form one slot.
    Parameters with ``requires_grad=False`` are excluded unless ``include_frozen``. Buffers are never slots.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    include_frozen : bool
        Count frozen parameters as part of theta.

    Returns
    -------
    ParameterLayout

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 3, bias=False)
    >>> tied = torch.nn.Sequential(layer, torch.nn.Tanh(), layer, torch.nn.Linear(3, 1))
    >>> layout = parameter_layout(tied)
    >>> layout.names, layout.sizes, layout.d
    (('0.weight', '3.weight', '3.bias'), (9, 3, 1), 13)
    >>> layout.aliases
    {'2.weight': '0.weight'}
    """
    require.boolean("include_frozen", include_frozen)
    first: dict[int, str] = {}
    slots: dict[str, nn.Parameter] = {}
    fixed: dict[str, nn.Parameter] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
            continue
        first[id(parameter)] = name
        (slots if include_frozen or parameter.requires_grad else fixed)[name] = parameter
    sizes = tuple(parameter.numel() for parameter in slots.values())
    return ParameterLayout(tuple(slots), tuple(slots.values()), sizes, fixed, aliases)


Theta = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Functional:
    """A model bound to copies of its parameters and buffers in one dtype.

    Attributes
    ----------
    model : torch.nn.Module
        It runs: during a call each of its tensors is replaced by one of those below. A copy of the modules, whose
        parameters and buffers are the model's own; the model itself if it cannot be copied.
    source : torch.nn.Module
        The caller's model.
    layout : ParameterLayout
        The columns of the Jacobian.
    theta : mapping of str to torch.Tensor
        Copies of the slots' values in the dtype of computation.
    held : mapping of str to torch.Tensor
        Copies of frozen parameters and buffers; floating-point ones in the dtype of computation.
    dtype : torch.dtype
        The dtype of computation.
    places : mapping of str to str
        Each attribute that holds a tensor, by qualified name, with the first name of that tensor.
    versions : mapping of str to int
        The counters of writes to the caller's parameters and buffers when they were copied.
    graded : bool
        Gradients are enabled in every pass: without them the model is another function.
    doubled : bool
        A batch of one runs as a batch of two equal samples: for models that torch differentiates wrongly otherwise.
    """

    model: nn.Module
    source: nn.Module
    layout: ParameterLayout
    theta: Theta
    held: Theta
    dtype: torch.dtype
    places: Mapping[str, str]
    versions: Mapping[str, int]
    graded: bool = dataclasses.field(default=False, kw_only=True)
    doubled: bool = dataclasses.field(default=False, kw_only=True)

    def __call__(self, theta: Theta, x: torch.Tensor) -> torch.Tensor:
        """Run the model at ``theta`` on a batch of inputs, without validation of the output."""
        values = {**self.held, **theta}
        tensors = {place: values[name] for place, name in self.places.items()}
        twice = self.doubled and len(x) == 1
        # With tie_weights=True torch swaps a module with two names twice, and restores the wrong tensors.
        with self.evaluated():
            inputs = torch.cat([x, x]) if twice else x
            out: torch.Tensor = functional_call(self.model, tensors, (inputs,), tie_weights=False)
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return out
        out = out.to(self.dtype)[:1] if twice else out.to(self.dtype)  # a forward may end in x.float()
        return out if torch.is_grad_enabled() else out.detach()

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Run the function whose derivatives are computed, which some modules replace by another without gradients."""
        grad = torch.enable_grad() if self.graded else contextlib.nullcontext()
        with without_fused_layers(self.model), FunctionDerivatives(), grad:
            yield

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Restore the state of the modules that run at the end of the block; one thread at a time without a copy."""
        with _undisturbed(self.model, self.source):
            yield

    @property
    def changed(self) -> bool:
        """Whether the caller's parameters or buffers were written to since they were copied."""
        return write_counts(self.source) != self.versions

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        """Copy a batch of inputs in the dtype of computation: a forward pass may write to its input."""
        if not x.is_floating_point():
            return x.clone()
        return x.to(self.dtype, copy=True)

    def in_dtype(self, dtype: torch.dtype) -> Functional:
        """Return the same function at values in another dtype."""
        theta, held = ({n: _copy(v, dtype) for n, v in tensors.items()} for tensors in (self.theta, self.held))
        return dataclasses.replace(self, theta=theta, held=held, dtype=dtype)

    def runs(self, x: torch.Tensor) -> bool:
        """Whether a forward pass raises nothing."""
        try:
            with torch.no_grad():
                self(self.theta, self.batch(x))
        except Exception:  # code of the user can raise anything
            return False
        return True

    def leaves(self) -> dict[str, torch.Tensor]:
        """Return theta as leaves of a new graph that share its memory."""
        return {name: value.detach().requires_grad_() for name, value in self.theta.items()}

    def refresh(self) -> bool:
        """Copy the module's present values into the bound tensors; False if the module no longer has those tensors."""
        layout = self.layout
        present: dict[str, torch.Tensor] = {**layout.fixed, **dict(self.source.named_buffers())}
        present.update(zip(layout.names, layout.parameters))
        bound = {**self.theta, **self.held}
        now = {id(p) for p in self.source.parameters()}
        if now != {id(p) for p in (*layout.parameters, *layout.fixed.values())} or set(present) != set(bound):
            return False
        if any(present[name].shape != value.shape for name, value in bound.items()):
            return False
        with torch.no_grad():
            for name, value in bound.items():
                value.copy_(present[name])
        return True

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.theta.values())).device


_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


def _lock_of(model: nn.Module) -> Any:
    """Return the lock of a model whose modules run themselves, for checks in several threads."""
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


@contextlib.contextmanager
def _undisturbed(twin: nn.Module, model: nn.Module) -> Iterator[None]:
    """Restore modules that run: a copy, whose tensors other threads may write to, or the model, under its lock."""
    if twin is not model:
        with preserve_state(twin, tensors=False):
            yield
        return
    with _lock_of(model), preserve_state(model):
        yield


@contextlib.contextmanager
def running_copy(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of a model's modules to run, with the model's own tensors, which a pass may not write to.

    Another thread may train the model meanwhile. A model that cannot be copied runs itself, one thread at a time.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> with running_copy(model) as twin:
    ...     twin is model, twin.weight is model.weight
    (False, True)
    """
    lazy = next((name for name, tensor in named_tensors(model) if is_lazy(tensor)), None)
    if lazy is not None:
        need = "one call of the model on a batch first: model(X)"
        raise InvalidInput("model", f"parameter {lazy!r} without a shape yet", need, "unsupported-model")
    twin = separate_copy(model)
    with _undisturbed(twin, model), RefuseWrites(twin):
        before = dict(named_tensors(twin))
        yield twin
        after = dict(named_tensors(twin))
        changed = next((name for name in before | after if before.get(name) is not after.get(name)), None)
        if changed is not None:  # assigned anew, which no operation shows
            raise refused_write(twin, changed)


def write_counts(model: nn.Module) -> dict[str, int]:
    """Return torch's counters of the writes to each parameter and buffer.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> before = write_counts(model)
    >>> _ = torch.nn.init.ones_(model.bias)
    >>> {name: count - before[name] for name, count in write_counts(model).items()}
    {'weight': 0, 'bias': 1}
    """
    return {name: t._version for name, t in (*model.named_parameters(), *model.named_buffers()) if not t.is_inference()}


def functional(
    model: nn.Module, dtype: torch.dtype, *, include_frozen: bool = False, separate: bool = True
) -> Functional:
    """Bind a copy of the modules to copies of the parameters and buffers in ``dtype``; the model without ``separate``.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> f = functional(model, torch.float64)
    >>> f(f.theta, torch.ones(3, 2, dtype=torch.float64)).dtype
    torch.float64
    >>> model.weight.dtype
    torch.float32
    """
    layout = parameter_layout(model, include_frozen=include_frozen)
    versions = write_counts(model)
    theta = {name: _copy(value, dtype) for name, value in zip(layout.names, layout.parameters)}
    held = {name: _copy(value, dtype) for name, value in layout.fixed.items()}
    held.update({name: _copy(value, dtype) for name, value in model.named_buffers()})
    twin = separate_copy(model) if separate else model
    return Functional(twin, model, layout, theta, held, dtype, _places(model), versions)


def require_state(model: nn.Module, state: Mapping[str, torch.Tensor], argument: str = "state") -> Theta:
    """Return the validated values of a state dict under the first name of each parameter and buffer.

    Raises
    ------
    InvalidInput
        The state is not a mapping of names to tensors; a parameter or (persistent) buffer has no value; the model has
        no tensor of that name; a shape or dtype differs; a value is NaN or Inf.

    Examples
    --------
    >>> sorted(require_state(nn.Linear(2, 1), nn.Linear(2, 1).state_dict()))
    ['bias', 'weight']
    """
    need = "values of every parameter and buffer, by name: a copy of model.state_dict()"
    if not isinstance(state, Mapping):
        raise InvalidInput(argument, kind_of(state), need, code="wrong-type")
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    known = {name for name, _ in named}
    state = without_prefix(state, known)
    unknown = [name for name in state if name not in known and not str(name).endswith("_extra_state")]
    if unknown:
        raise InvalidInput(argument, f"{unknown[0]!r}, which the model does not have", need)
    optional = {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for key in module._non_persistent_buffers_set
    }
    first: dict[int, str] = {}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in named:
        first_name = first.setdefault(id(tensor), name)
        if first_name not in values and name in state:
            values[first_name] = _require_like(state[name], tensor, name, argument)
    missing = [name for name in first.values() if name not in values and name not in optional]
    if missing:
        raise InvalidInput(argument, f"no {missing[0]!r}", need)
    return values


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of torch.compile's and data-parallel wrappers, which compute the same function.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", model)
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        if inner is model:
            return model
        model = inner


def without_prefix(state: Mapping[str, torch.Tensor], known: set[str]) -> Mapping[str, torch.Tensor]:
    """Remove the prefix of torch.compile or a data-parallel wrapper from names, if all of them have it.

    Examples
    --------
    >>> without_prefix({"module.bias": torch.zeros(1)}, {"bias"})
    {'bias': tensor([0.])}
    """
    for prefix in ("_orig_mod.", "module."):
        if state and not known.intersection(state) and all(str(name).startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def at_state(function: Functional, values: Theta) -> Functional:
    """Return the same function at copies of the values that :func:`require_state` returned."""

    def replaced(tensors: Theta) -> Theta:
        return {
            name: _copy(values[name].to(tensor.device), function.dtype) if name in values else tensor
            for name, tensor in tensors.items()
        }

    return dataclasses.replace(function, theta=replaced(function.theta), held=replaced(function.held))


def _require_like(value: object, tensor: torch.Tensor, name: str, argument: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        got = f"{name!r} that is not a dense tensor with values"
        raise InvalidInput(argument, got, "one tensor for each name", code="wrong-type")
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        got = f"{name!r} of shape {tuple(value.shape)} and dtype {dtype_name(value.dtype)}"
        need = f"shape {tuple(tensor.shape)} and dtype {dtype_name(tensor.dtype)}, as in the model"
        raise InvalidInput(argument, got, need, code="wrong-shape" if value.shape != tensor.shape else "wrong-dtype")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InvalidInput(argument, f"{name!r} with NaN or Inf entries", "finite values", code="not-finite")
    return value.detach()


def comparison_weights(count: int, like: torch.Tensor) -> torch.Tensor:
    """Return cos 1, cos 2, ...: fixed weights without a pattern, to compare a formula with a backward pass."""
    return torch.cos(torch.arange(1, count + 1, device=like.device)).to(like.dtype)


def require_memory(entries: int, function: Functional, got: str, what: str) -> None:
    """Refuse a matrix of ``entries`` entries in the dtype of computation that exceeds the memory of the device."""
    need = entries * torch.finfo(function.dtype).bits // 8
    if function.device.type == "cuda":
        room = torch.cuda.mem_get_info(function.device)[1]
    else:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > room:
        fits = f"{what} that fits in the {room / 1e9:.0f} GB of {function.device}: fewer samples"
        raise InvalidInput("X", f"{got} {need / 1e9:.0f} GB", fits, code="too-large")


def require_same_dtype(x: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse floating-point inputs that would have to be rounded (or silently widened) to the model's own dtype."""
    if x.is_floating_point() and x.dtype != dtype and dtype != torch.float64:
        got = f"dtype {dtype_name(x.dtype)} with a model that computes in {dtype_name(dtype)}"
        need = f"X in {dtype_name(dtype)}, or dtype='float64', which holds both exactly"
        raise InvalidInput("X", got, need, code="wrong-dtype")


def _places(model: nn.Module) -> dict[str, str]:
    """Map each attribute that holds a parameter or a buffer to the first name of that tensor."""
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        first.setdefault(id(tensor), name)
    places = {}
    for prefix, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                places[f"{prefix}.{key}" if prefix else key] = first[id(tensor)]
    return places


def _copy(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = value.detach().clone()  # autograd can work with the clone of an inference tensor
    if values.is_complex():
        return values.to(dtype.to_complex())
    return values.to(dtype) if values.is_floating_point() else values


class _Node(nn.Module):
    """A component of a dotted name."""


class _Function(nn.Module):
    """A function of (params, x) as a module with params as its parameters, under the same names."""

    def __init__(self, function: Callable[..., Any], params: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.function = [function]  # in a list: a function that is a module must not become a submodule
        shared: dict[int, nn.Parameter] = {}
        self.paths: dict[str, tuple[str, str]] = {}  # qualified name of the module, name of its parameter
        for name, value in params.items():
            parameter = shared.setdefault(id(value), nn.Parameter(value.detach()))
            *path, last = _path(name, params)
            home: nn.Module = self
            for step in path:
                if step not in home._modules:
                    home.add_module(step, _Node())
                home = home.get_submodule(step)
            home.register_parameter(last, parameter)
            self.paths[name] = (".".join(path), last)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        """Call the function with the present parameters."""
        params = {name: self.get_submodule(path)._parameters[key] for name, (path, key) in self.paths.items()}
        return self.function[0](params, x)


_RESERVED = set(dir(nn.Module())) | {"function", "paths", "params"}


def _path(name: str, names: Mapping[str, torch.Tensor]) -> list[str]:
    """Split a dotted name; a name that would clash with an attribute or another name stays in one piece."""
    steps = name.split(".")
    clash = any(step in _RESERVED or not step for step in steps) or any(
        (other != name and other.startswith(name + ".")) or name.startswith(other + ".") for other in names
    )
    return ["params", f"{list(names).index(name)}_" + name.replace(".", "_")] if clash else steps


def as_module(function: Callable[..., Any], params: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a module whose forward is ``function(params, x)`` and whose parameters are ``params``.

    Parameters
    ----------
    function : callable
        ``function(params, x)`` with params a dict of the same keys; returns one row of outputs for each sample.
    params : mapping of str to torch.Tensor
        Floating-point tensors, shared rather than copied, and never written to. A tensor under two keys is one
        parameter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InvalidInput
        ``function`` is not callable; ``params`` is empty or is not a mapping of names to floating-point tensors.

    Examples
    --------
    >>> import torch
    >>> f = as_module(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)})
    >>> f(torch.ones(3, 2)).shape
    torch.Size([3, 1])
    """
    if not callable(function):
        raise InvalidInput("model", kind_of(function), "a function of (params, x)", code="wrong-type")
    if not isinstance(params, Mapping) or not params:
        need = "a dict of names to tensors, with at least one entry"
        raise InvalidInput("params", _described(params), need, code="wrong-type")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = f"{name!r}: {_described(value)}"
            raise InvalidInput("params", got, "names (str) with floating-point tensors", code="wrong-type")
    return _Function(function, params)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {dtype_name(value.dtype)}"
    return "an empty dict" if isinstance(value, Mapping) and not value else kind_of(value)
