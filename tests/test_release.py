"""What is released: the metadata agree, two builds have equal bytes, and the wheel works without anything else."""

from __future__ import annotations

import email
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import alignver

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
"""Packages that have another name on conda-forge."""

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


def script(name: str) -> Any:
    """Return a script of the folder ``release`` as a module."""
    specification = importlib.util.spec_from_file_location(f"release_{name}", ROOT / "release" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def bounds(requirements: list[str]) -> dict[str, str]:
    """Return the lower bound of every requirement: ``{"numpy": "2.0"}``."""
    pairs = (re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in requirements if not line.startswith("alignver"))
    return {pair[1]: pair[2] for pair in pairs}


def number(version: str) -> tuple[int, ...]:
    return (*map(int, version.split(".")), 0, 0)[:3]


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == alignver.__version__
    recipe = (ROOT / "release" / "recipe.yaml").read_text()
    assert re.search(r'^  version: "(\S+)"$', recipe, re.MULTILINE)[1] == alignver.__version__


def test_supported_pythons_are_listed():
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert f"3.{sys.version_info.minor}" in listed
    assert PROJECT["requires-python"] == f">={listed[0]}"
    page = (ROOT / "docs" / "versions.md").read_text()
    assert all(f"| Python {version} |" in page for version in listed)


def test_the_oldest_versions_are_those_that_are_accepted():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    tested = ("test", "torch", "proof", "plots", "frames", "onnx", "distributed")
    accepted = bounds([*PROJECT["dependencies"], *(line for name in tested for line in extras[name])])
    assert {name: number(version) for name, version in oldest.items()} == {
        name: number(version) for name, version in accepted.items()
    }


def test_the_conda_recipe_has_the_metadata_of_the_project():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "release" / "recipe.yaml").read_text())
    assert recipe["package"]["name"] == PROJECT["name"]
    ((command, target),) = PROJECT["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [f"{command} = {target}"]
    assert recipe["build"]["noarch"] == "python"

    def listed(lines: list[str]) -> dict[str, str]:
        return bounds([line.replace(" ", "") for line in lines])

    run = listed(recipe["requirements"]["run"])
    assert run.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    assert run == bounds(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    optional = bounds([line for name in ("torch", "proof", "plots") for line in extras[name]])
    assert listed(recipe["requirements"]["run_constraints"]) == {
        CONDA.get(name, name): version for name, version in optional.items()
    }
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]


@pytest.fixture
def checklist(tmp_path, monkeypatch) -> Any:
    """Return the script ``release/check.py`` for a repository with the files that it reads, ready for a release."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "alignver").mkdir()
    (tmp_path / "release").mkdir()
    (tmp_path / "alignver" / "_version.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 0.2.0\ndate-released: 2026-11-27\n")
    (tmp_path / "release" / "recipe.yaml").write_text('context:\n  version: "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [0.2.0] - 2026-11-27\n\n## [0.1.0] - 2026-11-26\n")
    succeeded("git", "init", "-q", tmp_path)
    succeeded("git", "-C", tmp_path, "add", "-A")
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    succeeded("git", "-C", tmp_path, *identity, "commit", "-qm", "Release")
    monkeypatch.syspath_prepend(ROOT / "release")
    module = script("check")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "run", functools.partial(module.run, cwd=tmp_path))
    return module


def test_a_release_that_is_ready_is_checked_off(checklist):
    assert checklist.clean().endswith("Release")
    assert checklist.numbered() == "0.2.0"
    assert checklist.dated() == "2026-11-27"


@pytest.mark.parametrize(
    ("line", "file", "before", "after", "why"),
    [
        ("clean", "CHANGELOG.md", "# Changelog", "# Changes", "CHANGELOG.md"),
        ("numbered", "alignver/_version.py", "0.2.0", "0.2.0.dev1", "0.2.0.dev1 in alignver/_version.py"),
        ("numbered", "CITATION.cff", "0.2.0", "0.1.0", "CITATION.cff"),
        ("numbered", "release/recipe.yaml", "0.2.0", "0.1.0", "recipe.yaml"),
        ("dated", "CHANGELOG.md", "[0.2.0] - 2026-11-27", "[Unreleased]", "first heading is ## .Unreleased"),
        ("dated", "CHANGELOG.md", " - 2026-11-27", "", "without a date"),
        ("dated", "CHANGELOG.md", "2026-11-27", "2999-01-01", "in the future"),
        ("dated", "CITATION.cff", "2026-11-27", "2026-11-26", "CITATION.cff without 2026-11-27"),
    ],
)
def test_a_release_that_is_not_ready_is_refused(checklist, line, file, before, after, why):
    path = checklist.ROOT / file
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(checklist.Failed, match=why):
        getattr(checklist, line)()


def test_a_version_is_tagged_once(checklist):
    succeeded("git", "-C", checklist.ROOT, "tag", "v0.2.0")
    with pytest.raises(checklist.Failed, match=r"there is a tag v0\.2\.0"):
        checklist.numbered()


def test_data_that_ship_have_a_notice():
    shipped = {path.name for path in (ROOT / "alignver" / "data").iterdir() if path.suffix not in (".py", ".md", "")}
    notice = (ROOT / "NOTICE").read_text()
    assert shipped
    assert all(f"alignver/data/{name}" in notice for name in shipped)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    script("build_twice").build_twice(folder)  # raises SystemExit if the bytes differ
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
    assert not any(part in name for name in names for part in ("test_", "__pycache__", ".pyc"))


@pytest.mark.slow
def test_the_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        about = email.message_from_bytes(archive.read(f"{folder}/WHEEL"))
    assert (metadata["Name"], metadata["Version"]) == ("alignver", alignver.__version__)
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata.get_all("License-File") == PROJECT["license-files"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# alignver")
    needed = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == set(PROJECT["dependencies"])
    assert (about["Root-Is-Purelib"], about["Tag"]) == ("true", "py3-none-any")


@pytest.mark.slow
def test_the_wheel_of_the_sources_is_that_of_the_sdist(wheel, tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    build = script("build_twice")
    build.copy_sources(sources)
    (name, digest), = build.build(sources, tmp_path / "dist", build.SURROUNDINGS[0], "--wheel").items()  # fmt: skip
    assert (tmp_path / "dist" / name).read_bytes() == wheel.read_bytes(), digest


@pytest.mark.slow
def test_different_bytes_are_noticed(tmp_path, monkeypatch):
    build = script("build_twice")
    digests = iter([{"alignver.whl": "1"}, {"alignver.whl": "2"}])
    monkeypatch.setattr(build, "build", lambda *arguments: next(digests))
    with pytest.raises(SystemExit, match="two builds differ"):
        build.build_twice(tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


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
        "constraints-oldest.txt",
        "release/recipe.yaml",
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
