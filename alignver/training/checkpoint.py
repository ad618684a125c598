"""Checkpoints, in memory and on disk, with everything that a bit-identical continuation of a run needs.

A file is in the format safetensors: the tensors under their places in the state, such as ``network.head.hidden`` and
``optimizer.state.0.exp_avg``; everything else as JSON, in the bytes of the tensor ``document``. Its metadata has the
SHA-256 digest of both. Reading runs no code.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from alignver import atomic, require
from alignver.checks.exploration import Ranks
from alignver.data.archives import require_memory
from alignver.errors import InvalidInput, first_line, kind_of, reading, saving
from alignver.training.exploitation import CachedProblem, as_model
from alignver.training.guarantee import Guarantee, guarantee
from alignver.training.solvers import Recorder
from alignver.training.wrapper import EEWrapper
from alignver.training.wrapper_base import EXPLOITING

_SETTINGS = ("loss", "epsilon", "slope", "seed", "repair", "tau")
_KEYS = {"network", "optimizer", "generator", "random_state", "cuda_random_states", "settings", "phase", "steps"}
_KEYS |= {"epochs", "history", "training", "exploitation", "versions"}
_DOCUMENT, _DIGEST = "document", "sha256"


def state(wrapper: EEWrapper) -> dict[str, Any]:
    """Return parameters, optimiser, generators, counters and history as plain data; the tensors are not copied."""
    wrapper.require_prepared("checkpoint")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    network = wrapper.module.state_dict()
    return {
        "network": network,
        "versions": getattr(network, "_metadata", {}),
        "optimizer": wrapper.optimizer.state_dict(),
        "generator": wrapper.generator.get_state(),
        "random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all() if cuda else [],
        "settings": {name: getattr(wrapper, name) for name in _SETTINGS},
        "phase": wrapper.phase,
        "steps": wrapper.steps,
        "epochs": wrapper.epochs,
        "history": [dict(record) for record in wrapper.history],
        "training": [module.training for module in wrapper.module.modules()],
        "exploitation": None if wrapper.guarantee is None else _exploitation(wrapper, wrapper.guarantee),
    }


def _exploitation(wrapper: EEWrapper, guarantee: Guarantee) -> dict[str, Any]:
    return {
        "cached": wrapper.cached,
        "weights_at_tau": torch.from_numpy(np.array(guarantee.weights)),
        "before": None if guarantee.before is None else dataclasses.asdict(guarantee.before),
        "proved": guarantee.after is not None,
        "replaced": guarantee.replaced,
        "moved": guarantee.moved,
        "feature_reset": guarantee.feature_reset,
        "notes": guarantee.notes,
        "batch_size": guarantee.batch_size,
        "recorder": None if wrapper.recorder is None else wrapper.recorder.state(),
    }


def restore(wrapper: EEWrapper, saved: Mapping[str, Any], X: Any, Y: Any) -> EEWrapper:
    """Restore a run from its :func:`state`, in either phase; the wrapper is built with the settings of the run.

    In exploitation, features are computed and ranks proved again: they are functions of the parameters.

    Raises
    ------
    InvalidInput
        The state is not that of a run, or is that of a run with other settings or another model.
    """
    _require_same_run(wrapper, saved)
    wrapper.prepare(X, Y)
    network = collections.OrderedDict(saved["network"])
    vars(network)["_metadata"] = saved["versions"]  # as torch keeps the versions of modules
    try:
        wrapper.module.load_state_dict(network)
    except RuntimeError as error:
        got = f"parameters of another model ({first_line(error)})"
        raise InvalidInput("checkpoint", got, "those of the run") from error
    wrapper.steps, wrapper.epochs = saved["steps"], saved["epochs"]
    wrapper.history[:] = [dict(record) for record in saved["history"]]
    for module, mode in zip(wrapper.module.modules(), saved["training"], strict=True):
        module.training = mode
    if saved["phase"] == EXPLOITING:
        _resume(wrapper, saved["exploitation"], X, Y)
    try:
        wrapper.optimizer.load_state_dict(saved["optimizer"])
    except (ValueError, KeyError) as error:
        got = f"the state of another optimiser ({first_line(error)})"
        raise InvalidInput("checkpoint", got, "the optimiser of the run") from error
    wrapper.generator.set_state(saved["generator"])
    torch.set_rng_state(saved["random_state"])
    if saved["cuda_random_states"]:
        torch.cuda.set_rng_state_all(saved["cuda_random_states"])
    return wrapper


def _resume(wrapper: EEWrapper, saved: Mapping[str, Any], X: Any, Y: Any) -> None:
    """Compute features, ranks and constants again from the parameters; the rest of the guarantee is that at tau."""
    problem = CachedProblem(wrapper.module, wrapper._inputs(X))
    model, weights = as_model(wrapper.module, problem.Z), saved["weights_at_tau"].numpy()
    current = guarantee(model, weights, loss=wrapper.loss, mode="none", prove=saved["proved"])
    at_tau = {name: saved[name] for name in ("replaced", "moved", "feature_reset", "notes", "batch_size")}
    before = None if saved["before"] is None else Ranks(**saved["before"])
    wrapper.recorder = None if saved["recorder"] is None else Recorder.of(saved["recorder"])
    wrapper.resume(dataclasses.replace(current, before=before, **at_tau), problem if saved["cached"] else None, Y)


def _require_same_run(wrapper: EEWrapper, saved: Mapping[str, Any]) -> None:
    settings = saved.get("settings") if isinstance(saved, Mapping) else None
    if not isinstance(settings, Mapping):
        got = f"{kind_of(saved)} that is not the state of a run"
        raise InvalidInput("checkpoint", got, "a checkpoint written by save()", code="unreadable-file")
    for name in _SETTINGS:
        if settings.get(name) != getattr(wrapper, name):
            got = f"a run with {name}={settings.get(name)!r} for a wrapper with {name}={getattr(wrapper, name)!r}"
            raise InvalidInput("checkpoint", got, "the settings of the run")


def save(wrapper: EEWrapper, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint; the file appears complete or not at all.

    Raises
    ------
    InvalidInput
        It cannot be written, or the disk is full: an existing file is unchanged. The optimiser, or a module, keeps
        something other than tensors and plain data in its state.
    """
    file, tensors = pathlib.Path(path), _Tensors()
    document = json.dumps(tensors.taken_from(state(wrapper), "")).encode()
    tensors.held[_DOCUMENT] = torch.frombuffer(bytearray(document), dtype=torch.uint8)
    with saving("checkpoint", file, "free space on the disk", SafetensorError), atomic.replacing(file) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors.held, part, metadata={_DIGEST: _digest(tensors.held)})
        part.chmod(mode)  # safetensors restricts it to the owner
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only, no code; its digest is compared.

    Raises
    ------
    InvalidInput
        The file is not a checkpoint, or has been damaged since it was written.
    """
    file = require.path("checkpoint", path)
    with reading("checkpoint", f"{file}, which cannot be read", "a checkpoint"):
        require_memory(file.stat().st_size, "checkpoint")
        with safe_open(file, "pt") as stored:
            digest = (stored.metadata() or {}).get(_DIGEST)
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - no mapping
        if digest is not None and digest != _digest(tensors):
            raise ValueError("its digest differs: the file is damaged")
        document = tensors.get(_DOCUMENT) if digest is not None else None
        saved = None if document is None else _assembled(json.loads(document.numpy().tobytes()), tensors)
    if not isinstance(saved, dict) or not saved.keys() >= _KEYS:
        got = f"{file}, which does not hold the state of a run"
        raise InvalidInput("checkpoint", got, "a checkpoint written by save()", code="unreadable-file")
    return saved


class _Tensors:
    """The tensors of a state, a storage once, by the name of their place in it."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def taken_from(self, value: Any, place: str) -> Any:
        """Return a value as plain JSON, after taking the tensors in it; {kind: content} is what JSON does not have."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return self.taken_from(value.item(), place)
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            if value.is_complex():
                return {"complex": self._name(torch.view_as_real(value.resolve_conj()), place)}
            return {"tensor": self._name(value, place)}
        if isinstance(value, Mapping) and all(isinstance(key, int | str) for key in value):
            return {"dict": [[k, self.taken_from(v, f"{place}.{k}".removeprefix("."))] for k, v in value.items()]}
        if isinstance(value, tuple | list):
            items = [self.taken_from(item, f"{place}.{k}") for k, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        need = "an optimiser and modules whose state is tensors, numbers and texts"
        raise InvalidInput("checkpoint", f"{place}, {kind_of(value)}", need, code="wrong-type")

    def _name(self, tensor: torch.Tensor, place: str) -> str:
        storage = tensor.untyped_storage()._cdata
        key = (storage, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in self._names or not tensor.numel():  # tied weights have one name
            while place in self.held or place == _DOCUMENT:
                place += "_"
            copy = tensor.detach().resolve_neg().cpu().contiguous()
            whole = copy.untyped_storage().nbytes() == copy.nbytes and storage not in self._storages
            self.held[place] = copy if whole else copy.clone()
            self._names[key] = place
            self._storages.add(storage)
        return self._names[key]


def _assembled(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the value that :meth:`_Tensors.taken_from` was given."""
    if isinstance(value, list):
        return [_assembled(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: _assembled(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_assembled(item, tensors) for item in content)
    return torch.view_as_complex(tensors[content]) if kind == "complex" else tensors[content]


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        entries = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # also of dtypes that NumPy lacks
        content.update(entries.numpy().data)
    return content.hexdigest()
