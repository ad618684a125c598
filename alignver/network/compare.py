"""The comparison of a trace with its model: the same outputs, and what the trace does not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from alignver.kernel.network.graph import FLOATS, Graph, Node, Ref
from alignver.network.copies import copied
from alignver.network.leaves import ANOTHER, apply, refused, shares_memory

ROWS = 4
"""Samples of the trace: the graph is one for a batch of this many."""
_APART = 32  # samples that the model is given in batches of this many

Attribute = tuple[nn.Module, str]
_DIVISORS = {"div": "other", "divide": "other", "true_divide": "other", "addcdiv": "tensor2"}
_READS = (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__float__, torch.Tensor.__int__,
          torch.Tensor.__bool__, torch.Tensor.__index__, torch.Tensor.__array__)  # fmt: skip


def numbers(value: Any) -> Iterator[Any]:
    """Yield the numbers among arguments."""
    if isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


class _Undefined(Exception):
    """An operation gives NaN or an infinity for finite operands."""


def evaluate(graph: Graph, tensors: Mapping[int, torch.Tensor], x: torch.Tensor, *, defined: bool) -> torch.Tensor:
    """Run a graph on inputs of its shape; with ``defined``, what does not depend on theta has to be defined."""
    values: list[Any] = []
    moving, moved = graph.moving(), set[int]()  # the domains of what depends on theta are the kernel's concern
    for index, node in enumerate(graph.nodes):
        if node.args.get("leaf") in moving or any(k in moved for k in node.refs()):
            moved.add(index)
        if node.op == "input":
            values.append(x)
        elif node.op in ("parameter", "constant"):
            values.append(tensors[index].cpu())
        elif node.op == "getitem":
            values.append(values[node.args["self"].node][node.args["index"]])
        else:
            values.append(_apply(node, values))
            if defined:
                _require_defined(node, index, values, moved)
    output: torch.Tensor = values[graph.outputs[0]]
    return output


def _require_defined(node: Node, index: int, values: Sequence[Any], moved: set[int]) -> None:
    divisor = node.args.get(_DIVISORS.get(node.base, ""))
    if isinstance(divisor, Ref) and divisor.node not in moved and not values[divisor.node].all():
        raise _Undefined(f"{node.base} of {node.module!r} divides by 0 at these inputs")
    if index not in moved and _loses_finiteness(node, values):
        raise _Undefined(f"{node.base or node.op} of {node.module!r} is not finite at these inputs")


def _loses_finiteness(node: Node, values: Sequence[Any]) -> bool:
    """Whether the last of the values is not finite, although all that the node refers to is."""
    operands = [values[k] for k in node.refs()]
    return (
        not _all_finite(values[-1:]) and _all_finite(operands) and all(np.isfinite(part) for part in numbers(node.args))
    )


def _all_finite(values: Sequence[Any]) -> bool:
    tensors = [t for value in values for t in (value if isinstance(value, tuple | list) else [value])]
    return all(bool(torch.isfinite(t).all()) for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point())


def _apply(node: Node, values: Sequence[Any]) -> Any:
    """Apply the operator of a node with torch."""

    def filled(value: Any, kind: str) -> Any:
        if isinstance(value, Ref):
            return values[value.node]
        if isinstance(value, tuple):
            return [filled(item, "") for item in value]
        return getattr(torch, value) if kind == "dtype" and isinstance(value, str) else value

    arguments = {key: filled(value, key) for key, value in node.args.items()}
    if node.op.startswith("aten."):
        return apply(node.op, arguments)
    space, name, overload = node.op.split(".")
    return getattr(getattr(getattr(torch.ops, space), name), overload)(**arguments)


def require_same(
    graph: Graph,
    tensors: Mapping[int, torch.Tensor],
    model: nn.Module,
    x: torch.Tensor,
    outputs: Any,
    counts: Mapping[Attribute, float],
    room: float = 0.0,
) -> bool:
    """Compare the graph with the model at its theta and at a random one, to which the copy's parameters are moved.

    ``outputs`` are those at its theta, of a run with gradients; the other run is one without. Attributes of modules
    that are numbers, and no longer those before the first run (``counts``), are moved far away for the other. The
    outputs may differ by ``room`` at the model's theta. Returns whether they are finite there.
    """
    generator = torch.Generator().manual_seed(0)
    finite_outputs = True
    for step in range(2):
        if step:
            with torch.no_grad():
                for parameter in model.parameters():
                    size = float(parameter.float().square().mean().sqrt()) if parameter.numel() else 0.0
                    noise = torch.randn(parameter.shape, generator=generator) * (size or 0.1)
                    parameter.add_(noise.to(parameter.dtype).to(parameter.device))
            for (module, name), value in numbers_in(model).items():
                if counts.get((module, name), value) != value:
                    vars(module)[name] = value + 1_000_003
        with torch.no_grad():
            expected, actual = model(x.clone()) if step else outputs, None
            if isinstance(expected, torch.Tensor):
                try:
                    actual = evaluate(graph, tensors, x.cpu(), defined=not step)
                except _Undefined as error:
                    raise refused(model, str(error), "a model whose operations are defined at X") from error
        if actual is None or expected.shape != actual.shape:
            raise refused(model, "they return different kinds of values", fault=ANOTHER)
        a, b = actual.double(), expected.detach().cpu().double()
        finite_outputs = finite_outputs and (step > 0 or bool(torch.isfinite(b).all()))
        finite = torch.isfinite(a) & torch.isfinite(b)
        limit = _slack(expected) * float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        limit = limit if step else max(limit, room)
        if bool(((a - b)[finite].abs() > limit).any()) or bool((torch.isfinite(a) != torch.isfinite(b)).any()):
            raise refused(model, "their outputs differ", fault=ANOTHER)
    return finite_outputs


def _slack(outputs: torch.Tensor) -> float:
    """Return the relative difference of two evaluations that rounding explains."""
    return min(2.0**13 * float(torch.finfo(outputs.dtype).eps), 0.05) if outputs.is_floating_point() else 0.0


def require_same_in_batches(model: nn.Module, x: torch.Tensor, room: float = 0.0) -> None:
    """Compare the outputs of one batch with those of small batches, of its first samples; they may differ by ``room``.

    The function of a sample is to be one.
    """
    if len(x) <= ROWS:
        return
    with torch.no_grad():
        whole, parts = model(x.clone()), [model(part.clone()) for part in torch.split(x[:_APART], ROWS)]
    if not all(isinstance(part, torch.Tensor) and part.ndim for part in (whole, *parts)):
        return  # which is refused below
    if len(whole) == len(x):
        whole = whole[:_APART]
    apart = torch.cat(parts)
    same = whole.shape == apart.shape
    finite = torch.isfinite(whole)
    limit = _slack(whole) * float(whole[finite].double().abs().max()) if same and bool(finite.any()) else 0.0
    limit = max(limit, room)
    if not same or not torch.allclose(whole.double(), apart.double(), rtol=0.0, atol=limit, equal_nan=True):
        raise refused(
            model, f"its outputs differ between a batch of {len(x)} samples and batches of {ROWS}", fault=ANOTHER
        )


@torch.no_grad()
def require_same_in_order(model: nn.Module, x: torch.Tensor, room: float = 0.0) -> None:
    """Compare the outputs of a batch with those in reverse order, at the parameters of the model and at others.

    A parameter may be 0 where it is added to the samples by their place in the batch: at others it is not. The
    parameters stay changed.
    """
    source = torch.Generator().manual_seed(0)
    for step in range(2 if len(x) > 1 else 0):
        for parameter in model.parameters() if step else ():
            noise = torch.randn(parameter.shape, generator=source).to(parameter)
            parameter.add_(noise * (0.1 + 0.1 * parameter.abs()))
        whole, turned = model(x.clone()), model(x.flip(0))
        if not isinstance(whole, torch.Tensor) or not whole.ndim:
            return  # which is refused below
        finite = torch.isfinite(whole)
        limit = _slack(whole) * float(whole[finite].double().abs().max()) if bool(finite.any()) else 0.0
        back = turned.flip(0).double()
        if not torch.allclose(whole.double(), back, rtol=0.0, atol=max(limit, room), equal_nan=True):
            raise refused(model, "its output for a sample depends on the sample's place in the batch", fault=ANOTHER)


def in_float64(
    graph: Graph, tensors: Mapping[int, torch.Tensor], model: nn.Module
) -> tuple[Graph, dict[int, torch.Tensor], nn.Module]:
    """Return copies of a graph, its leaves and its model in float64: the leaves are tensors of the new model.

    Both are the same function of real arithmetic as before, a cast being the identity.
    """
    wide = copied(model).double()
    named = {**dict(wide.named_buffers()), **dict(wide.named_parameters())}
    nodes = tuple(
        dataclasses.replace(node, args={**node.args, "dtype": "float64"}) if node.args.get("dtype") in FLOATS else node
        for node in graph.nodes
    )
    leaves = {
        index: named[graph.nodes[index].args["name"]]
        if graph.nodes[index].op == "parameter"
        else tensor.double()
        if tensor.is_floating_point()
        else tensor
        for index, tensor in tensors.items()
    }
    return dataclasses.replace(graph, nodes=nodes), leaves, wide


def rounding_room(wide: nn.Module, x: torch.Tensor) -> float:
    """Return how far two evaluations in float64 may be apart by rounding: 2^-18 of what float32 changes.

    Large parameters whose contributions cancel amplify rounding errors, those of float32 2^29 times as large as those
    of float64. It is 2^-10 of the largest output at most.
    """
    with torch.no_grad():
        outputs = wide(x.double())
        change = (outputs - copied(wide).float()(x.float()).double()).abs().max()
    return float(torch.minimum(2.0**-18 * change, 2.0**-10 * outputs.abs().max()))


class _Calls(TorchFunctionMode):
    """Notes hooks that the forward pass registers on gradients, and tensors whose values it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks = 0
        self.read: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.hooks += func is torch.Tensor.register_hook
        if func in _READS:
            self.read.append(args[0])
        return func(*args, **(kwargs or {}))


