"""check_safe_exploration: proofs, refutations with witnesses, what it says, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from alignver.checks import exploration_report
from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.features.products import dense_phi
from alignver.features.staircase import gates_of
from alignver.results import CheckResult, Rigor, Verdict
from tests.bad_input import BAD_MATRICES
from tests.features.features import features


def holds(result):
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF), result.reason
    assert CheckResult.from_dict(result.to_dict()).reason == result.reason
    return result


def fails(result, Z):
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF), result.reason
    assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS
    return result


def test_every_backend_gets_the_same_answer(backend):
    Z = features(60, 9)
    result = holds(check_safe_exploration(backend(Z), width=8))
    assert result.measured["s_min_lower"] == holds(check_safe_exploration(Z, width=8)).measured["s_min_lower"]
    assert recheck(result.certificate, Z=backend(Z)).verdict is Verdict.HOLDS


def test_report():
    result = holds(check_safe_exploration(features(60, 9), width=8))
    lines = str(result).splitlines()
    assert lines[0].startswith("Safe exploration (Assumption 4)")
    assert "60 samples, 9 features, width 8 (smallest possible: 7; the paper's: 14)" in lines[1]
    assert "staircase witness: 8 blocks of " in lines[2]
    assert "press needs" in lines[3]
    assert "both rules agree" in lines[3]
    stated = float(lines[3].split(">= ")[1].split()[0])
    assert 0.9 * result.measured["s_min_lower"] < stated <= result.measured["s_min_lower"]


def test_smallest_width():
    assert holds(check_safe_exploration(features(60, 9))).measured["width"] == 7
    assert "the smallest possible width" in check_safe_exploration(features(60, 9)).reason


def test_width_that_the_features_force():
    """Rank 5 of Z (9 columns): more units than the count asks for."""
    Z = features(40, 5)
    Z = np.column_stack([Z[:, :-1], Z[:, :2], np.zeros((40, 2)), Z[:, -1:]])
    result = fails(check_safe_exploration(Z, width=7), Z)
    assert result.witness["kind"] == "columns"
    assert holds(check_safe_exploration(Z, width=8)).measured["width"] == 8
    assert holds(check_safe_exploration(Z)).measured["width"] >= 8


def test_rank_of_z_by_exact_arithmetic():
    """Whatever asks: a staircase, given gates, a Z whose constant is added; the certificate is about Z as given."""
    pytest.importorskip("flint")
    rng = np.random.default_rng(0)
    base = rng.integers(-999, 999, (30, 3)) / 64
    Z = np.column_stack([base @ rng.integers(-3, 4, (3, 6)), np.ones(30)])
    q = rng.standard_normal((7, 7))
    for options in ({"width": 7}, {"q": q}, {"q": q, "method": "gram"}, {"q": q, "method": "dense"}):
        result = fails(check_safe_exploration(Z, **options), Z)
        assert result.witness == {"kind": "rank of Z", "rank": 4, "width": 7}
    bare = fails(check_safe_exploration(Z[:, :-1], width=7, add_constant=True), Z[:, :-1])
    assert bare.witness["rank"] == 4
    assert recheck(bare.certificate, Z=Z[:, 1:]).verdict is Verdict.FAILS
    assert check_safe_exploration(Z, width=7, delta=1e-9).verdict is Verdict.UNDECIDED
    assert holds(check_safe_exploration(Z, width=8)).measured["width"] == 8


def test_too_few_columns():
    Z = features(60, 9)
    result = fails(check_safe_exploration(Z, width=6), Z)
    assert result.witness == {"kind": "count", "width": 6, "features": 9, "samples": 60}
    fails(check_safe_exploration(Z, q=np.zeros((9, 6))), Z)


def test_equal_rows():
    Z = features(60, 9)
    Z[[41, 55]] = Z[3]
    Z[12, 2], Z[13] = -0.0, Z[12]
    Z[13, 2] = 0.0
    for options in ({"width": 30}, {}, {"q": np.random.default_rng(0).standard_normal((9, 20))}):
        result = fails(check_safe_exploration(Z, **options), Z)
        assert result.witness == {"kind": "equal rows", "rows": (3, 41), "pairs": 3}
        assert "for every theta" in str(result)
    assert check_safe_exploration(Z, width=30, delta=1e-3).verdict is Verdict.UNDECIDED


def test_given_gates():
    Z, rng = features(60, 9), np.random.default_rng(0)
    q = rng.standard_normal((9, 14))
    exact = np.linalg.svd(dense_phi(Z, q), compute_uv=False)[-1]
    proved = holds(check_safe_exploration(Z, q=q))
    assert proved.measured["method"] == "gram"
    assert 0.0 < proved.measured["s_min_lower"] <= exact
    numerical = check_safe_exploration(Z, q=q, method="dense", rule="press")
    assert (numerical.verdict, numerical.rigor) == (Verdict.HOLDS, Rigor.NUMERICAL)
    # Equal gates: rank 9. The Gram matrix cannot say so, the singular values do.
    equal = check_safe_exploration(Z, q=np.repeat(q[:, :1], 14, axis=1))
    assert (equal.verdict, equal.rigor) == (Verdict.FAILS, Rigor.NUMERICAL)
    assert "nothing was proved about these gates" in str(equal)
    assert check_safe_exploration(Z, q=np.repeat(q[:, :1], 14, axis=1), method="gram").verdict is Verdict.UNDECIDED


def test_sampled_gates():
    Z = features(60, 9)
    result = holds(check_safe_exploration(Z, method="gram"))
    assert result.measured["width"] == 14
    assert check_safe_exploration(Z, method="dense", width=10, seed=3).verdict is Verdict.HOLDS


def test_output_weights():
    Z, w = features(60, 9), np.array([2.0, -0.5, 0.0, 1.0, 4.0, 0.0, 1.0, -3.0, 1.0, 0.25])
    result = holds(check_safe_exploration(Z, width=10, weights=w))
    assert result.measured["width"] == 8
    assert "2 units with output weight zero do not count" in str(result)
    used = w[w != 0]
    phi = dense_phi(Z, gates_of(result.certificate), used)
    values = np.linalg.svd(phi, compute_uv=False)
    assert result.measured["s_min_lower"] <= values[-1]
    assert values[0] <= result.measured["norm_upper"]


def test_ball_and_rigor():
    Z = features(60, 9)
    assert "rows differ by at most 9.99e-07" in str(holds(check_safe_exploration(Z, width=8, delta=1e-6)))
    estimate = check_safe_exploration(Z, width=8, delta=1e-6, delta_is_estimate=True)
    assert (estimate.verdict, estimate.rigor) == (Verdict.HOLDS, Rigor.NUMERICAL)
    assert check_safe_exploration(Z, width=8, certify=False).rigor is Rigor.NUMERICAL
    assert check_safe_exploration(Z, width=8, delta=100.0).verdict is Verdict.UNDECIDED


def test_constant_column():
    Z = features(60, 9)
    with pytest.raises(InvalidInput, match="last column, row 0"):
        check_safe_exploration(Z[:, :-1])
    result = holds(check_safe_exploration(Z[:, :-1], add_constant=True, width=8))
    assert "the constant column was added, as requested" in result.evidence
    assert recheck(result.certificate, Z=Z[:, :-1]).verdict is Verdict.HOLDS
    assert recheck(result.certificate, Z=Z).verdict is Verdict.FAILS


def test_generator_and_mapped_file(tmp_path):
    Z = features(60, 9).astype(np.float32)
    np.save(tmp_path / "Z.npy", Z)
    for source in ((Z[k : k + 8] for k in range(0, 60, 8)), np.load(tmp_path / "Z.npy", mmap_mode="r")):
        result = holds(check_safe_exploration(source, width=9))
        assert result.measured["dtype"] == "float32"
        assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS


def test_tiles_in_a_folder(tmp_path):
    Z = features(60, 9)
    first = holds(check_safe_exploration(Z, method="gram", folder=tmp_path))
    assert (tmp_path / "tiles.json").exists()
    again = check_safe_exploration(Z, method="gram", folder=tmp_path)  # anyone may have written the tiles meanwhile
    assert (again.verdict, again.rigor, again.bounds) == (Verdict.HOLDS, Rigor.NUMERICAL, first.bounds)
    assert again.next_steps == ("for a proof: av.recheck(result.certificate, Z=Z), which uses no tiles",)
    assert recheck(again.certificate, Z=Z).rigor is Rigor.PROOF


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_bad_features(name):
    value, words = BAD_MATRICES[name]()
    with pytest.raises(InvalidInput, match=words):
        check_safe_exploration(value, add_constant=True)


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_bad_gates(name):
    value, words = BAD_MATRICES[name]()
    if value is not None:
        with pytest.raises(InvalidInput, match=words):
            check_safe_exploration(features(20, 5), q=value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width: got width=0; needs an integer from 1"),
        ({"width": -3}, "width: got width=-3"),
        ({"width": 2.5}, "width: got width=2.5"),
        ({"width": True}, "width: got width=True"),
        ({"width": 10**9}, "width: got width=1000000000; needs an integer from 1 to 10000000"),
        ({"tries": 0}, "tries"),
        ({"seed": -1}, "seed: got seed=-1; needs an integer from 0"),
        ({"seed": 1.5}, "seed: got seed=1.5"),
        ({"method": "svd"}, "method: got method='svd'"),
        ({"rule": "none"}, "rule"),
        ({"delta": -1.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"q": np.ones((5, 3)), "width": 4}, r"q: got shape \(5, 3\)"),
        ({"q": np.ones((4, 3))}, r"q: got shape \(4, 3\)"),
        ({"q": np.ones((5, 3)), "method": "staircase"}, "the staircase constructs its own"),
        ({"weights": np.ones(3)}, "weights without a width"),
        ({"weights": np.ones(3), "width": 4}, "3 weights; needs 4"),
        ({"weights": np.zeros(4), "width": 4}, "only zeros"),
        ({"method": "dense", "delta": 0.1}, "delta"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InvalidInput, match=words):
        check_safe_exploration(features(20, 5), **options)


def test_products_with_given_gates_that_overflow(monkeypatch):
    Z, q = features(20, 5), np.full((5, 9), 1.7e308)
    assert check_safe_exploration(Z, q=q).verdict is Verdict.FAILS  # every gate is 1: rank 5
    # Infinities of both signs in one sum; whether a BLAS meets them depends on its order.
    monkeypatch.setattr(exploration_report, "dense_phi", lambda *_: np.full((20, 45), np.nan))
    with pytest.raises(InvalidInput, match=r"q: got entries up to 1.7e\+308; needs gates whose products"):
        check_safe_exploration(Z, q=q)


def test_gates_that_overflow_are_no_proof():
    """Projections that differ by 1e-290 need a c that floats do not have; nothing is proved, nothing raised."""
    rng = np.random.default_rng(0)
    Z = np.column_stack([rng.standard_normal((6, 2)) * 1e-300, np.ones(6)])
    result = check_safe_exploration(Z, width=4)
    assert result.verdict is Verdict.UNDECIDED
    assert result.certificate is None


def test_extreme_rows_prove_nothing_wrong():
    with pytest.raises(InvalidInput, match="entries below 1e150"):
        check_safe_exploration(np.array([[1e200, 1.0], [1.0, 1.0]]))
    Z = np.column_stack([np.array([1e100, -1e100, 2e100, 1.0]), np.ones(4)])
    result = check_safe_exploration(Z, width=3)
    assert result.verdict is Verdict.HOLDS  # as it is: gates that select each row exist


@pytest.mark.skipif(not exploration_report.peak_bytes(), reason="no VmHWM here")
def test_peak_memory_is_that_of_the_check():
    before = exploration_report.peak_bytes()["peak_bytes"]
    held = np.ones(30_000_000)
    during = exploration_report.peak_bytes()["peak_bytes"]
    assert during >= before
    assert during >= held.nbytes
    del held
    exploration_report.forget_peak()
    assert check_safe_exploration(features(60, 9)).cost["peak_bytes"] <= during
