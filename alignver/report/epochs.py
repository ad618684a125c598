"""The table of a training run as it goes: a row now and then, and on a terminal the present epoch below it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from rich.console import Group
from rich.live import Live
from rich.progress import TaskID
from rich.text import Text

from alignver.progress import listening
from alignver.report import text
from alignver.report.progress import bars

__all__ = ["EpochTable", "step_of_rows"]

SILENCE = 30.0
"""Seconds after which a line is written where there is no terminal, whatever epoch it is."""

_ROWS = 12
_HEAD = f"{'epoch':>7}  {'phase':<12}  {'loss':>10}  {'error':>7}  {'gap bound':>10}  rank"


def step_of_rows(epochs: int) -> int:
    """Return every how many epochs there is a row: 1, 2 or 5 times a power of ten, for a dozen rows or so.

    Examples
    --------
    >>> [step_of_rows(epochs) for epochs in (5, 30, 100, 10000)]
    [1, 5, 10, 1000]
    """
    least = max(epochs / _ROWS, 1.0)
    power = int(10 ** math.floor(math.log10(least)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


class EpochTable:
    """Shows rows of epochs, remarks between them, and the progress of what is called inside its ``with`` block.

    Parameters
    ----------
    file : stream
        On a terminal the present epoch and a bar stay below the rows; elsewhere there are only the rows.
    epochs : int
        Of the whole run.
    """

    def __init__(self, file: IO[str], epochs: int) -> None:
        self._console, self._epochs = text.console(file), epochs
        self._step, self._phase, self._headed, self._said = step_of_rows(epochs), "", False, time.monotonic()
        self._bars = bars(self._console)
        self._bar = self._bars.add_task("epochs", total=epochs)
        self._present = Text()
        self._live: Live | None = None

    def __rich__(self) -> Group:
        """Return what stays below the rows."""
        return Group(*([self._present] if self._present else []), self._bars)

    @contextlib.contextmanager
    def shown(self) -> Iterator[EpochTable]:
        """Show the table, and the progress of everything called inside the block."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield self
            return
        options: Any = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
        with Live(self, console=self._console, refresh_per_second=8, **options) as self._live, listening(self):
            yield self
        self._live = None

    def go_on(self, done: int) -> None:
        """Begin after an epoch of an earlier part of the run."""
        self._bars.update(self._bar, completed=done)

    def epoch(
        self, record: Mapping[str, Any], rank: str, *, last_of_phase: bool = False, estimated: bool = False
    ) -> None:
        """Take note of an epoch; write its row if it is one of those that get one.

        Parameters
        ----------
        record : mapping
            epoch, phase, loss, error (or None), gap.
        rank : str
            What the last column says.
        last_of_phase : bool
            Such an epoch gets a row.
        estimated : bool
            Whether the loss is a mean over batches, taken while the parameters moved: it gets a ``~``.
        """
        epoch, phase = int(record["epoch"]), str(record["phase"])
        row = _row(record, rank, "~" if estimated else "")
        self._bars.update(self._bar, completed=epoch, description=phase)
        self._present = row
        silent = self._live is None and time.monotonic() - self._said > SILENCE
        first = phase != self._phase
        self._phase = phase
        if first or last_of_phase or silent or epoch % self._step == 0 or epoch == self._epochs:
            self._write(row)

    def note(self, message: str) -> None:
        """Write a remark between the rows."""
        text.put(self._console, *text.sentences((message,), self._console.width, style="dim"))

    def start(self, label: str, total: int | None) -> TaskID:
        """Open a line for a task of the library's (a :class:`~alignver.progress.Listener`)."""
        return self._bars.add_task(label, total=total)

    def advance(self, handle: object) -> None:
        """Move the task's bar by a step."""
        self._bars.advance(TaskID(handle))  # type: ignore[arg-type]

    def finish(self, handle: object) -> None:
        """Take the task's line away."""
        self._bars.remove_task(TaskID(handle))  # type: ignore[arg-type]

    def _write(self, row: Text) -> None:
        self._said = time.monotonic()
        self._present = Text()
        if not self._headed:
            self._headed = True
            text.put(self._console, Text(_HEAD, style="dim"))
        text.put(self._console, row)


def _row(record: Mapping[str, Any], rank: str, mark: str) -> Text:
    error = record["error"]
    wrong = "-" if error is None else f"{mark}{100.0 * error:.1f} %"
    row = f"{record['epoch']:>7}  {record['phase']:<12}  {mark + _number(record['loss']):>10}  {wrong:>7}  "
    return Text(f"{row}{mark + _number(record['gap']):>10}  {rank}", no_wrap=True, overflow="ellipsis")


def _number(value: float) -> str:
    if value == 0.0:  # torch's cross-entropy ends at -0
        return "0"
    return f"{value:.4f}" if 1e-3 <= value < 1e4 else f"{value:.2e}"
