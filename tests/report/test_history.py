"""A history on disk: a round trip, what a crash leaves, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignver.errors import InvalidInput, MissingDependency
from alignver.report.history import History, HistoryFile, Record

RULES = {
    "press": {"verdict": "HOLDS", "tolerance": 1e-12, "residual": (0.0, 0.0), "rank": 4, "near": (1e-11, 2e-12)},
    "golub": {"verdict": "UNDECIDED", "tolerance": 1e-9, "residual": (0.0, math.inf), "rank": None, "near": None},
}
CONFIG = {"loss": "squared", "n": 3}


def record(step, **more):
    return Record(step, 0, RULES, "Gram matrix", 0.25, 1.5, 1e9, **more)


number = st.none() | st.floats(allow_nan=False)


@given(number, number, number, st.integers(0, 2**62))
def test_a_record_is_equal_after_strict_json(loss, error, largest, step):
    made = record(step, loss=loss, error=error, largest=largest, change={"value": loss, "interval": (0.0, math.inf)})
    text = json.dumps(made.to_dict(), allow_nan=False)
    assert Record.from_dict(json.loads(text)) == made


def test_nan_comes_back_as_nan(tmp_path):
    file = HistoryFile(tmp_path / "h.jsonl", CONFIG)
    file.append(record(0, loss=math.nan, largest=math.inf))
    text = (tmp_path / "h.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (back,) = History.read(tmp_path / "h.jsonl")
    assert math.isnan(back.loss)
    assert back.largest == math.inf


@given(st.data())
def test_a_file_cut_anywhere_is_readable_to_its_last_complete_line(data):
    import pathlib
    import tempfile

    path = pathlib.Path(tempfile.mkdtemp()) / "h.jsonl"
    file = HistoryFile(path, CONFIG)
    for step in range(3):
        file.append(record(step, loss=0.5))
    whole = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(whole) if byte == 10]
    cut = data.draw(st.integers(ends[0], len(whole)))
    path.write_bytes(whole[:cut])
    complete = sum(end <= cut for end in ends) - 1
    assert [r.step for r in History.read(path)] == list(range(complete))
    again = HistoryFile(path, CONFIG, resume=True)
    again.append(record(complete, loss=0.5))
    if complete < 3:
        assert path.read_bytes() == whole[: ends[complete + 1]]
    assert [r.step for r in History.read(path)] == list(range(complete + 1))


def test_a_killed_process_leaves_every_line_it_wrote(tmp_path):
    path = tmp_path / "h.jsonl"
    code = (
        "import itertools\nfrom tests.report.test_history import *\n"
        f"file = HistoryFile({str(path)!r}, CONFIG)\n"
        "for t in itertools.count():\n    file.append(record(t))\n    print(t, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(20):
            words = int(child.stdout.readline())
    finally:
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
    last = max([words, *(int(line) for line in rest if line)])
    steps = [r.step for r in History.read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= last  # the last number may have been cut while it was printed


def test_resume_refuses_another_configuration_and_names_it(tmp_path):
    HistoryFile(tmp_path / "h.jsonl", CONFIG).append(record(0))
    before = (tmp_path / "h.jsonl").read_bytes()
    with pytest.raises(InvalidInput, match="n 3 there, 4 here"):
        HistoryFile(tmp_path / "h.jsonl", {**CONFIG, "n": 4}, resume=True)
    with pytest.raises(InvalidInput, match="resume=True"):
        HistoryFile(tmp_path / "h.jsonl", CONFIG)
    assert (tmp_path / "h.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}\n", b"[]\n", b"\xff\n", b'{"alignver":"history","format":2}\n', b"1\n", b"[" * 100_000 + b"\n"],
)
def test_what_is_no_history_is_refused(tmp_path, content):
    path = tmp_path / "h.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="history"):
        History.read(path)


def test_a_line_in_the_middle_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "h.jsonl"
    HistoryFile(path, CONFIG).append(record(0))
    path.write_bytes(path.read_bytes() + b"{]\n")
    with pytest.raises(InvalidInput, match="history"):
        History.read(path)


def test_a_full_disk_leaves_the_lines_before():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(InvalidInput, match="cannot be written"):
        HistoryFile("/dev/full", CONFIG)


def test_q_and_its_curve():
    verdicts = ["HOLDS", "FAILS", "UNDECIDED", "FAILS"]
    history = History([Record(t, 0, {"press": {"verdict": v}}, "", 0.0, 0.0, 0.0) for t, v in enumerate(verdicts)])
    low, high = history.q_curve()["press"]
    assert low == [0, 1, 1, 2]
    assert high == [0, 1, 2, 3]
    assert history.q() == {"press": (2, 3)}
    assert history[1:3].q() == {"press": (1, 2)}
    assert History().q() == {}


def test_arrays_have_a_column_for_each_number():
    change = {"value": 2.0, "interval": (1.0, 3.0), "confidence": 0.95, "rigor": "STATISTICAL"}
    history = History([record(0), record(5, loss=0.5, change=change, structure={"verdict": "HOLDS", "residual": 0.0})])
    arrays = history.to_numpy()
    assert arrays["step"].tolist() == [0, 5]
    assert arrays["press.verdict"].tolist() == ["HOLDS", "HOLDS"]
    assert arrays["press.rank"].tolist() == [4, 4]
    assert np.isnan(arrays["golub.rank"]).all()
    assert arrays["golub.residual_high"].tolist() == [math.inf, math.inf]
    assert np.isnan(arrays["loss"][0])
    assert arrays["change_high"][1] == 3.0
    assert arrays["structure.verdict"].tolist() == ["", "HOLDS"]
    known = {name.partition(".")[0].partition("_low")[0].partition("_high")[0] for name in arrays}
    assert known >= {f.name for f in dataclasses.fields(Record)} - {"rules"}


def test_pandas():
    pytest.importorskip("pandas")
    frame = History([record(0, loss=1.0), record(1)]).to_pandas()
    assert frame.shape[0] == 2
    assert frame["press.rank"].tolist() == [4, 4]


def test_polars():
    pytest.importorskip("polars")
    frame = History([record(0, loss=1.0), record(1)]).to_polars()
    assert frame["step"].to_list() == [0, 1]
    assert frame["loss"].to_list() == [1.0, None]


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match="pandas"):
        History([record(0)]).to_pandas()


def test_lines_are_synced_at_most_once_a_second(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd))
    file = HistoryFile(tmp_path / "h.jsonl", CONFIG)
    for t in range(20):
        file.append(record(t))
    assert len(synced) == 1
    monkeypatch.setattr(time, "monotonic", lambda base=time.monotonic: base() + 2.0)
    file.append(record(20))
    assert len(synced) == 2
    file.sync()
    assert len(synced) == 3


def test_a_folder_that_does_not_exist_is_refused_and_not_made(tmp_path):
    with pytest.raises(InvalidInput, match=r"in the folder .*gone, which does not exist") as caught:
        HistoryFile(tmp_path / "gone" / "h.jsonl", CONFIG)
    assert (caught.value.code, (tmp_path / "gone").exists()) == ("unwritable-file", False)
