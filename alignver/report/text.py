"""The text report: a verdict line, the sentences under it, and compact tables without boxes.

The sentences are those of :meth:`alignver.results.CheckResult.lines`, so a terminal and ``str(result)`` show the same.
This module only adds colour, the folding of long lines and the tables.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from alignver.errors import printable
from alignver.results import Bound, CheckResult, Rigor, Verdict


def number(value: Any, digits: int = 3) -> str:
    """Return a value as a table shows it: integers in full, floats rounded, None as a dash, printable.

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
        return f"{value:.{digits}g}"
    return printable(str(value))


def _table(*columns: tuple[str, JustifyMethod]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for position, (title, justify) in enumerate((printable(title), justify) for title, justify in columns):
        sign = not title and position < len(columns) - 1
        # Words fold where there is no room; numbers and the signs between them never do.
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


def rules_table(rules: Iterable[Mapping[str, Any]], deciding: str | None = None) -> Table:
    """Return the rank rules side by side with the libraries that ship them; ``>`` marks the deciding rule."""
    table = _table(("  rank rule", "left"), ("tolerance", "right"), ("rank", "right"), ("default of", "left"))
    for row in rules:
        name = number(row.get("rule"))
        style = "bold" if name == deciding else ""
        cells = (("> " if name == deciding else "  ") + name, number(row.get("tolerance")), number(row.get("rank")))
        shipped_by = Text(number(row.get("shipped_by") or ""), style="dim")
        table.add_row(*(Text(cell, style=style) for cell in cells), shipped_by)
    return table


def methods_table(methods: Mapping[str, Any]) -> Table:
    """Return the results of each method; the columns are the quantities that the methods measured, verdict first."""
    rows = {name: row for name, row in methods.items() if isinstance(row, Mapping)}
    keys = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if scalar(value)))
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
    """Return the single values among the measured ones, or None if there are none."""
    rows = {key: value for key, value in measured.items() if scalar(value) and value is not None}
    if not rows:
        return None
    table = _table(("measured", "left"), ("", "left"))
    for key, value in rows.items():
        table.add_row(Text(number(key.replace("_", " "))), Text(number(value)))
    return table


def scalar(value: Any) -> bool:
    """Return whether a value is a single one: a number, a text, True, False or None."""
    return value is None or isinstance(value, bool | int | float | str)


def _side(key: str) -> JustifyMethod:
    return "left" if key == "verdict" else "right"


VERDICT_STYLES = {Verdict.HOLDS: "bold green", Verdict.FAILS: "bold red", Verdict.UNDECIDED: "bold yellow"}
"""Colour of each verdict on a terminal."""

RIGOR_STYLES = {Rigor.PROOF: "bold", Rigor.NUMERICAL: "", Rigor.STATISTICAL: "italic"}

_UNFOLDED = 1 << 14  # the width of piped output: each sentence on one line, for grep and diff
_LONGEST_TAIL = len("UNDECIDED  numerical (computed matrix)")
_HEAD = 56  # as in CheckResult.__str__


