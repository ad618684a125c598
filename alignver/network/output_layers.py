"""The fully connected layers that a network ends in, found by a forward pass under hooks.

A forward pass in eval mode records every call of a module; the output layers follow from the order of the calls and
from the tensors, not from the names or the class of the model.
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

from alignver.errors import InvalidInput, kind_of
from alignver.kernel.network.operators import COPIES
from alignver.network.adapt import names_of
from alignver.network.copies import deep_copy
from alignver.network.inputs import DispatchMode, reporting_input_errors
from alignver.network.preserve_state import eval_mode


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a module during a forward pass."""

    name: str
    module: Any
    input: torch.Tensor | None
    """The first argument, where it is a tensor."""
    output: Any
    version: int
    """Version counter of the output when the call returned: operations in place raise it."""


@dataclasses.dataclass(frozen=True, eq=False)
class OutputLayers:
    """A copy of a network, and the fully connected layers that it ends in.

    Attributes
    ----------
    body : torch.nn.Module
        The copy.
    x, out : torch.Tensor
        Inputs and outputs of the recorded forward pass, in eval mode.
    layers : tuple of Call
        Empty, the last layer, or the last two in the order in which they run.
    between : tuple of str
        What runs between two layers: names of classes of modules, and of functions.
    after : bool
        Whether an operation without parameters follows the last layer.
    unused : str
        Why the last linear layer is not among them; empty if it is, or if there is none.
    features : str or None
        The module that runs once and whose output the first of the layers reads; empty if that layer reads the inputs
        of the model, None if there is no such module.
    """

    body: nn.Module
    x: torch.Tensor
    out: torch.Tensor
    layers: tuple[Call, ...]
    between: tuple[str, ...]
    after: bool
    unused: str = ""
    features: str | None = None

    @property
    def outputs(self) -> int | None:
        """Number of outputs of the last layer; None without one."""
        return int(self.layers[-1].module.out_features) if self.layers else None


def find_output_layers(model: nn.Module, x: torch.Tensor, layers: tuple[str, ...] | None = None) -> OutputLayers:
    """Copy a model, run the copy on a few inputs in eval mode, and return the layers that it ends in.

    The last linear layer counts if the model's output is that layer's output (reshaped at most). The one before it
    counts too if only elementwise operations lie between them: each entry of the input of the last layer then depends
    on the same entry of the earlier layer's output alone, which is tested by changing that output. Layers that run
    twice do not count, nor do those whose input has more than one vector per sample.

    Parameters
    ----------
    model : torch.nn.Module
    x : (b, ...) tensor
    layers : tuple of str, optional
        Names of one or two layers to take instead, as in ``model.named_modules()``. No module with parameters may
        follow them.

    Raises
    ------
    InvalidInput
        A model without parameters, inputs that the model refuses, outputs without a row for each sample, names that
        are not those of such layers.
    """
    if next(iter(model.parameters()), None) is None:
        raise InvalidInput("model", "a model without parameters", "a model to train", code="unsupported-model")
    body = deep_copy(model)
    given = x.clone()  # a forward pass may write to its input
    calls, out = _recorded_calls(body, given)
    if not isinstance(out, torch.Tensor) or out.ndim < 1 or len(out) != len(x):
        got = (
            f"one with outputs of shape {tuple(out.shape)}"
            if isinstance(out, torch.Tensor)
            else f"one that returns {kind_of(out)}"
        )
        need = "one tensor with a row for each sample"
        if names := names_of(out):
            need += f": the model of alignver.adapted(model, X, Y, select={names[0]!r})"
            need += f" or another of {', '.join(map(repr, names))}" if len(names) > 1 else ""
        raise InvalidInput("model", got, need, code="unsupported-model")
    last = _last_layers(body, x, calls, out) if layers is None else _named_layers(calls, layers)
    return OutputLayers(
        body,
        x,
        out,
        tuple(last),
        _between(body, x, *last) if len(last) == 2 else (),
        bool(last) and not _is_output(last[-1], out),
        "" if last else _unused(calls),
        _features(calls, last[0], given) if last else None,
    )


