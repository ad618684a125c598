"""Figures of training runs over time, and the style of all figures: readable in grey, as SVG with the page's colours.

Every line has its own dash pattern or marker beside its colour, so that lines differ without colours. Functions take
plain arrays and optional axes, and return the axes. The first call loads matplotlib; pyplot is not used.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.errors import MissingDependency, printable

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, from dark to light by the luminance of Rec. 709."""

FAINT = "#888888"
"""Colour of marks and curves behind the lines."""

PLATE: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
"""Background of words that lie on lines."""

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
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "alignver",  # the same figure, the same bytes
}
_INKS = {colour: f"c{k}" for k, colour in enumerate(COLOURS)}
_INKS |= {"#000000": "ink", "#dddddd": "line", FAINT: "faint", PLATE["facecolor"]: "card"}


@contextlib.contextmanager
def styled() -> Iterator[Any]:
    """Load matplotlib and use the style inside the block; yield the module with ``Figure``."""
    try:
        import matplotlib
        from matplotlib import figure as module
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "figures", "plots") from error
    with matplotlib.rc_context(_STYLE):
        yield module


def axes_of(ax: Any, *, height: float = 3.4) -> Any:
    """Return the axes, or those of a new figure if ``ax`` is None."""
    if ax is not None:
        return ax
    with styled() as module:
        # Without pyplot no figure is registered: one without references is garbage-collected.
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
    """Yield styles without end: the first seven differ in dash pattern and colour, later ones also have markers.

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
    r"""Return a label that matplotlib shows letter by letter: without mathematics, control characters escaped.

    Examples
    --------
    >>> print(escaped("$5 and $6"))
    \$5 and \$6
    """
    return printable(str(label)).replace("$", r"\$")


def svg(figure: Any, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element that takes its colours from the page around it.

    Black becomes ``var(--ink)``, the colours of the lines ``var(--c1)`` and so on, each with itself as the fallback,
    for light and dark pages. Identifiers begin with ``prefix``, since several figures share a page.
    """
    stream = io.StringIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's font may have the glyph
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{prefix}-", text)
    for colour, name in _INKS.items():
        text = re.sub(rf"(stroke|fill): {colour}\b", rf"\1: var(--{name}, {colour})", text, flags=re.IGNORECASE)
    return text.strip()


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], *, x_label: str, y_label: str, ax: Any = None
) -> Any:
    """Draw lines over a common x; shorter ones end early.

    Parameters
    ----------
    x : sequence of float
    lines : mapping of label to values
    x_label, y_label : str
    ax : matplotlib axes, optional
        Those of a new figure, ``axes.figure``, if not given.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    MissingDependency
        matplotlib is not installed.

    Examples
    --------
    >>> ax = curves([0, 1, 2], {"loss": [1.0, 0.5, 0.2]}, x_label="epoch", y_label="loss")
    >>> ax.get_xlabel()
    'epoch'
    """
    ax = axes_of(ax)
    with styled():
        for (label, values), style in zip(lines.items(), line_styles()):
            ax.plot(x[: len(values)], values, label=escaped(label), **style)
        ax.set(xlabel=x_label, ylabel=y_label)
        if len(lines) > 1:
            ax.legend()
    return ax


def bands(
    lines: Mapping[str, Sequence[Sequence[float]]], *, x_label: str, y_label: str, positive: bool = True, ax: Any = None
) -> Any:
    """Draw means over runs as lines, and one standard deviation (n - 1) around each as a band.

    Parameters
    ----------
    lines : mapping of label to runs
        Each run is a sequence of values at 1, 2, ...; the runs of a label have the same length.
    x_label, y_label : str
    positive : bool
        Whether the axis is logarithmic; bands then end above zero.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = bands({"standard": [[1.0, 0.5], [1.2, 0.7]]}, x_label="epoch", y_label="training loss")
    >>> ax.get_yscale()
    'log'
    """
    ax = axes_of(ax)
    with styled():
        for (label, runs), style in zip(lines.items(), line_styles()):
            values = np.asarray(runs, dtype=np.float64)
            mean, x = values.mean(axis=0), np.arange(1, values.shape[1] + 1)
            width = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
            low = np.maximum(mean - width, 0.1 * mean) if positive else mean - width
            ax.fill_between(x, low, mean + width, color=style["color"], alpha=BAND, linewidth=0)
            word = "run" if len(values) == 1 else "runs"
            ax.plot(x, mean, label=f"{escaped(label)}, {len(values)} {word}", **style)
        if positive:
            ax.set_yscale("log")
        ax.set(xlabel=x_label, ylabel=y_label)
        ax.legend()
    return ax


