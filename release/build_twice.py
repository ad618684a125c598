"""Build the sdist and the wheel, twice and in different surroundings, and keep them if their bytes are equal.

    python release/build_twice.py [FOLDER]

The two builds have other folders, umasks, time zones, locales and hash seeds. Each makes the sdist from the sources and
the wheel from that sdist, as pip does. Times are those that hatchling writes where ``SOURCE_DATE_EPOCH`` is not set:
anyone who builds the sdist again gets the same wheel, without knowing a date. The version of hatchling is part of the
wheel; ``constraints.txt`` has it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SURROUNDINGS = (
    {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1", "umask": "022"},
    {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "umask": "077"},
)


def copy_sources(target: Path, umask: int = 0o022) -> None:
    """Copy the files that git does not ignore, or without git all of them, with the modes that a umask leaves."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    else:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    for name in names:
        if name and (ROOT / name).is_file():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)
            copy.chmod(copy.stat().st_mode & ~umask)


def build(sources: Path, target: Path, surroundings: dict[str, str], *options: str) -> dict[str, str]:
    """Build into a folder, and return the SHA-256 digest of each file."""
    variables = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    variables |= {name: value for name, value in surroundings.items() if name != "umask"}
    variables |= {"PIP_CONSTRAINT": str(sources / "constraints.txt")}
    command = [sys.executable, "-m", "build", *options, "--outdir", str(target), str(sources)]
    umask = int(surroundings["umask"], 8)
    done = subprocess.run(command, env=variables, umask=umask, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(target.iterdir())}


def build_twice(target: Path) -> dict[str, str]:
    """Build twice, keep the files in ``target``, and return their digests; SystemExit if they differ."""
    with tempfile.TemporaryDirectory() as folder:
        digests = []
        for k, surroundings in enumerate(SURROUNDINGS):
            place = Path(folder, *["deeper"] * k, f"sources-{k}")
            place.mkdir(parents=True)
            copy_sources(place, int(surroundings["umask"], 8))
            digests.append(build(place, Path(folder, f"dist-{k}"), surroundings))
        if digests[0] != digests[1]:
            raise SystemExit(f"two builds differ: {digests[0]} and {digests[1]}")
        target.mkdir(parents=True, exist_ok=True)
        for name in digests[0]:
            shutil.copy(Path(folder, "dist-0", name), target / name)
    return digests[0]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "dist", help="where the files go (default: dist)"
    )
    for name, digest in build_twice(parser.parse_args().folder).items():
        print(f"{digest}  {name}")


if __name__ == "__main__":
    main()
