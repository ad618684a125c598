"""Every example runs as a script, warns about nothing and prints a verdict."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONG = {"sine_wave", "your_model_and_data"}  # the gallery of `make docs` runs them too
CASES = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in EXAMPLES]


@pytest.fixture
def threads():
    """Put the number of torch's threads back, which some examples set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("script", CASES)
def test_example_runs(script, threads, capfd, monkeypatch):
    """In this process, where warnings are errors: an import of torch takes longer than most examples."""
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    shown = capfd.readouterr()
    assert shown.err == ""
    assert any(word in shown.out for word in ("HOLDS", "FAILS", "UNDECIDED"))
