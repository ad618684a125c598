"""``alignver check data``: do the data contradict themselves, and what does that cost every model?"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.options import Loss
from alignver.cli.session import Session, ensure_free, save_certificate
from alignver.errors import InvalidInput

__all__ = ["data"]

_NAMES = {"X": ("X", "x", "X_train", "x_train"), "Y": ("Y", "y", "Y_train", "y_train")}
_TEST_NAMES = {"X_test": ("X_test", "x_test"), "Y_test": ("Y_test", "y_test")}


class Cast(enum.StrEnum):
    """What inputs are rounded to before they are compared."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


def data(
    data_file: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A .npz file with the inputs X (a row for each sample) and the targets Y, or x_train and y_train; or "
            "X alone as .npy (mapped, not read), .csv or .txt.",
        ),
    ],
    targets: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The targets, where they are in another file.", show_default=False),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Test samples, to be compared with the training samples: .npz with X and Y, or .npy with X.",
            show_default="X_test and Y_test of DATA, if they are there",
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
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Do samples with equal inputs have equal targets?

    No model fits two that do not. Says what they cost every model, and which test samples are training samples.

    [bold]Examples[/bold]

      alignver check data train.npz
      alignver check data train.npz --loss cross_entropy --html pairs.html --certificate proof
      alignver check data X.npy --targets Y.npy --test test.npz --dtype float32
    """
    session = Session("check data", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose)

    def body() -> Exit:
        with session.working():
            from alignver.checks.data import check_data
            from alignver.cli import input_files

            ensure_free(certificate)
            arrays, places = _read(data_file, targets, test)
            with input_files.rename_argument(places):
                result = check_data(
                    arrays["X"],
                    arrays.get("Y"),
                    loss=None if loss is None else loss.value,
                    dtype=None if dtype is None else dtype.value,
                    X_test=arrays.get("X_test"),
                    Y_test=arrays.get("Y_test"),
                )
            named: dict[str, str] = {name: places[name] for name in ("X", "Y") if name in arrays}
            notes = save_certificate(result, certificate, named, session)
        return session.finish(result, inputs=arrays, notes=notes)

    return session.conduct(body)


def _read(data_file: str, targets: str | None, test: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays by their names in :func:`~alignver.checks.data.check_data`, and where each of them is."""
    from alignver.cli import input_files

    places = _places(data_file, "DATA", _NAMES)
    if targets is not None:
        if "Y" in places:
            need = f"one of the two; {places['X']} names the inputs alone"
            raise InvalidInput("--targets", f"{targets} beside {places['Y']}", need)
        places["Y"] = targets
    if test is not None:
        found = _places(test, "--test", {f"{name}_test": (*names, f"{name}_test") for name, names in _NAMES.items()})
        places |= found
    elif input_files.is_archive(data_file):
        places |= _places(data_file, "DATA", _TEST_NAMES, required=False)
    if "Y" not in places:
        places.pop("Y_test", None)
    readers = {name: input_files.read_vector if name.startswith("Y") else input_files.read_matrix for name in places}
    return {name: readers[name](place, name) for name, place in places.items()}, places


def _places(file: str, argument: str, names: Mapping[str, tuple[str, ...]], *, required: bool = True) -> dict[str, str]:
    """Return which array of a file is which; a file of one array holds the inputs."""
    from alignver.cli import input_files

    inputs = next(iter(names))
    if not input_files.is_archive(file):
        return {inputs: file}
    there = input_files.names_in(file, argument)
    places = {name: f"{file}:{key}" for name, keys in names.items() for key in reversed(keys) if key in there}
    if required and inputs not in places:
        need = f"inputs under the name {' or '.join(names[inputs])}; or {file}:NAME with --targets {file}:NAME"
        raise InvalidInput(input_files.named(argument, file), f"the arrays {', '.join(there) or 'none'}", need)
    return places if inputs in places else {}
