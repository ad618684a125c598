"""``alignver verify`` checks a certificate again; ``alignver report`` makes a page and JUnit XML of a report."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignver.cli import input_files, model_io
from alignver.cli.exits import Exit, ensure_writable
from alignver.cli.options import Loss
from alignver.cli.session import Session, command
from alignver.errors import InvalidInput
from alignver.limits import OutOfTime, memory_limit, out_of_time, time_limit
from alignver.results import CheckResult, Rigor, Subject, Verdict

_alignment = functools.partial(typer.Option, rich_help_panel="Alignment")


@command("report", "junit quiet verbose")
def report(
    session: Session,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, its history.jsonl, or a file that --json wrote.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The HTML page; an existing file is replaced.",
            show_default="report.html in the run folder, or next to the file",
            rich_help_panel="Output",
        ),
    ] = None,
) -> Exit:
    """Write a report as an HTML page: verdicts first, then evidence, then provenance.

    The page is one file that loads nothing else. The exit code is 0 if it is written, whatever the verdict.

    [bold]Examples[/bold]

      alignver report run-1
      alignver report run-1/history.jsonl -o so-far.html
      alignver report found.json -o report.html --junit report.xml
    """
    place = Path(run)
    session.html = out if out is not None else str((place if place.is_dir() else place.parent) / "report.html")
    ensure_writable("--html", session.html)
    with session.working():
        from alignver.report.source import read

        source = read(place)
        if source.report is None and session.junit is not None:
            raise InvalidInput("--junit", f"{run}, without a verdict", "a finished run")
        session.keep_source(source)
    return Exit.HOLDS


@command(
    "verify",
    "select weights eval_mode device dtype seed chunk_size max_seconds max_memory html junit json quiet verbose",
    aliases={"certificate": "CERT"},
)
def verify(
    session: Session,
    certificate: Annotated[
        str, typer.Argument(metavar="CERT", help="The folder that --certificate wrote; or a run folder.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=FILE",
            help="An input of the claim by its name there, one option for each; or FILE.npz for all its arrays.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        _alignment(
            metavar="MODEL",
            help="For a certificate of 'check alignment', or about a model's features: the model, FILE.py:FUNCTION or "
            "package.module:FUNCTION. The code is imported and run.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        _alignment(metavar="FILE.npz", help="The samples: X and Y; for a run folder, in place of those that it names."),
    ] = None,
    loss: Annotated[
        Loss | None, _alignment(metavar="LOSS", help="squared, binary_cross_entropy or cross_entropy.")
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FOLDER",
            help="If it holds, for a certificate about a network: write its graph for other tools, as graph.onnx and "
            "bounds.json (extra alignver\\[onnx]).",
            rich_help_panel="Output",
        ),
    ] = None,
) -> Exit:
    """Check a certificate again.

    The checker imports none of the code that produces certificates. Give every input of the claim; for an alignment,
    give the model, the data and the loss, from which the inputs are computed again; features of a model need no loss.
    A run folder names its data and has the model: it needs nothing else.

    [bold]Examples[/bold]

      alignver verify proof --input J=J.npy --input y=y.npy
      alignver verify proof --input A=data.npz:A --json
      alignver verify run-1
      alignver verify proof --model net.py:build --data train.npz --loss cross_entropy
      alignver verify proof --model net.py:build --data train.npz --loss cross_entropy --export graph
    """
    with session.working():
        from alignver.checks.recheck import recheck

        if export is not None:
            from alignver.report.onnx_graph import require_onnx

            require_onnx()  # before anything that takes time
        files = _split(inputs or [])
        began = time.perf_counter()
        try:
            with time_limit(session.options["max_seconds"]), memory_limit(session.options["max_memory"]):
                certificate, arrays, identity, notes, about_model = _inputs(session.options, files)
                with input_files.rename_argument(files):
                    result = recheck(certificate, **arrays)
        except OutOfTime as error:
            result = out_of_time(error, "recheck", "Certificate", Subject.COMPUTED_MATRIX, time.perf_counter() - began)
            arrays, identity, notes, about_model = {}, {}, (), True
        result = dataclasses.replace(result, evidence=(*result.evidence, *notes))
        if not about_model and result.verdict is Verdict.HOLDS:
            result = _undecided(result, notes[0])
        if export is not None and result.verdict is Verdict.HOLDS:
            from alignver.kernel import load_certificate
            from alignver.report.graph_export import export_graph

            needed = {name: arrays[name] for name in ("parameters", "x") if name in arrays}
            export_graph(load_certificate(certificate), export, **needed)
    return session.finish(result, inputs={**arrays, **identity})


def _inputs(
    given: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...], bool]:
    """Return the certificate, its inputs, what identifies their source, notes, and whether it is about the model."""
    certificate, model, data, loss = (given[name] for name in ("certificate", "model", "data", "loss"))
    weights, target = given["weights"], Path(certificate)
    if (target / "config.json").is_file():
        if files or any(value is not None for value in (model, loss, weights)):
            got, need = "other options with a run folder", "the run folder alone, or with --data"
            raise InvalidInput("CERT", got, need, code="conflicting-arguments")
        arrays, notes = _of_a_run(target, data)
        return str(target / "certificate"), arrays, {}, notes, True
    if any(value is not None for value in (model, data, loss, weights)):
        if files:
            raise InvalidInput("--input", "inputs with --model", "one or the other", code="conflicting-arguments")
        option = "--model" if model is None else "--data" if data is None else "--loss" if loss is None else ""
        if option and (option != "--loss" or _claim(certificate) != "network-exploration"):
            need = "--model, --data and --loss together"
            raise InvalidInput(option, "no value", need, code="conflicting-arguments")
        return certificate, *_alignment_inputs(given)
    if not files and (needs := _needs(_claim(certificate))):
        raise InvalidInput("inputs", "none", needs, code="conflicting-arguments")
    readers = {"y": input_files.read_vector}  # the only input of a claim that is a vector
    arrays = {name: readers.get(name, input_files.read_matrix)(file, name) for name, file in files.items()}
    return certificate, arrays, {}, (), True


def _of_a_run(folder: Path, data: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the inputs of a run's certificate, and from which files they are read."""
    input_files.library("torch", "checking the certificate of a run")
    from alignver.kernel.certificate import Tampered
    from alignver.training.run_folder import certificate_inputs

    def samples(source: str) -> tuple[Any, Any]:
        arrays = input_files.read_npz(data or source, "--data", ("X", "Y"))
        return arrays["X"], arrays["Y"]

    try:
        arrays, notes = certificate_inputs(folder, samples)
    except Tampered:
        return {}, ()  # the checker says what is wrong with it
    return arrays, notes if data is None else (*notes, f"--data {data} is read in place of the data of the run")


