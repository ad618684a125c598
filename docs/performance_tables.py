"""Generate the sections of performance.md from the results of benchmarks/collect.py and gpu.sh."""

from __future__ import annotations

import json
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "benchmarks"
SECTIONS = HERE / "_generated" / "performance.md"
CARDS = HERE / "results" / "gpu"
_LONG = {"details", "seconds by comparison", "end", "evidence"}  # in the JSON only


def write(*_: Any) -> None:
    """Write one section for each benchmark, and the results on GPUs; Sphinx calls this when a build begins."""
    SECTIONS.parent.mkdir(exist_ok=True)
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    SECTIONS.write_text("\n".join([*_summary(documents), *map(_section, documents)]) + "\n")
    steps = [json.loads(path.read_text()) for path in sorted(CARDS.glob("*.json"))]
    (limits,) = (document for document in documents if document["benchmark"] == "limits")
    SECTIONS.with_name("limits.md").write_text(_limits_page(limits))
    nothing = "Nothing yet: no run on a card has been kept, and no number on these pages is from one."
    SECTIONS.with_name("gpu.md").write_text(_gpu_page(steps) + "\n" if steps else nothing + "\n")


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


def _limits_page(document: dict[str, Any]) -> str:
    """Show the rows of benchmarks/limits.py, and where they were measured."""
    machine = document["machine"]
    where = f"{document['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    return "\n".join(["```text", *document["output"], "```", "", f"{where}; {document['command']}.", ""])


def _gpu_page(documents: list[dict[str, Any]]) -> str:
    """Show the steps of benchmarks/gpu.py, with machine and versions where they differ from those before."""
    parts, before = [], ""
    for document in documents:
        machine = document["machine"]
        where = (
            f"{machine['accelerator']}, {machine['accelerator_gib']} GiB, driver {machine['driver']}, CUDA "
            f"{machine['cuda']}; {machine['processor']}, {machine['cores']} cores; "
            + ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        )
        if where != before:
            parts += [where + ".", ""]
        before = where
        lines = [f"{name}: {_told(value)}" for name, value in document["results"].items() if name not in _LONG]
        parts += [
            f"**{document['step']}**: {document['status']}, {document['date'][:10]}, {document['seconds']} s; "
            f"{{download}}`JSON <results/gpu/{document['step']}.json>`.",
            "",
            "```text",
            *lines,
            "```",
            "",
        ]
    return "\n".join(parts)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name} {_told(own)}" for name, own in value.items() if own not in (None, [], {}) and name not in _LONG
        )
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
