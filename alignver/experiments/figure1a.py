"""Figure 1(a): training error and Q_T of the fully-connected network on two moons and on the sine wave."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from alignver.experiments import fully_connected_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_CLAIMS = {
    "two moons": "two moons: zero training error with Q_T = 0 for all T",
    "sine wave": "sine wave: high training error with Q_T = T for all T",
}
_HIGH = 0.1  # share of the training points that are wrong at the end: the figure shows no number


class _Figure1a:
    name = "figure1a"
    title = "Training error and Q_T, fully-connected network"
    source = "Figure 1(a)"
    datasets: tuple[str, ...] = runs.DATASETS
    cost = "2 minutes of one core for each of six runs; the GPU is not used"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set and seed."""
        return runs.parts(setting)

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
    return [f"{rule} {precision}" for precision in runs.PRECISIONS for rule in runs.RULES]


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


ITEM: Item = _Figure1a()
