"""Jacobians of neither full row rank nor full column rank: exact dependences of rows and columns decide."""

from __future__ import annotations

from fractions import Fraction

import flint
import numpy as np
import pytest
import sympy
import torch
from torch import nn

import alignver as av
from alignver.kernel import seal, verify
from alignver.kernel.failure import NotProved
from alignver.kernel.network import alignment, balls
from alignver.kernel.network.dependences import Dependences, Ring
from alignver.network.enclosures import EnclosedNetwork, prove_alignment
from alignver.results import Rigor, Subject, Verdict


def of(network, N, bits=128):
    with balls.precision(bits):
        return alignment.dependences(network.traced.graph, network.parameters[0], network.x, N)


def proved(model, x, y, m_y=1):
    network = EnclosedNetwork.of(model.double(), x.double())
    return network, prove_alignment(network, np.asarray(y, float), m_y, seconds=1000.0, condition=lambda: 1.0)


def verified(network, proof, y):
    inputs = {"parameters": network.parameters, "x": network.x, "y": np.asarray(y, float)}
    return verify(proof.certificate, inputs).verdict is Verdict.HOLDS


@pytest.fixture(scope="module")
def relu():
    """20 samples: the two hidden units have a scale each that the output does not see, so that the rank is 7 of 9."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].bias += 1.0
    x = torch.randn(20, 2, dtype=torch.float64)
    y = torch.randn(20, dtype=torch.float64).numpy()
    return model, x, y


@pytest.fixture(scope="module")
def proof(relu):
    model, x, y = relu
    network = EnclosedNetwork.of(model, x)
    refuted = prove_alignment(network, y, 1, seconds=1000.0, condition=lambda: 1.0)
    assert not isinstance(refuted, str), refuted
    return refuted, {"parameters": network.parameters, "x": network.x, "y": y}


def by_hand(model, x):
    """The Jacobian in fractions."""
    W, b, v, _ = ([Fraction(entry) for entry in p.detach().reshape(-1).tolist()] for p in model.parameters())
    rows = []
    for sample in x.tolist():
        a = [Fraction(entry) for entry in sample]
        h = [W[2 * k] * a[0] + W[2 * k + 1] * a[1] + b[k] for k in range(2)]
        on = [int(entry > 0) for entry in h]
        row = [v[k] * on[k] * entry for k in range(2) for entry in a]
        rows.append([*row, *(v[k] * on[k] for k in range(2)), *(h[k] * on[k] for k in range(2)), Fraction(1)])
    return sympy.Matrix(rows)


def test_a_relu_network_of_deficient_rank_is_refuted(relu, proof):
    model, x, y = relu
    refuted, inputs = proof
    assert (refuted.verdict, refuted.certificate.method) == (Verdict.FAILS, "exact")
    assert verify(refuted.certificate, inputs).verdict is Verdict.HOLDS
    J = by_hand(model, x)
    rank = J.rank()
    assert rank < J.shape[1]
    exact = of(EnclosedNetwork.of(model, x), len(y))
    assert len(exact.column_basis()) == len(exact.row_basis(np.zeros(20))) == rank
    assert len(exact.row_basis(y)) == rank + 1
    assert [sum(map(len, exact.generators(first))) for first in (0, 4, 9)] == [rank] * 3
    floats = np.array(J.tolist(), dtype=np.float64)
    residual = np.linalg.norm(y - floats @ np.linalg.lstsq(floats, y, rcond=1e-12)[0])
    assert refuted.certificate.constants["distance"] == pytest.approx(residual, rel=1e-9)
    result = av.check_alignment(model, x, y, loss="squared")
    assert (result.verdict, result.rigor, result.subject) == (Verdict.FAILS, Rigor.PROOF, Subject.NETWORK)


def test_a_target_that_some_parameters_give_is_proved(relu, proof):
    """y = J beta with small integers times powers of two, exactly: no certificate can say the contrary."""
    model, x, _ = relu
    dyadic = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for parameter, original in zip(dyadic.parameters(), model.parameters(), strict=True):
            parameter.copy_(torch.round(original * 64) / 64)
    grid = torch.round(x * 64) / 64
    J = by_hand(dyadic, grid)
    y = np.array((J * sympy.Matrix([3, -1, 2, 5, 1, -2, 4, 1, 7])).tolist(), dtype=np.float64)[:, 0]
    network, answer = proved(dyadic, grid, y)
    assert answer.verdict is Verdict.HOLDS
    assert verified(network, answer, y)
    floats = np.array(J.tolist(), dtype=np.float64)
    assert answer.kappa == pytest.approx(2 * (np.linalg.norm(np.linalg.pinv(floats, rcond=1e-12) @ y),), rel=1e-9)
    inputs = {"parameters": network.parameters, "x": network.x, "y": y}
    for first in range(10):
        data = {"graph": network.traced.data, "first": np.array([first])}
        forged = seal("network-misalignment", "exact", inputs, data, {"bits": 256, "distance": 0.0})
        assert verify(forged, inputs).verdict is Verdict.FAILS
    y[3] = np.nextafter(y[3], 9.0)  # one unit in the last place
    exact = of(network, len(y))
    assert len(exact.row_basis(y)) > len(exact.row_basis(0 * y))
    forged = seal(
        "network-alignment", "exact", {**inputs, "y": y}, answer.certificate.data, answer.certificate.constants
    )
    assert verify(forged, {**inputs, "y": y}).verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("first", "constants", "words"),
    [
        ([10], {}, "out of range"),
        ([0, 1], {}, "the number of columns is missing"),
        ([], {}, "the number of columns is missing"),
        ([0], {"distance": 1e9}, "distance is not proved"),
        ([0], {"distance": -1.0}, "not a number"),
        ([0], {"more": 1}, "the stated numbers are not those that are proved"),
    ],
)
def test_forged_certificates_are_refused(proof, first, constants, words):
    certificate, inputs = proof[0].certificate, proof[1]
    data = {**certificate.data, "first": np.array(first, dtype=np.int64)}
    forged = seal(certificate.claim, "exact", inputs, data, {**certificate.constants, **constants})
    result = verify(forged, inputs)
    assert result.verdict is Verdict.FAILS
    assert words in result.reason


class Scaled(nn.Module):
    """Rows of weights of norms that are parameters: those of the directions are not used."""

    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.rand(2, 1) + 0.5)
        self.out = nn.Linear(2, 1)

    def forward(self, x):
        return self.out(torch.tanh(x @ (self.g * self.v / self.v.norm(dim=1, keepdim=True)).T))


class Attend(nn.Module):
    """Softmax does not see what is added to all scores: the biases of the keys have no influence."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(2, 1)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Factors(nn.Module):
    """A product of two matrices of parameters."""

    def __init__(self):
        super().__init__()
        self.f, self.g, self.out = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.g(self.f(x))))


