"""Draw architecture.md's picture of the packages from their imports; run as a script, it prints what it drew."""

from __future__ import annotations

import ast
import pathlib
import re
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / "docs/_generated/architecture.svg"
BASE = ("arrays", "results", "progress", "require", "errors", "atomic")
"""Modules that everything may import: one box, and no arrows to it."""
LEFT_TO_RIGHT = {"testing": 1.0, "report": -2.0, "data": 2.0, "theory": -1.0, "samples": 2.0}
"""Where a package stands that would hide an arrow in the middle of its row."""


def rows() -> list[list[str]]:
    """Return the packages, a list for each layer from the top, as import-linter has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract for contract in settings["contracts"] if contract["type"] == "layers")["layers"]
    named = [[name.strip("() ").removeprefix("alignver.") for name in re.split("[|:]", layer)] for layer in layers]
    return [row for row in named if not {*row} & {*BASE}]


def sources(package: str) -> list[pathlib.Path]:
    """Return the files of a package, or the module of that name."""
    folder = ROOT / "alignver" / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(package: str) -> set[str]:
    """Return the packages that a package imports anywhere, also inside functions."""
    names: set[str] = set()
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignver."):
                names.add(str(node.module).split(".")[1])
    return names - {package}


def edges() -> list[tuple[str, str]]:
    """Return the imports between packages that no chain of other imports implies."""
    packages = [name for row in rows() for name in row]
    direct = {name: imports(name) & set(packages) for name in packages}
    below: dict[str, set[str]] = {}
    for name in reversed(packages):
        below[name] = set().union(*({other} | below.get(other, set()) for other in direct[name]))
    return [
        (name, other)
        for name in packages
        for other in sorted(direct[name])
        if not any(other in below[between] for between in direct[name] - {other})
    ]


def write(*_: Any) -> None:
    """Draw the picture; Sphinx calls this when a build begins."""
    from matplotlib.figure import Figure

    layers = rows()
    figure = Figure(figsize=(8.0, 0.75 * len(layers) + 0.75))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-4, 4), ylim=(-1.5, len(layers) - 0.5))
    axes.set_axis_off()
    places = {}
    for height, row in zip(range(len(layers) - 1, -1, -1), layers, strict=True):
        for k, name in enumerate(row):
            places[name] = (LEFT_TO_RIGHT.get(name, 2.4 * (k - (len(row) - 1) / 2)), height)
            files = sources(name)
            lines = sum(len(path.read_text().splitlines()) for path in files)
            _box(
                axes, *places[name], name, f"{len(files)} files, {lines} lines" if len(files) > 1 else f"{lines} lines"
            )
    lines = sum(len(path.read_text().splitlines()) for name in BASE for path in sources(name))
    _box(axes, 0.0, -1, ", ".join(BASE), f"{lines} lines; everything may import them", width=5.6)
    for name, other in edges():
        (x0, y0), (x1, y1) = places[name], places[other]
        arrow = {"arrowstyle": "->", "color": "0.45", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(x1, y1 + 0.26), xytext=(x0, y0 - 0.26), arrowprops=arrow, zorder=1)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def _box(axes: Any, x: float, y: float, name: str, size: str, width: float = 1.9) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0.02,rounding_size=0.06"
    corner = (x - width / 2, y - 0.24)
    axes.add_patch(FancyBboxPatch(corner, width, 0.48, boxstyle=style, facecolor="0.95", edgecolor="0.4", zorder=2))
    axes.text(x, y + 0.1, name, ha="center", va="center", weight="bold", fontsize=10, zorder=3)
    axes.text(x, y - 0.13, size, ha="center", va="center", fontsize=7, zorder=3)


if __name__ == "__main__":
    write()
    print("\n".join(f"{name} -> {other}" for name, other in edges()))
