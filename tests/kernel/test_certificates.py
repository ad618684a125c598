"""Certificates: round trips through files, and every mutation refused."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from alignver import arrays
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.kernel.certificate import describe, pack, record, seal, unpack
from alignver.proof import (
    Ball,
    Certificate,
    Decision,
    load_certificate,
    prove_membership,
    prove_rank,
)
from alignver.results import Summarised, Verdict

pytest.importorskip("flint")

Made = tuple[Decision, dict[str, np.ndarray]]


def examples() -> dict[str, Made]:
    rng = np.random.default_rng(0)
    wide, tall = rng.standard_normal((6, 9)), rng.standard_normal((9, 6))
    low = (rng.integers(-4, 5, (8, 3)) @ rng.integers(-4, 5, (3, 7))).astype(float)
    hilbert = 1.0 / (np.arange(8)[:, None] + np.arange(8) + 1.0)
    y6, y9, y8 = rng.standard_normal(6), rng.standard_normal(9), rng.standard_normal(8)
    twin = wide.copy()
    twin[4] = twin[1]
    radii = np.full(wide.shape, 1e-3)

    def member(J: np.ndarray, y: np.ndarray, **options: object) -> Made:
        return prove_membership(J, y, **options), {"J": J, "y": y}  # type: ignore[arg-type]

    def rank(A: np.ndarray, r: int, **options: object) -> Made:
        return prove_rank(A, r, **options), {"A": A}  # type: ignore[arg-type]

    return {
        "gram": member(wide, y6),
        "gram ball": member(wide, y6, ball=Ball(norm=1e-3)),
        "gram radii": member(wide, y6, ball=Ball(entrywise=radii)),
        "inverse": member(hilbert, y8),
        "inverse ball": member(hilbert, y8, ball=Ball(norm=1e-13)),
        "residual": member(tall, y9),
        "residual ball": member(tall, y9, ball=Ball(entrywise=1e-4)),
        "conflict": member(twin, y6),
        "solution": member(low, low @ np.arange(1.0, 8.0)),
        "null vector": member(low, y8),
        "minor": member(wide, y6, exact="force"),
        "zero target": member(wide, np.zeros(6), ball=Ball(norm=1.0)),
        "rank": rank(wide, 6),
        "rank of tall": rank(tall, 6),
        "rank ball": rank(tall, 6, ball=Ball(norm=1e-3)),
        "not rank": rank(wide, 5),
        "rank exact": rank(low, 3),
        "null space": rank(twin, 5),
        "null space, not rank": rank(twin, 6),
        "rank below": rank(low, 2),
        "shape": rank(wide, 7),
        "primes": rank(np.arange(12.0).reshape(4, 3) * 0.25, 2),
        "repeats": rank(twin.T.copy(), 5),
        "reduced": member(twin, np.array([1.0, 2.0, 3.0, 4.0, 2.0, 5.0])),
        "some columns": rank(rng.standard_normal((64, 200)), 64),
    }


MADE = examples()
each = pytest.mark.parametrize("name", list(MADE))


def certificate_of(name: str) -> tuple[Certificate, dict[str, np.ndarray]]:
    decision, inputs = MADE[name]
    assert decision.certificate is not None, decision
    return decision.certificate, inputs


def test_every_method_is_among_the_examples() -> None:
    methods = {certificate_of(name)[0].method for name in MADE}
    assert methods >= {
        "gram",
        "right inverse",
        "residual",
        "minor",
        "solution",
        "null vector",
        "null space",
        "shape",
    }
    assert methods >= {"primes", "reduced"}
    assert "columns" in certificate_of("some columns")[0].data
    assert certificate_of("inverse ball")[0].method == "right inverse"
    assert {certificate_of(name)[0].claim for name in MADE} == {
        "membership",
        "non-membership",
        "rank",
        "not-rank",
    }


@each
def test_round_trip_through_files(name: str, tmp_path: Path) -> None:
    certificate, inputs = certificate_of(name)
    path = certificate.save(tmp_path / "certificate")
    again = load_certificate(path)
    assert again.seal == certificate.seal
    assert again.header() == certificate.header()
    assert set(again.data) == set(certificate.data)
    for key, array in again.data.items():
        np.testing.assert_array_equal(array, certificate.data[key], strict=True)
    assert recheck(again, **inputs).verdict is Verdict.HOLDS
    assert recheck(str(path), **inputs).verdict is Verdict.HOLDS
    summary = again.summary()
    assert isinstance(again, Summarised)
    assert {"claim", "method", "bytes", "path"} <= set(summary)
    assert summary["path"] == str(path)


def test_digests_are_those_of_arrays() -> None:
    for array in (np.eye(3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4.0)[::2]):
        assert record(array)["sha256"] == arrays.digest(array)


@each
def test_inputs_changed_by_one_ulp_or_swapped_are_refused(name: str) -> None:
    certificate, inputs = certificate_of(name)
    for key, array in inputs.items():
        changed = array.copy()
        changed.flat[0] = np.nextafter(changed.flat[0], np.inf)
        assert recheck(certificate, **{**inputs, key: changed}).verdict is Verdict.FAILS
        if array.ndim == 2:
            assert recheck(certificate, **{**inputs, key: array[::-1].copy()}).verdict is Verdict.FAILS
            negative = array.copy()
            negative[array == 0] = -0.0  # equal, but not the same bytes
            if np.any(array == 0):
                assert recheck(certificate, **{**inputs, key: negative}).verdict is Verdict.FAILS
    with pytest.raises(InvalidInput):
        recheck(certificate)
    with pytest.raises(InvalidInput):
        recheck(certificate, **inputs, extra=np.eye(2))
    with pytest.raises(InvalidInput):
        recheck(certificate, **{key: np.full_like(array, np.nan) for key, array in inputs.items()})


def mutated_values(value: object) -> list[object]:
    """Values that differ from ``value``: near ones and wild ones."""
    near: list[object] = []
    if isinstance(value, float):
        near = [float(np.nextafter(value, np.inf)), -value - 1.0, float("inf"), float("nan")]
    elif isinstance(value, int):
        near = [value + 1, -value - 1, 10**30]
    elif isinstance(value, str):
        near = [value + "x", value[:-1]]
    wild = [None, [], {}, "nonsense", 7, {"float": "zzz"}, {"kind": "norm", "value": float("nan")}]
    return [other for other in [*near, *wild] if other != value]


@each
def test_every_field_changed_in_memory_is_refused(name: str) -> None:
    certificate, inputs = certificate_of(name)
    for field in ("claim", "method", "seal"):
        for value in mutated_values(getattr(certificate, field)):
            refused(dataclasses.replace(certificate, **{field: value}), inputs)  # type: ignore[arg-type]
    for field in ("constants", "inputs", "versions", "data"):
        mapping = dict(getattr(certificate, field))
        for value in (None, [], "x", {**mapping, "more": 1}):
            refused(dataclasses.replace(certificate, **{field: value}), inputs)
        for key in mapping:
            refused(
                dataclasses.replace(certificate, **{field: {k: v for k, v in mapping.items() if k != key}}),
                inputs,
            )
            if field != "data":
                for value in mutated_values(mapping[key]):
                    refused(dataclasses.replace(certificate, **{field: {**mapping, key: value}}), inputs)


def refused(certificate: Certificate, inputs: dict[str, np.ndarray]) -> None:
    with contextlib.suppress(InvalidInput):
        assert recheck(certificate, **inputs).verdict is Verdict.FAILS


def mutated_arrays(array: np.ndarray) -> list[np.ndarray]:
    changed = []
    for position in {0, array.size // 2, array.size - 1} if array.size else ():
        other = array.copy()
        if array.dtype == np.float64:
            other.flat[position] = np.nextafter(other.flat[position], np.inf)
        else:
            other.flat[position] ^= 1
        changed.append(other)
    return [
        *changed,
        array[..., :-1] if array.ndim else array,
        np.append(array.ravel(), array.ravel()[:1]),
        array.astype(np.float32),
    ]


@each
def test_every_array_changed_is_refused(name: str) -> None:
    certificate, inputs = certificate_of(name)
    for key, array in certificate.data.items():
        for other in mutated_arrays(array):
            if other.dtype == array.dtype and np.array_equal(other, array):
                continue
            refused(dataclasses.replace(certificate, data={**certificate.data, key: other}), inputs)


def forged(certificate: Certificate, **changes: object) -> Certificate:
    """A changed certificate with a new, correct seal: what an enemy who knows the format would write."""
    unsealed = dataclasses.replace(certificate, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(unsealed, seal=unsealed.expected_seal())


@each
def test_forged_claims_are_refused_on_their_merits(name: str) -> None:
    certificate, inputs = certificate_of(name)
    opposite = {
        "membership": "non-membership",
        "non-membership": "membership",
        "rank": "not-rank",
        "not-rank": "rank",
    }
    refused(forged(certificate, claim=opposite[certificate.claim]), inputs)
    if "rank" in certificate.constants and certificate.claim == "rank":
        for rank in (
            certificate.constants["rank"] - 1,
            certificate.constants["rank"] + 1,
            -1,
            True,
            "3",
            None,
        ):
            refused(forged(certificate, constants={**certificate.constants, "rank": rank}), inputs)
    for method in (
        "gram",
        "right inverse",
        "residual",
        "minor",
        "primes",
        "solution",
        "null vector",
        "null space",
        "shape",
    ):
        other = forged(certificate, method=method)
        try:
            result = recheck(other, **inputs)
        except InvalidInput:
            continue
        # Another method may prove the same true claim from the same data; it must not crash or prove a false one.
        assert result.verdict in (Verdict.HOLDS, Verdict.FAILS)


@each
def test_forged_data_never_crash_the_check(name: str) -> None:
    certificate, inputs = certificate_of(name)
    for key, array in certificate.data.items():
        hostile = [array[:0], array.reshape(-1)[:1], np.zeros_like(array), np.full_like(array, 200)]
        if array.dtype == np.int64:
            hostile += [np.full_like(array, 2**62), np.full_like(array, -(2**63)), -array - 1]
        if array.dtype == np.float64:
            with np.errstate(all="ignore"):
                hostile += [array * 1e300, -array, np.full_like(array, 5e-324)]
        for other in hostile:
            if not np.all(np.isfinite(other)):
                continue
            with contextlib.suppress(InvalidInput):
                recheck(forged(certificate, data={**certificate.data, key: other}), **inputs)
        rest = {k: v for k, v in certificate.data.items() if k != key}
        with contextlib.suppress(InvalidInput):
            recheck(forged(certificate, data=rest), **inputs)


def test_a_forged_ball_is_refused() -> None:
    certificate, inputs = certificate_of("gram ball")
    for value in (10.0, -1.0, "1", None, True):
        refused(
            forged(certificate, constants={**certificate.constants, "ball": {"kind": "norm", "value": value}}),
            inputs,
        )
    for name in ("inverse ball", "residual ball"):
        certificate, inputs = certificate_of(name)
        refused(
            forged(certificate, constants={**certificate.constants, "ball": {"kind": "norm", "value": 100.0}}),
            inputs,
        )
    for name in ("minor", "solution", "null vector", "rank exact", "null space"):
        certificate, inputs = certificate_of(name)
        ball = {"kind": "norm", "value": 1e-9}
        refused(forged(certificate, constants={**certificate.constants, "ball": ball}), inputs)


def test_wrong_solutions_and_null_vectors_are_refused() -> None:
    certificate, inputs = certificate_of("solution")
    count = certificate.data["beta_lengths"].size
    for position in range(count):
        beta = unpack(certificate.data, "beta", count)
        beta[position] += 1
        refused(forged(certificate, data={**certificate.data, **pack("beta", beta)}), inputs)
    for name in ("null vector", "conflict"):
        certificate, inputs = certificate_of(name)
        w = unpack(certificate.data, "w", certificate.data["w_lengths"].size)
        w[0] += 1
        refused(forged(certificate, data={**certificate.data, **pack("w", w)}), inputs)
        zero = [0] * len(w)
        refused(forged(certificate, data={**certificate.data, **pack("w", zero)}), inputs)
    certificate, inputs = certificate_of("null space")
    w = unpack(certificate.data, "w", certificate.data["w_lengths"].size)
    for position in range(len(w)):
        changed = list(w)
        changed[position] += 1
        refused(forged(certificate, data={**certificate.data, **pack("w", changed)}), inputs)


def test_sentences_of_claims():
    A = {"A": np.eye(2)}

    def said(claim, version=2, data=None, **constants):
        return describe(seal(claim, "any", A, data or {}, constants, version=version))

    assert said("rank", rank=2) == "rank(A) == 2"
    for unreadable in (2**63, -(2**63), True, 2.0, "2", None):
        assert said("rank", rank=unreadable) == "rank(A) == ?"
    assert said("rank", rank=2**63 - 1) == f"rank(A) == {2**63 - 1}"
    gap = 0.12345678
    assert "0.123457" in said("optimality", gap=gap)  # at most
    assert "0.123456" in said("suboptimality", gap=gap)  # at least
    assert "?" in said("optimality", gap=1)
    assert said("rank", rank=2, s_min=0.12349).endswith("rank(A) == 2; s_min >= 0.123")
    assert said("rank", rank=2, s_min=0.5, version=1) == "rank(A) == 2"
    assert said("non-membership", distance=0.12349).endswith(", at a distance of at least 0.123")
    assert "distance" not in said("non-membership", distance=0.5, version=1)
    for kind, word in (("norm", "spectral norm"), ("entrywise", "entrywise")):
        ball = {"kind": kind, "value": 0.12349}
        assert said("rank", rank=2, ball=ball) == f"rank(A) == 2, for every matrix within 0.123 ({word})"
        with_s_min = said("rank", rank=2, s_min=0.5, ball={**ball, "value": None})
        assert (
            with_s_min == f"rank(A) == 2, for every matrix within the given radii ({word}); s_min >= 0.5 at the centre"
        )
    assert "within ? (" in said("rank", rank=2, ball={"kind": "norm", "value": "1"})
    assert "(diag(w) x I)" in said("exploration-gates", data={"weights": np.ones(2)}, rank=2)
    assert "diag(w)" not in said("exploration-gates", rank=2)
    assert "diag(w)" not in said("exploration", data={"weights": np.ones(2)}, rank=2)
