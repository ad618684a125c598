"""``alignver check``: the checks as commands, and the built-in problems when none is named."""

from __future__ import annotations

import enum
import inspect
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from alignver.cli import input_files, model_io, options
from alignver.cli.exits import Exit, say
from alignver.cli.exploration import connected_client, exploration
from alignver.cli.options import Loss, Model, computation, decision
from alignver.cli.session import Session, command, given, signed
from alignver.errors import InvalidInput
from alignver.results import CheckResult

_REPORT = "max_seconds max_memory html junit json quiet verbose"
_CERTIFIED = f"certificate {_REPORT}"
_PLANNED = f"plan {_CERTIFIED}"
_MODEL = "select weights eval_mode device dtype seed"
_NAMES = input_files.NAMES
_TEST_NAMES = {"X_test": ("X_test", "x_test"), "Y_test": ("Y_test", "y_test")}


@command(
    "check membership",
    f"method rule tolerance residual_tolerance computed_in certify backend device {_PLANNED}",
    provenance="device",
)
def membership(
    session: Session,
    j_file: Annotated[str, typer.Argument(metavar="J", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    y_file: Annotated[str, typer.Argument(metavar="Y", help="The vector: the same kinds of file.")],
) -> Exit:
    """Is y in the column space of J?

    Shows the rank and the residual, the tolerances at which the verdict holds, and the verdicts of other rank rules.

    [bold]Examples[/bold]

      alignver check membership J.npy y.npy
      alignver check membership data.npz:J data.npz:y --method qr --rule press
      alignver check membership J.npy y.npy --computed-in float32 --json
      alignver check membership J.npy y.npy --certificate proof
    """
    with session.working():
        from alignver.checks.membership import check_membership

        files_of = {"J": j_file, "y": y_file}
        inputs = {"J": input_files.read_matrix(j_file, "J"), "y": input_files.read_vector(y_file, "y")}
        with input_files.rename_argument(files_of):
            place = session.options["backend"], session.options["device"]
            J, y = (input_files.to_backend(array, *place) for array in inputs.values())
            options_of = "method rule certify tolerance residual_tolerance computed_in"
            result = check_membership(J, y, **session.arguments_of(options_of))
        notes = session.save_certificate(result, files_of)
    return session.finish(result, inputs=inputs, notes=notes)


@command("check rank", f"rule tolerance computed_in certify backend device {_PLANNED}", provenance="device")
def rank(
    session: Session,
    a_file: Annotated[str, typer.Argument(metavar="A", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    expected: Annotated[
        int | None, typer.Option("--rank", metavar="R", help="The claimed rank.", show_default="min(N, d)")
    ] = None,
    method: options.RankMethodOption = options.RankMethod.AUTO,
) -> Exit:
    """Does A have full rank, min(N, d), or rank R?

    Shows the singular values at the tolerance and the ranks by other rules and libraries.

    [bold]Examples[/bold]

      alignver check rank A.npy
      alignver check rank A.csv --rank 12 --rule press
      alignver check rank A.npy --tolerance 1e-8 --no-certify -v
    """
    with session.working():
        from alignver.checks.rank import check_rank

        inputs = {"A": input_files.read_matrix(a_file, "A")}
        with input_files.rename_argument({"A": a_file}):
            A = input_files.to_backend(inputs["A"], session.options["backend"], session.options["device"])
            result = check_rank(A, rank=expected, **session.arguments_of("method rule certify tolerance computed_in"))
        notes = session.save_certificate(result, {"A": a_file})
    return session.finish(result, inputs=inputs, notes=notes)


# The representation of the Jacobian.
Engine = enum.StrEnum(
    "Engine", {"DENSE": "dense", "STREAMED": "streamed", "GRAM": "gram", "MATRIX_FREE": "matrix-free"}
)


@command(
    "check alignment",
    f"{_MODEL} method rule tolerance residual_tolerance certify chunk_size {_PLANNED}",
    provenance="device dtype seed",
    aliases={"folder": "--tiles", "client": "--scheduler"},
)
def alignment(
    session: Session,
    model: Model,
    data: Annotated[str, options.DATA],
    loss: Annotated[Loss, options.LOSS],
    engine: Annotated[
        Engine | None,
        computation(
            help="Representation of the Jacobian: the matrix itself, the triangle of its streamed QR, the Gram matrix "
            "of layer factors if that proves it, or products.",
            show_default="by size and memory",
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        computation(
            metavar="DIR",
            help="Keep the tiles of the Gram matrix's factorization here; an interrupted run continues from them.",
            show_default="in memory",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        computation(
            metavar="ADDRESS",
            help="Compute the tiles on the cluster of this Dask scheduler; its workers share the folder of --tiles.",
        ),
    ] = None,
) -> Exit:
    """Is the data aligned with the architecture (Definition 2) at the model's parameters?

    MODEL is your own Python code, which is imported and run.

    [bold]Examples[/bold]

      alignver check alignment net.py:build --data train.npz --loss cross_entropy
      alignver check alignment package.net:build --data t.npz --loss squared --seed 3
      alignver check alignment net.py:build --data large.npz --loss squared --tiles shared/tiles
    """
    with session.working():
        X, Y, samples = input_files.read_samples(data)
        session.files = dict.fromkeys(samples, data)
        net, identity = model_io.load(session.options)
        from alignver.checks.alignment import check_alignment

        with input_files.of_model(model, data), connected_client(scheduler) as client:
            decisive = "loss select method rule certify tolerance residual_tolerance dtype chunk_size engine"
            result = check_alignment(net, X, Y, folder=tiles, client=client, **session.arguments_of(decisive))
        notes = session.save_certificate(result, {}, session.model_again())
    return session.finish(result, inputs={**samples, **identity}, notes=notes)


@command(
    "check model", f"{_MODEL} max_memory plan certificate html junit json quiet verbose", provenance="device dtype seed"
)
def model(
    session: Session,
    model: Model,
    data: Annotated[str, options.DATA],
    loss: Annotated[Loss, options.LOSS],
    layer: Annotated[
        str | None,
        decision(
            metavar="NAME",
            help="The layer whose output is z (Assumption 4).",
            show_default="the one that the last two linear layers follow",
        ),
    ] = None,
    gap: Annotated[
        float, decision(metavar="EPS", help="The loss counts as optimal up to this distance from the least one.")
    ] = 1e-3,
    max_seconds: options.MaxSeconds = 60.0,
) -> Exit:
    """Run every check that applies to a model and its data.

    The data, the structure of the network, the loss, alignment (Definition 2) and safe exploration (Assumption 4),
    within a time limit. The exit code is that of alignment; -v shows every answer in full. MODEL is your own Python
    code, which is imported and run.

    [bold]Examples[/bold]

      alignver check model net.py:build --data train.npz --loss cross_entropy
      alignver check model net.py:build --data train.npz --loss squared --max-seconds 300 --html report.html
    """
    with session.working():
        X, Y, samples = input_files.read_samples(data)
        net, identity = model_io.load(session.options)
        from alignver.checks.model import check_model

        with input_files.of_model(model, data):
            overview, *parts = check_model(net, X, Y, **session.arguments_of("loss select layer gap dtype")).results
        notes = session.save_certificate(overview, {}, session.model_again())
    return session.finish(overview, inputs={**samples, **identity}, notes=notes, parts=tuple(parts))


@command("check structure", f"{_MODEL} {_REPORT}", provenance="device dtype seed", aliases={"S": "--subset"})
def structure(
    session: Session,
    model: Model,
    data: Annotated[str, options.DATA],
    subset: Annotated[
        list[str] | None,
        decision(
            metavar="NAME",
            help="A parameter or module in S; may be repeated.",
            show_default="the S that a search finds",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        decision(
            metavar="TAU",
            help="Largest relative residual of f = J nu that counts as rounding.",
            show_default="from eps and the size of S",
        ),
    ] = None,
) -> Exit:
    """Is f = J nu for some set S of parameters, where nu is theta on S and 0 elsewhere (Assumption 1)?

    MODEL is your own Python code, which is imported and run.

    [bold]Examples[/bold]

      alignver check structure net.py:build --data train.npz
      alignver check structure net.py:build --data train.npz --subset head.weight --subset head.bias
    """
    with session.working():
        X, _, samples = input_files.read_samples(data, targets=False)
        session.files = dict.fromkeys(samples, data)
        net, identity = model_io.load(session.options)
        from alignver.checks.common_structure import check_common_structure
        from alignver.network.adapt import adapted

        with input_files.of_model(model, data):
            net, X, _ = adapted(net, X, select=session.options["select"])
            result = check_common_structure(net, X, S=subset or None, **session.arguments_of("tolerance dtype seed"))
    return session.finish(result, inputs={**samples, **identity})


# The dtype to which inputs are rounded before they are compared.
Cast = enum.StrEnum("Cast", "FLOAT16 FLOAT32 FLOAT64")


@command("check data", _CERTIFIED)
def data(
    session: Session,
    data_file: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A .npz file with the inputs X (a row for each sample) and the targets Y, or x_train and y_train; or "
            "X alone as .npy (mapped, not read), .csv or .txt.",
        ),
    ],
    targets: Annotated[
        str | None, typer.Option(metavar="FILE", help="The targets, if they are in another file.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Test samples, to be compared with the training samples: .npz with X and Y, or .npy with X.",
            show_default="X_test and Y_test of DATA, if they exist",
        ),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(
            metavar="LOSS",
            help="Bound the least loss of every model: squared, binary_cross_entropy or cross_entropy.",
            show_default="errors only",
        ),
    ] = None,
    dtype: Annotated[
        Cast | None,
        typer.Option(
            help="Round the inputs to it first, as a model of that precision does.", show_default="as they are"
        ),
    ] = None,
) -> Exit:
    """Do samples with equal inputs have equal targets?

    No model fits two samples that do not. The report says what they cost every model, and which test samples are also
    training samples.

    [bold]Examples[/bold]

      alignver check data train.npz
      alignver check data train.npz --loss cross_entropy --html pairs.html --certificate proof
      alignver check data X.npy --targets Y.npy --test test.npz --dtype float32
    """
    with session.working():
        from alignver.checks.data import check_data

        arrays, places = _read(data_file, targets, test)
        with input_files.rename_argument(places):
            tests = {name: arrays.get(name) for name in _TEST_NAMES}
            result = check_data(arrays["X"], arrays.get("Y"), **tests, **session.arguments_of("loss dtype"))
        notes = session.save_certificate(result, {name: places[name] for name in ("X", "Y") if name in places})
    return session.finish(result, inputs=arrays, notes=notes)


def _read(data_file: str, targets: str | None, test: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays by their names in :func:`~alignver.checks.data.check_data`, and the file of each."""
    places = _places(data_file, "DATA", _NAMES)
    if targets is not None:
        if "Y" in places:
            need = f"one of the two; {places['X']} names the inputs alone"
            raise InvalidInput("--targets", f"{targets} as well as {places['Y']}", need)
        places["Y"] = targets
    if test is not None:
        names = {f"{name}_test": (*keys, f"{name}_test") for name, keys in _NAMES.items()}
        places |= _places(test, "--test", names)
    elif input_files.is_archive(data_file):
        places |= _places(data_file, "DATA", _TEST_NAMES, required=False)
    if "Y" not in places:
        places.pop("Y_test", None)
    readers = {name: input_files.read_vector if name.startswith("Y") else input_files.read_matrix for name in places}
    return {name: readers[name](place, name) for name, place in places.items()}, places


def _places(file: str, argument: str, names: Mapping[str, tuple[str, ...]], *, required: bool = True) -> dict[str, str]:
    """Return which array of a file is which; a file of one array holds the inputs."""
    inputs = next(iter(names))
    if not input_files.is_archive(file):
        return {inputs: file}
    present = input_files.names_in(file, argument)
    places = {name: f"{file}:{key}" for name, keys in names.items() for key in reversed(keys) if key in present}
    if required and inputs not in places:
        need = f"inputs under the name {' or '.join(names[inputs])}; or {file}:NAME with --targets {file}:NAME"
        got = f"the arrays {', '.join(present) or 'none'}"
        raise InvalidInput(input_files.file_argument(argument, file), got, need)
    return places if inputs in places else {}


@command("check", "device seed html junit json quiet verbose", provenance="device dtype seed")
def builtin(
    session: Session,
    dtype: options.Dtype = options.DtypeName.FLOAT64,
) -> Exit:
    """Run one check; without a subcommand, run the built-in problems.

    The report compares each built-in problem with its expected verdict; the exit code is 0 if all agree, else 1.

    [bold]Examples[/bold]

      alignver check
      alignver check membership J.npy y.npy
      alignver check alignment net.py:build --data train.npz --loss cross_entropy
    """
    from rich.text import Text

    began = time.perf_counter()
    with session.working("loading the built-in problems"):
        input_files.library("torch", "running the built-in problems")
        from alignver.experiments.builtin import problems

        listed = list(problems())
    results: list[CheckResult] = []
    for problem in listed:
        with session.working(problem.name):
            results.append(problem.run(session.options["seed"], session.device, dtype))
        if not session.json:
            _show(session, problem, results[-1], first=len(results) == 1)
    agreed = [problem.agrees(result) for problem, result in zip(listed, results)]
    report = session.report(tuple(results), {}, problems=_expectations(listed, results))
    if session.json:
        session.write(report)
    else:
        if session.verbosity >= 0:
            style = "bold green" if all(agreed) else "bold red"
            count = f"{sum(agreed)} of {len(agreed)} built-in problems as expected"
            session.print(Text(), Text.assemble((count, style), f"; {time.perf_counter() - began:.1f} s"))
        session.show_provenance({})
    session.keep(report)
    return Exit.HOLDS if all(agreed) else Exit.FAILS


def _expectations(problems: list[Any], results: list[CheckResult]) -> list[dict[str, Any]]:
    return [
        {
            "name": problem.name,
            "description": problem.description,
            "source": problem.source,
            "expected": problem.expected.value,
            "found": problem.of_computed_matrix(result).value,
            "agrees": problem.agrees(result),
        }
        for problem, result in zip(problems, results)
    ]


def _show(session: Session, problem: Any, result: CheckResult, *, first: bool) -> None:
    from rich.text import Text

    agrees, verdict = problem.agrees(result), problem.of_computed_matrix(result)
    if session.verbosity < 0:
        session.show(result)
        if not agrees:
            say(f"{problem.name}: expected {problem.expected}, found {verdict}")
        return
    named = problem.description.startswith(problem.name)
    title = Text(problem.description if named else f"{problem.name}: {problem.description}", style="cyan")
    title.stylize("bold", 0, len(problem.name))
    session.print(*([] if first else [Text()]), title)
    outcome = "as found" if verdict is problem.expected else f"but found {verdict}"
    words = f"the computed matrix: expected {problem.expected}, {outcome}: {problem.source}"
    session.show(result, (words,))


app = typer.Typer(name="check")


def _check(*, context: typer.Context, **values: Any) -> int:
    if context.invoked_subcommand is None:
        return builtin(**values)
    misplaced = next((name for name in values if given(context, name)), None)
    if misplaced is not None:
        words = f"it belongs after the command: alignver check {context.invoked_subcommand} ... --{misplaced}"
        raise typer.BadParameter(words, param_hint=f"--{misplaced}")
    return 0


_check.__doc__ = builtin.__doc__
_context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
app.callback(invoke_without_command=True)(signed(_check, [_context, *inspect.signature(builtin).parameters.values()]))
for _command in (model, membership, rank, exploration, alignment, structure, data):
    app.command(_command.__name__)(_command)
