r"""Train the fully-connected network of section 2.2, and look at its alignment at every step.

Figure 1(a): training error and Q_T of the fully-connected network on two moons and on the sine wave.

Table 1(a): the change of the gradient representation of the fully-connected network during training.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import EPS
from alignver.checks.combine import membership_by_rule, residual_tolerance
from alignver.data import Dataset, sine_wave, two_moons
from alignver.errors import InvalidInput
from alignver.experiments.conduct import Item, Measured, Part, Setting, compared
from alignver.experiments.networks import fully_connected
from alignver.jacobians.compression import CompressedJacobian
from alignver.jacobians.gram import gram
from alignver.linalg.qr_reduction import Reduced
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import svd_profile
from alignver.progress import track
from alignver.results import CheckResult, Verdict

__all__ = ["DATASETS", "EPOCHS", "FIGURE1A", "PRECISIONS", "RULES", "TABLE1A", "parts", "run"]
DATASETS = ("two moons", "sine wave")
EPOCHS = 1000
SEEDS = 3  # the paper shows one run of each; its number of seeds is not stated
_NETWORK = "fully connected, 4 weight matrices, 300 wide, softplus 100"
RULES = ("press", "golub")
PRECISIONS = ("float64", "float32")
"""In which the Jacobian is computed; training is in float32 in either case."""
_RATE, _MOMENTUM, _SAMPLES = 0.1, 0.98, 100


def parts(setting: Setting) -> list[Part]:
    """Return a run for each data set and seed, with the settings of Appendix B.1."""
    fixed = {"epochs": EPOCHS, "rate": _RATE, "momentum": _MOMENTUM, "samples": _SAMPLES, "network": _NETWORK}
    return [
        Part(
            f"{name}, seed {seed}",
            {"dataset": name, "seed": seed, **fixed},
            functools.partial(run, name, seed),
            family="fully-connected",
        )
        for seed in range(setting.on_cpu().seeds or SEEDS)
        for name in setting.chosen(DATASETS)
    ]


def _dataset(name: str, seed: int) -> Dataset:
    """Return the data: two moons are the same for every seed, the inputs of the sine wave are drawn by it."""
    if name == "two moons":
        return two_moons(_SAMPLES)
    if name == "sine wave":
        return sine_wave(_SAMPLES, seed=seed)
    raise InvalidInput("dataset", repr(name), "one of " + ", ".join(DATASETS))


def run(name: str, seed: int, *, epochs: int = EPOCHS, every: int = 1, change: bool = True) -> dict[str, Any]:
    r"""Train by full-batch gradient descent with momentum, and look at :math:`J(\theta^t)` at every ``every``-th step.

    Returns
    -------
    dict
        Per epoch ``loss`` and ``error``; per look ``steps`` and, for each precision and rule, ``rank``, ``residual``,
        ``member`` (the rule at its word) and ``verdict`` (with its band); ``change``, the value of
        :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` at every tenth look and at the end.
    """
    data = _dataset(name, seed)
    model = fully_connected(int(data.x.shape[1]), seed=seed)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)
    target = 2.0 * data.y.astype(np.float64) - 1.0
    jacobians = {
        precision: CompressedJacobian(model, x, dtype="float64" if precision == "float64" else "same")
        for precision in PRECISIONS
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)
    criterion = nn.BCEWithLogitsLoss()
    losses, errors, steps, changes = [], [], [], []
    looks: dict[str, list[dict[str, dict[str, Any]]]] = {precision: [] for precision in PRECISIONS}
    first = gram(model, x) if change else None
    for step in track(range(epochs + 1), f"{name}, seed {seed}"):
        optimizer.zero_grad()
        outputs = model(x)[:, 0]
        loss = criterion(outputs, y)
        losses.append(float(loss.detach()))
        errors.append(float(((outputs > 0) != (y > 0.5)).float().mean()))
        if step % every == 0:
            steps.append(step)
            for precision, J in jacobians.items():
                looks[precision].append(_look(J, target, precision))
        if first is not None and (step % (10 * every) == 0 or step == epochs):
            changes.append([step, float(((gram(model, x) - first) ** 2).sum())])
        if step < epochs:
            loss.backward()
            optimizer.step()
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


def _look(J: CompressedJacobian, target: npt.NDArray[np.float64], precision: str) -> dict[str, dict[str, Any]]:
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


class _Figure1a:
    name = "figure1a"
    title = "Training error and Q_T, fully-connected network"
    source = "Figure 1(a)"
    datasets: tuple[str, ...] = DATASETS
    cost = "2 minutes of one core for each of six runs; the GPU is not used"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set and seed."""
        return parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare error and Q_T of every seed under each rule and precision; ask which of them fits both data sets."""
        results: list[CheckResult] = []
        fitting: dict[str, list[str]] = {}
        for name in setting.chosen(self.datasets):
            parts = [part for part in self.parts(setting) if part.recipe["dataset"] == name]
            found = [measured[part.key] for part in parts if part.key in measured]
            paper = {"error at the end": 0.0 if name == "two moons" else "high", **dict.fromkeys(_columns(), "-")}
            if len(found) < len(parts):
                reason = f"{len(found)} of {len(parts)} runs done"
                results.append(compared(self, _CLAIMS[name], Verdict.UNDECIDED, reason, paper=paper))
                continue
            results.append(self._compare(name, found, paper, fitting))
        if len(fitting) == len(self.datasets):
            both = [column for column in _columns() if all(column in columns for columns in fitting.values())]
            reason = (
                f"{', '.join(both)} gives both curves of the paper, up to UNDECIDED checks"
                if both
                else "no rule at any precision gives both curves of the paper"
            )
            verdict = Verdict.HOLDS if both else Verdict.FAILS
            results.append(compared(self, "one tolerance gives both curves", verdict, reason, paper=True, ours=both))
        return results

    def _compare(
        self, name: str, found: list[Mapping[str, Any]], paper: Mapping[str, Any], fitting: dict[str, list[str]]
    ) -> CheckResult:
        errors = [run["error"][-1] for run in found]
        counts = {column: [_count(run["looks"][column]) for run in found] for column in _columns()}
        checks = len(found[0]["steps"])
        claimed = 0 if name == "two moons" else checks
        fits = all(error == 0.0 if name == "two moons" else error >= _HIGH for error in errors)
        fitting[name] = [
            column for column, pairs in counts.items() if all(low <= claimed <= high for low, high in pairs)
        ]
        ends = ", ".join(f"{error:.2f}" for error in errors)
        return compared(
            self,
            _CLAIMS[name],
            Verdict.HOLDS if fits and fitting[name] else Verdict.FAILS,
            f"error at the end {ends}; Q_T as claimed under {', '.join(fitting[name]) or 'none of the rules'}",
            paper=paper,
            ours={
                "error at the end": ends,
                **{column: ", ".join(_interval(*pair) for pair in pairs) for column, pairs in counts.items()},
            },
            evidence=[
                f"Q_T after {checks} checks for each of {len(found)} seeds: an interval where checks are UNDECIDED",
            ],
        )

    def draw(self, measured: Measured) -> Any:
        """Return the figure: error and Q_T of the first seed of each data set, under every rule and precision."""
        from alignver.report.plots import panels, training_and_q

        first = {key: run for key, run in measured.items() if key.endswith("seed 0")} or dict(measured)
        figure, axes = panels(len(first))
        for (key, run), ax in zip(first.items(), axes):
            training_and_q(run["steps"], run["error"], _running(run["looks"]), title=key, ax=ax)
        return figure


def _columns() -> list[str]:
    return [f"{rule} {precision}" for precision in PRECISIONS for rule in RULES]


def _count(look: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many checks FAIL, and how many FAIL or are UNDECIDED: Q_T lies between the two."""
    verdicts = look["verdict"]
    return sum(v == "FAILS" for v in verdicts), sum(v != "HOLDS" for v in verdicts)


def _interval(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _running(looks: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[int], list[int]]]:
    """Return Q_T over time, its lower and its upper end, for every rule and precision."""
    return {
        column: (
            list(itertools.accumulate(int(v == "FAILS") for v in look["verdict"])),
            list(itertools.accumulate(int(v != "HOLDS") for v in look["verdict"])),
        )
        for column, look in looks.items()
    }


FIGURE1A: Item = _Figure1a()


_PAPER = {"two moons": 2.09e11, "sine wave": 3.95e9}
_DECADES = 10.0  # the paper gives one run; ours vary with the seed


class _Table1a:
    name = "table1a"
    title = "Change of the gradient representation, fully-connected network"
    source = "Table 1(a)"
    datasets: tuple[str, ...] = DATASETS
    cost = "nothing beyond figure1a, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set and seed: those of Figure 1(a)."""
        return parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the change at the end: within a factor of ten of the paper's for some seed, and large for all."""
        results = []
        for name in setting.chosen(self.datasets):
            claim = f"the representation changes by {_PAPER[name]:.2e} on {name}"
            found = [
                measured[part.key]
                for part in self.parts(setting)
                if part.recipe["dataset"] == name and part.key in measured
            ]
            if not found:
                results.append(compared(self, claim, Verdict.UNDECIDED, "not run", paper=_PAPER[name]))
                continue
            ours = [run["change"][-1][1] for run in found]
            low, high = min(ours) / _DECADES, max(ours) * _DECADES
            verdict = Verdict.HOLDS if low <= _PAPER[name] <= high else Verdict.FAILS
            shown = ", ".join(f"{value:.2e}" for value in ours)
            reason = f"{shown} for {len(found)} seeds after {EPOCHS} epochs; the paper's {_PAPER[name]:.2e}"
            evidence = [f"HOLDS means: within a factor of {_DECADES:g} of the span of our seeds"]
            results.append(compared(self, claim, verdict, reason, paper=_PAPER[name], ours=ours, evidence=evidence))
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


TABLE1A: Item = _Table1a()
