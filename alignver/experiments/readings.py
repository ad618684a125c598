r"""The readings of the paper's fully-connected network, compared: Table 1(a) and Figure 2 under each of them."""

from __future__ import annotations

import functools
from statistics import median
from typing import Any

from alignver.experiments import fully_connected, networks, sine_wave
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting
from alignver.experiments.fully_connected import DATASETS, PAPER
from alignver.experiments.sine_wave import AS_WRITTEN, BASE

__all__ = ["READINGS", "SEEDS", "run"]

SEEDS = 5
_FACTOR = 10.0  # the paper shows one run of each
_RUNS = {BASE: "base: runs without error", AS_WRITTEN: "wrapper: runs without error"}


def _parts(setting: Setting) -> list[Part]:
    """Return a run for each reading and seed: Table 1(a) on both data sets, and Figure 2's two methods."""
    return [
        Part(
            f"{reading}, seed {seed}",
            {
                "change": [fully_connected.recipe(name, seed, reading) for name in DATASETS],
                "errors": [
                    part.recipe
                    for part in sine_wave.parts(Setting(seeds=seed + 1, reading=reading))
                    if part.recipe["method"] in _RUNS and part.recipe["seed"] == seed
                ],
            },
            functools.partial(run, reading, seed),
        )
        for seed in range(setting.on_cpu().seeds or SEEDS)
        for reading in networks.READINGS
    ]


def run(
    reading: str,
    seed: int,
    *,
    epochs: int = fully_connected.EPOCHS,
    long: int = sine_wave.EPOCHS,
    tau: int = sine_wave.TAU,
) -> dict[str, Any]:
    r"""Train the network as in Table 1(a), and by Figure 2's base method and wrapper as written.

    Returns
    -------
    dict
        ``change``: by data set, :math:`\|M(\theta^T) - M(\theta^0)\|_F^2`; ``error``: by method, the training error on
        the sine wave at the end.
    """
    runs = {name: fully_connected.run(name, seed, reading, epochs=epochs, every=epochs) for name in DATASETS}
    methods = {method: sine_wave.run(method, seed, reading, epochs=long, tau=tau) for method in _RUNS}
    return {
        "change": {name: run["change"][-1][1] for name, run in runs.items()},
        "error": {method: run["error"][-1] for method, run in methods.items()},
    }


def _claims(setting: Setting) -> list[Claim]:
    claims = []
    for name, reading in networks.READINGS.items():
        keys = [part.key for part in _parts(setting) if part.key.startswith(f"{name}, ")]
        claims.append(Claim(f"{name}-table1a", f"Table 1(a) with {reading}", dict(PAPER), keys, _changes, enough=1))
        paper = dict(zip(_RUNS.values(), ("0 of 3", "3 of 3")))
        claims.append(Claim(f"{name}-figure2", f"Figure 2 with {reading}", paper, keys, _errors, enough=1))
    return claims


def _changes(runs: Measured) -> Answer:
    changes = {name: sorted(run["change"][name] for run in runs.values()) for name in DATASETS}
    ours = {name: f"{min(v):.1e} / {median(v):.1e} / {max(v):.1e}" for name, v in changes.items()}
    agrees = all(v[0] / _FACTOR <= PAPER[name] <= v[-1] * _FACTOR for name, v in changes.items())
    words = "; ".join(f"{name} {values}" for name, values in ours.items())
    evidence = [f"HOLDS means: both values of the paper are within a factor of {_FACTOR:g} of the span of our seeds"]
    return Answer.of(agrees, f"the change for {len(runs)} seeds, least / median / largest: {words}", ours, evidence)


def _errors(runs: Measured) -> Answer:
    count = {method: sum(run["error"][method] == 0.0 for run in runs.values()) for method in _RUNS}
    ours = {words: f"{count[method]} of {len(runs)}" for method, words in _RUNS.items()}
    agrees = count[BASE] == 0 and count[AS_WRITTEN] == len(runs)
    return Answer.of(agrees, "; ".join(f"{words} {value}" for words, value in ours.items()), ours)


READINGS = Item(
    "readings",
    "The readings of the fully-connected network, compared",
    "Appendix B",
    "1 minute of one core for each of thirty runs; the GPU is not used",
    _parts,
    _claims,
)
