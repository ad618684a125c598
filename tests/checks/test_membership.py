"""check_membership: right where the truth is known, UNDECIDED where it turns, by every method on every namespace."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import alignver as av
from alignver.checks import membership as module
from alignver.linalg.rank_rules import RULES
from alignver.results import Report, Rigor, Verdict
from tests.bad_input import BAD_MATRICES, BAD_VECTORS
from tests.matrices import integer_rank, with_singular_values

METHODS = ["auto", "svd", "qr", "lstsq"]
SHAPES = [(30, 50), (50, 30), (40, 40), (60, 400)]


def check(J, y, **options):
    """Numerical verdicts are what is tested here; proofs have tests of their own."""
    return av.check_membership(J, y, certify=False, **options)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_members_hold_and_others_fail(backend, rng, method, shape, dtype):
    J = integer_rank(20, shape, rng)
    inside = J @ rng.integers(-3, 4, shape[1])
    outside = inside + 50 * rng.standard_normal(shape[0])
    holds = check(backend(J, dtype), backend(inside, dtype), method=method)
    fails = check(backend(J, dtype), backend(outside, dtype), method=method)
    assert (holds.verdict, fails.verdict) == (Verdict.HOLDS, Verdict.FAILS)
    assert holds.measured["rank"] == fails.measured["rank"] == 20
    assert holds.rigor is Rigor.NUMERICAL
    assert holds.measured["dtype"] == dtype
    assert holds.cost["seconds"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_full_row_rank_contains_everything(backend, rng, method):
    J = with_singular_values(np.linspace(1, 3, 25), (25, 80), rng)
    result = check(backend(J), backend(rng.standard_normal(25)), method=method)
    assert result.verdict is Verdict.HOLDS
    assert result.measured["residual"] < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_turning_within_a_factor_of_ten_is_undecided(backend, rng, method):
    """The only direction that y has is the last one, whose singular value is moved across the tolerance."""
    J = np.diag([1.0, 1.0, 1.0])
    y = np.array([0.0, 0.0, 1.0])
    for level, expected in [
        (1e-3, Verdict.HOLDS),
        (1.1e-4, Verdict.HOLDS),
        (9e-5, Verdict.UNDECIDED),
        (1e-5, Verdict.UNDECIDED),
        (1.1e-6, Verdict.UNDECIDED),
        (0.9e-6, Verdict.FAILS),
        (1e-9, Verdict.FAILS),
    ]:
        J[2, 2] = level
        result = check(backend(J), backend(y), method=method, tolerance=1e-5)
        assert result.verdict is expected, level
        if expected is Verdict.UNDECIDED:
            assert "that you can justify" in result.next_steps[0]


def test_interval_and_neighbours_are_reported(rng):
    J = np.diag([1.0, 1e-3, 1e-9])
    result = check(J, np.array([1.0, 1.0, 0.0]))
    assert result.verdict is Verdict.HOLDS
    assert result.measured["turns_at"] == pytest.approx(1e-3)
    assert any("HOLDS for every tolerance below 1.0e-03" in line for line in result.evidence)
    tight = check(J, np.array([1.0, 1.0, 0.0]), tolerance=3e-9)
    assert tight.measured["levels_near_tolerance"] == pytest.approx([1e-9])


@pytest.mark.parametrize("unit", [1.0, 2.0**-200, 2.0**300])
def test_the_curve_turns_where_the_verdict_does_in_the_units_of_J(unit):
    result = check(unit * np.diag([1.0, 1e-3, 1e-9]), np.array([1.0, 0.0, 1.0]), tolerance=unit * 1e-8)
    curve = result.measured["curve"]
    assert curve["band"] == pytest.approx([unit * 1e-9, unit * 1e-7], rel=1e-12)
    turn = next(tau for tau, rho in zip(curve["tau"], curve["rho"]) if rho > result.measured["residual_tolerance"])
    assert turn == result.measured["turns_at"] == pytest.approx(unit * 1e-9)
    assert check(np.zeros((2, 3)), np.ones(2)).measured.get("curve") is None


def test_residual_tolerance_has_a_band_too():
    J = np.array([[1.0], [0.0]])
    for outside, expected in [(0.9e-4, "HOLDS"), (3e-4, "UNDECIDED"), (3e-3, "UNDECIDED"), (1.1e-2, "FAILS")]:
        result = check(J, np.array([1.0, outside]), residual_tolerance=1e-3)
        assert result.verdict.value == expected


def test_noise_below_the_floor_never_speaks_for_holds(rng):
    """At a tolerance below what the decomposition resolves, rounding would make any matrix look full rank."""
    J = integer_rank(10, (40, 60), rng)
    result = check(J, rng.standard_normal(40), tolerance=1e-30)
    assert result.verdict is Verdict.UNDECIDED
    assert any("resolution" in line for line in result.evidence)


def test_disagreement_is_said(monkeypatch, rng):
    J, y = integer_rank(5, (20, 20), rng), rng.standard_normal(20)
    genuine = module.qr_profile
    monkeypatch.setattr(module, "qr_profile", lambda reduced: genuine(module.reduce(np.eye(20), y)))
    result = check(J, y)
    assert result.verdict is Verdict.UNDECIDED
    assert "disagree" in result.reason
    assert result.measured["methods"]["qr"]["verdict"] == "HOLDS"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_decides_clear_cases(rng, rule):
    J = with_singular_values([3.0, 2.0, 1.0], (6, 9), rng)
    assert check(J, J @ np.ones(9), rule=rule).verdict is Verdict.HOLDS
    rows = {row["rule"]: row for row in check(J, J @ np.ones(9)).measured["rules"]}
    assert set(rows) == set(RULES)
    assert rows["golub"]["tolerance"] == pytest.approx(3.0 * 9 * 2.0**-52)


@pytest.mark.parametrize("exponent", [-1060, -800, -300, 300, 800, 1015])
@pytest.mark.parametrize("method", METHODS)
def test_scale_does_not_matter(backend, rng, method, exponent):
    J = integer_rank(4, (8, 12), rng)
    inside, outside = J @ np.ones(12), rng.integers(1, 9, 8).astype(float)
    for y, expected in ((inside, Verdict.HOLDS), (outside, Verdict.FAILS)):
        for a, b in ((exponent, 0), (0, exponent), (exponent, exponent)):
            scaled = check(backend(np.ldexp(J, a)), backend(np.ldexp(y, b)), method=method)
            assert scaled.verdict is expected


def test_zero_target_and_zero_matrix(backend):
    assert check(backend(np.ones((3, 4))), backend(np.zeros(3))).verdict is Verdict.HOLDS
    assert check(backend(np.zeros((3, 4))), backend(np.zeros(3))).verdict is Verdict.HOLDS
    for method in METHODS:
        assert check(backend(np.zeros((3, 4))), backend(np.ones(3)), method=method).verdict is Verdict.FAILS


def test_one_by_one(backend):
    assert check(backend([[2.0]]), backend([3.0])).verdict is Verdict.HOLDS


def test_a_float32_matrix_keeps_its_epsilon(rng):
    J = integer_rank(3, (30, 40), rng)
    stored = check(J, np.ones(30), computed_in="float32")
    native = check(J.astype(np.float32), np.ones(30, dtype=np.float32))
    assert stored.tolerance.value == pytest.approx(native.tolerance.value)
    assert stored.tolerance.eps == 2.0**-23


def test_inputs_are_left_alone(backend, rng):
    J, y = rng.standard_normal((5, 30)), rng.standard_normal(5)
    given_J, given_y = backend(J), backend(y)
    for method in METHODS:
        check(given_J, given_y, method=method)
    np.testing.assert_array_equal(np.asarray(av.arrays.host(given_J)), J)
    np.testing.assert_array_equal(np.asarray(av.arrays.host(given_y)), y)


class TestOperators:
    def test_verdicts(self, backend, rng):
        from tests.linalg.test_lsmr import Operator

        J = with_singular_values(np.linspace(1, 2, 10), (20, 30), rng)
        operator = Operator(J, backend)
        assert check(operator, backend(J @ np.ones(30))).verdict is Verdict.HOLDS
        assert check(operator, backend(rng.standard_normal(20)), tolerance=1e-6).verdict is Verdict.FAILS

    def test_scipy_operator(self, rng):
        J = rng.standard_normal((20, 30))
        result = check(aslinearoperator(J), np.ones(20))
        assert result.verdict is Verdict.HOLDS
        assert result.measured["residual"] <= result.measured["residual_upper_bound"]

    @pytest.mark.parametrize("size", [1e-300, 1e-170, 1e-140, 1e155, 1e300])
    def test_scale_does_not_matter(self, rng, size):
        J = with_singular_values(np.linspace(1, 2, 10), (20, 30), rng)
        inside, outside = J @ np.ones(30), rng.standard_normal(20)
        for factor in (1e-170, 1.0, size):
            result = check(aslinearoperator(J * size), inside * factor)
            assert result.verdict is Verdict.HOLDS
            assert result.measured["largest_singular_value"] == pytest.approx(2.0 * size, rel=1e-4)
            assert result.measured["target_norm"] == pytest.approx(np.linalg.norm(inside) * factor)
            fails = check(aslinearoperator(J * size), outside * factor, tolerance=1e-6 * size)
            assert fails.verdict is Verdict.FAILS
            assert fails.tolerance.value == pytest.approx(1e-6 * size)

    def test_products_are_validated(self, rng):
        class Products:
            shape = (20, 12)

            def __init__(self, matvec, rmatvec):
                self.matvec, self.rmatvec = matvec, rmatvec

        J = rng.standard_normal((20, 12))
        y = J @ np.ones(12)
        for same in (Products(lambda v: (J @ v)[:, None], lambda u: (J.T @ u)[None]),
                     Products(lambda v: list(J @ v), lambda u: list(J.T @ u))):  # fmt: skip
            assert check(same, y).verdict is Verdict.HOLDS
        refused = {
            "complex": Products(lambda v: 1j * (J @ v), lambda u: 1j * (J.T @ u)),
            "ValueError": Products(lambda v: J @ v, lambda u: J @ u),
            "12 entries": Products(lambda v: J @ v, lambda u: u),
            "NotImplementedError": LinearOperator((20, 12), matvec=lambda v: J @ v),
            "is not the adjoint": Products(lambda v: J @ v, lambda u: 1.5 * (J.T @ u)),
            r"\(J\^T u\)\^T v is 0;": Products(lambda v: J @ v, lambda u: 0.0 * (J.T @ u)),
        }
        for words, operator in refused.items():
            with pytest.raises(av.InvalidInput, match=words):
                check(operator, y)
        del (halved := Products(lambda v: J @ v, None)).rmatvec
        for call in (lambda: check(halved, y), lambda: av.check_rank(halved)):
            with pytest.raises(av.InvalidInput, match="without rmatvec"):
                call()

    def test_the_remedy_for_complex_products(self, rng):
        J = rng.standard_normal((8, 5)) + 1j * rng.standard_normal((8, 5))
        y = J @ (np.ones(5) + 2j)
        stacked = np.block([[J.real, -J.imag], [J.imag, J.real]])
        assert check(aslinearoperator(stacked), np.concatenate([y.real, y.imag])).verdict is Verdict.HOLDS

    def test_narrow_products_have_their_epsilon(self, rng):
        J = rng.standard_normal((20, 30)).astype(np.float32)
        result = check(aslinearoperator(J), (J @ np.ones(30)).astype(np.float64))
        assert result.verdict is Verdict.HOLDS

    def test_refusals(self):
        operator = aslinearoperator(np.eye(3))
        for options, words in (({"method": "svd"}, "operator"), ({"rule": "golub-inf"}, "operator")):
            with pytest.raises(av.InvalidInput, match=words):
                check(operator, np.ones(3), **options)
        with pytest.raises(av.InvalidInput, match="entry per row"):
            check(operator, np.ones(4))
        with pytest.raises(av.InvalidInput, match="finite"):
            check(aslinearoperator(np.full((3, 3), np.nan)), np.ones(3))


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_bad_J(name):
    value, words = BAD_MATRICES[name]()
    with pytest.raises(av.InvalidInput, match=words):
        av.check_membership(value, np.ones(3))


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_bad_y(name):
    value, words = BAD_VECTORS[name]()
    with pytest.raises(av.InvalidInput, match=words):
        av.check_membership(np.eye(3), value)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"method": "magic"}, "method"),
        ({"method": None}, "method"),
        ({"rule": "mine"}, "rule"),
        ({"rule": 3}, "rule"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": "1e-3"}, "tolerance"),
        ({"residual_tolerance": float("inf")}, "residual_tolerance"),
        ({"residual_tolerance": True}, "residual_tolerance"),
        ({"computed_in": "int8"}, "computed_in"),
    ],
)
def test_bad_options(options, argument):
    with pytest.raises(av.InvalidInput) as refusal:
        av.check_membership(np.eye(3), np.ones(3), **options)
    assert refusal.value.argument == argument


def test_shapes_and_places_that_disagree():
    torch = pytest.importorskip("torch")
    with pytest.raises(av.InvalidInput, match="entry per row"):
        av.check_membership(np.eye(3), np.ones(4))
    with pytest.raises(av.InvalidInput, match="torch array with a numpy J"):
        av.check_membership(np.eye(3), torch.ones(3))


def test_result_is_a_report(rng):
    result = check(rng.standard_normal((5, 9)), np.ones(5))
    assert Report.from_json(Report((result,)).to_json()).results[0] == result
