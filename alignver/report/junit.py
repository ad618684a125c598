"""A report as JUnit XML, which CI systems show next to the tests: a test case for each result.

All texts are printable, so they have no characters that XML 1.0 excludes (section 2.2): controls and surrogates.

HOLDS passes. FAILS is a ``<failure>``. UNDECIDED is an ``<error>``: it must not look like a pass, as ``<skipped>``
would. For built-in problems a case passes if the verdict is the expected one. In a report of ``check_model``, whose
verdict and exit code are those of alignment, the other questions are secondary: what does not hold there, such as
the optimality of a model before its training, is ``<skipped>`` with its verdict, and the suite passes with the command.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

from alignver.errors import printable
from alignver.report.source import lines_of, problems_of, recheck_command
from alignver.results import CheckResult, Report, Verdict

_KINDS = {Verdict.FAILS: "failure", Verdict.UNDECIDED: "error"}


def document(report: Report) -> bytes:
    """Return the XML document of a report, in UTF-8.

    Parameters
    ----------
    report : Report

    Returns
    -------
    bytes
        ``<testsuites>`` with one ``<testsuite>``: the provenance as its properties, a ``<testcase>`` for each result.

    Examples
    --------
    >>> import alignver as av
    >>> text = document(av.Report((av.check_rank([[1.0, 0.0], [0.0, 0.0]]),))).decode()
    >>> "<failure" in text, 'failures="1"' in text
    (True, True)
    """
    command = report.provenance.get("command")
    suite = ET.Element("testsuite", name=printable(f"alignver {command}" if isinstance(command, str) else "alignver"))
    properties = ET.SubElement(suite, "properties")
    for name, value in lines_of({key: value for key, value in report.provenance.items() if key != "problems"}):
        if value is None or (name.partition(".")[0] == "verify" and recheck_command(str(value)) is None):
            continue
        text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        ET.SubElement(properties, "property", name=printable(name), value=printable(text))
    problems = problems_of(report)
    secondary = set(report.results[0].measured.get("checks", ())) - {"alignment"} if report.results else set()
    for k, result in enumerate(report.results):
        suite.append(_case(result, problems.get(k), secondary=k > 0 and result.name in secondary))
    return _whole(suite)


def stopped(command: str, kind: str, message: str) -> bytes:
    """Return the document of a command that ended without a verdict: one case with an error.

    Otherwise the file of an earlier run would still show its verdicts.
    """
    suite = ET.Element("testsuite", name=printable(f"alignver {command}"))
    case = ET.SubElement(suite, "testcase", classname="alignver", name=printable(command), time="0.000")
    ET.SubElement(case, "error", type=printable(kind), message=printable(message)).text = printable(message)
    return _whole(suite)


def _case(result: CheckResult, problem: Any, *, secondary: bool) -> ET.Element:
    seconds = result.cost.get("seconds", 0.0)
    case = ET.Element(
        "testcase",
        classname=printable(f"alignver.{result.name}"),
        name=printable(result.statement),
        time=f"{seconds if math.isfinite(seconds) else 0.0:.3f}",
    )
    kind = _KINDS.get(result.verdict)
    message = result.reason
    if problem is not None and problem.get("expected") in list(Verdict):
        verdict = problem.get("found", result.verdict)
        kind = None if problem.get("agrees", result.verdict == problem["expected"]) is True else "failure"
        message = f"expected {problem['expected']}, found {verdict}: {message}"
    if kind is not None and secondary:
        ET.SubElement(case, "skipped", message=printable(f"{result.verdict}, secondary to alignment: {message}"))
    elif kind is not None:
        named = f"{result.verdict} {result.rigor}"
        ET.SubElement(case, kind, type=named, message=printable(message)).text = str(result)
    ET.SubElement(case, "system-out").text = str(result)
    return case


def _whole(suite: ET.Element) -> bytes:
    cases = suite.findall("testcase")
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": f"{math.fsum(float(case.get('time', 0.0)) for case in cases):.3f}",
    }
    root = ET.Element("testsuites", {"name": "alignver", **counts})
    for key, value in counts.items():
        suite.set(key, value)
    root.append(suite)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
