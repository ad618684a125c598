"""The few things that the command line itself does with torch, which it imports by name when a command needs it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignver.cli import builders
from alignver.cli.backends import library, place
from alignver.cli.files import named, regular
from alignver.errors import InvalidInput
from alignver.report import provenance

__all__ = ["environment", "in_dtype", "load", "optimizer"]

_PURPOSE = "checking a torch model"


def load(spec: str, weights: str | None, *, device: str, seed: int) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Build the user's model from ``seed``, load its weights and move it to ``device``.

    Returns the model and what identifies it in a report: the hashes of its code and of its weights.
    """
    torch = library("torch", _PURPOSE)
    chosen = place(device)
    if weights is not None:
        regular(weights, "--weights")
    torch.manual_seed(seed)
    model = builders.built(spec)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(builders.ARGUMENT, f"{spec}() that returns a {type(model).__name__}", "a torch.nn.Module")
    identity = {}
    code = builders.code_digest(spec)
    if code is not None:
        identity["model"] = code
    if weights is not None:
        _load_weights(model, weights)
        content = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        identity["weights"] = {"sha256": content, "file": Path(weights).name}
    return model.to(chosen), identity


def _load_weights(model: Any, file: str) -> None:
    """Load a .safetensors file into the model, strictly; a pickled checkpoint is never opened."""
    name = named("--weights", file)
    safetensors = library("safetensors", "--weights")
    reader = library("safetensors.torch", "--weights")
    try:
        missing, unexpected = reader.load_model(model, file, strict=False)
    except (safetensors.SafetensorError, OSError) as error:
        remedy = "a .safetensors file: safetensors.torch.save_model(model, file) makes one; pickles are never opened"
        raise InvalidInput(name, f"no .safetensors file ({error})", remedy) from error
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4]) or str(error)
        raise InvalidInput(name, f"tensors of other shapes ({reason})", "the weights of this model") from error
    if missing or unexpected:
        parts = [f"without {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"with {', '.join(sorted(unexpected)[:4])}, which the model has not"] if unexpected else []
        raise InvalidInput(name, "weights " + " and ".join(parts), "the weights of this model")


def optimizer(name: str, lr: float, momentum: float | None, weight_decay: float) -> Callable[[Any], Any]:
    """Return what makes an optimiser of that name, ``"sgd"`` or ``"adam"``, from parameters."""
    torch = library("torch", "training")
    if not 0.0 < lr < math.inf:
        raise InvalidInput("--lr", f"{lr}", "a positive finite step size")
    if not 0.0 <= weight_decay < math.inf:
        raise InvalidInput("--weight-decay", f"{weight_decay}", "a finite number >= 0")
    if name == "adam":
        return lambda parameters: torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    if momentum is None or not 0.0 <= momentum < 1.0:
        raise InvalidInput("--momentum", f"{momentum}", "a number from 0 to below 1")
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def in_dtype(model: Any, dtype: str) -> Any:
    """Return the model with its floating-point parameters and buffers in a dtype; ``"same"`` leaves them."""
    return model if dtype == "same" else model.to(getattr(library("torch", "training"), dtype))


def environment() -> dict[str, Any]:
    """Return what the bits of a computation depend on beside its inputs: versions, and the threads that sum."""
    return {**provenance.versions(), "threads": library("torch", "training").get_num_threads()}
