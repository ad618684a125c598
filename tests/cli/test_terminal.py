"""What a terminal shows: colour, width, and nothing of it elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from alignver.cli import main
from alignver.progress_bars import PATIENCE
from tests.cli.conftest import COMMAND, TIMEOUT, environment

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import command_line_tables


def on_terminal(files, *arguments: str, columns: int = 80, **changes: str) -> tuple[int, str]:
    """Run the command with stdout and stderr on a pseudo-terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=files, env=environment(**changes), stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says EIO when the last writer has closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    return process.wait(TIMEOUT), shown.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize(
    ("arguments", "colour"),
    [(["check", "rank", "J.npy"], "32"), (["check", "membership", "one.csv", "off.txt"], "31")],
)
def test_the_verdict_is_coloured(files, arguments, colour):
    _, shown = on_terminal(files, *arguments)
    assert re.search(rf"\x1b\[1;{colour}m(HOLDS|FAILS)", shown)


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(files, changes):
    _, shown = on_terminal(files, "check", "rank", "J.npy", **changes)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)
    assert "HOLDS" in shown


@pytest.mark.parametrize("columns", [50, 80, 132])
def test_lines_fit_the_terminal(files, columns):
    code, shown = on_terminal(files, "check", "membership", "one.csv", "off.txt", columns=columns)
    assert code == 1
    assert max(map(len, plain(shown).splitlines())) <= columns


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize(("path", "command"), [*command_line_tables.commands()], ids=lambda value: str(value)[:30])
def test_help_can_be_read_at_any_width(path, command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        main.run([*path.split()[1:], "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, shown.splitlines())) <= columns
    if columns < 70:
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown
        words = {word.rstrip(",") for word in shown.split()}
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        assert {name for option in options for name in option.opts} <= words
        assert set(getattr(command, "commands", {})) <= words
        said = " ".join(shown.split())
        assert " ".join(command.help.split("[bold]")[0].split()) in said


def test_quick_work_shows_no_progress(files):
    began = time.monotonic()
    _, shown = on_terminal(files, "check", "rank", "J.npy")
    if time.monotonic() - began > PATIENCE:
        pytest.skip("this machine is too busy for quick work")
    assert "\x1b[?25l" not in shown  # the cursor was never hidden


@pytest.mark.slow
def test_the_progress_ends_before_the_verdict(files):
    np.save(files / "long.npy", np.random.default_rng(0).standard_normal((150000, 300)))
    code, shown = on_terminal(files, "check", "exploration", "long.npy", "--add-constant")
    assert code == 0
    assert "\x1b[?25l" in shown  # it took long enough for a display
    display, _, report = shown.rpartition("\x1b[?25h")
    assert re.search("[\N{BRAILLE PATTERN DOTS-1}-\N{BRAILLE PATTERN DOTS-12345678}]", display)
    assert not re.search("[\N{BRAILLE PATTERN DOTS-1}-\N{BRAILLE PATTERN DOTS-12345678}]", report)
    assert "HOLDS" in report
    assert "HOLDS" not in display
