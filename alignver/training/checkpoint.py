"""Everything that a bit-identical continuation of a run needs, in memory and on disk."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignver import atomic
from alignver.checks.exploration import Ranks
from alignver.data.archives import require_room
from alignver.errors import InvalidInput, first_line, reading
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
    """Return parameters, optimiser, generators, counters and history as plain data; tensors are the run's own."""
    wrapper.require_prepared("checkpoint")
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
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
        "exploitation": None if wrapper.guarantee is None else _known(wrapper, wrapper.guarantee),
    }


def _known(wrapper: EEWrapper, found: Guarantee) -> dict[str, Any]:
    return {
        "cached": wrapper.cached,
        "weights_at_tau": torch.from_numpy(np.array(found.weights)),
        "before": None if found.before is None else dataclasses.asdict(found.before),
        "proved": found.after is not None,
        "replaced": found.replaced,
        "moved": found.moved,
        "taken_back": found.taken_back,
        "notes": found.notes,
        "batch_size": found.batch_size,
        "recorder": None if wrapper.recorder is None else wrapper.recorder.state(),
    }


def restore(wrapper: EEWrapper, kept: Mapping[str, Any], X: Any, Y: Any) -> EEWrapper:
    """Take up a run where :func:`state` left it, in either phase; the wrapper is built as that of the run was.

    In exploitation, features are computed and ranks proved again: they are functions of the parameters.

    Raises
    ------
    InvalidInput
        Not the state of a run, or of a run with other settings or another model.
    """
    _same_run(wrapper, kept)
    wrapper.prepare(X, Y)
    try:
        wrapper.module.load_state_dict(kept["network"])
    except RuntimeError as error:
        raise InvalidInput(
            "checkpoint", f"parameters of another model ({first_line(error)})", "the run's own"
        ) from error
    wrapper.steps, wrapper.epochs = kept["steps"], kept["epochs"]
    wrapper.history[:] = [dict(record) for record in kept["history"]]
    for module, mode in zip(wrapper.module.modules(), kept["training"], strict=True):
        module.training = mode
    if kept["phase"] == EXPLOITING:
        known = kept["exploitation"]
        problem, found = _known_again(wrapper, known, X)
        wrapper.recorder = None if known["recorder"] is None else Recorder.of(known["recorder"])
        wrapper.resume(found, problem, Y)
    try:
        wrapper.optimizer.load_state_dict(kept["optimizer"])
    except (ValueError, KeyError) as error:
        got = f"the state of another optimiser ({first_line(error)})"
        raise InvalidInput("checkpoint", got, "the optimiser of the run") from error
    wrapper.generator.set_state(kept["generator"])
    torch.set_rng_state(kept["random_state"])
    if kept["cuda_random_states"]:
        torch.cuda.set_rng_state_all(kept["cuda_random_states"])
    return wrapper


def _known_again(wrapper: EEWrapper, known: Mapping[str, Any], X: Any) -> tuple[CachedProblem | None, Guarantee]:
    """Compute features, ranks and constants anew from the parameters; what happened at tau is as it was kept."""
    problem = CachedProblem(wrapper.module, wrapper._inputs(X))
    weights = known["weights_at_tau"].numpy()
    found = guarantee(
        as_model(wrapper.module, problem.Z), weights, loss=wrapper.loss, mode="none", prove=known["proved"]
    )
    before = known["before"]
    found = dataclasses.replace(
        found,
        before=None if before is None else Ranks(**before),
        replaced=known["replaced"],
        moved=known["moved"],
        taken_back=known["taken_back"],
        notes=known["notes"],
        batch_size=known["batch_size"],
    )
    return problem if known["cached"] else None, found


def _same_run(wrapper: EEWrapper, kept: Mapping[str, Any]) -> None:
    settings = kept.get("settings") if isinstance(kept, Mapping) else None
    if not isinstance(settings, Mapping):
        raise InvalidInput("checkpoint", f"a {type(kept).__name__} that is no run's state", "what save() wrote")
    for name in _SETTINGS:
        if settings.get(name) != getattr(wrapper, name):
            got = f"a run with {name}={settings.get(name)!r} beside {name}={getattr(wrapper, name)!r}"
            raise InvalidInput("checkpoint", got, "the settings of the run")


def save(wrapper: EEWrapper, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that appears whole or not at all.

    Raises
    ------
    InvalidInput
        It cannot be written, or the disk is full: the file that was there is untouched.
    """
    file = pathlib.Path(path)
    try:
        with atomic.writing(file) as stream:
            torch.save(state(wrapper), stream)
    except (OSError, RuntimeError) as error:
        message = error.strerror if isinstance(error, OSError) else first_line(error)
        raise InvalidInput("checkpoint", f"{file}, which cannot be written ({message})", "a disk with room") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only, no code; every byte is held against the file's checksums.

    Raises
    ------
    InvalidInput
        No checkpoint, or one that has been damaged since it was written.
    """
    file = os.fspath(path)
    with reading("checkpoint", f"{file}, which cannot be read", "a checkpoint"):
        with zipfile.ZipFile(file) as archive:  # torch.load reads past checksums
            require_room(archive, archive.namelist(), "checkpoint")
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        kept: Any = torch.load(file, weights_only=True, map_location="cpu")
    if not isinstance(kept, dict) or not kept.keys() >= _KEYS:
        raise InvalidInput("checkpoint", f"{file}, which holds no run's state", "what save() wrote")
    return kept
