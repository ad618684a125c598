"""``alignver report``: what was found, as a page for people and as XML for a CI system.

``alignver verify``: check a certificate again, without trusting what produced it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.options import ChunkSize, JacobianDtype, Loss, ModelDtype, Weights
from alignver.cli.session import Session
from alignver.errors import InvalidInput

__all__ = ["report", "verify"]


def report(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, its history.jsonl, or a file that --json wrote."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The HTML page; one that is there is replaced.",
            show_default="report.html in the run folder, or beside the file",
            rich_help_panel="Output",
        ),
    ] = None,
    junit: options.Junit = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make a page of what was found: verdicts first, then evidence, then where it comes from.

    The page is one file that needs no network. The exit code is 0 when it is written, whatever it says.

    [bold]Examples[/bold]

      alignver report run-1
      alignver report run-1/history.jsonl -o so-far.html
      alignver report found.json -o report.html --junit report.xml
    """
    place = Path(run)
    target = out if out is not None else str((place if place.is_dir() else place.parent) / "report.html")
    session = Session("report", quiet=quiet, verbose=verbose, html=target, junit=junit)

    def body() -> Exit:
        with session.working():
            from alignver.errors import InvalidInput
            from alignver.report.source import read

            source = read(place)
            if source.report is None and junit is not None:
                raise InvalidInput("--junit", f"{run}, without a verdict", "a run that is finished")
            session.keep_source(source)
        return Exit.HOLDS

    return session.conduct(body)


_ALIGNMENT = "Alignment"


def verify(
    certificate: Annotated[str, typer.Argument(metavar="CERT", help="The folder that --certificate wrote.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=FILE",
            help="An input of the claim, by the name it has there, once for each; or FILE.npz for all that it holds.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Of a certificate of 'check alignment': the model, FILE.py:FUNCTION or package.module:FUNCTION. "
            "The code is imported and run.",
            show_default=False,
            rich_help_panel=_ALIGNMENT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE.npz", help="The samples: X and Y.", show_default=False, rich_help_panel=_ALIGNMENT),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(
            metavar="LOSS",
            help="squared, binary_cross_entropy or cross_entropy.",
            show_default=False,
            rich_help_panel=_ALIGNMENT,
        ),
    ] = None,
    weights: Weights = None,
    device: options.Device = "cpu",
    dtype: ModelDtype = JacobianDtype.FLOAT64,
    seed: options.Seed = 0,
    chunk_size: ChunkSize = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Check a certificate again.

    The checker imports none of the code that produces certificates. Give every input that the claim is about; for an
    alignment, the model, the data and the loss, from which the inputs are made again.

    [bold]Examples[/bold]

      alignver verify proof --input J=J.npy --input y=y.npy
      alignver verify proof --input A=data.npz:A --json
      alignver verify run-1/certificate --input run-1/inputs.npz
      alignver verify proof --model net.py:build --data train.npz --loss cross_entropy
    """
    session = Session("verify", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose)
    source = _Source(model, data, loss, weights, device, dtype.value, seed, chunk_size)

    def body() -> Exit:
        with session.working():
            from alignver.checks.recheck import recheck
            from alignver.cli import input_files
            from alignver.results import Rigor, Verdict

            named = _split(inputs or [])
            if source.given:
                if named:
                    raise InvalidInput("--input", "inputs beside --model", "one or the other")
                arrays, identity, notes, covered = source.again(certificate)
            else:
                read = {"y": input_files.read_vector}  # the one vector among the inputs that claims have
                arrays = {name: read.get(name, input_files.read_matrix)(file, name) for name, file in named.items()}
                identity, notes, covered = {}, (), True
            with input_files.rename_argument(named):
                result = recheck(certificate, **arrays)
            result = dataclasses.replace(result, evidence=(*result.evidence, *notes))
            if not covered and result.verdict is Verdict.HOLDS:
                reason = f"of the factors in the certificate: {result.reason}"
                result = dataclasses.replace(
                    result, verdict=Verdict.UNDECIDED, rigor=Rigor.NUMERICAL, reason=notes[0], evidence=(reason,)
                )
        return session.finish(result, inputs={**arrays, **identity})

    return session.conduct(body)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the inputs of an alignment come from."""

    model: str | None
    data: str | None
    loss: Loss | None
    weights: str | None
    device: str
    dtype: str
    seed: int
    chunk_size: int | None

    @property
    def given(self) -> bool:
        return any(value is not None for value in (self.model, self.data, self.loss, self.weights))

    def again(self, certificate: str) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...], bool]:
        """Make the inputs again; return them, what identifies their source, what is to be said of them, and whether the
        claim is about the model.
        """
        from alignver.cli import input_files, model_io
        from alignver.kernel.certificate import Tampered, load_certificate

        for option, value in (("--model", self.model), ("--data", self.data), ("--loss", self.loss)):
            if value is None:
                raise InvalidInput(option, "no value", "--model, --data and --loss together")
        assert self.model is not None
        assert self.data is not None
        assert self.loss is not None
        try:
            loaded = load_certificate(certificate)
        except Tampered:
            return {}, {}, (), True  # the checker says what is wrong with it
        samples = input_files.read_npz(self.data, "--data", ("X", "Y"))
        net, identity = model_io.load(self.model, self.weights, device=self.device, seed=self.seed)
        from alignver.jacobians.prepare import inputs_again

        with input_files.rename_argument({"X": f"{self.data}:X", "Y": f"{self.data}:Y", "model": self.model}):
            made, notes, covered = inputs_again(
                loaded,
                net,
                samples["X"],
                samples["Y"],
                loss=self.loss.value,
                dtype=self.dtype,
                chunk_size=self.chunk_size,
            )
        return made, {**samples, **identity}, notes, covered


def _split(pairs: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for pair in pairs:
        for name, file in _files(pair):
            if name in named:
                raise InvalidInput("--input", f"{name} twice", "each input once")
            named[name] = file
    return named


def _files(pair: str) -> list[tuple[str, str]]:
    """Return the names with their files: the one that is said, or those of all arrays of a .npz file."""
    from alignver.cli import input_files

    name, equals, file = pair.partition("=")
    if not equals and pair.endswith(".npz"):
        return [(key, f"{pair}:{key}") for key in input_files.names_in(pair, "--input")]
    if not equals or not name.isidentifier() or not file:
        raise InvalidInput("--input", repr(pair), "NAME=FILE, for example J=J.npy, or FILE.npz")
    return [(name, file)]
