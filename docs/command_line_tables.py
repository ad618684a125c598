"""Generate the reference of command_line.md from the commands when the site is built."""

from __future__ import annotations

import enum
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import typer

HERE = pathlib.Path(__file__).parent
REFERENCE = HERE / "_generated" / "command_line.md"


def write(*_: Any) -> None:
    """Write one section for each command; Sphinx calls this when a build begins."""
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text("\n".join(_section(path, command) for path, command in commands()) + "\n")


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its path, a group before its subcommands."""
    from alignver.cli.main import app

    yield from _walk("alignver", typer.main.get_command(app))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name in command.list_commands(None) if hasattr(command, "commands") else ():
        yield from _walk(f"{path} {name}", command.commands[name])


def _section(path: str, command: Any) -> str:
    says = inspect.cleandoc(command.help or "").split("[bold]Examples[/bold]")
    lines = [f"### {path}", "", _escaped(says[0].strip()), ""]
    if len(says) > 1:
        examples = [line.strip() for line in says[1].splitlines() if line.strip()]
        lines += ["```console", *(f"$ {example}" for example in examples), "```", ""]
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        lines += ["| | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    """Return the name, help and default of one argument or option, as in ``--help``."""
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        value = "" if parameter.is_flag else " " + (parameter.metavar or _choices(parameter.type_descriptor.annotation))
        names = ", ".join(f"`{name}{value}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return f"| {names} | {_escaped(parameter.help or '')} | {_default(parameter)} |"


def _choices(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(member.value for member in kind)
    return getattr(kind, "__name__", "VALUE").upper()


def _default(parameter: Any) -> str:
    shown, value = getattr(parameter, "show_default", None), parameter.default
    if parameter.required:
        return "required"
    if isinstance(shown, str):
        return _escaped(shown)
    if shown is False or value is None or callable(value) or (parameter.param_type_name == "option" and value is False):
        return ""
    if value is True:
        return f"`{parameter.opts[0]}`"
    return str(getattr(value, "value", value))


def _escaped(text: str) -> str:
    """Escape Markdown characters and join the lines of a cell."""
    text = re.sub(r"\[/?bold\]", "", text)
    return re.sub(r"([<>|*\[\]{}])", r"\\\1", text).replace("--", r"\-\-") if "\n" not in text else text