class _Console(Console):
    """A console that escapes the control characters of texts; rich alone moves the cursor and sets colours."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                lines = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(lines, segment.style)


def console(file: IO[str]) -> Console:
    """Return a console on ``file``: coloured and folded on a terminal, plain and one sentence a line elsewhere.

    ``NO_COLOR``, ``TERM=dumb`` and ``COLUMNS`` are respected. Control characters in a text are shown escaped.
    """
    terminal = hasattr(file, "isatty") and file.isatty()
    width = None if terminal or os.environ.get("COLUMNS", "").isdecimal() else _UNFOLDED
    return _Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def put(out: Console, *rows: RenderableType) -> None:
    """Print on a console without cutting wider rows, which may be commands to copy."""
    for row in rows:
        out.print(row, crop=False)


def render(result: CheckResult, width: int, *, verbosity: int = 0, notes: tuple[str, ...] = ()) -> Group:
    """Return the report of one result for a console of ``width`` columns.

    ``verbosity`` -1 gives the verdict line alone; 0 adds the sentences, and the table of rank rules if the rules
    disagree; 1 adds all tables. ``notes`` are further sentences of the caller; the cost of the check comes last.
    """
    parts: list[RenderableType] = [header(result, width)]
    if verbosity >= 0:
        lines = result.lines()
        count = len(lines) - (1 if result.cost.keys() & {"seconds", "peak_bytes"} else 0)
        parts += sentences(lines[:count], width)
        parts += details(result, width, verbosity)
        parts += sentences(notes, width, commands=True)
        parts += sentences(lines[count:], width, style="dim")
    return Group(*parts)


def header(result: CheckResult, width: int) -> Text:
    """Return the verdict line; all verdicts start in the same column if there is room."""
    head = max(min(_HEAD, width - 2 - _LONGEST_TAIL), 0)
    statement, gap = printable(result.statement), "  "
    free = head - cell_len(statement)
    if free >= 0:
        statement += " " * free
    else:  # a long statement moves the verdict, onto its own line if there is no room
        rows = _folded(statement, width)
        tail = f"  {result.answer}"
        gap = "  " if cell_len(rows[-1] + tail) <= width else "\n  "
        statement = "\n".join(rows)
    return Text.assemble(
        (statement, "bold"),
        gap,
        (str(result.verdict), VERDICT_STYLES[result.verdict]),
        "  ",
        (result.rigor.value.lower(), RIGOR_STYLES[result.rigor]),
        f" ({result.subject.words})",
        no_wrap=False,
        overflow="fold",
    )


def sentences(lines: tuple[str, ...], width: int, *, style: str = "", commands: bool = False) -> Iterator[Text]:
    """Fold each sentence at ``width`` with a hanging indent.

    With ``commands``, a line with an alignver command stays whole, so that it can be copied.
    """
    for line in map(printable, lines):
        room = _UNFOLDED if commands and ": alignver " in line else width
        for row in _folded(line, room, indent="  ", break_long_words=False):
            yield Text(row, style=style, no_wrap=True, overflow="ignore")


def _folded(line: str, width: int, *, indent: str = "", break_long_words: bool = True) -> list[str]:
    """Fold a line; further rows are indented, so that none of them looks like a verdict line."""
    rows = textwrap.wrap(
        line,
        width if cell_len(line) == len(line) else width // 2,  # wide letters take two columns
        initial_indent=indent,
        subsequent_indent="    ",
        break_long_words=break_long_words,
        break_on_hyphens=False,
    )
    return rows or [""]  # a line of blanks


def details(result: CheckResult, width: int, verbosity: int) -> Iterator[RenderableType]:
    """Return the tables under a result: the rank rules, the methods and, when verbose, tolerance, bounds, numbers."""
    rules = _rows(result.measured.get("rules"))
    methods = result.measured.get("methods")
    if rules:
        deciding = result.tolerance.rule if result.tolerance else None
        ranks = {row.get("rank") for row in rules}
        if verbosity > 0 or len(ranks - {None}) > 1:
            yield _Block(rules_table(rules, deciding), indent=0)  # its first column has room for the mark
        elif None not in ranks:
            yield from sentences((rules_line(rules),), width)
    if isinstance(methods, Mapping) and methods and (verbosity > 0 or _disagree(methods)):
        yield _Block(methods_table(methods))
    if verbosity <= 0:
        return
    if result.tolerance is not None:
        rule = result.tolerance
        words = f"tolerance {rule.value:.3g} by {rule.rule}: {rule.formula}, eps {rule.eps:.3g} ({rule.source})"
        yield from sentences((words,), width)
    if result.bounds:
        yield _Block(bounds_table(result.bounds))
    numbers = numbers_table(result.measured)
    if numbers is not None:
        yield _Block(numbers)


class _Block:
    """A table with the indent of the sentences, without trailing blanks."""

    def __init__(self, table: RenderableType, indent: int = 2) -> None:
        self._table = Padding(table, (0, 0, 0, indent), expand=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                last = line.pop()
                line.append(Segment(last.text.rstrip(), last.style, last.control))
            yield from line
            yield Segment.line()


def _rows(value: Any) -> tuple[Mapping[str, Any], ...]:
    rows = value if isinstance(value, tuple | list) else ()
    return tuple(row for row in rows if isinstance(row, Mapping))


def _disagree(methods: Mapping[str, Any]) -> bool:
    verdicts = {row.get("verdict") for row in methods.values() if isinstance(row, Mapping)}
    return len(verdicts) > 1
