"""A progress bar for work that lasts: on a terminal, after two seconds, and gone when the work is done."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import IO

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from alignver.errors import printable
from alignver.progress import listening
from alignver.report import text

__all__ = ["PATIENCE", "Display", "bars", "shown"]

PATIENCE = 2.0
"""Seconds of silence before a bar appears."""

_PACE = 3600.0  # seconds that the pace is taken from: a step may last minutes, and one step alone has none


class _Label(ProgressColumn):
    """What is done, a line whatever the label has in it, and no markup."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


class _Bar(ProgressColumn):
    """A bar for tasks whose steps are counted; nothing for the others, which have a spinner and a clock."""

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else ProgressBar(total=task.total, completed=task.completed, width=24)


class _Left(ProgressColumn):
    """Steps done, and the time left once there is a pace to tell it from."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        steps = f"{task.completed:.0f}/{task.total:.0f}"
        left = task.time_remaining
        return Text(steps if left is None else f"{steps}, {_clock(left)} left", style="cyan")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bars(console: Console) -> Progress:
    """Return lines with spinner, label, bar, steps, time left and time spent; a live display of its own if started."""
    return Progress(
        SpinnerColumn(),
        _Label(table_column=Column(no_wrap=True)),
        _Bar(),
        _Left(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=_PACE,
    )


class Display:
    """A :class:`~alignver.progress.Listener` that draws on a console, once the work has lasted ``patience`` seconds."""

    def __init__(self, console: Console, label: str, *, patience: float = PATIENCE) -> None:
        self._progress = bars(console)
        self._lock = threading.Lock()
        self._closed = False
        self._whole = self._progress.add_task(label, total=None)
        self._open: list[TaskID] = []
        self._timer = threading.Timer(patience, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def _appear(self) -> None:
        with self._lock:
            if not self._closed:
                self._progress.start()

    def start(self, label: str, total: int | None) -> TaskID:
        """Add a line for the task; the line of the whole gives way to it."""
        task = self._progress.add_task(label, total=total)
        self._open.append(task)
        self._progress.update(self._whole, visible=False)
        return task

    def advance(self, handle: object) -> None:
        """Move the task's bar by a step."""
        self._progress.advance(TaskID(handle))  # type: ignore[arg-type]

    def finish(self, handle: object) -> None:
        """Take the task's line away."""
        task = TaskID(handle)  # type: ignore[arg-type]
        self._progress.remove_task(task)
        self._open.remove(task)
        if not self._open:
            self._progress.update(self._whole, visible=True)

    def close(self) -> None:
        """Stop drawing and clear what was drawn."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            self._progress.stop()


@contextlib.contextmanager
def shown(file: IO[str], label: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Show the progress of what is called inside the block on ``file`` if that is a terminal; do nothing otherwise."""
    console = text.console(file)
    if not file.isatty() or console.is_dumb_terminal:
        yield
        return
    display = Display(console, label, patience=patience)
    try:
        with listening(display):
            yield
    finally:
        display.close()
