"""The rules of the house that import-linter (``make check``) does not know: file lengths, and what an import loads."""

from __future__ import annotations

import ast
import functools
import graphlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignver import errors
from tests.mutants import mutants

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "alignver").rglob("*.py"))


def test_a_file_has_at_most_600_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: length for path, length in lengths.items() if length > 600}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of the syntax tree of a file."""
    return list(ast.walk(ast.parse(path.read_text())))


def module_name(path: Path) -> str:
    """The name by which a file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported(path: Path) -> set[Path]:
    """Every file of the package that a file imports: also in functions, for type checking, and by a string.

    A formatted string, such as ``f"{__name__}.{module}"``, stands for every module that it may name.
    """
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                names.add(below if below in MODULES else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            if isinstance(node.args[0], ast.JoinedStr):
                home = ast.unparse(node.args[0])[2:].partition(".{")[0].replace("{__name__}", module_name(path))
                names |= {name for name in MODULES if name.startswith(f"{home}.")}
            else:
                names.add(getattr(node.args[0], "value", ""))
    return {MODULES[name] for name in names & MODULES.keys()} - {path, ROOT / "alignver/__init__.py"}


def test_no_import_circle():
    graph = {path: imported(path) for path in SOURCES}
    assert len(graph[ROOT / "alignver/experiments/__init__.py"]) >= 10  # imports by strings are seen
    assert ROOT / "alignver/network/enclosed_features.py" in graph[ROOT / "alignver/checks/exploration.py"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_chains_of_the_architecture_page_are_imports():
    page = (ROOT / "docs/architecture.md").read_text()
    chains = [re.findall(r"`(\w+/\w+)`", row) for row in page.splitlines() if "\N{RIGHTWARDS ARROW}" in row]
    assert len(chains) >= 7
    for chain in chains:
        assert len(chain) <= 5
        files = [ROOT / "alignver" / f"{name}.py" for name in chain]
        for upper, lower in itertools.pairwise(files):
            assert lower in imported(upper), (upper.name, lower.name)


def calls(path: Path, name: str) -> list[ast.Call]:
    """Every call of a function, or of a method, of this name."""
    every = [node for node in nodes(path) if isinstance(node, ast.Call)]
    return [node for node in every if getattr(node.func, "id", getattr(node.func, "attr", "")) == name]


def test_the_library_does_not_print():
    """Commands print; the library returns results, and logs what is not a result."""
    printing = {path for path in SOURCES for call in calls(path, "print") if isinstance(call.func, ast.Name)}
    commands = {path for path in SOURCES if path.parent.name == "cli" or path.name == "__main__.py"}
    assert printing <= commands
    assert printing  # the test sees them


def test_warnings_have_categories():
    warned = [(path.name, ast.unparse(call.args[1])) for path in SOURCES for call in calls(path, "warn")]
    assert len(warned) >= 3
    for name, category in warned:
        if category == "DeprecationWarning":  # as users and pytest know it
            assert name == "deprecation.py"
            continue
        assert issubclass(getattr(errors, category), errors.AlignverWarning), name
    for category in (errors.LostGuarantee, errors.UnstableStep):
        assert issubclass(category, RuntimeWarning)  # what they were before


def test_logging(caplog):
    """Nothing is shown unless the program asks for it."""
    import numpy as np

    import alignver as av

    code = "import numpy as np, alignver as av; from alignver.progress import logger; "
    code += "av.check_rank(np.ones((2, 2)), rank=1); logger.warning('shown')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    with caplog.at_level("DEBUG", "alignver"):
        av.check_rank(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-12]]), rank=2)
    assert [record.name for record in caplog.records] == ["alignver"] * len(caplog.records)
    assert any("no proof by gram: " in record.getMessage() for record in caplog.records)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "import sys, alignver; print([m for m in ('torch', 'scipy', 'numpy', 'rich', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_load_and_are_listed():
    import alignver

    for name in alignver.__all__:
        assert getattr(alignver, name) is not None
        assert name in dir(alignver)
    with pytest.raises(AttributeError, match="no_such_check"):
        alignver.no_such_check  # noqa: B018 - the access is the test


def test_models_without_torch_say_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import alignver\n"
        "try:\n    alignver.check_alignment\n"
        "except alignver.MissingDependency as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'alignver[torch]'" in done.stdout


def test_mutants_are_changes_of_the_code_as_it_is():
    changes = mutants()
    sources = {file: (ROOT / file).read_text() for file in {mutant.file for mutant in changes}}
    assert not [mutant.label for mutant in changes if mutant.applied(sources[mutant.file]) == sources[mutant.file]]
    files = {test.split("::")[0] for mutant in changes for test in mutant.tests}
    assert all((ROOT / file).exists() for file in files)
