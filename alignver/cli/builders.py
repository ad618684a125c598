"""The user's own code: ``module.py:build`` or ``package.module:build``, a function that returns a torch module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from alignver.cli.files import regular
from alignver.errors import InvalidInput, MissingDependency

__all__ = ["ARGUMENT", "built", "code_digest", "find"]

ARGUMENT = "MODEL"
_NEED = "FILE.py:FUNCTION or package.module:FUNCTION"


def find(spec: str) -> Callable[[], Any]:
    """Import the module that ``spec`` names and return its function."""
    place, colon, function = spec.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise InvalidInput(ARGUMENT, repr(spec), f"{_NEED}; FUNCTION() returns a torch.nn.Module")
    module = _from_file(place) if _is_file(place) else _by_name(place)
    builder = getattr(module, function, None)
    if not callable(builder):
        there = sorted(name for name, value in vars(module).items() if _is_own_function(module, name, value))
        need = f"one of its functions: {', '.join(there)}" if there else "a function that returns a torch.nn.Module"
        raise InvalidInput(ARGUMENT, f"{place} without a function {function!r}", need)
    return builder  # type: ignore[no-any-return]  # a module's attribute; what it returns is looked at when called


def built(spec: str) -> Any:
    """Call the function that ``spec`` names and return what it builds."""
    builder = find(spec)
    with _blamed(spec, "called without arguments"):
        return builder()


def code_digest(spec: str) -> dict[str, Any] | None:
    """Return SHA-256 and name of the file that the function comes from, for the provenance."""
    place = spec.rpartition(":")[0]
    source = place if _is_file(place) else getattr(sys.modules.get(place), "__file__", None)
    if source is None or not Path(source).is_file():
        return None
    return {"sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(), "file": Path(source).name}


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _is_own_function(module: ModuleType, name: str, value: object) -> bool:
    return not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__


def _from_file(place: str) -> ModuleType:
    file = regular(place, ARGUMENT).resolve()
    name = file.stem if file.stem.isidentifier() else "_alignver_model"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidInput(ARGUMENT, f"{place}, no Python file", _NEED)
    module = importlib.util.module_from_spec(spec)
    # As `python module.py` would have it: its neighbours can be imported, and pickles and dataclasses find it by name.
    sys.path.insert(0, str(file.parent))
    sys.modules.setdefault(name, module)
    with _blamed(place, "imported"):
        spec.loader.exec_module(module)
    return module


def _by_name(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m place` would have it
    try:
        missing = importlib.util.find_spec(place) is None
    except (ImportError, ValueError):
        missing = True
    except (Exception, SystemExit) as error:  # find_spec imports the parent packages, the user's code
        raise InvalidInput(ARGUMENT, f"{place}, which {_failure(error, 'imported')}", "code that works") from error
    if missing:
        raise InvalidInput(
            ARGUMENT, f"{place}, no module that can be imported from here", f"{_NEED}; a file ends in .py"
        )
    with _blamed(place, "imported"):
        return importlib.import_module(place)


@contextlib.contextmanager
def _blamed(what: str, doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises into bad input that says where; ``-v`` shows its traceback."""
    try:
        yield
    except (InvalidInput, MissingDependency):
        raise
    except (Exception, SystemExit) as error:
        raise InvalidInput(
            ARGUMENT, f"{what}, which {_failure(error, doing)}", "code that works; -v shows where"
        ) from error


def _failure(error: BaseException, doing: str) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not frame.filename.startswith("<")]
    if isinstance(error, SyntaxError) and error.lineno is not None:
        where = f" (line {error.lineno} of {Path(error.filename or '').name})"
    else:
        where = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
    message = (str(error).strip().splitlines() or [""])[0]
    return f"raised {type(error).__name__}{': ' + message if message else ''}{where} when it was {doing}"
