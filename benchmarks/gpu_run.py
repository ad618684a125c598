"""A step of benchmarks/gpu.py: its device and size, its results as they are kept, and the arithmetic it relies on."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

import alignver as av
from alignver.experiments.conduct import machine
from alignver.features import tiles
from alignver.network.inputs import full_precision
from alignver.report import provenance

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("numpy", "scipy", "torch", "cupy-cuda12x", "cupy-cuda13x", "array-api-compat", "array-api-extra"),
    *("array-api-strict", "python-flint", "sybil", "pytest", "hypothesis"),
    *("nvidia-cublas", "nvidia-cusolver", "nvidia-cudnn-cu13"),
)


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
        print(f"  {name}: {short(value)}", flush=True)
        self.keep()

    def keep(self, status: str | None = None) -> None:
        """Write the document atomically."""
        self.document["status"] = status or self.document["status"]
        self.document["seconds"] = round(time.perf_counter() - self.began, 3)
        part = self.out / f".{self.step}.part"
        part.write_text(json.dumps(self.document, indent=1, default=plain) + "\n")
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


def plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def short(value: Any) -> str:
    text = json.dumps(value, default=plain)
    return text if len(text) <= 200 else text[:200] + " ..."


def clean(text: str) -> str:
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
        f"float64 products of order {n}": tiles.unsupported_arithmetic(like, n)
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
