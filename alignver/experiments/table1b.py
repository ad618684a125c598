"""Table 1(b): the change of the gradient representation of LeNet during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignver.experiments import lenet_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_PAPER = {
    ("semeion", 4): (8.09e12, 5.19e12),
    ("semeion", 2): (9.82e12, 3.97e12),
    ("semeion", 1): (2.97e12, 5.41e12),
    ("random", 4): (3.73e12, 1.64e12),
    ("random", 2): (3.43e7, 4.86e12),
    ("random", 1): (1.40e7, 8.57e11),
}
"""Seeds 1 and 2 of the paper, by data set and m_c."""
_FACTOR = 10.0


class _Table1b:
    name = "table1b"
    title = "Change of the gradient representation, LeNet"
    source = "Table 1(b)"
    datasets: tuple[str, ...] = runs.DATASETS
    cost = "nothing beyond figure1bc, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set, seed and size: those of Figure 1(b) and (c)."""
        return runs.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the change at the end with the span of the paper's two seeds, give or take a factor of ten."""
        results = []
        for name in setting.chosen(self.datasets):
            for size in runs.SIZES:
                paper = _PAPER[name, size]
                claim = f"the representation changes by {paper[0]:.2e} and {paper[1]:.2e}, {name}, m_c = {size}"
                keys = [p.key for p in self.parts(setting) if (p.recipe["dataset"], p.recipe["m_c"]) == (name, size)]
                ours = [measured[key]["looks"][-1]["change"] for key in keys if key in measured]
                if not ours:
                    results.append(compared(self, claim, Verdict.UNDECIDED, "not run", paper=paper))
                    continue
                low, high = min(paper) / _FACTOR, max(paper) * _FACTOR
                verdict = Verdict.HOLDS if all(low <= value <= high for value in ours) else Verdict.FAILS
                reason = f"{', '.join(f'{value:.2e}' for value in ours)} after {runs.EPOCHS} epochs"
                if len(ours) < len(keys):
                    reason += f"; {len(keys) - len(ours)} of {len(keys)} runs not done"
                    verdict = Verdict.UNDECIDED if verdict is Verdict.HOLDS else verdict
                evidence = [f"HOLDS means: within a factor of {_FACTOR:g} of the span of the paper's two seeds"]
                results.append(compared(self, claim, verdict, reason, paper=paper, ours=ours, evidence=evidence))
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


ITEM: Item = _Table1b()
