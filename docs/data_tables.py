"""Generate the tables of data.md from the results of benchmarks/data_sets.py when the site is built."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from alignver.results import shown_down, shown_up

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "data" / "data_sets.json"
TABLES = HERE / "_generated" / "data.md"


def write(*_: Any) -> None:
    """Write the tables; Sphinx calls this when a build begins."""
    TABLES.parent.mkdir(exist_ok=True)
    TABLES.write_text(tables(json.loads(RESULTS.read_text())) + "\n")


def tables(document: dict[str, Any]) -> str:
    """Return the tables of training sets and of test sets, and the versions and machine of the run."""
    head = "| data set | samples | distinct | equal pairs | conflicts | least loss | least errors | seconds | GB |"
    rows = [head, "|---|" + "---:|" * 8, *map(_training, document["sets"]), ""]
    head = "| test set | samples | distinct | equal pairs | conflicts | are training samples | with another label |"
    tests = [row for row in document["sets"] if row["test"] is not None]
    rows += [head, "|---|" + "---:|" * 6, *map(_test, tests), ""]
    machine, versions = document["machine"], document["versions"]
    made = (
        f"`{document['command']}`; {document['date']}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "; {download}`JSON <results/data/data_sets.json>`, with the pairs and their labels."
    )
    return "\n".join([*rows, made])


def _training(row: dict[str, Any]) -> str:
    counts = (row["samples"], row["distinct"], row["equal"]["count"], row["conflicts"]["count"])
    seconds, memory = shown_up(row["seconds"], 2), shown_up(row["peak_bytes"] / 1e9, 2)
    cells = (row["name"], *counts, shown_down(row["loss_lower"], 6), row["errors_lower"], seconds, memory)
    return "| " + " | ".join(map(str, cells)) + " |"


def _test(row: dict[str, Any]) -> str:
    test = row["test"]
    counts = (test["samples"], test["distinct"], test["equal"]["count"], test["conflicts"]["count"])
    cells = (row["name"], *counts, test["seen"], test["seen_with_another_label"])
    return "| " + " | ".join(map(str, cells)) + " |"
