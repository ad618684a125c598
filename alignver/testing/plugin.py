"""The pytest plugin: a fixture that requires verdicts, and ``--alignver-report`` for a report of all of them.

pytest loads it where alignver is installed; ``-p no:alignver`` switches it off. A project that does not use it imports
nothing of NumPy or torch for it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from alignver.results import CheckResult

_WRITERS = (".html", ".json", ".xml")
_RECORDED = pytest.StashKey[list[dict[str, Any]]]()
_WORKER = "alignver_results"


class Recorder:
    """What the fixture ``alignver_check`` is: requires that results hold, and keeps them for the report."""

    def __init__(self, test: str, recorded: list[dict[str, Any]]) -> None:
        self._test, self._recorded = test, recorded

    def __call__(self, result: CheckResult, rigor: str = "NUMERICAL") -> CheckResult:
        """Return a result that HOLDS with at least this rigor; fail the test otherwise, with the report as message.

        Parameters
        ----------
        result : CheckResult
        rigor : Rigor or str
            ``"NUMERICAL"``, or ``"PROOF"`` for a certificate.
        """
        __tracebackhide__ = True
        from alignver.testing import require_rigor

        kept = dataclasses.replace(result, evidence=(f"in the test {self._test}", *result.evidence))
        self._recorded.append(kept.to_dict())
        return require_rigor(result, rigor)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--alignver-report``."""
    group = parser.getgroup("alignver", "alignver: verdicts about networks and matrices")
    group.addoption(
        "--alignver-report",
        metavar="FILE",
        help="write what tests give to the fixture alignver_check: FILE.html, FILE.json or FILE.xml (JUnit)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a report of an unknown kind before the tests run."""
    file = config.getoption("--alignver-report")
    if file is not None and not file.endswith(_WRITERS):
        raise pytest.UsageError(f"--alignver-report: got {file}; needs a name that ends in .html, .json or .xml")
    config.stash[_RECORDED] = []


@pytest.fixture
def alignver_check(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Require that a result HOLDS: ``alignver_check(av.check_rank(A), rigor="PROOF")``."""
    return Recorder(request.node.nodeid, request.config.stash[_RECORDED])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the results of a worker of pytest-xdist."""
    node.config.stash[_RECORDED] += getattr(node, "workeroutput", {}).get(_WORKER, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the results to the main process, in a worker of pytest-xdist; write the report otherwise."""
    recorded = session.config.stash[_RECORDED]
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER] = recorded
    elif (file := session.config.getoption("--alignver-report")) is not None:
        _write(Path(file), recorded)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was written."""
    file, recorded = config.getoption("--alignver-report"), config.stash[_RECORDED]
    if file is not None:
        counts = collections.Counter(document["verdict"] for document in recorded)
        listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no results"
        terminalreporter.write_line(f"alignver: {listed}, written to {file}")


def _write(file: Path, recorded: list[dict[str, Any]]) -> None:
    from alignver import atomic
    from alignver.report import html, junit
    from alignver.report.provenance import versions
    from alignver.results import CheckResult, Report

    results = tuple(CheckResult.from_dict(document) for document in recorded)
    report = Report(results, {"command": "pytest", "versions": versions()})
    if file.suffix == ".html":
        content = html.page(report).encode()
    else:
        content = junit.document(report) if file.suffix == ".xml" else report.to_json().encode()
    try:
        with atomic.writing(file) as stream:
            stream.write(content)
    except OSError as error:
        raise pytest.UsageError(f"--alignver-report: {file} cannot be written ({error.strerror})") from error
