"""How every figure looks: lines that can be told apart in grey, no pyplot, SVG that a page can colour."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

from alignver.errors import MissingDependency, printable

__all__ = ["BAND", "COLOURS", "FAINT", "PLATE", "axes_of", "escaped", "line_styles", "panels", "styled", "svg"]

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, from dark to light as Rec. 709 weighs red, green and blue."""

FAINT = "#888888"
"""What stands behind the lines: marks, and curves that only give the time."""

PLATE: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
"""What is put under words that lie on lines."""

BAND = 0.15
"""Opacity of an interval around a line."""

_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))
_MARKERS = (None, "o", "s", "^", "D")
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "svg.hashsalt": "alignver",  # the same figure, the same bytes
}
_INKS = {colour: f"c{k}" for k, colour in enumerate(COLOURS)}
_INKS |= {"#000000": "ink", "#dddddd": "line", FAINT: "faint", PLATE["facecolor"]: "card"}


@contextlib.contextmanager
def styled() -> Iterator[Any]:
    """Load matplotlib and draw in the style inside the block, which gets the module with ``Figure``."""
    try:
        import matplotlib
        from matplotlib import figure as module
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "figures", "plots") from error
    with matplotlib.rc_context(_STYLE):
        yield module


def axes_of(ax: Any, *, height: float = 3.4) -> Any:
    """Return the axes, or new ones in a figure of their own if there are none."""
    if ax is not None:
        return ax
    with styled() as module:
        # Without pyplot nothing is registered anywhere: a figure is garbage when nobody holds it.
        return module.Figure(figsize=(6.0, height), dpi=150).subplots()


def panels(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, one below the other.

    Examples
    --------
    >>> figure, axes = panels(2)
    >>> len(axes), axes[0].figure is figure
    (2, True)
    """
    with styled() as module:
        figure = module.Figure(figsize=(6.0, 3.2 * count), dpi=150)
        return figure, list(figure.subplots(count, squeeze=False)[:, 0])


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield styles without end; the first seven differ in dash pattern and colour, later ones have markers beside.

    Examples
    --------
    >>> import itertools
    >>> len({style["linestyle"] for style in itertools.islice(line_styles(), 7)})
    7
    """
    count = 0
    while True:
        round_, k = divmod(count, len(COLOURS))
        style = {"color": COLOURS[k], "linestyle": _DASHES[k]}
        marker = _MARKERS[round_ % len(_MARKERS)]
        yield style if marker is None else {**style, "marker": marker, "markersize": 3.5, "markevery": 0.1}
        count += 1


def escaped(label: str) -> str:
    r"""Return a label of the user's as matplotlib shows it letter by letter: without mathematics, controls escaped.

    Examples
    --------
    >>> print(escaped("$5 and $6"))
    \$5 and \$6
    """
    return printable(str(label)).replace("$", r"\$")


def svg(figure: Any, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element that takes its colours from the page around it.

    Black becomes ``var(--ink)``, the colours of the lines ``var(--c1)`` and so on, each with itself as the fallback: it
    serves light and dark. Identifiers begin with ``prefix``, since several pictures share a page.
    """
    stream = io.StringIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a reader's font may have the letter
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{prefix}-", text)
    for colour, name in _INKS.items():
        text = re.sub(rf"(stroke|fill): {colour}\b", rf"\1: var(--{name}, {colour})", text, flags=re.IGNORECASE)
    return text.strip()
