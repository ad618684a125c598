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
    assert document["results"][0]["verdict"] == "HOLDS"
    page = Path("r.html").read_text()
    assert "Model and data" in page
    assert "Safe exploration" in page
    assert len(ET.parse("r.xml").findall(".//testcase")) == 7


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


@pytest.mark.parametrize("option", [("--max-seconds", "0"), ("--max-memory", "0"), ("--gap", "-1")])
def test_limits_that_make_no_sense(here, option):
    run = here("check", "model", "one_net.py:build", *OPTIONS, *option)
    assert run.code == 2
    assert option[0] in run.err
    assert run.out == ""
