"""The features z of a torch model: the output of one layer, batch by batch, without a change to the model."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver import atomic, require
from alignver.errors import InvalidInput, kind_of, saving
from alignver.network.copies import deep_copy
from alignver.network.functional import running_copy
from alignver.network.inputs import as_inputs, in_dtype_of, reporting_input_errors
from alignver.network.preserve_state import eval_mode
from alignver.progress import track


def extract_features(
    model: nn.Module, X: Any, layer: str | None = None, *, batch_size: int = 256
) -> npt.NDArray[np.floating[Any]]:
    r"""Return the output of a layer for every sample, one row per sample: the matrix with rows :math:`\bar z(x_i)`.

    The constant neuron of the paper's :math:`z = [\bar z^\top, 1]^\top` is not added:
    :func:`~alignver.checks.exploration.check_safe_exploration` does that with ``add_constant=True``.

    Parameters
    ----------
    model : torch.nn.Module
        Run in eval mode without gradients, then restored.
    X : (n, ...) array or tensor
        Inputs; floating-point inputs are cast to the model's dtype, batch by batch.
    layer : str, optional
        Name of the submodule in ``model.named_modules()``; None is the output of the model.
    batch_size : int
        Samples per forward pass.

    Returns
    -------
    (n, m) numpy.ndarray
        float32 or float64, as the layer computes; further dimensions of its output are flattened.

    Raises
    ------
    InvalidInput
        There is no such layer; the layer does not run exactly once per pass; its output is not a real tensor with one
        row per sample; its output has NaN or Inf (the message gives the row); the forward pass writes to the model.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> extract_features(net, [[0.0, 1.0], [1.0, 0.0]], "1").shape
    (2, 3)
    """
    return np.concatenate(list(feature_blocks(model, X, layer, batch_size=batch_size)), axis=0)


def feature_blocks(
    model: nn.Module, X: Any, layer: str | None = None, *, batch_size: int = 256
) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """Yield the rows of :func:`extract_features` block by block, for features that do not fit in memory.

    The model is restored after every block, so it may be used between two blocks.

    Examples
    --------
    >>> import torch
    >>> [block.shape for block in feature_blocks(torch.nn.Linear(2, 3), [[0.0, 1.0]] * 5, batch_size=2)]
    [(2, 3), (2, 3), (1, 3)]
    """
    batch_size = require.integer("batch_size", batch_size, least=1)
    if layer is not None:
        submodule(model, layer)
    x = as_inputs(X, _device(model))
    for start in track(range(0, len(x), batch_size), "features"):
        batch = in_dtype_of(model, x[start : start + batch_size])
        yield _rows(_output(model, batch, layer), start, len(batch), layer)


def save_features(
    file: str | os.PathLike[str], model: nn.Module, X: Any, layer: str | None = None, *, batch_size: int = 256
) -> np.memmap[Any, Any]:
    """Write the rows of :func:`extract_features` to a ``.npy`` file batch by batch, and return it memory-mapped.

    The write is atomic; memory holds one batch.

    Parameters
    ----------
    file : path
        An existing file is replaced.
    model, X, layer, batch_size
        As in :func:`extract_features`.

    Returns
    -------
    (n, m) numpy.memmap
        Read-only.

    Raises
    ------
    InvalidInput
        As :func:`extract_features`; the file cannot be written, or the disk is full.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_features(f"{folder}/Z.npy", torch.nn.Linear(2, 3), [[0.0, 1.0]] * 5, batch_size=2).shape
    (5, 3)
    """
    whole = require.path("file", file)
    if not whole.parent.is_dir():
        got = f"{whole}, in the folder {whole.parent}, which does not exist"
        raise InvalidInput("file", got, "an existing folder", code="unwritable-file")
    blocks = feature_blocks(model, X, layer, batch_size=batch_size)
    first = next(blocks)
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (len(X), first.shape[1])}
    with saving("file", whole, "a place with room for all rows"), atomic.writing(whole, shared=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for rows in itertools.chain([first], blocks):
            stream.write(np.ascontiguousarray(rows).data)
    mapped: np.memmap[Any, Any] = np.load(whole, mmap_mode="r", allow_pickle=False)
    return mapped


def estimate_row_error(model: nn.Module, X: Any, layer: str | None = None, *, sample: int = 64, seed: int = 0) -> float:
    """Estimate the rounding error of a row of features in the model's precision by comparison with a float64 pass.

    This is an estimate from a sample, not a bound: a verdict based on it is NUMERICAL (``delta_is_estimate=True``).

    Parameters
    ----------
    model, X, layer
        As in :func:`extract_features`; a copy of the model is converted to float64, which is exact.
    sample : int
        Number of rows compared.
    seed : int
        Seed of the choice of rows.

    Returns
    -------
    float
        Twice the largest 2-norm of the difference of a row between the two passes.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    >>> 0.0 < estimate_row_error(net, torch.randn(10, 2)) < 1e-5
    True
    """
    sample = require.integer("sample", sample, least=1)
    x = as_inputs(X, _device(model))
    rows = np.random.default_rng(seed).choice(len(x), size=min(sample, len(x)), replace=False)
    batch = x[torch.from_numpy(np.sort(rows)).to(x.device)]
    native = extract_features(model, batch, layer)
    wide = extract_features(deep_copy(model).double(), batch, layer)
    return 2.0 * float(np.linalg.norm(native.astype(np.float64) - wide, axis=1).max())


def _device(model: nn.Module) -> torch.device:
    parameter = next(iter(model.parameters()), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def submodule(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule of that name, or raise InvalidInput with names that are similar."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not isinstance(layer, str) or layer not in modules:
        names = [name for name in modules if name]
        near = difflib.get_close_matches(str(layer), names, n=4, cutoff=0.3) or names[-4:]
        need = f"the name of a submodule, such as {', '.join(near)}"
        raise InvalidInput("layer", repr(layer), need, code="not-a-choice")
    return modules[layer]


def _output(model: nn.Module, batch: torch.Tensor, layer: str | None) -> Any:
    outputs: list[Any] = []

    def store(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # A copy: a later layer may work in place.
        outputs.append(output.detach().clone() if isinstance(output, torch.Tensor) else output)

    with running_copy(model) as twin, eval_mode(twin), torch.no_grad():
        handle = (twin if layer is None else submodule(twin, layer)).register_forward_hook(store)
        try:
            with reporting_input_errors(twin, batch):
                twin(batch.clone())  # a forward pass may write to its input
        finally:
            handle.remove()
    if len(outputs) != 1:
        raise InvalidInput("layer", f"{layer!r}, run {len(outputs)} times in one pass", "a layer that runs once")
    return outputs[0]


def _rows(output: Any, start: int, count: int, layer: str | None) -> npt.NDArray[np.floating[Any]]:
    dense = isinstance(output, torch.Tensor) and output.layout == torch.strided
    if not dense or not output.is_floating_point():
        kind = f"a tensor of {output.dtype}" if dense else kind_of(output)
        need = "a layer whose output is one dense tensor of real numbers"
        raise InvalidInput("layer", f"{layer!r}, whose output is {kind}", need, code="wrong-type")
    if output.ndim == 0 or output.shape[0] != count:
        got = f"{layer!r} with an output of shape {tuple(output.shape)} for {count} samples"
        raise InvalidInput("layer", got, "one row per sample", code="wrong-shape")
    wide = output if output.dtype in (torch.float32, torch.float64) else output.float()
    rows: npt.NDArray[np.floating[Any]] = wide.reshape(count, -1).cpu().numpy()
    finite = np.isfinite(rows)
    if not finite.all():
        i, j = (int(k[0]) for k in np.nonzero(~finite))
        got = f"the feature {float(rows[i, j])} at {(start + i, j)}"
        raise InvalidInput("X", got, "inputs with finite features", code="not-finite")
    return np.ascontiguousarray(rows)
