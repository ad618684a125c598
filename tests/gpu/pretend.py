"""A device that is not there: tensors that refuse to mix with the CPU's as CUDA's do, computed on the CPU.

torch takes a backend written in Python (``privateuseone``). What finds the places that would fail on a GPU is not its
arithmetic but its refusals: ``.numpy()``, an operation on tensors of two devices, a CPU generator beside the device.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

__all__ = ["available", "begin"]

NAME = "pretend"

_COPIES = {"copy_", "_to_copy", "_copy_from", "_copy_from_and_resize", "_local_scalar_dense", "_foreach_copy_"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # by indices of the CPU: allowed


def available() -> bool:
    """Whether this torch takes backends written in Python (2.10 and later)."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@functools.cache
def begin() -> str:
    """Give this process the device, once, and return its name; there is no way back.

    Before the first backward pass: that is when torch counts the devices that need a thread.
    """
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    library = torch.library.Library("_", "IMPL")
    library.fallback(_made, "PrivateUse1")
    begin.library = library  # its registrations live as long as it does
    for name in ("arange", "asarray", "eye", "linspace", "tensor"):
        setattr(torch, name, _moved(getattr(torch, name)))
    # Module.to puts a tensor into another's place: tied weights stay tied, as they do on their way to CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return NAME


def _moved(function: Any) -> Any:
    """Make a tensor on the CPU first: where torch would resize one of the device, or fill it past all dispatch."""

    @functools.wraps(function)
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        there = device is not None and torch.device(device).type == NAME
        computed = function(*args, **kwargs) if device is None or there else function(*args, device=device, **kwargs)
        return computed.to(device) if there else computed

    return made


class Tensor(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Tensor:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=torch.device(NAME, 0))

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()  # tensors of a GPU have addresses too

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        inner = Tensor(copy.deepcopy(self.inner, memo))
        return torch.nn.Parameter(inner, self.requires_grad) if isinstance(self, torch.nn.Parameter) else inner

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner}, device='{NAME}:0'"

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.__reduce_ex__(protocol)  # in a file it is a tensor of the CPU: map_location="cpu"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse(func, args, kwargs)
        computed = _computed(func, args, kwargs)
        if not any(isinstance(value, torch.Tensor) for value in pytree.tree_leaves(computed)):
            return computed
        return return_and_correct_aliasing(func, args, kwargs, computed)


def _made(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a tensor there: the operations that no tensor of the device is an argument of."""
    _refuse(func, args, kwargs)
    return _computed(func, args, kwargs)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    requested = kwargs.get("device")
    # copy_ onto a tensor of the CPU is the way back; elsewhere, what comes from the device stays there.
    back = requested is not None and torch.device(requested).type == "cpu"
    back |= _word(func) == "copy_" and not isinstance(args[0], Tensor)
    if requested is not None:
        kwargs = {**kwargs, "device": "cpu"}
    inner = pytree.tree_map(lambda value: value.inner if isinstance(value, Tensor) else value, (args, kwargs))
    computed = func(*inner[0], **inner[1])
    if back:
        return computed
    return pytree.tree_map(lambda value: Tensor(value) if isinstance(value, torch.Tensor) else value, computed)


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise what CUDA would: on tensors of two devices, single numbers excepted, and on a generator of the CPU."""
    tensors = list(_tensors((args, kwargs)))
    word = _word(func)
    if word not in _COPIES:
        strangers = [value for value in tensors if not isinstance(value, Tensor) and value.ndim > 0]
        if word in _INDEXING and isinstance(args[0], Tensor):
            strangers = [value for value in strangers if value.dtype.is_floating_point]
        if strangers and (len(strangers) < len(tensors) or kwargs.get("device") is not None):
            raise RuntimeError(f"Expected all tensors to be on the same device: aten::{word} got {NAME}:0 and cpu")
    generators = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Generator)]
    if any(generator.device.type == "cpu" for generator in generators):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor))


def _word(func: Any) -> str:
    return str(func.name()).removeprefix("aten::").partition(".")[0]
