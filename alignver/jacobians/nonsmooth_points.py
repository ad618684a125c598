"""Kinks: pre-activations so close to where a piecewise function bends that rounding decides which derivative is taken.

At a kink autograd picks one of the one-sided derivatives, and a Jacobian computed there, or next to it, may be that of
neither side's exact network. What counts as next to it is an estimate of the rounding error of the pre-activation z: an
inner product of m terms carries an error of about ``sqrt(m) u sum |w_k a_k|`` (Higham and Mary 2019, random rounding),
and with terms of random signs the sum is about ``sqrt(m)`` times abs(z). So z counts when it is within

    t = m eps s

of a kink, s its largest abs(z), m its entries for one sample (it stands for the length of the
sums before it), eps that of the dtype that the model computes in. It is an estimate, not a bound.
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
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.errors import InvalidInput
from alignver.jacobians.jacobian import bind, checked_chunk
from alignver.jacobians.layer_io import each, windows
from alignver.network.functional import Functional
from alignver.network.inputs import as_asked
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, validate_model

__all__ = ["Kink", "Kinks", "count_kinks", "find_nonsmooth_points", "kinks"]

_SAMPLES = 256  # samples of one pass


@dataclasses.dataclass(frozen=True)
class Kink:
    """What one operation of one module met.

    Attributes
    ----------
    module : str
        Qualified name and class: ``"features.1 (ReLU)"``.
    operation : str
        The operation as torch names it: ``"relu"``.
    count, exact, total : int
        Pre-activations within the tolerance of a kink; those exactly on one; all.
    nearest : float
        Smallest distance to a kink, as a multiple of the largest magnitude.
    tolerance : float
        What counts as close, in the same unit: m eps.
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
    """All operations with kinks that a model ran, in the order of their first run.

    Attributes
    ----------
    found : tuple of Kink
    """

    found: tuple[Kink, ...]

    @property
    def count(self) -> int:
        """How many pre-activations are within the tolerance of a kink."""
        return sum(kink.count for kink in self.found)

    @property
    def total(self) -> int:
        """How many pre-activations there are."""
        return sum(kink.total for kink in self.found)

    def sentence(self) -> str:
        """Say in one sentence what was met: what a derivative of these outputs is to be taken for."""
        if not self.count:
            return f"kinks: none of {self.total} pre-activations is within rounding of one"
        rest = f"; {len(self.sentences) - 1} more" if len(self.sentences) > 1 else ""
        return f"kinks: rounding decides which one-sided derivative is taken: {self.sentences[0]}{rest}"

    def summary(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        modules = {kink.module: kink.count for kink in self.found if kink.count}
        return {"count": self.count, "total": self.total, "modules": modules}

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence for each module that met a kink, the one with the most first."""
        met = sorted((kink for kink in self.found if kink.count), key=lambda kink: -kink.count)
        return tuple(
            f"{kink.module}: {kink.count} of {kink.total} values within {kink.tolerance:.0e} of a kink of "
            f"{kink.operation}" + (f", {kink.exact} exactly on it" if kink.exact else "")
            for kink in met
        )


def count_kinks(
    model: nn.Module,
    X: Any,
    *,
    eps: float | None = None,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
) -> Kinks:
    """Count the pre-activations that rounding cannot tell from a kink, by module.

    ReLU and its relatives (leaky, parametric, ReLU6, hardtanh, hardswish, hardsigmoid, shrinkages, threshold; ELU and
    SELU where their slopes differ at 0), abs, sign, clamp, maximum and minimum of two tensors, and ties in max pooling,
    whether they run as modules or as functions.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    eps : float, optional
        What counts as close, relative to the largest magnitude, instead of m eps (see the module's notes).
    dtype, chunk_size
        As in :func:`alignver.jacobians.jacobian.jacobian`.

    Returns
    -------
    Kinks

    Raises
    ------
    InvalidInput
        A model or inputs that no check can be about, an eps that is no non-negative number.

    Notes
    -----
    Rigor: floating point, an estimate. Windows of inactive ReLUs tie at 0 in a max pooling after them, exactly and
    without harm: the derivative is 0 on every side.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> found = count_kinks(model, [[0.0], [1.0]])
    >>> found.count
    2
    >>> print(*found.sentences)
    1 (ReLU): 2 of 4 values within 4e-16 of a kink of relu, 2 exactly on it
    """
    model = validate_model(model, include_frozen=True)
    size = checked_chunk(chunk_size) or _SAMPLES
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < float("inf")):
        raise InvalidInput("eps", f"eps={eps!r}", "a non-negative number, or None")
    with preserve_state(model):
        function, x = bind(model, X, dtype, include_frozen=True)
        with as_asked(function.device, function.dtype):
            unit = torch.finfo(probe(function, x).computed_in).eps
            return kinks(function, x, unit, eps, size)


def find_nonsmooth_points(model: nn.Module, X: torch.Tensor, dtype: str | None) -> Kinks | None:
    """Count kinks where a model has operations that bend, which a pass over two samples shows (one alone may be
    squeezed out of its batch); None where it has none.

    Examples
    --------
    >>> find_nonsmooth_points(torch.nn.Linear(1, 1), torch.ones(3, 1), "float64") is None
    True
    """
    if not count_kinks(model, X[:2], dtype=dtype).found:
        return None
    return count_kinks(model, X, dtype=dtype)


def kinks(function: Functional, x: torch.Tensor, unit: float, eps: float | None = None, size: int = _SAMPLES) -> Kinks:
    """Count the kinks of a bound model; the caller guards it."""
    observer = _Observer(unit, eps)
    theta = {name: value.detach().requires_grad_() for name, value in function.theta.items()}
    with _named(function.model, observer.path):
        for start in range(0, len(x), size):
            part = x[start : start + size]
            observer.samples = len(part)
            with observer:  # with gradients on: without them torch pools by an operation that is not seen
                function(theta, function.batch(part))
    return Kinks(tuple(observer.found.values()))


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Look at the operands of every operation that has kinks, before it runs."""

    def __init__(self, unit: float, eps: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit, self.eps = unit, eps
        self.samples = 1
        self.path: list[str] = []
        self.found: dict[tuple[str, str], Kink] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and run the operation."""
        kwargs = kwargs or {}
        name = str(func._schema.name).partition("::")[2].removesuffix("_")
        look = _POINTWISE.get(name)
        if look is not None:
            points = look(*args[1:], **kwargs)
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
        before = self.found.get((module, operation))
        if before is not None:
            count, exact = count + before.count, exact + before.exact
            nearest, close = min(nearest, before.nearest), max(close, before.tolerance)
        total = gap.numel() + (before.total if before is not None else 0)
        self.found[module, operation] = Kink(module, operation, count, exact, total, nearest, close)


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
    """Largest minus second largest entry of every window of a max pooling."""
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
    for place in itertools.product(*(range(size) for size in sizes)):
        window = z
        for axis, (k, size) in enumerate(zip(place, sizes)):
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
def _named(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep in ``path`` the modules that are running, the innermost last."""
    handles = []
    for name, module in model.named_modules():
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
