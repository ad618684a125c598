"""Alignment of a network by tiles of its Jacobian's Gram matrix, with the rate of dgemm in the same run.

    python benchmarks/alignment.py [--samples N] [--width H] [--folder DIR] [--kill COLUMN] [--workers K] [--memory GIB]

The network is an MLP with two hidden layers of H = 1000 units and 10 outputs: N = 10 x samples rows. The default is
N = 20000, 2.7e12 operations and those of the Gram matrix; ``--samples 5000 --folder DIR --memory 14`` is N = 50000 in
14 GiB, 4.2e13 operations. ``--kill COLUMN`` kills the run with SIGKILL when it has stored so many tile columns in the
folder, and starts it again. ``--workers K`` computes the tiles on a Dask cluster of K processes, of which ``--kill``
kills one; the memory is that of this process and of the workers. Between tile columns products of matrices are timed,
one on each core.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.checks.alignment import check_alignment
from alignver.checks.exploration_report import forget_peak, peak_bytes
from alignver.features.threads import single_threaded_blas, workers
from alignver.progress import listening
from alignver.results import Rigor, Verdict

ORDER, EVERY = 1000, 4  # of the timed products, and how many tile columns lie between two of them
GIB = 2.0**30


class Rates:
    """Times products of matrices between tile columns; ``spent`` is the time that they take."""

    def __init__(self) -> None:
        self.A = np.random.default_rng(0).standard_normal((ORDER, ORDER))
        self.rates: list[float] = []
        self.columns, self.spent = 0, 0.0

    def start(self, label: str, total: int | None) -> object:
        return label

    def advance(self, handle: object) -> None:
        self.columns += handle == "Cholesky"
        if handle == "Cholesky" and self.columns % EVERY == 1:
            self.measure()

    def measure(self) -> None:
        began = time.perf_counter()
        with single_threaded_blas(), concurrent.futures.ThreadPoolExecutor(workers()) as pool:
            list(pool.map(lambda _: self.A @ self.A, range(2 * workers())))
        spent = time.perf_counter() - began
        self.rates.append(2 * workers() * 2e-9 * ORDER**3 / spent)
        self.spent += spent

    def finish(self, handle: object) -> None:
        pass


class Cluster(Rates):
    """Worker processes, one of which is killed after ``kill`` tile columns; ``peak`` is the memory of all."""

    def __init__(self, client: Any, kill: int | None) -> None:
        super().__init__()
        self.client, self.kill, self.peak = client, kill, 0

    def advance(self, handle: object) -> None:
        super().advance(handle)
        if handle == "Cholesky" and self.columns == self.kill:
            pid = max(self.client.run(os.getpid).values())
            os.kill(pid, signal.SIGKILL)
            print(f"killed worker {pid} after {self.columns} tile columns", flush=True)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Measure the memory of this process and of its children ten times a second."""
        import psutil

        ended = threading.Event()

        def watch() -> None:
            this = psutil.Process()
            while not ended.wait(0.1):
                total = 0
                for process in (this, *this.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += process.memory_info().rss
                self.peak = max(self.peak, total)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextlib.contextmanager
def cluster(workers: int, kill: int | None) -> Iterator[Cluster]:
    import distributed

    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as processes,
        distributed.Client(processes, set_as_default=False) as client,
    ):
        rates = Cluster(client, kill)
        with rates.watched():
            yield rates


def problem(samples: int, width: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, float]:
    """Return a model, inputs, labels, and the operations of the proof."""
    torch.manual_seed(0)
    linear = [nn.Linear(100, width), nn.Linear(width, width), nn.Linear(width, 10)]
    model = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2]).double()
    N = 10.0 * samples
    # One inner product of gradients for each pair of rows, one of inputs for each pair of samples, in each layer.
    gram = sum(N**2 * layer.out_features + samples**2 * (layer.in_features + 1) for layer in linear)
    X = torch.randn(samples, 100, dtype=torch.float64)
    return model, X, torch.arange(samples) % 10, N**3 / 3 + gram


def run(arguments: argparse.Namespace, rates: Rates) -> bool:
    model, X, Y, operations = problem(arguments.samples, arguments.width)
    options = {"client": rates.client} if isinstance(rates, Cluster) else {}
    forget_peak()
    began = time.perf_counter()
    rates.measure()
    with listening(rates):
        result = check_alignment(model, X, Y, loss="cross_entropy", engine="gram", folder=arguments.folder, **options)
    seconds = time.perf_counter() - began - rates.spent
    print(result, flush=True)
    taken = result.measured.get("proof", {}).get("tiles_taken", 0)
    rate, dgemm = operations / 1e9 / seconds, float(np.mean(rates.rates))
    print(f"N = {10 * arguments.samples}: {seconds:.1f} s, {rate:.1f} Gflop/s; dgemm {dgemm:.1f} Gflop/s", flush=True)
    met = [result.verdict is Verdict.HOLDS, result.rigor is (Rigor.NUMERICAL if taken else Rigor.PROOF)]
    if not taken:
        met.append(_line("share of dgemm's rate", 100 * rate / dgemm, "%", 50.0, False))
    peak: Any = rates.peak if isinstance(rates, Cluster) else peak_bytes().get("peak_bytes")
    if peak is not None and arguments.memory:
        met.append(_line("peak memory", peak / GIB, "GiB", arguments.memory, True))
    return all(met)


def _line(label: str, value: float, unit: str, limit: float, below: bool) -> bool:
    met = value <= limit if below else value >= limit
    sign = "<=" if below else ">="
    print(f"{label:40s} {value:8.2f} {unit:5s} target {sign} {limit:g}  {'met' if met else 'MISSED'}", flush=True)
    return met


def killed(arguments: argparse.Namespace) -> None:
    """Start the same run, and kill it when it has stored ``--kill`` tile columns."""
    command = [sys.executable, __file__, "--samples", str(arguments.samples), "--width", str(arguments.width)]
    process = subprocess.Popen([*command, "--folder", str(arguments.folder)])
    last = arguments.folder / f"column_{arguments.kill:05d}.npy"
    while process.poll() is None and not last.exists():
        time.sleep(0.01)
    if process.poll() is not None:
        raise SystemExit("the run ended before it was killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    print(f"killed with {len(list(arguments.folder.glob('column_*.npy')))} tile columns in the folder", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="folder for the tiles; in memory without it")
    parser.add_argument("--kill", type=int, metavar="COLUMN")
    parser.add_argument("--workers", type=int, metavar="K", help="processes of a Dask cluster that compute the tiles")
    parser.add_argument("--memory", type=float, metavar="GIB", help="largest peak memory")
    arguments = parser.parse_args()
    if (arguments.kill is not None or arguments.workers) and arguments.folder is None:
        parser.error("--kill and --workers need --folder")
    if arguments.workers:
        with cluster(arguments.workers, arguments.kill) as rates:
            return 0 if run(arguments, rates) else 1
    if arguments.kill is not None:
        killed(arguments)
    return 0 if run(arguments, Rates()) else 1


if __name__ == "__main__":
    sys.exit(main())
