"""The user's model: built by ``module.py:build`` or ``package.module:build``, with its weights, dtype and optimiser.

The build function takes no arguments and returns a torch module; a module of that name is taken as it is. torch is
imported by name when a command needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from alignver import require
from alignver.cli.input_files import library, regular, torch_device
from alignver.cli.weights import load_weights, weight_files
from alignver.errors import InvalidInput, MissingDependency, kind_of

_ARGUMENT = "MODEL"
_NEED = "FILE.py:FUNCTION or package.module:FUNCTION"
_LISTED = 12  # functions of a module that a message names


def find(spec: str) -> Callable[[], Any]:
    """Import the module that ``spec`` names and return its function."""
    place, colon, function = spec.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise InvalidInput(_ARGUMENT, repr(spec), f"{_NEED}; FUNCTION() returns a torch.nn.Module")
    module = _from_file(place) if _is_file(place) else _by_name(place)
    builder = getattr(module, function, None)
    if not callable(builder):
        public = sorted(name for name, value in vars(module).items() if _is_own_function(module, name, value))
        listed = ", ".join(public[:_LISTED]) + ", ..." * (len(public) > _LISTED)
        need = f"one of its functions: {listed}" if public else "a function that returns a torch.nn.Module"
        need += require.similar(function, public)
        raise InvalidInput(_ARGUMENT, f"{place} without a function {function!r}", need)
    return builder  # type: ignore[no-any-return]  # the type of the model is checked when it is built


def built(spec: str) -> Any:
    """Return the module that ``spec`` names, or the one that its function returns, also beside a tokenizer or so.

    Raises
    ------
    InvalidInput
        The function raises, takes arguments, or returns no module.
    """
    builder, kind = find(spec), library("torch", "checking a torch model").nn.Module
    from alignver.network.adapt import built_by

    if isinstance(builder, kind):
        return builder
    with _user_code(spec, "called without arguments"):
        required = _required(builder)
        if required:
            name = spec.rpartition(":")[2]
            got = f"{spec}, which takes the arguments {', '.join(required)}"
            need = f"a function without arguments: def build(): return {name}({required[0]}=..., ...)"
            raise InvalidInput(_ARGUMENT, got, need.replace(", ...", "" if len(required) == 1 else ", ..."))
        model = built_by(builder)
    if isinstance(model, kind):
        return model
    need = "a torch.nn.Module"
    if isinstance(model, type):
        need += f": return {model.__name__}(...)"
    elif isinstance(model, tuple) and any(isinstance(part, kind) for part in model):
        need = "one torch.nn.Module"
    elif isinstance(model, Mapping):
        need += ", and its state dict as a file: --weights FILE.safetensors"
    raise InvalidInput(_ARGUMENT, f"{spec}() that returns {kind_of(model)}", need, code="wrong-type")


def _required(builder: Callable[..., Any]) -> list[str]:
    """Return the arguments without which a function cannot be called."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


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
    file = regular(place, _ARGUMENT).resolve()
    name = file.stem if file.stem.isidentifier() else "_alignver_model"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidInput(_ARGUMENT, f"{place}, which is not a Python file", _NEED)
    module = importlib.util.module_from_spec(spec)
    # As with `python module.py`: it can import its neighbours, and pickle and dataclasses find it by name.
    sys.path.insert(0, str(file.parent))
    sys.modules.setdefault(name, module)
    with _user_code(place, "imported"):
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            if "relative import" not in str(error) or not file.stem.isidentifier():
                raise
            return _from_package(file)
    return module


def _from_package(file: Path) -> ModuleType:
    """Import a file with relative imports as a module of the package that its folders are."""
    root = file.parent.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    sys.path.insert(0, str(root))
    return importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))


def _by_name(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as with `python -m place`
    try:
        missing = importlib.util.find_spec(place) is None
    except (ImportError, ValueError):
        missing = True
    except (Exception, SystemExit) as error:  # find_spec imports the parent packages, which are the user's code
        raise InvalidInput(_ARGUMENT, f"{place}, which {_failure(error, 'imported')}", "code that works") from error
    if missing:
        got = f"{place}, which is not a module that can be imported from here"
        raise InvalidInput(_ARGUMENT, got, f"{_NEED}; a file ends in .py")
    with _user_code(place, "imported"):
        return importlib.import_module(place)


@contextlib.contextmanager
def _user_code(what: str, doing: str) -> Iterator[None]:
    """Turn every error of the user's code into InvalidInput with its line; ``-v`` shows the traceback.

    As with ``python module.py``, the code has no arguments on its command line.
    """
    arguments = sys.argv
    sys.argv = [what.rpartition(":")[0] or what]
    try:
        yield
    except (InvalidInput, MissingDependency):
        raise
    except (Exception, SystemExit) as error:
        need = "code that works; -v shows where"
        raise InvalidInput(_ARGUMENT, f"{what}, which {_failure(error, doing)}", need) from error
    finally:
        sys.argv = arguments


def _failure(error: BaseException, doing: str) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    frames = [frame for frame in frames if not frame.filename.startswith(installed)] or frames
    message = (str(error).strip().splitlines() or [""])[0]
    where = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        where = f" (line {error.lineno} of {Path(error.filename or '').name})"
        message = error.msg
    return f"raised {type(error).__name__}{': ' + message if message else ''}{where} when it was {doing}"


def load(
    spec: str, weights: str | None, *, device: str, seed: int, in_eval_mode: bool = False
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Build the user's model from ``seed``, load its weights and move it to ``device``.

    Returns the model and what identifies it in a report: the hashes of its code and of its weights.
    """
    torch = library("torch", "checking a torch model")
    destination = torch_device(device)
    if weights is not None:
        weight_files(weights)  # before the model is built
    torch.manual_seed(seed)
    model = built(spec)
    identity = {}
    code = code_digest(spec)
    if code is not None:
        identity["model"] = code
    if weights is not None:
        identity["weights"] = load_weights(model, weights)
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None and destination.type != "meta":
        got = f"{spec}, whose {empty!r} is on the meta device, without values"
        raise InvalidInput(_ARGUMENT, got, "a model that is not built on that device", "wrong-device")
    return (model.eval() if in_eval_mode else model).to(destination), identity


def optimizer(name: str, lr: float, momentum: float | None, weight_decay: float) -> Callable[[Any], Any]:
    """Return a function from parameters to an optimiser, ``"sgd"`` or ``"adam"``."""
    torch = library("torch", "training")
    require.real("--lr", lr, above=0, need="a positive finite step size")
    require.real("--weight-decay", weight_decay, least=0, need="a non-negative number")
    if name == "adam":
        return lambda parameters: torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    require.real("--momentum", momentum, least=0, below=1, need="a number from 0 to below 1")
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def in_dtype(model: Any, dtype: str) -> Any:
    """Return the model with its floating-point parameters and buffers in a dtype; ``"same"`` leaves them."""
    return model if dtype == "same" else model.to(getattr(library("torch", "training"), dtype))


def environment() -> dict[str, Any]:
    """Return what decides the rounding of a computation beside its inputs: the versions and the number of threads."""
    from alignver.report import provenance

    return {**provenance.versions(), "threads": library("torch", "training").get_num_threads()}
