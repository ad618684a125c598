"""Make the tables of reproduction.md from the committed results when the site is built."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from alignver.experiments import load

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
TABLES = HERE / "_generated" / "reproduction.md"


def write(*_: Any) -> None:
    """Write a table of all claims, and a section for each document; Sphinx calls this at the start of a build."""
    TABLES.parent.mkdir(exist_ok=True)
    documents = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    overview = [_row(["claim", "verdict", "measured"]), _row(["---"] * 3)]
    overview += [
        _row([result["statement"], f"**{result['verdict']}**", result["reason"]])
        for document in documents.values()
        for result in document["results"]
    ]
    sections = [_section(path, document) for path, document in documents.items()]
    TABLES.write_text("\n".join(["## All claims", "", *overview, "", *sections]) + "\n")


def _section(path: pathlib.Path, document: Mapping[str, Any]) -> str:
    provenance = document["provenance"]
    lines = [f"## {_command(provenance).removeprefix('reproduce ')}", ""]
    figure = path.with_suffix(".png")
    if figure.is_file():
        lines += [f"```{{figure}} results/{figure.name}", ":width: 100%", "", f"{path.stem}", "```", ""]
    for result in document["results"]:
        lines += [
            f"**{result['statement']}**: {result['verdict']}",
            "",
            f"{result['reason']}.",
            "",
            *_table(result["measured"]["paper"], result["measured"]["ours"]),
            *(f"- {line}" for line in result["evidence"]),
            "",
        ]
    if provenance["missing"]:
        lines += [f"Not run: {'; '.join(provenance['missing'])}.", ""]
    return "\n".join([*lines, *_origin(path, provenance), ""])


def _origin(path: pathlib.Path, provenance: Mapping[str, Any]) -> list[str]:
    """Return the command, the versions and the machines that made the numbers."""
    made = provenance["parts"]
    machines = dict.fromkeys(_words(part["machine"]) for part in made)
    # The versions of the runs; those of the document belong to the process that wrote it.
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in part["versions"].items()) for part in made
    )
    runs = "1 run" if len(made) == 1 else f"{len(made)} runs"
    return [
        f"`alignver {_command(provenance)}` produced {{download}}`{path.name} <results/{path.name}>`: {runs}, "
        f"{_minutes(provenance['work_seconds'])} of work on {' and '.join(machines)}; {' and '.join(versions)}, "
        f"Python {provenance['versions']['python']}." + STALE * stale(provenance),
        "",
    ]


def _command(provenance: Mapping[str, Any]) -> str:
    device = provenance["device"]
    return provenance["command"] + (f" --device {device}" if device != "cpu" else "")


STALE = " The code of the experiment has changed since."


def stale(provenance: Mapping[str, Any]) -> bool:
    """Whether a part was made by other code than today's."""
    now = load(provenance["command"].split()[1]).code_digest()
    return any(part.get("code") != now for part in provenance["parts"])


def _words(machine: Mapping[str, Any]) -> str:
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    accelerator = f", {machine['accelerator']}" if "accelerator" in machine else ""
    return f"{machine['processor']} ({cores}, {threads}{accelerator})"


def _table(paper: Any, ours: Any) -> list[str]:
    if not isinstance(paper, Mapping):
        return []
    rows = [["", *paper], ["the paper", *(_cell(value) for value in paper.values())]]
    if isinstance(ours, Mapping):
        rows.append(["here", *(_cell(ours.get(key)) for key in paper)])
    if len(paper) > 6:  # a tall table is easier to read than a wide one
        rows = [list(row) for row in zip(*rows)]
    head, *body = rows
    return [_row(head), _row(["---"] * len(head)), *map(_row, body), ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
