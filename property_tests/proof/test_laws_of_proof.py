"""The inequalities that the proofs rest on, tried at their edges, and the promise that no proof is ever wrong."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignver.checks.recheck import recheck
from alignver.errors import InvalidInput
from alignver.kernel import seal
from alignver.kernel.certificate import pack, unpack
from alignver.proof import Ball, load_certificate, prove_membership, prove_rank
from alignver.proof.cholesky import factor_shifted, is_positive_definite, row_rank_by_gram, rump_shift
from alignver.proof.exact import mantissas, to_integers
from alignver.proof.residual import distance_bound
from alignver.proof.right_inverse import right_inverse, right_residual, row_rank_by_inverse
from alignver.proof.rounding import frobenius_up, gamma, norm_down, norm_up, square_sums_up, sum_up
from alignver.results import Verdict
from tests.proof.cases import FAMILIES, exact_rank, is_member
from tests.proof.eigenvalues import smallest_eigenvalue

flint = pytest.importorskip("flint")

seeds = st.integers(0, 2**32 - 1)
doubles = st.floats(allow_nan=False, allow_infinity=False)
small = st.integers(1, 6)


@st.composite
def matrices(draw: st.DrawFn, entries: st.SearchStrategy[float] = doubles) -> np.ndarray:
    return draw(arrays(np.float64, (draw(small), draw(small)), elements=entries))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of the battery's families, or of arbitrary floats, with a target that may or may not be a member."""
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.integers(0, len(FAMILIES)))
    if kind == len(FAMILIES):
        J = draw(arrays(np.float64, (n, d), elements=doubles))
    else:
        J = np.asarray(FAMILIES[kind](rng, n, d), dtype=float)
    with np.errstate(all="ignore"):
        y = J @ rng.integers(-2, 3, d) if draw(st.booleans()) else rng.standard_normal(n)
    if draw(st.booleans()):
        y[draw(st.integers(0, n - 1))] += draw(st.sampled_from([0.0, 1.0, 2.0**-1074, 1e-16]))
    return J, y if np.all(np.isfinite(y)) else np.ones(n)


def fractions(A: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(a)) for a in row] for row in np.atleast_2d(A)]


@given(problems())
@example((np.array([[5e-324]]), np.array([1.7e308])))
@example((np.zeros((1, 1)), np.array([5e-324])))
@example((np.full((2, 2), 1.7e308), np.array([1.7e308, -1.7e308])))
def test_no_proof_is_wrong_and_every_proof_rechecks(problem: tuple[np.ndarray, np.ndarray]) -> None:
    J, y = problem
    truth = is_member(J, y)
    for exact in ("never", "auto"):
        decision = prove_membership(J, y, exact=exact)  # type: ignore[arg-type]
        assert decision.verdict in ((Verdict.HOLDS if truth else Verdict.FAILS), Verdict.UNDECIDED)
        if decision.certificate is not None:
            assert recheck(decision.certificate, J=J, y=y).verdict is Verdict.HOLDS
    assert decision.verdict is not Verdict.UNDECIDED


@given(problems(), st.integers(-1, 1))
def test_no_rank_is_wrong(problem: tuple[np.ndarray, np.ndarray], offset: int) -> None:
    A, _ = problem
    truth = exact_rank(A)
    claimed = max(0, truth + offset)
    for exact in ("never", "auto"):
        decision = prove_rank(A, claimed, exact=exact)  # type: ignore[arg-type]
        assert decision.verdict in ((Verdict.HOLDS if claimed == truth else Verdict.FAILS), Verdict.UNDECIDED)
        if decision.certificate is not None:
            assert recheck(decision.certificate, A=A).verdict is Verdict.HOLDS
    assert decision.verdict is not Verdict.UNDECIDED


@given(matrices())
def test_norms_and_sums_are_outward(A: np.ndarray) -> None:
    exact = fractions(A)
    squares = [sum(a * a for a in row) for row in exact]
    for bound, square in zip(square_sums_up(A, 1), squares, strict=True):
        assert bound == math.inf or Fraction(float(bound)) >= square
    bound = frobenius_up(A)
    assert bound == math.inf or Fraction(bound) ** 2 >= sum(squares)
    x = A[0]
    assert Fraction(norm_down(x)) ** 2 <= squares[0]
    assert norm_up(x) == math.inf or Fraction(norm_up(x)) ** 2 >= squares[0]
    with np.errstate(all="ignore"):
        total = sum_up(np.abs(x))
    assert total == math.inf or Fraction(total) >= sum(abs(a) for a in exact[0])


@given(st.integers(1, 2**45))
def test_gamma_covers_a_product_of_k_roundings(k: int) -> None:
    u = Fraction(1, 2**53)
    assert Fraction(gamma(k)) >= k * u / (1 - k * u)


