"""Progress without a command line: on a terminal or in a notebook after two seconds, elsewhere nothing; one switch."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import alignver as av
from alignver import progress, progress_bars
from alignver.checks import doctor
from alignver.limits import OutOfTime, time_limit

SLOW = """
import time, alignver.progress as progress
{before}
for _ in progress.track(range(30), "long steps"):
    time.sleep(0.1)
print("done")
"""


def on_terminal(code: str) -> str:
    """Run code with stderr on a pseudo-terminal; return what it shows."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def test_a_script_on_a_terminal_shows_steps_and_the_time_left():
    page = on_terminal(SLOW.format(before=""))
    for words in ("long steps", "/30", "left"):
        assert words in page
    assert page.count("\x1b[?25l") == page.count("\x1b[?25h") > 0  # the cursor is back


@pytest.mark.parametrize(
    "before",
    ["progress.show_progress(False)", "import logging; logging.getLogger('alignver').setLevel(logging.WARNING)"],
)
def test_one_switch_and_logging_silence_it(before):
    assert on_terminal(SLOW.format(before=before)) == ""


def test_a_program_without_a_terminal_prints_nothing():
    done = subprocess.run([sys.executable, "-c", SLOW.format(before="")], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_plans_are_logged(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "alignver"):
        progress.announce("QR, 9 x 9", seconds=4.0)
        progress.announce("QR, 9000 x 9000", seconds=90.0, peak_bytes=2e9)
    assert [record.message for record in caplog.records] == ["QR, 9000 x 9000: about 90 s, 2.0 GB"]


def test_a_computation_far_beyond_the_limit_is_not_begun():
    with pytest.raises(OutOfTime) as caught, time_limit(10.0):
        progress.announce("QR, 9000 x 9000", seconds=90.0)
    assert caught.value.left == 90.0
    with time_limit(40.0):
        progress.announce("QR, 9000 x 9000", seconds=90.0)  # an estimate: it may do


def test_a_plan_is_told_in_place_of_the_work(monkeypatch):
    with pytest.raises(progress.Planned, match="30 x 40 matrix: proofs, singular values"), progress.planning():
        av.check_rank(np.eye(30, 40))


def test_a_long_computation_ends_at_the_limit_and_its_errors_arrive(monkeypatch):
    monkeypatch.setattr(progress, "flop_rate", lambda: 1e10)
    began = time.monotonic()
    with pytest.raises(OutOfTime), time_limit(0.5):
        progress.run_stage("svd", 1.2e10, time.sleep, 3.0)
    assert time.monotonic() - began < 2.0
    assert progress.run_stage("sum", 2e10, sum, [1, 2]) == 3
    with pytest.raises(np.linalg.LinAlgError):
        progress.run_stage("inverse", 2e10, np.linalg.inv, np.zeros((2, 2)))


INTERRUPTED = """
import sys, time
import numpy as np
import alignver as av

A = np.random.default_rng(0).standard_normal((2600, 2600))
A[:, 0] = A[:, 1]
print("ready", flush=True)
try:
    av.check_rank(A, certify=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


@pytest.mark.slow
def test_a_long_check_stops_soon_after_an_interrupt():
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(4.0)  # inside of LAPACK, for tens of seconds
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(20) == 7
        assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("where", ["the main thread", "a thread"])
def test_a_log_has_the_progress_and_each_plan_once(where, caplog, monkeypatch):
    monkeypatch.setattr(progress_bars, "SILENCE", 0.3)
    monkeypatch.setattr(progress, "_terminal", lambda: False)

    def work():
        progress.announce("Cholesky", seconds=60.0)
        for _ in progress.track(range(5), "long steps"):
            time.sleep(0.2)

    with caplog.at_level(logging.INFO, logger="alignver"):
        thread = threading.Thread(target=work)
        thread.start() if where == "a thread" else work()
        thread.join() if where == "a thread" else None
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("Cholesky: about 60 s") == 1
    assert any(message.startswith("long steps: ") and "left" in message for message in messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="alignver"):
        work()
    assert caplog.records == []


def test_a_call_reports_itself_between_its_stages(monkeypatch, caplog):
    """Of a check inside a check, and where a program listens, nothing is reported twice."""
    seen = []

    class Recorder(progress.Silent):
        def start(self, label, total):
            seen.append(label)

    monkeypatch.setattr(progress, "_automatic", Recorder)
    monkeypatch.setattr(progress, "_terminal", lambda: True)
    av.check_rank(np.eye(3))
    assert seen[0] == "check of rank"
    with progress.reported("check of model"):
        av.check_rank(np.eye(3))
    assert [label for label in seen if label.startswith("check of ")] == ["check of rank", "check of model"]
    seen.clear()
    with progress.listening(Recorder()):
        av.check_rank(np.eye(3))
    assert not [label for label in seen if label.startswith("check of ")]


def test_a_call_that_is_no_check_reports_itself(caplog, monkeypatch):
    monkeypatch.setattr(progress_bars, "PATIENCE", 0.0)
    monkeypatch.setattr(progress_bars, "_TICK", 0.01)
    monkeypatch.setattr(progress, "_terminal", lambda: False)
    monkeypatch.setattr(doctor, "_TESTS", {"rounding": (lambda: time.sleep(0.5) or (av.Verdict.HOLDS, "", {}), "")})
    time.sleep(1.5)  # the calls before are over
    with caplog.at_level(logging.INFO, logger="alignver"):
        av.doctor()
    assert any(record.getMessage().startswith("doctor; ") for record in caplog.records)
