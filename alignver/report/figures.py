"""The figures of a result and of a training run, each with a caption and a description in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput
from alignver.report import plots, verdict_plots
from alignver.report.history import History
from alignver.report.plots import svg
from alignver.report.source import Source, number
from alignver.results import CheckResult
from alignver.samples import as_numbers

_WIDTH = 4.2  # inches: letters stay readable on a page of a phone's width
_LETTERS = 20
_PAIRS = 20
_MODULES = 40
_MOST = 10**12  # pairs that a caption counts


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a page: its caption, a description for readers who do not see it, and the drawing."""

    caption: str
    words: str
    svg: str


def of_result(result: CheckResult, samples: Mapping[str, Any], prefix: str) -> list[Picture]:
    """Return the figures for which a result has the numbers."""
    evidence = [*_equal(result, samples, prefix), *_reach(result, prefix), *_turning(result, prefix)]
    evidence += _rules(result, prefix)
    return [*evidence, *_modules(result, prefix)]


def of_history(source: Source, prefix: str) -> list[Picture]:
    """Return the figures of a training run."""
    tracked = [] if source.tracked is None else _tracked(source.tracked, prefix)
    return [*_training(source, prefix), *tracked]


def _picture(caption: str, words: str, figure: Any, prefix: str) -> Picture:
    figure.set_size_inches(_WIDTH, figure.get_figheight())
    return Picture(caption, words, svg(figure, prefix))


def _rules(result: CheckResult, prefix: str) -> Iterator[Picture]:
    rows = result.measured.get("rules")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    tolerances = {_short(row.get("rule")): number(row.get("tolerance")) for row in rows}
    ranks = {_short(row.get("rule")): row.get("rank") for row in rows}
    if not any(0 < tau < math.inf for tau in tolerances.values()):
        return
    near = result.measured.get("levels_near_tolerance")
    levels = [number(level) for level in near] if isinstance(near, Sequence) else []
    counted = f" {len(levels)} singular values near the tolerance." if isinstance(near, Sequence) else ""
    deciding = None if result.tolerance is None else _short(result.tolerance.rule)
    ax = verdict_plots.rules(tolerances, ranks, levels, deciding=deciding)
    distinct = sorted({"not settled" if rank is None else str(rank) for rank in ranks.values()})
    yield _picture(
        "Tolerances of the rank rules, each with the rank it gives; filled: the rule that decided. "
        "Where no singular value lies between two rules, they agree.",
        f"{len(rows)} rank rules on a logarithmic axis of tolerances; ranks: {', '.join(distinct)}.{counted}",
        ax.figure,
        f"{prefix}rules",
    )


def _modules(result: CheckResult, prefix: str) -> Iterator[Picture]:
    """Show the modules of a network that was traced."""
    entries = result.measured.get("modules")
    entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, Sequence) else []
    rows = []
    for entry in entries[:_MODULES]:
        name, operators, degree, analytic = (
            str(entry.get(key, "")) for key in ("module", "operators", "degree", "analytic")
        )
        rows.append((_short(name) or "model", _short(operators), degree, not analytic.startswith("not proved")))
    if rows:
        more = f" The first {len(rows)} of {len(entries)}." if len(entries) > len(rows) else ""
        unproved = sum(not proved for *_, proved in rows)
        yield _picture(
            "The modules of the network in the order of evaluation, with their operators. Filled: of degree 1 in S; a "
            f"cross: an operator that is not proved to be analytic.{more}",
            f"{len(rows)} modules, {sum(row[2] == '1' for row in rows)} of degree 1, {unproved} not proved analytic.",
            verdict_plots.modules(rows).figure,
            f"{prefix}modules",
        )


def _reach(result: CheckResult, prefix: str) -> Iterator[Picture]:
    """Show what parameters of limited norm reach, and kappa beside that of shuffled targets."""
    entry, rows = result.measured.get("kappa"), result.measured.get("reach")
    if not isinstance(entry, Mapping) or not isinstance(rows, Sequence):
        return
    low, high = (number(entry.get(key)) for key in ("lower", "upper"))
    rows = [[number(row.get(key)) for key in ("budget", "lower", "upper")] for row in rows if isinstance(row, Mapping)]
    if not 0 < low <= high < math.inf or not all(row[0] > 0 and 0 <= row[1] <= row[2] <= 1 for row in rows):
        return  # y is out of reach or zero, or it is a document that alignver did not write
    shuffled = number(result.measured.get("kappa_shuffled"))
    known = 0 < shuffled < math.inf
    columns = [list(column) for column in zip(*rows)] if rows else [[], [], []]
    ax = verdict_plots.reach(*columns, kappa=(low, high), shuffled=shuffled if known else None)
    of_shuffled = f"; {shuffled:.3g} for shuffled targets (median)" if known else ""
    words = "".join(f" {row[2]:.2g} at {row[0]:g};" for row in rows[:4])
    yield _picture(
        "Bounds of the smallest relative residual with parameters of limited norm. It is 0 from kappa on, the norm of "
        "the smallest parameters that give y; dashed: kappa of shuffled targets.",
        f"kappa is between {low:.4g} and {high:.4g}{of_shuffled}. Residuals:{words or ' none'}".rstrip(";") + ".",
        ax.figure,
        f"{prefix}reach",
    )


