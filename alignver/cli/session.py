"""What every command does around its check: progress, a clean stdout, errors as exit codes, the report at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignver.cli.exits import (
    Exit,
    OutputFailed,
    ensure_writable,
    exit_of,
    explain,
    file_size,
    prompt,
    say,
    write_output,
)
from alignver.errors import InvalidInput
from alignver.results import CheckResult, Report, Rigor, Summarised

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alignver.report.source import Source

__all__ = ["Session", "ensure_free", "recheck_command", "recheck_hint", "save_certificate"]


@dataclasses.dataclass
class Session:
    """One run of a command.

    Attributes
    ----------
    command : str
        The command as the report names it: ``"check membership"``.
    json, quiet, verbose : bool
        Where the output goes and how much of it there is.
    html, junit : str, optional
        Files to write the report to as well.
    device, dtype, seed
        What the provenance says of the computation.
    farewell : str
        What to say on Ctrl-C.
    verify : str, optional
        The command that checks the saved certificate again.
    unwritten : OutputFailed, optional
        A file that could not be written when the work was done: said after the report.
    """

    command: str
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    html: str | None = None
    junit: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    seed: int | None = None
    farewell: str = "interrupted"
    verify: str | None = None
    unwritten: OutputFailed | None = None
    _began: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def verbosity(self) -> int:
        """-1, 0 or 1; ``-v`` wins over ``-q``."""
        return 1 if self.verbose else -1 if self.quiet else 0

    def conduct(self, body: Callable[[], Exit]) -> int:
        """Run a command's body and return its exit code, whatever happens in it."""
        try:
            with prompt(Exit.INTERRUPTED, lambda: f"alignver: {self.farewell}"), _heard():
                ensure_writable("--html", self.html)
                ensure_writable("--junit", self.junit)
                return int(body())
        except KeyboardInterrupt:
            say(self.farewell)
            return int(Exit.INTERRUPTED)
        except Exception as error:
            code = explain(error, verbose=self.verbose)
            self._stopped(error)
            return int(code)

    @contextlib.contextmanager
    def working(
        self, label: str | None = None, *, display: contextlib.AbstractContextManager[Any] | None = None
    ) -> Iterator[None]:
        """Show progress on stderr, and send there what anybody prints meanwhile: stdout is for the report.

        ``display`` shows it in place of the bar.
        """
        from alignver.report.progress import shown

        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not self.quiet:
                stack.enter_context(display if display is not None else shown(sys.stderr, label or self.command))
            yield

    def finish(self, result: CheckResult, *, inputs: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Exit:
        """Write the report of one result, with ``notes`` as its last lines, and return the exit code."""
        wanted = self.json or self.html is not None or self.junit is not None
        report = self.report((result,), inputs) if wanted else None
        if report is not None and self.json:
            self.write(report)
        else:
            self.show(result, notes)
            self.show_provenance(inputs)
        if report is not None:
            self.keep(report, {name: value for name, value in inputs.items() if not isinstance(value, Mapping)})
        if self.unwritten is not None:
            raise self.unwritten
        return exit_of(result.verdict)

    def show(self, result: CheckResult, notes: tuple[str, ...] = ()) -> None:
        """Write one result as text."""
        from alignver.report import text

        with self._stdout() as out:
            text.put(out, text.render(result, out.width, verbosity=self.verbosity, notes=notes))

    def print(self, *rows: RenderableType) -> None:
        """Write lines of a report's own."""
        from alignver.report import text

        with self._stdout() as out:
            text.put(out, *rows)

    def show_provenance(self, inputs: Mapping[str, Any]) -> None:
        """Write, with ``-v``, where the report comes from."""
        if not self.verbose:
            return
        from rich.text import Text

        from alignver.report import provenance, text

        with self._stdout() as out:
            described = tuple(provenance.describe(self._provenance(inputs)))
            text.put(out, Text(), *text.sentences(described, out.width, style="dim"))
            text.put(out, Text(f"  {time.perf_counter() - self._began:.1f} s in all", style="dim"))

    def write_json(self, results: tuple[CheckResult, ...], inputs: Mapping[str, Any], **more: Any) -> None:
        """Write the one JSON document."""
        self.write(self.report(results, inputs, **more))

    def report(self, results: tuple[CheckResult, ...], inputs: Mapping[str, Any], **more: Any) -> Report:
        """Return results with their provenance."""
        return Report(results, self._provenance(inputs, **more))

    def write(self, report: Report) -> None:
        """Write a report as the one JSON document."""
        with self._stdout() as out:
            out.file.write(report.to_json() + "\n")

    def keep(self, report: Report, samples: Mapping[str, Any] | None = None) -> None:
        """Write the files that were asked for beside the report; ``samples`` are inputs that they may show."""
        from alignver.report.source import Source

        self.keep_source(Source.of(report, samples=samples))

    def keep_source(self, source: Source) -> None:
        """Write the files that were asked for, of whatever there is to report."""
        if self.html is not None:
            from alignver.report import html

            self._written("--html", self.html, html.page(source).encode("utf-8", "replace"))
        if self.junit is not None and source.report is not None:
            from alignver.report import junit

            self._written("--junit", self.junit, junit.document(source.report))

    def _written(self, option: str, target: str, content: bytes) -> None:
        write_output(option, target, content)
        self.note(f"{target} ({len(content) / 1000:.1f} kB)")

    def _stopped(self, error: Exception) -> None:
        """Leave no earlier run's verdict in the file of a CI system where this run came to none."""
        if self.junit is None or isinstance(error, OutputFailed | BrokenPipeError):
            return
        if isinstance(error, InvalidInput) and error.argument == "--junit":
            return
        from alignver.report import junit

        try:
            write_output("--junit", self.junit, junit.stopped(self.command, type(error).__name__, str(error)))
        except OutputFailed as failed:
            say(str(failed))

    def note(self, message: str) -> None:
        """Say something beside the report, on stderr, unless quiet."""
        if not self.quiet:
            say(message)

    def _provenance(self, inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        from alignver.report.provenance import collect, inputs_of

        identified = {
            name: value if isinstance(value, Mapping) else inputs_of({name: value})[name]
            for name, value in inputs.items()
        }
        if self.verify is not None:
            more["verify"] = self.verify
        seconds = round(time.perf_counter() - self._began, 6)
        return collect(
            inputs=identified,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            seconds=seconds,
            command=self.command,
            **more,
        )

    @contextlib.contextmanager
    def _stdout(self) -> Iterator[Any]:
        from alignver.report.text import console

        try:
            out = console(sys.stdout)
            yield out
            out.file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"the report cannot be written to stdout: {error.strerror or error}") from error


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Turn warnings, which may quote a file, into messages of the program's own."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_rest, **_more: say(f"warning: {message}")
        yield


def ensure_free(target: str | None) -> None:
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


def save_certificate(
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
        return (f"certificate {target} ({file_size(Path(target))}): {_claim(result)}",)
    named = [word for name, file in files.items() for word in ("--input", f"{name}={file}")]
    session.verify = recheck_command(target, [*named, *again])
    return (recheck_hint(target, [*named, *again]),)


def recheck_command(target: str, again: Sequence[str]) -> str:
    """Return the command that checks a saved certificate again."""
    return shlex.join(("alignver", "verify", target, *again))


def recheck_hint(target: str, again: Sequence[str]) -> str:
    """Return the line of the report about a saved certificate, with the options that check it again."""
    return f"certificate {target} ({file_size(Path(target))}); re-check with: {recheck_command(target, again)}"


def _claim(result: CheckResult) -> str:
    certificate = result.certificate
    summary = certificate.summary() if isinstance(certificate, Summarised) else certificate or {}
    return str(summary.get("claim", "re-check it with alignver.recheck"))
