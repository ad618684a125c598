"""What every test folder shares: hypothesis profiles, the array backends, and the documents whose code is run."""

from __future__ import annotations

import doctest
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# deadline=None: the machines that run this are shared, and a slow example is no failure.
hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
# The same examples in every run; those of dev and nightly differ from run to run.
hypothesis.settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Looking for doctests would import frameworks that may not be here; their tests do that on purpose.
collect_ignore = [f"alignver/training/callbacks/{name}.py" for name in ("hugging_face", "lightning", "skorch")]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs that way, and it is inherited: processes that tests interrupt would not notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where they say a width, reports are folded. readline puts them there, and the processes of pytest-xdist inherit them.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)

pytest_collect_file = Sybil(
    # '...' stands for numbers that depend on the machine, such as seconds.
    parsers=[PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS)],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
).pytest()


@dataclass(frozen=True)
class Backend:
    """A namespace and a device that every numerical function is tested on."""

    name: str
    convert: Callable[[Any], Any]

    def __call__(self, values: Any, dtype: str = "float64") -> Any:
        return self.convert(np.ascontiguousarray(np.asarray(values, dtype=dtype)))


def _strict(values: Any) -> Any:
    import array_api_strict

    return array_api_strict.asarray(values)


def _torch(values: Any) -> Any:
    import torch

    return torch.from_numpy(values.copy())


def _cuda(values: Any) -> Any:
    import torch

    return torch.from_numpy(values.copy()).cuda()


def _cupy(values: Any) -> Any:
    import cupy

    return cupy.asarray(values)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_cupy() -> bool:
    try:
        import cupy
    except ImportError:
        return False
    return cupy.cuda.runtime.getDeviceCount() > 0


BACKENDS = [Backend("numpy", np.asarray), Backend("torch", _torch), Backend("strict", _strict)]


def _elsewhere(values: Any) -> Any:
    """An array on a device that refuses NumPy and other devices, as a GPU's does; array-api-strict has such ones."""
    import array_api_strict

    return array_api_strict.asarray(values, device=array_api_strict.Device("device1"))


def _stand_ins() -> list[Backend]:
    """What runs the tests marked gpu in the dry mode of ``benchmarks/gpu.sh``."""
    dry = os.environ.get("ALIGNVER_GPU_DRY", "0") not in {"", "0"}
    return [Backend("device1", _elsewhere)] * dry


def _parameters() -> list[Any]:
    # Where no GPU is, the CuPy path is exercised by array-api-strict, which stands for any conforming namespace.
    gpu = [Backend("cuda", _cuda)] * _has_cuda() + [Backend("cupy", _cupy)] * _has_cupy() or _stand_ins()
    return [*BACKENDS, *(pytest.param(backend, marks=pytest.mark.gpu) for backend in gpu)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes ``backend`` on each array library and device that is here."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _parameters(), ids=lambda backend: backend.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