def _turning(result: CheckResult, prefix: str) -> Iterator[Picture]:
    """Show rho(tau) with the band over which the numerical verdict must not change."""
    curve, limit = result.measured.get("curve"), number(result.measured.get("residual_tolerance"))
    tau = math.nan if result.tolerance is None else result.tolerance.value
    if not isinstance(curve, Mapping) or not (tau > 0 and limit > 0):
        return
    lists = [curve.get(key) for key in ("tau", "rho", "band")]
    taus, rho, band = ([number(value) for value in row] if isinstance(row, Sequence) else [] for row in lists)
    good = all(math.isfinite(value) for value in (*taus, *rho, *band)) and min([*taus, *band], default=0.0) > 0.0
    if not good or not taus or len(taus) != len(rho) or len(band) != 2:
        return  # a document that alignver did not write
    ax = verdict_plots.turning(taus, rho, tau=tau, limit=limit, band=(band[0], band[1]))
    yield _picture(
        "The relative residual of y if singular values up to τ count as zero. Numerically HOLDS: below the horizontal "
        "band in the whole vertical band; FAILS: above it.",
        f"A rising staircase from {rho[0]:.1e} at τ = {taus[0]:.1e} to {rho[-1]:.1e} at τ = {taus[-1]:.1e}.",
        ax.figure,
        f"{prefix}turning",
    )


def _equal(result: CheckResult, samples: Mapping[str, Any], prefix: str) -> Iterator[Picture]:
    """Show pairs of samples with equal inputs, conflicts first, if the inputs are images and available."""
    conflicts, equal = (_listed(result.measured.get(key)) for key in ("conflicts", "equal"))
    X, Y = samples.get("X"), samples.get("Y")
    if X is None or conflicts is None or equal is None:
        return
    listed = [*conflicts, *(pair for pair in equal if pair not in conflicts)][:_PAIRS]
    images = [_alike(X, pair, result.measured.get("dtype")) for pair in listed]
    drawable = [image for image in images if image is not None]
    if not drawable or len(drawable) < len(images):
        return  # a report about other samples
    labels = [(a, b) if a and b else ("", "") for a, b in ((_label(Y, i), _label(Y, j)) for i, j in listed)]
    differ = [pair in conflicts or a != b for pair, (a, b) in zip(listed, labels)]
    titles = [
        f"samples {i} and {j}\n{_labels(*of, other, Y)}".strip() for (i, j), of, other in zip(listed, labels, differ)
    ]
    try:
        axes = verdict_plots.pairs([(image, image) for image in drawable], titles, width=_WIDTH)
    except InvalidInput:
        return
    named = [[f"sample {k}{of and f' label {of}'}" for k, of in zip(*both)] for both in zip(listed, labels)]
    words = f"Pairs of equal images side by side: {'; '.join(' and '.join(pair) for pair in named)}."
    caption = "Pairs of equal inputs"
    if all(differ):
        caption = "Equal inputs with different targets: no model fits both"
    elif any(differ):
        caption += ". Where targets differ, no model fits both"
    elif Y is not None:
        caption += " with equal targets"
    counts = [_count(result.measured.get(key)) for key in ("conflicts", "equal")]
    if max(counts) > len(listed):
        caption += f"; the first {len(listed)} of {max(counts)} pairs" + (", conflicts before others" * any(differ))
    yield _picture(f"{caption}.", words, axes[0].figure, f"{prefix}pair")


def _listed(entry: Any) -> list[tuple[int, int]] | None:
    """Return the pairs of samples that a result lists, or None if the entry is not a list of pairs."""
    if entry is None:
        return []
    rows = entry.get("pairs") if isinstance(entry, Mapping) else None
    if not isinstance(rows, tuple | list):
        return None
    rows = rows[:_PAIRS]
    good = (isinstance(row, tuple | list) and len(row) == 2 and {type(k) for k in row} == {int} for row in rows)
    return [(row[0], row[1]) for row in rows] if all(good) else None


def _count(entry: Any) -> int:
    count = entry.get("count") if isinstance(entry, Mapping) else None
    return count if type(count) is int and count <= _MOST else 0


