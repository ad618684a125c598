"""Figures of training runs and verdicts: functions that take axes and return them; they print well in grey.

Every line has a dash pattern or a marker of its own beside its colour, so that it can be told apart without colours.
Inputs are plain arrays; matplotlib is loaded by the first call.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignver.errors import InvalidInput, MissingDependency

__all__ = [
    "conflict",
    "curves",
    "gap",
    "occupancy",
    "panels",
    "representation_change",
    "spectrum",
    "training_and_q",
    "turning",
]

# Okabe and Ito's palette in an order of falling darkness, so that neighbours differ in grey too.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def _styled() -> Iterator[Any]:
    try:
        import matplotlib
        from matplotlib import figure as module
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "figures", "plots") from error
    with matplotlib.rc_context(_STYLE):
        yield module


def _axes(ax: Any, width: float = 6.0, height: float = 3.4) -> Any:
    if ax is not None:
        return ax
    with _styled() as module:
        # Without pyplot nothing is registered anywhere: a figure is garbage when nobody holds it.
        return module.Figure(figsize=(width, height), dpi=150).subplots()


def _styles() -> Iterator[dict[str, Any]]:
    return (
        {"color": colour, "linestyle": dash}
        for colour, dash in zip(itertools.cycle(_COLOURS), itertools.cycle(_DASHES))
    )


def panels(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, one below the other."""
    with _styled() as module:
        figure = module.Figure(figsize=(6.0, 3.2 * count), dpi=150)
        return figure, list(figure.subplots(count, squeeze=False)[:, 0])


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
        New ones, of a figure of their own, if not given: ``axes.figure`` is the figure.

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
    ax = _axes(ax)
    with _styled():
        for (label, values), style in zip(lines.items(), _styles()):
            ax.plot(x[: len(values)], values, label=label, **style)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        if len(lines) > 1:
            ax.legend()
    return ax


