"""Theorems about networks, end to end: what is true of the network, and not of its floats."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.kernel import verify
from alignver.kernel.network import norm_alignment
from alignver.network.enclosures import EnclosedNetwork, prove_alignment
from alignver.results import Rigor, Subject, Verdict
from tests.kernel.network.test_architectures import Tied

mp = mpmath.mp.clone()
mp.dps = 60


class Shifted(nn.Module):
    """Features x (or x^2) and (x + 2^40) - 2^40, which is x in real arithmetic and not in floats."""

    def __init__(self, square):
        super().__init__()
        self.out, self.square = nn.Linear(2, 1, bias=False), square

    def forward(self, x):
        return self.out(torch.cat([x, ((x**2 if self.square else x) + 2.0**40) - 2.0**40], 1))


def test_equal_features_are_not_told_apart_by_rounding():
    result = av.check_alignment(Shifted(False).double(), np.array([[0.3], [0.7]]), [1.0, 0.0], loss="squared")
    assert not (result.verdict is Verdict.HOLDS and result.subject is Subject.NETWORK)


def test_a_square_under_an_offset():
    x = np.array([[0.25], [0.5], [1.0]])
    result = av.check_alignment(Shifted(True).double(), x, (x**2)[:, 0], loss="squared")
    assert not (result.verdict is Verdict.FAILS and result.subject is Subject.NETWORK)
    other = av.check_alignment(Shifted(True).double(), x, [1.0, 0.0, 0.5], loss="squared")
    assert (other.verdict, other.subject, other.rigor) == (Verdict.FAILS, Subject.NETWORK, Rigor.PROOF)


def proved(model, x, y):
    network = EnclosedNetwork.of(model.double().eval(), x.double())
    proof = prove_alignment(network, np.asarray(y, dtype=np.float64), 1, seconds=100.0, condition=lambda: 1.0)
    assert not isinstance(proof, str), proof
    inputs = {"parameters": network.parameters, "x": network.x, "y": np.asarray(y, dtype=np.float64)}
    assert verify(proof.certificate, inputs).verdict is Verdict.HOLDS
    return proof


def _cosh_features(x, shift):
    """The derivatives of the outputs of 'logsumexp minus relu' for the biases 30 and 31, by their definition."""
    h = [mp.mpf(float(x)) + b for b in shift]
    f, d = [mp.log1p(mp.exp(-t)) for t in h], [-1 / (1 + mp.exp(t)) for t in h]
    return [*f, d[0] * mp.mpf(float(x)), d[1] * mp.mpf(float(x)), *d]


class Cancelling(nn.Module):
    """softplus(h) - relu(h), which is 1e-13 for h = 30."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.inner.weight.fill_(1.0)
            self.inner.bias.copy_(torch.tensor([30.0, 31.0]))
            self.out.weight.fill_(1.0)

    def forward(self, x):
        h = self.inner(x)
        return self.out(torch.logsumexp(torch.stack([h, torch.zeros_like(h)]), 0) - torch.relu(h))


class TwoBiases(nn.Module):
    """A smooth network, in which the columns of a second bias are those of the first, or nearly."""

    def __init__(self, factor):
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(2, 2), nn.Linear(2, 1), factor
        self.second = nn.Parameter(torch.randn(2))

    def forward(self, x):
        second = self.second if self.factor == 1.0 else self.second * self.factor
        return self.last(torch.tanh(self.first(x) + second))


def test_two_biases_of_a_smooth_network():
    """Equal columns are one: y is proved to be outside; multiples of them are found by their coefficients."""
    torch.manual_seed(0)
    x, y = torch.randn(25, 2, dtype=torch.float64), np.random.default_rng(0).standard_normal(25)
    model = TwoBiases(1.0).double()
    proved = prove_alignment(EnclosedNetwork.of(model, x), y, 1, seconds=60.0, condition=lambda: 1.0)
    assert (proved.verdict, proved.certificate.method) == (Verdict.FAILS, "balls")
    J = av.jacobian(model, x).numpy()
    distance = np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=None)[0])
    assert distance * (1 - 1e-9) <= proved.certificate.constants["distance"] <= distance * (1 + 1e-9)
    assert verify(proved.certificate, {"parameters": EnclosedNetwork.of(model, x).parameters, "x": x.numpy(), "y": y}
                  ).verdict is Verdict.HOLDS  # fmt: skip
    network = EnclosedNetwork.of(model, x)
    answer = prove_alignment(network, J @ np.ones(J.shape[1]), 1, seconds=60.0, condition=lambda: 1.0)
    assert "less than its rounding" in answer
    network = EnclosedNetwork.of(TwoBiases(3.0).double(), x)
    proved = prove_alignment(network, y, 1, seconds=60.0, condition=lambda: 1.0)
    assert (proved.verdict, proved.certificate.method) == (Verdict.FAILS, "exact")
    assert (
        verify(proved.certificate, {"parameters": network.parameters, "x": x.numpy(), "y": y}).verdict is Verdict.HOLDS
    )


