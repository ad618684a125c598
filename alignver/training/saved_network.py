"""The network of a finished run, ready to use: outputs, predictions, checks, export."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from alignver import require
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput, MissingDependency, first_line, reading
from alignver.limits import in_memory
from alignver.network.adapt import built_by
from alignver.network.copies import deep_copy
from alignver.network.functional import unwrapped
from alignver.results import CheckResult, Report
from alignver.theory.losses import LOSSES
from alignver.training.gated_network import GatedNetwork, modify
from alignver.training.run_folder import (
    RunFolder,
    certificate_inputs,
    example_inputs,
    held,
    probe,
    report_of,
    require_code_elsewhere,
)
from alignver.training.wrapper_base import EXPLOITING, TrainedNetwork

_APART = 1e-4  # of the largest output in float64: other machines round otherwise
_MODEL = "the model that was trained, or a function that builds it: load(folder, model=...)"


class SavedNetwork(nn.Module):
    """The network of a finished run, in eval mode.

    Attributes
    ----------
    network : GatedNetwork
        The modified model; calling this module calls it.
    loss : str
        The loss that it was trained with, which decides what a prediction is.
    folder : pathlib.Path
        The run folder.
    example : torch.Tensor
        Two inputs of zeros, of the shape and dtype of the training samples.
    """

    def __init__(self, network: GatedNetwork, loss: str, folder: pathlib.Path, example: torch.Tensor) -> None:
        super().__init__()
        self.network, self.loss, self.folder, self.example = network, loss, folder, example
        self._trained = TrainedNetwork()
        self._trained.module, self._trained.loss, self._trained.phase = network, loss, EXPLOITING
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, m_y), before the last nonlinearity."""
        out: torch.Tensor = self.network(x)
        return out

    @property
    def report(self) -> Report | None:
        """The report at the end of the run."""
        return report_of(self.folder)

    def outputs(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return the outputs (n, m_y) of samples, without a graph: of any array type, a Dataset or a DataLoader."""
        return self._trained.outputs(X, batch_size=batch_size)

    def predict(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return a prediction for each sample.

        Labels (n,) for the cross-entropy, and for the binary cross-entropy with one output; 0 and 1 for each of several
        outputs, (n, m_y); the outputs (n, m_y) for the squared loss.
        """
        outputs = self.outputs(X, batch_size=batch_size)
        if self.loss == "squared":
            return outputs
        if self.loss == "cross_entropy" and outputs.shape[1] > 1:
            return outputs.argmax(1)
        labels = (outputs > 0).long()
        return labels[:, 0] if labels.shape[1] == 1 else labels

    def predict_proba(self, X: Any, *, batch_size: int = 512) -> torch.Tensor:
        """Return probabilities: of each class (n, m_y), or of label 1 for each output; not for the squared loss."""
        if self.loss == "squared":
            raise InvalidInput("predict_proba", "a network for the squared loss", "predict, which gives its values")
        outputs = self.outputs(X, batch_size=batch_size)
        several = self.loss == "cross_entropy" and outputs.shape[1] > 1
        return outputs.softmax(1) if several else outputs.sigmoid()

    def evaluate(self, X: Any, Y: Any = None) -> dict[str, float]:
        """Return loss and error (NaN for the squared loss) of samples."""
        return self._trained.evaluate(X, Y)

    def check(self, X: Any, Y: Any = None, **options: Any) -> CheckResult:
        """Check how far the loss of (X, Y) is from its global infimum, as :meth:`EEWrapper.check` does."""
        return self._trained.check(X, Y, **options)

    def recheck(self) -> CheckResult:
        """Check the certificate of the run again, with the weights and the inputs in its folder."""
        place = self.folder / "certificate"
        if not place.is_dir():
            need = "a run whose gap is proved; check(X, Y) makes a certificate"
            raise InvalidInput("folder", f"{self.folder}, without a certificate", need)
        inputs, _ = certificate_inputs(self.folder)
        return recheck(place, **inputs)

    def export(self, path: str | os.PathLike[str], *, X: Any = None) -> pathlib.Path:
        """Write the network for other programs: ``.pt2`` by torch.export, or ``.onnx``; the batch size stays free.

        Parameters
        ----------
        path : path
            Its suffix is the format.
        X : tensor, optional
            Two inputs or more; zeros of the shape of the training samples by default.

        Raises
        ------
        InvalidInput
            Another suffix, or a model that cannot be exported; the message has the reason.
        MissingDependency
            ONNX needs onnx and onnxscript.
        """
        target = require.path("path", path)
        if target.suffix not in (".pt2", ".onnx"):
            raise InvalidInput("path", str(target), "a name that ends in .pt2 or .onnx", code="not-a-choice")
        head = self.network.head.hidden
        example = (self.example if X is None else torch.as_tensor(X)[:2]).to(head.device)
        example = example.to(head.dtype) if example.is_floating_point() else example
        batch = {0: torch.export.Dim("batch", min=1)}
        if target.suffix == ".onnx":
            for library in ("onnx", "onnxscript"):
                if importlib.util.find_spec(library) is None:
                    raise MissingDependency(library, "an export to ONNX", "onnx")
        try:
            program = torch.export.export(self, (example,), dynamic_shapes=(batch,))
            if target.suffix == ".pt2":
                torch.export.save(program, target)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter, about torch
                    torch.onnx.export(program, f=target)
        except Exception as error:  # torch.export raises errors of many types
            got = f"a model that cannot be exported ({first_line(error)})"
            need = "a forward method without control flow on values"
            raise InvalidInput("model", got, need, "unsupported-model") from error
        return target


@in_memory
def load(folder: str | os.PathLike[str], *, model: nn.Module | Callable[[], nn.Module] | None = None) -> SavedNetwork:
    """Return the network of a finished run, ready to predict, check and export.

    Parameters
    ----------
    folder : path
        A run folder of ``alignver train`` or :class:`~alignver.training.run_folder.RunFolder`.
    model : torch.nn.Module or callable, optional
        The model that was trained, or a function that builds it. By default the code that the folder names
        (``FILE.py:FUNCTION`` of ``alignver train``) is imported and run, if it is unchanged.

    Raises
    ------
    InvalidInput
        The run is not finished; the code is missing or has changed; the model is another one.

    Examples
    --------
    See the page about training: ``av.load("run-1").predict(X)``.
    """
    place, config = pathlib.Path(folder), RunFolder.config_of(folder)
    weights = place / "model.safetensors"
    if not weights.exists():
        got = f"{place}, a run that is not finished"
        raise InvalidInput("folder", got, f"a finished run: alignver train --resume {place}", "unreadable-file")
    with reading("folder", f"{weights}, which cannot be read", "the original file"):
        description = _description(held(weights), config)
        dtype = load_file(weights)["head.hidden"].dtype
        if not dtype.is_floating_point:
            raise TypeError(f"weights of dtype {dtype}")
        example = torch.zeros(2, *description["shape"], dtype=getattr(torch, description["dtype"]))
        example = example.to(dtype) if example.is_floating_point() else example
        expected = description.get("probe")
        expected = None if expected is None else torch.tensor(expected, dtype=torch.float64)
        layers = None if description["layers"] is None else tuple(description["layers"])
        options = {name: description[name] for name in ("outputs", "width", "slope")}
        require.one_of("loss", description["loss"], LOSSES)
    try:
        with torch.random.fork_rng(devices=[]):
            built = _built(place, config) if model is None else built_by(model)
            require.instance("model", built, nn.Module, _MODEL)
            built = unwrapped(built)
            network = modify(deep_copy(built).to("cpu", dtype), example, layers=layers, **options)
        load_model(network, str(weights))
    except RuntimeError as error:
        got = f"another model than that of the run ({first_line(error)})"
        raise InvalidInput("model", got, _MODEL, code="wrong-shape") from error
    outputs = None if expected is None else probe(network, example_inputs(example.shape[1:], example.dtype))
    if outputs is not None and expected is not None:
        there = torch.tensor(outputs, dtype=torch.float64)
        if there.shape != expected.shape or not (there - expected).abs().max() <= _APART * expected.abs().max():
            got = "another model than that of the run: with the same weights it has other outputs"
            need = f"{_MODEL}; constants that are not in its state dict have to be the same"
            raise InvalidInput("model", got, need)
    return SavedNetwork(network, description["loss"], place, example)


def _description(weights: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the weights do not say: the metadata of the file, or else the options of 'alignver train'."""
    with safe_open(weights, "pt") as stored:
        document, hidden = (stored.metadata() or {}).get("alignver"), stored.get_slice("head.hidden").get_shape()
    if document is not None:
        return dict(json.loads(document))
    settings = config["settings"]
    if "X" not in settings or settings.get("loss") not in LOSSES:
        need = "a run that was finished by this version"
        raise InvalidInput("folder", f"{weights.parent}, which does not describe its model", need)
    described = {name: settings[name] for name in ("loss", "width")}
    described |= {"slope": settings["gate"], "layers": settings["layer"], "outputs": hidden[0]}
    return {**described, "shape": settings["X"]["shape"][1:], "dtype": settings["X"]["dtype"]}


def _built(folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
    """Build the model with the code that the run names; refuse code that has changed since."""
    spec = config.get("sources", {}).get("model")
    if spec is None:
        raise InvalidInput("model", "no model, and a run that names no code", _MODEL)
    require_code_elsewhere(folder, spec)
    place, _, function = spec.rpartition(":")
    digest = (config["settings"].get("code") or {}).get("sha256")
    try:
        if not place.endswith(".py"):
            return built_by(getattr(importlib.import_module(place), function))
        if digest != hashlib.sha256(pathlib.Path(place).read_bytes()).hexdigest():
            raise InvalidInput("model", f"{place}, which has changed since the run", _MODEL)
        with _importable(pathlib.Path(place).resolve().parent):
            return built_by(runpy.run_path(place)[function])
    except InvalidInput:
        raise
    except Exception as error:  # it is the user's code
        raise InvalidInput("model", f"{spec}, which cannot be built ({first_line(error)})", _MODEL) from error


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    """Let code import its neighbours, as a script does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
