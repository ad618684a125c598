"""``alignver predict``: the predictions of the network of a finished run."""

from __future__ import annotations

import functools
import io
import math
from typing import Annotated

import typer

from alignver.cli import input_files, model_io, options
from alignver.cli.exits import Exit, ensure_writable, write_output
from alignver.cli.session import Session, command
from alignver.errors import InvalidInput


@command("predict", "quiet verbose", provenance="device")
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
    device: options.Device = "cpu",
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
            network.to(input_files.torch_device(device))
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
