"""Tables 3, 4 and 5, Figures 4 and 6, and the study of learning rates: the image experiments of section 3.4.2.

Tables 3 and 4 compare test errors of the standard method and of the wrapper, with and without data augmentation. Figure
4 compares their training losses and Table 5 their time, from the runs of Table 3. The study of learning rates compares
them at the best rate of each. Figure 6 shows the softplus with factor 100 beside the ReLU that it stands for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from alignver.experiments import grid_search
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting, spread
from alignver.experiments.image_runs import STANDARD, WRAPPER, ImageRun, effort
from alignver.results import Bound, Verdict

__all__ = [
    "FIGURE4",
    "FIGURE6",
    "LEARNING_RATES",
    "TABLE3",
    "TABLE4",
    "TABLE5",
    "comparable",
    "deviation",
    "near",
    "runs_of",
]

Printed = Mapping[str, tuple[float, float]]
"""Mean and standard deviation of either method, as the paper prints them."""


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def comparable(standard: Sequence[float], wrapped: Sequence[float]) -> bool:
    """Whether the wrapper's mean error exceeds the standard method's by at most two standard errors of the difference.

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


_TABLE3 = {
    "semeion": {STANDARD: (2.59, 0.57), WRAPPER: (2.56, 0.55)},
    "mnist": {STANDARD: (0.40, 0.05), WRAPPER: (0.30, 0.05)},
    "cifar10": {STANDARD: (7.80, 0.50), WRAPPER: (7.14, 0.12)},
    "cifar100": {STANDARD: (32.26, 0.15), WRAPPER: (28.38, 0.42)},
    "kmnist": {STANDARD: (1.48, 0.07), WRAPPER: (1.36, 0.11)},
    "svhn": {STANDARD: (4.67, 0.05), WRAPPER: (4.43, 0.11)},
}
_TABLE4 = {
    "mnist": {STANDARD: (0.52, 0.16), WRAPPER: (0.49, 0.02)},
    "cifar10": {STANDARD: (15.15, 0.87), WRAPPER: (14.56, 0.38)},
    "cifar100": {STANDARD: (54.99, 2.29), WRAPPER: (46.13, 1.80)},
}
"""Both: over five seeds, in percent."""
_TABLE5 = {
    "semeion": {STANDARD: (364.60, 0.94), WRAPPER: (356.82, 0.67)},
    "cifar10": {STANDARD: (3616.92, 10.57), WRAPPER: (3604.5, 6.80)},
}
"""Over five seeds, in seconds, on 'a local GPU workstation'."""


def runs_of(setting: Setting, dataset: str, augmented: bool = True) -> dict[str, list[ImageRun]]:
    """Return the runs of either method: epsilon and tau_0 as the paper's grid search selected them."""
    size = effort(setting, dataset, augmented)
    pair, seeds = grid_search.selected(dataset, augmented), range(size.seeds)
    return {
        STANDARD: [ImageRun(dataset, augmented, STANDARD, seed, size) for seed in seeds],
        WRAPPER: [ImageRun(dataset, augmented, WRAPPER, seed, size, *pair) for seed in seeds],
    }


