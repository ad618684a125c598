r"""Table 1(a): the change of the gradient representation of the fully-connected network during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignver.experiments import fully_connected_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_PAPER = {"two moons": 2.09e11, "sine wave": 3.95e9}
_DECADES = 10.0  # the paper gives one run; ours vary with the seed


class _Table1a:
    name = "table1a"
    title = "Change of the gradient representation, fully-connected network"
    source = "Table 1(a)"
    datasets: tuple[str, ...] = runs.DATASETS
    cost = "nothing beyond figure1a, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set and seed: those of Figure 1(a)."""
        return runs.parts(setting)

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
            reason = f"{shown} for {len(found)} seeds after {runs.EPOCHS} epochs; the paper's {_PAPER[name]:.2e}"
            evidence = [f"HOLDS means: within a factor of {_DECADES:g} of the span of our seeds"]
            results.append(compared(self, claim, verdict, reason, paper=_PAPER[name], ours=ours, evidence=evidence))
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


ITEM: Item = _Table1a()
