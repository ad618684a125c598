"""Does this machine compute as proofs assume? Longer tests than the ones before the first proof of a process.

A part that fails excludes what rests on it from being proved in this process. A test is no proof: it finds a scheme or
a mode that is wrong in the same way every time, not one wrong result in a million.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alignver.arrays import available_memory
from alignver.errors import first_line
from alignver.features import threads
from alignver.features.tiles import unsupported_arithmetic
from alignver.kernel import machine
from alignver.limits import in_memory
from alignver.progress import logger
from alignver.proof import cholesky
from alignver.report import provenance
from alignver.results import Verdict, encode, plain, worst

_PRODUCTS = (1, 8, 33, 160, 512, 1024)
_SOLVES = (8, 72, 300)
_POINTS = 300  # of each function
_FORMAT = "alignver doctor 1"


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that is assumed of the machine, and what its test found.

    Attributes
    ----------
    name : str
        ``"rounding"``, ``"products"``, ``"factorizations"``, ``"functions"``, ``"torch"``, ``"devices"`` or
        ``"resources"``.
    verdict : Verdict
        UNDECIDED if a library that the test needs is not installed.
    reason : str
        One sentence.
    rests : str
        What is proved only if this part HOLDS.
    measured : mapping
        Names, versions and numbers, as plain data.
    seconds : float
    """

    name: str
    verdict: Verdict
    reason: str
    rests: str
    measured: Mapping[str, Any]
    seconds: float


@dataclasses.dataclass(frozen=True, repr=False)
class MachineReport:
    """What :func:`doctor` found.

    Attributes
    ----------
    parts : tuple of Part
    digest : str
        That of the tests before the first proof, as reports and certificates have it.
    versions : mapping
        Of the loaded libraries.
    """

    parts: tuple[Part, ...]
    digest: str
    versions: Mapping[str, str]

    @property
    def verdict(self) -> Verdict:
        """FAILS if any part fails, else UNDECIDED if any is undecided, else HOLDS."""
        return worst(part.verdict for part in self.parts)

    def __getitem__(self, name: str) -> Part:
        """Return a part by its name; KeyError if there is none."""
        return {part.name: part for part in self.parts}[name]

    def __str__(self) -> str:
        """Return the report for a terminal: the parts that do not hold first."""
        order = sorted(self.parts, key=lambda part: part.verdict is Verdict.HOLDS)
        lines = [f"{'The arithmetic of this machine'.ljust(56)}  {self.verdict}"]
        for part in order:
            lines.append(f"  {part.name.ljust(14)} {part.verdict.value.ljust(9)} {part.reason}")
            if part.verdict is not Verdict.HOLDS:
                lines.append(f"  {'':24} without it, not proved: {part.rests}")
        return "\n".join([*lines, f"  digest {self.digest}"])

    def __repr__(self) -> str:
        """Return one line."""
        return f"<MachineReport {', '.join(f'{part.name}: {part.verdict}' for part in self.parts)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        parts = [{**dataclasses.asdict(part), "verdict": part.verdict.value} for part in self.parts]
        document: dict[str, Any] = encode(
            {
                "format": _FORMAT,
                "verdict": self.verdict.value,
                "digest": self.digest,
                "parts": plain(parts),
                "versions": dict(self.versions),
            }
        )
        return document

    def to_json(self) -> str:
        """Return the report as one strict JSON document."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=1)


@in_memory
def doctor() -> MachineReport:
    """Test whether this machine computes as proofs assume.

    Tested are rounding to nearest and gradual underflow in this thread, in every worker and in the threads of the BLAS;
    matrix products, against schemes like Strassen's and narrower formats; factorizations and triangular solves, against
    inverted blocks; NumPy's functions, and torch's, against ball arithmetic; the modes of torch and of GPUs. If a part
    fails, nothing that rests on it is proved in this process, until a later call finds it in order.

    Returns
    -------
    MachineReport
        Not a proof. ``functions`` is UNDECIDED without python-flint; the shorter test before the first proof does not
        need it.

    Examples
    --------
    >>> report = doctor()
    >>> report["rounding"].verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    parts = tuple(_timed(name, test, rests) for name, (test, rests) in _TESTS.items())
    for part in parts:
        fault = part.reason if part.verdict is Verdict.FAILS else ""
        machine.distrust("primitives" if part.name == "functions" else part.name, fault)
        if fault:
            logger.warning("not proved in this process: %s (%s)", part.rests, fault)
    return MachineReport(parts, machine.digest(), plain(provenance.versions()))


_Outcome = tuple[Verdict, str, dict[str, Any]]


