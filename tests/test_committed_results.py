"""The committed results are what their commands print: valid documents, and the cheapest of them made again."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from alignver.experiments.catalogue import NAMES, load
from alignver.experiments.conduct import conduct
from alignver.report import schema
from alignver.results import Report

RESULTS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_result_is_a_complete_report(path):
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema.load(), cls=jsonschema.Draft202012Validator)
    report = Report.from_json(path.read_text())
    command = document["provenance"]["command"].split()
    assert command[0] == "reproduce"
    assert command[1] in NAMES
    assert document["provenance"]["missing"] == []
    assert {result.name for result in report.results} == {command[1]}


def committed(name: str) -> Report:
    return Report.from_json(next(path for path in RESULTS if path.stem == name).read_text())


def test_figure_6_again():
    (before,), (now,) = committed("figure6").results, conduct(load("figure6")).results
    assert now.verdict is before.verdict
    assert now.measured["ours"] == pytest.approx(before.measured["ours"], rel=1e-12)
