"""What every command does around its check: progress, a clean stdout, errors as exit codes, the report at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignver.cli import interrupt, outputs
from alignver.cli.exits import Exit, OutputFailed, exit_of, explain, say
from alignver.errors import InvalidInput
from alignver.results import CheckResult, Report

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alignver.report.source import Source

__all__ = ["Session"]


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
            with interrupt.prompt(Exit.INTERRUPTED, lambda: f"alignver: {self.farewell}"), _heard():
                outputs.possible("--html", self.html)
                outputs.possible("--junit", self.junit)
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
        outputs.write(option, target, content)
        self.note(f"{target} ({len(content) / 1000:.1f} kB)")

    def _stopped(self, error: Exception) -> None:
        """Leave no earlier run's verdict in the file of a CI system where this run came to none."""
        if self.junit is None or isinstance(error, OutputFailed | BrokenPipeError):
            return
        if isinstance(error, InvalidInput) and error.argument == "--junit":
            return
        from alignver.report import junit

        try:
            outputs.write("--junit", self.junit, junit.stopped(self.command, type(error).__name__, str(error)))
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
