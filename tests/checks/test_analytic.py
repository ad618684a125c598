"""What is analytic in the parameters, what is not, and what nobody saw."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alignver.checks.analytic import check_analytic
from alignver.errors import InvalidInput
from alignver.experiments.networks import fully_connected, lenet
from alignver.kernel import verify
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
UNPROVED = [
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


@pytest.mark.parametrize("module", UNPROVED, ids=lambda module: type(module).__name__)
def test_modules_of_which_nothing_is_proved(module):
    result = check_analytic(between(nn.Tanh(), module))
    assert (result.verdict, result.code) == (Verdict.UNDECIDED, "analytic-unproved")
    name = "2.1" if isinstance(module, nn.Sequential) else "2"
    assert f"'{name}'" in result.reason
    assert result.measured["unproved"][0]["where"] == name


@pytest.mark.parametrize(
    "function",
    [
        lambda a, x: torch.linalg.norm(a.exp(), ord=1),
        lambda a, x: torch.linalg.norm(a.exp(), ord=-2),
        lambda a, x: torch.linalg.matrix_norm(a.exp(), ord=2),
        lambda z, x: torch.sign(z) * z,
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
def test_functions_of_which_nothing_is_proved(function):
    assert check_analytic(Applied(function)).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    "function",
    [
        lambda z, x: F.relu(z),
        lambda z, x: torch.relu_(z),
        lambda z, x: z.relu(),
        lambda z, x: z.abs(),
        lambda z, x: abs(z),
        lambda z, x: z.clamp(min=0),
    ],
)
def test_functions_with_a_kink(function):
    result = check_analytic(Applied(function))
    assert (result.verdict, result.rigor, result.code) == (Verdict.FAILS, Rigor.PROOF, "analytic-kink")


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
        lambda z, x: torch.relu(z.exp()) + (z.square() + 1).abs(),  # on one side of the kink for every theta
        lambda z, x: (z.square() + 0.5).sqrt() + (z.exp() + F.softplus(z)).log() + x / (1 + z.sigmoid()),
        lambda z, x: z.tanh().atanh() + (z.exp() + 1) ** 0.5 + (1 + z**2) ** -1.5 + torch.log1p(z**2),
        lambda z, x: (z.exp() + z**4).norm(dim=1) + 2.0 ** z[:, 0] + z.cosh().rsqrt()[:, 0],
        lambda z, x: torch.softmax(z.masked_fill(torch.eye(4)[1] > 0, -torch.inf), 1),
    ],
)
def test_functions_that_are(function):
    result = check_analytic(Applied(function).eval())
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF), result
    assert verify(result.certificate, {}).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda z, x: x / z, "divisor"),
        (lambda z, x: z.sqrt(), "above 0"),
        (lambda z, x: z + z.square().sqrt(), "above 0"),
        (lambda z, x: z.log(), "above 0"),
        (lambda z, x: z**0.5, "base"),
        (lambda z, x: z**-1, "base"),
        (lambda z, x: z.norm(dim=1), "zero"),
        (lambda z, x: torch.stack([torch.ones_like(z), z]).norm(p=1, dim=0), "zero"),
        (lambda z, x: torch.log1p(-torch.softmax(z[:, :1], 1)), "above -1"),
        (lambda z, x: torch.softmax(z, 1).log() + torch.log1p(-torch.softmax(z[:, :1] * x[:, :1], 1)), "above -1"),
        (lambda z, x: torch.div(z, 2.0, rounding_mode="floor"), "rounds"),
        (lambda z, x: torch.zeros_like(z).scatter_reduce(1, x.long() % 4, z, "amax"), "list"),
        (lambda z, x: torch.softmax(z.masked_fill(torch.ones(4) > 0, -torch.inf), 1), "fully masked"),
        (lambda z, x: torch.softmax(z.masked_fill(x > 0, -torch.inf), 1), "fully masked"),
        (lambda z, x: torch.log_softmax(z.masked_fill(torch.eye(4)[1] > 0, -torch.inf), 1), "infinity"),
        (lambda z, x: F.normalize(z), "zero"),
        (lambda z, x: F.dropout(z), "random"),
        (lambda z, x: torch.special.zeta(z, torch.tensor(2.0)), "list"),
        (lambda z, x: F.layer_norm(z, (4,), eps=0.0), "eps"),
        (lambda z, x: z if bool((z > 0).all()) else -z, "cannot be traced"),
    ],
)
def test_what_is_not_established(function, word):
    result = check_analytic(Applied(function).eval())
    assert result.verdict is Verdict.UNDECIDED, result
    assert word in str(result)


def test_only_what_depends_on_the_parameters_matters():
    pooled = nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Linear(2, 1))
    assert check_analytic(pooled, torch.zeros(2, 4)).verdict is Verdict.HOLDS
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
    "batch norm in eval mode": Verdict.UNDECIDED,
    "attention": Verdict.UNDECIDED,
    "attention in eval mode": Verdict.UNDECIDED,
    "control flow on data": Verdict.UNDECIDED,
    "weight norm": Verdict.UNDECIDED,
}
if torch.__version__.startswith("2.6."):  # its torch.export does not trace a module that keeps a count of its calls
    WANTED["caching"] = Verdict.UNDECIDED


@pytest.mark.parametrize("name", zoo.CASES)
def test_the_zoo(name):
    model, x = zoo.build(name)
    before = fingerprint(model)
    result = check_analytic(model, x)
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
    assert check_analytic(between(relu).eval()).verdict is Verdict.UNDECIDED
    odd = nn.TransformerEncoderLayer(4, 1, 8, activation=torch.sin)
    assert check_analytic(between(odd)).verdict is Verdict.HOLDS


def test_hooks_are_part_of_the_function():
    model = between(nn.Tanh())
    handle = model[1].register_forward_hook(lambda module, args, output: output.abs())
    assert "abs of '1'" in check_analytic(model).reason
    handle.remove()
    model[1].register_forward_hook(lambda module, args, output: output.exp())
    assert check_analytic(model).verdict is Verdict.HOLDS
    model[1].forward = torch.relu
    assert "relu of '1'" in check_analytic(model).reason


def test_a_model_that_cannot_be_traced_is_undecided_and_its_module_is_named():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.layer(x)) if float(x.sum()) > 0 else self.layer(x)

    result = check_analytic(nn.Sequential(nn.Linear(4, 4), Hidden()).eval())
    assert (result.verdict, result.code) == (Verdict.UNDECIDED, "analytic-untraced")
    assert "in '1'" in result.reason


def test_inputs_of_another_shape_can_be_given():
    model = Applied(lambda z, x: z.flatten(1)).eval()
    assert check_analytic(model, torch.zeros(3, 5, 4)).measured["shape"] == (3, 5, 4)
    with pytest.raises(InvalidInput, match="finite"):
        check_analytic(model, [[float("nan")] * 4])


@pytest.mark.parametrize("model", ["no module", None, nn.Tanh])
def test_bad_input(model):
    with pytest.raises(InvalidInput) as refused:
        check_analytic(model)
    assert refused.value.argument == "model"
