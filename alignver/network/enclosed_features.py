"""The features of a network with proved errors, batch by batch; an interrupted run continues from its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver import atomic, require
from alignver.errors import InvalidInput, saving
from alignver.features.threads import ordered, single_threaded_blas
from alignver.kernel import Certificate, seal
from alignver.kernel.failure import NotProved, Unsupported
from alignver.kernel.machine import require_ieee
from alignver.kernel.network.exploration import Features
from alignver.kernel.network.graph import parse
from alignver.network.adapt import adapted
from alignver.network.copies import copied, deep_copy
from alignver.network.enclosures import EnclosedNetwork, traced_again
from alignver.network.feature_extraction import extract_features
from alignver.network.inputs import as_inputs, in_dtype_of
from alignver.network.leaves import ANOTHER, refused
from alignver.progress import stage, track
from alignver.results import CheckResult, Rigor, Subject, shown_up

_ROWS = 64  # samples in a batch of a graph, at most
_POSITIONS = 2**13  # of all samples in a batch: larger batches of images do not stay in the caches
_COMPARED = 32  # samples whose features are computed by the module too
_LOST = 2.0**-7  # share of the largest feature that rounding in the module may change: that of bfloat16, 2^-8, and more


@dataclasses.dataclass(frozen=True, eq=False)
class EnclosedFeatures:
    """Features that the kernel computed, and how far the exact ones may be.

    Attributes
    ----------
    network : EnclosedNetwork
        Its outputs are the features.
    layer : str or None
    Z : (n, m) float64
    delta : float
        A bound of the error of each row (2-norm), with some room for another machine.
    apart : float
        The largest distance of a row that the module computes, of some rows.
    resumed : int
        The number of batches that were read from a folder.
    seconds : float
    """

    network: EnclosedNetwork
    layer: str | None
    Z: Any
    delta: float
    apart: float
    resumed: int
    seconds: float

    def certificate(self, of_rows: Certificate) -> Certificate:
        """Return the certificate of a staircase for every matrix within delta, as one about the network."""
        inputs = {"parameters": self.network.parameters, "x": self.network.x}
        data = {**of_rows.data, "graph": self.network.traced.data}
        constants = {**of_rows.constants, "layer": self.layer}
        return seal("network-exploration", "staircase", inputs, data, constants)


class _Layer(nn.Module):
    """A model up to the output of one of its layers, a row for each sample."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        module = self.model if self.layer is None else self.model.get_submodule(self.layer)
        handle = module.register_forward_hook(lambda *call: outputs.append(call[2].clone()))
        try:
            self.model(x)
        finally:
            handle.remove()
        (output,) = outputs
        return output.reshape(len(output), -1)  # type: ignore[no-any-return]


def model_inputs(model: nn.Module, X: Any) -> torch.Tensor:
    """Return validated inputs on the device of a model.

    Examples
    --------
    >>> model_inputs(nn.Linear(2, 1), [[0.0, 1.0]]).shape
    torch.Size([1, 2])
    """
    return as_inputs(X, next((parameter.device for parameter in model.parameters()), torch.device("cpu")))


def feature_network(model: nn.Module, X: Any, layer: str | None = None, *, rows: int | None = None) -> EnclosedNetwork:
    """Trace a model up to the output of a layer.

    Parameters
    ----------
    model, X, layer
        As in :func:`~alignver.network.feature_extraction.extract_features`.
    rows : int, optional
        The samples in a batch of the graph; None chooses by the size of a sample.

    Raises
    ------
    InvalidInput
        The model cannot be copied or traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> feature_network(net, [[0.0, 1.0], [1.0, 0.0]], "1").program.columns
    3
    """
    twin, x = network_inputs(model, X)
    twin.requires_grad_(False)
    return EnclosedNetwork.of(_Layer(twin, layer).eval(), x, batch_rows(x) if rows is None else rows)


