"""Write files atomically: whole files that appear at once, and files that grow by whole lines."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(file: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside ``file`` to write to. It replaces ``file`` in one step; after an exception it is removed.

    Parameters
    ----------
    file : pathlib.Path
    shared : bool
        Several processes may write the file at once: each gets its own path. Otherwise the path of a killed process is
        used again.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(file) as part:
    ...     _ = part.write_text("whole")
    >>> file.read_text(), part.exists()
    ('whole', False)
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part" if shared else f"{file.name}.part")
    try:
        yield part
        os.replace(part, file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(file: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open the file that replaces ``file``, as with :func:`replacing`; its content is on the disk before that."""
    with replacing(file, shared=shared) as part, part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def append(file: Path, line: bytes, *, sync: bool) -> None:
    """Append a line; ``sync`` waits until it is on the disk. An error does not change the lines before.

    Raises
    ------
    OSError
        The line could not be written completely; the written part is removed.
    """
    with file.open("ab", buffering=0) as stream:
        end = stream.tell()
        if stream.write(line) != len(line):
            os.truncate(file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fsync(stream.fileno())
