"""The Jacobian as a float64 loop of autograd.grad over a copy of the model: what every engine is compared with."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn


def reference_jacobian(model: nn.Module, x: torch.Tensor, include_frozen: bool = False) -> torch.Tensor:
    wide = copy.deepcopy(model).double()
    if include_frozen:
        wide.requires_grad_(True)
    parameters = [p for p in wide.parameters() if p.requires_grad]
    x = x.double() if x.is_floating_point() else x
    rows = []
    out = wide(x.clone())
    out = out.reshape(len(x), -1)
    for j in range(out.shape[1]):
        for i in range(out.shape[0]):
            gradients = torch.autograd.grad(
                out[i, j], parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


def relative(computed: torch.Tensor, wanted: torch.Tensor) -> float:
    assert computed.shape == wanted.shape
    return float((computed.double() - wanted).norm() / wanted.norm())


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Everything of a model that a check may not change."""
    marks: dict[str, object] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        marks[f"{name} module"] = (id(module), module.training)
        for key, value in vars(module).items():
            marks[f"{name} {key}"] = id(value)
            if isinstance(value, dict | list):
                marks[f"{name} {key} items"] = [id(v) for v in (value.values() if isinstance(value, dict) else value)]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        marks[name] = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, _bytes(tensor))
        marks[f"{name} grad"] = None if tensor.grad is None else (id(tensor.grad), _bytes(tensor.grad))
    marks["random state"] = _bytes(torch.get_rng_state())
    return marks


def _bytes(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()
