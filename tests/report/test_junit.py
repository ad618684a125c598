"""JUnit XML as CI systems read it: counts that add up, what fails says why, nothing that is no XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from alignver.errors import printable
from alignver.report import junit
from alignver.results import CheckResult, Report

PROOF = {"certificate": {"claim": "c"}, "witness": {"rows": (1,)}}


def result(verdict: str, rigor: str = "NUMERICAL", **changes) -> CheckResult:
    fields = {"name": "rank", "statement": "A has rank 3", "reason": f"because {verdict}", "cost": {"seconds": 0.25}}
    fields |= {"subject": "COMPUTED_MATRIX", "code": "rank-at-tolerance"}
    return CheckResult(verdict=verdict, rigor=rigor, **{**fields, **(PROOF if rigor == "PROOF" else {}), **changes})


def parsed(report: Report) -> ET.Element:
    root = ET.fromstring(junit.document(report))
    obeys(root)
    return root


def obeys(root: ET.Element) -> None:
    """Check the rules that the schemas of Jenkins, GitLab and pytest share."""
    assert root.tag == "testsuites"
    assert [child.tag for child in root] == ["testsuite"]
    suite = root[0]
    tags = [child.tag for child in suite]
    assert tags == ["properties"] * ("properties" in tags) + ["testcase"] * tags.count("testcase")
    cases = suite.findall("testcase")
    for element in (root, suite):
        assert element.get("name")
        assert int(element.get("tests", "")) == len(cases)
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(count, "")) == sum(case.find(tag) is not None for case in cases)
        assert float(element.get("time", "")) == pytest.approx(sum(float(case.get("time", "")) for case in cases))
    for case in cases:
        assert case.get("name")
        assert case.get("classname")
        assert re.fullmatch(r"\d+\.\d{3}", case.get("time", ""))
        outcomes = [child for child in case if child.tag in ("failure", "error", "skipped")]
        assert len(outcomes) <= 1
        assert all(outcome.get("message") and outcome.get("type") for outcome in outcomes)
    for entry in suite.findall("properties/property"):
        assert entry.get("name")
        assert entry.get("value") is not None


@pytest.mark.parametrize("rigor", ["PROOF", "NUMERICAL", "STATISTICAL"])
@pytest.mark.parametrize(("verdict", "tag"), [("HOLDS", None), ("FAILS", "failure"), ("UNDECIDED", "error")])
def test_each_verdict_has_its_outcome(verdict, tag, rigor):
    (case,) = parsed(Report((result(verdict, rigor),))).iter("testcase")
    computed = [child for child in case if child.tag != "system-out"]
    assert [child.tag for child in computed] == ([] if tag is None else [tag])
    for child in computed:
        assert child.get("message") == f"because {verdict}"
        assert child.get("type") == f"{verdict} {rigor}"
    assert verdict in (case.findtext("system-out") or "")
    assert case.get("time") == "0.250"


def test_provenance_is_in_the_properties():
    provenance = {"command": "check rank", "seed": None, "inputs": {"A": {"shape": (2, 3)}}, "seconds": float("inf")}
    suite = parsed(Report((result("HOLDS"),), provenance))[0]
    assert suite.get("name") == "alignver check rank"
    values = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
    assert values["inputs.A.shape"] == "2 3"
    assert "seed" not in values


def test_a_built_in_problem_passes_when_it_fails_as_expected():
    problems = ({"name": "a", "expected": "FAILS"}, {"name": "b", "expected": "HOLDS"})
    first, second = parsed(Report((result("FAILS"), result("FAILS")), {"problems": problems})).iter("testcase")
    assert first.find("failure") is None
    failure = second.find("failure")
    assert failure is not None
    assert failure.get("message") == "expected HOLDS, found FAILS: because FAILS"


@pytest.mark.parametrize(
    "nasty", ["<a>&\"'", "]]>", "\x00\x1b[31m\x0b", "\ud800", "\ufffe\uffff", "\N{PILE OF POO}", "a\nb"]
)
def test_any_text_makes_well_formed_xml(nasty):
    report = Report(
        (result("FAILS", statement=f"s{nasty}", reason=f"r{nasty}", evidence=(nasty,)),),
        {"command": nasty, nasty: nasty},
    )
    (case,) = parsed(report).iter("testcase")
    assert case.get("name") == printable(f"s{nasty}")
    text = (case.findtext("system-out") or "") + "".join(case.itertext())
    assert text.replace("\n", " ").isprintable()
    assert not any(line.startswith("b") for line in text.splitlines())  # what follows the newline in "a\nb"
    obeys(ET.fromstring(junit.stopped(nasty or "x", "InvalidInput", nasty or "y")))


def test_only_a_command_of_alignver_is_a_property():
    for command, shown in (("alignver verify proof --input A=A.npy", True), ("alignver verify proof; reboot", False)):
        text = junit.document(Report((result("HOLDS"),), {"verify": command})).decode()
        assert (command in text) is shown
    assert "reboot" not in junit.document(Report((result("HOLDS"),), {"verify": {"a": "reboot"}})).decode()


def test_no_results_is_a_suite_without_cases():
    assert parsed(Report(())).get("tests") == "0"
