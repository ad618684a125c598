"""What ``deepcopy`` does not copy of a model: functions that close over it (hooks, lambdas), locks and files."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

__all__ = ["opaque_values", "rebind_functions"]

_DEPTH = 4  # of containers and functions inside each other


def rebind_functions(model: nn.Module, twin: nn.Module) -> None:
    """Let the functions among the attributes and hooks of a copy refer to the copy where they refer to the model.

    ``copy.deepcopy`` copies no functions: a hook or a lambda that closes over the model would run the model itself.

    Examples
    --------
    >>> import copy
    >>> def build():
    ...     model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    ...     model.scaled = lambda x: model[0].weight * x
    ...     return model
    >>> model = build()
    >>> twin = copy.deepcopy(model)
    >>> rebind_functions(model, twin)
    >>> twin.scaled.__closure__[0].cell_contents is twin
    True
    """
    pairs: dict[int, Any] = {}
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        pairs[id(module)] = other
        for held in (module._parameters, module._buffers):
            mine = other._parameters if held is module._parameters else other._buffers
            pairs |= {id(tensor): mine.get(name) for name, tensor in held.items() if tensor is not None}
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                vars(module)[name] = _rebound(value, pairs, 0)


def opaque_values(model: nn.Module) -> dict[int, Any]:
    """Return the attributes that a copy can share: locks, files; no modules, tensors, containers or functions."""
    kinds = (nn.Module, torch.Tensor, dict, list, tuple, set)
    values = [value for module in model.modules() for value in vars(module).values()]
    return {id(value): value for value in values if not isinstance(value, kinds) and not callable(value)}


def _rebound(value: Any, pairs: dict[int, Any], depth: int) -> Any:
    """Return a value with the partners of modules and tensors in the closures and arguments of functions."""
    if id(value) in pairs:
        return pairs[id(value)]
    if depth > _DEPTH:
        return value
    if isinstance(value, types.FunctionType) and value.__closure__:
        full = [cell for cell in value.__closure__ if _is_full(cell)]
        cells = [types.CellType(_rebound(cell.cell_contents, pairs, depth + 1)) for cell in full]
        if len(cells) < len(value.__closure__) or all(
            new.cell_contents is old.cell_contents for new, old in zip(cells, value.__closure__, strict=True)
        ):
            return value
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells))
        made.__kwdefaults__ = value.__kwdefaults__
        made.__dict__.update(value.__dict__)
        return made
    if isinstance(value, types.MethodType):
        made = _rebound(value.__func__, pairs, depth + 1)
        return value if made is value.__func__ else types.MethodType(made, value.__self__)
    if isinstance(value, functools.partial):
        parts = [_rebound(part, pairs, depth + 1) for part in (value.func, value.args, value.keywords)]
        return functools.partial(parts[0], *parts[1], **parts[2])
    if type(value) in (list, tuple):
        items = [_rebound(item, pairs, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    if type(value) in (dict, OrderedDict):
        items = [_rebound(item, pairs, depth + 1) for item in value.values()]
        changed = any(new is not old for new, old in zip(items, value.values(), strict=True))
        return type(value)(zip(value, items, strict=True)) if changed else value
    return value


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not bound yet
        return False
