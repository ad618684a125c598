r"""Figure 1(a) about the network itself: what is true of alignment along training, beside what a tolerance says of it.

Q_T counts steps at which a rank computed in floating point says that y is not in the column space of J. Whether it is,
in real arithmetic, is decided here with a proof at some steps, together with kappa, the size of the smallest solution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from alignver.checks.alignment import check_alignment
from alignver.experiments import fully_connected
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting, slug
from alignver.experiments.fully_connected import DATASETS
from alignver.experiments.networks import READINGS
from alignver.jacobians.compression import CompressedJacobian
from alignver.results import Subject

__all__ = ["FIGURE1A_NETWORK", "STEPS", "run"]

SEEDS = 3
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
_SECONDS = 120.0  # for the proof at one step; it takes 5 to 12
_DECADES = 10  # by which kappa has to tell the data sets apart at initialisation


def _parts(setting: Setting) -> list[Part]:
    reading = setting.reading or next(iter(READINGS))
    return [
        Part(
            f"{name}, seed {seed}",
            {**fully_connected.recipe(name, seed, reading), "decided at": list(STEPS)},
            functools.partial(run, name, seed, reading),
        )
        for seed in range(setting.on_cpu().seeds or SEEDS)
        for name in setting.select(DATASETS)
    ]


def run(name: str, seed: int, reading: str, *, steps: Iterable[int] = STEPS) -> dict[str, Any]:
    r"""Train as for Figure 1(a), and decide alignment of the network at some steps.

    Returns
    -------
    dict
        ``error`` at every step up to the last; per decided step ``steps``, ``verdict``, ``subject``, ``rigor``,
        ``kappa`` (an interval or None), ``shuffled`` (its median for shuffled targets), ``reach`` (rho_b), and
        ``press float32``, the verdict of the paper's rule about a Jacobian in float32.
    """
    data = fully_connected.dataset(name, seed)
    model = READINGS[reading].build(int(data.x.shape[1]), seed=seed)
    x = torch.tensor(data.x, dtype=torch.float32)
    target = 2.0 * data.y.astype(np.float64) - 1.0
    single = CompressedJacobian(model, x, dtype="same")
    wanted = tuple(steps)
    record: dict[str, Any] = {"steps": list(wanted), "error": [], "press float32": []}
    record |= {key: [] for key in ("verdict", "subject", "rigor", "kappa", "shuffled", "reach")}
    for step, _, error in fully_connected.descent(model, data, max(wanted), f"{name}, seed {seed}"):
        record["error"].append(error)
        if step not in wanted:
            continue
        result = check_alignment(model, x, data.y, loss="binary_cross_entropy", budget_seconds=_SECONDS)
        record["press float32"].append(fully_connected.look(single, target, "float32")["press"]["verdict"])
        record["verdict"].append(result.verdict)
        record["subject"].append(result.subject)
        record["rigor"].append(result.rigor)
        record["kappa"].append(result.measured.get("kappa"))
        record["shuffled"].append(result.measured.get("kappa_shuffled"))
        record["reach"].append(result.measured.get("reach"))
    return record


_PAPER = {"two moons": "in", "sine wave": "outside"}
_Q = {"two moons": "0", "sine wave": "T"}


def _claims(setting: Setting) -> list[Claim]:
    """What is true beside what the paper's figure says; and whether kappa tells success from failure."""
    runs = _parts(setting)
    keys = {name: [part.key for part in runs if part.recipe["dataset"] == name] for name in setting.select(DATASETS)}
    claims = [
        Claim(
            f"{slug(name)}-network",
            f"{name}: y is {_PAPER[name]} the column space of J, as Q_T = {_Q[name]} says",
            {
                "y is": f"{_PAPER[name]} at all steps",
                "by press in float32": "-",
                "kappa": "-",
                "kappa, shuffled targets": "-",
            },
            keys[name],
            functools.partial(_truth, name),
            enough=1,
        )
        for name in keys
    ]
    if len(keys) == len(DATASETS):
        every = [key for name in keys for key in keys[name]]
        sentence = "kappa at initialisation tells the data set that is fitted from the one that is not"
        claims.append(Claim("kappa-contrast", sentence, "-", every, _contrast))
    return claims


