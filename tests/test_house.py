"""The rules of the house, kept by the AST: where torch, CuPy and array_api_compat may be imported, and file lengths."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "alignver").rglob("*.py"))
# From the bottom up; a module may import from its own line and from those above it in this list.
LAYERS = [
    {"_version", "errors"},
    {"results", "progress"},
    {"arrays"},
    {"linalg", "kernel"},
    {"proof", "samples"},
    {"phi"},
    {"theory"},
    {"checks"},
    {"report", "data"},
    {"models"},
    {"training"},
    {"experiments"},
    {"cli", "testing", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function, type-checking blocks left out."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path):
    relative = path.relative_to(ROOT / "alignver")
    home = relative.parts[0].removesuffix(".py")
    names = imported(path)
    roots = {name.split(".")[0] for name in names}
    if home not in {"models", "training", "experiments", "testing"}:  # strategies that draw models
        assert "torch" not in roots
    if home != "arrays":
        assert not roots & {"array_api_compat", "cupy", "cupyx"}
    if home != "report":
        assert "matplotlib" not in roots
    assert len(path.read_text().splitlines()) <= 600
    if home != "__init__":
        upward = {name for name in names if name.startswith("alignver.") and LEVEL.get(package(name), 0) > LEVEL[home]}
        assert not upward


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
