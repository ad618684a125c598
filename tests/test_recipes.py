"""The recipes for CI and containers: their commands run, in an environment of their own, as a runner runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.test_docs import accepted_by_the_parser

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MODEL = (
    "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))\n"
)


def instructions() -> list[tuple[str, str]]:
    return [tuple(line.split(" ", 1)) for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line]


def arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")


def test_the_extras_exist():
    for listed in (ACTION["inputs"]["extras"]["default"], arguments()["EXTRAS"]):
        assert set(listed.split(",")) <= set(EXTRAS)


def test_every_input_of_the_action_is_used_and_none_is_put_into_code():
    """A value inside of a script could be code; in the environment it is text."""
    steps = ACTION["runs"]["steps"]
    used = {name for step in steps for value in step["env"].values() for name in re.findall(r"inputs\.([\w-]+)", value)}
    assert used == set(ACTION["inputs"])
    assert not any("${{" in step["run"] for step in steps)


def test_the_command_in_the_comment_is_accepted():
    (line,) = re.findall(r"docker run .*?alignver (check .*)", (ROOT / "Dockerfile").read_text())
    accepted_by_the_parser(f"alignver {line}")


def test_the_workflows_on_the_pages_are_accepted():
    count = 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            document = yaml.safe_load(block)
            for job in document.get("jobs", document).values():
                for step in job.get("steps", ()):
                    assert set(step) & {"uses", "run"}
                    given = step.get("with", {})
                    if str(step.get("uses", "")).endswith("alignver@main"):
                        assert set(given) <= set(ACTION["inputs"])
                        accepted_by_the_parser("alignver " + given["arguments"])
                        count += 1
                for line in [step.get("run", "") for step in job.get("steps", ())] + job.get("script", []):
                    if line.startswith("alignver "):
                        accepted_by_the_parser(line)
                        count += 1
    assert count >= 4


@pytest.fixture
def machine(tmp_path):
    """Return a folder with a model and data, and a function that runs a command there in a fresh environment.

    The environment finds the packages of this one, so that only alignver is installed.
    """
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = f"lib/python3.{sys.version_info.minor}/site-packages/others.pth"
    (tmp_path / "venv" / environment).write_text(sysconfig.get_paths()["purelib"])
    work = tmp_path / "work"
    work.mkdir()
    (work / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    np.savez(work / "train set.npz", X=rng.standard_normal((6, 2)).astype(np.float32), Y=rng.integers(0, 2, 6))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(shell, cwd=work, env={**kept, **variables, "PATH": path}, capture_output=True, text=True)

    run.folder = work
    return run


CHECK = "check alignment net.py:build --data 'train set.npz' --loss cross_entropy"


@pytest.mark.slow
def test_the_action_runs(machine):
    values = {f"inputs.{name}": about.get("default", "") for name, about in ACTION["inputs"].items()}
    values |= {"inputs.arguments": CHECK, "github.action_path": str(ROOT)}
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        variables = {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], v) for name, v in step["env"].items()}
        done = machine(step["run"], **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert "<testsuite" in (machine.folder / "alignver.xml").read_text()
    assert "HOLDS" in (machine.folder / "alignver.html").read_text()


@pytest.mark.slow
def test_the_image_would_be_built_and_run(machine, tmp_path):
    """Run what the Dockerfile says in its order, without the base image: /src is a copy of what it copies."""
    source = tmp_path / "src"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no clone: the files that are copied are those that git knows")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    parts = dict(instructions())
    assert (parts["COPY"], parts["WORKDIR"]) == (". /src", "/data")
    for name, script in instructions():
        if name == "RUN":
            done = machine(script.replace("/src", str(source)), **arguments())
            assert done.returncode == 0, done.stdout + done.stderr
    assert not source.exists()
    (entry,) = yaml.safe_load(parts["ENTRYPOINT"])
    assert machine(shlex.join([entry, *yaml.safe_load(parts["CMD"])])).returncode == 0
    done = machine(f"{entry} {CHECK}")
    assert done.returncode == 0, done.stderr
    assert "HOLDS" in done.stdout
