r"""Figures 2 and 3: the base method and the wrapper on the sine wave, as in section 3.4.1.

One run for each method and seed trains the base network, the wrapper as written, or the wrapper with repair. Figure 2
shows training errors; Figure 3 shows by how much the gradient representation changes in either phase.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alignver.data import sine_wave
from alignver.experiments.conduct import Answer, Claim, Item, Measured, Part, Setting, slug
from alignver.experiments.image_runs import enter, quietly
from alignver.experiments.networks import READINGS
from alignver.jacobians.gram import gram
from alignver.jacobians.kernel_distance import RepresentationSnapshot
from alignver.progress import track
from alignver.results import Verdict
from alignver.training.loop import denormals
from alignver.training.wrapper import EEWrapper

__all__ = ["AS_WRITTEN", "BASE", "EPOCHS", "FIGURE2", "FIGURE3", "METHODS", "SEEDS", "TAU", "parts", "run"]
EPOCHS, TAU = 10000, 2000
SEEDS = 3
BASE, AS_WRITTEN = "base", "wrapper as written"
METHODS: dict[str, dict[str, str]] = {
    BASE: {},
    AS_WRITTEN: {"repair": "none", "exploitation": "SGD, step 0.1 whatever Lhat is"},
    "wrapper, repair": {"repair": "staircase", "exploitation": "SGD, step 1/Lhat where 0.1 is not stable"},
    "wrapper, repair, L-BFGS": {"repair": "staircase", "exploitation": "lbfgs"},
}
"""The paper's two methods, and Algorithm 1 with the changes that floating-point arithmetic makes necessary."""
_RATE, _MOMENTUM, _EPSILON, _SLOPE, _SAMPLES = 0.1, 0.98, 0.01, 1000.0, 100
_EVERY, _CHANGE = 10, 200  # steps from one error to the next, and from one Gram matrix to the next
_FITTED = 1e-4  # loss at which L-BFGS, with twenty iterations a step, stops


def parts(setting: Setting) -> list[Part]:
    """Return a run for each seed and method, with the settings of Appendix B.2.1."""
    reading = setting.reading or next(iter(READINGS))
    fixed = {
        "epochs": EPOCHS,
        "tau": TAU,
        "rate": _RATE,
        "momentum": _MOMENTUM,
        "epsilon": _EPSILON,
        "slope": _SLOPE,
        "samples": _SAMPLES,
        "L-BFGS stops at": _FITTED,
        "network": f"fully connected, {READINGS[reading]}, 300 wide, softplus 100",
    }
    return [
        Part(
            f"{method}, seed {seed}",
            {"method": method, **how, "seed": seed, **fixed},
            functools.partial(run, method, seed, reading),
            family="sine-wave",
        )
        for method, how in METHODS.items()
        for seed in range(setting.on_cpu().seeds or SEEDS)
    ]


def run(method: str, seed: int, reading: str, *, epochs: int = EPOCHS, tau: int = TAU) -> dict[str, Any]:
    r"""Train by full-batch gradient descent with momentum; one step an epoch.

    Returns
    -------
    dict
        ``steps``, ``loss`` and ``error`` at every tenth step; ``change``, the value of
        :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` at every 200th step, at the end, and at tau, where it includes the
        perturbation and the repair; ``start``, :math:`\|M(\theta^0)\|_F^2`; of the wrapper ``guarantee`` at tau, and
        ``optimality`` at the end.
    """
    data = sine_wave(_SAMPLES, seed=seed)
    X, Y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    if method == BASE:
        return _Base(X, Y, seed, reading).follow(epochs, method, seed)
    return _Wrapped(X, Y, seed, reading, tau, **METHODS[method]).follow(epochs, method, seed)


class _Base:
    """The base network under gradient descent."""

    def __init__(self, X: torch.Tensor, Y: torch.Tensor, seed: int, reading: str) -> None:
        self.X, self.Y = X, Y
        self.module: nn.Module = READINGS[reading].build(1, seed=seed)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=_RATE, momentum=_MOMENTUM)
        self.criterion = nn.BCEWithLogitsLoss()

    def follow(self, epochs: int, method: str, seed: int) -> dict[str, Any]:
        """Train, and record errors and changes."""
        # Frozen parameters count: M is that of all of theta in either phase.
        snapshot = RepresentationSnapshot(self.module, self.X, method="exact", include_frozen=True)
        record: dict[str, Any] = {"steps": [], "loss": [], "error": [], "change": []}
        record["start"] = float((gram(self.module, self.X, include_frozen=True) ** 2).sum())
        for step in track(range(epochs + 1), f"{method}, seed {seed}"):
            self.before(step)
            if step % _EVERY == 0 or step == epochs:
                outputs = self.outputs()
                record["steps"].append(step)
                record["loss"].append(float(self.criterion(outputs, self.Y.to(outputs.dtype))))
                record["error"].append(float(((outputs > 0) != (self.Y > 0.5)).double().mean()))
            if step % _CHANGE == 0 or step in (self.boundary(), epochs):
                record["change"].append([step, snapshot.change().value])
            if step < epochs:
                with denormals(flush=True):
                    self.step()
        return {**record, **self.after()}

    def outputs(self) -> torch.Tensor:
        """Return the outputs (n,)."""
        with torch.no_grad():
            out: torch.Tensor = self.module(self.X)[:, 0]
        return out

    def boundary(self) -> int | None:
        """Return a step at which the change is recorded in any case."""
        return None

    def before(self, step: int) -> None:
        """Prepare a step."""

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.criterion(self.module(self.X)[:, 0], self.Y.float()).backward()
        self.optimizer.step()

    def after(self) -> dict[str, Any]:
        """Return what is known about the run at its end."""
        return {}


