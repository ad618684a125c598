"""``alignver check exploration``: is the last hidden layer wide enough (Assumption 4)?"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.session import Session, ensure_free, save_certificate
from alignver.errors import InvalidInput

__all__ = ["ExplorationMethod", "exploration"]

_MODEL = "Features from a model"
_OPTIONS = {"width": "--width", "delta": "--delta", "tries": "--tries", "layer": "--layer", "folder": "--tiles"}
_OPTIONS |= {"file": "--keep-features"}
_OPTIONS |= {"scheduler": "--scheduler", "client": "--scheduler"}


class ExplorationMethod(enum.StrEnum):
    """How Assumption 4 is decided."""

    AUTO = "auto"
    STAIRCASE = "staircase"
    GRAM = "gram"
    DENSE = "dense"


def exploration(
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
    q: Annotated[
        str | None, typer.Option("--q", metavar="FILE", help="The gates, a column for each unit.", show_default=False)
    ] = None,
    method: Annotated[
        ExplorationMethod,
        typer.Option(
            help="staircase makes gates of its own; gram proves given or sampled ones; dense decides by an SVD of phi.",
            rich_help_panel="Decision",
        ),
    ] = ExplorationMethod.AUTO,
    add_constant: Annotated[
        bool, typer.Option("--add-constant", help="Append the constant column 1 to the features.")
    ] = False,
    delta: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Bound of each row's error (2-norm): the proof then covers every Z within it.",
            show_default=False,
            rich_help_panel="Decision",
        ),
    ] = None,
    estimate_delta: Annotated[
        bool,
        typer.Option(
            "--estimate-delta",
            help="Take for R what a float64 pass on a sample says of the model's precision: a numerical verdict.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    rule: options.Rule = "golub",
    certify: options.Certify = True,
    tries: Annotated[
        int, typer.Option(min=1, metavar="N", help="Directions to try.", rich_help_panel="Computation")
    ] = 8,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep the tiles of gram's factorization here; a run that was ended goes on from them.",
            show_default="in memory",
            rich_help_panel="Computation",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Work on the cluster of this Dask scheduler; gram needs --tiles, a folder that its workers share.",
            show_default=False,
            rich_help_panel="Computation",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Compute the features with this model instead; the code is imported and run.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="The model's inputs: X.", show_default=False, rich_help_panel=_MODEL),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The layer whose output is z.",
            show_default="the model's output",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Parameters to load: a .safetensors file.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples run at a time.", rich_help_panel=_MODEL)
    ] = 256,
    keep_features: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npy",
            help="Keep the features here, batch by batch: for a re-check, and for models of more than memory holds.",
            show_default="in memory",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Is the last hidden layer wide enough (Assumption 4)?

    Proves that some gates q give phi(q) full row rank, at sizes where phi itself cannot be formed.

    [bold]Examples[/bold]

      alignver check exploration Z.npy --width 130 --certificate proof
      alignver check exploration features.npy --add-constant --delta 1e-5
      alignver check exploration --model net.py:build --data train.npz --layer pool --keep-features Z.npy
      alignver check exploration Z.npy --method gram --tiles shared/tiles --scheduler tcp://host:8786
    """
    session = Session(
        "check exploration", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose, device=device, seed=seed
    )

    def body() -> Exit:
        with session.working():
            from alignver.checks.exploration import check_safe_exploration, equal_inputs
            from alignver.cli import input_files

            ensure_free(certificate)
            gram = q is not None or method is ExplorationMethod.GRAM
            _require_used(
                model is not None,
                {"--keep-features": keep_features, "--data": data, "--layer": layer, "--weights": weights},
                "--model, whose features are looked at",
            )
            _require_used(gram, {"--tiles": tiles}, "--method gram, or --q")
            if device != "cpu" and not gram and model is None:
                raise InvalidInput("--device", device, "cpu, but for a model, or the factorization of --method gram")
            arguments = {"Z": z_file} if z_file is not None else {"X": f"{data}:X"}
            if q is not None:
                arguments["q"] = q
            if model is not None:
                samples = _inputs(z_file, data)
                source = _Source(model, data, layer, weights, batch_size, device, seed, keep_features)
                net, identity = _loaded(samples, source)
                with input_files.rename_argument(arguments):
                    refuted = equal_inputs(samples["X"])
                if refuted is not None:
                    notes = save_certificate(refuted, certificate, {"X": f"{data}:X"}, session)
                    return session.finish(refuted, inputs={**samples, **identity}, notes=notes)
                features, inputs = _features(session, net, samples, source), {**samples, **identity}
                estimate = functools.partial(_estimated, net, samples["X"], source)
            elif z_file is not None:
                features, inputs = input_files.read_matrix(z_file, "Z"), {}
            else:
                raise InvalidInput("Z", "no features", "a file, or --model with --data and --layer")
            if estimate_delta and (model is None or delta is not None):
                raise InvalidInput("--estimate-delta", "no model, or --delta beside it", "--model without --delta")
            if gram and device != "cpu":
                features = input_files.to_backend(features, options.Backend.TORCH, device)
            with input_files.renamed(_OPTIONS), input_files.rename_argument(arguments), _client(scheduler) as client:
                result = check_safe_exploration(
                    features,
                    width=width,
                    q=None if q is None else input_files.read_matrix(q, "q"),
                    method=method.value,
                    rule=rule,
                    delta=estimate() if estimate_delta else delta,
                    delta_is_estimate=estimate_delta,
                    certify=certify,
                    add_constant=add_constant or model is not None,
                    tries=tries,
                    seed=seed,
                    folder=tiles,
                    client=client,
                )
            place = z_file if z_file is not None else keep_features
            notes = save_certificate(result, certificate, {} if place is None else {"Z": place}, session)
            if notes and place is None:
                notes += ("its features are in no file: a re-check wants them kept, with --keep-features FILE.npy",)
        return session.finish(result, inputs=inputs | _identity(result, z_file), notes=notes)

    return session.conduct(body)


