"""The digest of an experiment's code: results carry it, so that those of an earlier version can be told."""

from __future__ import annotations

import ast
import hashlib
import pathlib
from collections.abc import Iterator

__all__ = ["code_digest"]

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


_RUNNERS = {"conduct.py", "code_digest.py"}  # run and store the parts; what these measure is not in them


def code_digest(file: pathlib.Path) -> str:
    """Return the SHA-256, 16 digits, of the code of a module and of those in its folder that it imports.

    Comments, docstrings and the layout do not count, nor does the code that runs and stores experiments. Other packages
    are named by their versions, not by this digest.

    Examples
    --------
    >>> len(code_digest(pathlib.Path(__file__)))
    16
    """
    code = hashlib.sha256()
    for path in sorted(_with_neighbours(file.resolve())):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        code.update("\n".join([path.name, *_content(tree), ""]).encode())
    return code.hexdigest()[:16]


def _content(node: object) -> Iterator[str]:
    """Yield the parts of a syntax tree, the same in all versions of Python: ast.unparse and ast.dump differ in some."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.JoinedStr):  # Python 3.12.1 has empty strings in formatted ones
                value = [part for part in node.values if getattr(part, "value", None) != ""]
            if value is not None and value != []:  # among them fields that only some versions have
                yield name
                yield from _content(value)
    elif isinstance(node, list):
        yield str(len(node))
        for part in node:
            yield from _content(part)
    else:
        yield repr(node)


def _with_neighbours(file: pathlib.Path) -> set[pathlib.Path]:
    """Return a file and those of its folder that it imports, directly or not."""
    files, left = {file}, [file]
    while left:
        for name in _imported(ast.parse(left.pop().read_text(encoding="utf-8"))):
            path = file.with_name(f"{name}.py")
            if path not in files and path.name not in _RUNNERS and path.is_file():
                files.add(path)
                left.append(path)
    return files


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield names of modules that may be in the same folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            package, _, module = node.module.rpartition(".")
            if package in ("", "alignver.experiments"):
                yield module
            if node.module == "alignver.experiments":
                yield from (alias.name for alias in node.names)