def copied():
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
    return model


def normed():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2).eval()
    norm.running_mean, norm.running_var = torch.randn(2), torch.rand(2) + 0.5
    return nn.Sequential(nn.Linear(2, 2), norm, nn.Sigmoid(), nn.Linear(2, 1))


DEFICIENT = {
    "copied units": (copied, (2,), 4),
    "batch norm after a layer": (normed, (2,), 4),
    "layer norm": (lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)), (2,), 11),
    "norms of weights": (Scaled, (3,), 2),
    "product of matrices": (Factors, (2,), 8),
    "keys": (Attend, (2, 2), 18),
    "exponential": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1), nn.Linear(2, 1)), (2,), 4),
}


@pytest.mark.parametrize("name", DEFICIENT)
def test_smooth_networks_of_deficient_rank_are_refuted(name):
    """The rank of the columns is that of the Jacobian in float64, and the distance that of least squares."""
    make, shape, missing = DEFICIENT[name]
    torch.manual_seed(1)
    model = make().double().eval()
    d = sum(p.numel() for p in model.parameters())
    x = torch.randn(d + 2, *shape, dtype=torch.float64)
    y = np.random.default_rng(0).normal(size=d + 2)
    network, proof = proved(model, x, y)
    exact = of(network, d + 2)
    assert len(exact.column_basis()) == d - missing
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(model(x)[i, 0], parameters) for i in range(len(x))]
    J = np.array([torch.cat([g.reshape(-1) for g in row]).numpy() for row in rows])
    np.testing.assert_allclose(exact.J.astype(float), J, atol=1e-12)
    assert np.linalg.matrix_rank(J, 1e-10 * np.linalg.norm(J)) == d - missing
    assert proof.verdict is Verdict.FAILS
    assert verified(network, proof, y)
    residual = np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=1e-10)[0])
    assert proof.certificate.constants["distance"] == pytest.approx(residual, rel=1e-6)