def training_and_q(
    steps: Sequence[float],
    error: Sequence[float],
    q: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    *,
    title: str = "",
    y_label: str = "training error",
    ax: Any = None,
) -> Any:
    """Draw the training error and, on a second axis, Q_T as intervals (Figure 1).

    Parameters
    ----------
    steps, error : sequences of one length
    q : mapping of label to (lower, upper)
        Q_T if UNDECIDED checks count as HOLDS, and if they count as FAILS; steps as above. The line is the upper end.
    title : str
    y_label : str
        Label of the values ``error``.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        Of the error; ``ax.right`` is the one of Q_T.

    Examples
    --------
    >>> ax = training_and_q([0, 1, 2], [0.5, 0.2, 0.0], {"press": ([0, 0, 0], [0, 1, 1])})
    >>> ax.right.get_ylabel()
    '$Q_T$: checks that fail'
    """
    ax = axes_of(ax)
    with styled():
        drawn = ax.plot(steps, error, color=FAINT, linewidth=1.0, label=y_label)
        ax.set(xlabel="step $T$", ylabel=y_label, title=escaped(title))
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        right.grid(False)
        for (label, (low, high)), style in zip(q.items(), line_styles()):
            right.fill_between(steps, low, high, step="post", color=style["color"], alpha=BAND, linewidth=0)
            drawn += right.step(steps, high, where="post", label=f"$Q_T$ {escaped(label)}", **style)
        right.set_ylabel("$Q_T$: checks that fail")
        if not any(max(high, default=0) for _, high in q.values()):
            right.set_ylim(-0.05, 1.0)
        right.yaxis.get_major_locator().set_params(integer=True)
        right.legend(handles=drawn, loc="best", frameon=True, framealpha=0.85, edgecolor="none")
        ax.right = right
    return ax


