"""``alignver check membership``: is y in the column space of J?"""

from __future__ import annotations

from typing import Annotated

import typer

from alignver.cli import options
from alignver.cli.exits import Exit
from alignver.cli.session import Session

__all__ = ["membership"]


def membership(
    j_file: Annotated[str, typer.Argument(metavar="J", help="The matrix: .npy, .npz, file.npz:key, .csv or .txt.")],
    y_file: Annotated[str, typer.Argument(metavar="Y", help="The vector: the same kinds of file.")],
    method: options.Method = "auto",
    rule: options.Rule = "golub",
    tolerance: options.Tolerance = None,
    residual_tolerance: options.ResidualTolerance = None,
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
    """Is y in the column space of J?

    Shows the rank and the residual, at which tolerances the verdict stands, and what other rank rules say.

    [bold]Examples[/bold]

      alignver check membership J.npy y.npy
      alignver check membership data.npz:J data.npz:y --method qr --rule press
      alignver check membership J.npy y.npy --computed-in float32 --json
      alignver check membership J.npy y.npy --certificate proof
    """
    session = Session(
        "check membership", json=json, html=html, junit=junit, quiet=quiet, verbose=verbose, device=device
    )

    def body() -> Exit:
        with session.working():
            from alignver.checks.membership import check_membership
            from alignver.cli import backends, certificates, files

            certificates.free(certificate)
            files_of = {"J": j_file, "y": y_file}
            inputs = {"J": files.read_matrix(j_file, "J"), "y": files.read_vector(y_file, "y")}
            with files.blamed(files_of):
                result = check_membership(
                    backends.to_backend(inputs["J"], backend, device),
                    backends.to_backend(inputs["y"], backend, device),
                    method=method,
                    rule=rule,
                    certify=certify,
                    tolerance=tolerance,
                    residual_tolerance=residual_tolerance,
                    computed_in=computed_in,
                )
            notes = certificates.save(result, certificate, files_of, session)
        return session.finish(result, inputs=inputs, notes=notes)

    return session.conduct(body)
