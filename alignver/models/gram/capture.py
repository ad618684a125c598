"""Watch a forward pass for uses of parameters that have a structured derivative, and cut them out of the graph.

Each call of a known function (``linear``, a convolution, ...) that takes a parameter slot runs with a detached copy of
the parameter, and leaves a record: what went in, and the edge of the autograd graph where its output's gradient
arrives. A use that was not recognised leaves the slot in the graph, where autograd itself reports it: no list of
modules has to be trusted, and a subclass that overrides ``forward`` is read like any other code.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from alignver.models.functional import Functional
from alignver.models.gram.recurrent import RECURRENT
from alignver.models.gram.uses import Conv, Lookup, Product, Scale, Use
from alignver.models.windows import each

__all__ = ["Capture", "captured"]


class Capture(TorchFunctionMode):
    """Record the structured uses of ``theta`` in every torch function called inside the block.

    Attributes
    ----------
    uses : list of Use
        In the order of the calls.
    """

    def __init__(self, theta: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in theta.items()}
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, recorded where it is known and touches a slot."""
        kwargs = kwargs or {}
        if func in _COMPOSITE:
            with self:  # its parts are what we know
                return _opened(func)(*args, **kwargs)
        if func in RECURRENT and torch.is_grad_enabled():
            with self:
                unrolled = RECURRENT[func](*args, **kwargs)
            if unrolled is not None:
                return unrolled
        read = _READERS.get(func)
        if read is not None and torch.is_grad_enabled():
            out = read(self, func, args, kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)

    def name(self, tensor: Any) -> str | None:
        """Return the slot that a tensor is, if it is one."""
        return self.names.get(id(tensor))

    def record(self, out: torch.Tensor, use: Use) -> torch.Tensor:
        """Keep a use, with the place in the graph where the gradient of its output arrives."""
        if not out.requires_grad:  # nothing before it depends on theta: make a place (no leaf: in-place writes follow)
            out = out.requires_grad_().clone()
        use.edge, use.shape = get_gradient_edge(out), out.shape
        self.uses.append(use)
        return out


