"""``alignver check alignment``: can the user's own network fit the data at its parameters (Definition 2)?"""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.model_options import ChunkSize, Dtype, JacobianDtype, Loss, Model, Weights
from alignver.cli.session import Session

__all__ = ["Engine", "alignment"]


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
    dtype: Dtype = JacobianDtype.FLOAT64,
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
            from alignver.cli import certificates, files, torchside

            certificates.free(certificate)
            samples = files.read_npz(data, "--data", ("X", "Y"))
            net, identity = torchside.load(model, weights, device=device, seed=seed)
            from alignver.models.alignment import check_alignment

            with files.blamed({"X": f"{data}:X", "Y": f"{data}:Y", "model": model}):
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
            notes = certificates.save(result, certificate, {}, session, again)
        return session.finish(result, inputs={**samples, **identity}, notes=notes)

    return session.conduct(body)
