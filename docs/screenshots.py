"""What a terminal and a browser show.

The terminal's pictures are made when the site is built, from commands that run. Those of reports need Chromium and are
committed: ``python docs/screenshots.py`` makes them again.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
PICTURES = HERE / "_generated"
REPORTS = HERE / "_static"
COLUMNS = 96
FILES = """
import numpy as np
rng = np.random.default_rng(0)
X = rng.standard_normal((60, 4)).astype(np.float32)
np.savez("train.npz", X=X, Y=(X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 0))
"""
MODEL = (
    "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))\n"
)
CHECK = "alignver check model net.py:build --data train.npz --loss cross_entropy"
TRAIN = "alignver train net.py:build --data train.npz --loss cross_entropy --epochs 40 --exploit-optimizer newton"


def write(*_: Any) -> None:
    """Run the commands, and draw what they print; Sphinx calls this when a build begins."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(folder)
        # In colour where nothing moves: the display of a training would be drawn frame by frame.
        for name, command, colour in (("terminal-check", CHECK, True), ("terminal-train", TRAIN, False)):
            drawing = _drawn(command, _printed(command, folder, colour=colour))
            (PICTURES / f"{name}.svg").write_text(drawing, encoding="utf-8")


def _prepare(folder: str) -> None:
    pathlib.Path(folder, "net.py").write_text(MODEL)
    subprocess.run([sys.executable, "-c", FILES], cwd=folder, check=True)


def _printed(command: str, folder: str, *, colour: bool) -> str:
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(HERE.parent)}
    environment |= {"FORCE_COLOR": "1"} if colour else {}
    words = [sys.executable, "-m", *command.split()]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=folder, env=environment, text=True, check=True, **streams)  # type: ignore[call-overload]
    return str(done.stdout)


def _drawn(command: str, printed: str) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(printed))
    drawing = console.export_svg(title="alignver")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)  # fonts from elsewhere


def draw_reports() -> None:
    """Take pictures of the report of a check: on a screen in light and dark, and on a phone."""
    from PIL import Image

    from tests.report.browser import Browser

    with tempfile.TemporaryDirectory() as folder:
        _prepare(folder)
        _printed(f"{CHECK} --html report.html", folder, colour=False)
        browser = Browser()
        for name, width, dark in (("light", 1000, False), ("dark", 1000, True), ("phone", 390, False)):
            browser.open(pathlib.Path(folder, "report.html"), width=width, height=800, dark=dark)
            file = pathlib.Path(folder, "shot.png")
            browser.screenshot(file, whole=False)
            Image.open(file).convert("RGB").quantize(32).save(REPORTS / f"report-{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    draw_reports()
