"""Move an array that was read from a file to the library and the device that the user chose."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from alignver.cli.options import Backend
from alignver.errors import InvalidInput, MissingDependency, first_line

__all__ = ["library", "place", "to_backend"]

_PURPOSE = {"torch": "--backend torch", "cupy": "--backend cupy"}
_EXTRA = {"cupy": "cupy-cuda13x"}  # or cupy-cuda12x, for its CUDA


def library(name: str, purpose: str) -> Any:
    """Import torch or CuPy by name, or raise :class:`~alignver.errors.MissingDependency` with the remedy."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name, purpose, _EXTRA.get(name, name)) from error


def place(device: str) -> Any:
    """Return torch's device of that name, if it is one and this machine has it."""
    torch = library("torch", f"--device {device}")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them, by device
        raise InvalidInput("--device", repr(device), f"a device of this machine ({first_line(error)})") from error
    return chosen


def to_backend(array: Any, backend: Backend, device: str) -> Any:
    """Return a NumPy array as an array of ``backend`` on ``device``, entries and dtype unchanged.

    Raises
    ------
    InvalidInput
        If there is no such device, or the library cannot hold the dtype.
    MissingDependency
        If the library is not installed.
    """
    if backend is Backend.NUMPY:
        if device != "cpu":
            raise InvalidInput("--device", repr(device), "cpu for --backend numpy; --backend torch or cupy for a GPU")
        return array
    if backend is Backend.TORCH:
        torch = library("torch", _PURPOSE["torch"])
        chosen = place(device)
        try:
            # A mapped file is read-only, which torch cannot say: copy such an array rather than share it.
            native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
            return torch.from_numpy(native).to(chosen)
        except TypeError as error:
            raise InvalidInput("--backend", f"torch for dtype {array.dtype}", "a dtype that torch has") from error
    cupy = library("cupy", _PURPOSE["cupy"])
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if device not in {"cpu", "cuda"} and not (device.startswith("cuda:") and number.isdecimal()):
        raise InvalidInput("--device", repr(device), "cuda or cuda:N for --backend cupy")
    try:
        with cupy.cuda.Device(0 if device == "cpu" else int(number)):
            return cupy.asarray(array)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InvalidInput("--device", repr(device), f"a device of this machine ({first_line(error)})") from error
