"""What is analytic in the parameters, what is not, and what nobody saw."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.checks.analytic import check_analytic
from alignver.errors import InvalidInput
from alignver.experiments.networks import fully_connected, lenet
from alignver.results import CheckResult, Rigor, Verdict
from tests import zoo
from tests.reference import fingerprint


def between(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *modules, nn.Linear(4, 1)).eval()


class Applied(nn.Module):
    """A function of a layer's output and of the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x), x)


ANALYTIC = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.LogSigmoid(),
    nn.Softmax(1),
    nn.BatchNorm1d(4),
    nn.LayerNorm(4),
    nn.GroupNorm(2, 4),
    nn.Dropout(0.5),
    nn.Identity(),
    nn.Flatten(),
    nn.Sequential(nn.Unflatten(1, (1, 4)), nn.AvgPool1d(1), nn.Conv1d(1, 1, 1), nn.Flatten()),
    nn.Tanhshrink(),
]
BROKEN = [
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.RReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardshrink(),
    nn.Softshrink(),
    nn.Threshold(0.0, 0.0),
    nn.ELU(),
    nn.CELU(),
    nn.SELU(),
    nn.Softsign(),
    nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(1), nn.Flatten()),
    nn.Softplus(threshold=5.0),
]


@pytest.mark.parametrize("module", ANALYTIC, ids=lambda module: type(module).__name__)
def test_analytic_modules(module):
    assert check_analytic(between(module)).verdict is Verdict.HOLDS


@pytest.mark.parametrize("module", BROKEN, ids=lambda module: type(module).__name__)
def test_modules_that_are_not(module):
    result = check_analytic(between(nn.Tanh(), module))
    assert result.verdict is Verdict.FAILS
    name = "2.1" if isinstance(module, nn.Sequential) else "2"
    assert f"'{name}'" in result.reason
    assert result.witness["operations"][0]["where"] == name


@pytest.mark.parametrize(
    "function",
    [
        lambda z, x: F.relu(z),
        lambda z, x: torch.relu_(z),
        lambda z, x: z.relu(),
        lambda z, x: z.abs(),
        lambda z, x: abs(z),
        lambda z, x: torch.sign(z) * z,
        lambda z, x: z.clamp(min=0),
        lambda z, x: torch.maximum(z, x),
        lambda z, x: torch.where(z > 0, z, x),
        lambda z, x: z * (z > 0),
        lambda z, x: z.max(1).values,
        lambda z, x: F.max_pool1d(z, 2),
        lambda z, x: F.elu(z),
        lambda z, x: z // 2,
        lambda z, x: z.round(),
        lambda z, x: F.softplus(z, threshold=1.0),
    ],
)
def test_functions_that_are_not(function):
    result = check_analytic(Applied(function))
    assert result.verdict is Verdict.FAILS, result
    assert result.rigor is Rigor.NUMERICAL


@pytest.mark.parametrize(
    "function",
    [
        lambda z, x: z * x + z**2 - 3 * z.mean(1, keepdim=True),
        lambda z, x: torch.cat([z, x.abs()], 1),
        lambda z, x: z / 2.0 + z / (1.0 + x.abs()),
        lambda z, x: torch.where(x > 0, z, -z),
        lambda z, x: z.masked_fill(x > 0, 0.0),
        lambda z, x: F.softplus(z, beta=100.0),
        lambda z, x: F.dropout(z, training=False),
        lambda z, x: F.layer_norm(z, (4,)),
        lambda z, x: z.reshape(len(x), -1)[:, : x.shape[1]],
        lambda z, x: torch.einsum("ij,ij->i", z, z),
        lambda z, x: z.flatten(1).sin().logsumexp(1),
        lambda z, x: F.scaled_dot_product_attention(z, z, z),
    ],
)
def test_functions_that_are(function):
    assert check_analytic(Applied(function)).verdict is Verdict.HOLDS, check_analytic(Applied(function))


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda z, x: x / z, "divides"),
        (lambda z, x: z.sqrt(), "positive"),
        (lambda z, x: z.log(), "positive"),
        (lambda z, x: z**0.5, "base is positive"),
        (lambda z, x: z**-1, "base is positive"),
        (lambda z, x: z.norm(dim=1), "away from zero"),
        (lambda z, x: F.dropout(z), "random"),
        (lambda z, x: torch.special.zeta(z, 2.0), "not known"),
        (lambda z, x: F.layer_norm(z, (4,), eps=0.0), "variance"),
        (lambda z, x: z if bool((z > 0).all()) else -z, "cannot be traced"),
        (lambda z, x: torch.stack(list(z)), "cannot be traced"),
    ],
)
def test_what_is_not_established(function, word):
    result = check_analytic(Applied(function))
    assert result.verdict is Verdict.UNDECIDED, result
    assert word in str(result)