def test_few_units_before_many_outputs():
    """The 11 weights of a layer of one unit act through one number for each of 5 samples, beside 3 outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 1), nn.SiLU(), nn.Linear(1, 3)).double()
    x, y = torch.randn(5, 11, dtype=torch.float64), np.random.default_rng(0).normal(size=15)
    network, proof = proved(model, x, y, 3)
    assert (proof.verdict, proof.certificate.data["first"].tolist()) == (Verdict.FAILS, [11])
    assert verified(network, proof, y)
    exact = of(network, 15)
    assert len(exact.column_basis()) == 11
    J = exact.J.astype(float)
    lines, basis = exact.generators(12)
    assert len(lines) + len(basis) == np.linalg.matrix_rank(J, 1e-10) == 9  # 5 + 6, of which 2 are among the 5
    residual = np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=1e-10)[0])
    assert proof.certificate.constants["distance"] == pytest.approx(residual, rel=1e-6)
    inputs = {"parameters": network.parameters, "x": network.x, "y": y}
    for first in (0, 5, 11, 12, 13, 15, 18):
        data = {**proof.certificate.data, "first": np.array([first])}
        result = verify(seal("network-misalignment", "exact", inputs, data, {"bits": 128, "distance": 0.0}), inputs)
        assert result.verdict is Verdict.HOLDS or sum(map(len, exact.generators(first))) != 9
        of_inside = {**inputs, "y": J @ np.ones(J.shape[1])}  # up to rounding
        forged = seal("network-misalignment", "exact", of_inside, data, {"bits": 128, "distance": 1e-12})
        assert verify(forged, of_inside).verdict is Verdict.FAILS


class Unused(nn.Module):
    """A layer of one unit and a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.f, self.unused, self.g = nn.Linear(3, 1), nn.Parameter(torch.ones(4)), nn.Linear(1, 3)

    def forward(self, x):
        return self.g(torch.sin(self.f(x)))


def test_parameters_that_no_output_depends_on_do_not_hide_a_split():
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), np.random.default_rng(0).normal(size=12)
    result = av.check_alignment(Unused(), x, y.reshape(3, 4).T, loss="squared")
    assert (result.verdict, result.subject, result.rigor) == (Verdict.FAILS, Subject.NETWORK, Rigor.PROOF)


class Spread(nn.Module):
    """The variance of three units, two of which are copies: a quadratic form of rank 1."""

    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(2, 3, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.f.weight[1] = self.f.weight[0]

    def forward(self, x):
        return self.g(self.f(x).var(-1, keepdim=True))


def test_means_of_three_are_known_exactly():
    """1/3 is no float; that 3 (1/3) is 1 is what makes the rank 2."""
    torch.manual_seed(0)
    x, y = torch.randn(4, 2, dtype=torch.float64), np.array([1.0, 0.0, 2.0, -1.0])
    network, proof = proved(Spread(), x, y)
    assert (proof.verdict, proof.certificate.method) == (Verdict.FAILS, "exact")
    assert verified(network, proof, y)
    J = of(network, 4).J.astype(float)
    assert np.linalg.matrix_rank(J, 1e-10) == 2
    residual = np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=1e-10)[0])
    assert proof.certificate.constants["distance"] == pytest.approx(residual, rel=1e-6)
    with balls.precision(128):
        ring = Ring()
        third, root = ring.ratio(1.0, 3.0, False), ring.ratio(1.0, 2.0, True)
        assert (3 * third - 1).terms == (2 * root * root - 1).terms == ring.ratio(0.0, 3.0, False).terms == {}
        assert third.ball.contains(flint.arb(1) / 3)


def test_bounds_of_kappa_may_be_far_apart():
    """The weight is of use only if it is large, and a bound of kappa from below knows the bias alone."""
    model, x, y = nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [3.0]]).double() * 2.0**-200, [2.0, 3.0, 4.0]
    network, proof = proved(model, x, y)
    assert (proof.verdict, proof.certificate.method) == (Verdict.HOLDS, "exact")
    assert proof.kappa[0] <= 2.0**200 <= proof.kappa[1]
    assert verified(network, proof, y)


