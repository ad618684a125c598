"""Time of the checks that the data alone decide: conflicts among 60000 images, and one repeated sample.

Prints each time, its limit, and the peak memory. If the folder ALIGNVER_DATA does not contain MNIST, random images are
used instead. The pixel values do not affect the time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import alignver as av
from alignver.checks.exploration_report import forget_peak, peak_bytes
from alignver.experiments.networks import lenet

GIB = 1e9


def images() -> tuple[Any, Any, str]:
    """Return 60000 images of 28 x 28 with labels, two of them in conflict with others, and their source."""
    file = Path(os.environ.get("ALIGNVER_DATA", ".")) / "mnist.npz"
    if file.is_file():
        with np.load(file) as stored:
            X, Y, source = stored["x_train"], stored["y_train"].astype(np.int64), "MNIST"
    else:
        random = np.random.default_rng(0)
        X, Y = random.integers(0, 256, (60000, 28, 28), dtype=np.uint8), random.integers(0, 10, 60000)
        source = "random images"
    X = (X[:, None].astype(np.float32)) / 255.0
    X[59999], X[7] = X[12], X[30000]
    Y[59999], Y[7] = (Y[12] + 1) % 10, (Y[30000] + 1) % 10
    return X, Y, source


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the seconds, the peak memory in GB above the initial memory, and the result."""
    forget_peak()
    before = peak_bytes().get("peak_bytes", 0)
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, (peak_bytes().get("peak_bytes", 0) - before) / GIB, result


def of_conflicts() -> bool:
    """Time the two calls that are decided by the data."""
    X, Y, source = images()
    print(f"{source}, n = 60000, two conflicts:")
    good = True
    av.check_alignment(
        lenet(side=28), X[:4], Y[:4], loss="cross_entropy"
    )  # torch imports many of its modules at first use
    calls = {
        "check_data": lambda: av.check_data(X, Y, loss="cross_entropy"),
        "check_alignment, LeNet": lambda: av.check_alignment(lenet(side=28), X, Y, loss="cross_entropy"),
    }
    for name, call in calls.items():
        seconds, peak, result = timed(call)
        met = seconds <= 3.0 and peak <= 1.5 and (result.verdict.value, result.rigor.value) == ("FAILS", "PROOF")
        print(f"  {name:24} {peak:5.2f} GB more, at most 1.5  {result.verdict} {result.rigor}")
        print(f"  {name:24} {seconds:5.2f} s  target <= 3  {'met' if met else 'MISSED'}")
        good &= met
    return good


def of_a_repeated_sample() -> bool:
    """Compare the time of an alignment check with one repeated sample and with distinct samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    X, Y = torch.rand(64, 784), torch.arange(64) % 10
    repeated, labels = X.clone(), Y.clone()
    repeated[63], labels[63] = X[5], Y[5]
    times: dict[str, list[float]] = {"distinct": [], "repeated": []}
    verdicts = set()
    for _ in range(9):  # a fifth of a second each: the median of fewer runs varies too much
        for name, inputs, targets in (("distinct", X, Y), ("repeated", repeated, labels)):
            seconds, _, result = timed(lambda: av.check_alignment(model, inputs, targets, loss="cross_entropy"))  # noqa: B023
            times[name].append(seconds)
            verdicts.add((str(result.verdict), str(result.rigor)))
    distinct, again = (statistics.median(times[name]) for name in ("distinct", "repeated"))
    print("MLP 784-256-256-10, n = 64, two equal samples with equal labels:")
    met = again <= 2.0 * distinct and verdicts == {("HOLDS", "PROOF")}
    print(f"  distinct {distinct:.2f} s, repeated {again:.2f} s, {' '.join(sorted(map(' '.join, verdicts)))}")
    print(f"  repeated / distinct      {again / distinct:5.2f} x  target <= 2  {'met' if met else 'MISSED'}")
    return met


if __name__ == "__main__":
    sys.exit(0 if of_conflicts() & of_a_repeated_sample() else 1)
