"""A report as one HTML file: the verdicts, then their evidence, then their provenance.

The file needs no network and no script. Its figures are part of it, and its colours follow the reader's light or dark
mode.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignver._version import __version__
from alignver.errors import MissingDependency, printable
from alignver.report.source import Source, lines_of, problems_of, recheck_command
from alignver.report.text import number, scalar
from alignver.results import CheckResult, Report, Summarised, Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

    from alignver.report.figures import Picture
    from alignver.report.history import History

_SIGNS = {Verdict.HOLDS: "\N{CHECK MARK}", Verdict.FAILS: "\N{MULTIPLICATION X}", Verdict.UNDECIDED: "?"}
_LONGEST = 20_000  # characters of data on a page; --json has all of it
_ROWS = 10  # rows in the table of a history


def page(source: Report | Source) -> str:
    """Return the HTML page of a report, or of a run that :func:`alignver.report.source.read` read.

    Parameters
    ----------
    source : Report or Source

    Returns
    -------
    str
        One document in HTML 5. Its figures need matplotlib; without it, a remark takes their place.

    Examples
    --------
    >>> import alignver as av
    >>> text = page(av.Report((av.check_rank([[1.0, 0.0], [0.0, 2.0]]),)))
    >>> "HOLDS" in text, "<script" in text
    (True, False)
    """
    source = Source.of(source) if isinstance(source, Report) else source
    report = source.report
    results = () if report is None else report.results
    try:
        from alignver.report import figures

        drawn = [figures.of_result(result, source.samples, f"r{k}") for k, result in enumerate(results, 1)]
        course = figures.of_history(source, "h")
        missing = ""
    except MissingDependency as error:
        drawn, course, missing = [[] for _ in results], [], str(error)
    expected = problems_of(report)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=source.title,
            summary=_summary(report, expected),
            results=[
                _result(result, pictures_, expected.get(k), source.verify)
                for k, (result, pictures_) in enumerate(zip(results, drawn))
            ],
            remarks=(*source.remarks, *([f"No figures: {missing}"] if missing else [])),
            history=_history(source, course),
            settings=_pairs(source.settings),
            provenance=None if report is None or not report.provenance else _provenance(report.provenance),
            version=__version__,
        )
    )


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("alignver.report"),
        autoescape=True,  # values are text, except the mark-up that this module makes
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = importlib.resources.files("alignver.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)
    environment.filters["drawing"] = _drawing
    return environment


def _shown(value: Any) -> Any:
    """Return a text with control characters escaped, except for newlines, which fold the JSON of data."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _drawing(picture: Picture) -> Any:
    """Return the figure as part of the page, with its description as the label."""
    from markupsafe import Markup

    opening = Markup('<svg role="img" aria-label="{}" ').format(printable(picture.words))
    return opening + Markup(_shown(picture.svg.removeprefix("<svg")))  # matplotlib escaped its texts


def _summary(report: Report | None, expected: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    if report is None or not report.results:
        return None
    counts = {verdict: sum(result.verdict is verdict for result in report.results) for verdict in Verdict}
    words = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    if report.results[0].name == "model":
        words += "; the verdict is that of the first"
    shared = {"counts": f"{len(report.results)} results: {words}", "several": len(report.results) > 1}
    if not expected:
        return {**_verdict(report.verdict), **shared}
    # Built-in problems have known verdicts: the summary says whether the results agree with them.
    good = sum(problem.get("agrees") is True for problem in expected.values())
    verdict = _verdict(Verdict.HOLDS if good == len(expected) else Verdict.FAILS)
    answer = "AS EXPECTED" if good == len(expected) else "NOT AS EXPECTED"
    return {**verdict, **shared, "verdict": answer, "several": True}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.value, "sign": _SIGNS[verdict], "kind": verdict.value.lower()}


def _result(
    result: CheckResult, drawn: list[Picture], problem: Mapping[str, Any] | None, verify: str | None
) -> dict[str, Any]:
    lines = result.lines()
    measured = result.measured
    rules = [row for row in _sequence(measured.get("rules")) if isinstance(row, Mapping)]
    methods = measured.get("methods")
    tolerance = result.tolerance
    return {
        **_verdict(result.verdict),
        "rigor": f"{result.rigor.value.lower()} ({result.subject.words})",
        "next_steps": result.next_steps,
        "name": result.name,
        "statement": result.statement,
        "reason": result.reason,
        "evidence": result.evidence,
        "problem": None if problem is None else {key: str(problem.get(key)) for key in ("name", "expected", "found")},
        "headline": headline(result),
        "code": result.code if re.fullmatch(r"[A-Za-z0-9-]+", result.code) else "",  # part of a command to copy
        "cost": lines[-1] if len(lines) > 1 + len(result.evidence) + len(result.next_steps) else "",
        "pictures": drawn,
        "bounds": [
            (bound.name, number(bound.value), bound.relation, number(bound.limit), bound.satisfied)
            for bound in result.bounds
        ],
        "tolerance": None
        if tolerance is None
        else {
            "rule": tolerance.rule,
            "value": number(tolerance.value),
            "formula": tolerance.formula,
            "source": tolerance.source,
            "eps": number(tolerance.eps),
        },
        "rules": [
            {
                "rule": str(row.get("rule")),
                "tolerance": number(row.get("tolerance")),
                "rank": number(row.get("rank")),
                "of": str(row.get("shipped_by") or ""),
                "chosen": tolerance is not None and row.get("rule") == tolerance.rule,
            }
            for row in rules
        ],
        "methods": _methods(methods) if isinstance(methods, Mapping) else None,
        "numbers": [(key.replace("_", " "), number(value)) for key, value in measured.items() if _full(value)],
        "witness": None if result.witness is None else _json(result.witness),
        "certificate": _certificate(result, verify),
        "measured": _json({key: value for key, value in measured.items() if not scalar(value)}),
    }


