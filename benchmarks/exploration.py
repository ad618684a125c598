"""Safe exploration at the scale of the paper's Table 2 and beyond, with the rate of dgemm in the same run.

    python benchmarks/exploration.py [CASE ...] [--features Z.npy] [--folder DIR]

Cases (the default is the first two). Each case runs in a separate process, so that its peak memory can be measured:

    rank        n = 2000, width 8: against numpy.linalg.matrix_rank of the dense phi
    gram        n = 12000 sampled gates, Gram assembly included (--features, else synthetic)
    staircase   60000 x 513: widths 123 and 117, certificate and re-check (--features, else synthetic)
    directions  60000 x 513 at the limit width 117: for how many of 20 directions?
    rank-large  n = 8000, width 32 (1 GB of phi): minutes of NumPy
    paper       n = 60000, the paper's width 234 and sampled gates: 7.2e13 operations, 15 GB
    imagenet    1281167 x 2049 float32 on disk: 10.5 GB of file in --folder

``--features`` is an (n, m - 1) file without the constant column, as written by ``alignver reproduce table2 --cache``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.exploration_report import forget_peak, peak_bytes
from alignver.checks.recheck import recheck
from alignver.features.products import dense_phi
from alignver.features.rows import directions, open_rows, scan_rows
from alignver.features.staircase import find_staircase
from alignver.results import CheckResult, Rigor, Verdict

CASES = ("rank", "gram", "staircase", "directions", "rank-large", "paper", "imagenet")
GIB = 2.0**30


def line(label: str, value: float, unit: str, limit: float, below: bool) -> bool:
    met = value <= limit if below else value >= limit
    print(
        f"{label:70s} {value:8.2f} {unit:5s} target {'<=' if below else '>='} {limit:g}  {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def dgemm() -> float:
    """Return the rate of a square matrix product in Gflop/s, the best of three."""
    n = 2500
    A = np.random.default_rng(0).standard_normal((n, n))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        A @ A
        times.append(time.perf_counter() - start)
    rate = 2e-9 * n**3 / min(times)
    print(f"dgemm: {rate:.1f} Gflop/s")
    return rate


def peak() -> float:
    return peak_bytes()["peak_bytes"] / GIB


def synthetic(n: int, m: int) -> np.ndarray[Any, Any]:
    """Return float32 features that are positive, correlated and of uneven spread, like those of a network."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((m, m)) / np.sqrt(m)
    return np.logaddexp(0.0, rng.standard_normal((n, m)) @ mixing).astype(np.float32)


def features(arguments: argparse.Namespace, n: int) -> np.ndarray[Any, Any]:
    if arguments.features is None:
        print("synthetic features")
        return synthetic(n, 512)
    Z: np.ndarray[Any, Any] = np.load(arguments.features, mmap_mode="r")
    return Z if n == len(Z) else np.array(Z[:n])


def proved(result: CheckResult) -> CheckResult:
    print(result, flush=True)
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF), result.reason
    return result


