"""Models whose modules alone tell that every sample is treated by itself: what need not be tried on batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all

__all__ = ["treats_samples_apart"]

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


def treats_samples_apart(model: nn.Module, x: torch.Tensor) -> bool:
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
