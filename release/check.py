"""The checklist of a release: every line has to be checked off before the commit is tagged.

    python release/check.py [--skip tests,docs]

It runs the linters, builds the documentation, runs all tests, builds twice, and installs the wheel in a new
environment, where the certificates of earlier versions have to verify. Nothing is tagged, uploaded or changed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from build_twice import ROOT, build_twice

VERIFY = """
import sys
from pathlib import Path
import numpy as np
from alignver import kernel
count = 0
for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("format_*/*/certificate.json")):
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        result = kernel.verify(folder, dict(file))
    assert (result.verdict, result.rigor) == ("HOLDS", "PROOF"), (folder, result)
    count += 1
assert count >= 10, count
print(count, "certificates of earlier versions verify")
"""


class Failed(Exception):
    """A line that cannot be checked off, and why."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command; its output, or Failed with the end of it."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
    return done.stdout


def require(condition: object, why: str) -> None:
    """Raise Failed unless the condition is true."""
    if not condition:
        raise Failed(why)


def version() -> str:
    """Return the version in the sources."""
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "alignver/_version.py").read_text(), re.MULTILINE)[1]


def clean() -> str:
    """The working tree is clean"""
    changed = run("git", "status", "--porcelain")
    require(not changed, changed)
    return run("git", "log", "-1", "--format=%h %s").strip()


def numbered() -> str:
    """The version is MAJOR.MINOR.PATCH, the same everywhere, and not tagged yet"""
    now = version()
    require(re.fullmatch(r"\d+\.\d+\.\d+", now), f"{now} in alignver/_version.py")
    for name, pattern in (("CITATION.cff", r"^version: (\S+)$"), ("release/recipe.yaml", r'^  version: "(\S+)"$')):
        stated = re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
        require(stated == [now], f"{stated} in {name}, {now} in alignver/_version.py")
    require(f"v{now}" not in run("git", "tag").split(), f"there is a tag v{now}")
    return now


def dated() -> str:
    """The changelog begins with this version and a date, which CITATION.cff has too"""
    heading = re.search(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    require(heading[1] == version(), f"the first heading is {heading[0]}")
    require(heading[2], f"{heading[0]} without a date")
    date = datetime.date.fromisoformat(heading[2])
    require(date <= datetime.date.today(), f"{date} is in the future")
    require(f"date-released: {date}\n" in (ROOT / "CITATION.cff").read_text(), f"CITATION.cff without {date}")
    return str(date)


def interface() -> str:
    """What was released is there, and the list of it is up to date"""
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_public_api.py")
    kept = (ROOT / "tests/public_api.json").read_text()
    written = run(sys.executable, "-c", "from tests.test_public_api import written; print(written())")
    require(written == kept, "python -m tests.test_public_api writes another file")
    return ""


def lint() -> str:
    """The linters are silent"""
    return run("make", "lint").splitlines()[-1]


def docs() -> str:
    """The documentation builds without warnings"""
    run("make", "docs")
    return "docs/_build/html"


def tests() -> str:
    """All tests pass, the slow ones too"""
    command = (sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow")
    return run(*command).splitlines()[-1]


def builds(folder: Path) -> str:
    """Two builds have the same bytes"""
    try:
        digests = build_twice(folder)
    except SystemExit as error:
        raise Failed(str(error)) from error
    return "\n".join(f"{digest}  {name}" for name, digest in digests.items())


def installs(folder: Path) -> str:
    """The wheel installs where nothing else is, and says its version"""
    run(sys.executable, "-m", "venv", folder / "venv")
    wheel = next(folder.glob("*.whl"))
    run(folder / "venv/bin/python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[proof]")
    said = run(folder / "venv/bin/alignver", "--version", cwd=folder).strip()
    require(said == f"alignver {version()}", said)
    return said


def earlier(folder: Path) -> str:
    """Certificates of earlier versions verify with the wheel"""
    return run(folder / "venv/bin/python", "-c", VERIFY, ROOT / "tests/kernel", cwd=folder).strip()


def metadata(folder: Path) -> str:
    """twine accepts the metadata of both files"""
    run(folder / "venv/bin/python", "-m", "pip", "install", "-q", "twine")
    run(folder / "venv/bin/python", "-m", "twine", "check", "--strict", *folder.glob("alignver-*"))
    return ""


def lines(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name of every line and its function."""
    for check in (clean, numbered, dated, interface, lint, docs, tests):
        yield check.__name__, check
    for step in (builds, installs, earlier, metadata):
        yield step.__name__, lambda step=step: step(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", default="", help="names of lines, with commas between them")
    skipped = set(filter(None, parser.parse_args().skip.split(",")))
    os.environ.pop("PYTHONPATH", None)  # the wheel has to be found where it is installed
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        known = dict(lines(Path(name)))
        if skipped - known.keys():
            parser.error(f"--skip: {', '.join(sorted(skipped - known.keys()))}; there are {', '.join(known)}")
        for name, check in known.items():
            title = globals()[name].__doc__
            if name in skipped:
                print(f"[-] {title} ({name}: skipped)", flush=True)
                failed += 1
                continue
            try:
                outcome, mark = check(), "x"
            except Failed as error:
                outcome, mark, failed = str(error), " ", failed + 1
            print(f"[{mark}] {title}" + "".join(f"\n      {line}" for line in outcome.splitlines()), flush=True)
    print("ready: tag it" if not failed else f"not ready: {failed} lines are open")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
