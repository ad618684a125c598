"""Compare two checkouts of alignver: python benchmarks/before_after.py BEFORE [AFTER] [--pairs 5] [--case CASE]

BEFORE and AFTER are folders with an ``alignver`` package (AFTER: this one); ``git worktree add ../before COMMIT`` makes
one. Each case runs in a process of its own, before and after in turn, and prints its time; the table has the medians,
the ratio of each pair and their median. Cases are public calls only, so that they run in both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETUP = """
import statistics, time
import numpy as np
import alignver as av

def timed(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    print(statistics.median(times))

rng = np.random.default_rng(0)
"""
TORCH = """
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(2)
mlp = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
X, Y = torch.randn(64, 64), torch.arange(64) % 10
"""
CASES = {
    "gram, MLP": TORCH + "timed(lambda: av.gram(mlp, X), 9)",
    "gram, convolutions": TORCH
    + "conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 10))\n"
    "timed(lambda: av.gram(conv, torch.randn(32, 1, 5, 5)), 9)",
    "alignment, MLP": TORCH + "timed(lambda: av.check_alignment(mlp, X[:32], Y[:32], loss='cross_entropy'), 5)",
    "membership": "J, y = rng.standard_normal((400, 1200)), rng.standard_normal(400)\n"
    "timed(lambda: av.check_membership(J, y, certify=False), 5)",
    "proof": "A = rng.standard_normal((1000, 3000))\ntimed(lambda: av.check_rank(A), 5)",
    "exploration": "Z = np.hstack([rng.standard_normal((4000, 64)), np.ones((4000, 1))])\n"
    "timed(lambda: av.check_safe_exploration(Z), 5)",
    "recheck": "A = rng.standard_normal((600, 1800))\nproof = av.check_rank(A).certificate\n"
    "timed(lambda: av.recheck(proof, A=A), 5)",
    "tracker": TORCH + "def run():\n"
    "    optimizer = torch.optim.SGD(mlp.parameters(), 1e-3)\n"
    "    tracker = av.AlignmentTracker(mlp, X[:16], Y[:16], loss='cross_entropy', every=5)\n"
    "    for _ in range(50):\n"
    "        optimizer.zero_grad()\n"
    "        nn.functional.cross_entropy(mlp(X), Y).backward()\n"
    "        optimizer.step()\n"
    "        tracker.update()\n"
    "timed(run, 3)",
    "import alignver": "",
    "alignver --help": "",
    "alignver check rank": "",
}
"""What each process runs after the set-up; a case without code is a whole process, timed from outside."""


def seconds(name: str, tree: Path, folder: Path) -> float:
    """Return the time of one run of a case."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    if CASES[name]:
        done = subprocess.run(
            [sys.executable, "-c", SETUP + CASES[name]], env=environment, cwd=folder, capture_output=True, check=True
        )
        return float(done.stdout)
    words = {
        "import alignver": ["-c", "import alignver"],
        "alignver --help": ["-m", "alignver", "--help"],
        "alignver check rank": ["-m", "alignver", "check", "rank", "A.npy"],
    }[name]
    script = (
        "import subprocess, sys, time\nstart = time.perf_counter()\n"
        f"subprocess.run([sys.executable, *{words!r}], check=True, capture_output=True)\n"
        "print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, cwd=folder, capture_output=True, check=True
    )
    return float(done.stdout)


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--case", action="append", choices=list(CASES), help="all of them unless given")
    options = parser.parse_args()
    trees = [options.before.resolve(), options.after.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        make = "import numpy as np; np.save('A.npy', np.random.default_rng(0).standard_normal((20, 30)))"
        subprocess.run([sys.executable, "-c", make], cwd=folder, check=True)
        print(f"{'case':22} {'before':>9} {'after':>9} {'after / before':>15}   of each pair")
        for name in options.case or CASES:
            pairs = [[seconds(name, tree, Path(folder)) for tree in trees] for _ in range(options.pairs)]
            before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = [later / earlier for earlier, later in pairs]
            listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{name:22} {before:8.4f}s {after:8.4f}s {statistics.median(ratios):15.3f}   {listed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
