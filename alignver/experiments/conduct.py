"""What every experiment of the paper is here: parts that can be run one by one, and a judgement of what they gave.

Every figure and table of the paper that can be reproduced, by name.

On what an experiment ran: kinds of processor and accelerator, and nothing that says whose they are.

Run an experiment part by part: each result is kept when it is there, so that nothing is lost and nothing done twice.

A run folder holds one JSON file for each part, named by the hash of its recipe; a part whose file is there is not run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Protocol

import torch

from alignver import atomic
from alignver._version import __version__
from alignver.errors import InvalidInput, reading
from alignver.progress import track
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, plain

__all__ = [
    "NAMES",
    "Item",
    "Measured",
    "Outcome",
    "Part",
    "Run",
    "Setting",
    "compared",
    "conduct",
    "load",
    "machine",
    "spread",
]
Measured = Mapping[str, Mapping[str, Any]]
"""What the parts gave, by key; a part that was not run is absent."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the person who reproduces an item chooses.

    Attributes
    ----------
    seeds : int or None
        How many seeds, from 0 up; None is the item's own number.
    datasets : tuple of str
        Of the item's data sets; empty for those that it takes by default.
    device : str
        A torch device.
    data_folder, cache : path or None
        Where the image sets are, and where features are kept.
    reduced : bool or None
        Whether long experiments are made smaller, which their results then say. None: unless there is a GPU.
    """

    seeds: int | None = None
    datasets: tuple[str, ...] = ()
    device: str = "cpu"
    data_folder: str | os.PathLike[str] | None = None
    cache: str | os.PathLike[str] | None = None
    reduced: bool | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether long experiments are made smaller."""
        return not self.device.startswith("cuda") if self.reduced is None else self.reduced

    def on_cpu(self) -> Setting:
        """Return this setting for an experiment that runs on the CPU; refuse another device rather than not use it."""
        if self.device != "cpu":
            raise InvalidInput("device", repr(self.device), "'cpu', where this experiment runs")
        return self

    def __post_init__(self) -> None:
        if self.seeds is not None and (isinstance(self.seeds, bool) or self.seeds < 1):
            raise InvalidInput("seeds", f"seeds={self.seeds!r}", "an integer >= 1")

    def chosen(self, known: Sequence[str], default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the data sets to run: those asked for, in the item's order, or its default."""
        unknown = [name for name in self.datasets if name not in known]
        if unknown:
            raise InvalidInput("dataset", repr(unknown[0]), "one of " + ", ".join(known))
        if not self.datasets:
            return tuple(known if default is None else default)
        return tuple(name for name in known if name in self.datasets)


Run = Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of an experiment that is run, kept and taken up again as a whole.

    Attributes
    ----------
    key : str
        Its name in the run folder and in reports, such as ``"two moons, seed 0"``.
    recipe : mapping
        Everything that decides the outcome besides the code: plain data. Another recipe is another part.
    run : callable
        Does the work and returns plain data.
    family : str
        Items whose parts are of one family share them; empty for parts of an item's own.
    """

    key: str
    recipe: Mapping[str, Any]
    run: Run
    family: str = ""


class Item(Protocol):
    """A figure or table of the paper.

    Attributes
    ----------
    name : str
        As the command line takes it: ``"figure1a"``.
    title, source : str
        What is shown, and where the paper shows it.
    datasets : tuple of str
        What ``--dataset`` can choose from; empty if there is nothing to choose.
    cost : str
        What the default setting takes on two cores, as measured; and what is known of a GPU.
    """

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    cost: str

    def parts(self, setting: Setting) -> Sequence[Part]:
        """Return the parts that a setting asks for, cheapest first."""

    def judge(self, setting: Setting, measured: Measured) -> Sequence[CheckResult]:
        """Return the paper's claims beside what was measured; UNDECIDED where parts are missing."""

    def draw(self, measured: Measured) -> Any:
        """Return the matplotlib figure of what was measured, or None."""


_KINDS = {Verdict.HOLDS: "agrees", Verdict.FAILS: "differs", Verdict.UNDECIDED: "undecided"}


def compared(
    item: Item,
    claim: str,
    verdict: Verdict,
    reason: str,
    *,
    paper: Any = None,
    ours: Any = None,
    evidence: Sequence[str] = (),
    bounds: Sequence[Bound] = (),
    seconds: float | None = None,
) -> CheckResult:
    """Return a claim of the paper beside our measurement as one result.

    Parameters
    ----------
    item : Item
        Names the result and its source.
    claim : str
        The paper's claim, in a few words.
    verdict : Verdict
        HOLDS if what was measured agrees with the claim.
    reason : str
        What was measured, in a sentence.
    paper, ours : plain data
        The paper's numbers and ours, under ``measured["paper"]`` and ``measured["ours"]``.

    Returns
    -------
    CheckResult
        NUMERICAL: one experiment, its seeds as stated.
    """
    return CheckResult(
        name=item.name,
        statement=f"{item.source}: {claim}",
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code=f"paper-{_KINDS[verdict]}",
        reason=reason,
        evidence=tuple(evidence),
        measured={"paper": paper, "ours": ours},
        bounds=tuple(bounds),
        cost={} if seconds is None else {"seconds": seconds},
    )


_HOMES = {
    "figure1a": "fully_connected",
    "figure1bc": "lenet",
    "table1a": "fully_connected",
    "table1b": "lenet",
    "figure2": "sine_wave",
    "figure3": "sine_wave",
    "table2": "table2",
    "table2-gates": "table2",
    "table3": "image_tables",
    "table4": "image_tables",
    "figure4": "image_tables",
    "table5": "image_tables",
    "learning-rates": "image_tables",
    "table6": "grid_search",
    "tables7-15": "grid_search",
    "figure6": "image_tables",
}
NAMES = tuple(_HOMES)
"""The items, in the paper's order; each is a constant of its module, in capitals with an underscore for a hyphen."""


def load(name: str) -> Item:
    """Return an item by its name.

    Raises
    ------
    InvalidInput
        There is none of that name.

    Examples
    --------
    >>> load("figure6").source
    'Figure 6, Appendix C'
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidInput("item", repr(name) + hint, "one of " + ", ".join(NAMES))
    home = importlib.import_module(f"alignver.experiments.{_HOMES[name]}")
    item: Item = getattr(home, name.replace("-", "_").upper())
    return item


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Return the kind of processor, the cores and threads that this process may use, and the kind of accelerator.

    Examples
    --------
    >>> sorted(machine())
    ['cores', 'processor', 'threads']
    """
    listed = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE) if listed.is_file() else []
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    found: dict[str, str | int] = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


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
        One of :data:`alignver.experiments.conduct.NAMES`.
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
    >>> from alignver.experiments.conduct import load
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
