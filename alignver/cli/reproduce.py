"""``alignver reproduce``: a figure or table of the paper, the paper's numbers beside ours."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignver.cli import options
from alignver.cli.exits import Exit, exit_of
from alignver.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignver.results import CheckResult

__all__ = ["app", "table2"]

app = typer.Typer(name="reproduce", help="A figure or table of the paper, the paper's numbers beside ours.")


class ImageSet(enum.StrEnum):
    """The rows of Table 2."""

    MNIST = "mnist"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    SEMEION = "semeion"
    KMNIST = "kmnist"
    SVHN = "svhn"


@app.callback()
def reproduce() -> None:
    """Reproduce a figure or table of the paper."""


@app.command("table2")
def table2(
    dataset: Annotated[ImageSet, typer.Option(help="The row of the table.")] = ImageSet.SEMEION,
    data_folder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="ALIGNVER_DATA",
            help="Where the image sets are, in torchvision's file formats; Semeion comes with the package.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keep the features here and take them from here.", show_default=False),
    ] = None,
    paper_gates: Annotated[
        bool,
        typer.Option(
            "--paper-gates", help="Also prove the sampled q at the paper's width: n^3/3 operations, 4 n^2 bytes."
        ),
    ] = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Table 2: safe exploration (Assumption 4) of a ResNet-18 on image sets.

    [bold]Examples[/bold]

      alignver reproduce table2
      alignver reproduce table2 --dataset mnist --data-folder DIR --cache features
    """
    session = Session("reproduce table2", json=json, quiet=quiet, verbose=verbose, seed=seed)

    def body() -> Exit:
        from alignver.results import worst

        with session.working():
            from alignver.cli.backends import library

            library("torch", "the features of a ResNet-18")
            from alignver.experiments import table2 as experiment

            row, data, results = experiment.table2(
                dataset.value, data_folder, seed=seed, cache=cache, paper_gates=paper_gates
            )
        inputs = {"images": {"sha256": data.sha256, "shape": list(data.x.shape), "dtype": str(data.x.dtype)}}
        if json:
            session.write_json(tuple(results.values()), inputs)
        else:
            session.print(*_table(data.name, row, results))
            if verbose:
                for result in results.values():
                    session.show(result)
            session.show_provenance(inputs)
        return exit_of(worst(result.verdict for result in results.values()))

    return session.conduct(body)


def _table(name: str, row: Any, results: Mapping[str, CheckResult]) -> list[Any]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for title in (name, "n", "m_{H-1}", "m_H", "press", "golub", "Assumption 4", "seconds", "GB"):
        table.add_column(title, justify="left" if title in (name, "Assumption 4") else "right", no_wrap=True)
    table.add_row("the paper's", str(row.n), str(row.m), str(row.width), "yes", "yes", "Verified", "", "")
    for title, result in results.items():
        measured = result.measured
        ranks = {rule["rule"]: rule["rank"] for rule in measured.get("rank_rules", measured.get("rules", ()))}
        settled = ["yes" if ranks.get(rule) == measured["samples"] else "-" for rule in ("press", "golub")]
        verdict = f"{result.verdict} {result.rigor.value.lower()}"
        size = [str(measured["samples"]), str(measured["features"]), str(measured.get("width", "-"))]
        peak = result.cost.get("peak_bytes")
        cost = [f"{result.cost['seconds']:.1f}", "-" if peak is None else f"{peak / 1e9:.1f}"]
        table.add_row(title, *size, *settled, verdict, *cost)
    return [table]
