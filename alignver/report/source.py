"""The sources of a report page (a JSON document, a run folder, a history), and the schema of the JSON document."""

from __future__ import annotations

import dataclasses
import errno
import importlib.resources
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignver import require
from alignver.errors import InvalidInput
from alignver.report.history import History
from alignver.results import SCHEMA_VERSION, Report


def load(version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a version as a new dict: the current one, or 1, which is still read.

    Examples
    --------
    >>> load()["properties"]["schema"]
    {'description': 'Version of this document.', 'const': 2}
    """
    name = "schema.json" if version == SCHEMA_VERSION else f"schema_{version}.json"
    text = importlib.resources.files("alignver.report").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


_ARGUMENT = "RUN"
_NEED = "a run folder, its history.jsonl, or a file that --json wrote"
_CODE = "unreadable-file"
_MOST = 1 << 28  # bytes of a document that is read; its values take some ten times as much memory

_VERIFY = {"--input", "--model", "--data", "--loss", "--weights", "--seed", "--device", "--dtype", "--chunk-size"}
_PLAIN = re.compile(r"[\w@%+=:,./ ][\w@%+=:,./ -]*")  # a word without a meaning to a shell, and not an option


@dataclasses.dataclass(frozen=True)
class Source:
    """The content of a report page.

    Attributes
    ----------
    title : str
    report : Report or None
        None while a run is not finished.
    history : tuple of mappings
        The lines of a run's ``history.jsonl``.
    tracked : History or None
        The history of a tracker.
    settings : mapping
        The settings of a run.
    verify : str or None
        The command that checks the certificate again, as the source states it; see :func:`recheck_command`.
    remarks : tuple of str
        Remarks about the source itself.
    samples : mapping of name to array
        Available inputs, for images of the samples that a result names.
    """

    title: str
    report: Report | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    tracked: History | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verify: str | None = None
    remarks: tuple[str, ...] = ()
    samples: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, report: Report, *, samples: Mapping[str, Any] | None = None) -> Source:
        """Return a report as a source; its provenance names the command and the one that verifies the certificate.

        Examples
        --------
        >>> Source.of(Report((), {"command": "check rank"})).title
        'alignver check rank'
        """
        command, verify = report.provenance.get("command"), report.provenance.get("verify")
        title = f"alignver {command}" if isinstance(command, str) else "alignver"
        return cls(title, report=report, verify=verify if isinstance(verify, str) else None, samples=samples or {})

    @property
    def tau(self) -> float | None:
        """The last epoch of exploration, where the history has phases and exploitation has begun."""
        phases = [line.get("phase") for line in self.history]
        if "exploration" not in phases or "exploitation" not in phases:
            return None
        tau = number(self.history[phases.index("exploitation") - 1].get("epoch"))
        return None if math.isnan(tau) else tau


def read(path: str | Path) -> Source:
    """Read the content of a report page.

    Parameters
    ----------
    path : path
        A run folder with report.json, history.jsonl or both; a history (JSON lines), of a run or of a tracker; a JSON
        document of ``--json``.

    Raises
    ------
    InvalidInput
        The path holds no report, or it is damaged. An incomplete last line of a history is left out.
    """
    place = require.path(_ARGUMENT, path)
    if place.is_dir():
        return _folder(place)
    text = _text(place)
    if _tracked(text):
        return _of_tracker(place)
    document = _json(text)
    if isinstance(document, dict) and "schema" in document:
        return Source.of(_report(place, text))
    if document is None and place.suffix == ".json":
        raise InvalidInput(_ARGUMENT, f"{place}, which is not JSON", _NEED, _CODE)
    history, remarks = read_history(place)
    return Source(f"Training run {place}", history=history, remarks=remarks)


def read_history(place: Path) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Return the lines of a history, and a remark if the last one is incomplete."""
    lines = _text(place).split("\n")
    history: list[Mapping[str, Any]] = []
    remarks: tuple[str, ...] = ()
    for k, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _json(line)
        if isinstance(record, dict) and "epoch" not in record:
            raise InvalidInput(_ARGUMENT, f"{place}, whose line {k} has no epoch", _NEED, _CODE)
        if isinstance(record, dict):
            history.append(record)
        elif record is None and k == len(lines) and history:  # a whole line ends with a newline
            remarks = (f"{place.name}: line {k} was not written whole and is left out",)
        else:
            raise InvalidInput(_ARGUMENT, f"{place}, whose line {k} is not a JSON object", _NEED, _CODE)
    if not history:
        raise InvalidInput(_ARGUMENT, f"{place}, without a line of history", _NEED, _CODE)
    return tuple(history), remarks


def number(value: Any) -> float:
    """Return a number of a JSON document as a float: NaN if it is not a number.

    Examples
    --------
    >>> [number(value) for value in (3, {"float": "inf"}, None, True)]
    [3.0, inf, nan, nan]
    """
    if isinstance(value, Mapping) and set(value) == {"float"}:
        value = {"inf": math.inf, "-inf": -math.inf}.get(str(value["float"]))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _folder(place: Path) -> Source:
    there = {name: place / name for name in ("report.json", "history.jsonl", "config.json") if (place / name).is_file()}
    if not there.keys() & {"report.json", "history.jsonl"}:
        if (place / "certificate.json").is_file():
            need = f"its claim checked: alignver verify {shlex.quote(str(place))} ... --html FILE"
            raise InvalidInput(_ARGUMENT, f"{place}, a certificate", need, _CODE)
        raise InvalidInput(_ARGUMENT, f"{place}, a folder without report.json and history.jsonl", _NEED, _CODE)
    report = _report(there["report.json"], _text(there["report.json"])) if "report.json" in there else None
    if there.keys() == {"history.jsonl"} and _tracked(_text(there["history.jsonl"])):
        return _of_tracker(there["history.jsonl"])
    history, remarks = read_history(there["history.jsonl"]) if "history.jsonl" in there else ((), ())
    config = _json(_text(there["config.json"])) if "config.json" in there else None
    settings = config.get("settings", config) if isinstance(config, dict) else {}
    if report is None:
        remarks = (*remarks, "the run is not finished: there is no verdict yet")
    return Source(
        f"Training run {place}",
        report=report,
        history=history,
        settings=settings if isinstance(settings, dict) else {},
        verify=_verify(place),
        remarks=remarks,
    )


def _tracked(text: str) -> bool:
    """Return whether a tracker wrote the file: its first line states that."""
    first = _json(text.partition("\n")[0])
    return isinstance(first, dict) and first.get("alignver") == "history"


def _of_tracker(place: Path) -> Source:
    try:
        history = History.read(place)
    except InvalidInput as error:
        raise InvalidInput(_ARGUMENT, error.got, error.need, error.code) from error
    if not len(history):
        raise InvalidInput(_ARGUMENT, f"{place}, without a check", "a history with at least one", _CODE)
    return Source(f"Tracked training {place}", tracked=history, settings=history.config)


def _verify(place: Path) -> str | None:
    """Return the command that checks a run's certificate again."""
    if not (place / "certificate").is_dir():
        return None
    inputs = place / "inputs.npz"
    words = ["alignver", "verify", str(place / "certificate"), *(["--input", str(inputs)] if inputs.is_file() else [])]
    return shlex.join(words)


def _report(place: Path, text: str) -> Report:
    try:
        return Report.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        document = _json(text)
        if document is None:
            what = "which is not JSON"
        elif not isinstance(document, dict) or document.get("schema") not in (1, SCHEMA_VERSION):
            what = f"which is not a report of schema 1 or {SCHEMA_VERSION}"
        else:
            what = "a report with a missing entry" if isinstance(error, KeyError) else "a report with a damaged entry"
        raise InvalidInput(_ARGUMENT, f"{place}, {what}", _NEED, _CODE) from error


def _text(place: Path) -> str:
    try:
        if place.stat().st_size > _MOST:
            raise OSError(errno.EFBIG, f"more than {_MOST} bytes")
        return place.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "").lower() or "not text in UTF-8"
        raise InvalidInput(_ARGUMENT, f"{place} ({reason})", _NEED, _CODE) from error