def network_inputs(model: nn.Module, X: Any) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a model on the CPU, in eval mode, and the inputs in its dtype, as they enter the graph.

    Raises
    ------
    InvalidInput
        The model cannot be copied; inputs that are not valid.
    """
    twin = copied(model).cpu().eval()
    return twin, in_dtype_of(twin, model_inputs(model, X).detach().cpu())


def batch_rows(x: torch.Tensor) -> int:
    """Return the samples in a batch of a graph whose outputs are enclosed without gradients."""
    most = max(1, min(_ROWS, _POSITIONS // max(1, math.prod(x.shape[2:])), len(x)))  # channels are not counted
    return -(-len(x) // -(-len(x) // most))


def enclose_features(
    model: nn.Module, X: Any, layer: str | None = None, *, folder: str | os.PathLike[str] | None = None
) -> EnclosedFeatures:
    r"""Compute the features of a model with proved errors: :math:`\|z_i - \hat z_i\|_2 \le \delta` in real arithmetic.

    The rows are computed by the kernel's own evaluation in float64, on all cores, and not by the module.

    Parameters
    ----------
    model, X, layer
        As in :func:`~alignver.network.feature_extraction.extract_features`.
    folder : path, optional
        Where the rows of each batch are stored; a later call with the same network and inputs continues from them.

    Returns
    -------
    EnclosedFeatures

    Raises
    ------
    InvalidInput
        The model cannot be copied or traced; the folder cannot be written.
    NotProved
        An operation has no rule, or is not decided within the errors.
    Unsupported
        The arithmetic is not the one that the bounds assume.

    Notes
    -----
    Rigor: PROOF for rows that were computed by this call. Source: the rules of
    :mod:`alignver.kernel.network.normwise`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> enclosed = enclose_features(net, [[0.0, 1.0], [1.0, 0.0]], "1")
    >>> enclosed.Z.shape, 0.0 < enclosed.delta < 1e-14
    ((2, 3), True)
    """
    began = time.perf_counter()
    require_ieee(threaded=True)
    with stage("tracing the network"):
        network = feature_network(model, X, layer)
        features = Features(parse(network.traced.data), network.parameters[0], network.x)
    place = None if folder is None else _place(folder, network)
    Z, errors = np.empty((len(network.x), features.m)), np.empty(len(network.x))
    missing, resumed = [], 0
    for start in features.starts:
        count = min(features.starts.step, len(Z) - start)
        stored = None if place is None else _stored(place / f"{start}.npy", (count, features.m + 1))
        if stored is None:
            missing.append(start)
            continue
        Z[start : start + len(stored)], errors[start : start + len(stored)] = stored[:, :-1], stored[:, -1]
        resumed += 1

    def keep(start: int, rows: Any, error: Any) -> None:
        Z[start : start + len(rows)], errors[start : start + len(rows)] = rows, error
        if place is not None:
            _store(place / f"{start}.npy", np.column_stack([rows, error]))

    if missing:
        with stage("norms of the operators"), single_threaded_blas():  # once, for all batches
            keep(missing[0], *features.enclose(missing[0]))
        others = missing[1:]
        results = ordered(features.enclose, ((start,) for start in others))
        for start, (rows, error) in zip(track(others, "features with errors"), results, strict=True):
            keep(start, rows, error)
    apart = _distance(model, X, layer, Z)
    delta = float(errors.max()) * (1.0 + 2.0**-10)
    return EnclosedFeatures(network, layer, Z, delta, apart, resumed, time.perf_counter() - began)


def _distance(model: nn.Module, X: Any, layer: str | None, Z: Any) -> float:
    """Return how far rows are from those that the module computes; refuse what rounding errors do not explain.

    Otherwise the module computes another function than its trace: its forward may depend on ``requires_grad``, or
    compare its inputs with rounded ones.
    """
    x = model_inputs(model, X)
    rows = np.unique(np.linspace(0, len(x) - 1, _COMPARED).astype(np.int64))
    x, enclosed = in_dtype_of(model, x[torch.from_numpy(rows).to(x.device)]), Z[rows]
    largest, computed = float(np.abs(enclosed).max()), extract_features(model, x, layer)
    apart = float(np.linalg.norm(computed - enclosed, axis=1).max())
    if apart > _LOST * largest:  # cancellation, perhaps, which float64 survives
        with contextlib.suppress(Exception):  # code that needs its own dtype
            wide = extract_features(deep_copy(model).double(), x.double() if x.is_floating_point() else x, layer)
            if float(np.abs(wide - enclosed).max()) <= _LOST * largest:
                return apart
        raise refused(model, f"the features differ by up to {shown_up(apart)}", fault=ANOTHER)
    return apart


def inputs_again(certificate: Certificate, model: nn.Module, X: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Recompute the inputs of a certificate about the features of a network: trace the model, compare the graphs.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`.
    notes : tuple of str
        How the graph in the certificate relates to the model, in sentences.

    Raises
    ------
    InvalidInput
        The certificate is of another kind, or about another network.

    Examples
    --------
    >>> import alignver
    >>> net, X = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), [[0.0, 1.0], [1.0, 0.0]]
    >>> proved = alignver.check_safe_exploration(net, X=X)
    >>> alignver.recheck(proved.certificate, **inputs_again(proved.certificate, net, X)[0]).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    layer = certificate.constants.get("layer")
    if not (layer is None or isinstance(layer, str)):
        raise InvalidInput("certificate", f"a layer {layer!r}", "the name of a module, or None")
    model, X, _ = adapted(model, X)
    network, note = traced_again(certificate, lambda rows: feature_network(model, X, layer, rows=rows), _ROWS)
    return {"parameters": network.parameters, "x": network.x}, (note,)


def _place(folder: str | os.PathLike[str], network: EnclosedNetwork) -> pathlib.Path:
    """Return the folder of the batches of a network and its inputs."""
    content = hashlib.sha256(f"{np.__version__}".encode())
    for part in (network.traced.data, network.parameters, network.x):
        content.update(np.ascontiguousarray(part).data.cast("B"))
    place = require.path("folder", folder) / f"enclosed-{content.hexdigest()[:24]}"
    with saving("folder", place, "a folder that can be written"):
        place.mkdir(parents=True, exist_ok=True)
    return place


def _stored(file: pathlib.Path, shape: tuple[int, int]) -> Any:
    """Return the rows of a batch and their errors; None if they are not there, or not whole."""
    try:
        rows: Any = np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None  # a pipe would block
    except Exception:  # NumPy raises exceptions of many types for damaged files
        return None
    whole = rows is not None and rows.shape == shape and rows.dtype == np.float64
    return np.array(rows) if whole and bool(np.isfinite(rows).all()) else None


def _store(file: pathlib.Path, rows: Any) -> None:
    with saving("folder", file, "a folder with room for all features"), atomic.writing(file, shared=True) as stream:
        np.save(stream, rows)


@dataclasses.dataclass(frozen=True)
class ModelFeatures:
    """A layer of a model at its inputs.

    Attributes
    ----------
    model : torch.nn.Module
    x : tensor
        The n inputs.
    layer : str or None
    batch_size : int
    m : int
        The number of features, with the constant.
    """

    model: Any
    x: torch.Tensor
    layer: str | None
    batch_size: int
    m: int

    @classmethod
    def of(cls, model: Any, X: Any, layer: str | None, batch_size: int) -> ModelFeatures:
        """Read the inputs, and pass two of them through the model, which refuses a wrong layer."""
        x = model_inputs(model, X)
        m = extract_features(model, x[:2], layer, batch_size=batch_size).shape[1] + 1
        return cls(model, x, layer, batch_size, m)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.x)

    def computed(self) -> Any:
        """Return the features (n, m - 1) as the module computes them."""
        return extract_features(self.model, self.x, self.layer, batch_size=self.batch_size)

    def enclosed(self, folder: Any) -> EnclosedFeatures | str:
        """Return the features in real arithmetic with proved errors, or why there are none."""
        try:
            return enclose_features(self.model, self.x, self.layer, folder=folder)
        except (NotProved, Unsupported) as error:
            return str(error)
        except InvalidInput as error:
            if error.argument == "folder":
                raise
            return error.got

    def about_the_network(self, result: CheckResult, enclosed: EnclosedFeatures) -> CheckResult:
        """Return a result about the network from one about every Z within the proved errors of its features."""
        assert isinstance(result.certificate, Certificate)
        evidence = [
            f"in real arithmetic: each row of the features is proved within {shown_up(enclosed.delta)}, by norm-wise "
            "enclosures in float64",
            f"the features of the module, as computed, are up to {shown_up(enclosed.apart)} away ({_COMPARED} rows)",
        ]
        if enclosed.resumed:
            evidence.append(
                f"{enclosed.resumed} of its batches from the folder: no proof until the certificate is verified"
            )
        evidence += result.evidence
        x = self.x.detach().cpu().double().numpy()
        if not np.array_equal(enclosed.network.x.reshape(x.shape), x):
            dtype = in_dtype_of(self.model, self.x).dtype
            evidence.append(f"the inputs are rounded to the dtype of the parameters, {dtype}")
        network = {"delta": enclosed.delta, "apart": enclosed.apart, "seconds": enclosed.seconds}
        return dataclasses.replace(
            result,
            rigor=Rigor.NUMERICAL if enclosed.resumed else result.rigor,
            subject=Subject.NETWORK,
            code="exploration-network",
            evidence=tuple(evidence),
            measured={**result.measured, "network": network},
            certificate=enclosed.certificate(result.certificate),
        )
