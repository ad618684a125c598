"""The compact tables of a text report: no boxes, numbers to the right, nothing that a narrow terminal cannot show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from alignver.errors import printable
from alignver.results import Bound

__all__ = ["bounds_table", "methods_table", "number", "numbers_table", "rules_line", "rules_table"]


def number(value: Any) -> str:
    """Return a value as a table shows it: integers whole, floats to three digits, a missing one as a dash, printable.

    Examples
    --------
    >>> [number(value) for value in (200, 4.4408921e-13, 0.0, None, True)]
    ['200', '4.44e-13', '0', '-', 'yes']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return printable(str(value))


def _table(*columns: tuple[str, JustifyMethod]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for position, (title, justify) in enumerate((printable(title), justify) for title, justify in columns):
        sign = not title and position < len(columns) - 1
        # Words give way where there is no room; numbers, and what is between two of them, never.
        table.add_column(title, justify=justify, no_wrap=sign or justify == "right", overflow="fold")
    return table


def rules_line(rules: Iterable[Mapping[str, Any]]) -> str:
    """Return one line for rank rules that all give the same rank.

    Examples
    --------
    >>> rows = [{"rule": "press", "tolerance": 1e-13, "rank": 3}, {"rule": "golub", "tolerance": 4e-13, "rank": 3}]
    >>> rules_line(rows)
    'rank rules: all 2 give rank 3, at tolerances from 1e-13 to 4e-13'
    """
    rows = list(rules)
    tolerances = [float(row["tolerance"]) for row in rows]
    if len(rows) == 1:
        return f"rank rule {rows[0]['rule']}: rank {rows[0]['rank']} at tolerance {tolerances[0]:.2g}"
    spread = f"at tolerances from {min(tolerances):.2g} to {max(tolerances):.2g}"
    return f"rank rules: all {len(rows)} give rank {rows[0]['rank']}, {spread}"


def rules_table(rules: Iterable[Mapping[str, Any]], chosen: str | None = None) -> Table:
    """Return the rank rules side by side with the libraries that ship them; ``>`` marks the rule that decided."""
    table = _table(("  rank rule", "left"), ("tolerance", "right"), ("rank", "right"), ("default of", "left"))
    for row in rules:
        name = number(row.get("rule"))
        style = "bold" if name == chosen else ""
        cells = (("> " if name == chosen else "  ") + name, number(row.get("tolerance")), number(row.get("rank")))
        shipped_by = Text(number(row.get("shipped_by") or ""), style="dim")
        table.add_row(*(Text(cell, style=style) for cell in cells), shipped_by)
    return table


def methods_table(methods: Mapping[str, Any]) -> Table:
    """Return what each method found; the columns are whatever the methods measured, verdict first."""
    rows = {name: row for name, row in methods.items() if isinstance(row, Mapping)}
    keys = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if _scalar(value)))
    keys.sort(key=lambda key: key != "verdict")
    titles = [(key.replace("_", " "), _side(key)) for key in keys]
    table = _table(("method", "left"), *titles)
    for name, row in rows.items():
        table.add_row(Text(number(name)), *(Text(number(row.get(key))) for key in keys))
    return table


def bounds_table(bounds: Iterable[Bound]) -> Table:
    """Return measured values beside their limits."""
    table = _table(("bound", "left"), ("value", "right"), ("", "left"), ("limit", "right"), ("", "left"))
    for bound in bounds:
        state = Text("met") if bound.satisfied else Text("not met", style="bold red")
        table.add_row(Text(number(bound.name)), f"{bound.value:.3g}", bound.relation, f"{bound.limit:.3g}", state)
    return table


def numbers_table(measured: Mapping[str, Any]) -> Table | None:
    """Return the plain numbers among what was measured, or None if there are none."""
    rows = {key: value for key, value in measured.items() if _scalar(value)}
    if not rows:
        return None
    table = _table(("measured", "left"), ("", "left"))
    for key, value in rows.items():
        table.add_row(Text(number(key.replace("_", " "))), Text(number(value)))
    return table


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _side(key: str) -> JustifyMethod:
    return "left" if key == "verdict" else "right"
