"""Laws of phi: bounds below exact values, Lemmas 4 and 5, monotonicity in the width, refutations that stand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.recheck import recheck
from alignver.features.products import Phi, dense_phi, gram, logistic
from alignver.features.staircase import gates_of
from alignver.results import Verdict

from .kernel.forger import exact, rank_of

seeds = st.integers(0, 2**32 - 1)


@st.composite
def feature_matrices(draw):
    """Z (n, m) with duplicates, collinear rows, tied projections (few distinct values), idle columns, uneven rows."""
    n, m = draw(st.integers(1, 24)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["normal", "few values", "collinear", "duplicates", "idle", "uneven"]))
    bare = rng.standard_normal((n, m - 1))
    if kind == "few values":
        bare = rng.integers(-1, 2, (n, m - 1)).astype(float)
    elif kind == "collinear" and n > 1:
        bare = bare[:1] + rng.integers(0, 40, (n, 1)) * bare[1:2]
    elif kind == "duplicates" and n > 1:
        bare[rng.integers(0, n)] = bare[rng.integers(0, n)]
    elif kind == "idle" and m > 1:
        bare[:, rng.integers(0, m - 1)] = 0.0
    elif kind == "uneven":
        bare *= np.ldexp(1.0, rng.integers(-20, 20, n))[:, None]
    return np.column_stack([bare, np.ones(n)])


@given(feature_matrices(), st.integers(1, 12))
def test_verdicts_stand(Z, width):
    n, m = Z.shape
    result = check_safe_exploration(Z, width=width)
    impossible = width * m < n or len(np.unique(Z + 0.0, axis=0)) < n or rank_of(exact(Z)) * width < n
    if impossible:
        assert result.verdict is not Verdict.HOLDS
    if result.verdict is Verdict.FAILS:
        assert impossible
    if result.verdict is not Verdict.UNDECIDED:
        assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS
    if result.verdict is Verdict.HOLDS:
        q = gates_of(result.certificate)
        assert q.shape == (m, width)
        values = np.linalg.svd(dense_phi(Z, q), compute_uv=False)
        rounding = 1e-13 * values[0]  # of the singular values that LAPACK returns
        assert result.measured["s_min_lower"] <= values[n - 1] + rounding
        assert values[0] <= result.measured["norm_upper"] * (1 + 1e-12)


@given(st.integers(2, 24), st.integers(2, 7), seeds)
def test_general_position_needs_only_the_limit(n, m, seed):
    Z = np.column_stack([np.random.default_rng(seed).standard_normal((n, m - 1)), np.ones(n)])
    result = check_safe_exploration(Z)
    assert result.verdict is Verdict.HOLDS
    # A block of m rows between close thresholds may be too near to singular for a proof: then one unit more helps.
    assert -(-n // m) <= result.measured["width"] <= -(-n // m) + 1


@given(st.integers(2, 20), st.integers(2, 6), seeds)
def test_monotone_in_the_width(n, m, seed):
    Z = np.column_stack([np.random.default_rng(seed).standard_normal((n, m - 1)), np.ones(n)])
    least = check_safe_exploration(Z).measured["width"]
    for width in (least + 1, 2 * least, n + 3):
        assert check_safe_exploration(Z, width=width).verdict is Verdict.HOLDS


@given(st.integers(1, 10), st.integers(2, 5), seeds)
def test_lemma_4_almost_every_gate_has_full_rank(n, m, seed):
    """Where one q gives rank n, the others that do not have measure zero: a random q, and a random step from a bad
    one.
    """
    rng = np.random.default_rng(seed)
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    width = 2 * n
    assert check_safe_exploration(Z, width=width).verdict is Verdict.HOLDS
    bad = np.zeros((m, width))
    if n > m:
        assert np.linalg.matrix_rank(dense_phi(Z, bad)) < n
    for q in (3 * rng.standard_normal((m, width)), bad + 2 * rng.standard_normal((m, width))):
        assert np.linalg.matrix_rank(dense_phi(Z, q), tol=1e-14) == n


@given(st.integers(1, 10), st.integers(2, 5), seeds)
def test_lemma_5_random_perturbations_of_the_features_keep_the_rank(n, m, seed):
    """The features that fail have measure zero: two equal rows are told apart by a random step of theirs."""
    rng = np.random.default_rng(seed)
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    if n > 1:
        Z[0] = Z[-1]
        assert check_safe_exploration(Z, width=n).verdict is Verdict.FAILS
    Z[:, :-1] += 0.1 * rng.standard_normal((n, m - 1))
    assert check_safe_exploration(Z, width=n).verdict is Verdict.HOLDS


@given(feature_matrices(), st.integers(1, 8), seeds)
def test_products_and_gram_are_those_of_dense_phi(Z, width, seed):
    rng = np.random.default_rng(seed)
    q, t, r = (
        rng.standard_normal((Z.shape[1], width)),
        rng.standard_normal(Z.shape[1] * width),
        rng.standard_normal(len(Z)),
    )
    dense, operator = dense_phi(Z, q), Phi(Z, logistic(Z @ q))
    size = np.linalg.norm(dense)
    assert np.allclose(operator.matvec(t), dense @ t, rtol=0, atol=1e-13 * size * np.linalg.norm(t))
    assert np.allclose(operator.rmatvec(r), dense.T @ r, rtol=0, atol=1e-13 * size * np.linalg.norm(r))
    assert np.allclose(gram(Z, logistic(Z @ q)), dense @ dense.T, rtol=0, atol=1e-13 * size**2)


@given(st.integers(1, 30), st.integers(2, 6), st.integers(1, 10), seeds)
def test_gram_proof_is_below_the_exact_value(n, m, width, seed):
    rng = np.random.default_rng(seed)
    Z, q = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)]), rng.standard_normal((m, width))
    result = check_safe_exploration(Z, q=q, method="gram")
    if result.verdict is Verdict.HOLDS:
        values = np.linalg.svd(dense_phi(Z, q), compute_uv=False)
        assert len(values) == n
        assert 0.0 < result.measured["s_min_lower"] <= values[-1]
        assert recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS
