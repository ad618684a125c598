"""``alignver reproduce``: a figure or table of the paper, the paper's numbers next to ours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignver.cli import input_files
from alignver.cli.exits import Exit, ensure_writable, exit_of, write_output
from alignver.cli.session import Session, command
from alignver.errors import InvalidInput, printable
from alignver.results import worst

if TYPE_CHECKING:
    from alignver.experiments.conduct import Item, Outcome
    from alignver.results import CheckResult

_FORMATS = (".png", ".svg", ".pdf")


@command(
    "reproduce", "device json quiet verbose", provenance="device", aliases={"item": "ITEM", "folder": "--data-folder"}
)
def reproduce(
    session: Session,
    item: Annotated[str | None, typer.Argument(metavar="ITEM", help="Such as figure1a or table2.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List every item with its cost, and exit.")] = False,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A data set of the item; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Seeds 0 to N - 1.", show_default="the item's own number")
    ] = None,
    reading: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Choice for what the paper leaves open about its fully-connected network; the item readings compares "
            "them all.",
            show_default="3-normal",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Start no further part after this time; 0 evaluates the existing parts only."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run folder; parts that it holds are not run again.")
    ] = None,
    figure: Annotated[str | None, typer.Option(metavar="FILE", help="Save the figure here (.png, .svg, .pdf).")] = None,
    data_folder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="ALIGNVER_DATA",
            help="Folder of the image sets in torchvision's file formats; Semeion comes with the package.",
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="Save extracted features here and reuse them.")
    ] = None,
    reduced: Annotated[
        bool | None,
        typer.Option(
            "--reduced/--full",
            help="Whether to make long experiments smaller; their results say so.",
            show_default="reduced on the CPU, in full on a GPU",
        ),
    ] = None,
) -> Exit:
    """Reproduce a figure or table of the paper: its claims next to what is measured here.

    The exit code is 0 if every claim agrees, 1 if one doesn't, 3 if one is not decided or not run yet.

    [bold]Examples[/bold]

      alignver reproduce --list
      alignver reproduce figure1a --out runs/figure1a --figure figure1a.png
      alignver reproduce table2 --dataset mnist --data-folder DIR --cache features
    """
    session.command = _command(item, dataset, seeds, reading, reduced)
    with session.working():
        input_files.library("torch", "reproducing the experiments of the paper")
        from alignver.experiments import NAMES, load
        from alignver.experiments.conduct import Setting, conduct

        if not listing:
            if item is None:
                raise InvalidInput("ITEM", "no value", "one of " + ", ".join(NAMES) + "; --list shows what each costs")
            experiment = load(item)
            ensure_writable("--figure", figure)
            _require_drawable(experiment, figure)
            setting = Setting(seeds, tuple(dataset or ()), session.device, data_folder, cache, reduced, reading)
            session.interrupt_message = _interrupt_message(out)
            outcome = conduct(experiment, setting, folder=out, budget=budget)
    if listing:
        session.print(_listed([load(name) for name in NAMES]))
        return Exit.HOLDS
    if session.json:
        seconds = round(outcome.seconds, 1)
        more = {"missing": list(outcome.missing), "work_seconds": seconds, "parts": list(outcome.made)}
        session.write(session.report(outcome.results, {}, **more))
    else:
        for result in outcome.results:
            session.show(result)
            if not session.quiet:
                session.print(*_comparison(result))
        if outcome.missing:
            session.note(f"not run yet: {', '.join(outcome.missing)}")
        session.show_provenance({})
    if figure is not None:
        _save(session, experiment, outcome, figure)
    return exit_of(worst(result.verdict for result in outcome.results))


def _command(
    item: str | None, datasets: list[str] | None, seeds: int | None, reading: str | None, reduced: bool | None
) -> str:
    words = ["reproduce", item, *(f"--dataset {name}" for name in datasets or ()), seeds and f"--seeds {seeds}"]
    words.append(reading and f"--reading {reading}")
    words.append(None if reduced is None else "--reduced" if reduced else "--full")
    return " ".join(str(word) for word in words if word)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _listed(items: list[Item]) -> Any:
    table = _table()
    for title in ("item", "what it is", "where", "what it costs"):
        table.add_column(title, no_wrap=title == "item")
    for item in items:
        table.add_row(item.name, item.title, item.source, item.cost)
    return table


def _comparison(result: CheckResult) -> list[Any]:
    """Return the table of the paper's numbers and ours, if there are several."""
    from rich.padding import Padding

    from alignver.report import text

    paper, ours = result.measured["paper"], result.measured["ours"]
    if not isinstance(paper, Mapping):
        return []
    table = _table()
    table.add_column("")
    for key in paper:
        table.add_column(printable(key), justify="right", no_wrap=True)
    table.add_row("the paper", *(text.number(value, 4) for value in paper.values()))
    if isinstance(ours, Mapping):
        table.add_row("here", *(text.number(ours.get(key), 4) for key in paper))
    return [Padding(table, (0, 0, 0, 2), expand=False)]


def _interrupt_message(out: str | None) -> str:
    """Return the message after Ctrl-C about the parts that are finished."""
    if out is None:
        return "interrupted; nothing was kept (--out DIR keeps finished parts)"
    return f"interrupted; finished parts are kept in {out}: repeat the command to continue"


def _require_drawable(item: Item, file: str | None) -> None:
    """Refuse, before anything is run, a figure that cannot be drawn."""
    if file is None:
        return
    if not item.name.startswith("figure"):  # the tables of the paper have no figure here either
        raise InvalidInput("--figure", item.name, "an item that has a figure")
    if Path(file).suffix not in _FORMATS:
        raise InvalidInput("--figure", file, "a name that ends in " + ", ".join(_FORMATS))


def _save(session: Session, item: Item, outcome: Outcome, file: str) -> None:
    figure = item.draw(outcome.measured) if outcome.measured else None
    if figure is None:
        session.note(f"no {file}: nothing was measured yet")
        return
    content = io.BytesIO()
    figure.savefig(content, format=Path(file).suffix.removeprefix("."))
    write_output("--figure", file, content.getvalue())
