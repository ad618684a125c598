"""How long a command or a call is silent: the longest time without a byte on its terminal or pipe.

    python benchmarks/silence.py [--pipe | --terminal] [WORD ...]

Each case runs in a process of its own, with stdout and stderr on a pseudo-terminal, and again on a pipe, as in a CI
system or with `nohup`. Calls of the library on a pipe log at INFO, since they print nothing there. The silence at the
start, in which Python and torch are loaded, and at the end count. "cpu" are the processor's seconds in the longest
silence: few, if other programs use the machine. WORDs select cases by their names.

The exit code is 1 if a case is silent for more than 5 s, or ends with an error.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time

LIMIT = 5.0

SETUP = """
import numpy as np, torch
from torch import nn
r = np.random.default_rng(0)
np.save("J.npy", r.standard_normal((2500, 3500)))
np.save("y.npy", r.standard_normal(2500))
np.save("small.npy", r.integers(-9, 9, (220, 240)).astype(float))
np.save("v.npy", r.integers(-9, 9, 220).astype(float))
np.save("Z.npy", np.column_stack([r.standard_normal((60000, 60)), np.ones(60000)]))
np.savez("d.npz", X=r.standard_normal((60, 8)).astype("f4"), Y=r.integers(0, 3, 60))
np.savez("wide.npz", X=r.standard_normal((1500, 20)).astype("f4"), Y=r.integers(0, 2, 1500))
np.savez("images.npz", X=r.standard_normal((600, 3, 16, 16)).astype("f4"), Y=r.integers(0, 4, 600))
open("net.py", "w").write('''
from torch import nn
def deep():
    return nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(),
                         nn.Linear(60, 3))
def wide():
    return nn.Sequential(nn.Linear(20, 3000), nn.Softplus(), nn.Linear(3000, 1))
def convolutional():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.GELU(),
                         nn.Flatten(), nn.Linear(4096, 200), nn.GELU(), nn.Linear(200, 4))
''')
"""  # fmt: skip

COMMANDS = {
    "membership": "check membership J.npy y.npy",
    "rank": "check rank J.npy --method svd",
    "exact arithmetic": "check membership small.npy v.npy --method exact",
    "exploration of 60000 rows": "check exploration Z.npy --certificate proof",
    "recheck of it": "verify proof --input Z=Z.npy",
    "alignment, deep": "check alignment net.py:deep --data d.npz --loss ce --max-seconds 60",
    "alignment, wide": "check alignment net.py:wide --data wide.npz --loss bce",
    "model": "check model net.py:convolutional --data images.npz --loss ce --max-seconds 60",
    "train": "train net.py:convolutional --data images.npz --loss ce --epochs 30 --out run",
    "reproduce": "reproduce figure1a --seeds 1 --budget 0.2 --out figure",
}

PRELUDE = """
import logging, sys
import numpy as np, torch
import alignver as av
import net
if not sys.stderr.isatty():
    logging.basicConfig(level=logging.INFO)
torch.manual_seed(0)
d = np.load("images.npz"); X, Y = torch.from_numpy(d["X"]), d["Y"]
e = np.load("d.npz"); x, y = torch.from_numpy(e["X"]), e["Y"]
"""
CALLS = {
    "balls": 'av.check_alignment(net.deep(), x, y, loss="cross_entropy", budget_seconds=60)',
    "gram": "av.gram(net.convolutional(), X)",
    "jacobian": "av.jacobian(net.deep(), torch.randn(3000, 8))",
    "safe exploration of a network": 'av.check_safe_exploration(net.convolutional(), X=X, layer="6")',
    "optimality": 'av.check_optimality(net.convolutional(), X=X, Y=Y, loss="cross_entropy", tolerance=1e-3)',
    "structure": "av.check_common_structure(net.convolutional(), X)",
    "tracker": 'm = net.convolutional(); t = av.AlignmentTracker(m, X, Y, loss="cross_entropy", thorough=True)\n'
    "for _ in range(3): t.update()",
    "data": "av.check_data(np.arange(8e7).reshape(400000, 200), np.arange(400000) % 10)",
    "conditions": "av.doctor()",
}


def worked(process: subprocess.Popen[bytes]) -> float:
    """Return the processor seconds of a process: on a machine that others use, its time says more about it."""
    try:
        with open(f"/proc/{process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:  # not Linux
        return 0.0


def listen(command: list[str], folder: str, *, terminal: bool) -> tuple[float, float, float, str, int]:
    """Run a command; return its time, its longest silence, the processor's share of it, what preceded, the code."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    began = heard = time.monotonic()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    longest, busy, spent, before, last = 0.0, 0.0, 0.0, "", "its start"
    while True:
        ready, _, _ = select.select([ours], [], [], 0.1)
        try:
            part = os.read(ours, 65536) if ready else None
        except OSError:  # Linux says EIO when the last writer of a terminal has closed
            part = b""
        now, seconds = time.monotonic(), worked(process)
        if now - heard > longest:
            longest, busy, before = now - heard, max(seconds - spent, busy if not seconds else 0.0), last
        if part is None:
            continue
        heard, spent = now, seconds
        if not part:
            break
        words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]+", " ", part.decode(errors="replace")).split()
        last = " ".join(words)[-70:] or last
    os.close(ours)
    return time.monotonic() - began, longest, busy, before, process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--pipe", action="store_true", help="on a pipe only")
    kind.add_argument("--terminal", action="store_true", help="on a pseudo-terminal only")
    parser.add_argument("words", nargs="*", help="parts of names of cases")
    options = parser.parse_args()
    cases = {name: [sys.executable, "-m", "alignver", *words.split()] for name, words in COMMANDS.items()}
    cases |= {name: [sys.executable, "-c", PRELUDE + call] for name, call in CALLS.items()}
    places = [True] * (not options.pipe) + [False] * (not options.terminal)
    worst, failed = 0.0, []
    print(f"{'case':32} {'where':9} {'s':>7} {'silence':>8} {'cpu':>5}  before it")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", SETUP], cwd=folder, check=True)
        for name, command in cases.items():
            if options.words and not any(word in name for word in options.words):
                continue
            for terminal in places:
                for made in ("proof", "run"):  # a case must not find the folder of its first run
                    if name in ("exploration of 60000 rows", "train"):
                        subprocess.run(["rm", "-rf", made], cwd=folder, check=True)
                seconds, silence, busy, before, code = listen(command, folder, terminal=terminal)
                worst = max(worst, silence)
                if code not in (0, 1, 3) or (command[1] == "-c" and code):
                    failed.append(f"{name} ({code}: {before})")
                where = "terminal" if terminal else "pipe"
                print(f"{name:32} {where:9} {seconds:7.1f} {silence:8.1f} {busy:5.1f}  {before}", flush=True)
    print(f"the longest silence is {worst:.1f} s, target at most {LIMIT:g}  {'met' if worst <= LIMIT else 'NOT met'}")
    if failed:
        print(f"ended with an error: {'; '.join(failed)}")
    return int(worst > LIMIT or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
