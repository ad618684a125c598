"""Laws of the squared Frobenius norm by random vectors: unbiased, and its interval holds as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from alignver.linalg.norms import basis, hutchpp, vectors

N, RUNS = 24, 400
SPECTRA = {
    "rank one": np.eye(1, N)[0],
    "rank three": np.r_[3.0, -2.0, 1.0, np.zeros(N - 3)],
    "flat": np.ones(N),
    "signs": np.where(np.arange(N) % 2, 1.0, -1.0),
    "harmonic": 1.0 / np.arange(1, N + 1),
    "geometric": 0.5 ** np.arange(N),
    "one above many": np.r_[10.0, np.ones(N - 1)],
}


def once(D: np.ndarray, products: int, seed: int, confidence: float):
    S, G = vectors(len(D), products, seed)
    Q = basis(D @ S)
    return hutchpp(Q, D @ Q, G, D @ G, confidence=confidence)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("products", [6, 15, 48])
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_interval_holds_at_its_rate(kind, products, confidence):
    values = SPECTRA[kind]
    basis_of, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((N, N)))
    D = (basis_of * values) @ basis_of.T
    truth = float(np.square(values).sum())
    computed = [once(D, products, seed, confidence) for seed in range(RUNS)]
    hits = sum(e.interval[0] <= truth * (1 + 1e-9) and truth <= e.interval[1] * (1 + 1e-9) for e in computed)
    # Fewer hits than this would come up once in a million runs of an interval that is right.
    assert hits >= binom.ppf(1e-6, RUNS, confidence)
    mean = float(np.mean([e.value for e in computed]))
    spread = float(np.std([e.value for e in computed], ddof=1)) / RUNS**0.5
    assert abs(mean - truth) <= 6.0 * spread + 1e-9 * truth


def test_the_interval_is_exact_where_rank_one_is_left():
    """Nothing of a matrix of rank one in the basis: the worst case, where the interval fails as often as it may."""
    d = np.zeros((N, N))
    d[0, 0] = 1.0
    Q = np.eye(N)[:, 1:2]
    hits = 0
    for seed in range(2000):
        _, G = vectors(N, 30, seed)
        low, high = hutchpp(Q, d @ Q, G, d @ G, confidence=0.8).interval
        hits += low <= 1.0 <= high
    assert binom.ppf(1e-6, 2000, 0.8) <= hits <= binom.ppf(1 - 1e-6, 2000, 0.8)


@given(st.integers(1, 8), st.integers(6, 40), st.integers(0, 2**16), st.floats(0.8, 0.999))
def test_parts_and_scale(n, products, seed, confidence):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((n, n))
    D += D.T
    computed = once(D, products, seed, confidence)
    assert computed.computed <= computed.interval[0] <= computed.value <= computed.interval[1]
    twice = once(4.0 * D, products, seed, confidence)
    assert twice.value == pytest.approx(16.0 * computed.value, rel=1e-9)
    if products // 3 >= n:  # the basis is all there is
        assert computed.interval == pytest.approx((computed.value, computed.value), rel=1e-9)
