"""Every constant of a bound in the kernel against formulas written again, in rationals, from both sides."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from alignver.kernel import exact, exploration, floats, gates, optimality, seal, verify
from alignver.kernel.exact import (
    FARTHEST,
    combination,
    equal,
    exponents,
    integers,
    nonzero,
    power,
    rank_modulo,
    residues,
    rounded_down,
    rounded_up,
    small_primes,
    sqrt_down,
    sqrt_up,
)  # fmt: skip
from alignver.kernel.failure import NotProved
from alignver.kernel.optimality import loss_interval, outputs
from alignver.results import Verdict

U, OMEGA = Fraction(1, 2**53), Fraction(1, 2**1022)
CLOSE = Fraction(1, 2**44)


def g(k):
    return k * U / (1 - k * U)


def near(value, expected, slack=CLOSE):
    return abs(value - expected) <= slack * abs(expected)


def test_gamma_and_products():
    for k in (0, 1, 2, 1000, 10**9):
        assert floats.gamma(k) == g(k)
    assert floats.product_error(7, Fraction(3), Fraction(5), 11) == g(7) * 15 + 77 * OMEGA
    assert (U, OMEGA, Fraction(1, 2**40)) == (floats.U, floats.OMEGA, gates.LIBRARY)
    with pytest.raises(NotProved):
        floats.gamma(2**50)


def test_roots_and_roundings():
    for x in (Fraction(2), Fraction(1, 3), Fraction(10**40), power(-2100), power(2100) + 1, Fraction(5, 7**300)):
        low, high = sqrt_down(x), sqrt_up(x)
        assert low**2 <= x <= high**2
        assert high - low <= high * power(-60)
    assert (sqrt_up(Fraction(0)), sqrt_down(Fraction(-3))) == (0, 0)
    third = Fraction(1, 3)
    assert Fraction(rounded_down(third)) < third < Fraction(rounded_up(third)) <= third * (1 + 2 * U)
    assert (rounded_up(Fraction(10**400)), rounded_down(-Fraction(10**400))) == (math.inf, -math.inf)
    assert rounded_up(Fraction(1)) == rounded_down(Fraction(1)) == 1.0


@pytest.mark.parametrize("scale", [0, -1060, -700, 700, 1000])
@pytest.mark.parametrize("n", [1, 5, 300])
def test_norms(n, scale):
    rng = np.random.default_rng(n)
    x = np.ldexp(rng.standard_normal(n), scale)
    exact = sum((Fraction(v) ** 2 for v in x.tolist()), Fraction(0))
    low, high = floats.norm_down(x), floats.norm_up(x)
    assert low**2 <= exact <= high**2
    widest = 1 + 3 * n * U + power(-58) if scale > -1000 else 1 + power(-8)  # subnormal numbers lose digits as they are
    assert high <= low * widest + n * power(-1070)
    assert floats.norm_up(0 * x) == floats.norm_down(0 * x) == 0
    for bad in (np.inf, np.nan):
        with pytest.raises(NotProved):
            floats.norm_up(np.append(x, bad))


def test_norms_to_the_last_constant():
    """Powers of two add up exactly, so that what is returned is the bound itself."""
    x = np.full(16, 0.25)  # the norm is 1
    assert near(floats.norm_up(x), sqrt_up((1 + 16 * OMEGA) / (1 - g(16))), power(-58))
    assert near(floats.norm_down(x), sqrt_down((1 - 16 * OMEGA) / (1 + g(16))), power(-58))
    tiny = np.full(16, 2.0**-290)  # squares of 2^-580: far above omega; and at the edge, where they are not scaled
    assert floats.norm_up(tiny) >= power(-288)
    far = np.full(16, 2.0**-1000)
    assert floats.norm_up(far) - power(-998) >= 16 * power(-1074)  # what scaling may lose
    assert power(-998) - floats.norm_down(far) >= 16 * power(-1074)
    A = np.full((3, 8), 0.5)
    factor = 1 + 2 * (8 + 8) * U
    lengths = [Fraction(v) for v in floats.lengths_up(A).tolist()]
    assert all(
        sqrt_down(Fraction(2)) * factor * (1 - 4 * U) <= v <= sqrt_up(Fraction(2)) * factor * (1 + 4 * U)
        for v in lengths
    )
    assert floats.lengths_up(np.zeros((1, 4)))[0] >= 2.0**-510
    X = np.full((4, 2), 0.5)
    assert near(floats.spectral_up(X), sqrt_up(2 / (1 - g(4)) * 1 / (1 - g(2))), power(-58))
    assert floats.spectral_up(np.diag([3.0, 4.0])) < Fraction(41, 10)  # not the Frobenius norm, 5


def definite_expected(order, width, scale, noise, target):
    """The bound for scale times the identity, from its formula alone."""
    width = min(width, order)
    count = -(-order // width)
    depth = width + count + 1
    size = Fraction(scale) * order  # of the absolute values, whatever is said
    shift = rounded_up(target + Fraction(6, 5) * (noise + g(depth) * size) + 16 * U * size)
    left = np.float64(scale) - shift
    factor = np.sqrt(left)
    rest = abs(Fraction(float(left)) - Fraction(float(factor * factor)))
    length = order * Fraction(float(factor)) ** 2
    errors = noise + g(count + 1) * (size + Fraction(shift)) + g(depth) * length + order**2 * depth * OMEGA
    return Fraction(shift) - sqrt_up(order * rest**2) - errors


@pytest.mark.parametrize(("order", "width"), [(1, 1024), (3, 1024), (5, 2), (6, 3), (7, 1)])
@pytest.mark.parametrize("scale", [1.0, 2.0**-900])
def test_definite_floor_is_its_formula(order, width, scale, monkeypatch):
    monkeypatch.setattr(floats, "TILE", width)
    size = Fraction(scale) * order
    cases = [
        (Fraction(0), Fraction(0)),
        (power(-45) * size, Fraction(0)),
        (Fraction(0), size / 64),
        (size / 99, size / 70),
    ]
    for noise, target in cases:
        computed = floats.definite_floor(lambda r, c: scale * np.eye(order)[r, c], order, size, noise, target)
        assert near(computed, definite_expected(order, width, scale, noise, target), power(-40))
        assert target <= computed <= Fraction(scale)


def test_tiles_below_the_diagonal_are_charged(monkeypatch):
    """M = C C^T + I / 4 with C = [1 0; 3 1], in tiles of one entry: no rounding anywhere but in the bounds."""
    monkeypatch.setattr(floats, "TILE", 1)
    M, size, quarter = np.array([[1.25, 3.0], [3.0, 10.25]]), Fraction(12), Fraction(1, 4)
    target = quarter - Fraction(6, 5) * g(4) * size - 16 * U * size  # so that the shift is 1/4
    computed = floats.definite_floor(lambda r, c: M[r, c].copy(), 2, size, Fraction(0), target)
    expected = quarter - g(3) * (size + quarter) - g(4) * (1 + 9 + 1) - 4 * 4 * OMEGA
    assert near(computed, expected, power(-56))
    # Without the tile of 1 below the diagonal, it remains, and its transpose: sqrt 2 is more than the shift.
    monkeypatch.setattr(floats.np.linalg, "solve", lambda factor, part: 0 * part)
    M, target = np.array([[2.0, 1.0], [1.0, 2.0]]), Fraction(5, 4)
    with pytest.raises(NotProved):
        floats.definite_floor(lambda r, c: M[r, c].copy(), 2, Fraction(3), Fraction(0), target)
    computed = floats.definite_floor(lambda r, c: M[r, c].copy(), 2, Fraction(3), Fraction(0), Fraction(3, 2))
    assert near(computed, Fraction(3, 2) - sqrt_up(Fraction(2)), power(-40))


def test_definite_floor_and_underflow():
    """Near the bottom of the range the last term decides."""
    scale, order = 2.0**-1008, 3
    size = Fraction(scale) * order
    for target in (Fraction(scale) / 2, Fraction(scale) / 64):
        computed = floats.definite_floor(lambda r, c: scale * np.eye(order)[r, c], order, size, Fraction(0), target)
        assert near(computed, definite_expected(order, 1024, scale, Fraction(0), target), power(-30))
    assert target - computed >= order**2 * 5 * OMEGA / 2
    with pytest.raises(NotProved):  # 9 times 5 omega is more than the matrix
        floats.definite_floor(lambda r, c: 2.0**-1020 * np.eye(3)[r, c], 3, power(-1018), Fraction(0), Fraction(0))


@pytest.mark.parametrize("width", [1024, 3, 1])
def test_definite_floor_is_below_the_smallest_eigenvalue(width, monkeypatch):
    monkeypatch.setattr(floats, "TILE", width)
    rng = np.random.default_rng(0)
    for n, condition in itertools.product((1, 2, 7), (1, 1e4, 1e10)):
        Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
        M = (Q * np.logspace(0, -math.log10(condition), n)) @ Q.T
        M = (M + M.T) / 2
        with mpmath.workdps(60):
            least = min(mpmath.eigsy(mpmath.matrix(M.tolist()), eigvals_only=True))
            for share in (0.0, 0.5, 0.999):
                target = Fraction(share) * Fraction(float(least))
                try:
                    computed = floats.definite_floor(
                        lambda r, c, M=M: M[r, c].copy(), n, Fraction(n), Fraction(0), target
                    )
                except NotProved:
                    assert condition * share > 1e9
                    continue
                assert mpmath.mpf(computed.numerator) / computed.denominator <= least
            above = Fraction(float(least)) * Fraction(1001, 1000)
            with pytest.raises(NotProved):
                floats.definite_floor(lambda r, c, M=M: M[r, c].copy(), n, Fraction(n), Fraction(0), above)


def test_gram_floor_hands_on_its_bound(monkeypatch):
    given = {}
    monkeypatch.setattr(
        floats, "definite_floor", lambda tile, n, size, noise, target, run: given.update(s=size, e=noise) or target
    )
    A = np.full((4, 16), 0.25)  # a squared norm of 4
    floats.gram_floor(A, Fraction(1))
    square = floats.norm_up(A) ** 2
    assert given == {"e": g(16) * square + 16 * 16 * OMEGA, "s": square + g(16) * square + 16 * 16 * OMEGA}


def test_gram_products_err_by_what_is_charged():
    """Terms that all round the same way: the error is a good part of the bound."""
    d = 64
    A = np.full((1, d), math.sqrt(1.0 + 2.0**-30))
    exact = d * Fraction(A[0, 0]) ** 2
    computed = Fraction(float((A @ A.T)[0, 0]))
    assert abs(computed - exact) <= g(d) * exact


def test_inverse_floor_is_its_formula():
    A = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    X = np.array([[1.0 + 2.0**-20, 0.0], [0.0, 1.0], [0.0, 0.0]])
    rows, one = floats.exact_residual(A, X)
    assert [[Fraction(v, one) for v in row] for row in rows] == [[-power(-20), 0], [0, 0]]
    assert floats.inverse_floor(A, X) == (1 - sqrt_up(power(-40))) / floats.spectral_up(X)
    quick = floats.inverse_floor(A, X, Fraction(1, 2))
    norms = floats.norm_up(A) * floats.norm_up(X)
    epsilon = floats.norm_up(np.eye(2) - A @ X) * (1 + g(1)) + g(3) * norms + 4 * 3 * OMEGA
    assert quick == (1 - epsilon) / floats.spectral_up(X)
    assert floats.inverse_floor(A, 3 * X) == 0
    assert floats.inverse_floor(A, X, Fraction(10), exactly=False) == floats.inverse_floor(A, X)


def test_gate_floor_hands_on_its_bound(monkeypatch):
    given = {}
    monkeypatch.setattr(
        gates,
        "definite_floor",
        lambda tile, n, size, noise, target, run: given.update(s=size, e=noise, t=target) or 2 * target,
    )
    Z, q = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 3.0], [0.0, 4.0]])
    for delta, weights in ((Fraction(0), None), (Fraction(1, 2**30), None), (Fraction(0), np.array([2.0, 4.0]))):
        claimed = Fraction(1, 8)
        computed = gates.gate_floor(Z, q, weights, delta, claimed, map)
        S = gates.logistic(Z @ q) * (1.0 if weights is None else weights)
        lengths, rows = floats.lengths_up(S), floats.lengths_up(Z)
        longest, steepest = Fraction(float(rows.max())), Fraction(float(floats.lengths_up(q.T.copy()).max()))
        r = 2 * (g(2) * longest * steepest + 2 * OMEGA + delta * steepest) + 2 * power(-40) + 2 * U
        e = -int(np.frexp(lengths * rows)[1][0])
        units = floats.norm_up(np.ldexp(lengths * rows, e)) / (1 - g(1))
        moved = r * units + (1 + r) * delta * floats.norm_up(np.ldexp(lengths, e))
        heaviest = 1 if weights is None else 5
        moved += 2 * 2 * heaviest * longest * power(400 - 1019)
        noise = g(2 + 2 + 1) * units**2 + 4 * 5 * power(800 - 1020)
        assert given["e"] == noise
        assert given["s"] == units**2 + noise
        assert given["t"] == (claimed * power(e) + moved) ** 2
        assert computed == (sqrt_down(2 * given["t"]) - moved) / power(e)


def test_gram_matrices_of_gates_have_signs(monkeypatch):
    """The tile is D phi (D phi)^T, with phi multiplied out."""
    given = {}

    def kept(tile, n, size, noise, target, run):
        given["tile"] = tile(slice(0, 2), slice(0, 2))
        return 2 * target

    monkeypatch.setattr(gates, "definite_floor", kept)
    Z, q = np.array([[1.0, 0.5], [-1.0, 0.25]]), np.array([[1.0, -2.0], [0.5, 1.0]])
    gates.gate_floor(Z, q, None, Fraction(0), Fraction(0), map)
    S = gates.logistic(Z @ q)
    phi = (S[:, :, None] * Z[:, None, :]).reshape(2, -1)
    powers = -np.frexp(floats.lengths_up(S) * floats.lengths_up(Z))[1]
    phi = np.ldexp(phi, powers[:, None])
    assert (phi @ phi.T)[0, 1] < -0.1
    assert np.allclose(given["tile"], phi @ phi.T, rtol=1e-12, atol=1e-14)


def test_gates_are_good_to_what_is_assumed():
    rng = np.random.default_rng(0)
    with mpmath.workdps(40):
        for size in (1, 7, 64, 1001):  # lengths that fill vector registers, and that do not
            x = np.concatenate([rng.uniform(-45, 45, size), rng.uniform(-700, 700, size), [0.0, -0.0, 1e-300, -744.0]])
            s = gates.logistic(x)
            for value, argument in zip(s.tolist(), x.tolist(), strict=True):
                exact = 1 / (1 + mpmath.exp(-mpmath.mpf(argument)))
                assert abs(mpmath.mpf(value) / exact - 1) <= mpmath.mpf(2) ** -46 or exact < mpmath.mpf(2) ** -1021
            y = np.exp(-np.abs(x))
            for value, argument in zip(np.log1p(y).tolist(), y.tolist(), strict=True):
                assert abs(mpmath.mpf(value) - mpmath.log1p(mpmath.mpf(argument))) <= mpmath.mpf(2) ** -48 * mpmath.mpf(
                    value
                )


@pytest.mark.parametrize("loss", ["squared", "binary_cross_entropy", "cross_entropy"])
def test_losses_are_enclosed_and_the_enclosure_is_its_formula(loss):
    rng = np.random.default_rng(3)
    for n, m, h, m_y, steep in ((1, 1, 1, 1, 0.0), (4, 3, 5, 3, 1.0), (3, 2, 4, 2, 30.0)):
        Z = np.column_stack([rng.standard_normal((n, m)), np.ones(n)])
        R, W = steep * rng.standard_normal((m_y, m + 1, h)), rng.standard_normal((m_y, h))
        theta = 3 * rng.standard_normal((m_y, h * (m + 1)))
        if loss == "squared":
            Y = rng.standard_normal((n, m_y))
        elif loss == "cross_entropy" and m_y > 1:
            Y = np.eye(m_y)[rng.integers(0, m_y, n)]
        else:
            Y = rng.integers(0, 2, (n, m_y)).astype(float)
        inputs = {"Z": Z, "Y": Y, "R": R.reshape(-1, h), "W": W, "theta": theta}
        lower, upper, wrong = loss_interval(*outputs(inputs, theta), inputs["Y"], loss)
        with mpmath.workdps(50):
            mp = mpmath.mpf
            total, mistakes = mp(0), 0
            for i in range(n):
                f = [
                    sum(
                        mp(W[j, k])
                        / (1 + mpmath.exp(-sum(mp(Z[i, a]) * mp(R[j, a, k]) for a in range(m + 1))))
                        * sum(mp(Z[i, a]) * mp(theta[j, k * (m + 1) + a]) for a in range(m + 1))
                        for k in range(h)
                    )
                    for j in range(m_y)
                ]
                if loss == "squared":
                    total += sum((f[j] - mp(Y[i, j])) ** 2 for j in range(m_y))
                elif loss == "cross_entropy" and m_y > 1:
                    label = int(Y[i].argmax())
                    total += mpmath.log(sum(mpmath.exp(f[k] - f[label]) for k in range(m_y)))
                    mistakes += any(f[k] >= f[label] for k in range(m_y) if k != label)
                else:
                    signs = [-1 if Y[i, j] else 1 for j in range(m_y)]
                    total += sum(mpmath.log1p(mpmath.exp(s * value)) for s, value in zip(signs, f, strict=True))
                    mistakes += any(s * value >= 0 for s, value in zip(signs, f, strict=True))
            exact = total / n
            assert mp(lower.numerator) / lower.denominator <= exact <= mp(upper.numerator) / upper.denominator
            assert upper - lower <= Fraction(float(exact)) * power(-18) + power(-18)
        assert wrong == (None if loss == "squared" else mistakes)


def test_the_radius_of_an_output_is_its_formula():
    """One sample, one unit, no cancellation: every term of the radius shows."""
    z, r, w, t = 0.5, 0.75, 2.0, 4.0
    inputs = {
        "Z": np.array([[z, 1.0]]), "Y": np.zeros((1, 1)), "R": np.array([[r], [0.0]]), "W": np.array([[w]]),
        "theta": np.array([[t, 0.0]]),
    }  # fmt: skip
    lower, upper, _ = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], "squared")
    x = z * r
    s = 1 / (1 + math.exp(-x))
    e = float(g(2)) * x + 2 * 2.0**-1000
    moved = 1.2 * e * math.exp(-x) + 2 * 2.0**-40 * s
    radius = z * (moved + float(g(1 + 2 + 3)) * s) * w * t
    middle = z * s * w * t
    assert near(upper, Fraction(middle + radius) ** 2, power(-43))
    assert near(lower, Fraction(middle - radius) ** 2, power(-43))
    assert float(upper - lower) == pytest.approx(4 * middle * radius, rel=0.05)
    # A gate that is far from saturated, of a steep argument: the first term of what a gate is off by decides.
    inputs["R"] = np.array([[2.0**30], [-(2.0**29) - 0.25]])
    lower, upper, _ = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], "squared")
    e = float(g(2)) * (z * 2.0**30 + 2.0**29 + 0.25)
    s = 1 / (1 + math.exp(0.25))
    radius = z * 1.2 * e * math.exp(-0.25) * w * t
    assert float(upper - lower) == pytest.approx(4 * z * s * w * t * radius, rel=0.05)
    lower, upper, _ = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], "binary_cross_entropy")
    steepness = 1 / (1 + math.exp(-z * s * w * t))
    assert float(upper - lower) == pytest.approx(2 * steepness * radius, rel=0.05)


def test_sums_in_outputs_round_as_often_as_is_charged(monkeypatch):
    """With gates at 1/2 and a library that never errs, the roundings of the sums are all there is."""
    monkeypatch.setattr(optimality, "_LIBRARY", 0.0)
    for h, m in ((1, 2), (5, 3)):
        Z, theta = np.full((1, m), 1.0), np.full((1, h * m), 2.0)
        inputs = {"Z": Z, "Y": np.zeros((1, 1)), "R": np.zeros((m, h)), "W": np.full((1, h), 4.0), "theta": theta}
        f, radius = optimality.outputs(inputs, theta)
        assert f[0, 0] == h * m * 4
        assert near(Fraction(radius[0, 0]), g(h + m + 3) * h * m * 4, power(-9))
        assert radius[0, 0] >= g(h + m + 3) * h * m * 4


def test_leads_of_classes_are_off_by_both_outputs():
    f, radius, label = np.zeros((1, 2)), np.array([[0.5, 0.25]]), np.array([0])
    above, below, wrong = optimality._softmax(f, radius, label)
    assert math.log1p(math.exp(0.75)) <= above[0] <= math.log1p(math.exp(0.75)) * (1 + 2.0**-29)
    assert math.log1p(math.exp(-0.75)) * (1 - 2.0**-29) <= below[0] <= math.log1p(math.exp(-0.75))
    assert wrong == 1
    for classes in (2, 3000):
        above, below, _ = optimality._softmax(np.zeros((1, classes)), np.zeros((1, classes)), label)
        slack = 16 * 2.0**-40 + 2 * classes * 2.0**-53
        assert above[0] / math.log(classes) - 1 == pytest.approx(slack, rel=1e-3)
        assert 1 - below[0] / math.log(classes) == pytest.approx(slack, rel=1e-3)


def test_the_library_is_charged_in_losses_of_two_classes():
    inputs = {"Z": np.ones((1, 1)), "Y": np.zeros((1, 1)), "R": np.zeros((1, 1)), "W": np.ones((1, 1))}
    lower, upper, wrong = loss_interval(
        *outputs({**inputs, "theta": np.zeros((1, 1))}, np.zeros((1, 1))), inputs["Y"], "binary_cross_entropy"
    )
    for computed, sign in ((upper, 1), (lower, -1)):
        assert float(computed) / math.log(2) - 1 == pytest.approx(sign * 4 * 2.0**-40, rel=1e-3)
    assert wrong == 1


def test_softmax_sums_of_many_classes():
    classes = 3000
    inputs = {
        "Z": np.ones((1, 1)), "Y": np.eye(classes)[:1], "R": np.zeros((classes, 1)), "W": np.full((classes, 1), 2.0),
        "theta": np.linspace(-1.0, 1.0, classes)[:, None],
    }  # fmt: skip
    lower, upper, _ = loss_interval(*outputs(inputs, inputs["theta"]), inputs["Y"], "cross_entropy")
    with mpmath.workdps(30):
        f = [mpmath.mpf(v) for v in inputs["theta"][:, 0].tolist()]
        exact = mpmath.log(sum(mpmath.exp(v - f[0]) for v in f))
        assert (
            mpmath.mpf(lower.numerator) / lower.denominator <= exact <= mpmath.mpf(upper.numerator) / upper.denominator
        )
    assert (upper - lower) / lower >= 2 * (16 * power(-40) + 2 * classes * U) / 9  # the logarithm damps it, by 8.9 here
    assert (upper - lower) / lower <= 3 * (16 * power(-40) + 2 * classes * U)


def test_integers_are_those_of_the_bits():
    x = np.array([1.5, -0.75, 5e-324, -(2.0**-1022), 1.7976931348623157e308, 0.0, -0.0])
    m, e = integers(x)
    assert [Fraction(int(a)) * power(int(b)) for a, b in zip(m, e, strict=True)] == [Fraction(v) for v in x.tolist()]
    assert nonzero(x).tolist() == [True] * 5 + [False] * 2
    assert equal(x[5:6], x[6:])
    assert not equal(x[2:3], x[5:6])
    numbers, powers = [3, -5, 7, 11, 13, 17, 19], [0, 4, 1074, 1022, -900, 3, 1]
    total, low = combination(x[:, None], numbers, powers)
    expected = sum(a * Fraction(b) * power(c) for a, b, c in zip(numbers, x.tolist(), powers, strict=True))
    assert total[0] * power(low[0] if isinstance(low, list) else low) == expected


def test_exponents_end_at_a_thousand():
    assert FARTHEST == 1000
    exponents(np.array([1000, -1000]), 2)
    for wrong in ([1001, 0], [0, -1001], [-(2**63), 0], [0], [0.0, 0.0]):
        with pytest.raises(NotProved):
            exponents(np.array(wrong), 2)


def test_long_products_modulo_primes_are_exact():
    p, rng = next(small_primes()), np.random.default_rng(0)
    A, B = (rng.integers(p // 2 - 9, p // 2, shape) for shape in ((3, 60000), (60000, 3)))
    computed = exact._product(A.astype(float), B.astype(float), p)
    assert np.array_equal(computed.astype(np.int64) % p, (A.astype(object) @ B.astype(object)) % p)


def test_ranks_modulo_primes():
    flint = pytest.importorskip("flint")
    rng = np.random.default_rng(0)
    primes = list(itertools.islice(small_primes(), 30))
    assert primes == sorted(primes, reverse=True)
    assert all(flint.fmpz(p).is_prime() and 2**19 < p < 2**21 for p in primes)
    for _ in range(40):
        n, d, r = (int(v) for v in rng.integers(1, 70, 3))
        A = rng.integers(-5, 6, (n, r)) @ rng.integers(-5, 6, (r, d))
        for p in primes[:2]:
            assert rank_modulo(residues(A.astype(float), p), p) == flint.nmod_mat(A.tolist(), p).rank()
    wide = rng.standard_normal((5, 9)) * 2.0 ** rng.integers(-300, 300, (5, 9))
    p = primes[0]
    for value, residue in zip(wide.ravel().tolist(), residues(wide, p).ravel().tolist(), strict=True):
        a, b = value.as_integer_ratio()
        assert a * pow(b, -1, p) % p == int(residue) % p
        assert abs(residue) <= p / 2 + 1


def test_sums_of_residues_stay_exact():
    """The largest residues there are, as many at a time as are added before they are reduced."""
    from alignver.kernel import exact

    p = next(small_primes())
    half = p // 2
    terms = 3 * exact._TERMS + 5
    product = exact._product(np.full((1, terms), float(half)), np.full((terms, 1), float(half)), p)
    assert int(product[0, 0]) % p == half * half * terms % p
    assert exact._TERMS * (p // 2 + 1) ** 2 + p < 2**53


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_primes_than_minors_need_are_not_enough(count):
    """diag(1, p q) has rank 1 modulo the two primes that are tried first; likewise for products of more of them."""
    primes = list(itertools.islice(small_primes(), 2 * count))
    A = np.eye(2 * count)
    for k in range(count):
        A[k, k] = float(primes[2 * k] * primes[2 * k + 1])
    rank = count  # modulo each of these primes at most 2 count - 1 of them remain: the claim is that many less one
    most = 2 * count - 1
    forged = seal("rank", "primes", {"A": A}, {}, {"most": most, "rank": most})
    assert rank < most or count == 1
    assert verify(forged, {"A": A}).verdict is Verdict.FAILS
    two = np.diag([1.0, float(primes[0] * primes[1])])
    assert verify(seal("rank", "primes", {"A": two}, {}, {"most": 1, "rank": 1}), {"A": two}).verdict is Verdict.FAILS
    not_two = seal("not-rank", "primes", {"A": two}, {}, {"most": 1, "rank": 2})
    assert verify(not_two, {"A": two}).verdict is Verdict.FAILS


def test_residuals_are_exact():
    rng = np.random.default_rng(0)
    for n, d in ((1, 1), (2, 3), (3, 7)):
        for zeros in (False, True):
            A, X = (np.ldexp(rng.standard_normal(s), rng.integers(-90, 90, s)) for s in ((n, d), (d, n)))
            if zeros:
                A.flat[0] = X.flat[-1] = 0.0
            rows, one = floats.exact_residual(A, X)
            for i, k in itertools.product(range(n), range(n)):
                product = sum(Fraction(a) * Fraction(b) for a, b in zip(A[i].tolist(), X[:, k].tolist(), strict=True))
                assert Fraction(rows[i][k], one) == (i == k) - product


def test_blocks_near_dependence():
    """Their Gram matrices are not definite in floats; what a right inverse proves is within a factor of three."""
    t = 2.0**-40
    block, s_min = np.array([[1.0, 1.0], [1.0, 1.0 + t]]), Fraction(t) / 2
    with pytest.raises(NotProved):
        floats.gram_floor(block, s_min**2)
    assert exploration._at_least(block, s_min * (1 - power(-20)))  # with an exact residual, and refined
    assert not exploration._at_least(block, s_min * (1 + power(-20)))
    n = 260  # beyond what is multiplied out exactly
    assert n**3 > floats.EXACT
    rng = np.random.default_rng(0)
    Q, P = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    block = (Q * np.logspace(0, -9, n)) @ P
    assert exploration._at_least(block, Fraction(10**-10))
    assert exploration._at_least(block, Fraction(2 * 10**-10))
    assert not exploration._at_least(block, Fraction(1.1e-9))
