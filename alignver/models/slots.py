"""Physical parameter slots: what the columns of the Jacobian are, in which order."""

from __future__ import annotations

import dataclasses

from torch import nn

__all__ = ["Slots", "slots"]


@dataclasses.dataclass(frozen=True, eq=False)
class Slots:
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


def slots(model: nn.Module, *, include_frozen: bool = False) -> Slots:
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
    >>> found = slots(tied)
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
    return Slots(tuple(chosen), tuple(chosen.values()), sizes, fixed, aliases)
