"""Which layers a network ends in: found by running it and watching, whatever its modules are called."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.network.inputs import taken

__all__ = ["Call", "OutputLayers", "find_output_layers"]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a module during a forward pass."""

    name: str
    module: Any
    seen: torch.Tensor | None
    """The first argument, where it is a tensor."""
    output: Any
    version: int
    """Of the output when the call ended: operations in place raise it."""


@dataclasses.dataclass(frozen=True, eq=False)
class OutputLayers:
    """A copy of a network, and the fully connected layers that it ends in.

    Attributes
    ----------
    body : torch.nn.Module
        The copy.
    x, out : torch.Tensor
        Inputs and outputs of the forward pass that was watched, in eval mode.
    layers : tuple of Call
        None, the last one, or the last two (in the order in which they run).
    between : tuple of str
        What ran between two layers.
    after : bool
        Whether something without parameters follows the last layer.
    """

    body: nn.Module
    x: torch.Tensor
    out: torch.Tensor
    layers: tuple[Call, ...]
    between: tuple[str, ...]
    after: bool

    @property
    def outputs(self) -> int | None:
        """What the last layer has; None without one."""
        return int(self.layers[-1].module.out_features) if self.layers else None


def find_output_layers(model: nn.Module, x: torch.Tensor, layers: tuple[str, ...] | None = None) -> OutputLayers:
    """Copy a model, run the copy on a few inputs in eval mode, and return what it ends in.

    The last linear layer counts if the model's output is that layer's (reshaped at most). The one before it counts too
    if only something elementwise lies between them: the input of the last layer follows from its output alone, entry by
    entry, which is tried out. Layers that run twice do not count, nor do those that work on more than one vector a
    sample.

    Parameters
    ----------
    model : torch.nn.Module
    x : (b, ...) tensor
    layers : tuple of str, optional
        Names of one or two layers instead, as ``model.named_modules()`` has them. Nothing with parameters may follow.

    Raises
    ------
    InvalidInput
        No parameters, inputs that the model refuses, outputs without rows, names of no such layers.
    """
    if next(iter(model.parameters()), None) is None:
        raise InvalidInput("model", "a model without parameters", "a model to train")
    body = copy.deepcopy(model)
    calls, out = _watched(body, x)
    if not isinstance(out, torch.Tensor) or out.ndim < 1 or len(out) != len(x):
        got = f"outputs of shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise InvalidInput("model", got, "one tensor with a row for each sample")
    chosen = _last(body, x, calls, out) if layers is None else _named(calls, layers)
    places = [next(k for k, call in enumerate(calls) if call is own) for own in chosen]
    between = [call for call in calls[places[0] + 1 : places[1]] if _is_leaf(call.module)] if len(chosen) == 2 else []
    return OutputLayers(
        body,
        x,
        out,
        tuple(chosen),
        tuple(type(call.module).__name__ for call in between),
        bool(chosen) and not _is_output(chosen[-1], out),
    )


@torch.no_grad()
def _watched(model: nn.Module, x: torch.Tensor) -> tuple[list[Call], Any]:
    """Return the calls of all modules in the order in which they ended, and the output."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[Call] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
        version = output._version if isinstance(output, torch.Tensor) else 0
        calls.append(Call(names[module], module, seen, output, version))

    out = _run(model, x, [(module.register_forward_hook, keep) for module in names])
    return calls, out


def _run(model: nn.Module, x: torch.Tensor, hooks: list[tuple[Callable[..., Any], Any]]) -> Any:
    """Run a model in eval mode under hooks, which are taken away again, as the modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    handles = [register(hook) for register, hook in hooks]
    try:
        with taken():
            return model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _last(model: nn.Module, x: torch.Tensor, calls: list[Call], out: torch.Tensor) -> list[Call]:
    linear = [k for k, call in enumerate(calls) if isinstance(call.module, nn.Linear)]
    if not linear or not _is_output(calls[linear[-1]], out) or not _usable(calls[linear[-1]], calls):
        return []
    last = calls[linear[-1]]
    if len(linear) < 2 or not _usable(calls[linear[-2]], calls):
        return [last]
    before = calls[linear[-2]]
    alone = not any(_has_parameters(call.module) for call in calls[linear[-2] + 1 : linear[-1]])
    fits = last.module.in_features == before.module.out_features
    return [before, last] if alone and fits and _elementwise(model, x, before, last) else [last]


def _usable(call: Call, calls: list[Call]) -> bool:
    """Whether a layer runs once, on one vector a sample."""
    once = sum(other.module is call.module for other in calls) == 1
    return once and call.seen is not None and call.seen.ndim == 2


def _is_output(call: Call, out: torch.Tensor) -> bool:
    """Whether the model's output is that of a call: the same memory, and nothing written to it since."""
    own = call.output
    same = isinstance(own, torch.Tensor) and own.numel() == out.numel() and own.data_ptr() == out.data_ptr()
    return same and out._version == call.version


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


@torch.no_grad()
def _elementwise(model: nn.Module, x: torch.Tensor, before: Call, last: Call) -> bool:
    """Whether each entry of what ``last`` gets follows from that entry of what ``before`` returned, and nothing else.

    That output is replaced by another value, with other inputs of the model, then with one column changed.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(before.output.shape, generator=generator, dtype=torch.float64)
    own = drawn.to(device=before.output.device, dtype=before.output.dtype)
    changed = own.clone()
    changed[:, 0] += 1.0

    def arriving(value: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        put = (before.module.register_forward_hook, lambda _module, _inputs, _output: value.clone())
        look = (last.module.register_forward_pre_hook, lambda _module, given: seen.append(given[0].clone()))
        _run(model, inputs, [put, look])
        return seen[0]

    first, elsewhere, second = arriving(own, x), arriving(own, torch.zeros_like(x)), arriving(changed, x)
    return bool(torch.equal(first, elsewhere)) and bool(torch.equal(first[:, 1:], second[:, 1:]))


def _named(calls: list[Call], layers: tuple[str, ...]) -> list[Call]:
    if not isinstance(layers, tuple) or not 1 <= len(layers) <= 2:
        raise InvalidInput("layers", repr(layers), "a tuple of one name or two")
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    found = []
    for name in layers:
        own = [call for call in linear if call.name == name]
        if len(own) != 1 or not _usable(own[0], calls):
            known = ", ".join(dict.fromkeys(call.name for call in linear if _usable(call, calls))) or "none"
            runs = f"run {len(own)} times" if len(own) != 1 else f"on inputs of {_ndim(own[0])} dimensions"
            need = f"a linear layer that runs once, on vectors; those here: {known}"
            raise InvalidInput("layers", f"{name!r}, {runs}", need)
        found.append(own[0])
    places = [next(k for k, call in enumerate(calls) if call is own) for own in found]
    if places != sorted(places):
        raise InvalidInput("layers", f"{layers!r}, which run in the other order", "the last layer last")
    behind = calls[places[0] + 1 :]
    for call in behind:
        around = f"{found[0].name}.".startswith(f"{call.name}.") or not call.name
        if _has_parameters(call.module) and not around and call is not found[-1]:
            got = f"{layers!r}, and {call.name!r} with parameters runs after {found[0].name!r}"
            raise InvalidInput("layers", got, "the last layers: what comes behind them is left out")
    return found


def _ndim(call: Call) -> str:
    return "unknown" if call.seen is None else str(call.seen.ndim)
