"""Copies of models: the memory that is shared, and the functions that close over a model, are the copy's own."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from alignver.errors import InvalidInput, first_line
from alignver.network.leaves import memory_groups, refused, shares_memory

_DEPTH = 4  # of containers and functions inside each other
_TRAINERS = ("trainer", "_trainer", "_fabric")  # which refer to loaders, loggers and files


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which tensors share memory as in the model; refuse memory that a copy would part."""
    memo: dict[int, Any] = {}
    arrays = [part for module in model.modules() for part in _parts(vars(module), np.ndarray)]
    for name, parameter in model.named_parameters():
        if parameter.device.type == "cpu" and any(_shares_memory(part, parameter) for part in arrays):
            raise refused(model, f"{name!r} shares memory with an array of NumPy", "parameters with their own memory")
    try:
        for module in model.modules():
            for tensor in _parts(vars(module), torch.Tensor):
                if tensor.grad_fn is not None:  # of an earlier pass, or a view: deepcopy refuses them
                    memo[id(tensor)] = copy.deepcopy(tensor.detach(), memo)
        for parameter in model.parameters():
            # torch's copy of a Parameter would not share memory with its views
            inner = copy.deepcopy(parameter.detach(), memo)
            memo[id(parameter)] = nn.Parameter(inner, requires_grad=parameter.requires_grad)
        twin = _copied(model, memo)
    except Exception as error:  # a user's class can raise anything
        raise refused(model, f"it cannot be copied: {first_line(error)}") from error
    kinds = [[(name, type(module)) for name, module in net.named_modules()] for net in (model, twin)]
    if kinds[0] != kinds[1]:
        raise refused(model, "a copy of it has different modules")
    if shares_memory(tuple(twin.parameters()), tuple(model.parameters())):
        raise refused(model, "a copy of it has the same parameters")
    parted = sorted(sorted(group) for group in memory_groups(model) ^ memory_groups(twin))
    if parted:
        raise refused(model, f"a copy does not share memory as the model does: {', '.join(parted[0][:4])}")
    return twin


def deep_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also of one that holds results of earlier passes, as weight_norm does.

    Raises
    ------
    InvalidInput
        The model cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)
        rebind_functions(model, twin)
        ours, theirs = ([p for p in net.parameters() if not is_lazy(p)] for net in (twin, model))
        if shares_memory(ours, theirs):
            raise RuntimeError("a copy of it has the same parameters")
        return twin
    except Exception:  # a user's class can raise anything
        try:
            return copied(model)
        except InvalidInput as error:
            got = error.got.replace("cannot be traced", "cannot be copied")
            raise InvalidInput("model", got, "a model that copy.deepcopy copies", "unsupported-model") from error


def separate_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules with the same parameters, buffers and arrays; the model if it cannot be copied."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    for module in model.modules():
        for name, value in vars(module).items():
            for part in _parts([value], torch.Tensor | np.ndarray):  # results of earlier passes, data sets
                if not isinstance(part, nn.Parameter):
                    memo.setdefault(id(part), _copy_if_small(part))
            if name in _TRAINERS:
                memo[id(value)] = value
    try:
        twin = _copied(model, memo)
        kinds = [[(name, type(module)) for name, module in net.named_modules()] for net in (model, twin)]
        shared = [[id(tensor) for tensor in (*net.parameters(), *net.buffers())] for net in (model, twin)]
        if twin is model or kinds[0] != kinds[1] or shared[0] != shared[1]:
            return model
        for module in twin.modules():  # hooks on gradients are no part of the function
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
        return twin
    except Exception:  # a class of the user can raise anything; the model itself then runs, under a lock
        return model


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


def _opaque_values(model: nn.Module) -> dict[int, Any]:
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
        if hasattr(value, "_torchdynamo_orig_callable"):  # model.forward = torch.compile(model.forward)
            method = next(_methods(value), None)
            if method is not None:
                return types.MethodType(method.__func__, pairs.get(id(method.__self__), method.__self__))
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


def _methods(function: types.FunctionType, depth: int = 0) -> Iterator[types.MethodType]:
    """Yield the methods of modules in the closures of a function."""
    for cell in filter(_is_full, function.__closure__ or ()):
        value = cell.cell_contents
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            yield value
        elif isinstance(value, types.FunctionType) and depth < _DEPTH:
            yield from _methods(value, depth + 1)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not bound yet
        return False


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        twin = copy.deepcopy(model, dict(memo))
    except Exception:  # a lock, a generator, an open file: the copy shares them
        twin = copy.deepcopy(model, memo | _opaque_values(model))
    rebind_functions(model, twin)
    return twin


def _parts(value: Any, kinds: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the values of some types in nested containers."""
    if isinstance(value, kinds):
        yield value
    elif isinstance(value, dict | list | tuple | set) and depth < _DEPTH:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item, kinds, depth + 1)


def _copy_if_small(value: Any) -> Any:
    """Return a copy of a small tensor: a forward pass may write to a tensor that is no buffer."""
    small = isinstance(value, torch.Tensor) and (value.layout != torch.strided or value.nbytes <= 1 << 26)
    if small and not value.is_meta:
        return value.detach().clone()
    return value


def _shares_memory(array: Any, parameter: torch.Tensor) -> bool:
    memory = torch.empty(0, dtype=torch.uint8).set_(parameter.untyped_storage())
    return np.may_share_memory(array, memory.numpy())