def captured(
    function: Functional, theta: Mapping[str, torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, list[Use]]:
    """Run a model at ``theta`` and return its outputs, (n, m_y), with the uses that were recorded."""
    with Capture(theta) as capture:
        out = function(theta, function.batch(x))
    return out.reshape(len(x), -1), capture.uses


def _free(tensor: Any, name: str | None) -> Any:
    return tensor if name is None else tensor.detach()


def _linear(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    x, weight, bias = _bound(("input", "weight", "bias"), (None,), args, kwargs)
    names = capture.name(weight), capture.name(bias)
    if names == (None, None) or weight.ndim != 2:
        return None
    out = func(x, _free(weight, names[0]), _free(bias, names[1]))
    return capture.record(out, Product(*names, out.ndim - 1, x.detach()))


def _matmul(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """Read ``x @ W``: a linear layer whose weight is stored transposed."""
    if len(args) != 2 or kwargs:
        return None
    x, weight = args
    name = capture.name(weight)
    if name is None or weight.ndim != 2 or capture.name(x) is not None or x.ndim < 2:
        return None
    out = func(x, weight.detach())
    return capture.record(out, Product(name, None, out.ndim - 1, x.detach(), transposed=True))


def _conv(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    keys = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = _bound(keys, (None, 1, 0, 1, 1), args, kwargs)
    names = capture.name(weight), capture.name(bias)
    axes = weight.ndim - 2
    if names == (None, None) or x.ndim != axes + 2:
        return None
    out = func(x, _free(weight, names[0]), _free(bias, names[1]), stride, padding, dilation, groups)
    use = Conv(*names, 1, x.detach(), tuple(weight.shape[2:]), each(stride, axes), (), each(dilation, axes), groups)
    use.padding = _padding(padding, use)
    return capture.record(out, use)


def _padding(padding: Any, use: Conv) -> tuple[tuple[int, int], ...]:
    """Return what is added before and after each spatial axis; 'same' adds the odd one at the end."""
    if padding == "valid":
        return ((0, 0),) * len(use.kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(use.dilation, use.kernel)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in each(padding, len(use.kernel)))


def _embedding(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    keys = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    index, weight, padding, max_norm, norm_type, scaled, sparse = _bound(
        keys, (None, None, 2.0, False, False), args, kwargs
    )
    name = capture.name(weight)
    if name is None or max_norm is not None or scaled or sparse:
        return None
    out = func(index, weight.detach(), padding, max_norm, norm_type, scaled, sparse)
    if padding is not None and padding < 0:
        padding += len(weight)
    return capture.record(out, Lookup(name, None, index.ndim, index, padding))


def _norm(keys: tuple[str, ...], defaults: tuple[Any, ...]) -> Callable[..., torch.Tensor | None]:
    """Make the reader of a normalisation ``z(x) * weight + bias``, of which z is the same function without them."""

    def read(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        given = dict(zip(keys, _bound(keys, defaults, args, kwargs)))
        names = capture.name(given["weight"]), capture.name(given.get("bias"))
        if names == (None, None) or given.get("training"):
            return None
        plain = {key: None if key in ("weight", "bias") else value for key, value in given.items()}
        x = plain["input"] = given["input"].detach()
        out = func(**{k: _free(v, capture.name(v)) if k in ("weight", "bias") else v for k, v in given.items()})
        if "normalized_shape" in given:
            inner = tuple(given["normalized_shape"])
            lead, pattern = x.ndim - len(inner), inner
        else:
            lead, pattern = 1, (x.shape[1], *(1,) * (x.ndim - 2))
        return capture.record(out, Scale(*names, lead, lambda: func(**plain), pattern))

    return read


def _elementwise(multiplies: bool) -> Callable[..., torch.Tensor | None]:
    """Make the reader of ``x + p`` or ``x * p`` with a slot p that is constant over the leading axes of x."""

    def read(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        if len(args) != 2 or kwargs or not all(isinstance(a, torch.Tensor) for a in args):
            return None
        x, p = args if capture.name(args[1]) is not None else args[::-1]
        name = capture.name(p)
        if name is None or capture.name(x) is not None or x.dtype != p.dtype:
            return None
        ndim = max(x.ndim, p.ndim)
        pattern = (1,) * (ndim - p.ndim) + tuple(p.shape)
        lead = next((k for k, size in enumerate(pattern) if size != 1), ndim)
        if lead == 0:
            return None
        out = func(x, p.detach())
        value = (lambda: x.detach().expand(out.shape)) if multiplies else None
        weight, bias = (name, None) if multiplies else (None, name)
        return capture.record(out, Scale(weight, bias, lead, value, pattern[lead:]))

    return read


def _bound(keys: tuple[str, ...], defaults: tuple[Any, ...], args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Bind arguments to names; the last names have the defaults."""
    values = dict(zip(keys[len(keys) - len(defaults) :], defaults))
    values.update(zip(keys, args))
    values.update({key: value for key, value in kwargs.items() if key in keys})
    return tuple(values[key] for key in keys)


def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """Return a composite function of torch without its own test for overrides, which would come back to us forever."""
    scope = {**func.__globals__, "has_torch_function": lambda *_: False, "has_torch_function_unary": lambda *_: False}
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_COMPOSITE = {F.multi_head_attention_forward}

_READERS: dict[Any, Callable[..., torch.Tensor | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.mm: _matmul,
    torch.conv1d: _conv,
    torch.conv2d: _conv,
    torch.conv3d: _conv,
    F.embedding: _embedding,
    F.layer_norm: _norm(("input", "normalized_shape", "weight", "bias", "eps"), (None, None, 1e-5)),
    F.group_norm: _norm(("input", "num_groups", "weight", "bias", "eps"), (None, None, 1e-5)),
    F.batch_norm: _norm(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        (None, None, False, 0.1, 1e-5),
    ),
    F.instance_norm: _norm(
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        (None, None, None, None, True, 0.1, 1e-5),
    ),
    torch.add: _elementwise(False),
    torch.Tensor.add: _elementwise(False),
    torch.mul: _elementwise(True),
    torch.Tensor.mul: _elementwise(True),
}
if hasattr(F, "rms_norm"):
    _READERS[F.rms_norm] = _norm(("input", "normalized_shape", "weight", "eps"), (None, None))