def timed(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    times, found = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    return times, found


def against_matrix_rank(n: int, width: int, target: float, repeats: int) -> list[bool]:
    """Compare medians; the first call, which loads libraries and allocates memory, is reported separately."""
    Z = np.column_stack([synthetic(n, 512), np.ones(n)]).astype(np.float64)
    (first,), result = timed(lambda: proved(check_safe_exploration(Z, width=width)), 1)
    ours = statistics.median(timed(lambda: check_safe_exploration(Z, width=width).require(), 5)[0])
    phi = dense_phi(Z, np.random.default_rng(0).standard_normal((513, width)))
    found, rank = timed(lambda: int(np.linalg.matrix_rank(phi)), repeats)
    theirs = statistics.median(found)
    print(
        f"matrix_rank: {rank} in {theirs:.2f} s, median of {repeats}; staircase: {result.measured['samples']} proved "
        f"in {1e3 * ours:.1f} ms, median of 5, and {1e3 * first:.1f} ms in the first call ({theirs / first:.0f}x)"
    )
    return [line(f"times faster than matrix_rank, n = {n}, width {width}", theirs / ours, "x", target, False)]


def staircase(arguments: argparse.Namespace) -> list[bool]:
    Z, met = features(arguments, 60000), []
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        for width, limit in ((123, 5.0), (117, 30.0)):
            place = Path(folder, str(width))
            start = time.perf_counter()
            result = proved(check_safe_exploration(Z, width=width, add_constant=True))
            assert result.certificate is not None
            result.certificate.save(place)  # type: ignore[union-attr]
            spent = time.perf_counter() - start
            met.append(line(f"n = {len(Z)}, width {width}, certificate included", spent, "s", limit, True))
            met.append(line("peak memory", peak(), "GiB", 1.5 * 1e9 / GIB, True))
            start = time.perf_counter()
            assert recheck(place, Z=Z).verdict is Verdict.HOLDS
            met.append(line("re-check", time.perf_counter() - start, "s", 5.0, True))
    return met


def count_directions(arguments: argparse.Namespace) -> list[bool]:
    rows = open_rows(features(arguments, 60000), add_constant=True)
    width = -(-rows.n // rows.m)
    good = 0
    for seed in range(20):
        found = scan_rows(rows, directions(rows, 1, seed))
        good += find_staircase(rows, found, width, thorough=False).staircase is not None
    print(f"the limit width {width} is proved for {good} of 20 directions")
    return [good > 0]


def sampled(arguments: argparse.Namespace, n: int, share: float, memory: float) -> list[bool]:
    Z = features(arguments, n)
    before = dgemm()
    forget_peak()
    start = time.perf_counter()
    proved(check_safe_exploration(Z, method="gram", add_constant=True))
    spent = time.perf_counter() - start
    rate = max(before, dgemm())
    print(f"{n**3 / 3e9 / spent:.1f} Gflop/s (n^3/3 counted)")
    return [
        line(
            f"n = {n}, sampled gates: share of dgemm's rate", 100 * n**3 / 3e9 / spent / rate, "%", 100 * share, False
        ),
        line("peak memory", peak(), "GiB", memory, True),
    ]


def imagenet(arguments: argparse.Namespace) -> list[bool]:
    n, m = 1281167, 2049
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder, "Z.npy")
        Z = np.lib.format.open_memmap(place, mode="w+", dtype=np.float32, shape=(n, m))
        rng = np.random.default_rng(0)
        for start in range(0, n, 16384):
            block = rng.standard_normal((min(16384, n - start), m), dtype=np.float32)
            np.abs(block, out=block)
            block[:, -1] = 1.0
            Z[start : start + len(block)] = block
        Z.flush()
        del Z
        print("file written", flush=True)
        # A separate process, like the command line, so that the peak excludes the memory of the writer.
        code = (
            "import sys, time, numpy as np\n"
            "from alignver.checks.exploration import check_safe_exploration\n"
            "Z = np.load(sys.argv[1], mmap_mode='r')\n"
            "result = check_safe_exploration(Z, width=660).require()\n"
            "print(result)\n"
            "print(result.rigor.value, result.cost['seconds'], result.cost['peak_bytes'])\n"
        )
        out = subprocess.run(
            [sys.executable, "-c", code, str(place)], check=True, capture_output=True, text=True
        ).stdout
        print(out, flush=True)
        rigor, seconds, memory = out.split()[-3:]
        assert rigor == "PROOF"
    return [
        line("1281167 x 2049 float32 on disk", float(seconds) / 60, "min", 20.0, True),
        line("peak memory", float(memory) / GIB, "GiB", 6.0, True),
    ]


def run(case: str, arguments: argparse.Namespace) -> list[bool]:
    if case == "rank":
        return against_matrix_rank(2000, 8, 60.0, 3)
    if case == "rank-large":
        return against_matrix_rank(8000, 32, 800.0, 1)
    if case == "gram":
        return sampled(arguments, 12000, 0.4, 20.0)
    if case == "paper":
        return sampled(arguments, 60000, 0.6, 20.0)
    if case == "staircase":
        dgemm()
        return staircase(arguments)
    return count_directions(arguments) if case == "directions" else imagenet(arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--features", help="an .npy file of features without the constant column")
    parser.add_argument("--folder", help="folder for a large file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = arguments.cases or ["rank", "gram"]
    unknown = [case for case in cases if case not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]}: one of {', '.join(CASES)}")
    if arguments.here:
        return 0 if all(run(cases[0], arguments)) else 1
    options = [f"--{key}={getattr(arguments, key)}" for key in ("features", "folder") if getattr(arguments, key)]
    worst = 0
    for case in cases:
        print(f"-- {case}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, __file__, case, "--here", *options], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
