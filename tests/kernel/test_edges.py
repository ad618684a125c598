"""Claims on either side of what is proved: a little less is accepted, a little more is not, for every number there
is.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import alignver as av
from alignver.errors import InvalidInput
from alignver.kernel import Certificate, floats, seal, verify
from alignver.kernel.certificate import pack, record
from alignver.kernel.exact import power, sqrt_up
from alignver.results import Verdict

MORE, LESS = 1 + Fraction(1, 2**30), 1 - Fraction(1, 2**30)
ZEROS = np.zeros(2, dtype=np.int64)


def verdict(claim, method, inputs, data, constants, **options):
    return verify(seal(claim, method, inputs, data, constants, **options), inputs).verdict


def holds(*arguments, **options):
    return verdict(*arguments, **options) is Verdict.HOLDS


# Diagonal matrices and exact right inverses: every bound is known to the last digit.
A = np.array([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
X = np.array([[0.5, 0.0], [0.0, 2.0], [0.0, 0.0]])
FLOOR = 1 / floats.spectral_up(X)  # of s_min, which is 1/2


def with_inverse(scaling=ZEROS, inverse=X, **constants):
    data = {"scaling": scaling, "right_inverse": inverse}
    if "radii" in constants:
        data["ball_radii"] = constants.pop("radii")
    return holds("rank", "right inverse", {"A": A}, data, {"side": "rows", "rank": 2, **constants})


def test_stated_bounds_of_the_smallest_singular_value():
    assert with_inverse(s_min=float(FLOOR * LESS))
    assert not with_inverse(s_min=float(FLOOR * MORE))
    up = np.array([3, 3])  # rows times 8: the inverse shrinks, the bound of A itself stays
    assert with_inverse(up, X / 8, s_min=float(FLOOR * LESS))
    assert not with_inverse(up, X / 8, s_min=float(FLOOR * MORE))


@pytest.mark.parametrize("shift", [0, 3, -3])
def test_balls(shift):
    scaling, inverse = ZEROS + shift, X / 2.0**shift
    assert with_inverse(scaling, inverse, ball={"kind": "norm", "value": float(FLOOR * LESS)})
    assert not with_inverse(scaling, inverse, ball={"kind": "norm", "value": float(FLOOR * MORE)})
    # One radius for six entries: a matrix of norm r sqrt(6).
    r = FLOOR / sqrt_up(Fraction(6))
    assert with_inverse(scaling, inverse, ball={"kind": "entrywise", "value": float(r * LESS)})
    assert not with_inverse(scaling, inverse, ball={"kind": "entrywise", "value": float(r * MORE)})
    for value, accepted in ((r * LESS, True), (r * MORE, False)):
        radii = np.full((2, 3), float(value))
        assert with_inverse(scaling, inverse, ball={"kind": "entrywise", "value": None}, radii=radii) is accepted
    for value in (None, 1, "0.1", True, -0.1):
        assert not with_inverse(scaling, inverse, ball={"kind": "norm", "value": value})
    assert not with_inverse(scaling, inverse, ball={"kind": "max", "value": 0.1})
    assert not with_inverse(scaling, inverse, ball={"kind": "entrywise", "value": None}, radii=np.full((2, 3), -0.1))
    assert not with_inverse(scaling, inverse, ball={"kind": "entrywise", "value": None}, radii=np.full((3, 2), 0.01))
    for ball in ("any", 0, (), {}):
        assert not with_inverse(scaling, inverse, ball=ball)


def test_balls_of_rows_that_are_scaled_differently():
    scaling, inverse = np.array([-1, 1]), X * np.array([2.0, 0.5])
    floor = 1 / floats.spectral_up(inverse)
    norm = floor / 2  # the larger power
    entry = floor / sqrt_up(3 * (Fraction(1, 4) + 4))
    for value, kind in ((norm, "norm"), (entry, "entrywise")):
        assert with_inverse(scaling, inverse, ball={"kind": kind, "value": float(value * LESS)})
        assert not with_inverse(scaling, inverse, ball={"kind": kind, "value": float(value * MORE)})


def test_columns_of_a_tall_matrix_and_sides():
    tall = A.T.copy()
    data = {"scaling": ZEROS, "right_inverse": X}
    radii = {"ball": {"kind": "entrywise", "value": None}}
    for side, accepted in (("columns", True), ("rows", False), ("neither", False)):
        more = {**data, "ball_radii": np.full((3, 2), 0.01)}
        assert holds("rank", "right inverse", {"A": tall}, more, {"side": side, "rank": 2, **radii}) is accepted
    assert not holds("membership", "right inverse", {"J": tall, "y": np.ones(3)}, data, {"side": "columns"})
    some = {"scaling": ZEROS, "columns": np.array([0, 1])}
    assert holds("rank", "gram", {"A": A}, some, {"side": "rows", "rank": 2, "s_min": 0.49})
    for columns in ([0], [0, 0], [0, 3], [-1, 0], [2, 0]):
        wrong = {**some, "columns": np.array(columns)}
        assert not holds("rank", "gram", {"A": A}, wrong, {"side": "rows", "rank": 2, "s_min": 0.1})


def test_a_method_uses_its_own_data_only():
    """A right inverse beside the method of Gram matrices once proved that a matrix of zeros has full rank."""
    for Z in (np.zeros((2, 2)), np.ones((2, 3))):
        data = {"scaling": ZEROS, "right_inverse": np.ones(Z.T.shape)}
        for version in (1, 2):
            for method in ("gram", "right inverse"):
                constants = {"side": "rows", "rank": 2, "shift": 0.0}
                assert not holds("rank", method, {"A": Z}, data, constants, version=version)


def test_numbers_that_a_method_does_not_prove_are_refused():
    proofs = {
        "minor": ({"rows": np.arange(2), "columns": np.arange(2)}, {}),
        "primes": ({}, {"most": 1}),
    }
    for method, (data, constants) in proofs.items():
        for stated in ("s_min", "distance"):
            assert not holds("rank", method, {"A": A}, data, {**constants, "rank": 2, stated: 0.1})
    assert holds("rank", "minor", {"A": A}, *proofs["minor"][:1], {"rank": 2})
    assert not holds("rank", "gram", {"A": A}, {"scaling": ZEROS}, {"side": "rows", "rank": 2, "distance": 0.1})
    assert not holds("rank", "gram", {"A": A}, {"scaling": ZEROS}, {"side": "rows", "rank": 2, "s_min": 1})


J = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
Y = np.array([3.0, 0.0, 4.0])


def outside(beta, y=Y, ball=None, J=J, **constants):
    data = {"scaling": np.zeros(J.shape[1], np.int64), "beta": np.array(beta), "right_inverse": np.eye(*J.shape)}
    if ball is not None:
        constants["ball"] = {"kind": "norm", "value": ball}
    return holds("non-membership", "residual", {"J": J, "y": y}, data, {"side": "columns", **constants})


def expected_distance(beta, y, delta, J=J):
    """The bound of the docstring for columns of the identity, with the norms that the kernel takes."""
    (n, d), u, scale = J.shape, Fraction(1, 2**53), -math.frexp(float(np.abs(y).max()))[1]
    t, b = np.ldexp(y, scale), np.ldexp(np.array(beta), scale)
    r = t - J @ b
    g = {k: k * u / (1 - k * u) for k in (n, d + 1)}
    size, length, floor = floats.norm_up(J), floats.norm_up(b), 1 / floats.spectral_up(np.eye(n, d))
    error = g[d + 1] * (floats.norm_up(t) + size * length) + n * (d + 1) * power(-1022) + n * power(-1074)
    slope = floats.norm_up(J.T @ r) + g[n] * size * floats.norm_up(r) + size * error
    moved = delta * length
    absorbed = (slope + delta * (floats.norm_up(r) + error) + (size + delta) * moved) / (floor - delta)
    return (floats.norm_down(r) - error - moved - absorbed) * power(-scale)


@pytest.mark.parametrize("beta", [[3.0, 0.0], [2.5, 0.25], [3.0, -1.0]])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.1])
def test_distances(beta, delta):
    exact = expected_distance(beta, Y, Fraction(delta))
    assert 0 < exact <= 4
    close = Fraction(1, 2**40)
    ball = delta or None
    assert outside(beta, ball=ball, distance=float(exact * (1 - close)))
    assert not outside(beta, ball=ball, distance=float(exact * (1 + close)))


def test_distances_that_are_hardly_more_than_rounding():
    """Each term is some units in the last place of the radius, or of the distance, at which nothing is left."""
    wide, y = np.eye(64, 40), np.append(np.full(40, 3.0), np.full(24, 4.0))
    beta = np.full(40, 3.0)
    low, high = 0.0, 0.9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_distance(beta, y, Fraction(middle), wide) > 0 else (low, middle)
    last = Fraction(low)
    assert outside(beta, y, float(last * (1 - power(-51))), wide)
    assert not outside(beta, y, float(last * (1 + power(-51))), wide)
    far, near = np.array([3.0 * 2**20, 0.0]), np.array([3.0 * 2**20, 0.0, 2.0**-10])
    exact = expected_distance(far, near, 0)
    assert exact < power(-10) * (1 - power(-20))
    assert outside(far, near, distance=float(exact * (1 - power(-40))))
    assert not outside(far, near, distance=float(exact * (1 + power(-40))))


def test_distances_near_the_end():
    delta = next(d for d in (k / 1000 for k in range(1, 1000)) if expected_distance([3.0, 0.0], Y, Fraction(d)) <= 0)
    assert not outside([3.0, 0.0], ball=delta)
    assert outside([3.0, 0.0], ball=delta - 0.002)
    assert not outside([3.0, 0.0], ball=1.0)
    near = np.array([3.0, 0.0, 2.0**-51])  # less than what rounding of the residual may be
    assert not outside([3.0, 0.0], y=near, distance=2.0**-60)
    assert not outside([np.pi, 0.0], y=np.array([np.pi, 0.0, 0.0]), ball=1e-9)
    square = {"J": np.eye(2), "y": np.ones(2)}
    assert not holds("non-membership", "residual", square, {"scaling": ZEROS, "beta": np.zeros(2)}, {"side": "columns"})


def staircase(width=2, **changes):
    """Rows (p, 1), two blocks of two of them, thresholds between; everything a little power of two."""
    Z = np.array([[4.0, 1.0], [3.0, 1.0], [-3.0, 1.0], [-4.0, 1.0]])
    data = {
        "direction": np.array([1.0, 0.0]),
        "thresholds": np.array([0.0, -8.0]),
        "floors": np.array([0.0625, 0.0625]),
    }
    constants = {"rank": 4, "width": width, "add_constant": False, "c": 16.0, "delta": 0.0, "s_min": 0.01}
    data |= {key: changes.pop(key) for key in tuple(changes) if key in data}
    Z = changes.pop("Z", Z)
    return holds("exploration", "staircase", {"Z": Z}, data, {**constants, **changes})


def test_a_staircase_and_its_bound():
    assert staircase()
    # The margin is 3 up to rounding: e^(-c 3) <= 2^-(14426 / 10000 c 3), twice, times the root of the width and
    # ||Z||_F.
    for c, delta in ((1.0, 0.0), (2.0, 0.0), (8.0, 0.0), (1.0, 2.0**-6), (8.0, 2.0**-6)):
        Z = np.array([[4.0, 1.0], [3.0, 1.0], [-3.0, 1.0], [-4.0, 1.0]])
        size = sqrt_up(Fraction(54)) + Fraction(delta) * 2
        reach = sqrt_up(1 + Fraction(64))
        margin = 3 - Fraction(delta) * reach
        k = math.floor(Fraction(c) * margin * Fraction(14426, 10000))
        bound = Fraction(0.0625) / 2 - power(-k) * sqrt_up(Fraction(2)) * size
        close = Fraction(1, 2**40)
        if bound > 0:
            assert staircase(Z=Z, c=c, delta=delta, s_min=float(bound * (1 - close)))
            assert not staircase(Z=Z, c=c, delta=delta, s_min=float(bound * (1 + close)))
        else:
            assert not staircase(Z=Z, c=c, delta=delta, s_min=5e-324)


def test_one_block_is_not_halved():
    Z = np.array([[4.0, 1.0], [3.0, 1.0]])
    one = {"Z": Z, "rank": 2, "width": 1, "thresholds": np.array([-64.0]), "floors": np.array([0.125])}
    assert staircase(**one, s_min=0.124)
    assert not staircase(**one, s_min=0.1251)


def test_margins_below_their_rounding_are_refused():
    """The distance from a threshold is above what half of the error would be, and below the error."""
    m = 33
    row = np.full(m, 1.0)
    Z = np.vstack([row, row])
    Z[1, 0] = 3.0
    v = np.append(np.full(m - 1, 1.0), 0.0)
    longest, length = sqrt_up(Fraction(9 + 32)), sqrt_up(Fraction(32))
    gamma = floats.gamma(m)
    error = gamma * longest * length
    values = Z @ v
    data = {"floors": np.array([1.0, 1.0])}
    for share, accepted in ((Fraction(3, 4), False), (Fraction(5, 4), True)):
        threshold = float(Fraction(values[1]) - share * error)
        given = {**data, "direction": v, "thresholds": np.array([threshold, values[0] - 64.0])}
        assert staircase(Z=Z, rank=2, width=2, c=2.0**60, s_min=0.1, **given) is accepted
    # Rows that may move by delta move the projection by delta times the length of (v, -t).
    reach = sqrt_up(Fraction(32) + Fraction(values[0] - 64.0) ** 2)
    for share, accepted in ((0.9, True), (1.1, False)):
        delta = float(Fraction(share) / reach)
        given = {**data, "direction": v, "thresholds": np.array([values[1] - 1.0, values[0] - 64.0])}
        given["floors"] = np.array([1.0, 1.0])
        assert staircase(Z=Z, rank=2, width=2, c=2.0**60, s_min=0.1, delta=delta, **given) is accepted


def test_bounds_of_blocks_hold_for_rows_that_move():
    """A block's s_min is 0.1 or so: with its two rows moved by delta each, less by delta times the root of 2."""
    exact = Fraction(float(np.linalg.svd(np.array([[4.0, 1.0], [3.0, 1.0]]), compute_uv=False)[-1]))
    for delta in (0.0, 0.01):
        left = exact - Fraction(delta) * sqrt_up(Fraction(2))
        close = Fraction(1, 2**24)
        assert staircase(floors=np.full(2, float(left * (1 - close))), delta=delta, s_min=1e-3)
        assert not staircase(floors=np.full(2, float(left * (1 + close))), delta=delta, s_min=1e-3)


