"""``alignver check``: expectations beside findings, on stand-ins for the built-in problems."""

from __future__ import annotations

import sys
import types

import pytest

from alignver.experiments.builtin import Problem
from alignver.results import CheckResult, Rigor, Subject, Verdict


def problem(name: str, expected: Verdict, verdict: Verdict) -> Problem:
    def run(seed: int, device: str, dtype: str) -> CheckResult:
        about = {"subject": Subject.COMPUTED_MATRIX, "code": "rank-at-tolerance"}
        statement = f"Statement of {name} (Definition 2)"
        return CheckResult(name, statement, verdict, Rigor.NUMERICAL, f"seed {seed}, {device}, {dtype}", **about)

    return Problem(name, f"what {name} is", expected, expected, f"words on {name}", run)


@pytest.fixture
def problems(monkeypatch):
    def install(*entries: Problem) -> None:
        module = types.ModuleType("alignver.experiments.builtin")
        module.problems = lambda: list(entries)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "alignver.experiments.builtin", module)

    return install


def test_agreement_is_0_whatever_the_verdicts(here, problems):
    problems(problem("one", Verdict.HOLDS, Verdict.HOLDS), problem("two", Verdict.FAILS, Verdict.FAILS))
    run = here("check", "--seed", "7", "--dtype", "float32")
    assert (run.code, run.err) == (0, "")
    for words in (
        "what one is",
        "words on two",
        "expected FAILS, as found",
        "2 of 2 built-in problems as expected",
        "seed 7, cpu, float32",
    ):
        assert words in run.out


def test_disagreement_is_1_and_said(here, problems):
    problems(problem("one", Verdict.HOLDS, Verdict.HOLDS), problem("two", Verdict.HOLDS, Verdict.UNDECIDED))
    run = here("check")
    assert run.code == 1
    assert "expected HOLDS, but found UNDECIDED: words on two" in run.out
    assert "1 of 2" in run.out
    quiet = here("check", "-q")
    assert quiet.code == 1
    assert len(quiet.out.splitlines()) == 2
    assert "two: expected HOLDS, found UNDECIDED" in quiet.err


def test_json_says_what_was_expected(here, problems):
    problems(problem("one", Verdict.HOLDS, Verdict.HOLDS), problem("two", Verdict.FAILS, Verdict.FAILS))
    run = here("check", "--json")
    document = run.document()
    assert run.code == 0
    assert document["verdict"] == "FAILS"
    assert [entry["agrees"] for entry in document["provenance"]["problems"]] == [True, True]
    assert [entry["expected"] for entry in document["provenance"]["problems"]] == ["HOLDS", "FAILS"]
