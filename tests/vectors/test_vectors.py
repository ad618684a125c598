"""The kernel answers every test vector as the vector says, and the vectors are those that the script makes."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import pytest

from alignver.errors import InvalidInput
from alignver.kernel import exploration, load_certificate, verify
from alignver.kernel.certificate import Tampered
from alignver.kernel.verify import _ON_MATRICES
from alignver.results import Verdict
from tests.vectors import make
from tests.vectors.case import read

VECTORS = {vector["name"]: vector for name in make.DOCUMENTS for vector in read(make.PLACE / f"{name}.json")}


def answered(vector, place):
    """Return the kernel's verdict and reason, and at which step it rejects."""
    for name, content in vector["files"].items():
        (place / name).write_bytes(content)
    try:
        certificate = load_certificate(place)
    except InvalidInput as error:
        # To verify says the same: another content than was sealed is no bad input.
        if isinstance(error, Tampered):
            assert verify(place, {}).verdict is Verdict.FAILS
        else:
            with pytest.raises(InvalidInput):
                verify(place, {})
        return "FAILS", str(error), "format"
    if certificate.method in ("balls", "exact"):
        pytest.importorskip("flint")
    inputs = {name: np.load(io.BytesIO(content)) for name, content in vector["inputs"].items()}
    try:
        result = verify(certificate, inputs)
    except InvalidInput as error:
        return "FAILS", str(error), "inputs"
    foreign = re.search("digests differ|dtype of X|is not the input", result.reason) and "rank" not in result.reason
    return str(result.verdict), result.reason, "inputs" if foreign else "later"


@pytest.mark.parametrize("name", VECTORS)
def test_the_kernel_answers_as_the_vector_says(name, tmp_path):
    vector = VECTORS[name]
    verdict, reason, step = answered(vector, tmp_path)
    assert verdict == vector["verdict"], reason
    assert (verdict == "HOLDS") == (vector["rejected"] is None)
    if vector["rejected"] in ("format", "inputs"):
        assert step == vector["rejected"], reason
        assert vector["statement"] is None
    if verdict == "HOLDS":
        assert vector["statement"] is True
    assert bool(vector["reason"]) == (verdict == "FAILS")


def test_the_vectors_are_what_the_script_makes(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow on some disks
    for name in make.DOCUMENTS:
        assert (make.PLACE / f"{name}.json").read_text() == make.document(name)
    assert sum((make.PLACE / f"{name}.json").stat().st_size for name in make.DOCUMENTS) < 1_000_000
    assert len(VECTORS) == sum(map(len, make.DOCUMENTS.values()))  # no name twice


def test_every_claim_and_method_has_a_vector_that_is_accepted_and_one_that_is_not():
    cases = [case for cases in make.DOCUMENTS.values() for case in cases]
    accepted = {(case.claim, case.method) for case in cases if case.rejected is None}
    assert accepted == set(_ON_MATRICES) | set(exploration.METHODS)
    for claim in {claim for claim, _ in accepted}:
        kinds = {case.rejected for case in cases if case.claim == claim}
        assert {"proof", "certificate"} <= kinds, claim
        false = [case for case in cases if case.claim == claim and case.statement is False]
        assert false or claim == "not-analytic", claim
