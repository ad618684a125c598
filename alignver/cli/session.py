"""What every command does around its check: progress, a clean stdout, errors as exit codes, the report at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignver.cli import interrupt
from alignver.cli.exits import Exit, OutputFailed, exit_of, explain, say
from alignver.results import CheckResult, Report

if TYPE_CHECKING:
    from rich.console import RenderableType

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
    device, dtype, seed
        What the provenance says of the computation.
    farewell : str
        What to say on Ctrl-C.
    """

    command: str
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    device: str = "cpu"
    dtype: str | None = None
    seed: int | None = None
    farewell: str = "interrupted"
    _began: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def verbosity(self) -> int:
        """-1, 0 or 1; ``-v`` wins over ``-q``."""
        return 1 if self.verbose else -1 if self.quiet else 0

    def conduct(self, body: Callable[[], Exit]) -> int:
        """Run a command's body and return its exit code, whatever happens in it."""
        try:
            with interrupt.prompt(Exit.INTERRUPTED, lambda: f"alignver: {self.farewell}"):
                return int(body())
        except KeyboardInterrupt:
            say(self.farewell)
            return int(Exit.INTERRUPTED)
        except Exception as error:
            return int(explain(error, verbose=self.verbose))

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
        if self.json:
            self.write_json((result,), inputs)
        else:
            self.show(result, notes)
            self.show_provenance(inputs)
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
