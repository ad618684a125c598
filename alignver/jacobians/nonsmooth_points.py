"""Nonsmooth points: pre-activations so close to a kink that rounding decides which one-sided derivative is computed.

At a kink autograd returns one of the one-sided derivatives, and a Jacobian computed at a kink, or next to it, may be
that of neither side's exact network. The distance that counts as next to a kink is an estimate of the rounding error of
the pre-activation z: an inner product of m terms has an error of about ``sqrt(m) u sum |w_k a_k|`` (Higham and Mary
2019, random rounding), and with terms of random signs the sum is about ``sqrt(m)`` times abs(z). So z is counted if it
is within

    t = m eps s

of a kink, where s is the largest abs(z), m the number of entries for one sample (a proxy for the length of the sums
before it), and eps that of the dtype of computation. It is an estimate, not a bound.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from alignver import require
from alignver.jacobians.jacobian import checked_chunk, probed_copy
from alignver.network.convolution import each, windows
from alignver.network.inputs import DispatchMode
from alignver.network.validate_model import validate_model

_SAMPLES = 256  # samples of one pass


@dataclasses.dataclass(frozen=True)
class Kink:
    """The kinks of one operation of one module.

    Attributes
    ----------
    module : str
        Qualified name and class: ``"features.1 (ReLU)"``.
    operation : str
        Torch's name of the operation: ``"relu"``.
    count, exact, total : int
        Number of pre-activations within the tolerance of a kink, exactly on one, and in total.
    nearest : float
        Smallest distance to a kink, as a multiple of the largest magnitude.
    tolerance : float
        The tolerance in the same unit: m eps.
    """

    module: str
    operation: str
    count: int
    exact: int
    total: int
    nearest: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Kinks:
    """All operations with kinks in a forward pass of a model, in the order of their first call.

    Attributes
    ----------
    operations : tuple of Kink
    """

    operations: tuple[Kink, ...]

    @property
    def count(self) -> int:
        """Number of pre-activations within the tolerance of a kink."""
        return sum(kink.count for kink in self.operations)

    @property
    def total(self) -> int:
        """Number of pre-activations."""
        return sum(kink.total for kink in self.operations)

    def sentence(self) -> str:
        """Return one sentence about the kinks and the derivatives of these outputs."""
        if not self.count:
            return f"kinks: none of {self.total} pre-activations is within rounding of one"
        rest = f"; {len(self.sentences) - 1} more" if len(self.sentences) > 1 else ""
        return f"kinks: rounding decides which one-sided derivative is taken: {self.sentences[0]}{rest}"

    def summary(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        modules = {kink.module: kink.count for kink in self.operations if kink.count}
        return {"count": self.count, "total": self.total, "modules": modules}

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence for each module at a kink, in the order of decreasing counts."""
        at_kinks = sorted((kink for kink in self.operations if kink.count), key=lambda kink: -kink.count)
        return tuple(
            f"{kink.module}: {kink.count} of {kink.total} values within {kink.tolerance:.0e} of a kink of "
            f"{kink.operation}" + (f", {kink.exact} exactly on it" if kink.exact else "")
            for kink in at_kinks
        )


def count_kinks(
    model: nn.Module,
    X: Any,
    *,
    eps: float | None = None,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
) -> Kinks:
    """Count the pre-activations within rounding error of a kink, by module.

    The operations are ReLU and its variants (leaky, parametric, ReLU6, hardtanh, hardswish, hardsigmoid, shrinkages,
    threshold; ELU and SELU if their slopes differ at 0), abs, sign, clamp, maximum and minimum of two tensors, and ties
    in max pooling, whether they run as modules or as functions.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...).
    eps : float, optional
        The tolerance, relative to the largest magnitude, instead of m eps (see the module's notes).
    dtype, chunk_size
        As in :func:`alignver.jacobians.jacobian.jacobian`.

    Returns
    -------
    Kinks

    Raises
    ------
    InvalidInput
        The model or the inputs cannot be checked; eps is not a non-negative number.

    Notes
    -----
    Rigor: floating-point, an estimate. Windows of inactive ReLUs tie at exactly 0 in a max pooling after them, which is
    harmless: the derivative is 0 on every side.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> kinks = count_kinks(model, [[0.0], [1.0]])
    >>> kinks.count
    2
    >>> print(*kinks.sentences)
    1 (ReLU): 2 of 4 values within 4e-16 of a kink of relu, 2 exactly on it
    """
    model = validate_model(model, include_frozen=True)
    size = checked_chunk(chunk_size) or _SAMPLES
    if eps is not None:
        eps = require.real("eps", eps, least=0, need="a non-negative number, or None")
    with probed_copy(model, X, dtype, include_frozen=True) as (function, x, probed):
        observer = _Observer(torch.finfo(probed.computed_in).eps, eps)
        theta = function.leaves()
        with _running_modules(function.model, observer.path):
            for part in torch.split(x, size):
                observer.samples = len(part)
                with observer:  # with gradients on: without them torch pools by an operation that the mode does not see
                    function(theta, function.batch(part))
    return Kinks(tuple(observer.kinks.values()))


def find_nonsmooth_points(model: nn.Module, X: torch.Tensor, dtype: str | None) -> Kinks | None:
    """Count the kinks of a model; None if a pass over two samples runs no operation with kinks.

    Two samples, because a model may squeeze the batch axis of a single one.

    Examples
    --------
    >>> find_nonsmooth_points(torch.nn.Linear(1, 1), torch.ones(3, 1), "float64") is None
    True
    """
    if not count_kinks(model, X[:2], dtype=dtype).operations:
        return None
    return count_kinks(model, X, dtype=dtype)


