"""CompressedJacobian: the matrix that represents J has J's Gram matrix, singular values and column space."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.data import two_moons
from alignver.experiments.networks import fully_connected, lenet
from alignver.jacobians.compression import CompressedJacobian


def net(m_y: int = 3, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 40, bias=bias), nn.Tanh(), nn.Linear(40, 30, bias=bias), nn.Softplus(), nn.Linear(30, m_y)
    ).double()


X = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 4)))


@pytest.mark.parametrize("m_y", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_gram_matrix_and_singular_values(m_y, bias):
    model = net(m_y, bias)
    J = CompressedJacobian(model, X)
    assert (J.n, J.m_y, J.d) == (12, m_y, sum(p.numel() for p in model.parameters()))
    dense = av.jacobian(model, X).numpy()
    T = J.factor()
    assert T.shape == (12 * m_y, 12 * m_y)
    scale = np.linalg.norm(dense, 2)
    assert np.max(np.abs(T @ T.T - dense @ dense.T)) <= 1e-13 * scale**2
    s, t = (np.linalg.svd(A, compute_uv=False) for A in (dense, T))
    assert np.max(np.abs(s - t)) <= 1e-14 * scale


def test_it_follows_the_parameters():
    model = net()
    J = CompressedJacobian(model, X)
    with torch.no_grad():
        model[2].weight.mul_(1.5)
    dense = av.jacobian(model, X).numpy()
    T = J.factor()
    assert np.max(np.abs(T @ T.T - dense @ dense.T)) <= 1e-13 * np.linalg.norm(dense, 2) ** 2


def test_the_smallest_singular_values_of_a_trained_kind_of_network():
    """Two moons at initialisation: s_min / s_1 is 2e-10, far below what the Gram matrix resolves."""
    model = fully_connected(2).double()
    x = torch.tensor(two_moons(100).x)
    s = np.linalg.svd(av.jacobian(model, x).numpy(), compute_uv=False)
    t = np.linalg.svd(CompressedJacobian(model, x).factor(), compute_uv=False)
    assert s[-1] < 1e-8 * s[0]
    assert np.max(np.abs(s - t)) <= 100 * 2.0**-52 * s[0]


def test_the_model_is_left_as_it_was():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    CompressedJacobian(model, X).factor()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Scaled(nn.Module):
    """Reads the weight beside calling its layer: the layer's factors are not all of the derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 30), nn.Linear(30, 1)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))) + self.inner.weight.sum()


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    model[2].weight = model[0].weight
    return model


def half_frozen() -> nn.Module:
    model = net()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "x"),
    [(Twice, X), (tied, X), (half_frozen, X), (lambda: lenet(side=9), torch.zeros(5, 9, 9))],
    ids=["twice", "tied", "frozen", "convolutions"],
)
def test_other_structures_are_not_for_it(make, x):
    assert CompressedJacobian.suits(make(), x) is None
    with pytest.raises(av.InvalidInput):
        CompressedJacobian(make(), x)


def test_factors_that_are_not_the_whole_derivative_are_noticed():
    with pytest.raises(av.InvalidInput, match=r"inner\.weight"):
        CompressedJacobian(Scaled(), X).factor()


def test_nan_is_named():
    model = net()
    J = CompressedJacobian(model, X)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(av.InvalidInput, match="NaN"):
        J.factor()


