"""Test errors of two methods beside each other, and beside the paper's: means, spreads, and when they agree.

Table 3: test errors of the standard method and of the wrapper with data augmentation; Table 4 is made of it too.

Table 4: test errors of the standard method and of the wrapper without data augmentation.

Figure 4: training losses of the standard method and of the wrapper with data augmentation.

Table 5: wall-clock time of the standard method and of the wrapper.

Figure 6: the softplus with factor 100 beside the ReLU that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from alignver.experiments import grid_search
from alignver.experiments.conduct import Item, Measured, Part, Setting, compared, spread
from alignver.experiments.image_runs import STANDARD, WRAPPER, Effort, ImageRun, effort
from alignver.results import Bound, CheckResult, Verdict

__all__ = [
    "FIGURE4",
    "FIGURE6",
    "LEARNING_RATES",
    "RUNS",
    "TABLE3",
    "TABLE4",
    "TABLE5",
    "ErrorTable",
    "comparable",
    "deviation",
    "methods",
    "near",
]
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def comparable(standard: Sequence[float], wrapped: Sequence[float]) -> bool:
    """Whether the wrapper's mean is no worse than the standard method's, or by no more than two standard errors of
    their difference.

    Examples
    --------
    >>> comparable([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), comparable([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    (True, False)
    """
    error = math.hypot(deviation(standard) / math.sqrt(len(standard)), deviation(wrapped) / math.sqrt(len(wrapped)))
    return fmean(wrapped) - fmean(standard) <= 2.0 * error


def near(ours: Sequence[float], paper: tuple[float, float]) -> bool:
    """Whether our mean is within two deviations of the paper's, both spreads taken together."""
    return abs(fmean(ours) - paper[0]) <= 2.0 * math.hypot(deviation(ours), paper[1])


def methods(
    item: Item,
    dataset: str,
    paper: Mapping[str, tuple[float, float]],
    keys: Mapping[str, Sequence[str]],
    measured: Mapping[str, Mapping[str, Any]],
    size: Effort,
) -> list[CheckResult]:
    """Return the claim that both methods test comparably and, for runs of the paper's size, that its numbers come out.

    Parameters
    ----------
    item : Item
    dataset : str
    paper : mapping
        Mean and deviation of either method, in percent.
    keys : mapping
        The runs of either method.
    measured : mapping
    size : Effort
        The paper's or a reduced one.
    """
    claim = f"{size.label}the wrapper's test error on {dataset} is comparable with the standard method's"
    shown = {name: f"{centre:.2f} ({width:.2f})" for name, (centre, width) in paper.items()}
    found = {name: [measured[key] for key in own if key in measured] for name, own in keys.items()}
    done, wanted = sum(map(len, found.values())), sum(map(len, keys.values()))
    if done < wanted:
        return [compared(item, claim, Verdict.UNDECIDED, f"{size.word}{done} of {wanted} runs done", paper=shown)]
    errors = {name: [run["test"] for run in runs] for name, runs in found.items()}
    ours = {name: spread(values) for name, values in errors.items()}
    said = " and ".join(f"{ours[name]} % ({name})" for name in (STANDARD, WRAPPER))
    agree = comparable(errors[STANDARD], errors[WRAPPER])
    results = [
        compared(
            item,
            claim,
            _verdict(agree, errors[WRAPPER]),
            f"{size.word}test error {said}, {len(errors[WRAPPER])} seeds",
            paper=shown,
            ours=ours,
            evidence=["comparable means: no worse than by two standard errors of the difference", *_ranks(found)],
        )
    ]
    if not size.reduced:
        good = all(near(errors[name], paper[name]) for name in errors)
        verdict = Verdict.HOLDS if good else Verdict.FAILS
        evidence = ["agree means: within two deviations, both spreads taken together"]
        results.append(
            compared(
                item,
                f"the test errors on {dataset}",
                verdict,
                f"{said}",
                paper=shown,
                ours=ours,
                evidence=evidence,
            )
        )
    return results


def _verdict(agree: bool, seeds: Sequence[Any]) -> Verdict:
    """One seed has no spread to measure a difference by: it decides nothing."""
    return Verdict.UNDECIDED if len(seeds) < 2 else Verdict.HOLDS if agree else Verdict.FAILS


def _ranks(found: Runs) -> list[str]:
    """Say of how many runs of the wrapper the ranks were proved, and whether the paper's step was stable."""
    known = [run["guarantee"] for run in found[WRAPPER]]
    looked = [entry for entry in known if entry["proved_before"] is not None]
    proved = sum(entry["proved"] for entry in looked)
    steps = ", ".join(f"{entry['stable_step']:.2g}" for entry in known)
    said = f"rank n of the trained gates proved for every output in {proved} of {len(looked)} runs"
    return [
        said if looked else "the ranks were not looked at: too many samples",
        f"gradient descent in exploitation is stable below a step of {steps}",
    ]


_TABLE3 = {
    "semeion": {STANDARD: (2.59, 0.57), WRAPPER: (2.56, 0.55)},
    "mnist": {STANDARD: (0.40, 0.05), WRAPPER: (0.30, 0.05)},
    "cifar10": {STANDARD: (7.80, 0.50), WRAPPER: (7.14, 0.12)},
    "cifar100": {STANDARD: (32.26, 0.15), WRAPPER: (28.38, 0.42)},
    "kmnist": {STANDARD: (1.48, 0.07), WRAPPER: (1.36, 0.11)},
    "svhn": {STANDARD: (4.67, 0.05), WRAPPER: (4.43, 0.11)},
}


class ErrorTable:
    """Test errors of both methods, for each data set of a table.

    Parameters
    ----------
    number : int
        Of the table.
    augmented : bool
    paper : mapping
        Mean and deviation over five seeds, in percent, of either method on each data set.
    cost : str
    """

    def __init__(
        self, number: int, augmented: bool, paper: Mapping[str, Mapping[str, tuple[float, float]]], cost: str
    ) -> None:
        self.name, self.source, self.cost = f"table{number}", f"Table {number}", cost
        self.title = f"Test errors with{'' if augmented else 'out'} data augmentation, ResNet-18"
        self.augmented, self.paper = augmented, paper
        self.datasets: tuple[str, ...] = tuple(paper)

    def runs(self, setting: Setting, dataset: str) -> dict[str, list[ImageRun]]:
        """Return the runs of either method: epsilon and tau_0 as the paper's grid search chose them."""
        size = effort(setting, dataset, self.augmented)
        epsilon, tau = grid_search.selected(dataset, self.augmented)
        return {
            STANDARD: [ImageRun(dataset, self.augmented, STANDARD, seed, size) for seed in range(size.seeds)],
            WRAPPER: [
                ImageRun(dataset, self.augmented, WRAPPER, seed, size, epsilon, tau) for seed in range(size.seeds)
            ],
        }

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each data set, method and seed; one data set alone unless others are asked for."""
        return [
            run.part(setting)
            for dataset in setting.chosen(self.datasets, self.datasets[:1])
            for runs in self.runs(setting, dataset).values()
            for run in runs
        ]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the methods with each other, and in full size with the paper's numbers."""
        return [
            result
            for dataset in setting.chosen(self.datasets, self.datasets[:1])
            for result in methods(
                self,
                dataset,
                self.paper[dataset],
                {name: [run.key for run in runs] for name, runs in self.runs(setting, dataset).items()},
                measured,
                effort(setting, dataset, self.augmented),
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return None: a table has no figure."""
        return None


RUNS = ErrorTable(
    3,
    True,
    _TABLE3,
    "reduced, on one core: 15 minutes for Semeion, 3 for MNIST, 4 for CIFAR-10; in full, from one epoch on one core: "
    "36 minutes a run on Semeion, days on the others; on a GPU: not measured (the paper's: 6 minutes and an hour)",
)

TABLE3: Item = RUNS


TABLE4: Item = ErrorTable(
    4,
    False,
    {
        "mnist": {STANDARD: (0.52, 0.16), WRAPPER: (0.49, 0.02)},
        "cifar10": {STANDARD: (15.15, 0.87), WRAPPER: (14.56, 0.38)},
        "cifar100": {STANDARD: (54.99, 2.29), WRAPPER: (46.13, 1.80)},
    },
    "reduced: 5 minutes for MNIST on one core; in full: days without a GPU, not measured with one",
)


_LAST = 0.05  # share of the epochs at the end whose losses are averaged


class _Figure4:
    name = "figure4"
    title = "Training losses with data augmentation, ResNet-18"
    source = "Figure 4"
    datasets: tuple[str, ...] = TABLE3.datasets
    cost = "nothing beyond table3, whose runs it shares"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the runs of Table 3."""
        return TABLE3.parts(setting)

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the losses at the end, and the wrapper's with its own when exploitation began."""
        results = []
        for dataset in setting.chosen(self.datasets, self.datasets[:1]):
            size = effort(setting, dataset, True)
            claim = f"{size.label}the wrapper's training loss on {dataset} ends below the standard method's"
            runs = RUNS.runs(setting, dataset)
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


FIGURE4: Item = _Figure4()


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
            for runs in RUNS.runs(setting, dataset).values()
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
            runs = RUNS.runs(setting, dataset)
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


TABLE5: Item = _Table5()

_BETA = 100.0
_POINTS = 20001  # of [-1, 1], 0 among them


class _Figure6:
    name = "figure6"
    title = "ReLU and softplus with factor 100"
    source = "Figure 6, Appendix C"
    datasets: tuple[str, ...] = ()
    cost = "a second on two cores"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the one part: both functions on a grid."""
        setting.on_cpu()
        return [Part("grid", {"beta": _BETA, "points": _POINTS, "interval": [-1, 1]}, _measure)]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        r"""Compare with :math:`0 < \ln(1 + e^{\beta q})/\beta - \max(q, 0) \le \ln 2 / \beta`, with equality at 0."""
        if "grid" not in measured:
            return [compared(self, _CLAIM, Verdict.UNDECIDED, "not run")]
        gap, limit = float(measured["grid"]["largest difference"]), math.log(2.0) / _BETA
        # One rounding of ln 2 / beta on either side: the largest difference is that very number.
        agrees = abs(gap - limit) <= 4 * 2.0**-52 * limit
        reason = f"they differ by {gap:.4g} at most, at q = {measured['grid']['at']:g}; ln 2 / 100 = {limit:.4g}"
        shown = f"{gap / 2:.2%} of the height of a plot over [-1, 1]: a line's width"
        return [
            compared(
                self,
                _CLAIM,
                Verdict.HOLDS if agrees else Verdict.FAILS,
                reason,
                paper="the plot lines coincide",
                ours=gap,
                evidence=[shown],
                bounds=[Bound("largest difference", gap, "<=", limit * (1 + 4 * 2.0**-52))],
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return the figure: the two functions near 0."""
        from alignver.report.plots import curves

        grid = measured["grid"]
        return curves(
            grid["q"], {"ReLU": grid["relu"], "softplus": grid["softplus"]}, x_label="q", y_label="activation"
        ).figure


_CLAIM = "softplus with factor 100 coincides with the ReLU"


def _measure() -> dict[str, Any]:
    q = torch.linspace(-1.0, 1.0, _POINTS, dtype=torch.float64)
    q[_POINTS // 2] = 0.0
    relu, softplus = torch.relu(q), torch.nn.Softplus(_BETA)(q)
    difference = (softplus - relu).abs()
    worst = int(difference.argmax())
    every = slice(None, None, 200)
    return {
        "largest difference": float(difference[worst]),
        "at": float(q[worst]),
        "q": q[every].tolist(),
        "relu": relu[every].tolist(),
        "softplus": softplus[every].tolist(),
    }


FIGURE6: Item = _Figure6()


_RATES = (0.2, 0.1, 0.01, 0.001)
_PAPER_RATES = {STANDARD: "0.33 (0.03)", WRAPPER: "0.27 (0.03)"}


class _LearningRates:
    name = "learning-rates"
    title = "Test errors at the best learning rate, ResNet-18 on MNIST"
    source = "Section 3.4.2, effect of learning rate"
    datasets: tuple[str, ...] = ()
    cost = "reduced: 11 minutes on one core; in full: not measured"

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return a run for each method, rate and seed."""
        return [run.part(setting) for runs in _rate_runs(setting).values() for run in runs]

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Compare the methods, each at the rate with its smallest mean error."""
        size = effort(setting, "mnist", True)
        claim = (
            f"{size.label}the wrapper is no worse than the standard method, each at its best rate of {_listed_rates()}"
        )
        runs = _rate_runs(setting)
        wanted = [run.key for own in runs.values() for run in own]
        if any(key not in measured for key in wanted):
            done = sum(key in measured for key in wanted)
            return [
                compared(
                    self, claim, Verdict.UNDECIDED, f"{size.word}{done} of {len(wanted)} runs done", paper=_PAPER_RATES
                )
            ]
        errors = {pair: [measured[run.key]["test"] for run in own] for pair, own in runs.items()}
        best = {name: min(_RATES, key=lambda rate: fmean(errors[name, rate])) for name in _PAPER_RATES}
        standard, wrapped = (errors[name, best[name]] for name in (STANDARD, WRAPPER))
        ours = {STANDARD: spread(standard), WRAPPER: spread(wrapped)}
        return [
            compared(
                self,
                claim,
                Verdict.HOLDS if comparable(standard, wrapped) else Verdict.FAILS,
                f"{size.word}{ours[STANDARD]} % at rate {best[STANDARD]:g} (standard), {ours[WRAPPER]} % at rate "
                f"{best[WRAPPER]:g} (wrapper)",
                paper=_PAPER_RATES,
                ours=ours,
                evidence=[
                    "the rate is chosen by the test error, as the paper's words are read",
                    "no worse means: no worse than by two standard errors of the difference",
                    *(
                        f"{name}: " + ", ".join(f"{spread(errors[name, rate])} at {rate:g}" for rate in _RATES)
                        for name in _PAPER_RATES
                    ),
                ],
            )
        ]

    def draw(self, measured: Measured) -> Any:
        """Return None: these are two numbers."""
        return None


def _rate_runs(setting: Setting) -> dict[tuple[str, float], list[ImageRun]]:
    size = effort(setting, "mnist", True)
    chosen = {WRAPPER: grid_search.selected("mnist", True), STANDARD: (None, None)}
    return {
        (name, rate): [ImageRun("mnist", True, name, seed, size, epsilon, tau, rate=rate) for seed in range(size.seeds)]
        for name, (epsilon, tau) in chosen.items()
        for rate in _RATES
    }


def _listed_rates() -> str:
    return ", ".join(f"{rate:g}" for rate in _RATES)


LEARNING_RATES: Item = _LearningRates()