def _json(text: str) -> Any:
    """Return the JSON value of a text, or None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def recheck_command(command: str) -> str | None:
    """Return a command that is exactly as ``alignver`` writes it, or None for any other command.

    A report may come from another author, and readers copy and run the command that a page shows.

    Examples
    --------
    >>> recheck_command("alignver verify 'run 1/certificate' --input J=J.npy")
    "alignver verify 'run 1/certificate' --input J=J.npy"
    >>> recheck_command("alignver verify proof; reboot") is None
    True
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    options, values = words[3::2], words[4::2]
    known = words[:2] == ["alignver", "verify"] and set(options) <= _VERIFY and len(options) == len(values)
    plain = all(_PLAIN.fullmatch(word) for word in (*words[2:3], *values))
    return command if len(words) > 2 and known and plain and shlex.join(words) == command else None


def problems_of(report: Report | None) -> dict[int, Mapping[str, Any]]:
    """Return the built-in problems that belong to the results of a report, by position."""
    problems = report.provenance.get("problems") if report is not None else None
    if not isinstance(problems, Sequence):
        return {}
    return {k: problem for k, problem in enumerate(problems) if isinstance(problem, Mapping)}


def lines_of(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the single values of nested mappings under dotted names."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from ((f"{key}.{rest}", inner) for rest, inner in lines_of(item))
        else:
            yield key, item
