"""The alignment tracker as a callback of Lightning, Hugging Face transformers and skorch, and of any torch optimiser.

The callback classes are imported at their first use, each with the library that it is for.
"""

from __future__ import annotations

import importlib
from typing import Any

from alignver.errors import MissingDependency
from alignver.training.callbacks.deferred import Deferred, optimizer_hook

__all__ = ["Deferred", "LightningCallback", "SkorchCallback", "TrainerCallback", "optimizer_hook"]

_MODULES = {
    "LightningCallback": ("lightning", "lightning"),
    "SkorchCallback": ("skorch", "skorch"),
    "TrainerCallback": ("hugging_face", "transformers"),
}
"""For each callback class, its module in this package and the library that the module imports."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, library = _MODULES[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingDependency(library, f"{__name__}.{name}", "integrations") from error


def __dir__() -> list[str]:
    return sorted(__all__)
