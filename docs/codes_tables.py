"""Generate codes.md from the explanations of the codes when the site is built."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from alignver.codes import Explanation, answers, refusals

PAGE = pathlib.Path(__file__).parent / "_generated" / "codes.md"


def write(*_: Any) -> None:
    """Write a section for each kind of code; Sphinx calls this when a build begins."""
    PAGE.parent.mkdir(exist_ok=True)
    parts = ["## Answers", "", *_sections(answers()), "## Refused arguments", "", *_sections(refusals())]
    PAGE.write_text("\n".join(parts))


def _sections(kinds: Iterable[Explanation]) -> list[str]:
    lines: list[str] = []
    for kind in kinds:
        lines += [f"### {kind.codes[0]}", ""]
        if len(kind.codes) > 1:
            lines += ["Also " + ", ".join(f"`{code}`" for code in kind.codes[1:]) + ".", ""]
        texts = (("", kind.meaning), ("Cause: ", kind.cause), ("Remedy: ", kind.remedy))
        lines += [f"- {word}{_escaped(text)}" for word, text in texts]
        lines += ["", "```python", *kind.example.splitlines(), "```", ""]
    return lines


def _escaped(text: str) -> str:
    for mark in "*_|<[":
        text = text.replace(mark, f"\\{mark}")
    return text
