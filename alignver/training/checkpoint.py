"""Everything that a bit-identical continuation of a run needs, in memory and on disk."""

from __future__ import annotations

import os
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from alignver.errors import InvalidInput
from alignver.training.wrapper import EEWrapper

__all__ = ["load", "restore", "save", "state"]


def state(wrapper: EEWrapper) -> dict[str, Any]:
    """Return parameters, buffers, optimiser, generators and counters; tensors are the run's own, not copies."""
    return {
        "network": wrapper.module.state_dict(),
        "optimizer": wrapper.optimizer.state_dict(),
        "generator": wrapper.generator.get_state(),
        "random_state": torch.get_rng_state(),
        "phase": wrapper.phase,
        "steps": wrapper.steps,
        "epochs": wrapper.epochs,
        "training": [module.training for module in wrapper.module.modules()],
    }


def restore(wrapper: EEWrapper, kept: Mapping[str, Any], X: Any, Y: Any) -> EEWrapper:
    """Take up a run where :func:`state` left it, in either phase; the wrapper is built as that of the run was.

    In exploitation, features are computed and ranks proved again: they are functions of the parameters.
    """
    wrapper.prepare(X, Y)
    wrapper.module.load_state_dict(kept["network"])
    wrapper.phase, wrapper.steps, wrapper.epochs = kept["phase"], kept["steps"], kept["epochs"]
    for module, mode in zip(wrapper.module.modules(), kept["training"], strict=True):
        module.training = mode
    wrapper.resume(X, Y)
    wrapper.optimizer.load_state_dict(kept["optimizer"])
    wrapper.generator.set_state(kept["generator"])
    torch.set_rng_state(kept["random_state"])
    return wrapper


def save(wrapper: EEWrapper, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that appears whole or not at all.

    Raises
    ------
    InvalidInput
        It cannot be written, or the disk is full: the file that was there is untouched.
    """
    file = pathlib.Path(path)
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            torch.save(state(wrapper), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        message = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InvalidInput("checkpoint", f"{file}, which cannot be written ({message})", "a disk with room") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only, no code."""
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            "checkpoint", f"{os.fspath(path)}, which cannot be read ({message})", "a checkpoint"
        ) from error
    return kept
