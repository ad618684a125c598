"""Records of the uses of parameters in a forward pass whose derivatives have a known structure.

Each call of a known function (``linear``, a convolution, ...) with a parameter slot among its arguments is recorded
(:class:`Capture`): its input, and the edge of the autograd graph that receives the gradient of its output. It runs with
the parameter detached, so that autograd finds a use that is not recognised; or with the parameter, so that one more
backward pass through the same graph gives the gradient that the recorded uses must add up to. The result does not rely
on a list of modules, and subclasses that override ``forward`` are treated like any other code.

With a the input of the use at one position of one sample and b the gradient of one output of the network by the
result there, the derivative by the parameter is a sum over the sample's positions t of

- ``Product``, ``Conv``: b_t a_t^T (for a convolution, a_t is a patch of the input); by the bias: b_t;
- ``ConvTranspose``: a_t b_t^T with a patch b_t of the gradient; by the bias: the gradient;
- ``Lookup``: e_{index(t)} b_t^T;
- ``Scale``: b_t * z_t summed over the axes on which the parameter is constant; by the shift: b_t.

A GRU, LSTM or Elman layer is one opaque call for autograd, and vmap does not support it. It is replaced by the linear
layers that it consists of: its input weights are one linear layer over all time steps, and so are the recurrent
weights of an LSTM or Elman layer, whose results are added to those of the input weights: one gradient serves both. The
recurrent weights of a GRU are a linear layer that is used once per step. All are uses with a formula.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from alignver.network.convolution import KEYS, convolution, each, paddings, windows
from alignver.network.functional import Functional


def patches(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    positions_first: bool,
) -> torch.Tensor:
    """Unfold the padded input of a convolution: (rows, positions, groups, channels * kernel).

    Without ``positions_first``, the positions are on the last axis.
    """
    spatial = len(kernel)
    view = windows(x, kernel, stride, dilation)
    rows, channels, *sizes = view.shape
    view = view.reshape(rows, groups, channels // groups, *sizes)
    entries, count = channels // groups * math.prod(kernel), math.prod(sizes[:spatial])
    positions, inner = range(3, 3 + spatial), [2, *range(3 + spatial, 3 + 2 * spatial)]
    if positions_first:
        return view.permute(0, *positions, 1, *inner).reshape(rows, count, groups, entries)
    return view.permute(0, 1, *inner, *positions).reshape(rows, groups, entries, count)


@dataclasses.dataclass(eq=False)
class Use:
    """A call of a function with one or two slots among its arguments.

    Attributes
    ----------
    weight, bias : str or None
        The slots.
    lead : int
        Number of leading axes of the result that are rows: samples, positions, or both merged.
    edge, shape
        Edge of the graph that receives the gradient of the result, and the shape of the result.
    """

    weight: str | None
    bias: str | None
    lead: int
    edge: GradientEdge = dataclasses.field(init=False)
    shape: torch.Size = dataclasses.field(init=False)

    @property
    def rows(self) -> tuple[int, ...]:
        """Sizes of the leading axes."""
        return tuple(self.shape[: self.lead])

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of the call."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)


@dataclasses.dataclass(eq=False)
class Product(Use):
    """``x W^T + b``, or ``x W`` if transposed."""

    input: torch.Tensor
    transposed: bool = False


@dataclasses.dataclass(eq=False)
class Convolution(Use):
    """A convolution in one, two or three dimensions, or the transpose of one."""

    input: torch.Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@dataclasses.dataclass(eq=False)
class Conv(Convolution):
    """A convolution: a_t is a patch of the input."""

    def patches(self) -> torch.Tensor:
        """Unfold the input: (rows, groups, channels * kernel, positions)."""
        x = self.input
        if any(p != (0, 0) for p in self.padding):
            x = F.pad(x, [p for pair in reversed(self.padding) for p in pair])
        return patches(x, self.kernel, self.stride, self.dilation, self.groups, positions_first=False)


@dataclasses.dataclass(eq=False)
class ConvTranspose(Convolution):
    """A transposed convolution: a_t is the input at one position, b_t a patch of the gradient."""

    def patches(self, gradient: torch.Tensor) -> torch.Tensor:
        """Unfold a gradient by the result: (rows, groups, channels * kernel, positions of the input)."""
        padded = F.pad(gradient, [p for pair in reversed(self.padding) for p in pair])
        for axis, (size, k, s, d) in enumerate(zip(self.input.shape[2:], self.kernel, self.stride, self.dilation), 2):
            padded = padded.narrow(axis, 0, (size - 1) * s + d * (k - 1) + 1)  # without the output padding
        return patches(padded, self.kernel, self.stride, self.dilation, self.groups, positions_first=False)


@dataclasses.dataclass(eq=False)
class Lookup(Use):
    """Rows of a table; the row ``padding`` has no derivative."""

    index: torch.Tensor
    padding: int | None


@dataclasses.dataclass(eq=False)
class Scale(Use):
    """``z * w + c``, with w and c of shape ``pattern`` broadcast over the result's trailing axes."""

    value: Callable[[], torch.Tensor] | None
    pattern: tuple[int, ...]


