"""Every figure and table of the paper that can be reproduced, by name."""

from __future__ import annotations

import difflib
import importlib

from alignver.errors import InvalidInput
from alignver.experiments.item import Item

__all__ = ["NAMES", "load"]

NAMES = (
    "figure1a",
    "figure1bc",
    "table1a",
    "table1b",
    "figure2",
    "figure3",
    "table2",
    "table2-gates",
    "table3",
    "table4",
    "figure4",
    "table5",
    "learning-rates",
    "table6",
    "tables7-15",
    "figure6",
)
"""The items, each in the module of its name (with an underscore for a hyphen); in the paper's order."""


def load(name: str) -> Item:
    """Return an item by its name.

    Raises
    ------
    InvalidInput
        There is none of that name.

    Examples
    --------
    >>> load("figure6").source
    'Figure 6, Appendix C'
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidInput("item", repr(name) + hint, "one of " + ", ".join(NAMES))
    item: Item = importlib.import_module(f"alignver.experiments.{name.replace('-', '_')}").ITEM
    return item
