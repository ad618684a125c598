"""Exit codes, messages, interrupts and output files: how a command ends, with a verdict or without one.

Python raises ``KeyboardInterrupt`` only between two bytecodes, so that an SVD of several minutes would run to its end.
The signal handler of Python, at the C level, writes each signal to a pipe as it arrives. A thread that reads the pipe
gives the main thread :data:`GRACE` seconds to end by itself and then ends the process.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from alignver import atomic
from alignver.errors import InvalidInput, MissingDependency, printable
from alignver.results import Verdict


class Exit(enum.IntEnum):
    """The exit codes of all commands."""

    HOLDS = 0
    FAILS = 1
    BAD_INPUT = 2
    UNDECIDED = 3
    INTERNAL = 70
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader closed the pipe; not 1, which would be a verdict


_EXITS = {Verdict.HOLDS: Exit.HOLDS, Verdict.FAILS: Exit.FAILS, Verdict.UNDECIDED: Exit.UNDECIDED}


class OutputFailed(Exception):
    """A report or certificate that is complete cannot be written to its place."""


def exit_of(verdict: Verdict) -> Exit:
    """Return the exit code of a verdict."""
    return _EXITS[verdict]


def say(*lines: str) -> None:
    """Write a message of the program itself to stderr, printable; a closed stderr is not an error."""
    with contextlib.suppress(OSError):
        print("alignver: " + "\n  ".join(map(printable, lines)), file=sys.stderr, flush=True)


def explain(error: BaseException, *, verbose: bool = False) -> Exit:
    """Write what went wrong and what helps, with a traceback if ``verbose``, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return Exit.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return Exit.BROKEN_PIPE
    if verbose:
        _trace(error)
    if isinstance(error, InvalidInput | MissingDependency):
        say(str(error))
        return Exit.BAD_INPUT
    if isinstance(error, OutputFailed):
        silence_stdout()
        say(str(error))
        return Exit.INTERNAL
    kind = type(error).__name__
    what = f"{kind}: {error}" if str(error) else kind
    if kind in {"MemoryError", "_ArrayMemoryError", "OutOfMemoryError"}:
        say(f"out of memory ({what})", "a smaller input, or a machine with more memory, is needed")
        return Exit.INTERNAL
    trace = "the traceback" if verbose else "the traceback, which -v shows"
    say(f"internal error: {what}", f"this is a bug: please report it with the command, its inputs and {trace}")
    return Exit.INTERNAL


def _trace(error: BaseException) -> None:
    """Write a traceback, each line after a mark that tells it from the messages of the program."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    with contextlib.suppress(OSError):
        print(*(f"| {printable(line)}" for line in lines), sep="\n", file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Discard the buffered output of stdout, so that Python does not report an error at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


GRACE = 0.5
"""Seconds in which the main thread may end by itself after SIGINT."""

_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"  # a progress bar hides the cursor; clear its line and bring the cursor back


@contextlib.contextmanager
def prompt(exit_code: int, message: Callable[[], str]) -> Iterator[None]:
    """End the process with ``exit_code`` if SIGINT finds the block unable to end within :data:`GRACE` seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = threading.Event()

    def watch() -> None:
        while signals := os.read(reading, 64):
            if signal.SIGINT in signals and not done.wait(GRACE):
                with contextlib.suppress(OSError):
                    os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + printable(message()).encode() + b"\n")
                os._exit(exit_code)
        os.close(reading)

    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="alignver-interrupt", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(previous)
        os.close(writing)


def ensure_writable(option: str, target: str | None) -> None:
    """Refuse a file that cannot be written; an existing file will be replaced."""
    if target is None:
        return
    place = Path(target)
    folder = place.resolve().parent
    if target == "-":
        raise InvalidInput(option, "-", "the name of a file; /dev/stdout is one", code="unwritable-file")
    if place.is_dir():
        raise InvalidInput(option, f"{target}, a folder", "the name of a file", code="unwritable-file")
    if not folder.is_dir():
        got = f"{target}, in the folder {place.parent}, which does not exist"
        raise InvalidInput(option, got, "an existing folder", code="unwritable-file")
    if not os.access(place if place.exists() else folder, os.W_OK):
        need = "a place that may be written to"
        raise InvalidInput(option, f"{target}, which cannot be written", need, code="unwritable-file")


def write_output(option: str, target: str, content: bytes) -> None:
    """Write a file; a regular file is replaced only when the new content is complete, so that a full disk keeps it."""
    place = Path(target)
    try:
        if place.exists() and not place.is_file():  # a device or a pipe, which must not be replaced
            place.write_bytes(content)
            return
        with atomic.writing(place.resolve(), shared=True) as stream:  # a link stays a link
            stream.write(content)
    except OSError as error:
        raise OutputFailed(f"{option} {target} cannot be written: {error.strerror or error}") from error


def file_size(place: Path) -> str:
    """Return the size of a file, or of all files in a folder, with its unit."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    count = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
