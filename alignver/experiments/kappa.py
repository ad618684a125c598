r"""kappa, the size of the smallest solution of J beta = y, for true and for shuffled labels over a range of widths.

Arora et al. (2019, Fine-grained analysis of optimization and generalization for overparameterized two-layer neural
networks) observe that :math:`(y^\top H^{-1} y)^{1/2}` of the limit kernel H is smaller for true labels than for random
ones. Here the same quantity is enclosed for finite networks at their initialisation, and compared with training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
import torch

from alignver.checks.alignment import check_alignment
from alignver.data import Dataset, semeion
from alignver.data.image_sets import mnist
from alignver.experiments import fully_connected
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting
from alignver.experiments.networks import fully_connected as network
from alignver.experiments.table2 import data_folder
from alignver.progress import stage
from alignver.results import Subject

__all__ = ["KAPPA", "WIDTHS", "run"]

DATASETS = ("semeion", "random", "mnist")
WIDTHS = (10, 30, 100, 300, 1000)
SEEDS = 3
_SAMPLES, _STEPS = 200, 1000
_SECONDS = 120.0  # for a proof; it takes 2 to 10
_EQUAL = 1.5  # factor within which kappa of random labels and that of their shuffles are the same


def _parts(setting: Setting) -> list[Part]:
    """Return a run for each data set, width and seed; MNIST needs a folder."""
    fixed = {"samples": _SAMPLES, "steps": _STEPS, "classes": "below 5, and the others", "depth": 3}
    setting.on_cpu()
    return [
        Part(
            f"{name}, width {width}, seed {seed}",
            {"dataset": name, "width": width, "seed": seed, **fixed},
            functools.partial(run, name, width, seed, setting.data_folder),
        )
        for seed in range(setting.seeds or SEEDS)
        for name in setting.select(DATASETS, DATASETS[:2])
        for width in WIDTHS
    ]


def _dataset(name: str, seed: int, folder: Any) -> Dataset:
    """Return images as rows with a label in {0, 1}."""
    source = np.random.default_rng(seed)
    if name == "random":
        x = source.standard_normal((_SAMPLES, 256))
        return Dataset(name, x, source.integers(0, 2, _SAMPLES), "normal pixels, labels by a coin", "generated")
    images = semeion() if name == "semeion" else mnist(data_folder(folder))
    drawn = images.take(np.sort(source.choice(len(images), size=_SAMPLES, replace=False)))
    x = drawn.x.reshape(_SAMPLES, -1) / (255.0 if name == "mnist" else 1.0)
    return Dataset(name, x, (drawn.y >= 5).astype(np.int64), drawn.source, drawn.licence)


def run(name: str, width: int, seed: int, folder: Any = None, *, steps: int = _STEPS) -> dict[str, Any]:
    r"""Enclose kappa at initialisation, and train with the labels and with the same labels shuffled.

    Returns
    -------
    dict
        ``verdict``, ``subject``, ``kappa`` (bounds or None) and ``shuffled``, the median for 20 permutations;
        ``fitted``: for the true and the shuffled labels the first step without training error, or None.
    """
    data = _dataset(name, seed, folder)
    x = torch.tensor(data.x, dtype=torch.float32)

    def fresh() -> torch.nn.Sequential:
        return network(x.shape[1], width, 3, seed=seed, biases="normal", last_bias=False)

    with stage(f"{name}, width {width}, seed {seed}"):
        result = check_alignment(fresh(), x, data.y, loss="binary_cross_entropy", budget_seconds=_SECONDS)
    shuffled = np.random.default_rng([seed, 1]).permutation(data.y)
    fitted = {
        label: _first_fit(fresh(), Dataset(name, data.x, y, data.source, data.licence), steps)
        for label, y in (("true", data.y), ("shuffled", shuffled))
    }
    return {
        "verdict": result.verdict,
        "subject": result.subject,
        "kappa": result.measured.get("kappa"),
        "shuffled": result.measured.get("kappa_shuffled"),
        "fitted": fitted,
    }


def _first_fit(model: torch.nn.Sequential, data: Dataset, steps: int) -> int | None:
    descent = fully_connected.descent(model, data, steps, data.name)
    return next((step for step, _, error in descent if error == 0.0), None)


def _claims(setting: Setting) -> list[Claim]:
    """Compare kappa of the labels with that of shuffled ones; and, where it differs, the steps to zero error."""
    runs, paper = _parts(setting), {f"width {width}": "-" for width in WIDTHS}
    claims = []
    for name in setting.select(DATASETS, DATASETS[:2]):
        keys = [part.key for part in runs if part.recipe["dataset"] == name]
        than = "about that" if name == "random" else "smaller than that"
        sentence = f"{name}: kappa of the labels is {than} of shuffled ones"
        claims.append(Claim(f"{name}-kappa", sentence, paper, keys, functools.partial(_contrast, name), enough=1))
        if name != "random":
            sentence = f"{name}: the labels with the smaller kappa are fitted in fewer steps"
            claims.append(Claim(f"{name}-steps", sentence, paper, keys, _steps, enough=1))
    return claims


def _contrast(name: str, runs: Measured) -> Answer:
    ratios = {key: run["shuffled"] / run["kappa"]["upper"] for key, run in runs.items() if run["kappa"]}
    proved = sum(run["subject"] == Subject.NETWORK and run["verdict"] == "HOLDS" for run in runs.values())
    ours = {
        f"width {width}": _words(
            [run for key, run in runs.items() if f", width {width}, " in key and run["kappa"] is not None]
        )
        for width in WIDTHS
    }
    if name == "random":
        agrees = all(1.0 / _EQUAL <= ratio <= _EQUAL for ratio in ratios.values())
    else:
        agrees = all(ratio > 1.0 for ratio in ratios.values())
    span = f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f}" if ratios else "not known"
    reason = f"shuffled over true: {span}; alignment of the network is proved in {proved} of {len(runs)} runs"
    return Answer.of(bool(ratios) and len(ratios) == len(runs) and agrees, reason, ours)


def _words(runs: list[Mapping[str, Any]]) -> str:
    if not runs:
        return "-"
    true, shuffled = (median(values) for values in zip(*((run["kappa"]["upper"], run["shuffled"]) for run in runs)))
    return f"{true:.3g}; shuffled {shuffled:.3g}"


def _steps(runs: Measured) -> Answer:
    """Compare within each run, by the order of kappa: the steps to zero error of both labellings."""
    agree = sum(_faster(run) for run in runs.values())
    ours = {
        f"width {width}": "; ".join(
            f"{label} {_median([run['fitted'][label] for key, run in runs.items() if f', width {width}, ' in key])}"
            for label in ("true", "shuffled")
        )
        for width in WIDTHS
    }
    return Answer.of(agree == len(runs), f"so in {agree} of {len(runs)} runs", ours)


def _faster(run: Mapping[str, Any]) -> bool:
    true, shuffled = (math.inf if run["fitted"][label] is None else run["fitted"][label] for label in run["fitted"])
    return bool(run["kappa"] and (true < shuffled) == (run["kappa"]["upper"] < run["shuffled"]))


def _median(steps: list[int | None]) -> str:
    value = median([math.inf if step is None else step for step in steps] or [math.inf])
    return f"{value:g}" if math.isfinite(value) else "never"


KAPPA = Item(
    "kappa",
    "kappa of true and of shuffled labels, widths 10 to 1000",
    "Beyond the paper",
    "15 seconds of one core for each of thirty runs; the GPU is not used",
    _parts,
    _claims,
    datasets=DATASETS,
)