Step = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


def _gru(a: torch.Tensor, b: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (h,) = state
    (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    new = torch.tanh(an + r * bn)
    return (new + z * (h - new),)


def _lstm(a: torch.Tensor, b: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    i, f, g, o = (a + b).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _elman(gate: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    return lambda a, b, state: (gate(a + b),)


def _unrolled(step: Step, states_per_layer: int, *, added: bool = True) -> Callable[..., Any]:
    """Return the unrolled form of a fused function; it returns None for calls that it does not support.

    With ``added`` a step depends only on the sum of its first two arguments. Not supported are packed sequences (their
    third argument is not a list of weights), dropout in train mode, and an LSTM with projections (a layer has more
    weights than for its gates and biases).
    """

    def run(capture: Capture, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or not isinstance(args[2], list | tuple):
            return None
        x, start, weights, biased, layers, dropout, train, both, batch_first = args
        states = tuple(start) if states_per_layer > 1 else (start,)
        directions = 2 if both else 1
        count = 4 if biased else 2
        if (train and dropout > 0) or x.ndim != 3 or len(weights) != count * layers * directions:
            return None
        sequence = x.transpose(0, 1) if batch_first else x
        last: list[tuple[torch.Tensor, ...]] = []
        for layer in range(layers):
            hidden = []
            for direction in range(directions):
                k = layer * directions + direction
                w_in, w_hidden, *b = weights[count * k : count * (k + 1)]
                b_in, b_hidden = b or (None, None)
                state = tuple(s[k] for s in states)
                names = capture.name(w_hidden), capture.name(b_hidden)
                gates, use = F.linear(sequence, w_in, b_in), None
                if added and names != (None, None):
                    use = Product(*names, 2, state[0])
                    gates = capture.record(gates, use)
                    w_hidden, b_hidden = (w if w is None else w.detach() for w in (w_hidden, b_hidden))
                steps = gates.unbind(0)  # the gradient of gates[t] would have the size of all
                before, outs = [], []
                for t in reversed(range(len(steps))) if direction else range(len(steps)):
                    before.append(state[0].detach())
                    state = step(steps[t], F.linear(state[0], w_hidden, b_hidden), state)
                    outs.append(state[0])
                if use is not None:
                    use.input = torch.stack(before[::-1] if direction else before)
                hidden.append(torch.stack(outs[::-1] if direction else outs))
                last.append(state)
            sequence = torch.cat(hidden, -1)
        out = sequence.transpose(0, 1) if batch_first else sequence
        return (out, *(torch.stack([state[k] for state in last]) for k in range(states_per_layer)))

    return run


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.gru: _unrolled(_gru, 1, added=False),
    torch.lstm: _unrolled(_lstm, 2),
    torch.rnn_tanh: _unrolled(_elman(torch.tanh), 1),
    torch.rnn_relu: _unrolled(_elman(torch.relu), 1),
}


class Capture(TorchFunctionMode):
    """Record the structured uses of ``theta`` in every torch function called inside the block.

    Attributes
    ----------
    uses : list of Use
        In the order of the calls.
    unrolled : bool
        Whether a fused layer was replaced by the layers that it consists of: the graph is not that of the model.
    """

    def __init__(self, theta: Mapping[str, torch.Tensor], *, attached: bool = False) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in theta.items()}
        self.uses: list[Use] = []
        self.attached = attached
        self.unrolled = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and record it if it is known and uses a slot."""
        kwargs = kwargs or {}
        if func in _COMPOSITE:
            with self:  # the functions that it calls are known
                return _opened(func)(*args, **kwargs)
        if func in RECURRENT and torch.is_grad_enabled():
            with self:
                unrolled = RECURRENT[func](self, *args, **kwargs)
            if unrolled is not None:
                self.unrolled = True
                return unrolled
        read = _READERS.get(func)
        if read is not None and torch.is_grad_enabled():
            out = read(self, func, args, kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)

    def name(self, tensor: Any) -> str | None:
        """Return the name of the slot that a tensor holds, or None."""
        return self.names.get(id(tensor))

    def value(self, tensor: Any) -> Any:
        """Return the argument of a recorded call: a slot is detached, unless slots stay in the graph."""
        return tensor if self.attached or self.name(tensor) is None else tensor.detach()

    def record(self, out: torch.Tensor, use: Use) -> torch.Tensor:
        """Append a use, with the edge of the graph that receives the gradient of its output."""
        if not out.requires_grad:  # its input does not depend on theta: add an edge; no leaf, for in-place writes
            out = out.requires_grad_().clone()
        use.edge, use.shape = get_gradient_edge(out), out.shape
        self.uses.append(use)
        return out


def captured(
    function: Functional, theta: Mapping[str, torch.Tensor], x: torch.Tensor, *, attached: bool = False
) -> tuple[torch.Tensor, Capture]:
    """Run a model at ``theta`` and return its outputs, (n, m_y), and the record."""
    with Capture(theta, attached=attached) as capture:
        out = function(theta, function.batch(x))
    return out.reshape(len(x), -1), capture


def _linear(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    x, weight, bias = _bound(("input", "weight", "bias"), (None,), args, kwargs)
    names = capture.name(weight), capture.name(bias)
    if names == (None, None) or weight.ndim != 2:
        return None
    out = func(x, capture.value(weight), capture.value(bias))
    return capture.record(out, Product(*names, out.ndim - 1, x.detach()))


def _matmul(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """Record ``x @ W``: a linear layer whose weight is stored transposed."""
    if len(args) != 2 or kwargs:
        return None
    x, weight = args
    name = capture.name(weight)
    if name is None or weight.ndim != 2 or capture.name(x) is not None or x.ndim < 2:
        return None
    out = func(x, capture.value(weight))
    return capture.record(out, Product(name, None, out.ndim - 1, x.detach(), transposed=True))


def _conv(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    x, weight, bias, stride, padding, dilation, groups = _bound(KEYS, (None, 1, 0, 1, 1), args, kwargs)
    names = capture.name(weight), capture.name(bias)
    axes = weight.ndim - 2
    if names == (None, None) or x.ndim != axes + 2:
        return None
    values = capture.value(weight), capture.value(bias)
    out = convolution(func, x, *values, stride, padding, dilation, groups)
    kernel, gaps = tuple(weight.shape[2:]), each(dilation, axes)
    zeros = paddings(padding, kernel, gaps)
    return capture.record(out, Conv(*names, 1, x.detach(), kernel, each(stride, axes), zeros, gaps, groups))


def _conv_transpose(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    keys = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    x, weight, bias, stride, padding, beyond, groups, dilation = _bound(keys, (None, 1, 0, 0, 1, 1), args, kwargs)
    names = capture.name(weight), capture.name(bias)
    axes = weight.ndim - 2
    if names == (None, None) or x.ndim != axes + 2:
        return None
    values = capture.value(weight), capture.value(bias)
    out = func(x, *values, stride, padding, beyond, groups, dilation)
    kernel, steps, gaps = tuple(weight.shape[2:]), each(stride, axes), each(dilation, axes)
    zeros = paddings(padding, kernel, gaps)
    return capture.record(out, ConvTranspose(*names, 1, x.detach(), kernel, steps, zeros, gaps, groups))


def _embedding(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    keys = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    index, weight, padding, max_norm, norm_type, scaled, sparse = _bound(
        keys, (None, None, 2.0, False, False), args, kwargs
    )
    name = capture.name(weight)
    if name is None or max_norm is not None or scaled or sparse:
        return None
    out = func(index, capture.value(weight), padding, max_norm, norm_type, scaled, sparse)
    if padding is not None and padding < 0:
        padding += len(weight)
    return capture.record(out, Lookup(name, None, index.ndim, index, padding))


def _norm(keys: tuple[str, ...], defaults: tuple[Any, ...]) -> Callable[..., torch.Tensor | None]:
    """Return the reader of a normalisation ``z(x) * weight + bias``; z is the same function without weight and bias."""

    def read(capture: Capture, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        given = dict(zip(keys, _bound(keys, defaults, args, kwargs)))
        names = capture.name(given["weight"]), capture.name(given.get("bias"))
        if names == (None, None) or given.get("training"):
            return None
        plain = {key: None if key in ("weight", "bias") else value for key, value in given.items()}
        x = plain["input"] = given["input"].detach()
        out = func(**{k: capture.value(v) if k in ("weight", "bias") else v for k, v in given.items()})
        if "normalized_shape" in given:
            inner = tuple(given["normalized_shape"])
            lead, pattern = x.ndim - len(inner), inner
        else:
            lead, pattern = 1, (x.shape[1], *(1,) * (x.ndim - 2))
        return capture.record(out, Scale(*names, lead, lambda: func(**plain), pattern))

    return read


def _elementwise(multiplies: bool) -> Callable[..., torch.Tensor | None]:
    """Return the reader of ``x + p`` or ``x * p`` with a slot p that is constant over the leading axes of x."""

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
        out = func(x, capture.value(p))
        value = (lambda: x.detach().expand(out.shape)) if multiplies else None
        weight, bias = (name, None) if multiplies else (None, name)
        return capture.record(out, Scale(weight, bias, lead, value, pattern[lead:]))

    return read


def _bound(keys: tuple[str, ...], defaults: tuple[Any, ...], args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Bind arguments to names; the defaults are those of the last names."""
    values = dict(zip(keys[len(keys) - len(defaults) :], defaults))
    values.update(zip(keys, args))
    values.update({key: value for key, value in kwargs.items() if key in keys})
    return tuple(values[key] for key in keys)


def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """Return a composite function of torch without its test for overrides, which would recurse infinitely."""
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
    torch.conv_transpose1d: _conv_transpose,
    torch.conv_transpose2d: _conv_transpose,
    torch.conv_transpose3d: _conv_transpose,
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