def test_rows_of_odd_networks():
    """f(-x) = -f(x): with targets of the same kind y is reached, with others it is not, at any number of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5, bias=False), nn.Tanh(), nn.Linear(5, 1, bias=False))
    x = torch.tensor([[0.3, 1.0], [-0.3, -1.0], [0.5, -2.0], [0.0, 0.0]])
    y = np.array([1.0, -1.0, 3.0, 0.0])
    network, proof = proved(model, x, y)
    assert (proof.verdict, proof.certificate.method) == (Verdict.HOLDS, "exact")
    assert verified(network, proof, y)
    J = of(network, 4).J.astype(float)
    assert proof.kappa == pytest.approx(2 * (np.linalg.norm(np.linalg.pinv(J, rcond=1e-10) @ y),), rel=1e-9)
    for other, distance in (([1.0, -0.5, 3.0, 0.0], 0.5 / np.sqrt(2)), ([1.0, -1.0, 3.0, 1e-9], 1e-9)):
        network, proof = proved(model, x, other)
        assert proof.verdict is Verdict.FAILS
        assert verified(network, proof, other)
        assert proof.certificate.constants["distance"] == pytest.approx(distance)


def test_targets_that_some_columns_give():
    """More samples than parameters, and y is 0, or what the last bias gives: kappa is at most its norm."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(20, 2)
    for y, most in ((np.zeros(40), 0.0), (np.repeat([3.0, -4.0], 20), 5.0)):
        network, proof = proved(model, x, y, 2)
        assert (proof.verdict, proof.certificate.method) == (Verdict.HOLDS, "exact")
        assert verified(network, proof, y)
        J = of(network, 40).J.astype(float)
        smallest = np.linalg.norm(np.linalg.lstsq(J, y, rcond=None)[0])
        assert proof.kappa[0] <= smallest * (1 + 1e-9)
        assert smallest <= proof.kappa[1] * (1 + 1e-9)
        assert proof.kappa[1] == pytest.approx(most)
        if most:
            y[0] = np.nextafter(3.0, 4.0)
            assert not isinstance(proved(model, x, y, 2)[1], type(proof))  # outside, by less than its rounding


def numbers(ring, *values):
    with_radius = [flint.arb(value, 1e-30) for value in values]
    return [ring.unknown(value, ball) for value, ball in zip(values, with_radius, strict=True)]


def test_polynomials():
    """Identities of polynomials hold, and nothing is identified that is not known to be equal."""
    with balls.precision(128):
        ring = Ring()
        a, b = numbers(ring, 0.7, 1.9)
        assert ((a + b) * (a - b) - a * a + b * b).terms == {}
        assert ((1 + a) ** 3 - (1 + 3 * a + 3 * a * a + a * a * a)).terms == {}
        assert (a - b).terms != {}
        assert (a / b * b - a).terms != {}  # quotients are not simplified
        assert (a.exp() - a.exp()).terms == {}
        assert ((-a).tanh() + a.tanh()).terms == ((-a).cosh() - a.cosh()).terms == {}
        assert ((-a).exp() + a.exp()).terms != {}
        root = ring.lifted(2).sqrt()
        assert (root * root - 2).terms == (1 / root - root / 2).terms == {}
        assert (a.exp().sqrt() ** 2 - a.exp()).terms != {}
        third = flint.arb(1) / 3
        assert (ring.lifted(third) - third).terms == {}
        assert (ring.lifted(third) - flint.arb(1) / 3).terms != {}  # another object: not known to be equal
        places = {place for k in range(100) for place in ring.lifted(flint.arb(k, 1e-30)).terms}
        assert len(places) == 100  # although no variable holds the objects
        assert ring.lifted(0).exp().terms == ring.lifted(1).terms
        many = numbers(ring, *range(1, 20))
        long = sum(many) * sum(many)
        assert len(long.terms) == 1  # too long: an indeterminate of its own, the same for the same polynomial
        assert long.ball.overlaps(flint.arb(190**2))
        assert (long - sum(many) * sum(many)).terms == {}
        assert (abs(-a) - a).terms == {}
        with pytest.raises(TypeError, match="sign"):
            abs(a - a.mid())
        with pytest.raises(NotProved, match="division"):
            1 / (a - a)


@pytest.mark.parametrize("start", [2.0, 3.0, 2.0**-1000])
def test_repeated_squares_stay_small(start):
    """A hostile graph could else fill the memory: the coefficients of k squares have 2^k bits."""
    with balls.precision(128):
        ring = Ring()
        number = ring.exactly(np.array([start]))[0]
        for _ in range(40):
            number = number * number
            assert all(max(int(c.p.bit_length()), int(c.q.bit_length())) <= 2**14 for c in number.terms.values())
        assert number.key("square") == (number * 1).key("square")
        assert number.ball > 0


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("row", range(4))
def test_columns_that_differ_in_one_row_are_independent(first, row):
    """Modulo the first columns, here one of constants, every row that is left tells columns apart."""
    with balls.precision(128):
        ring = Ring()
        a, b, c, d, other = numbers(ring, 0.7, 1.9, 0.3, 2.3, 1.1)
        column = [a, b, c, d]
        changed = [other if i == row else entry for i, entry in enumerate(column)]
        J = np.array([[ring.lifted(1)] * 4, column, changed], dtype=object).T
        lines, basis = Dependences(J, ring).generators(first)
        assert len(lines) + len(basis) == 3
        same = np.array([[ring.lifted(1)] * 4, column, column], dtype=object).T
        lines, basis = Dependences(same, ring).generators(first)
        assert len(lines) + len(basis) == 2


