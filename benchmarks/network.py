"""Theorems about networks: what is decided, in which time, and what an enclosure costs beside a plain evaluation.

    python benchmarks/network.py [small] [trained] [lenet] [random] [passes]

``small`` and ``trained``: the sine wave and two moons, three and four weight matrices, seeds 0 to 4, at initialization
and after 1000 steps of gradient descent. ``lenet``: 40 Semeion digits. ``random``: the sine wave's network with 1000
random inputs. ``passes``: forward and backward enclosures in float64 over plain passes of torch. Every entry is decided
with a proof about the network, and its certificate is checked again. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import torch

import alignver as av
from alignver.data import semeion, sine_wave, two_moons
from alignver.experiments.networks import fully_connected, lenet
from alignver.jacobians.prepare import inputs_again
from alignver.kernel.network import normwise
from alignver.network.enclosures import EnclosedNetwork

STEPS = 1000
missed = False


def target(name, value, limit):
    global missed
    met = value <= limit
    missed |= not met
    print(f"{name}: {value:.2f}, at most {limit:g}  {'met' if met else 'MISSED'}", flush=True)


def decided(name, model, x, y, loss, seconds):
    """Check a model and its certificate; return the seconds of the check."""
    began = time.perf_counter()
    result = av.check_alignment(model, x, y, loss=loss, budget_seconds=seconds)
    took = time.perf_counter() - began
    again = verdict = None
    if result.subject == "NETWORK":
        inputs, _, _ = inputs_again(result.certificate, model, x, y, loss=loss)
        began = time.perf_counter()
        verdict = av.recheck(result.certificate, **inputs).verdict.value
        again = time.perf_counter() - began
    record = {"problem": name, "verdict": result.verdict.value, "subject": result.subject.value, "seconds": took}
    record |= {"recheck": verdict, "recheck_seconds": again, "kappa": result.measured.get("kappa"),
               "shuffled": result.measured.get("kappa_shuffled"), "reason": result.reason}  # fmt: skip
    if result.subject != "NETWORK":
        record["why not the network"] = result.evidence[0]
    print(json.dumps(record), flush=True)
    return took if verdict == "HOLDS" else float("inf")


def train(model, x, y):
    x, y = torch.tensor(x).float(), torch.tensor(y).float()[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()


def small(steps=False):
    slowest = 0.0
    for seed in range(5):
        for depth in (3, 4):
            for name, data in (("moons", two_moons(100)), ("sine", sine_wave(100, seed=seed))):
                model = fully_connected(data.x.shape[1], depth=depth, seed=seed)
                if steps:
                    train(model, data.x, data.y)
                label = f"{name}, {depth} matrices, seed {seed}" + f", after {STEPS} steps" * steps
                took = decided(label, model, data.x.astype(np.float32), data.y, "binary_cross_entropy", 60.0)
                slowest = max(slowest, took)
    target("slowest of the small problems" + ", trained" * steps + ", seconds", slowest, 10.0)


def lenet_40():
    data = semeion()
    data = data.take(np.random.default_rng(0).choice(len(data), size=40, replace=False))
    model, x = lenet(m_c=1, classes=10, seed=0), data.x.astype(np.float32)
    target("LeNet, N = 400, seconds", decided("LeNet", model, x, data.y, "cross_entropy", 120.0), 60.0)


def random_inputs():
    random = np.random.default_rng(0)
    x, y = random.uniform(-1.0, 1.0, (1000, 1)).astype(np.float32), random.integers(0, 2, 1000)
    took = decided("1000 inputs", fully_connected(1, seed=0), x, y, "binary_cross_entropy", 1000.0)
    target("sine wave's network, n = 1000, seconds", took, 300.0)


def passes():
    model = lenet(m_c=4, classes=10, seed=0).double()
    x = torch.rand(64, *semeion().x.shape[1:], dtype=torch.float64)
    network = EnclosedNetwork.of(model, x)

    def plain():
        out = model(x)
        for column in range(10):
            torch.autograd.grad(out[:, column].sum(), list(model.parameters()), retain_graph=column < 9)

    def enclosed():
        values = normwise.forward(network.program)
        normwise.gradients(network.program, values, range(10), factored=True)

    times = {}
    for what in (plain, enclosed):
        what()
    for what in (plain, enclosed) * 3:
        began = time.perf_counter()
        what()
        times.setdefault(what.__name__, []).append(time.perf_counter() - began)
    ratio = statistics.median(times["enclosed"]) / statistics.median(times["plain"])
    print(json.dumps({name: statistics.median(values) for name, values in times.items()}), flush=True)
    target("enclosure of values and gradients, passes of torch in float64", ratio, 5.0)


ENTRIES = {"small": small, "trained": lambda: small(True), "lenet": lenet_40, "random": random_inputs, "passes": passes}

if __name__ == "__main__":
    for entry in sys.argv[1:] or ENTRIES:
        ENTRIES[entry]()
    raise SystemExit(missed)
