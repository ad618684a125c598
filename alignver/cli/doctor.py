"""``alignver doctor``: whether this machine computes as proofs assume."""

from __future__ import annotations

import json

import typer

from alignver.cli.exits import Exit, exit_of
from alignver.cli.session import Session, command


@command("doctor", "json quiet verbose")
def doctor(session: Session) -> Exit:
    """Test whether this machine computes as proofs assume: rounding, products, factorizations, functions, torch.

    The exit code is 0 if every part holds, 1 if one fails, and 3 if one could not be tested.

    [bold]Examples[/bold]

      alignver doctor
      alignver doctor --json
    """
    with session.working():
        from alignver.checks.doctor import doctor as examine

        report = examine()
    if session.json:
        typer.echo(report.to_json())
        return exit_of(report.verdict)
    lines = str(report).splitlines()
    typer.echo("\n".join(lines[:1] if session.quiet else lines))
    if session.verbose:
        for part in report.parts:
            typer.echo(f"\n{part.name}, {part.seconds:.2f} s\n{json.dumps(part.measured, indent=1)}")
    return exit_of(report.verdict)
