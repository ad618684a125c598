"""Compare answers and certificates between the oldest and the newest NumPy and SciPy, in an environment for each.

    python tests/numpy_versions.py [FOLDER]

The environments are made in FOLDER, or in a temporary one. Verdict, rigor, subject, code and certificate of every case
without torch have to be equal, the versions in the certificate excepted. Two certificates contain weights at which an
iteration ended: another version may end it at other floats, which the kernel evaluates all the same.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.determinism import differences  # noqa: E402

BY_ITERATION = {"optimality, fails", "optimality, narrow"}
"""Cases whose certificate contains the end of an iteration."""

COMPARED = ("verdict", "rigor", "subject", "code", "certificate")


def oldest() -> list[str]:
    """Return the oldest NumPy and SciPy that are supported."""
    text = (ROOT / "constraints-oldest.txt").read_text()
    return re.findall(r"^(?:numpy|scipy)==\S+$", text, re.MULTILINE)


def answers(folder: Path, arrays: list[str]) -> dict[str, Any]:
    """Return what the cases answer in a new environment with these versions."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = [line for line in project["dependencies"] if not line.startswith(("numpy", "scipy"))]
    python = folder / "bin" / "python"
    packages = [*arrays, *others, *project["optional-dependencies"]["proof"]]
    subprocess.run([python, "-m", "pip", "install", "-q", "--prefer-binary", *packages], check=True)
    command = [python, "-m", "tests.determinism"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    print("numpy", subprocess.check_output([python, "-c", "import numpy; print(numpy.__version__)"], text=True).strip())
    return json.loads(done.stdout)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = parser.parse_args().folder or Path(temporary)
        old, new = answers(folder / "oldest", oldest()), answers(folder / "newest", ["numpy", "scipy"])
    failed = 0
    for name in old:
        parts = [{key: answer[name][key] for key in COMPARED} for answer in (old, new)]
        lines = list(differences(*parts))
        expected = name in BY_ITERATION and all(line.startswith("/certificate/data/better/sha256") for line in lines)
        failed += bool(lines) and not expected
        print(f"{name:<34}  {'equal' if not lines else 'other weights' if expected else '; '.join(lines)}")
    print(f"{len(old) - failed} passed, {failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
