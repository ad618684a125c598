"""The table of a training run: rows now and then everywhere, the present epoch on a terminal only."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from alignver.progress import stage
from alignver.report import progress
from alignver.report.progress import EpochTable, step_of_rows


def record(epoch: int, phase: str = "exploration", **changes):
    return {"epoch": epoch, "phase": phase, "loss": 0.5, "error": 0.25, "gap": 0.5, **changes}


def rows(stream: io.StringIO) -> list[list[str]]:
    return [line.split() for line in stream.getvalue().splitlines() if line.strip()[:1].isdigit()]


@pytest.mark.parametrize("count", [1, 7, 12, 13, 60, 999, 10_000, 123_456])
def test_a_dozen_rows_or_so(count):
    assert 1 <= count // step_of_rows(count) <= 12


def test_rows_are_those_of_round_epochs_and_of_the_turn():
    stream = io.StringIO()
    table = EpochTable(stream, 100)
    with table.shown():
        for epoch in range(1, 101):
            table.epoch(record(epoch, "exploration" if epoch <= 42 else "exploitation"), "-", last_of_phase=epoch == 42)
    assert [int(row[0]) for row in rows(stream)] == [1, 10, 20, 30, 40, 42, 43, 50, 60, 70, 80, 90, 100]
    assert stream.getvalue().count("gap bound") == 1


def test_cells():
    stream = io.StringIO()
    table = EpochTable(stream, 4)
    table.epoch(record(1, loss=0.123456, gap=0.12341, error=0.5), "-", estimated=True)
    table.epoch(record(2, loss=1e-7, gap=1.00001e-7, error=None), "n = 5, proved")
    table.epoch(record(3, loss=-0.0, gap=-0.0, error=0.0), "-", last_of_phase=True)
    first, second, third = rows(stream)
    assert third == ["3", "exploration", "0", "0.0", "%", "0", "-"]
    assert first == ["1", "exploration", "~0.1235", "~50.0", "%", "~0.1235", "-"]
    assert second == ["2", "exploration", "1.00e-07", "-", "1.001e-07", "n", "=", "5,", "proved"]


def test_a_column_for_test_errors():
    stream = io.StringIO()
    table = EpochTable(stream, 2)
    table.epoch(record(1, test_error=0.5), "-")
    table.epoch(record(2, test_error=None), "-")
    assert stream.getvalue().splitlines()[0].split() == [
        "epoch",
        "phase",
        "loss",
        "error",
        "test",
        "gap",
        "bound",
        "rank",
    ]
    first, second = rows(stream)
    assert first[3:7] == ["25.0", "%", "50.0", "%"]
    assert second[3:6] == ["25.0", "%", "-"]


def test_a_terminal_shows_the_present_epoch_and_the_work_in_between(monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, _environ={})
    monkeypatch.setattr(progress.text, "console", lambda _: console)
    table = EpochTable(stream, 1000)
    with table.shown():
        table.epoch(record(1), "-")
        table.epoch(record(7, loss=0.875), "-")
        table.note("a remark")
        with stage("norms of A_j"):
            table.epoch(record(8, loss=0.625), "-")
            assert table._live is not None
            table._live.refresh()
    page = stream.getvalue()
    for words in ("0.6250", "8/1000", "norms of A_j", "a remark", "\x1b[?25h"):
        assert words in page
