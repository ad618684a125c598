"""Train the fully-connected network of section 2.2, and look at its alignment at every step."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import EPS
from alignver.checks.band import residual_tolerance
from alignver.checks.by_rule import membership_by_rule
from alignver.data import Dataset, sine_wave, two_moons
from alignver.errors import InvalidInput
from alignver.experiments.item import Part, Setting
from alignver.linalg.rank_rules import Scale
from alignver.linalg.reduction import Reduced
from alignver.linalg.svd import svd_profile
from alignver.models.compression import CompressedJacobian
from alignver.models.gram import gram
from alignver.models.networks import fully_connected
from alignver.progress import track

__all__ = ["DATASETS", "EPOCHS", "PRECISIONS", "RULES", "parts", "run"]

DATASETS = ("two moons", "sine wave")
EPOCHS = 1000
SEEDS = 3  # the paper shows one run of each; its number of seeds is not stated
_NETWORK = "fully connected, 4 weight matrices, 300 wide, softplus 100"
RULES = ("press", "golub")
PRECISIONS = ("float64", "float32")
"""In which the Jacobian is computed; training is in float32 in either case."""
_RATE, _MOMENTUM, _SAMPLES = 0.1, 0.98, 100


def parts(setting: Setting) -> list[Part]:
    """Return a run for each data set and seed, with the settings of Appendix B.1."""
    fixed = {"epochs": EPOCHS, "rate": _RATE, "momentum": _MOMENTUM, "samples": _SAMPLES, "network": _NETWORK}
    return [
        Part(
            f"{name}, seed {seed}",
            {"dataset": name, "seed": seed, **fixed},
            functools.partial(run, name, seed),
            family="fully-connected",
        )
        for seed in range(setting.on_cpu().seeds or SEEDS)
        for name in setting.chosen(DATASETS)
    ]


def _dataset(name: str, seed: int) -> Dataset:
    """Return the data: two moons are the same for every seed, the inputs of the sine wave are drawn by it."""
    if name == "two moons":
        return two_moons(_SAMPLES)
    if name == "sine wave":
        return sine_wave(_SAMPLES, seed=seed)
    raise InvalidInput("dataset", repr(name), "one of " + ", ".join(DATASETS))


def run(name: str, seed: int, *, epochs: int = EPOCHS, every: int = 1, change: bool = True) -> dict[str, Any]:
    r"""Train by full-batch gradient descent with momentum, and look at :math:`J(\theta^t)` at every ``every``-th step.

    Returns
    -------
    dict
        Per epoch ``loss`` and ``error``; per look ``steps`` and, for each precision and rule, ``rank``, ``residual``,
        ``member`` (the rule at its word) and ``verdict`` (with its band); ``change``, the value of
        :math:`\|M(\theta^T) - M(\theta^0)\|_F^2` at every tenth look and at the end.
    """
    data = _dataset(name, seed)
    model = fully_connected(int(data.x.shape[1]), seed=seed)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)
    target = 2.0 * data.y.astype(np.float64) - 1.0
    jacobians = {
        precision: CompressedJacobian(model, x, dtype="float64" if precision == "float64" else "same")
        for precision in PRECISIONS
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)
    criterion = nn.BCEWithLogitsLoss()
    losses, errors, steps, changes = [], [], [], []
    looks: dict[str, list[dict[str, dict[str, Any]]]] = {precision: [] for precision in PRECISIONS}
    first = gram(model, x) if change else None
    for step in track(range(epochs + 1), f"{name}, seed {seed}"):
        optimizer.zero_grad()
        outputs = model(x)[:, 0]
        loss = criterion(outputs, y)
        losses.append(float(loss.detach()))
        errors.append(float(((outputs > 0) != (y > 0.5)).float().mean()))
        if step % every == 0:
            steps.append(step)
            for precision, J in jacobians.items():
                looks[precision].append(_look(J, target, precision))
        if first is not None and (step % (10 * every) == 0 or step == epochs):
            changes.append([step, float(((gram(model, x) - first) ** 2).sum())])
        if step < epochs:
            loss.backward()
            optimizer.step()
    return {
        "loss": losses,
        "error": errors,
        "steps": steps,
        "change": changes,
        "looks": {
            f"{rule} {precision}": {
                key: [look[rule][key] for look in looks[precision]] for key in ("rank", "residual", "member", "verdict")
            }
            for precision in PRECISIONS
            for rule in RULES
        },
        "sha256": data.sha256,
    }


def _look(J: CompressedJacobian, target: npt.NDArray[np.float64], precision: str) -> dict[str, dict[str, Any]]:
    T = J.factor()
    profile = svd_profile(Reduced(T, target, 0.0))
    eps = EPS[precision]
    scale = Scale(J.n * J.m_y, J.d, float(profile.levels[0]), None, eps, eps)
    return membership_by_rule(profile, scale, residual_tolerance(eps), RULES)
