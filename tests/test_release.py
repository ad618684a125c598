"""What is released: wheel and sdist are built, and the wheel works in an environment with nothing else in it."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import alignver

ROOT = Path(__file__).parents[1]

BARE = """
import numpy as np, alignver as av
J = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
assert av.check_membership(J, np.array([2.0, 3.0, 5.0]), certify=False).verdict is av.Verdict.HOLDS
no = av.check_membership(J, np.array([2.0, 3.0, 6.0]))
assert (no.verdict, no.rigor) == (av.Verdict.FAILS, av.Rigor.PROOF)
Z = np.hstack([np.random.default_rng(0).standard_normal((40, 7)), np.ones((40, 1))])
result = av.check_safe_exploration(Z)
assert (result.verdict, result.rigor) == (av.Verdict.HOLDS, av.Rigor.PROOF)
assert av.recheck(result.certificate, Z=Z).verdict is av.Verdict.HOLDS
needs_torch = 0
for name in av.__all__:
    try:
        getattr(av, name)
    except av.MissingDependency as error:
        assert "alignver[torch]" in str(error), error
        needs_torch += 1
assert needs_torch >= 5
"""

FULL = """
import numpy as np, torch, alignver as av
from alignver.data import semeion
assert all(getattr(av, name) is not None for name in av.__all__)
J = np.outer([1.0, 2.0, 3.0], [4.0, 5.0])
exact = av.check_membership(J, J @ [1.0, 1.0])
assert (exact.verdict, exact.rigor) == (av.Verdict.HOLDS, av.Rigor.PROOF), exact
digits = semeion()
model = torch.nn.Sequential(torch.nn.Linear(256, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
X = torch.tensor(digits.x[:3].reshape(3, 256), dtype=torch.float32)
result = av.check_alignment(model, X, digits.y[:3].astype(np.int64), loss="cross_entropy")
assert result.verdict is av.Verdict.HOLDS, result
import alignver.report.plots
"""


def run(*command, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)


def succeeded(*command, **more) -> str:
    done = run(*command, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == alignver.__version__


def test_supported_pythons_are_listed():
    metadata = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r"Python :: (3\.\d+)", metadata)
    assert f"3.{sys.version_info.minor}" in listed
    assert f'requires-python = ">={listed[0]}"' in metadata


def test_data_that_ship_have_a_notice():
    shipped = {path.name for path in (ROOT / "alignver" / "data").iterdir() if path.suffix not in (".py", ".md", "")}
    notice = (ROOT / "NOTICE").read_text()
    assert shipped
    assert all(f"alignver/data/{name}" in notice for name in shipped)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    succeeded(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (computed,) = built.glob("*.whl")
    return computed


def data_files() -> set[str]:
    """Everything in the package that is no Python file."""
    package = ROOT / "alignver"
    return {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".py", ".pyc")
    }


@pytest.mark.slow
def test_the_wheel_has_what_the_package_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"alignver/py.typed", "alignver/report/schema.json", "alignver/data/semeion.npz"} <= data_files() <= names
    assert all(name.startswith("alignver") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_is_enough_to_test_and_to_document(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for name in (
        "README.md",
        "CITATION.cff",
        "Makefile",
        "constraints.txt",
        "conftest.py",
        "docs/conf.py",
        "benchmarks",
    ):
        assert (folder / name).exists(), name
    assert not (folder / "docs" / "_build").exists()
    assert not (folder / ".venv").exists()
    selected = ["tests/test_results.py", "tests/test_docs.py", "tests/checks/test_rank.py", "docs/tutorial_matrix.md"]
    succeeded(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected, cwd=folder)


def environment(folder: Path, wheel: str) -> Path:
    succeeded(sys.executable, "-m", "venv", folder)
    succeeded(folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_works_with_no_extras(wheel, tmp_path):
    place = environment(tmp_path / "bare", str(wheel))
    succeeded(place / "python", "-W", "error", "-c", BARE, cwd=tmp_path)
    assert "check" in succeeded(place / "alignver", "--help", cwd=tmp_path)
    (tmp_path / "J.txt").write_text("1 0\n0 1\n1 1\n")
    (tmp_path / "y.txt").write_text("2\n3\n6\n")
    command = [place / "alignver", "check", "membership", "J.txt", "y.txt", "--certificate", "proof"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    succeeded(place / "alignver", "verify", "proof", "--input", "J=J.txt", "--input", "y=y.txt", cwd=tmp_path)
    (tmp_path / "net.py").write_text("def build(): ...\n")
    for words in (["check"], ["reproduce", "figure6"], ["check", "rank", "J.txt", "--backend", "torch"]):
        done = run(place / "alignver", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "pip install 'alignver[torch]'" in done.stderr


@pytest.mark.slow
def test_the_wheel_works_with_extras(wheel, tmp_path):
    place = environment(tmp_path / "full", f"{wheel}[torch,proof,plots]")
    succeeded(place / "python", "-W", "error", "-c", FULL, cwd=tmp_path)
    assert "HOLDS" in succeeded(place / "alignver", "reproduce", "figure6", "--figure", "figure6.png", cwd=tmp_path)
    assert (tmp_path / "figure6.png").is_file()
