"""Draw the figures of reports.md with the code that the page shows, when the site is built."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
PAGE = HERE / "reports.md"
PICTURES = HERE / "_generated"


def blocks() -> Iterator[tuple[str, str | None]]:
    """Yield every Python block of the page with the picture below it, if any."""
    pattern = r"^```python\n(.*?)^```\n(?:\n!\[[^\]]*\]\(_generated/([\w.-]+)\))?"
    for match in re.finditer(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def write(*_: Any) -> None:
    """Run the blocks in order; the picture of a block is the figure of its variable ``ax``."""
    PICTURES.mkdir(exist_ok=True)
    names: dict[str, Any] = {}
    for code, picture in blocks():
        exec(compile(code, str(PAGE), "exec"), names)
        if picture is not None:
            names["ax"].figure.savefig(PICTURES / picture)
    (PICTURES / "report.html").write_text(names["text"], encoding="utf-8")