def test_staircases_that_are_none():
    for changes in (
        {"c": 3.0}, {"c": 0.0}, {"c": -16.0}, {"c": 2.0**1023}, {"c": 2.0**-1074}, {"delta": -1.0}, {"delta": 1},
        {"direction": np.array([1.0, 1.0])}, {"direction": np.array([1.0, 5e-324])}, {"direction": np.array([1, 0])},
        {"thresholds": np.array([-8.0, 0.0])}, {"thresholds": np.array([0.0, -2.0])},
        {"thresholds": np.array([3.0, -8.0])},
        {"floors": np.array([0.0625])}, {"floors": np.array([0.0, 0.0])}, {"floors": np.array([1, 1])},
        {"rank": 3}, {"rank": 0}, {"rank": True}, {"width": 3}, {"width": 0}, {"add_constant": 1},
        {"add_constant": True}, {"s_min": 0.04}, {"s_min": -1.0}, {"distance": 1.0},
        {"ball": {"kind": "norm", "value": 1e6}},
    ):  # fmt: skip
        assert not staircase(**changes), changes
    assert staircase(thresholds=np.array([0.0, 0.0, -8.0]), width=3)  # a gate more only adds columns


def test_gates_with_a_ball_or_with_weights():
    Z = np.array([[0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
    q = np.array([[5.0, -3.0, 1.0], [1.0, 0.5, 0.0]])
    constants = {"rank": 3, "width": 3, "add_constant": False, "delta": 0.0, "s_min": 0.01}
    assert holds("exploration-gates", "gram", {"Z": Z}, {"gates": q}, constants)
    for ball in ({"kind": "norm", "value": 1e6}, "any", -1, ()):
        assert not holds("exploration-gates", "gram", {"Z": Z}, {"gates": q}, {**constants, "ball": ball})
    heavy = {"gates": q, "weights": np.full(3, 2.0**100)}
    result = verify(seal("exploration-gates", "gram", {"Z": Z}, heavy, {**constants, "s_min": 1e25}), {"Z": Z})
    assert result.verdict is Verdict.HOLDS
    assert "phi(q) (diag(w) x I)" in result.statement
    assert "phi(q) (diag(w) x I)" in result.reason
    good = np.array([-1, -1, -1])
    assert holds("exploration-gates", "gram", {"Z": Z}, {"gates": q, "scaling": good}, constants)
    for scaling in (good + 5, good[:2], good.astype(float), good - 2000):
        assert not holds("exploration-gates", "gram", {"Z": Z}, {"gates": q, "scaling": scaling}, constants)
    for wrong in ({"gates": q[:, :2]}, {"gates": q, "weights": np.ones(2)}, {"gates": q.astype(int)}, {}):
        assert not holds("exploration-gates", "gram", {"Z": Z}, wrong, constants)
    for far in (q * 2.0**398, q * 1e15):
        assert not holds("exploration-gates", "gram", {"Z": Z}, {"gates": far}, constants)
    huge = {**constants, "delta": 0.5}
    assert not holds("exploration-gates", "gram", {"Z": Z}, {"gates": q}, huge)


def test_features_that_do_not_suffice():
    Z = np.array([[1.0, 0.0, 1.0], [2.0, 0.0, 1.0], [3.0, 0.0, 1.0], [4.0, 0.0, 1.0], [5.0, 0.0, 1.0]])
    sizes = {"rank": 5, "add_constant": False}
    none = np.zeros(0, dtype=np.int64)
    assert holds("no-exploration", "count", {"Z": Z}, {}, {**sizes, "width": 1})
    assert not holds("no-exploration", "count", {"Z": Z}, {}, {**sizes, "width": 2})
    zero = {"zero": np.array([1]), "copies": none.reshape(0, 2)}
    assert holds("no-exploration", "columns", {"Z": Z}, zero, {**sizes, "width": 2})
    assert not holds("no-exploration", "columns", {"Z": Z}, zero, {**sizes, "width": 3})
    for data in (
        {**zero, "zero": np.array([0])}, {**zero, "zero": np.array([1, 1])}, {**zero, "zero": np.array([3])},
        {"zero": none, "copies": np.array([[1, 0]])}, {"zero": np.array([1]), "copies": np.array([[1, 0]])},
        {"zero": none, "copies": np.array([[0, 1], [1, 0]])}, {**zero, "zero": np.zeros((3, 0), dtype=np.int64)},
        {**zero, "zero": np.array([1.0])}, {**zero, "copies": none},
    ):  # fmt: skip
        assert not holds("no-exploration", "columns", {"Z": Z}, data, {**sizes, "width": 2}), data
    inner = {"method": "minor", "constants": {"rank": 2}}
    data = {"rows": np.array([0, 1]), "columns": np.array([0, 2])}
    assert not holds("no-exploration", "rank of Z", {"Z": Z}, data, {**sizes, "width": 2, "of Z": inner})
    primes = {"method": "primes", "constants": {"rank": 2, "most": 2}}
    assert holds("no-exploration", "rank of Z", {"Z": Z}, {}, {**sizes, "width": 2, "of Z": primes})
    assert not holds("no-exploration", "rank of Z", {"Z": Z}, {}, {**sizes, "width": 3, "of Z": primes})
    in_ball = {"method": "primes", "constants": {"rank": 2, "most": 2, "ball": {"kind": "norm", "value": 1.0}}}
    assert not holds("no-exploration", "rank of Z", {"Z": Z}, {}, {**sizes, "width": 2, "of Z": in_ball})


def factored(**changes):
    layer = {"A0": np.eye(2), "B0": np.ones((2, 1))}
    data = {"scaling": ZEROS, **layer} | {key: changes.pop(key) for key in ("A0", "B0", "scaling") if key in changes}
    constants = {"samples": 2, "outputs": 1, "layers": [{"name": "w", "positions": 1}], "s_min": 0.99,
                 "ball": {"kind": "norm", "value": 0.99}} | changes  # fmt: skip
    return holds("factored-membership", "factored gram", {"y": np.ones(2)}, data, constants)


def test_factors_of_the_identity():
    assert factored()
    for changes in (
        {"s_min": 1.01}, {"ball": {"kind": "norm", "value": 1.0}}, {"ball": {"kind": "entrywise", "value": 0.1}},
        {"scaling": np.array([0, 1001])}, {"samples": 1}, {"outputs": 2}, {"layers": []}, {"samples": True},
        {"A0": np.eye(2) * 2.0**401}, {"A0": np.ones((2, 1))}, {"B0": np.zeros((2, 1))}, {"A0": np.eye(2).astype(int)},
        {"layers": [{"name": "w", "positions": 2}]}, {"layers": [{"name": "w", "positions": True}]},
        {"A0": np.zeros((2, 0))}, {"distance": 1.0},
    ):  # fmt: skip
        assert not factored(**changes), changes
    assert factored(scaling=np.array([7, 7]))
    inputs = {"y": np.ones(2), "Q": np.zeros((1, 1))}
    data = {"scaling": ZEROS, "A0": np.eye(2), "B0": np.ones((2, 1))}
    extra = seal("factored-membership", "factored gram", inputs, data,
                 {"samples": 2, "outputs": 1, "layers": [{"name": "w", "positions": 1}], "s_min": 0.5,
                  "ball": {"kind": "norm", "value": 0.1}})  # fmt: skip
    assert verify(extra, inputs).verdict is Verdict.FAILS


@pytest.mark.parametrize(("p", "q"), [(5, 3), (9, 7)])  # the one layer rounds more, or the other
def test_factors_whose_products_round(monkeypatch, p, q):
    """What goes to the routine of definiteness, against the formula."""
    from alignver.kernel import matrices as module

    rng = np.random.default_rng(0)
    n, m, T, a, b = 2, 2, 3, 4, 2
    A0, B0 = rng.standard_normal((n * T, a)), rng.standard_normal((m * n * T, b))
    A1, B1 = rng.standard_normal((n, p)), rng.standard_normal((m * n, q))
    data = {"scaling": np.zeros(4, np.int64), "A0": A0, "B0": B0, "A1": A1, "B1": B1}
    constants = {"samples": n, "outputs": m, "s_min": 1e-3, "ball": {"kind": "norm", "value": 1e-6},
                 "layers": [{"name": "c", "positions": T}, {"name": "w", "positions": 1}]}  # fmt: skip
    given = {}

    def definite(tile, order, size, noise, target, run):
        given.update(size=size, noise=noise, target=target)
        return 4 * target

    monkeypatch.setattr(module, "definite_floor", definite)
    assert holds("factored-membership", "factored gram", {"y": np.ones(4)}, data, constants)
    g, omega = floats.gamma, power(-1022)
    shares, lost = [], Fraction(0)
    for A_, B_, t, k in ((A0, B0, T, a), (A1, B1, 1, p)):
        A3, B4 = A_.reshape(n, t, -1), B_.reshape(m, n, t, -1)
        lengths = np.einsum("it,jit->ij", floats.lengths_up(A3), floats.lengths_up(B4))
        share = floats.norm_up(lengths) / (1 - g(t + 1)) + n * m * t * omega
        shares.append(share)
        lost += (g(t) * share if t > 1 else 0) + n * m * k * B4.shape[3] * t * omega * power(400)
    size = sum(share**2 for share in shares)
    roundings = max(a * b + 2 * T, p + q + 1 + 2) + 2
    noise = g(roundings) * size + 16 * ((a + b) * T * T + p + q) ** 2 * omega * power(804)
    assert given["noise"] == noise
    assert given["size"] == size + noise
    assert given["target"] == (Fraction(1e-3) + lost) ** 2
    # What is proved about the Gram matrix, less what was lost in forming columns, must reach the claim.
    root = Fraction(1e-3) + lost / 2
    monkeypatch.setattr(module, "definite_floor", lambda *_: root**2)
    assert lost > 0
    assert not holds("factored-membership", "factored gram", {"y": np.ones(4)}, data, constants)
    root += lost
    assert holds("factored-membership", "factored gram", {"y": np.ones(4)}, data, constants)


def test_solutions_and_null_vectors_at_their_limits():
    J_, y = np.array([[2.0, 0.0], [0.0, 5e-324]]), np.array([4.0, 5e-324])
    beta = {"support": np.array([0, 1]), "exponents": ZEROS, **pack("beta", [2, 1, 1])}
    assert holds("membership", "solution", {"J": J_, "y": y}, beta, {})
    for wrong in ([2, 2, 1], [2, 1, 2], [2, 1, 0], [2, 1], [2, 1, 1, 1]):
        assert not holds("membership", "solution", {"J": J_, "y": y}, {**beta, **pack("beta", wrong)}, {})
    ball = {"ball": {"kind": "norm", "value": 0.0}}
    assert not holds("membership", "solution", {"J": J_, "y": y}, beta, ball)
    nothing = {"support": ZEROS[:0], "exponents": ZEROS[:0], **pack("beta", [1])}
    assert holds("membership", "solution", {"J": J_, "y": 0 * y}, nothing, ball)
    assert not holds("membership", "solution", {"J": J_, "y": y}, nothing, ball)
    twin = np.array([[1.0, 5e-324], [1.0, 5e-324]])
    w = {"support": np.array([0, 1]), "exponents": ZEROS, **pack("w", [1, -1])}
    assert holds("non-membership", "null vector", {"J": twin, "y": np.array([1.0, 0.0])}, w, {})
    assert not holds("non-membership", "null vector", {"J": twin, "y": np.ones(2)}, w, {})
    twin[1, 1] = 1e-323
    assert not holds("non-membership", "null vector", {"J": twin, "y": np.array([1.0, 0.0])}, w, {})
    reduced = {"dropped": np.array([1]), "repeats": np.array([0])}
    pair = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert holds("membership", "reduced", {"J": pair, "y": np.ones(2)}, reduced, {})
    assert not holds("membership", "reduced", {"J": pair, "y": np.array([1.0, 2.0])}, reduced, {})
    assert not holds("membership", "reduced", {"J": twin, "y": np.ones(2)}, reduced, {})
    for repeats in ([-1], [1], [2], [-2], [0, 0]):
        wrong = {**reduced, "repeats": np.array(repeats)}
        assert not holds("membership", "reduced", {"J": pair, "y": np.ones(2)}, wrong, {})
    zero = np.array([[1.0, 2.0], [0.0, 0.0]])
    empty = {"dropped": np.array([1]), "repeats": np.array([-1])}
    assert holds("membership", "reduced", {"J": zero, "y": np.array([1.0, 0.0])}, empty, {})
    assert not holds("membership", "reduced", {"J": zero, "y": np.array([1.0, 5e-324])}, empty, {})
    zero[1, 1] = 5e-324
    assert not holds("membership", "reduced", {"J": zero, "y": np.array([1.0, 0.0])}, empty, {})
    both = {"dropped": np.array([0, 1]), "repeats": np.array([1, 0])}  # each said to repeat the other, both left out
    assert not holds("membership", "reduced", {"J": pair, "y": np.ones(2)}, both, {})


def test_null_spaces_and_shapes():
    low = np.array([[1.0, 2.0], [2.0, 4.0]])
    data = {"own": np.array([1]), "shared": np.array([0]), "exponents": ZEROS, **pack("w", [1, -2])}
    assert holds("rank", "null space", {"A": low}, data, {"side": "left", "rank": 1})
    assert holds("not-rank", "null space", {"A": low}, data, {"side": "left", "rank": 2})
    assert holds("rank", "null space", {"A": low.T.copy()}, data, {"side": "right", "rank": 1})
    for rank in (0, 2, -1, True, 1.0):
        assert not holds("rank", "null space", {"A": low}, data, {"side": "left", "rank": rank})
    for w in ([0, 1], [1, -1], [1], [1, -2, 0], [2, -4, 1]):
        assert not holds("rank", "null space", {"A": low}, {**data, **pack("w", w)}, {"side": "left", "rank": 1})
    overlap = {**data, "shared": np.array([1])}
    assert not holds("rank", "null space", {"A": low}, overlap, {"side": "left", "rank": 1})
    full = np.array([[1.0, 2.0], [2.0, 4.0 + 2.0**-50]])
    assert not holds("rank", "null space", {"A": full}, data, {"side": "left", "rank": 1})
    zero = np.zeros((2, 2))
    every = {"own": np.array([0, 1]), "shared": ZEROS[:0], "exponents": ZEROS, **pack("w", [1, 1])}
    assert holds("rank", "null space", {"A": zero}, every, {"side": "left", "rank": 0})
    # An upper bound is no rank: rank 0 is claimed to be 1 from null vectors of one row.
    assert not holds("rank", "null space", {"A": zero}, data | pack("w", [1, 0]), {"side": "left", "rank": 1})
    assert holds("not-rank", "shape", {"A": low}, {}, {"rank": 3})
    assert not holds("not-rank", "shape", {"A": low}, {}, {"rank": 2})
    assert not holds("rank", "shape", {"A": low}, {}, {"rank": 3})
    minor = {"rows": np.array([0]), "columns": np.array([1])}
    assert holds("not-rank", "minor", {"A": low}, minor, {"rank": 0})
    assert not holds("not-rank", "minor", {"A": low}, minor, {"rank": 1})
    assert not holds("rank", "minor", {"A": low}, minor, {"rank": 1})
    assert not holds("not-rank", "minor", {"A": low}, {**minor, "columns": np.array([0, 1])}, {"rank": 0})
    for most in (-1, 2, 1.0, True, None):
        assert not holds("rank", "primes", {"A": low}, {}, {"rank": 1, "most": most})


def test_gaps_at_their_edges():
    Z, W, theta = np.array([[1.0, 1.0]]), np.array([[2.0]]), np.array([[0.5, 0.5]])
    inputs = {"Z": Z, "Y": np.zeros((1, 1)), "R": np.zeros((2, 1)), "W": W, "theta": theta}  # an output of 1
    constants = {"loss": "squared", "gap": 1.0 + 1e-10, "errors": None, "ranks": [None]}
    assert holds("optimality", "outputs", inputs, {}, constants)
    for changes in (
        {"gap": 1.0}, {"gap": 1}, {"gap": "2.0"}, {"errors": 0}, {"errors": -1}, {"ranks": []}, {"ranks": None},
        {"loss": "hinge"}, {"ranks": [{"s_min": 9.0}]}, {"s_min": 0.1}, {"ball": {"kind": "norm", "value": 0.1}},
    ):  # fmt: skip
        assert not holds("optimality", "outputs", inputs, {}, {**constants, **changes}), changes
    better = {"better": np.array([[0.25, 0.25]])}
    below = {**constants, "gap": 0.7499}
    assert holds("suboptimality", "outputs", inputs, better, below)
    assert not holds("suboptimality", "outputs", inputs, better, {**below, "gap": 0.7501})
    assert not holds("suboptimality", "outputs", inputs, {"better": np.ones((1, 2))}, below)
    assert not holds("suboptimality", "outputs", inputs, {"better": np.ones((2, 1))}, below)
    assert not holds("suboptimality", "outputs", inputs, better, {**below, "errors": 0})
    assert not holds("suboptimality", "outputs", inputs, better, {**below, "ranks": [{"s_min": 9.0}]})
    assert not holds("suboptimality", "outputs", inputs, {}, below)  # without rank n the infimum may be larger than 0
    ranked = {**below, "ranks": [{"s_min": 0.5}], "gap": 0.99}
    assert holds("suboptimality", "outputs", inputs, {}, ranked)
    assert not holds("suboptimality", "outputs", inputs, {}, {**ranked, "gap": 1.01})
    for data, stated, words in ((better, below, "better by more than 0.7499"), ({}, ranked, "its infimum is 0")):
        assert words in verify(seal("suboptimality", "outputs", inputs, data, stated), inputs).reason
    for name, other in (
        ("Z", np.array([[1.0, 2.0]])), ("Y", np.zeros((1, 2))), ("R", np.zeros((3, 1))), ("theta", np.zeros((1, 3))),
    ):  # fmt: skip
        assert not holds("optimality", "outputs", {**inputs, name: other}, {}, {**constants, "gap": 1e9})
    for loss in ("binary_cross_entropy", "cross_entropy"):
        classes = {**inputs, "Y": np.array([[1.0]])}
        right = {"loss": loss, "gap": 0.32, "errors": 0, "ranks": [None]}
        assert holds("optimality", "outputs", classes, {}, right)
        assert not holds("optimality", "outputs", {**classes, "Y": np.array([[0.5]])}, {}, {**right, "gap": 9.0})
        assert not holds("optimality", "outputs", {**classes, "Y": np.array([[0.0]])}, {}, {**right, "gap": 9.0})
    soft = {**inputs, "Y": np.ones((1, 2)), "R": np.zeros((4, 1)), "W": np.full((2, 1), 2.0), "theta": np.ones((2, 2))}
    assert not holds(
        "optimality", "outputs", soft, {}, {"loss": "cross_entropy", "gap": 9.0, "errors": 1, "ranks": [None] * 2}
    )
    far = {**inputs, "R": np.array([[2.0**60], [0.0]])}
    assert not holds("optimality", "outputs", far, {}, {**constants, "gap": 1e9})


def test_what_no_certificate_can_hold_is_refused_not_raised():
    A_ = np.eye(2)
    good = av.check_rank(A_, rank=2).certificate
    for changes in (
        {"claim": None}, {"claim": ["rank"]}, {"method": ["gram"]}, {"seal": None}, {"constants": 1.0},
        {"inputs": None}, {"inputs": {"A": 3}}, {"data": []}, {"data": {"scaling": "x"}},
        {"constants": {"deep": nested(2000)}}, {"version": 3},
    ):  # fmt: skip
        wrong = Certificate(**{**vars(good), **changes})
        assert verify(wrong, {"A": A_}).verdict is Verdict.FAILS, changes
    for path in ("a\0b", "\ud800", "x" * 5000):
        with pytest.raises(InvalidInput):
            verify(path, {"A": A_})
    with pytest.raises(InvalidInput):
        verify(3, {"A": A_})  # type: ignore[arg-type]


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value,)
    return value


def test_short_reads_of_rows_are_refused():
    class Short:
        shape, dtype = (4, 3), np.dtype(np.float64)

        def __getitem__(self, which):
            return np.ones((1, 3))

    forged = seal("no-exploration", "equal rows", {"Z": {**record(np.ones((1, 3))), "shape": [4, 3]}},
                  {"rows": np.array([2, 3])}, {"rank": 4, "width": 2, "add_constant": False})  # fmt: skip
    with pytest.raises(InvalidInput, match="Z"):
        verify(forged, {"Z": Short()})
