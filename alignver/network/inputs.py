"""Inputs, targets and floating-point precision of a model's computation.

Inputs become a tensor on the model's device, targets a NumPy array. The dtype of computation is the one that the caller
requests; :class:`RoundingObserver` detects narrower dtypes inside a forward pass.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from alignver.arrays import EPS, from_frame
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.network.copies import deep_copy
from alignver.samples import is_stream


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its library: ``"float32"``."""
    return str(dtype).rpartition(".")[2]


def resolve_dtype(model: nn.Module, dtype: str | None) -> torch.dtype:
    """Return the dtype to compute in: float64, or the model's own for None and ``"same"``.

    float64 represents every narrower floating-point number exactly, so the conversion does not round. A dtype narrower
    than the model's would change theta and is refused.
    """
    native = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    if dtype is None or dtype == "same" or dtype == dtype_name(native):
        return native
    if dtype == "float64":
        return torch.float64
    need = f"'float64', or 'same' for the model's own {dtype_name(native)}"
    if dtype in EPS:
        need += f"; rounding theta to {dtype} makes another model: convert it explicitly, model.to(torch.{dtype})"
    raise InvalidInput("dtype", f"dtype={dtype!r}", need, code="not-a-choice")


@contextlib.contextmanager
def full_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in full ``dtype``: gradients on, autocast and inference mode off, no TF32 or bfloat16 products."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if dtype == torch.float32:
            stack.enter_context(_full_float32())
        yield


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Disable narrower formats inside float32 products and convolutions."""
    libraries: Any = torch.backends  # its modules create attributes dynamically
    cuda, cudnn, mkldnn = libraries.cuda, libraries.cudnn, libraries.mkldnn
    switches: list[tuple[Any, str, Any]]
    if hasattr(cudnn, "conv"):  # torch 2.9 and later: one switch per kind of operation
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
def without_fused_layers(model: nn.Module) -> Iterator[None]:
    """Run layers whose fused GPU kernels are inexact, or lack derivatives, by torch's other operations.

    Recurrent layers: in eval mode cuDNN has no backward pass for them. Weight normalisation: the kernel for float64 has
    the accuracy of float32 (a relative error of 1e-8 on an H200 with torch 2.11), and torch.func knows no batching rule
    for its derivative. Transformer layers: without gradients, torch runs another function on padded sequences.
    """
    cudnn: Any = torch.backends.cudnn
    mha: Any = torch.backends.mha
    before, fused = cudnn.enabled, mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        try:
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                cudnn.enabled = False
            if fused and has_attention(model):
                mha.set_fastpath_enabled(False)
            first = next(model.parameters(), None)
            on_cpu = first is None or first.device.type == "cpu"
            if not on_cpu and any(_normalises_weights(module) for module in model.modules()):
                stack.enter_context(_WeightNormByDefinition())
            yield
        finally:
            cudnn.enabled = before
            if fused:
                mha.set_fastpath_enabled(True)


def has_attention(model: nn.Module) -> bool:
    """Whether a model has modules that torch runs in another way without gradients."""
    kinds = nn.MultiheadAttention | nn.TransformerEncoder | nn.TransformerEncoderLayer
    return any(isinstance(module, kinds) for module in model.modules())


def _normalises_weights(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._WeightNorm) or any(isinstance(hook, WeightNorm) for hook in hooks)


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


class _WeightNormByDefinition(TorchFunctionMode):
    """Compute v g / ||v|| by elementary operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        return _weight_norm(*args, **(kwargs or {}))


