"""What ``alignver train`` does: a run begun or taken up, trained, checked, kept and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignver.cli import input_files, model_io
from alignver.cli.exits import Exit, OutputFailed, exit_of, write_output
from alignver.cli.input_files import library
from alignver.cli.session import Session, recheck_hint
from alignver.errors import InvalidInput, MissingDependency
from alignver.results import Report

if TYPE_CHECKING:
    from alignver.training.guarantee import Guarantee
    from alignver.training.run_folder import RunFolder
    from alignver.training.wrapper import EEWrapper

__all__ = ["Request", "conduct"]

_SOURCES = ("model", "data", "weights")
_OPTIONS = {"layers": "--layer", "optimizer": "--lr", "every": "--checkpoint-every"}
_OPTIONS |= {
    name: f"--{name.replace('_', '-')}"
    for name in ("batch_size", "epochs", "epsilon", "exploit_optimizer", "gate", "loss", "repair", "tau", "tolerance")
}
_OPTIONS["width"] = "--width"


@dataclasses.dataclass(frozen=True)
class Request:
    """What the person asked for.

    Attributes
    ----------
    sources : mapping
        ``model``, ``data`` and ``weights`` as they were given, or None.
    options : mapping
        What else decides the run, by the option's name.
    given : set of str
        Names of the options and sources that were given, and are no defaults.
    out, resume : str or None
    every : int
        Epochs from one checkpoint to the next.
    """

    sources: Mapping[str, str | None]
    options: Mapping[str, Any]
    given: set[str]
    out: str | None
    resume: str | None
    every: int


@dataclasses.dataclass(frozen=True)
class _Finished:
    folder: RunFolder
    report: Report


@dataclasses.dataclass(frozen=True)
class _Run:
    folder: RunFolder
    wrapper: EEWrapper
    X: Any
    Y: Any
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]


def conduct(session: Session, request: Request) -> Exit:
    """Begin or take up a run, train it to its end, and report the optimality gap."""
    with contextlib.ExitStack() as stack:
        with session.working():
            library("torch", "alignver train")
            prepared = _taken_up(session, request, stack) if request.resume is not None else _begun(request, stack)
        if isinstance(prepared, _Finished):
            return _told(session, prepared.folder, prepared.report)
        return _trained(session, prepared)


def _begun(request: Request, stack: contextlib.ExitStack) -> _Run:
    from alignver.training.run_folder import RunFolder, vacant

    options = dict(request.options)
    for name, value in (
        ("MODEL", request.sources["model"]),
        ("--data", request.sources["data"]),
        ("--loss", options["loss"]),
        ("--epochs", options["epochs"]),
    ):
        if value is None:
            raise InvalidInput(name, "no value", "MODEL, --data, --loss and --epochs; or --resume RUN")
    with _named("--out"):
        if request.out is not None:
            vacant(request.out)
        settled = _settled(options)
        wrapper, X, Y, settings, inputs = _built(request.sources, settled)
        place = request.out if request.out is not None else _free()
        folder = RunFolder.create(
            place, settings, every=request.every, sources=request.sources, environment=model_io.environment()
        )
    stack.callback(folder.close)
    return _Run(folder, wrapper, X, Y, settled, inputs)


def _taken_up(session: Session, request: Request, stack: contextlib.ExitStack) -> _Run | _Finished:
    from alignver.training.run_folder import RunFolder

    assert request.resume is not None
    if request.out is not None:
        raise InvalidInput("--out", f"{request.out} beside --resume", "one of the two")
    with _named("--resume"):
        folder = RunFolder.open(request.resume, every=request.every)
        stack.callback(folder.close)
        kept = folder.config["settings"]
        if not {"sources", "environment"} <= set(folder.config) or not set(request.options) <= set(kept):
            raise InvalidInput("--resume", f"{folder.path}, begun by something else", "a run of 'alignver train'")
        own = {name: value for name, value in request.options.items() if name in request.given}
        folder.require({**kept, **own})
        options = {name: kept[name] for name in request.options}
        session.device, session.dtype, session.seed = options["device"], options["dtype"], options["seed"]
        report = folder.report
        if report is not None and not request.given & set(_SOURCES):
            return _Finished(folder, report)
        sources = {name: request.sources[name] or folder.config["sources"][name] for name in _SOURCES}
        wrapper, X, Y, settings, inputs = _built(sources, options)
        folder.require(settings)
    for change in _changes(folder.config["environment"], model_io.environment()):
        session.note(f"{change}: the run may not go on bit for bit")
    return _Run(folder, wrapper, X, Y, options, inputs) if report is None else _Finished(folder, report)


def _settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what depends on other options, and refuse what does not go together."""
    settled = dict(options)
    adam = settled["optimizer"] == "adam"
    if adam and settled["momentum"] is not None:
        raise InvalidInput("--momentum", f"{settled['momentum']} beside --optimizer adam", "sgd, which has one")
    if not 0.0 < settled["tolerance"] < math.inf:
        raise InvalidInput("--tolerance", f"{settled['tolerance']}", "a positive finite number")
    settled["lr"] = (1e-3 if adam else 0.1) if settled["lr"] is None else settled["lr"]
    settled["momentum"] = 0.9 if settled["momentum"] is None and not adam else settled["momentum"]
    return settled


