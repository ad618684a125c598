"""What is released: wheel and sdist are built, and the wheel works in an environment with nothing else in it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SMOKE = """
import numpy as np, alignver as av
J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
assert av.check_membership(J, np.array([2.0, 3.0, 5.0])).verdict is av.Verdict.HOLDS
Z = np.hstack([np.random.default_rng(0).standard_normal((40, 7)), np.ones((40, 1))])
result = av.check_safe_exploration(Z)
assert (result.verdict, result.rigor) == (av.Verdict.HOLDS, av.Rigor.PROOF)
assert av.recheck(result.certificate, Z=Z).verdict is av.Verdict.HOLDS
try:
    av.check_alignment
except av.MissingDependency as error:
    assert "alignver[torch]" in str(error)
else:
    raise SystemExit("torch is here, or was not asked for")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_contents(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"alignver/py.typed", "alignver/report/schema.json", "alignver/data/semeion.npz"} <= set(names)
    assert all(name.startswith("alignver") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "README.md",
        "CITATION.cff",
        "Makefile",
        "constraints.txt",
        "tests/test_release.py",
        "docs/index.md",
    } <= inside


@pytest.mark.slow
def test_the_wheel_works_with_no_extras(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = tmp_path / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    subprocess.run([python, "-W", "error", "-c", SMOKE], check=True, cwd=tmp_path)
    rank = [tmp_path / "bin" / "alignver", "check", "rank", "A.txt"]
    (tmp_path / "A.txt").write_text("1 2\n2 4\n")
    done = subprocess.run(rank, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    bare = subprocess.run(
        [tmp_path / "bin" / "alignver", "check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert bare.returncode == 2
    assert "alignver[torch]" in bare.stderr
