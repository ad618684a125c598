"""The text report: a verdict line, the sentences under it, and the tables that stand behind them.

The sentences are those of :meth:`alignver.results.CheckResult.lines`, so what a terminal shows and what ``str(result)``
says never differ; only colour, the folding of long lines and the tables are added here.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from alignver.errors import printable
from alignver.report.tables import bounds_table, methods_table, numbers_table, rules_line, rules_table
from alignver.results import CheckResult, Rigor, Verdict

__all__ = ["VERDICT_STYLES", "console", "details", "header", "put", "render", "sentences"]

VERDICT_STYLES = {Verdict.HOLDS: "bold green", Verdict.FAILS: "bold red", Verdict.UNDECIDED: "bold yellow"}
"""Colour of each verdict on a terminal; the word itself says the same without colour."""

RIGOR_STYLES = {Rigor.PROOF: "bold", Rigor.NUMERICAL: "", Rigor.STATISTICAL: "italic"}

_UNFOLDED = 1 << 14  # the width of what is piped: one sentence, one line, which grep and diff can use
_LONGEST_TAIL = len("UNDECIDED  numerical (computed matrix)")
_HEAD = 56  # as in CheckResult.__str__


class _Console(Console):
    """A console whose cursor and colours rich alone moves: text has no control characters, whoever wrote it."""

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
    """Print on a console without cutting what is wider, which is there to be copied."""
    for row in rows:
        out.print(row, crop=False)


def render(result: CheckResult, width: int, *, verbosity: int = 0, notes: tuple[str, ...] = ()) -> Group:
    """Return the report of one result for a console of ``width`` columns.

    ``verbosity`` -1 leaves the verdict line only; 0 adds the sentences, and the table of rank rules where the rules
    disagree; 1 adds every table. ``notes`` are further sentences of the caller's; what the check cost comes last.
    """
    parts: list[RenderableType] = [header(result, width)]
    if verbosity >= 0:
        lines = result.lines()
        said = len(lines) - (1 if result.cost.keys() & {"seconds", "peak_bytes"} else 0)
        parts += sentences(lines[:said], width)
        parts += details(result, width, verbosity)
        parts += sentences(notes, width, commands=True)
        parts += sentences(lines[said:], width, style="dim")
    return Group(*parts)


def header(result: CheckResult, width: int) -> Text:
    """Return the verdict line; the verdict sits in the same column whatever it is."""
    head = max(min(_HEAD, width - 2 - _LONGEST_TAIL), 0)
    statement, gap = printable(result.statement), "  "
    free = head - cell_len(statement)
    if free >= 0:
        statement += " " * free
    else:  # a long one pushes the verdict, onto a line of its own where there is no room
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

    With ``commands`` a line with one of ours, which is there to be copied, stays whole.
    """
    for line in map(printable, lines):
        room = _UNFOLDED if commands and ": alignver " in line else width
        for row in _folded(line, room, indent="  ", break_long_words=False):
            yield Text(row, style=style, no_wrap=True, overflow="ignore")


def _folded(line: str, width: int, *, indent: str = "", break_long_words: bool = True) -> list[str]:
    """Fold a line; what is on further rows is indented, since at their beginning it could pass for a verdict."""
    rows = textwrap.wrap(
        line,
        width if cell_len(line) == len(line) else width // 2,  # wide letters take two columns
        initial_indent=indent,
        subsequent_indent="    ",
        break_long_words=break_long_words,
        break_on_hyphens=False,
    )
    return rows or [""]  # of nothing but blanks


def details(result: CheckResult, width: int, verbosity: int) -> Iterator[RenderableType]:
    """Return the tables under a result: the rank rules, the methods and, when verbose, tolerance, bounds, numbers."""
    rules = _rows(result.measured.get("rules"))
    methods = result.measured.get("methods")
    if rules:
        chosen = result.tolerance.rule if result.tolerance else None
        ranks = {row.get("rank") for row in rules}
        if verbosity > 0 or len(ranks - {None}) > 1:
            yield _Block(rules_table(rules, chosen), indent=0)  # its first column is two wide, for the mark
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
    """A table, indented as the sentences are, without blanks at the ends of its lines."""

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
