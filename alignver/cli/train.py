"""``alignver train`` runs Algorithm 1 around the user's own network; ``alignver predict`` uses a finished run."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import io
import itertools
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignver import require
from alignver.cli import input_files, model_io, options
from alignver.cli.exits import Exit, OutputFailed, ensure_writable, exit_of, write_output
from alignver.cli.options import Loss, computation
from alignver.cli.session import Session, command, given, recheck_hint, warnings_as_notes
from alignver.errors import AlignverWarning, InvalidInput, MissingDependency, renamed

if TYPE_CHECKING:
    from alignver.training.guarantee import Guarantee
    from alignver.training.run_folder import RunFolder
    from alignver.training.wrapper import EEWrapper


_run = functools.partial(typer.Option, rich_help_panel="Run")
_phases = functools.partial(typer.Option, rich_help_panel="The two phases")
_exploration = functools.partial(typer.Option, rich_help_panel="Exploration")
_SOURCES = ("model", "data", "weights", "test")
_LATER = {"exploit_batch_size": None}  # settings that runs of earlier versions do not have, and what they did
_NOT_SETTINGS = {*_SOURCES, "context", "out", "resume", "checkpoint_every"}


def _tau(text: str | float) -> float:
    """Read an integer as a number of epochs and any other number as a share; a default is not changed."""
    if isinstance(text, float):
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise typer.BadParameter(f"{text!r} is not a number")


def _size(text: str | int) -> int | str:
    """Read a number of samples, or "all"; a default is not changed."""
    if isinstance(text, int) or text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a positive integer nor 'all'")
    return int(text)


# What happens to gates whose rank is not proved.
Repair = enum.StrEnum("Repair", "STAIRCASE REDRAW NONE")


# Optimisers of the exploration phase.
Explorer = enum.StrEnum("Explorer", "SGD ADAM")


# The precision in which the model is trained.
TrainedIn = enum.StrEnum("TrainedIn", "SAME FLOAT64 FLOAT32")


@command(
    "train",
    "weights device seed json quiet verbose",
    provenance="device dtype seed",
    aliases={"layers": "--layer", "optimizer": "--lr", "every": "--checkpoint-every"},
)
def train(
    session: Session,
    context: typer.Context,
    model: Annotated[str | None, options.MODEL] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE.npz", help="The training samples: a .npz file with X and Y.")
    ] = None,
    loss: Annotated[Loss | None, options.LOSS] = None,
    epochs: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Epochs of the whole run, both phases together.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npz",
            help="Test samples; the table then shows their error.",
            show_default="none",
        ),
    ] = None,
    out: Annotated[
        str | None,
        _run(
            metavar="RUN",
            help="The run folder: a new one, or an empty one.",
            show_default="run-1, run-2, ...: the first that is free",
        ),
    ] = None,
    resume: Annotated[
        str | None, _run(metavar="RUN", help="Continue the run in this folder with its own options, bit for bit.")
    ] = None,
    checkpoint_every: Annotated[int, _run(min=1, metavar="N", help="Epochs from one checkpoint to the next.")] = 1,
    tau: Annotated[
        float,
        _phases(
            metavar="TAU",
            parser=_tau,
            help="Exploration's share of the epochs, below 1, or its number of epochs, an integer.",
        ),
    ] = 0.6,
    epsilon: Annotated[float, _phases(metavar="E", help="Size of the random step at tau.")] = 1e-3,
    gate: Annotated[float, _phases(metavar="SLOPE", help="Slope of the logistic gates.")] = 1.0,
    width: Annotated[
        int | None,
        _phases(
            min=1,
            metavar="H",
            help="Units of the last hidden layer, if one has to be added.",
            show_default="that of the model",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        _phases(
            metavar="NAME",
            help="The layer to modify; give it twice for the last two.",
            show_default="the last two linear ones",
        ),
    ] = None,
    repair: Annotated[Repair, _phases(help="What to do if rank n of the gates is not proved.")] = Repair.STAIRCASE,
    exploit_optimizer: Annotated[
        str | None,
        _phases(
            metavar="NAME",
            help="newton, lbfgs, accelerated, gd (on all samples at once); sgd, momentum, adam.",
            show_default="that of exploration, with a smaller step if it is not stable",
        ),
    ] = None,
    prove: Annotated[
        bool | None,
        _phases(
            "--prove/--no-prove",
            help="Prove the ranks at tau and the gap at the end.",
            show_default="the ranks for up to 6000 samples",
        ),
    ] = None,
    tolerance: Annotated[float, _phases(metavar="GAP", help="Largest optimality gap that holds.")] = 0.01,
    optimizer: Annotated[Explorer, _exploration(help="Optimiser of all layers.")] = Explorer.SGD,
    lr: Annotated[
        float | None, _exploration(metavar="STEP", help="Its step size.", show_default="0.1; adam 0.001")
    ] = None,
    momentum: Annotated[float | None, _exploration(metavar="M", help="Momentum of sgd.", show_default="0.9")] = None,
    weight_decay: Annotated[float, _exploration(metavar="D")] = 0.0,
    batch_size: Annotated[
        str,
        computation(metavar="N", parser=_size, help="Samples in a step: a number, or all; an epoch passes over all."),
    ] = "128",
    exploit_batch_size: Annotated[
        str | None,
        computation(
            metavar="N",
            parser=_size,
            help="The same for the exploitation phase.",
            show_default="all for newton, lbfgs, accelerated and gd, else --batch-size",
        ),
    ] = None,
    flush_denormals: Annotated[
        bool,
        computation(
            "--flush-denormals",
            help="Treat subnormal numbers as zero while training; steep softplus layers are slow otherwise.",
        ),
    ] = False,
    dtype: Annotated[
        TrainedIn, computation(help="Precision of the training; same keeps the model's own.")
    ] = TrainedIn.SAME,
) -> Exit:
    """Train in two phases, the second of which reaches a global minimum (Algorithm 1), and prove how close it came.

    MODEL is your own Python code, which is imported and run. Exploration trains all layers; exploitation the last
    hidden layer, a convex problem. The exit code is that of the optimality gap at the end.

    [bold]Examples[/bold]

      alignver train net.py:build --data t.npz --loss cross_entropy --epochs 100
      alignver train net.py:build --data t.npz --loss squared --epochs 50 --tau 0.6
      alignver train --resume run-1
    """
    with contextlib.ExitStack() as stack:
        with session.working():
            input_files.library("torch", "alignver train")
            if resume is None:
                run: _Run | RunFolder = _new_run(session, stack)
            elif out is not None:
                raise InvalidInput("--out", f"{out} with --resume", "one of the two", code="conflicting-arguments")
            else:
                run = _resumed_run(session, {name for name in context.params if given(context, name)}, stack)
        return _train(session, run) if isinstance(run, _Run) else _show_finished(session, run)


@dataclasses.dataclass(frozen=True)
class _Run:
    folder: RunFolder
    wrapper: EEWrapper
    X: Any
    Y: Any
    test: tuple[Any, Any] | None
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]


def _sources_and_settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that name the model and the data, and those that decide the run."""
    settings = {name: value for name, value in options.items() if name not in _NOT_SETTINGS}
    return {name: options[name] for name in _SOURCES}, {**settings, "layer": options["layer"] or None}


