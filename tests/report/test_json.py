"""Every report that can be made is valid by the schema, and what is not a report is not."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys

import jsonschema
import pytest

from alignver.checks.exploration import check_safe_exploration
from alignver.report import provenance, source
from alignver.report.html import page
from alignver.results import Bound, CheckResult, Report, Rigor, Subject, Tolerance, Verdict
from tests.features.features import features


def valid(document) -> None:
    jsonschema.validate(document, source.load(), cls=jsonschema.Draft202012Validator)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(source.load())


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("rigor", list(Rigor))
def test_reports_are_valid(verdict, rigor):
    result = CheckResult(
        "rank",
        "A has rank 3",
        verdict,
        rigor,
        "a reason",
        ("more",),
        {"rank": 3, "turns_at": math.inf, "rules": ({"rule": "golub", "tolerance": math.nan, "rank": 3},)},
        (Bound("residual", math.inf, "<=", 0.1),),
        Tolerance("golub", 1e-12, "f", "s", 2.0**-52),
        {"rows": (1, 2)},
        {"claim": "c"},
        {"seconds": 0.1, "peak_bytes": 8},
        subject=Subject.COMPUTED_MATRIX,
        code="rank-at-tolerance",
        next_steps=("this",),
        plan={"engine": "dense", "reason": "it fits", "peak_bytes": 8, "flops": 1e9},
    )
    made = provenance.collect(seed=3, dtype="float64", seconds=0.2)
    report = Report((result,), made)
    text = report.to_json()
    valid(json.loads(text))
    assert Report.from_json(text).results[0].verdict is verdict


def test_the_rules_of_safe_exploration_are_in_the_form_of_all_rules():
    value = check_safe_exploration(features(60, 9), width=8)
    rows = (*value.measured["rules"][1:], {**value.measured["rules"][0], "rank": None})
    report = Report((dataclasses.replace(value, measured={**value.measured, "rules": rows}),))
    valid(json.loads(report.to_json()))
    assert Report.from_json(report.to_json()).results[0].measured["rules"][-1]["rank"] is None


def test_a_document_with_the_earlier_name_of_the_rules_still_loads():
    value = check_safe_exploration(features(60, 9), width=8)
    document = json.loads(Report((value,)).to_json())
    measured = document["results"][0]["measured"]
    measured["rank_rules"] = measured.pop("rules")
    valid(document)
    old = Report.from_json(json.dumps(document)).results[0]
    assert [row["rank"] for row in old.measured["rank_rules"]] == [60] * len(value.measured["rules"])
    page(Report((old,)))


def test_an_empty_provenance_is_valid():
    valid(Report(()).to_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"schema": 3},
        {"verdict": "MAYBE"},
        {"extra": 1},
        {"results": [{"name": "x"}]},
        {"provenance": {"inputs": {"J": {"sha256": "short"}}}},
    ],
)
def test_what_is_no_report_is_refused(change):
    with pytest.raises(jsonschema.ValidationError):
        valid({**Report(()).to_dict(), **change})


def test_a_proof_without_evidence_is_no_valid_document():
    about = {"subject": "COMPUTED_MATRIX", "code": "rank-at-tolerance"}
    result = CheckResult("rank", "s", "HOLDS", "PROOF", "r", certificate={"claim": "c"}, **about)  # type: ignore[arg-type]
    document = Report((result,)).to_dict()
    valid(document)
    document["results"][0]["certificate"] = None
    with pytest.raises(jsonschema.ValidationError):
        valid(document)


def test_provenance_says_what_and_not_where():
    import platform

    import numpy as np

    made = provenance.collect(inputs=provenance.inputs_of({"J": np.eye(2)}), seed=0)
    assert re.fullmatch("[0-9a-f]{64}", made["inputs"]["J"]["sha256"])
    assert made["inputs"]["J"]["shape"] == [2, 2]
    assert {"alignver", "python", "numpy"} <= set(made["versions"])
    node = platform.node()
    assert not node or node not in json.dumps(made)
    assert any(line.startswith("J 2 x 2 float64 sha256 ") for line in provenance.describe(made))


def test_tf32_is_known_only_where_torch_is_loaded(monkeypatch):
    torch = pytest.importorskip("torch")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        assert provenance.tf32() is None
    assert provenance.tf32() == {
        "matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": torch.backends.cudnn.allow_tf32,
    }
