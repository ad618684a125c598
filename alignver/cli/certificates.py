"""Certificates on disk: where one may be written, and how the report says to check it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignver.cli import outputs
from alignver.cli.exits import OutputFailed
from alignver.cli.session import Session
from alignver.errors import InvalidInput
from alignver.results import CheckResult, Rigor, Summarised

__all__ = ["command", "free", "said", "save"]


def free(target: str | None) -> None:
    """Refuse, before any work is done, a place that a certificate cannot go to."""
    if target is None:
        return
    folder = Path(target)
    need = "a new folder, or one with a certificate to replace"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInput("--certificate", f"{target}, a file or a link", need)
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        if names and not ("certificate.json" in names and names <= {"certificate.json", "data.npz"}):
            raise InvalidInput("--certificate", f"{target}, a folder with other things in it", need)


def save(
    result: CheckResult, target: str | None, files: Mapping[str, str], session: Session, again: Sequence[str] = ()
) -> tuple[str, ...]:
    """Save the result's certificate and return the line of the report that says how to check it again.

    ``again`` are the options of ``alignver verify`` that make the claim's inputs, where they are in no file.
    """
    if target is None:
        return ()
    writer = getattr(result.certificate, "save", None)
    if writer is None:
        why = "the verdict is numerical, not a proof" if result.rigor is not Rigor.PROOF else "the proof has none"
        session.note(f"no certificate was saved in {target}: {why}")
        return ()
    try:
        writer(target)
    except OSError as error:
        # The work is done: its verdict is shown before the file is given up, as with the other files.
        session.unwritten = OutputFailed(f"--certificate {target} cannot be written: {error.strerror or error}")
        return ()
    if not files and not again:  # it is about matrices that were made on the way
        return (f"certificate {target} ({outputs.size(Path(target))}): {_claim(result)}",)
    named = [word for name, file in files.items() for word in ("--input", f"{name}={file}")]
    session.verify = command(target, [*named, *again])
    return (said(target, [*named, *again]),)


def command(target: str, again: Sequence[str]) -> str:
    """Return the command that checks a saved certificate again."""
    return shlex.join(("alignver", "verify", target, *again))


def said(target: str, again: Sequence[str]) -> str:
    """Return the line of the report about a saved certificate, with the options that check it again."""
    return f"certificate {target} ({outputs.size(Path(target))}); re-check with: {command(target, again)}"


def _claim(result: CheckResult) -> str:
    certificate = result.certificate
    summary = certificate.summary() if isinstance(certificate, Summarised) else certificate or {}
    return str(summary.get("claim", "re-check it with alignver.recheck"))
