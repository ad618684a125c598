"""How a run ends when it does not end well: internal errors, Ctrl-C, readers and disks that go away."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.cli.conftest import COMMAND, TIMEOUT, environment, without_progress

FAKE_RANK = """
import sys, types
def check_rank(A, **options):
    {body}
module = types.ModuleType("alignver.checks.rank")
module.check_rank = check_rank
sys.modules["alignver.checks.rank"] = module
"""


def test_a_bug_is_70_and_asks_for_a_report(alignver, inject):
    broken = inject(FAKE_RANK.format(body="raise KeyError('lost')"))
    run = alignver("check", "rank", "J.npy", injected=broken)
    assert (run.code, run.out) == (70, "")
    assert "internal error: KeyError: 'lost'" in run.err
    assert "report" in run.err
    assert "Traceback" not in run.err
    verbose = alignver("check", "rank", "J.npy", "-v", "--json", injected=broken)
    assert (verbose.code, verbose.out) == (70, "")
    assert "Traceback" in verbose.err


def test_out_of_memory_is_no_bug(alignver, inject):
    full = inject(FAKE_RANK.format(body="raise MemoryError('64 TiB')"))
    run = alignver("check", "rank", "J.npy", injected=full)
    assert run.code == 70
    assert "out of memory" in run.err
    assert "bug" not in run.err


@pytest.mark.parametrize(
    "work",
    [
        pytest.param("import time; time.sleep(60)", id="python"),
        # One LAPACK call of far more than a minute on a slow machine: Python itself cannot stop in the middle.
        pytest.param("import numpy as n; n.linalg.svd(n.random.default_rng(0).random((6000, 6000)))", id="lapack"),
    ],
)
def test_ctrl_c_ends_at_once(files, inject, work):
    slow = inject(FAKE_RANK.format(body=f"print('ready', file=sys.__stderr__, flush=True); {work}"))
    process = subprocess.Popen(
        [*COMMAND, "check", "rank", "J.npy"],
        cwd=files,
        env=environment(slow),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any(line == "ready\n" for line in process.stderr)
    time.sleep(1.0 if "svd" in work else 0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, without_progress(err)) == (130, "", "alignver: interrupted\n")


def test_ctrl_c_while_the_command_is_loaded(alignver, inject):
    finder = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
"""
    run = alignver("check", "rank", "J.npy", injected=inject(finder))
    assert (run.code, run.out, run.err) == (130, "", "alignver: interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [["check", "rank", "J.npy", "--json"], ["check", "rank", "J.npy", "-v"], ["--help"], ["check", "--help"]],
)
def test_a_reader_that_left_is_no_verdict_and_no_noise(files, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=files,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, without_progress(done.stderr)) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said(files):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "check", "rank", "J.npy"],
            cwd=files,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 70
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_what_others_print_goes_to_stderr(alignver, inject):
    chatty = inject(FAKE_RANK.format(body="print('noise'); raise ValueError('x')"))
    run = alignver("check", "rank", "J.npy", "--json", injected=chatty)
    assert run.out == ""
    assert "noise" in run.err


def test_an_ascii_terminal_gets_escapes_not_an_error(alignver, inject):
    greek = inject(FAKE_RANK.format(body="from alignver.errors import InvalidInput; raise InvalidInput('σ', 'a', 'b')"))
    run = alignver("check", "rank", "J.npy", injected=greek, PYTHONIOENCODING="ascii")
    assert run.code == 2
    assert "\\u03c3" in run.err
