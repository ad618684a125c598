"""What sizes alone say of the rank of a Jacobian, before it is computed."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from alignver.models.guard import unchanged
from alignver.models.slots import slots

__all__ = ["RankBound", "row_rank_bound"]


@dataclasses.dataclass(frozen=True)
class RankBound:
    """An upper bound of rank J.

    Attributes
    ----------
    value : int
    sentence : str
        Why J cannot have full row rank; empty where sizes do not exclude it.
    """

    value: int
    sentence: str


def row_rank_bound(model: nn.Module, x: torch.Tensor, m_y: int) -> RankBound:
    r"""Bound the rank of the Jacobian of n samples, N = n m_y rows and d columns.

    .. math:: \mathrm{rank}\, J \le \min\big(N,\; d,\; \min_{\text{cuts}} \min(|P_1|, n r) + |P_2|\big)

    A cut of a chain of modules leaves the parameters :math:`P_1` before it and :math:`P_2` after it; what passes
    through it are r numbers a sample. The columns of :math:`P_1` are :math:`\mathrm{blockdiag}(G_i) H`, H of n r rows.
    Chains are ``nn.Sequential`` of modules of ``torch.nn`` without hooks: what other code reaches for, sizes do not
    tell. A parameter that is used on both sides counts as one of :math:`P_2`.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode where that matters: samples do not see each other.
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
    n, columns = len(x), slots(model)
    N, d = n * m_y, columns.d
    best = RankBound(min(N, d), "")
    if d < N:
        sentence = f"{d} parameters are fewer than the {N} entries of the outputs: J cannot have full row rank"
        best = RankBound(d, sentence)
    for name, r, before, after in _cuts(model, x):
        value = min(before, n * r) + after
        if value < best.value:
            sentence = (
                f"{before} parameters reach the outputs through the {_counted(r)} a sample that module {name} gives, "
                f"{after} otherwise: rank J <= {value} < N = {N}"
            )
            best = RankBound(value, sentence)
    return best


def _counted(r: int) -> str:
    return "one number" if r == 1 else f"{r} numbers"


def _cuts(model: nn.Module, x: torch.Tensor) -> list[tuple[str, int, int, int]]:
    """Return, after each module of a chain but the last: its name, numbers a sample, parameters before and after."""
    chain = _chain(model, "")
    if len(chain) < 2 or not all(_plain(module) for module in model.modules()):
        return []
    free = {id(p): p.numel() for p in slots(model).parameters}
    uses = [{id(p) for p in module.parameters()} & free.keys() for _, module in chain]
    cuts: list[tuple[str, int, int, int]] = []
    first = next(model.parameters())
    value = x[:2].to(first.dtype) if x.is_floating_point() else x[:2]
    with unchanged(model), torch.no_grad():
        for k, (name, module) in enumerate(chain[:-1]):
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
    """Whether a module does what its class in torch.nn does, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    own = "forward" in vars(module)
    return type(module).__module__.startswith("torch.nn.modules.") and not own and not any(hooks)