_HEADLINES = {
    "alignment": "these parameters allow a small change that moves the outputs onto the targets",
    "membership": "y is in the column space of J",
    "rank": "A has the claimed rank",
    "exploration": "the last hidden layer is wide enough for these samples",
    "optimality": "the training loss is at its global minimum, up to the tolerance",
    "data": "equal inputs have equal targets",
    "structure": "the outputs are linear in some of the parameters",
    "analytic": "the outputs are analytic functions of the parameters",
    "recheck": "the certificate proves its claim about these inputs",
}
"""What is checked, in words that need no definition, by the name of the check."""


def headline(result: CheckResult) -> str:
    """Return the answer in one sentence without a method; empty for a check of another name.

    Examples
    --------
    >>> from alignver.checks.rank import check_rank
    >>> headline(check_rank([[1.0, 0.0], [0.0, 0.0]]))
    'No: it is not true that A has the claimed rank.'
    """
    words = _HEADLINES.get(result.name)
    if words is None:
        return ""
    return {
        Verdict.HOLDS: f"Yes: {words}.",
        Verdict.FAILS: f"No: it is not true that {words}.",
        Verdict.UNDECIDED: f"It is not decided whether {words}.",
    }[result.verdict]


def _full(value: Any) -> bool:
    """Whether a value is a single one that says something: a row without content is left out."""
    return scalar(value) and value is not None and value != ""


def _methods(methods: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = {name: row for name, row in methods.items() if isinstance(row, Mapping)}
    keys = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if scalar(value)))
    table = [(name, [number(row.get(key)) for key in keys]) for name, row in rows.items()]
    return {"keys": [key.replace("_", " ") for key in keys], "rows": table} if table else None


def _certificate(result: CheckResult, verify: str | None) -> dict[str, Any] | None:
    certificate = result.certificate
    if certificate is None:
        return None
    summary = dict(certificate.summary()) if isinstance(certificate, Summarised) else dict(certificate)
    path = summary.get("path")
    saved = verify is not None or path is not None
    command = verify if verify is not None else shlex.join(("alignver", "verify", str(path)))
    return {
        "claim": summary.get("claim", ""),
        "pairs": _pairs({key: value for key, value in summary.items() if key not in ("claim", "path")}),
        "saved": saved,
        "verify": recheck_command(command) if saved else None,
        "inputs": verify is None,
    }


def _history(source: Source, course: list[Picture]) -> dict[str, Any] | None:
    lines = source.history if source.tracked is None else _checks(source.tracked)
    if not lines:
        return None
    keys = [key for key in dict.fromkeys(key for line in lines for key in line) if _column(lines, key)]
    step = max(math.ceil((len(lines) - 1) / (_ROWS - 1)), 1)
    shown = [*lines[:-1:step], lines[-1]]
    return {
        "pictures": course,
        "count": len(lines),
        "q": () if source.tracked is None else tuple(_counts(source.tracked)),
        "keys": [key.replace("_", " ").replace(".", " ") for key in keys],
        "rows": [[number(line.get(key)) for key in keys] for line in shown],
    }


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(scalar(line.get(key)) for line in lines)


def _checks(history: History) -> list[dict[str, Any]]:
    """Return the checks of a tracker as lines with the columns of the table."""
    columns = history.columns()
    names = ["step", *(f"{rule}.verdict" for rule in history.rules), "loss", "error", "change", "seconds"]
    names = [name for name in names if any(value is not None for value in columns.get(name, ()))]
    return [dict(zip(names, row)) for row in zip(*(columns[name] for name in names))]


def _counts(history: History) -> Iterator[str]:
    """Yield Q_T (equation 7) in words for each rule."""
    for rule, (low, high) in history.q().items():
        undecided = f", {high - low} UNDECIDED" if high > low else ""
        yield f"{rule}: {low} of {len(history)} checks are FAILS{undecided}"


def _provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    inputs = provenance.get("inputs")
    rows = []
    for name, entry in inputs.items() if isinstance(inputs, Mapping) else ():
        about = entry if isinstance(entry, Mapping) else {}
        shape = " x ".join(str(length) for length in _sequence(about.get("shape")))
        rows.append((name, shape, about.get("dtype", ""), about.get("file", ""), about.get("sha256", "")))
    left_out = ("inputs", "problems", "versions", "training", "verify")
    return {
        "pairs": _pairs({key: value for key, value in provenance.items() if key not in left_out}),
        "versions": _pairs(_mapping(provenance.get("versions"))),
        "training": _pairs(_mapping(provenance.get("training"))),
        "inputs": rows,
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            key.replace("_", " ").replace(".", " "),
            number(value) if scalar(value) else json.dumps(value, ensure_ascii=False),
        )
        for key, value in lines_of(values)
        if value is not None
    ]


def _json(value: Any) -> str:
    if not value:
        return ""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n... {len(text) - _LONGEST} characters more in --json"


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
