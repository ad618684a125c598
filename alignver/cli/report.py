"""``alignver report``: what was found, as a page for people and as XML for a CI system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.session import Session

__all__ = ["report"]


def report(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, its history.jsonl, or a file that --json wrote."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The HTML page; one that is there is replaced.",
            show_default="report.html in the run folder, or beside the file",
            rich_help_panel="Output",
        ),
    ] = None,
    junit: options.Junit = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make a page of what was found: verdicts first, then evidence, then where it comes from.

    The page is one file that needs no network. The exit code is 0 when it is written, whatever it says.

    [bold]Examples[/bold]

      alignver report run-1
      alignver report run-1/history.jsonl -o so-far.html
      alignver report found.json -o report.html --junit report.xml
    """
    place = Path(run)
    target = out if out is not None else str((place if place.is_dir() else place.parent) / "report.html")
    session = Session("report", quiet=quiet, verbose=verbose, html=target, junit=junit)

    def body() -> Exit:
        with session.working():
            from alignver.errors import InvalidInput
            from alignver.report.source import read

            source = read(place)
            if source.report is None and junit is not None:
                raise InvalidInput("--junit", f"{run}, without a verdict", "a run that is finished")
            session.keep_source(source)
        return Exit.HOLDS

    return session.conduct(body)
