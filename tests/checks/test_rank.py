"""check_rank: exactly known ranks, rules side by side, and UNDECIDED where the count moves."""

from __future__ import annotations

import numpy as np
import pytest

import alignver as av
from alignver.results import Verdict
from tests.bad_input import BAD_MATRICES
from tests.matrices import integer_rank, kahan, with_singular_values


def check(A, **options):
    return av.check_rank(A, certify=False, **options)


@pytest.mark.parametrize("method", ["auto", "svd", "qr"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)], ids=str)
@pytest.mark.parametrize("rank", [1, 17, 30])
def test_known_ranks(backend, rng, method, shape, rank):
    A = backend(integer_rank(rank, shape, rng))
    assert check(A, rank=rank, method=method).verdict is Verdict.HOLDS
    for wrong in {rank - 1, min(rank + 1, 30)} - {rank}:
        assert check(A, rank=wrong, method=method).verdict is Verdict.FAILS
    result = check(A, method=method)
    assert result.measured["rank"] == rank
    assert result.measured["claimed"] == min(shape)


def test_float32_matrix_is_judged_by_its_own_epsilon(backend, rng):
    product = (rng.standard_normal((30, 5)) @ rng.standard_normal((5, 40))).astype(np.float32)
    assert check(backend(product, "float32"), rank=5).verdict is Verdict.HOLDS


def test_moving_count_is_undecided(rng):
    A = with_singular_values([1.0, 1e-6, 3e-9], (3, 5), rng)
    assert check(A, tolerance=1e-3, rank=1).verdict is Verdict.HOLDS
    for rank in (1, 2):
        result = check(A, tolerance=2e-6, rank=rank)
        assert result.verdict is Verdict.UNDECIDED
        assert result.reason == "rank 1 at tolerance 2.0e-06, but 1 at ten times it and 2 at a tenth"
        assert "that you can justify" in result.next_steps[0]
    for rank in (3, None):
        result = check(A, tolerance=2e-6, rank=rank)
        assert result.verdict is Verdict.FAILS
        assert result.reason == "rank 1 at tolerance 2.0e-06, between 1 and 2 nearby"


def test_the_values_on_both_sides_of_the_cut_are_named(rng):
    A = with_singular_values([1.0, 1e-3, 1e-9], (3, 5), rng)
    assert "singular value 2 is 1.0e-03, singular value 3 is 1.0e-09" in check(A, tolerance=1e-6).evidence
    assert "the smallest singular value is 1.0e-09" in check(A, tolerance=1e-12).evidence
    assert "no singular value is above the tolerance" in check(A, tolerance=9.0).evidence
    by_qr = check(A, tolerance=1e-6, method="qr").evidence
    assert any(line.startswith("trailing norm 2 is ") for line in by_qr)


def test_zero_and_identity(backend):
    assert check(backend(np.zeros((3, 4))), rank=0).verdict is Verdict.HOLDS
    assert check(backend(np.eye(4))).verdict is Verdict.HOLDS
    assert check(backend([[5.0]])).verdict is Verdict.HOLDS


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_scale_does_not_matter(backend, rng, scale):
    assert check(backend(integer_rank(3, (9, 9), rng) * scale), rank=3).verdict is Verdict.HOLDS


def test_kahan_misleads_nobody():
    """Its last pivot is far larger than its last singular value; the SVD decides, and a contradiction is UNDECIDED."""
    A = kahan(90)
    s = np.linalg.svd(A, compute_uv=False)
    result = check(A)
    assert result.measured["methods"]["svd"]["rank"] == np.count_nonzero(s > s[0] * 90 * 2.0**-52)


def test_rules_side_by_side(rng):
    A = with_singular_values(10.0 ** -np.linspace(0, 18, 60), (60, 80), rng)
    rows = {row["rule"]: row["rank"] for row in check(A).measured["rules"]}
    assert rows["golub"] <= rows["julia"] <= rows["scipy-lstsq"]
    assert rows["golub"] <= rows["press"]


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_bad_A(name):
    value, words = BAD_MATRICES[name]()
    with pytest.raises(av.InvalidInput, match=words) as refusal:
        av.check_rank(value)
    assert refusal.value.argument == "A"


@pytest.mark.parametrize("rank", [-1, 4, 2.5, "2", True, np.nan])
def test_bad_rank(rank):
    with pytest.raises(av.InvalidInput, match="rank"):
        av.check_rank(np.eye(3), rank=rank)


def test_numpy_integers_are_ranks():
    assert check(np.eye(3), rank=np.int64(3)).verdict is Verdict.HOLDS


def test_an_operator_has_no_rank():
    from scipy.sparse.linalg import aslinearoperator

    with pytest.raises(av.InvalidInput, match="operator"):
        av.check_rank(aslinearoperator(np.eye(3)))


@pytest.mark.parametrize("convert", ["csr_array", "csc_matrix", "coo_array", "bsr_array", "dia_array", "lil_array"])
def test_a_sparse_matrix_has_a_remedy_that_works(convert):
    sparse = pytest.importorskip("scipy.sparse")
    import scipy.sparse.linalg

    A = np.random.default_rng(0).standard_normal((4, 6))
    matrix = getattr(sparse, convert)(A)
    with pytest.raises(
        av.InvalidInput, match=r"A: got a sparse .*; needs a dense array \(\.toarray\(\) or .to_dense\(\)\)$"
    ):
        av.check_rank(matrix)
    assert av.check_rank(matrix.toarray()).verdict == "HOLDS"
    with pytest.raises(av.InvalidInput, match=r", or scipy\.sparse\.linalg\.aslinearoperator\(J\)$"):
        av.check_membership(matrix, A[:, 0])
    assert av.check_membership(scipy.sparse.linalg.aslinearoperator(matrix), A[:, 0]).verdict == "HOLDS"
