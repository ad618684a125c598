"""Tests, comparisons with the CPU and benchmarks on a GPU, step by step; also at a small size without a GPU.

    python benchmarks/gpu.py STEP ... --out DIR [--dry] [--seconds N] [--carry DIR]

Steps, in the order of benchmarks/gpu.sh: tests, agreement, cholesky, alignment, exploitation, table3, jacobian, mnist.
Each writes DIR/STEP.json, and updates it after every number, so that the results of a stopped step are available: GPU,
driver, versions, date, the state of the arithmetic, seconds, and for each comparison its bound. ``--dry`` runs every
step on the CPU at small sizes, with torch on the CPU in place of CUDA and array-api-strict in place of CuPy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ee import digits, wrapped
from exploration import dgemm, synthetic
from gpu_agreement import agreement
from gpu_run import ROOT, Run, Skipped, Stopped, clean, places, require_plain_arithmetic
from torch import nn

import alignver as av
from alignver.checks import exploration
from alignver.checks.exploration_report import forget_peak, peak_bytes
from alignver.experiments.conduct import Item, Setting, conduct
from alignver.experiments.image_runs import Effort, ImageRun
from alignver.experiments.image_sets import split
from alignver.experiments.image_tables import TABLE3, runs_of
from alignver.experiments.networks import fix_statistics, resnet18
from alignver.jacobians import factored_proof
from alignver.jacobians.prepare import inputs_again
from alignver.network.feature_extraction import extract_features
from alignver.network.inputs import full_precision

SHARDS = {  # groups of the tests marked gpu that run at the same time
    "models and training": ("tests/gpu",),
    "matrices": ("tests/checks", "tests/linalg", "tests/checks/test_common_structure.py", "tests/test_arrays.py"),
    "exploration": ("tests/features",),
}


def tests(run: Run) -> None:
    """Run the tests marked gpu; without a GPU, on its substitute."""
    folder = Path(tempfile.mkdtemp())
    # Other plugins may be installed, and other versions may emit warnings.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "ALIGNVER_GPU_DRY": str(int(run.dry))}
    options = ["-v", "-m", "gpu", "-W", "default", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None and not run.dry:
        options += ["-p", "xdist", "-n", "3"]
    running = {}
    for name, places_ in SHARDS.items():
        log, report = (folder / f"{name}.{ending}" for ending in ("txt", "xml"))
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *places_]
        command += ["--ignore=tests/linalg/test_profiles.py"] * run.dry  # large; tested small in the other files
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        running[name] = (process, log, report)
    wrong = []
    try:
        for name, (process, log, report) in running.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(1.0, run.left))
            code, text = process.poll(), clean(log.read_text())
            counts, failures = _outcomes(report) if report.is_file() else _outcomes_so_far(text)
            end = text[-1500:].splitlines()[-6:]
            run.note(name, {"exit_code": code, "outcomes": counts, "failures": failures, "end": end})
            if code != 0 or not counts.get("passed"):
                wrong.append(f"{name} ({'the time was over' if code is None else f'{len(failures)} failed'})")
    finally:
        for process, _, _ in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if wrong:
        raise RuntimeError("tests: " + ", ".join(wrong))


def _outcomes(report: Path) -> tuple[dict[str, int], dict[str, str]]:
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag: child for child in case}
        word = next((word for word in ("error", "failure", "skipped") if word in kinds), "passed")
        counts["failed" if word in ("error", "failure") else word] = counts.get(word, 0) + 1
        if word in ("error", "failure"):
            failures[f"{case.get('classname')}::{case.get('name')}"] = clean((kinds[word].text or "")[-1500:])
    return counts, failures


def _outcomes_so_far(text: str) -> tuple[dict[str, int], dict[str, str]]:
    """Read the log of unfinished tests."""
    counts = {word.lower(): len(re.findall(rf"\b{word}\b", text)) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    lines = [line for line in text.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return counts, {line.strip(): "" for line in lines}


def cholesky(run: Run) -> None:
    """Prove rank phi = n for the paper's sampled gates, with increasing sizes up to all of MNIST."""
    require_plain_arithmetic(run)
    rate = _rate(run)
    run.note("float64 products, Gflop/s", rate)
    Z, name = _mnist_features(run)
    run.note("features", name)
    for library, put in places(run).items():
        first = library.startswith("torch")
        for n in run.size((200,), (4096, 20000, 60000)) if first else run.size((100,), (20000,)):
            there = put(np.ascontiguousarray(Z[:n]))
            forget(run)
            check = functools.partial(av.check_safe_exploration, there, method="gram", add_constant=True)
            seconds, result = run.timed(check)
            run.note(
                f"n = {n}, {library}",
                {
                    "verdict": result.verdict.value,
                    "rigor": result.rigor.value,
                    "reason": result.reason,
                    "width": result.measured["width"],
                    "s_min_lower": result.measured.get("s_min_lower"),
                    "seconds": seconds,
                    "floor_seconds": n**3 / 3e9 / rate,
                    "gflops": n**3 / 3e9 / seconds,
                    "peak_gib": peak(run),
                },
            )
    proofs = [value for key, value in run.document["results"].items() if key.startswith("n = ")]
    if any((value["verdict"], value["rigor"]) != ("HOLDS", "PROOF") for value in proofs):
        raise RuntimeError("a proof was refused")


