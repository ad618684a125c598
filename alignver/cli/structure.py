"""``alignver check structure``: does the user's own network have the common model structure (Assumption 1)?"""

from __future__ import annotations

from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.model_options import Dtype, JacobianDtype, Model, Weights
from alignver.cli.session import Session

__all__ = ["structure"]


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
    dtype: Dtype = JacobianDtype.FLOAT64,
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
            from alignver.cli import files, torchside

            samples = files.read_npz(data, "--data", ("X",))
            net, identity = torchside.load(model, weights, device=device, seed=seed)
            from alignver.models.structure import check_common_structure

            with files.blamed({"X": f"{data}:X", "S": "--subset", "model": model}):
                result = check_common_structure(
                    net, samples["X"], S=subset or None, tolerance=tolerance, dtype=dtype.value, seed=seed
                )
        return session.finish(result, inputs={**samples, **identity})

    return session.conduct(body)
