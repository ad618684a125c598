"""Proofs through layer factors: what they say, and their certificates, changed and forged in every part."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest

from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.proof import Certificate, load_certificate
from alignver.proof.factored_gram import Layer, row_rank_by_factors
from alignver.results import Verdict
from tests.kernel.test_certificates import forged, mutated_arrays, mutated_values, refused

from .layers import claim

RADIUS = 1e-6


def layers(seed: int = 0) -> list[Layer]:
    """Ten rows: a layer on vectors, one of three positions with few columns, one with rows of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-3, 3, (2, 5, 1, 1))
    return [
        Layer("vectors", rng.standard_normal((5, 1, 4)), rng.standard_normal((2, 5, 1, 3))),
        Layer("positions", rng.standard_normal((5, 3, 2)), rng.standard_normal((2, 5, 3, 2)) * sizes),
        Layer("wide", rng.standard_normal((5, 2, 300)), rng.standard_normal((2, 5, 2, 2))),
    ]


def made(stored: bool) -> tuple[Certificate, dict[str, np.ndarray]]:
    proof, certificate, inputs = claim(layers(), RADIUS, stored=stored)
    assert proof.proved, proof.reason
    assert certificate is not None
    return certificate, inputs


each = pytest.mark.parametrize("stored", [True, False], ids=["stored", "digests"])


@each
def test_a_certificate_goes_through_files(stored, tmp_path):
    certificate, inputs = made(stored)
    again = load_certificate(certificate.save(tmp_path / "certificate"))
    assert again.header() == certificate.header()
    for one in (certificate, again, str(tmp_path / "certificate")):
        result = recheck(one, **inputs)
        assert result.verdict is Verdict.HOLDS, result.reason
    assert ("in the certificate" in result.reason) == stored
    assert "layer factors as computed, for every matrix within 9.99e-07" in result.statement


@each
def test_inputs_changed_in_the_last_bit_are_refused(stored):
    certificate, inputs = made(stored)
    assert set(inputs) == ({"y"} if stored else {"y", "A0", "A1", "A2", "B0", "B1", "B2"})
    for key, array in inputs.items():
        changed = array.copy()
        changed.flat[0] = np.nextafter(changed.flat[0], np.inf)
        assert recheck(certificate, **{**inputs, key: changed}).verdict is Verdict.FAILS
        with pytest.raises(InvalidInput):
            recheck(certificate, **{k: v for k, v in inputs.items() if k != key})
        with pytest.raises(InvalidInput):
            recheck(certificate, **{**inputs, key: np.full_like(array, np.nan)})


@each
def test_every_field_and_array_changed_in_memory_is_refused(stored):
    certificate, inputs = made(stored)
    for field in ("claim", "method", "seal"):
        for value in mutated_values(getattr(certificate, field)):
            refused(dataclasses.replace(certificate, **{field: value}), inputs)
    for field in ("constants", "inputs", "versions"):
        mapping = dict(getattr(certificate, field))
        for key in mapping:
            rest = {k: v for k, v in mapping.items() if k != key}
            refused(dataclasses.replace(certificate, **{field: rest}), inputs)
            for value in mutated_values(mapping[key]):
                refused(dataclasses.replace(certificate, **{field: {**mapping, key: value}}), inputs)
    for key, array in certificate.data.items():
        rest = {k: v for k, v in certificate.data.items() if k != key}
        refused(dataclasses.replace(certificate, data=rest), inputs)
        for other in mutated_arrays(array):
            if other.dtype != array.dtype or not np.array_equal(other, array):
                refused(dataclasses.replace(certificate, data={**certificate.data, key: other}), inputs)


def constants_of(certificate: Certificate, **changes: object) -> Certificate:
    return forged(certificate, constants={**certificate.constants, **changes})


@each
def test_forged_numbers_are_refused_on_their_merits(stored):
    certificate, inputs = made(stored)
    s_min = certificate.constants["s_min"]
    for value in (4.0 * s_min, 1e9, -1.0, "1", None, True, 7):
        refused(constants_of(certificate, ball={"kind": "norm", "value": value}), inputs)
    for kind in ("entrywise", None, 3):
        refused(constants_of(certificate, ball={"kind": kind, "value": RADIUS}), inputs)
    for value in (4.0 * s_min, 1e9, -1.0, "much", None):
        refused(constants_of(certificate, s_min=value), inputs)
    for samples, outputs in ((2, 5), (10, 1), (1, 10), (0, 10), (-5, -2), (5.0, 2.0), (True, 10), ("5", 2), (5, 20)):
        refused(constants_of(certificate, samples=samples, outputs=outputs), inputs)
    listed = [dict(layer) for layer in certificate.constants["layers"]]
    for positions in (0, 2, 6, -1, True, "1", None, 10**9):
        changed = [{**listed[0], "positions": positions}, *listed[1:]]
        refused(constants_of(certificate, layers=tuple(changed)), inputs)
    for many in ((), (*listed, {"name": "more", "positions": 1}), None, 3, ("x",), tuple(listed[:1])):
        refused(constants_of(certificate, layers=many), inputs)
    # What is weaker than what was proved is true as well.
    for weaker in (
        {"ball": {"kind": "norm", "value": 0.5 * RADIUS}},
        {"s_min": 0.5 * s_min},
    ):
        assert recheck(constants_of(certificate, **weaker), **inputs).verdict is Verdict.HOLDS


