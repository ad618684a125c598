"""Checkpoints, in memory and on disk, with everything that a bit-identical continuation of a run needs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignver import atomic, require
from alignver.checks.exploration import Ranks
from alignver.data.archives import require_room
from alignver.errors import InvalidInput, first_line, kind_of, reading
from alignver.training.exploitation import CachedProblem, as_model
from alignver.training.guarantee import Guarantee, guarantee
from alignver.training.solvers import Recorder
from alignver.training.wrapper import EEWrapper
from alignver.training.wrapper_base import EXPLOITING

__all__ = ["load", "restore", "save", "state"]

_SETTINGS = ("loss", "epsilon", "slope", "seed", "repair", "tau")
_KEYS = {"network", "optimizer", "generator", "random_state", "cuda_random_states", "settings", "phase", "steps"}
_KEYS |= {"epochs", "history", "training", "exploitation"}


def state(wrapper: EEWrapper) -> dict[str, Any]:
    """Return parameters, optimiser, generators, counters and history as plain data; the tensors are not copied."""
    wrapper.require_prepared("checkpoint")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return {
        "network": wrapper.module.state_dict(),
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
        "taken_back": guarantee.taken_back,
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
    try:
        wrapper.module.load_state_dict(saved["network"])
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
    at_tau = {name: saved[name] for name in ("replaced", "moved", "taken_back", "notes", "batch_size")}
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
        It cannot be written, or the disk is full: an existing file is unchanged.
    """
    file = pathlib.Path(path)
    try:
        with atomic.writing(file) as stream:
            torch.save(state(wrapper), stream)
    except (OSError, RuntimeError) as error:
        message = error.strerror if isinstance(error, OSError) else first_line(error)
        got = f"{file}, which cannot be written ({message})"
        raise InvalidInput("checkpoint", got, "a disk with room", code="unwritable-file") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only, no code; the checksums of the file are verified.

    Raises
    ------
    InvalidInput
        The file is not a checkpoint, or has been damaged since it was written.
    """
    file = require.path("checkpoint", path)
    with reading("checkpoint", f"{file}, which cannot be read", "a checkpoint"):
        with zipfile.ZipFile(file) as archive:  # torch.load ignores the checksums
            require_room(archive, archive.namelist(), "checkpoint")
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        saved: Any = torch.load(file, weights_only=True, map_location="cpu")
    if not isinstance(saved, dict) or not saved.keys() >= _KEYS:
        got = f"{file}, which does not hold the state of a run"
        raise InvalidInput("checkpoint", got, "a checkpoint written by save()", code="unreadable-file")
    return saved
