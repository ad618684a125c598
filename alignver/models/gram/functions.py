"""A function of a dict of tensors, seen as a module: what the rest of the library works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput

__all__ = ["as_module"]


class _Node(nn.Module):
    """A part of a dotted name."""


class _Function(nn.Module):
    """A function of (params, x), with params as its parameters under their own names."""

    def __init__(self, function: Callable[..., Any], params: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.function = [function]  # in a list: a function that is a module must not become a part of this one
        shared: dict[int, nn.Parameter] = {}
        self.paths: dict[str, tuple[str, ...]] = {}
        for name, value in params.items():
            parameter = shared.setdefault(id(value), nn.Parameter(value.detach()))
            *path, last = _path(name, params)
            home: nn.Module = self
            for step in path:
                if step not in home._modules:
                    home.add_module(step, _Node())
                home = home.get_submodule(step)
            home.register_parameter(last, parameter)
            self.paths[name] = (*path, last)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        """Hand the parameters, whatever they are at the moment, to the function."""
        return self.function[0]({name: self._at(path) for name, path in self.paths.items()}, x)

    def _at(self, path: tuple[str, ...]) -> torch.Tensor:
        home: nn.Module = self
        for step in path[:-1]:
            home = home._modules[step]  # type: ignore[assignment]  # paths were found in the registries:
        return home._parameters[path[-1]]  # type: ignore[return-value]  # no entry of theirs is None


_TAKEN = set(dir(nn.Module())) | {"function", "paths", "params"}


def _path(name: str, names: Mapping[str, torch.Tensor]) -> list[str]:
    """Split a dotted name; where that would clash with an attribute or another name, keep it in one piece."""
    steps = name.split(".")
    clash = any(step in _TAKEN or not step for step in steps) or any(
        (other != name and other.startswith(name + ".")) or name.startswith(other + ".") for other in names
    )
    return ["params", f"{list(names).index(name)}_" + name.replace(".", "_")] if clash else steps


def as_module(function: Callable[..., Any], params: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a module whose forward is ``function(params, x)`` and whose parameters are ``params``.

    Parameters
    ----------
    function : callable
        ``function(params, x)`` with params a dict of the same keys; returns one row of outputs for each sample.
    params : mapping of str to torch.Tensor
        Floating tensors. They are shared, not copied, and not written to; a tensor under two keys is one parameter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InvalidInput
        ``function`` is not callable, or ``params`` is not a mapping of names to floating tensors, or is empty.

    Examples
    --------
    >>> import torch
    >>> f = as_module(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)})
    >>> f(torch.ones(3, 2)).shape
    torch.Size([3, 1])
    """
    if not callable(function):
        raise InvalidInput("model", f"a {type(function).__name__}", "a function of (params, x)")
    if not isinstance(params, Mapping) or not params:
        raise InvalidInput("params", _said(params), "a dict of names to tensors, with at least one")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = f"{name!r}: {_said(value)}"
            raise InvalidInput("params", got, "names (str) with floating tensors")
    return _Function(function, params)


def _said(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).rpartition('.')[2]}"
    return "an empty dict" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"
