"""The tracker in other people's training loops: Lightning, Hugging Face transformers, skorch, or any torch optimiser.

Each name is loaded, and with it the library that it is for, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from alignver.errors import MissingDependency

__all__ = ["LightningCallback", "SkorchCallback", "TrainerCallback", "optimizer_hook"]

_HOMES = {
    "LightningCallback": "lightning",
    "optimizer_hook": "on_optimizer",
    "SkorchCallback": "skorch",
    "TrainerCallback": "hugging_face",
}
_LIBRARIES = {"lightning": "lightning", "skorch": "skorch", "hugging_face": "transformers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    library = _LIBRARIES.get(home)
    try:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if library is None or (error.name or "").partition(".")[0] != library:
            raise
        raise MissingDependency(library, f"{__name__}.{name}", "integrations") from error


def __dir__() -> list[str]:
    return sorted(__all__)