def _undecided(result: CheckResult, reason: str) -> CheckResult:
    """Return the result if the proof holds for the factors in the certificate and not for the model."""
    evidence = (f"about the factors in the certificate: {result.reason}",)
    return dataclasses.replace(
        result, verdict=Verdict.UNDECIDED, rigor=Rigor.NUMERICAL, reason=reason, evidence=evidence
    )


def _claim(certificate: str) -> str:
    """Return what a certificate claims; empty if the checker has to say what is wrong with it."""
    from alignver.kernel.certificate import Tampered, load_certificate

    try:
        return load_certificate(certificate).claim
    except Tampered:
        return ""


def _needs(claim: str) -> str:
    """Return which options give the inputs of a claim about a model; empty for another claim."""
    from alignver.kernel.network.methods import INPUTS

    if claim == "network-exploration":
        return "--model and --data: this certificate is about the features of a model"
    if claim == "factored-membership" or "parameters" in INPUTS.get(claim, ()):
        return "--model, --data and --loss: this certificate is about a model, from which its inputs are computed"
    if claim in ("membership", "non-membership"):
        return "exactly J, y: --input J=FILE --input y=FILE; or, for an alignment, --model, --data and --loss"
    return ""


def _alignment_inputs(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...], bool]:
    """Compute the inputs of an alignment again from the options of the command.

    Returns the inputs, what identifies their source, notes, and whether the claim is about the model.
    """
    from alignver.kernel.certificate import Tampered, load_certificate

    try:
        loaded = load_certificate(options["certificate"])
    except Tampered:
        return {}, {}, (), True  # the checker says what is wrong with it
    model, data, features = options["model"], options["data"], loaded.claim == "network-exploration"
    X, Y, samples = input_files.read_samples(data, targets=not features)
    net, identity = model_io.load(options)
    if features:
        from alignver.network import enclosed_features

        with input_files.of_model(model, data):
            arrays, notes = enclosed_features.inputs_again(loaded, net, X)
        return arrays, {**samples, **identity}, notes, True
    from alignver.jacobians.prepare import inputs_again
    from alignver.network.adapt import adapted

    with input_files.of_model(model, data):
        choices = {name: options[name] for name in ("loss", "dtype", "chunk_size")}
        net, X, Y = adapted(net, X, Y, select=options["select"])
        arrays, notes, about_model = inputs_again(loaded, net, X, Y, **choices)
    return arrays, {**samples, **identity}, notes, about_model


def _split(pairs: list[str]) -> dict[str, str]:
    """Return the file of each input."""
    files: dict[str, str] = {}
    for pair in pairs:
        for name, file in _files(pair):
            if name in files:
                raise InvalidInput("--input", f"{name} twice", "each input once")
            files[name] = file
    return files


def _files(pair: str) -> list[tuple[str, str]]:
    """Return an input with its file, or all arrays of a .npz file."""
    name, equals, file = pair.partition("=")
    if not equals and pair.endswith(".npz"):
        return [(key, f"{pair}:{key}") for key in input_files.names_in(pair, "--input")]
    if not equals or not name.isidentifier() or not file:
        raise InvalidInput("--input", repr(pair), "NAME=FILE, for example J=J.npy, or FILE.npz")
    return [(name, file)]
