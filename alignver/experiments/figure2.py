"""Figure 2: training errors on the sine wave, of the base method and of the wrapper, as written and with repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignver.experiments import sine_wave_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_STUCK = "the base method gets stuck at sub-optimal points"
_FITS = "the wrapper reaches zero training error"
_SAFE = "the safe-exploration condition holds in this setting (Appendix B.2.1)"
_HIGH = 0.05  # share of wrong points that counts as stuck: the figure shows no number


class _Figure2:
    name = "figure2"
    title = "Training errors on the sine wave, base and wrapper"
    source = "Figure 2"
    datasets: tuple[str, ...] = ()
    cost = "1 minute of one core for each of twelve runs; the GPU is not used"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each seed and method."""
        return runs.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the errors at the end: of the base method, of the wrapper as written, and of it with repair."""
        results = []
        for method in runs.METHODS:
            keys = [part.key for part in self.parts(setting) if part.recipe["method"] == method]
            found = [measured[key] for key in keys if key in measured]
            claim = _STUCK if method == runs.BASE else f"{_FITS} ({method.removeprefix('wrapper').strip(' ,')})"
            paper = {"error at the end": "high" if method == runs.BASE else 0.0}
            if method != runs.BASE:
                paper |= dict.fromkeys(_WRAPPED, "-") | {"rank n at tau": "with probability one"}
            if len(found) < len(keys):
                reason = f"{len(found)} of {len(keys)} runs done"
                results.append(compared(self, claim, Verdict.UNDECIDED, reason, paper=paper))
            else:
                results.append(self._compare(method, claim, found, paper))
        results.append(self._safe(setting, measured))
        return results

    def _compare(
        self, method: str, claim: str, found: Sequence[Mapping[str, Any]], paper: Mapping[str, Any]
    ) -> CheckResult:
        errors = [run["error"][-1] for run in found]
        base = method == runs.BASE
        fits = [error >= _HIGH if base else error == 0.0 for error in errors]
        ours: dict[str, Any] = {"error at the end": ", ".join(f"{error:.2f}" for error in errors)}
        reason = f"error {ours['error at the end']} after {found[0]['steps'][-1]} steps for {len(found)} seeds"
        if not base:
            for column, words in _WRAPPED.items():
                ours[column] = ", ".join(words(run) for run in found)
            proved = sum(run["guarantee"]["proved"] for run in found)
            reason += f"; rank n proved when exploitation began for {proved} of {len(found)}"
        gaps = [] if base else [run["optimality"]["reason"].split(";")[0] for run in found]
        evidence = [f"seed {seed}: {gap}" for seed, gap in enumerate(gaps)]
        return compared(
            self,
            claim,
            Verdict.HOLDS if all(fits) else Verdict.FAILS,
            reason,
            paper=paper,
            ours=ours,
            evidence=[f"stuck means: an error of at least {_HIGH:g}"] if base else evidence,
        )

    def _safe(self, setting: Setting, measured: Measured) -> CheckResult:
        """Gates of rank n that a repair found, at the features of theta^tau, are a pair as Assumption 4 asks for."""
        found = [
            measured[part.key]
            for part in self.parts(setting)
            if part.recipe.get("repair") == "staircase" and part.key in measured
        ]
        paper = {"Assumption 4": True}
        if not found:
            return compared(self, _SAFE, Verdict.UNDECIDED, "not run", paper=paper)
        proved = [run["guarantee"]["proved"] for run in found]
        return compared(
            self,
            _SAFE,
            Verdict.HOLDS if any(proved) else Verdict.UNDECIDED,
            f"a pair with rank phi = n = 100 was proved in {sum(proved)} of {len(found)} runs with repair",
            paper=paper,
            ours={"Assumption 4": any(proved)},
            evidence=["the condition asks for one pair: the features at tau with the gates of a staircase are one"],
        )

    def draw(self, measured: Measured) -> Any:
        """Return the figure: training errors over the steps, a panel for each method and a line for each seed."""
        from alignver.report.plots import curves, panels

        methods = [method for method in runs.METHODS if any(key.startswith(f"{method}, seed") for key in measured)]
        figure, axes = panels(len(methods))
        for method, ax in zip(methods, axes):
            own = {key: run for key, run in measured.items() if key.startswith(f"{method}, seed")}
            steps = next(iter(own.values()))["steps"]
            curves(
                steps,
                {key.removeprefix(f"{method}, "): run["error"] for key, run in own.items()},
                x_label="step",
                y_label="training error",
                ax=ax,
            )
            ax.set_title(method)
            ax.set_ylim(-0.02, 0.62)
        return figure


def _least(run: Mapping[str, Any]) -> str:
    least = run["guarantee"]["s_min"][0]
    return "-" if least is None else f"{least:.1e}"


_WRAPPED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "rank n at tau": lambda run: "proved" if run["guarantee"]["proved_before"] else "not proved",
    "gates replaced": lambda run: str(run["guarantee"]["replaced"][0]),
    "s_min >=": _least,
    "Lhat": lambda run: f"{run['guarantee']['Lhat']:.2g}",
    "loss at the end": lambda run: f"{run['loss'][-1]:.1e}",
}


ITEM: Item = _Figure2()
