"""Change the code in ways that would let a wrong proof through, and see a test fail for each: ``make mutants``.

    python tests/mutants.py [--only WORD] [--list]

A mutant is one change to one file: a constant of a bound made half or a hundredth, a term dropped, a list halved
(:mod:`tests.mutations` lists these, with the tests that must notice), and every comparison in the kernel turned round.
Each is made in a copy of the checkout and the tests near it are run there until one fails. A mutant that no test
notices must be one that :mod:`tests.mutations` proves harmless, in a sentence.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 120
_LAWS = "property_tests/kernel/test_laws_of_kernel.py"
NEARBY = {
    "__init__": ("test_closure.py",),
    "__main__": ("test_closure.py",),
    "certificate": (
        "test_edges.py",
        "test_storage.py",
        "test_certificates.py",
        "test_data.py",
        "test_format_1.py",
        _LAWS,
    ),
    "data": ("test_data.py", "test_data_bounds.py", "property_tests/test_laws_of_data.py"),
    "failure": ("test_edges.py", "test_certificates.py"),
    "exact": ("test_bounds.py", "test_edges.py", "test_certificates.py", _LAWS),
    "exploration": ("test_edges.py", "test_bounds.py", "test_exploration.py", "test_attacks.py", "test_faults.py"),
    "floats": ("test_bounds.py", "test_edges.py", "test_certificates.py", "test_environment.py"),
    "machine": ("test_machine.py", "test_environment.py"),
    "gates": ("test_bounds.py", "test_edges.py", "test_exploration.py"),
    "matrices": (
        "test_edges.py",
        "test_bounds.py",
        "test_certificates.py",
        _LAWS,
        "test_faults.py",
        "tests/proof/test_factored.py",
        "property_tests/proof/test_laws_of_factors.py",
    ),
    "optimality": ("test_bounds.py", "test_edges.py", "test_data.py", "tests/checks/test_optimality.py"),
    "snapshot": ("test_snapshot.py", "test_exploration.py", "test_data.py"),
    "verify": ("test_edges.py", "test_certificates.py", "test_exploration.py", "test_closure.py", "test_data.py"),
    "normwise": ("test_normwise_rules.py", "test_operator_norms.py", "test_normwise.py"),
    "network": ("test_network.py", "property_tests/kernel/test_laws_of_graphs.py", "tests/checks/test_analytic.py"),
}
"""The tests that are nearest to each file of the kernel."""
_FLIPPED = {
    ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: ``old`` occurs once in the file and becomes ``new``."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    harmless: str = ""
    where: int = -1

    @property
    def label(self) -> str:
        """What is changed, in a line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file.removeprefix('alignver/')}: {old[:70]}  ->  {new[:70]}"

    def applied(self, source: str) -> str:
        """Return the source with the change made."""
        if self.where >= 0:
            assert source.startswith(self.old, self.where)
            return source[: self.where] + self.new + source[self.where + len(self.old) :]
        assert source.count(self.old) == 1, f"{self.file}: {source.count(self.old)} times {self.old!r}"
        return source.replace(self.old, self.new)


def comparisons(harmless: dict[str, str]) -> Iterator[Mutant]:
    """Yield every comparison of the kernel, turned round; ``harmless`` says why of those that nobody has to notice."""
    for path in sorted((ROOT / "alignver/kernel").glob("*.py")):
        source = path.read_text()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))

        def place(node: ast.expr, end: bool, starts: list[int] = starts) -> int:
            line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
            assert line is not None
            assert column is not None
            return starts[line - 1] + column

        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Compare):
                continue
            operands = [node.left, *node.comparators]
            for k, operator in enumerate(node.ops):
                first, last = operands[k], operands[k + 1]
                old = source[place(first, False) : place(last, True)]
                middle = source[place(first, True) : place(last, False)]
                words = middle.strip(" ()\n").split()
                new = old.replace(middle, middle.replace(" ".join(words), _FLIPPED[type(operator)], 1), 1)
                file = str(path.relative_to(ROOT))
                why = harmless.get(f"{path.name}: {' '.join(old.split())}", "")
                yield Mutant(file, old, new, nearby(path.stem), why, place(first, False))


def nearby(name: str) -> tuple[str, ...]:
    """Return the tests that are nearest to a file of the kernel."""
    return tuple(test if "/" in test else f"tests/kernel/{test}" for test in NEARBY[name])


def mutants() -> list[Mutant]:
    """Return all of them."""
    from tests.mutations import HARMLESS_COMPARISONS, MUTATIONS

    return [*MUTATIONS, *comparisons(HARMLESS_COMPARISONS)]


def caught(mutant: Mutant, place: Path) -> tuple[bool, float]:
    """Make the change in a copy of the checkout, and return whether a test noticed, and the seconds that took."""
    target = place / mutant.file
    original = target.read_text()
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(place), "HYPOTHESIS_PROFILE": "ci", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *mutant.tests]
    target.write_text(mutant.applied(original))
    try:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
        noticed = done.returncode != 0
    except subprocess.TimeoutExpired:
        noticed = True
    finally:
        target.write_text(original)
    return noticed, time.perf_counter() - began


def main() -> int:
    """Run the mutants, print a table, and fail where one survives that is not proved harmless."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="mutants whose line has this in it")
    parser.add_argument("--list", action="store_true", help="print them, and run none")
    options = parser.parse_args()
    selected = [mutant for mutant in mutants() if options.only in mutant.label]
    if options.list:
        print("\n".join(mutant.label for mutant in selected))
        return 0
    places: queue.Queue[Path] = queue.Queue()
    workers = len(os.sched_getaffinity(0))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for k in range(workers):
            place = Path(folder, str(k))
            place.mkdir()
            for name in ("alignver", "tests", "property_tests", "pyproject.toml", "conftest.py"):
                source = ROOT / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, place / name)
            places.put(place)

        def run(mutant: Mutant) -> tuple[bool, float]:
            place = places.get()
            try:
                return caught(mutant, place)
            finally:
                places.put(place)

        for mutant, (noticed, seconds) in zip(selected, pool.map(run, selected)):
            word = "caught" if noticed else "harmless" if mutant.harmless else "SURVIVED"
            survivors += word == "SURVIVED"
            print(f"{word:9s} {seconds:5.1f} s  {mutant.label}", flush=True)
            if word == "harmless":
                print(f"                    {mutant.harmless}", flush=True)
    print(f"{len(selected)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests import mutants as module

    sys.exit(module.main())