@st.composite
def nearly_singular(draw: st.DrawFn) -> np.ndarray:
    """Integer matrices B B^T, exact in float64, that are singular or have been lifted by a hair above singularity."""
    n = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(seeds))
    B = rng.integers(-(2**12), 2**12, (n, draw(st.integers(1, n)))).astype(float)
    lift = draw(st.sampled_from([0.0, 0.0, 1.0, 2.0**-20, 2.0**-28, 2.0**-30]))
    return B @ B.T + lift * np.eye(n)


def is_definite_exactly(A: np.ndarray) -> bool:
    """Sylvester's criterion in exact arithmetic."""
    rows = fractions(A)
    for k in range(1, len(rows) + 1):
        entries = [flint.fmpq(v.numerator, v.denominator) for row in rows[:k] for v in row[:k]]
        if not flint.fmpq_mat(k, k, entries).det() > 0:
            return False
    return True


@given(nearly_singular())
@example(np.array([[2.0**-1074]]))
@example(np.array([[1.0, 1.0], [1.0, 1.0]]))
@example(np.array([[1.0, 1.0], [1.0, np.nextafter(1.0, 2.0)]]))
def test_rump_shift_never_proves_what_is_not_definite(A: np.ndarray) -> None:
    if is_positive_definite(A):
        assert is_definite_exactly(A)
        bound = smallest_eigenvalue(A)
        shifted = fractions(A)
        for i in range(len(shifted)):
            shifted[i][i] -= Fraction(bound)
        entries = [flint.fmpq(v.numerator, v.denominator) for row in shifted for v in row]
        n = len(shifted)
        minors = [
            flint.fmpq_mat(k, k, [entries[i * n + j] for i in range(k) for j in range(k)]).det()
            for k in range(1, n + 1)
        ]
        assert all(minor > 0 for minor in minors), "lambda_min does not exceed its bound"


@given(nearly_singular(), st.sampled_from([0.0, 2e3, 2e3, 1e6, 1e9]), st.floats(0.0, 1e3))
def test_the_factorization_is_within_rump_shift_of_what_was_factored(A: np.ndarray, lift: float, shift: float) -> None:
    A = A + lift * np.eye(A.shape[0])  # mostly definite: a factorization that breaks down shows nothing here
    factor = factor_shifted(A, shift)
    assume(factor is not None)
    assert factor is not None
    n = A.shape[0]
    L = fractions(np.tril(factor))
    diagonal = np.nextafter(np.diagonal(A) - shift, -np.inf)
    square = Fraction(0)
    for i in range(n):
        for j in range(n):
            target = Fraction(float(diagonal[i])) if i == j else Fraction(float(A[max(i, j), min(i, j)]))
            square += (sum((L[i][k] * L[j][k] for k in range(n)), Fraction(0)) - target) ** 2
    c = rump_shift(n, float(diagonal.sum()) * (1 + 1e-12), float(diagonal.max()))
    assert square < Fraction(c) ** 2


@st.composite
def conditioned(draw: st.DrawFn) -> np.ndarray:
    n = draw(st.integers(1, 8))
    d = n + draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(seeds))
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((d, n)))
    spectrum = 10.0 ** -rng.uniform(0, draw(st.floats(0, 16)), n)
    return (U * spectrum) @ V.T * 10.0 ** draw(st.integers(-200, 200))


def annihilates(A: np.ndarray, floor: float) -> bool:
    """Whether s_min(A) < floor: A A^T - floor^2 I is not positive definite, exactly."""
    rows = fractions(A)
    n = len(rows)
    t = Fraction(floor) ** 2
    gram = [[sum((a * b for a, b in zip(p, q, strict=True)), Fraction(0)) for q in rows] for p in rows]
    for i in range(n):
        gram[i][i] -= t
    for k in range(1, n + 1):
        entries = [flint.fmpq(v.numerator, v.denominator) for row in gram[:k] for v in row[:k]]
        if flint.fmpq_mat(k, k, entries).det() < 0:
            return True
    return False


@given(conditioned())
def test_s_min_is_a_lower_bound(A: np.ndarray) -> None:
    for method in (row_rank_by_gram, row_rank_by_inverse):
        proof = method(A)
        if proof.s_min > 0.0:
            assert not annihilates(A, proof.s_min)
        if proof.proved:
            assert exact_rank(A) == A.shape[0]


@given(conditioned(), st.floats(-1.0, 1.0))
def test_right_inverse_lemma(A: np.ndarray, noise: float) -> None:
    A = np.ldexp(A, -np.frexp(np.abs(A).max(axis=1))[1][:, None])
    X = right_inverse(A)
    assume(X is not None)
    assert X is not None
    X = X * (1.0 + noise)
    bound, _ = right_residual(A, X)
    a, x = fractions(A), fractions(X)
    exact = Fraction(0)
    for i in range(len(a)):
        for j in range(len(a)):
            exact += ((1 if i == j else 0) - sum((a[i][k] * x[k][j] for k in range(len(x))), Fraction(0))) ** 2
    assert bound == math.inf or Fraction(bound) ** 2 >= exact
    if bound < 1.0:
        assert exact_rank(A) == A.shape[0]


