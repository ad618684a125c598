"""``python -m alignver.kernel CERT --input NAME=FILE``: check a certificate with no dependency except NumPy."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel.failure import demand
from alignver.kernel.verify import verify
from alignver.results import Verdict

_EXITS = {Verdict.HOLDS: 0, Verdict.FAILS: 1, Verdict.UNDECIDED: 3}


def _read(pair: str) -> tuple[str, Any]:
    name, _, file = pair.partition("=")
    demand(name.isidentifier() and file != "", "--input", repr(pair), "NAME=FILE, for example A=A.npy")
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many types for damaged files, all with the same meaning
        raise InvalidInput("--input", f"{file} ({type(error).__name__})", "a .npy file") from error
    demand(isinstance(mapped, np.ndarray), "--input", f"{file}, an archive", "a .npy file with one array")
    return name, mapped


def main(arguments: list[str] | None = None) -> int:
    """Check a certificate; exit with 0 if it proves its claim, 1 if not, 2 for invalid input, 3 if undecided."""
    parser = argparse.ArgumentParser(prog="python -m alignver.kernel", description=__doc__)
    parser.add_argument("certificate", metavar="CERT", help="a folder that Certificate.save wrote")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE", help="an input of the claim, .npy")
    options = parser.parse_args(arguments)
    try:
        result = verify(options.certificate, dict(map(_read, options.input)))
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    print(result)
    return _EXITS[result.verdict]


if __name__ == "__main__":
    sys.exit(main())
