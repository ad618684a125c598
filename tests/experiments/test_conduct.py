"""Experiments are run part by part, kept, taken up again, and judged; nothing is done twice."""

from __future__ import annotations

import dataclasses
import json

import pytest

from alignver import InvalidInput
from alignver.experiments import NAMES, load
from alignver.experiments.conduct import Answer, Claim, Item, Part, Setting, code_digest, conduct, slug, spread
from alignver.results import Verdict


class Squares:
    """An item that squares its seeds, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.item = Item("squares", "Squares", "Table 0", "nothing", self.parts, self.claims, datasets=("even", "odd"))

    def parts(self, setting):
        def run(name, seed):
            self.ran.append(f"{name} {seed}")
            return {"value": seed**2, "largest": float("inf")}

        return [
            Part(f"{name}, seed {seed}", {"name": name, "seed": seed}, lambda name=name, seed=seed: run(name, seed))
            for name in setting.select(("even", "odd"))
            for seed in range(setting.seeds or 2)
        ]

    def claims(self, setting):
        keys = [part.key for part in self.parts(setting)]
        return [Claim("all", "squares", 1, keys, lambda runs: Answer.of(True, "all there", len(runs)))]


def test_parts_are_kept_and_not_run_again(tmp_path):
    item = Squares()
    first = conduct(item.item, folder=tmp_path)
    assert first.results[0].verdict is Verdict.HOLDS
    assert first.missing == ()
    assert item.ran == ["even 0", "even 1", "odd 0", "odd 1"]
    assert first.measured["odd, seed 1"] == {"value": 1, "largest": float("inf")}
    again = conduct(item.item, folder=tmp_path)
    assert item.ran == ["even 0", "even 1", "odd 0", "odd 1"]
    assert again.measured == first.measured
    more = conduct(item.item, Setting(seeds=3, datasets=("odd",)), folder=tmp_path)
    assert item.ran[4:] == ["odd 2"]
    assert set(more.measured) == {"odd, seed 0", "odd, seed 1", "odd, seed 2"}


def test_a_budget_leaves_parts_for_the_next_run(tmp_path):
    item = Squares()
    outcome = conduct(item.item, folder=tmp_path, budget=1e-9)
    assert item.ran == ["even 0"]
    assert outcome.results[0].verdict is Verdict.UNDECIDED
    assert outcome.missing == ("even, seed 1", "odd, seed 0", "odd, seed 1")
    assert conduct(item.item, folder=tmp_path, budget=0).missing == outcome.missing  # what is there, judged
    assert item.ran == ["even 0"]
    assert conduct(item.item, folder=tmp_path).missing == ()


def test_what_another_process_made_meanwhile_is_taken_up(tmp_path):
    other, item = Squares(), Squares()

    def parts(setting):
        first, *rest = item.parts(setting)
        run = first.run

        def both():
            conduct(other.item, folder=tmp_path)  # as if it ran beside us
            return run()

        return [dataclasses.replace(first, run=both), *rest]

    outcome = conduct(dataclasses.replace(item.item, parts=parts), folder=tmp_path)
    assert outcome.missing == ()
    assert item.ran == ["even 0"]
    assert other.ran == ["even 0", "even 1", "odd 0", "odd 1"]


def test_items_of_one_family_share_their_parts(tmp_path):
    parts = {name: load(name).parts(Setting(seeds=1)) for name in ("figure1a", "table1a")}
    assert [p.recipe for p in parts["figure1a"]] == [p.recipe for p in parts["table1a"]]
    assert {p.family for p in parts["figure1a"]} == {"fully-connected"}


def test_a_damaged_part_is_refused_not_believed(tmp_path):
    item = Squares()
    conduct(item.item, folder=tmp_path)
    victim = sorted(tmp_path.glob("squares-*.json"))[0]
    victim.write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read"):
        conduct(item.item, folder=tmp_path)
    victim.write_text(json.dumps({"data": 1}))
    with pytest.raises(InvalidInput, match="no part of a run"):
        conduct(item.item, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": True}, "seeds"),
        ({"datasets": ("prime",)}, "even, odd"),
        ({"reading": "3-normal"}, "squares has only one"),
    ],
)
def test_bad_settings(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        conduct(Squares().item, Setting(**arguments))


def test_bad_budget_and_folder(tmp_path):
    with pytest.raises(InvalidInput, match="budget"):
        conduct(Squares().item, budget=-1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        conduct(Squares().item, folder=tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
def test_every_item_says_what_it_is_and_judges_nothing_it_has_not_measured(name):
    item = load(name)
    assert item.name == name
    assert all((item.title, item.source, item.cost))
    keys = [part.key for part in item.parts(Setting())]
    assert len(set(keys)) == len(keys) > 0
    results = item.judge(Setting(), {})
    assert {(result.verdict, result.reason.removeprefix("reduced: ")) for result in results} == {
        (Verdict.UNDECIDED, "not run")
    }


def test_every_claim_has_an_id_of_its_own_that_a_code_can_hold():
    ids = []
    for name in NAMES:
        item = load(name)
        device = "cuda" if "ResNet-18" in item.title and not name.startswith("table2") else "cpu"
        setting = Setting(device=device, datasets=item.datasets)
        ids += [result.code for result in item.judge(setting, {})]
    assert len(set(ids)) == len(ids) > 80
    assert all(code == slug(code) for code in ids)


def test_unknown_item():
    with pytest.raises(InvalidInput, match="did you mean figure1a"):
        load("figure1")


def test_spread_is_the_papers_form():
    assert spread([0.25]) == "0.25"
    assert spread([0.0, 1.0]) == "0.50 (0.71)"


@pytest.mark.parametrize("name", NAMES)
def test_an_item_uses_the_device_or_refuses_it(name):
    item, setting = load(name), Setting(device="cuda")
    if "ResNet-18" in item.title and not name.startswith("table2"):
        assert {part.recipe["device"] for part in item.parts(setting)} == {"cuda"}
    else:
        with pytest.raises(InvalidInput, match="device"):
            item.parts(setting)


def test_the_digest_of_code_is_the_same_in_all_versions_of_python(tmp_path):
    """Pinned: Python 3.11 to 3.13 give it. Comments and docstrings do not count, and a changed constant does."""
    file = tmp_path / "module.py"
    file.write_text('"""A."""\n\n\ndef f(x):\n    return x\n' + "y = f'{1!r:>{2}}' f'{3}'  # b\n")
    assert code_digest(file) == "d768c8fedf00275d"
    file.write_text(file.read_text().replace("A.", "B.").replace("# b", ""))
    assert code_digest(file) == "d768c8fedf00275d"
    file.write_text(file.read_text().replace("3", "4"))
    assert code_digest(file) != "d768c8fedf00275d"
