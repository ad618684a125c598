"""What a graph states of its constants, and the constants that are computed from others without rounding."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch

from alignver.kernel.network.graph import Ref
from alignver.kernel.network.operators import COPIES, words

_MOST = 1 << 24  # entries of a constant that is computed here
_EXACT = COPIES | words(
    """arange full full_like ones ones_like zeros zeros_like new_ones new_zeros new_full eye scalar_tensor tril triu eq
    ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor where
    masked_fill cat stack slice_scatter select_scatter copy fill neg constant_pad_nd isinf any all"""
)
_INTEGER = words("add sub mul rsub cumsum sum remainder floor_divide minimum maximum clamp abs max min")


def facts(tensor: torch.Tensor) -> dict[str, Any]:
    """Return the facts of a constant: the range of its entries, minus infinity among them, and rows of booleans.

    Examples
    --------
    >>> facts(torch.tensor([[True, False], [True, True]]))
    {'range': [0.0, 1.0], 'masked': '', 'rows': ['true']}
    >>> facts(torch.tensor([0.0, -torch.inf]))
    {'range': None, 'masked': 'rows', 'rows': []}
    """
    tensor = tensor.detach()
    if not tensor.numel() or tensor.is_complex():
        return {"range": None, "masked": "", "rows": []}
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if tensor.dtype == torch.bool:
        some = [("true", rows), ("false", ~rows)]
        kinds = [kind for kind, entries in some if bool(entries.any(-1).all())]
        return {"range": [float(rows.all()), float(rows.any())], "masked": "", "rows": kinds}
    low, high = float(rows.min()), float(rows.max())
    if math.isfinite(low) and math.isfinite(high):
        return {"range": [low, high], "masked": "", "rows": []}
    infinite = rows == -math.inf
    valid = bool((infinite | torch.isfinite(rows)).all())
    state = "all" if bool(infinite.all()) else "rows" if bool((~infinite).any(-1).all()) else "any"
    return {"range": None, "masked": state if valid else "any", "rows": []}


def apply(op: str, arguments: dict[str, Any]) -> Any:
    """Apply an operator of torch by its name; strides are no part of a graph, so a view may copy."""
    _, name, overload = op.split(".")
    if name in ("view", "_unsafe_view") and "size" in arguments:
        return arguments["self"].reshape(arguments["size"])
    target = getattr(getattr(torch.ops.aten, name), overload or "default")
    positional = []
    for argument in target._schema.arguments:
        if argument.kwarg_only:
            break
        positional.append(arguments.pop(argument.name, argument.default_value))
    return target(*positional, **arguments)


def fold(op: str, name: str, args: Mapping[str, Any], values: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """Return the value of an operator on constants if it is computed without rounding, else None."""
    refs: list[int] = []

    def filled(value: Any) -> Any:
        if isinstance(value, Ref):
            refs.append(value.node)
            return values.get(value.node)
        return [filled(item) for item in value] if isinstance(value, tuple | list) else value

    if name not in _EXACT | _INTEGER or not op.startswith("aten."):
        return None
    arguments = {key: filled(value) for key, value in args.items()}
    if any(k not in values for k in refs) or sum(values[k].numel() for k in refs) > _MOST:
        return None
    if not refs and math.prod(args.get("size", (1,))) > _MOST:
        return None
    if name in _INTEGER and any(values[k].is_floating_point() for k in refs):
        return None
    result = apply(op, dict(arguments))
    if name in _INTEGER and isinstance(result, torch.Tensor):  # without wraparound
        wide = {key: part.long() if isinstance(part, torch.Tensor) else part for key, part in arguments.items()}
        if not torch.equal(apply(op, wide).long(), result.long()):
            return None
    return result if isinstance(result, torch.Tensor) and _is_exact(name, args, result, refs, values) else None


def _is_exact(
    name: str, args: Mapping[str, Any], result: torch.Tensor, refs: list[int], values: Mapping[int, torch.Tensor]
) -> bool:
    if result.numel() > _MOST or result.is_complex():
        return False
    if name == "arange":
        whole = all(isinstance(args.get(key, 0), int) for key in ("start", "end", "step"))
        return whole and (not result.numel() or float(result.abs().max()) <= 2.0**11)
    if name == "fill" and isinstance(args.get("value"), Ref):
        return False
    operands = [values[k] for k in refs if values[k].dtype != torch.bool]
    if name in ("to", "_to_copy", "type_as"):
        operands, common = operands[:1], result.dtype
    else:
        common = functools.reduce(torch.promote_types, (operand.dtype for operand in operands), torch.bool)
    if any(not _survives(operand, common) for operand in operands):
        return False
    if name in ("copy", "slice_scatter", "select_scatter") and not _survives(values[refs[-1]], result.dtype):
        return False
    target = common if result.dtype == torch.bool and operands else result.dtype
    entries = [args[key] for key in ("self", "other", "value", "fill_value", "s") if key in args]
    numbers = [part for part in entries if isinstance(part, int | float) and math.isfinite(part)]
    if any(float(torch.tensor(part, dtype=target)) != part for part in numbers):
        return False
    if not result.is_floating_point() and result.numel() and result.dtype != torch.bool:
        return int(result.abs().max()) <= 2**53
    return True


def _survives(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a conversion keeps the values of a tensor."""
    return tensor.dtype == dtype or bool((tensor.to(dtype).double() == tensor.double()).all())
