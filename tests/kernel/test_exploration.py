"""Certificates about phi: accepted as they are, refused with one number changed, whoever seals them again."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.kernel.certificate import record
from alignver.kernel.failure import NotProved
from alignver.kernel.floats import gram_floor, inverse_floor
from alignver.proof import prove_rank
from alignver.results import Frozen, Verdict
from tests.features.features import features
from tests.reseal import resealed


@pytest.fixture
def Z():
    return features(60, 9)


def test_staircase_survives_a_round_trip(Z, tmp_path):
    result = check_safe_exploration(Z, width=8)
    result.certificate.save(tmp_path / "proof")
    again = recheck(tmp_path / "proof", Z=Z)
    assert again.verdict is Verdict.HOLDS
    assert "phi(q) has rank 60" in again.reason
    np.save(tmp_path / "Z.npy", Z)
    assert recheck(tmp_path / "proof", Z=np.load(tmp_path / "Z.npy", mmap_mode="r")).verdict is Verdict.HOLDS
    assert recheck(result.certificate, Z=Z + 1e-15).verdict is Verdict.FAILS
    assert recheck(result.certificate, Z=Z[:-1]).verdict is Verdict.FAILS
    assert recheck(dataclasses.replace(result.certificate, method="gram"), Z=Z).verdict is Verdict.FAILS


def test_forged_staircases_are_refused(Z):
    good = check_safe_exploration(Z, width=8).certificate
    data, constants = good.data, good.constants
    assert recheck(resealed(good), Z=Z).verdict is Verdict.HOLDS
    shifted = data["thresholds"].copy()
    shifted[3] = np.sort(Z @ data["direction"])[25]
    last = data["thresholds"].copy()
    last[-1] = np.median(Z @ data["direction"])
    forgeries = [
        resealed(good, {"floors": data["floors"] * 1.3}),
        resealed(good, {"floors": data["floors"][:-1]}),
        resealed(good, {"floors": -data["floors"]}),
        resealed(good, {"thresholds": shifted}),
        resealed(good, {"thresholds": last}),
        resealed(good, {"thresholds": data["thresholds"][::-1].copy()}),
        resealed(good, {"thresholds": data["thresholds"][2:].copy()}, width=6),
        resealed(good, {"direction": data["direction"] + 1e-3}),
        resealed(good, {"direction": np.ones(9)}),
        resealed(good, c=constants["c"] / 1024),
        resealed(good, c=constants["c"] * 1.5),
        resealed(good, c=2.0**1023),
        resealed(good, c=0.0),
        resealed(good, s_min=1.1 * constants["s_min"]),
        resealed(good, delta=1e-2),
        resealed(good, delta=-1.0),
        resealed(good, rank=59),
        resealed(good, width=9),
        resealed(good, width=True),
        resealed(good, add_constant=True),
        dataclasses.replace(good, seal="0" * 64),
    ]
    for forgery in forgeries:
        assert recheck(forgery, Z=Z).verdict is Verdict.FAILS
    for name in data:
        missing = dataclasses.replace(good, data=Frozen({key: data[key] for key in data if key != name}))
        assert recheck(dataclasses.replace(missing, seal=missing.expected_seal()), Z=Z).verdict is Verdict.FAILS


def test_a_staircase_for_dependent_rows_cannot_be_forged(Z):
    spoiled = Z.copy()
    spoiled[7] = spoiled[31]
    good = check_safe_exploration(Z, width=8).certificate
    forged = dataclasses.replace(good, inputs=Frozen({"Z": record(spoiled)}))
    forged = dataclasses.replace(forged, seal=forged.expected_seal())
    assert recheck(forged, Z=spoiled).verdict is Verdict.FAILS


def test_gates_certificate(Z, rng):
    q, w = rng.standard_normal((9, 14)), rng.standard_normal(14)
    for options in ({}, {"weights": w}, {"delta": 1e-10}):
        result = check_safe_exploration(Z, q=q, **options)
        assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS, options
        good = result.certificate
        assert recheck(resealed(good, {"gates": 0 * q}), Z=Z).verdict is Verdict.FAILS
        assert recheck(resealed(good, {"gates": q[:, :6].copy()}, width=6), Z=Z).verdict is Verdict.FAILS
        assert recheck(resealed(good, s_min=1.0), Z=Z).verdict is Verdict.FAILS
        assert recheck(resealed(good, delta=1.0), Z=Z).verdict is Verdict.FAILS


def test_refutations_are_checked(Z):
    about = {"Z": record(Z)}
    constants = {"rank": 60, "width": 8, "add_constant": False}
    none = np.zeros(0, dtype=np.int64)
    false = [
        seal("no-exploration", "count", about, {}, constants),
        seal("no-exploration", "equal rows", about, {"rows": np.array([1, 2])}, constants),
        seal("no-exploration", "equal rows", about, {"rows": np.array([1, 1])}, constants),
        seal("no-exploration", "equal rows", about, {"rows": np.array([-1, 99])}, constants),
        seal("no-exploration", "columns", about, {"zero": none, "copies": none.reshape(0, 2)}, constants),
        seal(
            "no-exploration", "columns", about, {"zero": np.array([1, 2, 3]), "copies": none.reshape(0, 2)}, constants
        ),
        seal("no-exploration", "columns", about, {"zero": none, "copies": np.array([[1, 2], [3, 2]])}, constants),
        seal("no-exploration", "guess", about, {}, constants),
    ]
    for certificate in false:
        assert recheck(certificate, Z=Z).verdict is Verdict.FAILS
    # Two columns that are said to repeat each other, both left out, would count one too many.
    double = Z.copy()
    double[:, 1] = double[:, 2]
    data = {"zero": none, "copies": np.array([[1, 2], [2, 1]])}
    both = seal("no-exploration", "columns", {"Z": record(double)}, data, {**constants, "width": 7})
    assert recheck(both, Z=double).verdict is Verdict.FAILS


def test_rank_of_z_is_checked(rng):
    pytest.importorskip("flint")
    base = rng.integers(-999, 999, (30, 3)) / 64
    Z = np.column_stack([base @ rng.integers(-3, 4, (3, 6)), np.ones(30)])
    good = check_safe_exploration(Z, width=7).certificate
    of_z = good.constants["of Z"]
    assert recheck(good, Z=Z).verdict is Verdict.HOLDS
    for forgery in (
        resealed(good, width=8),
        resealed(good, **{"of Z": {**of_z, "constants": {**of_z["constants"], "rank": 3}}}),
        resealed(good, **{"of Z": {**of_z, "method": "shape"}}),
        resealed(good, **{"of Z": None}),
        dataclasses.replace(good, data=Frozen({})),
    ):
        assert recheck(forgery, Z=Z).verdict is Verdict.FAILS
    assert "not the input" in recheck(good, Z=Z[:, 1:]).reason


def test_other_claims_are_passed_on():
    A = np.eye(3)
    assert recheck(prove_rank(A, 3).certificate, A=A).verdict is Verdict.HOLDS
    with pytest.raises(InvalidInput, match="inputs: got A; needs exactly Z"):
        recheck(check_safe_exploration(features(20, 5)).certificate, A=A)


@pytest.mark.parametrize("exponent", [0, -3, -6])
def test_floors_are_floors(exponent, rng):
    U, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    V, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    A = U @ np.diag(np.logspace(0, exponent, 12)) @ V[:12]
    exact, X = Fraction(10) ** exponent, np.linalg.pinv(A)
    # A Frobenius norm is up to sqrt(12) too large.
    assert exact / 5 < inverse_floor(A, X) < exact * Fraction(1 + 1e-8)
    assert exact**2 * Fraction(4, 5) <= gram_floor(A, exact**2 * Fraction(4, 5)) < exact**2 * Fraction(1 + 1e-8)
    with pytest.raises(NotProved):
        gram_floor(A, exact**2 * Fraction(6, 5))
    assert inverse_floor(np.ones((2, 3)), np.ones((3, 2))) == 0
