"""In which precision a model computes: what is asked for, and what it does on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.arrays import EPS
from alignver.errors import InvalidInput

__all__ = ["RoundingObserver", "as_asked", "differentiable", "dtype_name", "resolve_dtype"]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its library: ``"float32"``."""
    return str(dtype).rpartition(".")[2]


def resolve_dtype(model: nn.Module, dtype: str | None) -> torch.dtype:
    """Return the dtype to compute in: float64, or the model's own for None and ``"same"``.

    float64 holds every narrower floating number, so nothing is rounded on the way there. A dtype narrower than the
    model's would change theta and is refused.
    """
    own = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    if dtype is None or dtype == "same" or dtype == dtype_name(own):
        return own
    if dtype == "float64":
        return torch.float64
    need = f"'float64', or 'same' for the model's own {dtype_name(own)}"
    if dtype in EPS:
        need += f"; rounding theta to {dtype} would make it another model: model.to(torch.{dtype}) says so"
    raise InvalidInput("dtype", f"dtype={dtype!r}", need)


@contextlib.contextmanager
def as_asked(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in ``dtype`` and no less: gradients on, autocast and inference mode off, no TF32 or bfloat16 products."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if dtype == torch.float32:
            stack.enter_context(_full_float32())
        yield


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Switch off, for float32 products and convolutions, every shortcut through a narrower format."""
    libraries: Any = torch.backends  # its modules make their attributes as they go
    cuda, cudnn, mkldnn = libraries.cuda, libraries.cudnn, libraries.mkldnn
    switches: list[tuple[Any, str, Any]]
    if hasattr(cudnn, "conv"):  # torch 2.9 and later: one switch for each kind of operation
        places = [cuda.matmul, *(getattr(library, op) for library in (cudnn, mkldnn) for op in ("conv", "rnn"))]
        switches = [(place, "fp32_precision", "ieee") for place in [*places, mkldnn.matmul]]
    else:
        switches = [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, exact in switches:
            setattr(place, name, exact)
        yield
    finally:
        for (place, name, _), value in zip(switches, before):
            setattr(place, name, value)


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Run a forward pass that a backward pass may follow: without cuDNN where there are recurrent layers, for which it
    has none in eval mode.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = before


class RoundingObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watch the operations of a forward pass for results narrower than what went in.

    A model may contain ``x.float()``; its float64 evaluation then carries the digits of float32 only, which a tolerance
    has to know.

    Examples
    --------
    >>> import torch
    >>> with RoundingObserver(torch.float64) as observer:
    ...     _ = torch.ones(2, dtype=torch.float64).float().double()
    >>> observer.coarsest
    torch.float32
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note the coarsest floating result that came from a finer operand."""
        result = func(*args, **(kwargs or {}))
        finest = min((_eps(item) for item in pytree.tree_leaves((args, kwargs))), default=1.0)
        for item in pytree.tree_leaves(result):
            if finest < _eps(item) < 1.0 and _eps(item) > torch.finfo(self.coarsest).eps:
                self.coarsest = item.dtype
        return result


def _eps(item: Any) -> float:
    floating = isinstance(item, torch.Tensor) and item.dtype.is_floating_point
    return float(torch.finfo(item.dtype).eps) if floating else 1.0
