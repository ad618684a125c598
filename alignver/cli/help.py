"""The help of a command on a narrow terminal: one column, where the tables of Typer would cut names and words."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

_NARROW = 70
"""Columns below which the tables cut the names of options: the longest name and value take 40, the help the rest."""


def fit_to_terminal(command: Any) -> Any:
    """Return a command whose help, and that of its subcommands, has one column if the terminal is narrow."""
    if shutil.get_terminal_size().columns < _NARROW:
        for each in _tree(command):
            each.format_help = lambda ctx, _formatter, each=each: _print(each, ctx)
    return command


def _tree(command: Any) -> Iterator[Any]:
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from _tree(each)


def _print(command: Any, ctx: Any) -> None:
    console = Console(highlight=False)
    for line in _lines(command, ctx, console.width):
        console.print(line, overflow="fold", soft_wrap=True)


def _lines(command: Any, ctx: Any, width: int) -> Iterator[Text]:
    def wrapped(words: str, indent: int) -> Iterator[Text]:
        for line in words.splitlines():
            depth = indent + len(line) - len(line.lstrip())
            first, rest = (
                " " * depth,
                " " * (depth + 2 * (depth > indent)),
            )  # an example goes on further in
            parts = textwrap.wrap(
                line.strip(), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
            )
            yield from map(Text, parts or [""])

    def entry(name: str, words: str) -> Iterator[Text]:
        yield from (Text(part.plain, style="bold cyan") for part in wrapped(name, 0))
        yield from wrapped(words, 4)

    usage = " ".join(command.get_usage(ctx).split())
    yield from map(Text, textwrap.wrap(usage, width, subsequent_indent="  ", break_on_hyphens=False))
    for words in filter(None, (command.help, command.epilog)):
        yield Text()
        yield from wrapped(Text.from_markup(words).plain.strip(), 0)
    panels: dict[str, list[Any]] = {}
    for param in command.get_params(ctx):
        kind = "Arguments" if param.param_type_name == "argument" else "Options"
        if not getattr(param, "hidden", False):
            panels.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(param)
    for title, params in panels.items():
        yield from (Text(), Text(title, style="bold"))
        for param in params:
            yield from entry(*param.get_help_record(ctx))
    if names := [] if not hasattr(command, "commands") else command.list_commands(ctx):
        yield from (Text(), Text("Commands", style="bold"))
        for name in names:
            yield from entry(name, command.commands[name].get_short_help_str(1000))
