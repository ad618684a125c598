"""``alignver verify``: certificates that hold, inputs that are others, files that were changed."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.proof import prove_membership


@pytest.fixture
def proof(tmp_path, files):
    """Save a certificate that y.npy is in the column space of J.npy."""
    decision = prove_membership(np.load(files / "J.npy"), np.load(files / "y.npy"))
    assert decision.certificate is not None
    return decision.certificate.save(tmp_path / "proof")


def test_a_certificate_holds(alignver, proof):
    run = alignver("verify", str(proof), "--input", "J=J.npy", "--input", "y=y.npy")
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[0].split()[-4:] == ["HOLDS", "proof", "(computed", "matrix)"]


def test_a_limit(here, proof):
    run = here("verify", str(proof), "--input", "J=J.npy", "--input", "y=y.npy", "--max-seconds", "1e-9")
    assert run.code == 3
    assert "stopped after" in run.out


def test_json(here, proof):
    document = here("verify", str(proof), "--input", "J=both.npz:J", "--input", "y=both.npz:y", "--json").document()
    assert document["verdict"] == "HOLDS"
    assert document["results"][0]["rigor"] == "PROOF"


def test_another_input_fails(here, proof, tmp_path, files):
    np.save(tmp_path / "other.npy", 2 * np.load(files / "y.npy"))
    run = here("verify", str(proof), "--input", "J=J.npy", "--input", f"y={tmp_path / 'other.npy'}")
    assert run.code == 1
    assert "digests differ" in run.out


def test_a_changed_certificate_fails(here, proof):
    path = proof / "certificate.json"
    path.write_text(path.read_text().replace('"python": "3', '"python": "4'))
    run = here("verify", str(proof), "--input", "J=J.npy", "--input", "y=y.npy")
    assert run.code == 1
    assert "seal" in run.out


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], ["--input", "J, y"]),
        (["--input", "J=J.npy"], ["--input", "J, y"]),
        (["--input", "J=gone.npy", "--input", "y=y.npy"], ["J (gone.npy)", "no such file"]),
        (["--input", "J=y.npy", "--input", "y=y.npy"], ["J (y.npy)", "1 dimension"]),
    ],
)
def test_inputs_are_needed(here, proof, inputs, words):
    run = here("verify", str(proof), *inputs)
    assert (run.code, run.out) == (2, "")
    for word in words:
        assert word in run.err


def command_in(report: str) -> list[str]:
    (line,) = [line for line in report.splitlines() if "re-check with: alignver " in line]
    return line.partition("re-check with: alignver ")[2].split()


def test_the_command_that_a_report_shows_works(here, tmp_path):
    target = tmp_path / "proof"
    command = command_in(here("check", "membership", "J.npy", "y.npy", "--certificate", str(target)).out)
    again = here(*command)
    assert (again.code, again.err) == (0, "")
    document = here("check", "membership", "J.npy", "y.npy", "--certificate", str(target), "--json").document()
    assert document["results"][0]["certificate"]["path"] == str(target)  # the first one was replaced


@pytest.mark.parametrize("content", ["notes.txt", "certificate.json/"])
def test_other_peoples_files_are_never_replaced(here, tmp_path, content):
    target = tmp_path / "mine"
    (target / content).parent.mkdir(parents=True, exist_ok=True)
    (target / "notes.txt").write_text("mine")
    run = here("check", "rank", "J.npy", "--certificate", str(target))
    assert (run.code, run.out) == (2, "")
    assert "--certificate" in run.err
    assert (target / "notes.txt").read_text() == "mine"


def test_no_proof_no_certificate(here, tmp_path):
    target = tmp_path / "none"
    run = here("check", "rank", "J.npy", "--no-certify", "--certificate", str(target), "--json")
    assert run.document()["verdict"] == "HOLDS"
    assert "no certificate was saved" in run.err
    assert not target.exists()
