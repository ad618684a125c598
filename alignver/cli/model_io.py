"""The user's own code: ``module.py:build`` or ``package.module:build``, a function that returns a torch module.

The few things that the command line itself does with torch, which it imports by name when a command needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from alignver.cli.input_files import library, named, place, regular
from alignver.errors import InvalidInput, MissingDependency
from alignver.report import provenance

__all__ = ["ARGUMENT", "built", "code_digest", "environment", "find", "in_dtype", "load", "optimizer"]
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


_PURPOSE = "checking a torch model"


def load(spec: str, weights: str | None, *, device: str, seed: int) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Build the user's model from ``seed``, load its weights and move it to ``device``.

    Returns the model and what identifies it in a report: the hashes of its code and of its weights.
    """
    torch = library("torch", _PURPOSE)
    chosen = place(device)
    if weights is not None:
        regular(weights, "--weights")
    torch.manual_seed(seed)
    model = built(spec)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(ARGUMENT, f"{spec}() that returns a {type(model).__name__}", "a torch.nn.Module")
    identity = {}
    code = code_digest(spec)
    if code is not None:
        identity["model"] = code
    if weights is not None:
        _load_weights(model, weights)
        content = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        identity["weights"] = {"sha256": content, "file": Path(weights).name}
    return model.to(chosen), identity


def _load_weights(model: Any, file: str) -> None:
    """Load a .safetensors file into the model, strictly; a pickled checkpoint is never opened."""
    name = named("--weights", file)
    safetensors = library("safetensors", "--weights")
    reader = library("safetensors.torch", "--weights")
    try:
        missing, unexpected = reader.load_model(model, file, strict=False)
    except (safetensors.SafetensorError, OSError) as error:
        remedy = "a .safetensors file: safetensors.torch.save_model(model, file) makes one; pickles are never opened"
        raise InvalidInput(name, f"no .safetensors file ({error})", remedy) from error
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4]) or str(error)
        raise InvalidInput(name, f"tensors of other shapes ({reason})", "the weights of this model") from error
    if missing or unexpected:
        parts = [f"without {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"with {', '.join(sorted(unexpected)[:4])}, which the model has not"] if unexpected else []
        raise InvalidInput(name, "weights " + " and ".join(parts), "the weights of this model")


def optimizer(name: str, lr: float, momentum: float | None, weight_decay: float) -> Callable[[Any], Any]:
    """Return what makes an optimiser of that name, ``"sgd"`` or ``"adam"``, from parameters."""
    torch = library("torch", "training")
    if not 0.0 < lr < math.inf:
        raise InvalidInput("--lr", f"{lr}", "a positive finite step size")
    if not 0.0 <= weight_decay < math.inf:
        raise InvalidInput("--weight-decay", f"{weight_decay}", "a finite number >= 0")
    if name == "adam":
        return lambda parameters: torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    if momentum is None or not 0.0 <= momentum < 1.0:
        raise InvalidInput("--momentum", f"{momentum}", "a number from 0 to below 1")
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def in_dtype(model: Any, dtype: str) -> Any:
    """Return the model with its floating-point parameters and buffers in a dtype; ``"same"`` leaves them."""
    return model if dtype == "same" else model.to(getattr(library("torch", "training"), dtype))


def environment() -> dict[str, Any]:
    """Return what the bits of a computation depend on beside its inputs: versions, and the threads that sum."""
    return {**provenance.versions(), "threads": library("torch", "training").get_num_threads()}