def _built(
    sources: Mapping[str, str | None], options: Mapping[str, Any]
) -> tuple[EEWrapper, Any, Any, dict[str, Any], dict[str, Any]]:
    """Return the wrapper, X, Y, what decides the run, and what identifies its inputs in a report."""
    from alignver.report.provenance import inputs_of
    from alignver.training.loop import planned, tau_epoch
    from alignver.training.wrapper import EEWrapper

    model, data = sources["model"], sources["data"]
    assert model is not None
    assert data is not None
    with _named():
        tau_epoch(options["tau"], options["epochs"])
    samples = input_files.read_npz(data, "--data", ("X", "Y"))
    net, identity = model_io.load(model, sources["weights"], device=options["device"], seed=options["seed"])
    with _named(), input_files.rename_argument({"X": f"{data}:X", "Y": f"{data}:Y", "model": model}):
        wrapper = EEWrapper(
            model_io.in_dtype(net, options["dtype"]),
            loss=options["loss"],
            tau=options["tau"],
            epsilon=options["epsilon"],
            gate=options["gate"],
            optimizer=model_io.optimizer(
                options["optimizer"], options["lr"], options["momentum"], options["weight_decay"]
            ),
            exploit_optimizer=options["exploit_optimizer"],
            seed=options["seed"],
            repair=options["repair"],
            width=options["width"],
            layers=None if options["layer"] is None else tuple(options["layer"]),
        )
        wrapper.prepare(samples["X"], samples["Y"])
        planned(wrapper, len(samples["X"]), options["epochs"], options["batch_size"])
    inputs = {**identity, **inputs_of(samples)}
    code = {"function": model.rpartition(":")[2], "code": _content(identity, "model")}
    settings = {**options, **code, "weights": _content(identity, "weights"), "X": inputs["X"], "Y": inputs["Y"]}
    return wrapper, samples["X"], samples["Y"], settings, inputs


def _of_data(run: _Run) -> tuple[str, ...]:
    """Say before the first epoch what no training gets around: conflicts, and samples that repeat others."""
    from alignver.checks.data import check_data

    found = check_data(run.X, run.Y, loss=run.options["loss"])
    if found.measured["distinct"] == found.measured["samples"]:
        return ()
    conflict = (found.reason, found.evidence[0]) if found.measured["conflicts"]["count"] else ()
    return (*conflict, found.evidence[-1])


