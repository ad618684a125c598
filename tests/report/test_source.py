"""A report is read from wherever it is kept, and what is none is refused with a reason."""

from __future__ import annotations

import json
import math
import os

import pytest

from alignver.errors import InvalidInput
from alignver.report.history import FORMAT, Record
from alignver.report.source import Source, number, read, recheck_command
from alignver.results import CheckResult, Report

ABOUT = {"subject": "COMPUTED_MATRIX", "code": "rank-at-tolerance"}
REPORT = Report((CheckResult("rank", "A has rank 3", "HOLDS", "NUMERICAL", "r", **ABOUT),), {"command": "check rank"})
LINES = [{"epoch": k, "phase": "exploration" if k < 3 else "exploitation", "loss": 1 / k} for k in range(1, 5)]


def written(place, lines, end="\n"):
    place.write_text("\n".join(json.dumps(line) for line in lines) + end)
    return place


def test_a_document_of_the_command_line(tmp_path):
    (tmp_path / "found.json").write_text(REPORT.to_json())
    source = read(tmp_path / "found.json")
    assert source.report == REPORT
    assert source.title == "alignver check rank"


def test_a_history_with_a_torn_last_line(tmp_path):
    place = written(tmp_path / "history.jsonl", LINES, '\n{"epoch": 5, "lo')
    source = read(place)
    assert [line["epoch"] for line in source.history] == [1, 2, 3, 4]
    assert source.tau == 2
    assert "line 5 was not written whole" in source.remarks[0]


def test_one_line_is_a_history_too(tmp_path):
    assert len(read(written(tmp_path / "history.jsonl", LINES[:1])).history) == 1


def test_a_run_folder_and_how_to_verify_it(tmp_path):
    run = tmp_path / "a run"
    run.mkdir()
    written(run / "history.jsonl", LINES)
    (run / "config.json").write_text(json.dumps({"settings": {"lr": 0.1}}))
    unfinished = read(run)
    assert unfinished.report is None
    assert unfinished.settings == {"lr": 0.1}
    assert any("not finished" in remark for remark in unfinished.remarks)
    assert unfinished.verify is None
    (run / "report.json").write_text(REPORT.to_json())
    (run / "certificate").mkdir()
    (run / "inputs.npz").write_bytes(b"")
    done = read(run)
    assert done.report == REPORT
    assert done.verify == f"alignver verify '{run}/certificate' --input '{run}/inputs.npz'"


def test_what_a_tracker_wrote(tmp_path):
    with_rules = {"press": {"verdict": "FAILS", "tolerance": 1e-13, "residual": (0.1, 0.2), "rank": 3, "near": ()}}
    first = {"alignver": "history", "format": FORMAT, "config": {"loss": "squared"}}
    records = [Record(step, 0, with_rules, "svd", 0.1, 1.0, 0.0).to_dict() for step in range(3)]
    source = read(written(tmp_path / "tracked.jsonl", [first, *records]))
    assert source.tracked is not None
    assert source.tracked.q() == {"press": (3, 3)}
    assert source.settings["loss"] == "squared"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"schema": 3}', "is not a report"),
        ("a.json", '{"schema": 2}', "a report with a missing entry"),
        (
            "a.json",
            '{"schema": 1, "results": [{"name": 1}], "provenance": {}}',
            "a report with a (damaged|missing) entry",
        ),
        ("a.json", '{"schema": 1, "results": 3, "provenance": {}}', "a report with a (damaged|missing) entry"),
        ("a.jsonl", '{"epoch": 1}\nnonsense\n{"epoch": 3}\n', "line 2"),
        ("a.jsonl", "[1]\n", "line 1"),
        ("a.jsonl", "\n\n", "without a line"),
        ("a.jsonl", '{"alignver": "history", "format": 99, "config": {}}\n', "format 99"),
        ("a.jsonl", '{"alignver": "history", "format": 1, "config": {}}\n', "without a check"),
        ("a.json", "[" * 100000, "is not JSON"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=words) as caught:
        read(tmp_path / name)
    assert caught.value.argument == "RUN"


def test_other_folders_are_refused_and_a_certificate_is_told_apart(tmp_path):
    with pytest.raises(InvalidInput, match=r"without report\.json and history.jsonl"):
        read(tmp_path)
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(InvalidInput, match="alignver verify"):
        read(tmp_path)
    with pytest.raises(InvalidInput, match="no such file"):
        read(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not text in UTF-8"):
        read(tmp_path / "binary")
    os.truncate(tmp_path / "binary", 1 << 40)
    with pytest.raises(InvalidInput, match="more than 268435456 bytes"):
        read(tmp_path / "binary")


def test_numbers_of_json():
    assert number({"float": "-inf"}) == -math.inf
    assert all(math.isnan(number(value)) for value in ({"float": "nan"}, {"float": 3}, "3", [], False, {}))


def test_a_report_alone_is_a_source():
    assert Source.of(Report(())).title == "alignver"
    assert Source.of(Report((), {"verify": "alignver verify c"})).verify == "alignver verify c"
    assert Source.of(REPORT).tau is None


@pytest.mark.parametrize(
    "command",
    [
        "alignver verify proof",
        "alignver verify 'a run/certificate' --input 'a run/inputs.npz'",
        "alignver verify '/tmp/é/proof' --input J=both.npz:J --input y=y.npy",
        "alignver verify proof --model net.py:build --data a.npz --loss squared --weights w --seed 1 --chunk-size 2",
    ],
)
def test_commands_that_alignver_writes_may_be_copied(command):
    assert recheck_command(command) == command


@pytest.mark.parametrize(
    "command",
    [
        "",
        "alignver verify",
        "alignver train --resume run",
        "sudo alignver verify proof",
        "alignver  verify proof",
        "alignver verify proof; reboot",
        "alignver verify proof && reboot",
        "alignver verify $(reboot)",
        "alignver verify '$(reboot)'",  # quoted, and one slip from not being so
        "alignver verify `reboot`",
        "alignver verify proof | sh",
        "alignver verify proof > ~/.bashrc",
        "alignver verify ~/proof",
        "alignver verify proof #",
        "alignver verify proof\nreboot",
        "alignver verify 'proof\nreboot'",
        "alignver verify 'proof\x1b[8m'",
        "alignver verify 'proof\u202e'",
        "alignver verify 'proof",
        "alignver verify --model=evil.py:build",
        "alignver verify '' --input A=A.npy",
        "alignver verify proof --html /etc/passwd",
        "alignver verify proof --input",
        "alignver verify proof --input --model",
        "alignver verify proof --input=A.npy",
        "alignver verify proof other",
        "aIignver verify proof",
    ],
)
def test_no_other_command_may_be_copied(command):
    assert recheck_command(command) is None


def test_a_json_object_is_not_a_history(tmp_path):
    (tmp_path / "settings.txt").write_text('{"learning_rate": 0.1}\n')
    with pytest.raises(InvalidInput, match="line 1 has no epoch"):
        read(tmp_path / "settings.txt")