def _truth(name: str, runs: Measured) -> Answer:
    """Count what is proved about the network, and what the rule says of the computed Jacobian."""
    decisions = [
        (verdict, subject == Subject.NETWORK)
        for run in runs.values()
        for verdict, subject in zip(run["verdict"], run["subject"])
    ]
    proved = {word: sum(verdict == word and about for verdict, about in decisions) for word in ("HOLDS", "FAILS")}
    rule = [verdict for run in runs.values() for verdict in run["press float32"]]
    kappas, shuffled = _kappas(runs), [value for run in runs.values() for value in run["shuffled"] if value]
    total = len(decisions)
    truth = f"in it at {proved['HOLDS']}, outside at {proved['FAILS']} of {total} steps (proved)"
    counts = ", ".join(f"{word} at {rule.count(word)}" for word in ("HOLDS", "FAILS", "UNDECIDED") if word in rule)
    ours = {
        "y is": truth,
        "by press in float32": f"{counts} of {total} steps",
        "kappa": _span(kappas),
        "kappa, shuffled targets": _span(shuffled),
    }
    expected = "HOLDS" if name == "two moons" else "FAILS"
    reason = f"in real arithmetic y is {truth}; kappa {ours['kappa']}"
    return Answer.of(proved[expected] == total, reason, ours, [f"the Jacobian in float32 under press: {counts}"])


def _contrast(runs: Measured) -> Answer:
    """Compare kappa of the data sets at initialisation, and over all decided steps."""
    moons, sine = (
        [[bounds and bounds["upper"] for bounds in run["kappa"]] for key, run in runs.items() if key.startswith(name)]
        for name in DATASETS
    )
    if not all(all(kappas) for kappas in (*moons, *sine)):
        return Answer.of(False, "kappa is not known at every step")
    first = _decades([kappas[0] for kappas in moons], [kappas[0] for kappas in sine])
    over_all = _decades([max(kappas) for kappas in moons], [min(kappas) for kappas in sine])
    reason = f"before any training each kappa of the sine wave exceeds each of two moons by at least {first} decades"
    ours = {"decades at step 0": first, "decades at all steps": over_all}
    evidence = [f"between any step of one and any step of the other there are at least {over_all} decades"]
    return Answer.of(first >= _DECADES and over_all > 0, reason, ours, evidence)


def _decades(low: list[float], high: list[float]) -> int:
    return math.floor(math.log10(min(high) / max(low)))


def _kappas(runs: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Return the upper ends of the intervals of kappa, where there are any."""
    return [float(value["upper"]) for run in runs.values() for value in run["kappa"] if value is not None]


def _span(values: list[float]) -> str:
    return f"{min(values):.1e} to {max(values):.1e}" if values else "-"


def _draw(measured: Measured) -> Any:
    """Return the figure: training errors, and kappa with that of shuffled targets; a colour for each data set."""
    from alignver.report.plots import COLOURS, panels, styled

    figure, (above, below) = panels(2)
    with styled():
        for name, colour in zip(DATASETS, COLOURS):
            runs = [run for key, run in measured.items() if key.startswith(name)]
            for seed, run in enumerate(runs):
                true, shuffled = (name, f"{name}, shuffled targets") if seed == 0 else (None, None)
                above.plot(range(len(run["error"])), run["error"], color=colour, linewidth=0.9, label=true)
                kappa = [math.nan if bounds is None else bounds["upper"] for bounds in run["kappa"]]
                below.plot(run["steps"], kappa, color=colour, marker="o", markersize=3, label=true)
                below.plot(run["steps"], run["shuffled"], color=colour, linestyle=":", label=shuffled)
        for ax, label in ((above, "training error"), (below, "kappa")):
            ax.set_xlabel("step")
            ax.set_ylabel(label)
            ax.legend(loc="upper right")
        below.set_xscale("symlog", linthresh=1.0)
        below.set_yscale("log")
        below.set_ylim(top=1e40)  # room for the legend
    return figure


FIGURE1A_NETWORK = Item(
    "figure1a-network",
    "Alignment of the network itself along training, and kappa",
    "Figure 1(a)",
    "2 minutes of two cores for each of six runs; the GPU is not used",
    _parts,
    _claims,
    _draw,
    DATASETS,
    tuple(READINGS),
)
