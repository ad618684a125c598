"""Proofs wired into the checks: what decides, what the numerical verdict says beside it, and the certificates."""

from __future__ import annotations

import numpy as np
import pytest

import alignver as av
from alignver.results import Report, Rigor, Verdict
from tests.matrices import integer_rank, with_singular_values

pytest.importorskip("flint")


@pytest.fixture
def full(rng):
    return with_singular_values(np.linspace(1, 4, 20), (20, 60), rng)


def proof(result):
    return result.rigor is Rigor.PROOF


def test_full_row_rank_is_proved_on_every_backend(backend, full, rng):
    y = rng.standard_normal(20)
    result = av.check_membership(backend(full), backend(y))
    assert result.verdict is Verdict.HOLDS
    assert proof(result)
    assert result.measured["proof"]["step"] == "gram"
    assert result.measured["numerical"]["verdict"] == "HOLDS"
    assert av.recheck(result.certificate, J=full, y=y).verdict is Verdict.HOLDS


def test_exact_members_and_refutations(rng):
    J = integer_rank(4, (12, 9), rng)
    inside = J @ rng.integers(-3, 4, 9)
    outside = inside + np.eye(12)[rng.integers(12)]
    outside[:] = inside + rng.integers(1, 5, 12)
    holds, fails = av.check_membership(J, inside), av.check_membership(J, outside)
    assert (holds.verdict, fails.verdict) == (Verdict.HOLDS, Verdict.FAILS)
    assert proof(holds)
    assert proof(fails)
    assert fails.witness is not None
    assert av.recheck(holds.certificate, J=J, y=inside).verdict is Verdict.HOLDS
    assert av.recheck(fails.certificate, J=J, y=outside).verdict is Verdict.HOLDS
    assert av.recheck(holds.certificate, J=J, y=outside).verdict is not Verdict.HOLDS


def test_certificate_travels_through_files(tmp_path, rng):
    J = integer_rank(4, (12, 9), rng)
    result = av.check_rank(J, rank=4)
    assert proof(result)
    result.certificate.save(tmp_path / "proof")
    assert av.recheck(av.load_certificate(tmp_path / "proof"), A=J).verdict is Verdict.HOLDS
    one_ulp = J.copy()
    one_ulp[0, 0] = np.nextafter(one_ulp[0, 0], np.inf)
    assert av.recheck(av.load_certificate(tmp_path / "proof"), A=one_ulp).verdict is not Verdict.HOLDS


def test_a_proof_about_floats_and_the_tolerance_may_differ(rng):
    """A product of factors in floating point: full rank to the last bit, rank 5 at any sensible tolerance."""
    J = rng.standard_normal((30, 5)) @ rng.standard_normal((5, 50))
    y = rng.standard_normal(30)
    result = av.check_membership(J, y)
    assert result.verdict is Verdict.HOLDS
    assert proof(result)
    assert result.measured["numerical"]["verdict"] == "FAILS"
    assert any("differ" in line for line in result.evidence)
    rounded = av.check_membership(J, y, computed_in="float64")
    assert rounded.verdict is Verdict.FAILS
    assert rounded.rigor is Rigor.NUMERICAL
    assert any("no proof" in line for line in rounded.evidence)


def test_rounded_entries_are_proved_throughout_the_tolerance(full, rng):
    result = av.check_membership(full, rng.standard_normal(20), computed_in="float32")
    assert result.verdict is Verdict.HOLDS
    assert proof(result)
    assert "every matrix within" in result.measured["proof"]["about"]


def test_ball(full, rng):
    y = rng.standard_normal(20)
    assert av.check_membership(full, y, ball=av.Ball(norm=0.5)).verdict is Verdict.HOLDS
    wide = av.check_membership(full, y, ball=av.Ball(norm=1.5))  # s_min = 1: the ball holds singular matrices
    assert wide.verdict is Verdict.UNDECIDED
    assert wide.rigor is Rigor.NUMERICAL  # nothing is a theorem here
    assert wide.measured["numerical"]["verdict"] == "HOLDS"
    tall = av.check_membership(full.T, rng.standard_normal(60), ball=av.Ball(norm=1e-6))
    assert tall.verdict is Verdict.FAILS
    assert proof(tall)


def test_ball_belongs_to_proofs(full):
    for options in ({"method": "svd"}, {"certify": False}, {"method": "exact"}):
        with pytest.raises(av.InvalidInput, match="ball"):
            av.check_membership(full, np.ones(20), ball=av.Ball(norm=0.1), **options)
        with pytest.raises(av.InvalidInput, match="ball"):
            av.check_rank(full, ball=av.Ball(norm=0.1), **options)


def test_exact_is_exact(rng):
    J = np.eye(6)
    J[5, 5] = 1e-300
    assert av.check_rank(J, method="exact").verdict is Verdict.HOLDS
    assert av.check_rank(J, certify=False).verdict is Verdict.FAILS
    member = av.check_membership(J, np.ones(6), method="exact")
    assert member.verdict is Verdict.HOLDS
    assert "numerical" not in member.measured


def test_structure_is_found_first(rng):
    J = rng.standard_normal((2000, 40))
    J[7] = J[1500]
    y = J @ rng.standard_normal(40)
    y[7] += 1.0
    result = av.check_membership(J, y)
    assert result.verdict is Verdict.FAILS
    assert result.measured["proof"]["step"] == "structure"
    assert av.recheck(result.certificate, J=J, y=y).verdict is Verdict.HOLDS


def test_named_numerical_methods_stay_numerical(full, rng):
    for method in ("svd", "qr", "lstsq"):
        assert av.check_membership(full, rng.standard_normal(20), method=method).rigor is Rigor.NUMERICAL
    for method in ("svd", "qr"):
        assert av.check_rank(full, method=method).rigor is Rigor.NUMERICAL


def test_proved_results_travel_as_json(full):
    report = Report((av.check_rank(full), av.check_membership(full, np.ones(20))))
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json()).results[0].certificate["claim"]


def test_without_flint_the_rest_still_works(monkeypatch, full, rng):
    """No exact arithmetic: floating-point proofs still decide, the others say what to install."""
    import sys

    monkeypatch.setitem(sys.modules, "flint", None)
    assert proof(av.check_rank(full))
    J = integer_rank(4, (12, 9), rng)
    result = av.check_rank(J, rank=4)
    assert result.rigor is Rigor.NUMERICAL
    assert any("alignver[proof]" in line for line in result.evidence)
    with pytest.raises(av.MissingDependency, match="alignver\\[proof\\]"):
        av.check_rank(J, rank=4, method="exact")
