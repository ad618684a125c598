"""Upper bounds of the rank of a Jacobian from sizes alone: few parameters, and narrow places of a chain of modules."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from alignver.network.functional import parameter_layout, running_copy


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
    if len(chain) < 2 or not all(_plain(module) for module in model.modules()):
        return []
    free = {id(p): p.numel() for p in parameter_layout(model).parameters}
    uses = [{id(p) for p in module.parameters()} & free.keys() for _, module in chain]
    cuts: list[tuple[str, int, int, int]] = []
    first = next(model.parameters())
    value = x[:2].to(first.dtype) if x.is_floating_point() else x[:2]
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


def _plain(module: nn.Module) -> bool:
    """Whether a module is of a class of torch.nn, without hooks and with the forward method of its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    library = type(module).__module__.startswith("torch.nn.modules.")
    return library and "forward" not in vars(module) and not any(hooks)
