"""Run the command line as people do, in a process of its own; or in this one where only the messages matter."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from alignver.cli import main
from alignver.report import source

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "alignver"]
TIMEOUT = 60


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of the command line left."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Return the JSON document on stdout, valid by the schema."""
        document = json.loads(self.out)
        jsonschema.validate(document, source.load(), cls=jsonschema.Draft202012Validator)
        return document


def without_progress(text: str) -> str:
    """Return what a command wrote on stderr, without the lines that a busy machine adds."""
    return re.sub(r"^alignver: .*; [\d:]+ so far\n", "", text, flags=re.MULTILINE)


def environment(injected: Path | None = None, **changes: str) -> dict[str, str]:
    """Return an environment without what would change colours or width, with our code and ``injected`` importable."""
    left_out = {"FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "TTY_COMPATIBLE"}
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join(str(folder) for folder in (injected, ROOT) if folder)
    return {**variables, "TERM": "xterm", "PYTHONWARNINGS": "error", "PYTHONPATH": path, **changes}


@pytest.fixture
def inject(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a folder whose code runs when Python starts there."""

    def write(source: str) -> Path:
        folder = tmp_path / "injected"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(source)
        return folder

    return write


@pytest.fixture
def alignver(files: Path) -> Callable[..., Outcome]:
    """Return a function that runs ``alignver`` in a process of its own, in the folder of :func:`files`."""

    def call(*arguments: str, injected: Path | None = None, **changes: str) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=files,
            env=environment(injected, **changes),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, without_progress(done.stderr))

    return call


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs the command line in this process: quick, for the many ways to go wrong."""
    monkeypatch.chdir(files)

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            main.run(list(arguments))
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, without_progress(captured.err))

    return call


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good inputs: a wide full-rank J, a rank-one matrix, one whose rank is unclear."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    wide = random.integers(-9, 10, (8, 20)).astype(float)
    np.save(folder / "J.npy", wide)
    np.save(folder / "y.npy", wide @ np.ones(20))
    np.savez(folder / "both.npz", J=wide, y=wide @ np.ones(20))
    np.savetxt(folder / "one.csv", np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]), delimiter=",")
    (folder / "off.txt").write_text("1\n2\n4\n")
    (folder / "on.txt").write_text("1 2 3\n")
    unclear = np.diag([1.0, 1e-3, 3 * 2.0**-52])  # the last level is the tolerance of golub
    np.save(folder / "unclear.npy", unclear)
    np.save(folder / "last.npy", np.array([0.0, 0.0, 1.0]))
    return folder
