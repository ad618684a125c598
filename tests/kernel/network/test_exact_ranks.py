"""Networks of sums, products and piecewise linear functions: ranks of the Jacobian in integers decide."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from torch import nn

import alignver as av
from alignver.kernel import seal, verify
from alignver.kernel.failure import NotProved
from alignver.kernel.network import alignment, ball_matrices, balls
from alignver.network.enclosures import EnclosedNetwork, prove_alignment
from alignver.results import Rigor, Subject, Verdict


def of(network, y, bits=256):
    with balls.precision(bits):
        J = balls.columns(alignment.jacobian(network.traced.graph, network.parameters[0], network.x))
        return alignment.exact_rank(J, np.asarray(y, dtype=np.float64))


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
    proved = prove_alignment(network, y, 1, seconds=100.0, condition=lambda: 1.0)
    assert not isinstance(proved, str), proved
    return proved, {"parameters": network.parameters, "x": network.x, "y": y}


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
    proved, inputs = proof
    assert (proved.verdict, proved.certificate.method) == (Verdict.FAILS, "exact")
    assert verify(proved.certificate, inputs).verdict is Verdict.HOLDS
    J = by_hand(model, x)
    rank = J.rank()
    assert rank < J.shape[1]
    assert of(EnclosedNetwork.of(model, x), y) == (rank, False)
    assert len(proved.certificate.data["basis"]) == rank
    floats = np.array(J.tolist(), dtype=np.float64)
    residual = np.linalg.norm(y - floats @ np.linalg.lstsq(floats, y, rcond=1e-12)[0])
    assert proved.certificate.constants["distance"] == pytest.approx(residual, rel=1e-9)
    result = av.check_alignment(model, x, y, loss="squared")
    assert (result.verdict, result.rigor, result.subject) == (Verdict.FAILS, Rigor.PROOF, Subject.NETWORK)


def test_a_target_that_some_parameters_give_is_not_refuted(relu, proof):
    """y = J beta with small integers times powers of two, exactly: no certificate can say the contrary."""
    model, x, _ = relu
    dyadic = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for parameter, original in zip(dyadic.parameters(), model.parameters(), strict=True):
            parameter.copy_(torch.round(original * 64) / 64)
    grid = torch.round(x * 64) / 64
    beta = [3, -1, 2, 5, 1, -2, 4, 1, 7]
    y = np.array((by_hand(dyadic, grid) * sympy.Matrix(beta)).tolist(), dtype=np.float64)[:, 0]
    network = EnclosedNetwork.of(dyadic, grid)
    assert of(network, y)[1]
    answer = prove_alignment(network, y, 1, seconds=100.0, condition=lambda: 1.0)
    assert isinstance(answer, str)
    assert "this y is in its column space" in answer
    inputs = {"parameters": network.parameters, "x": network.x, "y": y}
    data = {"graph": network.traced.data, "basis": proof[0].certificate.data["basis"]}
    forged = seal("network-misalignment", "exact", inputs, data, {"bits": 256, "distance": 0.0})
    assert "in the column space" in verify(forged, inputs).reason
    y[3] = np.nextafter(y[3], 9.0)
    assert not of(network, y)[1]  # one unit in the last place


@pytest.mark.parametrize(
    ("basis", "constants", "words"),
    [
        (lambda b: b[:-1], {}, "another number of columns"),
        (lambda b: b[[0, 0, *range(2, len(b))]], {}, "repeated"),
        (lambda b: b + 9, {}, "out of range"),
        (lambda b: b, {"distance": 1e9}, "no such distance"),
        (lambda b: b, {"distance": -1.0}, "not a number"),
        (lambda b: b, {"bits": 64}, "not exact"),
        (lambda b: b, {"more": 1}, "other numbers"),
    ],
)
def test_forged_certificates_are_refused(proof, basis, constants, words):
    certificate, inputs = proof[0].certificate, proof[1]
    data = {**certificate.data, "basis": basis(certificate.data["basis"])}
    forged = seal(certificate.claim, "exact", inputs, data, {**certificate.constants, **constants})
    result = verify(forged, inputs)
    assert result.verdict is Verdict.FAILS
    assert words in result.reason


def test_entries_that_are_not_dyadic_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardsigmoid(), nn.Linear(3, 1)).double()
    network = EnclosedNetwork.of(model, torch.randn(30, 2).double())
    with pytest.raises(NotProved, match="not exact"):
        of(network, np.ones(30), 2048)
    smooth = EnclosedNetwork.of(nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double(), torch.randn(3, 2).double())
    answer = prove_alignment(smooth, np.ones(9), 3, seconds=100.0, condition=lambda: 1.0, deficient=True)
    assert "not dyadic" in answer


def test_ranks_of_dyadic_matrices():
    rng = np.random.default_rng(0)
    for rows, columns, rank in ((5, 3, 2), (3, 5, 3), (4, 4, 1), (2, 2, 0)):
        A = rng.integers(-9, 9, (rows, rank)) @ rng.integers(-9, 9, (rank, columns))
        A = A * 2.0 ** rng.integers(-40, 40, columns)
        with balls.precision(100):
            assert ball_matrices.rank(balls.exactly(A)) == np.linalg.matrix_rank(A / np.maximum(abs(A).max(0), 1e-300))
            if rows == columns == 4:
                A[0, 0] = np.nextafter(A[0, 0], 9e99)
                assert ball_matrices.rank(balls.exactly(A)) == 2
    with balls.precision(100), pytest.raises(NotProved, match="different sizes"):
        ball_matrices.rank(balls.exactly(np.array([[2.0**1000], [2.0**-1000]])) ** 3)


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
