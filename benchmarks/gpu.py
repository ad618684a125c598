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
import copy
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ee import digits, wrapped
from exploration import dgemm, synthetic

import alignver as av
from alignver.arrays import host
from alignver.checks import exploration
from alignver.experiments.conduct import Setting, conduct, machine
from alignver.experiments.image_runs import Effort, ImageRun
from alignver.experiments.image_sets import split
from alignver.experiments.image_tables import TABLE3, runs_of
from alignver.experiments.networks import fix_statistics, fully_connected, lenet, resnet18
from alignver.features import tiles as phi_device
from alignver.network.feature_extraction import extract_features
from alignver.network.inputs import full_precision
from alignver.report import provenance
from alignver.results import CheckResult, Verdict

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("numpy", "scipy", "torch", "cupy-cuda12x", "cupy-cuda13x", "array-api-compat", "array-api-extra"),
    *("array-api-strict", "python-flint", "sybil", "pytest", "hypothesis"),
    *("nvidia-cublas", "nvidia-cusolver", "nvidia-cudnn-cu13"),
)
CLOSE = 2.0**-40
"""Tolerance for two float64 results, relative to their norm: sums in these networks have fewer than 4096 roundings of
2^-53 on either side. Results within it agree; this does not prove either of them."""
CLOSE_32 = 2.0**-11  # the same with 2^-24 for float32
OPPOSITE = {("HOLDS", "FAILS"), ("FAILS", "HOLDS")}


class Skipped(Exception):
    """Raised if a step cannot run on this machine, with the reason."""


class Stopped(BaseException):
    """Raised if the time of a step is over; not an Exception, so that no error handler catches it."""


