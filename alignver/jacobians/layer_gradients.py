"""Factors of the Jacobian's columns for linear and convolutional layers: inputs, and derivatives of the outputs.

A layer that computes ``s_ip = W a_ip + b`` for sample i at positions p contributes, with B_ijp = d f_ij / d s_ip,

    d f_ij / d W = sum_p B_ijp a_ip^T,      d f_ij / d b = sum_p B_ijp

summed over its uses, where a_ip is the input row (Linear) or the patch under the kernel (convolutions). One forward
and m_y backward passes over a batch give a and B for every layer at once: the samples of a batch are independent, so
the gradient of ``sum_i f_ij`` by s holds all B_ij. Any part of the columns then costs a product of two small matrices
and no further pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from alignver.jacobians.layer_io import patches
from alignver.network.functional import Functional

_SCRATCH = 1 << 22  # approximate bytes of the patches in memory
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclasses.dataclass(frozen=True, eq=False)
class Owner:
    """A layer and its attribute, ``"weight"`` or ``"bias"``, that holds a slot."""

    module: nn.Module
    attribute: str


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One call of a layer on a batch: inputs (n, ...) and derivatives of all outputs by its output (n, m_y, ...)."""

    inputs: torch.Tensor
    derivatives: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """Results of the passes over one batch.

    Attributes
    ----------
    uses : mapping of module to list of Use, or to None if a call did not have one row for each sample
    gradients : mapping of slot name to torch.Tensor
        ``sum_ij w_ij d f_ij / d slot`` from an ordinary backward pass, for comparison.
    outputs : torch.Tensor
        f of the batch, (n, m_y).
    """

    uses: Mapping[nn.Module, list[Use] | None]
    gradients: Mapping[str, torch.Tensor]
    outputs: torch.Tensor


def owners(function: Functional) -> dict[str, tuple[Owner, ...]]:
    """Return the slots that only plain linear and convolutional layers hold, each with all its layers.

    Subclasses and parametrized layers are excluded: they may compute another function.
    """
    names = {id(p): name for name, p in zip(function.layout.names, function.layout.parameters)}
    holders: dict[str, list[Owner]] = {name: [] for name in function.layout.names}
    foreign = set()
    for module in function.model.modules():
        plain = type(module) is nn.Linear or type(module) in _CONVOLUTIONS
        for key, parameter in module._parameters.items():
            name = names.get(id(parameter))
            if name is not None:
                holders[name].append(Owner(module, key))
                if not plain or key not in ("weight", "bias"):
                    foreign.add(name)
    return {name: tuple(layers) for name, layers in holders.items() if layers and name not in foreign}


