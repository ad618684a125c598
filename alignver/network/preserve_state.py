"""Context managers that restore a model, and the random states of torch, NumPy and Python, after a check.

:class:`RefuseWrites` is for passes of the model itself: it refuses an operation that would write to its tensors.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.network.inputs import DispatchMode, memory_of

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextlib.contextmanager
def preserve_state(
    model: nn.Module, scratch: dict[Any, torch.Tensor] | None = None, *, tensors: bool = True
) -> Iterator[None]:
    """Restore a model and torch's random state at the end of the block.

    Restored are the identity of every Parameter, buffer and submodule; the bytes of parameters, buffers and gradients;
    ``requires_grad``; the training mode of every module; hooks; other attributes of the modules (torch itself
    replaces the weight list of an RNN during a functional call), with generators of random numbers among them; the
    random states of torch (the CPU and every CUDA device in use), NumPy and Python.

    Plain attributes and random states are restored silently: a forward pass may cache values and draw random
    numbers. Any other change is restored and then reported.

    Parameters
    ----------
    model : torch.nn.Module
        The model to guard.
    scratch : dict, optional
        Memory for the copies, reused by the caller between calls: allocation costs more than the copy.
    tensors : bool
        Whether the model may be written to: False for a copy of the modules that runs on other tensors. What another
        thread writes to its parameters meanwhile stays.

    Raises
    ------
    AssertionError
        The model changed, which is an internal error of alignver. The model is restored first. An exception raised in
        the block is not replaced.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> with preserve_state(model):
    ...     _ = model.eval()
    Traceback (most recent call last):
        ...
    AssertionError: alignver changed the model (now put back): training mode of Linear
    """
    before = _Snapshot(model, {} if scratch is None else scratch, tensors)
    try:
        yield
    except BaseException:
        before.put_back()
        raise
    changes = before.put_back()
    if changes:
        raise AssertionError("alignver changed the model (now put back): " + ", ".join(changes))


class _Snapshot:
    """The state of a model that a check may not change."""

    def __init__(self, model: nn.Module, scratch: dict[Any, torch.Tensor], bytewise: bool) -> None:
        self.random = _RandomStates()
        self.modules = [_Module(name or type(model).__name__, module) for name, module in model.named_modules()]
        tensors: dict[int, _Tensor] = {}
        for kind, pairs in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            for name, tensor in pairs if bytewise else ():
                tensors.setdefault(id(tensor), _Tensor(f"{kind} {name}", tensor, scratch))
        self.tensors = list(tensors.values())

    def put_back(self) -> list[str]:
        """Restore everything; return a description of each change."""
        changes = [change for module in self.modules for change in module.put_back()]
        changes += [change for tensor in self.tensors for change in tensor.put_back()]
        self.random.put_back()
        return changes


@contextlib.contextmanager
def preserve_random_states() -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python at the end of the block.

    Examples
    --------
    >>> with preserve_random_states():
    ...     first = torch.rand(1)
    >>> bool(torch.rand(1) == first)
    True
    """
    states = _RandomStates()
    try:
        yield
    finally:
        states.put_back()


class _RandomStates:
    """The random states of a process; one that has not changed is not written, since other threads may draw numbers.

    In a thread beside the main one, they are left as they are: the main one draws its numbers meanwhile.
    """

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.cuda = torch.cuda.get_rng_state_all() if used else []
        self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the state that models may use
        self.python = random.getstate()

    def put_back(self) -> None:
        if threading.current_thread() is not threading.main_thread() and threading.active_count() > 1:
            return
        if not torch.equal(torch.get_rng_state(), self.torch):
            torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if _numbers(np.random.get_state(legacy=False)) != _numbers(self.numpy):  # noqa: NPY002
            np.random.set_state(self.numpy)  # noqa: NPY002
        if random.getstate() != self.python:
            random.setstate(self.python)


