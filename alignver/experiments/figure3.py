r"""Figure 3: by how much the gradient representation changes on the sine wave, in either phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignver.experiments import sine_wave_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_LARGE = "the representation changes by much"
_GROWS = "the wrapper changes it further in exploitation"
_FACTOR = 2.0  # of the change at tau that counts as a significant increase: the figure shows no number


class _Figure3:
    name = "figure3"
    title = "Change of the gradient representation on the sine wave"
    source = "Figure 3"
    datasets: tuple[str, ...] = ()
    cost = "nothing beyond figure2, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each seed and method: those of Figure 2."""
        return runs.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        r"""Compare the change with :math:`\|M(\theta^0)\|_F^2`, and of the wrapper with what it was at tau."""
        results = []
        for method in runs.METHODS:
            keys = [part.key for part in self.parts(setting) if part.recipe["method"] == method]
            found = [measured[key] for key in keys if key in measured]
            asked = [f"{_LARGE}, {method}"] + ([] if method == runs.BASE else [f"{_GROWS}, {method}"])
            if len(found) < len(keys):
                reason = f"{len(found)} of {len(keys)} runs done"
                results += [compared(self, claim, Verdict.UNDECIDED, reason, paper="large") for claim in asked]
                continue
            starts = [run["start"] for run in found]
            ends = [run["change"][-1][1] for run in found]
            results.append(
                compared(
                    self,
                    asked[0],
                    Verdict.HOLDS if all(end > start for end, start in zip(ends, starts)) else Verdict.FAILS,
                    f"changed by {_listed(ends)} from ||M(theta^0)||_F^2 = {_listed(starts)}",
                    paper={"start": "-", "change": "large"},
                    ours={"start": _listed(starts), "change": _listed(ends)},
                    evidence=["much means: more than the square of its norm at the start"],
                )
            )
            if method == runs.BASE:
                continue
            explored = [dict(map(tuple, run["change"]))[runs.TAU] for run in found]
            growth = [end / before for end, before in zip(ends, explored)]
            results.append(
                compared(
                    self,
                    asked[1],
                    Verdict.HOLDS if all(factor >= _FACTOR for factor in growth) else Verdict.FAILS,
                    f"from {_listed(explored)} at tau to {_listed(ends)} at the end",
                    paper={"at tau": "-", "at the end": "significantly increased"},
                    ours={"at tau": _listed(explored), "at the end": _listed(ends)},
                    evidence=[f"significantly means: by a factor of at least {_FACTOR:g}"],
                )
            )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return the figure: the change over the steps, of the first seed of each method as in the paper."""
        from alignver.report.plots import representation_change

        first = {key: run for key, run in measured.items() if key.endswith("seed 0")} or dict(measured)
        steps = [step for step, _ in next(iter(first.values()))["change"]]
        changes = {key: [value for _, value in run["change"]] for key, run in first.items()}
        return representation_change(steps, changes).figure


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1e}" for value in values)


ITEM: Item = _Figure3()
