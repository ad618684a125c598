"""Ctrl-C that works at once, also in the middle of a long LAPACK call.

Python raises ``KeyboardInterrupt`` only between two bytecodes, so an SVD of some minutes would go on to its end. The C
level handler of Python writes each signal to a pipe as it arrives; a thread that reads the pipe gives the main thread a
moment to end tidily and then ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from alignver.errors import printable

__all__ = ["GRACE", "prompt"]

GRACE = 0.5
"""Seconds that the main thread has for ending by itself."""

_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"  # a progress bar hides the cursor; clear its line and bring the cursor back


@contextlib.contextmanager
def prompt(exit_code: int, message: Callable[[], str]) -> Iterator[None]:
    """End the process with ``exit_code`` if SIGINT finds the block unable to end within :data:`GRACE` seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = threading.Event()

    def watch() -> None:
        while signals := os.read(reading, 64):
            if signal.SIGINT in signals and not done.wait(GRACE):
                with contextlib.suppress(OSError):
                    os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + printable(message()).encode() + b"\n")
                os._exit(exit_code)
        os.close(reading)

    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="alignver-interrupt", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(previous)
        os.close(writing)
