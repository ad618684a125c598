"""Cost of tracking: the tracker compared with training itself and with a straightforward implementation.

    python benchmarks/tracker.py [--steps 300] [--threads 2] [two-moons sine-wave semeion]

``two-moons`` and ``sine-wave``: the network of Figure 1(a), n = 100, d about 181000, float32, full-batch gradient
descent with momentum. Checks and steps alternate, so that both run under the same load. The straightforward
implementation, ``vmap(jacrev)`` and ``numpy.linalg.lstsq`` in float64, runs afterwards. ``semeion``: LeNet on 1000
images, 10 outputs, one check of N = 10000 rows, with the peak memory of the process.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from alignver.data import semeion, sine_wave, two_moons
from alignver.experiments.networks import fully_connected, lenet
from alignver.training.tracker import AlignmentTracker

CASES = ("two-moons", "sine-wave", "semeion")


def obvious(model, x, target):
    """Return the rank and residual from NumPy for the Jacobian from torch.func, in float64."""
    wide = copy.deepcopy(model).double()
    theta = {name: p.detach() for name, p in wide.named_parameters()}

    def single(theta, sample):
        return functional_call(wide, theta, (sample[None],)).reshape(())

    rows = vmap(jacrev(single), in_dims=(None, 0))(theta, x.double())
    J = torch.cat([part.reshape(len(x), -1) for part in rows.values()], 1).numpy()
    beta, _, rank, _ = np.linalg.lstsq(J, target, rcond=None)
    return int(rank), float(np.linalg.norm(J @ beta - target) / np.linalg.norm(target))


def figure_1a(name, steps, rounds=3):
    data = two_moons(100) if name == "two-moons" else sine_wave(100, seed=0)
    model = fully_connected(int(data.x.shape[1]), seed=0)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.98)
    criterion = nn.BCEWithLogitsLoss()
    tracker = AlignmentTracker(model, x, data.y, loss="binary_cross_entropy")
    train, check = [], []
    for _ in range(steps):
        began = time.perf_counter()
        tracker.update()
        between = time.perf_counter()
        optimizer.zero_grad()
        criterion(model(x)[:, 0], y).backward()
        optimizer.step()
        check.append(between - began)
        train.append(time.perf_counter() - between)
    slow = []
    for _ in range(rounds):
        began = time.perf_counter()
        rank, residual = obvious(model, x, 2.0 * data.y - 1.0)
        slow.append(time.perf_counter() - began)
    record = tracker.history[-1]
    total = sum(check) / sum(train)
    steps_of = {}
    for one, seconds in zip(tracker.history, check):
        steps_of.setdefault(one.reason, []).append(seconds / statistics.median(train))
    factor = statistics.median(slow) / (sum(check) / len(check))
    print(f"{name}: n = 100, d = {tracker.evaluator.d}, {steps} steps, a check at each")
    print(
        f"  training step  median {1e3 * statistics.median(train):8.2f} ms, mean {1e3 * statistics.mean(train):8.2f} ms"
    )
    print(
        f"  check          median {1e3 * statistics.median(check):8.2f} ms, mean {1e3 * statistics.mean(check):8.2f} ms"
    )
    print(f"  vmap(jacrev) + numpy.linalg.lstsq: median {1e3 * statistics.median(slow):8.1f} ms")
    for way, costs in steps_of.items():
        median = statistics.median(costs)
        told(median <= 5.0, f"{way}: a check costs {median:.2f} training steps (medians); at most 5")
    print(f"  all checks cost {total:.2f} times all training steps")
    told(factor >= 20.0, f"a check (mean) takes {factor:.0f} times less than the obvious way; at least 20")
    ranks = {rule: answer["rank"] for rule, answer in record.rules.items()}
    print(f"  last check: {record}; ranks {ranks}; the obvious way: rank {rank}, residual {residual:.1e}")
    ways = {
        way: sum(r.reason == way for r in tracker.history) for way in dict.fromkeys(r.reason for r in tracker.history)
    }
    print(f"  ways: {ways}; Q_T {tracker.q()}", flush=True)


def lenet_on_semeion():
    digits = semeion()
    digits = digits.take(np.sort(np.random.default_rng(0).choice(len(digits), size=1000, replace=False)))
    model = lenet(4, classes=10, side=16, seed=0)
    x = torch.tensor(digits.x, dtype=torch.float32)
    began = time.perf_counter()
    tracker = AlignmentTracker(model, x, digits.y, loss="cross_entropy")
    made = time.perf_counter() - began
    record = tracker.update()
    peak = peak_bytes()
    print(f"semeion: LeNet m_c = 4, n = 1000, 10 outputs, N = {tracker.evaluator.N}, d = {tracker.evaluator.d}")
    print(f"  made in {made:.1f} s (M_0 included); {record}")
    told(record.seconds <= 120.0, f"one check {record.seconds:.1f} s; at most 120")
    told(peak <= 6 * 2**30, f"peak memory {peak / 2**30:.2f} GiB; at most 6")


def told(reached, text):
    print(f"  {'reached' if reached else 'MISSED'}  {text}", flush=True)


def peak_bytes():
    """Return VmHWM, or ru_maxrss without /proc, which starts at the value of the parent process."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case {unknown.pop()}: one of {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, numpy {np.__version__}, {options.threads} threads")
    for case in options.cases or CASES:
        if case == "semeion":
            lenet_on_semeion()
        else:
            figure_1a(case, options.steps)


if __name__ == "__main__":
    main()