@given(seeds, st.integers(1, 6), st.integers(1, 5), st.floats(-12, 0), st.booleans())
def test_the_distance_bound_holds_throughout_the_ball(
    seed: int, d: int, more: int, exponent: float, near: bool
) -> None:
    rng = np.random.default_rng(seed)
    J = rng.standard_normal((d + more, d))
    y = J @ rng.standard_normal(d) + (1e-6 if near else 1.0) * rng.standard_normal(d + more)
    s_min = float(np.linalg.svd(J, compute_uv=False)[-1]) * (1 - 1e-10)
    delta = s_min * 10.0**exponent
    beta = np.linalg.lstsq(J, y, rcond=None)[0] if rng.random() < 0.8 else rng.standard_normal(d)
    bound = distance_bound(J, y, beta, s_min, delta)
    residual = y - J @ beta
    directions = [
        np.outer(residual, beta),
        -np.outer(residual, beta),
        rng.standard_normal(J.shape),
        np.outer(y, rng.standard_normal(d)),
    ]
    for E in directions:
        size = np.linalg.norm(E, 2)
        assume(size > 0)
        moved = J + E * (delta / size)
        best = np.linalg.lstsq(moved, y, rcond=None)[0]
        assert bound <= np.linalg.norm(y - moved @ best) * (1 + 1e-8) + 1e-13 * np.linalg.norm(y)


@given(matrices())
@example(np.array([[5e-324, -1.7e308]]))
def test_integers_are_the_floats_exactly(A: np.ndarray) -> None:
    m, e = mantissas(A)
    exact = to_integers(A)
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            value = Fraction(float(A[i, j]))
            assert int(m[i, j]) * Fraction(2) ** int(e[i, j]) == value
            power = int(exact.row_exponents[i]) + int(exact.column_exponents[j])
            assert exact.rows[i][j] * Fraction(2) ** power == value
            assert exact.rows[i][j].bit_length() <= exact.bits[i]


@given(st.lists(st.integers()))
def test_big_integers_survive_packing(values: list[int]) -> None:
    assert unpack(pack("w", values), "w", len(values)) == values


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | doubles | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.text("abcXYZ", min_size=1, max_size=5),
        arrays(np.float64, st.integers(0, 5), elements=doubles),
        max_size=3,
    ),
    st.dictionaries(st.text("abc", min_size=1, max_size=5), plain_values, max_size=3),
)
def test_certificates_round_trip_through_files(data: dict[str, np.ndarray], constants: dict[str, object]) -> None:
    certificate = seal("rank", "minor", {"A": np.eye(2)}, data, constants)
    with tempfile.TemporaryDirectory() as folder:
        again = load_certificate(certificate.save(Path(folder) / "c"))
    assert again.sealed
    assert again.seal == certificate.seal
    assert again.constants == certificate.constants
    for name, array in data.items():
        np.testing.assert_array_equal(again.data[name], array, strict=True)
        assert np.array_equal(np.signbit(again.data[name]), np.signbit(array))


SAVED = prove_membership(np.array([[1.0, 2.0], [3.0, 6.0], [1.0, 1.0]]), np.array([1.0, 4.0, 0.0])).certificate


@given(st.sampled_from(["certificate.json", "data.npz"]), st.data())
def test_files_with_any_byte_changed_are_refused(name: str, data: st.DataObject) -> None:
    assert SAVED is not None
    with tempfile.TemporaryDirectory() as folder:
        path = dataclasses.replace(SAVED).save(Path(folder) / "c")
        content = bytearray((path / name).read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
        (path / name).write_bytes(bytes(content))
        with pytest.raises(InvalidInput):
            load_certificate(path)


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_as_a_certificate(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "certificate.json").write_bytes(content)
        (Path(folder) / "data.npz").write_bytes(content)
        with pytest.raises(InvalidInput):
            load_certificate(folder)


@given(problems(), st.floats(-16, 1))
def test_a_proof_for_a_ball_holds_at_its_centre_and_beside_it(
    problem: tuple[np.ndarray, np.ndarray], exponent: float
) -> None:
    J, y = problem
    with np.errstate(all="ignore"):
        scale = float(np.linalg.norm(J))
    assume(1e-100 < scale < 1e100)
    radius = scale * 10.0**exponent
    decision = prove_membership(J, y, ball=Ball(norm=radius))
    if decision.verdict is Verdict.UNDECIDED:
        return
    holds = decision.verdict is Verdict.HOLDS
    assert decision.certificate is not None
    assert recheck(decision.certificate, J=J, y=y).verdict is Verdict.HOLDS
    U, s, V = np.linalg.svd(J)
    worst = J - np.outer(U[:, len(s) - 1], V[len(s) - 1]) * min(0.999 * radius, s[-1])
    for member in (J, worst):
        assert is_member(member, y) == holds
