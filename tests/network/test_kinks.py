"""Proofs that a model is not analytic: the outputs have two one-sided derivatives, in numbers too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignver.checks.analytic import check_analytic
from alignver.kernel import seal, verify
from alignver.kernel.network import kinks
from alignver.results import Rigor, Subject, Verdict

VECTOR, IMAGE = torch.randn(4, 3), torch.randn(4, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.m, self.n = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.n(self.b(torch.relu(self.m(self.a(x))))))


class Of(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def mlp(*middle):
    return nn.Sequential(nn.Linear(3, 5), *middle, nn.Linear(5, 2))


BENT = {
    "relu": (lambda: mlp(nn.ReLU()), VECTOR),
    "two layers": (lambda: mlp(nn.ReLU(), nn.Linear(5, 5), nn.ReLU()), VECTOR),
    "below tanh": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.Tanh()), VECTOR),
    "leaky": (lambda: mlp(nn.LeakyReLU(0.3)), VECTOR),
    "relu6": (lambda: mlp(nn.ReLU6()), VECTOR),
    "abs": (lambda: Of(lambda s, x: s.b(s.a(x).abs()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), VECTOR),
    "layer norm": (lambda: mlp(nn.LayerNorm(5), nn.ReLU()), VECTOR),
    "max pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2)
        ),
        IMAGE,
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            Residual(4),
            Residual(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_one_sided_derivatives_differ(name):
    model, x = BENT[name][0]().eval(), BENT[name][1]
    result = check_analytic(model, x)
    assert (result.verdict, result.rigor, result.code) == (Verdict.FAILS, Rigor.PROOF, "analytic-kink")
    again = verify(result.certificate, {})
    assert (again.verdict, again.subject) == (Verdict.HOLDS, Subject.NETWORK)
    model = model.double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter, value in result.witness["theta"].items():
            parameters[parameter].fill_(value)
        values = []
        for step in (0.0, 1e-3, -2e-3):
            parameters[result.witness["moved"]].add_(step)
            values.append(model(x.double()))
    right, left = (values[1] - values[0]) / 1e-3, (values[0] - values[2]) / 1e-3
    assert bool((right > left + 1e-3 * right.abs()).all())


UNPROVED = {
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)), VECTOR),
    "a frozen bias": (lambda: mlp(nn.ReLU()), VECTOR),
    "differences": (lambda: Of(lambda s, x: s.a(x).relu() - (-s.a(x)).relu(), a=nn.Linear(3, 2)), VECTOR),
    "a softmax": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.Softmax(-1)), VECTOR),
    "a square": (lambda: Of(lambda s, x: s.a(x).relu() ** 2 - s.a(x) ** 2, a=nn.Linear(3, 2)), VECTOR),
    "frozen weights of both signs": (lambda: mlp(nn.ReLU()), VECTOR),
    "a kink that is not reached": (lambda: Of(lambda s, x: s.a(x).exp().sub(-1).relu(), a=nn.Linear(3, 2)), VECTOR),
    "elu": (lambda: mlp(nn.ELU()), VECTOR),
}


@pytest.mark.parametrize("name", UNPROVED)
def test_nothing_is_refuted_without_a_proof(name):
    model, x = UNPROVED[name][0](), UNPROVED[name][1]
    if name == "a frozen bias":
        model[0].bias.requires_grad_(False)
    if name == "frozen weights of both signs":
        model[2].weight.requires_grad_(False)
    assert check_analytic(model.eval(), x).verdict is not Verdict.FAILS


def forged(certificate, **constants):
    return seal(certificate.claim, certificate.method, {}, certificate.data, {**certificate.constants, **constants})


def test_forged_lines_are_refused():
    whole = check_analytic(mlp(nn.ReLU()), VECTOR).certificate
    theta = dict(whole.constants["theta"])
    assert verify(forged(whole), {}).verdict is Verdict.HOLDS
    for name, value in [("0.bias", 1.0), ("0.weight", 1.0), ("2.weight", 0.0), ("2.weight", -1.0)]:
        assert verify(forged(whole, theta={**theta, name: value}), {}).verdict is Verdict.FAILS
    for moved in ("2.bias", "0.weight", "1.bias"):
        assert verify(forged(whole, moved=moved), {}).verdict is Verdict.FAILS
    less = {name: value for name, value in theta.items() if name != "2.weight"}
    assert verify(forged(whole, theta=less), {}).verdict is Verdict.FAILS
    assert verify(forged(whole, theta={**theta, "0.bias": 0}), {}).verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("padding", "dilation", "holds"), [([1], [1], True), ([2], [1], True), ([3], [1], False), ([1], [2], False)]
)
def test_windows_of_padding_only_are_not_bent(padding, dilation, holds):
    node = kinks.Node(
        "aten.conv1d.default",
        {"input": kinks.Ref(0), "weight": kinks.Ref(1), "padding": tuple(padding), "dilation": tuple(dilation)},
        (("float32", (1, 1, 4)),),
        "",
    )
    weight = kinks.Node("input", {}, (("float32", (1, 1, 3)),), "")
    assert kinks._meets_input(node, kinks.Graph((weight, weight, node), (2,))) is holds