def _select(setting: Setting, printed: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the data sets of a table to run; the first one alone unless others are selected."""
    return setting.select(tuple(printed), tuple(printed)[:1])


def _parts(printed: Mapping[str, Any], augmented: bool, setting: Setting) -> list[Part]:
    """Return a part for each data set, method and seed."""
    return [
        run.part(setting)
        for dataset in _select(setting, printed)
        for runs in runs_of(setting, dataset, augmented).values()
        for run in runs
    ]


def _keys(setting: Setting, dataset: str, augmented: bool = True) -> list[str]:
    return [run.key for runs in runs_of(setting, dataset, augmented).values() for run in runs]


def _halves(values: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return the values of all runs by method: both have the same number, and the standard method comes first."""
    return {STANDARD: values[: len(values) // 2], WRAPPER: values[len(values) // 2 :]}


def _words(printed: Printed) -> dict[str, str]:
    return {name: f"{centre:.2f} ({width:.2f})" for name, (centre, width) in printed.items()}


def _decided(agrees: bool, seeds: int) -> Verdict:
    """Return the verdict; UNDECIDED for one seed, which has no spread to compare a difference with."""
    return Verdict.UNDECIDED if seeds < 2 else Verdict.HOLDS if agrees else Verdict.FAILS


def _claims_of_errors(printed: Mapping[str, Printed], augmented: bool, setting: Setting) -> list[Claim]:
    """Compare the methods with each other, and in full size also with the paper's numbers."""
    claims = []
    for dataset in _select(setting, printed):
        size, keys, paper = effort(setting, dataset, augmented), _keys(setting, dataset, augmented), printed[dataset]
        sentence = f"{size.label}the wrapper's test error on {dataset} is comparable with the standard method's"
        judge = functools.partial(_comparable, size.word)
        claims.append(Claim(f"{dataset}-comparable", sentence, _words(paper), keys, judge, word=size.word))
        if not size.reduced:
            judge = functools.partial(_as_printed, paper)
            claims.append(Claim(f"{dataset}-errors", f"the test errors on {dataset}", _words(paper), keys, judge))
    return claims


def _test_errors(runs: Measured) -> tuple[dict[str, Sequence[float]], dict[str, str], str]:
    """Return the test errors of either method, their spreads, and the spreads in a sentence."""
    errors = _halves([run["test"] for run in runs.values()])
    ours = {name: spread(values) for name, values in errors.items()}
    return errors, ours, " and ".join(f"{words} % ({name})" for name, words in ours.items())


def _comparable(word: str, runs: Measured) -> Answer:
    errors, ours, sentence = _test_errors(runs)
    seeds = len(errors[WRAPPER])
    return Answer(
        _decided(comparable(errors[STANDARD], errors[WRAPPER]), seeds),
        f"{word}test error {sentence}, {seeds} seeds",
        ours,
        ["comparable means: no worse than by two standard errors of the difference", *_ranks(runs)],
    )


def _ranks(runs: Measured) -> list[str]:
    """Say for how many runs of the wrapper the ranks were proved, and which steps are stable."""
    known = [run["guarantee"] for run in _halves(list(runs.values()))[WRAPPER]]
    checked = [entry for entry in known if entry["proved_before"] is not None]
    proved = sum(entry["proved"] for entry in checked)
    steps = ", ".join(f"{entry['stable_step']:.2g}" for entry in known)
    sentence = f"rank n of the trained gates proved for every output in {proved} of {len(checked)} runs"
    return [
        sentence if checked else "the ranks were not checked: too many samples",
        f"gradient descent in exploitation is stable below a step of {steps}",
    ]


def _as_printed(printed: Printed, runs: Measured) -> Answer:
    errors, ours, sentence = _test_errors(runs)
    evidence = ["agree means: within two deviations, both spreads taken together"]
    return Answer.of(all(near(errors[name], printed[name]) for name in errors), sentence, ours, evidence)


def _error_table(number: int, printed: Mapping[str, Printed], augmented: bool, cost: str) -> Item:
    return Item(
        f"table{number}",
        f"Test errors with{'' if augmented else 'out'} data augmentation, ResNet-18",
        f"Table {number}",
        cost,
        functools.partial(_parts, printed, augmented),
        functools.partial(_claims_of_errors, printed, augmented),
        datasets=tuple(printed),
    )


TABLE3 = _error_table(
    3,
    _TABLE3,
    True,
    "reduced, on one core: 15 minutes for Semeion, 3 for MNIST, 4 for CIFAR-10; in full, from one epoch on one core: "
    "36 minutes a run on Semeion, days on the others; on a GPU: not measured (the paper's: 6 minutes and an hour)",
)
TABLE4 = _error_table(
    4, _TABLE4, False, "reduced: 5 minutes for MNIST on one core; in full: days without a GPU, not measured with one"
)

_LAST = 0.05  # share of the epochs at the end whose losses are averaged


def _claims_of_figure4(setting: Setting) -> list[Claim]:
    """Compare the losses at the end."""
    claims = []
    for dataset in _select(setting, _TABLE3):
        size = effort(setting, dataset, True)
        sentence = f"{size.label}the wrapper's training loss on {dataset} ends below the standard method's"
        judge, paper = functools.partial(_below, size.word), {STANDARD: "above", WRAPPER: "below"}
        claims.append(Claim(f"{dataset}-loss", sentence, paper, _keys(setting, dataset), judge, word=size.word))
    return claims


def _below(word: str, runs: Measured) -> Answer:
    ends = _halves([_end(run["loss"]) for run in runs.values()])
    ours = {name: spread(values, ".2g") for name, values in ends.items()}
    return Answer(
        _decided(fmean(ends[WRAPPER]) < fmean(ends[STANDARD]), len(ends[WRAPPER])),
        f"{word}loss {ours[STANDARD]} (standard) and {ours[WRAPPER]} (wrapper)",
        ours,
        [
            f"means over the last {_LAST:.0%} of the epochs and over seeds, each loss before its step",
            "BatchNorm: batch statistics in the standard method and in exploration, fixed in exploitation",
        ],
    )


def _end(losses: Sequence[float]) -> float:
    return fmean(losses[-max(1, round(_LAST * len(losses))) :])


def _draw_losses(measured: Measured) -> Any:
    """Return the figure: mean losses over the epochs with one standard deviation, a panel for each data set."""
    from alignver.report.plots import bands, panels

    names = list(dict.fromkeys(key.split(", ")[0] for key in measured))
    figure, axes = panels(len(names))
    for name, ax in zip(names, axes):
        lines = {
            method: [run["loss"] for key, run in measured.items() if key.startswith(f"{name}, {method},")]
            for method in (STANDARD, WRAPPER)
        }
        bands({key: rows for key, rows in lines.items() if rows}, x_label="epoch", y_label="training loss", ax=ax)
        ax.set_title(name)
    return figure


FIGURE4 = Item(
    "figure4",
    "Training losses with data augmentation, ResNet-18",
    "Figure 4",
    "nothing beyond table3, whose runs it shares",
    TABLE3.parts,
    _claims_of_figure4,
    _draw_losses,
    TABLE3.datasets,
)


def _claims_of_table5(setting: Setting) -> list[Claim]:
    """Compare the time of all training steps; processor time decides on a CPU, which others may use too."""
    claims = []
    for dataset in _select(setting, _TABLE5):
        size = effort(setting, dataset, True)
        sentence = f"{size.label}the wrapper is slightly faster than the standard method on {dataset}"
        judge = functools.partial(_faster, size.word, setting.device.startswith("cuda"))
        paper, keys = _words(_TABLE5[dataset]), _keys(setting, dataset)
        claims.append(Claim(f"{dataset}-faster", sentence, paper, keys, judge, word=size.word))
    return claims


def _faster(word: str, wall: bool, runs: Measured) -> Answer:
    clock, kind = ("seconds", "wall-clock") if wall else ("cpu_seconds", "processor")
    phases = _halves([run[clock] for run in runs.values()])
    times = {name: [sum(seconds.values()) for seconds in each] for name, each in phases.items()}
    ratio = fmean(times[WRAPPER]) / fmean(times[STANDARD])
    each = {
        phase: fmean(seconds.get(phase, 0.0) for seconds in phases[WRAPPER])
        for phase in ("exploration", "exploitation")
    }
    return Answer.of(
        ratio < 1.0,
        f"{word}{ratio:.2f} times the standard method's {kind} time",
        {name: spread(values) for name, values in times.items()},
        [
            f"{kind} seconds of the training steps alone, without proofs; the paper's are wall-clock",
            "the wrapper's: " + ", ".join(f"{seconds:.1f} s in {phase}" for phase, seconds in each.items()),
        ],
    )


TABLE5 = Item(
    "table5",
    "Wall-clock time of training, ResNet-18",
    "Table 5",
    "nothing beyond table3, whose runs it shares",
    functools.partial(_parts, _TABLE5, True),
    _claims_of_table5,
    datasets=tuple(_TABLE5),
)

_RATES = (0.2, 0.1, 0.01, 0.001)
_PAPER_RATES = {STANDARD: "0.33 (0.03)", WRAPPER: "0.27 (0.03)"}


def _rate_runs(setting: Setting) -> dict[tuple[str, float], list[ImageRun]]:
    """Return the runs of each method at each rate."""
    size = effort(setting, "mnist", True)
    pairs = {WRAPPER: grid_search.selected("mnist", True), STANDARD: (None, None)}
    return {
        (name, rate): [ImageRun("mnist", True, name, seed, size, *pair, rate=rate) for seed in range(size.seeds)]
        for name, pair in pairs.items()
        for rate in _RATES
    }


def _claims_of_rates(setting: Setting) -> list[Claim]:
    """Compare the methods, each at the rate with its smallest mean error."""
    size, rates = effort(setting, "mnist", True), ", ".join(f"{rate:g}" for rate in _RATES)
    sentence = f"{size.label}the wrapper is no worse than the standard method, each at its best rate of {rates}"
    groups = {pair: [run.key for run in runs] for pair, runs in _rate_runs(setting).items()}
    keys = [key for group in groups.values() for key in group]
    judge = functools.partial(_no_worse, size.word, groups)
    return [Claim("no-worse", sentence, _PAPER_RATES, keys, judge, word=size.word)]


def _no_worse(word: str, groups: Mapping[tuple[str, float], Sequence[str]], runs: Measured) -> Answer:
    errors = {pair: [runs[key]["test"] for key in keys] for pair, keys in groups.items()}
    best = {name: min(_RATES, key=lambda rate: fmean(errors[name, rate])) for name in _PAPER_RATES}
    standard, wrapped = (errors[name, best[name]] for name in (STANDARD, WRAPPER))
    ours = {STANDARD: spread(standard), WRAPPER: spread(wrapped)}
    return Answer.of(
        comparable(standard, wrapped),
        f"{word}{ours[STANDARD]} % at rate {best[STANDARD]:g} (standard), {ours[WRAPPER]} % at rate {best[WRAPPER]:g} "
        "(wrapper)",
        ours,
        [
            "the rate is chosen by the test error, as the paper's words are read",
            "no worse means: no worse than by two standard errors of the difference",
            *(
                f"{name}: " + ", ".join(f"{spread(errors[name, rate])} at {rate:g}" for rate in _RATES)
                for name in _PAPER_RATES
            ),
        ],
    )


LEARNING_RATES = Item(
    "learning-rates",
    "Test errors at the best learning rate, ResNet-18 on MNIST",
    "Section 3.4.2, effect of learning rate",
    "reduced: 11 minutes on one core; in full: not measured",
    lambda setting: [run.part(setting) for runs in _rate_runs(setting).values() for run in runs],
    _claims_of_rates,
)

_BETA = 100.0
_POINTS = 20001  # of [-1, 1], 0 among them


def _parts_of_figure6(setting: Setting) -> list[Part]:
    setting.on_cpu()
    return [Part("grid", {"beta": _BETA, "points": _POINTS, "interval": [-1, 1]}, _measure)]


def _measure() -> dict[str, Any]:
    q = torch.linspace(-1.0, 1.0, _POINTS, dtype=torch.float64)
    q[_POINTS // 2] = 0.0
    relu, softplus = torch.relu(q), torch.nn.Softplus(_BETA)(q)
    difference = (softplus - relu).abs()
    largest = int(difference.argmax())
    every = slice(None, None, 200)
    return {
        "largest difference": float(difference[largest]),
        "at": float(q[largest]),
        "q": q[every].tolist(),
        "relu": relu[every].tolist(),
        "softplus": softplus[every].tolist(),
    }


def _coincide(runs: Measured) -> Answer:
    r"""Compare with :math:`0 < \ln(1 + e^{\beta q})/\beta - \max(q, 0) \le \ln 2 / \beta`, with equality at 0."""
    gap, limit = float(runs["grid"]["largest difference"]), math.log(2.0) / _BETA
    # One rounding of ln 2 / beta on either side: the largest difference is that very number.
    agrees = abs(gap - limit) <= 4 * 2.0**-52 * limit
    return Answer(
        Verdict.HOLDS if agrees else Verdict.FAILS,
        f"they differ by {gap:.4g} at most, at q = {runs['grid']['at']:g}; ln 2 / 100 = {limit:.4g}",
        gap,
        [f"{gap / 2:.2%} of the height of a plot over [-1, 1]: a line's width"],
        [Bound("largest difference", gap, "<=", limit * (1 + 4 * 2.0**-52))],
    )


def _draw_activations(measured: Measured) -> Any:
    """Return the figure: the two functions near 0."""
    from alignver.report.plots import curves

    grid = measured["grid"]
    lines = {"ReLU": grid["relu"], "softplus": grid["softplus"]}
    return curves(grid["q"], lines, x_label="q", y_label="activation").figure


_COINCIDES = Claim(
    "softplus", "softplus with factor 100 coincides with the ReLU", "the plot lines coincide", ["grid"], _coincide
)
FIGURE6 = Item(
    "figure6",
    "ReLU and softplus with factor 100",
    "Figure 6, Appendix C",
    "a second on two cores",
    _parts_of_figure6,
    lambda setting: [_COINCIDES],
    _draw_activations,
)
