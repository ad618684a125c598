"""``alignver check``: the checks as commands, and the built-in problems when none is named."""

from __future__ import annotations

import typer

from alignver.cli import options
from alignver.cli.alignment import alignment
from alignver.cli.builtin import builtin
from alignver.cli.data import data
from alignver.cli.exploration import exploration
from alignver.cli.membership import membership
from alignver.cli.rank import rank
from alignver.cli.structure import structure

__all__ = ["app"]

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