def _content(identity: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    return {"sha256": identity[name]["sha256"]} if name in identity else None


def _trained(session: Session, run: _Run) -> Exit:
    from alignver.report.progress import EpochTable
    from alignver.training.loop import tau_epoch

    folder, wrapper, options, data = run.folder, run.wrapper, run.options, (run.X, run.Y)
    epochs, size = options["epochs"], options["batch_size"]
    tau = tau_epoch(options["tau"], epochs)
    table = EpochTable(sys.stderr, epochs)
    batched = size is not None and size < len(run.X)
    noted = table.note if not session.quiet else lambda _: None

    def epoch(own: EEWrapper, record: Mapping[str, Any]) -> None:
        session.farewell = _farewell(folder)
        if record["epoch"] == tau + 1:
            for sentence in folder.guarantee["sentences"]:
                noted(sentence)
        if not session.quiet:
            exploring = record["phase"] == "exploration"
            table.epoch(
                record,
                _rank(own.guarantee),
                last_of_phase=record["epoch"] == tau,
                estimated=batched and exploring,
            )

    with session.working(display=table.shown()), _heard(noted), _resumable(folder, wrapper):
        done = folder.restore(wrapper, data)
        session.farewell = _farewell(folder)
        table.go_on(done)
        for change in (
            wrapper.module.changes if not done else (f"{folder.path}: resuming after epoch {done} of {epochs}",)
        ):
            noted(change)
        for sentence in () if done else _of_data(run):
            noted(sentence)
        folder.fit(
            wrapper,
            data,
            epochs,
            batch_size=size,
            prove=options["prove"],
            flush_denormals=options["flush_denormals"],
            on_epoch=epoch,
        )
        prove = options["prove"]
        result = wrapper.check(run.X, run.Y, tolerance=options["tolerance"], certify=prove is not False, rank=prove)
        known = {"epochs": epochs, "tau": tau, "last": folder.history[-1], "at_tau": folder.guarantee}
        report = session.report((result,), run.inputs, training=known)
        folder.finish(wrapper, data, report)
        _draw(session, folder, tau)
    if session.json:
        session.write(report)
    else:
        session.show(result, tuple(_notes(folder)))
        session.show_provenance(run.inputs)
    return exit_of(result.verdict)


def _told(session: Session, folder: RunFolder, report: Report) -> Exit:
    """Report a run that is finished already."""
    session.note(f"{folder.path} is finished: nothing was trained, this is what was found at its end")
    if session.json:
        session.write(report)
    else:
        for result in report.results:
            session.show(result, tuple(_notes(folder)))
    return exit_of(report.verdict)


def _notes(folder: RunFolder) -> Iterator[str]:
    """Say what was known at tau, and what the folder holds."""
    place = folder.path
    for sentence in folder.guarantee["sentences"]:
        yield f"at tau: {sentence}"
    if (place / "certificate").is_dir():
        yield recheck_hint(str(place / "certificate"), ["--input", str(place / "inputs.npz")])
    names = ("history.jsonl", "checkpoint.pt", "model.safetensors", "report.json", "training.png")
    yield f"run folder {place}: {', '.join(name for name in names if (place / name).exists())}"


def _draw(session: Session, folder: RunFolder, tau: int) -> None:
    """Draw the run, where matplotlib is installed."""
    from alignver.report import plots

    history = folder.history
    error = None if history[-1]["error"] is None else [record["error"] for record in history]
    try:
        figure = plots.training(
            [record["epoch"] for record in history],
            [record["loss"] for record in history],
            [record["gap"] for record in history],
            error,
            tau=tau,
        )
    except MissingDependency as missing:
        session.note(f"no training.png: {missing}")
        return
    file, content = folder.path / "training.png", io.BytesIO()
    figure.savefig(content, format="png")
    try:
        write_output("--out", str(file), content.getvalue())
    except OutputFailed as failed:  # a picture of what is kept already
        session.note(str(failed))


def _rank(found: Guarantee | None) -> str:
    """Say in a cell of the table what is proved of the ranks."""
    if found is None:
        return "-"
    if found.after is None:
        return "not looked at"
    good = sum(entry is not None for entry in found.after.entries)
    outputs = len(found.after.entries)
    if good == outputs:
        return f"n = {found.model.n}, proved"
    return f"n for {good} of {outputs} outputs" if good else "not proved"


def _again(folder: RunFolder) -> str:
    return f"alignver train --resume {shlex.quote(str(folder.path))}"


def _farewell(folder: RunFolder) -> str:
    where = f"after epoch {folder.kept}" if folder.kept else "from its beginning"
    return f"interrupted; resume {where} with: {_again(folder)}"


@contextlib.contextmanager
def _heard(noted: Any) -> Iterator[None]:
    """Turn the library's warnings about the run into remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = lambda message, *_rest, **_more: noted(f"warning: {message}")
        yield


@contextlib.contextmanager
def _resumable(folder: RunFolder, wrapper: EEWrapper) -> Iterator[None]:
    """Say in what the library refuses how the run goes on."""
    try:
        with _named():
            yield
    except InvalidInput as error:
        if error.argument == _OPTIONS["optimizer"]:
            option = "--lr" if wrapper.phase == "exploration" else "--exploit-optimizer"
            good = f"; {folder.path / 'checkpoint.pt'} is good, after epoch {folder.kept}" if folder.kept else ""
            raise InvalidInput(option, error.got, f"a smaller step, in a new run{good}") from error
        if error.argument in ("checkpoint", "folder"):
            raise InvalidInput(error.argument, error.got, f"{error.need}; then: {_again(folder)}") from error
        raise


@contextlib.contextmanager
def _named(folder: str = "folder") -> Iterator[None]:
    """Name the option where the library names its argument, the one of the run folder as said."""
    try:
        yield
    except InvalidInput as error:
        option = folder if error.argument == "folder" else _OPTIONS.get(error.argument)
        if option is not None:
            raise InvalidInput(option, error.got, error.need) from error
        raise


def _free() -> str:
    return next(name for k in itertools.count(1) if not os.path.lexists(name := f"run-{k}"))


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in there.keys() & here.keys():
        if there[name] != here[name]:
            yield f"{name} {there[name]} when the run began, {here[name]} now"