class FunctionDerivatives(TorchFunctionMode):
    """Differentiate the function that a forward pass computes.

    Options that change gradients only have no effect: ``scale_grad_by_freq`` and ``sparse`` of lookups in a table, and
    hooks on the gradients of intermediate results.

    Examples
    --------
    >>> import torch
    >>> table, x = torch.ones(2, 1, requires_grad=True), torch.tensor([0, 0])
    >>> with FunctionDerivatives():
    ...     rows = torch.nn.functional.embedding(x, table, scale_grad_by_freq=True)
    >>> torch.autograd.grad(rows.sum(), table)[0].tolist()
    [[2.0], [0.0]]
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func in _LOOKUPS:
            return func(**{**dict(zip(_LOOKUPS[func], args)), **kwargs, "scale_grad_by_freq": False, "sparse": False})
        if func is torch.Tensor.register_hook and not args[0].is_leaf:
            return RemovableHandle(OrderedDict())
        return func(*args, **kwargs)


_OPTIONS = ("max_norm", "norm_type", "scale_grad_by_freq")
_LOOKUPS: dict[Any, tuple[str, ...]] = {
    F.embedding: ("input", "weight", "padding_idx", *_OPTIONS, "sparse"),
    F.embedding_bag: ("input", "weight", "offsets", *_OPTIONS, "mode", "sparse", "per_sample_weights",
                      "include_last_offset", "padding_idx"),
}  # fmt: skip


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """A dispatch mode that does not make torch import its compiler, which takes more than a second."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class OperationObserver(DispatchMode):
    """Watch the operations of a pass for results narrower than their operands, and for some tensors as operands.

    A model may contain ``x.float()``; its float64 evaluation then has the accuracy of float32, and tolerances must
    account for that.

    Attributes
    ----------
    coarsest : torch.dtype
        ``dtype``, or the coarsest to which the result of an operation on finer numbers was rounded.
    seen : bool
        Whether an operand was one of ``tensors``, or a view of one.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> with OperationObserver(torch.float64, [one]) as observer:
    ...     _ = one[:1].float().double()
    >>> observer.coarsest, observer.seen
    (torch.float32, True)
    """

    def __init__(self, dtype: torch.dtype, tensors: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.coarsest, self.seen = dtype, False
        self.memory = {memory_of(tensor) for tensor in tensors} - {None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note the coarsest floating result that came from a finer operand."""
        result = func(*args, **(kwargs or {}))
        operands = list(_tensors((args, kwargs)))
        self.seen = self.seen or any(memory_of(tensor) in self.memory for tensor in operands)
        finest = min(map(_eps, operands), default=1.0)
        for tensor in _tensors(result):
            if finest < _eps(tensor) < 1.0 and _eps(tensor) > torch.finfo(self.coarsest).eps:
                self.coarsest = tensor.dtype
        return result


def memory_of(value: Any) -> int | None:
    """Return a number for the storage of a dense tensor with entries, of which not every backend has an address."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.numel():
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except RuntimeError:  # a wrapper of tensors
        return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among the operands of an operation: much faster than torch's trees."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _eps(tensor: torch.Tensor) -> float:
    return float(torch.finfo(tensor.dtype).eps) if tensor.dtype.is_floating_point else 1.0


def as_inputs(X: Any, device: torch.device) -> torch.Tensor:
    """Validate the inputs of a model (real, finite, not empty, one sample per row) and return a tensor on its device.

    A NumPy array (or nested list) is moved to the model's device; a tensor must already be there. The dtype does not
    change. The returned tensor may share memory with X and must not be written to.

    Raises
    ------
    InvalidInput
        X is not an array, is empty, 0-d, sparse or on another device, or has complex, object, string, NaN or Inf
        entries.

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
        raise InvalidInput("X", f"dtype {dtype_name(x.dtype)}", "real inputs", code="wrong-dtype")
    if x.ndim == 0 or x.numel() == 0:
        need = "at least one sample, one sample per row: shape (n, ...)"
        raise InvalidInput("X", f"shape {tuple(x.shape)}", need, code="wrong-shape")
    if isinstance(X, torch.Tensor) and not _same_device(x.device, device):
        got = f"device {x.device} with a model on {device}"
        raise InvalidInput("X", got, f"the model's device: X.to({str(device)!r})", code="wrong-device")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        flat = int((~torch.isfinite(x)).reshape(-1).to(torch.uint8).argmax())
        where = tuple(int(k) for k in np.unravel_index(flat, tuple(x.shape)))
        raise InvalidInput("X", f"{float(x[where])} at {where}", "finite entries", code="not-finite")
    return x if isinstance(X, torch.Tensor) else x.to(device)


def in_dtype_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return floating-point inputs in the dtype of a model's first floating-point parameter, others as they are.

    Examples
    --------
    >>> in_dtype_of(nn.Linear(2, 1), torch.zeros(1, 2, dtype=torch.float64)).dtype
    torch.float32
    """
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return x.to(next(dtypes, x.dtype)) if x.is_floating_point() else x


def as_targets(Y: Any, n: int) -> Any:
    """Convert targets for :func:`~alignver.theory.losses.modified_targets`: a tensor becomes a NumPy array.

    Raises
    ------
    InvalidInput
        Y has no length, or its length is not the number of samples.
    """
    need = f"one target for each of the {n} samples"
    if Y is None:
        raise InvalidInput("Y", "no targets", f"{need}: Y=, or pairs (x, y) in X", code="wrong-type")
    Y = from_frame(Y, "Y")
    if isinstance(Y, torch.Tensor):
        if Y.layout != torch.strided or Y.is_meta or Y.is_quantized:
            got = "a sparse, meta or quantized tensor"
            raise InvalidInput("Y", got, "a dense tensor of real numbers", code="wrong-type")
        Y = Y.detach().cpu()
        Y = (Y.float() if Y.dtype == torch.bfloat16 else Y).resolve_conj().resolve_neg().numpy()
    try:
        rows = len(Y)
    except TypeError as error:
        raise InvalidInput("Y", f"{kind_of(Y)} without rows", need, code="wrong-type") from error
    if rows != n:
        raise InvalidInput("Y", f"{rows} rows for {n} samples in X", need, code="wrong-shape")
    return Y


@contextlib.contextmanager
def reporting_input_errors(model: nn.Module, x: torch.Tensor) -> Iterator[None]:
    """Report an exception of a model's forward pass on ``x`` as an error in X."""
    try:
        yield
    except (InvalidInput, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of the user can raise anything
        raise refused_inputs(model, x, error) from error


def refused_inputs(model: nn.Module, x: torch.Tensor, error: Exception) -> InvalidInput:
    """Return what an exception of a forward pass on some samples says about X."""
    name, layer = failing_module(model, error)
    got, raising = f"samples of shape {tuple(x.shape[1:])}", module_name(name, layer)
    if layer is next(
        (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None), None
    ):
        if isinstance(layer, nn.Linear) and x.ndim == 2 and x.shape[1] != layer.in_features:
            need = f"{layer.in_features} numbers for each sample, the in_features of {raising}"
            return InvalidInput("X", got, need, code="wrong-shape")
        if not x.is_floating_point() and not isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            need = f"floating-point numbers for {raising}: numpy.asarray(X, 'float64'), or X.double() for a tensor"
            return InvalidInput("X", f"dtype {dtype_name(x.dtype)}", need, code="wrong-dtype")
    given = _given(layer, error)
    if given is not None and (misfit := _misfit(layer, given, x)) is not None:
        return InvalidInput("X", f"{got}, for which {raising} gets {misfit[0]}", misfit[1], code=misfit[2])
    raised = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return InvalidInput("X", f"{got}, on which {raising} raised {raised}", "inputs that the model accepts")


def _given(layer: nn.Module, error: BaseException) -> torch.Tensor | None:
    """Return the tensor that a layer was called with when an error was raised."""
    trace, given = error.__traceback__, None
    while trace is not None:
        values = trace.tb_frame.f_locals
        if values.get("self") is layer and isinstance(values.get("args"), tuple) and values["args"]:
            given = values["args"][0]
        trace = trace.tb_next
    return given if isinstance(given, torch.Tensor) else None


def _misfit(layer: nn.Module, given: torch.Tensor, x: torch.Tensor) -> tuple[str, str, str] | None:
    """Return what a layer gets and does not take, what it needs, and the code; None if it is neither."""
    itself = given.shape == x.shape  # a remedy for X
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        if given.is_floating_point():
            need = "integers" + (": X.astype('int64'), or X.long() for a tensor" if itself else "")
            return dtype_name(given.dtype), need, "wrong-dtype"
        least, most, last = int(given.min()), int(given.max()), layer.num_embeddings - 1
        if least < 0 or most > last:
            return f"entries from {least} to {most}", f"entries from 0 to {last}, its rows", "invalid-value"
    elif isinstance(layer, nn.modules.conv._ConvNd):
        axes, channels = len(layer.kernel_size), layer.in_channels
        if given.ndim == axes + 1 and channels == 1:
            return f"shape {tuple(given.shape)}", "an axis of one channel" + ": X[:, None]" * itself, "wrong-shape"
        if given.ndim != axes + 2 or given.shape[1] != channels:
            need = f"{axes + 2} axes, the second of which are {channels} channels"
            if itself and given.ndim == axes + 2 and given.shape[-1] == channels:
                order = ", ".join(map(str, range(1, axes + 1)))
                need += f": X.transpose(0, {axes + 1}, {order}), or X.movedim(-1, 1) for a tensor"
            return f"shape {tuple(given.shape)}", need, "wrong-shape"
    elif given.ndim and given.shape[-1] != (features := getattr(layer, "in_features", given.shape[-1])):
        return f"{given.shape[-1]} numbers", f"{features}, its in_features", "wrong-shape"
    return None


def module_name(name: str, module: nn.Module) -> str:
    """Return the class of a module, with its name."""
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def failing_module(model: nn.Module, error: BaseException) -> tuple[str, nn.Module]:
    """Return the innermost module of the model that was running when an error was raised, after its name."""
    names = {id(module): name for name, module in model.named_modules()}
    innermost, trace = ("", model), error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            innermost = (names[id(module)], module)
        trace = trace.tb_next
    return innermost


def _tensor(X: Any) -> torch.Tensor:
    X = from_frame(X, "X")
    if isinstance(X, torch.Tensor):
        if X.is_nested:
            need = "samples of one shape: X.to_padded_tensor(0.0)"
            raise InvalidInput("X", "a nested tensor", need, code="wrong-type")
        if X.layout != torch.strided:
            raise InvalidInput("X", "a sparse tensor", "a dense tensor: X.to_dense()", code="wrong-type")
        if X.is_meta:
            raise InvalidInput("X", "a meta tensor, which has no entries", "a tensor with data", code="wrong-type")
        if X.is_quantized:
            raise InvalidInput("X", "a quantized tensor", "real entries: X.dequantize()", code="wrong-type")
        with torch.inference_mode(False):
            return X.detach().clone() if X.is_inference() else X.detach()
    if hasattr(X, "tocsr"):
        raise InvalidInput("X", f"a sparse {type(X).__name__}", "a dense array: X.toarray()", code="wrong-type")
    if isinstance(X, np.ma.MaskedArray):
        raise InvalidInput("X", "a masked array", "an array without a mask: X.filled(...)", code="wrong-type")
    if isinstance(X, dict | str | bytes | set) or X is None:
        need = "one array of inputs, one sample per row"
        raise InvalidInput("X", kind_of(X), need, code="wrong-type")
    if is_stream(X):
        need = "one array of inputs: X, Y = next(iter(DataLoader(data, batch_size=len(data))))"
        raise InvalidInput("X", kind_of(X), need, code="wrong-type")
    try:
        array = np.asarray(X)
    except (ValueError, TypeError, RuntimeError) as error:
        got = f"{kind_of(X)} that does not form an array"
        need = "one row of numbers for each sample, all of one length"
        if isinstance(X, list | tuple) and all(hasattr(part, "__len__") for part in X):
            need += "; several inputs: a tuple or dict of arrays"
        raise InvalidInput("X", got, need, code="wrong-shape") from error
    if array.dtype.kind not in "biufc":
        got = f"{kind_of(X)} of dtype {array.dtype}"
        raise InvalidInput("X", got, "real numbers, one array for all samples", code="wrong-dtype")
    # torch accepts neither foreign byte orders, negative strides nor read-only memory.
    array = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        need = "a dtype that torch supports, such as float64"
        raise InvalidInput("X", f"dtype {array.dtype}", need, code="wrong-dtype") from error


def _same_device(first: torch.device, second: torch.device) -> bool:
    """Compare devices; ``cuda`` without an index is the current one."""
    return first.type == second.type and (None in (first.index, second.index) or first.index == second.index)


_SIDES = (32, 28, 8, 10, 16, 64, 12, 20, 24, 14, 96, 128, 224, 6, 5, 4)
_SAMPLES = 2


def example_inputs(model: nn.Module) -> torch.Tensor:
    """Return two samples of a shape on which a copy of the model runs.

    Shapes are tried in this order: those that the first layer with parameters takes, then rows of 1 to 16 numbers.

    Raises
    ------
    InvalidInput
        The model runs on none of them.

    Examples
    --------
    >>> example_inputs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2))).shape
    torch.Size([2, 3, 28, 28])
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None or not parameter.is_floating_point() else parameter.dtype
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin = deep_copy(model)
        for x in _candidates(twin):
            x = x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)
            with contextlib.suppress(Exception), without_fused_layers(twin):
                if isinstance(twin(x), torch.Tensor):
                    return x
    got = f"{kind_of(model)} that does not run on the inputs that its first layer suggests"
    raise InvalidInput("model", got, "the inputs: X=", "unsupported-model")


def _candidates(model: nn.Module) -> Iterator[torch.Tensor]:
    def floats(*shape: int) -> torch.Tensor:
        return torch.linspace(-1.0, 1.0, _SAMPLES * torch.Size(shape).numel()).reshape(_SAMPLES, *shape)

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            for length in (6, 1, 16, 64):
                yield torch.arange(_SAMPLES * length).reshape(_SAMPLES, length) % module.num_embeddings
            yield torch.arange(_SAMPLES) % module.num_embeddings
        elif isinstance(module, nn.Linear):
            yield floats(module.in_features)
            yield floats(5, module.in_features)
        elif isinstance(module, nn.modules.conv._ConvNd):
            axes = {nn.Conv1d: 1, nn.Conv3d: 3, nn.ConvTranspose1d: 1, nn.ConvTranspose3d: 3}.get(type(module), 2)
            for side in _SIDES if axes < 3 else (8, 16):
                yield floats(module.in_channels, *[side] * axes)
                if module.in_channels == 1:
                    yield floats(*[side] * axes)
        elif isinstance(module, nn.RNNBase):
            yield floats(5, module.input_size)
        elif isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            width = module.embed_dim if isinstance(module, nn.MultiheadAttention) else module.norm1.normalized_shape[0]
            yield floats(5, int(width))
        elif next(module.parameters(recurse=False), None) is None or module is model:
            continue
        break
    for width in range(1, 17):
        yield floats(width)