def _inputs(z_file: str | None, data: str | None) -> dict[str, Any]:
    """Return the inputs of the model whose features are wanted."""
    from alignver.cli import input_files

    if z_file is not None:
        raise InvalidInput("--model", f"a model beside the features {z_file}", "one of the two")
    if data is None:
        raise InvalidInput("--data", "no file", "a .npz file with the model's inputs X")
    return input_files.read_npz(data, "--data", ("X",))


def _require_used(used: bool, given: Mapping[str, str | None], need: str) -> None:
    """Refuse an option that nothing would come of."""
    for option, value in given.items():
        if value is not None and not used:
            raise InvalidInput(option, f"{value}, of which nothing would come", need)


def _client(scheduler: str | None) -> contextlib.AbstractContextManager[Any]:
    if scheduler is None:
        return contextlib.nullcontext()
    from alignver.features.cluster import connected

    return connected(scheduler)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where features that are in no file come from, and whether they are kept."""

    model: str
    data: str | None
    layer: str | None
    weights: str | None
    batch_size: int
    device: str
    seed: int
    kept: str | None


def _loaded(samples: dict[str, Any], source: _Source) -> tuple[Any, dict[str, Any]]:
    """Return the model and what identifies it, after a try of two samples: a wrong name is no verdict."""
    from alignver.cli import input_files, model_io

    if source.kept is not None and (Path(source.kept).exists() or Path(source.kept).suffix != ".npy"):
        raise InvalidInput("--keep-features", source.kept, "a new file, FILE.npy")
    net, identity = model_io.load(source.model, source.weights, device=source.device, seed=source.seed)
    from alignver.network.feature_extraction import extract_features

    with input_files.renamed(_OPTIONS), input_files.rename_argument({"X": f"{source.data}:X", "model": source.model}):
        extract_features(net, samples["X"][:2], source.layer, batch_size=source.batch_size)
    return net, identity


def _features(session: Session, net: Any, samples: dict[str, Any], source: _Source) -> Any:
    from alignver.cli import input_files
    from alignver.network.feature_extraction import extract_features, save_features

    X, layer, size = samples["X"], source.layer, source.batch_size
    if layer is None:
        session.note("the features are the model's outputs: --layer NAME takes those of a layer inside")
    with input_files.renamed(_OPTIONS), input_files.rename_argument({"X": f"{source.data}:X", "model": source.model}):
        if source.kept is None:
            return extract_features(net, X, layer, batch_size=size)
        return save_features(source.kept, net, X, layer, batch_size=size)


def _estimated(net: Any, X: Any, source: _Source) -> float:
    from alignver.network.feature_extraction import estimate_row_error

    return estimate_row_error(net, X, source.layer, seed=source.seed)


def _identity(result: Any, z_file: str | None) -> dict[str, Any]:
    """Return what identifies the features without hashing them once more: the certificate has it."""
    record = getattr(result.certificate, "inputs", {}).get("Z")
    if record is None or z_file is None:
        return {}
    return {
        "Z": {"sha256": record["sha256"], "shape": list(record["shape"]), "dtype": "float64", "file": Path(z_file).name}
    }
