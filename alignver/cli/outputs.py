"""Files that a command writes beside its report: refused before any work is done, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from alignver import atomic
from alignver.cli.exits import OutputFailed
from alignver.errors import InvalidInput

__all__ = ["possible", "size", "write"]


def possible(option: str, target: str | None) -> None:
    """Refuse a file that cannot be written; one that is there already will be replaced."""
    if target is None:
        return
    place = Path(target)
    folder = place.resolve().parent
    if place.is_dir():
        raise InvalidInput(option, f"{target}, a folder", "the name of a file")
    if not folder.is_dir():
        raise InvalidInput(option, f"{target}, in a folder that is not there", "an existing folder")
    if not os.access(place if place.exists() else folder, os.W_OK):
        raise InvalidInput(option, f"{target}, which cannot be written", "a place that may be written to")


def write(option: str, target: str, content: bytes) -> None:
    """Write a file: a regular one whole or not at all, so that a full disk leaves what was there."""
    place = Path(target)
    try:
        if place.exists() and not place.is_file():  # a device or a pipe: it must not be replaced
            place.write_bytes(content)
            return
        with atomic.writing(place.resolve(), shared=True) as stream:  # a link stays a link, to the new content
            stream.write(content)
    except OSError as error:
        raise OutputFailed(f"{option} {target} cannot be written: {error.strerror or error}") from error


def size(place: Path) -> str:
    """Return the size of a file, or of all files in a folder, in words."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    count = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