@dataclasses.dataclass
class Run:
    """A running step: its device, its size and its results so far."""

    step: str
    out: Path
    dry: bool
    seconds: float
    carry: Path

    def __post_init__(self) -> None:
        self.began = time.perf_counter()
        self.document: dict[str, Any] = {
            "step": self.step,
            "status": "not finished",
            "dry": self.dry,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {**machine(), **card()},
            "versions": versions(),
            "seconds": 0.0,
            "results": {},
        }
        self.keep()

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    @property
    def left(self) -> float:
        """Remaining seconds of this step."""
        return self.seconds - (time.perf_counter() - self.began)

    def size(self, small: Any, large: Any) -> Any:
        """Choose between the sizes for a dry run and for a GPU."""
        return small if self.dry else large

    def note(self, name: str, value: Any) -> None:
        """Store a number immediately."""
        self.document["results"][name] = value
        print(f"  {name}: {_short(value)}", flush=True)
        self.keep()

    def keep(self, status: str | None = None) -> None:
        """Write the document atomically."""
        self.document["status"] = status or self.document["status"]
        self.document["seconds"] = round(time.perf_counter() - self.began, 3)
        part = self.out / f".{self.step}.part"
        part.write_text(json.dumps(self.document, indent=1, default=_plain) + "\n")
        os.replace(part, self.out / f"{self.step}.json")

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds and the result, including pending work of the device."""
        self.synchronise()
        began = time.perf_counter()
        found = work()
        self.synchronise()
        return time.perf_counter() - began, found

    def synchronise(self) -> None:
        """Wait for the device."""
        if not self.dry:
            torch.cuda.synchronize()

    def data_folder(self) -> Path:
        """Return the folder of the image sets that make gpu-carry collected."""
        if not (self.carry / "data" / "mnist.npz").is_file():
            raise Skipped("MNIST was not carried along: make gpu-carry")
        return self.carry / "data"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def _short(value: Any) -> str:
    text = json.dumps(value, default=_plain)
    return text if len(text) <= 200 else text[:200] + " ..."


def _clean(text: str) -> str:
    """Remove folder names from a text, since they identify the machine."""
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/", "", text)


def card() -> dict[str, Any]:
    """Return the relevant properties of the GPU; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    return {
        "accelerator": properties.name,
        "accelerator_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": told.stdout.split("\n")[0].strip() if told is not None else "unknown",
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages that are installed."""
    found = {"alignver": av.__version__, "python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rounded_as_inner_products(run: Run) -> dict[str, float]:
    """Return the number of entries of a float64 product that equal the sum of two rounded products, in any order, with
    or without FMA, for products that cancel to within their rounding errors.

    cuBLAS emulates float64 in fixed point only if few bits are sufficient, and is then *more* accurate. The test
    :func:`alignver.features.tiles.unsupported_arithmetic`, which needs many bits, does not detect this. The number is
    reported, but it does not reject a device.
    """
    n, rng = run.size(64, 2048), np.random.default_rng(0)
    a, b = (rng.uniform(1.0, 2.0, n) for _ in range(2))
    left, right = np.zeros((n, n)), np.zeros((n, n))
    left[:, 3], left[:, n - 5] = a, a * (1.0 + 2.0**-40 * rng.uniform(size=n))
    right[3], right[n - 5] = b, -b * (1.0 + 2.0**-40 * rng.uniform(size=n))
    found = (torch.tensor(left, device=run.device) @ torch.tensor(right, device=run.device)).cpu().numpy()
    counts = {"as inner products": 0, "exact": 0}
    for i, j in itertools.product(range(0, n, n // 16), repeat=2):
        x, y = (Fraction(left[i, k]) * Fraction(right[k, j]) for k in (3, n - 5))
        own = {
            float(Fraction(float(x)) + Fraction(float(y))),
            float(x + Fraction(float(y))),
            float(Fraction(float(x)) + y),
        }
        counts["as inner products"] += found[i, j] in own
        counts["exact"] += found[i, j] == float(x + y)
    return {word: count / 256 for word, count in counts.items()}


def require_plain_arithmetic(run: Run) -> None:
    """Assert that the device uses true float64 and float32 arithmetic wherever a decision is made."""
    like = torch.zeros(1, dtype=torch.float64, device=run.device)
    seen = {
        f"float64 products of order {n}": phi_device.unsupported_arithmetic(like, n)
        for n in run.size((64,), (512, 1024, 2048))
    }
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(256, 256, generator=generator).to(run.device)
    x = torch.randn(4, 32, 16, 16, generator=generator).to(run.device)
    with full_precision(run.device, torch.float32), torch.no_grad():
        product = A @ torch.eye(256, device=run.device)
        kernel = torch.eye(32, device=run.device)[:, :, None, None]
        convolved = torch.nn.functional.conv2d(x, kernel)
    # TF32 keeps 11 significant bits, bfloat16 8: it would change these by 2^-12 of their size.
    for name, found, wanted in (("products", product, A), ("convolutions", convolved, x)):
        far = float((found - wanted).abs().max() / wanted.abs().max())
        seen[f"float32 {name}"] = "" if far <= 2.0**-18 else f"off by {far:.1e}: reduced precision is on"
    switches: dict[str, Any] = {
        "tf32 outside of checks": provenance.tf32(),
        "autocast": bool(torch.is_autocast_enabled()),
        "emulation": {name: value for name, value in os.environ.items() if name.startswith("CUBLAS_EMULAT")},
    }
    switches["cancelling products"] = rounded_as_inner_products(run)
    run.document["arithmetic"] = {"refused": {k: v for k, v in seen.items() if v}, "asked": list(seen), **switches}
    run.keep()
    refused = "; ".join(f"{name}: {why}" for name, why in seen.items() if why)
    if refused:
        raise RuntimeError(f"the arithmetic of this device decides nothing: {refused}")


# tests


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
            code, text = process.poll(), _clean(log.read_text())
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
            failures[f"{case.get('classname')}::{case.get('name')}"] = _clean((kinds[word].text or "")[-1500:])
    return counts, failures


def _outcomes_so_far(text: str) -> tuple[dict[str, int], dict[str, str]]:
    """Read the log of unfinished tests."""
    counts = {word.lower(): len(re.findall(rf"\b{word}\b", text)) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    lines = [line for line in text.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return counts, {line.strip(): "" for line in lines}


# agreement


class Comparisons:
    """All comparisons with the CPU, their bounds, and the failed comparisons."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.made: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.disagreements: list[str] = []

    def of(self, name: str, work: Callable[[], Iterator[tuple[str, bool, Any]]]) -> None:
        """Record the comparisons that ``work`` yields: (bound in words, whether it is satisfied, measured value)."""
        began = time.perf_counter()
        try:
            for bound, kept, measured in work():
                self._one(name, bound, kept, measured)
        except Exception:
            self._one(name, "it runs", False, _clean(traceback.format_exc()[-1500:]))
        self.seconds[name] = round(time.perf_counter() - began, 2)
        self.run.document["results"] = {
            "comparisons": len(self.made),
            "disagreements": self.disagreements,
            "undecided on one side": self.open,
            "details": self.made,
            "seconds by comparison": self.seconds,
        }
        self.run.keep()

    def _one(self, name: str, bound: str, kept: bool, measured: Any) -> None:
        self.made.append({"what": name, "bound": bound, "satisfied": kept, "measured": measured})
        if not kept:
            self.disagreements.append(f"{name}: {bound}: {_short(measured)}")
            print(f"  DISAGREES {self.disagreements[-1]}", flush=True)

    def verdicts(self, here: CheckResult, there: CheckResult) -> Iterator[tuple[str, bool, Any]]:
        """Compare verdict, rigor and rank; UNDECIDED on one side is reported but is not a failure."""
        pair = here.verdict.value, there.verdict.value
        if pair[0] != pair[1] and pair not in OPPOSITE:
            self.open.append({"verdicts": pair, "reasons": [here.reason, there.reason]})
        yield "verdicts are not opposite", pair not in OPPOSITE, pair
        if pair[0] == pair[1]:
            rigor = here.rigor.value, there.rigor.value
            yield "of equal rigor", rigor[0] == rigor[1], rigor
            ranks = here.measured.get("rank"), there.measured.get("rank")
            yield "of equal rank", ranks[0] == ranks[1], ranks


def near(here: Any, there: Any, limit: float = CLOSE) -> Iterator[tuple[str, bool, Any]]:
    """Compare arrays in the Frobenius norm."""
    here, there = (host(value).astype(np.float64) for value in (here, there))
    far = float(np.linalg.norm(there - here) / max(np.linalg.norm(here), 1e-300))
    yield f"||there - here||_F <= 2^{np.log2(limit):.0f} ||here||_F", far <= limit, far


def places(run: Run) -> dict[str, Callable[[Any], Any]]:
    """Return the array libraries that are compared with NumPy, each with a function that converts an array to it."""
    if run.dry:
        import array_api_strict

        elsewhere = array_api_strict.Device("device1")
        return {
            "torch on the CPU": lambda values: torch.tensor(values),
            "array-api-strict": lambda values: array_api_strict.asarray(values, device=elsewhere),
        }
    found: dict[str, Callable[[Any], Any]] = {"torch on CUDA": lambda values: torch.tensor(values, device="cuda")}
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        found["CuPy"] = lambda values: cupy.asarray(values)
    else:
        run.document["without"] = "CuPy is not installed"
    return found


def agreement(run: Run) -> None:
    """Run the same inputs on the CPU and on the device, and compare all results."""
    require_plain_arithmetic(run)
    made = Comparisons(run)
    for library, put in places(run).items():
        _matrices(run, made, library, put)
        _explorations(run, made, library, put)
    _models(run, made)
    _training(run, made)
    if made.disagreements:
        raise RuntimeError(f"{len(made.disagreements)} disagreements")


def _matrices(run: Run, made: Comparisons, library: str, put: Callable[[Any], Any]) -> None:
    rng, s = np.random.default_rng(0), run.size(1, 3)
    N, d, r = 40 * s, 60 * s, 17 * s
    A = rng.standard_normal((N, d))
    low = rng.standard_normal((N, r)) @ rng.standard_normal((r, d))
    matrices = {"full row rank": A, "full column rank": A.T.copy(), f"rank {r}": low, "float32": A.astype(np.float32)}
    for name, J in matrices.items():
        member = J.astype(np.float64) @ rng.standard_normal(J.shape[1])
        for kind, y in (("a member", member), ("any y", rng.standard_normal(J.shape[0]))):
            for certify in (False, True):
                call = f"check_membership, {name}, {kind}, {'proof' if certify else 'numbers'}, {library}"

                def membership(J: Any = J, y: Any = y, certify: bool = certify) -> Iterator[tuple[str, bool, Any]]:
                    wide = y.astype(J.dtype)
                    here = av.check_membership(J, wide, certify=certify)
                    there = av.check_membership(put(J), put(wide), certify=certify)
                    yield from made.verdicts(here, there)
                    yield from _levels(here, there, max(J.shape))
                    if certify and there.certificate is not None:
                        again = av.recheck(there.certificate, J=J, y=wide)
                        yield "its certificate holds here", again.verdict is Verdict.HOLDS, again.reason

                made.of(call, membership)

        def rank(J: Any = J) -> Iterator[tuple[str, bool, Any]]:
            here, there = av.check_rank(J, certify=False), av.check_rank(put(J), certify=False)
            yield from made.verdicts(here, there)
            yield from _levels(here, there, max(J.shape))

        made.of(f"check_rank, {name}, {library}", rank)


def _levels(here: CheckResult, there: CheckResult, size: int) -> Iterator[tuple[str, bool, Any]]:
    """Compare s_1 with an error bound of max(N, d) eps s_1 each, which NumPy and MATLAB assume of an SVD."""
    own, other = (result.measured.get("largest_singular_value") for result in (here, there))
    if own is not None and other is not None:
        yield "s_1 within 2 max(N, d) eps s_1", abs(own - other) <= 2 * size * 2.0**-52 * own, [own, other]


def _explorations(run: Run, made: Comparisons, library: str, put: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(1)
    n, m = run.size((60, 9), (1500, 65))
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    twice = Z.copy()
    twice[3] = twice[5]
    for name, rows in (("general position", Z), ("two equal rows", twice)):
        for method in ("gram", "staircase"):

            def explored(rows: Any = rows, method: str = method) -> Iterator[tuple[str, bool, Any]]:
                here = av.check_safe_exploration(rows, method=method)
                there = av.check_safe_exploration(put(rows), method=method)
                yield from made.verdicts(here, there)
                seals = [None if result.certificate is None else result.certificate.seal for result in (here, there)]
                yield "certificates are equal to the last bit", seals[0] == seals[1], seals
                if there.certificate is not None:
                    again = av.recheck(there.certificate, Z=rows)
                    yield "the certificate holds here", again.verdict is Verdict.HOLDS, again.reason

            made.of(f"check_safe_exploration, {method}, {name}, {library}", explored)


class _Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.out = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


def _networks(run: Run) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    n = run.size(4, 12)
    image = torch.rand(n, 1, 16, 16, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        attention = torch.nn.Sequential(encoder, torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
        recurrent = _Recurrent().eval()
    return {
        "fully connected": (
            fully_connected(3, width=run.size(20, 100), m_y=2, seed=0),
            torch.randn(n, 3, generator=generator),
        ),
        "LeNet": (lenet(side=16, classes=4, seed=0), image),
        "ResNet-18 of width 2": (resnet18(1, 4, width=2), image),
        "attention": (attention, torch.randn(n, 4, 16, generator=generator)),
        "GRU in eval mode": (recurrent, torch.randn(n, 5, 3, generator=generator)),
    }


def _models(run: Run, made: Comparisons) -> None:
    for name, (model, x) in _networks(run).items():
        there, x_there = copy.deepcopy(model).to(run.device), x.to(run.device)
        for call in (av.jacobian, av.gram):
            for dtype, limit in (("float64", CLOSE), ("same", CLOSE_32)):
                pair = (
                    functools.partial(call, model, x, dtype=dtype),
                    functools.partial(call, there, x_there, dtype=dtype),
                )
                made.of(f"{call.__name__} in {dtype}, {name}", functools.partial(_both_near, *pair, limit))
        wide, wide_there = copy.deepcopy(model).double(), copy.deepcopy(there).double()
        pair = (
            functools.partial(extract_features, wide, x.double()),
            functools.partial(extract_features, wide_there, x_there.double()),
        )
        made.of(f"extract_features, {name}", functools.partial(_both_near, *pair, CLOSE))
        made.of(f"check_alignment, {name}", functools.partial(_aligned, made, (model, x), (there, x_there)))


def _both_near(here: Callable[[], Any], there: Callable[[], Any], limit: float) -> Iterator[tuple[str, bool, Any]]:
    yield from near(here(), there(), limit)


def _aligned(made: Comparisons, here: Any, there: Any) -> Iterator[tuple[str, bool, Any]]:
    y = torch.arange(len(here[1])) % 2
    yield from made.verdicts(*(av.check_alignment(model, x, y, loss="cross_entropy") for model, x in (here, there)))


def _training(run: Run, made: Comparisons) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(run.size(12, 60), 3, generator=generator, dtype=torch.float64)
    Y = (X.sum(1) > 0).long()

    def followed(device: torch.device) -> Any:
        model = fully_connected(3, width=run.size(16, 60), m_y=2, seed=1).double().to(device)
        x, y = X.to(device), Y.to(device)
        tracker = av.AlignmentTracker(model, x, y, loss="cross_entropy", every=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            tracker.update()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return tracker.history

    def tracked() -> Iterator[tuple[str, bool, Any]]:
        here, there = followed(torch.device("cpu")), followed(run.device)
        for own, other in zip(here, there, strict=True):
            for rule in ("press", "golub"):
                pair = own.rules[rule]["verdict"], other.rules[rule]["verdict"]
                yield f"verdicts by {rule} at step {own.step} are not opposite", pair not in OPPOSITE, pair
            far = abs(own.loss - other.loss)
            yield f"loss at step {own.step} within 2^-40", far <= CLOSE * abs(own.loss), far

    made.of("AlignmentTracker", tracked)

    def wrapper() -> Iterator[tuple[str, bool, Any]]:
        runs = []
        for device in (torch.device("cpu"), run.device):
            model = fully_connected(3, width=run.size(24, 60), m_y=2, seed=1).double().to(device)
            ee = av.EEWrapper(model, loss="cross_entropy", tau=5, epsilon=0.01, exploit_optimizer="newton")
            ee.fit((X.to(device), Y.to(device)), 10)
            runs.append((ee, ee.check(X.to(device), Y.to(device), tolerance=0.1)))
        (here, said), (there, said_there) = runs
        yield from made.verdicts(said, said_there)
        yield "rank n is proved on both", here.guarantee.proved is there.guarantee.proved, there.guarantee.proved
        for own, other in zip(here.history, there.history, strict=True):
            far = abs(own["loss"] - other["loss"])
            yield f"loss of epoch {own['epoch']} within 2^-20", far <= 2.0**-20 * max(own["loss"], 2.0**-20), far

    made.of("EEWrapper", wrapper)


# benchmarks


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
    seconds, result = run.timed(lambda: av.check_alignment(model, X, Y, loss="cross_entropy"))
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


def _trained(one: ImageRun, setting: Setting, folder: str) -> None:
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = dataclasses.replace(TABLE3, parts=lambda setting: [one.part(setting)], claims=lambda setting: ())
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
    """Compute the Gram matrix of a Jacobian with N = 50000 rows, in tiles."""
    raise Skipped("a verified Cholesky factorization of a Jacobian's Gram matrix in tiles is not there yet")


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
        run.document["error"] = _clean(traceback.format_exc()[-3000:])
        run.keep(f"failed: {_clean(str(error))[:500]}")
    else:
        run.keep("done")
    print(f"{run.step}: {run.document['status']} ({run.document['seconds']:.1f} s)", flush=True)
    return int(run.document["status"].startswith(("failed", "stopped")))


def _stand_in() -> None:
    """Factor tensors that are not NumPy arrays on their own device, like those of a GPU."""
    exploration.accelerator = lambda value: None if isinstance(value, np.ndarray) else value[:0, :]


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