def _rate(run: Run) -> float:
    if run.dry:
        return dgemm()
    A = torch.randn(8192, 8192, dtype=torch.float64, device=run.device)
    A @ A
    return 2e-9 * 8192**3 / min(run.timed(lambda: A @ A)[0] for _ in range(3))


def _mnist_features(run: Run) -> tuple[Any, str]:
    """Return the features of Table 2's network on MNIST, computed in float32, or synthetic features."""
    try:
        folder = run.data_folder()
    except Skipped:
        return synthetic(run.size(200, 60000), run.size(16, 512)), "synthetic"
    if run.dry:
        return synthetic(200, 16), "synthetic"
    images = split("mnist", seed=0, folder=folder, device=str(run.device)).x
    images = (images - images.mean()) / images.std()
    model = resnet18(1, 10, seed=0).to(run.device)
    fix_statistics(model, images[:2048])
    with full_precision(run.device, torch.float32):
        return extract_features(model, images, "features"), "of a freshly initialised ResNet-18 on MNIST"


def forget(run: Run) -> None:
    """Release the cached memory of the device's libraries and reset the peak."""
    if not run.dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()


def peak(run: Run) -> float | None:
    """Return the peak memory of torch's tensors on the device, in GiB."""
    return None if run.dry else round(torch.cuda.max_memory_allocated() / 2**30, 2)


def alignment(run: Run) -> None:
    """Compute the Gram matrix and run check_alignment for ResNet-18 on 100 images of Semeion."""
    require_plain_arithmetic(run)
    X, Y, _, _ = digits(0)
    n, width = run.size((8, 2), (100, 64))
    X, Y = X[:n].to(run.device), Y[:n]
    model = resnet18(1, 10, seed=0, width=width).to(run.device)
    fix_statistics(model, X, batch_size=n)
    run.note("size", {"n": n, "N": 10 * n, "d": sum(p.numel() for p in model.parameters())})
    for k in range(2):
        forget(run)
        seconds, G = run.timed(lambda: av.gram(model, X))
        run.note(f"gram, {('first', 'second')[k]} call", {"seconds": seconds, "peak_gib": peak(run)})
    symmetric = bool(torch.equal(G, G.T))
    eigenvalues = torch.linalg.eigvalsh(G)
    run.note("Gram matrix", {"symmetric": symmetric, "largest": float(eigenvalues[-1]), "least": float(eigenvalues[0])})
    forget(run)
    seconds, result = run.timed(lambda: av.check_alignment(model, X, Y, loss="cross_entropy", budget_seconds=0.0))
    run.note(
        "check_alignment",
        {
            "verdict": result.verdict.value,
            "rigor": result.rigor.value,
            "reason": result.reason,
            "evidence": result.evidence,
            "seconds": seconds,
            "peak_gib": peak(run),
        },
    )
    if not symmetric:
        raise RuntimeError("the Gram matrix is not symmetric")


