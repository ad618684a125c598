"""Cost of re-checking a certificate, as a ratio to another version of this project.

    git worktree add ../before COMMIT
    python benchmarks/recheck.py ../before [--quick]

Each version proves and checks in separate processes, which take turns. The ratio is computed from the smallest times.
``--quick`` reduces each dimension of the cases by a factor of four.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import alignver as av
from alignver.proof import prove_membership

ROUNDS, TURNS, LIMIT = 3, 2, 1.5
ROOT = Path(__file__).parents[1]


def cases(shrink: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield a label, a result with a certificate and the inputs, with the sizes of proof.py and exploration.py."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((2000 // shrink, 8000 // shrink))
    yield f"full row rank, {J.shape}", av.check_rank(J, rank=len(J)), {"A": J}
    y = rng.standard_normal(len(J))
    yield f"membership, {J.shape}", av.check_membership(J, y), {"J": J, "y": y}
    tall = rng.standard_normal((400 // shrink, 300 // shrink))
    y = rng.standard_normal(len(tall))
    yield f"outside, {tall.shape}", av.check_membership(tall, y), {"J": tall, "y": y}
    yield f"outside, exactly, {tall.shape}", prove_membership(tall, y, exact="force"), {"J": tall, "y": y}
    y = tall[:, 3].copy()
    yield f"a column, exactly, {tall.shape}", prove_membership(tall, y, exact="force"), {"J": tall, "y": y}
    m = 1000 // shrink
    integers = rng.integers(-9, 10, (m, m)).astype(float)
    y = rng.integers(-9, 10, m).astype(float)
    yield f"integers, {m}", prove_membership(integers, y, exact="force"), {"J": integers, "y": y}
    integers[-1] = integers[0] + integers[1] - integers[2]
    y = integers @ rng.integers(-3, 4, m).astype(float)
    yield f"singular integers, inside, {m}", prove_membership(integers, y, exact="force"), {"J": integers, "y": y}
    y[-1] += 1.0
    yield f"singular integers, outside, {m}", prove_membership(integers, y, exact="force"), {"J": integers, "y": y}
    Z = rng.random((60000 // shrink**2, 784 // shrink))
    Z[:, -1] = 1.0
    width = -(-len(Z) // Z.shape[1]) + 20
    yield f"staircase, {Z.shape}", av.check_safe_exploration(Z, width=width), {"Z": Z}
    Z, q = rng.standard_normal((3000 // shrink, 256)), rng.standard_normal((256, 64)) / 4
    Z[:, -1] = 1.0
    yield f"given gates, {Z.shape}", av.check_safe_exploration(Z, q=q, method="gram"), {"Z": Z}


def measured(shrink: int) -> None:
    """Print the label and seconds of each case for the version of this process."""
    for label, result, inputs in cases(shrink):
        assert result.certificate is not None, label
        best = float("inf")
        for _ in range(ROUNDS):
            began = time.perf_counter()
            found = av.recheck(result.certificate, **inputs)
            best = min(best, time.perf_counter() - began)
            assert str(found.verdict) == "HOLDS", found
        print(json.dumps([label, best]), flush=True)


def main() -> int:
    """Run both versions alternately and print a table."""
    shrink = 4 if "--quick" in sys.argv else 1
    if "--measure" in sys.argv:
        measured(shrink)
        return 0
    other = Path(sys.argv[1]).resolve()
    if not (other / "alignver").is_dir():
        sys.exit(f"{other}: not a checkout of this project")
    times: dict[Path, dict[str, float]] = {ROOT: {}, other: {}}
    for _ in range(TURNS):
        for tree, found in times.items():
            command = [sys.executable, __file__, "--measure", *sys.argv[2:]]
            environment = {**os.environ, "PYTHONPATH": str(tree)}
            run = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
            for row in run.stdout.splitlines():
                label, spent = json.loads(row)
                found[label] = min(spent, found.get(label, float("inf")))
    met = True
    for label, spent in times[ROOT].items():
        ratio = spent / times[other][label]
        met &= ratio <= LIMIT or spent < 0.01
        print(f"{label:42s} {times[other][label]:8.3f} s before {spent:8.3f} s now  ratio {ratio:5.2f}")
    print(f"target: <= {LIMIT} where it takes 10 ms or more: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
