"""``alignver verify``: check a certificate again, without trusting what produced it."""

from __future__ import annotations

from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.session import Session
from alignver.errors import InvalidInput

__all__ = ["verify"]


def verify(
    certificate: Annotated[str, typer.Argument(metavar="CERT", help="The folder that --certificate wrote.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=FILE",
            help="An input of the claim, by the name it has there; once for each.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Check a certificate again.

    The checker shares no code with what produced the certificate. Give every input that the claim is about.

    [bold]Examples[/bold]

      alignver verify proof --input J=J.npy --input y=y.npy
      alignver verify proof --input A=data.npz:A --json
    """
    session = Session("verify", json=json, quiet=quiet, verbose=verbose)

    def body() -> Exit:
        with session.working():
            from alignver.cli import files
            from alignver.phi.recheck import recheck

            named = _split(inputs or [])
            read = {"y": files.read_vector}  # the one vector among the inputs that claims have
            arrays = {name: read.get(name, files.read_matrix)(file, name) for name, file in named.items()}
            with files.blamed(named):
                result = recheck(certificate, **arrays)
        return session.finish(result, inputs=arrays)

    return session.conduct(body)


def _split(pairs: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not name.isidentifier() or not file:
            raise InvalidInput("--input", repr(pair), "NAME=FILE, for example J=J.npy")
        if name in named:
            raise InvalidInput("--input", f"{name} twice", "each input once")
        named[name] = file
    return named