def exploitation(run: Run) -> None:
    """Compare an exploitation epoch with cached features with a standard epoch, for ResNet-18 on Semeion."""
    X, Y, _, _ = digits(0)
    n, channels = run.size((100, 2), (1000, 64))
    X, Y = X[:n].to(run.device), Y[:n].to(run.device)
    wrapper = wrapped(0, channels, device=str(run.device), tau=1)
    wrapper.prepare(X, Y)
    generator = torch.Generator().manual_seed(0)

    def epoch(step: Callable[[torch.Tensor], Any]) -> float:
        batches = torch.split(torch.randperm(n, generator=generator), 64)
        return run.timed(lambda: [step(indices) for indices in batches])[0]

    standard = [epoch(lambda i: wrapper.explore_step(X[i], Y[i])) for _ in range(run.size(1, 4))]
    run.note("standard epochs, seconds", standard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # warnings that ranks are not proved are not relevant here
        run.note("entering exploitation, seconds", run.timed(lambda: wrapper.enter_exploitation(X, Y))[0])
    cached = [epoch(lambda i: wrapper.exploit_step(indices=i)) for _ in range(run.size(2, 10))]
    run.note("exploitation epochs, seconds", cached)
    run.note("ratio", statistics.median(cached) / statistics.median(standard[len(standard) // 2 :]))


class _Table3(Item):
    """A part of Table 3: its records name the code of the table, not that of this file."""

    def code_digest(self) -> str:
        return TABLE3.code_digest()


def _trained(one: ImageRun, setting: Setting, folder: str) -> None:
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = _Table3(
            TABLE3.name, TABLE3.title, TABLE3.source, TABLE3.cost, lambda _: [one.part(setting)], lambda _: ()
        )
        conduct(single, setting, folder=folder)


def table3(run: Run) -> None:
    """Run Table 3 for Semeion in full: five seeds of both methods, several runs in parallel, with their run folders."""
    setting = Setting(datasets=("semeion",), device=run.device.type, reduced=run.dry)
    methods = runs_of(setting, "semeion").values()
    runs = [one for pair in zip(*methods) for one in pair]  # seed by seed, so that a partial result is comparable
    if run.dry:
        runs = [dataclasses.replace(one, effort=Effort(2, 1, 2, 40), tau=one.tau and 0.5) for one in runs[:2]]
    kept: dict[str, Any] = {}
    workers = run.size(1, min(5, len(os.sched_getaffinity(0))))  # ten at a time are slower
    with tempfile.TemporaryDirectory() as folder:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:  # ends running processes on exit
            ends = pool.imap_unordered(functools.partial(_trained, setting=setting, folder=folder), runs)
            with contextlib.suppress(multiprocessing.TimeoutError):
                for _ in runs:
                    ends.next(max(1.0, run.left - 5.0))
                    kept |= {path.name: json.loads(path.read_text()) for path in Path(folder).glob("*.json")}
                    run.document["run_folder"] = kept
                    run.note("runs", f"{len(kept)} of {len(runs)}")
        if not run.dry:
            for result in conduct(TABLE3, setting, folder=folder, budget=0).results:
                run.note(result.statement, f"{result.verdict.value}: {result.reason}")
    for name, record in kept.items():
        run.note(name, {"test": record["data"]["test"], "seconds": record["data"]["seconds"]})


def mnist(run: Run) -> None:
    """Train ResNet-18 on MNIST while time remains: exploration, then exploitation on cached features."""
    if run.dry:
        X, Y, X_test, Y_test = digits(0)
        X, Y, X_test, Y_test = X[:80], Y[:80], X_test[:80], Y_test[:80]
    else:
        data = split("mnist", seed=0, folder=run.data_folder(), device=str(run.device))
        X, Y, X_test, Y_test = data.x, data.y, data.x_test, data.y_test
    wrapper = wrapped(0, run.size(2, 64), samples=len(X), device=str(run.device), tau=1, repair="none")
    wrapper.prepare(X, Y)
    generator = torch.Generator().manual_seed(0)
    epochs: list[dict[str, Any]] = []

    def epoch(phase: str, step: Callable[[torch.Tensor], float]) -> None:
        batches = torch.split(torch.randperm(len(X), generator=generator), 64)
        seconds, losses = run.timed(lambda: [step(indices) for indices in batches])
        wrong = (wrapper.outputs(X_test).argmax(1).cpu() != Y_test.cpu()).double().mean()
        epochs.append(
            {"phase": phase, "seconds": seconds, "loss": statistics.fmean(losses), "test": 100 * float(wrong)}
        )
        run.note("epochs", epochs)

    while not epochs or (run.left > 4 * epochs[-1]["seconds"] and len(epochs) < run.size(1, 20)):
        epoch("exploration", lambda i: wrapper.explore_step(X[i], Y[i]))
    run.note("entering exploitation, seconds", run.timed(lambda: wrapper.enter_exploitation(X, Y, prove=False))[0])
    explored = len(epochs)
    while len(epochs) == explored or (
        run.left > 2 * epochs[-1]["seconds"] and len(epochs) < explored + run.size(1, 20)
    ):
        epoch("exploitation", lambda i: wrapper.exploit_step(indices=i))


def jacobian(run: Run) -> None:
    """Prove that a Jacobian with up to 50000 rows has full row rank, by tiles of its Gram matrix on the device."""
    require_plain_arithmetic(run)
    rate = _rate(run)
    run.note("float64 products, Gflop/s", rate)
    X, Y, name = _mnist_images(run)
    run.note("images", name)
    width = run.size(16, 1000)
    torch.manual_seed(0)
    layers = (nn.Linear(X.shape[1], width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    model = nn.Sequential(*layers).double().to(run.device)
    run.note("d", sum(p.numel() for p in model.parameters()))
    for n in run.size((12, 20), (1000, 5000)):
        forget(run)
        check = functools.partial(av.check_alignment, model, X[:n], Y[:n], loss="cross_entropy", engine="gram")
        forget_peak()
        seconds, result = run.timed(check)
        operations = (10 * n) ** 3 / 3 + sum(
            (10.0 * n) ** 2 * (layer.out_features + (layer.in_features + 1) / 100) for layer in layers[::2]
        )
        proof = result.measured.get("proof", {})
        run.note(
            f"N = {10 * n}",
            {
                "verdict": result.verdict.value,
                "rigor": result.rigor.value,
                "reason": result.reason,
                "evidence": result.evidence,
                "s_min_lower": proof.get("s_min_lower"),
                "radius": proof.get("radius"),
                "seconds": seconds,
                "floor_seconds": operations / 1e9 / rate,
                "gflops": operations / 1e9 / seconds,
                "peak_gib": peak(run),
                "peak_of_the_host_gib": peak_bytes().get("peak_bytes", 0) / 2**30,
            },
        )
        if result.certificate is None or run.left < 2 * seconds:
            continue
        before = time.perf_counter()
        inputs, notes, covered = inputs_again(result.certificate, model, X[:n], Y[:n], loss="cross_entropy")
        run.note(f"N = {10 * n}, factors again", {"seconds": time.perf_counter() - before, "notes": notes})
        if n > run.size(12, 1000):
            continue  # minutes of the host
        before = time.perf_counter()
        again = av.recheck(result.certificate, **inputs)
        run.note(
            f"N = {10 * n}, re-check on the host",
            {"verdict": again.verdict.value, "covered": covered, "seconds": time.perf_counter() - before},
        )
    proofs = [value for key, value in run.document["results"].items() if re.fullmatch(r"N = \d+", key)]
    if any((value["verdict"], value["rigor"]) != ("HOLDS", "PROOF") for value in proofs):
        raise RuntimeError("a proof was refused")


def _mnist_images(run: Run) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return images as rows, with their labels: of MNIST, or synthetic ones."""
    n = run.size(20, 5000)
    try:
        folder = run.data_folder()
    except Skipped:
        folder = None
    if folder is None or run.dry:
        images = synthetic(n, run.size(40, 784)).astype(np.float64)
        labels, name = torch.arange(n) % 10, "synthetic"
    else:
        data = np.load(folder / "mnist.npz")
        images, labels, name = data["x_train"][:n].reshape(n, -1).astype(np.float64), data["y_train"][:n], "MNIST"
        labels = torch.from_numpy(labels.astype(np.int64))
    images = (images - images.mean()) / images.std()
    return torch.tensor(images, device=run.device), labels.to(run.device), name


STEPS: dict[str, Callable[[Run], None]] = {
    step.__name__: step for step in (tests, agreement, cholesky, alignment, exploitation, table3, jacobian, mnist)
}


def perform(run: Run) -> int:
    """Run a step, handle its errors, and return the exit code of the script."""
    try:
        STEPS[run.step](run)
    except Skipped as why:
        run.keep(f"skipped: {why}")
    except Stopped:
        run.keep("stopped by its time limit")
    except Exception as error:
        run.document["error"] = clean(traceback.format_exc()[-3000:])
        run.keep(f"failed: {clean(str(error))[:500]}")
    else:
        run.keep("done")
    print(f"{run.step}: {run.document['status']} ({run.document['seconds']:.1f} s)", flush=True)
    return int(run.document["status"].startswith(("failed", "stopped")))


def _stand_in() -> None:
    """Factor tensors that are not NumPy arrays on their own device, like those of a GPU."""
    exploration.accelerator = lambda value: None if isinstance(value, np.ndarray) else value[:0, :]
    factored_proof.accelerator, factored_proof._TILED = exploration.accelerator, 0


def _stopped(*_: Any) -> None:
    raise Stopped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the JSON files")
    parser.add_argument("--dry", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N", help="time limit of each step")
    parser.add_argument(
        "--carry", type=Path, default=ROOT / ".gpu", metavar="DIR", help="folder with the files from make gpu-carry"
    )
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("no CUDA device; --dry runs the steps on the CPU")
    signal.signal(signal.SIGTERM, _stopped)
    if options.dry:
        _stand_in()
        torch.set_num_threads(1)  # the machines that run this are shared
    options.out.mkdir(parents=True, exist_ok=True)
    options_of_each = options.out, options.dry, options.seconds, options.carry
    return max([perform(Run(name, *options_of_each)) for name in options.steps])


if __name__ == "__main__":
    sys.exit(main())
