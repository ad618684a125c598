"""The paper's figures and tables by name: parts to run one by one, and claims to compare what they measured with.

An item (:class:`Item`) is a figure or table. Its parts (:class:`Part`) are pieces of work that are run, stored and
taken up again as a whole; its claims (:class:`Claim`) are judged by what the parts measured.

A run folder holds one JSON file for each part, named by the hash of its recipe. A part whose file exists is not run
again, so an interrupted item continues where it stopped. A record names the kind of processor and accelerator, and
nothing that identifies a machine.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from alignver import atomic, require
from alignver._version import __version__
from alignver.errors import InvalidInput, reading
from alignver.progress import track
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, plain

__all__ = [
    "Answer",
    "Claim",
    "Item",
    "Measured",
    "Outcome",
    "Part",
    "Run",
    "Setting",
    "code_digest",
    "compared",
    "conduct",
    "machine",
    "slug",
    "spread",
]

Run = Callable[[], Mapping[str, Any]]
Measured = Mapping[str, Mapping[str, Any]]
"""What the parts measured, by key; a part that was not run is absent."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Choices of the person who reproduces an item.

    Attributes
    ----------
    seeds : int or None
        Number of seeds, which start at 0; None is the item's own number.
    datasets : tuple of str
        Of the item's data sets; empty for the default ones.
    device : str
        A torch device.
    data_folder, cache : path or None
        Folder of the image sets, and folder in which features are stored.
    reduced : bool or None
        Whether long experiments are made smaller, as their claims then state. None: unless the device is a GPU.
    reading : str or None
        Of the item's readings of what the paper leaves open; None: the first.
    """

    seeds: int | None = None
    datasets: tuple[str, ...] = ()
    device: str = "cpu"
    data_folder: str | os.PathLike[str] | None = None
    cache: str | os.PathLike[str] | None = None
    reduced: bool | None = None
    reading: str | None = None

    def __post_init__(self) -> None:
        if self.seeds is not None:
            require.integer("seeds", self.seeds, least=1)

    @property
    def is_reduced(self) -> bool:
        """Whether long experiments are made smaller."""
        return not self.device.startswith("cuda") if self.reduced is None else self.reduced

    def on_cpu(self) -> Setting:
        """Return this setting for an experiment that runs on the CPU; refuse another device instead of ignoring it."""
        require.one_of("device", self.device, ["cpu"], need="'cpu', where this experiment runs")
        return self

    def select(self, known: Sequence[str], default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the data sets to run: those of the setting, in the item's order, or the item's default."""
        for name in self.datasets:
            require.one_of("dataset", name, known, need="one of " + ", ".join(known))
        if not self.datasets:
            return tuple(known if default is None else default)
        return tuple(name for name in known if name in self.datasets)


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of an experiment that is run, stored and taken up again as a whole.

    Attributes
    ----------
    key : str
        Its name in the run folder and in reports, such as ``"two moons, seed 0"``.
    recipe : mapping
        Everything that determines the outcome besides the code: plain data. Another recipe is another part.
    run : callable
        Does the work and returns plain data.
    family : str
        Items share the parts of one family; empty for parts of one item alone.
    """

    key: str
    recipe: Mapping[str, Any]
    run: Run
    family: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the runs of a claim say about it.

    Attributes
    ----------
    verdict : Verdict
        HOLDS if the measurement agrees with the claim.
    reason : str
        What was measured, in a sentence.
    ours : plain data
        The measured numbers, beside the paper's.
    evidence : sequence of str
    bounds : sequence of Bound
    seconds : float or None
        What the measurement took, where it is worth a line.
    """

    verdict: Verdict
    reason: str
    ours: Any = None
    evidence: Sequence[str] = ()
    bounds: Sequence[Bound] = ()
    seconds: float | None = None

    @classmethod
    def of(cls, agrees: bool, reason: str, ours: Any = None, evidence: Sequence[str] = ()) -> Answer:
        """Return HOLDS or FAILS."""
        return cls(Verdict.HOLDS if agrees else Verdict.FAILS, reason, ours, evidence)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how it is judged.

    Attributes
    ----------
    id : str
        Its name within the item. It stays when the sentence changes: results are compared by it.
    sentence : str
        The claim in a few words.
    paper : plain data
        The paper's numbers.
    runs : sequence of str
        Keys of the parts by which it is judged.
    judge : callable of Measured to Answer
        Gets what those parts measured, by key, in the order of ``runs``.
    enough : int or None
        The smallest number of runs that give an answer; None: all of them.
    word : str
        The beginning of the reason where runs are missing.
    """

    id: str
    sentence: str
    paper: Any
    runs: Sequence[str]
    judge: Callable[[Measured], Answer]
    enough: int | None = None
    word: str = ""

    def answer(self, measured: Measured) -> Answer:
        """Return the answer of the runs that were done; UNDECIDED where too many are missing."""
        done = {key: measured[key] for key in self.runs if key in measured}
        if len(done) < (len(self.runs) if self.enough is None else self.enough):
            progress = f"{len(done)} of {len(self.runs)} runs done" if done else "not run"
            return Answer(Verdict.UNDECIDED, self.word + progress)
        return self.judge(done)


@dataclasses.dataclass(frozen=True)
class Item:
    """A figure or table of the paper.

    Attributes
    ----------
    name : str
        As the command line takes it: ``"figure1a"``.
    title, source : str
        What is shown, and where the paper shows it.
    cost : str
        What the default setting takes on two cores, as measured; and what is known about a GPU.
    parts : callable of Setting to sequence of Part
        The parts of a setting, the fastest first.
    claims : callable of Setting to sequence of Claim
    draw : callable of Measured to a matplotlib figure or None
        None for an item that the paper shows as a table.
    datasets, readings : tuple of str
        Choices of ``--dataset`` and ``--reading``; empty if there is nothing to choose.
    """

    name: str
    title: str
    source: str
    cost: str
    parts: Callable[[Setting], Sequence[Part]]
    claims: Callable[[Setting], Sequence[Claim]]
    draw: Callable[[Measured], Any] = lambda measured: None
    datasets: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()

    def judge(self, setting: Setting, measured: Measured) -> list[CheckResult]:
        """Return the paper's claims beside what was measured; UNDECIDED where parts are missing."""
        return [compared(self, claim, measured) for claim in self.claims(setting)]

    def code_digest(self) -> str:
        """Return the digest of the code that runs the parts."""
        function: Any = self.parts
        while isinstance(function, functools.partial):
            function = function.func
        return code_digest(pathlib.Path(inspect.getfile(function)))


