"""The figures and tables of the paper, and problems with known answers, by name."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from alignver.errors import InvalidInput

if TYPE_CHECKING:
    from alignver.experiments.conduct import Item

__all__ = ["NAMES", "load"]

_MODULES = {
    "figure1a": "fully_connected",
    "figure1a-network": "network_alignment",
    "figure1bc": "lenet",
    "table1a": "fully_connected",
    "table1b": "lenet",
    "figure2": "sine_wave",
    "figure3": "sine_wave",
    "readings": "readings",
    "kappa": "kappa",
    "table2": "table2",
    "table2-gates": "table2",
    "table2-network": "table2",
    "table2-distinct": "distinct_images",
    "table3": "image_tables",
    "table4": "image_tables",
    "figure4": "image_tables",
    "table5": "image_tables",
    "learning-rates": "image_tables",
    "table6": "grid_search",
    "tables7-15": "grid_search",
    "figure6": "image_tables",
}
NAMES = tuple(_MODULES)
"""The items, in the paper's order; each is a constant of its module, in capitals with an underscore for a hyphen."""


def load(name: str) -> Item:
    """Return an item by its name.

    Raises
    ------
    InvalidInput
        No item has this name.

    Examples
    --------
    >>> load("figure6").source
    'Figure 6, Appendix C'
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidInput("item", repr(name) + hint, "one of " + ", ".join(NAMES), code="not-a-choice")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    item: Item = getattr(module, name.replace("-", "_").upper())
    return item