class _Observer(DispatchMode):
    """Inspect the operands of every operation with kinks before it runs."""

    def __init__(self, unit: float, eps: float | None) -> None:
        super().__init__()
        self.unit, self.eps = unit, eps
        self.samples = 1
        self.path: list[str] = []
        self.kinks: dict[tuple[str, str], Kink] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and run the operation."""
        kwargs = kwargs or {}
        name = str(func._schema.name).partition("::")[2].removesuffix("_")
        kinks_of = _POINTWISE.get(name)
        if kinks_of is not None:
            points = kinks_of(*args[1:], **kwargs)
            z = args[0] - args[1] if name in ("maximum", "minimum") else args[0]
            if points and isinstance(z, torch.Tensor) and z.is_floating_point():
                gap = torch.stack([(z - point).abs() for point in points]).amin(0)
                self._count(name, gap, args[0])
        result = func(*args, **kwargs)
        if name in _POOLS:
            out = result[0] if isinstance(result, tuple | list) else result
            self._count(name.removesuffix("_with_indices"), _POOLS[name](args, kwargs, out), args[0])
        return result

    def _count(self, operation: str, gap: torch.Tensor, operand: torch.Tensor) -> None:
        if not gap.numel():
            return
        size = float(operand.detach().abs().max())
        close = self.eps if self.eps is not None else self.unit * max(1, operand.numel() // self.samples)
        module = self.path[-1] if self.path else ""
        count, exact = int((gap <= close * size).sum()), int((gap == 0.0).sum())
        nearest = float(gap.min()) / size if size else 0.0
        before = self.kinks.get((module, operation))
        if before is not None:
            count, exact = count + before.count, exact + before.exact
            nearest, close = min(nearest, before.nearest), max(close, before.tolerance)
        total = gap.numel() + (before.total if before is not None else 0)
        self.kinks[module, operation] = Kink(module, operation, count, exact, total, nearest, close)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> tuple[float, ...]:
    return () if abs(alpha * input_scale - 1.0) < 1e-12 else (0.0,)  # left slope alpha scale input_scale, right scale


def _between(low: float | None = None, high: float | None = None) -> tuple[float, ...]:
    return tuple(float(end) for end in (low, high) if isinstance(end, int | float))


def _at_zero(*args: Any, **kwargs: Any) -> tuple[float, ...]:
    return (0.0,)


def _at_three(*args: Any) -> tuple[float, ...]:
    return (-3.0, 3.0)


_POINTWISE: dict[str, Callable[..., tuple[float, ...]]] = {
    "relu": _at_zero,
    "threshold": lambda threshold, value: (float(threshold),),
    "leaky_relu": lambda slope=0.01: () if slope == 1.0 else (0.0,),
    "rrelu_with_noise": _at_zero,
    "_prelu_kernel": _at_zero,
    "hardtanh": lambda low=-1.0, high=1.0: (float(low), float(high)),
    "clamp": lambda min=None, max=None: _between(min, max),
    "clamp_min": lambda min: _between(min),
    "clamp_max": lambda max: _between(max),
    "hardswish": _at_three,
    "hardsigmoid": _at_three,
    "hardshrink": lambda lambd=0.5: (-float(lambd), float(lambd)),
    "softshrink": lambda lambd=0.5: (-float(lambd), float(lambd)),
    "elu": _elu,
    "abs": _at_zero,
    "sign": _at_zero,
    "sgn": _at_zero,
    "maximum": _at_zero,
    "minimum": _at_zero,
}


def _pool_gap(args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
    """Return the largest minus the second largest entry of every window of a max pooling."""
    given = [args[0].detach(), *args[1:], *[None] * 5][:5]
    z, kernel, stride, padding, dilation = given
    axes = len(kernel)
    strides, paddings, dilations = each(stride or kernel, axes), each(padding or 0, axes), each(dilation or 1, axes)
    pads: list[int] = []
    for axis in reversed(range(axes)):
        length = z.shape[axis - axes] + paddings[axis]
        needed = (out.shape[axis - axes] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        pads += [paddings[axis], max(0, needed - length)]
    z = F.pad(z, pads, value=-torch.inf)
    first = z.ndim - axes
    z = windows(z, kernel, strides, dilations, first=first)
    return _top_gap(z.reshape(*z.shape[: first + axes], -1))


def _adaptive_gap(args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
    z, sizes = args[0].detach(), list(args[1])
    gaps = []
    for position in itertools.product(*(range(size) for size in sizes)):
        window = z
        for axis, (k, size) in enumerate(zip(position, sizes)):
            length = z.shape[axis - len(sizes)]
            low, high = k * length // size, -(-(k + 1) * length // size)
            window = window.narrow(axis - len(sizes), low, high - low)
        gaps.append(_top_gap(window.flatten(-len(sizes))))
    return torch.stack(gaps)


def _top_gap(windows: torch.Tensor) -> torch.Tensor:
    if windows.shape[-1] < 2:
        return windows.new_empty(0)
    top = windows.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


_POOLS: dict[str, Callable[[Any, Any, torch.Tensor], torch.Tensor]] = {
    "max_pool2d_with_indices": _pool_gap,
    "max_pool3d_with_indices": _pool_gap,
    "adaptive_max_pool2d": _adaptive_gap,
    "adaptive_max_pool3d": _adaptive_gap,
}


@contextlib.contextmanager
def _running_modules(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Maintain in ``path`` the modules that are running, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks
        called = f"{name} ({type(module).__name__})" if name else type(module).__name__

        def enter(module: nn.Module, args: Any, called: str = called) -> None:
            path.append(called)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            path.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
