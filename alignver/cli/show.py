"""``alignver show model``, ``explain``, ``doctor``: a model as a graph, the meaning of a code, tests of the machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from alignver.cli import input_files, model_io
from alignver.cli.exits import Exit, exit_of
from alignver.cli.session import Session, command

app = typer.Typer(help="Show a model as a graph of operators.", no_args_is_help=True)


@command("show model", "weights eval_mode device seed verbose", provenance="device seed")
def model(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="FILE.py:FUNCTION or MODULE:FUNCTION, which builds it.")
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="The samples: a .npz file with X.", show_default="a shape that fits"),
    ] = None,
) -> Exit:
    """Print a table of the model's modules: operators, shapes, degrees in S, analytic or not, parameters.

    S are the parameters in which the outputs are proved to be linear (Assumption 1); without such a set all degrees
    are 0.
    MODEL is your own Python code, which is imported and run.

    [bold]Examples[/bold]

      alignver show model net.py:build
      alignver show model net.py:build --data train.npz
    """
    with session.working():
        samples = None if data is None else input_files.read_npz(data, "--data", ("X",))
        net, _ = model_io.load(session.options)
        from alignver.network.degrees import mismatch, prove_structure
        from alignver.network.inputs import example_inputs
        from alignver.network.summary import module_rows, table
        from alignver.network.trace import trace_model

        with input_files.rename_argument({"X": f"{data}:X" if data else "--data", "model": model}):
            traced = trace_model(net, example_inputs(net) if samples is None else samples["X"])
    proof = prove_structure(traced)
    rows = module_rows(traced, () if proof is None else proof.names)
    typer.echo(table(rows))
    count = sum(parameter.numel() for parameter in net.parameters())
    typer.echo(f"\n{len(traced.graph.nodes)} nodes, {count:,} parameters, inputs of shape {traced.shape}")
    typer.echo(f"S: {', '.join(proof.names)}" if proof else f"no S is proved: {mismatch(traced)}")
    unproved = sum(row.analytic.startswith("not proved") for row in rows)
    typer.echo(
        f"analytic: not proved in {unproved} rows" if unproved else "analytic in the parameters, for every theta"
    )
    for remark in traced.hidden:
        typer.echo(f"autograd does not differentiate this function: {remark}")
    return Exit.HOLDS


app.command("model")(model)


@command("explain", "verbose")
def explain(
    session: Session,
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="The code of a result or of an error, as --json shows it.",
            show_default="list all codes",
        ),
    ] = None,
) -> Exit:
    """Explain the code of a result: what it means, its cause, what to do, and an example.

    [bold]Examples[/bold]

      alignver explain
      alignver explain data-conflict
    """
    from alignver import codes

    if code is not None:
        typer.echo(f"{code}: {codes.explain(code)}")
        return Exit.HOLDS
    for kind in (*codes.answers(), *codes.refusals()):
        typer.echo(f"{', '.join(kind.codes)}\n    {kind.meaning}")
    return Exit.HOLDS


@command("doctor", "json quiet verbose")
def doctor(session: Session) -> Exit:
    """Test what proofs assume of this machine: rounding, products, factorizations, functions, torch.

    The exit code is 0 if every part holds, 1 if one fails, and 3 if one could not be tested.

    [bold]Examples[/bold]

      alignver doctor
      alignver doctor --json
    """
    with session.working():
        from alignver.checks.doctor import doctor as examine

        report = examine()
    if session.json:
        typer.echo(report.to_json())
        return exit_of(report.verdict)
    lines = str(report).splitlines()
    typer.echo("\n".join(lines[:1] if session.quiet else lines))
    if session.verbose:
        for part in report.parts:
            typer.echo(f"\n{part.name}, {part.seconds:.2f} s\n{json.dumps(part.measured, indent=1)}")
    return exit_of(report.verdict)
