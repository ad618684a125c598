"""Run an experiment part by part: each result is kept when it is there, so that nothing is lost and nothing done twice.

A run folder holds one JSON file for each part, named by the hash of its recipe; a part whose file is there is not run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from alignver import atomic
from alignver._version import __version__
from alignver.errors import InvalidInput, reading
from alignver.experiments.item import Item, Part, Setting
from alignver.experiments.machine import machine
from alignver.progress import track
from alignver.results import CheckResult, plain

__all__ = ["Outcome", "conduct", "spread"]

_ORIGIN = ("part", "seconds", "versions", "machine")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What running an item gave.

    Attributes
    ----------
    results : tuple of CheckResult
        The paper's claims beside our measurements.
    measured : dict
        Plain data of every part that has been run, by key.
    missing : tuple of str
        Keys of the parts that the budget did not allow.
    seconds : float
        Time spent on the parts, those of earlier runs included.
    made : tuple of dict
        Where each part comes from: ``part``, ``seconds``, ``versions``, ``machine``.
    """

    results: tuple[CheckResult, ...]
    measured: Mapping[str, Mapping[str, Any]]
    missing: tuple[str, ...]
    seconds: float
    made: tuple[Mapping[str, Any], ...] = ()


def conduct(
    item: Item,
    setting: Setting | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    budget: float | None = None,
) -> Outcome:
    """Run what is missing of an item, and judge it.

    Parameters
    ----------
    item : Item
        One of :data:`alignver.experiments.catalogue.ITEMS`.
    setting : Setting, optional
    folder : path, optional
        Keep the parts here and take up those that are there.
    budget : float, optional
        Minutes after which no further part is begun; the first one always is, unless the budget is 0, which judges
        what is there.

    Raises
    ------
    InvalidInput
        A negative budget, a folder that cannot be written.

    Examples
    --------
    >>> from alignver.experiments.catalogue import load
    >>> outcome = conduct(load("figure6"))
    >>> outcome.results[0].verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if budget is not None and not budget >= 0:
        raise InvalidInput("budget", f"budget={budget!r}", "minutes, at least 0")
    setting = setting if setting is not None else Setting()
    parts = item.parts(setting)
    place = None if folder is None else _made(pathlib.Path(folder))
    kept = {part.key: _kept(place, item, part) for part in parts}
    began, begun = time.perf_counter(), 0
    for part in track([part for part in parts if kept[part.key] is None], item.name):
        if budget is not None and (begun or budget == 0) and time.perf_counter() - began >= 60 * budget:
            continue
        kept[part.key] = _kept(place, item, part)  # another process may have made it in the meantime
        if kept[part.key] is None:
            begun += 1
            kept[part.key] = _run(place, item, part, setting.device)
    records = {key: record for key, record in kept.items() if record is not None}
    measured = {key: record["data"] for key, record in records.items()}
    return Outcome(
        results=tuple(item.judge(setting, measured)),
        measured=measured,
        missing=tuple(part.key for part in parts if part.key not in records),
        seconds=sum(record["seconds"] for record in records.values()),
        made=tuple({key: record[key] for key in _ORIGIN} for record in records.values()),
    )


def _run(place: pathlib.Path | None, item: Item, part: Part, device: str) -> dict[str, Any]:
    began = time.perf_counter()
    data = plain(part.run())
    record = {
        "item": item.name,
        "part": part.key,
        "recipe": plain(part.recipe),
        "versions": {"alignver": __version__, "torch": torch.__version__},
        "machine": machine(device),
        "seconds": round(time.perf_counter() - began, 3),
        "data": data,
    }
    if place is not None:
        file = _file(place, item, part)
        try:
            with atomic.writing(file, shared=True) as stream:
                stream.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise _unwritable(place, error) from error
    return record


def _kept(place: pathlib.Path | None, item: Item, part: Part) -> dict[str, Any] | None:
    if place is None:
        return None
    file = _file(place, item, part)
    if not file.is_file():
        return None
    with reading("out", f"{file}, which cannot be read", "a run folder, or a new one"):
        record: dict[str, Any] = json.loads(file.read_text())
        fits = {"data", *_ORIGIN} <= set(record)
    if not fits:
        raise InvalidInput("out", f"{file}, which is no part of a run", "a run folder, or a new one")
    return record


def _file(place: pathlib.Path, item: Item, part: Part) -> pathlib.Path:
    recipe = json.dumps(plain(part.recipe), sort_keys=True)
    family = part.family or item.name
    content = hashlib.sha256(f"{family}\n{part.key}\n{recipe}".encode()).hexdigest()[:12]
    words = "-".join("".join(c if c.isalnum() else " " for c in part.key).split())
    return place / f"{family}-{words}-{content}.json"


def _made(place: pathlib.Path) -> pathlib.Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(place, error) from error
    return place


def _unwritable(place: pathlib.Path, error: OSError) -> InvalidInput:
    got = f"{os.fspath(place)}, which cannot be written ({error.strerror or error})"
    return InvalidInput("out", got, "a folder with room for the results")


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and standard deviation (n - 1) in the paper's form: ``2.59 (0.57)``.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0])
    '2.00 (1.00)'
    """
    centre = f"{fmean(values):{form}}"
    return f"{centre} ({stdev(values):{form}})" if len(values) > 1 else centre
