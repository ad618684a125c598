"""``alignver reproduce``: every item is listed with its cost, results carry where they come from, figures are saved."""

from __future__ import annotations

import json

import pytest

from alignver.experiments import NAMES, image_runs


def test_list(here):
    run = here("reproduce", "--list")
    assert run.code == 0, run.err
    assert all(any(line.startswith(f"{name} ") for line in run.out.splitlines()) for name in NAMES)
    assert "one core" in run.out


def test_a_result_with_its_origin_and_figure(here, tmp_path):
    figure = tmp_path / "figure6.png"
    run = here("reproduce", "figure6", "--out", str(tmp_path / "runs"), "--figure", str(figure), "--json")
    assert run.code == 0, run.err
    provenance = run.document()["provenance"]
    assert provenance["command"] == "reproduce figure6"
    assert provenance["missing"] == []
    (part,) = provenance["parts"]
    assert part["part"] == "grid"
    assert part["machine"]["cores"] >= 1
    assert set(part["versions"]) == {"alignver", "torch"}
    assert figure.stat().st_size > 1000
    assert len(list((tmp_path / "runs").glob("figure6-*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure7"], "did you mean figure"),
        (["table10"], "tables7-15"),
        ([], "figure1a"),
        (["table3", "--dataset", "imagenet"], "semeion, mnist"),
        (["figure6", "--budget", "-1"], "--budget"),
        (["table2-gates", "--figure", "x.png"], "an item that has a figure"),
        (["figure1a", "--figure", "x.foo"], "--figure: got x.foo; needs a name that ends in .png, .svg, .pdf"),
        (
            ["figure1a", "--figure", "nowhere/x.png"],
            "in the folder nowhere, which does not exist",
        ),
        (["table2", "--dataset", "mnist", "--data-folder", "nowhere"], "--data-folder: got"),
    ],
)
def test_refusals(here, arguments, words):
    run = here("reproduce", *arguments)
    assert run.code == 2
    assert words in " ".join(run.err.split())


def test_the_command_says_what_was_asked_for(here, monkeypatch, tmp_path):
    tiny = image_runs.Effort(2, 1, 4, 64, paper=200)
    monkeypatch.setattr(image_runs, "_REDUCED", {"semeion": {True: tiny}})
    arguments = ["--reduced", "--seeds", "1", "--out", str(tmp_path)]
    document = here("reproduce", "table3", *arguments, "--json").document()
    assert document["provenance"]["command"] == "reproduce table3 --seeds 1 --reduced"
    assert document["provenance"]["work_seconds"] > 0
    assert "REDUCED (2 of 200 epochs; 4 of 64 channels; 64 training images" in document["results"][0]["statement"]
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())
    again = here("reproduce", "figure4", *arguments)
    assert "REDUCED" in again.out
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir()) == before  # the runs of table3
    assert len(json.dumps(document)) < 5000
