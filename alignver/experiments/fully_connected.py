r"""Figure 1(a) and Table 1(a): the fully-connected network of section 2.2 on two moons and on the sine wave.

One run for each data set and seed trains the network and checks its alignment at every step. Figure 1(a) shows training
error and Q_T; Table 1(a) shows the change of the gradient representation.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver import require
from alignver.arrays import EPS
from alignver.checks.combine import membership_by_rule, residual_tolerance
from alignver.data import Dataset, sine_wave, two_moons
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting, slug
from alignver.experiments.networks import READINGS
from alignver.jacobians.compression import CompressedJacobian
from alignver.jacobians.gram import gram
from alignver.linalg.qr_reduction import Reduced
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import svd_profile
from alignver.progress import track

__all__ = [
    "DATASETS",
    "EPOCHS",
    "FIGURE1A",
    "PAPER",
    "PRECISIONS",
    "RULES",
    "TABLE1A",
    "dataset",
    "descent",
    "look",
    "parts",
    "run",
]

DATASETS = ("two moons", "sine wave")
EPOCHS = 1000
SEEDS = 3  # the paper shows one run of each; its number of seeds is not stated
RULES = ("press", "golub")
PRECISIONS = ("float64", "float32")
"""Dtypes in which the Jacobian is computed; training is in float32 in either case."""
COLUMNS = [f"{rule} {precision}" for precision in PRECISIONS for rule in RULES]
_RATE, _MOMENTUM, _SAMPLES = 0.1, 0.98, 100


def parts(setting: Setting) -> list[Part]:
    """Return a run for each data set and seed, with the settings of Appendix B.1."""
    reading = setting.reading or next(iter(READINGS))
    return [
        Part(
            f"{name}, seed {seed}",
            recipe(name, seed, reading),
            functools.partial(run, name, seed, reading),
            family="fully-connected",
        )
        for seed in range(setting.on_cpu().seeds or SEEDS)
        for name in setting.select(DATASETS)
    ]


def recipe(name: str, seed: int, reading: str) -> dict[str, Any]:
    """Return everything that determines a run of gradient descent."""
    network = f"fully connected, {READINGS[reading]}, 300 wide, softplus 100"
    fixed = {"epochs": EPOCHS, "rate": _RATE, "momentum": _MOMENTUM, "samples": _SAMPLES, "network": network}
    return {"dataset": name, "seed": seed, **fixed}


def dataset(name: str, seed: int) -> Dataset:
    """Return the data: two moons are the same for every seed, the inputs of the sine wave are drawn by it."""
    require.one_of("dataset", name, DATASETS)
    return two_moons(_SAMPLES) if name == "two moons" else sine_wave(_SAMPLES, seed=seed)


def descent(model: nn.Module, data: Dataset, epochs: int, label: str) -> Iterator[tuple[int, float, float]]:
    """Train by full-batch gradient descent with momentum; yield step, loss and error, of the last step too."""
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)
    criterion = nn.BCEWithLogitsLoss()
    for step in track(range(epochs + 1), label):
        optimizer.zero_grad()
        outputs = model(x)[:, 0]
        loss = criterion(outputs, y)
        yield step, float(loss.detach()), float(((outputs > 0) != (y > 0.5)).float().mean())
        if step < epochs:
            loss.backward()
            optimizer.step()


def run(
    name: str, seed: int, reading: str, *, epochs: int = EPOCHS, every: int = 1, change: bool = True
) -> dict[str, Any]:
    r"""Train by full-batch gradient descent with momentum, and check :math:`J(\theta^t)` at every ``every``-th step.

    Returns
    -------
    dict
        Per epoch ``loss`` and ``error``; per check ``steps`` and, for each precision and rule, ``rank``, ``residual``,
        ``member`` (at exactly the tolerance) and ``verdict`` (over its band); ``change``, the value of
        :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` at every tenth check and at the end.
    """
    data = dataset(name, seed)
    model = READINGS[reading].build(int(data.x.shape[1]), seed=seed)
    x = torch.tensor(data.x, dtype=torch.float32)
    target = 2.0 * data.y.astype(np.float64) - 1.0
    jacobians = {
        precision: CompressedJacobian(model, x, dtype="float64" if precision == "float64" else "same")
        for precision in PRECISIONS
    }
    losses, errors, steps, changes = [], [], [], []
    looks: dict[str, list[dict[str, dict[str, Any]]]] = {precision: [] for precision in PRECISIONS}
    first = gram(model, x) if change else None
    for step, loss, error in descent(model, data, epochs, f"{name}, seed {seed}"):
        losses.append(loss)
        errors.append(error)
        if step % every == 0:
            steps.append(step)
            for precision, J in jacobians.items():
                looks[precision].append(look(J, target, precision))
        if first is not None and (step % (10 * every) == 0 or step == epochs):
            changes.append([step, float(((gram(model, x) - first) ** 2).sum())])
    return {
        "loss": losses,
        "error": errors,
        "steps": steps,
        "change": changes,
        "looks": {
            f"{rule} {precision}": {
                key: [look[rule][key] for look in looks[precision]] for key in ("rank", "residual", "member", "verdict")
            }
            for precision in PRECISIONS
            for rule in RULES
        },
        "sha256": data.sha256,
    }


def look(J: CompressedJacobian, target: npt.NDArray[np.float64], precision: str) -> dict[str, dict[str, Any]]:
    """Return what each rule says of a target and the current Jacobian, computed in a precision."""
    T = J.factor()
    profile = svd_profile(Reduced(T, target, 0.0))
    eps = EPS[precision]
    scale = Scale(J.n * J.m_y, J.d, float(profile.levels[0]), None, eps, eps)
    return membership_by_rule(profile, scale, residual_tolerance(eps), RULES)


_CLAIMS = {
    "two moons": "two moons: zero training error with Q_T = 0 for all T",
    "sine wave": "sine wave: high training error with Q_T = T for all T",
}
_HIGH = 0.1  # share of the training points that are wrong at the end: the figure shows no number


def _keys(setting: Setting) -> dict[str, list[str]]:
    """Return the runs of each data set."""
    runs = parts(setting)
    return {name: [part.key for part in runs if part.recipe["dataset"] == name] for name in setting.select(DATASETS)}


def _claims_of_figure1a(setting: Setting) -> list[Claim]:
    """Error and Q_T of every seed under each rule and precision; and whether one of them fits both data sets."""
    runs = _keys(setting)
    claims = [
        Claim(
            slug(name),
            _CLAIMS[name],
            {"error at the end": 0.0 if name == "two moons" else "high", **dict.fromkeys(COLUMNS, "-")},
            keys,
            functools.partial(_errors_and_q, name),
        )
        for name, keys in runs.items()
    ]
    if len(runs) == len(DATASETS):
        keys = [key for keys in runs.values() for key in keys]
        claims.append(Claim("one-tolerance", "one tolerance gives both curves", True, keys, _one_tolerance))
    return claims


def _errors_and_q(name: str, runs: Measured) -> Answer:
    errors = [run["error"][-1] for run in runs.values()]
    fitting = _fitting(name, runs)
    ends = ", ".join(f"{error:.2f}" for error in errors)
    ours = {column: ", ".join(_interval(*_count(run["looks"][column])) for run in runs.values()) for column in COLUMNS}
    checks = len(next(iter(runs.values()))["steps"])
    return Answer.of(
        all(error == 0.0 if name == "two moons" else error >= _HIGH for error in errors) and bool(fitting),
        f"error at the end {ends}; Q_T as claimed under {', '.join(fitting) or 'none of the rules'}",
        {"error at the end": ends, **ours},
        [f"Q_T after {checks} checks for each of {len(runs)} seeds: an interval where checks are UNDECIDED"],
    )


def _one_tolerance(runs: Measured) -> Answer:
    both = list(COLUMNS)
    for name in DATASETS:
        fitting = _fitting(name, {key: run for key, run in runs.items() if key.startswith(name)})
        both = [column for column in both if column in fitting]
    if both:
        return Answer.of(True, f"{', '.join(both)} gives both curves of the paper, up to UNDECIDED checks", both)
    return Answer.of(False, "no rule at any precision gives both curves of the paper", both)


def _fitting(name: str, runs: Measured) -> list[str]:
    """Return the rules and precisions under which Q_T of every run may be what the paper claims."""

    def fits(run: Mapping[str, Any], column: str) -> bool:
        low, high = _count(run["looks"][column])
        return low <= (0 if name == "two moons" else len(run["steps"])) <= high

    return [column for column in COLUMNS if all(fits(run, column) for run in runs.values())]


def _count(look: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many checks FAIL, and how many FAIL or are UNDECIDED: Q_T lies between the two."""
    verdicts = look["verdict"]
    return sum(v == "FAILS" for v in verdicts), sum(v != "HOLDS" for v in verdicts)


def _interval(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _draw(measured: Measured) -> Any:
    """Return the figure: error and Q_T of the first seed of each data set, under every rule and precision."""
    from alignver.report.plots import panels, training_and_q

    first = {key: run for key, run in measured.items() if key.endswith("seed 0")} or dict(measured)
    figure, axes = panels(len(first))
    for (key, run), ax in zip(first.items(), axes):
        training_and_q(run["steps"], run["error"], _running(run["looks"]), title=key, ax=ax)
    return figure


def _running(looks: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[int], list[int]]]:
    """Return Q_T over time, its lower and its upper end, for every rule and precision."""
    return {
        column: (
            list(itertools.accumulate(int(v == "FAILS") for v in look["verdict"])),
            list(itertools.accumulate(int(v != "HOLDS") for v in look["verdict"])),
        )
        for column, look in looks.items()
    }


FIGURE1A = Item(
    "figure1a",
    "Training error and Q_T, fully-connected network",
    "Figure 1(a)",
    "2 minutes of one core for each of six runs; the GPU is not used",
    parts,
    _claims_of_figure1a,
    _draw,
    DATASETS,
    tuple(READINGS),
)

PAPER = {"two moons": 2.09e11, "sine wave": 3.95e9}
_FACTOR = 10.0  # the paper gives one run; ours vary with the seed


def _claims_of_table1a(setting: Setting) -> list[Claim]:
    """The change at the end: the paper's is within a factor of ten of the span of our seeds."""
    return [
        Claim(
            slug(name),
            f"the representation changes by {PAPER[name]:.2e} on {name}",
            PAPER[name],
            keys,
            functools.partial(_changes, PAPER[name]),
            enough=1,
        )
        for name, keys in _keys(setting).items()
    ]


def _changes(paper: float, runs: Measured) -> Answer:
    ours = [run["change"][-1][1] for run in runs.values()]
    values = ", ".join(f"{value:.2e}" for value in ours)
    return Answer.of(
        min(ours) / _FACTOR <= paper <= max(ours) * _FACTOR,
        f"{values} for {len(ours)} seeds after {EPOCHS} epochs; the paper's {paper:.2e}",
        ours,
        [f"HOLDS means: within a factor of {_FACTOR:g} of the span of our seeds"],
    )


TABLE1A = Item(
    "table1a",
    "Change of the gradient representation, fully-connected network",
    "Table 1(a)",
    "nothing beyond figure1a, whose runs it shares",
    parts,
    _claims_of_table1a,
    datasets=DATASETS,
    readings=tuple(READINGS),
)
