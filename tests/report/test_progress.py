"""The bar appears on a terminal, late, and leaves nothing behind."""

from __future__ import annotations

import io
import itertools
import re
import time

import pytest
from rich.console import Console

from alignver import progress_bars
from alignver.progress import stage, track
from alignver.report import progress


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, _environ={})


def written(console: Console) -> str:
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress_bars, "PATIENCE", 0.0)
    monkeypatch.setattr(progress_bars, "_TICK", 0.02)


def test_no_bar_where_there_is_no_terminal(impatient):
    stream = io.StringIO()
    with progress.shown(stream, "work"), stage("inner"):
        time.sleep(0.3)
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1  # it would be a line, after as long


def test_long_work_without_a_terminal_is_told_in_lines(monkeypatch):
    monkeypatch.setattr(progress_bars, "SILENCE", 0.4)
    stream = io.StringIO()
    with progress.shown(stream, "check"):
        time.sleep(0.8)  # an import, for example
        for _ in track(range(8), "rows"):
            with stage("one\x1b row"):
                time.sleep(0.2)
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"alignver: check; 0:0\d so far", lines[0])
    assert any(re.fullmatch(r"alignver: rows: \d of 8, 0:0\d left, one\\x1b row; 0:0\d so far", line) for line in lines)
    assert 2 <= len(lines) <= 6
    time.sleep(0.8)
    assert len(stream.getvalue().splitlines()) == len(lines)


def test_lines_come_as_often_at_the_end_of_long_work(monkeypatch):
    monkeypatch.setattr(progress_bars, "SILENCE", 0.1)
    monkeypatch.setattr(progress_bars, "_TICK", 0.01)
    written = []
    lines = progress_bars.Lines(lambda _: written.append(time.monotonic()))
    with progress.listening(lines), stage("work"):
        time.sleep(3.0)
    lines.close()
    gaps = [after - before for before, after in itertools.pairwise(written)]
    assert len(gaps) > 15
    assert max(gaps[-5:]) < 2.0 * max(gaps[:5])


def test_the_first_line_comes_early(monkeypatch):
    monkeypatch.setattr(progress_bars, "PATIENCE", 0.3)
    monkeypatch.setattr(progress_bars, "SILENCE", 600.0)  # the second one never
    monkeypatch.setattr(progress_bars, "_TICK", 0.02)
    written = []
    lines = progress_bars.Lines(written.append)
    for _ in range(2):  # each call of a program
        with progress.listening(lines), stage("work"):
            time.sleep(1.0)
        time.sleep(1.2)
    lines.close()
    assert [line.rpartition(";")[0] for line in written] == ["work", "work"]


def test_a_closed_stream_costs_no_result(monkeypatch):
    monkeypatch.setattr(progress_bars, "SILENCE", 0.0)
    stream = io.StringIO()
    with progress.shown(stream, "check"):
        stream.close()
        time.sleep(0.6)


def test_quick_work_shows_nothing(monkeypatch):
    console = terminal()
    display = progress_bars.Bars(console, "work")
    handle = display.start("steps", 3)
    display.advance(handle)
    display.finish(handle)
    display.close()
    assert written(console) == ""


def test_long_work_shows_its_steps_and_the_time_left(impatient):
    console = terminal()
    display = progress_bars.Bars(console, "whole")
    with progress.listening(display):
        for _ in track(range(4), "rows of J"):
            time.sleep(0.12)
        with stage("one big SVD"):
            time.sleep(0.25)
        time.sleep(0.25)
    display.close()
    page = written(console)
    for words in ("rows of J", "/4", "left", "one big SVD", "whole"):
        assert words in page
    assert page.rstrip().endswith("\x1b[2K")  # the line is cleared
    assert "\x1b[?25h" in page  # and the cursor is back


def test_closing_before_the_bar_appears_keeps_it_away(impatient):
    console = terminal()
    progress_bars.Bars(console, "work").close()
    time.sleep(0.1)
    assert written(console) == ""


def test_clock():
    assert [progress_bars._clock(seconds) for seconds in (4, 75, 3723)] == ["0:04", "1:15", "1:02:03"]


def test_steps_of_minutes_have_a_time_left():
    bars, now = progress.bars(terminal()), 0.0
    bars.get_time = lambda: now
    task = bars.add_task("Cholesky", total=10)
    for _ in range(3):
        now += 60.0
        bars.advance(task)
    assert bars.tasks[0].time_remaining == 420


def test_a_label_is_a_line_without_markup(impatient):
    console = terminal()
    display = progress_bars.Bars(console, "work")
    with progress.listening(display), stage("a\x1b]0;owned\x07\nb [red]c[/red]"):
        time.sleep(0.25)
    display.close()
    assert r"a\x1b]0;owned\x07\x0ab [red]c[/red]" in written(console)