@pytest.mark.parametrize("m_y", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gram_matrix_is_off_by_no_more_than_its_terms_allow(m_y, bias):
    """Entry by entry, against the same factors multiplied in exact arithmetic."""
    factors = CompressedJacobian(net(m_y, bias), X[:6]).factors()
    exact = np.full((6 * m_y, 6 * m_y), Fraction(0), dtype=object)
    for A, B, ones in factors.layers:
        a, b = (np.vectorize(Fraction, otypes=[object])(part.numpy()) for part in (A, B))
        exact = exact + np.kron(np.ones((m_y, m_y), dtype=int), a @ a.T + int(ones)) * (b @ b.T)
    computed, rounded = (
        np.vectorize(Fraction, otypes=[object])(factors.gram(precise=p).numpy()) for p in (False, True)
    )
    unit = Fraction(1, 2**53)
    assert np.all(np.abs(rounded - exact) <= np.abs(exact) * unit * (1 + Fraction(1, 2**20)))
    gamma = factors.terms * unit / (1 - factors.terms * unit)
    scale = np.sqrt(np.diagonal(exact).astype(float))
    off = np.abs(computed - exact).astype(float) / np.outer(scale, scale)
    assert 0.0 < off.max() <= float(gamma)
    widths = [(A.shape[1], B.shape[1]) for A, B, _ in factors.layers]
    assert factors.terms < sum(k * height for k, height in widths) / 2  # what d would have cost


NARROW = {  # widths, samples
    "fewer samples than inputs, a narrow layer": ((40, 2, 10), 15),
    "more samples than inputs": ((7, 3, 10), 40),
    "a narrow layer between others": ((30, 8, 2, 9, 12), 20),
    "no layer narrower than the output": ((40, 6, 4), 25),
    "one layer": ((3, 5), 9),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NARROW)
def test_a_smaller_matrix_with_the_same_singular_values(name, bias):
    torch.manual_seed(0)
    widths, n = NARROW[name]
    layers = [f for a, b in itertools.pairwise(widths) for f in (nn.Linear(a, b, bias=bias), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double()
    x, rng = torch.randn(n, widths[0], dtype=torch.float64), np.random.default_rng(0)
    J = CompressedJacobian(model, x)
    dense, b = av.jacobian(model, x).numpy(), rng.standard_normal(J.d)
    for y in (rng.standard_normal(J.N), dense @ b):
        matrix, target = J.factors().compressed(y)
        assert matrix.shape == (len(target), J.width)
        assert len(matrix) <= J.height <= J.N
        for sides in ([dense, matrix], [np.column_stack([dense, y]), np.column_stack([matrix, target])]):
            s, t = (np.append(np.linalg.svd(A, compute_uv=False), np.zeros(J.d)) for A in sides)
            assert np.max(np.abs(s[: J.d] - t[: J.d])) <= 1e-14 * s[0]
    narrowest = min(widths[1:])
    later = widths[2:] if widths[1] == narrowest else widths[-2:]
    columns = sum((k + bias) * b for k, b in itertools.pairwise((narrowest, *later)))
    rest = min(n * (widths[-1] - narrowest), columns + 1) if narrowest < widths[-1] else 0
    assert len(matrix) == n * min(narrowest, widths[-1]) + rest


class Beside(nn.Module):
    """A narrow layer, and one beside it."""

    def __init__(self, scale):
        super().__init__()
        self.into, self.out, self.beside = nn.Linear(20, 2), nn.Linear(2, 6), nn.Linear(20, 6)
        self.scale = scale

    def forward(self, x):
        return self.scale * (self.out(torch.tanh(self.into(x))) + torch.sin(self.beside(x)))


@pytest.mark.parametrize("scale", [1.0, 1e160, 1e-170])
def test_rows_of_layers_that_do_not_lead_through_the_narrow_one_remain(scale):
    """At any scale: the squares of derivatives may overflow or underflow."""
    torch.manual_seed(0)
    model, x = Beside(scale).double(), torch.randn(9, 20, dtype=torch.float64)
    y = np.random.default_rng(0).standard_normal(54)
    matrix, target = (part / c for part, c in zip(CompressedJacobian(model, x).factors().compressed(y), (scale, 1.0)))
    dense = av.jacobian(model, x).numpy() / scale
    s, t = (np.linalg.svd(A, compute_uv=False) for A in (dense, matrix))
    assert np.max(np.abs(s[: len(t)] - t[: len(s)])) <= 1e-14 * s[0]
    assert np.linalg.norm(matrix.T @ target) == pytest.approx(np.linalg.norm(dense.T @ y), rel=1e-12)


@pytest.mark.parametrize("y", ["random", "reached"])
def test_an_answer_from_fewer_columns_is_that_of_all(y, monkeypatch):
    from alignver.jacobians import jacobian_form

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 2), nn.Tanh(), nn.Linear(2, 10)).double()
    x = torch.randn(15, 40, dtype=torch.float64)
    targets = torch.randn(15, 10, dtype=torch.float64)
    if y == "reached":
        targets = (av.jacobian(model, x) @ torch.randn(112, dtype=torch.float64)).reshape(10, 15).T + model(x).detach()

    def ask():
        return av.check_alignment(model, x, targets, loss="squared", budget_seconds=0.0)

    of_all = ask()
    monkeypatch.setattr(jacobian_form, "_ONE_SECOND", 0.0)
    of_fewer = ask()
    assert "61 rows and 60 columns from the layers' factors represent J" in str(of_fewer)
    for key in ("rank", "rows", "columns", "rank_upper"):
        assert of_fewer.measured[key] == of_all.measured[key]
    assert of_fewer.verdict == of_all.verdict
    assert of_fewer.measured["residual"] == pytest.approx(of_all.measured["residual"], rel=1e-9, abs=1e-13)
    assert of_fewer.tolerance.value == pytest.approx(of_all.tolerance.value)
