"""What the modules show without a forward pass: bounds of the rank of a Jacobian, and that samples are independent.

The bounds are from sizes alone: few parameters, and narrow places of a chain of modules.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from alignver.network.functional import parameter_layout, running_copy
from alignver.network.inputs import in_dtype_of

_ELEMENTWISE = (
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity,
    nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SLOTS: dict[type, set[str]] = {kind: set() for kind in (nn.Sequential, nn.Flatten, *_ELEMENTWISE)}
_SLOTS |= {nn.Linear: {"weight", "bias"}}


@dataclasses.dataclass(frozen=True)
class RankBound:
    """An upper bound of rank J.

    Attributes
    ----------
    value : int
    sentence : str
        Why J cannot have full row rank; empty if the sizes do not exclude it.
    """

    value: int
    sentence: str


def row_rank_bound(model: nn.Module, x: torch.Tensor, m_y: int) -> RankBound:
    r"""Bound the rank of the Jacobian of n samples, N = n m_y rows and d columns.

    .. math:: \mathrm{rank}\, J \le \min\big(N,\; d,\; \min_{\text{cuts}} \min(|P_1|, n r) + |P_2|\big)

    A cut of a chain of modules has the parameters :math:`P_1` before it and :math:`P_2` after it; r numbers per sample
    pass through it. The columns of :math:`P_1` are :math:`\mathrm{blockdiag}(G_i) H`, where H has n r rows. Chains are
    ``nn.Sequential`` of modules of ``torch.nn`` without hooks; other code may access any value. A parameter that is
    used on both sides counts as one of :math:`P_2`.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode, so that samples do not depend on each other.
    x : torch.Tensor
        (n, ...), inputs that the model takes.
    m_y : int

    Examples
    --------
    >>> narrow = nn.Sequential(nn.Linear(8, 1), nn.Tanh(), nn.Linear(1, 4))
    >>> row_rank_bound(narrow, torch.ones(5, 8), 4).value
    13
    >>> row_rank_bound(nn.Linear(8, 4), torch.ones(5, 8), 4)
    RankBound(value=20, sentence='')
    """
    n, columns = len(x), parameter_layout(model)
    N, d = n * m_y, columns.d
    best = RankBound(min(N, d), "")
    if d < N:
        sentence = f"{d} parameters are fewer than the {N} entries of the outputs: J cannot have full row rank"
        best = RankBound(d, sentence)
    for name, r, before, after in _cuts(model, x):
        value = min(before, n * r) + after
        if value < best.value:
            numbers = "one number" if r == 1 else f"{r} numbers"
            sentence = (
                f"{before} parameters act only through {numbers} per sample, the output of module {name}, and "
                f"{after} do not: rank J <= {value} < N = {N}"
            )
            best = RankBound(value, sentence)
    return best


def _cuts(model: nn.Module, x: torch.Tensor) -> list[tuple[str, int, int, int]]:
    """Return, for each module of a chain but the last: name, numbers per sample, parameters before and after it."""
    chain = _chain(model, "")
    if len(chain) < 2 or not all(_unchanged(module) for module in model.modules()):
        return []
    free = {id(p): p.numel() for p in parameter_layout(model).parameters}
    uses = [{id(p) for p in module.parameters()} & free.keys() for _, module in chain]
    cuts: list[tuple[str, int, int, int]] = []
    value = in_dtype_of(model, x[:2])
    with running_copy(model) as twin, torch.no_grad():
        for k, (name, module) in enumerate(_chain(twin, "")[:-1]):
            value = module(value)
            if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != len(x[:2]):
                return cuts
            later = set().union(*uses[k + 1 :])
            earlier = set().union(*uses[: k + 1]) - later
            before, after = (sum(free[key] for key in keys) for keys in (earlier, later))
            cuts.append((repr(name), value[0].numel(), before, after))
    return cuts


def _chain(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the modules that are applied one after the other, with their names."""
    if type(module) is not nn.Sequential:
        return [(name, module)]
    inner = [_chain(child, f"{name}.{key}".lstrip(".")) for key, child in module._modules.items() if child is not None]
    return [link for links in inner for link in links]


def _unchanged(module: nn.Module) -> bool:
    """Whether a module is of a class of torch.nn, without hooks and with the forward method of its class."""
    kind, attributes = type(module), vars(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return False  # of a scripted module, the class has no forward method
    forward_of_class = kind.forward.__module__ == kind.__module__ and "forward" not in attributes
    hooked = any(attributes.get(name) or getattr(global_hooks, f"_global{name}", None) for name in _HOOKS)
    return forward_of_class and not hooked


def is_sample_independent(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the modules prove that each output row depends on its own sample and theta alone.

    That holds for a chain of linear layers, elementwise functions and flattenings from torch.nn, without hooks,
    subclasses, replaced methods or parametrizations, in which every parameter is a registered attribute of its class:
    such a chain is deterministic, computes in one dtype and writes to its activations only. If ``x`` has two axes or
    more, the first one holds the samples throughout: a linear layer acts on the last axis, and a flattening that starts
    at axis 1 keeps two axes. Dropout in train mode is refused earlier. True is a proof; False says nothing.

    Examples
    --------
    >>> is_sample_independent(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(4, 2))
    True
    >>> is_sample_independent(nn.Sequential(nn.Linear(4, 1)), torch.zeros(4))  # the samples are features
    False
    """
    return type(x) is torch.Tensor and x.ndim >= 2 and all(_acts_on_rows(module) for module in model.modules())


def _acts_on_rows(module: nn.Module) -> bool:
    kind, attributes = type(module), vars(module)
    if kind not in _SLOTS or set(attributes["_parameters"]) != _SLOTS[kind] or attributes["_buffers"]:
        return False
    if not _unchanged(module) or any(_is_foreign(key, value, kind) for key, value in attributes.items()):
        return False
    if kind is nn.Flatten and (module.start_dim < 1 or 0 <= module.end_dim < module.start_dim):  # type: ignore[operator]  # numbers
        return False
    if kind is nn.Dropout and module.training and module.p > 0:  # type: ignore[operator]  # numbers
        return False
    parameters = [p for p in attributes["_parameters"].values() if p is not None]
    return all(type(p) is nn.Parameter and not p._backward_hooks and p.grad_fn is None for p in parameters)


def _is_foreign(key: str, value: Any, kind: type) -> bool:
    """Whether an attribute of an instance replaces a method of its class, or is an unregistered tensor."""
    return isinstance(value, torch.Tensor) or (callable(value) and hasattr(kind, key))
