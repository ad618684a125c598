"""Table 5: wall-clock time of the standard method and of the wrapper."""

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

_PAPER = {
    "semeion": {STANDARD: (364.60, 0.94), WRAPPER: (356.82, 0.67)},
    "cifar10": {STANDARD: (3616.92, 10.57), WRAPPER: (3604.5, 6.80)},
}
"""Mean and deviation over five seeds, in seconds, on 'a local GPU workstation'."""


class _Table5:
    name = "table5"
    title = "Wall-clock time of training, ResNet-18"
    source = "Table 5"
    datasets: tuple[str, ...] = tuple(_PAPER)
    cost = "nothing beyond table3, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the runs of Table 3."""
        return [
            run.part(setting)
            for dataset in setting.chosen(self.datasets, self.datasets[:1])
            for runs in table3.RUNS.runs(setting, dataset).values()
            for run in runs
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the time of all training steps; on a CPU that others use too, processor time decides."""
        results = []
        clock = "seconds" if setting.device.startswith("cuda") else "cpu_seconds"
        kind = "wall-clock" if clock == "seconds" else "processor"
        for dataset in setting.chosen(self.datasets, self.datasets[:1]):
            size = effort(setting, dataset, True)
            claim = f"{size.label}the wrapper is slightly faster than the standard method on {dataset}"
            paper = {name: f"{centre:.2f} ({width:.2f})" for name, (centre, width) in _PAPER[dataset].items()}
            runs = table3.RUNS.runs(setting, dataset)
            found = {name: [measured[run.key] for run in own if run.key in measured] for name, own in runs.items()}
            if any(len(found[name]) < len(runs[name]) for name in runs):
                results.append(compared(self, claim, Verdict.UNDECIDED, f"{size.word}not run", paper=paper))
                continue
            times = {name: [sum(run[clock].values()) for run in own] for name, own in found.items()}
            ours = {name: spread(values) for name, values in times.items()}
            ratio = fmean(times[WRAPPER]) / fmean(times[STANDARD])
            results.append(
                compared(
                    self,
                    claim,
                    Verdict.HOLDS if ratio < 1.0 else Verdict.FAILS,
                    f"{size.word}{ratio:.2f} times the standard method's {kind} time",
                    paper=paper,
                    ours=ours,
                    evidence=[
                        f"{kind} seconds of the training steps alone, without proofs; the paper's are wall-clock",
                        *_phases(found[WRAPPER], clock),
                    ],
                )
            )
        return results

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


def _phases(runs: Sequence[Mapping[str, Any]], clock: str) -> list[str]:
    each = {phase: fmean([run[clock].get(phase, 0.0) for run in runs]) for phase in ("exploration", "exploitation")}
    return ["the wrapper's: " + ", ".join(f"{seconds:.1f} s in {phase}" for phase, seconds in each.items())]


ITEM: Item = _Table5()
