"""Processes whose BLAS, LAPACK or threads are wrong on purpose: ``faults.c``, loaded before NumPy's and SciPy's."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")
REPLACED = "import ctypes, os; assert ctypes.c_int.in_dll(ctypes.CDLL(os.environ['LD_PRELOAD']), 'fault_calls').value\n"


@functools.cache
def _library(threads: bool) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("needs a C compiler on Linux, x86-64")
    place = Path(tempfile.mkdtemp(prefix="alignver-faults-"))
    library = place / "faults.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lm"]
    subprocess.run([*command, *(["-DTHREADS"] if threads else [])], check=True)
    return library


def run(code: str, *, threads: bool = False, replaced: bool = True, **environment: str) -> str:
    """Run Python with the faults that the environment names, and return what it prints.

    The test is skipped if NumPy's and SciPy's routines have other names here, so that none was ``replaced``.
    """
    if not threads and replaced:
        code += f"\n{REPLACED}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "LD_PRELOAD": str(_library(threads)), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if "AssertionError" in done.stderr and "fault_calls" in done.stderr:
        pytest.skip("NumPy or SciPy is linked to a BLAS with other names")
    assert done.returncode == 0, done.stderr
    return done.stdout
