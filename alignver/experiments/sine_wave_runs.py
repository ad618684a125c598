"""Train on the sine wave as in section 3.4.1: the base method, the wrapper as written, and the wrapper with repair."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from alignver.data import sine_wave
from alignver.experiments.as_written import enter, quietly
from alignver.experiments.item import Part, Setting
from alignver.models.change import RepresentationSnapshot
from alignver.models.gram import gram
from alignver.models.networks import fully_connected
from alignver.progress import track
from alignver.training.pace import denormals
from alignver.training.wrapper import EEWrapper

__all__ = ["AS_WRITTEN", "BASE", "EPOCHS", "METHODS", "SEEDS", "TAU", "parts", "run"]

EPOCHS, TAU = 10000, 2000
SEEDS = 3
BASE, AS_WRITTEN = "base", "wrapper as written"
METHODS: dict[str, dict[str, str]] = {
    BASE: {},
    AS_WRITTEN: {"repair": "none", "exploitation": "SGD, step 0.1 whatever Lhat is"},
    "wrapper, repair": {"repair": "staircase", "exploitation": "SGD, step 1/Lhat where 0.1 is not stable"},
    "wrapper, repair, L-BFGS": {"repair": "staircase", "exploitation": "lbfgs"},
}
"""The paper's two methods, and Algorithm 1 with what floating point makes necessary."""
_RATE, _MOMENTUM, _EPSILON, _SLOPE, _SAMPLES = 0.1, 0.98, 0.01, 1000.0, 100
_EVERY, _CHANGE = 10, 200  # steps from one error to the next, and from one Gram matrix to the next
_FITTED = 1e-4  # loss at which L-BFGS, whose every step is twenty, has nothing left to do


def parts(setting: Setting) -> list[Part]:
    """Return a run for each seed and method, with the settings of Appendix B.2.1."""
    fixed = {
        "epochs": EPOCHS,
        "tau": TAU,
        "rate": _RATE,
        "momentum": _MOMENTUM,
        "epsilon": _EPSILON,
        "slope": _SLOPE,
        "samples": _SAMPLES,
        "L-BFGS stops at": _FITTED,
        "network": "fully connected, 4 weight matrices, 300 wide, softplus 100",
    }
    return [
        Part(
            f"{method}, seed {seed}",
            {"method": method, **how, "seed": seed, **fixed},
            functools.partial(run, method, seed),
            family="sine-wave",
        )
        for method, how in METHODS.items()
        for seed in range(setting.on_cpu().seeds or SEEDS)
    ]


def run(method: str, seed: int, *, epochs: int = EPOCHS, tau: int = TAU) -> dict[str, Any]:
    r"""Train by full-batch gradient descent with momentum; one step an epoch.

    Returns
    -------
    dict
        ``steps``, ``loss`` and ``error`` at every tenth step; ``change``, the value of
        :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` at every 200th step, at the end, and at tau, where it includes the
        perturbation and the repair; ``start``, :math:`\|M(\theta^0)\|_F^2`; of the wrapper ``guarantee``, what was
        known at tau, and ``optimality``.
    """
    data = sine_wave(_SAMPLES, seed=seed)
    X, Y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    if method == BASE:
        return _Base(X, Y, seed).follow(epochs, method, seed)
    return _Wrapped(X, Y, seed, tau, **METHODS[method]).follow(epochs, method, seed)


class _Base:
    """The base network under gradient descent."""

    def __init__(self, X: torch.Tensor, Y: torch.Tensor, seed: int) -> None:
        self.X, self.Y = X, Y
        self.module: nn.Module = fully_connected(1, seed=seed)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=_RATE, momentum=_MOMENTUM)
        self.criterion = nn.BCEWithLogitsLoss()

    def follow(self, epochs: int, method: str, seed: int) -> dict[str, Any]:
        """Train, and keep errors and changes."""
        # Frozen parameters count: M is about all of theta, in either phase.
        snapshot = RepresentationSnapshot(self.module, self.X, method="exact", include_frozen=True)
        found: dict[str, Any] = {"steps": [], "loss": [], "error": [], "change": []}
        found["start"] = float((gram(self.module, self.X, include_frozen=True) ** 2).sum())
        for step in track(range(epochs + 1), f"{method}, seed {seed}"):
            self.before(step)
            if step % _EVERY == 0 or step == epochs:
                outputs = self.outputs()
                found["steps"].append(step)
                found["loss"].append(float(self.criterion(outputs, self.Y.to(outputs.dtype))))
                found["error"].append(float(((outputs > 0) != (self.Y > 0.5)).double().mean()))
            if step % _CHANGE == 0 or step in (self.at(), epochs):
                found["change"].append([step, snapshot.change().value])
            if step < epochs:
                with denormals(flush=True):
                    self.step()
        return {**found, **self.after()}

    def outputs(self) -> torch.Tensor:
        """Return the outputs (n,)."""
        with torch.no_grad():
            out: torch.Tensor = self.module(self.X)[:, 0]
        return out

    def at(self) -> int | None:
        """Return a step that is looked at in any case."""
        return None

    def before(self, step: int) -> None:
        """Do what is due before a step."""

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.criterion(self.module(self.X)[:, 0], self.Y.float()).backward()
        self.optimizer.step()

    def after(self) -> dict[str, Any]:
        """Return what is known at the end."""
        return {}


class _Wrapped(_Base):
    """Algorithm 1 around the same network and optimiser."""

    def __init__(
        self, X: torch.Tensor, Y: torch.Tensor, seed: int, tau: int, *, repair: str, exploitation: str
    ) -> None:
        super().__init__(X, Y, seed)
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

    def at(self) -> int:
        """Return tau: the change until then is exploration's."""
        return self.tau

    def before(self, step: int) -> None:
        """Go over to exploitation at tau."""
        if step != self.tau:
            return
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
        """Return what was known at tau, and how far from the global infimum the run ended."""
        assert self.wrapper.guarantee is not None
        result = self.wrapper.check(self.X, self.Y, tolerance=0.01)
        return {
            "guarantee": dict(self.wrapper.guarantee.summary()),
            "optimality": {"verdict": result.verdict.value, "rigor": result.rigor.value, "reason": result.reason},
        }