_NEXT_STEP = {
    Verdict.FAILS: "compare the settings and seeds of the report with those of the paper; more seeds narrow the error",
    Verdict.UNDECIDED: "run the missing parts: alignver reproduce {}",
}


def compared(item: Item, claim: Claim, measured: Measured) -> CheckResult:
    """Return a claim of the paper beside our measurement as one result.

    Returns
    -------
    CheckResult
        NUMERICAL: one experiment with the stated seeds. ``code`` is the item's name and the claim's id, and
        ``measured`` holds the numbers of both sides, ``"paper"`` and ``"ours"``.
    """
    answer = claim.answer(measured)
    return CheckResult(
        name=item.name,
        statement=f"{item.source}: {claim.sentence}",
        verdict=answer.verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.NETWORK,
        code=f"{item.name}-{claim.id}",
        next_steps=() if answer.verdict is Verdict.HOLDS else (_NEXT_STEP[answer.verdict].format(item.name),),
        reason=answer.reason,
        evidence=tuple(answer.evidence),
        measured={"paper": claim.paper, "ours": answer.ours},
        bounds=tuple(answer.bounds),
        cost={} if answer.seconds is None else {"seconds": answer.seconds},
    )


def slug(text: str) -> str:
    """Return a text in lower-case letters and digits with hyphens between: a part of a claim's id.

    Examples
    --------
    >>> slug("wrapper, repair, L-BFGS")
    'wrapper-repair-l-bfgs'
    """
    return "-".join(re.findall("[a-z0-9]+", text.lower()))


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
    kinds: dict[str, str | int] = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        kinds["accelerator"] = torch.cuda.get_device_name(device)
    return kinds