class _Module:
    """The attributes of one module, by identity, and the items of its lists, dictionaries and sets."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.attributes = dict(vars(module))
        # Most are empty registries of hooks: there is nothing to copy, only to test that they are still empty.
        held = [(key, value) for key, value in self.attributes.items() if isinstance(value, _CONTAINERS)]
        self.empty = [(key, value) for key, value in held if not value]
        self.contents = {key: value.copy() for key, value in held if value}
        self.tensors = [_Tensor("", value) for value in self.attributes.values() if isinstance(value, torch.Tensor)]
        self.generators = [restore for value in self.attributes.values() for restore in _restorers(value)]

    def put_back(self) -> list[str]:
        now = vars(self.module)
        for key in [key for key in now if key not in self.attributes]:
            del now[key]
        changed = {key: value for key, value in self.attributes.items() if now.get(key, self) is not value}
        now.update(changed)
        for key, value in self.empty:
            if value:
                value.clear()
                changed[key] = value
        for key, content in self.contents.items():
            value = self.attributes[key]
            if not _same_items(value, content):
                _refill(value, content)
                changed[key] = value
        changes = [word for key in changed for word in self._words(key)]
        for tensor in self.tensors:
            tensor.put_back()
        for restore in self.generators:
            restore()
        return changes

    def _words(self, key: str) -> list[str]:
        if key == "training":
            return [f"training mode of {self.name}"]
        if key in _REGISTRIES or key.endswith("_hooks"):
            return [f"{key.strip('_')} of {self.name}"]
        return []  # a cached value: restored silently


class _Tensor:
    """One parameter or buffer: its bytes, gradient, flags and hooks."""

    def __init__(self, name: str, tensor: torch.Tensor, scratch: dict[Any, torch.Tensor] | None = None) -> None:
        self.name = name
        self.tensor = tensor
        self.data = tensor.data
        self.values = _copy(scratch, name, tensor)
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_was = None
        if self.grad is not None:
            self.grad_was = (self.grad.data, _copy(scratch, ("gradient", name), self.grad))
        self.requires_grad = tensor.requires_grad
        self.hooks = dict(tensor._backward_hooks or {})

    def put_back(self) -> list[str]:
        tensor, changes = self.tensor, []
        if tensor.dtype != self.values.dtype or not _same_bytes(tensor, self.values):
            changes.append(f"values of {self.name}")
            with torch.no_grad():
                self.data.copy_(self.values)
                tensor.data = self.data
        if tensor.requires_grad != self.requires_grad:
            changes.append(f"requires_grad of {self.name}")
            tensor.requires_grad_(self.requires_grad)
        if (tensor.grad if tensor.is_leaf else None) is not self.grad:
            changes.append(f"gradient of {self.name}")
            tensor.grad = self.grad
        if self.grad is not None and self.grad_was is not None and not _same_bytes(self.grad, self.grad_was[1]):
            changes.append(f"gradient of {self.name}")
            data, values = self.grad_was
            self.grad.data = data.copy_(values)
        if not _same_items(dict(tensor._backward_hooks or {}), self.hooks):
            changes.append(f"hooks of {self.name}")
            if tensor._backward_hooks is not None:
                _refill(tensor._backward_hooks, self.hooks)
        return changes


def _restorers(value: Any) -> Iterator[Callable[[], Any]]:
    """Yield what restores a generator of random numbers."""
    if isinstance(value, torch.Generator):
        yield functools.partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield functools.partial(value.setstate, value.getstate())
    elif isinstance(value, np.random.Generator):
        yield functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield functools.partial(value.set_state, value.get_state(legacy=False))


def _numbers(state: Any) -> tuple[bytes, int, int, float]:
    """Return what differs between two states of NumPy's generator."""
    return state["state"]["key"].tobytes(), state["state"]["pos"], state["has_gauss"], state["gauss"]


def _copy(scratch: dict[Any, torch.Tensor] | None, key: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor, into the memory of the previous copy under ``key`` if it has the same shape, dtype and device."""
    held = None if scratch is None else scratch.get(key)
    fits = held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype
    if held is not None and fits and held.device == tensor.device and held.layout == tensor.layout:
        return held.copy_(tensor.detach())  # neither recorded by autograd nor an inference tensor
    with torch.inference_mode(False), torch.no_grad():
        copy = tensor.detach().clone()
    if scratch is not None:
        scratch[key] = copy
    return copy


def _same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare bit patterns: NaN equals itself, and -0.0 is not 0.0."""
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        return False
    if first.is_meta or first.layout != torch.strided or first.is_quantized:
        return True  # as parameters and buffers, refused before anything is computed
    first, second = first.detach(), second.detach()
    bits = _BITS.get(first.element_size())  # integers as wide as the entries: eight times faster than bytes
    if first.is_complex() or first.is_neg():
        first, second = (t.resolve_conj().resolve_neg() for t in (first, second))
    if bits is None:
        bits, first, second = torch.uint8, first.contiguous().reshape(-1), second.contiguous().reshape(-1)
    return torch.equal(first.view(bits), second.view(bits))


def _same_items(first: Any, second: Any) -> bool:
    """Whether two containers hold the same objects (by identity, in the same order if they are ordered)."""
    if len(first) != len(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(first[key] is second[key] for key in first)
    if isinstance(first, set):
        return {id(item) for item in first} == {id(item) for item in second}
    return all(a is b for a, b in zip(first, second))


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for the block; afterwards the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False  # not eval(), which a model may override
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return parameters and buffers by all of their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def refused_write(model: nn.Module, name: str) -> InvalidInput:
    """Return the exception for a forward pass that writes to a parameter or buffer, with a remedy."""
    need = "a forward that does not modify its parameters and buffers"
    place = name.rpartition(".")[0]
    owner = dict(model.named_modules(remove_duplicate=False)).get(place)
    if getattr(owner, "max_norm", None) is not None:
        called = attribute_of(f"{place}.max_norm" if place else "max_norm")
        need = f"rows that are scaled already: {called} = None, after a pass over all inputs"
    elif any(module.training for module in model.modules()):
        need += ": model.eval()"
        if not type(owner).__module__.startswith("torch."):
            need += ", where it writes only if self.training"
    got = f"{type(model).__name__}, whose forward writes to {name!r} in place"
    return InvalidInput("model", got, need, code="unsupported-model")


class RefuseWrites(DispatchMode):
    """Refuse an operation on the memory of the model's own parameters and buffers before it writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.memory = {memory_of(t): name for name, t in named_tensors(model) if t.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Inspect the operands that are written to, and run the operation."""
        kwargs = kwargs or {}
        for position, operand in enumerate(func._schema.arguments if func._schema.is_mutable else ()):
            if operand.alias_info is None or not operand.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(operand.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                name = self.memory.get(memory_of(tensor))
                if name is not None:
                    raise refused_write(self.model, name)
        return func(*args, **kwargs)


def attribute_of(name: str) -> str:
    """Return an expression for an attribute of the model or of a submodule."""
    module, _, attribute = name.rpartition(".")
    if all(part.isidentifier() for part in module.split(".")):
        return f"model.{name}"
    return f"model.get_submodule({module!r}).{attribute}" if module else f"model.{attribute}"