def _timed(name: str, test: Callable[[], _Outcome], rests: str) -> Part:
    began = time.perf_counter()
    verdict, reason, measured = test()
    return Part(name, verdict, reason, rests, plain(measured), time.perf_counter() - began)


def _decided(fault: str, otherwise: str, **measured: Any) -> _Outcome:
    return (Verdict.FAILS, fault, measured) if fault else (Verdict.HOLDS, otherwise, measured)


def _rounding() -> _Outcome:
    """Test this thread, each worker of the pool that proves blocks, and the threads of the BLAS."""
    count = threads.workers()
    together = threading.Barrier(count)  # no worker takes two tasks

    def test() -> str:
        together.wait(60.0)
        return machine.thread_fault()

    faults = [machine.thread_fault(), *threads.ordered(test, [()] * count)]
    wrong = sum(map(bool, faults[1:]))
    fault = faults[0] or (f"{wrong} of {count} worker threads: {next(filter(None, faults))}" if wrong else "")
    fault = fault or machine.distributed_fault() or machine.distributed_fault(1024)
    reason = f"to nearest, with gradual underflow, in {count} worker threads and those of the BLAS"
    return _decided(fault, reason, workers=count)


def _products() -> _Outcome:
    libraries = {name: _library(name) for name in ("numpy", "scipy")}
    fault = next(filter(None, map(machine.product_fault, _PRODUCTS)), "")
    if not fault:
        faults = map(functools.partial(machine.product_fault, multiply=cholesky.blas_product), _PRODUCTS[:-1])
        fault = next((f"SciPy's BLAS: {each}" for each in faults if each), "")
    reason = f"conventional, up to order {_PRODUCTS[-1]}: {', '.join(dict.fromkeys(libraries.values()))}"
    return _decided(fault, reason, libraries=libraries, loaded=_loaded(), orders=_PRODUCTS)


def _factorizations() -> _Outcome:
    fault = machine.distributed_fault(multiply=cholesky.blas_product)
    fault = (f"SciPy's BLAS: {fault}" if fault else "") or next(filter(None, map(cholesky.solve_fault, _SOLVES)), "")
    return _decided(fault, f"by substitution, up to order {_SOLVES[-1]}", orders=_SOLVES)


def _functions() -> _Outcome:
    errors = function_errors(machine.function_errors)
    if errors is None:
        short = machine.inaccurate(machine.function_errors(machine.POINTS))
        if short:
            return Verdict.FAILS, short, {}
        return Verdict.UNDECIDED, "python-flint is not installed; a few values agree with decimal arithmetic", {}
    worst_name = max(machine.PRIMITIVES, key=errors.__getitem__)
    reason = f"within {errors[worst_name]:.2f} u ({worst_name}) at {_POINTS} points each, in vectors of any length"
    return _decided(machine.inaccurate(errors), reason, units=errors)


def function_errors(measure: Callable[..., dict[str, float]], count: int = _POINTS) -> dict[str, float] | None:
    """Return the largest errors of functions at random points against ball arithmetic; None without python-flint.

    Parameters
    ----------
    measure : callable
        :func:`alignver.kernel.machine.function_errors`, or with another library's functions.
    count : int
        Points for each function.
    """
    if importlib.util.find_spec("flint") is None:
        return None
    from flint import arb, ctx

    def exact(name: str, x: float) -> Any:
        of, at = name.removeprefix("math."), arb(x)
        if of == "logaddexp":
            return at.exp().log1p()
        return 1 / at if of == "reciprocal" else getattr(at, {"arctan": "atan"}.get(of, of))()

    source = np.random.default_rng(0)
    with ctx.workprec(200):
        return measure({name: _points(name, source, count) for name in machine.ASSUMED}, exact)


_LIMITS = {"cos": 1e5, "erf": 5.9, "logaddexp": 700.0, "sin": 1e5, "tanh": 30.0, "arctan": 1e9, "atan": 1e9}
_DECADES = 9  # of small arguments


