"""``alignver check membership``: is y in the column space of J?

``alignver check rank``: does A have full row rank, or the given rank?

``alignver check alignment``: can the user's own network fit the data at its parameters (Definition 2)?

``alignver check structure``: does the user's own network have the common model structure (Assumption 1)?

The built-in problems: what was expected of each, and what was found.

``alignver check``: the checks as commands, and the built-in problems when none is named.
"""

from __future__ import annotations

import enum
import time
from typing import Annotated, Any

import typer

from alignver.cli import options
from alignver.cli.data import data
from alignver.cli.exits import Exit, say
from alignver.cli.exploration import exploration
from alignver.cli.options import ChunkSize, JacobianDtype, Loss, Model, ModelDtype, Weights
from alignver.cli.session import Session, ensure_free, save_certificate
from alignver.errors import MissingDependency
from alignver.results import CheckResult

__all__ = ["Engine", "alignment", "app", "builtin", "membership", "rank", "structure"]


def membership(
    j_file: Annotated[str, typer.Argument(metavar="J", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    y_file: Annotated[str, typer.Argument(metavar="Y", help="The vector: the same kinds of file.")],
    method: options.Method = "auto",
    rule: options.Rule = "golub",
    tolerance: options.Tolerance = None,
    residual_tolerance: options.ResidualTolerance = None,
    computed_in: options.ComputedIn = None,
    certify: options.Certify = True,
    backend: options.BackendOption = options.Backend.NUMPY,
    device: options.Device = "cpu",
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Is y in the column space of J?

    Shows the rank and the residual, at which tolerances the verdict stands, and what other rank rules say.

    [bold]Examples[/bold]

      alignver check membership J.npy y.npy
      alignver check membership data.npz:J data.npz:y --method qr --rule press
      alignver check membership J.npy y.npy --computed-in float32 --json
      alignver check membership J.npy y.npy --certificate proof
    """
    session = Session(
        "check membership", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose, device=device
    )

    def body() -> Exit:
        with session.working():
            from alignver.checks.membership import check_membership
            from alignver.cli import input_files

            ensure_free(certificate)
            files_of = {"J": j_file, "y": y_file}
            inputs = {"J": input_files.read_matrix(j_file, "J"), "y": input_files.read_vector(y_file, "y")}
            with input_files.rename_argument(files_of):
                result = check_membership(
                    input_files.to_backend(inputs["J"], backend, device),
                    input_files.to_backend(inputs["y"], backend, device),
                    method=method,
                    rule=rule,
                    certify=certify,
                    tolerance=tolerance,
                    residual_tolerance=residual_tolerance,
                    computed_in=computed_in,
                )
            notes = save_certificate(result, certificate, files_of, session)
        return session.finish(result, inputs=inputs, notes=notes)

    return session.conduct(body)


def rank(
    a_file: Annotated[str, typer.Argument(metavar="A", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    expected: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="The rank that is claimed.", show_default="full row rank"),
    ] = None,
    method: options.Method = "auto",
    rule: options.Rule = "golub",
    tolerance: options.Tolerance = None,
    computed_in: options.ComputedIn = None,
    certify: options.Certify = True,
    backend: options.BackendOption = options.Backend.NUMPY,
    device: options.Device = "cpu",
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Does A have full row rank, or rank R?

    Shows the singular values at the tolerance and what other rank rules and libraries say.

    [bold]Examples[/bold]

      alignver check rank A.npy
      alignver check rank A.csv --rank 12 --rule press
      alignver check rank A.npy --tolerance 1e-8 --no-certify -v
    """
    session = Session("check rank", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose, device=device)

    def body() -> Exit:
        with session.working():
            from alignver.checks.rank import check_rank
            from alignver.cli import input_files

            ensure_free(certificate)
            inputs = {"A": input_files.read_matrix(a_file, "A")}
            with input_files.rename_argument({"A": a_file}):
                result = check_rank(
                    input_files.to_backend(inputs["A"], backend, device),
                    rank=expected,
                    method=method,
                    rule=rule,
                    certify=certify,
                    tolerance=tolerance,
                    computed_in=computed_in,
                )
            notes = save_certificate(result, certificate, {"A": a_file}, session)
        return session.finish(result, inputs=inputs, notes=notes)

    return session.conduct(body)


class Engine(enum.StrEnum):
    """What stands for the Jacobian."""

    DENSE = "dense"
    STREAMED = "streamed"
    GRAM = "gram"
    MATRIX_FREE = "matrix-free"


def alignment(
    model: Model,
    data: Annotated[str, typer.Option(metavar="FILE.npz", help="The samples: a .npz file with X and Y.")],
    loss: Annotated[Loss, typer.Option(metavar="LOSS", help="squared, binary_cross_entropy or cross_entropy.")],
    weights: Weights = None,
    method: options.Method = "auto",
    rule: options.Rule = "golub",
    tolerance: options.Tolerance = None,
    residual_tolerance: options.ResidualTolerance = None,
    certify: options.Certify = True,
    device: options.Device = "cpu",
    dtype: ModelDtype = JacobianDtype.FLOAT64,
    seed: options.Seed = 0,
    chunk_size: ChunkSize = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="What stands for the Jacobian: itself, the triangle of its streamed QR, the Gram matrix of layer "
            "factors where that proves it, or products.",
            show_default="by size and memory",
            rich_help_panel="Computation",
        ),
    ] = None,
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Is the data aligned with the architecture (Definition 2) at the model's parameters?

    MODEL is Python code of yours, which is imported and run.

    [bold]Examples[/bold]

      alignver check alignment net.py:build --data train.npz --loss cross_entropy
      alignver check alignment package.net:build --data t.npz --loss squared --seed 3
    """
    session = Session(
        "check alignment",
        json=json,
        html=html,
        junit=junit,
        quiet=quiet,
        verbose=verbose,
        device=device,
        dtype=dtype.value,
        seed=seed,
    )

    def body() -> Exit:
        with session.working():
            from alignver.cli import input_files, model_io

            ensure_free(certificate)
            samples = input_files.read_npz(data, "--data", ("X", "Y"))
            net, identity = model_io.load(model, weights, device=device, seed=seed)
            from alignver.checks.alignment import check_alignment

            with input_files.rename_argument({"X": f"{data}:X", "Y": f"{data}:Y", "model": model}):
                result = check_alignment(
                    net,
                    samples["X"],
                    samples["Y"],
                    loss=loss.value,
                    method=method,
                    rule=rule,
                    certify=certify,
                    tolerance=tolerance,
                    residual_tolerance=residual_tolerance,
                    dtype=dtype.value,
                    chunk_size=chunk_size,
                    engine=None if engine is None else engine.value,
                )
            again = ["--model", model, "--data", data, "--loss", loss.value]
            for option, value, default in (
                ("--weights", weights, None),
                ("--seed", seed, 0),
                ("--device", device, "cpu"),
                ("--dtype", dtype.value, JacobianDtype.FLOAT64.value),
                ("--chunk-size", chunk_size, None),
            ):
                again += [] if value == default else [option, str(value)]
            notes = save_certificate(result, certificate, {}, session, again)
        return session.finish(result, inputs={**samples, **identity}, notes=notes)

    return session.conduct(body)


def structure(
    model: Model,
    data: Annotated[str, typer.Option(metavar="FILE.npz", help="The samples: a .npz file with X.")],
    subset: Annotated[
        list[str] | None,
        typer.Option(
            "--subset",
            metavar="NAME",
            help="A parameter or module in S; give it once for each. Without it S is looked for.",
            show_default=False,
            rich_help_panel="Decision",
        ),
    ] = None,
    weights: Weights = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="TAU",
            help="Largest relative residual of f = J nu that counts as rounding.",
            show_default="from eps and the size of S",
            rich_help_panel="Decision",
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: ModelDtype = JacobianDtype.FLOAT64,
    seed: options.Seed = 0,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Do some parameters S give the outputs as f = J nu, nu being theta on S (Assumption 1)?

    MODEL is Python code of yours, which is imported and run.

    [bold]Examples[/bold]

      alignver check structure net.py:build --data train.npz
      alignver check structure net.py:build --data train.npz --subset head.weight --subset head.bias
    """
    session = Session(
        "check structure",
        json=json,
        html=html,
        junit=junit,
        quiet=quiet,
        verbose=verbose,
        device=device,
        dtype=dtype.value,
        seed=seed,
    )

    def body() -> Exit:
        with session.working():
            from alignver.cli import input_files, model_io

            samples = input_files.read_npz(data, "--data", ("X",))
            net, identity = model_io.load(model, weights, device=device, seed=seed)
            from alignver.checks.common_structure import check_common_structure

            with input_files.rename_argument({"X": f"{data}:X", "S": "--subset", "model": model}):
                result = check_common_structure(
                    net, samples["X"], S=subset or None, tolerance=tolerance, dtype=dtype.value, seed=seed
                )
        return session.finish(result, inputs={**samples, **identity})

    return session.conduct(body)


def builtin(
    *, device: str, dtype: str, seed: int, html: str | None, junit: str | None, json: bool, quiet: bool, verbose: bool
) -> int:
    """Run every built-in problem; 0 when each one's verdict is the expected one, 1 when not."""
    session = Session(
        "check",
        json=json,
        quiet=quiet,
        verbose=verbose,
        html=html,
        junit=junit,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    return session.conduct(lambda: _all(session))


def _all(session: Session) -> Exit:
    from alignver.cli import input_files

    began = time.perf_counter()
    with session.working("loading the built-in problems"):
        problems = _problems()
    results: list[CheckResult] = []
    for problem in problems:
        with session.working(problem.name), input_files.rename_argument({}):
            results.append(problem.run(session.seed, session.device, session.dtype))
        if not session.json:
            _show(session, problem, results[-1], first=len(results) == 1)
    agreed = [problem.expected is result.verdict for problem, result in zip(problems, results)]
    report = session.report(tuple(results), {}, problems=_expectations(problems, results))
    if session.json:
        session.write(report)
    else:
        _conclude(session, agreed, time.perf_counter() - began)
    session.keep(report)
    return Exit.HOLDS if all(agreed) else Exit.FAILS


def _problems() -> list[Any]:
    try:
        from alignver.experiments.builtin import problems
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise MissingDependency("torch", "running the built-in problems", "torch") from error
    return list(problems())


def _expectations(problems: list[Any], results: list[CheckResult]) -> list[dict[str, Any]]:
    return [
        {
            "name": problem.name,
            "description": problem.description,
            "source": problem.source,
            "expected": problem.expected.value,
            "found": result.verdict.value,
            "agrees": problem.expected is result.verdict,
        }
        for problem, result in zip(problems, results)
    ]


def _show(session: Session, problem: Any, result: CheckResult, *, first: bool) -> None:
    from rich.text import Text

    agrees = problem.expected is result.verdict
    if session.verbosity < 0:
        session.show(result)
        if not agrees:
            say(f"{problem.name}: expected {problem.expected}, found {result.verdict}")
        return
    named = problem.description.startswith(problem.name)
    title = Text(problem.description if named else f"{problem.name}: {problem.description}", style="cyan")
    title.stylize("bold", 0, len(problem.name))
    session.print(*([] if first else [Text()]), title)
    found = "as found" if agrees else f"but found {result.verdict}"
    session.show(result, (f"expected {problem.expected}, {found}: {problem.source}",))


def _conclude(session: Session, agreed: list[bool], seconds: float) -> None:
    from rich.text import Text

    if session.verbosity >= 0:
        style = "bold green" if all(agreed) else "bold red"
        count = f"{sum(agreed)} of {len(agreed)} built-in problems as expected"
        session.print(Text(), Text.assemble((count, style), f"; {seconds:.1f} s"))
    session.show_provenance({})


app = typer.Typer(name="check")


@app.callback(invoke_without_command=True)
def check(
    context: typer.Context,
    device: options.Device = "cpu",
    dtype: options.Dtype = options.DtypeName.FLOAT64,
    seed: options.Seed = 0,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Ask one question and get a verdict; without a question, try the built-in problems.

    The built-in problems say what the paper expects of each and what was found; exit code 0 when they agree, else 1.

    [bold]Examples[/bold]

      alignver check
      alignver check membership J.npy y.npy
      alignver check alignment net.py:build --data train.npz --loss cross_entropy
    """
    if context.invoked_subcommand is None:
        return builtin(
            device=device, dtype=dtype.value, seed=seed, json=json, html=html, junit=junit, quiet=quiet, verbose=verbose
        )
    given = [
        name
        for name in ("device", "dtype", "seed", "html", "junit", "json", "quiet", "verbose")
        if _given(context, name)
    ]
    if given:
        command = f"alignver check {context.invoked_subcommand}"
        option = f"--{given[0]}"
        raise typer.BadParameter(f"it belongs after the command: {command} ... {option}", param_hint=option)
    return 0


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


for _command in (membership, rank, exploration, alignment, structure, data):
    app.command(_command.__name__)(_command)
