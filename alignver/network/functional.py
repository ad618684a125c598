"""Physical parameter slots: what the columns of the Jacobian are, in which order.

A model as a function of theta: (theta, x) -> f(x, theta), with the module itself left alone.

A function of a dict of tensors, seen as a module: what the rest of the library works with.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from alignver.errors import InvalidInput
from alignver.network.inputs import differentiable, dtype_name

__all__ = [
    "Functional",
    "ParameterLayout",
    "Theta",
    "as_module",
    "at_state",
    "functional",
    "parameter_layout",
    "require_memory",
    "require_same_dtype",
    "require_state",
]


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterLayout:
    """The physical parameters of a model, each once, however many names it goes by.

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
        What is held constant: parameters with ``requires_grad=False`` (unless included), under their first name.
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
        """Number of columns of the Jacobian: the entries of all slots together."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First column of each slot."""
        starts, column = [], 0
        for size in self.sizes:
            starts.append(column)
            column += size
        return tuple(starts)

    def where(self, column: int) -> str:
        """Name the slot that a column of the Jacobian belongs to."""
        for name, start, size in zip(self.names, self.offsets, self.sizes):
            if start <= column < start + size:
                return name
        raise IndexError(column)


def parameter_layout(model: nn.Module, *, include_frozen: bool = False) -> ParameterLayout:
    """List the physical parameter slots of a model.

    Tied parameters (one Parameter object under several names, an aliased submodule included) are one slot. Parameters
    with ``requires_grad=False`` are left out unless ``include_frozen``. Buffers are never slots.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    include_frozen : bool
        Count frozen parameters as part of theta.

    Returns
    -------
    Slots

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(3, 3, bias=False)
    >>> tied = torch.nn.Sequential(layer, torch.nn.Tanh(), layer, torch.nn.Linear(3, 1))
    >>> found = parameter_layout(tied)
    >>> found.names, found.sizes, found.d
    (('0.weight', '3.weight', '3.bias'), (9, 3, 1), 13)
    >>> found.aliases
    {'2.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    chosen: dict[str, nn.Parameter] = {}
    fixed: dict[str, nn.Parameter] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
            continue
        first[id(parameter)] = name
        (chosen if include_frozen or parameter.requires_grad else fixed)[name] = parameter
    sizes = tuple(parameter.numel() for parameter in chosen.values())
    return ParameterLayout(tuple(chosen), tuple(chosen.values()), sizes, fixed, aliases)


Theta = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Functional:
    """A model bound to copies of its parameters and buffers in one dtype.

    Attributes
    ----------
    model : torch.nn.Module
        Runs, but is not changed: every tensor of it is swapped for one of those below during a call.
    slots : Slots
        The columns of the Jacobian.
    theta : mapping of str to torch.Tensor
        The slots' values, own copies in the dtype of computation.
    held : mapping of str to torch.Tensor
        Frozen parameters and buffers, own copies; floating ones in the dtype of computation.
    dtype : torch.dtype
        The dtype of computation.
    places : mapping of str to str
        Where each tensor goes: every attribute of every module once, with the first name of what it holds.
    """

    model: nn.Module
    slots: ParameterLayout
    theta: Theta
    held: Theta
    dtype: torch.dtype
    places: Mapping[str, str]

    def __call__(self, theta: Theta, x: torch.Tensor) -> torch.Tensor:
        """Run the model at ``theta`` on a batch of inputs; what comes out is not looked at."""
        values = {**self.held, **theta}
        tensors = {place: values[name] for place, name in self.places.items()}
        # With tie_weights=True torch swaps a module that has two names twice, and puts the wrong tensors back.
        with differentiable(self.model):
            out: torch.Tensor = functional_call(self.model, tensors, (x,), tie_weights=False)
        return out

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        """Copy a batch of inputs in the dtype of computation: a forward pass may write to its input."""
        if not x.is_floating_point():
            return x.clone()
        return x.to(self.dtype, copy=True)

    def refresh(self) -> bool:
        """Copy the module's present values into its own memory; False where its tensors are no longer those bound."""
        found: dict[str, torch.Tensor] = {**self.slots.fixed, **dict(self.model.named_buffers())}
        found.update(zip(self.slots.names, self.slots.parameters))
        bound = {**self.theta, **self.held}
        now = {id(p) for p in self.model.parameters()}
        if now != {id(p) for p in (*self.slots.parameters, *self.slots.fixed.values())} or set(found) != set(bound):
            return False
        if any(found[name].shape != value.shape for name, value in bound.items()):
            return False
        with torch.no_grad():
            for name, value in bound.items():
                value.copy_(found[name])
        return True

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.theta.values())).device


