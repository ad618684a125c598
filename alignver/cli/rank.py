"""``alignver check rank``: does A have full row rank, or the given rank?"""

from __future__ import annotations

from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.session import Session

__all__ = ["rank"]


def rank(
    a_file: Annotated[str, typer.Argument(metavar="A", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    expected: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="The rank that is claimed.", show_default="full row rank"),
    ] = None,
    method: options.Method = "auto",
    rule: options.Rule = "golub",
    tolerance: options.Tolerance = None,
    computed_in: options.ComputedIn = None,
    certify: options.Certify = True,
    backend: options.BackendOption = options.Backend.NUMPY,
    device: options.Device = "cpu",
    certificate: options.Certificate = None,
    html: options.Html = None,
    junit: options.Junit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Does A have full row rank, or rank R?

    Shows the singular values at the tolerance and what other rank rules and libraries say.

    [bold]Examples[/bold]

      alignver check rank A.npy
      alignver check rank A.csv --rank 12 --rule press
      alignver check rank A.npy --tolerance 1e-8 --no-certify -v
    """
    session = Session("check rank", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose, device=device)

    def body() -> Exit:
        with session.working():
            from alignver.checks.rank import check_rank
            from alignver.cli import backends, certificates, files

            certificates.free(certificate)
            inputs = {"A": files.read_matrix(a_file, "A")}
            with files.blamed({"A": a_file}):
                result = check_rank(
                    backends.to_backend(inputs["A"], backend, device),
                    rank=expected,
                    method=method,
                    rule=rule,
                    certify=certify,
                    tolerance=tolerance,
                    computed_in=computed_in,
                )
            notes = certificates.save(result, certificate, {"A": a_file}, session)
        return session.finish(result, inputs=inputs, notes=notes)

    return session.conduct(body)
