"""The ``alignver`` command: the tree of its commands, and the exit code of every run."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from alignver.cli import check, options, reproduce, session, show, train, verify
from alignver.cli.exits import Exit, explain, say
from alignver.errors import InvalidInput
from alignver.require import similar

_EPILOG = """
[bold]Exit codes[/bold]: 0 holds, 1 fails, 2 usage or bad input, 3 undecided, 70 internal error, 130 interrupted.
"""


class _InOrder(TyperGroup):
    """The group of commands that lists ``check`` first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ["check", *(name for name in super().list_commands(ctx) if name != "check")]


app = typer.Typer(
    name="alignver",
    cls=_InOrder,
    epilog=_EPILOG,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": options.canonical},
)
app.add_typer(check.app)
app.add_typer(show.app, name="show")
app.command("train")(train.train)
app.command("predict")(train.predict)
app.command("reproduce")(reproduce.reproduce)
app.command("verify")(verify.verify)
app.command("report")(verify.report)
app.command("explain")(show.explain)
app.command("doctor")(show.doctor)


def _version(requested: bool) -> None:
    if requested:
        from alignver._version import __version__

        print(f"alignver {__version__}")
        raise typer.Exit(Exit.HOLDS)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Verdicts with proof about neural networks, and about the matrices behind them.

    [bold]Examples[/bold]

      alignver check
      alignver check membership J.npy y.npy --certificate proof
      alignver check alignment net.py:build --data train.npz --loss cross_entropy
      alignver train net.py:build --data train.npz --loss cross_entropy --epochs 100
      alignver verify proof --input J=J.npy --input y=y.npy
    """
    if context.invoked_subcommand is None:
        # The exit code 0 would read as a verdict.
        with contextlib.redirect_stdout(sys.stderr):
            typer.echo(context.get_help(), err=True)
        raise typer.Exit(Exit.BAD_INPUT)


# The base classes of usage errors: Typer does not export them, and their module depends on its version.
_UsageError: Any = typer.BadParameter.__mro__[1]
_ClickException: Any = typer.BadParameter.__mro__[2]


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; the entry point of ``alignver`` and ``python -m alignver``."""
    _usable_streams()
    sys.exit(_guarded(sys.argv[1:] if arguments is None else arguments))


def _guarded(arguments: list[str]) -> int:
    session.invoked.set(shlex.join(("alignver", *arguments)))
    try:
        code = fit_to_terminal(typer.main.get_command(app)).main(arguments, prog_name="alignver", standalone_mode=False)
        sys.stdout.flush()
        return Exit.HOLDS if code is None else int(code)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "alignver"
        say(_refusal(error), f"try: {command} --help")
        return Exit.BAD_INPUT
    except _ClickException as error:
        say(_sentence(error.format_message()))
        return Exit.BAD_INPUT
    except SystemExit as error:  # click and rich exit with 1, which is a verdict here, if the pipe is closed
        if isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE:
            return explain(BrokenPipeError())
        raise
    except typer.Abort:
        return explain(KeyboardInterrupt())
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, verbose=bool({"-v", "--verbose"} & set(arguments)))


def _refusal(error: Any) -> str:
    """Return the message of a usage error: of a value that Typer lets pydantic convert, in the form of the others."""
    errors, option = getattr(error.__context__, "errors", None), getattr(error, "param", None)
    if errors is None or option is None:
        return _sentence(error.format_message())
    first = errors()[0]
    kind, limit = first["type"], first.get("ctx", {}).get("ge")
    needs = {
        "int_parsing": "an integer",
        "float_parsing": "a number",
        "greater_than_equal": f"a number of at least {limit}",
    }
    need = needs.get(kind) or first["msg"].rpartition(" is not ")[2].removesuffix(".")
    need += similar(first["input"], re.findall(r"'([^']+)'", need))
    return str(InvalidInput(option.opts[0], repr(first["input"]), need))


def _sentence(message: str) -> str:
    """Return a message in the style of the others: on one line, without a capital letter and a full stop."""
    message = re.sub(r"[.:]?\s*\n\s*", lambda gap: ": " if ":" in gap[0] else " ", message)
    message = re.sub(r" \(Possible options: (.*)\)$", r"; did you mean \1?", message)
    return (message[:1].lower() + message[1:]).rstrip().removesuffix(".").replace(". Did you", "; did you")


def _usable_streams() -> None:
    """Replace a missing stdout or stderr, and make both accept any character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
            first, rest = " " * depth, " " * (depth + 2 * (depth > indent))  # an example goes on further in
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
