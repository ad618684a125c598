"""Table 2 with the paper's own gates: q drawn from the standard normal distribution, at the paper's width."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from alignver.checks.exploration import check_safe_exploration
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.experiments.table2 import PAPER, features, load
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]


class _Table2Gates:
    name = "table2-gates"
    title = "Table 2 with the paper's own sampled gates"
    source = "Table 2 and section 3.4.2"
    datasets: tuple[str, ...] = tuple(PAPER)
    cost = "seconds for Semeion; for n = 60000 half an hour to an hour on two cores, and 15 GB"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a part for each data set and seed; Semeion alone unless others are asked for."""
        return [
            Part(
                f"{name}, seed {seed}",
                {"dataset": name, "seed": seed, "width": "ceil(2n/m)"},
                functools.partial(_measure, name, seed, setting),
            )
            for name in setting.chosen(self.datasets, ["semeion"])
            for seed in range(setting.on_cpu().seeds or 1)
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare each row: the rank is n for the sampled q."""
        results = []
        for part in self.parts(setting):
            name = part.recipe["dataset"]
            claim = f"a sampled q has rank n for {name}"
            if part.key not in measured:
                results.append(compared(self, claim, Verdict.UNDECIDED, "not run", paper="Verified"))
                continue
            ours = measured[part.key]
            results.append(
                compared(
                    self,
                    claim,
                    Verdict(ours["verdict"]),
                    f"{ours['verdict']} with {ours['rigor']}: {ours['reason']}",
                    paper="Verified",
                    ours=ours["verdict"],
                    seconds=ours["seconds"],
                )
            )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


def _measure(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    row, data = load(name, setting.data_folder)
    Z = features(data, seed=seed, cache=setting.cache)
    width = -(-2 * len(data) // row.m)
    result = check_safe_exploration(Z, width=width, method="gram", add_constant=True, seed=seed)
    return {
        "verdict": result.verdict.value,
        "rigor": result.rigor.value,
        "reason": result.reason,
        "seconds": result.cost["seconds"],
    }


ITEM: Item = _Table2Gates()