_ORIGIN = ("part", "seconds", "versions", "machine")
_LATER = ("code",)  # absent from the parts of early versions


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of an item gave.

    Attributes
    ----------
    results : tuple of CheckResult
        The paper's claims beside our measurements.
    measured : dict
        Plain data of every part that has been run, by key.
    missing : tuple of str
        Keys of the parts that the budget left out.
    seconds : float
        Time spent on the parts, including those of earlier runs.
    made : tuple of dict
        Where each part comes from: ``part``, ``seconds``, ``versions``, ``machine``, and ``code``, the digest of the
        experiment's code.
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
    """Run the missing parts of an item, and judge its claims.

    Parameters
    ----------
    item : Item
        As :func:`alignver.experiments.load` returns it.
    setting : Setting, optional
    folder : path, optional
        Store the parts here, and take up those that it already holds.
    budget : float, optional
        Minutes after which no further part is started. The first part is always run, unless the budget is 0, which
        judges what the folder holds.

    Raises
    ------
    InvalidInput
        The budget is negative, or the folder cannot be written.

    Examples
    --------
    >>> from alignver.experiments import load
    >>> outcome = conduct(load("figure6"))
    >>> outcome.results[0].verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if budget is not None and not budget >= 0:
        raise InvalidInput("budget", f"budget={budget!r}", "minutes, at least 0", "not-a-number")
    setting = setting if setting is not None else Setting()
    if setting.reading is not None and setting.reading not in item.readings:
        need = "one of " + ", ".join(item.readings) if item.readings else f"no reading: {item.name} has only one"
        raise InvalidInput("reading", repr(setting.reading), need, "not-a-choice")
    parts = item.parts(setting)
    place = None if folder is None else _created(pathlib.Path(folder))
    stored = {part.key: _stored(place, item, part) for part in parts}
    began, started = time.perf_counter(), 0
    for part in track([part for part in parts if stored[part.key] is None], item.name):
        if budget is not None and (started or budget == 0) and time.perf_counter() - began >= 60 * budget:
            continue
        stored[part.key] = _stored(place, item, part)  # another process may have written it in the meantime
        if stored[part.key] is None:
            started += 1
            stored[part.key] = _run(place, item, part, setting.device)
    records = {key: record for key, record in stored.items() if record is not None}
    measured = {key: record["data"] for key, record in records.items()}
    return Outcome(
        results=tuple(item.judge(setting, measured)),
        measured=measured,
        missing=tuple(part.key for part in parts if part.key not in records),
        seconds=sum(record["seconds"] for record in records.values()),
        made=tuple({key: record[key] for key in (*_ORIGIN, *_LATER) if key in record} for record in records.values()),
    )


def _run(place: pathlib.Path | None, item: Item, part: Part, device: str) -> dict[str, Any]:
    began = time.perf_counter()
    data = plain(part.run())
    record = {
        "item": item.name,
        "part": part.key,
        "recipe": plain(part.recipe),
        "versions": {"alignver": __version__, "torch": torch.__version__},
        "code": item.code_digest(),
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


def _stored(place: pathlib.Path | None, item: Item, part: Part) -> dict[str, Any] | None:
    if place is None:
        return None
    file = _file(place, item, part)
    if not file.is_file():
        return None
    with reading("out", f"{file}, which cannot be read", "a run folder, or a new one"):
        record: dict[str, Any] = json.loads(file.read_text())
        fits = {"data", *_ORIGIN} <= set(record)
    if not fits:
        raise InvalidInput("out", f"{file}, which is no part of a run", "a run folder, or a new one", "unreadable-file")
    return record


def _file(place: pathlib.Path, item: Item, part: Part) -> pathlib.Path:
    recipe = json.dumps(plain(part.recipe), sort_keys=True)
    family = part.family or item.name
    content = hashlib.sha256(f"{family}\n{part.key}\n{recipe}".encode()).hexdigest()[:12]
    words = "-".join("".join(c if c.isalnum() else " " for c in part.key).split())
    return place / f"{family}-{words}-{content}.json"


def _created(place: pathlib.Path) -> pathlib.Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(place, error) from error
    return place


def _unwritable(place: pathlib.Path, error: OSError) -> InvalidInput:
    got = f"{os.fspath(place)}, which cannot be written ({error.strerror or error})"
    return InvalidInput("out", got, "a folder with room for the results", "unwritable-file")


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and standard deviation (n - 1) in the paper's form: ``2.59 (0.57)``.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0])
    '2.00 (1.00)'
    """
    centre = f"{fmean(values):{form}}"
    return f"{centre} ({stdev(values):{form}})" if len(values) > 1 else centre


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


_RUNNER = "conduct.py"  # runs and stores the parts; what these measure is not in it


def code_digest(file: pathlib.Path) -> str:
    """Return the SHA-256, 16 digits, of the code of a module and of those in its folder that it imports.

    Comments, docstrings and the layout do not count, nor does the code that runs and stores experiments. Other packages
    are named by their versions, not by this digest.

    Examples
    --------
    >>> len(code_digest(pathlib.Path(__file__)))
    16
    """
    code = hashlib.sha256()
    for path in sorted(_with_neighbours(file.resolve())):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        code.update("\n".join([path.name, *_content(tree), ""]).encode())
    return code.hexdigest()[:16]


def _content(node: object) -> Iterator[str]:
    """Yield the parts of a syntax tree, the same in all versions of Python: ast.unparse and ast.dump differ in some."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.JoinedStr):  # Python 3.12.1 has empty strings in formatted ones
                value = [part for part in node.values if getattr(part, "value", None) != ""]
            if value is not None and value != []:  # among them fields that only some versions have
                yield name
                yield from _content(value)
    elif isinstance(node, list):
        yield str(len(node))
        for part in node:
            yield from _content(part)
    else:
        yield repr(node)


def _with_neighbours(file: pathlib.Path) -> set[pathlib.Path]:
    """Return a file and those of its folder that it imports, directly or not."""
    files, left = {file}, [file]
    while left:
        for name in _imported(ast.parse(left.pop().read_text(encoding="utf-8"))):
            path = file.with_name(f"{name}.py")
            if path not in files and path.name != _RUNNER and path.is_file():
                files.add(path)
                left.append(path)
    return files


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield names of modules that may be in the same folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            package, _, module = node.module.rpartition(".")
            if package in ("", "alignver.experiments"):
                yield module
            if node.module == "alignver.experiments":
                yield from (alias.name for alias in node.names)
