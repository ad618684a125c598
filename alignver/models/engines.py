"""Two ways to the rows of a Jacobian: all outputs of many samples at once, or one output of one sample at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch.func import jacfwd, jacrev, vmap

from alignver.models.functional import Functional, Theta

__all__ = ["Block", "loop", "vectorised", "vectorised_agrees"]

Block = tuple[torch.Tensor, ...]
"""For each slot, the derivatives of a chunk of samples: (samples, m_y, size)."""


def vectorised(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate through ``vmap(jacrev)`` over samples, ``vmap(jacfwd)`` where d < m_y.

    Per sample, reverse mode costs m_y backward passes, forward mode d forward passes. Raises whatever torch raises
    where a model does not vectorise: control flow on data, fused RNNs, operations without a batching rule.
    """
    derivative = jacfwd if function.slots.d < m_y else jacrev

    def single(theta: Theta, sample: torch.Tensor) -> torch.Tensor:
        return function(theta, sample.unsqueeze(0)).reshape(m_y)

    rows: Callable[..., dict[str, torch.Tensor]] = vmap(derivative(single), in_dims=(None, 0), randomness="different")
    with warnings.catch_warnings():
        # About torch's own insides (missing batching rules, deprecated calls): nothing that a caller could act on.
        warnings.simplefilter("ignore")
        found = rows(dict(function.theta), function.batch(x))
    return tuple(found[name].reshape(len(x), m_y, -1) for name in function.slots.names)


def loop(function: Functional, x: torch.Tensor, m_y: int) -> Block:
    """Differentiate one output of one sample at a time through ``autograd.grad``: slow, and right where autograd is."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in function.theta.items()}
    leaves = list(theta.values())
    block = tuple(leaf.new_zeros((len(x), m_y, leaf.numel())) for leaf in leaves)
    for i in range(len(x)):
        out = function(theta, function.batch(x[i : i + 1])).reshape(m_y)
        for j in range(m_y):
            gradients = torch.autograd.grad(out[j], leaves, retain_graph=j < m_y - 1, allow_unused=True)
            for part, gradient in zip(block, gradients):
                if gradient is not None:
                    part[i, j] = gradient.reshape(-1)
    return block


def vectorised_agrees(function: Functional, x: torch.Tensor, m_y: int, block: Block) -> bool:
    """Compare the first sample's rows with one ordinary backward pass: w^T J_1 two ways, up to sqrt(eps)."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in function.theta.items()}
    out = function(theta, function.batch(x[:1])).reshape(m_y)
    weights = torch.cos(torch.arange(1, m_y + 1, device=out.device)).to(out.dtype)
    gradients = torch.autograd.grad(
        (out * weights).sum(), list(theta.values()), allow_unused=True, materialize_grads=True
    )
    for part, gradient in zip(block, gradients):
        ours = weights.to(part.dtype) @ part[0]
        allowed = math.sqrt(torch.finfo(out.dtype).eps) * max(float(gradient.norm()), float(part[0].abs().max()))
        if float((gradient.reshape(-1) - ours).norm()) > allowed:
            return False
    return True
