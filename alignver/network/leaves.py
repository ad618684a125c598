"""The leaves of a graph: parameters by the memory that they occupy, and constants by what is known of their values."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput, kind_of
from alignver.kernel.network.graph import Ref
from alignver.kernel.network.operators import COPIES, words

Extent = tuple[str, int, int]
_FOREIGN = ""  # in place of the name of a buffer or a captured tensor


class Leaves:
    """Groups of parameters, each of which occupies memory that no other group touches.

    Parameters
    ----------
    model, twin : torch.nn.Module
        The model and its copy: a tensor that the copy's code still reads from the model is that of the same name.
    captured : sequence of torch.Tensor
        Tensors that the trace read from elsewhere.
    """

    def __init__(self, model: nn.Module, twin: nn.Module, captured: Sequence[torch.Tensor]) -> None:
        self.named = dict(twin.named_parameters())
        originals = dict(model.named_parameters())
        self.extents: dict[str, list[Extent]] = {
            name: [_extent(tensor), _extent(originals[name])] for name, tensor in self.named.items()
        }
        buffers = [*twin.buffers(), *model.buffers(), *captured]
        named = [(extent, name) for name, extents in self.extents.items() for extent in extents]
        self.spans = _spans([*named, *((_extent(tensor), _FOREIGN) for tensor in buffers)])
        self.group = {name: index for index, name in enumerate(self.named)}
        for _, names in self.spans:
            touched = {self.group[name] for name in names if name != _FOREIGN}
            if len(touched) > 1:
                self.group = {name: min(touched) if g in touched else g for name, g in self.group.items()}
        self.foreign: set[int] = set()  # groups with memory of a buffer or a captured tensor
        for _, names in self.spans:
            if _FOREIGN in names:
                self.foreign |= {self.group[name] for name in names if name != _FOREIGN}

    def _touching(self, extent: Extent) -> set[str]:
        return _names_at(self.spans, extent) - {_FOREIGN}

    def _facts(self, name: str, group: int, trainable: bool) -> dict[str, Any]:
        members = [tensor for other, tensor in self.named.items() if self.group[other] == group]
        distinct = all(_has_distinct_entries(tensor) for tensor in members)
        pure = distinct and group not in self.foreign and all(tensor.requires_grad for tensor in members)
        return {"name": name, "leaf": group, "trainable": trainable, "pure": pure}

    def parameter(self, name: str, tensor: torch.Tensor) -> dict[str, Any]:
        """Return the facts of a parameter."""
        fixed = not any(p.requires_grad for other, p in self.named.items() if self.group[other] == self.group[name])
        ends = facts(tensor)["range"] if fixed else None
        return {**self._facts(name, self.group[name], tensor.requires_grad), "range": ends}

    def shared(self, name: str, tensor: torch.Tensor) -> dict[str, Any] | None:
        """Return the facts of a buffer or captured tensor on the memory of a parameter; None if it is on no such."""
        touched = {self.group[other] for other in self._touching(_extent(tensor))}
        return {**self._facts(name, min(touched), False), "range": None} if touched else None

    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of parameters that share memory with another tensor."""
        groups = [[name for name in self.named if self.group[name] == g] for g in sorted(set(self.group.values()))]
        return tuple(tuple(names) for names in groups if len(names) > 1 or self.group[names[0]] in self.foreign)


def refused(
    model: nn.Module,
    why: str,
    need: str = "a model that torch.export can trace",
    *,
    fault: str = "that cannot be traced",
) -> InvalidInput:
    """Return the exception for a model that has no graph, or another one than it has to have."""
    return InvalidInput("model", f"{kind_of(model)} {fault} ({why})", need, "unsupported-model")


ANOTHER = "that is not the function of its trace"
"""The fault of a model that computes something else than its graph."""


def memory_groups(model: nn.Module) -> set[frozenset[str]]:
    """Return the groups of tensors of a model, by name, whose memory is connected; refuse tensors without memory."""
    tensors = {
        f"{prefix}.{name}".lstrip("."): tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for held in (module._parameters, module._buffers, vars(module))
        for name, tensor in held.items()
        if isinstance(tensor, torch.Tensor)
    }
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise refused(model, f"{name!r} is sparse", "dense tensors")
        if tensor.numel() and not tensor.data_ptr():
            raise refused(model, f"{name!r} has no address", "parameters and buffers in memory")
    return {frozenset(names) for _, names in _spans([(_extent(tensor), name) for name, tensor in tensors.items()])}


def _spans(items: Sequence[tuple[Extent, str]]) -> list[tuple[Extent, set[str]]]:
    """Return the connected pieces of the memory of named tensors, in order, with the names in each."""
    spans: list[tuple[Extent, set[str]]] = []
    for (device, start, stop), name in sorted(items):
        if spans and spans[-1][0][0] == device and start < spans[-1][0][2]:
            (_, first, last), names = spans.pop()
            spans.append(((device, first, max(last, stop)), names | {name}))
        else:
            spans.append(((device, start, stop), {name}))
    return spans


def _names_at(spans: Sequence[tuple[Extent, set[str]]], extent: Extent) -> set[str]:
    device, start, stop = extent
    first = bisect.bisect_right(spans, (device, start), key=lambda span: span[0][:2]) - 1
    last = bisect.bisect_left(spans, (device, stop), key=lambda span: span[0][:2])
    return {name for span, names in spans[max(first, 0) : last] if _overlap(span, extent) for name in names}


def shares_memory(tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Whether the memory of one of the tensors overlaps that of one of the others."""
    spans = _spans([(_extent(other), "") for other in others])
    return any(_names_at(spans, _extent(tensor)) for tensor in tensors)


def _extent(tensor: torch.Tensor) -> Extent:
    """Return the memory between the first and the last entry of a tensor."""
    size = tensor.element_size()
    start = int(tensor.data_ptr())  # an address: two storages may lie on the memory of one array
    last = sum((int(length) - 1) * int(stride) for length, stride in zip(tensor.shape, tensor.stride()))
    stop = start + (last + 1) * size if tensor.numel() else start
    return str(tensor.device), start, stop


def _overlap(a: Extent, b: Extent) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _has_distinct_entries(tensor: torch.Tensor) -> bool:
    """Whether no two entries of a tensor are the same memory."""
    axes = sorted((int(stride), int(length)) for length, stride in zip(tensor.shape, tensor.stride()) if length > 1)
    reach = 0
    for stride, length in axes:
        if stride <= reach:
            return False
        reach += stride * (length - 1)
    return True


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
    if any(not _fits_exactly(operand, common) for operand in operands):
        return False
    if name in ("copy", "slice_scatter", "select_scatter") and not _fits_exactly(values[refs[-1]], result.dtype):
        return False
    target = common if result.dtype == torch.bool and operands else result.dtype
    entries = [args[key] for key in ("self", "other", "value", "fill_value", "s") if key in args]
    numbers = [part for part in entries if isinstance(part, int | float) and math.isfinite(part)]
    if any(float(torch.tensor(part, dtype=target)) != part for part in numbers):
        return False
    if not result.is_floating_point() and result.numel() and result.dtype != torch.bool:
        return int(result.abs().max()) <= 2**53
    return True


def _fits_exactly(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a conversion keeps the values of a tensor."""
    return tensor.dtype == dtype or bool((tensor.to(dtype).double() == tensor.double()).all())
