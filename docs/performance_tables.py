"""Make the sections of performance.md from what benchmarks/collect.py kept, when the site is built."""

from __future__ import annotations

import json
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "benchmarks"
SECTIONS = HERE / "_generated" / "performance.md"


def write(*_: Any) -> None:
    """Write one section for each benchmark; Sphinx calls this when a build begins."""
    SECTIONS.parent.mkdir(exist_ok=True)
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    SECTIONS.write_text("\n".join([*_summary(documents), *map(_section, documents)]) + "\n")


def _summary(documents: list[dict[str, Any]]) -> list[str]:
    rows = ["| benchmark | targets met | missed |", "| --- | --- | --- |"]
    for document in documents:
        met = sum(target["met"] for target in document["targets"])
        missed = "; ".join(target["text"].replace("|", r"\|") for target in document["targets"] if not target["met"])
        name = document["benchmark"]
        rows.append(f"| [{name}](#{name}) | {met} of {len(document['targets'])} | {missed or 'none'} |")
    return [*rows, ""]


def _section(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    blas = ", ".join(f"{pool['internal_api']} {pool['version']} ({pool['architecture']})" for pool in document["blas"])
    return "\n".join(
        [
            f"## {document['benchmark']}",
            "",
            document["what"].replace("<", r"\<"),
            "",
            "```text",
            f"$ {document['command']}",
            *document["output"],
            "```",
            "",
            f"{document['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
            f"{document['threads']} threads; load before: {document['load_before']}; {blas}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + f"; {{download}}`JSON <results/benchmarks/{document['benchmark']}.json>`.",
            "",
        ]
    )