def functional(model: nn.Module, dtype: torch.dtype, *, include_frozen: bool = False) -> Functional:
    """Bind a model to copies of its parameters and buffers in ``dtype``.

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
    found = parameter_layout(model, include_frozen=include_frozen)
    theta = {name: _own(value, dtype) for name, value in zip(found.names, found.parameters)}
    held = {name: _own(value, dtype) for name, value in found.fixed.items()}
    held.update({name: _own(value, dtype) for name, value in model.named_buffers()})
    return Functional(model, found, theta, held, dtype, _places(model))


def require_state(model: nn.Module, state: Mapping[str, torch.Tensor], argument: str = "state") -> Theta:
    """Return the values of a state dict under the first name of each parameter and buffer, all of them there and fit.

    Raises
    ------
    InvalidInput
        No mapping of names to tensors; a parameter or (persistent) buffer without a value; a name that the model does
        not know; another shape or dtype; NaN or Inf.

    Examples
    --------
    >>> sorted(require_state(nn.Linear(2, 1), nn.Linear(2, 1).state_dict()))
    ['bias', 'weight']
    """
    need = "values of every parameter and buffer, by name: a copy of model.state_dict()"
    if not isinstance(state, Mapping):
        raise InvalidInput(argument, f"a {type(state).__name__}", need)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    known = {name for name, _ in named}
    strange = [name for name in state if name not in known and not str(name).endswith("_extra_state")]
    if strange:
        raise InvalidInput(argument, f"{strange[0]!r}, which the model does not have", need)
    passing = {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for key in module._non_persistent_buffers_set
    }
    first: dict[int, str] = {}
    values: dict[str, torch.Tensor] = {}
    for name, own in named:
        known_as = first.setdefault(id(own), name)
        if known_as in values or name not in state:
            continue
        values[known_as] = _require_like(state[name], own, name, argument)
    missing = [name for name in first.values() if name not in values and name not in passing]
    if missing:
        raise InvalidInput(argument, f"no {missing[0]!r}", need)
    return values


def at_state(function: Functional, values: Theta) -> Functional:
    """Return the same function at the values of :func:`require_state`, of which it takes copies."""

    def there(own: Theta) -> Theta:
        return {
            name: _own(values[name].to(tensor.device), function.dtype) if name in values else tensor
            for name, tensor in own.items()
        }

    return dataclasses.replace(function, theta=there(function.theta), held=there(function.held))


def _require_like(value: object, own: torch.Tensor, name: str, argument: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        raise InvalidInput(argument, f"{name!r} that is no dense tensor with values", "one tensor for each name")
    if value.shape != own.shape or value.dtype != own.dtype:
        got = f"{name!r} of shape {tuple(value.shape)} and dtype {dtype_name(value.dtype)}"
        raise InvalidInput(argument, got, f"shape {tuple(own.shape)} and dtype {dtype_name(own.dtype)}, as the model's")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InvalidInput(argument, f"{name!r} with NaN or Inf entries", "finite values")
    return value.detach()


def require_memory(entries: int, function: Functional, got: str, what: str) -> None:
    """Refuse a matrix with so many entries of a model's dtype where its device could not hold it, were it empty."""
    need = entries * torch.finfo(function.dtype).bits // 8
    if function.device.type == "cuda":
        room = torch.cuda.mem_get_info(function.device)[1]
    else:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > room:
        fits = f"{what} that fits in the {room / 1e9:.0f} GB of {function.device}: fewer samples"
        raise InvalidInput("X", f"{got} {need / 1e9:.0f} GB", fits)


def require_same_dtype(x: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse floating inputs that would have to be rounded (or silently widened) to the model's own dtype."""
    if x.is_floating_point() and x.dtype != dtype and dtype != torch.float64:
        got = f"dtype {dtype_name(x.dtype)} beside a model computing in {dtype_name(dtype)}"
        need = f"X in {dtype_name(dtype)}, or dtype='float64', to which both go exactly"
        raise InvalidInput("X", got, need)


def _places(model: nn.Module) -> dict[str, str]:
    """Map every attribute that holds a parameter or a buffer, once however often its module occurs, to a first name."""
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        first.setdefault(id(tensor), name)
    places = {}
    for prefix, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                places[f"{prefix}.{key}" if prefix else key] = first[id(tensor)]
    return places


def _own(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    own = value.detach().clone()  # of an inference tensor too, clone makes one that autograd can work with
    return own.to(dtype) if own.is_floating_point() else own


class _Node(nn.Module):
    """A part of a dotted name."""


class _Function(nn.Module):
    """A function of (params, x), with params as its parameters under their own names."""

    def __init__(self, function: Callable[..., Any], params: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.function = [function]  # in a list: a function that is a module must not become a part of this one
        shared: dict[int, nn.Parameter] = {}
        self.paths: dict[str, tuple[str, ...]] = {}
        for name, value in params.items():
            parameter = shared.setdefault(id(value), nn.Parameter(value.detach()))
            *path, last = _path(name, params)
            home: nn.Module = self
            for step in path:
                if step not in home._modules:
                    home.add_module(step, _Node())
                home = home.get_submodule(step)
            home.register_parameter(last, parameter)
            self.paths[name] = (*path, last)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        """Hand the parameters, whatever they are at the moment, to the function."""
        return self.function[0]({name: self._at(path) for name, path in self.paths.items()}, x)

    def _at(self, path: tuple[str, ...]) -> torch.Tensor:
        home: nn.Module = self
        for step in path[:-1]:
            home = home._modules[step]  # type: ignore[assignment]  # paths were found in the registries:
        return home._parameters[path[-1]]  # type: ignore[return-value]  # no entry of theirs is None


_TAKEN = set(dir(nn.Module())) | {"function", "paths", "params"}


def _path(name: str, names: Mapping[str, torch.Tensor]) -> list[str]:
    """Split a dotted name; where that would clash with an attribute or another name, keep it in one piece."""
    steps = name.split(".")
    clash = any(step in _TAKEN or not step for step in steps) or any(
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
        Floating tensors. They are shared, not copied, and not written to; a tensor under two keys is one parameter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InvalidInput
        ``function`` is not callable, or ``params`` is not a mapping of names to floating tensors, or is empty.

    Examples
    --------
    >>> import torch
    >>> f = as_module(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)})
    >>> f(torch.ones(3, 2)).shape
    torch.Size([3, 1])
    """
    if not callable(function):
        raise InvalidInput("model", f"a {type(function).__name__}", "a function of (params, x)")
    if not isinstance(params, Mapping) or not params:
        raise InvalidInput("params", _said(params), "a dict of names to tensors, with at least one")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = f"{name!r}: {_said(value)}"
            raise InvalidInput("params", got, "names (str) with floating tensors")
    return _Function(function, params)


def _said(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).rpartition('.')[2]}"
    return "an empty dict" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"