def numbers_in(model: nn.Module) -> dict[Attribute, float]:
    """Return the attributes of all modules that are numbers."""
    return {
        (module, name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def hidden_derivatives(model: nn.Module, twin: nn.Module, x: torch.Tensor) -> tuple[list[str], Any]:
    """Return custom backward passes and hooks on gradients, from one run of the copy, and its outputs."""
    hidden = []
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            hidden.append(f"a hook on the gradients of {name or type(module).__name__!r}")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            hidden.append(f"a hook on the gradient of {name!r}")
    with torch.enable_grad(), _Calls() as calls:
        output = twin(x.clone())
    if shares_memory(calls.read, (*model.parameters(), *twin.parameters())):
        raise refused(model, "its forward pass converts a parameter to a Python number")
    if calls.hooks:
        hidden.append("a hook on a gradient, registered in forward")
    stack = [output.grad_fn] if isinstance(output, torch.Tensor) and output.grad_fn is not None else []
    seen = set(stack)
    while stack:
        step: Any = stack.pop()
        if isinstance(step, torch.autograd.function.BackwardCFunction):
            hidden.append(f"the custom backward of {type(step).__name__.removesuffix('Backward')}")
        following = [part for part, _ in step.next_functions if part is not None and part not in seen]
        seen.update(following)
        stack += following
    return hidden, output.detach() if isinstance(output, torch.Tensor) else output