def test_only_what_depends_on_the_parameters_matters():
    assert check_analytic(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Linear(2, 1))).verdict is Verdict.HOLDS
    frozen = between(nn.ReLU())
    frozen[0].requires_grad_(False)
    assert check_analytic(frozen).verdict is Verdict.HOLDS
    assert check_analytic(nn.Sequential(nn.PReLU(), nn.Linear(2, 1))).verdict is Verdict.HOLDS
    unused = Applied(lambda z, x: z)
    unused.relu = nn.ReLU()
    assert check_analytic(unused).verdict is Verdict.HOLDS


def test_softplus_is_taken_for_the_papers_with_a_word():
    result = check_analytic(between(nn.Softplus(beta=2.0)))
    assert result.verdict is Verdict.HOLDS
    assert "1.0e-09" in result.evidence[0]
    below = torch.nextafter(torch.tensor(10.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    softplus = nn.Softplus(beta=2.0)
    jump = softplus(below) - softplus(below + 1e-14)
    assert float(jump) == pytest.approx(1.03e-9, rel=1e-2)


@pytest.mark.parametrize("build", [lambda: fully_connected(2, width=8), lambda: lenet(side=10)])
def test_the_papers_networks(build):
    result = check_analytic(build())
    assert result.verdict is Verdict.HOLDS
    assert "softplus" in result.evidence[0]


WANTED = {
    "batch norm in eval mode": Verdict.FAILS,
    "attention": Verdict.FAILS,
    "attention in eval mode": Verdict.FAILS,
    "control flow on data": Verdict.UNDECIDED,
    "weight norm": Verdict.UNDECIDED,
}


@pytest.mark.parametrize("name", zoo.CASES)
def test_the_zoo(name):
    model, _ = zoo.build(name)
    before = fingerprint(model)
    result = check_analytic(model)
    assert fingerprint(model) == before
    assert result.verdict is WANTED.get(name, Verdict.HOLDS), result
    assert CheckResult.from_dict(result.to_dict()) == result


def test_train_mode():
    assert check_analytic(between(nn.BatchNorm1d(4)).train()).verdict is Verdict.UNDECIDED
    assert "train mode" in check_analytic(between(nn.Dropout(0.5)).train()).reason


def test_transformers():
    layer = nn.TransformerEncoderLayer(4, 1, 8, activation="gelu", batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert check_analytic(between(stack).eval()).verdict is Verdict.HOLDS
    relu = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1, 8), 2, enable_nested_tensor=False)
    assert check_analytic(between(relu).eval()).verdict is Verdict.FAILS
    odd = nn.TransformerEncoderLayer(4, 1, 8, activation=torch.sin)
    assert check_analytic(between(odd)).verdict is Verdict.UNDECIDED


def test_hooks_are_not_overlooked():
    model = between(nn.Tanh())
    model[1].register_forward_hook(lambda module, args, output: output.abs())
    result = check_analytic(model)
    assert result.verdict is Verdict.UNDECIDED
    assert "hooks" in result.reason


def test_a_relu_that_was_not_seen_to_run_is_named_and_decides_nothing():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.layer(x)) if float(x.sum()) > 0 else self.layer(x)

    result = check_analytic(Hidden())
    assert result.verdict is Verdict.UNDECIDED
    assert "ReLU 'act' bends, if it is used" in result.reason


@pytest.mark.parametrize("model", ["no module", None, nn.Tanh])
def test_bad_input(model):
    with pytest.raises(InvalidInput) as refused:
        check_analytic(model)
    assert refused.value.argument == "model"