class _Wrapped(_Base):
    """Algorithm 1 around the same network and optimiser."""

    def __init__(
        self, X: torch.Tensor, Y: torch.Tensor, seed: int, reading: str, tau: int, *, repair: str, exploitation: str
    ) -> None:
        super().__init__(X, Y, seed, reading)
        self.tau, self.solved = tau, False
        self.as_written, self.lbfgs = repair == "none", exploitation == "lbfgs"
        self.wrapper = EEWrapper(
            self.module,
            loss="binary_cross_entropy",
            tau=tau,
            epsilon=_EPSILON,
            gate=_SLOPE,
            optimizer=lambda p: torch.optim.SGD(p, lr=_RATE, momentum=_MOMENTUM),
            exploit_optimizer="lbfgs" if self.lbfgs else None,
            seed=seed,
            repair=repair,
        )
        self.module = self.wrapper.prepare(X, Y)

    def boundary(self) -> int:
        """Return tau: the change until then is exploration's."""
        return self.tau

    def before(self, step: int) -> None:
        """Switch to exploitation at tau."""
        if step == self.tau:
            enter(self.wrapper, self.X, self.Y, rate=_RATE if self.as_written else None)

    def step(self) -> None:
        """Take one step of the phase."""
        if self.wrapper.guarantee is None:
            self.wrapper.explore_step(self.X, self.Y)
        elif not self.solved:
            with quietly():
                loss = self.wrapper.exploit_step()
            self.solved = self.lbfgs and loss < _FITTED

    def after(self) -> dict[str, Any]:
        """Return the guarantee at tau, and how far from the global infimum the run ended."""
        assert self.wrapper.guarantee is not None
        result = self.wrapper.check(self.X, self.Y, tolerance=0.01)
        return {
            "guarantee": dict(self.wrapper.guarantee.summary()),
            "optimality": {"verdict": result.verdict.value, "rigor": result.rigor.value, "reason": result.reason},
        }


_STUCK = "the base method gets stuck at sub-optimal points"
_FITS = "the wrapper reaches zero training error"
_SAFE = "the safe-exploration condition holds in this setting (Appendix B.2.1)"
_HIGH = 0.05  # share of wrong points that counts as stuck: the figure shows no number


def _keys(setting: Setting) -> dict[str, list[str]]:
    """Return the runs of each method."""
    runs = parts(setting)
    return {method: [part.key for part in runs if part.recipe["method"] == method] for method in METHODS}


def _least(run: Mapping[str, Any]) -> str:
    least = run["guarantee"]["s_min"][0]
    return "-" if least is None else f"{least:.1e}"


_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "rank n at tau": lambda run: "proved" if run["guarantee"]["proved_before"] else "not proved",
    "gates replaced": lambda run: str(run["guarantee"]["replaced"][0]),
    "s_min >=": _least,
    "Lhat": lambda run: f"{run['guarantee']['Lhat']:.2g}",
    "loss at the end": lambda run: f"{run['loss'][-1]:.1e}",
}
"""Columns of Figure 2's table for each run of the wrapper."""


def _claims_of_figure2(setting: Setting) -> list[Claim]:
    """Compare the errors at the end: of the base method, of the wrapper as written, and of the wrapper with repair."""
    keys = _keys(setting)
    claims = [Claim(f"{BASE}-stuck", _STUCK, {"error at the end": "high"}, keys[BASE], _stuck)]
    paper = {"error at the end": 0.0, **dict.fromkeys(_COLUMNS, "-"), "rank n at tau": "with probability one"}
    for method in METHODS:
        if method != BASE:
            sentence = f"{_FITS} ({method.removeprefix('wrapper').strip(' ,')})"
            claims.append(Claim(f"{slug(method)}-fits", sentence, paper, keys[method], _fitted))
    repaired = [key for method, how in METHODS.items() if how.get("repair") == "staircase" for key in keys[method]]
    claims.append(Claim("safe-exploration", _SAFE, {"Assumption 4": True}, repaired, _safe, enough=1))
    return claims


def _errors(runs: Measured) -> tuple[list[float], str, str]:
    """Return the errors at the end, in words, and in a sentence."""
    errors = [run["error"][-1] for run in runs.values()]
    words = ", ".join(f"{error:.2f}" for error in errors)
    steps = next(iter(runs.values()))["steps"][-1]
    return errors, words, f"error {words} after {steps} steps for {len(runs)} seeds"


