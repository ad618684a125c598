"""The program that the documentation offers for checking certificates is short, needs no alignver, and works."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import alignver.proof
from tests.kernel.test_certificates import MADE, certificate_of

PAGE = Path(__file__).parents[2] / "docs" / "check_a_certificate.md"


def program() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "def check(" in block)


def test_it_is_short_and_stands_alone() -> None:
    lines = [line for line in program().splitlines() if line.strip()]
    assert len(lines) < 60
    assert "alignver" not in program()


CHECKED = [
    n
    for n in MADE
    if certificate_of(n)[0].claim.endswith("membership") and "ball" not in certificate_of(n)[0].constants
]


@pytest.mark.parametrize("name", CHECKED)
def test_it_checks_certificates_and_refuses_changed_ones(name: str, tmp_path: Path) -> None:
    certificate, inputs = certificate_of(name)
    path = certificate.save(tmp_path / "certificate")
    namespace: dict[str, object] = {}
    exec(program(), namespace)
    check = namespace["check"]
    assert callable(check)
    assert check(path, **inputs) == certificate.claim
    with pytest.raises(AssertionError):
        check(path, **{**inputs, "y": np.nextafter(inputs["y"], np.inf)})
    text = (path / "certificate.json").read_text()
    (path / "certificate.json").write_text(text.replace('"method"', '"Method"'))
    with pytest.raises((AssertionError, KeyError)):
        check(path, **inputs)


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    certificate, inputs = certificate_of("null vector")
    certificate.save(tmp_path / "certificate")
    (tmp_path / "check.py").write_text(program())
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}.npy", array)
    command = [sys.executable, "-I", "check.py", "certificate", "J.npy", "y.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "non-membership"


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(alignver.proof.__path__, "alignver.proof.")])
def test_examples_in_docstrings(name: str) -> None:
    pytest.importorskip("flint")
    flags = doctest.ELLIPSIS
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0
