"""Response time of the command line, compared with the time that Python takes to import NumPy.

Run with ``python benchmarks/cli.py``. Each command runs in a separate process. The commands take turns, so that
other load on the machine affects all of them equally. The fastest run counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
REFERENCE = "import numpy"


def commands(folder: Path) -> dict[str, tuple[list[str], float | None]]:
    """Return each command with its limit in seconds."""
    random = np.random.default_rng(0)
    np.save(folder / "J.npy", random.standard_normal((200, 2000)))
    np.save(folder / "y.npy", random.standard_normal(200))
    alignver = [sys.executable, "-m", "alignver"]
    files = [str(folder / "J.npy"), str(folder / "y.npy")]
    return {
        REFERENCE: ([sys.executable, "-c", "import numpy"], None),
        "alignver --version": ([*alignver, "--version"], 0.5),
        "alignver --help": ([*alignver, "--help"], 0.5),
        "alignver check membership --help": ([*alignver, "check", "membership", "--help"], 0.5),
        "check membership 200 x 2000": ([*alignver, "check", "membership", *files], 1.5),
        "  the same, --no-certify": ([*alignver, "check", "membership", *files, "--no-certify"], 1.5),
        "  the same, --method svd": ([*alignver, "check", "membership", *files, "--method", "svd"], 1.5),
    }


def seconds(command: list[str]) -> float:
    """Return the wall time of one run."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    elapsed = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
    return elapsed


def main() -> None:
    """Time every command and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = commands(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(ROUNDS):
            for name, (command, _limit) in chosen.items():
                times[name].append(seconds(command))
    reference = min(times[REFERENCE])
    print(f"{'command':36} {'seconds':>8} {'ratio':>6}  limit")
    for name, (_, limit) in chosen.items():
        best = min(times[name])
        met = "" if limit is None else f"{limit:.1f}  {'met' if best < limit else 'NOT met'}"
        print(f"{name:36} {best:8.3f} {best / reference:6.1f}  {met}".rstrip())


if __name__ == "__main__":
    main()
