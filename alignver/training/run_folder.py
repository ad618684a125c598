"""A training run on disk: its settings, history and checkpoints, and at the end its report and certificate.

A run that was interrupted, by a signal or a failure of the machine, continues bit-identically from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from alignver import atomic, require
from alignver.data.archives import read_member, require_memory, require_room
from alignver.errors import InvalidInput, reading, saving
from alignver.kernel import load_certificate
from alignver.kernel.certificate import record
from alignver.kernel.network.graph import Graph, parse
from alignver.network.copies import deep_copy
from alignver.network.inputs import as_targets, dtype_name
from alignver.results import Report, plain
from alignver.samples import as_numbers
from alignver.theory.exploitation import objective
from alignver.theory.losses import sample_loss
from alignver.training import checkpoint
from alignver.training.exploitation import as_pair, wide
from alignver.training.loop import gap_bound, tau_epoch
from alignver.training.wrapper import EEWrapper

_FORMAT = 1
_LAST, _AT_TAU = "checkpoint.safetensors", "checkpoint-tau.safetensors"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}  # a file system without locks: the run is not refused
_MOST_JSON = 1 << 26  # bytes of a document that is read
_MOST_COPIED = 1 << 28  # bytes of inputs that are written beside a certificate
_NEED = "a new folder, or an empty one"


def require_vacant(path: str | os.PathLike[str]) -> None:
    """Raise :class:`InvalidInput` unless a run can begin at a path: it does not exist, or is an empty folder."""
    place = pathlib.Path(path)
    if place.exists() and not place.is_dir():
        raise InvalidInput("folder", f"{place}, which is not a folder", _NEED)
    if (place / "config.json").exists():
        raise InvalidInput("folder", f"{place}, which holds a run", f"{_NEED}; or resume the run that is there")
    if place.exists() and any(place.iterdir()):
        raise InvalidInput("folder", f"{place}, a folder with other files in it", _NEED)


class RunFolder:
    """The folder of one run of :class:`EEWrapper`.

    ==========================  =======================================================================================
    ``config.json``             the settings, with the checksums of data and code
    ``history.jsonl``           a line for each epoch: epoch, phase, steps, loss, error, gap (the loss minus a lower
                                bound of its infimum, rounded up); with test samples test_loss and test_error
    ``checkpoint.safetensors``  the last good state; ``checkpoint-tau.safetensors``: the last state of exploration
    ``guarantee.json``          the guarantee at the beginning of exploitation
    ``model.safetensors``       the weights at the end
    ``certificate/``            of the gap at the end, if it is proved; ``inputs.npz``: the arrays that it is about, for
                                the network its parameters, inputs and targets
    ``report.json``             the result; if it exists, the run is finished
    ==========================  =======================================================================================

    Parameters
    ----------
    path : path
    config : mapping
        As :meth:`create` wrote it.
    every : int
        Epochs from one checkpoint to the next.

    Attributes
    ----------
    history : list of dict
        The lines of ``history.jsonl`` so far.
    saved_epochs : int
        The epoch of the last checkpoint; 0 if there is none.

    Raises
    ------
    InvalidInput
        Another process uses this folder.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> place = tempfile.mkdtemp()
    >>> X, Y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    >>> wrapper = EEWrapper(net, loss="binary_cross_entropy", tau=5, exploit_optimizer="lbfgs")
    >>> with RunFolder.create(place, {"net": "2-16-1", "tau": 5}) as folder:
    ...     _ = folder.fit(wrapper, (X, Y), epochs=10)
    ...     len(folder.history), (folder.path / "checkpoint.safetensors").exists()
    (10, True)
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], *, every: int = 1) -> None:
        self.path, self.config = pathlib.Path(path), config
        self.every = require.integer("every", every, least=1)
        self.history: list[dict[str, Any]] = []
        self.saved_epochs = 0
        self._infimum, self._loss, self._tau, self._epochs = 0.0, "", 0, 0
        self._wrapper: EEWrapper | None = None
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            need = "a folder that no other process uses; end the other process first"
            raise InvalidInput("folder", f"{self.path}, on which another process is working", need) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._lock)
                raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], *, every: int = 1, **more: Any
    ) -> RunFolder:
        """Begin a run.

        Parameters
        ----------
        path : path
            A new folder, or an empty one.
        settings : mapping
            Everything that determines the run, as plain data.
        every : int
            Epochs from one checkpoint to the next.
        **more
            Further entries of ``config.json``, which :meth:`require` does not compare.

        Raises
        ------
        InvalidInput
            The path is not vacant, or it cannot be written.
        """
        require_vacant(path)
        place = pathlib.Path(path)
        config = {"format": _FORMAT, "settings": settings, **more}
        with _saving(place):
            place.mkdir(parents=True, exist_ok=True)
            folder = cls(place, config, every=every)
        try:
            folder._write("config.json", _json(config, indent=1))
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, every: int = 1) -> RunFolder:
        """Open the folder of a run; raises :class:`InvalidInput` if it holds no run."""
        return cls(path, cls.config_of(path), every=every)

    @staticmethod
    def config_of(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the ``config.json`` of a run; raises :class:`InvalidInput` if the folder holds none."""
        file, need = held(require.path("folder", path) / "config.json", _MOST_JSON), "the folder of a run"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = (getattr(error, "strerror", None) or "not JSON").lower()
            raise InvalidInput("folder", f"{file}, which cannot be read ({reason})", need, "unreadable-file") from error
        if not isinstance(config, dict) or config.get("format") != _FORMAT or "settings" not in config:
            got = f"{file} of an unknown format"
            raise InvalidInput("folder", got, f"format {_FORMAT}", "unreadable-file")
        return config

    def require(self, settings: Mapping[str, Any]) -> None:
        """Raise if the settings are not those of the run; the message names the differences."""
        there, here = self.config["settings"], json.loads(json.dumps(plain(settings)))
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if differing:
            listed = "; ".join(
                f"{name} {_short(there.get(name))} there, {_short(here.get(name))} here" for name in differing
            )
            got = f"{self.path}, a run with other settings: {listed}"
            raise InvalidInput("folder", got, "the settings of the run, or another folder")

    @property
    def report(self) -> Report | None:
        """The report at the end of the run; None while the run is not finished."""
        return report_of(self.path)

    @property
    def guarantee(self) -> Mapping[str, Any]:
        """The numbers and ``sentences`` of the guarantee at the beginning of exploitation; no sentences before it."""
        file = self.path / "guarantee.json"
        if not file.exists():
            return {"sentences": ()}
        with reading("folder", f"{file}, which cannot be read", "the original file, or a new run in another folder"):
            return {"sentences": (), **json.loads(file.read_text(encoding="utf-8"))}

    def restore(self, wrapper: EEWrapper, data: Any) -> int:
        """Restore a fresh wrapper from the last checkpoint, as :meth:`fit` does; return its epoch, 0 without one."""
        X, Y = as_pair(data)
        wrapper.prepare(X, Y)
        state = wrapper.module.state_dict().items()
        name = next((name for name, value in state if not isinstance(value, torch.Tensor)), None)
        if name is not None:  # said before the training, not at its end
            need = "a state dict of tensors, which is what a run folder keeps"
            raise InvalidInput("model", f"the state {name!r}, which is not a tensor", need, "unsupported-model")
        n, m_y = len(X), len(wrapper.module.head.hidden)
        loss = sample_loss(wrapper.loss, m_y)
        self._loss = wrapper.loss
        self._infimum = math.fsum(loss.infima(loss.targets(as_targets(Y, n), n, m_y)).tolist()) / n
        last, pickled = self.path / _LAST, self.path / "checkpoint.pt"
        if pickled.exists() and not last.exists():
            got = f"{pickled} of an earlier version, a pickle, which is never opened"
            raise InvalidInput("checkpoint", got, "that version of alignver, or a new run", code="unreadable-file")
        if last.exists():
            checkpoint.restore(wrapper, checkpoint.load(last), X, Y)
        self.saved_epochs, self.history = wrapper.epochs, [self._line(record) for record in wrapper.history]
        # Lines after the checkpoint, the last of which may be incomplete, are removed: their epochs are repeated.
        file, text = self.path / "history.jsonl", "".join(_json(line) for line in self.history)
        if (file.read_bytes() if file.exists() else b"") != text.encode():
            self._write(file.name, text)
        self._wrapper = wrapper
        return self.saved_epochs

    def fit(
        self,
        wrapper: EEWrapper,
        data: Any,
        epochs: int,
        *,
        on_epoch: Callable[[EEWrapper, Mapping[str, Any]], None] | None = None,
        **options: Any,
    ) -> EEWrapper:
        """Train as :meth:`EEWrapper.fit` does, from the last checkpoint if there is one, and write every epoch.

        Parameters
        ----------
        wrapper : EEWrapper
            Built with the settings of the run; not trained yet.
        data, epochs, **options
            As in :meth:`EEWrapper.fit`.
        on_epoch : callable, optional
            Called with the wrapper and the epoch's record once the record is written.

        Raises
        ------
        InvalidInput
            A full disk; a loss or parameters that are not finite: the last good checkpoint remains. A checkpoint that
            does not fit the wrapper.
        """
        data = as_pair(data)
        self._tau, self._epochs = tau_epoch(wrapper.tau, epochs), epochs
        if self._wrapper is not wrapper:
            self.restore(wrapper, data)

        def write(_: EEWrapper, record: Mapping[str, Any]) -> None:
            line = self._write_epoch(wrapper, record)
            if on_epoch is not None:
                on_epoch(wrapper, line)

        return wrapper.fit(data, epochs, on_epoch=write, **options)

    def finish(self, wrapper: EEWrapper, data: Any, report: Report | None = None) -> Report:
        """Write weights, certificate with its inputs, and report, in this order: the report marks a finished run.

        Without a report it is that of :meth:`EEWrapper.check`, which is returned.
        """
        wrapper.require_prepared("wrapper")
        data = as_pair(data)
        report = Report((wrapper.check(*data),)) if report is None else report
        with self._whole("model.safetensors") as part:
            save_model(wrapper.module, str(part), metadata={"alignver": json.dumps(_described(wrapper, data[0]))})
            part.chmod((self.path / "config.json").stat().st_mode)  # safetensors restricts it to the owner
        self.config = {**self.config, "weights": {"sha256": _digest(self.path / "model.safetensors")}}
        self._write("config.json", _json(self.config, indent=1))
        for certificate in (result.certificate for result in report.results):
            save = getattr(certificate, "save", None)
            if save is None:
                continue
            names = getattr(certificate, "inputs", ())
            inputs = dict(wrapper.certificate_inputs) if "parameters" in names else _inputs(wrapper, *data)
            if "X" in names:
                inputs["X"] = as_numbers(data[0], "X")
            if "x" in inputs and inputs["x"].nbytes > _MOST_COPIED and "sources" in self.config:
                del inputs["x"]  # the data are where the run read them
            with self._whole("inputs.npz") as part, part.open("wb") as stream:
                np.savez(stream, **inputs)
            with _saving(self.path / "certificate"):
                save(self.path / "certificate")
        self._write("report.json", report.to_json() + "\n")
        return report

    def _write_epoch(self, wrapper: EEWrapper, record: Mapping[str, Any]) -> dict[str, Any]:
        line, epoch, guarantee = self._line(record), wrapper.epochs, wrapper.guarantee
        if guarantee is not None and epoch == self._tau + 1:
            self._write("guarantee.json", _json({**guarantee.summary(), "sentences": guarantee.sentences}, indent=1))
        # The line is written before the checkpoint: restore removes an extra line, but could not add a missing one.
        self._append(_json(line))
        self.history.append(line)
        if epoch == self._tau:
            checkpoint.save(wrapper, self.path / _AT_TAU)
        if epoch % self.every == 0 or epoch in (self._tau, self._epochs):
            checkpoint.save(wrapper, self.path / _LAST)
            self.saved_epochs = epoch
        return line

    def _line(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**_finite(record), "gap": gap_bound(record["loss"], self._infimum, self._loss)}

    def _append(self, line: str) -> None:
        file = self.path / "history.jsonl"
        with _saving(file):
            atomic.append(file, line.encode(), sync=True)

    def _write(self, name: str, text: str) -> None:
        with self._whole(name) as part, part.open("wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[pathlib.Path]:
        """Yield a path to write to; the file appears whole or not at all."""
        with _saving(self.path / name), atomic.replacing(self.path / name) as part:
            yield part


def _described(wrapper: EEWrapper, X: Any) -> dict[str, Any]:
    """Return what builds the network from the model again: for :func:`alignver.training.saved_network.load`."""
    x = wrapper._inputs(X[:2])
    head = wrapper.module.head
    return {
        "loss": wrapper.loss,
        "outputs": len(head.hidden),
        "width": wrapper.width,
        "slope": head.slope,
        "layers": wrapper.layers,
        "shape": list(x.shape[1:]),
        "dtype": dtype_name(x.dtype),
        "probe": probe(wrapper.module, example_inputs(x.shape[1:], x.dtype)),
    }


def example_inputs(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return two inputs of a shape and dtype, always the same: drawn numbers, or zeros of integers."""
    if not dtype.is_floating_point:
        return torch.zeros(2, *shape, dtype=dtype)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@torch.no_grad()
def probe(network: nn.Module, x: torch.Tensor) -> list[float] | None:
    """Return the outputs of a network in float64, by which :func:`alignver.load` recognises it; None without any.

    A model may compute with more than its state dict has: constants, and functions. Float64 leaves machines with other
    roundings digits to agree on.
    """
    try:
        wide = deep_copy(network).cpu().double().eval()
        first, again = (wide(x.double() if x.is_floating_point() else x).reshape(-1).tolist() for _ in range(2))
    except Exception:  # code of the user that needs its own dtype
        return None
    return first if first == again and all(math.isfinite(value) for value in first) else None


def report_of(folder: pathlib.Path) -> Report | None:
    """Return the report at the end of the run in a folder; None without one."""
    file = folder / "report.json"
    if not file.exists():
        return None
    need = "the original report; without the file, the end of the run is repeated"
    with reading("folder", f"{file}, which cannot be read", need):
        return Report.from_json(held(file, _MOST_JSON).read_text(encoding="utf-8"))


def certificate_inputs(
    path: str | os.PathLike[str], data: Callable[[str], tuple[Any, Any]] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the certificate of a run is about, from the model and the data that the run folder names.

    Parameters
    ----------
    path : path
        The folder of a finished run.
    data : callable, optional
        Reads X and Y from the name of the data in ``config.json``. None, and for a run that names no data: the inputs
        and targets in ``inputs.npz``.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`, which compares their digests with those in the certificate.
    notes : tuple of str
        From which file each is read.

    Raises
    ------
    InvalidInput
        A folder without a certificate, or files that cannot be read.
    """
    place = pathlib.Path(path)
    need = "the folder of a finished run whose gap is proved"
    with reading("folder", f"{place}, whose files cannot be read", need):
        certificate = load_certificate(place / "certificate")
        config = RunFolder.config_of(place)
        with zipfile.ZipFile(held(place / "inputs.npz")) as archive:
            members = archive.namelist()
            require_room(archive, members, "folder")
            inputs = {name: read_member(archive, name, "folder") for name in (m.removesuffix(".npy") for m in members)}
        state, tied = _weights(held(place / "model.safetensors"))
    if "parameters" not in certificate.inputs:
        return inputs, (f"all inputs are read from {place / 'inputs.npz'}",)
    with reading("folder", f"{place}, whose files do not belong together", need):
        graph = parse(certificate.data["graph"])
        inputs["parameters"], others = _saved(graph, inputs["parameters"], state, tied)
        digest = config.get("weights", {}).get("sha256")
        sealed = plain(record(inputs["parameters"])) == certificate.inputs["parameters"]  # else the check says so
        if sealed and digest not in (None, _digest(place / "model.safetensors")):
            raise ValueError("model.safetensors has changed since the run")
        notes = [f"the parameters are read from {place / 'model.safetensors'}"]
        if others:
            notes.append(f"constants of the graph from {place / 'inputs.npz'}: {', '.join(others)}")
        source = config.get("sources", {}).get("data")
        if data is None or source is None:
            return inputs, (*notes, f"x and Y are read from {place / 'inputs.npz'}")
        X, Y = data(str(source))
        x = torch.as_tensor(X)
        kind = next(node.out[0][0] for node in graph.nodes if node.op == "input")
        x = x.to(getattr(torch, kind)) if x.is_floating_point() else x
        n, m_y = len(x), certificate.inputs["Y"]["shape"][1]
        targets = sample_loss(certificate.constants["loss"], m_y).targets(as_targets(Y, n), n, m_y)
        inputs |= {"x": x.double().reshape(n, -1).numpy(), "Y": targets}
        return inputs, (*notes, f"x and Y are read from {source}, X as {kind}")


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def held(file: pathlib.Path, most: float = math.inf) -> pathlib.Path:
    """Return the path of a file of a run; pipes, which could block forever, and files too large are refused."""
    if not file.is_file():
        raise InvalidInput("folder", f"{file.parent}, without {file.name}", "the folder of a run", "unreadable-file")
    size = file.stat().st_size
    if size > most:
        raise InvalidInput("folder", f"{file} of {size} bytes", f"at most {most}", "unreadable-file")
    require_memory(size, "folder")
    return file


def _weights(file: pathlib.Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """Return the saved tensors by name, and the metadata, which name the tensor that a tied one is saved as."""
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118 - no mapping


def _saved(
    graph: Graph, parameters: Any, state: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> tuple[Any, tuple[str, ...]]:
    """Return the leaves of a graph with the saved values, and the names of constants that are not saved.

    Parameters that the saved tensors lack, or have in another shape, are refused; a view of one is not saved. The trace
    computes what depends on constants alone: a saved buffer may have another name, or dtype, there.
    """
    result, place, others = parameters.copy(), 0, []
    saved = {name: tensor.double() for name, tensor in state.items() if not tensor.is_complex()}
    leaves = {leaf for name, leaf in graph.leaves().items() if name in saved}
    for node in graph.nodes:
        if node.op not in ("parameter", "constant"):
            continue
        name, shape = node.args["name"], node.out[0][1]
        part = slice(place, place := place + math.prod(shape))
        tensor = saved.get(name, saved.get(tied.get(name, "")))
        if tensor is not None and tuple(tensor.shape) == shape:
            result[0, part] = tensor.reshape(-1).numpy()
        elif node.op == "parameter" and (name in saved or node.args["leaf"] not in leaves):
            got = f"weights without the parameter {name}, {shape}, of the network in the certificate"
            raise InvalidInput("folder", got, "the model.safetensors that the run wrote", "unreadable-file")
        elif not any(np.array_equal(array.reshape(-1).numpy(), result[0, part]) for array in saved.values()):
            others.append(name)
    return result, tuple(others)


def _inputs(wrapper: EEWrapper, X: Any, Y: Any) -> dict[str, Any]:
    """Return the arrays that a certificate of the wrapper's gap is about."""
    model = wrapper.exploitation(X)
    targets = objective(model, as_targets(Y, model.n), wrapper.loss).targets
    return dict(model.inputs(wide(wrapper.module.head.hidden), targets))


def _finite(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with None for NaN and Inf, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


def _json(document: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(plain(_finite(document)), indent=indent, allow_nan=False) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "sha256" in value:
        return f"{value.get('file', '')} sha256 {value['sha256'][:8]}...".strip()
    return json.dumps(value)


def _saving(place: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return saving("folder", place, "free space on the disk, and permission to write", SafetensorError)


def require_code_elsewhere(folder: str | os.PathLike[str], model: str) -> None:
    """Refuse code of a model that lies inside the run folder that names it.

    Loading a run runs this code. A folder from somewhere else could bring its own, with the digest that fits.

    Parameters
    ----------
    folder : path
    model : str
        ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``.

    Raises
    ------
    InvalidInput
        The file, or the module or one of its packages, is inside the folder.
    """
    place, parts = model.rpartition(":")[0], model.rpartition(":")[0].split(".")
    inside, files = pathlib.Path(folder).resolve(), [place]
    if not (place.endswith(".py") or "/" in place):
        files = []
        for count in range(1, len(parts) + 1):  # a package is imported to find what is in it: it is looked at before
            if any(pathlib.Path(file).resolve().is_relative_to(inside) for file in files):
                break
            with contextlib.suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(".".join(parts[:count]))
                if spec is not None:
                    files += [*(spec.submodule_search_locations or ()), spec.origin or ""]
    if any(pathlib.Path(file).resolve().is_relative_to(inside) for file in files if file):
        got = f"{model}, code inside the run folder {folder}"
        need = "code outside of the folder, which you trust: loading a run executes it"
        raise InvalidInput("model", got, need, "unreadable-file")
