"""Figures of the evidence behind a verdict: functions that take plain arrays and axes, and return the axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.report.plots import BAND, COLOURS, PLATE, axes_of, escaped, line_styles, styled

_PIXELS = 160  # along each side of a small image; of larger ones every second, third, ... pixel is drawn


def spectrum(levels: Sequence[float], tolerances: Mapping[str, float], *, ax: Any = None) -> Any:
    """Draw singular values with each tolerance and its rank: the number of singular values above it.

    Parameters
    ----------
    levels : sequence of float
        In any order; zeros sit at the bottom, as triangles.
    tolerances : mapping of a rule's name to its tolerance
    ax : matplotlib axes, optional

    Raises
    ------
    InvalidInput
        A level is negative or not finite, or there are none.

    Examples
    --------
    >>> ax = spectrum([3.0, 1.0, 1e-17], {"press": 1e-15})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['singular values', 'press 1.0e-15: rank 2']
    """
    s = np.asarray(levels, dtype=np.float64)
    if s.ndim != 1 or not s.size or not np.all(np.isfinite(s)) or np.any(s < 0):
        raise InvalidInput("levels", f"shape {s.shape}", "singular values: finite, not negative, at least one")
    s = np.sort(s)[::-1]
    ax = axes_of(ax)
    count = int(np.count_nonzero(s))
    bottom = min([*s[:count], *(tau for tau in tolerances.values() if tau > 0), 1.0]) / 10
    with styled():
        ax.plot(range(1, count + 1), s[:count], "k.", markersize=4, label="singular values")
        if count < s.size:
            zeros = range(count + 1, s.size + 1)
            ax.plot(zeros, np.full(s.size - count, bottom), "kv", markersize=4, label="zeros", clip_on=False)
        for (name, tau), style in zip(tolerances.items(), line_styles()):
            label = f"{escaped(name)} {tau:.1e}: rank {int((s > tau).sum())}"
            ax.axhline(max(tau, bottom), label=label, **{key: style[key] for key in ("color", "linestyle")})
        ax.set_yscale("log")
        ax.set_ylim(bottom=bottom)
        ax.set(xlabel="$k$", ylabel="$s_k$")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
    return ax


def modules(rows: Sequence[tuple[str, str, str, bool]], *, ax: Any = None) -> Any:
    """Draw the modules of a network from top to bottom, in the order of evaluation.

    Parameters
    ----------
    rows : sequence of (name, operators, degree, proved)
        Filled marks have degree 1 in S; crosses are operators that are not proved to be analytic.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = modules([("0", "linear", "0", True), ("1", "relu", "0", False), ("2", "linear", "1", True)])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['0  linear', '1  relu', '2  linear']
    """
    if not rows:
        raise InvalidInput("rows", "none", "at least one")
    ax = axes_of(ax, height=0.5 + 0.2 * len(rows))
    with styled():
        ax.plot([0.0] * len(rows), range(len(rows)), "-", color="#888888", linewidth=1.0)
        for row, (_, _, degree, proved) in enumerate(rows):
            fill = "full" if degree == "1" else "none"
            ax.plot([0.0], [row], "o" if proved else "x", color="#000000", fillstyle=fill, markersize=5)
        ax.set_yticks(range(len(rows)), [escaped(f"{name}  {operators}") for name, operators, _, _ in rows])
        ax.set_xticks([])
        ax.set(xlim=(-0.5, 0.5), ylim=(len(rows) - 0.4, -0.6))
    return ax


def reach(
    budgets: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    *,
    kappa: tuple[float, float] | None = None,
    shuffled: float | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw :math:`\rho_b`, between its bounds, over the norm b of parameters, and kappa, from which on it is 0.

    Parameters
    ----------
    budgets, lower, upper : sequences of float
        b, ascending, and the two bounds; they may be empty if kappa is given.
    kappa : (float, float), optional
        Its two bounds: a bar.
    shuffled : float, optional
        The median of kappa for permuted targets: a dashed line.
    ax : matplotlib axes, optional

    Raises
    ------
    InvalidInput
        The sequences differ in length, or there is nothing to draw.

    Examples
    --------
    >>> ax = reach([1.0, 10.0], [0.5, 0.1], [0.5, 0.2], kappa=(24.0, 25.0), shuffled=60.0)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['$\\rho_b$', '$\\kappa$', '$\\kappa$, shuffled targets']
    """
    if len(budgets) != len(lower) or len(budgets) != len(upper) or (not len(budgets) and kappa is None):
        got = f"{len(budgets)} budgets, {len(lower)} and {len(upper)} bounds"
        raise InvalidInput("budgets", got, "as many bounds as budgets, or kappa")
    ax = axes_of(ax)
    with styled():
        if len(budgets):
            middle = [(a + b) / 2 for a, b in zip(lower, upper)]
            ax.fill_between(budgets, lower, upper, color=COLOURS[0], alpha=BAND, linewidth=0)
            ax.plot(budgets, middle, "ko-", markersize=3, label=r"$\rho_b$")
        if kappa is not None:
            low, high = kappa
            ax.axvspan(low, max(high, low * 1.02), color=COLOURS[2], label=r"$\kappa$")
        if shuffled is not None:
            ax.axvline(shuffled, color=COLOURS[1], linestyle="--", label=r"$\kappa$, shuffled targets")
        ax.set(xscale="log", ylim=(-0.02, 1.05), xlabel=r"$\|\beta\|$", ylabel=r"$\rho_b$")
        ax.legend()
    return ax