def test_kappa_is_that_of_60_digits():
    x, y = torch.tensor([[0.1], [0.4], [0.8]], dtype=torch.float64), [1.0, -2.0, 0.5]
    result = proved(Cancelling(), x, y)
    J = mp.matrix([_cosh_features(value, (30, 31)) for value in x[:, 0]])
    target = mp.matrix(y)
    with mp.workdps(150):
        kappa = mp.sqrt((target.T * mp.lu_solve(J * J.T, target))[0])
    assert result.verdict is Verdict.HOLDS
    assert result.kappa[0] <= kappa <= result.kappa[1]
    assert result.kappa[1] - result.kappa[0] <= 1e-12 * result.kappa[1]


def test_tied_weights_have_cross_terms():
    torch.manual_seed(0)
    model, x = Tied(lambda x, W: (torch.tanh(x @ W) @ W).sum(1), 2, 2), torch.randn(3, 2)
    y = [1.0, 2.0, 3.0]
    result = proved(model, x, y)
    J = av.jacobian(model.double(), x.double()).numpy()
    expected = np.sqrt(np.array(y) @ np.linalg.solve(J @ J.T, np.array(y)))
    assert math.isclose(result.kappa[0], expected, rel_tol=1e-7)


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).detach())


def test_other_derivatives_than_autograd_are_named():
    torch.manual_seed(0)
    result = av.check_alignment(Straight(), torch.randn(4, 2), torch.randn(4), loss="squared")
    assert result.subject is Subject.NETWORK
    assert any("detach" in line for line in result.evidence)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "decided"), [(1e100, True), (1e150, False)])
def test_kappa_beyond_floats_is_no_theorem(size, decided):
    """kappa is 1e300, of which the square is no float, or 1e350, which no certificate can state."""
    model, x = nn.Linear(3, 1, bias=False).double(), torch.eye(3, dtype=torch.float64) * 1e-200
    y = np.array([1.0, -1.0, 1.0]) * size
    network = EnclosedNetwork.of(model, x)
    answer = prove_alignment(network, y, 1, seconds=60.0, condition=lambda: 1.0)
    if not decided:
        assert isinstance(answer, str)
        assert "beyond the largest float" in answer
        return
    low, high = answer.certificate.constants["kappa"]
    assert low <= math.sqrt(3.0) * 1e300 * (1 + 1e-12)
    assert high >= math.sqrt(3.0) * 1e300 * (1 - 1e-12)
    assert high <= low * (1 + 1e-12)
    inputs = {"parameters": network.parameters, "x": network.x, "y": y}
    assert verify(answer.certificate, inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sine_wave_is_aligned_and_hopeless(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(1, 300), nn.Softplus(100), nn.Linear(300, 300), nn.Softplus(100), nn.Linear(300, 1)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=300**-0.5)
    x = torch.rand(100, 1) * 2 - 1
    result = av.check_alignment(nn.Sequential(*layers), x, torch.sin(8 * x[:, 0]), loss="squared")
    assert (result.verdict, result.subject, result.rigor) == (Verdict.HOLDS, Subject.NETWORK, Rigor.PROOF)
    assert 1e15 < result.measured["kappa"]["lower"] < 1e40


def test_bounds_in_float64_leave_room_for_other_roundings(monkeypatch):
    """A re-check has another number of threads, and its own last digits."""
    monkeypatch.setattr("alignver.network.enclosures._QUICK", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    network, y = EnclosedNetwork.of(model, torch.randn(6, 3).double()), np.arange(12.0)
    proof = prove_alignment(network, y, 2, seconds=100.0, condition=lambda: 1.0)
    low, high = proof.certificate.constants["kappa"]
    J = norm_alignment.jacobian(network.traced.graph, network.parameters[0], network.x)
    lower, upper, _ = norm_alignment.aligned(J, y, proof.certificate.constants["shift"])
    assert proof.certificate.method == "norms"
    assert low**2 < lower * (1 - Fraction(1, 2 * 10**6)) < upper * (1 + Fraction(1, 2 * 10**6)) < high**2


def test_the_least_precision_that_is_needed_is_tried_however_slow_it_is(monkeypatch):
    """Others beyond it are not, if they take long: a thousand rows need 1500 bits, and get 2048."""
    monkeypatch.setattr("alignver.network.enclosures._QUICK", 0.0)
    monkeypatch.setattr("alignver.network.enclosures._needed_bits", lambda network, bits: 1500.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    network = EnclosedNetwork.of(model, torch.tensor([[0.5], [0.25], [1.0]]))
    proof = prove_alignment(network, np.array([1.0, 0.0, 1.0]), 1, seconds=100.0, condition=lambda: 1e200)
    assert proof.verdict is Verdict.HOLDS
    assert proof.certificate.constants["bits"] == 2048
