"""Exit codes, and what a person reads on stderr when a command ends without a verdict."""

from __future__ import annotations

import contextlib
import enum
import os
import sys
import traceback

from alignver.errors import InvalidInput, MissingDependency, printable
from alignver.results import Verdict

__all__ = ["Exit", "OutputFailed", "exit_of", "explain", "say", "silence_stdout"]


class Exit(enum.IntEnum):
    """What the exit code of every command means."""

    HOLDS = 0
    FAILS = 1
    BAD_INPUT = 2
    UNDECIDED = 3
    INTERNAL = 70
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader left; never 1, which would be a verdict


_EXITS = {Verdict.HOLDS: Exit.HOLDS, Verdict.FAILS: Exit.FAILS, Verdict.UNDECIDED: Exit.UNDECIDED}


class OutputFailed(Exception):
    """The report was made and cannot be written where it should go."""


def exit_of(verdict: Verdict) -> Exit:
    """Return the exit code of a verdict."""
    return _EXITS[verdict]


def say(*lines: str) -> None:
    """Write a message of the program itself to stderr, printable; a stderr that is gone is no reason to fail."""
    with contextlib.suppress(OSError):
        print("alignver: " + "\n  ".join(map(printable, lines)), file=sys.stderr, flush=True)


def explain(error: BaseException, *, verbose: bool = False) -> Exit:
    """Tell a person what went wrong and what helps, and return the exit code; a traceback only when ``verbose``."""
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
    again = "" if verbose else "; -v shows the traceback that belongs there"
    say(f"internal error: {what}", f"this is a bug: please report it with the command and its inputs{again}")
    return Exit.INTERNAL


def _trace(error: BaseException) -> None:
    """Write a traceback, each line behind a mark: messages of several lines look like nothing of ours."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    with contextlib.suppress(OSError):
        print(*(f"| {printable(line)}" for line in lines), sep="\n", file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Send what Python still holds for stdout nowhere, so that it does not complain at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
