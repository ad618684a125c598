"""The committed results are what their commands print: valid documents, and the cheapest of them made again."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from pathlib import Path

import jsonschema
import pytest

from alignver.checks.data import check_data
from alignver.data import semeion
from alignver.data.image_sets import cifar10, cifar100
from alignver.experiments import NAMES, load
from alignver.experiments.conduct import Setting, conduct
from alignver.report import source
from alignver.results import Report, Verdict, plain

RESULTS = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_result_is_a_complete_report(path):
    text = path.read_text()
    document = json.loads(text)
    jsonschema.validate(document, source.load(document["schema"]), cls=jsonschema.Draft202012Validator)
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
        reading=dict(options).get("reading"),
    )
    item = load(provenance["command"].split()[1])
    run = [part["part"] for part in provenance["parts"]]
    assert sorted([*run, *provenance["missing"]]) == sorted(part.key for part in item.parts(setting))
    made = Report.from_json(path.read_text()).results
    today = item.judge(setting, {})
    assert [result.code for result in made] == [result.code for result in today]
    # The sentences may be reworded; the paper's numbers may not change.
    assert [result.measured["paper"] for result in made] == [plain(result.measured["paper"]) for result in today]


def test_results_of_earlier_code_are_marked(tmp_path, capsys):
    tables = importlib.util.spec_from_file_location("tables", RESULTS[0].parents[1] / "reproduction_tables.py")
    module = importlib.util.module_from_spec(tables)
    tables.loader.exec_module(module)
    module.TABLES = tmp_path / "page.md"
    module.write()
    page = module.TABLES.read_text()
    provenances = [json.loads(path.read_text())["provenance"] for path in RESULTS]
    old = [provenance["command"] for provenance in provenances if module.stale(provenance)]
    assert page.count(module.STALE) == len(old)
    with capsys.disabled():
        print("\nmade by earlier code:", ", ".join(old) or "none")


def committed(name: str) -> Report:
    return Report.from_json(next(path for path in RESULTS if path.stem == name).read_text())


DATA_SETS = Path(__file__).parents[1] / "docs" / "results" / "data" / "data_sets.json"


def test_what_is_committed_of_the_data_sets_agrees_with_itself_and_with_the_page():
    text = DATA_SETS.read_text()
    document = json.loads(text)
    assert {"processor", "cores", "memory_gib"} <= set(document["machine"])
    assert {"alignver", "python", "numpy"} <= set(document["versions"])
    assert not re.search(r"/(work|tmp|home|root|mnt|Users)/", text)
    rows = {row["name"]: row for row in document["sets"]}
    assert list(rows) == ["MNIST", "KMNIST", "Semeion", "CIFAR-10", "CIFAR-100"]
    for row in rows.values():
        assert row["rechecked"] == "HOLDS"
        assert row["samples"] - row["distinct"] == row["equal"]["count"] == len(row["equal"]["pairs"])
        assert (row["verdict"] == "FAILS") == (row["conflicts"]["count"] > 0)
        assert all(one != other for _, _, one, other in row["conflicts"]["pairs"])
        # Every group is a pair.
        count = row["conflicts"]["count"]
        floor = 2 * count * math.log(2) / row["samples"]
        assert row["errors_lower"] == count
        assert floor * (1 - 1e-8) <= row["loss_lower"] <= floor
    hundred = rows["CIFAR-100"]
    assert (hundred["distinct"], hundred["equal"]["count"], hundred["errors_lower"]) == (49986, 14, 9)
    assert (hundred["test"]["seen"], hundred["test"]["seen_with_another_label"]) == (10, 6)
    assert hundred["test"]["conflicts"]["count"] == hundred["test"]["equal"]["count"] == 2
    page = " ".join((DATA_SETS.parents[2] / "data.md").read_text().split())
    assert "makes at least 9 training errors of 50000" in page
    assert "at most 49986 rows" in page
    assert hundred["loss_lower"] > 2.49532e-4


def test_the_pages_agree_with_the_results():
    page = " ".join((DATA_SETS.parents[2] / "findings.md").read_text().split())
    moons, sine, contrast = committed("figure1a-network").results
    for result in (moons, sine):
        assert result.measured["ours"]["y is"] == "in it at 24, outside at 0 of 24 steps (proved)"
    assert sine.measured["ours"]["by press in float32"] == "FAILS at 24 of 24 steps"
    assert contrast.measured["ours"]["decades at step 0"] == 19
    assert "at least 19 decades before training" in page
    assert sine.measured["ours"]["kappa"].startswith("6.8e+05 to")
    assert "down to $7 \\cdot 10^5$" in page
    moons, sine, contrast = committed("figure1a-network-4-default").results
    for result in (moons, sine):
        assert result.measured["ours"]["y is"] == "in it at 24, outside at 0 of 24 steps (proved)"
    assert sine.measured["ours"]["kappa"] == "5.3e+12 to 2.1e+59"
    assert "between $5 \\cdot 10^{12}$ and $3 \\cdot 10^{59}$, at least 10 decades above" in page
    assert contrast.measured["ours"]["decades at all steps"] == 10
    rows = {result.code.split("-")[2]: result.measured["ours"] for result in committed("table2-network").results}
    assert all(rows[name]["re-check"] == "HOLDS" for name in ("mnist", "kmnist", "semeion", "cifar10"))
    assert all(row["subject"] == "NETWORK" and row["rigor"] == "PROOF" for row in rows.values() if "re-check" in row)
    assert (rows["cifar100"]["verdict"], rows["cifar100"]["rigor"]) == ("FAILS", "PROOF")
    assert "For MNIST, KMNIST, Semeion and CIFAR-10 the rows of Table 2 [hold](reproduction.md), with a proof" in page
    (row,) = (result.measured["ours"] for result in committed("table2-distinct").results)
    assert (row["n"], row["m_H"], row["limit"], row["subject"], row["rigor"]) == (49986, 98, 98, "NETWORK", "PROOF")
    assert row["re-check"] == "HOLDS"
    errors, loss = committed("table3-full").results, committed("figure4-full").results[0]
    assert [result.verdict for result in errors] == [Verdict.HOLDS] * 2
    assert "rank n of the trained gates proved for every output in 5 of 5 runs" in errors[0].evidence
    assert errors[0].measured["ours"] == {"standard": "1.38 (0.44)", "wrapper": "1.59 (0.19)"}
    assert loss.verdict is Verdict.FAILS
    assert loss.reason == "loss 0.0013 (0.00065) (standard) and 0.0026 (0.00055) (wrapper)"
    answers = {result.code.removeprefix("kappa-"): result for result in committed("kappa").results}
    ratios = [answers[f"{name}-kappa"].reason.split(";")[0] for name in ("semeion", "mnist", "random")]
    assert ratios == [f"shuffled over true: {span}" for span in ("1.22 to 2.02", "1.32 to 1.65", "0.95 to 1.02")]
    assert "by a factor of 1.2 to 2.0, in all 30 runs" in page
    steps = [answers[f"{name}-steps"].reason for name in ("semeion", "mnist")]
    assert steps == ["so in 15 of 15 runs", "so in 12 of 15 runs"]
    assert "27 of the 30 runs" in page


def test_the_tables_of_the_data_sets_round_to_the_safe_side():
    tables = importlib.util.spec_from_file_location("data_tables", DATA_SETS.parents[2] / "data_tables.py")
    module = importlib.util.module_from_spec(tables)
    tables.loader.exec_module(module)
    text = module.tables(json.loads(DATA_SETS.read_text()))
    assert "| CIFAR-100 | 50000 | 49986 | 14 | 9 | 0.000249532 | 9 |" in text
    assert "| CIFAR-100 | 10000 | 9998 | 2 | 2 | 10 | 6 |" in text
    assert text.count("| Semeion |") == 1  # it has no test set


def test_the_data_of_semeion_again():
    (before,) = (row for row in json.loads(DATA_SETS.read_text())["sets"] if row["name"] == "Semeion")
    digits = semeion()
    now = check_data(digits.x, digits.y, loss="cross_entropy")
    assert (digits.sha256, str(now.verdict), now.reason) == (before["sha256"], before["verdict"], before["reason"])


@pytest.mark.slow
@pytest.mark.skipif("ALIGNVER_DATA" not in os.environ, reason="ALIGNVER_DATA names no folder")
@pytest.mark.parametrize(("name", "load"), [("CIFAR-10", cifar10), ("CIFAR-100", cifar100)])
def test_the_data_of_cifar_again(name, load):
    (before,) = (row for row in json.loads(DATA_SETS.read_text())["sets"] if row["name"] == name)
    train, test = load(os.environ["ALIGNVER_DATA"]), load(os.environ["ALIGNVER_DATA"], train=False)
    now = check_data(train.x, train.y, loss="cross_entropy", X_test=test.x, Y_test=test.y)
    assert (train.sha256, now.reason, list(now.evidence)) == (before["sha256"], before["reason"], before["evidence"])


def test_figure_6_again():
    (before,), (now,) = committed("figure6").results, conduct(load("figure6")).results
    assert now.verdict is before.verdict
    assert now.measured["ours"] == pytest.approx(before.measured["ours"], rel=1e-12)


@pytest.mark.slow
def test_table_2_of_semeion_again():
    before, now = committed("table2-gates").results, conduct(load("table2-gates")).results
    assert [(result.verdict, result.reason) for result in now] == [(result.verdict, result.reason) for result in before]
