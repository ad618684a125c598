"""Models that compute parts of themselves again in the backward pass: ``torch.utils.checkpoint``.

By then a functional call is over, and the module's own parameters are back in their places. Where they have other
values than those the pass was made with, the derivatives are those of no function at all, without an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as of_all
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.errors import InvalidInput
from alignver.models.functional import Functional

__all__ = ["recomputes", "require_own_values"]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notice operations on the module's own parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = {id(p) for p in model.parameters()}
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments, and run the operation."""
        self.seen = self.seen or any(id(leaf) in self.own for leaf in pytree.tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def recomputes(function: Functional, x: torch.Tensor) -> bool:
    """Whether a backward pass runs modules of the model, or operations on its own parameters.

    Examples
    --------
    >>> from alignver.models.functional import functional
    >>> recomputes(functional(nn.Linear(2, 1), torch.float64), torch.ones(1, 2))
    False
    """
    theta = {name: value.detach().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x))
    if not out.requires_grad:
        return False
    inside, called = set(function.model.modules()), []

    def note(module: nn.Module, args: Any) -> None:
        if module in inside:
            called.append(module)

    hook = of_all.register_module_forward_pre_hook(note)  # a backward pass on a GPU has threads that no mode watches
    try:
        with _Watch(function.model) as watch:
            torch.autograd.grad(out.sum(), list(theta.values()), allow_unused=True)
    finally:
        hook.remove()
    return watch.seen or bool(called)


def require_own_values(function: Functional, argument: str) -> None:
    """Refuse a model that recomputes, unless its own parameters and buffers have the values that are worked with."""
    own = {**dict(function.model.named_parameters()), **dict(function.model.named_buffers())}
    for name, value in {**function.theta, **function.held}.items():
        if not torch.equal(own[name].detach().to(value.dtype), value):
            model = type(function.model).__name__
            got = f"values of {name!r} that {model} does not have now, while it computes parts of itself again on the "
            got += "way back (torch.utils.checkpoint), with its own"
            raise InvalidInput(argument, got, "a model that has them: model.load_state_dict(...), or no checkpoints")
