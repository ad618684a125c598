"""Progress on a terminal: a bar for long work after two seconds, and the table of a training run.

A bar disappears when its work is done. The table has a row now and then, and on a terminal the current epoch below it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import IO, Any

from rich.console import Group
from rich.live import Live
from rich.progress import TaskID
from rich.text import Text

from alignver.errors import printable
from alignver.progress import listening
from alignver.progress_bars import Bars, Lines, bars
from alignver.report import text
from alignver.results import shown_up


@contextlib.contextmanager
def shown(file: IO[str], label: str) -> Iterator[None]:
    """Show the progress of the calls inside the block on ``file``: bars if that is a terminal, else a line at times."""
    console = text.console(file)
    if not file.isatty() or console.is_dumb_terminal:
        with _lines(file, label):
            yield
        return
    with _until_closed(Bars(console, label)):
        yield


@contextlib.contextmanager
def _until_closed(listener: Bars) -> Iterator[None]:
    try:
        with listening(listener):
            yield
    finally:
        listener.close()


@contextlib.contextmanager
def _lines(file: IO[str], label: str | None) -> Iterator[None]:
    """Write what a call does and how far it is, with ``label`` where it does not say what it does."""

    def write(words: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed: what is computed is not lost
            file.write(f"alignver: {printable(words)}\n")
            file.flush()

    with _until_closed(Lines(write, label)):
        yield


_ROWS = 12


def step_of_rows(epochs: int) -> int:
    """Return the number of epochs between rows: 1, 2 or 5 times a power of ten, for about a dozen rows.

    Examples
    --------
    >>> [step_of_rows(epochs) for epochs in (5, 30, 100, 10000)]
    [1, 5, 10, 1000]
    """
    least = max(epochs / _ROWS, 1.0)
    power = int(10 ** math.floor(math.log10(least)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


class EpochTable:
    """Shows rows of epochs, remarks between them, and the progress of the calls inside its ``with`` block.

    Parameters
    ----------
    file : stream
        On a terminal the current epoch and a bar stay below the rows; elsewhere lines say how far the run is.
    epochs : int
        Number of epochs of the whole run.
    """

    def __init__(self, file: IO[str], epochs: int) -> None:
        self._console, self._epochs = text.console(file), epochs
        self._head = ""
        self._step, self._phase, self._headed = step_of_rows(epochs), "", False
        self._bars = bars(self._console)
        self._bar = self._bars.add_task("epochs", total=epochs)
        self._present = Text()
        self._live: Live | None = None

    def __rich__(self) -> Group:
        """Return the lines below the rows."""
        return Group(*([self._present] if self._present else []), self._bars)

    @contextlib.contextmanager
    def shown(self) -> Iterator[EpochTable]:
        """Show the table, and the progress of the calls inside the block."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            with _lines(self._console.file, None):
                yield self
            return
        options: Any = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
        with Live(self, console=self._console, refresh_per_second=8, **options) as self._live, listening(self):
            yield self
        self._live = None

    def continue_after(self, done: int) -> None:
        """Continue after an epoch of an earlier part of the run."""
        self._bars.update(self._bar, completed=done)

    def epoch(
        self, record: Mapping[str, Any], rank: str, *, last_of_phase: bool = False, estimated: bool = False
    ) -> None:
        """Record an epoch, and write its row if it is one of those with a row.

        Parameters
        ----------
        record : mapping
            epoch, phase, loss, error (or None), gap; test_error (or None) if there are test samples.
        rank : str
            Text of the last column.
        last_of_phase : bool
            Whether the epoch is the last of its phase, which always has a row.
        estimated : bool
            Whether the loss is a mean over batches during the epoch; it is marked by ``~``.
        """
        epoch, phase = int(record["epoch"]), str(record["phase"])
        row = _row(record, rank, "~" if estimated else "")
        self._head = _head(record)
        self._bars.update(self._bar, completed=epoch, description=phase)
        self._present = row
        first = phase != self._phase
        self._phase = phase
        if first or last_of_phase or epoch % self._step == 0 or epoch == self._epochs:
            self._write(row)

    def note(self, message: str) -> None:
        """Write a remark between the rows."""
        text.put(self._console, *text.sentences((message,), self._console.width, style="dim"))

    def start(self, label: str, total: int | None) -> TaskID:
        """Add a line for a task of the library (a :class:`~alignver.progress.Listener`); the table has the epochs'."""
        return self._bar if label == "epochs" else self._bars.add_task(label, total=total)

    def advance(self, handle: object) -> None:
        """Move the task's bar by a step."""
        if handle != self._bar:
            self._bars.advance(TaskID(handle))  # type: ignore[arg-type]  # the handle is a task id

    def finish(self, handle: object) -> None:
        """Remove the task's line."""
        if handle != self._bar:
            self._bars.remove_task(TaskID(handle))  # type: ignore[arg-type]  # the handle is a task id

    def _write(self, row: Text) -> None:
        self._present = Text()
        if not self._headed:
            self._headed = True
            text.put(self._console, Text(self._head, style="dim"))
        text.put(self._console, row)


def _head(record: Mapping[str, Any]) -> str:
    test = f"{'test':>7}  " if "test_error" in record else ""
    return f"{'epoch':>7}  {'phase':<12}  {'loss':>10}  {'error':>7}  {test}{'gap bound':>10}  rank"


def _row(record: Mapping[str, Any], rank: str, mark: str) -> Text:
    row = f"{record['epoch']:>7}  {record['phase']:<12}  {mark + _number(record['loss']):>10}  "
    row += f"{_percent(record['error'], mark):>7}  "
    if "test_error" in record:
        row += f"{_percent(record['test_error'], ''):>7}  "
    gap = shown_up(record["gap"] + 0.0, 4)  # -0.0 + 0.0 is 0.0
    return Text(f"{row}{mark + gap:>10}  {rank}", no_wrap=True, overflow="ellipsis")


def _percent(error: float | None, mark: str) -> str:
    return "-" if error is None else f"{mark}{100.0 * error:.1f} %"


def _number(value: float) -> str:
    if value == 0.0:  # torch's cross-entropy ends at -0
        return "0"
    return f"{value:.4f}" if 1e-3 <= value < 1e4 else f"{value:.2e}"
