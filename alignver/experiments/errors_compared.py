"""Test errors of two methods beside each other, and beside the paper's: means, spreads, and when they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from alignver.experiments.conduct import spread
from alignver.experiments.image_runs import STANDARD, WRAPPER, Effort
from alignver.experiments.item import Item, compared
from alignver.results import CheckResult, Verdict

__all__ = ["comparable", "deviation", "methods", "near"]

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
