"""What the kernel imports, how large it is, and that it works where nothing but NumPy is installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignver.kernel import seal
from docs.trust_tables import KERNEL, MOST_LINES, code_lines

ROOT = Path(__file__).parents[2]
ALLOWED = {"alignver.errors", "alignver.results", "alignver._version"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("path", KERNEL, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_import_the_kernel_errors_results_and_numpy(path):
    for name in imports(path):
        root = name.partition(".")[0]
        ours = name in ALLOWED or name.startswith("alignver.kernel")
        assert ours or root in sys.stdlib_module_names | {"numpy", "flint"}, name
    assert len(path.read_text().splitlines()) <= 600


@pytest.mark.parametrize("part", MOST_LINES)
def test_it_is_small(part):
    paths, most = MOST_LINES[part]
    assert 0 < sum(code_lines(path) for path in paths) <= most


def test_every_file_is_counted():
    assert sorted(path for paths, _ in MOST_LINES.values() for path in paths) == KERNEL


def test_what_is_loaded_by_an_import():
    code = "import sys, alignver.kernel; print(*(name for name in sys.modules if '.' not in name or 'align' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.startswith("alignver")}
    kernel = {name for name in ours if name.startswith("alignver.kernel")}
    assert ours - kernel == {"alignver", "alignver._version", "alignver.errors", "alignver.results"}
    assert not loaded & {"torch", "scipy", "dask", "distributed", "threadpoolctl", "array_api_compat", "flint"}


@pytest.fixture
def numpy_only(tmp_path):
    """An interpreter that finds NumPy and the kernel's closure, and nothing else."""
    place = tmp_path / "site"
    (place / "alignver").mkdir(parents=True)
    for name in ("__init__.py", "_version.py", "errors.py", "results.py", "kernel"):
        (place / "alignver" / name).symlink_to(ROOT / "alignver" / name)
    packages = Path(np.__file__).parents[1]
    for computed in packages.glob("numpy*"):
        if computed.name in ("numpy", "numpy.libs"):
            (place / computed.name).symlink_to(computed)
    environment = {"PYTHONPATH": str(place), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-W", "error", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_it_works_where_only_numpy_is_installed(numpy_only, tmp_path):
    assert numpy_only("-c", "import scipy").returncode == 1
    A = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "B.npy", A[::-1])
    inverse = {"scaling": np.zeros(2, dtype=np.int64), "right_inverse": np.linalg.pinv(A)}
    constants = {"side": "rows", "rank": 2, "s_min": 0.5, "ball": {"kind": "norm", "value": 1e-3}}
    seal("rank", "right inverse", {"A": A}, inverse, constants).save(tmp_path / "proof")
    done = numpy_only("-m", "alignver.kernel", "proof", "--input", "A=A.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "HOLDS  proof" in done.stdout
    assert numpy_only("-m", "alignver.kernel", "proof", "--input", "A=B.npy").returncode == 1
    for words in (("A=none.npy",), ("A",), ("B=A.npy",), ("A=proof/data.npz",)):
        done = numpy_only("-m", "alignver.kernel", "proof", "--input", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert numpy_only("-m", "alignver.kernel", "nothing").returncode == 2