def training_and_q(
    steps: Sequence[float],
    error: Sequence[float],
    q: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    *,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Draw the training error and, on a second axis, Q_T as intervals (Figure 1).

    Parameters
    ----------
    steps, error : sequences of one length
    q : mapping of label to (lower, upper)
        Q_T if UNDECIDED checks count as HOLDS, and if they count as FAILS; steps as above.
    title : str
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        Of the error; ``ax.right`` is the one of Q_T.

    Examples
    --------
    >>> ax = training_and_q([0, 1, 2], [0.5, 0.2, 0.0], {"press": ([0, 0, 0], [0, 1, 1])})
    >>> ax.right.get_ylabel()
    '$Q_T$'
    """
    ax = _axes(ax)
    with _styled():
        ax.plot(steps, error, color="#999999", linewidth=1.0, label="training error")
        ax.set_xlabel("step $T$")
        ax.set_ylabel("training error")
        ax.set_title(title)
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        right.grid(False)
        for (label, (low, high)), style in zip(q.items(), _styles()):
            right.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
            right.plot(steps, high, label=f"$Q_T$ {label}", **style)
        right.set_ylabel("$Q_T$")
        right.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none")
        ax.right = right
    return ax


def representation_change(steps: Sequence[float], changes: Mapping[str, Sequence[float]], *, ax: Any = None) -> Any:
    r"""Draw :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` over time on a logarithmic axis (Figure 3), zeros left out."""
    shown = {label: [value if value > 0 else np.nan for value in values] for label, values in changes.items()}
    ax = curves(steps, shown, x_label="step $T$", y_label=r"$\|M(\theta^T) - M(\theta^0)\|_F^2$", ax=ax)
    ax.set_yscale("log")
    return ax


def gap(
    steps: Sequence[float], loss: Sequence[float], bound: Sequence[float], *, tau: float | None = None, ax: Any = None
) -> Any:
    """Draw the training loss, which bounds the optimality gap, and a theorem's bound of it; tau as a vertical line."""
    ax = curves(steps, {"loss": loss, "bound": bound}, x_label="step $t$", y_label="optimality gap", ax=ax)
    ax.set_yscale("log")
    if tau is not None:
        ax.axvline(tau, color="#999999", linewidth=0.8)
        ax.annotate(r"$\tau$", (tau, 1.0), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    return ax


def spectrum(levels: Sequence[float], tolerances: Mapping[str, float], *, ax: Any = None) -> Any:
    """Draw singular values with each tolerance and the rank that it gives; zeros sit at the bottom.

    Examples
    --------
    >>> ax = spectrum([3.0, 1.0, 1e-17], {"press": 1e-15})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['singular values', 'press 1.0e-15: rank 2']
    """
    s = np.asarray(levels, dtype=np.float64)
    if s.ndim != 1 or not s.size or not np.all(np.isfinite(s)) or np.any(s < 0):
        raise InvalidInput("levels", f"shape {s.shape}", "singular values: finite, not negative, at least one")
    ax = _axes(ax)
    positive = s[s > 0]
    least = float(positive.min()) / 10 if positive.size else 1e-300
    with _styled():
        ax.plot(range(1, len(s) + 1), np.maximum(s, least), "k.", markersize=3, label="singular values")
        for (name, tau), style in zip(tolerances.items(), _styles()):
            ax.axhline(tau, label=f"{name} {tau:.1e}: rank {int((s > tau).sum())}", **style)
        ax.set_yscale("log")
        ax.set_xlabel("k")
        ax.set_ylabel("$s_k$")
        ax.legend()
    return ax


def turning(taus: Sequence[float], rho: Sequence[float], *, tau: float, limit: float, ax: Any = None) -> Any:
    r"""Draw the step function :math:`\rho(\tau)` with the band [tau/10, 10 tau] that a verdict has to stand over."""
    ax = _axes(ax)
    with _styled():
        ax.step(taus, rho, where="post", color="#000000", label=r"$\rho(\tau)$")
        ax.axvspan(tau / 10, tau * 10, color="#0072B2", alpha=0.15, linewidth=0, label=r"$[\tau/10, 10\tau]$")
        ax.axhline(limit, color="#D55E00", linestyle="--", label=r"$\varepsilon_y$")
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=1e-16)
        ax.set_xlabel(r"$\tau$")
        ax.set_ylabel(r"$\rho(\tau)$")
        ax.legend()
    return ax


def occupancy(gates: Any, *, ax: Any = None) -> Any:
    """Draw the gate values of phi, samples by hidden units, sorted so that a staircase looks like one."""
    S = np.asarray(gates, dtype=np.float64)
    if S.ndim != 2 or 0 in S.shape:
        raise InvalidInput("gates", f"shape {S.shape}", "a matrix of gate values, samples by units")
    order, units = np.argsort(-S.sum(axis=1), kind="stable"), np.argsort(S.sum(axis=0), kind="stable")
    ax = _axes(ax)
    with _styled():
        ax.imshow(S[np.ix_(order, units)], cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        ax.grid(False)
        ax.set_xlabel("hidden unit")
        ax.set_ylabel("sample")
    return ax


def conflict(images: Sequence[Any], labels: Sequence[str], *, names: Sequence[str] = ()) -> Any:
    """Draw the samples of a refutation side by side, each with its label; return the figure."""
    if len(images) != len(labels) or not images:
        raise InvalidInput("labels", f"{len(labels)} beside {len(images)} images", "one for each image, at least one")
    with _styled() as module:
        figure = module.Figure(figsize=(2.2 * len(images), 2.6), dpi=150)
        for k, (image, label) in enumerate(zip(images, labels)):
            ax = figure.add_subplot(1, len(images), k + 1)
            ax.imshow(np.asarray(image), cmap="Greys", interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(f"{names[k]}\\n{label}" if k < len(names) else label)
    return figure
