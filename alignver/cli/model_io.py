"""The user's model: built by ``module.py:build`` or ``package.module:build``, with its weights, dtype and optimiser.

The build function takes no arguments and returns a torch module; a module of that name is taken as it is. torch is
imported by name when a command needs it. Weights are safetensors files, read without rounding; pickles are not opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import shlex
import sys
import sysconfig
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from alignver import require
from alignver.cli.input_files import file_argument, library, regular, torch_device
from alignver.errors import InvalidInput, MissingDependency, kind_of, reading

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


def load(options: Mapping[str, Any]) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Build the ``model`` of the options from their ``seed``, load their ``weights`` and move it to their ``device``.

    Returns the model and what identifies it in a report: the hashes of its code and of its weights.
    """
    torch = library("torch", "checking a torch model")
    spec, weights, destination = options["model"], options["weights"], torch_device(options["device"])
    if weights is not None:
        weight_files(weights)  # before the model is built
    torch.manual_seed(options["seed"])
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
    return (model.eval() if options.get("eval_mode") else model).to(destination), identity


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


_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_INDEX, _ONE = "model.safetensors.index.json", "model.safetensors"
_OTHER_WEIGHTS = "the weights of this model"
_KEYS = ("state_dict", "model_state_dict", "model")  # under which checkpoints have the state dict


def load_weights(model: Any, place: str) -> dict[str, Any]:
    """Load a file, a folder of Hugging Face, or its index into a model, strictly; return what identifies it.

    Names may have the prefix of a data-parallel or compiled model; one of several names of a tensor suffices.

    Raises
    ------
    InvalidInput
        Files of another format; tensors that are missing, that the model does not have, of other shapes, or that the
        model's dtype rounds; different values for one tensor.
    """
    from alignver.network.functional import without_prefix

    argument, files = file_argument("--weights", place), weight_files(place)
    stored: dict[str, Any] = {}
    for file in files:
        stored.update(_read(file, argument))
    present = model.state_dict(keep_vars=True)
    state = without_prefix(stored, set(present))
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        other = [
            f"{name} {tuple(value.shape)}, {tuple(present[name].shape)} in the model"
            for name, value in state.items()
            if name in present and present[name].shape != value.shape
        ]
        got = "tensors of other shapes" + f": {'; '.join(other[:3])}" * bool(other)
        raise InvalidInput(argument, got, _OTHER_WEIGHTS, code="wrong-shape") from error
    known = {id(present[name]) for name in state if name in present}
    missing = [name for name in missing if name not in present or id(present[name]) not in known]
    if missing or unexpected:
        parts = [f"without {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"with {', '.join(sorted(unexpected)[:4])}, which the model does not have"] if unexpected else []
        raise InvalidInput(argument, "weights " + " and ".join(parts), _OTHER_WEIGHTS)
    for name, value in state.items():
        _require_exact(name, value, present[name].detach(), argument)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"sha256": whole, "file": Path(place).name}


def weight_files(place: str) -> list[Path]:
    """Return the files that a path names: itself, those of an index, or those of a folder."""
    folder = Path(place)
    if folder.is_dir():
        inside = next((folder / name for name in (_INDEX, _ONE) if (folder / name).is_file()), None)
        if inside is None:
            got = f"a folder without {_ONE} and without {_INDEX}"
            raise InvalidInput(file_argument("--weights", place), got, "a .safetensors file", code="unreadable-file")
        return weight_files(str(inside))
    file = regular(place, "--weights")
    if file.suffix != ".json":
        return [file]
    argument = file_argument("--weights", place)
    need = f"an index with weight_map, as {_INDEX} of Hugging Face"
    with reading(argument, "a file that is no index of weights", need):
        names = sorted(set(json.loads(file.read_text())["weight_map"].values()))
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InvalidInput(argument, "an index that names no files beside it", need, code="unreadable-file")
    return [regular(str(file.parent / name), "--weights") for name in names]


def _read(file: Path, argument: str) -> dict[str, Any]:
    safetensors, reader = library("safetensors", "--weights"), library("safetensors.torch", "--weights")
    try:
        tensors: dict[str, Any] = reader.load_file(file)
        return tensors
    except (safetensors.SafetensorError, OSError) as error:
        got = "a damaged file, or one of another format"
        remedy = "a .safetensors file: safetensors.torch.save_model(model, file) makes one; pickles are never opened"
        if file.suffix in _PICKLES:
            kind, command = _conversion(file)
            got, remedy = kind or got, f"a .safetensors file, since a pickle can run code; this makes one: {command}"
        if isinstance(error, OSError) and error.strerror:
            got = f"a file that cannot be read: {error.strerror.lower()}"
        raise InvalidInput(argument, got, remedy, code="unreadable-file") from error


def _require_exact(name: str, value: Any, loaded: Any, argument: str) -> None:
    """Refuse values that another name of the tensor, or the dtype of the model, has changed."""
    again = loaded.to(value.dtype)
    if bool(((again == value) | ((again != again) & (value != value))).all()):
        return
    if value.dtype == loaded.dtype:
        got, need = f"{name!r} and another name of this tensor with different values", "one value for each tensor"
        raise InvalidInput(argument, got, need)
    kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, loaded)]
    got = f"{name!r} in {kinds[0]}, which the {kinds[1]} of the model rounds"
    raise InvalidInput(argument, got, f"a model in {kinds[0]}: model.to(torch.{kinds[0]})", code="wrong-dtype")


def _conversion(file: Path) -> tuple[str, str]:
    """Return what a pickle holds, without opening it, and a command that converts it."""
    torch = library("torch", "--weights")
    script = zipfile.is_zipfile(file) and any("/code/" in name for name in zipfile.ZipFile(file).namelist())
    try:
        whole = not script and bool(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a file of torch.save; the command says so, too
        whole = False
    if script:
        kind, state = "a TorchScript file", f"torch.jit.load({str(file)!r}).state_dict()"
    elif whole:
        kind, state = "a pickle of a whole module", f"torch.load({str(file)!r}, weights_only=False).state_dict()"
    else:
        kind, state = "", f"torch.load({str(file)!r}, weights_only=True)"
    code = f"import torch; from safetensors.torch import save_file; state = {state}; "
    code += "" if kind else f"state = next((state[key] for key in {_KEYS} if key in state), state); "
    target = str(file.with_suffix(".safetensors"))
    code += f"save_file({{name: value.clone() for name, value in state.items()}}, {target!r})"
    return kind, "python -c " + (shlex.quote(code) if set(code) & set('"$`\\') else f'"{code}"')
