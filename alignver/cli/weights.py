"""The option ``--weights``: safetensors files, read into a model without rounding. Pickles are never opened."""

from __future__ import annotations

import hashlib
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

from alignver.cli.input_files import file_argument, library, regular
from alignver.errors import InvalidInput, reading

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_INDEX, _ONE = "model.safetensors.index.json", "model.safetensors"
_NEED = "the weights of this model"
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
        raise InvalidInput(argument, got, _NEED, code="wrong-shape") from error
    known = {id(present[name]) for name in state if name in present}
    missing = [name for name in missing if name not in present or id(present[name]) not in known]
    if missing or unexpected:
        parts = [f"without {', '.join(sorted(missing)[:4])}"] if missing else []
        parts += [f"with {', '.join(sorted(unexpected)[:4])}, which the model does not have"] if unexpected else []
        raise InvalidInput(argument, "weights " + " and ".join(parts), _NEED)
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
