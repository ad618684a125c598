"""The history of a tracker, in memory and as a file of JSON lines that survives a crash."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import atomic, require
from alignver.errors import InvalidInput, MissingDependency, printable, saving
from alignver.results import Verdict, decode, encode, plain

FORMAT = 1
"""Version of the file's format; it changes when readers have to change."""

_SYNC = 1.0  # seconds: more frequent lines share one fsync, which takes about as long as a small check


@dataclasses.dataclass(frozen=True)
class Record:
    r"""One check of a run: plain data, equal after a round trip through JSON.

    Attributes
    ----------
    step : int
        t of :math:`\theta^t`: optimiser steps done.
    epoch : int
        Epochs done.
    rules : mapping of str to mapping
        For each rank rule ``verdict``, ``tolerance``, ``residual`` (lower and upper bound of rho at the tolerance),
        ``rank`` and ``near`` (the singular values within a factor of 100 of the tolerance); the last two are None if
        the singular values were not computed, and all but the verdict are None if nothing could be computed.
    reason : str
        How the answer was computed, or why there is none.
    seconds : float
        Duration of the check.
    training_seconds : float
        Time since the first call, without the checks.
    time : float
        Seconds since the epoch (POSIX), at the end of the check.
    loss : float or None
        The loss on the data of the tracker, at the parameters of the check.
    error : float or None
        Fraction of wrong outputs; None for the squared loss.
    largest, smallest : float or None
        Singular values s_1 and s_N of J.
    change : mapping or None
        :math:`\|M(\theta^t) - M(\theta^0)\|_F^2`: ``value``, ``interval``, ``confidence``, ``rigor``.
    structure : mapping or None
        Assumption 1 at this theta: ``verdict``, ``residual``.
    theorem_3 : mapping or None
        The bound: ``bound``, ``least_loss``, ``premises`` and the numbers in it.
    network : mapping or None
        What is proved about the network in real arithmetic, at the steps where it was asked: ``verdict`` (UNDECIDED if
        nothing is proved), ``kappa`` (lower and upper bound), ``shuffled``, ``reason``.
    run : int
        The number of the training that the tracker watches: 0, and 1 more for each one that begins anew.
    """

    step: int
    epoch: int
    rules: Mapping[str, Mapping[str, Any]]
    reason: str
    seconds: float
    training_seconds: float
    time: float
    loss: float | None = None
    error: float | None = None
    largest: float | None = None
    smallest: float | None = None
    change: Mapping[str, Any] | None = None
    structure: Mapping[str, Any] | None = None
    theorem_3: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None
    run: int = 0

    def __post_init__(self) -> None:
        for name in ("rules", "change", "structure", "theorem_3", "network"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def verdict(self, rule: str) -> Verdict:
        """Return the verdict of a rule."""
        return Verdict(self.rules[rule]["verdict"])

    def __str__(self) -> str:
        verdicts = ", ".join(f"{rule} {answer['verdict']}" for rule, answer in self.rules.items())
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return printable(f"step {self.step}: {verdicts}{loss} ({self.reason}; {self.seconds:.2g} s)")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; :meth:`from_dict` reads it back."""
        document: dict[str, Any] = encode({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Record:
        """Rebuild a record from :meth:`to_dict`."""
        return cls(**decode(document))


class History(Sequence[Record]):
    """The records of a run in the order of its steps; of several runs, one after the other.

    Examples
    --------
    >>> rules = {"press": {"verdict": "FAILS"}, "golub": {"verdict": "UNDECIDED"}}
    >>> history = History([Record(t, 0, rules, "", 0.1, float(t), 0.0) for t in range(3)])
    >>> history.q()
    {'press': (3, 3), 'golub': (0, 3)}
    >>> history.to_numpy()["step"]
    array([0, 1, 2])
    """

    def __init__(self, records: Sequence[Record] = (), config: Mapping[str, Any] | None = None) -> None:
        self._records = list(records)
        self.config: Mapping[str, Any] = plain(config or {})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return History(self._records[index], self.config)
        return self._records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, History) and self.config == other.config
        return same and self._records == list(other) if isinstance(other, History) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # records are compared by value, not hashed

    def append(self, record: Record) -> None:
        """Add a record of a later step."""
        self._records.append(record)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rank rules, in order."""
        return tuple(self._records[0].rules) if self._records else ()

    def q(self) -> dict[str, tuple[int, int]]:
        """Return Q_T for each rule (equation (7)): the FAILS, and the FAILS and UNDECIDED, among the checks made.

        With a check at every step these are bounds of the paper's count. With fewer they count checks, not steps. If
        the tracker watched several trainings, the last one counts.
        """
        return {rule: (low[-1], high[-1]) for rule, (low, high) in self.q_curve().items()}

    def q_curve(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return for each rule both bounds of Q_T after every check: :func:`alignver.report.plots.training_and_q`."""
        curves: dict[str, tuple[list[int], list[int]]] = {rule: ([], []) for rule in self.rules}
        for _, group in itertools.groupby(self._records, lambda record: record.run):
            records = list(group)
            for rule, (low, high) in curves.items():
                verdicts = [record.rules[rule]["verdict"] for record in records]
                fails = np.array([verdict == "FAILS" for verdict in verdicts])
                undecided = np.array([verdict == "UNDECIDED" for verdict in verdicts])
                low += np.cumsum(fails).tolist()
                high += np.cumsum(fails | undecided).tolist()
        return curves

    def columns(self) -> dict[str, list[Any]]:
        """Return the history as columns of equal length: one for each number, ``press.verdict`` and so on for rules."""
        rows = [_flat(record) for record in self._records]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return an array for each column; a missing number is NaN."""
        return {name: _array(values) for name, values in self.columns().items()}

    def to_pandas(self) -> Any:
        """Return a :class:`pandas.DataFrame`."""
        return _library("pandas").DataFrame(self.to_numpy())

    def to_polars(self) -> Any:
        """Return a :class:`polars.DataFrame`."""
        return _library("polars").DataFrame(self.columns(), strict=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> History:
        """Read a file of JSON lines up to its last complete line.

        Raises
        ------
        InvalidInput
            The file does not exist, or a tracker did not write it.
        """
        return HistoryFile.parse(require.path("path", path))[0]


class HistoryFile:
    """Appends records to a file: one line each, on the disk within a second, even if the process is killed.

    Parameters
    ----------
    path : path
        With ``resume``, an existing file is continued after its last complete line.
    config : mapping
        Plain data that determine the meaning of the records; the first line holds them.
    resume : bool

    Attributes
    ----------
    history : History
        The content of the file.

    Raises
    ------
    InvalidInput
        The file exists and ``resume`` is False, or it has another configuration; its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = require.path("path", path)
        self.history = History((), config)
        self._synced = -_SYNC
        if self.path.exists() and self.path.stat().st_size:
            if not resume:
                need = "a new file, or resume=True to continue it"
                raise InvalidInput("path", f"{self.path}, which exists", need, "conflicting-arguments")
            history, end = self.parse(self.path)
            require_same_config(history.config, self.history.config, self.path)
            self.history = history
            os.truncate(self.path, end)
            return
        if not self.path.parent.is_dir():
            got = f"{self.path}, in the folder {self.path.parent}, which does not exist"
            raise InvalidInput("path", got, "an existing folder", "unwritable-file")
        self._line({"alignver": "history", "format": FORMAT, "config": encode(self.history.config)})

    def append(self, record: Record) -> None:
        """Write a record and add it to the history.

        Raises
        ------
        InvalidInput
            It cannot be written, for example on a full disk; the lines before stay as they are.
        """
        self._line(record.to_dict())
        self.history.append(record)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _line(self, document: Mapping[str, Any]) -> None:
        line = json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        # The operating system holds a written line: nothing is lost if this process ends, and at most a second if the
        # machine does.
        sync = time.monotonic() - self._synced >= _SYNC
        with saving("path", self.path, "a file in a folder that can be written to, on a disk with free space"):
            atomic.append(self.path, line, sync=sync)
        if sync:
            self._synced = time.monotonic()

    @staticmethod
    def parse(path: pathlib.Path) -> tuple[History, int]:
        """Return the history of a file, and where its last complete line ends."""
        need = "a history that a tracker wrote"
        try:
            content = path.read_bytes()
        except OSError as error:
            got = f"{path}, which cannot be read ({error.strerror})"
            raise InvalidInput("path", got, need, "unreadable-file") from error
        end = content.rfind(b"\n") + 1  # an incomplete last line is left out
        lines = content[:end].splitlines()
        try:
            first = json.loads(lines[0])
            if first["alignver"] != "history" or first["format"] != FORMAT:
                got = f"{path}, format {first['format']!r}"
                raise InvalidInput("path", got, f"{need}, format {FORMAT}", "unreadable-file")
            records = [Record.from_dict(json.loads(line)) for line in lines[1:]]
            return History(records, decode(first["config"])), end
        except InvalidInput:
            raise
        except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            what = "with a line that does not belong to it" if lines else "which has no complete first line"
            raise InvalidInput("path", f"{path}, {what}", need, "unreadable-file") from error


def _flat(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == "rules":
            for rule, answer in value.items():
                row[f"{rule}.verdict"] = answer["verdict"]
                row[f"{rule}.tolerance"], row[f"{rule}.rank"] = answer.get("tolerance"), answer.get("rank")
                low, high = answer.get("residual") or (None, None)
                row[f"{rule}.residual_low"], row[f"{rule}.residual_high"] = low, high
        elif field.name == "network":
            part = value or {}
            low, high = part.get("kappa") or (None, None)
            row |= {"network.verdict": part.get("verdict"), "kappa_low": low, "kappa_high": high}
        elif field.name in ("change", "structure", "theorem_3"):
            part = value or {}
            if field.name == "change":
                low, high = part.get("interval") or (None, None)
                row |= {"change": part.get("value"), "change_low": low, "change_high": high}
            elif field.name == "structure":
                row |= {"structure.verdict": part.get("verdict"), "structure.residual": part.get("residual")}
            else:
                row["theorem_3.bound"] = part.get("bound")
        else:
            row[field.name] = value
    return row


def _array(values: list[Any]) -> npt.NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values])
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(name, f"History.to_{name}", "frames") from error


def require_same_config(there: Mapping[str, Any], here: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raise if the configuration of the file differs from that of this run."""
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing:
        words = "; ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} here" for name in differing)
        got = f"{path}, of another configuration: {words}"
        raise InvalidInput("path", got, "the configuration of the file, or another file", "conflicting-arguments")
