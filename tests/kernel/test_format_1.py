"""Certificates that earlier versions wrote: each kind there was, kept as files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import alignver as av
from alignver import kernel
from alignver.results import Rigor, Verdict

KEPT = sorted((Path(__file__).parent / "format_1").iterdir())


def inputs(folder):
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def copy(tmp_path):
    def copied(folder):
        place = tmp_path / "c"
        place.mkdir()
        for name in ("certificate.json", "data.npz"):
            if (folder / name).exists():
                (place / name).write_bytes((folder / name).read_bytes())
        return place

    return copied


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_it_still_verifies(folder, copy):
    place = copy(folder)
    result = kernel.verify(place, inputs(folder))
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF), result.reason
    assert av.recheck(place, **inputs(folder)).verdict is Verdict.HOLDS
    certificate = kernel.load_certificate(place)
    assert certificate.version == 1
    again = dataclasses.replace(certificate, path=None).save(place.parent / "again")
    for file in place.iterdir():  # written as it was read, byte for byte
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_every_claim_and_method_is_kept():
    from alignver.kernel import exploration, matrices, optimality

    known = matrices.METHODS | exploration.METHODS | optimality.METHODS
    stored = {(c.claim, c.method) for c in map(kernel.load_certificate, KEPT)}
    # Nobody has ever written these: a rank by a residual's means, or the other way round.
    never = {("not-rank", "right inverse"), ("membership", "primes")}
    assert stored <= set(known)
    assert {method for _, method in known} - {"right inverse"} <= {method for _, method in stored}
    assert not never & stored


@pytest.mark.parametrize("folder", [f for f in KEPT if f.name in ("gram-ball", "residual-ball", "rank", "factored")])
def test_exponents_beyond_a_thousand_are_refused(folder):
    certificate = kernel.load_certificate(folder)
    for far in (1001, -1001, 2200, -2200, 2**62):
        scaling = np.full_like(certificate.data["scaling"], far)
        forged = kernel.seal(
            certificate.claim, certificate.method, certificate.inputs, {**certificate.data, "scaling": scaling},
            certificate.constants, version=1,
        )  # fmt: skip
        result = kernel.verify(forged, inputs(folder))
        assert (result.verdict, result.reason) == (Verdict.FAILS, "exponents beyond 1000")


def test_what_went_along_is_no_part_of_the_claim():
    """s_min in a rank certificate of format 1 was checked by nobody: it is not said. In format 2 it is checked."""
    A = np.diag([1.0, 0.25])
    for version, verdict in ((1, Verdict.HOLDS), (2, Verdict.FAILS)):
        data, constants = {"scaling": np.zeros(2, np.int64)}, {"rank": 2, "side": "rows", "shift": 0.0, "s_min": 0.5}
        result = kernel.verify(kernel.seal("rank", "gram", {"A": A}, data, constants, version=version), {"A": A})
        assert result.verdict is verdict
        assert ("s_min" in result.statement) == (version == 2)
