"""The data that go with a model: inputs as a tensor on the model's device, targets as a NumPy array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from alignver.errors import InvalidInput, first_line
from alignver.models.precision import dtype_name
from alignver.samples import is_stream

__all__ = ["as_inputs", "as_targets", "taken"]


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
