"""Figure 4: training losses of the standard method and of the wrapper with data augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from alignver.experiments import table3
from alignver.experiments.conduct import spread
from alignver.experiments.image_runs import STANDARD, WRAPPER, effort
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_LAST = 0.05  # share of the epochs at the end whose losses are averaged


class _Figure4:
    name = "figure4"
    title = "Training losses with data augmentation, ResNet-18"
    source = "Figure 4"
    datasets: tuple[str, ...] = table3.ITEM.datasets
    cost = "nothing beyond table3, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the runs of Table 3."""
        return table3.ITEM.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the losses at the end, and the wrapper's with its own when exploitation began."""
        results = []
        for dataset in setting.chosen(self.datasets, self.datasets[:1]):
            size = effort(setting, dataset, True)
            claim = f"{size.label}the wrapper's training loss on {dataset} ends below the standard method's"
            runs = table3.RUNS.runs(setting, dataset)
            found = {name: [measured[run.key] for run in own if run.key in measured] for name, own in runs.items()}
            if any(len(found[name]) < len(runs[name]) for name in runs):
                results.append(compared(self, claim, Verdict.UNDECIDED, f"{size.word}not run", paper="below"))
                continue
            ends = {name: [_end(run["loss"]) for run in own] for name, own in found.items()}
            ours = {name: spread(values, ".2g") for name, values in ends.items()}
            below = fmean(ends[WRAPPER]) < fmean(ends[STANDARD])
            results.append(
                compared(
                    self,
                    claim,
                    Verdict.UNDECIDED if len(ends[WRAPPER]) < 2 else Verdict.HOLDS if below else Verdict.FAILS,
                    f"{size.word}loss {ours[STANDARD]} (standard) and {ours[WRAPPER]} (wrapper)",
                    paper={STANDARD: "above", WRAPPER: "below"},
                    ours=ours,
                    evidence=[
                        f"means over the last {_LAST:.0%} of the epochs and over seeds, each loss before its step",
                        "BatchNorm: batch statistics in the standard method and in exploration, fixed in exploitation",
                    ],
                )
            )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return the figure: mean losses over the epochs with one standard deviation, a panel for each data set."""
        from alignver.report.plots import bands, panels

        names = list(dict.fromkeys(key.split(", ")[0] for key in measured))
        figure, axes = panels(len(names))
        for name, ax in zip(names, axes):
            lines = {method: _losses(name, method, measured) for method in (STANDARD, WRAPPER)}
            bands({key: rows for key, rows in lines.items() if rows}, x_label="epoch", y_label="training loss", ax=ax)
            ax.set_title(name)
        return figure


def _end(losses: Sequence[float]) -> float:
    return fmean(losses[-max(1, round(_LAST * len(losses))) :])


def _losses(dataset: str, method: str, measured: Mapping[str, Mapping[str, Any]]) -> list[list[float]]:
    return [run["loss"] for key, run in measured.items() if key.startswith(f"{dataset}, {method},")]


ITEM: Item = _Figure4()
