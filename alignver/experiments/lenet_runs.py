"""Train the LeNet of section 2.2 on Semeion and on random data, and look at its alignment now and then."""

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
from alignver.data import Dataset, semeion
from alignver.experiments.item import Part, Setting
from alignver.linalg.norms import largest_singular_value
from alignver.linalg.rank_rules import Scale
from alignver.linalg.reduction import Reduced
from alignver.linalg.refined import refine
from alignver.linalg.svd import svd_profile
from alignver.models import looks as ways
from alignver.models.gram import gram
from alignver.models.networks import lenet
from alignver.models.operator import JacobianOperator
from alignver.models.streaming import streamed_qr
from alignver.progress import track
from alignver.theory.losses import modified_targets

__all__ = ["DATASETS", "EPOCHS", "LOOKS", "PRECISIONS", "ROWS", "RULES", "SIZES", "parts", "run"]

DATASETS = ("random", "semeion")
EPOCHS = 400
SIZES = (1, 2, 4)
RULES = ("press", "golub")
PRECISIONS = ("float64", "float32")
"""Whose eps a tolerance goes by; the Jacobian is computed in float64 in either case, from the float32 parameters."""
LOOKS = {"random": (0, 1, 3, 10, 30, 100, 200, 400), "semeion": (0, 400)}
"""After how many epochs the Jacobian is looked at: a subset of the paper's, which are all 4000 steps."""
SEEDS = 2
_RATE, _MOMENTUM, _BATCH, _SAMPLES, _SIDE = 0.1, 0.9, 100, 1000, 16
ROWS = {"random": _SAMPLES, "semeion": 10 * _SAMPLES}
"""n m_y, the rows of J."""


def parts(setting: Setting) -> list[Part]:
    """Return a run for each data set, size and seed, with the settings of Appendix B.1."""
    fixed = {"epochs": EPOCHS, "rate": _RATE, "momentum": _MOMENTUM, "batch": _BATCH, "samples": _SAMPLES}
    return [
        Part(
            f"{name}, m_c = {size}, seed {seed}",
            {"dataset": name, "m_c": size, "seed": seed, "looks": list(LOOKS[name]), **fixed},
            functools.partial(run, name, size, seed),
            family="lenet",
        )
        for name in setting.chosen(DATASETS)
        for size in SIZES
        for seed in range(setting.on_cpu().seeds or SEEDS)
    ]


def _dataset(name: str, seed: int) -> Dataset:
    """Return 1000 images: drawn from Semeion, or normal pixels with labels 0 and 1 at even odds."""
    source = np.random.default_rng(seed)
    if name == "semeion":
        digits = semeion()
        return digits.take(np.sort(source.choice(len(digits), size=_SAMPLES, replace=False)))
    x = source.standard_normal((_SAMPLES, _SIDE, _SIDE))
    return Dataset("random", x, source.integers(0, 2, _SAMPLES), "normal pixels, Appendix B.1", "generated")


def run(name: str, size: int, seed: int, *, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train by SGD with momentum, and look at the Jacobian after the epochs of :data:`LOOKS`.

    The random data set has labels in {0, 1} and so one output here, with the binary cross-entropy; Semeion has ten.

    Returns
    -------
    dict
        Per epoch ``loss`` and ``error`` on the training data; per look ``epochs``, ``change`` (of M since the start, in
        the squared Frobenius norm), the smallest and largest rho at each tolerance, and verdicts.
    """
    data = _dataset(name, seed)
    binary = name == "random"
    model = lenet(size, classes=1 if binary else 10, side=_SIDE, seed=seed)
    x = torch.tensor(data.x, dtype=torch.float32)
    y = torch.tensor(data.y, dtype=torch.float32 if binary else torch.int64)
    loss_name = "binary_cross_entropy" if binary else "cross_entropy"
    target = modified_targets(data.y, loss_name, len(x), 1 if binary else 10).ravel(order="F")
    criterion: nn.Module = nn.BCEWithLogitsLoss() if binary else nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    losses, errors = [], []
    looks: list[dict[str, Any]] = []
    first: npt.NDArray[np.float64] | None = None
    for epoch in track(range(epochs + 1), f"{name}, m_c = {size}, seed {seed}"):
        with torch.no_grad():
            outputs = model(x)
            wrong = (outputs[:, 0] > 0) != (y > 0.5) if binary else outputs.argmax(1) != y
            losses.append(float(criterion(outputs[:, 0] if binary else outputs, y)))
            errors.append(float(wrong.float().mean()))
        if epoch in LOOKS[name]:
            M = gram(model, x).numpy()
            first = M if first is None else first
            change = float(np.linalg.norm(M - first)) ** 2
            looks.append({"epoch": epoch, "change": change, **_look(model, x, M, target)})
        if epoch < epochs:
            for batch in torch.split(torch.randperm(len(x), generator=order), _BATCH):
                optimizer.zero_grad()
                outputs = model(x[batch])
                criterion(outputs[:, 0] if binary else outputs, y[batch]).backward()
                optimizer.step()
    return {"loss": losses, "error": errors, "looks": looks, "sha256": data.sha256}


def _look(
    model: nn.Module, x: torch.Tensor, M: npt.NDArray[np.float64], target: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return, for every rule and precision, the interval of rho at its tolerance and the verdict of its band."""
    d = sum(p.numel() for p in model.parameters())
    spectral = float(np.sqrt(largest_singular_value(M)))
    scales = {precision: Scale(len(M), d, spectral, None, EPS[precision], EPS[precision]) for precision in PRECISIONS}
    size = float(np.linalg.norm(target))
    iterates = refine(JacobianOperator(model, x), M, torch.from_numpy(target / size))
    found: dict[str, dict[str, Any]] = {}
    for precision, scale in scales.items():
        bounded = ways.by_bounds(iterates, scale, residual_tolerance(EPS[precision]), RULES)
        found |= {f"{rule} {precision}": {**bounded[rule], "from": "least squares"} for rule in RULES}
    open_ = [column for column, answer in found.items() if answer["verdict"] == "UNDECIDED"]
    if open_ and len(M) <= ways.ROWS:
        profile = svd_profile(Reduced(streamed_qr(model, x).r.T.contiguous().numpy(), target, 0.0))
        for precision, scale in scales.items():
            answers = membership_by_rule(profile, scale, residual_tolerance(EPS[precision]), RULES)
            for rule, answer in answers.items():
                if f"{rule} {precision}" in open_:
                    found[f"{rule} {precision}"] = {
                        "tolerance": answer["tolerance"],
                        "residual": [answer["residual"], answer["residual"]],
                        "rank": answer["rank"],
                        "verdict": answer["verdict"],
                        "from": "streamed QR",
                    }
    return {"answers": found, "spectral": spectral}
