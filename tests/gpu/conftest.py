"""The device of the tests that need one, and what stands for it where there is none.

``ALIGNVER_GPU_DRY=1`` runs the same tests on :mod:`tests.gpu.pretend`, or on the CPU with a torch that cannot pretend:
so that a GPU finds them right.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.gpu import pretend
from tests.one_thread import one_thread

__all__ = ["device", "one_thread", "pytest_generate_tests"]


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return ["cuda"]
    if os.environ.get("ALIGNVER_GPU_DRY", "0") in {"", "0"}:
        return []
    return [pretend.begin() if pretend.available() else "cpu"]


_PLACES = _devices()  # before any test module: what they import may copy functions of torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        nothing = pytest.mark.skip(reason="no CUDA device; ALIGNVER_GPU_DRY=1 runs this without one")
        metafunc.parametrize("place", _PLACES or [pytest.param("none", marks=nothing)])


@pytest.fixture
def device(place: str) -> torch.device:
    return torch.device(place, 0) if place != "cpu" else torch.device("cpu")
