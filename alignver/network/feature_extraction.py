"""The features z of a torch model: what one of its layers puts out, batch by batch, with the model left as it was."""

from __future__ import annotations

import contextlib
import copy
import difflib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver import atomic
from alignver.errors import InvalidInput, first_line
from alignver.network.inputs import as_inputs
from alignver.network.preserve_state import preserve_state
from alignver.progress import track

__all__ = ["estimate_row_error", "extract_features", "feature_blocks", "save_features"]


def extract_features(
    model: nn.Module, X: Any, layer: str | None = None, *, batch_size: int = 256
) -> npt.NDArray[np.floating[Any]]:
    r"""Return the output of a layer for every sample, a row each: the matrix with rows :math:`\bar z(x_i)`.

    The constant neuron of the paper's :math:`z = [\bar z^\top, 1]^\top` is not added:
    :func:`~alignver.checks.exploration.check_safe_exploration` does that with ``add_constant=True``.

    Parameters
    ----------
    model : torch.nn.Module
        Run in eval mode without gradients; it comes out as it went in.
    X : (n, ...) array or tensor
        Inputs; floating ones are cast to the model's dtype, batch by batch.
    layer : str, optional
        Name of the submodule, as ``model.named_modules()`` has it; None is the model's own output.
    batch_size : int
        Samples that are run at a time.

    Returns
    -------
    (n, m) numpy.ndarray
        float32 or float64, as the layer computes; further dimensions of its output are flattened.

    Raises
    ------
    InvalidInput
        No such layer, a layer that is not run exactly once, an output that is no real tensor with a row for each
        sample, NaN or Inf in the output (named by row).

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
    """Yield the rows of :func:`extract_features` block by block, for features that memory does not hold.

    The model is guarded and put back around every block, so it may be used between two of them.

    Examples
    --------
    >>> import torch
    >>> [block.shape for block in feature_blocks(torch.nn.Linear(2, 3), [[0.0, 1.0]] * 5, batch_size=2)]
    [(2, 3), (2, 3), (1, 3)]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInput("batch_size", repr(batch_size), "an integer >= 1")
    module = model if layer is None else _find(model, layer)
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    x = as_inputs(X, device)
    casts = x.is_floating_point() and parameter is not None and parameter.dtype != x.dtype
    starts = range(0, int(x.shape[0]), batch_size)
    for start in track(starts, "features"):
        batch = x[start : start + batch_size]
        if casts and parameter is not None:
            batch = batch.to(parameter.dtype)
        yield _rows(_output(model, module, batch, layer), start, int(batch.shape[0]), layer)


def save_features(
    file: str | os.PathLike[str], model: nn.Module, X: Any, layer: str | None = None, *, batch_size: int = 256
) -> np.memmap[Any, Any]:
    """Write the rows of :func:`extract_features` to a ``.npy`` file, one batch at a time, and return the file mapped.

    The file appears whole or not at all; memory holds a batch.

    Parameters
    ----------
    file : path
        A file that is there is replaced.
    model, X, layer, batch_size
        As in :func:`extract_features`.

    Returns
    -------
    (n, m) numpy.memmap
        Read-only.

    Raises
    ------
    InvalidInput
        As :func:`extract_features`; a file that cannot be written, a disk that is full.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_features(f"{folder}/Z.npy", torch.nn.Linear(2, 3), [[0.0, 1.0]] * 5, batch_size=2).shape
    (5, 3)
    """
    whole = Path(file)
    blocks = feature_blocks(model, X, layer, batch_size=batch_size)
    first = next(blocks)
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (len(X), first.shape[1])}
    try:
        with atomic.writing(whole, shared=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for rows in itertools.chain([first], blocks):
                stream.write(np.ascontiguousarray(rows).data)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        got = f"{whole}, on a disk that is full" if full else f"{whole}, which cannot be written ({error.strerror})"
        raise InvalidInput("file", got, "a place with room for all rows") from error
    kept: np.memmap[Any, Any] = np.load(whole, mmap_mode="r", allow_pickle=False)
    return kept


def estimate_row_error(model: nn.Module, X: Any, layer: str | None = None, *, sample: int = 64, seed: int = 0) -> float:
    """Estimate what the model's own precision does to a row of features: the largest difference from a float64 pass.

    An estimate, from a sample, and no bound: a verdict that rests on it is NUMERICAL (``delta_is_estimate=True``).

    Parameters
    ----------
    model, X, layer
        As in :func:`extract_features`; a copy of the model is widened to float64, which is exact.
    sample : int
        Rows that are compared.
    seed : int
        Which rows.

    Returns
    -------
    float
        The largest 2-norm of a difference between two rows of the sample, times two.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    >>> 0.0 < estimate_row_error(net, torch.randn(10, 2)) < 1e-5
    True
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InvalidInput("sample", repr(sample), "an integer >= 1")
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    x = as_inputs(X, device)
    chosen = np.random.default_rng(seed).choice(int(x.shape[0]), size=min(sample, int(x.shape[0])), replace=False)
    batch = x[torch.from_numpy(np.sort(chosen)).to(device)]
    own = extract_features(model, batch, layer)
    wide = extract_features(copy.deepcopy(model).double(), batch, layer)
    return 2.0 * float(np.linalg.norm(own.astype(np.float64) - wide, axis=1).max())


def _find(model: nn.Module, layer: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        names = [name for name in modules if name]
        near = difflib.get_close_matches(layer, names, n=4, cutoff=0.3) or names[-4:]
        raise InvalidInput("layer", repr(layer), f"the name of a submodule, such as {', '.join(near)}")
    return modules[layer]


def _output(model: nn.Module, module: nn.Module, batch: torch.Tensor, layer: str | None) -> Any:
    seen: list[Any] = []
    with preserve_state(model), _evaluating(model), torch.no_grad():
        handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(_kept(output)))
        try:
            model(batch)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InvalidInput(
                "X",
                f"a batch of shape {tuple(batch.shape)} that the model refuses ({first_line(error)})",
                "inputs that the model takes",
            ) from error
        finally:
            handle.remove()
    if len(seen) != 1:
        raise InvalidInput("layer", f"{layer!r}, run {len(seen)} times in one pass", "a layer that is run once")
    return seen[0]


def _kept(output: Any) -> Any:
    """Return a copy of a tensor: a layer after this one may work in place."""
    return output.detach().clone() if isinstance(output, torch.Tensor) else output


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _rows(output: Any, start: int, count: int, layer: str | None) -> npt.NDArray[np.floating[Any]]:
    if not isinstance(output, torch.Tensor) or output.is_complex() or not output.is_floating_point():
        kind = f"a tensor of {output.dtype}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise InvalidInput("layer", f"{layer!r}, whose output is {kind}", "a layer whose output is one real tensor")
    if output.ndim == 0 or output.shape[0] != count:
        raise InvalidInput(
            "layer", f"{layer!r} with an output of shape {tuple(output.shape)} for {count} samples", "a row for each"
        )
    wide = output if output.dtype in (torch.float32, torch.float64) else output.float()
    rows: npt.NDArray[np.floating[Any]] = wide.reshape(count, -1).cpu().numpy()
    finite = np.isfinite(rows)
    if not finite.all():
        i, j = (int(k[0]) for k in np.nonzero(~finite))
        raise InvalidInput("X", f"the feature {float(rows[i, j])} at {(start + i, j)}", "inputs with finite features")
    return np.ascontiguousarray(rows)
