"""The provenance of a report: versions, tests of the arithmetic, device, dtype, TF32 state, seed, inputs, wall time.

It suffices to repeat the computation and does not identify the machine: it names no host, user or directory.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

from alignver._version import __version__
from alignver.kernel import machine

_LIBRARIES = ("numpy", "scipy", "array-api-compat", "torch", "cupy", "python-flint")
_MODULES = {"array-api-compat": "array_api_compat", "python-flint": "flint"}


def versions() -> dict[str, str]:
    """Return the versions of alignver, Python and the libraries that this process has loaded."""
    loaded = {"alignver": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        module = sys.modules.get(_MODULES.get(library, library))
        if module is None:
            continue
        version = getattr(module, "__version__", None)
        if not isinstance(version, str):
            try:
                version = importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                continue
        loaded[library] = str(version)
    return loaded


def blas() -> str | None:
    """Return name and version of the BLAS that NumPy was built with, or None if they are unknown."""
    numpy = sys.modules.get("numpy")
    try:
        build = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[union-attr]  # with mode="dicts" it returns a dict
        return f"{build['name']} {build['version']}"
    except (AttributeError, KeyError, TypeError):
        return None


def tf32() -> dict[str, Any] | None:
    """Return whether torch may use TF32, or None if torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    state: dict[str, Any] = {}
    backends = getattr(torch, "backends", None)
    for name, owner in (("matmul", ("cuda", "matmul")), ("cudnn", ("cudnn",))):
        switch = backends
        try:
            for attribute in owner:
                switch = getattr(switch, attribute)
            state[name] = bool(switch.allow_tf32)  # type: ignore[union-attr]  # AttributeError is caught below
        except (AttributeError, RuntimeError):
            # torch raises for this switch once the newer one has been set.
            precision = getattr(switch, "fp32_precision", None)
            state[name] = None if precision is None else precision == "tf32"
    return state


def inputs_of(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return SHA-256 (of :func:`alignver.arrays.digest`), shape and dtype of each input array."""
    from alignver import arrays as module

    return {
        name: {
            "sha256": module.digest(array),
            "shape": [int(length) for length in array.shape],
            "dtype": str(array.dtype).rpartition(".")[2],
        }
        for name, array in arrays.items()
    }


def collect(
    *,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int | None = None,
    seconds: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the current provenance of a report as plain data.

    Parameters
    ----------
    inputs : mapping, optional
        Identification of each input by name; :func:`inputs_of` returns it for arrays.
    device, dtype, seed, seconds
        Device, dtype, seed and duration of the computation.
    **more
        Further entries: the command, the expectations of built-in problems.

    Examples
    --------
    >>> collect(seed=0)["seed"]
    0
    """
    arithmetic = {"digest": machine.digest(), **machine.outcome()}
    return {
        "versions": versions(),
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "blas": blas(),
            "arithmetic": arithmetic,
        },
        "device": device,
        "dtype": dtype,
        "tf32": tf32(),
        "seed": seed,
        "inputs": {name: dict(entry) for name, entry in (inputs or {}).items()},
        "seconds": seconds,
        **more,
    }


def describe(provenance: Mapping[str, Any]) -> list[str]:
    """Return the provenance in a few lines of text."""
    loaded = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    here = provenance["platform"]
    where = [f"{here['system']} {here['machine']}", here["blas"], f"device {provenance['device']}"]
    tests = dict(here.get("arithmetic", {}))
    if tests:
        where.append(f"arithmetic tests {tests.pop('digest')}")
    if provenance["dtype"]:
        where.append(str(provenance["dtype"]))
    if provenance["tf32"]:
        switches = ", ".join(f"{name} {_state(on)}" for name, on in provenance["tf32"].items())
        where.append(f"TF32 {switches}")
    if provenance["seed"] is not None:
        where.append(f"seed {provenance['seed']}")
    lines = [loaded, ", ".join(part for part in where if part), *filter(None, tests.values())]
    for name, entry in provenance["inputs"].items():
        shape = " x ".join(str(length) for length in entry.get("shape", ()))
        about = " ".join(part for part in (shape, entry.get("dtype", ""), entry.get("file", "")) if part)
        lines.append(f"{name} {about + ' ' if about else ''}sha256 {entry['sha256']}")
    return lines


def _state(on: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[on]
