"""The committed results are what their commands print: valid documents, and the cheapest of them made again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from alignver.experiments.catalogue import NAMES, load
from alignver.experiments.conduct import conduct
from alignver.experiments.item import Setting
from alignver.report import schema
from alignver.results import Report, Verdict

RESULTS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_result_is_a_complete_report(path):
    text = path.read_text()
    document = json.loads(text)
    jsonschema.validate(document, schema.load(), cls=jsonschema.Draft202012Validator)
    report = Report.from_json(text)
    provenance = document["provenance"]
    command = provenance["command"].split()
    assert command[0] == "reproduce"
    assert command[1] in NAMES
    assert {result.name for result in report.results} == {command[1]}
    assert len(provenance["parts"]) > 0
    assert all({"processor", "cores", "threads"} <= set(part["machine"]) for part in provenance["parts"])
    assert len(text) < 300_000
    assert not re.search(r"/(work|tmp|home|root|mnt|Users)/", text)
    # What was not run leaves a claim open; nothing is judged on fewer runs than it says.
    open_ = any(result.verdict is Verdict.UNDECIDED for result in report.results)
    assert open_ or not provenance["missing"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_result_answers_the_claims_that_the_item_makes_today(path):
    provenance = json.loads(path.read_text())["provenance"]
    options = re.findall(r"--(\S+)(?: ([^-].*?))?(?= --|$)", provenance["command"])
    seeds = [int(value) for name, value in options if name == "seeds"]
    setting = Setting(
        seeds[0] if seeds else None,
        tuple(value for name, value in options if name == "dataset"),
        provenance["device"],
        reduced={"reduced": True, "full": False}.get(options[-1][0]) if options else None,
    )
    item = load(provenance["command"].split()[1])
    run = [part["part"] for part in provenance["parts"]]
    assert sorted([*run, *provenance["missing"]]) == sorted(part.key for part in item.parts(setting))
    claims = [result.statement for result in item.judge(setting, {})]
    made = [result.statement for result in Report.from_json(path.read_text()).results]
    assert [claim for claim in claims if claim not in made] == []


def committed(name: str) -> Report:
    return Report.from_json(next(path for path in RESULTS if path.stem == name).read_text())


def test_figure_6_again():
    (before,), (now,) = committed("figure6").results, conduct(load("figure6")).results
    assert now.verdict is before.verdict
    assert now.measured["ours"] == pytest.approx(before.measured["ours"], rel=1e-12)


@pytest.mark.slow
def test_table_2_of_semeion_again():
    before, now = committed("table2-gates").results, conduct(load("table2-gates")).results
    assert [(result.verdict, result.reason) for result in now] == [(result.verdict, result.reason) for result in before]
