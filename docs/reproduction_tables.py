"""Make the tables of reproduction.md from the committed results, when the site is built: no number is typed by hand."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
TABLES = HERE / "_generated" / "reproduction.md"


def write(*_: Any) -> None:
    """Write every result as a section; Sphinx calls this when a build begins."""
    TABLES.parent.mkdir(exist_ok=True)
    TABLES.write_text("\n".join(_section(path) for path in sorted(RESULTS.glob("*.json"))) + "\n")


def _section(path: pathlib.Path) -> str:
    document = json.loads(path.read_text())
    provenance = document["provenance"]
    lines = [f"## {provenance['command'].removeprefix('reproduce ')}", ""]
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
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    machine = provenance["platform"]
    where = f"{machine['system']} {machine['machine']}, {provenance['device']}"
    lines += [
        f"`alignver {provenance['command']}` made {{download}}`{path.name} <results/{path.name}>`; {versions}; "
        f"{where}; {_minutes(provenance['work_seconds'])} of work.",
        "",
    ]
    return "\n".join(lines)


def _table(paper: Any, ours: Any) -> list[str]:
    if not isinstance(paper, Mapping):
        return []
    rows = [["", *paper], ["the paper", *(_cell(value) for value in paper.values())]]
    if isinstance(ours, Mapping):
        rows.append(["here", *(_cell(ours.get(key)) for key in paper)])
    if len(paper) > 6:  # a tall table reads better than a wide one
        rows = [list(row) for row in zip(*rows)]
    head, *body = rows
    return [_row(head), _row(["---"] * len(head)), *map(_row, body), ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
