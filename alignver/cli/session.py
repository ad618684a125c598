"""What every command shares: its output options, progress, a clean stdout, exit codes and the report at the end."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import enum
import inspect
import shlex
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignver.cli import options
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
from alignver.cli.input_files import rename_options, with_options
from alignver.errors import InvalidInput
from alignver.progress import Planned, Silent, listening, planning
from alignver.results import CheckResult, Report, Rigor, Summarised

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alignver.report.source import Source

invoked: contextvars.ContextVar[str] = contextvars.ContextVar("invoked", default="")
"""The whole command line of this run, for the provenance."""

Command = Callable[..., int]
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command(
    name: str, shared: str, *, provenance: str = "", aliases: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Exit]], Command]:
    """Make a function a command that Typer accepts: add shared options and run the function in a :class:`Session`.

    The function gets the session as its first argument and its own options by name; the shared ones are in
    :attr:`Session.options`, or belong to the session. The value of a choice is a plain string. If the library refuses
    an argument that has an option, the message names the option.

    Parameters
    ----------
    name : str
        The command as the report names it.
    shared : str
        Names of :data:`alignver.cli.options.SHARED` that the command has, in the order of the help.
    provenance : str
        Which of the options device, dtype and seed the provenance records.
    aliases : mapping, optional
        Options for arguments of the library that have another name than their option.
    """

    def decorate(function: Callable[..., Exit]) -> Command:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "session"
        ]
        names = [parameter.name for parameter in parameters]
        for key in shared.split():
            annotation, default = options.SHARED[key]
            parameters.append(inspect.Parameter(key, _KEYWORD, default=default, annotation=annotation))
        for parameter in parameters:
            _declare_name(parameter)
        named = [parameter for parameter in parameters if parameter.name not in options.OUTPUT]
        renames = {**dict(pair for parameter in named for pair in _option_names(parameter)), **(aliases or {})}

        def run(**values: Any) -> int:
            values = {key: value.value if isinstance(value, enum.Enum) else value for key, value in values.items()}
            outputs = {key: values.pop(key) for key in shared.split() if key in options.OUTPUT}
            session = Session(name, **outputs, options=values, arguments=renames)
            for key in provenance.split():
                setattr(session, key, values[key])

            def body() -> Exit:
                with rename_options(renames):
                    return function(session, **{key: values[key] for key in names})

            return session.conduct(body)

        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        return signed(run, parameters)

    return decorate


def signed(function: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """Give a function of keyword arguments the signature that Typer reads."""
    keywords = [parameter.replace(kind=_KEYWORD) for parameter in parameters]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # inspect.signature reads it
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return function


def _declare_name(parameter: inspect.Parameter) -> None:
    """Name an option explicitly: typer 0.27 takes a metavar that differs from the name in case only as the name."""
    kind, *described = typing.get_args(parameter.annotation) or (None,)
    for option in described:
        if isinstance(option, typer.models.OptionInfo) and not _declared(option) and kind is not bool:
            option.param_decls = ("--" + parameter.name.replace("_", "-"),)


def _declared(option: Any) -> tuple[str, ...]:
    """Return the names that an option declares: Typer takes the first one as its default."""
    first = (option.default,) if isinstance(option.default, str) else ()
    return (*first, *(option.param_decls or ()))


def _option_names(parameter: inspect.Parameter) -> Iterator[tuple[str, str]]:
    """Yield the names by which the library may know an option, each with the option."""
    for described in typing.get_args(parameter.annotation)[1:]:
        if isinstance(described, typer.models.OptionInfo):
            option = (*_declared(described), "--" + parameter.name.replace("_", "-"))[0].partition("/")[0]
            yield parameter.name, option
            yield option.removeprefix("--").replace("-", "_"), option


def given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line; a default is not."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
    certificate : str, optional
        The folder for the certificate.
    options : mapping
        The other options of the command, by parameter name.
    plan : bool
        Print the plan of the first long computation, and stop.
    arguments : mapping
        The option of each argument of the library, for its messages.
    device, dtype, seed
        What the provenance says about the computation.
    interrupt_message : str
        The message on Ctrl-C.
    verify : str, optional
        The command that checks the saved certificate again.
    unwritten : OutputFailed, optional
        The error of a file that could not be written after the work was done; it is raised after the report.
    files : dict
        The file of each input that came from one.
    """

    command: str
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    html: str | None = None
    junit: str | None = None
    certificate: str | None = None
    plan: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    dtype: str | None = None
    seed: int | None = None
    interrupt_message: str = "interrupted"
    verify: str | None = None
    unwritten: OutputFailed | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    _began: float = dataclasses.field(default_factory=time.perf_counter)

    def arguments_of(self, names: str) -> dict[str, Any]:
        """Return the named options and the limits, which are arguments of the same name in the library."""
        return {name: self.options[name] for name in (*names.split(), "max_seconds", "max_memory")}

    def model_again(self) -> list[str]:
        """Return the options of ``alignver verify`` for the model, its samples and what differs from the defaults."""
        given = self.options
        again = [word for name in ("model", "data", "loss") if name in given for word in (f"--{name}", given[name])]
        for name in ("select", "weights", "seed", "device", "dtype", "chunk_size"):
            if name in given and given[name] != options.SHARED[name][1]:
                again += [self.arguments[name], str(given[name])]
        return again + ["--eval"] * given["eval_mode"]

    @property
    def verbosity(self) -> int:
        """-1, 0 or 1."""
        return 1 if self.verbose else -1 if self.quiet else 0

    def conduct(self, body: Callable[[], Exit]) -> int:
        """Run the body of a command and return the exit code; an error becomes a message and its exit code."""
        try:
            with prompt(Exit.INTERRUPTED, lambda: f"alignver: {self.interrupt_message}"), warnings_as_notes(self._warn):
                self._require_compatible()
                ensure_writable("--html", None if self.html == "-" else self.html)
                ensure_writable("--junit", self.junit)
                _ensure_free(self.certificate)
                if not self.plan:
                    return int(body())
                with planning():
                    return int(body())
        except Planned as plan:
            self.print(str(plan))
            return int(Exit.HOLDS)
        except KeyboardInterrupt:
            say(self.interrupt_message)
            return int(Exit.INTERRUPTED)
        except Exception as error:
            code = explain(error, verbose=self.verbose)
            self._stopped(error)
            return int(code)

    def _require_compatible(self) -> None:
        """Refuse options of which one would have no effect, and files that would overwrite another."""

        def conflict(option: str, got: str, need: str) -> InvalidInput:
            return InvalidInput(option, got, need, "conflicting-arguments")

        if self.quiet and self.verbose:
            raise conflict("--quiet", "--quiet with --verbose", "one of them")
        if self.json and self.html == "-":
            raise conflict("--html", "- with --json", "one of them on stdout")
        if self.json and self.plan:
            raise conflict("--plan", "--plan with --json", "one of them; a plan is text")
        outputs = [(option, place) for option, place in (("--html", self.html), ("--junit", self.junit)) if place]
        outputs = [(option, place) for option, place in outputs if place != "-"]
        # FILE, FILE:KEY, FILE.py:FUNCTION and NAME=FILE; of an option that may be repeated, a list of them.
        values = [value for given in self.options.values() for value in (given if isinstance(given, list) else [given])]
        names = [str(value).rpartition("=")[2] for value in values if isinstance(value, str | Path)]
        read = {Path(part).resolve() for name in names for part in (name, name.partition(":")[0]) if part}
        for option, place in outputs:
            if Path(place).resolve() in read:
                raise conflict(option, f"{place}, which is read", "another file")
        if len({Path(place).resolve() for _, place in outputs}) < len(outputs):
            raise conflict("--junit", f"{self.junit}, the file of --html", "another file")

    @contextlib.contextmanager
    def working(
        self, label: str | None = None, *, display: contextlib.AbstractContextManager[Any] | None = None
    ) -> Iterator[None]:
        """Show progress on stderr and send all other output there meanwhile: stdout is for the report.

        ``display`` replaces the progress bar.
        """
        from alignver.report.progress import shown

        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if self.quiet:
                stack.enter_context(listening(Silent()))
            else:
                stack.enter_context(display if display is not None else shown(sys.stderr, label or self.command))
            yield

    def finish(
        self,
        result: CheckResult,
        *,
        inputs: Mapping[str, Any],
        notes: tuple[str, ...] = (),
        parts: tuple[CheckResult, ...] = (),
    ) -> Exit:
        """Write the report of one result, with ``notes`` as its last lines, and return the exit code.

        ``parts`` are the results that it summarizes; a terminal shows them if the session is verbose.
        """
        report = None
        if self.json or self.html is not None or self.junit is not None:
            report = self.report((result, *parts), inputs)
        self.present((result, *(parts if self.verbose else ())), report, inputs, notes)
        if report is not None:
            self.keep(report, {name: value for name, value in inputs.items() if not isinstance(value, Mapping)})
        if self.unwritten is not None:
            raise self.unwritten
        return exit_of(result.verdict)

    def present(
        self,
        results: Sequence[CheckResult],
        report: Report | None,
        inputs: Mapping[str, Any] | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Write the report on stdout: as JSON, or each result as text and, if there are inputs, the provenance."""
        if self.json and report is not None:
            self.write(report)
            return
        if self.html == "-":  # the page takes the place of the text
            return
        for result in results:
            self.show(result, notes)
        if inputs is not None:
            self.show_provenance(inputs)

    def show(self, result: CheckResult, notes: tuple[str, ...] = ()) -> None:
        """Write one result as text."""
        from alignver.report import text

        with self._stdout() as out:
            worded = self._with_options(result)
            text.put(out, text.render(worded, out.width, verbosity=self.verbosity, notes=notes))

    def print(self, *rows: RenderableType) -> None:
        """Write further lines of the report."""
        from alignver.report import text

        with self._stdout() as out:
            text.put(out, *rows)

    def show_provenance(self, inputs: Mapping[str, Any]) -> None:
        """Write the provenance if the session is verbose."""
        if not self.verbose:
            return
        from rich.text import Text

        from alignver.report import provenance, text

        with self._stdout() as out:
            described = tuple(provenance.describe(self._provenance(inputs)))
            text.put(out, Text(), *text.sentences(described, out.width, style="dim"))
            text.put(out, Text(f"  {time.perf_counter() - self._began:.1f} s in all", style="dim"))

    def report(self, results: tuple[CheckResult, ...], inputs: Mapping[str, Any], **more: Any) -> Report:
        """Return the report of results: with their provenance."""
        return Report(tuple(map(self._with_options, results)), self._provenance(inputs, **more))

    def _with_options(self, result: CheckResult) -> CheckResult:
        """Return a result whose sentences name options of the command in place of arguments of the library."""
        reason = with_options(result.reason, self.arguments)
        evidence, steps = (
            tuple(with_options(line, self.arguments) for line in lines)
            for lines in (result.evidence, result.next_steps)
        )
        return dataclasses.replace(result, reason=reason, evidence=evidence, next_steps=steps)

    def write(self, report: Report) -> None:
        """Write a report on stdout as a JSON document."""
        with self._stdout() as out:
            out.file.write(report.to_json() + "\n")

    def keep(self, report: Report, samples: Mapping[str, Any] | None = None) -> None:
        """Write the HTML and JUnit files that the options name; ``samples`` are inputs that they may show."""
        from alignver.report.source import Source

        self.keep_source(Source.of(report, samples=samples))

    def keep_source(self, source: Source) -> None:
        """Write the HTML page and, if there is a report, the JUnit file."""
        if self.html is not None:
            from alignver.report import html

            page = html.page(source).encode("utf-8", "replace")
            if self.html == "-":
                with self._stdout() as out:
                    out.file.write(page.decode())
            else:
                self._written("--html", self.html, page)
        if self.junit is not None and source.report is not None:
            from alignver.report import junit

            self._written("--junit", self.junit, junit.document(source.report))

    def _written(self, option: str, target: str, content: bytes) -> None:
        write_output(option, target, content)
        self.note(f"{target} ({len(content) / 1000:.1f} kB)")

    def _stopped(self, error: Exception) -> None:
        """Replace the verdict of an earlier run in the JUnit file, since this run has none."""
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
        """Write a message on stderr, unless the session is quiet."""
        if not self.quiet:
            say(with_options(message, self.arguments))

    def _warn(self, message: str) -> None:
        say(with_options(message, self.arguments))

    def _provenance(self, inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        from alignver.report.provenance import collect, inputs_of

        identified = {
            name: dict(value) if isinstance(value, Mapping) else inputs_of({name: value})[name]
            for name, value in inputs.items()
        }
        if self.verify is not None:
            more["verify"] = self.verify
        seconds = round(time.perf_counter() - self._began, 6)
        for name, file in self.files.items():
            if name in identified:
                identified[name].setdefault("file", Path(file).name)
        more |= {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command_line": invoked.get(),
        }
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

    def save_certificate(
        self, result: CheckResult, files: Mapping[str, str], again: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Save the certificate of a result and return the line of the report that says how to check it again.

        ``files`` are the inputs of the claim; ``again`` are the options of ``alignver verify`` that make the inputs
        which are not in a file.
        """
        self.files |= files
        target = self.certificate
        if target is None:
            return ()
        writer = getattr(result.certificate, "save", None)
        if writer is None:
            why = (
                "the verdict is numerical, not a proof"
                if result.rigor is not Rigor.PROOF
                else "this proof has no certificate"
            )
            self.note(f"no certificate was saved in {target}: {why}")
            return ()
        try:
            writer(target)
        except OSError as error:
            # The work is done: the verdict is shown first, and the error is raised after it.
            self.unwritten = OutputFailed(f"--certificate {target} cannot be written: {error.strerror or error}")
            return ()
        if not files and not again:  # the claim is about matrices that were made on the way
            return (f"certificate {target} ({file_size(Path(target))}): {_claim(result)}",)
        words = [word for name, file in files.items() for word in ("--input", f"{name}={file}")]
        self.verify = _recheck_command(target, [*words, *again])
        return (recheck_hint(target, [*words, *again]),)


@contextlib.contextmanager
def warnings_as_notes(note: Callable[[str], None]) -> Iterator[None]:
    """Turn warnings, which may quote a file, into messages of the program itself."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_rest, **_more: note(f"warning: {message}")
        yield


def _ensure_free(target: str | None) -> None:
    """Refuse, before any work is done, a place that a certificate cannot be written to."""
    if target is None:
        return
    folder = Path(target)
    need = "a new folder, or one with a certificate to replace"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInput("--certificate", f"{target}, a file or a link", need, "unwritable-file")
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        if names and not ("certificate.json" in names and names <= {"certificate.json", "data.npz"}):
            raise InvalidInput("--certificate", f"{target}, a folder with other files in it", need, "unwritable-file")


def _recheck_command(target: str, again: Sequence[str]) -> str:
    """Return the command that checks a saved certificate again."""
    return shlex.join(("alignver", "verify", target, *again))


def recheck_hint(target: str, again: Sequence[str] = (), *, run: str | None = None) -> str:
    """Return the line of the report about a saved certificate, with the command that checks it, or its run, again."""
    command = _recheck_command(target if run is None else run, again)
    return f"certificate {target} ({file_size(Path(target))}); re-check with: {command}"


def _claim(result: CheckResult) -> str:
    certificate = result.certificate
    summary = certificate.summary() if isinstance(certificate, Summarised) else certificate or {}
    return str(summary.get("claim", "re-check it with alignver.recheck"))