def test_known_weights_bound_kappa_on_both_sides():
    """The smallest solution of beta_1 + a beta_2 = 1 is (1, a) / (1 + a^2), and a known one is (1, 1 / a) / 2."""
    with balls.precision(128):
        ring = Ring()
        (a,) = numbers(ring, 0.7)
        square = Dependences(np.array([[ring.lifted(1), a]], dtype=object), ring).reached(np.ones(1), [])
        assert square.contains(1 / (1 + a.ball**2))
        assert square.contains((1 + 1 / a.ball**2) / 4)


def test_common_factors_of_columns():
    """Columns are divided by numbers that are known not to be 0."""
    with balls.precision(128):
        ring = Ring()
        a, b = numbers(ring, 0.7, 1.9)
        zero = ring.unknown("zero", flint.arb(0, 1e-9))
        J = np.array([[a, a * b, a * zero], [2 * a, 2 * a * b, 2 * a * zero], [3 * a, 3 * a * b, 3 * a * zero]])
        assert Dependences(J, ring).column_basis() == [0, 2]  # the last one is 0, or not
        y = np.array([1.0, 2.0, 3.0])
        weights = Dependences(J[:, :2], ring).weights(y)
        np.testing.assert_allclose(weights.astype(float), [0.5 / 0.7, 0.5 / (0.7 * 1.9)])
        with pytest.raises(NotProved, match="known weights"):
            Dependences(J, ring).weights(np.array([1.0, 2.0, 3.5]))


@pytest.mark.parametrize("layer", [nn.Softshrink(0.3), nn.Hardshrink(0.3), nn.Softshrink(0.0)])
def test_shrinkage(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1)).double()
    network = EnclosedNetwork.of(model, torch.randn(9, 3, dtype=torch.float64))
    with balls.precision(128):
        values = balls.values(network.program)[network.program.output]
        J = balls.columns(alignment.jacobian(network.traced.graph, network.parameters[0], network.x))
    X = torch.tensor(network.x)
    np.testing.assert_allclose(values.astype(float).reshape(-1), model(X).detach().numpy()[:, 0], atol=1e-14)
    for i in range(9):
        parts = torch.autograd.grad(model(X)[i, 0], list(model.parameters()))
        np.testing.assert_allclose(J[i].astype(float), torch.cat([p.reshape(-1) for p in parts]).numpy(), atol=1e-14)


class Largest(nn.Module):
    """The largest of two entries, padded by zeros or not, times a parameter."""

    def __init__(self, function, *, pad=False):
        super().__init__()
        self.f, self.g, self.function, self.pad = nn.Conv1d(1, 1, 2), nn.Linear(1, 1), function, pad
        with torch.no_grad():
            self.f.weight[:], self.f.bias[:] = 0.5, 0.0

    def forward(self, x):
        h = self.function(x if self.pad else self.f(x[:, None])[:, 0])
        return self.g((nn.functional.pad(h, (1, 1)) if self.pad else h).amax(1, keepdim=True))


def test_a_maximum_of_equal_numbers_may_be_a_kink():
    """tanh(w . (1, 0)) = tanh(w . (0, 1)) for w = (1/2, 1/2), other gradients; those of ReLU's zeros are equal."""
    x = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 3.0], [3.0, 1.0, 2.0]]).double()
    network = EnclosedNetwork.of(Largest(nn.Tanh()).double(), x)
    with pytest.raises(NotProved, match="a maximum is not decided"):
        of(network, 3)
    x[0] = torch.tensor([-1.0, 0.0, -2.0])
    zeros = [0, 0, 0, 0, 1]
    assert of(EnclosedNetwork.of(Largest(nn.ReLU()).double(), x), 3).J[0].astype(float).tolist() == zeros
    larger = Largest(lambda h: torch.maximum(torch.relu(h[:, :1]), torch.relu(h[:, 1:])))
    network = EnclosedNetwork.of(larger.double(), x)
    with balls.precision(128):
        leaves = alignment.jacobian(network.traced.graph, network.parameters[0], network.x)
        assert balls.columns(leaves)[0].astype(float).tolist() == zeros
    x = torch.tensor([[0.0], [1.0], [1.0]]).double()
    assert of(EnclosedNetwork.of(Largest(nn.Identity(), pad=True).double(), x), 3).column_basis() == [0, 1]