def representation_change(
    steps: Sequence[float],
    changes: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` over time on a logarithmic axis (Figure 3), zeros left out.

    Parameters
    ----------
    steps : sequence of float
    changes : mapping of label to values
    intervals : mapping of label to (lower, upper), optional
        Of estimated changes: drawn as bands, which extend to the bottom where they reach zero.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = representation_change([0, 1, 2], {"sgd": [0.0, 0.5, 2.0]}, intervals={"sgd": ([0, 0.4, 1], [0, 1, 3])})
    >>> ax.get_yscale(), len(ax.collections)
    ('log', 1)
    """
    ax = axes_of(ax)
    with styled():
        for (label, values), style in zip(changes.items(), line_styles()):
            if intervals and label in intervals:
                low, high = (np.asarray(ends, dtype=np.float64) for ends in intervals[label])
                shown = high > 0
                least = np.where(low > 0, low, high[shown].min(initial=np.inf) / 10)
                where = {"where": shown, "color": style["color"], "alpha": BAND, "linewidth": 0}
                ax.fill_between(steps[: len(high)], least, high, **where)
            drawn = [value if value is not None and value > 0 else np.nan for value in values]
            ax.plot(steps[: len(values)], drawn, label=escaped(label), **style)
        ax.set(yscale="log", xlabel="step $T$", ylabel=r"$\|M(\theta^T) - M(\theta^0)\|_F^2$")
        if len(changes) > 1:
            ax.legend()
    return ax


def residuals(
    steps: Sequence[float],
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    limit: float | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw :math:`\rho(\tau)` over time, as an interval for each rank rule, with the residual tolerance.

    Parameters
    ----------
    steps : sequence of float
    intervals : mapping of label to (lower, upper)
        Bounds of rho at the rule's tolerance; the line is the upper one, NaN where there is none.
    limit : float, optional
        The residual tolerance :math:`\varepsilon_y`: a verdict HOLDS below a tenth of it, FAILS above ten times it.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = residuals([0, 1], {"press": ([0.0, 1e-12], [1e-15, 1e-12])}, limit=1e-8)
    >>> ax.get_yscale()
    'log'
    """
    ax = axes_of(ax)
    with styled():
        for (label, (low, high)), style in zip(intervals.items(), line_styles()):
            # A logarithmic axis cannot show zero; 1e-17 is below every eps.
            least, most = (np.maximum(np.asarray(ends, dtype=np.float64), 1e-17) for ends in (low, high))
            ax.fill_between(steps[: len(most)], least, most, color=style["color"], alpha=BAND, linewidth=0)
            ax.plot(steps[: len(most)], most, label=escaped(label), **style)
        if limit is not None:
            ax.axhspan(limit / 10, limit * 10, color=FAINT, alpha=BAND, linewidth=0)
            ax.axhline(limit, color=FAINT, linewidth=1.0, label=r"$\varepsilon_y$")
        ax.set(yscale="log", xlabel="step $T$", ylabel=r"$\rho(\tau)$")
        ax.legend()
    return ax


def gap(
    steps: Sequence[float], loss: Sequence[float], bound: Sequence[float], *, tau: float | None = None, ax: Any = None
) -> Any:
    """Draw the optimality gap, or the training loss above it, with a theorem's bound; tau as a vertical line.

    Parameters
    ----------
    steps, loss, bound : sequences
        ``loss``: the training loss minus a lower bound of its infimum (0 for the losses here).
    tau : float, optional
        The step at which exploitation begins.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = gap([1, 2, 3], [0.5, 0.1, 0.02], [4.0, 2.0, 1.3], tau=1)
    >>> [line.get_label() for line in ax.lines[:2]]
    ['loss', 'bound']
    """
    ax = curves(steps, {"loss": loss, "bound": bound}, x_label="step $t$", y_label="optimality gap", ax=ax)
    ax.set_yscale("log")
    return _marked(ax, tau)


def training(
    epochs: Sequence[float],
    loss: Sequence[float],
    gap: Sequence[float],
    error: Sequence[float] | None = None,
    *,
    tau: float | None = None,
    test_error: Sequence[float] | None = None,
) -> Any:
    """Draw a training run: loss and bound of the gap on a logarithmic axis, and the errors if there are any.

    Values of 0 are drawn at the smallest positive value.

    Parameters
    ----------
    epochs, loss, gap, error : sequences of one length
    tau : float, optional
        The last epoch of exploration: a vertical line.
    test_error : sequence of float, optional

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = training([1, 2], [0.7, 0.1], [0.7, 0.1], [0.5, 0.0], tau=1)
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['loss, bound of the gap', 'error']
    """
    least = min((value for value in (*loss, *gap) if value > 0.0), default=1.0)
    drawn = [[max(value, least) for value in values] for values in (loss, gap)]
    same = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(*drawn))  # the bound is the loss, rounded up
    lines = {"loss": drawn[0]} if same else dict(zip(("loss", "bound of the gap"), drawn))
    figure, axes = panels(1 if error is None else 2)
    top = curves(epochs, lines, x_label="epoch", y_label="loss, bound of the gap" if same else "", ax=axes[0])
    top.set_yscale("log")
    _marked(top, tau)
    if error is not None:
        errors = {"training": error} if test_error is None else {"training": error, "test": test_error}
        bottom = curves(epochs, errors, x_label="epoch", y_label="error", ax=axes[1])
        _marked(bottom, tau)
    return figure


def _marked(ax: Any, tau: float | None) -> Any:
    """Mark tau by a vertical line."""
    if tau is not None:
        ax.axvline(tau, color=FAINT, linewidth=0.8)
        ax.annotate(r"$\tau$", (tau, 1.0), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    return ax