def _new_run(session: Session, stack: contextlib.ExitStack) -> _Run:
    from alignver.training.run_folder import RunFolder, require_vacant

    sources, settings = _sources_and_settings(session.options)
    required = {"MODEL": sources["model"], "--data": sources["data"]}
    required |= {f"--{name}": settings[name] for name in ("loss", "epochs")}
    for name, value in required.items():
        if value is None:
            raise InvalidInput(name, "no value", "MODEL, --data, --loss and --epochs; or --resume RUN")
    with input_files.rename_options({"folder": "--out"}):
        if session.options["out"] is not None:
            require_vacant(session.options["out"])
        settings = _completed(settings)
        wrapper, samples, identity, inputs = _prepared(sources, settings)
        place, every = session.options["out"] or _free_name(), session.options["checkpoint_every"]
        folder = RunFolder.create(place, identity, every=every, sources=sources, environment=model_io.environment())
    stack.callback(folder.close)
    return _Run(folder, wrapper, *samples, settings, inputs)


def _resumed_run(session: Session, explicit: set[str], stack: contextlib.ExitStack) -> _Run | RunFolder:
    """Return the run to continue, or its folder alone if the run is finished.

    ``explicit`` are the options on the command line: they must agree with those of the run.
    """
    from alignver.training.run_folder import RunFolder, require_code_elsewhere

    sources, settings = _sources_and_settings(session.options)
    with input_files.rename_options({"folder": "--resume"}):
        folder = RunFolder.open(session.options["resume"], every=session.options["checkpoint_every"])
        stack.callback(folder.close)
        recorded = {**_LATER, **folder.config["settings"]}
        if not {"sources", "environment"} <= set(folder.config) or not set(settings) <= set(recorded):
            raise InvalidInput("--resume", f"{folder.path}, which another program created", "a run of 'alignver train'")
        folder.require({**recorded, **{name: value for name, value in settings.items() if name in explicit}})
        settings = {name: recorded[name] for name in settings}
        session.device, session.dtype, session.seed = settings["device"], settings["dtype"], settings["seed"]
        finished = folder.report is not None
        if finished and not explicit & set(_SOURCES):
            return folder
        sources = {name: sources[name] or folder.config["sources"].get(name) for name in _SOURCES}
        if "model" not in explicit:
            require_code_elsewhere(folder.path, sources["model"])
        wrapper, samples, identity, inputs = _prepared(sources, settings)
        folder.require(identity)
    for change in _changes(folder.config["environment"], model_io.environment()):
        session.note(f"{change}: the resumed run may differ in the last bits")
    return folder if finished else _Run(folder, wrapper, *samples, settings, inputs)


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the defaults that depend on other options; refuse options that exclude each other."""
    adam, lr, momentum = settings["optimizer"] == "adam", settings["lr"], settings["momentum"]
    if adam and momentum is not None:
        got = f"{momentum} with --optimizer adam"
        raise InvalidInput("--momentum", got, "--optimizer sgd, which has one", code="conflicting-arguments")
    require.real("--tolerance", settings["tolerance"], above=0, need="a positive finite number")
    if lr is None:
        lr = 1e-3 if adam else 0.1
    if momentum is None and not adam:
        momentum = 0.9
    return {**settings, "lr": lr, "momentum": momentum}


def _prepared(
    sources: Mapping[str, str | None], settings: Mapping[str, Any]
) -> tuple[EEWrapper, tuple[Any, Any, Any], dict[str, Any], dict[str, Any]]:
    """Return the wrapper; X, Y and the test samples; what decides the run; and what identifies its inputs."""
    from alignver.report.provenance import inputs_of
    from alignver.training.exploitation import numbered_classes
    from alignver.training.loop import planned, tau_epoch
    from alignver.training.wrapper import EEWrapper

    model, data = sources["model"], sources["data"]
    assert model is not None
    assert data is not None
    tau_epoch(settings["tau"], settings["epochs"])
    samples = input_files.read_npz(data, "--data", ("X", "Y"))
    tests = None if sources["test"] is None else input_files.read_npz(sources["test"], "--test", ("X", "Y"))
    net, identity = model_io.load({**sources, **settings})
    optimizer = model_io.optimizer(*(settings[name] for name in ("optimizer", "lr", "momentum", "weight_decay")))
    same_names = ("loss", "tau", "epsilon", "gate", "exploit_optimizer", "seed", "repair", "width")
    of_test = input_files.file_argument("--test", sources["test"] or "")
    with (
        input_files.rename_argument({"X": f"{data}:X", "Y": f"{data}:Y", "model": model}),
        renamed({"test": of_test}),
    ):
        if settings["loss"] != "squared":
            samples["Y"], classes = numbered_classes(samples["Y"], tests and tests["Y"])
            tests = tests and {**tests, "Y": classes}
        wrapper = EEWrapper(
            model_io.in_dtype(net, settings["dtype"]),
            optimizer=optimizer,
            layers=None if settings["layer"] is None else tuple(settings["layer"]),
            **{name: settings[name] for name in same_names},
        )
        wrapper.prepare(samples["X"], samples["Y"])
        if tests is not None:
            wrapper.require_like(samples["X"], tests["X"], tests["Y"])
        planned(
            wrapper, len(samples["X"]), *(settings[name] for name in ("epochs", "batch_size", "exploit_batch_size"))
        )
    held_out = inputs_of({} if tests is None else {f"{name}_test": array for name, array in tests.items()})
    inputs = {**identity, **inputs_of(samples), **held_out}
    hashes = {name: {"sha256": identity[name]["sha256"]} if name in identity else None for name in ("model", "weights")}
    run = {"function": model.rpartition(":")[2], "code": hashes["model"], "weights": hashes["weights"]}
    arrays = samples["X"], samples["Y"], None if tests is None else (tests["X"], tests["Y"])
    return wrapper, arrays, {**settings, **run, "X": inputs["X"], "Y": inputs["Y"], **held_out}, inputs


def _data_sentences(run: _Run) -> tuple[str, ...]:
    """Return sentences about equal samples, which limit every training: conflicts, and repetitions."""
    from alignver.checks.data import check_data

    result = check_data(run.X, run.Y, loss=run.settings["loss"])
    if result.measured["distinct"] == result.measured["samples"]:
        return ()
    conflict = (result.reason, result.evidence[0]) if result.measured["conflicts"]["count"] else ()
    return (*conflict, result.evidence[-1])


def _train(session: Session, run: _Run) -> Exit:
    from alignver.report.progress import EpochTable
    from alignver.training.loop import advice, tau_epoch

    folder, wrapper, settings, data = run.folder, run.wrapper, run.settings, (run.X, run.Y)
    epochs, size, prove = settings["epochs"], settings["batch_size"], settings["prove"]
    tau = tau_epoch(settings["tau"], epochs)
    table = EpochTable(sys.stderr, epochs)
    batched = size not in (None, "all") and size < len(run.X)

    def note(message: str) -> None:
        if not session.quiet:
            table.note(message)

    def epoch(trained: EEWrapper, record: Mapping[str, Any]) -> None:
        session.interrupt_message = _interrupt_message(folder)
        if record["epoch"] == tau + 1:
            for sentence in folder.guarantee["sentences"]:
                note(sentence)
        if not session.quiet:
            table.epoch(
                record,
                _rank(trained.guarantee),
                last_of_phase=record["epoch"] == tau,
                estimated=batched and record["phase"] == "exploration",
            )

    with session.working(display=table.shown()), warnings_as_notes(note), _resumable(folder, wrapper):
        warnings.simplefilter("always", AlignverWarning)
        done = folder.restore(wrapper, data)
        session.interrupt_message = _interrupt_message(folder)
        table.continue_after(done)
        if done:
            note(f"{folder.path}: resuming after epoch {done} of {epochs}")
        else:
            for sentence in (*wrapper.module.changes, *_data_sentences(run)):
                note(sentence)
        flush = settings["flush_denormals"]
        folder.fit(
            wrapper, data, epochs, batch_size=size, exploit_batch_size=settings["exploit_batch_size"], test=run.test,
            prove=prove, flush_denormals=flush, on_epoch=epoch,
        )  # fmt: skip
        tolerance = settings["tolerance"]
        result = wrapper.check(run.X, run.Y, tolerance=tolerance, certify=prove is not False, rank=prove)
        gap = folder.history[-1]["gap"]
        if result.verdict != "HOLDS" and gap > tolerance:
            result = dataclasses.replace(result, next_steps=advice(wrapper.history, gap, tolerance, wrapper.exploiting))
        training = {"epochs": epochs, "tau": tau, "last": folder.history[-1], "at_tau": folder.guarantee}
        session.files = dict.fromkeys(("X", "Y"), session.options["data"] or folder.config["sources"]["data"])
        report = session.report((result,), run.inputs, training=training)
        folder.finish(wrapper, data, report)
        _draw(session, folder, tau)
    session.present((result,), report, run.inputs, tuple(_notes(folder)))
    return exit_of(result.verdict)


def _show_finished(session: Session, folder: RunFolder) -> Exit:
    """Show the report of a run that is finished already."""
    report = folder.report
    assert report is not None
    session.note(f"{folder.path} is finished: nothing was trained, this is its report")
    session.present(report.results, report, None, tuple(_notes(folder)))
    return exit_of(report.verdict)


def _notes(folder: RunFolder) -> Iterator[str]:
    """Yield what was proved at tau, and what the folder holds."""
    place = folder.path
    for sentence in folder.guarantee["sentences"]:
        yield f"at tau: {sentence}"
    if (place / "certificate").is_dir():
        yield recheck_hint(str(place / "certificate"), run=str(place))
    names = ("history.jsonl", "checkpoint.safetensors", "model.safetensors", "report.json", "training.png")
    yield f"run folder {place}: {', '.join(name for name in names if (place / name).exists())}"


def _draw(session: Session, folder: RunFolder, tau: int) -> None:
    """Draw the run if matplotlib is installed."""
    from alignver.report import plots

    history = folder.history
    epochs, losses, gaps, errors = ([record[key] for record in history] for key in ("epoch", "loss", "gap", "error"))
    tests = [record["test_error"] for record in history] if history[-1].get("test_error") is not None else None
    try:
        figure = plots.training(epochs, losses, gaps, None if errors[-1] is None else errors, tau=tau, test_error=tests)
    except MissingDependency as missing:
        session.note(f"no training.png: {missing}")
        return
    file, content = folder.path / "training.png", io.BytesIO()
    figure.savefig(content, format="png")
    try:
        write_output("--out", str(file), content.getvalue())
    except OutputFailed as failed:  # the numbers in the figure are saved already
        session.note(str(failed))


def _rank(guarantee: Guarantee | None) -> str:
    """Return the cell of the table that says which ranks are proved."""
    if guarantee is None:
        return "-"
    if guarantee.after is None:
        return "not checked"
    proved = sum(entry is not None for entry in guarantee.after.entries)
    outputs = len(guarantee.after.entries)
    if proved == outputs:
        return f"n = {guarantee.model.n}, proved"
    return f"n for {proved} of {outputs} outputs" if proved else "not proved"


def _resume_command(folder: RunFolder) -> str:
    return f"alignver train --resume {shlex.quote(str(folder.path))}"


def _interrupt_message(folder: RunFolder) -> str:
    where = f"after epoch {folder.saved_epochs}" if folder.saved_epochs else "from its beginning"
    return f"interrupted; resume {where} with: {_resume_command(folder)}"


@contextlib.contextmanager
def _resumable(folder: RunFolder, wrapper: EEWrapper) -> Iterator[None]:
    """Add to an error of the library how to continue the run."""
    try:
        yield
    except InvalidInput as error:
        if error.argument == "optimizer":
            option = "--lr" if wrapper.phase == "exploration" else "--exploit-optimizer"
            intact = (
                f"; {folder.path / 'checkpoint.safetensors'} is good, after epoch {folder.saved_epochs}"
                if folder.saved_epochs
                else ""
            )
            raise InvalidInput(option, error.got, f"a smaller step, in a new run{intact}", error.code) from error
        if error.argument in ("checkpoint", "folder"):
            need = f"{error.need}; then: {_resume_command(folder)}"
            raise InvalidInput(error.argument, error.got, need, error.code) from error
        raise


def _free_name() -> str:
    return next(name for k in itertools.count(1) if not os.path.lexists(name := f"run-{k}"))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            yield f"{name} {before[name]} when the run began, {now[name]} now"


@command("predict", "device quiet verbose", provenance="device")
def predict(
    session: Session,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run of 'alignver train'.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="The inputs: a .npz file with X (and Y), or .npy, .csv.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE.npy", help="Where to write the predictions.", show_default="stdout"),
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="Probabilities instead of labels.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The code of the model, if it was moved since the run.",
            show_default="that of the run",
        ),
    ] = None,
) -> Exit:
    """Predict with a trained network: labels, or values for the squared loss.

    One line for each sample on stdout, or a .npy file. If the data contain targets, the error is printed on stderr.

    [bold]Examples[/bold]

      alignver predict run-1 --data test.npz
      alignver predict run-1 --data test.npz --proba --out probabilities.npy
    """
    ensure_writable("--out", out)
    if out is not None and not out.endswith(".npy"):
        raise InvalidInput("--out", out, "a name that ends in .npy")
    with session.working():
        input_files.library("torch", "alignver predict")
        import numpy as np

        from alignver.training.saved_network import load

        archive = input_files.is_archive(data)
        with_targets = archive and "Y" in input_files.names_in(data, "--data")
        samples = input_files.read_npz(data, "--data", ("X", "Y") if with_targets else ("X",)) if archive else {}
        X = samples["X"] if archive else input_files.read_matrix(data, "--data")
        with input_files.rename_argument({"X": data, "folder": run}):
            network = load(run, model=None if model is None else functools.partial(model_io.built, model))
            network.to(input_files.torch_device(session.device))
            answers = (network.predict_proba(X) if proba else network.predict(X)).cpu().numpy()
        measured = network.evaluate(X, samples["Y"]) if with_targets else {}
    if measured:
        known = {name: value for name, value in measured.items() if not math.isnan(value)}
        session.note(f"{len(X)} samples: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items()))
    if out is not None:
        content = io.BytesIO()
        np.save(content, answers)
        write_output("--out", out, content.getvalue())
        session.note(f"{out}: {len(answers)} predictions")
        return Exit.HOLDS
    for row in answers.reshape(len(answers), -1):
        typer.echo(" ".join(f"{value:g}" if value.dtype.kind == "f" else str(value) for value in row))
    return Exit.HOLDS