def rules(
    tolerances: Mapping[str, float],
    ranks: Mapping[str, int | None],
    levels: Sequence[float] = (),
    *,
    deciding: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the tolerance of every rank rule on one axis, with its rank and the singular values around them.

    Where no singular value lies between two rules, they cannot disagree.

    Parameters
    ----------
    tolerances, ranks : mappings of a rule's name
        A rank of None: not settled.
    levels : sequence of float
        Singular values near the tolerances; vertical lines.
    deciding : str, optional
        The deciding rule: a filled mark.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = rules({"press": 3e-13, "golub": 2e-11}, {"press": 5, "golub": 4}, [1e-12], deciding="golub")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['golub', 'press']
    """
    named = sorted(((name, tau) for name, tau in tolerances.items() if 0 < tau < np.inf), key=lambda pair: -pair[1])
    if not named:
        raise InvalidInput("tolerances", f"{dict(tolerances)}", "at least one that is positive and finite")
    ax = axes_of(ax, height=0.9 + 0.26 * len(named))
    with styled():
        for k, level in enumerate(sorted(level for level in levels if level > 0)):
            ax.axvline(level, color=COLOURS[1], linestyle="--", linewidth=1.0, label=None if k else "singular value")
        for row, (name, tau) in enumerate(named):
            ax.plot([tau], [row], "o", color="#000000", fillstyle="full" if name == deciding else "none", markersize=5)
            place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "size": 8, "bbox": PLATE}
            rank = ranks[name]
            ax.annotate("rank not settled" if rank is None else f"rank {rank}", (tau, row), **place)
        ax.set_xscale("log")
        low, high = named[-1][1], named[0][1]
        shown = [level for level in levels if low / 100 <= level <= high * 100]
        ax.set_xlim(min([low, *shown]) / 3, max([high, *shown]) * 10)
        ax.set_yticks(range(len(named)), [escaped(name) for name, _ in named])
        ax.set(ylim=(-0.6, len(named) - 0.4), xlabel=r"tolerance $\tau$")
        if shown:
            ax.legend(loc="upper right")
    return ax


def turning(
    taus: Sequence[float],
    rho: Sequence[float],
    *,
    tau: float,
    limit: float,
    band: tuple[float, float] | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw the step function :math:`\rho(\tau)` with the band over which a verdict must not change.

    A verdict HOLDS where the curve is below :math:`\varepsilon_y / 10` in the whole band, FAILS where it is above
    :math:`10 \varepsilon_y`.

    Parameters
    ----------
    taus, rho : sequences of one length
        The curve: rho is constant from each tau to the next.
    tau : float
        The tolerance that decides.
    limit : float
        The residual tolerance :math:`\varepsilon_y`.
    band : (float, float), optional
        [tau / 10, 10 tau] if not given.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = turning([1e-16, 1e-14, 1.0], [1e-15, 0.1, 1.0], tau=1e-13, limit=1e-8)
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'symlog')
    """
    low, high = band if band is not None else (tau / 10, 10 * tau)
    ax = axes_of(ax)
    with styled():
        ax.step(taus, rho, where="post", color=COLOURS[0], label=r"$\rho(\tau)$")
        label = r"$[\tau/10, 10\tau]$" if band is None else "band of the verdict"
        ax.axvspan(low, high, color=COLOURS[1], alpha=BAND, linewidth=0, label=label)
        ax.axvline(tau, color=COLOURS[1], linestyle="-.", linewidth=1.0, label=r"$\tau$")
        ax.axhline(limit, color=COLOURS[2], linestyle="--", label=r"$\varepsilon_y$")
        ax.axhspan(limit / 10, limit * 10, color=COLOURS[2], alpha=BAND, linewidth=0)
        ax.set_xscale("log")
        # This axis can show zero: the value of the curve where y is in the column space.
        ax.set_yscale("symlog", linthresh=1e-17)
        ax.set_yticks([0.0, 1e-16, 1e-12, 1e-8, 1e-4, 1.0])
        ax.set(ylim=(0.0, 2.0), xlabel=r"$\tau$", ylabel=r"$\rho(\tau)$")
        ax.legend(loc="best")
    return ax


def occupancy(gates: Any, *, ax: Any = None) -> Any:
    """Draw the gate values of phi, samples by hidden units, sorted so that a staircase is visible.

    Parameters
    ----------
    gates : (n, H) array
        Values from 0, white, to 1, black.
    ax : matplotlib axes, optional

    Examples
    --------
    >>> ax = occupancy([[0.0, 1.0], [1.0, 1.0]])
    >>> ax.images[0].get_array().tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    S = np.asarray(gates, dtype=np.float64)
    if S.ndim != 2 or 0 in S.shape:
        raise InvalidInput("gates", f"shape {S.shape}", "a matrix of gate values, samples by units", "wrong-shape")
    order, units = np.argsort(-S.sum(axis=1), kind="stable"), np.argsort(S.sum(axis=0), kind="stable")
    ax = axes_of(ax)
    with styled():
        image = ax.imshow(S[np.ix_(order, units)], cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto")
        ax.grid(False)
        ax.set(xlabel="hidden unit", ylabel="sample")
        ax.figure.colorbar(image, ax=ax, label="gate")
    return ax


def conflict(images: Sequence[Any], labels: Sequence[str], *, names: Sequence[str] = (), axes: Any = None) -> list[Any]:
    """Draw the samples of a refutation side by side, each with its label.

    Parameters
    ----------
    images : sequence of arrays
        (h, w), or with a channel axis of 1 or 3 at the front or at the end; one scale of grey for all of them.
    labels : sequence of str
    names : sequence of str
        The name of each sample.
    axes : sequence of matplotlib axes, optional
        One for each image; new ones, side by side, if not given.

    Returns
    -------
    list of matplotlib.axes.Axes

    Examples
    --------
    >>> axes = conflict([[[0.0, 1.0]], [[0.0, 1.0]]], ["a 3", "a 5"], names=["sample 17", "sample 41"])
    >>> axes[1].get_title()
    'sample 41\\na 5'
    """
    if len(images) != len(labels) or not len(images):
        got = f"{len(labels)} for {len(images)} images"
        raise InvalidInput("labels", got, "one for each image, at least one", "wrong-shape")
    pictures = [_picture(image) for image in images]
    low, high = min(float(p.min()) for p in pictures), max(float(p.max()) for p in pictures)
    with styled() as module:
        if axes is None:
            figure = module.Figure(figsize=(2.2 * len(images), 2.6), dpi=150)
            axes = list(figure.subplots(1, len(images), squeeze=False)[0])
        for k, (picture, label, ax) in enumerate(zip(pictures, labels, axes)):
            if picture.ndim == 3:
                ax.imshow((picture - low) / ((high - low) or 1.0))
            else:
                ax.imshow(picture, cmap="Greys", vmin=low, vmax=high)
            ax.set_axis_off()
            name = f"{escaped(names[k])}\n" if k < len(names) else ""
            ax.set_title(f"{name}{escaped(label)}")
    return list(axes)


def pairs(
    images: Sequence[tuple[Any, Any]], titles: Sequence[str], *, columns: int = 2, width: float = 6.0, axes: Any = None
) -> list[Any]:
    """Draw pairs of samples, the two of a pair beside each other, in rows of a few pairs.

    Parameters
    ----------
    images : sequence of two arrays
        (h, w), or with a channel axis of 1 or 3 at the front or at the end; one scale for all of them.
    titles : sequence of str
        The title of each pair.
    columns : int
        Number of pairs in a row.
    width : float
        Of a new figure, in inches.
    axes : sequence of matplotlib axes, optional
        One for each pair; new ones if not given.

    Returns
    -------
    list of matplotlib.axes.Axes

    Examples
    --------
    >>> axes = pairs([([[0.0, 1.0]], [[0.0, 1.0]])], ["samples 17 and 41"])
    >>> axes[0].get_title(), len(axes[0].images)
    ('samples 17 and 41', 2)
    """
    if len(images) != len(titles) or not len(images):
        got = f"{len(titles)} for {len(images)} pairs"
        raise InvalidInput("titles", got, "one for each pair, at least one", "wrong-shape")
    drawn = [[_picture(image, _PIXELS) for image in pair] for pair in images]
    low = min(float(p.min()) for pair in drawn for p in pair)
    high = max(float(p.max()) for pair in drawn for p in pair)
    if not np.isfinite(high - low):
        raise InvalidInput("images", f"entries from {low:.3g} to {high:.3g}", "finite images", "not-finite")
    columns = min(columns, len(images))
    tall = max(p.shape[0] / p.shape[1] for pair in drawn for p in pair)
    with styled() as module:
        if axes is None:
            rows = -(-len(images) // columns)
            each = width / columns * min(max(tall, 0.2), 3.0) / 2 + 0.17 * (1 + max(t.count("\n") + 1 for t in titles))
            figure = module.Figure(figsize=(width, rows * each), dpi=150)
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for ax in grid[len(images) :]:
                ax.set_axis_off()
            axes = list(grid[: len(images)])
        for pair, title, ax in zip(drawn, titles, axes):
            _side_by_side(ax, pair, low, high)
            ax.set_title("\n".join(map(escaped, title.split("\n"))), fontsize=9.5)
    return list(axes)


def _side_by_side(ax: Any, pair: Sequence[np.ndarray[Any, np.dtype[np.float64]]], low: float, high: float) -> None:
    """Draw images from left to right, each with height 1."""
    start = 0.0
    for picture in pair:
        wide = picture.shape[1] / picture.shape[0]
        place = {"extent": (start, start + wide, 0.0, 1.0), "interpolation": "none"}
        if picture.ndim == 3:
            ax.imshow((picture - low) / ((high - low) or 1.0), **place)
        else:
            ax.imshow(picture, cmap="Greys", vmin=low, vmax=high, **place)
        start += wide + 0.06
    ax.set(xlim=(0.0, start - 0.06), ylim=(0.0, 1.0))
    ax.set_axis_off()


def _picture(image: Any, most: int | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (h, w) or (h, w, 3), thinned where a side has more than ``most`` pixels."""
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if (values.ndim != 2 and (values.ndim != 3 or values.shape[2] != 3)) or 0 in values.shape:
        raise InvalidInput("images", f"shape {np.shape(image)}", "(h, w), (3, h, w) or (h, w, 3)", "wrong-shape")
    if most is not None:
        values = values[:: -(-values.shape[0] // most), :: -(-values.shape[1] // most)]
    return np.asarray(values, dtype=np.float64)
