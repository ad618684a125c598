"""``alignver check exploration``: is the last hidden layer wide enough (Assumption 4)?"""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignver.cli import input_files, model_io, options
from alignver.cli.exits import Exit
from alignver.cli.session import Session, command
from alignver.errors import InvalidInput

_IN_NO_FILE = "its features are in no file: a re-check needs them, and --keep-features FILE.npy keeps them"
_model = functools.partial(typer.Option, rich_help_panel="Features from a model")


# How Assumption 4 is decided.
ExplorationMethod = enum.StrEnum("ExplorationMethod", "AUTO STAIRCASE GRAM DENSE")


@command(
    "check exploration",
    "rule certify eval_mode device seed max_seconds max_memory plan certificate html junit json quiet verbose",
    provenance="device seed",
    aliases={"folder": "--tiles", "file": "--keep-features", "client": "--scheduler"},
)
def exploration(
    session: Session,
    z_file: Annotated[
        str | None,
        typer.Argument(
            metavar="[Z]",
            help="The features, a row for each sample, the constant 1 last: .npy (mapped, not read), .npz, .csv, .txt.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="H", help="Units of the last hidden layer.", show_default="the smallest that can be proved"
        ),
    ] = None,
    q: Annotated[str | None, typer.Option("--q", metavar="FILE", help="The gates, a column for each unit.")] = None,
    method: Annotated[
        ExplorationMethod,
        options.decision(
            help="staircase constructs the gates; gram proves given or sampled ones; dense decides by an SVD of phi."
        ),
    ] = ExplorationMethod.AUTO,
    add_constant: Annotated[
        bool, typer.Option("--add-constant", help="Append the constant column 1 to the features.")
    ] = False,
    delta: Annotated[
        float | None,
        options.decision(
            metavar="R", help="Bound of each row's error (2-norm): the proof then covers every Z within it."
        ),
    ] = None,
    estimate_delta: Annotated[
        bool,
        _model("--estimate-delta", help="Estimate R by a float64 pass on a sample; the verdict is then numerical."),
    ] = False,
    tries: Annotated[int, options.computation(min=1, metavar="N", help="Directions to try.")] = 8,
    tiles: Annotated[
        str | None,
        options.computation(
            metavar="DIR",
            help="Keep the tiles of gram's factorization, or the features of a model with their errors, here; an "
            "interrupted run continues from them.",
            show_default="in memory",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        options.computation(
            metavar="ADDRESS",
            help="Compute on the cluster of this Dask scheduler; gram needs --tiles, a folder that its workers share.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        _model(
            metavar="FILE.py:FUNCTION",
            help="Compute the features with this model instead; the code is imported and run.",
        ),
    ] = None,
    data: Annotated[str | None, _model(metavar="FILE.npz", help="The model's inputs: X.")] = None,
    layer: Annotated[
        str | None, _model(metavar="NAME", help="The layer whose output is z.", show_default="the model's output")
    ] = None,
    weights: Annotated[str | None, _model(metavar="FILE", help="Parameters to load: a .safetensors file.")] = None,
    batch_size: Annotated[int, _model(min=1, metavar="N", help="Samples run at a time.")] = 256,
    keep_features: Annotated[
        str | None,
        _model(
            metavar="FILE.npy",
            help="Keep the features that the module computes here, batch by batch, and check them as they are.",
            show_default="in memory",
        ),
    ] = None,
) -> Exit:
    """Is the last hidden layer wide enough (Assumption 4)?

    Proves that some gates q give phi(q) full row rank, at sizes where phi itself cannot be formed.

    [bold]Examples[/bold]

      alignver check exploration Z.npy --width 130 --certificate proof
      alignver check exploration features.npy --add-constant --delta 1e-5
      alignver check exploration --model net.py:build --data train.npz --layer pool --keep-features Z.npy
      alignver check exploration Z.npy --method gram --tiles shared/tiles --scheduler tcp://host:8786
    """

    def checked() -> tuple[Any, dict[str, Any], tuple[str, ...]]:
        """Return the result, the inputs for the provenance, and notes."""
        from alignver.checks.exploration import check_safe_exploration, equal_inputs

        device, seed = session.options["device"], session.options["seed"]
        gram = q is not None or method == ExplorationMethod.GRAM
        unused = {"--keep-features": keep_features, "--data": data, "--layer": layer, "--weights": weights}
        _require_used(model is not None, unused, "--model, whose features are checked")
        about_network = model is not None and not (gram or keep_features or estimate_delta or delta is not None)
        _require_used(gram or about_network, {"--tiles": tiles}, "--method gram, or --q")
        if device != "cpu" and not gram and model is None:
            need = "cpu, but for a model, or the factorization of --method gram"
            raise InvalidInput("--device", device, need, code="conflicting-arguments")
        files = {"Z": z_file} if z_file is not None else {"X": f"{data}:X"}
        files |= {name: file for name, file in (("q", q), ("model", model)) if file is not None}
        inputs: dict[str, Any] = {}
        if model is not None:
            samples = _inputs(z_file, data, keep_features)
            net, identity = model_io.load(session.options)
            from alignver.network.feature_extraction import estimate_row_error, extract_features, save_features

            inputs = {**samples, **identity}
            if layer is None:
                session.note("the features are the model's outputs: --layer NAME takes those of an inner layer")
            if about_network:
                with input_files.rename_argument(files), connected_client(scheduler) as client:
                    options_of = session.arguments_of("width method rule certify tries seed batch_size layer")
                    result = check_safe_exploration(net, X=samples["X"], folder=tiles, client=client, **options_of)
                return result, inputs, _notes(session, result, data)
            with input_files.rename_argument(files):
                # A wrong name of a layer is refused before anything is decided.
                extract_features(net, samples["X"][:2], layer, batch_size=batch_size)
                refuted = equal_inputs(samples["X"])
                if refuted is not None:
                    return refuted, inputs, session.save_certificate(refuted, {"X": f"{data}:X"})
                if keep_features is None:
                    features = extract_features(net, samples["X"], layer, batch_size=batch_size)
                else:
                    features = save_features(keep_features, net, samples["X"], layer, batch_size=batch_size)
        elif z_file is not None:
            features = input_files.read_matrix(z_file, "Z")
        else:
            raise InvalidInput("Z", "no features", "a file, or --model with --data")
        radius = delta
        if estimate_delta:
            if model is None or delta is not None:
                need = "--model without --delta"
                got = "no model, or --delta as well"
                raise InvalidInput("--estimate-delta", got, need, code="conflicting-arguments")
            with input_files.rename_argument(files):
                radius = estimate_row_error(net, samples["X"], layer, seed=seed)
        if gram and device != "cpu":
            features = input_files.to_backend(features, options.Backend.TORCH, device)
        with input_files.rename_argument(files), connected_client(scheduler) as client:
            result = check_safe_exploration(
                features,
                q=None if q is None else input_files.read_matrix(q, "q"),
                delta=radius,
                delta_is_estimate=estimate_delta,
                add_constant=add_constant or model is not None,
                folder=tiles,
                client=client,
                **session.arguments_of("width method rule certify tries seed"),
            )
        place = z_file if z_file is not None else keep_features
        notes = session.save_certificate(result, {} if place is None else {"Z": place})
        if notes and place is None:
            notes += (_IN_NO_FILE,)
        return result, inputs | _identity(result, z_file), notes

    with session.working():
        result, inputs, notes = checked()
    return session.finish(result, inputs=inputs, notes=notes)


def _notes(session: Session, result: Any, data: str | None) -> tuple[str, ...]:
    """Save the certificate of a result of a model, which may be about the network, the features or the inputs."""
    about = set(getattr(result.certificate, "inputs", {}))
    if about == {"parameters", "x"}:
        return session.save_certificate(result, {}, session.model_again())
    if about == {"X"}:
        return session.save_certificate(result, {"X": f"{data}:X"})
    notes = session.save_certificate(result, {})
    return (*notes, _IN_NO_FILE) if notes else ()


def _inputs(z_file: str | None, data: str | None, keep_features: str | None) -> dict[str, Any]:
    """Return the inputs of the model that computes the features."""
    if z_file is not None:
        need = "one of the two"
        raise InvalidInput("--model", f"a model as well as the features {z_file}", need, code="conflicting-arguments")
    if data is None:
        raise InvalidInput("--data", "no file", "a .npz file with the model's inputs X")
    samples = input_files.read_npz(data, "--data", ("X",))
    if keep_features is not None and (Path(keep_features).exists() or Path(keep_features).suffix != ".npy"):
        raise InvalidInput("--keep-features", keep_features, "a new file, FILE.npy", code="unwritable-file")
    return samples


def _require_used(used: bool, values: Mapping[str, str | None], need: str) -> None:
    """Refuse an option that would have no effect."""
    for option, value in values.items():
        if value is not None and not used:
            raise InvalidInput(option, f"{value}, which would have no effect", need, code="conflicting-arguments")


def connected_client(scheduler: str | None) -> contextlib.AbstractContextManager[Any]:
    """Connect to a scheduler for the duration of the block; without one there is no client."""
    if scheduler is None:
        return contextlib.nullcontext()
    from alignver.features.cluster import connected

    return connected(scheduler)


def _identity(result: Any, z_file: str | None) -> dict[str, Any]:
    """Return the hash and shape of the features from the certificate, so that they are not hashed again."""
    record = getattr(result.certificate, "inputs", {}).get("Z")
    if record is None or z_file is None:
        return {}
    return {
        "Z": {"sha256": record["sha256"], "shape": list(record["shape"]), "dtype": "float64", "file": Path(z_file).name}
    }