def _alike(X: Any, pair: tuple[int, int], dtype: Any) -> npt.NDArray[Any] | None:
    """Return the image of two equal samples in the dtype in which they were compared; None if they are not equal."""
    try:
        if not _images((len(X), *np.shape(X[0]))) or not 0 <= min(pair) <= max(pair) < len(X):
            return None
        one, other = (as_numbers(X[index], "X") for index in pair)
    except (InvalidInput, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return None
    if dtype in ("float16", "float32"):
        with np.errstate(all="ignore"):
            one, other = one.astype(dtype), other.astype(dtype)
    return one if np.array_equal(one, other) else None


def _label(Y: Any, index: int) -> str:
    """Return the target of a sample as a word: its number, or the class of a one-hot row; empty for other targets."""
    try:
        row = as_numbers(Y[index], "Y").ravel()
    except (InvalidInput, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return ""
    if row.size == 1:
        return f"{row[0]:g}" if row.dtype.kind == "f" else _short(int(row[0]))
    return str(row.argmax()) if row.size and row.max() == 1 and np.count_nonzero(row) == 1 else ""


def _labels(one: str, other: str, differ: bool, Y: Any) -> str:
    """Return in words how the targets of a pair compare."""
    if one and other and (one != other) == differ:
        return f"labels {one} \N{NOT EQUAL TO} {other}" if differ else f"label {one}, both"
    return "different targets" if differ else "equal targets" * (Y is not None)


def _short(name: Any) -> str:
    """Return a name, shortened so that the figure has room beside it."""
    text = str(name)
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _images(shape: Sequence[int]) -> bool:
    """Return whether samples are images: (n, h, w), (n, c, h, w) or (n, h, w, c) with one or three channels."""
    return min(shape, default=0) > 0 and (
        len(shape) == 3 or (len(shape) == 4 and {shape[1], shape[3]} & {1, 3} != set())
    )


def _training(source: Source, prefix: str) -> Iterator[Picture]:
    columns = {
        key: [number(line.get(key)) for line in source.history]
        for key in ("epoch", "loss", "gap", "error", "test_error")
    }
    known = {key: values for key, values in columns.items() if any(math.isfinite(value) for value in values)}
    if not {"epoch", "loss"} <= known.keys():
        return
    figure = plots.training(
        columns["epoch"], columns["loss"], known.get("gap", columns["loss"]), known.get("error"), tau=source.tau,
        test_error=known.get("test_error"),
    )  # fmt: skip
    names = ("loss", "gap", "error", "test_error")
    last = [f"{name.replace('_', ' ')} {columns[name][-1]:.3g}" for name in names if name in known]
    words = f"Curves over {len(source.history)} epochs. At the end: {', '.join(last)}."
    caption = "Training: loss, bound of the optimality gap, error"
    caption += "" if source.tau is None else f"; at τ = {source.tau:g}, exploration ends"
    yield _picture(f"{caption}.", words, figure, f"{prefix}training")


def _tracked(history: History, prefix: str) -> Iterator[Picture]:
    """Show what a tracker recorded: Q_T, the change of the representation, residuals, the last singular values."""
    columns = history.columns()
    steps = [float(step) for step in columns["step"]]

    def column(name: str) -> list[float]:
        return [number(value) for value in columns.get(name, [None] * len(steps))]

    measured = "error" if any(value is not None for value in columns["error"]) else "loss"
    ax = plots.training_and_q(steps, column(measured), history.q_curve(), y_label=f"training {measured}")
    counts = "; ".join(f"{rule} {low} to {high}" for rule, (low, high) in history.q().items())
    caption = (
        "Checks that fail (Q_T) under each rank rule: the line counts UNDECIDED as FAILS, the band reaches down to the "
        f"FAILS alone. Behind it, the training {measured}."
    )
    yield _picture(caption, f"After {len(steps)} checks, Q_T is: {counts}.", ax.figure, f"{prefix}q")
    change = column("change")
    if any(value > 0 for value in change):
        ends = {"change": (column("change_low"), column("change_high"))}
        shown = ends if any(math.isfinite(value) for value in ends["change"][0]) else None
        ax = plots.representation_change(steps, {"change": change}, intervals=shown)
        words = f"The change grows to {max(value for value in change if value > 0):.3g}."
        yield _picture("Change of the representation since the start.", words, ax.figure, f"{prefix}change")
    rho = {rule: (column(f"{rule}.residual_low"), column(f"{rule}.residual_high")) for rule in history.rules}
    if any(math.isfinite(value) for _, high in rho.values() for value in high):
        limit = number(history.config.get("residual_tolerance"))
        ax = plots.residuals(steps, rho, limit=limit if limit > 0 else None)
        words = "; ".join(f"{rule} at the end: {high[-1]:.3g}" for rule, (_, high) in rho.items())
        caption = "Part of the targets that is out of reach at each rule's tolerance, between bounds."
        yield _picture(caption, words, ax.figure, f"{prefix}rho")
    bounds = [number((record.theorem_3 or {}).get("bound")) for record in history]
    if any(math.isfinite(value) for value in bounds):
        least = [number((record.theorem_3 or {}).get("least_loss")) for record in history]
        lines = {"least loss": least, "Theorem 3's bound": bounds}
        ax = plots.curves(steps, lines, x_label="step $T$", y_label="training loss")
        ax.set_yscale("log")
        words = f"At the end: least loss {least[-1]:.3g}, bound {bounds[-1]:.3g}."
        yield _picture("The least loss up to now, and Theorem 3's bound of it.", words, ax.figure, f"{prefix}theorem3")
