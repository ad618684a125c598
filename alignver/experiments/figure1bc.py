"""Figure 1(b) and (c): training error and Q_T of LeNet on Semeion and on random data, for two seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from alignver.experiments import lenet_runs as runs
from alignver.experiments.item import Item, Measured, Part, Setting, compared
from alignver.results import CheckResult, Verdict

__all__ = ["ITEM"]

_SEMEION = "Semeion: zero error with Q_T = 0 for all T, whatever the size"
_RANDOM = "random data: zero error wherever Q_T does not grow linearly"
_SINGULAR = "the smallest eigenvalue of M is zero at all steps for m_c = 1"


class _Figure1bc:
    name = "figure1bc"
    title = "Training error and Q_T, LeNet of three sizes"
    source = "Figure 1(b), (c)"
    datasets: tuple[str, ...] = runs.DATASETS
    cost = (
        "of one core: 2, 7 and 25 minutes a run for m_c = 1, 2 and 4 on random data, 2, 4 and 11 on Semeion, where a "
        "check takes 4 GB; the GPU is not used"
    )

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set, seed and size."""
        return runs.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare every run's final error and its verdicts, by the rule press in float64 as in Figure 1(a)."""
        results = []
        for name in setting.chosen(self.datasets):
            claim = _SEMEION if name == "semeion" else _RANDOM
            parts = [part for part in self.parts(setting) if part.recipe["dataset"] == name]
            found = {part.key: measured[part.key] for part in parts if part.key in measured}
            if not found:
                results.append(compared(self, claim, Verdict.UNDECIDED, "not run", paper="error 0"))
                results.append(compared(self, f"{name}: {_SINGULAR}", Verdict.UNDECIDED, "not run", paper="0"))
                continue
            fits = [_fits(name, run) for run in found.values()]
            ours = {key: _words(run) for key, run in found.items()}
            verdict = Verdict.HOLDS if len(found) == len(parts) else Verdict.UNDECIDED
            verdict = verdict if all(fits) else Verdict.FAILS
            looks = ", ".join(str(epoch) for epoch in runs.LOOKS[name])
            results.append(
                compared(
                    self,
                    claim,
                    verdict,
                    f"as claimed in {sum(fits)} of {len(fits)} runs{_left(parts, found)}",
                    paper=dict.fromkeys(ours, "error 0" if name == "semeion" else "error 0 where Q_T is flat"),
                    ours=ours,
                    evidence=[f"a subset of the paper's checks: after {looks} of {runs.EPOCHS} epochs; rule {_COLUMN}"],
                )
            )
            results.append(self._singular(name, parts, found))
        return results

    def _singular(self, name: str, parts: Sequence[Part], found: Measured) -> CheckResult:
        """Compare the ranks at m_c = 1: full rank by any rule means an eigenvalue above that rule's tolerance."""
        small = [part for part in parts if part.recipe["m_c"] == 1]
        own = [found[part.key] for part in small if part.key in found]
        n = runs.ROWS[name]
        ranks = [rank for run in own for look in run["looks"] if (rank := _rank(look, n)) is not None]
        regular = sum(rank == n for rank in ranks)
        looks = sum(len(run["looks"]) for run in own)
        verdict = Verdict.UNDECIDED
        if regular:
            verdict = Verdict.FAILS
        elif looks == len(ranks) > 0 and len(own) == len(small):
            verdict = Verdict.HOLDS
        return compared(
            self,
            f"{name}: {_SINGULAR}",
            verdict,
            f"J of full rank {n} at {regular} of {looks} checks, of smaller rank at {len(ranks) - regular}"
            f"{_left(small, own)}",
            paper={"checks of full rank": 0},
            ours={"checks of full rank": regular},
            evidence=[
                "of full rank means: by some rule, its eps that of float64 or float32; of smaller rank: by press in "
                "float64; the others were decided without a rank"
            ],
        )

    def draw(self, measured: Measured) -> Any:
        """Return the figure: training errors over the epochs, a panel for each data set and a line for each run."""
        from alignver.report.plots import curves, panels

        names = [name for name in self.datasets if any(key.startswith(f"{name}, ") for key in measured)]
        figure, axes = panels(len(names))
        for name, ax in zip(names, axes):
            errors = {
                key.removeprefix(f"{name}, "): run["error"]
                for key, run in measured.items()
                if key.startswith(f"{name}, ")
            }
            longest = max(len(error) for error in errors.values())
            curves(list(range(longest)), errors, x_label="epoch", y_label="training error", ax=ax)
            ax.set_title(name)
            ax.set_xscale("symlog", linthresh=10)  # all but the last tenth of the error goes in the first epochs
            ax.set_xlim(0, longest - 1)
        return figure


_COLUMN = "press float64"


def _left(parts: Sequence[Part], found: Collection[Any]) -> str:
    return f"; {len(parts) - len(found)} of {len(parts)} runs not done" if len(found) < len(parts) else ""


def _rank(look: Mapping[str, Any], n: int) -> int | None:
    """Return the rank if it is known: n by any rule, or less by the rule with the smallest tolerance."""
    ranks = {column: answer["rank"] for column, answer in look["answers"].items() if "rank" in answer}
    return n if n in ranks.values() else ranks.get(_COLUMN)


def _fits(name: str, run: Mapping[str, Any]) -> bool:
    zero = min(run["error"]) == 0.0
    verdicts = [look["answers"][_COLUMN]["verdict"] for look in run["looks"]]
    if name == "semeion":
        return zero and all(verdict == "HOLDS" for verdict in verdicts)
    return zero or "FAILS" in verdicts


def _words(run: Mapping[str, Any]) -> str:
    verdicts = [look["answers"][_COLUMN]["verdict"] for look in run["looks"]]
    counts = {word: verdicts.count(word) for word in ("HOLDS", "FAILS", "UNDECIDED") if word in verdicts}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"error {run['error'][-1]:.3f}; {said}"


ITEM: Item = _Figure1bc()
