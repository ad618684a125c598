"""``alignver check model``: one report, the exit code of alignment, and a certificate that is checked again."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
NET = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Softplus(), torch.nn.Linear(16, 1)).double()

def narrow():
    return torch.nn.Linear(2, 1).double()

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out, self.drop = torch.nn.Embedding(9, 12), torch.nn.Linear(12, 2), torch.nn.Dropout()

    def forward(self, input_ids, attention_mask):
        seen = attention_mask[..., None]
        z = self.drop((self.table(input_ids) * seen).sum(1) / seen.sum(1))
        return {"hidden": z, "logits": self.out(torch.tanh(z))}

def words():
    return Words()
"""
OPTIONS = ("--data", "data.npz", "--loss", "squared")


@pytest.fixture(autouse=True)
def project(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "one_net", raising=False)
    (tmp_path / "one_net.py").write_text(NET)
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", X=random.standard_normal((6, 2)), Y=random.standard_normal((6, 1)))


def test_one_report_in_every_form(here):
    run = here("check", "model", "one_net.py:build", *OPTIONS, "--json", "--html", "r.html", "--junit", "r.xml")
    document = run.document()
    assert run.code == 0  # of alignment, though the loss is not optimal
    assert [result["name"] for result in document["results"]][:2] == ["model", "data"]
    assert document["verdict"] == document["results"][0]["verdict"] == "HOLDS"
    assert "FAILS" in {result["verdict"] for result in document["results"]}
    page = Path("r.html").read_text()
    assert "HOLDS" in page[page.index("</h1>") : page.index("7 results:")]  # the headline
    assert "the verdict is that of the first" in page
    assert "Model and data" in page
    assert "Safe exploration" in page
    cases = {case.get("classname"): case for case in ET.parse("r.xml").findall(".//testcase")}
    assert len(cases) == 7
    assert not [case for case in cases.values() if case.find("failure") is not None or case.find("error") is not None]
    assert cases["alignver.optimality"].find("skipped").get("message").startswith("FAILS, secondary to alignment: ")


def test_a_suite_fails_with_the_command(here):
    assert here("check", "model", "one_net.py:narrow", *OPTIONS, "--junit", "r.xml").code == 1
    failed = [case for case in ET.parse("r.xml").findall(".//testcase") if case.find("failure") is not None]
    assert {case.get("classname") for case in failed} == {"alignver.model", "alignver.alignment"}


def test_a_terminal_shows_the_overview_and_with_v_everything(here):
    short = here("check", "model", "one_net.py:build", *OPTIONS).out
    assert "the model can represent these targets" in short
    assert "svd, qr, lstsq agree" not in short
    assert "tolerance by the rule golub" in here("check", "model", "one_net.py:build", *OPTIONS, "-v").out


def test_the_exit_code_and_the_certificate_are_those_of_alignment(here):
    assert here("check", "model", "one_net.py:narrow", *OPTIONS).code == 1
    saved = here("check", "model", "one_net.py:build", *OPTIONS, "--certificate", "proof")
    assert "alignver verify proof --model one_net.py:build" in saved.out
    assert here("verify", "proof", "--model", "one_net.py:build", *OPTIONS).code == 0


WORDS = ("--data", "words.npz", "--loss", "cross_entropy", "--select", "logits", "--eval")


@pytest.fixture
def words():
    random = np.random.default_rng(0)
    mask = (np.arange(5) < np.array([[5], [3], [4], [2]])).astype(np.int64)
    np.savez("words.npz", input_ids=random.integers(0, 9, (4, 5)), attention_mask=mask, labels=np.array([0, 1, 1, 0]))


def test_several_inputs_and_outputs(here, words):
    run = here("check", "model", "one_net.py:words", *WORDS, "--json")
    assert run.code == 0
    assert "the inputs are input_ids, attention_mask" in run.err
    result = run.document()["results"][0]
    assert (result["verdict"], result["subject"]) == ("HOLDS", "NETWORK")
    saved = here("check", "alignment", "one_net.py:words", *WORDS, "--certificate", "proof")
    assert saved.code == 0
    command = next(line for line in saved.out.split("alignver verify ") if "--select logits" in line)
    assert "--eval" in command
    assert here("verify", "proof", "--model", "one_net.py:words", *WORDS).code == 0
    assert here("check", "structure", "one_net.py:words", *WORDS[:2], *WORDS[4:]).code == 0


def test_an_output_that_is_not_there(here, words):
    run = here("check", "model", "one_net.py:words", *WORDS[:5], "scores", "--eval")
    assert run.code == 2
    assert "--select" in run.err
    assert "'hidden', 'logits'" in run.err
    without = here("check", "alignment", "one_net.py:words", *WORDS[:4], "--eval")
    assert without.code == 2
    assert "--select logits" in without.err


@pytest.mark.parametrize(
    "command",
    [("membership", "A.npy", "y.npy"), ("rank", "A.npy"), ("exploration", "A.npy"), ("data", "data.npz"),
     ("structure", "one_net.py:build", "--data", "data.npz"),
     ("alignment", "one_net.py:build", *OPTIONS), ("model", "one_net.py:build", *OPTIONS)],
)  # fmt: skip
def test_every_check_has_limits(here, command):
    A = np.random.default_rng(0).standard_normal((30, 40))
    np.save("A.npy", A), np.save("y.npy", A[:, 0])
    assert here("check", *command, "--max-seconds", "1e-9 min", "--max-memory", "2 GiB").code == 3
    refused = here("check", *command, "--max-memory", "0")
    assert refused.code == 2
    assert "--max-memory" in refused.err


@pytest.mark.parametrize(
    "option",
    [
        ("--max-seconds", "0"),
        ("--max-seconds", "nan"),
        ("--max-seconds", "10 weeks"),
        ("--max-memory", "0"),
        ("--max-memory", "2XB"),
        ("--max-memory", "-1GB"),
        ("--gap", "-1"),
    ],
)
def test_limits_that_make_no_sense(here, option):
    run = here("check", "model", "one_net.py:build", *OPTIONS, *option)
    assert run.code == 2
    assert option[0] in run.err
    assert run.out == ""