@each
def test_forged_claims_methods_and_scalings_are_refused(stored):
    certificate, inputs = made(stored)
    for name in ("membership", "non-membership", "rank", "exploration", "optimality", "nonsense"):
        refused(forged(certificate, claim=name), inputs)
    for name in ("gram", "right inverse", "solution", "shape", "nonsense"):
        refused(forged(certificate, method=name), inputs)
    scaling = certificate.data["scaling"]
    for other in (
        scaling + 1001, scaling - 1001, scaling[:-1], scaling.astype(float), np.full_like(scaling, 2**62),
        np.full_like(scaling, -(2**63)), scaling[:, None],
    ):  # fmt: skip
        refused(forged(certificate, data={**certificate.data, "scaling": other}), inputs)


def test_forged_factors_are_refused_or_prove_what_they_are():
    certificate, inputs = made(True)
    for key, array in certificate.data.items():
        if key == "scaling":
            continue
        for other in (array[:-1], array[:, :0], array.astype(np.float32), array[0], np.zeros_like(array) * np.nan):
            with contextlib.suppress(InvalidInput):
                assert recheck(forged(certificate, data={**certificate.data, key: other}), **inputs).verdict is (
                    Verdict.FAILS
                )
        with np.errstate(all="ignore"):
            for other in (array * 1e300, array * 1e150, np.full_like(array, 5e-324)):
                if np.all(np.isfinite(other)):
                    recheck(forged(certificate, data={**certificate.data, key: other}), **inputs)
    # Rows that are equal in every layer: no seal makes them independent.
    twins = {k: v.copy() for k, v in certificate.data.items()}
    for k, T in enumerate((1, 3, 2)):
        A, B = twins[f"A{k}"].reshape(5, T, -1), twins[f"B{k}"].reshape(2, 5, T, -1)
        A[4], B[:, 4] = A[0], B[:, 0]
    for shift in (certificate.constants["shift"], 0.0, 1e-300):
        for value in (0.0, RADIUS):
            constants = {
                **certificate.constants,
                "shift": shift,
                "s_min": 0.0,
                "ball": {"kind": "norm", "value": value},
            }
            refused(forged(certificate, data=twins, constants=constants), inputs)


def test_a_digest_is_asked_for_every_factor_that_is_given():
    """Factors beside those in the certificate: the ones whose digests it has count."""
    certificate, inputs = made(True)
    with pytest.raises(InvalidInput):
        recheck(certificate, **inputs, A0=certificate.data["A0"])
    stored, _ = made(False)
    refused(forged(stored, inputs={"y": stored.inputs["y"]}), {"y": inputs["y"]})
    other = {**stored.inputs, "A0": stored.inputs["B0"]}
    _, given = made(False)
    refused(forged(stored, inputs=other), given)


def test_why_there_is_no_proof():
    def reason(computed: list[Layer], radius: float = 0.0) -> str:
        proof = row_rank_by_factors(computed, lambda size: radius)
        assert not proof.proved
        return proof.reason

    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((5, 1, 4)), rng.standard_normal((2, 5, 1, 3))
    few = Layer("few", A[:, :, :1], B)
    assert reason([few]) == "10 rows in 3 columns are dependent"
    assert "not safely definite" in reason([Layer("equal rows", np.ones((5, 1, 4)), np.ones((2, 5, 1, 3)))])
    assert "exceeds the proved" in reason([Layer("well", A, B)], 1e6)
    zero = B.copy()
    zero[0, 2] = 0.0
    assert "a row is zero" in reason([Layer("zero row", A, zero)])
    assert "too large" in reason([Layer("far", A * 1e200, B)])
    assert "too large" in reason([Layer("not finite", A * np.nan, B)])
    assert "too large" in reason([Layer("infinite", A, B * np.inf)])


@pytest.mark.parametrize("exponent", [-140, -70, 70, 140])
def test_a_power_of_two_before_all_of_it_changes_nothing_but_the_bound(exponent):
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((5, 1, 4)), rng.standard_normal((2, 5, 1, 3))
    one = row_rank_by_factors([Layer("w", A, B)], lambda size: 0.0)
    other = row_rank_by_factors([Layer("w", A, np.ldexp(B, exponent))], lambda size: 0.0)
    assert one.proved
    assert other.proved
    assert other.s_min == pytest.approx(one.s_min * 2.0**exponent, rel=0.3)
    proof, certificate, inputs = claim([Layer("w", A, np.ldexp(B, exponent))], 0.5 * other.s_min)
    assert proof.proved
    assert recheck(certificate, **inputs).verdict is Verdict.HOLDS


def test_in_another_rounding_mode_there_is_no_proof(monkeypatch):
    monkeypatch.setattr(
        "alignver.proof.factored_gram.arithmetic_fault", lambda: "this thread does not round to nearest"
    )
    assert "round" in row_rank_by_factors(layers(), lambda size: 0.0).reason
