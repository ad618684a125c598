"""In which precision a model computes: what is asked for, and what it does on the way.

The data that go with a model: inputs as a tensor on the model's device, targets as a NumPy array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from alignver.arrays import EPS
from alignver.errors import InvalidInput, first_line
from alignver.samples import is_stream

__all__ = [
    "RoundingObserver",
    "as_asked",
    "as_inputs",
    "as_targets",
    "differentiable",
    "dtype_name",
    "resolve_dtype",
    "taken",
]


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


def as_inputs(X: Any, device: torch.device) -> torch.Tensor:
    """Validate the inputs of a model: real, finite, not empty, one sample a row; a tensor on the model's device.

    A NumPy array (or nested list) goes to the model's device; a tensor has to be there already. The dtype is kept.
    The tensor may share memory with X and must not be written to.

    Raises
    ------
    InvalidInput
        Not an array, complex, object or string entries, NaN or Inf, empty, 0-d, sparse, on another device.

    Examples
    --------
    >>> as_inputs([[1.0, 2.0]], torch.device("cpu")).shape
    torch.Size([1, 2])
    >>> as_inputs([[1.0, float("inf")]], torch.device("cpu"))
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: X: got inf at (0, 1); needs finite entries
    """
    x = _tensor(X)
    if x.is_complex():
        raise InvalidInput("X", f"dtype {dtype_name(x.dtype)}", "real inputs")
    if x.ndim == 0 or x.numel() == 0:
        raise InvalidInput("X", f"shape {tuple(x.shape)}", "at least one sample, one sample a row: shape (n, ...)")
    if isinstance(X, torch.Tensor) and not _same_device(x.device, device):
        raise InvalidInput(
            "X", f"device {x.device} beside a model on {device}", f"the model's device: X.to({str(device)!r})"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        flat = int((~torch.isfinite(x)).reshape(-1).to(torch.uint8).argmax())
        where = tuple(int(k) for k in np.unravel_index(flat, tuple(x.shape)))
        raise InvalidInput("X", f"{float(x[where])} at {where}", "finite entries")
    return x if isinstance(X, torch.Tensor) else x.to(device)


def as_targets(Y: Any, n: int) -> Any:
    """Turn targets into what :func:`~alignver.theory.losses.modified_targets` takes: a tensor becomes a NumPy array.

    Raises
    ------
    InvalidInput
        No length, or a length that is not the number of samples.
    """
    if isinstance(Y, torch.Tensor):
        if Y.layout != torch.strided or Y.is_meta or Y.is_quantized:
            raise InvalidInput("Y", "a sparse, meta or quantized tensor", "a dense tensor of real numbers")
        Y = Y.detach().cpu()
        Y = (Y.float() if Y.dtype == torch.bfloat16 else Y).resolve_conj().resolve_neg().numpy()
    try:
        rows = len(Y)
    except TypeError as error:
        raise InvalidInput(
            "Y", f"{type(Y).__name__} without rows", f"one target for each of the {n} samples"
        ) from error
    if rows != n:
        raise InvalidInput("Y", f"{rows} rows beside {n} samples in X", f"one target for each of the {n} samples")
    return Y


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Blame on X what a model's forward pass raises over it."""
    try:
        yield
    except (InvalidInput, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        got = f"inputs that the model refuses ({first_line(error)})"
        raise InvalidInput("X", got, "inputs that the model takes") from error


def _tensor(X: Any) -> torch.Tensor:
    if isinstance(X, torch.Tensor):
        if X.layout != torch.strided:
            raise InvalidInput("X", "a sparse tensor", "a dense tensor: X.to_dense()")
        if X.is_meta:
            raise InvalidInput("X", "a meta tensor, which has no entries", "a tensor with data")
        if X.is_quantized:
            raise InvalidInput("X", "a quantized tensor", "real entries: X.dequantize()")
        with torch.inference_mode(False):
            return X.detach().clone() if X.is_inference() else X.detach()
    if hasattr(X, "tocsr"):
        raise InvalidInput("X", f"a sparse {type(X).__name__}", "a dense array: X.toarray()")
    if isinstance(X, np.ma.MaskedArray):
        raise InvalidInput("X", "a masked array", "an array without a mask: X.filled(...)")
    if isinstance(X, dict | str | bytes | set) or X is None:
        raise InvalidInput("X", f"a {type(X).__name__}", "one array of inputs, one sample a row")
    if is_stream(X):
        need = "one array of inputs: X, Y = next(iter(DataLoader(data, batch_size=len(data))))"
        raise InvalidInput("X", f"a {type(X).__name__}", need)
    try:
        array = np.asarray(X)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput("X", f"{type(X).__name__} that is no array ({error})", "samples of equal shape") from error
    if array.dtype.kind not in "biufc":
        what = f"a {type(X).__name__} of dtype {array.dtype}"
        raise InvalidInput("X", what, "real numbers, one array for all samples")
    # torch knows neither foreign byte orders, negative strides nor read-only memory.
    array = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InvalidInput("X", f"dtype {array.dtype}", "a dtype that torch has: float64 holds most") from error


def _same_device(first: torch.device, second: torch.device) -> bool:
    """Compare devices; ``cuda`` without an index is the current one."""
    if first.type != second.type:
        return False
    return first.index is None or second.index is None or first.index == second.index