def _unused(calls: list[Call]) -> str:
    """Say why the last linear layer is none of the output layers."""
    linear = [call for call in calls if isinstance(call.module, nn.Linear) and call.input is not None]
    if not linear:
        return ""
    last = linear[-1]
    if last.input is not None and last.input.ndim > 2:
        return f"{last.name} runs on {math.prod(last.input.shape[1:-1])} vectors for each sample"
    return f"the output of {last.name} is not that of the model"


class _Operations(DispatchMode):
    """Record the operations that run while it is open, without those that move entries."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.names = False, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note its name."""
        name = func._schema.name.partition("::")[2].strip("_")
        if self.open and name not in COPIES:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _between(model: nn.Module, x: torch.Tensor, before: Call, last: Call) -> tuple[str, ...]:
    """Return what runs between two layers: modules without children by their class, other functions by their name."""
    operations = _Operations()

    def entered(module: nn.Module, _inputs: Any) -> None:
        if module is last.module:
            operations.open = False
        elif operations.open and _is_leaf(module):
            operations.names.append(type(module).__name__)
            operations.open = False

    def left(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if module is before.module or (operations.names and operations.names[-1] == type(module).__name__):
            operations.open = True

    hooks: list[tuple[Callable[..., Any], Any]] = []
    for module in model.modules():
        first = functools.partial(module.register_forward_pre_hook, prepend=True)  # before that of weight_norm
        hooks += [(first, entered), (module.register_forward_hook, left)]
    with operations:
        _run(model, x.clone(), hooks)
    return tuple(operations.names)


@torch.no_grad()
def _recorded_calls(model: nn.Module, x: torch.Tensor) -> tuple[list[Call], Any]:
    """Return the calls of all modules in the order in which they returned, and the output."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[Call] = []

    def append(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
        version = output._version if isinstance(output, torch.Tensor) else 0
        calls.append(Call(names[module], module, first, output, version))

    out = _run(model, x, [(module.register_forward_hook, append) for module in names])
    return calls, out


def _run(model: nn.Module, x: torch.Tensor, hooks: list[tuple[Callable[..., Any], Any]]) -> Any:
    """Run a model in eval mode under hooks; the hooks are removed and the modes restored."""
    with eval_mode(model), reporting_input_errors(model, x), contextlib.ExitStack() as handles:
        for register, hook in hooks:
            handles.callback(register(hook).remove)
        return model(x)


def _last_layers(model: nn.Module, x: torch.Tensor, calls: list[Call], out: torch.Tensor) -> list[Call]:
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    if not linear or not _is_output(linear[-1], out) or not _usable(linear[-1], calls):
        return []
    *_, last = linear
    if len(linear) < 2 or not _usable(linear[-2], calls):
        return [last]
    before = linear[-2]
    between = calls[_position(calls, before) + 1 : _position(calls, last)]
    alone = not any(_has_parameters(call.module) for call in between if not _is_inside(call, last))
    fits = last.module.in_features == before.module.out_features
    return [before, last] if alone and fits and _elementwise(model, x, before, last) else [last]


def _position(calls: list[Call], call: Call) -> int:
    return next(k for k, other in enumerate(calls) if other is call)


def _usable(call: Call, calls: list[Call]) -> bool:
    """Whether a layer runs once, on one vector per sample."""
    once = sum(other.module is call.module for other in calls) == 1
    return once and call.input is not None and call.input.ndim == 2


def _is_output(call: Call, out: torch.Tensor) -> bool:
    """Whether the model's output is that of a call: the same memory, not written to since."""
    returned = call.output
    if not isinstance(returned, torch.Tensor) or returned.numel() != out.numel():
        return False
    return returned.data_ptr() == out.data_ptr() and out._version == call.version


def _features(calls: list[Call], first: Call, x: torch.Tensor) -> str | None:
    """Return the module whose output a layer reads, unchanged; empty for the inputs ``x``, a copy, of the model."""
    if first.input is None:
        return None
    for call in calls[: _position(calls, first)]:
        if _is_output(call, first.input) and sum(other.module is call.module for other in calls) == 1:
            return call.name
    same = first.input.shape == x.shape and first.input.data_ptr() == x.data_ptr()
    return "" if same and x._version == 0 else None


def is_computed(layer: nn.Module) -> bool:
    """Whether the weight of a layer is computed from other tensors, as by weight_norm or pruning."""
    return "weight" not in layer._parameters


def _is_inside(call: Call, layer: Call) -> bool:
    """Whether a module is a part of a layer, which computes its weights."""
    return call.name.startswith(f"{layer.name}.parametrizations." if layer.name else "parametrizations.")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


@torch.no_grad()
def _elementwise(model: nn.Module, x: torch.Tensor, before: Call, last: Call) -> bool:
    """Whether each entry of the input of ``last`` depends on the same entry of the output of ``before`` alone.

    That output is replaced by random numbers, with other inputs of the model, then with one column changed.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(before.output.shape, generator=generator, dtype=torch.float64)
    values = drawn.to(device=before.output.device, dtype=before.output.dtype)
    changed = values.clone()
    changed[:, 0] += 1.0

    def input_of_last(output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        arrived: list[torch.Tensor] = []
        replace = (before.module.register_forward_hook, lambda _module, _inputs, _output: output.clone())
        record = (last.module.register_forward_pre_hook, lambda _module, given: arrived.append(given[0].clone()))
        _run(model, inputs.clone(), [replace, record])
        return arrived[0]

    first = input_of_last(values, x)
    others = x.flip(0) if not torch.equal(x, x.flip(0)) else torch.zeros_like(x)  # zeros are no input of every model
    elsewhere, second = input_of_last(values, others), input_of_last(changed, x)
    return bool(torch.equal(first, elsewhere)) and bool(torch.equal(first[:, 1:], second[:, 1:]))


def _named_layers(calls: list[Call], names: tuple[str, ...]) -> list[Call]:
    if not isinstance(names, tuple) or not 1 <= len(names) <= 2:
        raise InvalidInput("layers", repr(names), "a tuple of one or two names", code="wrong-type")
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    layers = []
    for name in names:
        of_name = [call for call in linear if call.name == name]
        if len(of_name) != 1 or not _usable(of_name[0], calls):
            known = ", ".join(dict.fromkeys(call.name for call in linear if _usable(call, calls))) or "none"
            runs = f"which runs {len(of_name)} times" if of_name else "which is not the name of a layer that runs"
            runs = f"on inputs with {_axes(of_name[0])}" if len(of_name) == 1 else runs
            need = f"a linear layer that runs once, on vectors; this model has: {known}"
            raise InvalidInput("layers", f"{name!r}, {runs}", need, code="not-a-choice")
        layers.append(of_name[0])
    first, last = _position(calls, layers[0]), _position(calls, layers[-1])
    if first > last:
        raise InvalidInput("layers", f"{names!r}, which run in the other order", "the last layer last")
    for call in calls[first + 1 :]:
        around = f"{layers[0].name}.".startswith(f"{call.name}.") or not call.name
        inside = any(_is_inside(call, layer) for layer in layers)
        if _has_parameters(call.module) and not around and not inside and call is not layers[-1]:
            got = f"{names!r}, and {call.name!r} with parameters runs after {layers[0].name!r}"
            raise InvalidInput("layers", got, "the last layers with parameters: the layers after them are left out")
    return layers


def _axes(call: Call) -> str:
    count = 0 if call.input is None else call.input.ndim
    return f"{count} axes" if count > 1 else "one axis" if count else "an unknown number of axes"
