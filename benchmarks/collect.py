"""Run benchmarks and store their output with machine and versions, as the source of docs/performance.md.

    python benchmarks/collect.py [NAME ...] [--timeout MINUTES] [--threads N] [--out DIR] [--list] [-- ARGUMENT ...]

Each NAME stands for a script with its arguments. Without names, those marked * in --list are run, fast ones first. A
result is one JSON file in docs/results/benchmarks. It is written if the script ends, whether or not it meets its
targets. After a crash or a timeout the existing file is not changed. Use an otherwise idle machine; the load before
each run is stored as well. Arguments after ``--`` are passed to the scripts (``-- --features Z.npy``).
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parent / "docs" / "results" / "benchmarks"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """A script, its arguments, approximate minutes on two cores, and whether it runs by default."""

    script: str
    arguments: tuple[str, ...] = ()
    minutes: int = 5
    default: bool = True


RUNS = {
    "cli": Run("cli.py", minutes=1),
    "data": Run("data.py", minutes=2),
    "streamed_qr": Run("streamed_qr.py", minutes=1),
    "gram": Run("gram.py", minutes=10),
    "engine": Run("engine.py", ("--quick",), 5),
    "engine-large": Run("engine.py", minutes=30, default=False),
    "network": Run("network.py", ("small", "lenet", "passes"), 20),
    "network-large": Run("network.py", ("trained", "random"), 30, default=False),
    "network-zoo": Run("network_zoo.py", minutes=20, default=False),
    "network-fuzz": Run("network_fuzz.py", ("--cases", "1000"), 30, default=False),
    "silence": Run("silence.py", minutes=30, default=False),
    "stock-models": Run("stock_models.py", minutes=60, default=False),
    "membership": Run("membership.py", minutes=10),
    "proof": Run("proof.py", minutes=10),
    "exploration": Run("exploration.py", ("rank", "gram"), 5),
    "staircase": Run("exploration.py", ("staircase",), 5),
    "ee": Run("ee.py", ("speed",), 5),
    "tracker": Run("tracker.py", ("two-moons", "sine-wave"), 10),
    "tracker-semeion": Run("tracker.py", ("semeion",), 3, default=False),
    "ee-unrepaired": Run("ee.py", ("unrepaired",), 20, default=False),
    "ee-semeion": Run("ee.py", ("semeion",), 7, default=False),
    "ee-sine": Run("ee.py", ("sine",), 6, default=False),
    "limits": Run("limits.py", minutes=15, default=False),
    "alignment": Run("alignment.py", minutes=5, default=False),
    "alignment-large": Run("alignment.py", ("--samples", "5000", "--memory", "14"), 30, default=False),
    "directions": Run("exploration.py", ("directions",), 5, default=False),
    "rank-large": Run("exploration.py", ("rank-large",), 5, default=False),
    "paper": Run("exploration.py", ("paper",), 15, default=False),
    "imagenet": Run("exploration.py", ("imagenet",), 12, default=False),
    "streamed_qr-large": Run("streamed_qr.py", ("100", "64", "16", "512"), 60, default=False),
}

# Runs in a separate process with the same environment as the benchmark.
VERSIONS = """
import importlib.metadata, json, numpy, scipy, threadpoolctl, torch
from alignver.report.provenance import versions
found = versions()
for name in ("nngeometry", "torchjd"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
blas = [{key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
print(json.dumps({"versions": found, "blas": blas}))
"""


def machine() -> dict[str, Any]:
    """Return the relevant properties of the machine, without anything that identifies its owner."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory / 2**30, 1)}


def targets(lines: list[str]) -> list[dict[str, Any]]:
    """Find the lines that compare a number with a target; each script ends or begins such a line with a word."""
    found = []
    for line in lines:
        ending = re.fullmatch(r"\s*(?P<text>.*?\S)\s+(?P<word>met|MISSED|NOT met)", line)
        beginning = re.fullmatch(r"\s*(?P<word>reached|MISSED)\s+(?P<text>.*\S)", line)
        match = ending or beginning
        if match:
            text = re.sub(r"\s{2,}", "  ", match["text"])
            found.append({"text": text, "met": match["word"] in ("met", "reached")})
    return found


def listen(command: list[str], environment: dict[str, str], limit: float) -> tuple[int | None, list[str], str]:
    """Run a command and show its output; return the exit code (None after ``limit`` seconds), lines and errors."""
    late, lines, errors = threading.Event(), [], []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as process:

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)  # also ends the child processes of the benchmark

        timer = threading.Timer(limit, end)
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
        timer.start()
        reader.start()
        for line in process.stdout:  # type: ignore[union-attr]
            lines.append(line.rstrip())
            print("  " + lines[-1], flush=True)
        code = process.wait()
        timer.cancel()
        reader.join()
    return (None if late.is_set() else code), lines, "".join(errors)


def collect(name: str, threads: int, minutes: float, out: Path, more: Sequence[str] = ()) -> bool:
    """Run one benchmark and write its file; return whether a new file was written."""
    run = RUNS[name]
    arguments = [*run.arguments, *more]
    command = ["python", f"benchmarks/{run.script}", *(Path(argument).name for argument in arguments)]
    print(f"== {' '.join(command)}", flush=True)
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONUNBUFFERED": "1"}
    told = subprocess.run([sys.executable, "-c", VERSIONS], env=environment, capture_output=True, text=True, check=True)
    load, began = os.getloadavg()[0], time.perf_counter()
    script = str(FOLDER / run.script)
    code, lines, errors = listen([sys.executable, script, *arguments], environment, 60 * minutes)
    seconds = time.perf_counter() - began
    held = targets(lines)
    # Exit code 1 with targets in the output means a missed target; without targets it is a crash.
    if code is None or not (code == 0 or (code == 1 and any(not target["met"] for target in held))):
        end = f"not ended after {minutes:g} minutes" if code is None else f"ended with {code}"
        print(f"{name}: {end}; nothing written\n{errors[-2000:]}", file=sys.stderr, flush=True)
        return False
    document = {
        "benchmark": name,
        "what": ast.get_docstring(ast.parse(Path(script).read_text()), clean=True).split("\n\n")[0].replace("\n", " "),  # type: ignore[union-attr]
        "command": " ".join(command),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "threads": threads,
        "load_before": round(load, 2),
        "machine": machine(),
        **json.loads(told.stdout),
        "targets": held,
        "output": lines,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of benchmarks; see --list")
    parser.add_argument("--timeout", type=float, metavar="MINUTES", help="per benchmark; default: 4 times the usual")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for the linear algebra")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder for the JSON files")
    parser.add_argument("--list", action="store_true", help="list the names, the commands and their approximate times")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, more = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if options.list:
        for name, run in RUNS.items():
            command = " ".join([run.script, *run.arguments])
            print(f"{'*' if run.default else ' '} {name:<18} {command:<32} about {run.minutes} min")
        return 0
    unknown = [name for name in options.names if name not in RUNS]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}: one of {', '.join(RUNS)}")
    names = options.names or [name for name, run in RUNS.items() if run.default]
    written = [
        collect(name, options.threads, options.timeout or 4.0 * RUNS[name].minutes, options.out, more) for name in names
    ]
    return 0 if all(written) else 1


if __name__ == "__main__":
    sys.exit(main())