def _points(name: str, source: np.random.Generator, count: int) -> list[float]:
    """Return points over the range of a function, half of them uniform in their exponents."""
    name = name.removeprefix("math.")
    if name in ("log", "sqrt", "reciprocal"):
        near = 1.0 + source.uniform(-0.01, 0.01, count // 2)
        return [*near.tolist(), *(10.0 ** source.uniform(-300, 300, count - count // 2)).tolist()]
    top = _LIMITS.get(name, 700.0)
    small = top * 10.0 ** source.uniform(-_DECADES, 0.0, count // 2) * source.choice([-1.0, 1.0], count // 2)
    points = np.concatenate([small, source.uniform(-top, top, count - count // 2)])
    if name == "log1p":
        points = np.where(points > -1.0, points, -1.0 / (1.0 + np.abs(points)))
    return list(points.tolist())


_TORCH = {"arctan": "atan"}


def _torch() -> _Outcome:
    """Test torch's functions, products, and the modes in which it computes."""
    if importlib.util.find_spec("torch") is None:
        return Verdict.HOLDS, "not installed: nothing depends on it", {}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError where a shared library is missing
        return Verdict.FAILS, f"torch is installed, but cannot be imported: {first_line(error)}", {}

    def function(name: str) -> Callable[[Any], Any]:
        computed = getattr(torch, _TORCH.get(name, name))
        return lambda x: computed(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    def multiply(A: Any, B: Any) -> Any:
        return (torch.from_numpy(np.ascontiguousarray(A)) @ torch.from_numpy(np.ascontiguousarray(B))).numpy()

    tf32 = provenance.tf32() or {}
    modes = {
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": tf32,
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
    }
    errors = function_errors(
        lambda points, exact: machine.function_errors(
            {name: points[name] for name in machine.PRIMITIVES}, exact, function
        ),
        _POINTS // 3,
    )
    tiny = torch.full((1 << 20,), 2.0**-1074, dtype=torch.float64)  # long enough for all threads
    fault = "" if bool((tiny * 2.0**1000 == 2.0**-74).all()) else "torch's threads flush subnormal numbers to zero"
    fault = fault or next(
        (f"torch: {each}" for each in (machine.product_fault(n, multiply) for n in (64, 256)) if each), ""
    )
    wrong = machine.inaccurate(errors or {})
    fault = fault or (f"torch's {wrong}" if wrong else "")
    if not fault and errors is None:
        return Verdict.UNDECIDED, "python-flint is not installed: its functions were not tested", modes
    accuracy = f"functions within {max((errors or {}).values(), default=0.0):.2f} u"
    narrow = [name for name, on in tf32.items() if on]
    state = f"TF32 on for {', '.join(narrow)}, which checks switch off" if narrow else "TF32 off"
    return _decided(fault, f"{accuracy}; products conventional; {state}", units=errors or {}, modes=modes)


def _devices() -> _Outcome:
    """Test the arithmetic of each GPU that torch or CuPy finds."""
    faults: dict[str, str] = {}
    with contextlib.suppress(ImportError, OSError):
        import torch

        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            place = torch.empty(0, dtype=torch.float64, device=f"cuda:{index}")
            faults[f"{torch.cuda.get_device_name(index)} (cuda:{index})"] = unsupported_arithmetic(place, 1024)
    fault = next((f"{name}: {each}" for name, each in faults.items() if each), "")
    return _decided(fault, f"float64 as assumed on {', '.join(faults)}" if faults else "no GPU", devices=faults)


def _resources() -> _Outcome:
    memory, cores = available_memory(), threads.workers()
    reason = f"{memory / 1e9:.1f} GB of memory available, {cores} worker threads, {platform.machine()}"
    return Verdict.HOLDS, reason, {"memory": memory, "workers": cores, "machine": platform.machine()}


def _library(name: str) -> str:
    """Return name and version of the BLAS that NumPy or SciPy was built with."""
    module = importlib.import_module(name)
    try:
        return " ".join(
            str(module.show_config(mode="dicts")["Build Dependencies"]["blas"][key]) for key in ("name", "version")
        )
    except (KeyError, TypeError):
        return "an unknown BLAS"


def _loaded() -> list[dict[str, Any]]:
    """Return the libraries of BLAS and OpenMP that are loaded, without the folders that they are in."""
    import threadpoolctl

    keys = ("user_api", "internal_api", "prefix", "version", "architecture", "threading_layer", "num_threads")
    loaded = [info for info in threadpoolctl.threadpool_info() if info["user_api"] in ("blas", "openmp")]
    return [{key: info.get(key) for key in keys} for info in loaded]


_TESTS: dict[str, tuple[Callable[[], _Outcome], str]] = {
    "rounding": (_rounding, "anything"),
    "products": (_products, "anything"),
    "factorizations": (_factorizations, "full rank and definiteness by a Cholesky factorization; other methods remain"),
    "functions": (_functions, "enclosures of networks in float64; below 2^-40, anything"),
    "torch": (_torch, "nothing: torch only computes candidates and numerical answers"),
    "devices": (_devices, "definiteness by tiles that are computed on the GPU"),
    "resources": (_resources, "nothing"),
}