def capture(
    function: Functional,
    x: torch.Tensor,
    modules: Iterable[nn.Module],
    m_y: int,
    weights: torch.Tensor | None = None,
    slots: Iterable[str] = (),
) -> Captured:
    """Run a batch forward once and backward m_y times, and record the inputs and derivatives of ``modules``.

    With ``weights`` (n, m_y) one more backward pass gives the gradients of ``slots`` for comparison. Only the part of
    the model after the first of the modules is differentiated.
    """
    layers, compared = set(modules), list(slots) if weights is not None else []
    calls: list[tuple[nn.Module, torch.Tensor | None, torch.Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        rows = len(args) == 1 and not kwargs and len(args[0]) == len(output) == len(x) and output.ndim > 1
        inputs = args[0].detach().clone() if rows else None  # a copy: later layers may write to it
        traced = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((module, inputs, traced))
        return traced.clone()

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in layers]
    try:
        theta = {name: value.detach() for name, value in function.theta.items()}
        theta |= {name: theta[name].requires_grad_() for name in compared}
        out = function(theta, function.batch(x)).reshape(len(x), m_y)
    finally:
        for handle in handles:
            handle.remove()
    uses: dict[nn.Module, list[Use] | None] = {module: [] for module in layers}
    traced = [output for _, _, output in calls]
    derivatives: list[torch.Tensor | None] = [None] * len(calls)
    for j in range(m_y) if traced and out.requires_grad else ():
        parts = torch.autograd.grad(out[:, j].sum(), traced, retain_graph=True, allow_unused=True)
        for k, part in enumerate(parts):
            if part is None or calls[k][1] is None:
                continue
            whole = derivatives[k]
            if m_y == 1:
                derivatives[k] = part[:, None]
                continue
            if whole is None:
                whole = derivatives[k] = part.new_zeros((len(x), m_y, *part.shape[1:]))
            whole[:, j] = part
    for (module, inputs, output), B in zip(calls, derivatives):
        known = uses[module]
        if inputs is None or known is None:
            uses[module] = None
            continue
        if B is None:  # no output depends on it
            B = output.new_zeros((len(x), m_y, *output.shape[1:]))
        known.append(Use(inputs.to(function.dtype), B.to(function.dtype)))
    gradients: dict[str, torch.Tensor] = {}
    if weights is not None and compared and out.requires_grad:
        parts = torch.autograd.grad(
            out, [theta[name] for name in compared], weights.to(out.dtype), allow_unused=True, materialize_grads=True
        )
        gradients = {name: part.reshape(-1).to(function.dtype) for name, part in zip(compared, parts)}
    return Captured(uses, gradients, out.detach())


def contract(captured: Captured, owners: Iterable[Owner], start: int, stop: int, target: torch.Tensor) -> bool:
    """Write columns ``start:stop`` of a slot, for the batch's samples, into ``target`` (m_y, n, stop - start).

    The columns are whole rows of the weight, or lie in one row. False if a call did not have one row for each sample.
    """
    target.zero_()
    for owner in owners:
        uses = captured.uses[owner.module]
        if uses is None:
            return False
        for use in uses:
            if owner.attribute == "bias":
                _add_bias(owner.module, use, start, stop, target)
            else:
                _add_weight(owner.module, use, start, stop, target)
    return True


def _derivatives(module: nn.Module, use: Use) -> torch.Tensor:
    """Return B as (n, m_y, outputs of the layer, positions)."""
    B = use.derivatives
    if isinstance(module, nn.Linear):
        return B.reshape(*B.shape[:2], -1, B.shape[-1]).transpose(2, 3)
    return B.flatten(3)


def _add_bias(module: nn.Module, use: Use, start: int, stop: int, target: torch.Tensor) -> None:
    target += _derivatives(module, use)[:, :, start:stop].sum(3).transpose(0, 1)


def _add_weight(module: nn.Module, use: Use, start: int, stop: int, target: torch.Tensor) -> None:
    weight: Any = module.weight
    inner = weight[0].numel()
    first, last = start // inner, -(-stop // inner)
    cut = slice(0, inner) if last - first > 1 else slice(start - first * inner, stop - first * inner)
    groups = int(getattr(module, "groups", 1))
    height = len(weight) // groups
    B = _derivatives(module, use)
    m_y, positions = B.shape[1], B.shape[3]
    step = max(1, _SCRATCH // (positions * inner * B.element_size()))
    for i in range(0, len(B), step):
        A = _input_rows(module, use.inputs[i : i + step])
        for g in range(first // height, (last - 1) // height + 1):
            low, high = max(first, g * height), min(last, (g + 1) * height)
            width = cut.stop - cut.start
            column = 0 if last - first == 1 else (low - first) * inner
            for j in range(m_y):  # in place: no temporary beside the block
                part = target[j, i : i + step, column : column + (high - low) * width].view(len(A), high - low, width)
                part.baddbmm_(B[i : i + step, j, low:high], A[:, :, g, cut])


def _input_rows(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return the factors of the rows of the weight: (n, positions, groups, entries of a row of the weight)."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(len(inputs), -1, 1, inputs.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    return patches(padded, module.kernel_size, module.stride, module.dilation, module.groups, positions_first=True)