def _stuck(runs: Measured) -> Answer:
    errors, words, reason = _errors(runs)
    evidence = [f"stuck means: an error of at least {_HIGH:g}"]
    return Answer.of(all(error >= _HIGH for error in errors), reason, {"error at the end": words}, evidence)


def _fitted(runs: Measured) -> Answer:
    errors, words, reason = _errors(runs)
    proved = sum(run["guarantee"]["proved"] for run in runs.values())
    gaps = [run["optimality"]["reason"].split(";")[0] for run in runs.values()]
    columns = {column: ", ".join(map(show, runs.values())) for column, show in _COLUMNS.items()}
    return Answer.of(
        all(error == 0.0 for error in errors),
        f"{reason}; rank n proved when exploitation began for {proved} of {len(runs)}",
        {"error at the end": words, **columns},
        [f"seed {seed}: {gap}" for seed, gap in enumerate(gaps)],
    )


def _safe(runs: Measured) -> Answer:
    """Gates of rank n from a repair, at the features of theta^tau, are a pair as in Assumption 4."""
    proved = [run["guarantee"]["proved"] for run in runs.values()]
    return Answer(
        Verdict.HOLDS if any(proved) else Verdict.UNDECIDED,
        f"a pair with rank phi = n = 100 was proved in {sum(proved)} of {len(runs)} runs with repair",
        {"Assumption 4": any(proved)},
        ["the condition asks for one pair: the features at tau with the gates of a staircase are one"],
    )


def _draw_errors(measured: Measured) -> Any:
    """Return the figure: training errors over the steps, a panel for each method and a line for each seed."""
    from alignver.report.plots import curves, panels

    by_method = {
        method: {
            key.removeprefix(f"{method}, "): run for key, run in measured.items() if key.startswith(f"{method}, s")
        }
        for method in METHODS
    }
    by_method = {method: runs for method, runs in by_method.items() if runs}
    figure, axes = panels(len(by_method))
    for (method, runs), ax in zip(by_method.items(), axes):
        steps = next(iter(runs.values()))["steps"]
        errors = {key: run["error"] for key, run in runs.items()}
        curves(steps, errors, x_label="step", y_label="training error", ax=ax)
        ax.set_title(method)
        ax.set_ylim(-0.02, 0.62)
    return figure


FIGURE2 = Item(
    "figure2",
    "Training errors on the sine wave, base and wrapper",
    "Figure 2",
    "1 minute of one core for each of twelve runs; the GPU is not used",
    parts,
    _claims_of_figure2,
    _draw_errors,
    readings=tuple(READINGS),
)

_LARGE = "the representation changes by much"
_GROWS = "the wrapper changes it further in exploitation"
_FACTOR = 2.0  # of the change at tau that counts as a significant increase: the figure shows no number


def _claims_of_figure3(setting: Setting) -> list[Claim]:
    r"""Compare the change with :math:`\|M(\theta^0)\|_F^2`, and the wrapper's with its value at tau."""
    claims = []
    for method, keys in _keys(setting).items():
        paper = {"start": "-", "change": "large"}
        claims.append(Claim(f"{slug(method)}-large", f"{_LARGE}, {method}", paper, keys, _large))
        if method != BASE:
            paper = {"at tau": "-", "at the end": "significantly increased"}
            claims.append(Claim(f"{slug(method)}-grows", f"{_GROWS}, {method}", paper, keys, _grows))
    return claims


def _large(runs: Measured) -> Answer:
    starts, ends = [run["start"] for run in runs.values()], _ends(runs)
    return Answer.of(
        all(end > start for end, start in zip(ends, starts)),
        f"changed by {_listed(ends)} from ||M(theta^0)||_F^2 = {_listed(starts)}",
        {"start": _listed(starts), "change": _listed(ends)},
        ["much means: more than the square of its norm at the start"],
    )


def _grows(runs: Measured) -> Answer:
    explored, ends = [dict(map(tuple, run["change"]))[TAU] for run in runs.values()], _ends(runs)
    return Answer.of(
        all(end / before >= _FACTOR for end, before in zip(ends, explored)),
        f"from {_listed(explored)} at tau to {_listed(ends)} at the end",
        {"at tau": _listed(explored), "at the end": _listed(ends)},
        [f"significantly means: by a factor of at least {_FACTOR:g}"],
    )


def _ends(runs: Measured) -> list[float]:
    return [run["change"][-1][1] for run in runs.values()]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1e}" for value in values)


def _draw_changes(measured: Measured) -> Any:
    """Return the figure: the change over the steps, of the first seed of each method as in the paper."""
    from alignver.report.plots import representation_change

    first = {key: run for key, run in measured.items() if key.endswith("seed 0")} or dict(measured)
    steps = [step for step, _ in next(iter(first.values()))["change"]]
    changes = {key: [value for _, value in run["change"]] for key, run in first.items()}
    return representation_change(steps, changes).figure


FIGURE3 = Item(
    "figure3",
    "Change of the gradient representation on the sine wave",
    "Figure 3",
    "nothing beyond figure2, whose runs it shares",
    parts,
    _claims_of_figure3,
    _draw_changes,
    readings=tuple(READINGS),
)
