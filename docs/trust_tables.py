"""Count the lines of the trusted part for trust.md, when the site is built; run as a script, it prints them."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KERNEL = sorted((ROOT / "alignver/kernel").rglob("*.py"))
ON_DATA = [path for path in KERNEL if path.name == "data.py"]
ON_MACHINE = [path for path in KERNEL if path.name == "machine.py"]
ON_NETWORKS = [path for path in KERNEL if path.parent.name == "network"]
_ENCLOSING = ("tape", "movement", "compiler", "operations", "pooling", "normalization", "recurrent", "program",
              "ball_functions", "balls", "ball_matrices", "alignment")  # fmt: skip
ENCLOSURES = [path for path in ON_NETWORKS if path.stem in _ENCLOSING]
_NORMWISE = ("normwise", "radii", "row_functions", "elementwise", "operator_norms", "norm_alignment", "exploration")
NORMWISE = [path for path in ON_NETWORKS if path.stem in _NORMWISE]
DEPENDENCES = [path for path in ON_NETWORKS if path.stem == "dependences"]
WALKS = [path for path in ON_NETWORKS if path not in ENCLOSURES + NORMWISE + DEPENDENCES]
ON_MATRICES = [path for path in KERNEL if path not in ON_DATA + ON_MACHINE + ON_NETWORKS]
MOST_LINES = {
    "together, but for `data.py`, `machine.py` and `network/`": (ON_MATRICES, 1500),
    "`data.py` alone": (ON_DATA, 180),
    "`machine.py` alone": (ON_MACHINE, 200),
    "`network/`, statements about a graph": (WALKS, 1200),
    "`network/`, enclosures of values and gradients": (ENCLOSURES, 2350),
    "`network/`, enclosures of values and gradients in float64": (NORMWISE, 1200),
    "`network/dependences.py` alone": (DEPENDENCES, 260),
}
"""Groups of files that are counted together, with their limits on lines of code."""
TABLE = ROOT / "docs/_generated/trust.md"
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Return the number of lines of code, without blank lines, comments and docstrings."""
    source = path.read_text()
    strings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - strings)


def table() -> str:
    """Return the rows: a file, its lines of code, and the first sentence of its docstring."""
    rows = ["| file | lines of code | what it is |", "|---|---|---|"]
    for path in KERNEL:
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
        name = path.relative_to(ROOT / "alignver/kernel")
        rows.append(f"| `{name}` | {code_lines(path)} | {said.split(': ')[0].rstrip('.').replace('``', '`')} |")
    for what, (paths, most) in MOST_LINES.items():
        rows.append(f"| {what} | {sum(map(code_lines, paths))} | at most {most} |")
    return "\n".join(rows)


def write(*_: Any) -> None:
    """Write the table; Sphinx calls this when a build begins."""
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table() + "\n")


if __name__ == "__main__":
    print(table())
