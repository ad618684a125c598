"""Progress bars on a terminal or in a notebook, and lines elsewhere; a thread shows them after some seconds."""

from __future__ import annotations

import atexit
import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from alignver.errors import printable

PATIENCE = 2.0
"""Seconds of silence before a bar appears."""

SILENCE = 2.5
"""Seconds of work without a line after which one is due."""

_PACE = 3600.0  # seconds over which the speed is estimated: a step may last minutes


class _Label(ProgressColumn):
    """The task's label on one line, without mark-up."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


class _Bar(ProgressColumn):
    """A bar for tasks with a known number of steps; empty for others, which have a spinner and a clock."""

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else ProgressBar(total=task.total, completed=task.completed, width=24)


class _Left(ProgressColumn):
    """Steps done, and the remaining time once a speed is known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        steps = f"{task.completed:.0f}/{task.total:.0f}"
        seconds = task.time_remaining
        return Text(steps if seconds is None else f"{steps}, {_clock(seconds)} left", style="cyan")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bars(console: Console) -> Progress:
    """Return lines with spinner, label, bar, steps, remaining and elapsed time; starting them makes a live display."""
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


_TICK = 0.25  # seconds between two looks at the tasks
_GAP = 1.0  # seconds without a task after which the display is closed


@dataclasses.dataclass(eq=False)
class _Task:
    label: str
    total: int | None
    began: float
    done: int = 0
    line: Any = None


class Bars:
    """A :class:`~alignver.progress.Listener` whose tasks cost no more than an entry in a list while they are short.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where the bars appear; by default stderr as it is at that time.
    label : str, optional
        Of a line that is shown while there is no task.
    """

    def __init__(self, console: Console | None = None, label: str | None = None) -> None:
        self._console = console
        self._tasks: list[_Task] = []
        self._lock, self._wake, self._open = threading.Lock(), threading.Event(), True
        self._thread: threading.Thread | None = None
        self._display: Any = None
        self._whole: _Task | None = None
        if label is not None:
            self._whole = self.start(label, None)

    def start(self, label: str, total: int | None) -> _Task:
        """Add a task."""
        task = _Task(label, total, time.monotonic())
        with self._lock:
            self._tasks.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._draw, name="alignver-progress", daemon=True)
                self._thread.start()
                atexit.register(self._clear)
        self._wake.set()
        return task

    def advance(self, handle: Any) -> None:
        """Count a step."""
        handle.done += 1

    def finish(self, handle: Any) -> None:
        """Remove the task; the last one closes the display soon."""
        with self._lock:
            self._tasks.remove(handle)
            over = not self._tasks
        if over and sys.exc_info()[0] is not None:  # an interrupt: what follows is for the terminal
            self._clear()

    def note(self, words: str) -> None:
        """Print a line above the bar."""
        with self._lock:
            console = self._display.console if self._display is not None else self._stderr()
        console.print(Text(f"alignver: {printable(words)}", style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Clear the display and show nothing more."""
        self._open = False
        self._wake.set()
        self._clear()

    def _stderr(self) -> Console:
        return self._console or Console(file=sys.stderr)

    def _draw(self) -> None:
        """Show the tasks until the listener is closed; runs in a thread."""
        idle = 0.0
        while self._open:
            if not self._tasks and self._display is None:
                self._wake.wait()
            self._wake.clear()
            time.sleep(_TICK)
            with self._lock:
                idle = 0.0 if self._tasks else idle + _TICK
                late = bool(self._tasks) and time.monotonic() - self._tasks[0].began > PATIENCE
                if late and self._open and self._display is None:
                    self._display = bars(self._stderr())
                    self._display.start()
                if self._display is not None:
                    self._update()
                    if idle > _GAP:
                        self._display.stop()
                        self._display = None

    def _update(self) -> None:
        lines = {task.line for task in self._tasks}
        for line in [line for line in self._display.task_ids if line not in lines]:
            self._display.remove_task(line)
        for task in self._tasks:
            if task.line not in self._display.task_ids:
                task.line = self._display.add_task(task.label, total=task.total)
            shown = task is not self._whole or len(self._tasks) == 1
            self._display.update(task.line, completed=task.done, visible=shown)

    def _clear(self) -> None:
        with self._lock:
            if self._display is not None:
                self._display.stop()
                self._display = None


class Lines(Bars):
    """A listener that writes lines: plans at once, and how far a long call is."""

    def __init__(self, write: Callable[[str], None], label: str | None = None, *, plans: bool = True) -> None:
        self._write, self._plans = write, plans
        super().__init__(label=label)

    def note(self, words: str) -> None:
        """Write a plan."""
        if self._plans:
            self._write(words)

    def _draw(self) -> None:
        began = ended = time.monotonic()
        shown = began - _early()
        while self._open:
            if not self._tasks:
                self._wake.wait()
            self._wake.clear()
            time.sleep(_TICK)
            with self._lock:
                tasks = list(self._tasks)
            now = time.monotonic()
            if tasks and now - ended > _GAP:  # another call
                began = tasks[0].began
                shown = began - _early()
            ended = now if tasks else ended
            if tasks and self._open and now - shown >= SILENCE:
                self._write(_line(tasks, now - began))
                shown = now


def _early() -> float:
    """Return by how much the first line comes earlier than others: a program was silent while it was loaded."""
    return max(0.0, SILENCE - PATIENCE)


def _line(tasks: list[_Task], seconds: float) -> str:
    """Return a sentence about the innermost task, and the one around it that has steps."""
    counted = [task for task in tasks[:-1] if task.total is not None][-1:]
    parts = [f"{task.label}{_steps(task)}" for task in (*counted, tasks[-1])]
    return f"{', '.join(parts)}; {_clock(seconds)} so far"


def _steps(task: _Task) -> str:
    if task.total is None:
        return ""
    spent = time.monotonic() - task.began
    left = f", {_clock(spent / task.done * (task.total - task.done))} left" if task.done else ""
    return f": {task.done} of {task.total}{left}"
